r"""Stochastic weight averaging (Izmailov, Podoprikhin, Garipov, Vetrov & Wilson, UAI 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sharpnb.averaging.batchnorm import Call, update_bn
from sharpnb.averaging.wrapped import is_number, plain, reshard, unwrapped, wide
from sharpnb.caches import forget_casts, refuse_parametrization_cache
from sharpnb.counts import Count
from sharpnb.optim.ranks import is_sharded, local


class SWA:
    r"""A running average of a model's parameters, beside the model and out of its way.

    Collected n times before,

    .. math::
        \bar w\leftarrow\bar w+\frac{w-\bar w}{n+1}\quad\text{(equal average)},\qquad
        \bar w\leftarrow d\,\bar w+(1-d)\,w\quad\text{(exponential, the first collection copies)}

    When to collect is the caller's schedule: once an epoch under a constant learning rate, at the minima of a cyclic
    one (the paper takes every end of a cycle, from 75 % of the budget on)::

        swa = SWA(model)
        for epoch in range(epochs):
            train_one_epoch(...)
            if epoch >= start and (epoch - start) % cycle == 0:
                swa.update(model)
        swa.update_bn(loader)
        with swa.average_weights():
            evaluate(model)

    How it differs from ``torch.optim.swa_utils.AveragedModel``, and why: (1) no second model, only the weights: the
    average is swapped into the model for the time of a ``with``; (2) the count is a Python number, so an update never
    waits for the GPU; (3) the average of half-precision weights is kept in float32, where the increment of a late
    collection does not vanish, and follows a model that changes its dtype or device; (4) integer and boolean parameters
    have no mean: the latest are kept; (5) the average has BatchNorm statistics of its own, see :meth:`update_bn`, and
    no averages of buffers (``use_buffers``).

    Args:
        model: the model that is trained; held, never copied.
        decay: None for the equal average, d in [0, 1) for the exponential one. The attribute may be set before each
            :meth:`update`, as for a warm-up of d.

    Attributes:
        n: collections so far.
        average: name -> averaged parameter, empty before the first collection.
        statistics: name -> BatchNorm buffer of the average, empty before :meth:`update_bn`.

    Raises:
        ValueError: if ``decay`` is out of range.
    """

    def __init__(self, model: nn.Module, decay: float | None = None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay = {decay}: use None for the equal average, or a number in [0, 1), e.g. 0.99.")
        self.model, self.decay, self.n, self._shown = model, decay, 0, False
        self.average: dict[str, Tensor] = {}
        self.statistics: dict[str, Tensor] = {}

    @torch.inference_mode(False)
    @torch.no_grad()
    def update(self, model: nn.Module | None = None) -> None:
        """Collect the parameters of ``model`` (default: the one given to the constructor).

        Raises:
            RuntimeError: inside :meth:`average_weights`.
            ValueError: if the model has other parameters than the average.
        """
        if self._shown:
            raise RuntimeError("update() inside average_weights(): the model holds the average there. Leave it first.")
        weights = _weights(self.model if model is None else model)
        self.statistics = {}  # they belonged to another average
        if not self.n:
            self.average = {name: w.to(wide(w.dtype), copy=True) for name, w in weights.items()}
        else:
            self._check_names(weights, "update")
            share = 1 / (self.n + 1) if self.decay is None else 1 - self.decay
            self.average = {name: _follow(a, weights[name]) for name, a in self.average.items()}
            names = [name for name, w in weights.items() if is_number(w)]
            average, new = ([local(of[name]) for name in names] for of in (self.average, weights))
            if names:
                torch._foreach_lerp_(average, [w.to(a) for w, a in zip(new, average, strict=True)], share)
        self.n += 1

    def update_bn(self, data: Any, call: Call | None = None, *, count: Count | None = None) -> None:
        """Compute the average's own BatchNorm statistics by one pass over ``data``; the model's own stay as they are.

        Arguments and weighting as :func:`sharpnb.averaging.update_bn`. Without this pass the average of a net with
        BatchNorm is evaluated with the statistics of other weights, and is wrong.

        Raises:
            RuntimeError: if nothing was collected yet.
        """
        with self.average_weights():
            update_bn(self.model, data, call, count=count)
            self.statistics = {name: b.clone() for name, b in _statistics(self.model).items()}

    @contextmanager
    def average_weights(self, model: nn.Module | None = None) -> Iterator[nn.Module]:
        """Inside the context the model has the average as its weights (and its statistics), outside it is as before.

        What keeps weights elsewhere follows: autocast's cache (the context may stand inside or around ``autocast``),
        compiled modules, and modules under ``fully_shard``, where each process averages its own part. What has made
        constants of the weights (``torch.export``, ``torch.jit.freeze``, the inductor's freezing) cannot.

        Raises:
            RuntimeError: if nothing was collected yet, the average is swapped in already, or the weights are kept by
                ``torch.nn.utils.parametrize.cached()``.
        """
        model = self.model if model is None else model
        if self._shown:
            raise RuntimeError("average_weights() inside itself: the average is swapped in already.")
        kept = {name: t.detach().clone() for name, t in _all(model).items()}
        try:
            self.copy_to(model)
            self._shown = True
            yield model
        finally:
            self._shown = False
            _write(_all(model), kept)

    def copy_to(self, model: nn.Module) -> None:
        """Write the average and, where computed, its BatchNorm statistics into ``model`` for good.

        Raises:
            RuntimeError: if nothing was collected yet, or inside ``torch.nn.utils.parametrize.cached()``.
            ValueError: if the model has other parameters than the average.
        """
        if not self.n:
            raise RuntimeError("There is no average yet: call update(model) at least once.")
        refuse_parametrization_cache("Swapping an average in")
        self._check_names(_weights(model), "copy_to")
        _write(_all(model), {**self.average, **self.statistics})

    def vector(self) -> Tensor:
        """Return the average as one flat vector, in the order of ``model.parameters()``; whole where it is sharded."""
        return torch.cat([(a.full_tensor() if is_sharded(a) else a).flatten() for a in self.average.values()])

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as tensors and numbers (``torch.load(weights_only=True)`` works)."""
        average, statistics = ({name: t.clone() for name, t in d.items()} for d in (self.average, self.statistics))
        return {"n": self.n, "decay": self.decay, "average": average, "statistics": statistics}

    @torch.inference_mode(False)
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`, on the devices of the model's parameters.

        That of ``torch.optim.swa_utils.AveragedModel`` is taken too: its weights and their number. Its ``decay`` is not
        in it, and whether its buffers belong to the average is not: this one keeps its decay, call :meth:`update_bn`.

        Raises:
            RuntimeError: inside :meth:`average_weights`.
            ValueError: if the state is that of another model; nothing is loaded then.
        """
        if self._shown:
            raise RuntimeError("load_state_dict() inside average_weights(): leave it first.")
        weights, own = _weights(self.model), _all(self.model)
        if "n_averaged" in state:
            state = self._from_averaged_model(state, weights)
        for name, t in (*state["average"].items(), *state["statistics"].items()):
            if name not in own or own[name].shape != t.shape:
                raise ValueError(f"load_state_dict: {name} of shape {tuple(t.shape)} is not in the model. Resume with "
                                 "the architecture that the average was saved from.")
        missing = sorted(weights.keys() - state["average"].keys()) if state["n"] else []
        if missing:
            raise ValueError(f"load_state_dict: the average lacks {len(missing)} parameters of the model, the first is "
                             f"{missing[0]}. Resume with the architecture that the average was saved from.")
        _check_sharding(state["average"], own, "load_state_dict")
        self.n, self.decay = state["n"], state["decay"]
        for part in ("average", "statistics"):
            setattr(self, part, {name: t.to(own[name].device, copy=True) for name, t in state[part].items()})

    def _from_averaged_model(self, state: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Any]:
        inner = unwrapped(self.model)
        others = (*inner.named_buffers(remove_duplicate=False), *inner.named_parameters(remove_duplicate=False))
        known = plain(dict(others)).keys() - weights.keys()  # buffers, and second names of tied weights
        theirs = plain({name: t for name, t in state.items() if name != "n_averaged"})
        while theirs and not theirs.keys() & weights.keys() and all(name.startswith("module.") for name in theirs):
            theirs = {name.removeprefix("module."): t for name, t in theirs.items()}
        average = {name: t.to(wide(t.dtype)) for name, t in theirs.items() if name not in known}
        return {"n": int(state["n_averaged"]), "decay": self.decay, "average": average, "statistics": {}}

    def _check_names(self, weights: dict[str, Any], what: str) -> None:
        differ = sorted(set(weights) ^ set(self.average))
        if differ:
            raise ValueError(f"{what}: the model and the average differ in {', '.join(differ[:3])}"
                             f"{' …' if len(differ) > 3 else ''}. Average models of one architecture only.")
        _check_sharding(self.average, weights, what)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    reshard(model)
    return plain(dict(unwrapped(model).named_parameters()))


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of the BatchNorm layers by name."""
    inner = unwrapped(model)
    layers = {name for name, module in inner.named_modules() if isinstance(module, _BatchNorm)}
    return plain({name: b for name, b in inner.named_buffers() if name.rpartition(".")[0] in layers})


def _all(model: nn.Module) -> dict[str, Tensor]:
    return {**_weights(model), **_statistics(model)}


def _follow(average: Tensor, w: Tensor) -> Tensor:
    """Return the average on the device of w, in no less than its precision; what has no mean is w itself."""
    if not is_number(w):
        return w.clone()
    return average.to(w.device, torch.promote_types(average.dtype, wide(w.dtype)))


def _check_sharding(average: dict[str, Tensor], weights: dict[str, Tensor], what: str) -> None:
    for name, a in average.items():
        if is_sharded(a) != is_sharded(weights[name]):
            which = "the average" if is_sharded(a) else "the model"
            raise ValueError(f"{what}: {name} is sharded (FSDP2, DTensor) in {which} alone. Shard both, or neither.")


@torch.no_grad()
def _write(own: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        own[name].copy_(value)
    forget_casts()
