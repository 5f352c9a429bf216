"""The protocol: how a step is made, what it calls, what it leaves untouched."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import family
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from sharpnb.optim import ASAM, ESAM, GSAM, SAM, WSAM, FisherSAM, LookSAM

_weights = family.vector


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def _data(steps: int = 5) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 4, generator=draw, dtype=torch.float64), torch.randn(16, 1, generator=draw).double())
            for _ in range(steps)]


def _closure(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    return closure


def _sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


SNIPPET = """
base_optimizer = torch.optim.SGD  # define an optimizer for the "sharpness-aware" update
optimizer = SAM(model.parameters(), base_optimizer, lr=0.1, momentum=0.9)

for input, output in data:
    # first forward-backward pass
    loss = loss_function(output, model(input))  # use this loss for any training statistics
    loss.backward()
    optimizer.first_step(zero_grad=True)

    # second forward-backward pass
    loss_function(output, model(input)).backward()  # make sure to do a full forward pass
    optimizer.second_step(zero_grad=True)
"""


def test_the_circulating_snippet_runs_with_only_its_import_replaced() -> None:
    model, twin = _model(), _model()
    exec(SNIPPET, {"torch": torch, "SAM": SAM, "model": model, "data": _data(), "loss_function": F.mse_loss})
    velocity = torch.zeros_like(_weights(twin))
    for x, y in _data():  # Algorithm 1 over heavy-ball SGD by hand
        def gradient(x: Tensor = x, y: Tensor = y) -> Tensor:
            return torch.cat([g.reshape(-1) for g in
                              torch.autograd.grad(F.mse_loss(twin(x), y), list(twin.parameters()))])

        w, g = _weights(twin), gradient()
        nn.utils.vector_to_parameters(w + 0.05 * g / g.norm(), twin.parameters())
        velocity = 0.9 * velocity + gradient()
        nn.utils.vector_to_parameters(w - 0.1 * velocity, twin.parameters())
    assert torch.allclose(_weights(model), _weights(twin), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", family.CLASSES)
def test_both_constructor_forms_are_one(name: str) -> None:
    ends = []
    for build in (lambda m: family.CLASSES[name](_sgd(m), rho=0.2),
                  lambda m: family.CLASSES[name](m.parameters(), torch.optim.SGD, rho=0.2, lr=0.1, momentum=0.9),
                  lambda m: family.CLASSES[name](m.parameters(), base_optimizer=torch.optim.SGD, rho=0.2, lr=0.1,
                                                 momentum=0.9)):
        model = _model()
        optimizer = build(model)
        assert optimizer.param_groups is optimizer.base_optimizer.param_groups
        assert optimizer.state is optimizer.base_optimizer.state
        for x, y in _data():
            optimizer.step(family.closure_of(name, lambda m=model, x=x, y=y: (m(x) - y).square().mean(1)))
        ends.append(_weights(model))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(("build", "kind", "message"), [
    (lambda p: SAM(torch.optim.SGD(p, lr=0.1), lr=0.2), TypeError, "lr"),
    (lambda p: SAM(p), TypeError, "not a class of optimizers"),
    (lambda p: SAM(torch.optim.SGD(p, lr=0.1), 0.05), TypeError, "0.05"),
    (lambda p: SAM(torch.optim.SGD(p, lr=0.1), rho=-1.0), ValueError, "rho = -1.0"),
    (lambda p: SAM(torch.optim.SGD(p, lr=0.1), p=0.5), ValueError, "p = 0.5"),
    (lambda p: SAM(torch.optim.SGD(p, lr=0.1), adaptive=True), ValueError, "ASAM"),
    (lambda p: SAM(torch.optim.SGD(p, lr=0.1), inner_steps=0), ValueError, "inner_steps = 0"),
    (lambda p: SAM(torch.optim.SGD(p, lr=0.1), second_order=True, p=1), ValueError, "p = 1"),
    (lambda p: SAM(torch.optim.Adadelta(p)), ValueError, "'rho'"),
    (lambda p: GSAM(torch.optim.RMSprop(p)), ValueError, "'alpha'"),
    (lambda p: ASAM(torch.optim.SGD(p, lr=0.1), eta=-0.1), ValueError, "eta = -0.1"),
    (lambda p: FisherSAM(torch.optim.SGD(p, lr=0.1), eta=-0.1), ValueError, "eta = -0.1"),
    (lambda p: GSAM(torch.optim.SGD(p, lr=0.1), alpha=-0.1), ValueError, "alpha = -0.1"),
    (lambda p: GSAM(torch.optim.SGD(p, lr=0.1), rho_min=0.2), ValueError, "rho_min = 0.2"),
    (lambda p: GSAM(torch.optim.SGD(p, lr=0.1), rho_min=0.0, lr_min=0.5), ValueError, "lr_min = 0.5"),
    (lambda p: ESAM(torch.optim.SGD(p, lr=0.1), beta=0.0), ValueError, "beta = 0.0"),
    (lambda p: ESAM(torch.optim.SGD(p, lr=0.1), gamma=1.5), ValueError, "gamma = 1.5"),
    (lambda p: LookSAM(torch.optim.SGD(p, lr=0.1), k=0), ValueError, "k = 0"),
    (lambda p: WSAM(torch.optim.SGD(p, lr=0.1), gamma=1.0), ValueError, "gamma = 1.0"),
    (lambda p: WSAM(torch.optim.SGD(p, lr=0.1), perturbation="x"), ValueError, "perturbation = 'x'"),
])  # fmt: skip
def test_wrong_arguments_are_named(build: Callable[[Any], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        build(list(_model().parameters()))


@pytest.mark.parametrize(("name", "calls"), [
    ("SAM", [2, 2, 2, 2]), ("SAM inner", [3, 3, 3, 3]), ("SAM second", [4, 4, 4, 4]), ("ASAM", [2, 2, 2, 2]),
    ("ESAM", [2, 2, 2, 2]), ("GSAM", [2, 2, 2, 2]), ("LookSAM", [2, 1, 1, 2]), ("WSAM", [2, 2, 2, 2]),
])  # fmt: skip
def test_the_closure_is_called_as_often_as_the_method_needs_and_the_clean_loss_returns(
    name: str, calls: list[int]
) -> None:
    model = _model()
    optimizer = family.CLASSES[name](_sgd(model), rho=0.2)
    for (x, y), expected in zip(_data(4), calls, strict=True):
        clean = F.mse_loss(model(x), y).item()
        seen: list[float] = []

        def each(x: Tensor = x, y: Tensor = y, seen: list[float] = seen) -> Tensor:
            assert torch.is_grad_enabled()
            value = (model(x) - y).square().mean(1)
            seen.append(value.mean().item())
            return value

        with torch.no_grad():  # a step inside no_grad must still differentiate
            loss = optimizer.step(family.closure_of(name, each))
        assert loss.item() == clean == seen[0]
        assert len(seen) == expected
        assert expected == 1 or seen[1] > seen[0]  # uphill


@pytest.mark.parametrize("name", family.TWO_HALVES)
@pytest.mark.parametrize("zero_grad", ["flag", "None", "zeros"])
def test_two_halves_are_one_step(name: str, zero_grad: str) -> None:
    whole, halves = _model(), _model()
    one, two = (family.CLASSES[name](_sgd(m), rho=0.2) for m in (whole, halves))
    for x, y in _data():
        one.step(_closure(whole, x, y))
        for half in (two.first_step, two.second_step):
            F.mse_loss(halves(x), y).backward()
            half(zero_grad=zero_grad == "flag")
            if zero_grad != "flag":
                two.zero_grad(set_to_none=zero_grad == "None")
    assert torch.allclose(_weights(whole), _weights(halves), rtol=0, atol=1e-14)


def test_halves_out_of_order_are_errors() -> None:
    model, (x, y) = _model(), _data(1)[0]
    optimizer, start = SAM(_sgd(model)), _weights(model)
    with pytest.raises(RuntimeError, match="no first_step"):
        optimizer.second_step()
    with pytest.raises(ValueError, match="empty"):
        optimizer.step([])
    F.mse_loss(model(x), y).backward()
    optimizer.first_step(zero_grad=True)
    for call in (optimizer.first_step, lambda: optimizer.step(_closure(model, x, y)), optimizer.state_dict,
                 lambda: optimizer.load_state_dict({}), lambda: copy.deepcopy(optimizer)):
        with pytest.raises(RuntimeError, match="in the middle of a step"):
            call()
    assert not torch.equal(_weights(model), start)
    optimizer.restore()
    assert torch.equal(_weights(model), start)
    optimizer.restore()  # harmless
    optimizer.step(_closure(model, x, y))
    assert not torch.equal(_weights(model), start)
    for name in ("ESAM", "SAM inner", "SAM second"):
        with pytest.raises(RuntimeError, match=r"needs step\(closure\)"):
            family.CLASSES[name](_sgd(model)).first_step()


@pytest.mark.parametrize("name", family.CLASSES)
def test_an_exception_in_the_second_pass_leaves_everything_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)).double()
    optimizer, (x, y) = family.CLASSES[name](_sgd(model), rho=0.2), _data(1)[0]
    calls = []

    def each() -> Tensor:
        calls.append(1)
        value = (model(x) - y).square().mean(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return value

    start = _weights(model)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        optimizer.step(family.closure_of(name, each))
    assert torch.is_grad_enabled() and torch.equal(_weights(model), start)
    assert model[1].num_batches_tracked == 1
    assert not torch.nn.modules.module._global_forward_pre_hooks
    optimizer.step(family.closure_of(name, each))
    assert not torch.equal(_weights(model), start)


# -- shards and accumulation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["SAM", "SAM p=inf", "ASAM", "GSAM", "LookSAM", "WSAM", "WSAM coupled"])
def test_a_list_of_closures_is_m_sharpness(method: str) -> None:
    """Each shard perturbs on its own gradient; the outcomes are averaged: by the formula, over NumPy-checked parts."""
    model = _model()
    optimizer = family.CLASSES[method](torch.optim.SGD(model.parameters(), lr=0.1), rho=0.2)
    x, y = _data(1)[0]
    shards = list(zip(x.chunk(4), y.chunk(4), strict=True))
    start = _weights(model)
    outcomes, losses = [], []
    for a, b in shards:  # without momentum a step is -lr times what is averaged
        nn.utils.vector_to_parameters(start.clone(), model.parameters())
        alone = family.CLASSES[method](torch.optim.SGD(model.parameters(), lr=0.1), rho=0.2)
        losses.append(alone.step(_closure(model, a, b)))
        alone.zero_grad()
        outcomes.append(_weights(model))
    nn.utils.vector_to_parameters(start.clone(), model.parameters())
    loss = optimizer.step([_closure(model, a, b) for a, b in shards])
    optimizer.zero_grad()
    assert torch.allclose(_weights(model), torch.stack(outcomes).mean(0), rtol=0, atol=1e-14)
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item())
    nn.utils.vector_to_parameters(start.clone(), model.parameters())
    family.CLASSES[method](torch.optim.SGD(model.parameters(), lr=0.1), rho=0.2).step(_closure(model, x, y))
    assert not torch.allclose(_weights(model), torch.stack(outcomes).mean(0), rtol=0, atol=1e-5)  # m matters


# -- groups, schedulers, hooks ----------------------------------------------------------------------------------------


def test_each_group_has_its_radius_under_one_norm() -> None:
    params = family.parameters()
    optimizer = SAM(family.groups(params, {"rho": 0.3}, {}), torch.optim.SGD, rho=0.1, lr=0.1)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rho": 0.7, "lr": 0.5})
    assert [g["rho"] for g in optimizer.base_optimizer.param_groups] == [0.3, 0.1, 0.7]
    with pytest.raises(ValueError, match="rho = -3"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rho": -3})
    start, seen = family.flat(params).detach().clone(), []

    def closure() -> Tensor:
        seen.append(family.flat(params).detach().clone())
        return family.closure_for(params)()

    optimizer.step(closure)
    eps, g = seen[1] - start, torch.as_tensor(family.numpy_gradient(family.START))
    rho = torch.as_tensor(np.where(family.SECOND, 0.1, 0.3))
    assert torch.allclose(eps, rho * g / g.norm(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("target", ["wrapper", "base"])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("scheduler", [
    lambda o: lr_scheduler.CosineAnnealingLR(o, 10), lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3), lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
])  # fmt: skip
def test_schedulers_act_on_both_without_warnings(scheduler: Callable[[Any], Any], halves: bool, target: str) -> None:
    params = family.parameters()
    optimizer, closure = WSAM(torch.optim.SGD(params, lr=0.1, momentum=0.9), rho=0.2), family.closure_for(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule, rates = scheduler(optimizer if target == "wrapper" else optimizer.base_optimizer), set()
        for _ in range(5):
            if halves:
                for half in (optimizer.first_step, optimizer.second_step):
                    closure(), half(zero_grad=True)
            else:
                optimizer.step(closure)
            schedule.step(*([1.0] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else []))
            rates.add(optimizer.base_optimizer.param_groups[0]["lr"])
    assert len(rates) > 2


def test_all_hooks_and_profilers_see_each_step_once_in_either_form() -> None:
    model, fired = _model(), []
    optimizer, (x, y) = SAM(_sgd(model)), _data(1)[0]
    optimizer.register_step_pre_hook(lambda *_: fired.append("own pre"))
    optimizer.register_step_post_hook(lambda *_: fired.append("own post"))
    optimizer.base_optimizer.register_step_post_hook(lambda *_: fired.append("base post"))
    handles = [register_optimizer_step_pre_hook(lambda o, *_: fired.append(("pre", type(o)))),
               register_optimizer_step_post_hook(lambda o, *_: fired.append(("post", type(o))))]
    expected = [("pre", SAM), "own pre", ("pre", torch.optim.SGD), "base post", ("post", torch.optim.SGD), "own post",
                ("post", SAM)]
    optimizer.step(_closure(model, x, y))
    assert sorted(map(str, fired)) == sorted(map(str, expected))
    fired.clear()
    for half in (optimizer.first_step, optimizer.second_step):
        _closure(model, x, y)(), half(zero_grad=True)
    for handle in handles:
        handle.remove()
    assert sorted(map(str, fired)) == sorted(map(str, expected)) and fired.index("base post") < fired.index("own post")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step(_closure(model, x, y))
    names = [event.key for event in profile.key_averages() if "Optimizer.step#" in event.key]
    assert sorted(names) == ["Optimizer.step#SAM.step", "Optimizer.step#SGD.step"]


# -- parameters without gradients -------------------------------------------------------------------------------------


class _Paths(nn.Module):
    """Two branches; which of them runs is decided from outside, as with stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.always, self.left, self.right, self.never, self.frozen = (nn.Linear(3, 3).double() for _ in range(5))
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor, branch: str) -> Tensor:
        return self.frozen(getattr(self, branch)(self.always(x)))


