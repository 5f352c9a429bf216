"""Lookahead over every optimizer of PyTorch: what the suites of torch.optim, timm and pytorch_optimizer ask of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from sharpnb.averaging import Lookahead

EVERY: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "Adadelta": (optim.Adadelta, {"lr": 1.0}), "Adafactor": (optim.Adafactor, {"lr": 0.05}),
    "Adagrad": (optim.Adagrad, {"lr": 0.1}),
    "Adam": (optim.Adam, {"lr": 0.01}), "Adam amsgrad": (optim.Adam, {"lr": 0.01, "amsgrad": True}),
    "AdamW": (optim.AdamW, {"lr": 0.01}),
    "Adamax": (optim.Adamax, {"lr": 0.01}), "ASGD": (optim.ASGD, {"lr": 0.01}), "NAdam": (optim.NAdam, {"lr": 0.01}),
    "RAdam": (optim.RAdam, {"lr": 0.01}),
    "RMSprop": (optim.RMSprop, {"lr": 0.01}),
    "RMSprop centered": (optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.5}),
    "Rprop": (optim.Rprop, {"lr": 0.01}), "SGD": (optim.SGD, {"lr": 0.01}),
    "SGD nesterov": (optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "SGD maximize": (optim.SGD, {"lr": -0.0, "maximize": True}), "Muon": (optim.Muon, {"lr": 0.01}),
    "SparseAdam": (optim.SparseAdam, {"lr": 0.05}),
}


def test_every_optimizer_of_pytorch_is_in_the_table() -> None:
    classes = {name for name, cls in vars(optim).items() if isinstance(cls, type) and issubclass(cls, Optimizer)}
    there = classes - {"Optimizer", "LBFGS"}
    assert {cls.__name__ for cls, _ in EVERY.values()} == there
    with pytest.raises(TypeError, match=r"over LBFGS.*first-order"):
        Lookahead(optim.LBFGS([nn.Parameter(torch.ones(1))]))


def problem(sparse: bool) -> tuple[list[nn.Parameter], Callable[[], Tensor]]:
    """Least squares for a matrix and a vector, or rows of an embedding with sparse gradients."""
    torch.manual_seed(0)
    a, x, y = nn.Parameter(torch.randn(4, 6)), torch.randn(6), torch.randn(4)
    if sparse:
        table = nn.Embedding(8, 3, sparse=True)
        return [table.weight], lambda: (table(torch.tensor([1, 4, 4])) - 1).square().sum()
    b = nn.Parameter(torch.randn(4))
    return [a, b], lambda: (a @ x + b - y).square().sum()


def build(name: str) -> tuple[list[nn.Parameter], Callable[[], Tensor], Lookahead]:
    cls, options = EVERY[name]
    params, loss = problem(sparse=cls is optim.SparseAdam)
    kept = params[:1] if cls is optim.Muon else params  # matrices only
    return params, loss, Lookahead(cls(kept, **options), k=3, alpha=0.6, prefix="lookahead_")


def go(optimizer: Optimizer, loss: Callable[[], Tensor], steps: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)


@pytest.mark.parametrize("name", EVERY)
def test_lookahead_over_every_base_is_the_loop_written_by_hand(name: str) -> None:
    params, loss, optimizer = build(name)
    start = float(loss())
    go(optimizer, loss, 30)
    cls, options = EVERY[name]
    others, other_loss = problem(sparse=cls is optim.SparseAdam)
    bare = cls(others[:1] if cls is optim.Muon else others, **options)
    slow = [p.detach().clone() for p in others]
    for step in range(1, 31):
        go(bare, other_loss, 1)
        if step % 3 == 0:
            with torch.no_grad():
                for s, p in zip(slow, others, strict=True):
                    s.lerp_(p, 0.6)
                    p.copy_(s)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6)
    assert float(loss()) < start or name == "SGD maximize"
    assert "Lookahead" in repr(optimizer) and "lookahead_alpha: 0.6" in repr(optimizer)
