"""A model's forward pass for K weight vectors at once: (K, n) weights, (K, B, ...) inputs to (K, B, classes).

Row k is the flat weights in the order of ``model.parameters()``, as ``torch.nn.utils.parameters_to_vector`` lays
them out.

Each linear, convolutional and norm layer is replaced by its K-fold twin; all between them is the model's own. Features
travel as (K, B, features), images as (B, K * channels, height, width), so that activations, pooling and skips need no
twin, linear layers are batched matrix products, convolutions grouped ones, and a norm layer over K * channels is K norm
layers. A model that this does not fit (other layers with weights, a forward pass that looks at the shapes) runs through
``torch.func.vmap``; which of the two it is, is settled by comparing with the model itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from sharpnb.many.mlp import MLP

Statistics = list[tuple[Tensor, Tensor]]


class BatchedNet:
    """The forward pass of K models of one architecture: ``net(w, x)`` with (K, n) and (K, B, ...), see the module.

    A norm layer uses the statistics of the batch, each model its own, unless ``statistics`` are given. There are no
    running averages: :meth:`statistics` measures on as many images as one has, which depends on the weights alone.
    The model is not touched. The twins are tried on inputs of a ``shape``, e.g. ``x.shape[1:]``.

    Attributes:
        shapes: of its parameters.
        norms: the model's norm layers, in the order of :meth:`statistics`.
        by_twins: whether it runs by twins, else through ``vmap``.

    A ValueError if the model has dropout, whose randomness a row does not carry, and is not in evaluation mode, where
    dropout rests; or if it has norm layers in a forward pass that only ``vmap`` can run.
    """

    def __init__(self, model: nn.Module, shape: Sequence[int]) -> None:
        if model.training and (dropout := {type(m).__name__ for m in model.modules() if isinstance(m, _DropoutNd)}):
            raise ValueError(f"{', '.join(sorted(dropout))} cannot be trained many at a time: a row of weights carries "
                             "no random numbers. Build it without, or use sharpnb.lab.train, one model at a time.")
        self.shapes = [p.shape for p in model.parameters()]
        self._sizes = [shape.numel() for shape in self.shapes]
        self._mlp = MLP.of(model)
        own = copy.deepcopy(model).train()
        given = dict(zip(own.modules(), model.modules(), strict=True))
        self._model = nn.Sequential(own)  # so that each layer has a place to be replaced in
        self._twins = _replace(self._model)
        self._norms = [twin for twin in self._twins if isinstance(twin, _Norm)]
        self.norms = [given[twin.layer[0]] for twin in self._norms]
        self.normalises = any(isinstance(m, _BatchNorm) for m in model.modules())
        self.by_twins = _covered(model) and self._is_right(model, shape)
        self._by_vmap = None if self.by_twins else _vectorised(model)
        if self._by_vmap and self.normalises:
            raise ValueError("A model with BatchNorm can be trained many at a time only if all its weights are in "
                             "Linear, Conv2d and BatchNorm layers and its forward pass mixes no channels itself. Build "
                             "it so, or use sharpnb.lab.train, one model at a time.")

    def __call__(self, w: Tensor, x: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Return the logits, (K, B, classes); norms use the batch's statistics, or (evaluation mode) the given ones."""
        if whole := self._by_vmap or (None if self.normalises else self._mlp):
            return whole(w, x)
        if self._model.training != (statistics is None):
            self._model.train(statistics is None)
        return self._run(w, x, statistics)

    def gradient_and_logits(self, w: Tensor, x: Tensor, y: Tensor, bf16: bool = False) -> tuple[Tensor, Tensor]:
        """Return the gradient of each row's mean cross-entropy (:func:`losses`), (K, n), and the logits.

        Norms use the batch's statistics. With ``bf16`` the forward pass runs under bfloat16 autocast, but for the twins
        of linear layers.
        """
        if self._mlp:
            with torch.no_grad():
                return self._mlp.gradient_and_logits(w, x, y)
        with torch.enable_grad(), _autocast(x, bf16):
            w = w.detach().requires_grad_()
            logits = self(w, x)
            return torch.autograd.grad(losses(logits, y).sum(), w)[0], logits.detach()

    @torch.no_grad()
    def losses(self, w: Tensor, x: Tensor, y: Tensor, bf16: bool = False) -> Tensor:
        """Return each image's cross-entropy, (K, B), by the forward pass of the gradient, in its precision."""
        with _autocast(x, bf16):
            return cross_entropy(self(w, x), y)

    @torch.no_grad()
    def statistics(
        self, w: Tensor, chunks: Iterable[Tensor], fixed: Sequence[tuple[Tensor, Tensor] | None] | None = None
    ) -> Statistics:
        """Return mean and variance (unbiased) of each norm layer over images that come in chunks, (1 or K, B, ...).

        Chunks are normalised by themselves and count by the numbers that a layer averages in them, as in
        :func:`sharpnb.averaging.update_bn`. A layer may have a ``fixed`` mean and variance, (K C,) each, and keeps it.
        """
        found: Statistics = []
        for twin, given in zip(self._norms, fixed or [None] * len(self._norms), strict=True):
            number = len(w) * twin.layer[0].num_features
            found.append(given or (w.new_zeros(number), w.new_ones(number)))
            twin.seen = None if given else 0
        self._model.eval()
        try:
            for x in chunks if self._norms else ():
                self._run(w, x.expand(len(w), *x.shape[1:]), found)
        finally:
            for twin in self._norms:
                twin.seen = None
        return found

    def _run(self, w: Tensor, x: Tensor, statistics: Statistics | None) -> Tensor:
        pieces = w.split(self._sizes, dim=1)
        for twin in self._twins:
            twin.load(pieces)
        for twin, running in zip(self._norms, statistics or [(None, None)] * len(self._norms), strict=True):
            twin.running = running
        return _features(self._model(x), len(w))

    def _is_right(self, model: nn.Module, shape: Sequence[int]) -> bool:
        """Whether the twins compute what the model does, tried on two rows of noise in float64, nothing random."""
        generator, n = torch.Generator().manual_seed(0), sum(self._sizes)
        w = torch.randn(2, n, generator=generator, dtype=torch.float64) / n**0.25
        x = torch.randn(2, 5, *shape, generator=generator, dtype=torch.float64)
        original, expected = copy.deepcopy(model).to("cpu", torch.float64).eval(), []
        for norm in (m for m in original.modules() if isinstance(m, _BatchNorm)):
            norm.train()
        self._model.eval()
        with torch.no_grad():
            for row, batch in zip(w, x, strict=True):
                nn.utils.vector_to_parameters(row, original.parameters())
                expected.append(original(batch))
            try:
                got = self._run(w, x, None)
            except (RuntimeError, ValueError, IndexError, TypeError):
                return False
        return got.shape == (2, *expected[0].shape) and torch.allclose(got, torch.stack(expected), rtol=1e-9, atol=1e-9)


