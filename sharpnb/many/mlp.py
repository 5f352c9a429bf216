r"""The gradient of K multilayer perceptrons at once, written out.

A gradient of such small nets is some twenty matrix products and element-wise passes, of some ten microseconds each;
autograd's book-keeping costs as much again. Written out, with :math:`h_0` the images, :math:`z_i=h_{i-1}W_i^\top+b_i`,
:math:`h_i=\phi(z_i)`, and the mean cross-entropy of B images:

.. math::
    \delta_L=\tfrac1B(\mathrm{softmax}(z_L)-y),\qquad
    \nabla_{W_i}=\delta_i^\top h_{i-1},\quad \nabla_{b_i}=\textstyle\sum\delta_i,\quad
    \delta_{i-1}=(\delta_iW_i)\odot\phi'(z_{i-1})

Where BatchNorm stands in between, :math:`\gamma\odot\hat z+\beta` with :math:`\hat z=(z-\mu)/s`, :math:`\mu` the
batch's mean and :math:`s^2` its variance with :math:`\epsilon`, the gradient passes it by

.. math::
    \nabla_\beta=\textstyle\sum\delta,\quad \nabla_\gamma=\sum\delta\odot\hat z,\qquad
    \delta\leftarrow\frac{\gamma}{s}\odot\Big(\delta-\tfrac1B\nabla_\beta-\tfrac1B\nabla_\gamma\odot\hat z\Big)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# How each activation is computed, and its gradient from the gradient and the value of its output.
_ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.ReLU: (torch.relu, lambda gradient, h: torch.ops.aten.threshold_backward(gradient, h, 0)),
    nn.Tanh: (torch.tanh, torch.ops.aten.tanh_backward),
}


class MLP:
    """Linear layers with an activation, and BatchNorm or not, between two; flattened images go into the first."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.sizes = [p.numel() for layer in layers for p in layer.parameters()]

    @classmethod
    def of(cls, model: nn.Module) -> MLP | None:
        """Return the perceptron that ``model`` is, or None."""
        layers = [layer for layer in model if type(layer) is not nn.Flatten] if type(model) is nn.Sequential else []
        known = re.fullmatch("(LN?A)*L", "".join(map(_letter, layers)))
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        owners = [layer for layer in layers if type(layer) not in _ACTIVATIONS]
        return cls(layers) if known and not hooked and len(set(owners)) == len(owners) else None

    def __call__(self, w: Tensor, x: Tensor) -> Tensor:
        """Return the logits, (K, B, classes), of images (K, B, …); BatchNorm uses the batch's statistics."""
        return self._pass(w, x)[0]

    def _pass(self, w: Tensor, x: Tensor) -> tuple[Tensor, list[Any]]:
        """Return the logits, and what each layer's gradient needs."""
        pieces, h, kept = iter(w.split(self.sizes, dim=1)), x.flatten(2), []
        for layer in self.layers:
            if type(layer) is nn.Linear:
                weight = next(pieces).view(len(w), *layer.weight.shape)
                kept.append((h, weight))
                h = torch.baddbmm(next(pieces)[:, None], h, weight.mT)
            elif type(layer) is nn.BatchNorm1d:
                if x.shape[1] < 2:
                    raise ValueError("BatchNorm has no variance on a batch of one image. Use batches of two or more.")
                normal = h - h.mean(1, keepdim=True)
                inverse = (normal.square().mean(1, keepdim=True) + layer.eps).rsqrt()  # var_mean: ten times slower
                normal, scale = normal.mul_(inverse), next(pieces)[:, None]
                kept.append((normal, scale * inverse))
                h = torch.addcmul(next(pieces)[:, None], normal, scale)
            else:
                h = _ACTIVATIONS[type(layer)][0](h)
                kept.append(h)
        return h, kept

    def gradient_and_logits(self, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of each row's mean cross-entropy, (K, n), and the logits, (K, B, classes).

        Labels are (K, B), or class probabilities, (K, B, classes).
        """
        logits, kept = self._pass(w, x)
        delta, found = _by_logits(logits, y), []
        outer = torch.mul if x.shape[1] == 1 else torch.matmul  # of one image (m-sharpness): no gemm
        for layer in reversed(self.layers):
            if type(layer) is nn.Linear:
                h, weight = kept.pop()
                found += [delta.sum(1), outer(delta.mT, h).flatten(1)]
                delta = delta @ weight if kept else delta
            elif type(layer) is nn.BatchNorm1d:
                normal, scale = kept.pop()
                by_bias, by_weight = delta.sum(1, keepdim=True), (delta * normal).sum(1, keepdim=True)
                found += [by_bias[:, 0], by_weight[:, 0]]
                delta = (delta - by_bias / x.shape[1]).addcmul_(normal, by_weight, value=-1 / x.shape[1]).mul_(scale)
            else:
                delta = _ACTIVATIONS[type(layer)][1](delta, kept.pop())
        return torch.cat(found[::-1], dim=1), logits


def _letter(layer: nn.Module) -> str:
    if type(layer) is nn.Linear and layer.bias is not None:
        return "L"
    if type(layer) is nn.BatchNorm1d and layer.affine:
        return "N"
    return "A" if type(layer) in _ACTIVATIONS else "?"


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
