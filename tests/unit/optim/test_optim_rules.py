"""Each class against its twin on rows and against NumPy: 100 float64 steps, five bases, two groups."""

from __future__ import annotations

from functools import partial
from typing import Any

import family
import numpy as np
import pytest
import torch

from sharpnb import rules
from sharpnb.optim import ASAM, ESAM, GSAM, SAM, WSAM, FisherSAM, LookSAM

STEPS = 100
RHO = np.where(family.SECOND, 0.2, 0.1)


def _lr(base: family.Base) -> np.ndarray:
    return np.where(family.SECOND, 0.5 * base.lr, base.lr)


def _class_run(method: family.Method, base: family.Base, steps: int = STEPS) -> np.ndarray:
    params = family.parameters()
    groups = family.groups(params, {"rho": 0.1, "lr": base.lr}, {"rho": 0.2, "lr": 0.5 * base.lr})
    optimizer = method.cls(base.cls(groups, **base.hyper), **method.options)
    closure = family.closure_for(params)
    path = []
    for _ in range(steps):
        optimizer.step(closure)
        path.append(family.flat(params).detach().numpy().copy())
    return np.array(path)


def _twin_run(method: family.Method, base: family.Base, steps: int = STEPS) -> np.ndarray:
    w, state = torch.as_tensor(family.START)[None], None
    rho, lr = torch.as_tensor(RHO)[None], torch.as_tensor(_lr(base))[None]
    path = []
    for _ in range(steps):
        w, state = method.rule(w, family.row_gradient, state, rho=rho, lr=lr, base=base.rule, **base.hyper,
                               **method.for_rule)
        path.append(w[0].numpy())
    return np.array(path)


def _numpy_run(rule: Any, base: family.Base, steps: int = STEPS) -> np.ndarray:
    w, own, inner, path = family.START, {"t": 0}, {}, []
    for _ in range(steps):
        w = family.numpy_step(rule, partial(base.numpy, **base.hyper), w, [family.numpy_gradient], own, inner, RHO,
                              _lr(base))
        path.append(w)
    return np.array(path)


@pytest.mark.parametrize("base", family.BASES)
@pytest.mark.parametrize("method", family.METHODS)
def test_class_twin_and_numpy_agree(method: str, base: str) -> None:
    m, b = family.METHODS[method], family.BASES[base]
    fast, twin, oracle = _class_run(m, b), _twin_run(m, b), _numpy_run(m.numpy, b)
    assert np.abs(fast - twin).max() < 1e-11
    assert np.abs(fast - oracle).max() < 1e-11
    assert np.abs(fast[-1] - family.START).max() > 1e-2  # they all went somewhere


def test_negative_control_a_radius_one_percent_off_is_seen() -> None:
    b = family.BASES["momentum"]
    near = lambda w, G, s, rho: family.numpy_sam(w, G, s, 1.01 * rho)
    assert np.abs(_class_run(family.METHODS["SAM"], b) - _numpy_run(near, b)).max() > 1e-5


