"""Averages of what is not float32: half precision, complex, integers, float64 by default, tied, frozen, moved
weights."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpnb.averaging import SWA, Lookahead, entropy, graft

KINDS: dict[str, torch.dtype] = {
    "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64,
    "complex64": torch.complex64, "complex128": torch.complex128,
}
# Five rows of numbers whose sums a half-precision dtype cannot hold.
ROWS = [[Fraction(7 * i + 3 * j, 4) + 256 * j for j in range(4)] for i in range(1, 6)]
TOLERANCE = {"float16": 1e-6, "bfloat16": 1e-6, "float32": 1e-6, "complex64": 1e-6}


class Mixed(nn.Module):
    """A weight of the kind that is tested, a frozen table of integers, a frozen mask, and a float32 one beside them."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, dtype=dtype))
        self.table = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
        self.mask = nn.Parameter(torch.zeros(2, dtype=torch.bool), requires_grad=False)
        self.beside = nn.Parameter(torch.zeros(2))

    @torch.no_grad()
    def set(self, i: int) -> Mixed:
        self.weight.copy_(value(ROWS[i], self.weight.dtype))
        self.table.fill_(2 * i + 1)
        self.mask.fill_(i % 2 == 0)
        self.beside.fill_(float(i))
        return self


def value(row: list[Fraction], dtype: torch.dtype) -> Tensor:
    """The row; as a complex number with another imaginary part."""
    real = torch.tensor([float(x) for x in row], dtype=torch.float64)
    return (torch.complex(real, -2 * real.flip(0)) if dtype.is_complex else real).to(dtype)


def mean(dtype: torch.dtype, weights: list[Fraction]) -> Tensor:
    """The exact average of the rows as the dtype holds them, in rational numbers and rounded once."""
    held = [torch.view_as_real(v).flatten() if v.is_complex() else v for v in (value(row, dtype) for row in ROWS)]
    exact = [sum((w * Fraction(float(v[j])) for w, v in zip(weights, held, strict=True)),
                 Fraction(0)) for j in range(len(held[0]))]
    found = torch.tensor([float(x) for x in exact], dtype=torch.float64)
    return torch.view_as_complex(found.view(-1, 2)) if dtype.is_complex else found


@pytest.mark.parametrize("decay", [None, 0.75])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_exact_and_what_has_no_mean_is_the_latest(kind: str, decay: float | None) -> None:
    model = Mixed(KINDS[kind])
    swa, n = SWA(model, decay), len(ROWS)
    for i in range(n):
        swa.update(model.set(i))
    d = Fraction(3, 4)
    weights = [Fraction(1, n)] * n if decay is None else [d ** (n - 1),
                                                          *((1 - d) * d ** (n - 1 - i) for i in range(1, n))]
    found, truth = swa.average["weight"], mean(KINDS[kind], weights)
    torch.testing.assert_close(found.to(truth), truth, rtol=TOLERANCE.get(kind, 1e-14), atol=0)
    assert found.dtype == (torch.float32 if kind in ("float16", "bfloat16") else KINDS[kind])
    assert (swa.average["table"] == 9).all() and swa.average["mask"].all() and swa.average["mask"].dtype == torch.bool
    model.set(1)
    with swa.average_weights():
        torch.testing.assert_close(model.weight.detach(), truth.to(KINDS[kind]),
                                   rtol=1e-2 if kind == "bfloat16" else 1e-3, atol=0)
        assert (model.table == 9).all() and model.mask.all()
    assert (model.table == 3).all() and not model.mask.any() and torch.equal(model.weight, value(ROWS[1], KINDS[kind]))
    assert swa.vector().dtype == torch.promote_types(found.dtype, swa.average["beside"].dtype)
    again = SWA(model)
    again.load_state_dict(swa.state_dict())
    assert all(torch.equal(again.average[name], a) for name, a in swa.average.items())


@pytest.mark.parametrize("dtypes", [
    ("float32", "float16"), ("float16", "float32"), ("float32", "float64"), ("bfloat16", "float64"),
    ("float64", "bfloat16")])
def test_a_model_that_changes_its_dtype_midway(dtypes: tuple[str, str]) -> None:
    model = Mixed(KINDS[dtypes[0]])
    swa = SWA(model)
    swa.update(model.set(0)), swa.update(model.set(1))
    held = [value(ROWS[i], KINDS[dtypes[0]]).double() for i in (0, 1)] + [value(ROWS[2], KINDS[dtypes[1]]).double()]
    model.weight.data = model.weight.data.to(KINDS[dtypes[1]])
    swa.update(model.set(2))
    precise = "float64" in dtypes
    assert swa.average["weight"].dtype == (torch.float64 if precise else torch.float32)
    torch.testing.assert_close(swa.average["weight"].double(), sum(held) / 3, rtol=1e-6, atol=0)
    with swa.average_weights():
        assert torch.equal(model.weight.detach(), swa.average["weight"].to(model.weight.dtype))


@torch.inference_mode()
def collected_in_inference_mode(swa: SWA, model: Mixed) -> None:
    swa.update(model.set(0))
    with swa.average_weights():
        pass


def test_collections_within_and_without_inference_mode_mix() -> None:
    model = Mixed(torch.float32)
    swa = SWA(model)
    collected_in_inference_mode(swa, model)
    swa.update(model.set(1))
    assert (swa.average["beside"] == 0.5).all()


