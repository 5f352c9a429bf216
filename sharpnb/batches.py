r"""What a batch, a data set and a number of samples are: asked here by curvature, landscapes and averages alike.

**A batch** is a pair ``(inputs, target)``. Inputs are a tensor or ``PackedSequence`` (``model(x)``), a tuple or list
(``model(*inputs)``) or a mapping (``model(**inputs)``, or ``model(inputs)`` if the model has one argument of another
name); ids, texts and numbers may stand beside tensors everywhere.

**The loss over data** cut into batches B is what one large batch would give:

.. math:: L = \sum_B c_B L_B\Big/\sum_B c_B, \qquad\text{or with reduction="sum"}\qquad L = \sum_B L_B

where the count :math:`c_B` is the number of terms that the loss averages over in a batch:

- a mean over samples: their number, which is found without help (below);
- a mean over tokens or pixels, all of one shape: proportional to that, so the same;
- with ``ignore_index`` or padding: ``count=lambda x, y: (y != -100).sum()``;
- with weights that are divided by their sum: that sum, ``count=lambda x, y: w[y].sum()``;
- a sum: ``reduction="sum"``, and no count;
- a loss that couples the samples of a batch (contrastive): no large batch is its mean; ``count=1`` averages batches.

**The number of samples** is never guessed. It is what a ``DataLoader`` says (``batch_size``), else the length of the
first axis where all tensors of inputs and target agree on it. Where they do not, or where targets have other shapes
behind it from batch to batch, and batches are not all of one shape: a ``ValueError`` asks for ``count=``.
"""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from sharpnb.counts import Batch, Count, Reduction, Shapes, counted, known, said_by
from sharpnb.trees import mapped, moved, part, tensors

SAME_OUTPUT = 1e-3  # of the largest: a sample's output alone and among others (TF32 included); time steps are far off


def forward(model: Any, inputs: Any) -> Any:
    """Call the model on one batch of inputs (tensor, ``PackedSequence``, tuple or mapping).

    A mapping is taken apart if the model takes its keys by name, else it is the model's argument.
    """
    if isinstance(inputs, Mapping):
        return model(**inputs) if _takes_names(model, inputs) else model(inputs)
    return model(*inputs) if _is_several(inputs) else model(inputs)


def _takes_names(model: Any, inputs: Mapping[str, Any]) -> bool:
    try:
        signature = inspect.signature(getattr(model, "forward", model))
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(**inputs)
    except TypeError:
        return len(signature.parameters) != 1  # else the error of the call says what is missing
    return True


def inputs_of(batch: Any) -> Any:
    """Return the inputs of a batch that may come without a target: a tuple's or list's first entry, or all of it."""
    return batch[0] if _is_several(batch) else batch


def _is_several(tree: Any) -> bool:
    return isinstance(tree, tuple | list) and not isinstance(tree, PackedSequence)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Leave the random states of torch (CPU, CUDA), NumPy and Python as they were found."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    devices = torch.cuda.get_rng_state_all() if cuda else None
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


# ---- One batch or many ----------------------------------------------------------------------------------------------


def each(data: Any, pairs: bool = True, count: Count | None = None) -> Iterable[Any]:
    """Return the batches of ``data``, which may be one batch itself.

    Two entries in a tuple or list are one batch ``(inputs, target)``, but for two batches of one kind: two pairs (if
    not ``((x1, x2), (y1, y2))``, told by the types), two dictionaries with the same keys, and, where batches need no
    target, two tuples of one length and two tensors that are pieces of one or differ in length.

    Args:
        data: a batch, an iterable of batches, or a loader.
        pairs: whether each batch must have a target.
        count: a list of numbers says how many batches there are.

    Raises:
        ValueError: for a bare tensor, a ``Dataset`` without a loader, or two tensors that can be read either way.
    """
    if isinstance(data, Tensor):
        raise ValueError(f"data is a tensor of shape {tuple(data.shape)}. One batch is {'(x, y)' if pairs else '[x]'}, "
                         f"many are {'zip(x.split(100), y.split(100))' if pairs else 'x.split(100)'}.")
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise ValueError(f"data is a {type(data).__name__}, whose entries are samples and not batches. Pass a loader: "
                         "torch.utils.data.DataLoader(data, batch_size=100).")
    if isinstance(data, Mapping | PackedSequence):
        return [data]
    if not isinstance(data, tuple | list):
        return data
    if not pairs and isinstance(count, Sized):
        return [data] if len(count) == 1 and len(data) != 1 else data
    return [data] if len(data) == 2 and _is_one(data, pairs) else data


