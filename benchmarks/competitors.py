"""Who competes in benchmarks/optimizers.py, and on what: SAM and its relatives, the popular class, the peers; nets."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sharpnb.optim import ASAM, GSAM, SAM, WSAM

SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


class PopularSAM(torch.optim.Optimizer):
    """The class that everybody copies, in our own words: one Python loop over tensors for each thing to do."""

    def __init__(self, params: Any, base_optimizer: Any, rho: float = 0.05, **kwargs: Any) -> None:
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Climb, tensor by tensor."""
        tensors = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        length = torch.norm(torch.stack([(1.0 * p.grad).norm(p=2) for p in tensors]), p=2)
        for group in self.param_groups:
            scale = group["rho"] / (length + 1e-12)
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old"] = p.data.clone()
                    p.add_(1.0 * p.grad * scale.to(p))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Return, tensor by tensor, and let the base step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()


def candidates() -> dict[str, Callable[[nn.Module], Any]]:
    """Return builders model -> optimizer with first_step and second_step."""
    base = torch.optim.SGD
    found: dict[str, Callable[[nn.Module], Any]] = {
        "sharpnb SAM": lambda m: SAM(m.parameters(), base, rho=0.05, **SGD),
        "sharpnb SAM, no host read": lambda m: SAM(m.parameters(), base, rho=0.05, skip_nonfinite=False, **SGD),
        "sharpnb ASAM": lambda m: ASAM(m.parameters(), base, **SGD),
        "sharpnb WSAM": lambda m: WSAM(m.parameters(), base, **SGD),
        "sharpnb GSAM": lambda m: GSAM(m.parameters(), base, **SGD),
        "popular class (own writing)": lambda m: PopularSAM(m.parameters(), base, rho=0.05, **SGD),
    }
    try:
        import pytorch_optimizer as peer
    except ImportError as error:
        print(f"pytorch-optimizer: left out ({error})", file=sys.stderr)
    else:
        found |= {
            "pytorch-optimizer SAM": lambda m: peer.SAM(m.parameters(), base, rho=0.05, **SGD),
            "pytorch-optimizer SAM, adaptive":
                lambda m: peer.SAM(m.parameters(), base, rho=0.5, adaptive=True, **SGD),
            "pytorch-optimizer WSAM": lambda m: peer.WSAM(m, m.parameters(), base, **SGD),
        }
    return found


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    """Return the digits MLP, 4,810 weights."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), (64, 64)


def cnn(size: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a small CNN with BatchNorm, 45 thousand weights."""
    layers: list[nn.Module] = []
    for a, b in ((3, 32), (32, 48), (48, 64)):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)), (64, 3, size, size)
