"""Work that does not fit into the GPU's memory, done in smaller chunks."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def halving(run: Callable[[int], T], chunk: int, what: str) -> T:
    """Return ``run(chunk)``, with half the chunk as long as the memory does not suffice; a warning says so.

    ``run`` begins anew each time, and must leave nothing behind when it fails. It is the first step or the first
    evaluation that does not fit, so little is lost.

    Args:
        run: the work, as a function of the number of ``what`` at once.
        chunk: how many at once to begin with.
        what: for the messages, in the plural.

    Raises:
        torch.OutOfMemoryError: if one at once does not fit; the message says what to do.
    """
    while True:
        try:
            return run(chunk)
        except torch.OutOfMemoryError as error:
            if chunk == 1:
                raise torch.OutOfMemoryError(
                    f"The GPU's memory does not suffice for even one of the {what}: {error}\nMake batch_size or the "
                    "net smaller, or close what else uses the GPU (`nvidia-smi` shows it).") from error
        gc.collect()  # after the except block, which keeps the failed frames and their tensors alive
        torch.cuda.empty_cache()
        warnings.warn(f"{chunk} {what} at once do not fit into the GPU's memory; going on with {chunk // 2}.",
                      stacklevel=3)
        chunk //= 2
