"""What a step costs beside its passes: calls, host reads, memory. Counted, not timed."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import family
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sharpnb.optim import foreach

# A step for 161 tensors makes at most so many calls, the base's included. p other than 2, inner steps and the second-order
# term are not held to it.
MOST, HELD = 50, ("SAM", "FisherSAM", "ASAM", "WSAM", "WSAM coupled", "WSAM asam", "WSAM fisher", "GSAM", "LookSAM")
VIEWS = ("view.dtype", "detach.default")  # they start nothing on a device
READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal")


class Calls(TorchDispatchMode):
    """Counts the calls that reach aten while it is switched on."""

    def __init__(self, after: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.on, self.after = True, after

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.on and func.namespace == "aten" and func.__name__ not in VIEWS:
            self.counts[func.__name__.split(".")[0]] += 1
            self.after()
        return out


def _count(name: str, tensors: int, **options: Any) -> Counter[str]:
    params = [nn.Parameter(torch.randn(4, 3) if i % 2 else torch.randn(5)) for i in range(tensors)]
    base = torch.optim.SGD(params, lr=0.1, momentum=0.9, foreach=True)
    optimizer, calls = family.CLASSES[name](base, rho=0.1, **options), Calls()

    def closure() -> Tensor:
        calls.on = False
        loss = torch.stack([(i + 1) * p.square().sum() for i, p in enumerate(params)]).mean()
        loss.backward()
        calls.on = True
        return loss

    optimizer.step(closure)
    if name == "LookSAM":
        optimizer.param_groups[0]["updates"] = 0  # a step of two passes
    calls.counts.clear()
    with calls:
        optimizer.step(closure)
    return calls.counts


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on the CPU what a GPU runs: numbers stay in tensors."""
    monkeypatch.setattr(foreach, "on_host", lambda t: False)


@pytest.mark.parametrize("name", HELD)
def test_calls_of_a_step_do_not_grow_with_the_tensors(name: str, as_on_a_device: None) -> None:
    many, fewer = _count(name, 161), _count(name, 41)
    assert sum(many.values()) <= MOST and sum(many.values()) == sum(fewer.values()), many - fewer


@pytest.mark.parametrize("name", [n for n in family.CLASSES if not n.startswith("ESAM")])
def test_one_host_read_a_step_or_none(name: str, as_on_a_device: None) -> None:
    for skip in (True, False):
        counts = _count(name, 9, skip_nonfinite=skip)
        assert sum(counts[read] for read in READS) == int(skip), counts


def test_negative_control_a_host_read_is_seen() -> None:
    calls = Calls()
    with calls:
        float(torch.ones(1) * 2)
    assert calls.counts["_local_scalar_dense"] == 1
    assert sum(_count("SAM", 9, skip_nonfinite=False)[read] for read in READS) > 0  # on the CPU, where it is free


@pytest.mark.parametrize("name", family.CLASSES)
def test_numbers_on_the_host_and_on_the_device_make_one_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for host in (True, False):
        monkeypatch.setattr(foreach, "on_host", (lambda t: True) if host else (lambda t: False))
        params = family.parameters()
        optimizer = family.CLASSES[name](torch.optim.SGD(params, lr=0.05, momentum=0.9), rho=0.1)
        for _ in range(10):
            optimizer.step(family.closure_of(name, lambda params=params: family.losses(family.flat(params)[None])[0]))
        ends.append(family.flat(params))
    assert torch.allclose(*ends, rtol=0, atol=1e-12)
    assert (ends[0] - family.flat(family.parameters())).abs().max() > 1e-2


