"""A function of tensors as one CUDA graph: the host starts a whole pass at once, not its hundreds of kernels.

A small net's kernels are done before the host has started the next. On the CPU, and where a graph cannot be had, the
function is simply called.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

_WARM = 2  # calls before the capture, in which libraries start and choose their algorithms


class Captured:
    """``run(*inputs)`` for inputs on a GPU: captured at the third call with inputs of one shape, then replayed.

    Args:
        run: returns a tensor or a tuple of them. It starts the same kernels at every call, reads nothing on the host,
            and depends on its inputs and on memory that stays where it is (a net's parameters) alone.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run, self._memory = run, None  # in which all its graphs compute: each copies its outputs
        self._known: dict[Any, Callable[..., Any] | int] = {}  # by the inputs' shapes: the graph, or the calls so far

    def __call__(self, *inputs: Tensor) -> Any:
        """Return what ``run`` returns, in memory of the caller's own."""
        if not inputs[0].is_cuda:
            return self.run(*inputs)
        key = tuple((x.shape, x.stride(), x.dtype) for x in inputs)
        known = self._known.get(key, 0)
        if isinstance(known, int) and known < _WARM:
            self._known[key] = known + 1
            return _aside(self.run, inputs)
        if isinstance(known, int):
            self._memory = self._memory or torch.cuda.graph_pool_handle()
            self._known[key] = known = _replay(self.run, inputs, self._memory)
        return known(*inputs)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return one stream for all: each keeps the memory that was freed on it from the others."""
    return torch.cuda.Stream(device)


def _aside(run: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
    """Call ``run`` on another stream than the default one, as PyTorch asks for what is to be captured."""
    stream, current = _side_stream(inputs[0].device), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        outputs = run(*inputs)
    current.wait_stream(stream)
    return outputs


def _replay(run: Callable[..., Any], inputs: tuple[Tensor, ...], memory: Any) -> Callable[..., Any]:
    """Capture one graph and return what replays it; where that fails, a warning and the function itself."""
    held, graph = [torch.empty_like(x).copy_(x) for x in inputs], torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=memory):
            outputs = run(*held)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        warnings.warn(f"A pass could not be captured as a CUDA graph and goes on without ({error}).", stacklevel=3)
        return run

    def replay(*inputs: Tensor) -> Any:
        for own, x in zip(held, inputs, strict=True):
            own.copy_(x)
        graph.replay()
        return outputs.clone() if isinstance(outputs, Tensor) else tuple(x.clone() for x in outputs)

    return replay