def _is_one(two: Any, pairs: bool) -> bool:
    a, b = two
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return pairs or not _are_two(a, b, isinstance(two, tuple))
    if isinstance(a, PackedSequence) and isinstance(b, PackedSequence):
        return pairs or isinstance(two, tuple)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return pairs or set(a) != set(b)
    if not (_is_several(a) and _is_several(b)) or len(a) != len(b):
        return True
    return not _are_two_pairs(a, b) if len(a) == 2 else pairs


def _are_two_pairs(a: Any, b: Any) -> bool:
    bare = [*a, *b]
    alike = all(isinstance(part, Tensor) and part.dim() for part in bare) and len({len(part) for part in bare}) == 1
    return not alike or not any(_kind(*column) for column in zip(a, b, strict=True))  # two batches have the same types


def _are_two(a: Tensor, b: Tensor, in_a_tuple: bool) -> bool:
    """Whether two tensors are two batches of inputs, not one with its target."""
    if not a.dim() or _kind(a, b):
        return False
    next_to = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and a.shape[1:] == b.shape[1:] and (
        a.stride() == b.stride() and b.storage_offset() == a.storage_offset() + len(a) * a.stride(0))
    if len(a) != len(b) or next_to:
        return True
    if in_a_tuple:
        return False
    raise ValueError(f"data is a list of two tensors of shapes {tuple(a.shape)} and {tuple(b.shape)}: one batch (x, y) "
                     f"or two batches of inputs? Write [(x, y)] or [(x1,), (x2,)], or say it with count=[{len(a)}] or "
                     f"count=[{len(a)}, {len(b)}].")


