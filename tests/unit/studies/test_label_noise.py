import json

import pandas as pd
import pytest
import torch
from cells import executed

from sharpnb import lab
from sharpnb.lab import Record, pieces
from studies import label_noise as study


def test_validation_images_are_clean_and_apart_from_the_rest():
    noisy, held = study.parts("digits", 100, 40, 0, torch.float64, 0.5)
    whole = lab.load_data("digits", train_size=140, dtype=torch.float64)
    assert torch.equal(noisy.train_x, whole.train_x[:100]) and torch.equal(held.test_x, whole.train_x[100:])
    assert (noisy.train_y != whole.train_y[:100]).sum() == 50
    assert torch.equal(held.test_y, whole.train_y[100:]) and torch.equal(noisy.test_y, whole.test_y)


def test_the_hyperparameter_is_picked_on_validation_and_not_on_test():
    table = pd.DataFrame([
        {"method": "SAM", "value": value, "noise": 0.2, "seed": seed, "test_error": test + seed, "validation_error": v}
        for value, test, v in ((0.0, 1.0, 1.0), (0.1, 9.0, 5.0), (0.2, 5.0, 6.0)) for seed in (1, 0)])
    assert study.picked(table, "SAM", 0.2) == 0.1  # ρ = 0 is SGD and no choice for SAM
    assert study.accuracy(table, "SAM", 0.2).tolist() == [91.0, 90.0]
    assert study.accuracy(table, "SGD", 0.2).tolist() == [99.0, 98.0]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Return a function that trains everything at the size of a test, as the notebook does in the full profile."""
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return lambda: executed("05_label_noise", "settings", "train", profile="toy", device="cpu")


def test_the_whole_study_runs_at_the_size_of_a_test_and_goes_on_after_a_kill(toy, monkeypatch):
    table, s = toy()["table"], study.TOY
    assert set(table["method"]) == set(study.METHODS) - {"SGD"}
    errors = table[["test_error", "validation_error", "train_error", "best_epoch"]]
    assert ((errors >= 0) & (errors <= 100)).all(axis=None) and (table["best_epoch"] <= table["test_error"] + 1e-9).all()
    assert all(len(study.accuracy(table, method, noise)) == s.seeds for method in study.METHODS for noise in study.NOISES)
    record = Record.find("05_label_noise", "table", "toy")
    assert [piece["label"] for piece in record.provenance["pieces"]] == [
        "SAM", "random labels", "Mixup", "ESAM", "GSAM", "WSAM", "Bootstrap + SAM", "Bootstrap + Mixup"]
    monkeypatch.setattr(pieces.Work, "_keep", None)  # nothing is trained again
    assert toy()["table"].equals(table)
    record.path.unlink()
    assert json.dumps(toy()["work"].values) == json.dumps(record.values)


def test_ordinary_rules_and_mixup_start_from_the_same_nets_and_equal_each_other(toy):
    space, s = toy(), study.TOY
    one = [{"method": "SAM", "value": 0.0, "noise": 0.2, "seed": 0}]
    w = [space["trained"](name, members=one, how=how)["w"]
         for name, how in (("a", [{"rule": "sam", "rho": 0.0}]), ("b", [{"rule": "sgd"}]))]
    assert torch.allclose(*w, atol=1e-6)
    labels = torch.stack([data.train_y for data in study.sets(s, one)])
    again = space["trained"]("c", members=one, how=[{"rule": "sgd"}], labels=labels)
    assert torch.equal(again["w"], w[1])
    other = space["trained"]("d", members=one, how=[{"rule": "sgd"}], labels=(labels + 1) % 10)
    assert not torch.equal(other["w"], w[1])
