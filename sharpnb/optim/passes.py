"""What must differ, and what must not, between the passes of one step: norm statistics, random numbers, loss scales."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from sharpnb.optim import foreach


class FrozenStatistics:
    """Put back, after the perturbed passes, the buffers of every norm layer that ran in them.

    A norm layer in training mode updates its running statistics whenever it runs; those of a pass at weights that
    nobody will keep must not be kept either.

    A layer counts when it is in training mode and has a buffer ``running_mean`` or ``running_var``: every BatchNorm,
    SyncBatchNorm and tracking InstanceNorm of PyTorch, and a user's own layer that follows their convention. All its
    buffers return bit by bit and in place, the counter of batches included. No momentum is touched, so freezing twice
    is freezing once, and ``momentum=None`` (a cumulative average) stays right. Copies are made for all layers in a few
    calls: two a buffer would be 120 for a ResNet-18, each of which a GPU's host has to start.

    Args:
        model: the module whose layers are meant. None finds them as they run, through a global forward hook. Of a
            compiled model or a ScriptModule it sees the outermost call, and then all layers inside are meant. Inside a
            compiled function it sees nothing, and says so once.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model
        self._ran: set[nn.Module] = set()  # in the last step's perturbed passes: most likely in the next ones
        self._kept: set[nn.Module] = set()
        self._copies: list[tuple[list[Tensor], list[Tensor]]] = []
        self._hook: Any = None
        self._seen, self._asked = False, False  # whether any module ran between start and stop; whether that was judged
        self.parametrized = model is None or any("parametrizations" in m._modules for m in model.modules())

    def start(self) -> None:
        """Begin to remember; a second call changes nothing."""
        if self.model is not None:
            self._keep(self.model.modules())
        elif self._hook is None:
            if self._ran:
                self._keep(self._ran)
                self._ran = set()
            self.parametrized &= self._asked  # before the first pass with the hook nobody knows
            self._hook = register_module_forward_pre_hook(self._remember)

    def stop(self, params: Iterable[Tensor] = ()) -> None:
        """Put everything back. Call it after the backward pass, which still compares the buffers' versions.

        By the optimizer's ``params`` it knows whether a layer was missed.
        """
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            if not self._seen and not self._asked:
                _warn_of_hidden_layers(params)
            self._asked = True
        if self._copies:
            with torch.no_grad():
                for buffers, copies in self._copies:
                    foreach.copy_(buffers, copies)
            self._copies = []
            self._kept.clear()

    def _remember(self, module: nn.Module, _inputs: Any) -> None:
        self._seen = True
        inside = module._modules  # empty in most layers, as their buffers are, and this runs in all
        if inside and "parametrizations" in inside:
            self.parametrized = True
        if inside and ("_orig_mod" in inside or isinstance(module, torch.jit.ScriptModule)):  # compiled, layers hidden
            self._keep(module.modules())
        elif module._buffers and _tracks(module):
            self._ran.add(module)
            if module not in self._kept:
                self._keep([module])

    def _keep(self, modules: Iterable[nn.Module]) -> None:
        alike: dict[Any, list[Tensor]] = {}
        for module in modules:
            if module._buffers and _tracks(module) and module not in self._kept:
                self._kept.add(module)
                for b in module._buffers.values():
                    if b is not None:
                        alike.setdefault((b.device, b.dtype), []).append(b)
        with torch.no_grad():
            self._copies += [(buffers, foreach.clone(buffers)) for buffers in alike.values()]


def _warn_of_hidden_layers(params: Iterable[Tensor]) -> None:
    """Warn if a norm layer in training mode owns one of these parameters: to be asked where no module was seen to run.

    It goes through all objects of the process, which takes tenths of a second, but only where something was compiled.
    """
    counters = getattr(sys.modules.get("torch._dynamo.utils"), "counters", {})
    if not counters.get("frames"):
        return
    own = {id(p) for p in params}
    for layer in [m for m in gc.get_objects() if issubclass(type(m), nn.Module) and _tracks(m)]:
        if not own.isdisjoint(map(id, layer._parameters.values())):
            warnings.warn("the model runs inside a compiled function, where no hook sees its layers: the statistics "
                          f"of {type(layer).__name__} move in both passes of a step. Name the model to the optimizer, "
                          "as in SAM(..., model=model).", RuntimeWarning, stacklevel=2)
            return


def _tracks(module: nn.Module) -> bool:
    return module.training and ("running_mean" in module._buffers or "running_var" in module._buffers)


class RandomNumbers:
    """The state of the random number generators of the CPU and of every device that holds a parameter."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        devices = {p.device for p in params if p.device.type == "cuda"}
        self._cpu, self._cuda = torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in devices}

    def rewind(self) -> None:
        """Return to that state, so that the next pass draws what the last one drew."""
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)


def refuse_scaler_around(optimizer: Any, scaler: Any) -> None:
    """Raise RuntimeError where ``GradScaler.step`` calls ``step(closure)``: it unscaled what was there before alone."""
    if scaler is None and hasattr(optimizer, "found_inf"):  # which it has set
        for name in ("found_inf", "grad_scale"):
            vars(optimizer).pop(name, None)
        raise RuntimeError("scaler.step(optimizer, closure): each pass has a gradient of its own to unscale. Call "
                           "optimizer.step(closure, scaler=scaler), then scaler.update().")
