import math
from dataclasses import replace

import pytest
import torch
from cells import executed
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from sharpnb import lab, rules
from sharpnb.averaging import filter_norms, graft
from sharpnb.many.engine import Nets
from studies import filter_grafting as study
from studies.filter_grafting_claims import claims


def test_weak_filters_are_counted_against_their_layer():
    net, data = study.TOY.net(0), lab.load_data("digits", train_size=60, dtype=torch.float64)
    before = study.row(net, data)["weak"]
    with torch.no_grad():
        net[1].weight[3] *= 1e-3
    after = study.row(net, data)
    assert after["weak"] == before + 1 and after["smallest"] < 1e-2
    assert study.threshold(net) == pytest.approx(0.5 * torch.cat(list(filter_norms(net).values())).median().item())


def test_rows_are_grafted_as_modules_are_after_each_epoch():
    s = replace(study.QUICK, train_size=40, batch=20, steps=4)
    jobs = [(name, 3, {"lr": 0.1, "weight_decay": 0.01}) for name in ("baseline", "3 nets", "external")]
    single, three, two = executed("17_filter_grafting", "settings", "together")["run"](s, jobs)
    assert two["method"] == "external" and two["ensemble"] == two["test_error"]  # the two are one
    assert single["ensemble"] != single["test_error"]
    method, models = study.METHODS["3 nets"], [s.net(j) for j in range(3)]
    nets = Nets([300, 301, 302], s.data(3), s.model, batch_size=20)
    lr = torch.tensor([[study.initial_lr(0.1, 3, j)] for j in range(3)], dtype=torch.float64)
    w, state = nets.w, None
    for step in range(4):
        eta = 0.5 * (1 + math.cos(math.pi * step / 4))
        gradient = nets.gradient(nets.draw())(w)
        w, state = rules.sgd(w, gradient, state, lr=lr, momentum=0.9, weight_decay=0.01, eta=eta)
        if step % 2:
            for model, row in zip(models, w, strict=True):
                vector_to_parameters(row.clone(), model.parameters())
            graft(models, method.a, method.c, method.criterion)
            w = torch.stack([parameters_to_vector(model.parameters()).detach() for model in models])
    assert three["test_error"] == pytest.approx(sum(nets.errors(w, "test").tolist()) / 3)


def test_claims_are_paired_by_seed_and_not_run_without_a_record():
    errors = {"baseline": 12.0, "external": 10.0, "external, own lr": 11.0, "3 nets": 10.5, "4 nets": 13.0}
    rows = [{"method": name, "seed": k, "test_error": e + k, "ensemble": e - 3 + k, "entropy": 10.0 ** (e - 10),
             "weak": 6.0 - e / 3} for k in (0, 1, 2) for name, e in errors.items()]
    found = {claim.id: claim for claim in claims(rows, study.FULL, "full")}
    wanted = {"graft-main": 2, "graft-dlr": 1, "graft-number": 0.5, "graft-four": -2.5, "graft-ensemble": -1,
              "graft-entropy": -1}
    assert {name: found[name].estimated.estimate for name in wanted} == pytest.approx(wanted)
    filters = sum(map(len, filter_norms(study.FULL.net(0)).values()))
    assert found["graft-invalid"].samples == pytest.approx([-1 / 3 / filters] * 3)
    assert "0.6 % of the filters" in found["graft-invalid"].regime.missing and not found["graft-main"].regime.missing
    assert {claim.samples for claim in claims(None, study.FULL, "full")} == {None}
    fewer = [row for row in rows if row["method"] != "4 nets"]
    few = replace(study.QUICK, methods=tuple(name for name in study.FULL.methods if name != "4 nets"))
    quick = claims(fewer, few, "quick", {"external": {"edge": ["lr"]}})
    assert {claim.id for claim in quick} == {*found} - {"graft-four"}
    assert "external's lr at the grid's edge" in quick[0].protocol