@pytest.mark.parametrize("gradient", ["nan", "inf", "zero", "huge"])
def test_a_bad_gradient_on_the_device_is_not_followed(gradient: str, as_on_a_device: None) -> None:
    p, seen = nn.Parameter(torch.tensor([1.0, 2.0])), []
    optimizer = family.CLASSES["SAM"](torch.optim.SGD([p], lr=0.1), rho=0.5, skip_nonfinite=False)
    factor = {"nan": float("nan"), "inf": float("inf"), "zero": 0.0, "huge": 3e38}[gradient]

    def closure() -> Tensor:
        seen.append(p.detach().clone())
        loss = p.sum() * (factor if len(seen) == 1 else 1.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(seen[0], seen[1])
    assert torch.allclose(p, torch.tensor([0.9, 1.9]))


# -- the test for finiteness ------------------------------------------------------------------------------------------


def _kinds() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    plain = torch.randn(3, 4, generator=draw)
    return {"float32": plain, "float64": plain.double(), "bfloat16": plain.bfloat16(), "float16": plain.half(),
            "complex": torch.complex(plain, plain), "strided": torch.randn(4, 6, generator=draw)[:, ::2],
            "expanded": plain[0, :1].expand(5), "transposed": plain.T, "empty": torch.zeros(0),
            "sparse": torch.sparse_coo_tensor(torch.tensor([[1, 1, 3]]), plain[:, :2], (5, 2),
                                              check_invariants=True)}


@pytest.mark.parametrize("host", [True, False])
@pytest.mark.parametrize("bad", ["", *(kind for kind in _kinds() if kind != "empty")])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_nonfinite_sees_one_number_in_any_kind_of_tensor(
    bad: str, value: float, host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreach, "on_host", lambda t: host)
    tensors = _kinds()
    if bad:
        where = tensors[bad]._values() if bad == "sparse" else tensors[bad]
        (where[:1] if bad == "expanded" else where.reshape(-1)[-1:] if where.is_contiguous() else where[-1:, -1:]
         ).fill_(value)
    before = [t.to_dense().clone() if t.is_sparse else t.clone() for t in tensors.values()]
    assert float(foreach.nonfinite(list(tensors.values()))) == float(bool(bad))
    for old, new in zip(before, tensors.values(), strict=True):
        assert torch.equal(old.nan_to_num(), (new.to_dense() if new.is_sparse else new).nan_to_num())


@pytest.mark.parametrize("host", [True, False])
def test_a_norm_that_overflows_is_no_number_that_is_not_finite(host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreach, "on_host", lambda t: host)
    assert not torch.tensor([3e38, 3e38]).norm().isfinite()
    assert float(foreach.nonfinite([torch.tensor([3e38, 3e38]), torch.tensor([-0.0])])) == 0


# -- memory -----------------------------------------------------------------------------------------------------------


def test_copies_use_their_memory_again_only_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    copies, w = foreach.Copies(), [torch.randn(3), torch.randn(2, 2)]
    first = copies.take(0, w)
    again = copies.take(0, [t + 1 for t in w])
    assert all(a is b for a, b in zip(first, again, strict=True)) and torch.equal(again[0], w[0] + 1)
    other = copies.take(1, w)
    assert all(a is not b for a, b in zip(other, again, strict=True)) and torch.equal(again[0], w[0] + 1)
    monkeypatch.setattr(foreach, "on_host", lambda t: False)  # where a captured graph must own its memory
    assert all(a is not b for a, b in zip(copies.take(0, w), copies.take(0, w), strict=True))
    monkeypatch.undo()
    for changed in ([torch.randn(3)], [w[0].double(), w[1].double()], [w[0], torch.randn(1, 2)], [w[1], w[0]]):
        taken = copies.take(0, changed)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(taken, changed, strict=True))


def test_a_model_that_changes_its_dtype_between_steps_returns_bit_by_bit() -> None:
    model = nn.Linear(4, 3).to(torch.bfloat16)
    optimizer = family.CLASSES["SAM"](torch.optim.SGD(model.parameters(), lr=0.0), rho=0.3)
    closure = family.closure_of("SAM", lambda: model(torch.ones(2, 4, dtype=model.weight.dtype)).square().sum(1))
    optimizer.step(closure)
    model.double()
    with torch.no_grad():
        model.weight += 1e-12
    before = model.weight.detach().clone()
    optimizer.step(closure)
    assert torch.equal(model.weight, before)


N = 12_347


def _live() -> int:
    """Return how many storages of N numbers are alive."""
    alive = {t.untyped_storage().data_ptr() for t in gc.get_objects()
             if type(t) in (Tensor, nn.Parameter) and t.numel() == N}
    return len(alive)


def _peak(build: Callable[[list[nn.Parameter]], Any]) -> int:
    p, highest = nn.Parameter(torch.randn(N)), [0]

    def look() -> None:
        highest[0] = max(highest[0], _live())

    def closure() -> Tensor:
        loss = p.square().sum()
        loss.backward()
        look()
        return loss

    optimizer = build([p])
    with Calls(look):
        for _ in range(2):
            optimizer.zero_grad()
            optimizer.step(closure)
    return highest[0]


def test_sam_needs_one_copy_of_the_weights_and_the_others_one_gradient_more() -> None:
    gc.collect()
    gc.freeze()  # what other tests left is not looked at
    try:
        plain = _peak(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
        for name, extra in (("SAM", 1), ("WSAM", 2), ("GSAM", 2)):
            peak = _peak(lambda p, name=name: family.CLASSES[name](torch.optim.SGD(p, lr=0.1, momentum=0.9), rho=0.1))
            assert peak <= plain + extra, name
    finally:
        gc.unfreeze()
