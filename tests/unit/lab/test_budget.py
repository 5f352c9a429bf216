"""What the full profile should cost: counted work, and a plan that fits one GPU for half an hour."""

import pytest
import torch
from torch import nn

from sharpnb.lab import budget, models
from sharpnb.lab.budget import Cost
from sharpnb.runner import budget as told


@pytest.fixture(scope="module")
def plan():
    return budget.plan()


def test_a_gradient_of_an_mlp_is_counted_as_by_hand():
    batch, sizes = 32, (64, 24, 10)
    forward = 2 * batch * (64 * 24 + 24 * 10)
    found = budget.counted(models.mlp(sizes), (1, 8, 8), batch)
    assert found.flops == 2 * forward + 2 * batch * 24 * 10  # forward, weights, and one layer's inputs
    assert found.kernels > 6 and found.bytes > 4 * batch * sum(sizes)


def test_a_convolution_is_counted_as_by_hand_and_views_are_no_kernels():
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = budget.counted(net, (3, 16, 16), 4)
    assert found.flops == 2 * (2 * 4 * 16 * 16 * 3 * 9 * 5)  # forward and weights
    with budget._Traffic() as traffic:
        torch.ones(6).view(2, 3).t()
    assert traffic.kernels == 1


def test_costs_add_up():
    net = lambda seed: models.mlp(seed=seed)
    one = Cost(net, 100, 32, image=(1, 8, 8))
    sam = Cost(net, 100, 32, 2.0, image=(1, 8, 8))
    many = Cost(net, 100, 32, runs=10, evaluated=96, products=5, image=(1, 8, 8))
    assert sam.flops == 2 * one.flops == 200 * one.counted.flops
    assert many.computed == 10 * (100 + 5 + 1)
    assert one.seconds < many.seconds
    assert Cost(net, 100, 32, runs=10, together=True, image=(1, 8, 8)).seconds < many.seconds  # fewer launches


def test_the_committed_plan_is_that_of_the_settings(plan):
    assert budget.file().read_text() == budget.text(plan), "python -m sharpnb.lab.budget"


def test_the_full_profile_is_planned_for_half_an_hour_in_pieces_below_ten_minutes(plan):
    assert sum(planned.minutes for planned in plan) <= 30
    assert all(0 < planned.longest_minutes < 10 for planned in plan)
    assert [planned.notebook[:2] for planned in plan[:5]] == ["03", "05", "08", "11", "14"]
    assert {planned.notebook[:2] for planned in plan} >= {"02", "04", "09", "12", "13", "15", "16", "17"}


def test_the_runner_reads_the_plan_as_it_was_written(plan):
    assert told.plan()["14_swa_landscapes"]["minutes"] == next(p.minutes for p in plan if p.notebook[:2] == "14")