@pytest.mark.parametrize("name", family.CLASSES)
@pytest.mark.parametrize("branches", [("left", "left"), ("left", "right"), ("right", "left")])
def test_parameters_of_one_pass_come_back_and_unused_ones_never_move(name: str, branches: tuple[str, str]) -> None:
    model = _Paths()
    optimizer = family.CLASSES[name](torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9), rho=0.5)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    x, order = torch.randn(6, 3, dtype=torch.float64), []

    def each() -> Tensor:
        order.append(1)
        return model(x, branches[0] if len(order) % 2 else branches[1]).square().mean(1)

    for _ in range(3):
        optimizer.step(family.closure_of(name, each))
    assert all(torch.equal(value, start[key]) for key, value in model.state_dict().items())
    assert model.never.weight not in optimizer.state


def _hands_double(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for p in optimizer.param_groups[0]["params"]:
        p.grad.mul_(2)


class _Overriding(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        _hands_double(self)
        return super().step(closure)


def _wrapped_on_the_instance(base: Any) -> None:
    plain = base.step
    base.step = lambda *args: (_hands_double(base), plain(*args))[1]


@pytest.mark.parametrize(("base", "prepare"), [
    (_Overriding, lambda base: None), (torch.optim.SGD, _wrapped_on_the_instance),
    (torch.optim.SGD, lambda base: base.register_step_pre_hook(_hands_double))])
def test_whatever_a_user_put_around_the_step_runs(base: Any, prepare: Any) -> None:
    w = nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))  # the gradient at w is w, of length 5
    optimizer = SAM([w], base, rho=0.5, lr=0.1)
    prepare(optimizer.base_optimizer)
    optimizer.step(lambda: (loss := (w**2).sum() / 2).backward() or loss)
    assert w.tolist() == pytest.approx([3.0 - 0.2 * 3.3, -4.0 + 0.2 * 4.4], abs=1e-15)
