import pytest
import torch

from sharpnb import lab
from sharpnb.averaging import filter_norms
from studies import filter_grafting as study
from studies import filter_grafting_claims


@pytest.fixture(scope="module")
def data():
    return lab.load_data("digits", train_size=60, dtype=torch.float64)


def test_learning_rates_are_the_authors():
    assert [study.initial_lr(1.0, 2, j) for j in range(2)] == pytest.approx([0.5, 1.0])
    assert [study.initial_lr(1.0, 4, j) for j in range(4)] == pytest.approx([0.146, 0.5, 0.854, 1.0], abs=1e-3)


def test_weak_filters_are_counted_against_their_layer(data):
    net = study.QUICK.net(0)
    before = study.row(net, data)["weak"]
    with torch.no_grad():
        net[1].weight[3] *= 1e-3
    after = study.row(net, data)
    assert after["weak"] == before + 1 and after["smallest"] < 1e-2
    assert study.threshold(net) == pytest.approx(0.5 * torch.cat(list(filter_norms(net).values())).median().item())


def test_claims_are_paired_by_seed_and_not_run_without_a_record():
    errors = {"baseline": 12.0, "external": 10.0, "external, own lr": 11.0, "3 nets": 10.5, "4 nets": 13.0}
    rows = [{"method": name, "seed": k, "test_error": e + k, "ensemble": e - 3 + k, "entropy": 10.0 ** (e - 10),
             "weak": 6.0 - e / 3} for k in (0, 1, 2) for name, e in errors.items()]
    found = {claim.id: claim for claim in filter_grafting_claims.claims(rows, study.FULL, "full")}
    wanted = {"graft-main": 2, "graft-dlr": 1, "graft-number": 0.5, "graft-four": -2.5, "graft-ensemble": -1,
              "graft-entropy": -1}
    assert {name: found[name].estimated.estimate for name in wanted} == pytest.approx(wanted)
    filters = sum(map(len, filter_norms(study.FULL.net(0)).values()))
    assert found["graft-invalid"].samples == pytest.approx([-1 / 3 / filters] * 3)
    assert "0.6 % of the filters" in found["graft-invalid"].regime.missing and not found["graft-main"].regime.missing
    assert {claim.samples for claim in filter_grafting_claims.claims(None, study.FULL, "full")} == {None}
