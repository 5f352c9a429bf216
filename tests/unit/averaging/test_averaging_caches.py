"""Averages swapped in are the weights that the next pass sees: under autocast, compiled, parametrized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from sharpnb.averaging import SWA, Lookahead, graft
from sharpnb.caches import forget_casts

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


def cast(**options: Any) -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16, **options)


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)).eval()


def scores(model: nn.Module) -> Tensor:
    return model(X).float().detach().clone()


def at(model: nn.Module, weights: list[Tensor]) -> Tensor:
    """The scores of a fresh network with these weights and the model's statistics, in an autocast of its own."""
    other = net()
    other.load_state_dict({name.replace("_orig_mod.", ""): t for name, t in model.state_dict().items()})
    with torch.no_grad():
        for p, w in zip(other.parameters(), weights, strict=True):
            p.copy_(w)
    with cast():
        return scores(other)


def weights_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


Moved = tuple[nn.Module, Any, Callable[[], list[Tensor]]]  # model, context that moves the weights, what they are inside


def by_swa(model: nn.Module) -> Moved:
    swa = SWA(model)
    swa.update(net(1)), swa.update(net(2))
    return model, swa.average_weights(), lambda: list(swa.average.values())


def by_slow_weights(model: nn.Module) -> Moved:
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.5), k=5)
    start = weights_of(model)
    scores_now = model(X).square().mean()
    scores_now.backward()
    optimizer.step(), optimizer.zero_grad()
    return model, optimizer.slow_weights(), lambda: start


def by_pull(model: nn.Module) -> Moved:
    """One fast step with a large rate and its pull, both between two evaluations."""
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=2.0), k=1)
    model(X).square().mean().backward()
    start, g = weights_of(model), [p.grad for p in model.parameters()]

    @contextmanager
    def pulled() -> Iterator[None]:
        optimizer.step()
        yield

    return model, pulled(), lambda: [w - 0.5 * 2.0 * d for w, d in zip(start, g, strict=True)]


def by_graft(model: nn.Module) -> Moved:
    other = net(3)
    mean = [(p + q).detach() / 2 for p, q in zip(model.parameters(), other.parameters(), strict=True)]

    @contextmanager
    def grafted() -> Iterator[None]:
        graft([model, other], a=0.0)
        yield

    return model, grafted(), lambda: mean


MOVERS = {f.__name__: f for f in (by_swa, by_slow_weights, by_pull, by_graft)}


@pytest.mark.parametrize("where", ["inside one context", "in a nested context", "in a nested context that is off",
                                   "outside"])
@pytest.mark.parametrize("mover", MOVERS)
def test_the_pass_in_one_autocast_context_is_made_at_the_moved_weights(mover: str, where: str) -> None:
    model, context, inside = MOVERS[mover](net())
    before = weights_of(model)
    inner = {"in a nested context": cast(), "in a nested context that is off": cast(enabled=False)}.get(where,
                                                                                                        nullcontext())
    with nullcontext() if where == "outside" else cast():
        with cast() if where == "outside" else nullcontext():
            first = scores(model)  # fills the cache
        with inner, context:
            with cast():
                assert torch.allclose(scores(model), at(model, inside()), atol=1e-6)
            assert (at(model, inside()) - first).abs().max() > 1e-2  # else nothing was to be seen
        with cast() if where == "outside" else nullcontext():
            if mover in ("by_swa", "by_slow_weights"):
                assert torch.equal(scores(model), first)
                assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
            else:
                assert torch.allclose(scores(model), at(model, inside()), atol=1e-6)


@pytest.mark.parametrize("around", [nullcontext, cast])
@pytest.mark.parametrize("mover", MOVERS)
def test_a_compiled_model_sees_the_moved_weights(mover: str, around: Any) -> None:
    torch.compiler.reset()
    compiled: Any = torch.compile(net(), backend="aot_eager")
    with torch.no_grad(), around():
        compiled(X)
    model, context, inside = MOVERS[mover](compiled)
    with torch.no_grad(), around():
        compiled(X)
        with context:
            other = net()
            other.load_state_dict(model._orig_mod.state_dict())
            for p, w in zip(other.parameters(), inside(), strict=True):
                p.copy_(w)
            assert torch.allclose(compiled(X).float(), other(X).float(), atol=1e-6)


@pytest.mark.parametrize("mover", ["by_swa", "by_slow_weights"])
def test_inside_parametrize_cached_it_is_refused_and_outside_it_is_right(mover: str) -> None:
    def normed(seed: int) -> nn.Module:
        model = net(seed)
        parametrizations.weight_norm(model[0])
        return model

    swa = SWA(normed(0))
    swa.update(normed(1))
    optimizer = Lookahead(torch.optim.SGD(swa.model.parameters(), lr=0.5), k=5)
    contexts = {"by_swa": swa.average_weights, "by_slow_weights": optimizer.slow_weights}
    before = scores(swa.model)
    with parametrize.cached():
        scores(swa.model)
        with pytest.raises(RuntimeError, match=r"parametrize\.cached"), contexts[mover]():
            pass
        assert torch.equal(scores(swa.model), before)
    with swa.average_weights(), parametrize.cached():
        assert torch.equal(scores(swa.model), scores(normed(1)))
    assert torch.equal(scores(swa.model), before)


def test_gradients_that_are_pending_are_those_of_their_pass() -> None:
    model, other = (nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 2)) for _ in range(2))
    other.load_state_dict(model.state_dict())
    with cast():
        before = model(X)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(2)
        assert torch.equal(model(X), before)  # what autocast does by itself
        forget_casts()
        assert not torch.equal(model(X), before)
        for out in (before, other(X)):
            out.float().square().sum().backward()
    assert all(p.grad.equal(q.grad) for p, q in zip(model.parameters(), other.parameters(), strict=True))
