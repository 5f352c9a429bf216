from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from sharpnb.averaging import update_bn
from sharpnb.lab.training import evaluate
from studies import swap as study
from studies import swap_claims

SHORT = replace(study.QUICK, sizes=(40, 6, 10), train_size=80, large=40, batch=20, epochs=6, late_epochs=2, tau=0.5)


@pytest.fixture(scope="module")
def data():
    return SHORT.data(0)


def flat(net):
    return parameters_to_vector(net.parameters()).detach()


def test_measured_is_the_net_with_fresh_statistics(data):
    nets = [SHORT.model(seed).double() for seed in range(2)]
    found = study.measured([data, data], torch.stack([flat(net) for net in nets]), SHORT)
    for k, net in enumerate(nets):
        update_bn(net, study.statistics(data))
        for part in ("train", "test"):
            loss, error = evaluate(net, getattr(data, part))
            assert found[f"{part}_loss"][k] == pytest.approx(loss, rel=1e-10)
            assert found[f"{part}_error"][k] == pytest.approx(error, abs=1e-9)


def test_claims_of_the_full_record_are_paired_by_seed_or_not_run():
    larger = pd.DataFrame({"large": [25.0, 26.0], "small": [16.0, 16.5], "before": [20.0, 21.0], "after": [19.0, 20.5]})
    found = {claim.id: claim for claim in swap_claims.full(larger)}
    assert found["swap-table-1"].samples == (6.0, 5.5) and found["swap-fig-1"].samples == (1.0, 0.5)
    assert found["swap-tab1-over-small"].samples == (-3.0, -4.0) and not found["swap-table-1"].regime.missing
    better = {claim.id: claim for claim in swap_claims.full(larger.assign(large=15.0))}
    assert better["swap-table-1"].regime.missing and not better["swap-fig-1"].regime.missing
    assert {claim.samples for claim in swap_claims.full(None)} == {None}
