from functools import partial

import pytest
import torch
from torch import nn

from sharpnb import rules
from sharpnb.lab import models, train_many
from sharpnb.lab.data import load_data
from sharpnb.many.engine import Nets, losses
from sharpnb.many.net import blocks


def small(seed: int) -> nn.Module:
    return models.mlp((64, 6, 10), seed=seed)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", train_size=48, dtype=torch.float64)


def test_rows_train_as_train_many_does(data):
    settings = {"rule": "sam", "rho": 0.1, "lr": 0.1, "momentum": 0.9}
    many = train_many([{**settings, "seed": seed} for seed in (3, 4)], data, small, steps=7, batch_size=16, dtype=torch.float64)
    rows = Nets([3, 4], data, small, batch_size=16)
    rows.fit(partial(rules.sam, rho=0.1, lr=0.1, momentum=0.9), 7)
    assert torch.allclose(rows.w, many.weights, atol=1e-12)
    errors = [row["test_error"] for row in many.final()]
    assert rows.errors(rows.w, "test").tolist() == pytest.approx(errors)


def test_gradient_is_that_of_each_net_alone(data):
    rows = Nets([0, 1], data, small, batch_size=16)
    x, y = rows.draw()
    found = rows.gradient((x, y))(rows.w)
    for k, seed in enumerate((0, 1)):
        net = small(seed).double()
        nn.functional.cross_entropy(net(x[k]), y[k]).backward()
        alone = torch.cat([p.grad.flatten() for p in net.parameters()])
        assert torch.allclose(found[k], alone, atol=1e-14)


def test_each_row_has_its_own_data(data):
    other = load_data("digits", train_size=48, seed=1, dtype=torch.float64)
    rows = Nets([0, 0], [data, other], small, batch_size=16)
    (x, _), alone = rows.draw(), Nets([0], other, small, batch_size=16).draw()[0]
    assert torch.equal(x[1], alone[0]) and not torch.equal(x[0], x[1])
    test = rows.errors(rows.w, "test")
    assert test[0] == Nets([0], data, small).errors(rows.w[:1], "test")[0]
    with pytest.raises(ValueError, match="3 data sets for 2 nets"):
        Nets([0, 1], [data] * 3, small)


def test_soft_labels_give_the_mixture_of_the_losses():
    logits, y = torch.randn(2, 5, 10, dtype=torch.float64), torch.randint(0, 10, (2, 5))
    hot = nn.functional.one_hot(y, 10).double()
    assert torch.allclose(losses(logits, hot), losses(logits, y), atol=1e-14)
    other = torch.roll(hot, 1, dims=1)
    mixed = 0.3 * losses(logits, hot) + 0.7 * losses(logits, other)
    assert torch.allclose(losses(logits, 0.3 * hot + 0.7 * other), mixed, atol=1e-14)


def test_probe_is_called_on_time_and_batches_come_in_order(data):
    seen = []
    rows = Nets([0], data, small, batch_size=16)
    rows.fit(partial(rules.sam, rho=0.0, lr=0.1), 5, every=2, probe=lambda step, _: seen.append(step))
    assert seen == [0, 2, 4, 5]
    assert torch.equal(torch.cat([x[0] for x, _ in rows.in_order()]), data.train_x)


def test_batchnorm_is_evaluated_with_the_statistics_of_the_training_images(data):
    rows = Nets([0], data, lambda seed: models.mlp((64, 6, 10), norm=True, seed=seed), batch_size=16)
    net = models.mlp((64, 6, 10), norm=True, seed=0).double().train()
    net[2].momentum = None
    net(data.train_x)
    truth = 100 * (net.eval()(data.test_x).argmax(1) != data.test_y).double().mean()
    assert rows.errors(rows.w, "test").item() == pytest.approx(truth.item())


def test_a_single_image_left_over_by_the_statistics_joins_the_others():
    data = load_data("digits", train_size=1001, dtype=torch.float64)
    rows = Nets([0], data, lambda seed: models.mlp((64, 6, 10), norm=True, seed=seed), batch_size=16)
    net = models.mlp((64, 6, 10), norm=True, seed=0).double()
    torch.optim.swa_utils.update_bn([data.train_x], net)
    wrong = (net.eval()(data.test_x).argmax(1) != data.test_y).double().mean()
    assert rows.errors(rows.w, "test").item() == pytest.approx(100 * wrong.item())


@pytest.mark.parametrize(("images", "size", "cut"), [
    (4, 2, [2, 2]), (5, 2, [2, 3]), (3, 2, [3]), (2, 2, [2]), (1, 2, [1]), (6, 4, [4, 2]), (9, 4, [4, 5])])
def test_blocks_hold_all_images_in_order_and_none_alone(images, size, cut):
    x = torch.arange(images)
    found = blocks(x, size)
    assert [len(block) for block in found] == cut and torch.equal(torch.cat(found), x)
