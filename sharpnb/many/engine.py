"""K nets in lock-step, driven by hand: the batch, its gradient as a function of rows, and every step are the caller's.

:func:`sharpnb.lab.train_many` trains settings and returns their curves; this is for the studies that look *inside* a
step (a perturbation, an angle between two updates) or feed it something other than a labelled batch (Mixup).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sharpnb.lab.augment import each_by_its_own
from sharpnb.lab.data import Data
from sharpnb.lab.training import Augment, Schedule, _progress, _schedule, batches
from sharpnb.many.cuda_graph import Captured
from sharpnb.many.net import batched_forward, blocks
from sharpnb.many.net import losses as losses  # notebooks find it here
from sharpnb.rules import Gradient, State

Batch = tuple[Tensor, Tensor]  # images (K, B, ...), labels (K, B) or class probabilities (K, B, C)
Rule = Callable[..., tuple[Tensor, State]]  # (w, grad, state, eta=...) -> (w, state), as the ascent rules
Probe = Callable[[int, "Rows"], None]


class Rows:
    """K nets of one architecture, each with its seed and its data.

    Args:
        seeds: of initial weights and batch order, one a row. Rows of one seed see the same batches.
        data: one data set for all, or one a row (equal numbers of training images).
        model: seed -> net without dropout. BatchNorm normalises by the batch, and in :meth:`logits` by the statistics
            of the training images.
        batch_size: images an update.
        device: where weights and images live.
        dtype: of both.
        augment: of the training images of each row, as in :func:`sharpnb.lab.train`.
        bf16: of the gradients, as in :func:`sharpnb.lab.train_many`.

    Attributes:
        w: weights, (K, n); :meth:`fit` moves them.

    Raises:
        ValueError: if there is not one data set for all, or one of equal size for each row.
    """

    def __init__(
        self, seeds: Sequence[int], data: Data | Sequence[Data], model: Callable[[int], nn.Module], *,
        batch_size: int = 64, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float64,
        augment: Augment | None = None, bf16: bool = False,
    ) -> None:
        sets = [data] * len(seeds) if isinstance(data, Data) else list(data)
        if len(sets) != len(seeds) or len({len(d.train_y) for d in sets}) != 1:
            raise ValueError(f"{len(sets)} data sets for {len(seeds)} rows: give one for all, or one each of one size.")
        self.batch_size, self.augment = batch_size, augment
        nets = {seed: model(seed).to(device, dtype) for seed in dict.fromkeys(seeds)}
        self.forward = batched_forward(next(iter(nets.values())))
        self._gradient = Captured(partial(self.forward.gradient, bf16=bf16))
        flat = {seed: nn.utils.parameters_to_vector(net.parameters()).detach() for seed, net in nets.items()}
        self.w = torch.stack([flat[seed] for seed in seeds])
        own = list({id(d): d for d in sets}.values())
        self.owner = torch.tensor([next(i for i, d in enumerate(own) if d is mine) for mine in sets], device=device)
        self.sets = [d.to(device, dtype) for d in own]
        self.x, self.y = (torch.stack(part) for part in zip(*(d.train for d in self.sets), strict=True))  # (sets, N, …)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._orders = [batches(self.x.shape[1], batch_size, generator, device) for generator in self._generators]

    def draw(self) -> Batch:
        """Return the next training batch of every row."""
        index = torch.stack([next(order) for order in self._orders])
        x, y = self.x[self.owner[:, None], index], self.y[self.owner[:, None], index]
        return each_by_its_own(self.augment, x, self._generators) if self.augment else x, y

    def in_order(self) -> Iterator[Batch]:
        """Yield the training images once, in their own order, in whole batches: for measurements."""
        for start in range(0, self.x.shape[1] - self.batch_size + 1, self.batch_size):
            part = slice(start, start + self.batch_size)
            yield self.x[self.owner, part], self.y[self.owner, part]

    def gradient(self, batch: Batch) -> Gradient:
        """Return the gradient of the mean loss on ``batch`` as a function of rows, (K, n) -> (K, n)."""
        return lambda w: self._gradient(w, *batch)

    @torch.no_grad()
    def error(self, w: Tensor, batch: Batch) -> Tensor:
        """Return the error on a labelled batch in percent, (K,)."""
        x, y = batch
        return 100.0 * (self.forward(w, x).argmax(2) != y).to(w.dtype).mean(1)

    @torch.no_grad()
    def logits(self, w: Tensor, part: str, chunk: int = 1000) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield, data set by data set, the rows on it, their outputs (rows, N, C) on its ``part``, its labels (N,)."""
        for number, data in enumerate(self.sets):
            rows, (x, y) = (self.owner == number).nonzero()[:, 0], getattr(data, part)
            whole = (piece[None] for piece in blocks(data.train_x, chunk))
            norms = self.forward.statistics(w[rows], whole) if self.forward.normalises else None
            outputs = [self.forward(w[rows], piece.expand(len(rows), *piece.shape), norms) for piece in x.split(chunk)]
            yield rows, torch.cat(outputs, 1), y

    def errors(self, w: Tensor, part: str) -> Tensor:
        """Return the error on ``"train"`` or ``"test"`` in percent, (K,)."""
        out = w.new_empty(len(w))
        for rows, z, y in self.logits(w, part):
            out[rows] = 100.0 * (z.argmax(2) != y).to(w.dtype).mean(1)
        return out

    def fit(
        self, rule: Rule, steps: int, *, schedule: str | Schedule = "cosine", every: int = 0,
        probe: Probe | None = None, mix: Callable[[Batch], Batch] | None = None, progress: bool | None = None,
    ) -> Tensor:
        """Make ``steps`` updates of every row and return the weights, (K, n).

        Args:
            rule: ``(w, grad, state, eta=...)`` -> ``(w, state)``: an ascent rule of :mod:`sharpnb.rules` with its
                hyperparameters bound, or any function like it.
            steps: number of updates.
            schedule: of eta, as in :func:`sharpnb.lab.train`.
            every: steps between two calls of ``probe``.
            probe: called as ``probe(step, rows)``, and at the end.
            mix: changes each batch before it is used.
            progress: show a progress bar (default: where one can be drawn).
        """
        eta, state = _schedule(schedule), None
        for step in _progress(steps, progress):
            if probe and every and step % every == 0:
                probe(step, self)
            batch = self.draw()
            self.w, state = rule(self.w, self.gradient(mix(batch) if mix else batch), state, eta=eta(step / steps))
        if probe:
            probe(steps, self)
        return self.w
