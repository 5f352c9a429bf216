"""Ways to use the family that the grid does not take: stale gradients, clipping, micro-batches, sparse and half weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import family
import pytest
import torch
import torch.nn.functional as F
from small import batches as _data
from small import closure_of as _closure
from small import model_of as _model
from small import sgd as _sgd
from torch import Tensor, nn

from sharpnb.optim import ESAM, SAM, SGDW, WSAM, AdamW
from sharpnb.optim.schedules import CosineRestarts

N = 4  # batches an epoch
_weights = family.vector


@pytest.mark.parametrize("name", family.CLASSES)
def test_stale_gradients_do_not_count(name: str) -> None:
    """The closure may zero the gradients or not, and a backward pass of the same batch before step changes nothing."""
    if name.startswith("ESAM"):
        pytest.skip("its closure does not back-propagate")
    ends = []
    for zero, before in ((False, False), (True, False), (False, True)):
        model = _model()
        optimizer = family.CLASSES[name](_sgd(model), rho=0.2)
        for x, y in _data():
            if before:
                optimizer.zero_grad()
                F.mse_loss(model(x), y).backward()
            optimizer.step(_closure(model, x, y, zero))
        ends.append(_weights(model))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_one_closure_over_micro_batches_is_the_big_batch() -> None:
    whole, parts = _model(), _model()
    one, two = WSAM(_sgd(whole), rho=0.2), WSAM(_sgd(parts), rho=0.2)
    for x, y in _data():
        def accumulate(x: Tensor = x, y: Tensor = y) -> Tensor:
            total = torch.zeros((), dtype=torch.float64)
            for a, b in zip(x.chunk(4), y.chunk(4), strict=True):
                loss = F.mse_loss(parts(a), b) / 4
                loss.backward()
                total += loss.detach()
            return total

        first = one.step(_closure(whole, x, y))
        assert two.step(accumulate).item() == pytest.approx(first.item())
    assert torch.allclose(_weights(whole), _weights(parts), rtol=0, atol=1e-13)


def test_clipping_in_the_closure_acts_on_what_the_base_gets() -> None:
    model, (x, y) = _model(), _data(1)[0]
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=1.0), rho=0.2)
    start = _weights(model)

    def closure() -> Tensor:
        loss = F.mse_loss(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        return loss

    optimizer.step(closure)
    assert (_weights(model) - start).norm().item() == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("grad", [True, False])
def test_the_mode_of_autograd_is_left_as_it_was(grad: bool) -> None:
    model, (x, y) = _model(), _data(1)[0]
    optimizer = SAM(_sgd(model))

    def fails() -> Tensor:
        raise KeyboardInterrupt

    with torch.set_grad_enabled(grad):
        optimizer.step(_closure(model, x, y))
        assert torch.is_grad_enabled() == grad
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(fails)
        assert torch.is_grad_enabled() == grad


@pytest.mark.parametrize("base", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=False), lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    lambda p: torch.optim.AdamW(p, lr=0.1, fused=True), torch.optim.RMSprop, torch.optim.Rprop, torch.optim.Adagrad,
])  # fmt: skip
def test_the_base_keeps_its_own_ways(base: Callable[[Any], Any]) -> None:
    model = _model()
    optimizer, first = SAM(base(model.parameters()), rho=0.1), None
    for x, y in _data(1) * 20:
        loss = optimizer.step(_closure(model, x, y))
        first = loss if first is None else first
    assert loss < first


def test_no_gradient_at_all_is_no_step() -> None:
    model = _model()
    start = _weights(model)
    for name, build in family.CLASSES.items():
        if not name.startswith("ESAM"):
            build(_sgd(model)).step(lambda: torch.tensor(1.0))
    assert torch.equal(_weights(model), start)


def test_zero_gradient_means_no_perturbation() -> None:
    p = nn.Parameter(torch.tensor([3.0]))
    for build in family.CLASSES.values():
        if build is ESAM or getattr(build, "func", None) is ESAM:
            continue
        seen = []

        def closure(seen: list[float] = seen) -> Tensor:
            loss = (p * 0.0).sum()
            loss.backward()
            seen.append(p.item())
            return loss

        build(torch.optim.SGD([p], lr=0.1)).step(closure)
        assert seen == [3.0] * len(seen) and p.item() == 3.0


def test_esam_draws_from_a_generator_of_its_own() -> None:
    for swp in ("weight", "tensor"):
        params = family.parameters()
        optimizer = ESAM(torch.optim.SGD(params, lr=0.1), swp=swp)
        torch.manual_seed(3)
        before = torch.get_rng_state()
        optimizer.step(lambda params=params: family.losses(family.flat(params)[None])[0])
        assert torch.equal(before, torch.get_rng_state())


def test_recurrent_weights_stay_in_their_storage() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    optimizer, x = WSAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1), torch.randn(2, 5, 3)
    places = [p.data_ptr() for p in model.parameters()]

    def closure() -> Tensor:
        loss = model(x)[0].square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
    assert [p.data_ptr() for p in model.parameters()] == places


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [n for n in family.CLASSES if not n.startswith("SAM second")])
def test_half_precision_weights_follow_the_float32_path(name: str, dtype: torch.dtype) -> None:
    ends = []
    curvature = torch.arange(1.0, 9.0).reshape(2, 4)  # unequal: else LookSAM's g_v is rounding, stretched to g's length
    for d in (torch.float32, dtype):
        p = nn.Parameter(torch.linspace(-1, 1, 8).reshape(2, 4).to(d))
        optimizer = family.CLASSES[name](torch.optim.SGD([p], lr=0.1), rho=0.1)
        for _ in range(3):
            optimizer.step(family.closure_of(name, lambda p=p: (curvature * (p.float() - 0.5).square()).mean(1) / 4))
        ends.append(p.detach().float())
    assert torch.allclose(*ends, rtol=0, atol=0.03)
    assert (ends[1] - torch.linspace(-1, 1, 8).reshape(2, 4)).abs().max() > 0.05


def test_they_are_bases_of_the_family() -> None:
    params = family.parameters()
    optimizer = SAM(SGDW(params, 0.05, momentum=0.9, weight_decay=0.01), rho=0.1)
    schedule = CosineRestarts(optimizer, 2, batches_per_epoch=N, lambda_norm=0.1)
    losses: list[Tensor] = []
    for _ in range(20):
        losses.append(optimizer.step(family.closure_for(params)))
        schedule.step()
    assert losses[-1] < 0.5 * losses[0]
    assert optimizer.base_optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.1 / math.sqrt(16))


def test_complex_and_sparse_gradients_are_the_plain_ones() -> None:
    start = torch.randn(5, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    for make in (lambda p: SGDW(p, 0.1, momentum=0.9, weight_decay=0.1), lambda p: AdamW(p, weight_decay=0.1)):
        z, pair = nn.Parameter(start.clone()), nn.Parameter(torch.view_as_real(start).clone())
        for p, value in ((z, lambda z=z: z), (pair, lambda pair=pair: torch.view_as_complex(pair))):
            optimizer = make([p])
            for _ in range(5):
                optimizer.zero_grad()
                (value() - 1).abs().square().sum().backward()
                optimizer.step()
        assert torch.allclose(torch.view_as_real(z), pair, rtol=0, atol=1e-14)
        tables = []
        for sparse in (True, False):
            torch.manual_seed(0)
            table = nn.Embedding(6, 3, sparse=sparse)
            optimizer = make(table.parameters())
            for _ in range(3):
                optimizer.zero_grad()
                table(torch.tensor([1, 1, 4])).square().sum().backward()
                optimizer.step()
            tables.append(table.weight)
        assert torch.equal(*tables)
