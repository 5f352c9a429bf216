r"""What SGDW and AdamW share: the decay that the learning rate does not multiply, and the step over buckets."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sharpnb.caches import forget_casts
from sharpnb.optim import conversion, foreach
from sharpnb.optim.foreach import Bucket


class DecoupledDecay(Optimizer):
    r"""Base of the optimizers with :math:`w_t = \dots - \eta_t\lambda w_{t-1}` (Loshchilov & Hutter, ICLR 2019).

    The schedule multiplier is :math:`\eta_t=lr_t/lr_0`: a group's ``lr`` over its ``eta_reference``, which is the
    learning rate that the constructor got unless ``eta_reference=`` names another. So every PyTorch scheduler moves
    step and decay together. Name it where a schedule rises above the constructor's rate (``OneCycleLR``'s ``max_lr``);
    :math:`\eta_t>1` warns once. A group whose reference is 0 has :math:`\eta_t=1`. A learning rate that is a tensor is
    copied, so that no scheduler changes somebody else's.

    A group that was *given* ``weight_decay=0`` has ``decays=False`` and gets no decay from a scheduler either.
    """

    _warned = False  # of a rate above the reference

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        # PyTorch adds the last one to the defaults of every optimizer that it unpickles or loads.
        super().__init__(params, {**defaults, "decays": True, "differentiable": False})

    _kind: Callable[[dict[str, Any], Tensor], Any] | None = None  # what sorts a group's parameters apart

    def _update(self, bucket: Bucket) -> None:
        """Make the step for one bucket."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; a closure, if given, is called first, and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for bucket in foreach.buckets(self.param_groups, kind=self._kind):
            self._update(bucket)
        forget_casts()
        return loss

    def _decay(self, bucket: Bucket) -> None:
        group, multiplier = bucket.group, eta(bucket.group)
        if group["weight_decay"] == 0:
            return
        if not (isinstance(multiplier, Tensor) or multiplier <= 1 + 1e-6 or self._warned):
            self._warned = True
            warnings.warn(
                f"{type(self).__name__}: lr = {float(group['lr']):.4g} is {multiplier:.3g} times eta_reference = "
                f"{group['eta_reference']:.4g}, and so the decay is {multiplier:.3g} times weight_decay. Give the "
                "schedule's largest rate as eta_reference.", RuntimeWarning, stacklevel=2)
        keep = 1 - multiplier * group["weight_decay"]
        foreach.mul_(bucket.w, foreach.on(keep, bucket.w[0]) if isinstance(keep, Tensor) else keep)

    def _buffers(self, bucket: Bucket, name: str) -> list[Tensor]:
        """Return one state tensor of each parameter, zeros to begin with."""
        for p in bucket.params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [foreach.real(self.state[p][name]) for p in bucket.params]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group and remember the learning rate that it starts with, and whether it was given a decay of 0."""
        given = {"decays": False} if param_group.get("weight_decay", 1) == 0 else {}
        super().add_param_group({**given, **param_group})
        self._complete(self.param_groups[-1])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        r"""Resume bit by bit; :class:`AdamW` converts a checkpoint of PyTorch's AdamW where that is exact.

        Its ``weight_decay`` wd becomes :math:`\lambda=lr_0\cdot` wd with :math:`lr_0` = ``eta_reference``.

        Raises:
            ValueError: if the checkpoint is that of another optimizer; then nothing has changed.
        """
        conversion.checked(state_dict, self)
        saved, own = state_dict["param_groups"], self.param_groups
        groups = list(map(self._own_group, saved, own)) if len(saved) == len(own) else saved  # which PyTorch refuses
        state = {key: self._own_state(entry) for key, entry in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": state, "param_groups": groups})

    def _own_group(self, saved: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
        if not saved.keys().isdisjoint(("foreach", "amsgrad", "dampening")):  # as classes of torch.optim write
            saved = conversion.adamw_from_torch(saved, own)
        elif "eta_reference" not in saved and saved.get("weight_decay"):
            raise ValueError(f"load_state_dict: the checkpoint does not say what its weight_decay = "
                             f"{saved['weight_decay']} is multiplied by: it is of another optimizer. Set its "
                             "weight_decay to 0, or begin with a fresh state.")
        return {**{name: value for name, value in own.items() if name != "params"}, **saved}

    def _own_state(self, entry: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in entry.items() if value is not None}
        return {**kept, "step": int(kept["step"])} if "step" in kept else kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            self._complete(group)

    def _complete(self, group: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name} = {group[name]}: must not be negative.")
        if group.get("maximize"):
            raise ValueError(f"maximize=True: {type(self).__name__} minimises. Change the sign of the loss.")
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].clone()
        if group["eta_reference"] is None:
            group["eta_reference"] = float(group["lr"])
        if not group["eta_reference"] >= 0:
            raise ValueError(f"eta_reference = {group['eta_reference']}: a learning rate, it must not be negative.")


def eta(group: dict[str, Any]) -> Any:
    r"""Return the schedule multiplier :math:`\eta_t` of a group."""
    return foreach.number(group["lr"]) / group["eta_reference"] if group["eta_reference"] else 1.0
