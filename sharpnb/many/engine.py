"""K nets in lock-step: their weights, their batches, the gradient as a function of weights, and the loop over steps.

:func:`sharpnb.many.train.train_many` trains settings with it and returns their curves. A study that looks *inside* a
step (a perturbation, an angle between two updates), or trains on something else than labelled batches (Mixup), drives
it by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sharpnb.many.augment import Augment
from sharpnb.many.batches import Batches, DataSet, one_each
from sharpnb.many.cuda_graph import Captured
from sharpnb.many.net import BatchedNet, blocks, cross_entropy, evaluate_many
from sharpnb.many.net import losses as losses  # notebooks find it here
from sharpnb.many.schedules import Schedule, Schedules
from sharpnb.progress import training_bar
from sharpnb.rules import State

Batch = tuple[Tensor, Tensor]  # images (K, B, ...), labels (K, B) or class probabilities (K, B, C)
Rule = Callable[..., tuple[Tensor, State]]  # (w, gradient, state, eta=...) -> (w, state), as the ascent rules
Probe = Callable[[int, "Nets"], None]


class Nets:
    """K nets of one architecture, each with its seed and its data.

    The arguments are those of :func:`~sharpnb.many.train.train_many`. Nets of one seed and data see the same batches.
    BatchNorm normalises by the batch, and in :meth:`logits` by the statistics of the training images.

    Attributes:
        w: weights, (K, n); :meth:`fit` moves them.
        forward: the :class:`~sharpnb.many.net.BatchedNet`.
        sets: the data sets as they were given, one for each net.
        draw, in_order: those of its :class:`~sharpnb.many.batches.Batches`: the next training batch of every net; all.

    A ValueError if there is not one data set for all or one of equal size each, or if the model cannot be batched.
    """

    def __init__(
        self, seeds: Sequence[int], data: DataSet | Sequence[DataSet], model: Callable[[int], nn.Module], *,
        batch_size: int = 64, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float64,
        augment: Augment | None = None, bf16: bool = False,
    ) -> None:
        self.sets, self.bf16 = one_each(data, len(seeds)), bf16
        self.batches = Batches(self.sets, seeds, batch_size, augment, device, dtype)
        self.draw, self.in_order = self.batches.draw, self.batches.in_order
        nets = {seed: model(seed) for seed in dict.fromkeys(seeds)}
        self.forward = BatchedNet(copy.deepcopy(nets[seeds[0]]).to(device, dtype), self.batches.images.shape[1:])
        self.gradient_and_logits = Captured(partial(self.forward.gradient_and_logits, bf16=bf16))
        flat = {seed: nn.utils.parameters_to_vector(net.parameters()).detach() for seed, net in nets.items()}
        self.w = torch.stack([flat[seed].to(device, dtype) for seed in seeds])

    def gradient(self, batch: Batch) -> Gradient:
        """Return the gradient of the mean loss on ``batch`` as a function of weights, (K, n) -> (K, n)."""
        return Gradient(self, *batch)

    @torch.no_grad()
    def error(self, w: Tensor, batch: Batch) -> Tensor:
        """Return the error on a labelled batch in percent, (K,)."""
        return _error(self.forward(w, batch[0]), batch[1], w)

    def errors(self, w: Tensor, part: str) -> Tensor:
        """Return the error on ``"train"`` or ``"test"`` in percent, (K,)."""
        out = w.new_empty(len(w))
        for members, z, y in self.logits(w, part):
            out[members] = _error(z, y, w)
        return out

    @torch.no_grad()
    def logits(self, w: Tensor, part: str, chunk: int = 1000) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield, data set by data set, its nets' numbers, their outputs (nets, N, C) on its ``part``, its labels (N,).

        The part is ``"train"`` or ``"test"``; ``chunk`` images of each net go in one pass.
        """
        for data, members in self.batches.groups("train", "test"):
            x, y = getattr(data, part)
            statistics = self._statistics(w[members], data.train[0], chunk)
            outputs = [self.forward(w[members], piece.expand(len(members), *piece.shape), statistics)
                       for piece in x.split(chunk)]
            yield members, torch.cat(outputs, 1), y

    @torch.no_grad()
    def evaluate(self, w: Tensor) -> dict[str, list[float]]:
        """Return ``train_loss``, ``train_error``, ``test_loss``, ``test_error`` of every net (nats, percent)."""
        both = ("train", "test")
        found = {f"{part}_{what}": [0.0] * len(w) for part in both for what in ("loss", "error")}
        for parts in [both] if self.forward.normalises else [both[:1], both[1:]]:  # one test set is of many seeds
            for data, members in self.batches.groups(*parts):
                statistics = self._statistics(w[members], data.train[0], 250)
                for part in parts:
                    columns = evaluate_many(self.forward, w[members], getattr(data, part), statistics)
                    for k, loss, error in zip(members.tolist(), *columns, strict=True):
                        found[f"{part}_loss"][k], found[f"{part}_error"][k] = loss, error
        return found

    def _statistics(self, w: Tensor, x: Tensor, chunk: int) -> Any:
        """Return what norm layers have in evaluation: the statistics of the training images at these weights."""
        chunks = (piece[None] for piece in blocks(x, chunk))
        return self.forward.statistics(w, chunks) if self.forward.normalises else None

    def fit(
        self, rule: Rule, steps: int, *, schedule: str | Schedule | Schedules = "cosine", every: int = 0,
        probe: Probe | None = None, mix: Callable[[Batch], Batch] | None = None, progress: bool | None = None,
    ) -> Tensor:
        """Make ``steps`` updates of every net and return the weights, (K, n).

        Args:
            rule: ``(w, gradient, state, eta=...)`` -> ``(w, state)``: an ascent rule of :mod:`sharpnb.rules` with its
                hyperparameters bound, or any function like it.
            steps: number of updates.
            schedule: of eta, as in :func:`sharpnb.lab.train`, or what each net has of its own.
            every: steps between two calls of ``probe``.
            probe: called as ``probe(step, nets)`` before a step, and at the end.
            mix: changes each batch before it is used.
            progress: show a progress bar (default: where one can be drawn).
        """
        schedules = schedule if isinstance(schedule, Schedules) else Schedules([{"schedule": schedule}], steps)
        state: State = None
        for step in training_bar(steps, progress):
            if probe and every and step % every == 0:
                probe(step, self)
            gradient = self.gradient(mix(self.draw()) if mix else self.draw())
            self.w, state = rule(self.w, gradient, state, **schedules.at(step, self.w))
        if probe:
            probe(steps, self)
        return self.w


