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
    rows = [{"method": name, "seed": k, "test_error": e + k, "ensemble": e - 3 + k, "entropy": e / 2, "weak": 0.0}
            for k in (0, 1, 2) for name, e in errors.items()]
    found = {claim.id: claim for claim in filter_grafting_claims.full(rows)}
    assert [found[f"graft-{name}-full"].measured for name in ("slr", "dlr", "dlr-slr", "three", "four")] == [2, 1, -1, 0.5, -2.5]
    assert found["graft-ensemble-full"].measured == -2 and found["graft-entropy-up-full"].measured == -0.5
    assert found["graft-weak-down-full"].verdict == "not comparable" and found["graft-full"].measured == 88.0
    assert {claim.verdict for claim in filter_grafting_claims.full(None)} == {"not run"}
    assert len(filter_grafting_claims.here(rows, "toy", "toy")) == 5
