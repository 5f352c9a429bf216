"""What the layers of a model notice of two passes: norm statistics, dropout, recurrent weights, compiled graphs."""

from __future__ import annotations

import copy
from typing import Any

import family
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sharpnb.optim import ASAM, GSAM, SAM


class OwnNorm(nn.Module):
    """A user's norm layer: it follows PyTorch's names and is no subclass of anything."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean.lerp_(x.detach().mean(0), 0.3)
            self.seen += 1
        return x - x.mean(0)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), OwnNorm(8), nn.Unflatten(1, (2, 4)),
        nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 3))


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers()}


def _batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(12, 6, generator=draw), torch.randint(3, (12,), generator=draw)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", family.CLASSES)
def test_norm_statistics_move_once_a_step(name: str, named: bool) -> None:
    model, plain, (x, y) = _model(), _model(), _batch()
    plain(x)
    places = [b.data_ptr() for b in model.buffers()]
    optimizer = family.CLASSES[name](torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5,
                                     model=model if named else None)
    optimizer.step(family.closure_of(name, lambda: F.cross_entropy(model(x), y, reduction="none")))
    assert all(torch.equal(b, _buffers(plain)[key]) for key, b in _buffers(model).items())
    assert [b.data_ptr() for b in model.buffers()] == places
    if name in family.TWO_HALVES and not name.startswith("Look"):
        for half in (optimizer.first_step, optimizer.second_step):
            F.cross_entropy(model(x), y).backward()
            half(zero_grad=True)
        assert model[1].num_batches_tracked == 2 and model[2].seen == 2


def test_negative_control_without_freezing_they_move_twice() -> None:
    model, (x, y) = _model(), _batch()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer._statistics.start = lambda: None  # type: ignore[method-assign]
    optimizer.step(family.closure_of("SAM", lambda: F.cross_entropy(model(x), y, reduction="none")))
    assert model[1].num_batches_tracked == 2 and model[2].seen == 2


@pytest.mark.parametrize("name", ["SAM", "SAM inner", "ESAM", "GSAM"])
def test_same_dropout_shares_the_masks_and_then_goes_on(name: str) -> None:
    model, (x, y), seen = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)), _batch(), []

    def each() -> Tensor:
        value = F.cross_entropy(model(x), y, reduction="none")
        seen.append(value.mean().item())
        return value

    def build(same: bool) -> Any:
        model.zero_grad()
        options = {"gamma": 1.0} if name == "ESAM" else {}
        return family.CLASSES[name](torch.optim.SGD(model.parameters(), lr=0.1), rho=0.0, same_dropout=same, **options)

    torch.manual_seed(5)
    build(True).step(family.closure_of(name, each))
    after = torch.get_rng_state()
    assert len(set(seen)) == 1  # at rho = 0 all passes see one loss
    torch.manual_seed(5)
    model(x)
    assert torch.equal(after, torch.get_rng_state())  # one pass' worth of numbers was drawn
    seen.clear()
    build(False).step(family.closure_of(name, each))
    assert len(set(seen)) > 1
    if name == "SAM":
        with pytest.raises(RuntimeError, match="same_dropout"):
            build(True).first_step()


@pytest.mark.parametrize("what", ["model", "closure"])
def test_compiled_is_eager(what: str) -> None:
    x, y = _batch()
    ends = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        fast = torch.compile(model, backend="eager") if compiled and what == "model" else model
        optimizer = GSAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.2, model=model)

        def loss_of(x: Tensor, y: Tensor, fast: Any = fast) -> Tensor:
            return F.cross_entropy(fast(x), y)

        forward = torch.compile(loss_of, backend="eager") if compiled and what == "closure" else loss_of

        def closure(forward: Any = forward) -> Tensor:
            loss = forward(x, y)
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
        assert model[1].num_batches_tracked == 5
        ends.append([t.clone() for t in model.state_dict().values()])
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(*ends, strict=True))


def test_layers_hidden_in_a_compiled_function_are_noticed_at_the_first_step() -> None:
    torch._dynamo.reset()
    model, (x, y) = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), _batch()
    loss_of = torch.compile(lambda: F.cross_entropy(model(x), y), backend="eager")

    def closure() -> Tensor:
        loss = loss_of()
        loss.backward()
        return loss

    with pytest.warns(RuntimeWarning, match=r"of BatchNorm1d move in both passes.*model=model"):
        SAM(torch.optim.SGD(model.parameters(), lr=0.1)).step(closure)


# -- complex, sparse, half precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in family.OPTIMIZERS if n not in ("ASAM", "WSAM asam", "ESAM")])
def test_complex_weights_are_pairs_of_real_ones(name: str) -> None:
    torch.manual_seed(0)
    start, a = torch.randn(5, dtype=torch.complex128), torch.randn(9, 5, dtype=torch.complex128)
    z, pair = nn.Parameter(start.clone()), nn.Parameter(torch.view_as_real(start).clone())
    for p, value in ((z, lambda: z), (pair, lambda: torch.view_as_complex(pair))):
        family.advance(name, family.OPTIMIZERS[name]([p]), lambda value=value: (a @ value() - 1).abs().square(), 10)
    assert torch.allclose(torch.view_as_real(z), pair, rtol=0, atol=1e-12)
    assert (z - start).abs().max() > 1e-2


def test_asam_scales_a_complex_weight_by_its_modulus() -> None:
    z, seen = nn.Parameter(torch.tensor([[1j]])), []

    def closure() -> Tensor:  # its gradient is 1 everywhere, a quarter turn from the weight
        seen.append(z.detach().clone())
        loss = z.real.sum()
        loss.backward()
        return loss

    ASAM(torch.optim.SGD([z], lr=0.0), rho=1.0, eta=0.0).step(closure)
    assert torch.allclose(seen[1] - seen[0], torch.ones(1, 1, dtype=torch.complex64))


@pytest.mark.parametrize("name", [n for n in family.OPTIMIZERS if "over" not in n])
def test_sparse_gradients_are_the_dense_ones(name: str) -> None:
    ids = torch.tensor([1, 3, 3, 4])
    ends = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(6, 3, sparse=sparse), nn.Linear(3, 2)).double()
        losses = lambda model=model: F.cross_entropy(model(ids), ids % 2, reduction="none")
        without = {} if name == "AdamW" else {"momentum": 0.0}
        family.advance(name, family.OPTIMIZERS[name](model.parameters(), **without), losses, 5)
        ends.append(family.vector(model))
    assert torch.allclose(*ends, rtol=0, atol=1e-13)


def test_sparse_gradients_reach_a_sparse_base() -> None:
    table = nn.Embedding(6, 3, sparse=True)
    optimizer, start = SAM(torch.optim.SparseAdam(table.parameters(), lr=0.1)), table.weight.detach().clone()
    optimizer.step(family.closure_of("SAM", lambda: table(torch.tensor([2])).square().sum(1)))
    assert ((table.weight - start).abs().sum(1) > 0).tolist() == [False, False, True, False, False, False]


def test_two_dtypes_under_one_norm() -> None:
    a, b = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    seen = []

    def closure() -> Tensor:
        seen.append((a.item(), b.item()))
        loss = 3 * a.double().sum() + 4 * b.sum()
        loss.backward()
        return loss

    SAM(torch.optim.SGD([a, b], lr=0.0), rho=0.5).step(closure)
    assert seen[1] == pytest.approx((1.3, 2.4))


# -- mixed precision --------------------------------------------------------------------------------------------------


def _scaled(name: str, enabled: bool = True, **options: Any) -> tuple[nn.Module, Any, torch.amp.GradScaler]:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return (model, family.CLASSES[name](base, rho=0.3, **options),
            torch.amp.GradScaler("cpu", enabled=enabled, init_scale=1024.0))


def _scaled_closure(model: nn.Module, scaler: torch.amp.GradScaler, calls: list[int], bad: int = -1) -> Any:
    x, y = _batch()

    def closure() -> Tensor:
        calls.append(1)
        loss = F.cross_entropy(model(x), y) * (float("inf") if len(calls) == bad else 1.0)
        scaler.scale(loss).backward()
        return loss

    return closure


@pytest.mark.parametrize("name", family.CLASSES)
def test_grad_scaler_changes_nothing(name: str) -> None:
    ends, (x, y) = [], _batch()
    for enabled in (False, True):
        model, optimizer, scaler = _scaled(name, enabled)
        esams = lambda model=model: F.cross_entropy(model(x), y, reduction="none")  # it scales the loss itself
        for _ in range(4):
            optimizer.step(esams if name == "ESAM" else _scaled_closure(model, scaler, []), scaler=scaler)
            scaler.update()
        ends.append(family.vector(model))
    assert torch.allclose(*ends, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["SAM", "FisherSAM", "WSAM", "GSAM"])
@pytest.mark.parametrize("bad", [1, 2])
@pytest.mark.parametrize("skip", [True, False])
def test_an_overflow_in_either_pass_halves_the_scale_and_changes_nothing_else(name: str, bad: int, skip: bool) -> None:
    model, optimizer, scaler = _scaled(name, skip_nonfinite=skip)
    optimizer.step(_scaled_closure(model, scaler, []), scaler=scaler)
    scaler.update()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    optimizer.step(_scaled_closure(model, scaler, [], bad), scaler=scaler)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert all(torch.equal(v, before[0][k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v["momentum_buffer"], before[1][k]["momentum_buffer"])
               for k, v in optimizer.state_dict()["state"].items())


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", ["SAM", "WSAM", "GSAM"])
def test_two_halves_under_a_grad_scaler(name: str, unscale: bool) -> None:
    """scaler.step(optimizer) makes the second half, after scaler.unscale_(optimizer) or without, overflow or not."""
    ends = []
    for scaled in (False, True):
        model, optimizer, scaler = _scaled(name, scaled)
        for step in range(4):
            calls: list[int] = []
            closure = _scaled_closure(model, scaler, calls, bad=2 if step == 2 else -1)
            closure()
            optimizer.first_step(zero_grad=True, scaler=scaler)
            closure()
            if unscale:
                scaler.unscale_(optimizer)
            start = family.vector(model)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert not torch.equal(start, family.vector(model))  # never left perturbed
        assert scaler.get_scale() == (512.0 if scaled else 1.0)
        ends.append(family.vector(model))
    assert torch.allclose(*ends, rtol=0, atol=2e-6)
