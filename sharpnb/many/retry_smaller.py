"""Work that does not fit into the GPU's memory, done in smaller parts."""

from __future__ import annotations

import gc
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

import torch


def in_parts_that_fit(groups: Iterable[Sequence[int]], what: str) -> Iterator[tuple[Sequence[int], Attempt]]:
    """Yield groups of numbers with an attempt at each; one that the memory does not suffice for comes again in halves.

    So do those that wait, as far as they are larger. It is the first step or the first evaluation that does not fit, so
    little is lost. An attempt that fails must leave nothing behind. Example::

        for members, attempt in in_parts_that_fit([range(8), range(8, 12)], "nets"):
            with attempt:
                train(members)
    """
    waiting = deque(groups)
    while waiting:
        group = waiting.popleft()
        attempt = Attempt(len(group), what)
        yield group, attempt
        if attempt.failed:
            gc.collect()  # after the attempt, whose exception kept the failed frames and their tensors alive
            torch.cuda.empty_cache()
            half = len(group) // 2
            warnings.warn(f"{len(group)} {what} at once do not fit into the GPU's memory; going on with {half}.",
                          stacklevel=3)
            waiting = deque(one[k : k + half] for one in (group, *waiting) for k in range(0, len(one), half))


class Attempt:
    """A context that notes that the memory did not suffice.

    Raises:
        torch.OutOfMemoryError: if one at once does not fit; the message says what to do.
    """

    def __init__(self, size: int, what: str) -> None:
        self.size, self.what, self.failed = size, what, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.failed = isinstance(error, torch.OutOfMemoryError)
        if self.failed and self.size == 1:
            raise torch.OutOfMemoryError(
                f"The GPU's memory does not suffice for even one of the {self.what}: {error}\nMake batch_size or the "
                "net smaller, or close what else uses the GPU (`nvidia-smi` shows it).") from error
        return self.failed