def _autocast(x: Tensor, bf16: bool) -> Any:
    return torch.autocast(x.device.type, torch.bfloat16) if bf16 else nullcontext()


def _vectorised(model: nn.Module) -> Any:
    names, parameters = zip(*model.named_parameters(), strict=True)

    def one(row: Tensor, x: Tensor) -> Tensor:
        parts = row.split([p.numel() for p in parameters])
        own = (part.view(p.shape) for part, p in zip(parts, parameters, strict=True))
        return functional_call(model, dict(zip(names, own, strict=True)), (x,))

    return vmap(one)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each image of each model: (K, B, classes), (K, B) -> (K, B), in nats."""
    # Images last: a softmax over a short last axis is not vectorised (with its gradient 1.5 to 2 times slower).
    images_last = logits.flatten(0, 1).mT.contiguous()
    return F.cross_entropy(images_last[None], y.flatten()[None], reduction="none").view(y.shape)


def losses(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of each row: logits (K, B, C), labels (K, B) or class probabilities (K, B, C) -> (K,)."""
    if y.ndim == 2:
        return cross_entropy(logits, y).mean(1)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(0, 1), reduction="none").view(logits.shape[:2]).mean(1)


def blocks(x: Tensor, size: int) -> list[Tensor]:
    """Cut images into blocks of ``size`` for :meth:`BatchedNet.statistics`; the last may be smaller.

    One image alone has no variance. Where it would be the last block, it joins the block before.
    """
    found = list(x.split(size))
    if len(found) > 1 and len(found[-1]) == 1:
        found[-2:] = [x[-size - 1 :]]
    return found


@torch.no_grad()
def evaluate_many(
    net: BatchedNet, w: Tensor, data: tuple[Tensor, Tensor], statistics: Statistics | None = None, at_once: int = 250
) -> tuple[list[float], list[float]]:
    """Return each row's mean cross-entropy (nats) and error (percent) on the same images and labels.

    ``at_once`` images of each row go in one pass: small blocks stay in the cache.
    """
    loss, wrong, n = w.new_zeros(len(w)), w.new_zeros(len(w)), len(data[1])
    for x, y in zip(*(part.split(at_once) for part in data), strict=True):
        logits = net(w, x.expand(len(w), *x.shape), statistics)
        y = y.expand(len(w), -1)
        loss += cross_entropy(logits, y).sum(1)
        wrong += (logits.argmax(2) != y).sum(1)
    return [a / n for a in loss.tolist()], [100.0 * b / n for b in wrong.tolist()]


# ---- Twins ----------------------------------------------------------------------------------------------------------


def _features(x: Tensor, k: int) -> Tensor:
    """Return features as (K, B, features), from there, from (B, K * features), images (B, K * C, H, W) or inputs."""
    if x.ndim in (3, 5):
        return x.flatten(2)
    return x.reshape(len(x), k, -1).transpose(0, 1)


