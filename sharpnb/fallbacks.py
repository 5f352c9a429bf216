"""Ways around what PyTorch refuses, for measurements that leave the network as they found it."""

from __future__ import annotations

import copy
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sharpnb.trees import mapped

_REGISTRIES = frozenset(vars(nn.Module()))  # of every module: parameters, buffers, hooks, its mode


def eager() -> Any:
    """Run compiled parts of a network as they are written, inside the context.

    What was compiled before knows nothing of hooks that came later, and has no second derivative.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def changed(changes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Give attributes of objects other values inside: each an object, a name and a value."""
    changes = list(changes)
    before = [(holder, name, getattr(holder, name)) for holder, name, _ in changes]
    try:
        for holder, name, value in changes:
            setattr(holder, name, value)
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)


def kept_modes(model: nn.Module) -> Any:
    """Leave each module in the mode in which it was found: training, or evaluation."""
    return changed((module, "training", module.training) for module in model.modules())


class WrittenOut(TorchFunctionMode):
    """Put what has a second derivative in the place of what has none, or a wrong one, inside the context.

    Weight normalisation: what double backward gives of PyTorch's own function is off by its own size (torch 2.14).
    Embeddings: their sparse gradients have no second derivative, their dense ones have.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "_weight_norm":
            v, g, dim = [*args, *kwargs.values(), 0][:3]
            return v * (g / torch.norm_except_dim(v, 2, dim))
        if func is nn.functional.embedding and kwargs.get("sparse"):
            kwargs = {**kwargs, "sparse": False}
        return func(*args, **kwargs)


@contextmanager
def kept_attributes(model: nn.Module) -> Iterator[None]:
    """Leave the plain attributes of all modules as they were found, and the entries of lists and dictionaries.

    A forward pass writes there: the weight that ``weight_norm`` or a pruned layer computes, tables that a network makes
    for itself the first time, in the type that it then runs in. Parameters, buffers and modes are not touched.
    """
    before = []
    for module in model.modules():
        own = {name: value for name, value in vars(module).items() if name not in _REGISTRIES}
        entries = {name: value.copy() for name, value in own.items() if type(value) in (list, dict)}
        before.append((vars(module), own, entries))
    try:
        yield
    finally:
        for now, own, entries in before:
            for name in now.keys() - own.keys() - _REGISTRIES:
                del now[name]
            now.update(own)
            for name, value in entries.items():
                own[name].clear()
                own[name].extend(value) if isinstance(value, list) else own[name].update(value)


# Networks that were seen to take gradients in the forward pass, and to refuse to be copied.
_TAKES_GRADIENTS: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_COPIES_NOT: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class Quiet:
    """Run a network without gradients; with them where it takes gradients in its forward pass, and say so once.

    With ``inference`` it begins with PyTorch's inference mode, which is the fastest.
    """

    def __init__(self, model: nn.Module, inference: bool = False) -> None:
        self._model = model
        self._stages: list[Any] = [torch.inference_mode] * inference + [torch.no_grad, torch.enable_grad]
        if model in _TAKES_GRADIENTS:
            self._stages = [torch.enable_grad]

    def __call__(self, function: Callable[[], Any], undo: Callable[[], None] = lambda: None) -> Any:
        """Return what ``function`` returns, detached; ``undo`` is called before it is tried again."""
        while len(self._stages) > 1:
            try:
                return self._run(function)
            except RuntimeError as error:
                if not any(sign in str(error) for sign in ("require grad", "requires_grad", "nference")):
                    raise
                reason = str(error).splitlines()[0]
            undo()
            self._stages.pop(0)
            if len(self._stages) == 1:
                found = self._run(function)  # if it fails here too, the reason was another
                _TAKES_GRADIENTS.add(self._model)
                warnings.warn(f"The network takes gradients in its forward pass ({reason}): it is run with gradients "
                              "switched on, which takes more memory.", stacklevel=4)
                return found
        return self._run(function)

    def _run(self, function: Callable[[], Any]) -> Any:
        stage = self._stages[0]
        with torch.inference_mode(stage is torch.inference_mode), stage():
            return mapped(lambda t: t.detach(), function())


def copied(model: nn.Module) -> nn.Module | None:
    """Return a deep copy, or ``None`` and once a warning where the model refuses one."""
    if model in _COPIES_NOT:
        return None
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever an attribute of a module says to being copied
        _COPIES_NOT.add(model)
        warnings.warn(f"The network cannot be copied ({str(error).splitlines()[0]}): it is used itself, and put back "
                      "as it was.", stacklevel=4)
        return None


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Leave weights, buffers, gradients, modes and attributes of a model as they were found, in their own memory."""
    params = [(p, p.detach().clone(), p.grad, p.requires_grad) for p in model.parameters()]
    buffers = [(m, dict(m._buffers)) for m in model.modules() if isinstance(m._buffers, dict)]  # not of TorchScript
    values = [(b, b.detach().clone()) for b in model.buffers()]
    with kept_attributes(model), kept_modes(model):
        try:
            for p, _, _, _ in params:
                p.grad = None
            yield
        finally:
            with torch.no_grad():
                for p, value, gradient, needed in params:
                    p.copy_(value)
                    p.grad = gradient
                    p.requires_grad_(needed)
                for b, value in values:
                    b.copy_(value)
            for module, own in buffers:
                module._buffers.clear()
                module._buffers.update(own)


