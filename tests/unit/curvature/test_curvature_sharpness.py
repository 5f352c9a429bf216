"""Sharpness against closed forms on quadratics and linear losses, and against SAM's own formula on a network."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from sharpnb.curvature import _groups, average_sharpness, sharpness
from sharpnb.rules import sam_perturbation

F = nn.functional


class Weights(nn.Module):
    """The output is linear in one weight vector."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        return x @ self.w


def half_square(output, target):
    return 0.5 * (output - target).square().mean()


@pytest.fixture
def quadratic():
    """Least squares at its interpolating minimum: the Hessian is X'X / N, each sample's is of rank one."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(24, 6, generator=g, dtype=torch.float64) * torch.tensor([3, 2, 1, 1, 0.5, 0.2])
    w = torch.tensor([0.7, -1.2, 0.0, 2.0, -0.4, 0.1], dtype=torch.float64)
    return Weights(w), (x, x @ w), (x.T @ x / 24).numpy()


def test_worst_case_at_a_minimum_is_half_rho_squared_times_the_largest_eigenvalue(quadratic):
    model, data, hessian = quadratic
    for rho in (0.1, 1.0):
        found = sharpness(model, half_square, data, rho, steps=60)
        assert found.value == pytest.approx(0.5 * rho**2 * np.linalg.eigvalsh(hessian)[-1], rel=1e-4)
    c = model.w.detach().abs().numpy()
    adaptive = sharpness(model, half_square, data, 0.5, adaptive=True, steps=60).value
    assert adaptive == pytest.approx(0.125 * np.linalg.eigvalsh(c[:, None] * hessian * c)[-1], rel=2e-3)
    cube = sharpness(model, half_square, data, 0.5, p=math.inf, steps=60).value
    corners = np.array(np.meshgrid(*[[-0.5, 0.5]] * 6)).reshape(6, -1)
    exact = (0.5 * corners * (hessian @ corners)).sum(0).max()
    assert 0.8 * exact < cube < exact * (1 + 1e-9), "a local maximum: the global one over a cube is NP-hard"


def test_average_case_at_a_minimum_is_half_rho_squared_times_the_trace(quadratic):
    model, data, hessian = quadratic
    c = model.w.detach().abs().numpy()
    for options, expected in [({}, 0.5 * np.trace(hessian)), ({"p": math.inf}, np.trace(hessian) / 6),
                              ({"adaptive": True}, 0.5 * (c**2 * np.diag(hessian)).sum())]:
        found = average_sharpness(model, half_square, data, 0.3, samples=400, **options)
        assert abs(found.value - 0.09 * expected) < 4 * found.stderr
        assert 0 < found.stderr < 0.1 * found.value and len(found.each) == 200


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize(("p", "dual"), [(1, math.inf), (1.5, 3), (2, 2), (3, 1.5), (math.inf, 1)])
def test_a_linear_loss_rises_by_rho_times_the_dual_norm(p, dual, steps):
    torch.manual_seed(0)
    model, x = Weights(torch.randn(7, dtype=torch.float64)), torch.randn(10, 7, dtype=torch.float64)
    gradient = x.mean(0).numpy()
    found = sharpness(model, lambda o, t: o.mean(), (x, x), 0.2, p=p, steps=steps).value
    assert found == pytest.approx(0.2 * np.linalg.norm(gradient, dual), rel=1e-9)
    adaptive = sharpness(model, lambda o, t: o.mean(), (x, x), 0.2, p=p, steps=steps, adaptive=True).value
    assert adaptive == pytest.approx(0.2 * np.linalg.norm(gradient * model.w.detach().abs().numpy(), dual), rel=1e-9)


def test_smaller_groups_are_sharper_down_to_the_trace(quadratic):
    model, data, hessian = quadratic
    values = [sharpness(model, half_square, data, 0.1, m=m, steps=60).value for m in (1, 2, 4, 8, 24)]
    assert all(a > b for a, b in pairwise(values))
    assert values[0] == pytest.approx(0.005 * np.trace(hessian), rel=1e-4), "rank-one samples: the worst is the average"
    assert values[-1] == pytest.approx(sharpness(model, half_square, data, 0.1, steps=60).value, rel=1e-9)


def by_hand(case, rho, groups):
    """SAM's first-order rise, group by group, on the module itself."""
    rises, params = [], list(case.model.parameters())
    for x, y in groups:
        before = case.loss(case.model(x), y)
        flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(before, params)])
        step = sam_perturbation(flat[None], rho)[0].split([p.numel() for p in params])
        with torch.no_grad():
            kept = [p.clone() for p in params]
            for p, e in zip(params, step, strict=True):
                p.add_(e.view_as(p))
            rises.append(float(case.loss(case.model(x), y) - before))
            for p, w in zip(params, kept, strict=True):
                p.copy_(w)
    sizes = np.array([len(y) for _, y in groups])
    return np.array(rises), sizes / sizes.sum()


