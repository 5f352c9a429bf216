r"""The gradient of K chains of linear layers and activations at once, written out.

A gradient of such small nets is some twenty matrix products and element-wise passes, of some ten microseconds each;
autograd's book-keeping costs as much again. Written out, with :math:`h_0` the images, :math:`z_i=h_{i-1}W_i^\top+b_i`,
:math:`h_i=\phi(z_i)`, and the mean cross-entropy of B images:

.. math::
    \delta_L=\tfrac1B(\mathrm{softmax}(z_L)-y),\qquad
    \nabla_{W_i}=\delta_i^\top h_{i-1},\quad \nabla_{b_i}=\textstyle\sum\delta_i,\quad
    \delta_{i-1}=(\delta_iW_i)\odot\phi'(z_{i-1})
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# How each activation is computed, and its gradient from the gradient and the value of its output.
_ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.ReLU: (torch.relu, lambda gradient, h: torch.ops.aten.threshold_backward(gradient, h, 0)),
    nn.Tanh: (torch.tanh, torch.ops.aten.tanh_backward),
}


class Chain:
    """Linear layers with biases, activations between them, flattened images into the first.

    Args:
        layers: the linear layers.
        activations: those between, one fewer.
    """

    def __init__(self, layers: list[nn.Linear], activations: list[type[nn.Module]]) -> None:
        self.shapes = [layer.weight.shape for layer in layers]
        self.sizes = [p.numel() for layer in layers for p in (layer.weight, layer.bias)]
        self.activations = [_ACTIVATIONS[kind] for kind in activations]

    @classmethod
    def of(cls, model: nn.Module) -> Chain | None:
        """Return the chain that ``model`` is, or None."""
        layers = [layer for layer in model if type(layer) is not nn.Flatten] if type(model) is nn.Sequential else []
        linear = [layer for layer in layers[::2] if type(layer) is nn.Linear and layer.bias is not None]
        between = [type(layer) for layer in layers[1::2] if type(layer) in _ACTIVATIONS]
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        shared = len({id(layer) for layer in linear}) < len(linear)
        known = len(linear) == len(between) + 1 and len(layers) == len(linear) + len(between)
        return cls(linear, between) if known and not hooked and not shared else None

    def __call__(self, w: Tensor, x: Tensor) -> Tensor:
        """Return the logits, (K, B, classes), of images (K, B, …)."""
        return self._pass(w, x)[1][-1]

    def _pass(self, w: Tensor, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return each layer's weights, (K, out, in), and the values that pass: images, hidden ones, logits."""
        pieces = w.split(self.sizes, dim=1)
        weights = [piece.view(len(w), *shape) for piece, shape in zip(pieces[::2], self.shapes, strict=True)]
        values = [x.flatten(2)]
        for i, (weight, bias) in enumerate(zip(weights, pieces[1::2], strict=True)):
            z = torch.baddbmm(bias[:, None], values[-1], weight.mT)
            values.append(self.activations[i][0](z) if i < len(self.activations) else z)
        return weights, values

    def gradient(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of each row's mean cross-entropy, (K, n).

        Args:
            w: weights, (K, n).
            x: images, (K, B, …).
            y: labels, (K, B), or class probabilities, (K, B, classes).
        """
        weights, values = self._pass(w, x)
        delta, found = _by_logits(values.pop(), y), []
        for i in reversed(range(len(weights))):
            h = values.pop()
            found += [delta.sum(1), (delta.mT @ h).flatten(1)]
            if i:
                delta = self.activations[i - 1][1](delta @ weights[i], h)
        return torch.cat(found[::-1], dim=1)


def _by_logits(z: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of each row's mean cross-entropy by its logits, (K, B, classes)."""
    k, images, classes = z.shape
    # Images last: a softmax over a short last axis is not vectorised.
    p = torch.softmax(z.flatten(0, 1).mT.contiguous(), 0)
    if y.ndim == 2:
        p.scatter_add_(0, y.reshape(1, -1), p.new_full((), -1.0).expand(1, k * images))
    else:
        target = y.flatten(0, 1).mT
        p = p * target.sum(0) - target
    return (p / images).mT.reshape(k, images, classes)
