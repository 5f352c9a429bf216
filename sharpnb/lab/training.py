"""One model on one device: the trainer that every full-size experiment uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.devices import pick_device as pick_device
from sharpnb.fallbacks import kept_modes
from sharpnb.lab.data import Data
from sharpnb.many.augment import Augment as Augment
from sharpnb.many.augment import shift_and_flip as shift_and_flip
from sharpnb.many.cuda_graph import Captured
from sharpnb.many.schedules import SCHEDULES as SCHEDULES
from sharpnb.many.schedules import Schedule, schedule_of
from sharpnb.progress import training_bar

METRICS = ("train_loss", "train_error", "test_loss", "test_error")


@dataclass
class History:
    """What a training leaves behind.

    Attributes:
        rows: per evaluation ``step``, ``epoch``, ``train_loss``, ``train_error``, ``test_loss``, ``test_error`` (errors
            in percent, losses in nats).
        weights: step -> flat copy of the parameters (on the CPU), for the steps asked for.
        diverged: the step at which the loss was no longer finite and training stopped, or None.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    weights: dict[int, Tensor] = field(default_factory=dict)
    diverged: int | None = None


@torch.no_grad()
def evaluate(model: nn.Module, data: tuple[Tensor, Tensor], *, batch_size: int = 2048) -> tuple[float, float]:
    """Return mean cross-entropy (nats) and error (percent) in evaluation mode; the mode is put back afterwards."""
    loss, wrong = 0.0, 0
    with kept_modes(model):
        model.eval()
        for x, y in zip(data[0].split(batch_size), data[1].split(batch_size), strict=True):
            logits = model(x)
            loss += F.cross_entropy(logits, y, reduction="sum").item()
            wrong += int((logits.argmax(1) != y).sum())
    return loss / len(data[1]), 100.0 * wrong / len(data[1])


def batches(
    n: int, batch_size: int, generator: torch.Generator, device: str | torch.device = "cpu"
) -> Iterator[Tensor]:
    """Yield index tensors for ever: a new order each epoch, the last incomplete batch left out.

    The order is drawn by the generator, so that every device sees the same, and moved once an epoch.
    """
    size = min(batch_size, n)
    while True:
        order = torch.randperm(n, generator=generator).to(device)
        for start in range(0, n - size + 1, size):
            yield order[start : start + size]


