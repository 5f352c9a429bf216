"""What the optimizers do on a GPU: the CPU's numbers, no wait for the host, graphs, loss scales, memory.

They run where there is a GPU. SHARPNB_TEST_DEVICE=cpu runs on the CPU what does not need one, to debug the tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import family
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEVICE = os.environ.get("SHARPNB_TEST_DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")
pytestmark = pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="no CUDA device here")
on_gpu_only = pytest.mark.skipif(not ON_GPU, reason="only CUDA has this")

BASES: dict[str, Callable[..., Any]] = {
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}
OTHERS = {name: partial(m.cls, **m.options) for name, m in family.METHODS.items() if name not in family.CLASSES}
# ESAM draws the mask of each weight on the weight's device; with beta = 1 there is none.
CLASSES = OTHERS | family.CLASSES | {"ESAM": partial(family.ESAM, beta=1.0)}
def _parameters(device: str = DEVICE, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().to(device)) for p in family.parameters(dtype)]


def _steps(name: str, optimizer: Any, params: list[nn.Parameter], steps: int) -> Tensor:
    closure = family.closure_of(name, lambda: family.losses(family.flat(params)[None], params[0].dtype)[0])
    for _ in range(steps):
        optimizer.step(closure)
    return family.flat(params).detach().cpu()


def _net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(DEVICE, dtype)


def _batches(count: int = 1, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(32, 6, generator=draw).to(DEVICE, dtype), torch.randint(3, (32,), generator=draw).to(DEVICE))
            for _ in range(count)]


def _flat(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def _closure(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    return closure


def _snapshot(model: nn.Module, optimizer: Any) -> list[Tensor]:
    """Copies of the weights, the buffers and every tensor of the optimizer's state."""
    state = [v for of in optimizer.state_dict()["state"].values() for v in of.values() if isinstance(v, Tensor)]
    return [t.detach().clone() for t in (*model.state_dict().values(), *state)]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


# -- the CPU's numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", CLASSES)
def test_twenty_steps_are_those_of_the_cpu(name: str, base: str) -> None:
    ends = []
    for device in ("cpu", DEVICE):
        params = _parameters(device)
        groups = family.groups(params, {"rho": 0.1}, {"rho": 0.05, "lr": 0.02})
        ends.append(_steps(name, CLASSES[name](BASES[base](groups)), params, 20))
    bound = 1e-6 if "second" in name else 1e-9  # a difference of gradients is divided by 1e-5, and its rounding too
    torch.testing.assert_close(ends[1], ends[0], rtol=bound, atol=bound)
    assert (ends[0] - family.flat(family.parameters())).abs().max() > 1e-2


# -- no wait, graphs, compiled models ---------------------------------------------------------------------------------


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["SAM", "SAM exchanged", "ASAM", "GSAM", "WSAM", "WSAM coupled", "FisherSAM",
                                  "LookSAM"])
def test_without_the_test_for_finiteness_no_step_waits_for_the_device(name: str, dtype: torch.dtype) -> None:
    for base in BASES.values():
        model, (x, y) = _net(dtype), _batches(1, dtype)[0]
        closure = _closure(model, x, y)
        optimizer = family.CLASSES[name](base(model.parameters()), rho=0.1, skip_nonfinite=False)
        for _ in range(3):
            optimizer.step(closure)
        start = _flat(model)
        with _waiting_is_an_error():
            for _ in range(3):  # LookSAM's both kinds
                optimizer.step(closure)
        assert (_flat(model) - start).abs().max() > 1e-4


@on_gpu_only
def test_negative_control_the_test_for_finiteness_waits() -> None:
    model, (x, y) = _net(), _batches()[0]
    optimizer = family.CLASSES["SAM"](BASES["momentum"](model.parameters()), rho=0.1)
    closure = _closure(model, x, y)
    optimizer.step(closure)
    with pytest.raises(RuntimeError, match="synchronizing"), _waiting_is_an_error():
        optimizer.step(closure)


