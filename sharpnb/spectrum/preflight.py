"""A look at model, loss and data before hours are spent: what is wrong is a sentence that names it.

It costs one forward pass over the data, and one backward pass of the first batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sharpnb.curvature._state import Mode, measuring, unwrapped
from sharpnb.curvature.operators import ModelOperator, forward, select_parameters
from sharpnb.trees import moved, tensors


def examine(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], batches: Sequence[Any], mode: Mode, params: Any = None
) -> list[str]:
    """Look at everything once, and return what is worth a word; arguments as of the operators.

    Raises:
        ValueError: for a loss or gradient that is not finite, naming the weights or data that bring it about; empty
            batches; inputs that the model or outputs that the loss does not take; labels that are no class; a loss that
            does not depend on the parameters. The message says which batch and which parameter.
    """
    not_on_meta(model)
    model = unwrapped(model)
    chosen = select_parameters(model, params)
    device = next(iter(chosen.values())).device
    notes: list[str] = []
    cudnn = not any(isinstance(module, nn.RNNBase) for module in model.modules())  # its RNNs have no gradient in eval()
    with measuring(model, mode, chosen.values()), torch.enable_grad(), torch.backends.cudnn.flags(enabled=cudnn):
        for number, batch in enumerate(batches, 1):
            inputs, target = (moved(part, device) for part in batch)
            look = _Look(number, model, inputs, target)
            value = look.loss(loss)
            if number == 1:
                notes = look.gradient(value, chosen)
    return notes


def not_on_meta(model: nn.Module) -> None:
    """Refuse a network whose weights were never made.

    Raises:
        ValueError: naming the first of them.
    """
    named = list(chain(model.named_parameters(), model.named_buffers()))
    if lazy := [name for name, tensor in named if is_lazy(tensor)]:
        raise ValueError(f"{_some(lazy)} of the model have no shape yet: lazy layers get one from their first inputs. "
                         "Call the model once in your function, or give a --checkpoint.")
    if empty := [name for name, tensor in named if tensor.is_meta]:
        raise ValueError(f"{len(empty)} weights of the model are on the meta device, which holds no numbers: "
                         f"{_some(empty)}. Build it on the CPU, or give a --checkpoint that has them all.")


def refuse_products(op: ModelOperator) -> NoReturn:
    """Say where an operator is not finite, of which a product was not.

    Raises:
        ValueError: naming the parameters whose rows are not.
    """
    generator = torch.Generator().manual_seed(0)
    product = op @ torch.randn(op.n, generator=generator).to(op.device, op.dtype)
    rows = zip(op.names, product.isfinite().split([p.numel() for p in op.params]), strict=True)
    bad = [name for name, finite in rows if not bool(finite.all())]
    raise ValueError(f"The second derivative is not finite at these weights (in the rows of {_some(bad or op.names)}), "
                     "though loss and gradient are: a root, a norm or a division at 0, or numbers too large for "
                     f"{op.dtype}. Add an epsilon there, or try --dtype float64.")


def is_constant(op: ModelOperator) -> bool:
    """Whether the loss does not depend on the parameters to second order: gradient and a product are exactly zero."""
    with measuring(op.model, op.mode, op.params), torch.enable_grad():
        for batch in op._batches:
            value = op.loss(forward(op.model, batch.inputs), batch.target)
            grads = torch.autograd.grad(value.sum(), op.params, allow_unused=True) if value.requires_grad else ()
            if any(g is not None and bool(_values(g).any()) for g in grads):
                return False
    return True


class _Look:
    """The batch of a ``number``, from 1, looked at; a ValueError if it is empty."""

    def __init__(self, number: int, model: nn.Module, inputs: Any, target: Any) -> None:
        self.number, self.model, self.inputs, self.target = number, model, inputs, target
        for what, tree in (("inputs", inputs), ("target", target)):
            empty = next((tensor for tensor in tensors(tree) if not tensor.numel()), None)
            if empty is not None:
                raise ValueError(f"Batch {number} is empty: its {what} have the shape {tuple(empty.shape)}.")

    def loss(self, loss: Callable[[Any, Any], Tensor]) -> Tensor:
        """Return the loss, one finite number with a gradient."""
        try:
            output = forward(self.model, self.inputs)
        except Exception as error:  # whatever a network raises
            raise ValueError(
                f"Batch {self.number}: the model does not take inputs of {_shown(self.inputs)}: {_first(error)}."
                f"{_of_another_type(self.model, self.inputs)}") from error
        if loss is nn.functional.cross_entropy:
            _check_labels(self.number, output, self.target)
        try:
            value = loss(output, self.target)
        except Exception as error:
            raise ValueError(f"Batch {self.number}: the loss does not take an output of {_shown(output)} with a target "
                             f"of {_shown(self.target)}: {_first(error)}. Does the model return what the loss needs?"
                             ) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            raise ValueError(f"loss(output, target) must return one number, the batch's mean; it returned {got}.")
        if _lost(value):
            cause = self._cause() or ("Weights and data are finite, " + (
                "the model's output is not." if any(map(_lost, tensors(output))) else "and so is the model's output."))
            raise ValueError(f"Batch {self.number}: the loss is {float(value.detach())}. {cause}")
        if not value.requires_grad:
            cut = not any(part.requires_grad for part in tensors(output))
            raise ValueError(
                f"The loss has no gradient: {'the network cuts its output off' if cut else 'the loss cuts it off'}, by "
                "detach(), torch.no_grad(), argmax, .item() or NumPy. Every eigenvalue would be 0.")
        return value

    def gradient(self, value: Tensor, chosen: dict[str, nn.Parameter]) -> list[str]:
        """Look at the gradient, and return what is worth a word."""
        try:
            grads = torch.autograd.grad(value.sum(), list(chosen.values()), allow_unused=True)
        except RuntimeError as error:
            raise ValueError(f"Batch {self.number}: the loss has no gradient: {_first(error)}.") from error
        none = [name for name, g in zip(chosen, grads, strict=True) if g is None]
        if len(none) == len(grads):
            raise ValueError(f"The loss does not depend on the parameters chosen ({_some(none)}): no gradient reaches "
                             "them. Is the network used, or does it detach()? Every eigenvalue would be 0.")
        bad = [name for name, g in zip(chosen, grads, strict=True) if g is not None and _lost(g)]
        if bad:
            cause = self._cause() or "A root, a norm or a division at 0? Add an epsilon there."
            raise ValueError(f"The gradient of {_some(bad)} is not finite, though the loss is. {cause}")
        return [f"No gradient reaches {_some(none)}: their rows are 0."] if none else []

    def _cause(self) -> str:
        """Name weights or data that are not finite; masks may rightly hold infinities where nothing goes wrong."""
        for name, tensor in chain(self.model.named_parameters(), self.model.named_buffers()):
            if lost := _lost(tensor):
                return (f"The model's {name} holds {lost} of {tensor.numel():,} numbers that are NaN or infinite. Did "
                        "the training diverge? Take an earlier checkpoint.")
        for what, tree in (("inputs", self.inputs), ("target", self.target)):
            for tensor in tensors(tree):
                if lost := _lost(tensor):
                    return (f"Its {what} of shape {tuple(tensor.shape)} hold {lost} numbers that are NaN or infinite. "
                            "Clean the data, or leave those samples out.")
        return ""


def _check_labels(number: int, output: Any, target: Any) -> None:
    """Name labels that are no class: on a GPU the loss would end the process."""
    if not (isinstance(output, Tensor) and isinstance(target, Tensor) and output.dim()) or target.is_floating_point():
        return
    classes = output.shape[1 if output.dim() > 1 else 0]
    wrong = target[(target != -100) & ((target < 0) | (target >= classes))]
    if wrong.numel():
        raise ValueError(f"Batch {number}: {wrong.numel()} labels are no class of the model, whose output is "
                         f"{_shown(output)}: they lie outside 0 … {classes - 1}, from {int(wrong.min())} to "
                         f"{int(wrong.max())}. Count labels from 0, and give the model as many outputs.")


def _of_another_type(model: nn.Module, inputs: Any) -> str:
    """Say what to do where whole numbers meet weights that want others."""
    kinds = {tensor.dtype for tensor in tensors(inputs)}
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is None or not kinds or any(kind.is_floating_point or kind.is_complex for kind in kinds):
        return ""
    return f" The inputs are whole numbers and the weights {_short(weight)}: convert them in your function, x.float()."


def _lost(tensor: Tensor) -> int:
    """Return how many entries are not finite."""
    values = _values(tensor)
    return int(values.numel() - values.isfinite().sum()) if values.is_floating_point() or values.is_complex() else 0


def _values(tensor: Tensor) -> Tensor:
    return tensor.detach().coalesce().values() if tensor.is_sparse else tensor.detach()


def _shown(tree: Any) -> str:
    shapes = [f"{_short(tensor)} {tuple(tensor.shape)}" for tensor in tensors(tree)]
    return ", ".join(shapes[:4]) + (", …" if len(shapes) > 4 else "") if shapes else f"type {type(tree).__name__}"


def _short(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
