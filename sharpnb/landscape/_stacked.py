r"""Many points of a plane at a time, for nets that are a chain of linear layers, convolutions and activations.

On a plane the first layer's output is affine in the coordinates, :math:`A_0 + x A_1 + y A_2`: three products for all
points, and one matrix product mixes them. The later layers of a net of features run as batched matrix products; those
of a net of images run point by point, on images that lie in the cache (grouped convolutions were no faster).

Shapes: P points, B samples; features (P, B, F), images (P, B, C, H, W) in channels-last memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_POINTWISE = (nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Identity)
_POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d)


def chain(model: nn.Module) -> list[nn.Module] | None:
    """Return the layers of a net that can be stacked, or None."""
    if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        return None
    layers = _unfolded(model)
    owned = [p for layer in layers for p in layer.parameters()]
    every = list(model.parameters())
    if len(owned) != len(every) or any(a is not b for a, b in zip(owned, every, strict=True)):
        return None
    fine = all(_is_plain(layer) for layer in layers) and any(isinstance(x, nn.Linear | nn.Conv2d) for x in layers)
    return layers if fine else None


def _unfolded(model: nn.Module) -> list[nn.Module]:
    return [leaf for part in model for leaf in _unfolded(part)] if type(model) is nn.Sequential else [model]


def _is_plain(layer: nn.Module) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros"
    if type(layer) is nn.Flatten:
        return layer.start_dim == 1 and layer.end_dim == -1
    return type(layer) in (nn.Linear, nn.Dropout, *_POINTWISE, *_POOLS)


class Stacked:
    """The forward pass of a chain at P points of a plane.

    Args:
        layers: from :func:`chain`.
        vectors: origin, u and v, (3, n), in the type and on the device of the model.
    """

    def __init__(self, layers: list[nn.Module], vectors: Tensor) -> None:
        self.layers, self.parts, start = layers, [], 0
        for layer in layers:
            self.parts.append([])
            for p in layer.parameters():
                self.parts[-1].append(vectors[:, start : start + p.numel()].view(3, *p.shape))
                start += p.numel()
        self.first = next(i for i, part in enumerate(self.parts) if part)

    def prepare(self, x: Tensor) -> Tensor:
        """Return the first layer's three terms for a batch, (3, B, …)."""
        for layer in self.layers[: self.first]:
            x = layer(x)
        terms = [_apply(self.layers[self.first], x, [t[k] for t in self.parts[self.first]]) for k in range(3)]
        if x.dim() == 4:  # images
            return torch.stack([t.permute(0, 2, 3, 1) for t in terms]).permute(0, 1, 4, 2, 3)
        return torch.stack(terms)

    def __call__(self, prepared: Tensor, coefficients: Tensor) -> Tensor:
        """Return the outputs (P, B, …) at ``coefficients`` (P, 3), whose first column is 1."""
        rest = list(zip(self.layers[self.first + 1 :], self.parts[self.first + 1 :], strict=True))
        weights = [[torch.tensordot(coefficients, t, 1) for t in part] for _, part in rest]
        x = _mixed(prepared, coefficients)
        if prepared.dim() == 3:
            for (layer, _), part in zip(rest, weights, strict=True):
                x = _apply_all(layer, x, part)
            return x
        outputs = []
        for p, one in enumerate(x):
            for (layer, _), part in zip(rest, weights, strict=True):
                one = _apply(layer, one, [t[p] for t in part])
            outputs.append(one)
        return torch.stack(outputs)


def _mixed(prepared: Tensor, coefficients: Tensor) -> Tensor:
    """(3, B, …) and (P, 3) -> (P, B, …), in the memory order of ``prepared``."""
    if prepared.dim() == 3:
        return (coefficients @ prepared.flatten(1)).view(-1, *prepared.shape[1:])
    in_memory = prepared.permute(0, 1, 3, 4, 2)
    return (coefficients @ in_memory.flatten(1)).view(-1, *in_memory.shape[1:]).permute(0, 1, 4, 2, 3)


def _apply_all(layer: nn.Module, x: Tensor, part: list[Tensor]) -> Tensor:
    """One layer on features (P, B, F), with P weights of its own."""
    if isinstance(layer, nn.Linear):
        return torch.baddbmm(part[1][:, None], x, part[0].mT) if layer.bias is not None else x @ part[0].mT
    return x if isinstance(layer, nn.Flatten) else _apply(layer, x, part)


def _apply(layer: nn.Module, x: Tensor, part: list[Tensor]) -> Tensor:
    """One layer on a batch, with the given weights."""
    bias = part[1] if len(part) > 1 else None
    if isinstance(layer, nn.Linear):
        return F.linear(x, part[0], bias)
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, part[0], bias, layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type]
    return x.relu_() if isinstance(layer, nn.ReLU) else layer(x)
