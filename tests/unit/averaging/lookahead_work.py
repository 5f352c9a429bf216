"""A small regression, and Lookahead written a second time as the paper's loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

X = torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def flat(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def advance(model: nn.Module, optimizer: Any, steps: int) -> list[float]:
    """Step with a closure; return the losses."""
    x, y = X.to(flat(model).dtype), Y.to(flat(model).dtype)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    return [float(optimizer.step(closure).detach()) for _ in range(steps)]


def by_hand(
    build: Callable[[Any], Optimizer], k: int, alpha: float, steps: int, outer: tuple[int, float] | None = None,
    momentum: str = "keep",
) -> torch.Tensor:
    """Weights after some steps; ``outer`` is a second Lookahead (k, alpha) around the first, counting the same
    steps."""
    model = net()
    optimizer = build(model.parameters())
    levels = [(k, alpha, flat(model)), *([(*outer, flat(model))] if outer else [])]
    slow_m = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(1, steps + 1):
        advance(model, optimizer, 1)
        for cycle, share, slow in levels:
            if step % cycle == 0:
                slow += share * (flat(model) - slow)
                nn.utils.vector_to_parameters(slow.clone(), model.parameters())
        if momentum != "keep" and step % k == 0:
            for i, p in enumerate(model.parameters()):
                m = optimizer.state[p]["momentum_buffer" if "momentum_buffer" in optimizer.state[p] else "exp_avg"]
                slow_m[i] = slow_m[i] + alpha * (m - slow_m[i])
                m.copy_(slow_m[i] if momentum == "pullback" else torch.zeros_like(m))
    return flat(model)
