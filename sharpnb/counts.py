r"""How many samples a batch holds, over how many terms its loss averages, and whether that adds up.

See the head of :mod:`sharpnb.batches` for what these are.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from sharpnb.trees import joined, lengths, mapped, tensors

Reduction = Literal["mean", "sum"]
Count = float | Sequence[float] | Callable[..., Any]
ASK = ("Say it with count=: a function, count=lambda x, y: len(y), that returns the number of terms which the loss "
       "averages over; or a list of numbers, one for each batch.")


class Batch(NamedTuple):
    """One batch and its share of the data set.

    Attributes:
        index: its number in the order of the data.
        inputs: what the model gets: see :func:`forward`.
        target: second argument of the loss.
        size: number of samples; 0 where it is not known and not needed.
        count: number of loss terms; the weight of the batch is ``count / total`` for a mean, 1 for a sum.
    """

    index: int
    inputs: Any
    target: Any
    size: int
    count: float


def counted(count: Count, index: int, batch: Any) -> float:
    """Return the count of one batch, ``(x, y)`` or of another kind.

    Raises:
        ValueError: if it is negative, not finite, or a list is too short.
    """
    if callable(count):
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        value = float(count(*batch) if pair and _takes_two(count) else count(batch))
    elif isinstance(count, int | float):
        value = float(count)
    elif index < len(count):
        value = float(count[index])
    else:
        raise ValueError(f"count holds {len(count)} numbers, and there are more batches: one for each is needed.")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"count is {value} for batch {index}: a number of loss terms is finite and not negative.")
    return value


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    return len(needed) != 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


# ---- The number of samples ------------------------------------------------------------------------------------------


class Shapes(NamedTuple):
    """The shapes of a batch: of its inputs, of its target, and the lengths of their first axes."""

    inputs: tuple[tuple[int, ...], ...]
    target: tuple[tuple[int, ...], ...]
    first: frozenset[int]

    @classmethod
    def of(cls, inputs: Any, target: Any) -> Shapes:
        """Return those of a batch."""
        of_inputs, of_target = (tuple(tuple(t.shape) for t in tensors(part)) for part in (inputs, target))
        return cls(of_inputs, of_target, frozenset((*lengths(inputs), *lengths(target))))

    def terms(self) -> list[tuple[int, ...]]:
        """The shapes that show over how many terms a loss averages: those of the target if it has any."""
        return [s for s in self.target if s] or [s for s in self.inputs if s]

    def __str__(self) -> str:
        parts = [", ".join(map(str, shapes)) or "without tensors" for shapes in (self.inputs, self.target)]
        return f"inputs {parts[0]} and target {parts[1]}"


def known(
    shapes: list[Shapes], counts: list[float | None], said: list[int] | None, reduction: str, alone: bool
) -> list[tuple[int, float]]:
    """Return size and count of each batch; a size that is not known is 0."""
    sizes = [next(iter(shape.first)) if len(shape.first) == 1 else 0 for shape in shapes]
    for i, (size, shape) in enumerate(zip(said or (), shapes, strict=False)):
        if any(size in own for own in shape.terms()):
            sizes[i] = size
    if all(count is not None for count in counts):
        return [(size, float(count or 0)) for size, count in zip(sizes, counts, strict=True)]
    same = alone and all(shape[:2] == shapes[0][:2] for shape in shapes)
    if reduction == "sum" or same:  # then one count is as good as any other
        return [(size, float(size or 1)) for size in sizes] if all(sizes) else [(size, 1.0) for size in sizes]
    for i, (shape, size) in enumerate(zip(shapes, sizes, strict=True)):
        if not size:
            raise ValueError(f"How many samples a batch holds is not to be seen, and batches weigh by it: batch {i} "
                             f"has {shape}, which disagree on the first axis. {ASK}")
        here, there = (list(map(math.prod, of.terms())) for of in (shape, shapes[0]))
        if [terms * sizes[0] for terms in here] != [terms * size for terms in there]:
            raise ValueError(f"Batches differ in length, and over how many terms the loss averages in each is not to "
                             f"be seen: batch 0 has {shapes[0]}, batch {i} has {shape}. {ASK}")
    return [(size, float(size)) for size in sizes]


def said_by(data: Any) -> list[int] | None:
    """Return the sizes of the batches of a loader that knows them, before its ``collate_fn`` lays them out."""
    if not isinstance(data, DataLoader) or data.batch_size is None or isinstance(data.dataset, IterableDataset):
        return None
    sampler: Any = data.sampler
    try:
        full, rest = divmod(len(sampler), data.batch_size)
    except TypeError:
        return None
    return [data.batch_size] * full + [rest] * (rest > 0 and not data.drop_last)


# ---- What one large batch would give --------------------------------------------------------------------------------


def check_loss(
    loss: Callable[[Any, Any], Any], measured: Sequence[tuple[Batch, Any]], reduction: Reduction,
    run: Callable[[Any], Any] | None = None,
) -> None:
    """Compare the loss of several batches together with what their own losses give.

    Only the loss is called, but for a model whose output holds single numbers, such as its own loss. Nothing is said
    where the tensors cannot be joined along their first axis. ``measured`` are some of the batches, with the model's
    outputs; ``run`` is the model, a function of inputs.

    Raises:
        ValueError: if it is no mean over samples (or no sum), or the outputs have another number of samples.
    """
    counts = torch.tensor([batch.count for batch, _ in measured], dtype=torch.float64)
    inside = all(not set(lengths(output)) for _, output in measured)  # the loss is the model's own
    for batch, output in measured:
        found = set(lengths(output))
        if found and batch.size not in found and reduction == "mean" and bool((counts != counts[0]).any()):
            raise ValueError(f"Batch {batch.index} seems to hold {batch.size} samples, but the model's output for it "
                             f"has the first axes {sorted(found)}. Batches weigh by their samples. {ASK}")
        joint = {*lengths(batch.inputs), *lengths(batch.target)} if inside else {*found, *lengths(batch.target)}
        if not batch.size or joint != {batch.size}:
            return
    if (inside and run is None) or (values := _values(loss, measured, run if inside else None)) is None:
        return
    apart, together, noise = values
    mean, added = float(counts @ apart / counts.sum()), float(apart.sum())
    averages, adds = abs(together - mean) <= noise, abs(together - added) <= noise
    if reduction == "mean" and not averages:
        why = ("it adds, so pass reduction='sum'" if adds else
               "it averages over other terms than samples (padding that is ignored, weights), or couples them")
        raise ValueError(f"The loss of {len(measured)} batches together is {together:.6g}, and the mean of their own "
                         f"losses, weighed by their samples, is {mean:.6g}: {why}. {ASK} count=1 takes the plain mean "
                         "over batches.")
    if reduction == "sum" and averages and not adds:
        raise ValueError(f"reduction = 'sum', but the loss of {len(measured)} batches together is {together:.6g}, the "
                         f"mean of their own and not their sum {added:.6g}. Pass reduction='mean'.")


def _values(loss: Any, measured: Any, run: Any) -> tuple[Tensor, float, float] | None:
    """Return each batch's loss, that of all, and their rounding; None where loss or model do not take all at once.

    The loss is computed in float64 where it takes that; with ``run`` the model computes it, from all inputs together.
    """
    for kind in (torch.float64, None) if run is None else (None,):
        def cast(t: Tensor, kind: torch.dtype | None = kind) -> Tensor:
            return t.to(kind) if kind and t.is_floating_point() else t

        outputs, targets = [mapped(cast, z) for _, z in measured], [mapped(cast, b.target) for b, _ in measured]
        try:
            whole = joined(outputs) if run is None else run(joined([batch.inputs for batch, _ in measured]))
            values = [loss(*pair) for pair in zip([*outputs, whole], [*targets, joined(targets)], strict=True)]
            found = torch.stack([value.detach().reshape(()).double().cpu() for value in values])
            epsilon = torch.finfo(values[0].dtype).eps
        except Exception:  # whatever a loss or a model says to such arguments: then it is not compared
            continue
        if not bool(found.isfinite().all()):
            return None
        sizes = [float(t.abs().max()) for t in tensors(outputs) if t.is_floating_point() and t.numel()]
        rounding = 64 * epsilon * max(sizes, default=0.0)
        largest = float(found.abs().max())
        return found[:-1], float(found[-1]), 1e-6 * largest + rounding if run is None else 1e-4 * largest + 1e-6
    return None