class _Twin(nn.Module):
    """What a layer becomes: ``load`` gives it each model's own weights, (K, ...), where the layer has any."""

    weight: Any
    bias: Any
    k: int

    def __init__(self, layer: Any, slots: dict[str, int]) -> None:
        super().__init__()
        self.layer, self.slots = (layer,), slots  # in a tuple: the layer's parameters are not this module's

    def load(self, pieces: tuple[Tensor, ...]) -> None:
        own = {name: pieces[slot].view(len(pieces[slot]), *getattr(self.layer[0], name).shape)
               for name, slot in self.slots.items()}
        self.__dict__ |= {"k": len(pieces[0]), "bias": None, **own}  # setattr of a module costs as much as a view


class _Affine(torch.autograd.Function):
    """``x @ w.mT + b``, without the transpose of the weights' gradient that PyTorch makes and copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.mT if b is None else torch.baddbmm(b[:, None], x, w.mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, w = ctx.saved_tensors
        by_input, _, by_bias = ctx.needs_input_grad
        return gradient @ w if by_input else None, gradient.mT @ x, gradient.sum(1) if by_bias else None


class _Linear(_Twin):
    def forward(self, x: Tensor) -> Tensor:  # -> (K, B, out)
        x = _features(x, self.k)
        if not torch.is_autocast_enabled(x.device.type):
            return _Affine.apply(x, self.weight, self.bias)
        with torch.autocast(x.device.type, enabled=False):  # autograd leaves it on the way back
            return _Affine.apply(x.to(self.weight.dtype), self.weight, self.bias)


class _Conv(_Twin):
    def forward(self, x: Tensor) -> Tensor:  # (K, B, C, H, W) or (B, K C, H, W) -> (B, K C', H', W')
        layer = self.layer[0]
        if x.ndim == 5:
            x = x.transpose(0, 1).flatten(1, 2)
        bias = None if self.bias is None else self.bias.flatten()
        # channels_last: measured 15 % faster on a CPU than the usual layout for groups of eight channels.
        return F.conv2d(x.contiguous(memory_format=torch.channels_last), self.weight.flatten(0, 1), bias, layer.stride,
                        layer.padding, layer.dilation, self.k * layer.groups)


class _Norm(_Twin):
    running: tuple[Tensor | None, Tensor | None] = (None, None)
    seen: int | None = None  # where statistics are measured: the numbers that each channel has averaged so far

    def forward(self, x: Tensor) -> Tensor:  # (K, B, F) or (B, K C, H, W), as it comes
        y = x.transpose(0, 1).flatten(1) if x.ndim == 3 else x
        mean, variance = self.running
        momentum, by_batch, number = 0.0, mean is None or self.seen is not None, y.numel() // y.shape[1]
        if by_batch and number < 2:
            raise ValueError("BatchNorm has no variance on a batch of one sample. Use batches of two or more.")
        if self.seen is not None:
            self.seen += number
            momentum = number / self.seen
        y = F.batch_norm(y, mean, variance, self.weight.flatten(), self.bias.flatten(), by_batch, momentum,
                         self.layer[0].eps)
        return _features(y, self.k) if x.ndim == 3 else y


class _Flatten(_Twin):
    def forward(self, x: Tensor) -> Tensor:
        return _features(_with_gradient_like_images(x) if x.ndim == 4 else x, self.k)


class _Mean(_Twin):
    def forward(self, x: Tensor) -> Tensor:  # (B, K C, H, W) -> (B, K C, 1, 1)
        return self.layer[0](_with_gradient_like_images(x))


def _with_gradient_like_images(x: Tensor) -> Tensor:
    """Return images whose gradient is channels-last too: two layouts at once cost a sixth of a CNN's whole step."""
    if x.requires_grad:
        x.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))
    return x


def _twin_of(layer: nn.Module) -> type[_Twin] | None:
    if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
        return _Conv
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.affine:
        return _Norm
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
        return _Flatten
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
        return _Mean
    return _Linear if isinstance(layer, nn.Linear) else None


def _covered(model: nn.Module) -> bool:
    """Whether every weight and every statistic of the model is one that a twin knows."""
    known = [layer for layer in model.modules() if _twin_of(layer)]
    owned = {id(t) for layer in known for t in (*layer.parameters(False), *layer.buffers(False))}
    return {id(t) for t in (*model.parameters(), *model.buffers())} <= owned


def _replace(model: nn.Module) -> list[_Twin]:
    """Put twins in the place of layers, in place, and return them."""
    slots = {id(p): slot for slot, p in enumerate(model.parameters())}
    twins: dict[nn.Module, _Twin] = {}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if kind := _twin_of(layer):
                own = {key: slots[id(p)] for key, p in layer.named_parameters(recurse=False)}
                twins.setdefault(layer, kind(layer, own))
                setattr(parent, name, twins[layer])
            elif isinstance(layer, _DropoutNd):
                setattr(parent, name, nn.Identity())
    return list(twins.values())