def test_tied_parameters_are_averaged_once_and_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    swa = SWA(model)
    for x in (1.0, 2.0, 6.0):
        nn.init.constant_(model[0].weight, x)
        swa.update()
    assert list(swa.average) == ["0.weight"] and (swa.average["0.weight"] == 3).all()
    with swa.average_weights():
        assert (model[1].weight == 3).all() and model[1].weight is model[0].weight
    assert (model[1].weight == 6).all()


class Filters(nn.Module):
    """Filters of a kind, integers that stay, and a state that is no tensor."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.layer = nn.Linear(3, 4).to(torch.float64)
        with torch.no_grad():
            for p in self.layer.parameters():
                p.copy_(torch.randn(p.shape, generator=draw, dtype=torch.float64))
        if not dtype.is_complex:
            self.layer.to(dtype)
        self.beside = nn.Parameter(torch.randn(3, generator=draw,
                                               dtype=torch.complex128 if dtype.is_complex else torch.float64).to(dtype))
        self.table = nn.Parameter(torch.tensor([seed]), requires_grad=False)

    def get_extra_state(self) -> Any:
        return "a word"

    def set_extra_state(self, state: Any) -> None:
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_grafts_of_every_kind(kind: str) -> None:
    models = [Filters(seed, KINDS[kind]) for seed in (1, 2)]
    before = [{name: p.detach().clone() for name, p in model.named_parameters()} for model in models]
    shares = graft(models, c=5.0)
    for j, model in enumerate(models):
        alpha = shares[j]["layer"]
        h = [entropy(b["layer.weight"]) for b in before]
        assert alpha == pytest.approx(0.4 / math.pi * math.atan(5 * (h[j] - h[1 - j])) + 0.5, abs=1e-12)
        for name, p in model.named_parameters():
            if name == "table":
                assert torch.equal(p, before[j][name])
                continue
            exact = torch.complex128 if p.is_complex() else torch.float64
            truth = alpha * before[j][name].to(exact) + (1 - alpha) * before[1 - j][name].to(exact)
            # rounded once
            assert torch.equal(p.detach(), truth.to(p.dtype)) or p.dtype not in (torch.float16, torch.bfloat16)
            torch.testing.assert_close(p.detach(), truth.to(p.dtype),
                                       rtol=1e-5 if p.dtype not in (torch.float64, torch.complex128) else 1e-13,
                                       atol=1e-6)
    assert models[0].beside.is_complex() == kind.startswith("complex")


# -- Lookahead --------------------------------------------------------------------------------------------------------


def descend(p: nn.Parameter, optimizer: Any, steps: int, target: Tensor) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (p - target).abs().square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_slow_weights_of_every_kind(kind: str) -> None:
    """Gradient descent on |p - 1|^2 halves the distance; with k = 2 and alpha = 0.5, a cycle leaves 5/8 of it."""
    p = nn.Parameter(torch.zeros(3, dtype=KINDS[kind]))
    optimizer = Lookahead(torch.optim.SGD([p], lr=0.25), k=2, alpha=0.5)
    descend(p, optimizer, 4, torch.ones((), dtype=KINDS[kind]))
    torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - (5 / 8) ** 2).detach())
    slow = optimizer.state[p]["slow"]
    assert slow.dtype == (torch.float32 if kind in ("float16", "bfloat16") else KINDS[kind])
    with optimizer.slow_weights():
        assert torch.equal(p.detach(), slow.to(p.dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("momentum", ["keep", "pullback"])
def test_a_small_slow_step_does_not_vanish_in_half_precision(dtype: torch.dtype, momentum: Any) -> None:
    """Steps of one unit in the last place: a slow weight in half precision would never leave 1."""
    p = nn.Parameter(torch.ones(2, dtype=dtype))
    unit = torch.finfo(dtype).eps
    optimizer = Lookahead(torch.optim.SGD([p], lr=1.0, momentum=1e-9), k=1, alpha=0.1, momentum=momentum)
    for _ in range(100):
        p.grad = torch.full_like(p, -unit)
        optimizer.step()
    assert 9 <= float((p[0] - 1) / unit) <= 11  # a tenth of a hundred steps
    again = nn.Parameter(p.detach().clone())
    other = Lookahead(torch.optim.SGD([again], lr=1.0, momentum=1e-9), k=1, alpha=0.1, momentum=momentum)
    other.load_state_dict(optimizer.state_dict())
    assert other.state[again]["slow"].dtype == torch.float32 and torch.equal(other.state[again]["slow"],
                                                                             optimizer.state[p]["slow"])


def test_a_frozen_parameter_stays_where_it_is_and_goes_on_when_it_is_thawed() -> None:
    a, b = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = Lookahead(torch.optim.SGD([a, b], lr=0.25), k=4, alpha=0.5)

    def step() -> None:
        optimizer.zero_grad()
        sum((p - 1).square().sum() for p in (a, b) if p.requires_grad).backward()
        optimizer.step()

    for _ in range(3):
        step()
    a.requires_grad_(False)
    a.grad = None
    kept = a.detach().clone()
    assert (kept == 0.875).all()
    for _ in range(6):  # two pulls
        step()
        assert torch.equal(a, kept)
        with optimizer.slow_weights():
            assert torch.equal(a, kept)
    a.requires_grad_(True)
    for _ in range(3):  # three more fast steps, then the pull towards the slow weight, 0 still
        step()
    fast = 1 - 0.125 * 0.5**3
    assert torch.equal(a.detach(), torch.full((2,), 0.5 * fast))
