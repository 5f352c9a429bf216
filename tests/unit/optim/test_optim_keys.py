"""Keys that a scheduler, a base or a user writes too: what is read as the method's own, and what is not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import family
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as L

from sharpnb.optim import ASAM, GSAM, SAM, SGDW, WSAM, AdamW, LookSAM
from sharpnb.optim.decoupled import eta
from sharpnb.optim.schedules import CosineRestarts

DECOUPLED: dict[str, Callable[..., Any]] = {
    "SGDW": lambda p, lr, **o: SGDW(p, lr, momentum=0.9, **o), "AdamW": lambda p, lr, **o: AdamW(p, lr, **o)}


def _one() -> nn.Parameter:
    return nn.Parameter(torch.ones(2, dtype=torch.float64))


# -- the schedule multiplier ------------------------------------------------------------------------------------------


def _fastai(optimizer: Any, step: int) -> None:
    """Write the rate of one cycle into the groups before each batch, as fastai does; no ``initial_lr`` anywhere."""
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * (0.04 + 0.96 * min(step, 10) / 10)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "OneCycleLR": lambda o: L.OneCycleLR(o, max_lr=0.1, total_steps=30, cycle_momentum=False),
    "CyclicLR": lambda o: L.CyclicLR(o, 0.01, 0.1, step_size_up=5, cycle_momentum=False),
    "LinearLR": lambda o: L.LinearLR(o, 0.01, 1.0, 10),
    "CosineRestarts": lambda o: CosineRestarts(o, 10),
    "ReduceLROnPlateau": lambda o: L.ReduceLROnPlateau(o, patience=0),
    "ours twice": lambda o: (L.OneCycleLR(o, max_lr=0.1, total_steps=30, cycle_momentum=False),
                             CosineRestarts(o, 10))[1],
}


@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("schedule", [*SCHEDULERS, "fastai"])
@pytest.mark.parametrize("name", DECOUPLED)
def test_the_decay_is_the_rate_over_the_constructors(name: str, schedule: str, tensor: bool) -> None:
    """With gradients of zero a step is the decay alone: w (1 - lr_t / lr_0 lambda)."""
    p, want = _one(), torch.ones(2, dtype=torch.float64)
    lr: Any = torch.tensor(0.1, dtype=torch.float64) if tensor else 0.1
    optimizer = DECOUPLED[name]([p], lr, weight_decay=0.03)
    scheduler = SCHEDULERS[schedule](optimizer) if schedule != "fastai" else None
    for step in range(25):
        if scheduler is None:
            _fastai(optimizer, step)
        want = want * (1 - float(optimizer.param_groups[0]["lr"]) / 0.1 * 0.03)
        p.grad = torch.zeros_like(p)
        optimizer.step()
        if scheduler is not None:
            scheduler.step(*([1.0] if schedule == "ReduceLROnPlateau" else []))
    assert torch.allclose(p, want, rtol=1e-12, atol=0)
    assert float(lr) == pytest.approx(0.1)  # the caller's own tensor


@pytest.mark.parametrize("name", DECOUPLED)
def test_a_rate_above_the_reference_warns_once_and_another_reference_is_taken(name: str) -> None:
    for reference, told in ((None, 1), (0.5, 0)):
        optimizer = DECOUPLED[name]([p := _one()], 0.1, weight_decay=0.01, eta_reference=reference)
        optimizer.param_groups[0]["lr"] = 0.5
        p.grad = torch.zeros_like(p)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            optimizer.step(), optimizer.step()
        assert len([w for w in seen if "eta_reference" in str(w.message)]) == told
        assert eta(optimizer.param_groups[0]) == pytest.approx(0.5 / (reference or 0.1))
    with pytest.raises(ValueError, match="eta_reference = -1"):
        DECOUPLED[name]([_one()], 0.1, eta_reference=-1)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: o], ids=["copy", "checkpoint"])
@pytest.mark.parametrize("name", DECOUPLED)
def test_a_rate_edited_in_a_checkpoint_holds(name: str, how: Any) -> None:
    for build in (lambda p: DECOUPLED[name]([p], 0.1, weight_decay=0.01),
                  lambda p: SAM(DECOUPLED[name]([p], 0.1, weight_decay=0.01))):
        optimizer = build(_one())
        state = how(optimizer).state_dict()
        state["param_groups"][0]["lr"] = 0.05
        fresh = build(_one())
        fresh.load_state_dict(state)
        assert fresh.param_groups[0]["lr"] == 0.05 and eta(fresh.param_groups[0]) == pytest.approx(0.5)
        if isinstance(fresh, SAM):
            assert fresh.base_optimizer.param_groups[0]["lr"] == 0.05


# -- decay of groups --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda o: o, lambda o: SAM(o)], ids=["bare", "in SAM"])
@pytest.mark.parametrize("default", [0.0, 0.01])
@pytest.mark.parametrize("base", [SGDW, AdamW, torch.optim.AdamW])
def test_a_schedulers_decay_spares_the_group_that_was_given_none(base: Any, default: float, wrap: Any) -> None:
    groups = [{"params": [_one()]}, {"params": [_one()], "weight_decay": 0.0}]
    optimizer = wrap(base(groups, lr=0.1, weight_decay=default))
    scheduler = CosineRestarts(optimizer, 4, lambda_norm=0.1)
    if base is torch.optim.AdamW and default == 0:
        return  # PyTorch's groups do not tell a decay of 0 that was given from the constructor's
    for _ in range(6):
        assert optimizer.param_groups[1]["weight_decay"] == 0 and optimizer.param_groups[0]["weight_decay"] > 0
        optimizer.base_optimizer.step() if isinstance(optimizer, SAM) else optimizer.step()
        scheduler.step()
    state = copy.deepcopy(optimizer.state_dict())
    again = wrap(base([{"params": [_one()]}, {"params": [_one()]}], lr=0.1, weight_decay=default))
    again.load_state_dict(state)
    CosineRestarts(again, 4, lambda_norm=0.1)
    assert again.param_groups[1]["weight_decay"] == 0


def test_without_any_decay_of_their_own_all_groups_get_the_schedulers() -> None:
    optimizer = AdamW([{"params": [_one()]}, {"params": [_one()]}])
    CosineRestarts(optimizer, 4, lambda_norm=0.1)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.05, 0.05]


# -- restarts ---------------------------------------------------------------------------------------------------------


def test_each_period_has_its_lowest_and_highest_multiplier() -> None:
    schedule = CosineRestarts(SGDW([_one()], 1.0), 2, 2, eta_min=[0.1, 0.0], eta_max=[1.0, 0.5, 0.25])
    low, high, length = [0.1, 0.0, 0.0, 0.0], [1.0, 0.5, 0.25, 0.25], [2, 4, 8, 16]
    batch = 0
    for a, b, n in zip(low, high, length, strict=True):
        for since in range(n):
            want = a + (b - a) * (1 + torch.cos(torch.tensor(torch.pi * since / n, dtype=torch.float64)).item()) / 2
            assert schedule.eta(batch) == pytest.approx(want, abs=1e-15)
            batch += 1
    with pytest.raises(ValueError, match=r"eta_min = 0.6 exceeds eta_max = 0.5 in period 1"):
        CosineRestarts(SGDW([_one()], 1.0), 2, eta_min=[0.1, 0.6], eta_max=[1.0, 0.5])
    with pytest.raises(ValueError, match=r"eta_max = 1\.5"):
        CosineRestarts(SGDW([_one()], 1.0), 2, eta_max=1.5)


# -- GSAM's radius ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["scheduler first", "scheduler last"])
def test_gsams_radius_stays_between_its_ends(when: str) -> None:
    base = torch.optim.SGD([p := _one()], lr=0.02)
    if when == "scheduler first":
        scheduler = L.OneCycleLR(base, max_lr=0.1, total_steps=20)
        optimizer = GSAM(base, rho=0.05, rho_min=0.01)
    else:
        optimizer = GSAM(base, rho=0.05, rho_min=0.01)
        scheduler = L.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    radii = []
    with pytest.warns(RuntimeWarning, match="lr_max") as told:
        for _ in range(19):
            radii.append(optimizer._radius(optimizer.param_groups[0]))
            optimizer.step(lambda: (loss := p.square().sum()).backward() or loss)
            scheduler.step()
    assert max(radii) == 0.05 and min(radii) >= 0.01
    assert radii[0] == pytest.approx(0.01 + 0.04 * (0.1 / 25) / 0.02)  # the constructor's rate is the reference
    assert len(told) == 1
    base = torch.optim.SGD([_one()], lr=torch.tensor(0.02))
    L.LinearLR(base, 0.1)  # writes into the tensor, which the base's defaults hold too
    assert GSAM(base).param_groups[0]["lr_max"] == pytest.approx(0.02)


# -- keys of the base -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [SAM, ASAM, GSAM, WSAM, LookSAM, *(DECOUPLED.values())])
def test_a_base_that_maximises_is_refused(build: Any) -> None:
    if build in DECOUPLED.values():
        with pytest.raises(ValueError, match="maximize=True"):
            build([{"params": [_one()], "maximize": True}], 0.1)
        return
    with pytest.raises(ValueError, match=r"maximize=True.*sign of the loss"):
        build(torch.optim.SGD([_one()], lr=0.1, maximize=True))
    optimizer = build(torch.optim.SGD([_one()], lr=0.1))
    with pytest.raises(ValueError, match="maximize=True"):
        optimizer.add_param_group({"params": [_one()], "maximize": True})
    state = optimizer.state_dict()
    state["param_groups"][0]["maximize"] = True
    with pytest.raises(ValueError, match="maximize=True"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("before", [lambda o: o, copy.deepcopy, lambda o: o.load_state_dict(o.state_dict()) or o],
                         ids=["", "copied", "resumed"])
@pytest.mark.parametrize("second", [SAM, WSAM, LookSAM])
def test_a_base_that_is_wrapped_again_has_the_new_values(second: Any, before: Any) -> None:
    first = torch.optim.SGD([{"params": [_one()], "rho": 0.7}, {"params": [_one()]}], lr=0.1)
    base = before(LookSAM(first, rho=0.05, k=3, alpha=0.1)).base_optimizer
    optimizer = second(base, rho=0.2)
    assert [g["rho"] for g in optimizer.param_groups] == [0.7, 0.2]  # what its author gave a group stays
    if second is LookSAM:
        assert [(g["k"], g["alpha"]) for g in optimizer.param_groups] == [(5, 0.7)] * 2
    else:
        assert all("k" not in g for g in optimizer.param_groups)
    optimizer.add_param_group({"params": [_one()]})
    base.add_param_group({"params": [p := _one()]})  # behind the wrapper's back
    optimizer.step(lambda: (loss := p.square().sum()).backward() or loss)
    assert [g["rho"] for g in optimizer.param_groups] == [0.7, 0.2, 0.2, 0.2]
    fresh = torch.optim.SGD([{"params": g["params"]} for g in base.param_groups], lr=0.1)
    base.load_state_dict(fresh.state_dict())  # likewise
    optimizer.step(lambda: (loss := p.square().sum()).backward() or loss)
    assert [g["rho"] for g in optimizer.param_groups] == [0.2] * 4


def test_wsam_takes_adaptive_as_the_authors_spell_it() -> None:
    """T = |w| for every tensor, biases too: by hand from eps = rho w^2 g / ||w g||."""
    params = family.parameters()
    optimizer = WSAM(torch.optim.SGD(params, lr=0.1), rho=0.1, gamma=0.5, adaptive=True)
    start, seen = family.flat(params).detach().clone(), []
    closure = family.closure_for(params)
    optimizer.step(lambda: seen.append(family.flat(params).detach().clone()) or closure())
    g = family.row_gradient(start[None])[0]
    assert torch.allclose(seen[1] - start, 0.1 * start**2 * g / (start * g).norm(), rtol=0, atol=1e-15)
    assert WSAM(torch.optim.SGD(params, lr=0.1), adaptive=False).perturbation == "sam"


# -- a tensor learning rate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECOUPLED)
@pytest.mark.parametrize("host", [True, False], ids=["host", "as on a device"])
def test_a_tensor_rate_is_the_number(name: str, host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Tensor] = []
    for rate in (0.1, torch.tensor(0.1, dtype=torch.float64)):
        if isinstance(rate, Tensor):
            monkeypatch.setattr("sharpnb.optim.foreach.on_host", lambda t: host)
        params = family.parameters()
        optimizer = DECOUPLED[name](params, rate, weight_decay=0.05)
        for _ in range(10):
            optimizer.zero_grad()
            family.closure_for(params)()
            optimizer.step()
        ends.append(family.flat(params).detach())
    assert torch.allclose(*ends, rtol=0, atol=1e-14)
