r"""Many points of a plane at a time, for nets that are a chain of linear layers, convolutions and activations.

BatchNorm may stand between linear layers, each point with its own statistics.

On a plane the first layer's output is affine in the coordinates, :math:`A_0 + x A_1 + y A_2`: three products for all
points, and an addition or two mix them. Features lie samples last in memory: the later layers are matrix products with
long rows, all points in one call, and a softmax over few classes is vectorised over the samples. On a CPU convolutions
of small images are products too (:mod:`sharpnb.landscape._windows`), elsewhere PyTorch's own on channels-last images;
both run point by point.

Shapes: P points, B samples; features (P, F, B), images (P, B, C, H, W), channels last in memory, or (P, H, C, W, B).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.landscape._windows import Windowed, fits, samples_last

Moments = tuple[Tensor, Tensor]  # of a BatchNorm layer's inputs: mean and variance
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
    first = next((layer for layer in layers if _count(layer)), None)
    fine = all(_is_plain(layer) for layer in layers) and isinstance(first, nn.Linear | nn.Conv2d)
    return layers if fine else None


def _unfolded(model: nn.Module) -> list[nn.Module]:
    return [leaf for part in model for leaf in _unfolded(part)] if type(model) is nn.Sequential else [model]


def _is_plain(layer: nn.Module) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros"
    if type(layer) is nn.Flatten:
        return layer.start_dim == 1 and layer.end_dim == -1
    if type(layer) is nn.BatchNorm1d:
        return layer.affine and layer.running_mean is not None
    return type(layer) in (nn.Linear, nn.Dropout, *_POINTWISE, *_POOLS)


class Stacked:
    """The forward pass of a chain at P points of a plane.

    Args:
        layers: from :func:`chain`, in evaluation mode.
        vectors: origin, u and v, (3, n), in the type and on the device of the model.
        renewed: BatchNorm layers among them that have statistics of their own at each point; the others keep theirs.
    """

    def __init__(self, layers: list[nn.Module], vectors: Tensor, renewed: Sequence[nn.Module] = ()) -> None:
        self.renewed = renewed
        first = next(i for i, layer in enumerate(layers) if _count(layer))
        self.before, self.first, self.after = layers[:first], layers[first], layers[first + 1 :]
        self.own, self.later = vectors.split([n := _count(self.first), vectors.shape[1] - n], dim=1)
        self.counts = [_count(layer) for layer in self.after]
        self.normalises = any(isinstance(layer, nn.BatchNorm1d) for layer in layers)
        self.windowed = type(self.first) is nn.Conv2d and fits(self.after) and vectors.device.type == "cpu"
        self.programs: dict[tuple[int, ...], Windowed] = {}  # one for each size of batch
        self.placed: tuple[Sequence[tuple[float, float]], list[list[tuple[Tensor, ...]]]] = [], []

    def prepare(self, x: Tensor) -> Tensor:
        """Return the first layer's three terms for a batch (B, …): features or images as in the module's shapes."""
        for layer in self.before:
            x = layer(x)
        terms = torch.stack([_one(self.first, x, _shaped(self.first, row)).movedim(1, -1) for row in self.own])
        if terms.dim() == 3:
            return terms.mT.contiguous()
        terms = terms.movedim(-1, 2)
        return samples_last(terms) if self.windowed else terms

    def __call__(
        self, prepared: Tensor, xy: Sequence[tuple[float, float]], statistics: Sequence[Moments] = ()
    ) -> Tensor:
        """Return the outputs (P, B, …) at the points; ``statistics`` are those of the renewed layers, in order."""
        if self.windowed:
            return self._by_windows(prepared, xy).mT
        weights = self._weights(xy)
        if prepared.dim() == 3:
            x, given = torch.stack(list(_mixed(prepared, xy))), iter(statistics)
            for layer, own in zip(self.after, weights, strict=True):
                x = _all(layer, x, own, next(given) if layer in self.renewed else None)
            return x.mT
        outputs = []
        for p, x in enumerate(_mixed(prepared, xy)):
            for layer, own in zip(self.after, weights, strict=True):
                x = _one(layer, x, [rows[p] for rows in own])
            outputs.append(x)
        return torch.stack(outputs)

    def statistics(self, batches: Sequence[Tensor], xy: Sequence[tuple[float, float]]) -> list[Moments]:
        """Return the renewed layers' mean and unbiased variance, (P, F) each, as ``update_bn`` takes them.

        Args:
            batches: prepared; each is normalised by itself, and they count by their size.
            xy: the points.
        """
        weights, seen = self._weights(xy), 0
        found: dict[nn.Module, Moments] = {}
        for prepared in batches:
            x, size = torch.stack(list(_mixed(prepared, xy))), prepared.shape[-1]
            if size < 2:
                raise ValueError("A batch of one sample has no variance. Give update_bn batches of two or more.")
            seen += size
            for layer, own in zip(self.after, weights, strict=True):
                of_batch = None
                if layer in self.renewed:
                    mean = x.mean(-1)
                    variance = (x - mean[..., None]).square_().mean(-1)  # var_mean: nine times slower
                    of_batch, unbiased = (mean, variance), variance * (size / (size - 1))
                    old = found.get(layer, (mean, unbiased))
                    found[layer] = old[0].lerp(mean, size / seen), old[1].lerp(unbiased, size / seen)
                    if layer is self.renewed[-1]:
                        break
                x = _all(layer, x, own, of_batch)
        return list(found.values())

    def _weights(self, xy: Sequence[tuple[float, float]]) -> list[list[Tensor]]:
        """Return the weights of the layers after the first, (P, *shape) each."""
        flat = (self.later.new_tensor([(1.0, x, y) for x, y in xy]) @ self.later).split(self.counts, dim=1)
        return [_shaped(layer, rows) for layer, rows in zip(self.after, flat, strict=True)]

    def _by_windows(self, prepared: Tensor, xy: Sequence[tuple[float, float]]) -> Tensor:
        shape = tuple(prepared.shape[1:])
        if shape not in self.programs:
            self.programs[shape] = Windowed(self.after, prepared[0].clone())
        program = self.programs[shape]
        if self.placed[0] != xy:  # the next batch asks for the same points
            self.placed = xy, [[rows.unbind() for rows in own] for own in program.arranged(self._weights(xy))]
        mixed = _mixed(program.laid_out(prepared), xy, program.entry)
        return torch.stack([program(x, [[rows[p] for rows in own] for own in self.placed[1]])
                            for p, x in enumerate(mixed)])

    def size_of_a_point(self, prepared: Tensor) -> int:
        """Return how many numbers each point of a call holds: its weights, and features (images come one by one)."""
        return self.later.shape[1] + (prepared[0].numel() if prepared.dim() == 3 else 0)


def _mixed(prepared: Tensor, xy: Sequence[tuple[float, float]], out: Tensor | None = None) -> Iterator[Tensor]:
    """Yield the mixture (…) of the three terms (3, …) at each point; those of one row share what depends on y.

    Each lies in memory of its own, or, one after another, in ``out``.
    """
    row, base = None, prepared[0]
    for x, y in xy:
        if y != row:
            row, base = y, torch.add(prepared[0], prepared[2], alpha=y)
        yield torch.add(base, prepared[1], alpha=x, out=out)


def _count(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())


def _shaped(layer: nn.Module, rows: Tensor) -> list[Tensor]:
    """A layer's weights, in rows (…, count), in the shapes (…, *shape) of its parameters."""
    own = list(layer.parameters())
    parts = rows.split([p.numel() for p in own], -1) if own else ()
    return [part.unflatten(-1, p.shape) for part, p in zip(parts, own, strict=True)]


def _all(layer: nn.Module, x: Tensor, weights: list[Tensor], moments: Moments | None = None) -> Tensor:
    """One layer on features (P, F, B), each point with its own weights (and of BatchNorm its own moments, if given)."""
    if isinstance(layer, nn.Linear):
        return torch.baddbmm(weights[1][..., None], weights[0], x) if layer.bias is not None else weights[0] @ x
    if isinstance(layer, nn.BatchNorm1d):
        mean, variance = moments or cast(Moments, (layer.running_mean, layer.running_var))
        scale = weights[0] * (variance + layer.eps).rsqrt()
        return torch.addcmul((weights[1] - mean * scale)[..., None], x, scale[..., None])
    return x if isinstance(layer, nn.Flatten) else _one(layer, x, weights)


def _one(layer: nn.Module, x: Tensor, weights: list[Tensor]) -> Tensor:
    """One layer on a batch (B, …), with the given weights."""
    bias = weights[1] if len(weights) > 1 else None
    if isinstance(layer, nn.Linear):
        return F.linear(x, weights[0], bias)
    if isinstance(layer, nn.Conv2d):
        kernel = weights[0].contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, kernel, bias, layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type]
    return x.relu_() if isinstance(layer, nn.ReLU) else layer(x)