def test_second_order_class_equals_twin_and_exact_hessian() -> None:
    b = family.BASES["momentum"]
    second = family.Method(SAM, rules.sam, family.numpy_sam, {"second_order": True})
    assert np.abs(_class_run(second, b, 30) - _twin_run(second, b, 30)).max() < 1e-8

    w = torch.as_tensor(family.START)
    hessian = torch.func.hessian(lambda v: family.losses(v[None]).mean())(w)
    g = family.row_gradient(w[None])
    g_adv = family.row_gradient(w[None] + rules.sam_perturbation(g, 0.1))
    unit = g / g.norm()
    z = 0.1 / g.norm() * (g_adv - (g_adv * unit).sum() * unit)
    exact = z @ hessian
    term = rules.second_order_term(family.row_gradient, w[None], g, g_adv, 0.1)
    assert (term - exact).norm() < 1e-8 * exact.norm()
    # and that is the derivative of the perturbed loss with the perturbation moving along
    perturbed = lambda v: family.losses((v + rules.sam_perturbation(
        torch.func.grad(lambda u: family.losses(u[None]).mean())(v)[None], 0.1)[0])[None]).mean()
    assert torch.allclose(torch.func.grad(perturbed)(w), (g_adv + term)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("base", ["nesterov", "adamw"])
def test_esam_equals_its_twin_with_the_masks_that_it_drew(base: str, gamma: float) -> None:
    b, beta = family.BASES[base], 0.6
    params = family.parameters()
    groups = family.groups(params, {"rho": 0.1, "lr": b.lr}, {"rho": 0.2, "lr": 0.5 * b.lr})
    optimizer = ESAM(b.cls(groups, **b.hyper), beta=beta, gamma=gamma)
    seen: list[torch.Tensor] = []

    def closure() -> torch.Tensor:
        seen.append(family.flat(params).detach().clone())
        return family.losses(family.flat(params)[None])[0]

    def gradient(w: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        w = w.detach().requires_grad_()
        each = family.losses(w)
        return torch.autograd.grad((each if rows is None else each.gather(1, rows)).mean(dim=1).sum(), w)[0]

    w, state = torch.as_tensor(family.START)[None], None
    rho, lr = torch.as_tensor(RHO)[None], torch.as_tensor(_lr(b))[None]
    drawn = 0.0
    for _ in range(100):
        optimizer.step(closure)
        mask = (seen[-1] != seen[-2])[None]
        drawn += mask.double().mean().item() / 100
        w, state = rules.esam(w, gradient, family.losses, state, rho=rho, lr=lr, mask=mask, beta=beta, gamma=gamma,
                              base=b.rule, **b.hyper)
        assert (family.flat(params) - w[0]).abs().max() < 1e-11
        w = family.flat(params).detach()[None]  # each step from the same weights: on few samples the paths are chaotic
    assert abs(drawn - beta) < 0.05  # 2100 draws: four standard errors are 0.043


# -- algebraic limits -------------------------------------------------------------------------------------------------


def _end(cls: type, options: dict, base: str = "momentum", steps: int = 20, rho: float = 0.1) -> torch.Tensor:
    b, params = family.BASES[base], family.parameters()
    optimizer = cls(b.cls(params, lr=b.lr, **b.hyper), rho=rho, **options)

    def vector() -> torch.Tensor:
        return family.losses(family.flat(params)[None])[0]

    for _ in range(steps):
        optimizer.step(vector if cls is ESAM else family.closure_for(params))
    return family.flat(params).detach()


def _base_end(base: str = "momentum", steps: int = 20) -> torch.Tensor:
    b, params = family.BASES[base], family.parameters()
    optimizer = b.cls(params, lr=b.lr, **b.hyper)
    for _ in range(steps):
        optimizer.zero_grad()
        family.closure_for(params)()
        optimizer.step()
    return family.flat(params).detach()


@pytest.mark.parametrize("base", ["momentum", "adam"])
def test_limits_that_are_sam_or_the_base(base: str) -> None:
    sam = _end(SAM, {}, base)
    assert (sam - _base_end(base)).abs().max() > 1e-4  # SAM is not its base here
    for cls, options in [
        (WSAM, {"gamma": 0.5, "decouple": False}), (GSAM, {"alpha": 0.0}), (FisherSAM, {"eta": 0.0}),
        (LookSAM, {"k": 1}), (ESAM, {"beta": 1.0, "gamma": 1.0}), (ASAM, {"adaptive": False}),
    ]:
        assert torch.allclose(_end(cls, options, base), sam, rtol=0, atol=1e-12), (cls, options)
    assert (_end(GSAM, {"alpha": 0.01}, base) - sam).abs().max() > 1e-7  # the control: a limit not quite reached
    for cls, options in [(SAM, {}), (SAM, {"second_order": True}), (ASAM, {}), (FisherSAM, {}), (WSAM, {}), (GSAM, {})]:
        assert torch.allclose(_end(cls, options, base, rho=0.0), _base_end(base), rtol=0, atol=1e-12), (cls, options)


def test_decoupled_is_coupled_without_momentum_only() -> None:
    options = {"gamma": 0.7}
    assert torch.allclose(_end(WSAM, options, "sgd"), _end(WSAM, {**options, "decouple": False}, "sgd"), atol=1e-12)
    assert not torch.allclose(_end(WSAM, options), _end(WSAM, {**options, "decouple": False}), atol=1e-4)


def test_asam_does_not_see_a_rescaling_of_two_layers() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 5, dtype=torch.float64), torch.randn(16, 2, dtype=torch.float64)
    first, second = torch.randn(5, 7, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)

    def perturbed_loss(cls: type, options: dict, c: float) -> float:
        a, b = torch.nn.Parameter(c * first), torch.nn.Parameter(second / c)
        found = []

        def closure() -> torch.Tensor:
            loss = ((x @ a).relu() @ b - y).square().mean()
            loss.backward()
            found.append(loss.item())
            return loss

        cls(torch.optim.SGD([a, b], lr=0.0), rho=0.3, **options).step(closure)
        return found[1]

    same = perturbed_loss(ASAM, {"eta": 0.0}, 1.0)
    assert perturbed_loss(ASAM, {"eta": 0.0}, 9.0) == pytest.approx(same, rel=1e-12)
    assert perturbed_loss(SAM, {}, 9.0) != pytest.approx(perturbed_loss(SAM, {}, 1.0), rel=1e-2)
