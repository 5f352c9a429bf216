import numpy as np
import pandas as pd
import pytest
import torch

from sharpnb.lab import models
from sharpnb.lab.claims import Regime
from studies import comparison
from studies.trials import grid

CPU = torch.device("cpu")
TINY = comparison.Setting("tiny", "digits", 40, 30, lambda seed: models.mlp((64, 4, 10), seed=seed), steps=5,
                          batch_size=20)


def test_images_are_split_without_overlap_and_only_training_labels_are_wrong():
    clean, noisy = (comparison.splits(s, (3, 8)) for s in (TINY, comparison.replace(TINY, noise=0.25)))
    for seed, a in clean.items():
        b = noisy[seed]
        assert len(a.data.train_y) == 40 and len(a.held_out[1]) == 30
        together = torch.cat([a.data.train_x, a.held_out[0], a.data.test_x]).flatten(1)
        assert len(together) == 1797
        assert int((a.data.train_y != b.data.train_y).sum()) == 10
        assert torch.equal(a.held_out[1], b.held_out[1]) and torch.equal(a.data.test_y, b.data.test_y)
    assert not torch.equal(clean[3].data.train_x, clean[8].data.train_x)


def trials(**errors):
    """Rows of tune: one a value of the grid, the method's name and its held-out errors given."""
    return [{"method": name, "own": {"rho": float(k)}, "val_error": v, "train_error": 0.0}
            for name, own in errors.items() for k, v in enumerate(own)]


def test_a_trial_is_chosen_on_held_out_images_and_an_edge_is_said():
    rows = trials(a=(3.0, 2.0, 2.0), b=(1.0, 1.0, 4.0), c=(2.0, 1.0))
    assert [comparison.best(rows, m)["own"]["rho"] for m in "abc"] == [1.0, 0.0, 1.0]  # of equal ones the first
    assert [comparison.edges(rows, m) for m in "abc"] == ["", "rho = 0", ""]  # two values have no inside
    assert comparison.tuning(rows)["trials"].tolist() == [3, 3, 2]


def test_a_method_keeps_the_tuned_values_of_what_it_stands_on():
    methods = {"SGD": comparison.Method({"rule": "sgd", "momentum": 0.9}, grid(lr=(0.1, 0.2))),
               "SAM": comparison.Method({"rule": "sam"}, grid(rho=(0.05, 0.1)), "SGD", ("lr", "momentum"))}
    rows = comparison.tune(TINY, methods, (0, 1), CPU)
    lr = comparison.best(rows, "SGD")["own"]["lr"]
    kept = {"lr": lr, "momentum": 0.9, "rule": "sam"}
    assert [row["config"] for row in rows[2:]] == [kept | {"rho": 0.05}, kept | {"rho": 0.1}]
    again = [rows[3]["config"] | {"seed": s} for s in (0, 1)]
    alone = comparison.run(TINY, again, comparison.splits(TINY, (0, 1)), CPU)[0]
    assert rows[3]["val_error"] == pytest.approx(alone["val_error"].mean(), abs=1e-4)
    judged, weights, images = comparison.judge(TINY, {"SAM": rows[3]["config"]}, (5, 6, 7), CPU)
    assert judged["seed"].tolist() == [5, 6, 7] == list(images) and len(weights) == 3


def test_run_measures_each_configuration_on_its_own_images():
    images = comparison.splits(TINY, (4, 9))
    configs = [{"method": "SGD", "rule": "sgd", "lr": 0.1, "seed": s} for s in (9, 4)]
    frame, weights = comparison.run(TINY, configs, images, CPU)
    for row, w in zip(frame.to_dict("records"), weights, strict=True):
        own = images[row["seed"]]
        logits = comparison.net_at(TINY, w)(own.held_out[0])
        wrong = (logits.argmax(1) != own.held_out[1]).double().mean()
        assert row["val_error"] == pytest.approx(100 * float(wrong), abs=1e-4)
    assert comparison.lambda_max(TINY, weights[1], images[4].data) > 0


def test_what_left_the_finite_numbers_has_the_error_of_a_constant_answer():
    config = [{"method": "SGD", "rule": "sgd", "lr": 1e200, "momentum": 0.9, "seed": 0}]
    images = comparison.splits(TINY, (0,))
    frame, weights = comparison.run(TINY, config, images, CPU)
    assert not weights.isfinite().all()
    assert set(frame[["test_error", "val_error", "train_error"]].loc[0]) == {90.0} and np.isnan(frame["train_loss"][0])
    assert np.isnan(comparison.lambda_max(TINY, weights[0], images[0].data))


def test_a_gap_is_paired_by_seed_and_the_regime_is_the_baselines():
    rows = [{"method": m, "seed": s, "test_error": e + s, "train_error": 0.5}
            for m, e in (("SGD", 9.0), ("SAM", 7.0), ("2E", 8.0)) for s in range(3)]
    table = pd.DataFrame(rows[::-1])
    table.loc[(table["method"] == "SAM") & (table["seed"] == 2), "test_error"] = 95.0  # worse than guessing
    assert comparison.gap(table, "SGD", "SAM").tolist() == [-79.0, 2.0, 2.0]
    assert comparison.regime(table, twice="2E") == Regime(0.5, 10.0, 9.0)
    assert comparison.interval(np.array([1.0, 3.0])) == "+2.00 ± 12.71"
