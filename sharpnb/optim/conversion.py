"""Checkpoints of other optimizers: converted where that is exact, else refused before anything is loaded."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_FLAGS = {"foreach", "maximize", "capturable", "differentiable", "fused", "amsgrad",
          "decoupled_weight_decay"}  # what torch.optim's groups hold and ours do not need
_TRANSIENT = ("old_p", "e_w")  # what the popular SAM and WSAM classes leave in their states: weights, perturbations


def checked(state_dict: dict[str, Any], optimizer: Optimizer) -> None:
    """Raise ValueError where a checkpoint's groups lack a number that an optimizer's step needs.

    PyTorch loads such a checkpoint without a word and fails at the next step, or makes a step of another kind.
    """
    own = optimizer.defaults
    needed = {name for name, value in own.items()
              if isinstance(value, int | float | tuple | Tensor) and not isinstance(value, bool)}
    foreign = {"amsgrad", "decoupled_weight_decay", "eta_reference"} - own.keys() if "eta_reference" not in own else ()
    decoupled = own.get("decoupled_weight_decay")
    for number, group in enumerate(state_dict["param_groups"]):
        lacking = sorted(needed - group.keys() - {"eta_reference"}) or sorted({"amsgrad"} & own.keys() - group.keys())
        if lacking or (extra := sorted(group.keys() & foreign)):
            what = f"has no {', '.join(lacking)}, which" if lacking else f"holds {', '.join(extra)}, which no"
            raise ValueError(f"load_state_dict: the checkpoint's group {number} {what} {type(optimizer).__name__} "
                             "needs: it was saved by another optimizer. Load it into one of the class that saved it.")
        if decoupled is not None and group.get("decoupled_weight_decay", decoupled) is not decoupled:
            raise ValueError(f"load_state_dict: the checkpoint says decoupled_weight_decay={not decoupled}, and "
                             f"{type(optimizer).__name__} is the other kind: Adam's decay is not AdamW's. Load it into "
                             "one of the class that saved it.")


def without_old_weights(state_dict: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """Return a checkpoint without the copies of weights that the popular SAM class keeps; others come back as they are.

    Raises:
        ValueError: if it says ``adaptive=True`` and the optimizer's ball is another one than the popular class's.
    """
    options = optimizer.options
    for group in state_dict["param_groups"]:
        if group.get("adaptive") and "eta" not in group and (options.get("adaptive"), options.get("eta")) != (True, 0):
            raise ValueError("load_state_dict: the checkpoint says adaptive=True, and this "
                             f"{type(optimizer).__name__} was built with another ball. Use "
                             "ASAM(..., adaptive=True, eta=0.0), the popular form.")
    state = state_dict["state"]
    if not any(name in entry for entry in state.values() for name in _TRANSIENT):
        return state_dict
    kept = {key: {n: v for n, v in entry.items() if n not in _TRANSIENT} for key, entry in state.items()}
    return {**state_dict, "state": {key: entry for key, entry in kept.items() if entry}}


def adamw_from_torch(saved: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    r"""Return a group of ``torch.optim.AdamW`` as one of ours, with :math:`\lambda=lr_0\cdot` its ``weight_decay``.

    Theirs decays by :math:`lr_t\cdot wd`, ours by :math:`\eta_t\lambda` with :math:`\eta_t=lr_t/lr_0`: the same number.
    :math:`lr_0` is the ``eta_reference`` of our ``own`` group.

    Raises:
        ValueError: if the group's step is not AdamW's, or ours is SGDW's.
    """
    decay = saved.get("weight_decay")
    for what, holds in {
        "of torch.optim, whose buffers SGDW does not share": "betas" not in own,
        "not torch.optim.AdamW": "amsgrad" not in saved,
        "amsgrad=True, which is another rule": saved.get("amsgrad"),
        f"torch.optim.Adam with weight_decay={decay}, an L2 penalty (or AdamW of a PyTorch that did not write down "
        "which of the two it was)": decay and saved.get("decoupled_weight_decay") is not True,
        "maximize=True, which is another rule": saved.get("maximize"),
    }.items():
        if holds:
            raise ValueError(f"load_state_dict: the checkpoint is of another optimizer: {what}. It cannot be converted "
                             "exactly. Load it into the class that saved it, or begin with a fresh state.")
    reference = own["eta_reference"] or float(saved["lr"])
    kept = {name: value for name, value in saved.items() if name not in _FLAGS}
    return {**kept, "weight_decay": reference * saved["weight_decay"], "eta_reference": reference}
