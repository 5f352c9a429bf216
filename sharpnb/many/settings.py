"""What a setting of :func:`sharpnb.lab.train_many` may say, read off the signatures of :mod:`sharpnb.rules`.

A hyperparameter annotated ``Column`` is a column of the batched program, one value a member. Every other option must
be equal within a program, so members that differ in one form programs of their own. A rule added to
:mod:`sharpnb.rules` is known here at once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpnb import rules
from sharpnb.many.augment import ShiftAndFlip
from sharpnb.many.schedules import SCHEDULES
from sharpnb.near import near

Setting = dict[str, Any]


def _rules_with(argument: str) -> dict[str, Callable[..., Any]]:
    found = {}
    for name, rule in vars(rules).items():
        if inspect.isfunction(rule) and not name.startswith("_"):
            parameters = list(inspect.signature(rule).parameters)
            if "state" in parameters and parameters[1] == argument:
                found[name] = rule
    return found


BASES, ASCENTS = _rules_with("g"), _rules_with("grad")
RULES = BASES | ASCENTS
PERTURBATIONS: dict[str, tuple[Callable[..., Any], str]] = {  # name -> function, the setting that is its eta
    "sam": (rules.ball, ""), "asam": (rules.asam_perturbation, "asam_eta"),
    "fisher": (rules.fisher_perturbation, "fisher_eta"),
}
# Of any rule: seeds and what a member sees; its schedule; averages on top.
NUMBERS = ("label_noise", "lambda_norm", "lookahead_k", "lookahead_alpha", "swa_start", "swa_every")
COMMON = ("seed", "augment", "schedule", "t_0", "t_mult", *NUMBERS)
_SUPPLIED = ("eta", "base", "scaled", "mask", "perturbation")  # by train_many, or by a name
_PAIRS = "tuple[Column, Column]"
_REAL = (int, float, np.integer, np.floating)
_MEMBERS_OWN = ("seed", "schedule", "t_0", "t_mult")  # neither a column of the rule nor in need of a program of its own


def validated(config: Mapping[str, Any], k: int) -> Setting:
    """Return a setting with its seed; ``k`` is its place, for messages.

    Raises:
        ValueError: for an unknown rule, base or hyperparameter, a missing one, or a value out of range.
    """
    rule, where = config.get("rule"), f"setting {k}"
    if not isinstance(rule, str) or rule not in RULES:
        raise ValueError(f"{where}: rule = {rule!r} is not known.{near(rule, RULES)} Choose one of {', '.join(RULES)}.")
    base = config.get("base", "sgd") if rule in ASCENTS else rule
    if base not in BASES:
        raise ValueError(f"{where}: base = {base!r} is not a base rule. Choose one of {', '.join(BASES)}.")
    if config.get("perturbation", "sam") not in PERTURBATIONS:
        names = ", ".join(PERTURBATIONS)
        raise ValueError(f"{where}: perturbation = {config['perturbation']!r} is not known. Choose one of {names}.")
    annotations, required = _signature(rule, base, config.get("perturbation", "sam"))
    unknown = set(config) - set(annotations) - set(COMMON) - {"rule"}
    if unknown:
        meant = near(min(unknown), [*annotations, *COMMON])
        raise ValueError(f"{where}: {rule} on {base} has no {', '.join(sorted(unknown))}.{meant} It takes "
                         f"{', '.join(sorted(annotations))}; and any rule {', '.join(COMMON)}.")
    if missing := required - set(config):
        raise ValueError(f"{where}: {rule} needs {', '.join(sorted(missing))}.")
    for name, value in config.items():
        _check(name, value, annotations.get(name, "Column" if name in NUMBERS else ""), where)
    _check_together(config, where)
    shift = config.get("augment")
    augment = {"augment": ShiftAndFlip(*shift)} if isinstance(shift, (list, tuple)) else {}
    return {"seed": 0, **config, **augment}


@cache
def _signature(rule: str, base: str, perturbation: str) -> tuple[Mapping[str, str], Set[str]]:
    """Return the annotation of each hyperparameter by its name, and the names of those without a default."""
    functions = [BASES[base], *([ASCENTS[rule]] if rule in ASCENTS else [])]
    parameters = {p.name: p for function in functions for p in inspect.signature(function).parameters.values()
                  if p.kind is p.KEYWORD_ONLY and p.name not in _SUPPLIED}
    annotations = {name: p.annotation for name, p in parameters.items()}
    required = {name for name, p in parameters.items() if p.default is p.empty}
    if rule in ASCENTS:
        annotations |= {"base": "", "m": ""}
    if rule == "wsam":
        eta = PERTURBATIONS[perturbation][1]
        annotations |= {"perturbation": ""} | ({eta: "Column"} if eta else {})
    if rule == "gsam":
        annotations |= dict.fromkeys(("rho_min", "lr_max", "lr_min"), "Column")
    return annotations, required


def _check(name: str, value: Any, annotation: str, where: str) -> None:
    pair = annotation == _PAIRS
    values = [*value] if pair and hasattr(value, "__iter__") else [value]
    if (pair or annotation == "Column") and not (len(values) == 1 + pair and all(map(_is_size, values))):
        kind = "two numbers" if pair else "a number"
        raise ValueError(f"{where}: {name} = {value!r}: must be {kind}, finite and not negative.")
    if name == "lr" and value == 0:
        raise ValueError(f"{where}: lr = {value}: must be positive.")
    lowest = {"seed": 0, "m": 1, "lookahead_k": 1, "swa_every": 1, "t_0": 1, "t_mult": 1}.get(name)
    if lowest is not None and (not isinstance(value, _REAL) or value < lowest or value % 1):
        raise ValueError(f"{where}: {name} = {value!r}: must be a whole number, {lowest} or more.")
    shares = {"label_noise": 1.0, "lookahead_alpha": 1.0, "swa_start": 1.0}
    if name in shares and value > 1:
        raise ValueError(f"{where}: {name} = {value}: a share, it must lie in [0, 1].")
    if name == "gamma" and value >= 1 and annotation == "Column":
        raise ValueError(f"{where}: gamma = {value}: WSAM's weight must lie in [0, 1).")


def _is_size(value: Any) -> bool:
    return isinstance(value, _REAL) and not isinstance(value, bool) and 0 <= float(value) < math.inf


def _check_together(config: Mapping[str, Any], where: str) -> None:
    schedule = config.get("schedule")
    if isinstance(schedule, str) and schedule not in (*SCHEDULES, "restarts"):
        raise ValueError(f"{where}: schedule = {schedule!r}: choose one of {', '.join(SCHEDULES)}, restarts, or give a "
                         "function of the share done.")
    if (schedule == "restarts") != ("t_0" in config) or ("t_mult" in config and schedule != "restarts"):
        raise ValueError(f"{where}: schedule = {schedule!r} with t_0 = {config.get('t_0')!r}: the schedule 'restarts' "
                         "needs t_0, the steps of its first period (t_mult, the factor to the next, is 2); others have "
                         "none.")
    if {"lr_max", "lr_min"} & set(config) and "rho_min" not in config:
        raise ValueError(f"{where}: lr_max and lr_min belong to GSAM's falling radius; give rho_min too.")
    if "lambda_norm" in config and "weight_decay" in config:
        raise ValueError(f"{where}: give weight_decay or lambda_norm, from which it is computed, not both.")
    if ("lookahead_alpha" in config or "swa_every" in config) and not {"lookahead_k", "swa_start"} & set(config):
        raise ValueError(f"{where}: Lookahead is asked for by lookahead_k, weight averaging by swa_start.")


def grouped(settings: Sequence[Setting], chunk: int) -> list[list[int]]:
    """Return the places of the settings that can be one batched program, ``chunk`` of them at most."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for k, config in enumerate(settings):
        names = tuple(sorted(set(config) - {"seed"}))
        fixed = tuple((name, config[name]) for name in names if not _is_column(config, name))
        groups.setdefault((names, fixed), []).append(k)
    return [members[i : i + chunk] for members in groups.values() for i in range(0, len(members), chunk)]


