"""What remembers weights outside the parameters, and must be told when the weights move in place."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def forget_casts() -> None:
    """Let autocast cast the weights anew: call it whenever weights were moved in place.

    Inside ``torch.autocast`` the low-precision copy of a leaf weight is kept until the outermost context is left, so a
    second forward pass there would be made at the weights of the first. The cache is dropped whether or not autocast
    is on at this moment, since a context that switches it off may stand inside one that is on. It costs 0.1
    microseconds. Gradients of a pass that was made before are unharmed: its graph holds its own copies.
    """
    torch.clear_autocast_cache()


def refuse_parametrization_cache(what: str) -> None:
    """Raise inside ``torch.nn.utils.parametrize.cached()``, which keeps old weights and has no public way to drop them.

    It asks a module of its own twice for its weight: the same object means the cache. That takes some ten microseconds.

    Raises:
        RuntimeError: inside that context.
    """
    probe = _probe()
    if probe.weight is probe.weight:
        raise RuntimeError(f"{what} inside torch.nn.utils.parametrize.cached(): parametrized modules keep the weights "
                           "that they have computed there. Leave that context first.")


class _Copied(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.clone()


@functools.cache
def _probe() -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(()), requires_grad=False)
    parametrize.register_parametrization(module, "weight", _Copied())
    return module
