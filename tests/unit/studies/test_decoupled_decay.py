
import pytest
import torch

from sharpnb import rules
from studies import decoupled_decay as study

TASK = study.Regression(images=120, batch_size=16)


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
