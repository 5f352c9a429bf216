import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sharpnb import kept, lab, paths
from sharpnb.averaging import update_bn
from sharpnb.lab.records import Record
from sharpnb.many.engine import Nets
from sharpnb.many.net import BatchedNet
from studies import families
from studies import sam_minima as study
from studies import sam_minima_full as full_study
from studies import sam_minima_published as published


@pytest.fixture
def nb(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    return lab.start("02_sam_minima", profile="toy", device="cpu")


def test_figure_1_left_has_the_paper_s_one_negative_dot_and_its_ranges():
    groups = published.figure1_left()
    assert {name: len(dots) for name, dots in groups.items()} == {
        "CIFAR-10": 15, "CIFAR-100": 15, "ImageNet": 9, "Finetuning": 8, "SVHN, Fashion-MNIST": 8, "Noisy CIFAR-10": 4}
    assert [round(dot, 1) for dots in groups.values() for dot in dots if dot < 0] == [-3.9]  # SVHN, Shake-Shake, AA
    assert np.round(sorted(groups["Noisy CIFAR-10"]), 1).tolist() == [25.8, 30.0, 34.0, 41.4]
    assert round(max(groups["Finetuning"]), 1) == 45.7


def test_the_papers_scale_is_every_cell_of_tables_1_and_5_with_a_record_each():
    cells = full_study.paper().cells
    assert len(cells) == 30 + 8 and len({cell.name for cell in cells}) == 38
    assert [cell.name for cell in cells if cell.flat] == ["cifar10-wrn-28-10-200-epochs-basic"]
    assert all(("SAM, untuned" in cell.methods) == (cell.rho != 0.05) for cell in cells)
    assert {cell.epochs for cell in cells} == {200, 1800}
    budget = full_study.full()
    assert {cell.name for cell in budget.cells} < {cell.name for cell in cells} and "WRN-10-2" in budget.label


def test_a_batched_shake_draws_for_each_net_and_rests_in_evaluation():
    for build in full_study.SMALL.values():
        net, model = BatchedNet(build(0), (1, 8, 8)), build(0)
        w = torch.stack([torch.nn.utils.parameters_to_vector(build(seed).parameters()) for seed in (0, 0)]).detach()
        x = torch.rand(1, 9, 1, 8, 8).expand(2, 9, 1, 8, 8)
        torch.manual_seed(0)
        loud = net(w, x)
        shaken = any(isinstance(m, families.ShakeShake) or getattr(m, "keep", 1.0) < 1 for m in model.modules())
        assert torch.allclose(loud[0], loud[1], atol=1e-5) == (not shaken)  # equal nets: only the numbers differ
        still = net(w, x, net.statistics(w, [x[:1]]))
        update_bn(model, (x[0], torch.zeros(9, dtype=torch.long)))
        assert torch.allclose(still[0], model.eval()(x[0]), atol=1e-4) and torch.allclose(still[0], still[1], atol=1e-5)


def test_the_ascent_pass_alone_has_the_true_gradient():
    model, seen = full_study.SMALL["Shake-Shake 8 2x8d"](0), []
    block = next(m for m in model.modules() if isinstance(m, families.ShakeShake))
    block.register_forward_pre_hook(lambda *_: seen.append(block.true_gradient))
    x, y = study.load_data("digits", train_size=8).train
    optimizer = full_study.TrueAscent(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, model=model)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert seen == [True, False]


def test_sgd_is_reported_at_its_better_budget_and_sam_at_the_radius_that_validation_chose():
    made = [("SGD, E", 0.0, 5.0, 0.0), ("SGD, 2E", 0.0, 4.0, 9.0), ("SAM", 0.1, 1.0, 8.0), ("SAM", 0.2, 3.0, 7.0)]
    entries = [{"data": "d", "model": "a", "augmentation": "b", "method": method, "rho": rho, "seed": seed,
                "test_error": test + seed, "validation_error": validation}
               for method, rho, test, validation in made for seed in (1, 0)]
    cell = study.cells(entries)["d", "a", "b"]
    assert study.errors(cell, "SGD").tolist() == [4.0, 5.0]
    assert study.gains(cell).tolist() == [1.0, 1.0]
    assert study.gains(cell, 0.1).tolist() == [3.0, 3.0]
    assert study.gains(cell, against="SGD, E").tolist() == [2.0, 2.0]
    (row,) = study.summary(entries).to_dict("records")
    assert (row["rho"], row["SAM"], row["SGD, E"], row["reduction"]) == (0.2, 3.5, 5.5, 100 / 4.5)
    assert row["SAM ±"] == pytest.approx(12.706 * 0.5, rel=1e-3)  # of two seeds a point apart


@pytest.mark.parametrize("name", [study.NONE, "AA", study.SMOOTHED])
def test_members_of_the_live_table_are_measured_each_by_itself(name):
    live = replace(study.LIVE[study.MLP], steps=2, seeds=2)
    seeds = range(live.seeds)
    nets = Nets(seeds, [study.split(live, seed, name) for seed in seeds], study.mlp, batch_size=live.batch_size)
    entries = study.finished(nets, nets.w, [(0.05, seed) for seed in seeds], True, data="digits", method="SAM")
    assert [(entry["rho"], entry["seed"], entry["method"]) for entry in entries] == [(0.05, 0, "SAM"), (0.05, 1, "SAM")]
    for entry, w, data in zip(entries, nets.w, nets.sets, strict=True):
        net = study.mlp(0).double()
        torch.nn.utils.vector_to_parameters(w, net.parameters())
        wrong = 100.0 * (net(data.test_x).argmax(1) != data.test_y).double()
        assert entry["validation_error"] == pytest.approx(wrong[:200].mean().item())
        assert entry["test_error"] == pytest.approx(wrong[200:].mean().item()) and len(wrong) == 1200
        assert np.isfinite(entry["rise"]) and entry["values"].shape == (25, 25)


def test_flatness_of_a_quadratic_is_its_own():
    model = torch.nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    part = torch.eye(2, dtype=torch.float64), torch.tensor([0, 1])
    found = study.flatness(model, part, size=3)
    # Zero weights have zero filter norms: the plane is a point. The Hessian is 1/4 [[1, -1], [-1, 1]] for each image.
    assert found["rise"] == 0 and found["loss"] == pytest.approx(np.log(2))
    assert found["lambda_max"] == pytest.approx(0.25, rel=1e-2)


def test_the_full_profile_runs_as_a_toy_and_goes_on_where_it_was_killed(nb, monkeypatch):
    first = full_study.run_full(nb, only="wrn")
    assert {entry["method"] for entry in first} == {"SAM", "SGD, E", "SGD, 2E"} and len(first) == 6
    assert len(first[0]["values"]) == 3
    name = full_study.toy().cells[0].name
    Record.find(nb.name, name, "toy").path.unlink()
    for piece in list((paths.runs("toy") / "pieces" / nb.name / name).glob("*.json"))[4:]:
        piece.unlink()  # killed after the fourth training
    trainings, one = [], full_study.one
    monkeypatch.setattr(full_study, "one", lambda *args: trainings.append(args[-2:]) or one(*args))
    again = full_study.run_full(nb)
    assert len(trainings) == 2 + 3 * 6 + 2  # the rest of one cell, three cells, of which one has the untuned radius too
    for a, b in zip(again[:6], first, strict=True):
        assert a["test_error"] == b["test_error"] and a["method"] == b["method"]


def test_the_survey_is_table_1_small_and_part_of_table_5():
    scale = full_study.survey()
    assert len(scale.cells) == len({cell.name for cell in scale.cells}) == 4 * 3 + 2 and scale.seeds >= 3
    assert all(list(cell.methods) == ["SAM", "SGD, E", "SGD, 2E"] and cell.rho == 0.05 for cell in scale.cells)
    fashion = [cell for cell in scale.cells if cell.data == "fashion_mnist"]
    assert [cell.augmentation for cell in fashion] == ["Basic", "AA"]
    assert fashion[0].build(0).eval()(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_a_surveyed_net_trained_again_is_the_one_of_the_record(nb, monkeypatch):
    scale = full_study.survey()
    cells = tuple(replace(cell, epochs=1) for cell in scale.cells if cell.data == "digits")[:2]
    monkeypatch.setattr(full_study, "survey", lambda: replace(scale, cells=cells, seeds=2, train_size=50, test_size=99))
    full_study.run_survey("wrn")
    entries = full_study.surveyed()
    assert len(entries) == 6 and full_study.run_survey("wrn") is None  # nothing is left to train
    again = full_study.again(entries[-1])
    assert again.pop("cpu_seconds") > 0 and all(entries[-1][key] == value for key, value in again.items())
    path = Record.find(nb.name, cells[0].name, "survey").path
    content = kept.read(path)
    content["values"]["entries"].pop()
    kept.write(path, content)
    assert full_study.surveyed() == []  # half a cell is not shown
    path.unlink()
    full_study.run_survey(seconds=0)
    assert full_study.surveyed() == []
    full_study.run_survey()
    assert len(full_study.surveyed()) == 12 and full_study.surveyed()[5]["test_error"] == entries[-1]["test_error"]
    assert json.loads(path.read_text())["provenance"]["parameters"]["profile"] == "survey"


def test_a_pool_has_variants_of_each_image_in_order():
    data = study.load_data("digits", train_size=7)
    many = study.pooled(data, "Cutout", copies=3)
    assert many.train_x.shape == (21, 1, 8, 8) and torch.equal(many.train_y, data.train_y.repeat(3))
    assert not torch.equal(many.train_x[:7], many.train_x[7:14])


def test_a_full_record_of_other_settings_is_no_answer(tmp_path, monkeypatch):
    cell = full_study.full().cells[0]
    committed = Record.find("02_sam_minima", cell.name, "full")
    nb = lab.start("02_sam_minima", profile="quick", device="cpu")
    where, there = (cell.data, cell.model, cell.augmentation), full_study.full_cells(nb)
    assert committed and len(there[where]) == len(committed.values["entries"])
    assert len(full_study.full_gains(there, cell.data, cell.model)) == full_study.full().seeds
    assert full_study.full_gains({where: there[where]}, cell.data, cell.model) is None  # a cell of the row is missing
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    for values in ({**committed.values, "settings": "others"}, {**committed.values, "entries": []}):
        Record("02_sam_minima", cell.name, "full", values, 5e-2, 0.5, committed.provenance).save()
        assert full_study.full_cells(nb) == {}
