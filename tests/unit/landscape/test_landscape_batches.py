"""Surfaces over batches of every kind: tokens, dictionaries, time first, several outputs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sharpnb.landscape import Plane, surface

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(40, 8, 8, dtype=torch.float64, generator=G), torch.randint(0, 3, (40,), generator=G)


class Reads(nn.Module):
    """Tokens (B, T, 8) or a dictionary of them, classes of each."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(8, 4, batch_first=True), nn.Linear(4, 3)
        self.double()

    def forward(self, x, names=None):
        return self.out(self.rnn(x)[0])


def _token_loss(out, y):
    return F.cross_entropy(out.flatten(0, 1), y.flatten(), ignore_index=-100)


@pytest.mark.parametrize("cut, options", [
    (False, {}), (False, {"count": lambda x, y: (y != -100).sum()}), (True, {"count": lambda x, y: (y != -100).sum()}), (True, {"count": [85.0, 51.0]}),
])
def test_a_loss_over_pieces_is_that_of_the_whole(cut, options):
    torch.manual_seed(0)
    model, x = Reads(), X
    y = torch.randint(0, 3, (40, 8)).masked_fill(torch.arange(8) > torch.arange(40)[:, None] % 7, -100)
    counts = [(y[s] != -100).sum().item() for s in (slice(25), slice(25, None))]
    options = {k: counts if isinstance(v, list) else v for k, v in options.items()}
    data = [(x[:25], y[:25]), ({"x": x[25:], "names": ["n"] * 15}, y[25:])] if cut else (x, y)
    plane = Plane.random(model, seed=1)
    found = surface(model, plane, data, {"loss": _token_loss}, 2, batch_size=16, **options)
    for i, b in enumerate(found.y):
        for j, a in enumerate(found.x):
            nn.utils.vector_to_parameters(plane.at(float(a), float(b)), model.parameters())
            assert found.values["loss"][i, j] == pytest.approx(_token_loss(model(x), y).item(), rel=1e-12)
    if cut:
        with pytest.raises(ValueError, match="count="):
            surface(model, plane, data, {"loss": _token_loss}, 2)


def test_time_first_and_several_outputs_on_a_surface():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(8, 4), nn.Linear(4, 3)
            self.double()

        def forward(self, x):
            h = self.rnn(x)[0][-1]
            return {"logits": self.out(h), "h": h}

    torch.manual_seed(0)
    model, x, y = Two(), X.transpose(0, 1), Y
    loss = lambda out, t: F.cross_entropy(out["logits"], t) + out["h"].square().mean()
    plane, cut = Plane.random(model), [(x[:, :25], y[:25]), (x[:, 25:], y[25:])]
    whole = surface(model, plane, (x, y), {"mine": loss}, 2).values["mine"]
    np.testing.assert_allclose(surface(model, plane, cut, {"mine": loss}, 2, count=lambda x, y: len(y)).values["mine"], whole, rtol=1e-12)
    with pytest.raises(ValueError, match="count="):
        surface(model, plane, cut, {"mine": loss}, 2)
    with pytest.raises(ValueError, match="one tensor of logits, and the model returns a dict"):
        surface(model, plane, (x, y), ("loss",), 2)


def test_a_piece_without_terms_is_left_out():
    torch.manual_seed(0)
    model, x, y = Reads(), X, torch.randint(0, 3, (40, 8))
    y[16:32] = -100  # the second piece: its mean is not a number
    plane = Plane.random(model, seed=1)
    found = surface(model, plane, (x, y), {"loss": _token_loss}, 1, window=(0, 0, 0, 0), batch_size=16, count=lambda x, y: (y != -100).sum())
    assert found.values["loss"].item() == pytest.approx(_token_loss(model(x), y).item(), rel=1e-12)
