r"""Many points of a plane at a time, for nets that are a chain of linear layers, convolutions, norms and activations.

On a plane the first layer's output is affine in the coordinates, :math:`A_0 + x A_1 + y A_2`: three products for all
points, and an addition or two mix them. What follows treats many points in one call:

- Features lie samples last in memory: layers are matrix products with long rows, and a softmax over few classes is
  vectorised over the samples.
- Images of a few points lie side by side in the channels, which are last in memory: a convolution is a grouped one, a
  group for each point. With AVX-512 PyTorch's kernels are twice as fast on sixteen channels as on eight, and slow on
  twelve of a point (:mod:`sharpnb.landscape._widened`).
- Where a processor lacks AVX-512, convolutions of eight channels or fewer are matrix products, point by point
  (:mod:`sharpnb.landscape._windows`): there this is the faster way.

Shapes: P points, B samples; features (P, F, B); images (B, G C, H, W) of G points, channels last in memory, or, for
matrix products, (H, C, W, B).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.landscape._widened import widen
from sharpnb.landscape._windows import Windowed, fits, samples_last

Moments = tuple[Tensor, Tensor]  # of a BatchNorm layer's inputs: mean and variance
_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Sigmoid, nn.Tanh,
    nn.Hardtanh, nn.Hardswish, nn.Identity)
_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_CHANNELS = 16  # of the points side by side on a CPU: 32, 64 and 128 were slower
_FEW = 8  # channels, for which matrix products are the faster convolutions without AVX-512


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
    return layers if fine and (type(first) is nn.Linear or _flattens_first(layers)) else None


def _flattens_first(layers: Sequence[nn.Module]) -> bool:
    """Whether no linear layer reads images, of which it would mix the last axis."""
    kinds = [type(layer) for layer in layers]
    return nn.Linear not in kinds or nn.Flatten in kinds[: kinds.index(nn.Linear)]


def _unfolded(model: nn.Module) -> list[nn.Module]:
    return [leaf for part in model for leaf in _unfolded(part)] if type(model) is nn.Sequential else [model]


def _is_plain(layer: Any) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros"
    if type(layer) is nn.Flatten:
        return layer.start_dim == 1 and layer.end_dim == -1
    if type(layer) in _NORMS:
        return bool(layer.affine) and layer.running_mean is not None
    return type(layer) in (nn.Linear, nn.Dropout, *_POINTWISE, *_POOLS)


class _TanhInPlace(nn.Module):
    r"""The hyperbolic tangent as :math:`2\sigma(2x)-1`: on a CPU five times faster, in float32 2e-7 off at most."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2).sigmoid_().mul_(2).sub_(1)


