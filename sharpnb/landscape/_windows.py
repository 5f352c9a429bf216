r"""Convolutions of small images as matrix products, samples last in memory.

Images are (H, C, W, B): row by row, each row's channels, columns and samples together. Nothing is unfolded. A layer
with a stride of s reads one copy of its images, with margins of zeros and with the columns sorted by their numbers
modulo s. What all windows of an output row i see through column j of the kernel is then a matrix that lies there
already, its rows a fixed distance apart. So a layer is :math:`k_w` products, each over all output rows and added to the
last:

.. math::
    Y_i = b + \sum_{j<k_w} W_j\,Q_{ij},\qquad W_j: (O,\ k_h C),\quad Q_{ij}: (k_h C,\ W' B),\quad Y_i: (O,\ W' B)

For batches of 128 and more, one product of unfolded images, whose matrix is :math:`k_w` times larger, was measured
slower, its copies not counted.
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
    return nn.Linear not in kinds[:flat] and nn.Conv2d not in kinds[flat:] and all(map(_is_known, layers))


def _is_known(layer: Any) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.dilation == (1, 1) and not isinstance(layer.padding, str)
    if type(layer) is nn.AdaptiveAvgPool2d:
        return layer.output_size in (1, (1, 1))
    return type(layer) not in (
        nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.BatchNorm1d, nn.BatchNorm2d)


def samples_last(images: Tensor) -> Tensor:
    """(…, B, C, H, W) -> (…, H, C, W, B), contiguous."""
    return images.movedim(-4, -1).transpose(-4, -3).contiguous()


class Windowed:
    """The forward pass of layers that :func:`fits` found fit, at one point after another.

    Attributes:
        entry: where to write the images of a point before each call, (H, C, W, B), if the first convolution can read
            them there; else None. They have to be :meth:`laid_out`.

    Args:
        layers: in evaluation mode.
        x: images of the shape and type that will come, (H, C, W, B); the memory between layers is taken once.
    """

    def __init__(self, layers: Sequence[nn.Module], x: Tensor) -> None:
        self.steps: dict[int, _Step] = {}  # by the numbers of their layers; those that do nothing have none
        self.entry: Tensor | None = None
        self._first: _Convolution | None = None
        flattened = (1, 1, 1)
        for number, layer in enumerate(layers):
            if type(layer) in (nn.Identity, nn.Dropout):
                continue
            if type(layer) is nn.Conv2d:
                rectified = self._takes_relu()
                step = _Convolution(layer, x, rectified)
                if not self.steps:
                    self._first, self.entry, x = step, step.inside, step.inside
            elif type(layer) is nn.Linear:
                step, flattened = _Linear(layer, flattened), (1, 1, 1)
            elif type(layer) is nn.Flatten:
                step, flattened = _Flatten(layer), tuple(x.shape[:3])
            else:
                step = _Mean(layer) if type(layer) is nn.AdaptiveAvgPool2d else _Step(layer)
            self.steps[number] = step
            x = step(x, step.arranged([p.detach() for p in layer.parameters()]))

    def _takes_relu(self) -> bool:
        """Take a ReLU from the end of the steps, for the convolution that follows: it is the first to read."""
        last = max(self.steps, default=-1)
        found = last >= 0 and type(self.steps[last].layer) is nn.ReLU
        if found:
            del self.steps[last]
        return found

    def laid_out(self, x: Tensor) -> Tensor:
        """Return images (…, H, C, W, B) as ``entry`` takes them: with margins and in the order of its columns."""
        return x if self._first is None else self._first.laid_out(x)

    def arranged(self, weights: Sequence[Weights]) -> list[Weights]:
        """Return the weights (…, *shape) of all layers as the steps take them, a list for each step."""
        return [step.arranged(weights[number]) for number, step in self.steps.items()]

    def __call__(self, x: Tensor, weights: Sequence[Weights]) -> Tensor:
        """Return the outputs (classes, B) for images (H, C, W, B), ``entry`` if there is one; they may be overwritten.

        Args:
            x: the images.
            weights: of one point, :meth:`arranged`.
        """
        for step, own in zip(self.steps.values(), weights, strict=True):
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
    """A convolution, and the ReLU before it if it is ``rectified``.

    Attributes:
        inside: the rows of its copy that hold images, (H, C, columns, B); the margins in them are zero already.
    """

    def __init__(self, layer: Any, x: Tensor, rectified: bool) -> None:
        super().__init__(layer)
        height, channels, width, samples = x.shape
        (kh, kw), (sh, sw), (ph, pw) = layer.kernel_size, layer.stride, layer.padding
        rows, columns = (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1
        starts, self.places = _by_class(width, pw, sw, min(sw, kw))
        copy = x.new_zeros(height + 2 * ph, channels, starts[-1], samples)
        self.inside = copy[ph : ph + height]
        self.windows = [
            copy.as_strided((rows, kh * channels, columns * samples), (sh * copy.stride(0), copy.stride(1), 1),
                            (starts[j % sw] + j // sw) * samples)
            for j in range(kw)]
        self.out = x.new_empty(rows, layer.out_channels, columns * samples)
        self.result = self.out.view(rows, layer.out_channels, columns, samples)
        self.rectified = rectified

    def laid_out(self, x: Tensor) -> Tensor:
        """Return images (…, H, C, W, B) with the columns of ``inside``."""
        laid = x.new_zeros(*x.shape[:-2], self.inside.shape[-2], x.shape[-1])
        for place, columns in self.places:
            laid[..., place, :] = x[..., columns, :]
        return laid

    def arranged(self, weights: Weights) -> Weights:
        kernels = weights[0].transpose(-3, -2).flatten(-3, -2).movedim(-1, 0).contiguous()  # (kw, …, O, kh C)
        biases = [bias[..., None] for bias in weights[1:]]
        return [m.unsqueeze(-3).expand(*m.shape[:-2], *self.out.shape[:2], -1) for m in (*kernels, *biases)]

    def __call__(self, x: Tensor, weights: Weights) -> Tensor:
        if x is not self.inside:
            for place, columns in self.places:
                self.inside[:, :, place] = x[:, :, columns]
        if self.rectified:
            self.inside.relu_()
        kernels, biases = weights[: len(self.windows)], weights[len(self.windows) :]
        if biases:
            self.out.copy_(biases[0])
        for i, (kernel, window) in enumerate(zip(kernels, self.windows, strict=True)):
            torch.baddbmm(self.out, kernel, window, beta=1 if i or biases else 0, out=self.out)
        return self.result


def _by_class(width: int, margin: int, stride: int, classes: int) -> tuple[list[int], list[tuple[slice, slice]]]:
    """Sort the columns of images with margins by their number modulo the stride, the first classes of them.

    Returns:
        Where each class starts, and at last where all end; and for each class the places that the columns of images
        have in it, with these columns.
    """
    starts, places = [0], []
    for first in range(classes):
        columns = range(first - margin, width + margin, stride)
        inside = [i for i, column in enumerate(columns) if 0 <= column < width]
        if inside:
            places.append((slice(starts[-1] + inside[0], starts[-1] + inside[-1] + 1),
                           slice(columns[inside[0]], columns[inside[-1]] + 1, stride)))
        starts.append(starts[-1] + len(columns))
    return starts, places
