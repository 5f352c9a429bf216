r"""Convolutions of small images as matrix products, samples last in memory.

Images are (H, C, W, B): row by row, each row's channels, columns and samples together. Where unfolding copies an image
:math:`k_h k_w` times, here only its :math:`k_w` shifts along the columns are copied, long runs of samples each. The
:math:`k_h` rows of a window then lie one after the other, so the matrix of an output row is a view, and a layer is one
batched product over the output rows i, s being the stride:

.. math::
    Y_i = W\,Q_{[s i,\,s i + k_h)},\qquad W: (O,\ k_h k_w C),\quad Q_{[\dots)}: (k_h k_w C,\ W' B),\quad Y_i: (O,\ W' B)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Weights = list[Tensor]  # of one layer: weight and, if it has one, bias


def fits(layers: Sequence[nn.Module]) -> bool:
    """Whether layers are convolutions, a flattening and linear ones, with activations and global means between them."""
    kinds = [type(layer) for layer in layers]
    if kinds.count(nn.Flatten) != 1 or kinds[-1] is not nn.Linear:
        return False
    flat = kinds.index(nn.Flatten)
    return nn.Linear not in kinds[:flat] and nn.Conv2d not in kinds[flat:] and all(map(_keeps_columns, layers))


def _keeps_columns(layer: Any) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.dilation == (1, 1) and not isinstance(layer.padding, str)
    if type(layer) is nn.AdaptiveAvgPool2d:
        return layer.output_size in (1, (1, 1))
    return type(layer) not in (nn.AvgPool2d, nn.MaxPool2d)


def samples_last(images: Tensor) -> Tensor:
    """(…, B, C, H, W) -> (…, H, C, W, B), contiguous."""
    return images.movedim(-4, -1).transpose(-4, -3).contiguous()


class Windowed:
    """The forward pass of layers that :func:`fits` found fit, at one point after another.

    Args:
        layers: in evaluation mode.
        x: images of the shape and type that will come, (H, C, W, B); the memory between layers is taken once.
    """

    def __init__(self, layers: Sequence[nn.Module], x: Tensor) -> None:
        self.steps: list[_Step] = []
        flattened = (1, 1, 1)
        for layer in layers:
            if type(layer) is nn.Conv2d:
                step = _Convolution(layer, x, rectified=self._takes_relu())
            elif type(layer) is nn.Linear:
                step, flattened = _Linear(layer, flattened), (1, 1, 1)
            elif type(layer) is nn.Flatten:
                step, flattened = _Flatten(layer), tuple(x.shape[:3])
            else:
                step = _Mean(layer) if type(layer) is nn.AdaptiveAvgPool2d else _Step(layer)
            self.steps.append(step)
            x = step(x, step.arranged([p.detach() for p in layer.parameters()]))

    def _takes_relu(self) -> bool:
        """Take a ReLU from the end of the steps, for the convolution that follows: its copies are the first to read."""
        found = bool(self.steps) and type(self.steps[-1].layer) is nn.ReLU
        if found:
            self.steps[-1] = _Step(nn.Identity())
        return found

    def arranged(self, weights: Sequence[Weights]) -> list[Weights]:
        """Return all layers' weights (…, *shape) as their products take them."""
        return [step.arranged(own) for step, own in zip(self.steps, weights, strict=True)]

    def __call__(self, x: Tensor, weights: Sequence[Weights]) -> Tensor:
        """Return the outputs (classes, B) for images (H, C, W, B), which may be overwritten."""
        for step, own in zip(self.steps, weights, strict=True):
            x = step(x, own)
        return x


class _Step:
    """A layer without weights that treats each number by itself."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def arranged(self, weights: Weights) -> Weights:
        return weights

    def __call__(self, x: Tensor, weights: Weights) -> Tensor:
        return x.relu_() if type(self.layer) is nn.ReLU else self.layer(x)


class _Mean(_Step):
    def __call__(self, x: Tensor, weights: Weights) -> Tensor:
        # One axis at a time: the sum over both at once was measured six times slower.
        return x.sum(0, keepdim=True).sum(2, keepdim=True) / (x.shape[0] * x.shape[2])


class _Flatten(_Step):
    def __call__(self, x: Tensor, weights: Weights) -> Tensor:
        return x.flatten(0, -2)


class _Linear(_Step):
    def __init__(self, layer: nn.Module, flattened: tuple[int, ...]) -> None:
        super().__init__(layer)
        self.height, self.channels = flattened[:2]  # of the images that are flattened, row by row

    def arranged(self, weights: Weights) -> Weights:
        matrix = weights[0].unflatten(-1, (self.channels, self.height, -1)).transpose(-3, -2).flatten(-3)
        return [matrix, *(bias[..., None] for bias in weights[1:])]

    def __call__(self, x: Tensor, weights: Weights) -> Tensor:
        return torch.addmm(weights[1], weights[0], x) if len(weights) > 1 else weights[0] @ x


class _Convolution(_Step):
    def __init__(self, layer: Any, x: Tensor, rectified: bool) -> None:
        super().__init__(layer)
        height, channels, width, samples = x.shape
        (kh, kw), (sh, sw), (ph, pw) = layer.kernel_size, layer.stride, layer.padding
        rows, columns = (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1
        shifts = x.new_zeros(height + 2 * ph, kw, channels, columns, samples)  # what lies outside stays zero
        self.windows = shifts.as_strided((rows, kh * kw * channels, columns * samples),
                                         (sh * shifts.stride(0), columns * samples, 1))
        self.copies = []
        for shift in range(kw):
            inside = [j for j in range(columns) if 0 <= j * sw + shift - pw < width]
            if inside:
                at = slice(inside[0] * sw + shift - pw, inside[-1] * sw + shift - pw + 1, sw)
                self.copies.append((shifts[ph : ph + height, shift, :, inside[0] : inside[-1] + 1], at))
        self.out = x.new_empty(rows, layer.out_channels, columns * samples)
        self.result = self.out.view(rows, layer.out_channels, columns, samples)
        self.rectified = rectified

    def arranged(self, weights: Weights) -> Weights:
        kernel = weights[0].movedim(-3, -1).flatten(-3)  # (…, O, C, kh, kw) -> (…, O, kh kw C)
        return [kernel.contiguous(), *(bias[..., None] for bias in weights[1:])]

    def __call__(self, x: Tensor, weights: Weights) -> Tensor:
        for shifted, at in self.copies:
            if self.rectified:
                torch.clamp_min(x[:, :, at], 0, out=shifted)
            else:
                shifted.copy_(x[:, :, at])
        torch.bmm(weights[0].expand(len(self.out), -1, -1), self.windows, out=self.out)
        if len(weights) > 1:
            self.out += weights[1]
        return self.result
