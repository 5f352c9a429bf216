"""Filter grafting: entropies in closed form, limits of the coefficient, the ring, and which tensors move."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sharpnb.averaging import coefficient, entropy, filter_norms, graft, graft_internal, graft_noise, invalid_filters
from sharpnb.averaging.filters import mean_magnitude


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
        ).double()
        with torch.no_grad():
            model[1].weight.copy_(torch.randn_like(model[1].weight).pow(1 + seed % 3))
        model[2].running_mean.normal_()
        model[2].num_batches_tracked.fill_(seed)
        return model


def test_entropy_of_known_histograms():
    assert entropy(torch.arange(10.0)) == pytest.approx(math.log(10))  # one in each bin
    assert entropy(torch.full((5, 3), 2.0)) == 0.0
    assert entropy(torch.tensor([0.0, 0.0, 0.0, 1.0])) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert entropy(torch.arange(4.0), bins=2) == pytest.approx(math.log(2))
    assert entropy(torch.complex(torch.zeros(5), torch.arange(5.0))) == pytest.approx(
        -0.6 * math.log(0.6) - 0.4 * math.log(0.1))
    assert mean_magnitude(torch.tensor([3 + 4j])) == 5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 20), st.floats(0.1, 10), st.floats(-5, 5))
def test_entropy_is_numpys_histogram_and_ignores_shift_and_scale(seed, bins, scale, shift):
    w = np.random.default_rng(seed).normal(size=200)
    counts, _ = np.histogram(w, bins)
    p = counts[counts > 0] / 200
    assert entropy(torch.from_numpy(w), bins) == pytest.approx(-(p * np.log(p)).sum(), abs=1e-12)
    # a tie may move
    assert entropy(torch.from_numpy(w * scale + shift), bins) == pytest.approx(-(p * np.log(p)).sum(), abs=0.06)


def test_coefficient_limits():
    assert coefficient(1.3, 1.3) == 0.5
    assert coefficient(9.0, 1.0, c=1e9) == pytest.approx(0.7) and coefficient(1.0, 9.0, c=1e9) == pytest.approx(0.3)
    assert coefficient(2.0, 1.9) + coefficient(1.9, 2.0) == pytest.approx(1.0, abs=1e-15)
    assert coefficient(2.0, 1.0, a=0.0) == 0.5
    assert coefficient(1.0 + 1e-3, 1.0, a=1.0, c=1000.0) == pytest.approx(0.75)  # arctan(1) = pi / 4
    assert coefficient(2.0, 1.9) > 0.5 > coefficient(1.9, 2.0)  # the richer keeps more


def test_a_ring_of_three_takes_from_the_weights_before_grafting():
    models = [net(seed) for seed in range(3)]
    old = [copy.deepcopy(model.state_dict()) for model in models]
    shares = graft(models, a=0.4, c=5.0)
    for j, model in enumerate(models):
        own, peer = old[j], old[j - 1]
        for name, value in model.state_dict().items():
            layer = "1" if int(name.split(".")[0]) < 4 else "4"  # what follows a convolution shares its coefficient
            h = [entropy(state[f"{layer}.weight"]) for state in (own, peer)]
            alpha = 0.4 / math.pi * math.atan(5.0 * (h[0] - h[1])) + 0.5
            assert shares[j][layer] == pytest.approx(alpha, abs=1e-15)
            if value.is_floating_point():
                torch.testing.assert_close(value, alpha * own[name] + (1 - alpha) * peer[name], rtol=1e-12, atol=1e-14)
            else:
                assert torch.equal(value, own[name]) and value.dtype == torch.int64
    assert len({round(share, 6) for of in shares for share in of.values()}) > 3  # the test does tell coefficients apart


def test_a_zero_is_the_plain_mean_and_the_criterion_can_be_chosen():
    models = [net(0), net(1)]
    mean = (models[0][4].weight + models[1][4].weight).detach() / 2
    graft(models, a=0.0)
    torch.testing.assert_close(models[0][4].weight.detach(), mean)
    by_l1 = graft([net(0), net(1)], criterion="l1", c=10.0)[0]
    norms = [net(seed)[1].weight.abs().mean().item() for seed in (0, 1)]
    assert by_l1["1"] == pytest.approx(coefficient(*norms, c=10.0), abs=1e-12)
    assert graft([net(0), net(1)], criterion=lambda w: float(len(w)))[0] == {"1": 0.5, "4": 0.5}


def test_tied_weights_are_mixed_once():
    def tied(seed):
        model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)).double()
        with torch.no_grad():
            model[0].weight.normal_(generator=torch.Generator().manual_seed(seed))
        model[1].weight = model[0].weight
        return model

    models = [tied(0), tied(1)]
    mean = (models[0][0].weight + models[1][0].weight).detach() / 2
    graft(models, a=0.0)
    torch.testing.assert_close(models[0][0].weight.detach(), mean)
    torch.testing.assert_close(models[1][1].weight.detach(), mean)


def test_wrappers_change_nothing_and_a_parametrized_layer_is_refused():
    models, wrapped = [net(0), net(1)], [net(0), net(1)]
    shares = graft(models)
    assert graft([torch.compile(wrapped[0], backend="eager"), nn.DataParallel(wrapped[1])]) == shares
    for a, b in zip(models, wrapped, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    nn.utils.parametrizations.weight_norm(wrapped[0][1])
    nn.utils.parametrizations.weight_norm(wrapped[1][1])
    with pytest.raises(ValueError, match="layer 1 has no weight of its own"):
        graft(wrapped)


def with_weak_filters() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 5, 3, bias=False), nn.Conv2d(5, 2, 1, bias=False)).double()
    with torch.no_grad():
        for i, size in enumerate((1.0, 0.001, 3.0, 0.0, 2.0)):
            model[0].weight[i] = size / 9
        model[1].weight.fill_(1.0)
    return model


def test_invalid_filters_are_counted_by_their_l1_norm():
    model = with_weak_filters()
    torch.testing.assert_close(filter_norms(model)["0"], torch.tensor([1, 0.001, 3, 0, 2], dtype=torch.float64))
    assert invalid_filters(model, 0.01)["0"].tolist() == [False, True, False, True, False]
    assert not invalid_filters(model, 0.01)["1"].any()


def test_internal_grafting_adds_the_largest_to_the_smallest():
    model = with_weak_filters()
    assert graft_internal(model, 0.01) == 2
    torch.testing.assert_close(filter_norms(model)["0"], torch.tensor([1, 2.001, 3, 3, 2], dtype=torch.float64))
    assert graft_internal(model, 0.01) == 0
    assert graft_internal(with_weak_filters(), 100.0) == 0  # no filter is valid: nothing to take from


def test_noise_reaches_the_invalid_filters_alone():
    model, generator = with_weak_filters(), torch.Generator().manual_seed(0)
    before = model[0].weight.detach().clone()
    assert graft_noise(model, 0.01, 0.5, generator) == 2
    moved = (model[0].weight - before).flatten(1).detach()
    assert (moved[[0, 2, 4]] == 0).all() and (moved[[1, 3]] != 0).all()
    assert 0.2 < moved[[1, 3]].std() < 0.9
    torch.testing.assert_close(moved[1], torch.randn(5, 9, generator=torch.Generator().manual_seed(0),
                                                     dtype=torch.float64)[1] * 0.5, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("models, options, said", [
    ([nn.BatchNorm1d(3), nn.BatchNorm1d(3)], {}, "no convolution and no linear"), ([net(0)], {}, "1 models"),
    ([net(0), nn.Linear(2, 2)], {}, "differs from model 0"),
    ([net(0), net(1)], {"a": 1.2}, "a = 1.2"),
    ([net(0), net(1)], {"c": -1.0}, "c = -1.0"), ([net(0), net(1)], {"criterion": "l2"}, "'l2'"),
])
def test_misuse_is_named(models, options, said):
    with pytest.raises(ValueError, match=said):
        graft(models, **options)
    with pytest.raises(ValueError, match="bins = 1"):
        entropy(torch.ones(3), bins=1)
    with pytest.raises(ValueError, match="NaN"):
        entropy(torch.tensor([1.0, math.nan]))
