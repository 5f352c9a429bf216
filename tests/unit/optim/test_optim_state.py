"""Resume, copy, restore: what a checkpoint holds, and what a step may never change."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import family
import pytest
import torch
from torch import Tensor, nn

from sharpnb.optim import SGDW, AdamW

OPTIMIZERS = family.OPTIMIZERS | {
    "GSAM over AdamW": lambda p: family.CLASSES["GSAM"](AdamW(p, weight_decay=0.01), rho_min=0.01),
    "SGDW nesterov": lambda p: SGDW(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "SGDW outside": lambda p: SGDW(p, 0.1, momentum=0.9, weight_decay=0.01, lr_in_momentum=False),
}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_is_bit_exact(name: str) -> None:
    """PyTorch's own state-dict test, and stricter: through a file, in mid-cycle, a scheduler attached, new objects."""
    params = family.parameters(torch.float32)
    optimizer = OPTIMIZERS[name](params)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for _ in range(20):
        family.advance(name, optimizer, family.losses_of(params))
        schedule.step()
    file = io.BytesIO()
    weights = [p.detach().clone() for p in params]
    torch.save({"w": weights, "o": optimizer.state_dict(), "s": schedule.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    again = [nn.Parameter(w) for w in saved["w"]]
    other = OPTIMIZERS[name](again)
    other_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(other, 50)
    other.load_state_dict(saved["o"])
    other_schedule.load_state_dict(saved["s"])
    assert _same(optimizer.state_dict(), other.state_dict())
    for _ in range(20):
        for o, p, s in ((optimizer, params, schedule), (other, again, other_schedule)):
            family.advance(name, o, family.losses_of(p))
            s.step()
        assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))
    assert _same(optimizer.state_dict(), other.state_dict())
    # the control: without its state
    fresh = OPTIMIZERS[name](anew := [nn.Parameter(p.detach().clone()) for p in params])
    for o, p in ((optimizer, params), (fresh, anew)):
        family.advance(name, o, family.losses_of(p))
    assert not torch.equal(family.flat(params), family.flat(anew))
    if hasattr(other, "base_optimizer"):
        assert other.param_groups is other.base_optimizer.param_groups and other.state is other.base_optimizer.state


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_copies_go_on_alike(name: str, how: Callable[[Any], Any]) -> None:
    params = family.parameters()
    optimizer = OPTIMIZERS[name](params)
    torch.optim.lr_scheduler.StepLR(optimizer, 3)  # its patch of step must not be in the way
    family.advance(name, optimizer, family.losses_of(params), 4)
    again, other = how((params, optimizer))
    assert other.param_groups[0]["params"][0] is again[0]
    for o, p in ((optimizer, params), (other, again)):
        family.advance(name, o, family.losses_of(p), 4)
    assert torch.equal(family.flat(params), family.flat(again))
    assert repr(optimizer) == repr(other)


@pytest.mark.parametrize("name", ["SAM", "GSAM", "LookSAM", "ESAM", "WSAM"])
def test_a_checkpoint_of_the_bare_base_loads(name: str) -> None:
    params = family.parameters()
    bare = torch.optim.SGD(params, lr=0.3, momentum=0.9)
    family.closure_for(params)()
    bare.step()
    bare.zero_grad()
    optimizer = OPTIMIZERS[name](params)
    optimizer.load_state_dict(bare.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.3 and optimizer.param_groups[0]["rho"] == 0.05
    assert optimizer.state[params[0]]["momentum_buffer"] is not None
    family.advance(name, optimizer, family.losses_of(params), 2)


def test_a_checkpoint_holds_nothing_transient() -> None:
    for name, extra in (("SAM", 0), ("WSAM", 0), ("GSAM", 0), ("LookSAM", 1)):
        params = family.parameters()
        optimizer = OPTIMIZERS[name](params)
        family.advance(name, optimizer, family.losses_of(params), 2)
        state = optimizer.state_dict()["state"]
        assert all(len(entry) == 1 + extra for entry in state.values()), name  # the momentum, and LookSAM's g_v


# -- what a step leaves as it was -------------------------------------------------------------------------------------


def _typed_model(dtype: torch.dtype) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(3)
    shapes = [(5, 4), (4,), (2, 3, 3, 3)]
    made = [nn.Parameter(torch.randn(*s, generator=draw).to(dtype)) for s in shapes]
    channels_last = torch.randn(4, 4, 3, 3, generator=draw).to(dtype).to(memory_format=torch.channels_last)
    strided = torch.randn(6, 8, generator=draw).to(dtype)[:, ::2]
    with torch.no_grad():
        made[1][0] = -0.0
    return [*made, nn.Parameter(channels_last), nn.Parameter(strided)]


def _bits(params: list[nn.Parameter]) -> list[bytes]:
    return [torch.view_as_real(p.detach()).contiguous().numpy().tobytes() if p.is_complex()
            else p.detach().contiguous().view(torch.int16 if p.element_size() == 2 else p.dtype).numpy().tobytes()
            for p in params]


def _typed_losses(params: list[nn.Parameter]) -> Tensor:
    rows = torch.stack([(p.abs() ** 2).sum() + p.abs().sum() for p in params])
    return rows.float() if rows.dtype != torch.float64 else rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("name", family.CLASSES)
def test_weights_are_bit_equal_after_a_step_of_length_zero(name: str, dtype: torch.dtype) -> None:
    """Also in place, and after a bad gradient in either pass, then with the base's state."""
    if name.startswith("SAM second") and dtype in (torch.bfloat16, torch.float16):
        pytest.skip("refused for half precision")
    for bad in ("", "nan first", "nan second", "inf first", "inf second"):
        params = _typed_model(dtype)
        optimizer = family.CLASSES[name](torch.optim.SGD(params, lr=0.0, momentum=0.9), rho=0.3)
        optimizer.step(family.closure_of(name, lambda params=params: _typed_losses(params)))
        if "updates" in optimizer.param_groups[0]:
            optimizer.param_groups[0]["updates"] = 0  # LookSAM: a step of two passes
        before, places = _bits(params), [p.data_ptr() for p in params]
        state = copy.deepcopy(optimizer.state_dict())
        calls: list[int] = []

        def each(bad: str = bad, params: Any = params, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            factor = float(bad.split()[0]) if bad and (len(calls) > 1) == bad.endswith("second") else 1.0
            return _typed_losses(params) * factor

        optimizer.step(family.closure_of(name, each))
        assert _bits(params) == before and [p.data_ptr() for p in params] == places, bad
        assert _same(optimizer.state_dict()["state"], state["state"]) == bool(bad), bad


@pytest.mark.parametrize("in_place", [True, False])
def test_the_second_pass_sees_the_weights_where_in_place_says(in_place: bool) -> None:
    params = family.parameters()
    seen, closure, held = set(), family.closure_for(params), []

    def looking() -> Tensor:
        held.append([p.detach() for p in params])  # so that fresh memory cannot lie where some was freed
        seen.add(tuple(p.data_ptr() for p in params))
        return closure()

    optimizer = family.CLASSES["SAM"](params, torch.optim.SGD, lr=0.1, in_place=in_place)
    for _ in range(3):
        before = tuple(p.data_ptr() for p in params)
        optimizer.step(looking)
        assert tuple(p.data_ptr() for p in params) == before
    # always the same other memory: fresh pages would cost more than it saves
    assert len(seen) == (1 if in_place else 2)