def _is_column(config: Setting, name: str) -> bool:
    """Whether members of one program may differ in this setting."""
    if name in _MEMBERS_OWN or name in NUMBERS:
        return True
    rule = config["rule"]
    base = config.get("base", "sgd") if rule in ASCENTS else rule
    return _signature(rule, base, config.get("perturbation", "sam"))[0].get(name) in ("Column", _PAIRS)


def columns(configs: Sequence[Setting], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return the hyperparameters of one program: numbers as (K, 1) columns, everything else as it is."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor([float(v) for v in values], dtype=dtype, device=device)[:, None]

    hyper: dict[str, Any] = {}
    for name in set(configs[0]) - {"rule", "augment", "label_noise", *_MEMBERS_OWN}:
        values = [config[name] for config in configs]
        if not _is_column(configs[0], name):
            hyper[name] = values[0]
        elif isinstance(values[0], (tuple, list)):
            hyper[name] = tuple(column(part) for part in zip(*values, strict=True))
        else:
            hyper[name] = column(values)
    return hyper


def bound(rule: str, hyper: dict[str, Any], scaled: Tensor) -> dict[str, Any]:
    """Return the hyperparameters of a rule with functions in the place of names.

    ``scaled`` marks the weights, (n,), that the adaptive ball of ASAM scales: those of tensors with two or more
    dimensions, as :class:`sharpnb.optim.ASAM` does.
    """
    if rule in BASES:
        return hyper
    hyper = hyper | {"base": BASES[hyper.get("base", "sgd")]} | ({"scaled": scaled} if rule == "asam" else {})
    if rule == "wsam":
        function, eta = PERTURBATIONS[hyper.pop("perturbation", "sam")]
        options = {"eta": hyper.pop(eta)} if eta in hyper else {}
        hyper["perturbation"] = partial(function, **options, **({"scaled": scaled} if eta == "asam_eta" else {}))
    return hyper
