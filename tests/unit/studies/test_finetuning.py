import pandas as pd
import pytest
import torch

import imagenet
from sharpnb import lab, paths
from sharpnb.lab import models
from sharpnb.lab.claims import Regime
from studies import finetuning as study
from studies import finetuning_tables as tables

TOY = study.Settings(source=7, labels=(2, 4), signals=400, validation=4, pretrain_steps=4, steps=3, lrs=(0.01, 0.1),
                     model=lambda classes, seed: models.mlp((40, 8, classes), seed=seed), decays=(0.0,),
                     rhos=(0.05, 0.2), tuning=range(2), seeds=range(5, 7), batch_size=4)


def test_a_task_keeps_its_parts_apart():
    task = study.task(study.QUICK, 3)
    few, many = task.target[4], task.target[64]
    assert len(few.train_y) == 12 and len(many.train_y) == 192 and set(few.train_y.tolist()) == {0, 1, 2}
    assert torch.equal(few.test_x, many.test_x) and len(task.validation.test_y) == 300
    parts = [{x.numpy().tobytes() for x in part} for part in (
        many.train_x, task.validation.test_x, many.test_x, task.source.train_x, task.source.test_x)]
    assert all(not a & b for i, a in enumerate(parts) for b in parts[:i])
    assert len(many.test_x) + len(task.source.test_x) == 10_000 and len(task.source.train_y) == 1890
    assert not torch.equal(task.source.train_x, study.task(study.QUICK, 4).source.train_x)


def test_a_start_is_the_pretrained_body_under_a_new_head():
    old = TOY.model(7, 0).double()
    flat = torch.nn.utils.parameters_to_vector(old.parameters()).detach() + 1
    net, new = study.start(TOY, flat, 0), study.start(TOY, None, 0)
    assert torch.equal(net[1].weight, old[1].weight + 1) and torch.equal(net[-1].weight, new[-1].weight)
    assert not torch.equal(net[1].weight, new[1].weight) and net[-1].out_features == 3


@pytest.fixture(scope="module")
def tuning():
    return study.tuned(TOY)


def test_sam_takes_over_the_best_pair_of_sgd_and_has_as_many_trials(tuning):
    table = pd.DataFrame(tuning)
    for labels in TOY.labels:
        here = table[(table["labels"] == labels) & (table["start"] == "pretrained")]
        best = study.picked(tuning, labels)
        assert set(here[here["rule"] == "sam"]["lr"]) == {best["pretrained"]["lr"]} == {best["SAM"]["lr"]}
        assert (here["rule"] == "sam").sum() == (here["rule"] == "sgd").sum() == 4
    assert len(study.QUICK.lrs) * len(study.QUICK.decays) == len(study.QUICK.rhos)
    assert set(study.QUICK.tuning).isdisjoint(study.QUICK.seeds)


def test_the_effect_is_sgd_minus_sam_per_seed_over_the_labels_that_sgd_fits(tuning, monkeypatch):
    monkeypatch.setattr(tables, "fitted", lambda *_: [2])
    points = {"scratch": 9.0, "SGD": 5.0, "SGD, twice": 4.0, "SAM": 3.0, "SAM, 0.05": 6.0}
    table = pd.DataFrame([{"method": method, "labels": labels, "seed": seed, "train_error": 0.0,
                           "test_error": points[method] + seed * (method == "SGD") + 100 * (labels == 4)}
                          for method in tables.METHODS for labels in TOY.labels for seed in TOY.seeds])
    found = {claim.id: claim for claim in tables.claims(table, tuning, TOY)}
    assert found["sam-table-3"].samples == (7.0, 8.0) and found["sam-table-10"].samples == (4.0, 5.0)
    missing = "the pretrained net is not better than one from scratch"
    assert found["sam-table-3"].regime == Regime(0.0, 10.5, 4.0, missing)
    table.loc[table["method"] == "scratch", "test_error"] += 5
    assert tables.claims(table, tuning, TOY)[0].regime.missing == ""
    assert {claim.below for claim in found.values()} == {"", "sam-table-3", "sam-table-10"}


def test_the_full_profile_takes_the_paper_s_protocol_once(project, monkeypatch):
    for name in ("notebooks", "sharpnb"):
        (project / name).mkdir()
    asked, images = [], study.toy_images(project / "images")  # 18 to train on, 9 to test on

    def fit(folder, protocol, out, **options):
        asked.append((protocol, out.name, options["seed"]))
        return [{"epoch": 1, "step": 1, "top1": 10.0}]

    monkeypatch.setattr(imagenet, "fit", fit)
    nb = lab.start("06_finetuning", profile="full", device="cpu", images=str(images))
    rows = study.full_rows(nb, str(images), "efficientnet_b0")
    assert len(rows) == 9 and len({out for _, out, _ in asked}) == 9
    assert {(p.rho, p.steps, p.weights, p.lr, p.batch_size) for p, _, _ in asked} == {
        (0.0, 5000, "DEFAULT", 0.016, 18), (0.0, 10_000, "DEFAULT", 0.016, 18), (0.05, 5000, "DEFAULT", 0.016, 18)}
    assert study.full_rows(nb, str(images), "efficientnet_b0") == rows and len(asked) == 9
    next(paths.records(nb.name, "full").iterdir()).unlink()
    pieces = sorted((paths.runs("full") / "pieces" / nb.name).rglob("*.json"))
    pieces[4].unlink()  # killed while it was at this one
    assert study.full_rows(nb, str(images), "efficientnet_b0") == rows and len(pieces) == 9 and len(asked) == 10