def _kind(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are of different kinds, and so cannot stand in the same place of two batches."""
    return a.dtype != b.dtype or a.dim() != b.dim()


def separable(run: Callable[[Any], Any], inputs: Any, size: int, m: int) -> bool:
    """Whether the last m along the first axis have the outputs alone that they have among twice as many.

    Else that axis is not the samples' (time steps, the nodes of a graph), or they see each other.
    """
    seen = min(2 * m, size)
    try:
        within, alone = (list(tensors(run(part(inputs, size - cut, size, size)))) for cut in (seen, m))
    except Exception:  # whatever a network says to a piece
        return False
    pairs = [(a[-m:], b) for a, b in zip(within, alone, strict=False) if a.dim() and len(a) == seen]
    for a, b in pairs:
        bound = max(SAME_OUTPUT, 8 * torch.finfo(a.dtype).eps) if a.is_floating_point() else 0.0
        if a.shape != b.shape or (bound and float((a - b).abs().max()) > bound * float(a.abs().max())):
            return False
    return bool(pairs) or not any(a.dim() for a in within)


# ---- Data -----------------------------------------------------------------------------------------------------------


class Batches:
    """Batches in a fixed order, each with its weight.

    Args:
        data: what :func:`each` takes.
        device: where the batches are moved to.
        reduction: what the loss does within a batch; ``"mean"`` weighs batches by their ``count``.
        count: number of loss terms of each batch: one number for all, a list of numbers, ``count(x, y)`` or
            ``count(batch)``; default as the head of this file says. A batch that counts 0 is left out.
        hold: keep the batches of one pass in memory. ``False`` reads the iterable anew for every product.
        alone: whether this is all of the data; a process of several has only its shard.

    Attributes:
        held: the batches where they are kept in memory, else None.
        samples: their number, 0 where it is not known.
        total: sum of the counts.

    Raises:
        ValueError: if there is no batch, a batch is not a pair, a count is needed and not known, or two passes of a
            loader that is read anew differ.
    """

    def __init__(
        self, data: Any, device: torch.device, reduction: Reduction = "mean", count: Count | None = None,
        hold: bool = True, alone: bool = True,
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction = {reduction!r}: the loss averages ('mean') or adds ('sum') within a batch.")
        self.device, self._source = device, each(data)
        self.reduction: Reduction = reduction
        if not hold and isinstance(self._source, Iterator):
            raise ValueError("hold=False reads the data anew for every product, and an iterator can be read once. "
                             "Pass a list or a loader, or hold=True.")
        with kept_random_state():
            if isinstance(data, DataLoader):
                _say_what_is_random(data, hold)
            held, shapes, counts = [], [], []
            for index, (inputs, target) in enumerate(map(self._prepare, self._source)):
                if hold:
                    held.append((inputs, target))
                shapes.append(Shapes.of(inputs, target))
                counts.append(None if count is None else counted(count, index, (inputs, target)))
        if not shapes:
            raise ValueError("data holds no batch and no sample: pass (x, y), a list of (x, y), or a DataLoader with "
                             "at least one.")
        if isinstance(count, Sized) and len(count) != len(shapes):
            raise ValueError(f"count holds {len(count)} numbers for {len(shapes)} batches: one for each is needed.")
        self.sure = count is not None
        self._known = known(shapes, counts, said_by(data), reduction, alone)  # size and count of each batch
        self.samples = sum(size for size, _ in self._known) if all(size for size, _ in self._known) else 0
        self.total = float(sum(c for _, c in self._known))
        if not self.total > 0:
            raise ValueError(f"count adds up to {self.total} over all of the data: there is no loss term to average.")
        self.held = list(self._numbered(held)) if hold else None

    def __iter__(self) -> Iterator[Batch]:
        if self.held is not None:
            return iter(self.held)
        with kept_random_state():  # a loader draws a seed when it starts
            source = iter(self._source)
        return self._numbered(map(self._prepare, source))

    def some(self) -> list[Batch]:
        """Return up to eight batches, the first and the last among them; of those that are not held the first two."""
        if self.held is None:
            return list(islice(self, 2))
        last = len(self.held) - 1
        return [self.held[i] for i in sorted({round(k * last / 7) for k in range(8)})]

    def weight(self, batch: Batch) -> float:
        """Return the factor of this batch's loss in the loss of the whole data."""
        return batch.count / self.total if self.reduction == "mean" else 1.0

    def _numbered(self, prepared: Iterable[tuple[Any, Any]]) -> Iterator[Batch]:
        for index, (inputs, target) in enumerate(prepared):
            if index >= len(self._known):
                raise ValueError(f"The loader gave {len(self._known)} batches in the first pass, and more in this one. "
                                 "Products need the same data every time: fix the loader, or hold=True.")
            size, count = self._known[index]
            if count or self.reduction == "sum":
                yield Batch(index, inputs, target, size, count)

    @torch.inference_mode(False)
    def _prepare(self, raw: Any) -> tuple[Any, Any]:
        if not (isinstance(raw, tuple | list) and len(raw) == 2):
            what = f"a {type(raw).__name__}" + (f" of {len(raw)} entries" if hasattr(raw, "__len__") else "")
            raise ValueError(f"A batch must be a pair (inputs, target), and this one is {what}. "
                             "Several inputs go into a tuple or a dict: ((x1, x2), y), ({'ids': ids}, y).")
        inputs, target = (mapped(lambda t: t.clone() if t.is_inference() else t, moved(part, self.device))
                          for part in raw)
        return inputs, target


# ---- Random loaders -------------------------------------------------------------------------------------------------


def _say_what_is_random(loader: DataLoader, hold: bool) -> None:
    """Name shuffling and augmentation: an error where products would differ, a warning where only two runs would."""
    sampler: Any = loader.sampler if loader.sampler is not None else loader.batch_sampler
    sampler = sampler.sampler if isinstance(sampler, BatchSampler) else sampler
    streamed, causes = isinstance(loader.dataset, IterableDataset), []
    if isinstance(sampler, RandomSampler):
        if not hold or loader.drop_last:
            causes.append(("shuffling", "pass shuffle=False"))
    elif not (hold or isinstance(sampler, SequentialSampler)) and _differ(lambda: [*tensors(next(iter(loader)))][:1]):
        causes.append(("the stream", "make its iterator begin the same every time") if streamed else
                      (f"the order of {type(sampler).__name__}", "use a SequentialSampler"))
    if not streamed:
        index = 0 if isinstance(sampler, SequentialSampler | RandomSampler) else next(iter(sampler))
        if _differ(lambda: list(tensors(loader.dataset[index]))):
            causes.append(("augmentation (the first item read twice differs)", "use the evaluation transform"))
    for name, remedy in causes:
        if not hold:
            raise ValueError(f"hold=False reads the data anew for every product, and {name} makes each one different; "
                             f"Lanczos needs one fixed operator. {remedy.capitalize()}, or hold=True.")
        warnings.warn(f"The data is random through {name}. The batches of one pass are held, so all of this "
                      f"measurement agrees, but the next would see others: {remedy}.", stacklevel=5)


def _differ(read: Callable[[], list[Tensor]]) -> bool:
    once, twice = read(), read()
    return len(once) != len(twice) or any(not torch.equal(a, b) for a, b in zip(once, twice, strict=True))