def _error(logits: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return 100.0 * (logits.argmax(2) != y).to(w.dtype).mean(1)


class Gradient:
    """The mean loss's gradient of each net on one batch, as a function of weights; ``rows`` picks images (for ESAM)."""

    def __init__(self, nets: Nets, x: Tensor, y: Tensor) -> None:
        self.nets, self.x, self.y = nets, x, y
        self.last: tuple[Tensor | None, Tensor | None] = None, None  # weights, and the batch's logits there

    def __call__(self, w: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the gradient at ``w``, (K, n), of the images (K, B') numbered by ``rows``, else of all."""
        x, y = self.x, self.y
        if rows is None:
            found, logits = self.nets.gradient_and_logits(w, x, y)
            self.last = w, logits
            return found
        places = (torch.arange(len(x), device=x.device)[:, None] * x.shape[1] + rows).flatten()
        x, y = x.flatten(0, 1).index_select(0, places).unflatten(0, rows.shape), y.gather(1, rows)
        return self.nets.gradient_and_logits(w, x, y)[0]

    @torch.no_grad()
    def losses(self, w: Tensor) -> Tensor:
        """Return the loss of each image, (K, B); where the gradient was just asked for, by its forward pass."""
        at, logits = self.last
        if logits is not None and w is at:
            return cross_entropy(logits, self.y)
        return self.nets.forward.losses(w, self.x, self.y, self.nets.bf16)
