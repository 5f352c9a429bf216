r"""What SGDW and AdamW share: the decay that the learning rate does not multiply, and the step over buckets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sharpnb.optim import foreach
from sharpnb.optim.foreach import Bucket


class DecoupledDecay(Optimizer):
    r"""Base of the optimizers with :math:`w_t = \dots - \eta_t\lambda w_{t-1}` (Loshchilov & Hutter, ICLR 2019).

    The schedule multiplier is :math:`\eta_t=lr_t/lr_0`, a group's ``lr`` over its ``initial_lr``: the learning rate of
    the constructor, unless a scheduler names another. So every PyTorch scheduler moves step and decay together. A group
    whose ``initial_lr`` is 0 has :math:`\eta_t=1`.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        # PyTorch adds the last one to the defaults of every optimizer that it unpickles or loads.
        super().__init__(params, {**defaults, "differentiable": False})

    def _update(self, bucket: Bucket) -> None:
        """Make the step for one bucket."""
        raise NotImplementedError

    def _kind(self, group: dict[str, Any], p: torch.Tensor) -> Any:
        """Return what sorts a group's parameters apart, if anything does."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; a closure, if given, is called first, and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for bucket in foreach.buckets(self.param_groups, foreach.gradients(self.param_groups), kind=self._kind):
            self._update(bucket)
        return loss

    def _decay(self, bucket: Bucket) -> None:
        if bucket.group["weight_decay"] != 0:
            foreach.mul_(bucket.w, 1 - eta(bucket.group) * bucket.group["weight_decay"])

    def _buffers(self, bucket: Bucket, name: str) -> list[torch.Tensor]:
        """Return one state tensor of each parameter, zeros to begin with."""
        for p in bucket.params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [foreach.real(self.state[p][name]) for p in bucket.params]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group and remember the learning rate that it starts with."""
        super().add_param_group(param_group)
        self._complete(self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a checkpoint of another optimizer may lack some of these
            for name, default in self.defaults.items():
                group.setdefault(name, default)
            self._complete(group)

    def _complete(self, group: dict[str, Any]) -> None:
        group.setdefault("initial_lr", group["lr"])
        for name in ("lr", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name} = {group[name]}: must not be negative.")


def eta(group: dict[str, Any]) -> Any:
    r"""Return the schedule multiplier :math:`\eta_t` of a group."""
    return group["lr"] / group["initial_lr"] if group["initial_lr"] else 1.0