@contextmanager
def apart(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a copy of a model to do with as one likes; or itself, if it cannot be copied, put back afterwards."""
    twin = copied(model)
    with nullcontext() if twin is not None else kept(model):
        yield model if twin is None else twin


@contextmanager
def steady_tables(model: nn.Module) -> Iterator[None]:
    """Make embeddings functions of their tables: with ``max_norm`` a forward pass writes into them.

    Inside, a table is what a forward pass would make of it, by an addition that stays the same when weights are moved;
    and gradients are dense, for sparse ones have no second derivative, and not divided by frequencies.
    """
    tables = _tables(model)
    with kept_attributes(nn.ModuleList(tables)):
        for module in tables:
            module.sparse = module.scale_grad_by_freq = False
            if module.max_norm is not None:
                rows = module.weight.detach()
                norms = torch.linalg.vector_norm(rows, module.norm_type, dim=1, keepdim=True)
                shorter = rows * (module.max_norm / (norms + 1e-7))
                shift = torch.where(norms > module.max_norm, shorter, rows) - rows
                module.max_norm = None
                if bool(shift.any()):
                    _change_table(module, lambda weight, shift=shift: weight + shift.to(weight))
        yield


@contextmanager
def steady_padding(model: nn.Module) -> Iterator[None]:
    """Leave the row of padding, for which embeddings have no gradient, where it is when weights are moved."""
    tables: list[Any] = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.padding_idx is not None]
    with kept_attributes(nn.ModuleList(tables)):
        for module in tables:
            place = torch.tensor([module.padding_idx], device=module.weight.device)
            row = module.weight.detach()[place]
            _change_table(module, lambda weight, place=place, row=row: weight.index_copy(0, place, row.to(weight)))
        yield


def _tables(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]


def has_sparse_gradients(model: nn.Module) -> bool:
    """Return whether an embedding asks for sparse gradients."""
    return any(module.sparse for module in _tables(model))


def _change_table(module: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Let a table's forward pass run on what ``change`` makes of its weight."""
    forward = module.forward

    def changed(module: Any, *args: Any, **kwargs: Any) -> Any:
        holder = module._parameters if "weight" in module._parameters else vars(module)  # of a change around this one
        weight = holder.pop("weight")
        try:
            module.weight = change(weight)
            return forward(*args, **kwargs)
        finally:
            vars(module).pop("weight", None)
            holder["weight"] = weight

    module.forward = MethodType(changed, module)
