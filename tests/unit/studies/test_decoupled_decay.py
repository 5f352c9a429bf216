import math
from functools import partial

import pytest
import torch

from sharpnb import rules
from studies import decoupled_decay as study

TASK = study.Regression(images=120, batch_size=16)


def test_the_gradient_is_that_of_the_cross_entropy_for_each_row():
    w = torch.cat([TASK.start(0), TASK.start(1)]).requires_grad_()
    rows = torch.tensor([3, 50, 7])
    logits = TASK.x[rows] @ w.view(2, 10, 64).mT
    loss = sum(torch.nn.functional.cross_entropy(part, TASK.data.train_y[rows]) for part in logits)
    assert torch.allclose(torch.autograd.grad(loss, w)[0], TASK.gradient(w.detach(), rows), atol=1e-14)


def test_paths_of_rules_and_classes_are_the_same_and_seeds_differ():
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    a = study.rule_path(TASK, rules.sgdw, 12, **options)
    assert a.shape == (13, 640) and torch.equal(a[:1], TASK.start(0))
    assert (a - study.class_path(TASK, "sharpnb.optim.SGDW", 12, **options)).abs().max() < 1e-13
    assert (a - study.class_path(TASK, "torch.optim.SGD", 12, **options)).abs().max() > 1e-3  # L2 is not decay
    other = TASK.path(lambda w, g, s: rules.sgd(w, g, s, lr=0.05), 3, seed=1)
    assert not torch.equal(other[-1], TASK.path(lambda w, g, s: rules.sgd(w, g, s, lr=0.05), 3, seed=0)[-1])


@pytest.mark.parametrize(("name", "left"), [
    ("torch.optim.SGD", 1 - 0.1 * 0.01), ("torch.optim.Adam", 0.9), ("torch.optim.AdamW", 1 - 0.1 * 0.01),
    ("sharpnb.optim.SGDW", 0.99), ("sharpnb.optim.AdamW", 0.99),
])
def test_one_step_without_a_gradient_is_what_the_table_says(name, left):
    assert study.one_step(name, 0.0, lr=0.1, weight_decay=0.01) == pytest.approx(left, abs=1e-6)


def test_l2_shrinks_by_the_inverse_of_the_gradient_and_decay_does_not():
    sizes = torch.tensor([1.0, 4.0], dtype=torch.float64)
    rates = study.decay_rates(sizes, lr=1e-4, l2=0.01, decay=1e-5, steps=400, pairs=8)
    assert float(rates["Adam + L2"][0] / rates["Adam + L2"][1]) == pytest.approx(4, rel=0.1)
    assert rates["AdamW"].tolist() == pytest.approx([-math.log1p(-1e-5)] * 2, rel=1e-2)


def test_shrinkage_has_a_row_a_method_seed_and_tenth_and_falls_under_l2():
    adam, adamw = partial(rules.adam, lr=1e-3), partial(rules.adamw, lr=1e-3)
    decayed = {"Adam + L2": partial(adam, weight_decay=0.02), "AdamW": partial(adamw, weight_decay=1e-3)}
    rows = study.shrinkage_by_gradient({0: TASK, 1: TASK}, adam, decayed, steps=150)
    assert len(rows) == 2 * 2 * 10
    assert all(x < -0.7 for x in study.rank_correlation(rows, "Adam + L2"))
    of = rows.set_index(["rule", "seed", "group"])["shrinkage"]
    assert of["Adam + L2", 0, 0] > 2 * of["Adam + L2", 0, 9] and of["AdamW", 0, 0] < 2 * of["AdamW", 0, 9]
    none = study.shrinkage_by_gradient({0: TASK}, adam, {"Adam + L2": adam, "AdamW": adamw}, steps=5)
    assert (none["shrinkage"].abs() < 1e-12).all()


def test_resting_points_are_where_the_updates_rest():
    bowl = study.quadratic()
    for end, options in ((bowl.end_of_l2(0.4), {"l2": 0.4}), (bowl.end_of_decay(0.02, 0.05), {"decay": 0.02})):
        assert torch.allclose(bowl.descend(0.05, **options), end, atol=1e-12)
    assert torch.allclose(bowl.end_of_l2(0.0), bowl.c)
    assert (bowl.end_of_l2(0.4) - bowl.end_of_decay(0.02, 0.05)).norm() > 0.1


def test_the_filter_is_the_dense_posterior_and_l2_needs_a_coefficient_for_each_weight():
    drift = study.Drift(0.05, 0.02, torch.tensor([0.5, 20.0], dtype=torch.float64))
    _, y = drift.simulate(300, range(3))
    means, variances = drift.filter(y)
    for i in range(2):
        mean, variance = drift.posterior(y[1, :40, i], i)
        assert (mean, variance) == pytest.approx((means[1, 39, i].item(), variances[39, i].item()), abs=1e-12)
    each = drift.a * (1 / variances[-1] - 1 / drift.r)
    prior = (1 - drift.a) ** 2 * variances[-1] + drift.q
    assert torch.allclose(each, drift.a / prior)
    assert (drift.filter(y, l2=each)[0] - means)[:, -1].abs().max() < 1e-6
    assert (drift.filter(y, l2=float(each[0]))[0] - means)[:, -1, 1].abs().max() > 1e-3
