from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from sharpnb import lab, paths
from sharpnb.averaging import update_bn
from sharpnb.lab.claims import Regime
from sharpnb.lab.records import Record
from sharpnb.many.net import BatchedNet
from studies import families
from studies import sam_minima as study
from studies import sam_minima_claims as statements
from studies import sam_minima_full as full_study


@pytest.fixture
def nb(project):
    return lab.start("02_sam_minima", profile="toy", device="cpu")


@pytest.mark.parametrize("name", full_study.SMALL)
def test_a_batched_shake_draws_for_each_net_and_rests_in_evaluation(name):
    build = full_study.SMALL[name]
    net, model = BatchedNet(build(0), (1, 8, 8)), build(0)
    w = torch.stack([parameters_to_vector(build(0).parameters())] * 2).detach()
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
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert seen == [True, False]


def cell_of(*made):
    return study.cells([{"data": "d", "model": "a", "augmentation": "b", "method": method, "seed": seed,
                         "test_error": test + seed, "train_error": 0.0, "held_out": held_out, "rise": 1.0,
                         "lambda_max": 1.0, "edge": "no"}
                        for method, test, held_out in made for seed in (1, 0)])


def test_sgd_is_reported_at_the_budget_that_held_out_images_chose_else_at_the_better_one():
    (cell,) = cell_of(("SGD, E", 5.0, 3.0), ("SGD, 2E", 4.0, 9.0), ("SAM", 3.0, 1.0)).values()
    assert study.errors(cell, "SGD").tolist() == [5.0, 6.0] and study.gains(cell).tolist() == [2.0, 2.0]
    cell = cell.drop(columns="held_out")
    assert study.errors(cell, "SGD").tolist() == [4.0, 5.0] and study.gains(cell).tolist() == [1.0, 1.0]
    assert study.gains(cell, against="SGD, E").tolist() == [2.0, 2.0]
    (row,) = study.summary(cell.to_dict("records")).to_dict("records")
    assert (row["SAM"], row["SGD, E"], row["reduction"]) == (3.5, 5.5, 100 / 4.5)
    assert row["SAM ±"] == pytest.approx(12.706 * 0.5, rel=1e-3)  # of two seeds a point apart


SMALL = replace(study.LIVE[study.MLP], widths=(64, 5, 10), train=40, steps=6, tuning=range(100, 102), seeds=range(2))


def test_each_method_has_equally_many_trials_and_the_record_is_read_back(nb):
    calls = []

    def trained(live, members, times):
        calls.append(times)
        images, told = [live.images(member["seed"]) for member in members], list(map(study.setting, members))
        return lab.train_many(told, images, live.net, steps=times * live.steps, batch_size=8, dtype=torch.float64)

    first = study.tuned(nb, SMALL, trained)
    assert calls == [1, 2, 1] and len(set(first["method"].value_counts())) == 1
    decay = study.best(first, "SGD, E")["weight_decay"]
    assert set(first.loc[first["method"] == "SAM", "weight_decay"]) == {decay}
    assert study.tuned(nb, SMALL, None).equals(first)
    with pytest.raises(TypeError):
        study.tuned(nb, replace(SMALL, steps=7), None)  # other settings are tuned anew
    trials = pd.DataFrame({"method": "SGD, E", "lr": [1, 1, 2, 2, 3, 3], "weight_decay": [0.1, 0.2] * 3, "rho": 0.0})
    trials["held_out"] = (trials["lr"] - 2).abs() - trials["weight_decay"]
    assert study.best(trials, "SGD, E")["edge"] == "weight_decay"


def test_claims_are_paired_by_seed_and_carry_the_regime(nb):
    live = cell_of(("SGD, E", 5.0, 3.0), ("SGD, 2E", 4.0, 9.0), ("SAM", 3.0, 1.0), ("SAM, untuned", 7.0, 1.0))
    survey = cell_of(("SGD, E", 9.0, 1.0), ("SGD, 2E", 5.0, 0.5), ("SAM", 8.0, 1.0))
    nb.profile = "quick"
    made = {claim.id: claim for claim in statements.claims(nb, live, survey, {})}
    for name, value in {"sam-table-1": 2.0, "sam-table-9": -2.0, "sam-doubling": -0.5, "sam-fig-1-surface": 0.0,
                        "sam-survey": -3.0, "sam-survey-doubling": -3.5}.items():
        assert made[name].samples == (value, value)
    assert made["sam-table-1"].regime == Regime(0.0, 5.5, 4.5) and made["sam-survey"].below == "sam-table-1"
    later = {("cifar10", "a", "b"): next(iter(live.values()))}
    assert [claim.profile for claim in statements.claims(nb, live, survey, later)][:5] == ["full"] * 4 + ["quick"]


def test_flatness_of_a_quadratic_is_its_own():
    model = torch.nn.Linear(2, 2, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    found = study.flatness(model, (torch.eye(2, dtype=torch.float64), torch.tensor([0, 1])), size=3)
    # Zero weights have zero filter norms: the plane is a point. The Hessian is 1/4 [[1, -1], [-1, 1]] for each image.
    assert found["rise"] == 0 and found["loss"] == pytest.approx(np.log(2))
    assert found["lambda_max"] == pytest.approx(0.25, rel=1e-2)


def test_the_full_profile_runs_as_a_toy_and_goes_on_where_it_was_killed(nb, monkeypatch):
    first, cells = full_study.run_full(nb), full_study.toy().cells
    assert {entry["method"] for entry in first} == set(study.METHODS) and len(first) == 6 * len(cells)
    for cell in cells:
        Record.find(nb.name, cell.name, "toy").path.unlink()
    for piece in list((paths.runs("toy") / "pieces" / nb.name / cells[0].name).glob("*.json"))[4:]:
        piece.unlink()  # killed after the fourth training
    trainings, one = [], full_study.one
    monkeypatch.setattr(full_study, "one", lambda *args: trainings.append(args[-2:]) or one(*args))
    again = full_study.run_full(nb)
    assert len(trainings) == 2 and [a["test_error"] for a in again] == [b["test_error"] for b in first]
