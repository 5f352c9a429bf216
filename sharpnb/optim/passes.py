"""What must differ, and what must not, between the passes of one step: norm statistics, random numbers, loss scales."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle


class FrozenStatistics:
    """Put back, after the perturbed passes, the buffers of every norm layer that ran in them.

    A norm layer in training mode updates its running statistics whenever it runs; those of a pass at weights that
    nobody will keep must not be kept either.

    A layer counts when it is in training mode and has a buffer ``running_mean`` or ``running_var``: every BatchNorm,
    SyncBatchNorm and tracking InstanceNorm of PyTorch, and a user's own layer that follows their convention. All its
    buffers return bit by bit and in place, the counter of batches included. No momentum is touched, so freezing twice
    is freezing once, and ``momentum=None`` (a cumulative average) stays right.

    Args:
        model: the module whose layers are meant. None finds them as they run, through a global forward hook, which
            a model inside ``torch.compile`` or a ScriptModule does not call.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model
        self._saved: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        self._hook: RemovableHandle | None = None

    def start(self) -> None:
        """Begin to remember; a second call changes nothing."""
        if self.model is not None:
            for module in self.model.modules():
                self._remember(module)
        elif self._hook is None:
            self._hook = register_module_forward_pre_hook(self._remember)

    def stop(self) -> None:
        """Put everything back. Call it after the backward pass, which still compares the buffers' versions."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._saved:
            with torch.no_grad():
                for pairs in self._saved.values():
                    for buffer, copy in pairs:
                        buffer.copy_(copy)
            self._saved.clear()

    def _remember(self, module: nn.Module, _inputs: Any = None) -> None:
        buffers = module._buffers  # empty in most layers, and this runs in all
        tracks = buffers and module.training and ("running_mean" in buffers or "running_var" in buffers)
        if tracks and module not in self._saved:
            self._saved[module] = [(b, b.detach().clone()) for b in buffers.values() if b is not None]


class RandomNumbers:
    """The state of the random number generators of the CPU and of every device that holds a parameter."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        devices = {p.device for group in groups for p in group["params"] if p.device.type == "cuda"}
        self._cpu = torch.get_rng_state()
        self._cuda = {device: torch.cuda.get_rng_state(device) for device in devices}

    def rewind(self) -> None:
        """Return to that state, so that the next pass draws what the last one drew."""
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)


class SameGroups:
    """Another name for the same parameters.

    ``GradScaler.unscale_`` accepts each optimizer once an update, and a two-pass step has two gradients to unscale.
    Each pass comes under a name of its own; the scaler's ``update`` then backs off if any of them overflowed.
    """

    def __init__(self, param_groups: list[dict[str, Any]]) -> None:
        self.param_groups = param_groups
