"""A small network, its batches, its base and its closure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def batches(steps: int = 5) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 4, generator=draw, dtype=torch.float64), torch.randn(16, 1, generator=draw).double())
            for _ in range(steps)]


def closure_of(model: nn.Module, x: Tensor, y: Tensor, zero: bool = False) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        if zero:
            model.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    return closure


def sgd(model: nn.Module, **kwargs: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **kwargs)
