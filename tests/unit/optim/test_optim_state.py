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

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    name: (lambda params, build=build: build(torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01), rho=0.1))
    for name, build in family.CLASSES.items()
}
OPTIMIZERS |= {
    "SAM Adam": lambda params: family.CLASSES["SAM"](torch.optim.Adam(params, lr=0.01)),
    "WSAM AdamW": lambda params: family.CLASSES["WSAM"](torch.optim.AdamW(params, lr=0.01)),
    "LookSAM Adam": lambda params: family.CLASSES["LookSAM"](torch.optim.Adam(params, lr=0.01)),
    "GSAM AdamW": lambda params: family.CLASSES["GSAM"](AdamW(params, weight_decay=0.01), rho_min=0.01),
    "SGDW": lambda params: SGDW(params, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "SGDW outside": lambda params: SGDW(params, 0.1, momentum=0.9, weight_decay=0.01, lr_in_momentum=False),
    "AdamW": lambda params: AdamW(params, weight_decay=0.01),
}


def _run(name: str, optimizer: Any, params: list[nn.Parameter], steps: int) -> None:
    for _ in range(steps):
        if isinstance(optimizer, SGDW | AdamW):
            optimizer.zero_grad()
            family.closure_for(params)()
            optimizer.step()
        else:
            optimizer.step(family.closure_of(
                name, lambda: family.losses(family.flat(params)[None], params[0].dtype)[0]))


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
        _run(name, optimizer, params, 1)
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
            _run(name, o, p, 1)
            s.step()
        assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))
    assert _same(optimizer.state_dict(), other.state_dict())
    if hasattr(other, "base_optimizer"):
        assert other.param_groups is other.base_optimizer.param_groups and other.state is other.base_optimizer.state


def test_negative_control_forgetting_the_momentum_is_seen() -> None:
    params = family.parameters()
    optimizer = OPTIMIZERS["SAM"](params)
    _run("SAM", optimizer, params, 5)
    fresh = [nn.Parameter(p.detach().clone()) for p in params]
    _run("SAM", OPTIMIZERS["SAM"](fresh), fresh, 1)
    _run("SAM", optimizer, params, 1)
    assert (family.flat(params) - family.flat(fresh)).abs().max() > 1e-3


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_copies_go_on_alike(name: str, how: Callable[[Any], Any]) -> None:
    params = family.parameters()
    optimizer = OPTIMIZERS[name](params)
    torch.optim.lr_scheduler.StepLR(optimizer, 3)  # its patch of step must not be in the way
    _run(name, optimizer, params, 4)
    again, other = how((params, optimizer))
    assert other.param_groups[0]["params"][0] is again[0]
    for o, p in ((optimizer, params), (other, again)):
        _run(name, o, p, 4)
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
    assert optimizer.param_groups[0]["lr"] == 0.3 and optimizer.param_groups[0]["rho"] == 0.1
    assert optimizer.state[params[0]]["momentum_buffer"] is not None
    _run(name, optimizer, params, 2)


def test_a_checkpoint_holds_nothing_transient() -> None:
    for name, extra in (("SAM", 0), ("WSAM", 0), ("GSAM", 0), ("LookSAM", 1)):
        params = family.parameters()
        optimizer = OPTIMIZERS[name](params)
        _run(name, optimizer, params, 2)
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


@pytest.mark.parametrize("bad", ["", "nan first", "nan second", "inf first", "inf second"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("name", family.CLASSES)
def test_weights_are_bit_equal_after_a_step_of_length_zero(name: str, dtype: torch.dtype, bad: str) -> None:
    """Also in place, and after a bad gradient in either pass, then with the base's state."""
    if name.startswith("SAM second") and dtype in (torch.bfloat16, torch.float16):
        pytest.skip("refused for half precision")
    params = _typed_model(dtype)
    optimizer = family.CLASSES[name](torch.optim.SGD(params, lr=0.0, momentum=0.9), rho=0.3)
    optimizer.step(family.closure_of(name, lambda: _typed_losses(params)))
    if "updates" in optimizer.param_groups[0]:
        optimizer.param_groups[0]["updates"] = 0  # LookSAM: a step of two passes
    before, places = _bits(params), [p.data_ptr() for p in params]
    state = copy.deepcopy(optimizer.state_dict())
    calls: list[int] = []

    def each() -> Tensor:
        calls.append(1)
        factor = float(bad.split()[0]) if bad and (len(calls) > 1) == bad.endswith("second") else 1.0
        return _typed_losses(params) * factor

    optimizer.step(family.closure_of(name, each))
    assert _bits(params) == before
    assert [p.data_ptr() for p in params] == places
    assert _same(optimizer.state_dict()["state"], state["state"]) == bool(bad)


@pytest.mark.parametrize("skip", [True, False])
def test_a_nonfinite_ascent_gradient_is_not_followed(skip: bool) -> None:
    p, seen = nn.Parameter(torch.tensor([1.0, 2.0])), []
    optimizer = family.CLASSES["SAM"](torch.optim.SGD([p], lr=0.1), rho=0.5, skip_nonfinite=skip)

    def closure() -> Tensor:
        seen.append(p.detach().clone())
        loss = (p**2).sum() * (float("inf") if len(seen) == 1 else 1.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(seen[0], seen[1])  # no perturbation either way; then no step, or the base's plain one
    assert torch.allclose(p, torch.tensor([1.0, 2.0]) if skip else torch.tensor([0.8, 1.6]))


@pytest.mark.parametrize("name", ["SAM", "WSAM", "GSAM"])
def test_after_a_skipped_step_the_next_is_as_a_fresh_one(name: str) -> None:
    ends = []
    for poison in (True, False):
        params = family.parameters()
        optimizer = OPTIMIZERS[name](params)
        _run(name, optimizer, params, 3)
        if poison:
            def bad(params: list[nn.Parameter] = params) -> Tensor:
                loss = family.flat(params).sum() * float("nan")
                loss.backward()
                return loss

            optimizer.step(bad)
        _run(name, optimizer, params, 3)
        ends.append(family.flat(params))
    assert torch.equal(ends[0], ends[1])


def test_a_thousand_steps_do_not_drift() -> None:
    params = _typed_model(torch.bfloat16)
    optimizer = family.CLASSES["WSAM"](torch.optim.SGD(params, lr=0.0), rho=0.3)
    before = _bits(params)
    for _ in range(1000):
        optimizer.step(family.closure_of("WSAM", lambda: _typed_losses(params)))
    assert _bits(params) == before


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
    assert len(seen) == (1 if in_place else 2)  # always the same other memory: fresh pages would cost more than it saves
