from functools import partial

import pytest
import torch
from torch import nn

from sharpnb import rules
from sharpnb.lab import load_data, models, train_many
from sharpnb.many.batches import Tensors
from sharpnb.many.engine import Nets, losses

DATA = load_data("digits", train_size=48, dtype=torch.float64)


def small(seed: int) -> nn.Module:
    return models.mlp((64, 6, 10), seed=seed)


def test_rows_train_as_train_many_does():
    settings = {"rule": "sam", "rho": 0.1, "lr": 0.1, "momentum": 0.9}
    many = train_many([{**settings, "seed": seed} for seed in (3, 4)], DATA, small, steps=7, batch_size=16,
                      dtype=torch.float64)
    rows, seen = Nets([3, 4], DATA, small, batch_size=16), []
    rows.fit(partial(rules.sam, rho=0.1, lr=0.1, momentum=0.9), 7, every=3, probe=lambda step, _: seen.append(step))
    assert torch.allclose(rows.w, many.weights, atol=1e-12) and seen == [0, 3, 6, 7]
    errors = [row["test_error"] for row in many.final()]
    assert rows.errors(rows.w, "test").tolist() == pytest.approx(errors)


def test_gradient_is_that_of_each_net_alone():
    rows = Nets([0, 1], DATA, small, batch_size=16)
    x, y = rows.draw()
    found = rows.gradient((x, y))(rows.w)
    for k, seed in enumerate((0, 1)):
        net = small(seed).double()
        nn.functional.cross_entropy(net(x[k]), y[k]).backward()
        assert torch.allclose(found[k], torch.cat([p.grad.flatten() for p in net.parameters()]), atol=1e-14)


def test_each_row_has_its_own_data():
    other = load_data("digits", train_size=48, seed=1, dtype=torch.float64)
    sets = [DATA, other, Tensors(other.train, DATA.test, 10)]  # the first and the last share their test set
    rows = Nets([0, 0, 1], sets, small, batch_size=16)
    (x, _), alone = rows.draw(), Nets([0], other, small, batch_size=16).draw()[0]
    assert torch.equal(x[1], alone[0]) and not torch.equal(x[0], x[1])
    assert rows.errors(rows.w, "test")[0] == Nets([0], DATA, small).errors(rows.w[:1], "test")[0]
    for k, data in enumerate(sets):
        for name, column in Nets([0], data, small).evaluate(rows.w[k : k + 1]).items():
            assert rows.evaluate(rows.w)[name][k] == pytest.approx(column[0], rel=1e-12)


def test_soft_labels_give_the_mixture_of_the_losses():
    logits, y = torch.randn(2, 5, 10, dtype=torch.float64), torch.randint(0, 10, (2, 5))
    hot = nn.functional.one_hot(y, 10).double()
    assert torch.allclose(losses(logits, hot), losses(logits, y), atol=1e-14)
    other = torch.roll(hot, 1, dims=1)
    mixed = 0.3 * losses(logits, hot) + 0.7 * losses(logits, other)
    assert torch.allclose(losses(logits, 0.3 * hot + 0.7 * other), mixed, atol=1e-14)


# -- the losses that ESAM ranks images by -----------------------------------------------------------------------------


def test_the_losses_are_those_of_the_weights_asked_for_wherever_the_gradient_was_taken():
    nets = Nets([0, 1], DATA, small, batch_size=4)
    batch, w = nets.draw(), nets.w
    fresh, used = nets.gradient(batch), nets.gradient(batch)
    here, there = fresh.losses(w), fresh.losses(1.5 * w)
    used(w)
    assert torch.equal(used.losses(w), here) and torch.equal(used.losses(1.5 * w), there)
    used(1.5 * w, torch.tensor([[0, 2], [1, 3]]))  # the gradient of some images leaves no losses of all
    assert torch.equal(used.losses(w), here) and not torch.equal(here, there)


def test_the_losses_have_the_gradients_precision_wherever_they_come_from():
    """ESAM ranks images by their difference, in which bfloat16 against float32 would be noise."""
    blurred, exact = (Nets([0, 1], DATA, lambda seed: models.cnn(2, seed=seed), batch_size=4, dtype=torch.float32,
                           bf16=bf16) for bf16 in (True, False))
    batch, w = blurred.draw(), blurred.w
    asked = blurred.gradient(batch)
    asked(w)
    by_the_gradient, anew = asked.losses(w), asked.losses(w.clone())
    assert torch.equal(by_the_gradient, anew) and not torch.equal(anew, exact.gradient(batch).losses(w))
