"""Gradients that were there before step(closure): accumulated ones are refused, all others are of no account."""

from __future__ import annotations

import weakref
from typing import Any

import family
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sharpnb.optim import SAM, WSAM, LookSAM


def _problem() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    return net, [(torch.randn(8, 5), torch.randint(3, (8,))) for _ in range(4)]


def _back(net: nn.Module, batch: tuple[Tensor, Tensor], share: float = 1.0) -> Tensor:
    loss = F.cross_entropy(net(batch[0]), batch[1]) * share
    loss.backward()
    return loss


@pytest.mark.parametrize("before", [0, 2], ids=["at the first step", "later"])
@pytest.mark.parametrize("clear", ["zero_grad", "to zeros", "model"])
@pytest.mark.parametrize("name", ["SAM", "GSAM", "LookSAM", "ESAM"])
def test_earlier_micro_batches_are_not_lost_in_silence(name: str, clear: str, before: int) -> None:
    net, batches = _problem()
    optimizer = family.CLASSES[name](torch.optim.SGD(net.parameters(), lr=0.1), rho=0.1)

    def closure(batch: tuple[Tensor, Tensor]) -> Any:
        return family.closure_of(name, lambda: F.cross_entropy(net(batch[0]), batch[1], reduction="none") / 2)

    for batch in batches[:before]:
        optimizer.step(closure(batch))
        {"zero_grad": optimizer.zero_grad, "model": net.zero_grad,
         "to zeros": lambda: optimizer.zero_grad(set_to_none=False)}[clear]()
    _back(net, batches[2], 0.5)  # what a trainer does for all micro-batches but the last
    start, gradient = family.vector(net), net[0].weight.grad.clone()
    with pytest.raises(RuntimeError, match=r"micro-batches.*step\(\[closure_1.*recipes/lightning_sam.py"):
        optimizer.step(closure(batches[3]))
    assert torch.equal(family.vector(net), start) and torch.equal(net[0].weight.grad, gradient)  # nothing is lost
    optimizer.zero_grad()
    optimizer.step(closure(batches[3]))
    assert not torch.equal(family.vector(net), start)


@pytest.mark.parametrize("kind", [SAM, WSAM, LookSAM])
def test_they_are_seen_in_a_group_that_the_base_got_with_a_checkpoint(kind: Any) -> None:
    net, batches = _problem()
    optimizer = kind(torch.optim.SGD(net[0].parameters(), lr=0.1))
    optimizer.base_optimizer.load_state_dict(optimizer.base_optimizer.state_dict())
    optimizer.base_optimizer.add_param_group({"params": list(net[2].parameters())})
    F.cross_entropy(net(batches[0][0]), batches[0][1]).backward(inputs=list(net[2].parameters()))
    with pytest.raises(RuntimeError, match="micro-batches"):
        optimizer.step(lambda: _back(net, batches[1]))


def _popular(optimizer: Any, net: nn.Module, batch: Any) -> None:
    _back(net, batch)  # the popular class wants the first backward pass before the step
    optimizer.step(lambda: _back(net, batch))
    optimizer.zero_grad()


def _without_clearing(optimizer: Any, net: nn.Module, batch: Any) -> None:
    optimizer.step(lambda: _back(net, batch))


def _clearing_itself(optimizer: Any, net: nn.Module, batch: Any) -> None:
    _back(net, (batch[0] + 1, batch[1]))  # another model's loss, say, as in a GAN
    optimizer.step(lambda: (optimizer.zero_grad(), _back(net, batch))[1])


def _after_a_pass_that_failed(optimizer: Any, net: nn.Module, batch: Any) -> None:
    passes: list[int] = []

    def closure() -> Tensor:
        passes.append(1)
        loss = _back(net, batch)
        if len(passes) == 2:
            raise MemoryError
        return loss

    with pytest.raises(MemoryError):
        optimizer.step(closure)
    optimizer.step(lambda: _back(net, batch))


def _after_half_a_step(optimizer: Any, net: nn.Module, batch: Any) -> None:
    _back(net, (batch[0] + 1, batch[1]))
    optimizer.first_step()
    optimizer.restore()
    optimizer.step(lambda: _back(net, batch))


def _by_halves(optimizer: Any, net: nn.Module, batch: Any) -> None:
    if len(optimizer.state) == 0:  # then the way changes, without clearing
        optimizer.zero_grad()
        _back(net, batch), optimizer.first_step(zero_grad=True), _back(net, batch), optimizer.second_step()
    else:
        optimizer.step(lambda: _back(net, batch))


@pytest.mark.parametrize("way", [_popular, _without_clearing, _clearing_itself, _after_a_pass_that_failed,
                                 _after_half_a_step, _by_halves])
@pytest.mark.parametrize("kind", [SAM, WSAM])
def test_what_is_no_accumulation_goes_on_as_before(kind: Any, way: Any) -> None:
    ends = []
    for loop in (way, lambda o, net, batch: (o.zero_grad(), o.step(lambda: _back(net, batch)))):
        net, batches = _problem()
        optimizer = kind(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), rho=0.1)
        for batch in batches:
            loop(optimizer, net, batch)
        ends.append(family.vector(net))
    assert torch.equal(*ends)


def test_gradients_that_a_half_clears_are_freed() -> None:
    net, batches = _problem()
    optimizer = SAM(torch.optim.SGD(net.parameters(), lr=0.1))
    optimizer.step(lambda: _back(net, batches[0]))
    for half in (optimizer.first_step, optimizer.second_step):
        _back(net, batches[0])
        held = [weakref.ref(p.grad) for p in net.parameters()]
        half(zero_grad=True)
        assert [ref() for ref in held] == [None] * 4
