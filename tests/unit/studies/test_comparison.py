import numpy as np
import pandas as pd
import pytest
import torch

from sharpnb.lab import models
from studies import comparison

TINY = comparison.Setting("tiny", "digits", 40, 30, lambda seed: models.mlp((64, 4, 10), seed=seed), steps=5, batch_size=20)


def table(errors):
    """Trials by method: {method: (val, test)}, each (trials, seeds)."""
    rows = [
        {"method": m, "trial": t, "seed": s, "val_error": val[t][s], "test_error": test[t][s]}
        for m, (val, test) in errors.items() for t in range(len(val)) for s in range(len(val[0]))
    ]
    return pd.DataFrame(rows)


def test_images_are_split_without_overlap_and_only_training_labels_are_wrong():
    clean, noisy = (comparison.splits(s, 2) for s in (TINY, comparison.replace(TINY, noise=0.25)))
    for a, b in zip(clean, noisy, strict=True):
        assert len(a.data.train_y) == 40 and len(a.held_out[1]) == 30
        together = torch.cat([a.data.train_x, a.held_out[0], a.data.test_x]).flatten(1)
        assert len(together) == 1797
        assert int((a.data.train_y != b.data.train_y).sum()) == 10
        assert torch.equal(a.held_out[1], b.held_out[1]) and torch.equal(a.data.test_y, b.data.test_y)
    assert not torch.equal(clean[0].data.train_x, clean[1].data.train_x)


def test_a_trial_is_chosen_on_validation_and_judged_on_test():
    t = table({"a": ([[3.0, 3.0], [2.0, 2.0]], [[0.0, 0.0], [9.0, 9.0]]), "b": ([[1.0, 1.0], [1.0, 1.0]], [[5.0, 7.0], [1.0, 1.0]])})
    final = comparison.chosen(t)
    assert final.groupby("method")["trial"].first().to_dict() == {"a": 1, "b": 0}  # of equal ones the first
    assert comparison.paired(final, "a", "b").tolist() == [4.0, 2.0]


def test_bootstrap_knows_certainty_and_a_toss_up():
    same = [[5.0, 6.0, 7.0, 8.0]]
    t = table({"best": ([[1.0] * 4], [[1.0] * 4]), "x": (same, same), "y": (same, same)})
    boot = comparison.bootstrap(t, draws=500)
    assert boot.better("best", "x") == 1.0 and boot.better("x", "y") == 0.5
    assert np.allclose(boot.ranks(), [1.0, 2.5, 2.5])
    assert boot.interval()[0].tolist() == [1.0, 1.0]
    assert np.allclose(boot.errors[:, 1].mean(), 6.5, atol=0.1) and np.allclose(boot.errors[:, 1].std(), np.sqrt(1.25 / 4), atol=0.05)


def test_bootstrap_tunes_again_on_each_resample():
    # On seed 0 the first trial validates better, on seed 1 the second; with two seeds of one kind the choice follows.
    t = table({"a": ([[0.0, 9.0], [8.0, 0.0]], [[10.0, 10.0], [20.0, 20.0]])})
    found = np.round(comparison.bootstrap(t, draws=400).errors[:, 0], 6)
    assert set(found) == {10.0, 20.0}
    assert abs((found == 10.0).mean() - 0.25) < 0.07  # both of seed 0; the mixed resample prefers the second trial


def test_run_measures_each_configuration_on_its_own_images():
    images = comparison.splits(TINY, 2)
    configs = [{"method": "SGD", "trial": 0, "rule": "sgd", "lr": 0.1, "seed": seed} for seed in range(2)]
    frame, weights = comparison.run(TINY, configs, comparison.of_each(configs, images), torch.device("cpu"))
    for row, w, own in zip(frame.to_dict("records"), weights, images, strict=True):
        logits = comparison.net_at(TINY, w)(own.held_out[0])
        assert row["val_error"] == pytest.approx(100 * float((logits.argmax(1) != own.held_out[1]).double().mean()))
    assert comparison.lambda_max(TINY, weights[0], images[0].data) > 0


def test_what_left_the_finite_numbers_has_the_error_of_a_constant_answer():
    config = [{"method": "SGD", "trial": 0, "rule": "sgd", "lr": 1e200, "momentum": 0.9, "seed": 0}]
    frame, weights = comparison.run(TINY, config, comparison.splits(TINY, 1), torch.device("cpu"))
    assert not weights.isfinite().all()
    assert frame["test_error"][0] == frame["val_error"][0] == 90.0 and np.isnan(frame["train_loss"][0])
    assert np.isnan(comparison.lambda_max(TINY, weights[0], comparison.splits(TINY, 1)[0].data))
