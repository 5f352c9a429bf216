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
from sharpnb.curvature.differences import Differences
from sharpnb.curvature.operators import ModelOperator, forward, select_parameters
from sharpnb.near import told
from sharpnb.trees import moved, tensors

Loss = Callable[[Any, Any], Tensor]


def examine(model: nn.Module, loss: Loss, batches: Sequence[Any], mode: Mode, params: Any = None) -> list[str]:
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
            value = _loss(f"Batch {number}", model, loss, inputs, target)
            if number == 1:
                notes = _gradient(model, value, chosen, inputs, target)
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
    product = op @ torch.randn(op.n, generator=torch.Generator().manual_seed(0)).to(op.device, op.dtype)
    rows = zip(op.names, product.isfinite().split([p.numel() for p in op.params]), strict=True)
    bad = [name for name, finite in rows if not bool(finite.all())]
    raise ValueError(f"The second derivative is not finite at these weights (in the rows of {_some(bad or op.names)}), "
                     "though loss and gradient are: a root, a norm or a division at 0, or numbers too large for "
                     f"{op.dtype}. Add an epsilon there, or try --dtype float64.")


def is_constant(op: ModelOperator) -> bool:
    """Whether the loss does not depend on the parameters to second order: its gradient is exactly zero, too."""
    return not bool(Differences(op).gradient().any())


def _loss(where: str, model: nn.Module, loss: Loss, inputs: Any, target: Any) -> Tensor:
    """Return the loss of a batch, one finite number with a gradient."""
    for what, tree in (("inputs", inputs), ("target", target)):
        if empty := [tuple(tensor.shape) for tensor in tensors(tree) if not tensor.numel()]:
            raise ValueError(f"{where} is empty: its {what} have the shape {empty[0]}.")
    try:
        output = forward(model, inputs)
    except Exception as error:  # whatever a network raises
        whole = {t.is_floating_point() or t.is_complex() for t in tensors(inputs)} == {False}
        remedy = " Inputs of whole numbers may have to be converted in your function: x.float()." if whole else ""
        raise ValueError(f"{where}: the model does not take inputs of {_shown(inputs)}: {told(error)}.{remedy}"
                         ) from error
    if loss is nn.functional.cross_entropy:
        _check_labels(where, output, target)
    try:
        value = loss(output, target)
    except Exception as error:
        raise ValueError(f"{where}: the loss does not take an output of {_shown(output)} with a target of "
                         f"{_shown(target)}: {told(error)}. Does the model return what the loss needs?") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise ValueError(f"loss(output, target) must return one number, the batch's mean; it returned {got}.")
    if _lost(value):
        cause = _cause(model, inputs, target) or ("Weights and data are finite, " + (
            "the model's output is not." if any(map(_lost, tensors(output))) else "and so is the model's output."))
        raise ValueError(f"{where}: the loss is {float(value.detach())}. {cause}")
    if not value.requires_grad:
        cut = "the loss cuts it off" if any(part.requires_grad for part in tensors(output)) else (
            "the network cuts its output off")
        raise ValueError(f"The loss has no gradient: {cut}, by detach(), torch.no_grad(), argmax, .item() or NumPy. "
                         "Every eigenvalue would be 0.")
    return value


def _gradient(
    model: nn.Module, value: Tensor, chosen: dict[str, nn.Parameter], inputs: Any, target: Any
) -> list[str]:
    """Look at the first batch's gradient, and return what is worth a word."""
    try:
        found = torch.autograd.grad(value.sum(), list(chosen.values()), allow_unused=True)
    except RuntimeError as error:
        raise ValueError(f"Batch 1: the loss has no gradient: {told(error)}.") from error
    grads = dict(zip(chosen, found, strict=True))
    none = [name for name, g in grads.items() if g is None]
    if len(none) == len(grads):
        raise ValueError(f"The loss does not depend on the parameters chosen ({_some(none)}): no gradient reaches "
                         "them. Is the network used, or does it detach()? Every eigenvalue would be 0.")
    if bad := [name for name, g in grads.items() if g is not None and _lost(g)]:
        cause = _cause(model, inputs, target) or "A root, a norm or a division at 0? Add an epsilon there."
        raise ValueError(f"The gradient of {_some(bad)} is not finite, though the loss is. {cause}")
    return [f"No gradient reaches {_some(none)}: their rows are 0."] if none else []


def _cause(model: nn.Module, inputs: Any, target: Any) -> str:
    """Name weights or data that are not finite; masks may rightly hold infinities where nothing goes wrong."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if lost := _lost(tensor):
            return (f"The model's {name} holds {lost} of {tensor.numel():,} numbers that are NaN or infinite. Did "
                    "the training diverge? Take an earlier checkpoint.")
    for what, tree in (("inputs", inputs), ("target", target)):
        for tensor in tensors(tree):
            if lost := _lost(tensor):
                return (f"Its {what} of shape {tuple(tensor.shape)} hold {lost} numbers that are NaN or infinite. "
                        "Clean the data, or leave those samples out.")
    return ""


def _check_labels(where: str, output: Any, target: Any) -> None:
    """Name labels that are no class: on a GPU the loss would end the process."""
    if not (isinstance(output, Tensor) and isinstance(target, Tensor) and output.dim()) or target.is_floating_point():
        return
    classes = output.shape[1 if output.dim() > 1 else 0]
    wrong = target[(target != -100) & ((target < 0) | (target >= classes))]
    if wrong.numel():
        raise ValueError(f"{where}: {wrong.numel()} labels are no class of the model, whose output is "
                         f"{_shown(output)}: they lie outside 0 … {classes - 1}, from {int(wrong.min())} to "
                         f"{int(wrong.max())}. Count labels from 0, and give the model as many outputs.")


def _lost(tensor: Tensor) -> int:
    """Return how many entries are not finite."""
    return int((~_values(tensor).isfinite()).sum())


def _values(tensor: Tensor) -> Tensor:
    return tensor.detach().coalesce().values() if tensor.is_sparse else tensor.detach()


def _shown(tree: Any) -> str:
    shapes = [f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in tensors(tree)]
    return _some(shapes) if shapes else f"type {type(tree).__name__}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
