"""Who competes in benchmarks/optimizers.py, and on what: SAM and its relatives, the popular class, the peers; nets."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sharpnb.optim import ASAM, GSAM, SAM, WSAM


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


class NoStep(torch.optim.SGD):
    """A base that does nothing, to see the wrapper alone."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


def candidates() -> dict[str, Callable[[nn.Module, type], Any]]:
    """Return builders (model, base class) -> optimizer with first_step and second_step."""
    found: dict[str, Callable[[nn.Module, type], Any]] = {
        "sharpnb SAM": lambda m, base: SAM(m.parameters(), base, rho=0.05, **SGD),
        "sharpnb SAM, no host read": lambda m, base: SAM(m.parameters(), base, rho=0.05, skip_nonfinite=False, **SGD),
        "sharpnb SAM, not in place": lambda m, base: SAM(m.parameters(), base, rho=0.05, in_place=False, **SGD),
        "sharpnb SAM, neither":
            lambda m, base: SAM(m.parameters(), base, rho=0.05, in_place=False, skip_nonfinite=False, **SGD),
        "sharpnb ASAM": lambda m, base: ASAM(m.parameters(), base, **SGD),
        "sharpnb WSAM": lambda m, base: WSAM(m.parameters(), base, **SGD),
        "sharpnb GSAM": lambda m, base: GSAM(m.parameters(), base, **SGD),
        "popular class (own writing)": lambda m, base: PopularSAM(m.parameters(), base, rho=0.05, **SGD),
    }
    try:
        import pytorch_optimizer as peer
    except ImportError as error:
        print(f"pytorch-optimizer: left out ({error})", file=sys.stderr)
    else:
        found |= {
            "pytorch-optimizer SAM": lambda m, base: peer.SAM(m.parameters(), base, rho=0.05, **SGD),
            "pytorch-optimizer SAM, adaptive":
                lambda m, base: peer.SAM(m.parameters(), base, rho=0.5, adaptive=True, **SGD),
            "pytorch-optimizer WSAM": lambda m, base: peer.WSAM(m, m.parameters(), base, **SGD),
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


class Tensors(nn.Module):
    """Bare parameters of given shapes."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.list = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])


def resnet18_shapes() -> list[tuple[int, ...]]:
    """Return the 62 shapes of a CIFAR ResNet-18, 11.2 million weights."""
    shapes: list[tuple[int, ...]] = [(64, 3, 3, 3), (64,), (64,)]
    width = 64
    for out in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(out, width if block == 0 else out, 3, 3), (out,), (out,), (out, out, 3, 3), (out,), (out,)]
        if out != width:
            shapes += [(out, width, 1, 1), (out,), (out,)]
        width = out
    return [*shapes, (10, 512), (10,)]


def resnet50_shapes() -> list[tuple[int, ...]]:
    """Return the 161 shapes of ResNet-50, 25.6 million weights."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inside = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for conv in ((width, inside, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [conv, (conv[0],), (conv[0],)]
            if block == 0:
                shapes += [(4 * width, inside, 1, 1), (4 * width,), (4 * width,)]
            inside = 4 * width
    return [*shapes, (1000, 2048), (1000,)]