@pytest.mark.parametrize("m", [1, 7, 100])
def test_first_order_sharpness_of_a_network_is_sams(case, m, monkeypatch):
    rises, weight = by_hand(case, 0.05, list(zip(case.x.split(m), case.y.split(m), strict=True)))
    batches = list(zip(case.x.split(25), case.y.split(25), strict=True))
    found = sharpness(case.model, case.loss, batches, 0.05, m=m)
    np.testing.assert_allclose(found.each, rises, rtol=1e-8, atol=1e-12)
    assert found.value == pytest.approx(weight @ rises, rel=1e-9)
    if m == 7:
        assert found.stderr == pytest.approx(rises[:-1].std(ddof=1) / np.sqrt(len(rises)), rel=0.2)
        monkeypatch.setattr(_groups, "SMALL_GROUP", 0)  # one group at a time instead of all in one call
        np.testing.assert_allclose(sharpness(case.model, case.loss, batches, 0.05, m=m).each, found.each, rtol=1e-9)


def test_ascent_finds_at_least_the_first_order_rise(mlp_case):
    data = mlp_case.x, mlp_case.y
    first, ascent = (sharpness(mlp_case.model, mlp_case.loss, data, 0.5, m=10, steps=s) for s in (1, 20))
    assert (ascent.each >= first.each - 1e-12).all() and (ascent.each >= 0).all()
    assert ascent.value > 1.01 * first.value and ascent.passes == 21


def test_rescaling_relu_layers_changes_sharpness_but_not_the_adaptive_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    data = torch.randn(30, 6).double(), torch.randint(0, 3, (30,))
    plain, adaptive = (sharpness(model, F.cross_entropy, data, 0.1, adaptive=a).value for a in (False, True))
    average = average_sharpness(model, F.cross_entropy, data, 0.1, adaptive=True).value
    with torch.no_grad():
        model[0].weight.mul_(5)
        model[2].weight.div_(5)
    assert sharpness(model, F.cross_entropy, data, 0.1, adaptive=True).value == pytest.approx(adaptive, rel=1e-9)
    assert average_sharpness(model, F.cross_entropy, data, 0.1, adaptive=True).value == pytest.approx(average, rel=1e-9)
    assert abs(sharpness(model, F.cross_entropy, data, 0.1).value / plain - 1) > 0.1


@pytest.mark.parametrize("steps", [1, 3])
def test_a_gradient_that_is_no_number_is_no_flatness(steps):
    def loss(output, target):
        return output.square().mean() + (output - output.detach()).abs().sqrt().sum()  # finite, with an infinite slope

    assert math.isnan(sharpness(nn.Linear(3, 2), loss, (torch.ones(4, 3), torch.ones(4)), 0.1, steps=steps).value)


def test_an_exactly_flat_start_still_climbs():
    model, x = Weights(torch.zeros(3, dtype=torch.float64)), torch.eye(3, dtype=torch.float64) * 2
    data = x, torch.zeros(3, dtype=torch.float64)
    assert sharpness(model, half_square, data, 0.1).value == 0
    assert sharpness(model, half_square, data, 0.1, steps=10).value == pytest.approx(0.005 * 4 / 3, rel=1e-3)


def test_wrong_arguments_say_what_to_do(quadratic):
    model, data, _ = quadratic
    for measure, options, words in [
        (sharpness, {"rho": 0}, "rho = 0"), (sharpness, {"m": 0}, "m = 0"), (sharpness, {"steps": 0}, "steps = 0"),
        (sharpness, {"p": 0.5}, "p = 0.5"), (average_sharpness, {"p": 1}, "p = 1"),
        (average_sharpness, {"samples": 3}, "samples = 3"), (average_sharpness, {"rho": -1}, "rho = -1"),
    ]:
        with pytest.raises(ValueError, match=words):
            measure(model, half_square, data, **{"rho": 0.1, **options})