class Stacked:
    """The forward pass of a chain at P points of a plane.

    Attributes:
        images: whether the first layer is a convolution.
        group: how many points lie side by side in images.
        windowed: whether convolutions are matrix products.

    Args:
        layers: from :func:`chain`, in evaluation mode; copies, for they may be changed.
        vectors: origin, u and v, (3, n), in the type and on the device of the model.
        renewed: BatchNorm layers among them that have statistics of their own at each point; the others keep theirs.
    """

    def __init__(self, layers: list[Any], vectors: Tensor, renewed: Sequence[Any] = ()) -> None:
        self.renewed = renewed
        first = next(i for i, layer in enumerate(layers) if _count(layer))
        self.before, self.first, self.after = layers[:first], layers[first], layers[first + 1 :]
        self.own, self.later = vectors.split([n := _count(self.first), vectors.shape[1] - n], dim=1)
        self.images = type(self.first) is nn.Conv2d
        self.windowed, self.group = False, 1
        self.programs: dict[tuple[int, ...], Windowed] = {}  # one for each size of batch
        if vectors.device.type == "cpu":
            self._suit_the_cpu()

    def _suit_the_cpu(self) -> None:
        """Choose what this kind of processor does fastest."""
        norms = any(isinstance(layer, _NORMS) for layer in self.after)  # they would magnify the error of small numbers
        if not norms and torch.finfo(self.later.dtype).bits >= 32:
            self.after = [_TanhInPlace() if type(layer) is nn.Tanh else layer for layer in self.after]
        channels = [layer.in_channels for layer in self.after if type(layer) is nn.Conv2d]
        if not channels:
            return
        wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
        self.windowed = not wide and max(channels) <= _FEW and fits(self.after)
        self.group = 1 if self.windowed else max(1, _CHANNELS // min(channels))
        if wide:
            widen(self.after, weights := self._by_layer(self.later))
            self.later = torch.cat([w.flatten(1) for own in weights for w in own], 1)

    def prepare(self, x: Tensor) -> Tensor:
        """Return the first layer's three terms for a batch (B, …): features or images, G times the same."""
        for layer in self.before:
            x = layer(x)
        rows = [[torch.cat([w] * self.group) for w in _shaped(self.first, row)] for row in self.own]
        if not self.images:
            return torch.stack([F.linear(x, *row).mT for row in rows])
        terms = torch.stack([_on_images(self.first, x, [w[None] for w in row]).movedim(1, -1) for row in rows])
        terms = terms.movedim(-1, 2)
        return samples_last(terms) if self.windowed else terms

    def __call__(
        self, prepared: Tensor, xy: Sequence[tuple[float, float]], statistics: Sequence[Moments] = ()
    ) -> Tensor:
        """Return the outputs (P, B, …) at the points; ``statistics`` are those of the renewed layers, in order."""
        if self.windowed:
            return self._by_windows(prepared, xy).mT
        points = self._filled(xy)
        given = {layer: [torch.cat([m, m[-1:].expand(len(points) - len(xy), -1)]) for m in moments]
                 for layer, moments in zip(self.renewed, statistics, strict=True)}
        weights, outputs = self._weights(points), []
        for part, x in self._mixed(prepared, points):
            for layer, own in zip(self.after, weights, strict=True):
                moments = [m[part] for m in given[layer]] if layer in given else None
                x = self._one(layer, x, [w[part] for w in own], moments)
            outputs.append(x if x.dim() == 3 else x.unflatten(1, (self.group, -1)).transpose(0, 1))
        found = torch.cat(outputs)[: len(xy)] if len(outputs) > 1 else outputs[0][: len(xy)]
        return found.mT if found.dim() == 3 else found

    def statistics(self, batches: Iterable[Tensor], xy: Sequence[tuple[float, float]]) -> list[Moments]:
        """Return the renewed layers' mean and unbiased variance, (P, F) each, as ``update_bn`` takes them.

        Args:
            batches: prepared; each is normalised by itself, and they count by the numbers that a layer averages.
            xy: the points.
        """
        points, seen = self._filled(xy), dict.fromkeys(self.renewed, 0)
        found = {layer: self.own.new_zeros(2, len(points), layer.weight.numel()) for layer in self.renewed}
        last = self.after.index(self.renewed[-1])
        weights = self._weights(points)
        for prepared in batches:
            read = dict.fromkeys(self.renewed, 0)
            for part, x in self._mixed(prepared, points):
                for layer, own in zip(self.after[: last + 1], weights, strict=False):
                    own = [w[part] for w in own]
                    if layer in found:
                        read[layer] = x.numel() // found[layer][0, part].numel()
                        share = read[layer] / (seen[layer] + read[layer])
                        x = self._renew(layer, x, own, found[layer][:, part], share)
                    else:
                        x = self._one(layer, x, own)
            seen = {layer: seen[layer] + read[layer] for layer in seen}
        return [(mean[: len(xy)], variance[: len(xy)]) for mean, variance in found.values()]

    def _filled(self, xy: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Repeat the last point until the last group is full."""
        return [*xy, *[xy[-1]] * (-len(xy) % self.group)]

    def _weights(self, xy: Sequence[tuple[float, float]]) -> list[list[Tensor]]:
        """Return the weights of the layers after the first, (P, *shape) each."""
        return self._by_layer(self.later.new_tensor([(1.0, x, y) for x, y in xy]) @ self.later)

    def _by_layer(self, rows: Tensor) -> list[list[Tensor]]:
        parts = rows.split([_count(layer) for layer in self.after], 1)
        return [_shaped(layer, part) for layer, part in zip(self.after, parts, strict=True)]

    def _mixed(self, terms: Tensor, xy: Sequence[tuple[float, float]]) -> Iterator[tuple[slice, Tensor]]:
        """Yield the first layer's outputs: the features of all points, or group after group their images."""
        if not self.images:
            yield slice(None), torch.stack(list(_mixtures(terms, xy)))
            return
        channels = terms.shape[2] // self.group
        xs, ys = terms.new_tensor(xy).T.repeat_interleave(channels, 1).view(2, -1, terms.shape[2], 1, 1)
        rows, base = [], terms[0]
        for number, (x, y) in enumerate(zip(xs, ys, strict=True)):
            part = slice(number * self.group, (number + 1) * self.group)
            before, rows = rows, [row for _, row in xy[part]]
            if rows != before:  # groups of one row share what depends on y
                base = torch.addcmul(terms[0], terms[2], y)
            yield part, torch.addcmul(base, terms[1], x)

    def _by_windows(self, terms: Tensor, xy: Sequence[tuple[float, float]]) -> Tensor:
        """Return the outputs (P, classes, B) at the points."""
        shape = tuple(terms.shape[1:])
        if shape not in self.programs:
            self.programs[shape] = Windowed(self.after, terms[0].clone())
        program = self.programs[shape]
        arranged = [[rows.unbind() for rows in own] for own in program.arranged(self._weights(xy))]
        return torch.stack([program(x, [[rows[p] for rows in own] for own in arranged])
                            for p, x in enumerate(_mixtures(program.laid_out(terms), xy, program.entry))])

    def _one(self, layer: Any, x: Tensor, weights: list[Tensor], moments: Sequence[Tensor] | None = None) -> Tensor:
        """One layer on features or images, each point with its own weights (and of BatchNorm moments, if given)."""
        if x.dim() == 3:
            return _on_features(layer, x, weights, moments)
        if type(layer) is nn.Flatten:
            images = x.contiguous()  # then what follows is a view, and this is the fast way to copy
            return images.unflatten(1, (self.group, -1)).permute(1, 2, 3, 4, 0).flatten(1, 3)
        return _on_images(layer, x, weights, moments)

    def _renew(self, layer: Any, x: Tensor, weights: list[Tensor], moments: Tensor, share: float) -> Tensor:
        """A BatchNorm layer by what it reads: mean and unbiased variance enter ``moments`` (2, P, F) with a share."""
        axes, ones = ((-1,), (None,)) if x.dim() == 3 else ((0, 2, 3), (None, None))
        count = x.numel() // moments[0].numel()
        if count < 2:
            raise ValueError("A batch of one sample has no variance. Give update_bn batches of two or more.")
        mean = x.mean(axes)
        variance = (x - mean[..., *ones]).square_().mean(axes)  # var_mean: ten times slower
        mean, variance = mean.view_as(moments[0]), variance.view_as(moments[0])
        moments.lerp_(torch.stack([mean, variance * (count / (count - 1))]), share)
        return self._one(layer, x, weights, (mean, variance))

    def size_of_a_point(self, prepared: Tensor) -> int:
        """Return how many numbers each point of a call holds: its weights, and features (images come in groups)."""
        return self.later.shape[1] + (0 if self.images else prepared[0].numel())


def _mixtures(terms: Tensor, xy: Sequence[tuple[float, float]], out: Tensor | None = None) -> Iterator[Tensor]:
    """Yield the mixture (…) of the three terms (3, …) at each point; those of one row share what depends on y.

    Each lies in memory of its own, or, one after another, in ``out``.
    """
    row, base = None, terms[0]
    for x, y in xy:
        if y != row:
            row, base = y, torch.add(terms[0], terms[2], alpha=y)
        yield torch.add(base, terms[1], alpha=x, out=out)


def _count(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())


def _shaped(layer: nn.Module, rows: Tensor) -> list[Tensor]:
    """A layer's weights, in rows (…, count), in the shapes (…, *shape) of its parameters."""
    own = list(layer.parameters())
    parts = rows.split([p.numel() for p in own], -1) if own else ()
    return [part.unflatten(-1, p.shape) for part, p in zip(parts, own, strict=True)]


def _on_features(layer: Any, x: Tensor, weights: list[Tensor], moments: Sequence[Tensor] | None = None) -> Tensor:
    """One layer on features (P, F, B), each point with its own weights (and of BatchNorm its own moments, if given)."""
    if type(layer) is nn.Linear:
        return torch.baddbmm(weights[1][..., None], weights[0], x) if layer.bias is not None else weights[0] @ x
    if type(layer) in _NORMS:
        mean, variance = moments or (layer.running_mean, layer.running_var)
        scale = weights[0] * (variance + layer.eps).rsqrt()
        return torch.addcmul((weights[1] - mean * scale)[..., None], x, scale[..., None])
    return x if type(layer) is nn.Flatten else _numbers(layer, x)


def _on_images(layer: Any, x: Tensor, weights: list[Tensor], moments: Sequence[Tensor] | None = None) -> Tensor:
    """One layer on the images (B, G C, H, W) of G points, each with its own weights (and moments, if given)."""
    if type(layer) is nn.Conv2d:
        kernel = weights[0].flatten(0, 1).contiguous(memory_format=torch.channels_last)
        bias = weights[1].flatten() if layer.bias is not None else None
        return F.conv2d(x, kernel, bias, layer.stride, layer.padding, layer.dilation, groups=len(weights[0]))
    if type(layer) in _NORMS:
        kept = [m.repeat(len(weights[0])) for m in (layer.running_mean, layer.running_var)]
        mean, variance = [m.flatten() for m in moments] if moments else kept
        return F.batch_norm(x, mean, variance, weights[0].flatten(), weights[1].flatten(), eps=layer.eps)
    return _numbers(layer, x)


def _numbers(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer without weights, which takes each channel by itself."""
    return x.relu_() if isinstance(layer, nn.ReLU) else layer(x)