def train(
    model: nn.Module, data: Data, optimizer: torch.optim.Optimizer, *, steps: int, batch_size: int = 64,
    schedule: str | Schedule = "cosine", seed: int = 0, augment: Augment | None = None, label_smoothing: float = 0.0,
    device: str | torch.device = "auto", bf16: bool = False, evaluate_every: int = 0, keep: tuple[int, ...] = (),
    progress: bool | None = None, channels_last: bool | None = None, look_every: int | None = None,
    graphs: bool = False,
) -> History:
    """Train ``model`` in place with ``optimizer.step(closure)``.

    Any ``torch.optim`` optimizer and any wrapper of :mod:`sharpnb.optim` but ESAM will do (:func:`train_many` has it).

    Args:
        model: moved to ``device``.
        data: moved to ``device`` whole, in the type of the model's parameters.
        optimizer: over the model's parameters; its learning rates are multiplied by the schedule and put back after.
        steps: number of updates.
        batch_size: images an update (default 64, chosen by us for the small data sets; the papers use 128 or 256).
        schedule: ``"cosine"`` (the SAM paper's, to zero), ``"constant"``, ``"step"`` or a function of the share done.
        seed: of batch order and augmentation. The weights are the model's own.
        augment: a function of a batch and a generator, e.g. :func:`shift_and_flip`.
        label_smoothing: as ``torch.nn.functional.cross_entropy``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.
        bf16: run forward passes under bfloat16 autocast.
        evaluate_every: evaluate each so many steps (0: at the end alone).
        keep: steps (0 is the start) at which a flat copy of the weights is kept.
        progress: show a progress bar (default: where one can be drawn).
        channels_last: give the net its images channels last, which is what a GPU's bfloat16 convolutions want and
            passes from layer to layer (default: on a GPU). The weights stay as they are.
        look_every: steps between two looks at the losses (default: 1 on a CPU; 100 on a GPU, which would otherwise
            wait for the host at every step).
        graphs: on a GPU, start each forward and backward pass as one CUDA graph (:mod:`sharpnb.many.cuda_graph`
            says for which nets). A :mod:`sharpnb.optim` wrapper then needs ``model=``, for the hooks by which it would
            find norm layers are not called, and its ``in_place=True``.

    Returns:
        The curves and the kept weights. If the loss stops being finite, training stops at the next look, and
        ``diverged`` is the very step.

    Raises:
        ValueError: for an unknown schedule, a device that is not there, steps below 1, or an optimizer that cannot do
            with ``graphs``.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: train for at least one step.")
    if graphs and (getattr(optimizer, "model", model) is not model or not getattr(optimizer, "in_place", True)):
        raise ValueError(f"graphs=True: {type(optimizer).__name__} needs model=model and in_place=True for that.")
    eta = schedule_of(schedule)
    where = pick_device(device)
    model.to(where)
    data = data.to(where, next(model.parameters()).dtype)
    generator = torch.Generator().manual_seed(seed)
    history, base_lrs = History(), [group["lr"] for group in optimizer.param_groups]
    on_gpu = where.type == "cuda"
    losses, look_every = [], look_every or (100 if on_gpu else 1)
    order = batches(len(data.train_y), batch_size, generator, where)
    per_epoch = max(1, len(data.train_y) // batch_size)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
            return F.cross_entropy(model(x), y, label_smoothing=label_smoothing)

    def plainly(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        return loss.detach()

    passes: Callable[..., Any] = _captured(model, loss_of) if graphs else plainly  # torch declares a float
    model.train()
    try:
        for step in training_bar(steps, progress):
            if step in keep:
                history.weights[step] = _flat(model)
            for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
                group["lr"] = lr * eta(step / steps)
            index = next(order)
            x, y = data.train_x[index], data.train_y[index]
            x = augment(x, generator) if augment else x
            if x.ndim == 4 and (on_gpu if channels_last is None else channels_last):
                x = x.contiguous(memory_format=torch.channels_last)
            losses.append(optimizer.step(partial(passes, x, y)))
            if len(losses) == look_every or step + 1 == steps:  # a host read; it also keeps the bar honest
                read = torch.stack(losses).tolist() if isinstance(losses[0], Tensor) else losses
                if bad := [k for k, loss in enumerate(read) if not math.isfinite(loss)]:
                    history.diverged = step + 1 - len(losses) + bad[0]
                    break
                losses.clear()
            if evaluate_every and (step + 1) % evaluate_every == 0 and step + 1 < steps:
                history.rows.append(_row(model, data, step + 1, per_epoch))
        history.rows.append(_row(model, data, 1 + (step if history.diverged is None else history.diverged), per_epoch))
        if steps in keep and history.diverged is None:
            history.weights[steps] = _flat(model)
    finally:
        for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
            group["lr"] = lr
    return history


def _captured(model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what leaves the gradients in ``.grad`` and returns the loss, on a GPU as one CUDA graph."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss = loss_of(x, y)
        return loss.detach(), torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])

    captured = Captured(gradient)

    def passes(x: Tensor, y: Tensor) -> Tensor:
        loss, flat = captured(x, y)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view(p.shape)
        return loss

    return passes


def _flat(model: nn.Module) -> Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().cpu().clone()


def _row(model: nn.Module, data: Data, step: int, per_epoch: int) -> dict[str, float]:
    values = (*evaluate(model, data.train), *evaluate(model, data.test))
    return {"step": step, "epoch": step / per_epoch, **dict(zip(METRICS, values, strict=True))}
