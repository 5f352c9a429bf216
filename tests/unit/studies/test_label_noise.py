import json
import multiprocessing
import os
import shutil
import signal

import pandas as pd
import pytest
import torch
from cells import executed, programs

from sharpnb import lab, paths
from sharpnb.lab import models, pieces
from sharpnb.many.engine import Nets
from studies import label_noise as study
from studies import label_noise_claims as statements
from studies.label_noise_claims import claims
from studies.mixup import Mixup, bootstrapped


def test_validation_images_are_clean_and_apart_from_the_rest():
    noisy, held = study.parts("digits", 100, 40, 0, torch.float64, 0.5)
    whole = lab.load_data("digits", train_size=140, dtype=torch.float64)
    assert torch.equal(noisy.train_x, whole.train_x[:100]) and torch.equal(held.test_x, whole.train_x[100:])
    assert (noisy.train_y != whole.train_y[:100]).sum() == 50 and torch.equal(held.test_y, whole.train_y[100:])


def test_the_hyperparameter_is_picked_on_validation_and_not_on_test():
    table = pd.DataFrame([
        {"method": "SAM", "value": value, "noise": 0.2, "seed": seed, "test_error": test + seed, "validation_error": v}
        for value, test, v in ((0.0, 1.0, 1.0), (0.1, 9.0, 5.0), (0.2, 5.0, 6.0)) for seed in (1, 0)])
    assert study.picked(table, "SAM", 0.2) == 0.1  # ρ = 0 is SGD and no choice for SAM
    assert study.accuracy(table, "SAM", 0.2).tolist() == [91.0, 90.0]
    assert study.accuracy(table, "SGD", 0.2).tolist() == [99.0, 98.0]


@pytest.fixture
def toy(project):
    """Return a function that trains everything at the size of a test, as the notebook does in the full profile."""
    return lambda: executed("05_label_noise", "settings", "train", profile="toy", device="cpu")


def test_the_images_of_the_mid_profile_are_drawn_by_the_seed_and_those_that_tune_see_no_test_image():
    m = study.MIDS["toy"]
    (judged,), (tuned,) = (study.sets(m, [{"seed": seed, "noise": 0.25}]) for seed in (m.judging[0], m.tuning[0]))
    whole, order = lab.load_data("digits"), torch.randperm(1000, generator=torch.Generator().manual_seed(10))
    assert torch.allclose(judged.train_x[0, 0, 0, 0], whole.train_x[order[0], 0, :2, :2].mean())
    assert (judged.train_y != whole.train_y[order[:96]]).sum() == 24 and len(judged.test_y) == 64
    held = whole.train_y[torch.randperm(1000, generator=torch.Generator().manual_seed(100))[96:128]]
    assert torch.equal(tuned.test_y, held) and tuned.test_x.shape == (32, 1, 4, 4)


def test_the_mid_profile_tunes_and_judges_on_seeds_of_their_own_and_after_a_kill_goes_on_to_the_last_digit(
        toy, monkeypatch):
    space, mid, keep = toy(), programs("05_label_noise")["mid"], pieces.Work._keep
    all_of = study.cells("toy")
    monkeypatch.setattr(study, "cells", lambda _: {"fashion": {noise: all_of["fashion"][noise] for noise in (0.4, 0.0)},
                                                   "cifar": {0.0: all_of["cifar"][0.0]}})

    def deadly(work, file, which, make):
        keep(work, file, which, lambda: (make(), len(work.log) == 9 and os.kill(os.getpid(), signal.SIGKILL))[0])

    def until_killed():
        pieces.Work._keep = deadly
        exec(mid, space)

    child = multiprocessing.get_context("fork").Process(target=until_killed)
    child.start()
    child.join()
    kept = {file: file.stat().st_mtime_ns for file in (paths.runs("toy") / "pieces").rglob("fashion*/*.json")}
    records = paths.records("05_label_noise", "toy")
    assert child.exitcode == -signal.SIGKILL and len(kept) == 9 and not [*records.glob("fashion*")]
    exec(mid, space)
    after = json.dumps(space["at_noise"])
    assert kept == {file: file.stat().st_mtime_ns for file in kept}, "not made again"
    shutil.rmtree(paths.runs("toy"))
    for file in records.glob("fashion*"):
        file.unlink()
    exec(mid, space)
    assert json.dumps(space["at_noise"]) == after and len([*records.glob("fashion*")]) == 20
    found = pd.DataFrame(space["at_noise"][0.4]["entries"])
    assert {*found["seed"]} == {10, 11, 12} and (found["best_epoch"] <= found["test_error"] + 1e-4).all()
    methods = {*study.METHODS, *study.CONTROLS, *found["method"]}
    assert [len(study.accuracy(found, method, 0.4)) for method in methods] == [3] * 22
    both = pd.concat([found, pd.DataFrame(space["at_noise"][0.0]["entries"])])
    told = {claim.id for claim in claims(both, "", "toy") if claim.samples}
    assert told >= {"sam-table-2", "sam-table2-noise-40", "sam-table-8", "wsam-table-2", "wsam-table-7", "fisher-main"}
    on_cifar = pd.DataFrame(space["at_cifar"][0.0]["entries"])
    told = {claim.id for claim in statements.on_cifar(on_cifar, "") if len(claim.samples) == 3}
    assert told == {"sam-table-1", "sam-table-9", "sam-doubling", "sam-table1-cifar-mixup-0",
                    "sam-table1-cifar-decay-0"}
    ends = pd.DataFrame(space["at_noise"][0.0]["minima"])
    assert {*ends["seed"]} == {10, 11, 12} and len(ends) == 9 and len(ends["values"].dropna().iloc[0]) == 21
    assert {c.id for c in statements.of_minima(ends, "")} == {"sam-fig-1-surface", "sam-fig-1-lambda", "wsam-minima"}
    assert space["extended"]((1.0, 2.0), lambda v: abs(v - 15), 9)[0] == 16.0
    assert {*space["extended"]((1.0, 2.0), lambda v: v, 4)[1]} == {0.25, 0.5, 1.0, 2.0}


def test_images_and_labels_are_mixed_alike():
    x = torch.eye(8, dtype=torch.float64).expand(2, 8, 8).clone()  # image i is the i-th unit vector
    y = torch.arange(8).expand(2, 8)
    mixed, soft = Mixup([1.0, 8.0], classes=8, seeds=[0, 1])((x, y))
    assert torch.allclose(mixed, soft, atol=1e-15)  # so an image shows its own mixture
    assert torch.allclose(soft.sum(2), torch.ones(2, 8, dtype=torch.float64))
    share = soft.diagonal(dim1=1, dim2=2)
    for k in range(2):
        assert share[k].unique().numel() <= 2  # λ, or 1 where the permutation leaves an image in place


def test_bootstrap_puts_predictions_in_the_place_of_labels():
    data = lab.with_label_noise(lab.load_data("digits", train_size=40, dtype=torch.float64), 0.5)
    rows = Nets([0, 1], data, lambda seed: models.mlp((64, 10), seed=seed))
    first, second = bootstrapped(rows, rows.w)
    for k, labels in enumerate((first, second)):
        net = models.mlp((64, 10), seed=k).double()
        assert torch.equal(labels, net(data.train_x).argmax(1)) and labels.dtype == data.train_y.dtype
    assert not torch.equal(first, second)
