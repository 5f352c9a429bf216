from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sharpnb import lab, rules
from sharpnb.lab import models
from sharpnb.lab.augment import shift_and_flip
from studies import adamw_generalization, adamw_generalization_claims, decay_runs, decoupled_decay

WORLD = decay_runs.World("an MLP", "digits", 80, lambda seed: models.mlp((64, 6, 10), seed=seed), batch_size=20,
                         label_noise=0.1, augment=shift_and_flip(1, flip=False), dtype=torch.float64)
CONFIGS = [
    {"method": "Adam", "rule": "adam", "lr": 0.01, "weight_decay": 0.01, "seed": 1},
    {"method": "SGD", "rule": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "seed": 0,
     "schedule": "constant"},
    {"method": "AdamW", "rule": "adamw", "lr": 0.01, "lambda_norm": 0.3, "seed": 0},
    {"method": "AdamWR", "rule": "adamw", "lr": 0.01, "lambda_norm": 0.3, "seed": 1, "schedule": "restarts", "t_0": 4},
    {"method": "SGDWR", "rule": "sgdw", "lr": 0.05, "momentum": 0.9, "lambda_norm": 0.3, "seed": 0,
     "schedule": "restarts", "t_0": 4},
]


@pytest.fixture
def nb(project):
    return lab.start("n", device="cpu")


def test_one_by_one_is_all_at_once(nb):
    together = decay_runs.run(WORLD, nb, CONFIGS, steps=12, every=4)
    alone = decay_runs.run(replace(WORLD, many=False), nb, CONFIGS, steps=12, every=4)
    assert len(together) == len(alone) == 5 * 3
    key = lambda row: (row["method"], row["step"])
    for a, b in zip(sorted(together, key=key), sorted(alone, key=key), strict=True):
        assert key(a) == key(b) and a["seed"] == b["seed"]
        assert [a[m] for m in decay_runs.MEASURES] == pytest.approx([b[m] for m in decay_runs.MEASURES], rel=1e-9)


def test_tuning_takes_the_lowest_mean_counts_a_diverged_run_as_guessing_and_names_the_edge():
    errors = {(0.1, 0.0): (3, 9), (0.2, 0.0): (5, 5), (0.2, 1.0): (8, 4.5), (0.4, 1.0): (1, float("nan"))}
    rows = [{"method": "m", "lr": lr, "weight_decay": decay, "seed": seed, "step": step, "test_error": e if step else 0}
            for (lr, decay), own in errors.items() for seed, e in enumerate(own) for step in (0, 1)]
    found = decay_runs.tuned(rows)["m"]
    assert found == decay_runs.Tuned({"lr": 0.2, "weight_decay": 0.0}, 5.0, 4, ())  # no decay is no edge
    larger = decay_runs.tuned([row for row in rows if row["lr"] < 0.3 and row["weight_decay"] == 0])["m"]
    assert larger.edge == ("lr",) and "lr" in decay_runs.choices({"m": larger})


def test_signals_to_tune_on_are_not_those_of_the_test_and_a_seed_has_its_own():
    world = replace(WORLD, data="mnist1d", train_size=20)
    own, other = world.images(100), world.images(101)
    held = decay_runs.held_out(own, 100)
    assert torch.equal(own.test_x, other.test_x) and torch.equal(held.train_x, own.train_x)
    assert len(held.test_y) == 4000 and not torch.equal(held.test_x, own.test_x[:4000])
    assert not torch.equal(held.test_x, decay_runs.held_out(other, 101).test_x)
    digits = WORLD.images(0)
    assert decay_runs.held_out(digits, 0) is digits


TASK = decoupled_decay.Regression(images=120, batch_size=16)


def test_paths_of_rules_and_classes_are_the_same_and_seeds_differ():
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    a = decoupled_decay.rule_path(TASK, rules.sgdw, 12, **options)
    assert a.shape == (13, 640) and torch.equal(a[:1], TASK.start(0))
    assert (a - decoupled_decay.class_path(TASK, "sharpnb.optim.SGDW", 12, **options)).abs().max() < 1e-13
    assert (a - decoupled_decay.class_path(TASK, "torch.optim.SGD", 12, **options)).abs().max() > 1e-3  # L2: no decay
    other = TASK.path(lambda w, g, s: rules.sgd(w, g, s, lr=0.05), 3, seed=1)
    assert not torch.equal(other[-1], TASK.path(lambda w, g, s: rules.sgd(w, g, s, lr=0.05), 3, seed=0)[-1])


@pytest.mark.parametrize(("name", "left"), [
    ("torch.optim.SGD", 1 - 0.1 * 0.01), ("torch.optim.Adam", 0.9), ("torch.optim.AdamW", 1 - 0.1 * 0.01),
    ("sharpnb.optim.SGDW", 0.99), ("sharpnb.optim.AdamW", 0.99),
])
def test_one_step_without_a_gradient_is_what_the_table_says(name, left):
    assert decoupled_decay.one_step(name, 0.0, lr=0.1, weight_decay=0.01) == pytest.approx(left, abs=1e-6)


def test_the_filter_is_the_dense_posterior_and_l2_needs_a_coefficient_for_each_weight():
    drift = decoupled_decay.Drift(0.05, 0.02, torch.tensor([0.5, 20.0], dtype=torch.float64))
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


def _cloud(method, losses, errors, seed=0):
    return [{"method": method, "seed": seed, "step": 1, "decay": float(i), "train_loss": x, "test_error": y}
            for i, (x, y) in enumerate(zip(losses, errors, strict=True))]


def test_equal_loss_is_compared_and_not_equal_decay():
    losses = np.array([0.01, 0.1, 1.0])
    line = lambda x: 10 + np.log10(x) ** 2
    shifted = _cloud("Adam + L2", losses, line(losses) + 2) + _cloud("AdamW", losses, line(losses))
    assert adamw_generalization.at_equal_loss(pd.DataFrame(shifted)) == pytest.approx([2.0])
    # One straight curve, sampled at other losses: no difference at equal loss, although each point differs.
    straight = lambda x: 20 + 3 * np.log10(x)
    other = np.array([0.02, 0.2, 0.8])
    same = _cloud("Adam + L2", losses, -straight(losses)) + _cloud("AdamW", other, -straight(other))
    assert adamw_generalization.at_equal_loss(pd.DataFrame(same)) == pytest.approx([0.0], abs=1e-12)


def _judged(errors):
    return [{"method": method, "seed": seed, "step": step, "test_error": 9.0 if step == 1 else error,
             "train_error": 0.5, "train_loss": 0.1}
            for method, own in errors.items() for seed, error in enumerate(own) for step in (1, 2)]


def test_claims_are_of_the_end_and_positive_where_the_paper_is_right_and_know_their_regime():
    rows = _judged({"Adam + L2": [20.0, 40.0], "AdamW": [10.0, 40.0], "SGD + L2": [18.0, np.nan]})
    figure, wilson = adamw_generalization_claims.claims(rows)
    assert figure.samples == pytest.approx([np.log10(2), 0]) and wilson.samples == pytest.approx([2, -50])
    assert figure.regime == wilson.regime and figure.regime.train_error == 0.5
    older = [{name: x for name, x in row.items() if name != "train_error"} for row in rows]
    assert adamw_generalization_claims.claims(older)[0].regime.train_error is None
    assert [claim.samples for claim in adamw_generalization_claims.claims(None)] == [None, None]
