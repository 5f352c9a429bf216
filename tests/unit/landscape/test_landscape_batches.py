"""Surfaces over batches of every kind: tokens, dictionaries, time first, several outputs."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sharpnb.landscape import Plane, surface

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(40, 8, 8, dtype=torch.float64, generator=G), torch.randint(0, 3, (40,), generator=G)
TAGS = torch.randint(0, 3, (40, 8), generator=G).masked_fill(torch.arange(8) > torch.arange(40)[:, None] % 7, -100)
TAGS[:16, 0] = -100  # so that a piece of 16 has some terms, and the next one none
TAGS[16:24] = -100


class Reads(nn.Module):
    """Tokens (B, T, 8), or by time first, to classes of each or of all."""

    def __init__(self, time_first=False):
        super().__init__()
        torch.manual_seed(0)
        self.time_first, self.rnn, self.out = time_first, nn.GRU(8, 4, batch_first=not time_first), nn.Linear(4, 3)
        self.double()

    def forward(self, x, names=None):
        h = self.rnn(x)[0]
        return {"logits": self.out(h[-1]), "h": h[-1]} if self.time_first else self.out(h)


def _tokens(out, y):
    return F.cross_entropy(out.flatten(0, 1), y.flatten(), ignore_index=-100)


def _terms(x, y):
    return (y != -100).sum()


@pytest.mark.parametrize("cut, options", [
    (False, {}), (False, {"count": _terms, "batch_size": 8}), (True, {"count": _terms}),
    (True, {"count": [float((TAGS[s] != -100).sum()) for s in (slice(25), slice(25, None))]}),
])
def test_a_loss_over_pieces_is_that_of_the_whole(cut, options):
    model = Reads()
    data = [(X[:25], TAGS[:25]), ({"x": X[25:], "names": ["n"] * 15}, TAGS[25:])] if cut else (X, TAGS)
    measure = partial(surface, model, Plane.random(model, seed=1), data, {"loss": _tokens}, 2)
    found = measure(**{"batch_size": 16, **options})
    for i, b in enumerate(found.y):
        for j, a in enumerate(found.x):
            nn.utils.vector_to_parameters(found.plane.at(float(a), float(b)), model.parameters())
            assert found.values["loss"][i, j] == pytest.approx(_tokens(model(X), TAGS).item(), rel=1e-12)
    if cut:
        with pytest.raises(ValueError, match="count="):
            measure()


def test_time_first_and_several_outputs_on_a_surface():
    def loss(out, t):
        return F.cross_entropy(out["logits"], t) + out["h"].square().mean()

    model, x = Reads(time_first=True), X.transpose(0, 1)
    plane, cut = Plane.random(model), [(x[:, :25], Y[:25]), (x[:, 25:], Y[25:])]
    whole = surface(model, plane, (x, Y), {"mine": loss}, 2).values["mine"]
    pieces = surface(model, plane, cut, {"mine": loss}, 2, count=lambda x, y: len(y)).values["mine"]
    np.testing.assert_allclose(pieces, whole, rtol=1e-12)
    turned, data = Reads(), (x, TAGS.T.abs() % 3)
    turned.rnn.batch_first = False  # inputs, outputs and target agree on the first axis, and it is that of time
    found = [surface(turned, plane, data, {"mine": _tokens}, 2, batch_size=size).values["mine"] for size in (3, 90)]
    np.testing.assert_allclose(*found, rtol=1e-12)
    for turn in (lambda value: value[None], float):
        found = surface(model, plane, (x, Y), {"mine": lambda out, t, turn=turn: turn(loss(out, t))}, 2).values["mine"]
        np.testing.assert_allclose(found, whole, rtol=1e-12)
    with pytest.raises(ValueError, match="count="):
        surface(model, plane, cut, {"mine": loss}, 2)
    with pytest.raises(ValueError, match="one tensor of logits, and the model returns a dict"):
        surface(model, plane, (x, Y), ("loss",), 2)
