import pytest
import torch

import imagenet
from sharpnb import lab, paths
from sharpnb.lab import models
from studies import finetuning as study
from studies import finetuning_tables as tables

TOY = study.Settings(source=7, labels=(2, 4), pool=4, validation=4, model=lambda c, seed: models.mlp((100, 8, c), seed=seed),
                     pretrain_steps=4, steps=3, lrs=(0.01, 0.1), rhos=(0.05, 0.2), rho_before=0.2, seeds=2, batch_size=4)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return study.toy_images(tmp_path_factory.mktemp("images"))  # 18 to train on, 9 to test on


def test_a_task_keeps_its_parts_apart():
    task = study.task(study.QUICK, 3)
    few, many = task.target[4], task.target[64]
    assert len(few.train_y) == 12 and len(many.train_y) == 192 and set(few.train_y.tolist()) == {0, 1, 2}
    assert torch.equal(few.test_x, many.test_x)
    parts = [{x.numpy().tobytes() for x in part} for part in (many.train_x, task.validation[0], many.test_x, task.source.train_x, task.source.test_x)]
    assert all(not a & b for i, a in enumerate(parts) for b in parts[:i])
    assert sum(len(x) for x in (many.train_x, task.validation[0], many.test_x, task.source.train_x, task.source.test_x)) == 1797
    assert not torch.equal(task.source.train_x, study.task(study.QUICK, 4).source.train_x)


def test_a_start_is_the_pretrained_body_under_a_new_head():
    old = TOY.model(7, 0).double()
    flat = torch.nn.utils.parameters_to_vector(old.parameters()).detach() + 1
    net, new = study.start(TOY, flat, 0), study.start(TOY, None, 0)
    assert torch.equal(net[1].weight, old[1].weight + 1) and torch.equal(net[-1].weight, new[-1].weight)
    assert not torch.equal(net[1].weight, new[1].weight) and net[-1].out_features == 3


def test_training_the_head_leaves_the_rest_and_equals_training_on_features():
    task, weights = study.task(TOY, 0), torch.nn.utils.parameters_to_vector(TOY.model(7, 0).double().parameters()).detach()
    net = study.start(TOY, weights, 0)
    fed = study.features(TOY, weights, 0, task.target[2])
    assert torch.allclose(net[-1](fed.train_x[:, 0, 0]), net(task.target[2].train_x), atol=1e-12)


def test_the_whole_study_and_what_is_chosen():
    rows, source = study.study(TOY)
    assert source.shape == (2, 2)
    for start in study.STARTS:
        for labels in TOY.labels:
            here = [row for row in rows if (row["start"], row["labels"]) == (start, labels)]
            sgd = [row for row in here if row["method"] == "SGD"]
            assert len(sgd) == 4 and {row["lr"] for row in sgd if row["chosen"]} == {tables.best(sgd, "lr")}
            assert {row["lr"] for row in here if row["method"] in ("SAM", "SGD, twice")} == {tables.best(sgd, "lr")}
            methods = ("SGD", "SGD, twice", "SAM") + (("head",) if start != "scratch" else ())
            assert all(tables.errors(rows, start, labels, method).shape == (2,) for method in methods)
            assert {row["method"] for row in here} == set(methods)


def test_choosing_is_by_validation():
    rows = [{"rho": rho, "validation_error": v, "test_error": t} for rho, v, t in ((0.1, 5.0, 1.0), (0.2, 4.0, 9.0), (0.5, 4.0, 0.0))]
    assert tables.best(rows, "rho") == 0.2


def test_the_paper_s_tables_agree_with_each_other_and_with_figure_1():
    for name, row in tables.TABLE10.items():
        assert row[0] == tables.TABLE3[name][0][0] and row[2] == tables.TABLE3[name][1][0]
    dots = sorted(round(tables.reduction(row[2], row[0]), 1) for row in tables.TABLE10.values())
    assert dots == [2.1, 3.1, 4.6, 6.4, 7.4, 12.8, 16.6, 45.7]


def test_efficientnet_takes_the_same_road(tmp_path):
    rows = study._toy_rows("efficientnet_b0")
    assert {(row["method"], row["seed"]) for row in rows} == {(m, s) for m in ("SGD", "SGD, twice", "SAM") for s in range(1)}
    assert all(0 <= row["top1"] <= 100 and row["top5"] == 0 for row in rows)  # of three classes all are among the first five


def test_the_full_profile_without_images_runs_nothing():
    nb = lab.start("06_finetuning", profile="full", device="cpu")
    assert study.full_rows(nb, "", "efficientnet_b0") == []


def test_the_full_profile_takes_the_paper_s_protocol_once(images, tmp_path, monkeypatch):
    for name in ("notebooks", "sharpnb"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    asked = []

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