@on_gpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["SAM", "WSAM"])
def test_a_step_in_a_graph_is_the_eager_step(name: str, dtype: torch.dtype) -> None:
    models, batches = [_net(dtype), _net(dtype)], _batches(10, dtype)
    eager, captured = (family.CLASSES[name](BASES["momentum"](m.parameters()), rho=0.1, skip_nonfinite=False)
                       for m in models)
    x, y = (t.clone() for t in batches[0])
    closure, side = _closure(models[1], x, y), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            captured.step(closure)
    torch.cuda.current_stream().wait_stream(side)
    for _ in range(3):
        eager.step(_closure(models[0], *batches[0]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = captured.step(closure)
    start = _flat(models[0])
    for batch in batches:
        for static, new in zip((x, y), batch, strict=True):
            static.copy_(new)
        graph.replay()
        expected = eager.step(_closure(models[0], *batch))
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    bound = 1e-5 if dtype is torch.float32 else 1e-12
    assert (_flat(models[1]) - _flat(models[0])).abs().max() < bound < 1e-2 < (_flat(models[0]) - start).abs().max()


# -- mixed precision --------------------------------------------------------------------------------------------------


def _halves(optimizer: Any, closure: Callable[[], Tensor], scaler: torch.amp.GradScaler) -> None:
    closure()
    optimizer.first_step(zero_grad=True, scaler=scaler)
    closure()
    scaler.step(optimizer)
    optimizer.zero_grad()


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("base", [*BASES, "fused"])
@pytest.mark.parametrize("name", ["SAM", "WSAM", "GSAM"])
def test_an_overflow_in_float16_halves_the_scale_and_changes_nothing_else(name: str, base: str, halves: bool) -> None:
    model, (x, y) = _net(), _batches()[0]
    build = partial(torch.optim.AdamW, lr=0.01, fused=True) if base == "fused" else BASES[base]
    optimizer = family.CLASSES[name](build(model.parameters()), rho=0.05)
    scaler, seen = torch.amp.GradScaler(DEVICE, init_scale=2.0**24), []  # a gradient of 1/100 is then beyond float16

    def closure() -> Tensor:
        with torch.autocast(DEVICE, torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        return loss.detach()

    for _ in range(14):
        before, scale = _snapshot(model, optimizer), scaler.get_scale()
        if halves:
            _halves(optimizer, closure, scaler)
        else:
            optimizer.step(closure, scaler=scaler)
        scaler.update()
        assert scaler.get_scale() in (scale, scale / 2)
        seen.append(scaler.get_scale() == scale / 2)
        assert _same(_snapshot(model, optimizer), before) == seen[-1]
    assert seen[0] and not any(seen[-5:])
    overflow = 2.0**40
    scaler.update(overflow)  # and once more, where the base has a state
    before = _snapshot(model, optimizer)
    if halves:
        _halves(optimizer, closure, scaler)
    else:
        optimizer.step(closure, scaler=scaler)
    scaler.update()
    assert scaler.get_scale() == overflow / 2 and _same(_snapshot(model, optimizer), before)


# -- memory -----------------------------------------------------------------------------------------------------------


@on_gpu_only
@pytest.mark.parametrize(("name", "copies"), [("SAM", 1), ("WSAM", 2), ("GSAM", 2)])
def test_the_peak_of_a_step_is_one_copy_of_the_weights_or_two(name: str, copies: int) -> None:
    params = [nn.Parameter(torch.randn(50_000, device=DEVICE)) for _ in range(100)]  # 20 MB
    optimizer = family.CLASSES[name](torch.optim.SGD(params, lr=0.1, momentum=0.9), rho=0.1)

    def closure() -> Tensor:
        for p in params:
            p.grad = 2 * p.detach()
        return torch.zeros((), device=DEVICE)

    for _ in range(2):
        optimizer.step(closure)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()  # with weights, gradients and momentum
    torch.cuda.reset_peak_memory_stats()
    optimizer.step(closure)
    beyond = (torch.cuda.max_memory_allocated() - held) / sum(p.nbytes for p in params)
    assert copies - 0.05 < beyond < copies + 0.05
