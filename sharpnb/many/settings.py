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
    """Return the rules whose second argument has that name."""
    functions = {name: f for name, f in vars(rules).items() if inspect.isfunction(f) and not name.startswith("_")}
    arguments = {name: list(inspect.signature(f).parameters) for name, f in functions.items()}
    return {name: functions[name] for name, own in arguments.items() if "state" in own and own[1] == argument}


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
_NUMBER, _PAIR = "Column", "tuple[Column, Column]"
_MEMBERS_OWN = ("seed", "schedule", "t_0", "t_mult")  # neither a column of the rule nor in need of a program of its own
_WHOLE = {"seed": 0, "m": 1, "lookahead_k": 1, "swa_every": 1, "t_0": 1, "t_mult": 1}  # with the least value
_SHARES = ("label_noise", "lookahead_alpha", "swa_start")


def validated(config: Mapping[str, Any], k: int) -> Setting:
    """Return a setting with its seed; ``k`` is its place, for messages.

    A ValueError for an unknown rule, base or hyperparameter, a missing one, or a value out of range.
    """
    where, rule = f"setting {k}", config.get("rule")
    base, perturbation = config.get("base", "sgd"), config.get("perturbation", "sam")
    for name, value, known in (("rule", rule, RULES), ("base", base, BASES),
                               ("perturbation", perturbation, PERTURBATIONS)):
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{where}: {name} = {value!r} is not known.{near(value, known)} Choose one of "
                             f"{', '.join(known)}.")
    annotations, required = _signature(config)
    if unknown := set(config) - set(annotations) - set(COMMON) - {"rule"}:
        on = f" on {base}" if rule in ASCENTS else ""
        raise ValueError(f"{where}: {rule}{on} has no {', '.join(sorted(unknown))}."
                         f"{near(min(unknown), [*annotations, *COMMON])} It takes {', '.join(sorted(annotations))}; "
                         f"and any rule {', '.join(COMMON)}.")
    if missing := required - set(config):
        raise ValueError(f"{where}: {rule} needs {', '.join(sorted(missing))}.")
    for name, value in config.items():
        if must := _must(name, value, annotations.get(name, _NUMBER if name in NUMBERS else "")):
            raise ValueError(f"{where}: {name} = {value!r}: must be {must}.")
    _check_together(config, where)
    shift = config.get("augment")
    augment = {"augment": ShiftAndFlip(*shift)} if isinstance(shift, (list, tuple)) else {}
    return {"seed": 0, **config, **augment}


def _signature(config: Mapping[str, Any]) -> tuple[Mapping[str, str], Set[str]]:
    """Return the annotation of each hyperparameter by its name, and the names of those without a default."""
    return _signature_of(config["rule"], config.get("base", "sgd"), config.get("perturbation", "sam"))


@cache
def _signature_of(rule: str, base: str, perturbation: str) -> tuple[Mapping[str, str], Set[str]]:
    functions = [BASES[base], ASCENTS[rule]] if rule in ASCENTS else [BASES[rule]]
    parameters = {p.name: p for function in functions for p in inspect.signature(function).parameters.values()
                  if p.kind is p.KEYWORD_ONLY and p.name not in _SUPPLIED}
    annotations = {name: p.annotation for name, p in parameters.items()}
    required = {name for name, p in parameters.items() if p.default is p.empty}
    if rule in ASCENTS:
        annotations |= {"base": "", "m": ""}
    if rule == "wsam":
        eta = PERTURBATIONS[perturbation][1]
        annotations |= {"perturbation": ""} | ({eta: _NUMBER} if eta else {})
    if rule == "gsam":
        annotations |= dict.fromkeys(("rho_min", "lr_max", "lr_min"), _NUMBER)
    return annotations, required


def _must(name: str, value: Any, annotation: str) -> str:
    """Say what a value must be, where it is not."""
    if annotation == _PAIR and not (hasattr(value, "__len__") and len(value) == 2 and all(map(_is_size, value))):
        return "two numbers, finite and not negative"
    if annotation == _NUMBER and not _is_size(value):
        return "a number, finite and not negative"
    if name == "lr" and value == 0:
        return "positive"
    if name in _WHOLE and not (_is_number(value) and value >= _WHOLE[name] and value % 1 == 0):
        return f"a whole number, {_WHOLE[name]} or more"
    if name in _SHARES and value > 1:
        return "a share, in [0, 1]"
    return "WSAM's weight, in [0, 1)" if name == "gamma" and value >= 1 and annotation == _NUMBER else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating)


def _is_size(value: Any) -> bool:
    return _is_number(value) and not isinstance(value, bool) and 0 <= float(value) < math.inf


def _check_together(config: Mapping[str, Any], where: str) -> None:
    schedule, given = config.get("schedule"), set(config)
    restarts = (schedule == "restarts") != ("t_0" in given) or ("t_mult" in given and schedule != "restarts")
    averages = {"lookahead_alpha", "swa_every"} & given and not {"lookahead_k", "swa_start"} & given
    for wrong, said in (
        (isinstance(schedule, str) and schedule not in (*SCHEDULES, "restarts"), f"schedule = {schedule!r}: choose one "
         f"of {', '.join(SCHEDULES)}, restarts, or give a function of the share done."),
        (restarts, f"schedule = {schedule!r} with t_0 = {config.get('t_0')!r}: the schedule 'restarts' needs t_0, the "
         "steps of its first period (t_mult, the factor to the next, is 2); others have none."),
        ({"lr_max", "lr_min"} & given and "rho_min" not in given,
         "lr_max and lr_min belong to GSAM's falling radius; give rho_min too."),
        ({"lambda_norm", "weight_decay"} <= given,
         "give weight_decay or lambda_norm, from which it is computed, not both."),
        (averages, "Lookahead is asked for by lookahead_k, weight averaging by swa_start."),
    ):
        if wrong:
            raise ValueError(f"{where}: {said}")


def grouped(settings: Sequence[Setting], chunk: int) -> list[list[int]]:
    """Return the places of the settings that can be one batched program, ``chunk`` of them at most."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for k, config in enumerate(settings):
        names = tuple(sorted(set(config) - {"seed"}))
        fixed = tuple((name, config[name]) for name in names if name not in _MEMBERS_OWN and not _kind(config, name))
        groups.setdefault((names, fixed), []).append(k)
    return [members[i : i + chunk] for members in groups.values() for i in range(0, len(members), chunk)]


def _kind(config: Setting, name: str) -> str:
    """Return the annotation of a setting that is a column of its program; for others nothing."""
    annotation = _NUMBER if name in NUMBERS else _signature(config)[0].get(name, "")
    return annotation if annotation in (_NUMBER, _PAIR) else ""


def bound(configs: Sequence[Setting], scaled: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Return the hyperparameters of one program: numbers as (K, 1) columns, functions in the place of names.

    ``scaled`` marks the weights, (n,), that the adaptive ball of ASAM scales: those of tensors with two or more
    dimensions, as :class:`sharpnb.optim.ASAM` does.
    """

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor([float(v) for v in values], dtype=dtype, device=scaled.device)[:, None]

    first, hyper = configs[0], {}
    for name in set(first) - {"rule", "augment", "label_noise", *_MEMBERS_OWN}:
        values, kind = [config[name] for config in configs], _kind(first, name)
        hyper[name] = (column(values) if kind == _NUMBER else
                       tuple(map(column, zip(*values, strict=True))) if kind else values[0])
    if first["rule"] in ASCENTS:
        hyper["base"] = BASES[first.get("base", "sgd")]
    if first["rule"] == "asam":
        hyper["scaled"] = scaled
    if first["rule"] == "wsam":
        function, eta = PERTURBATIONS[first.get("perturbation", "sam")]
        options = ({"eta": hyper.pop(eta)} if eta in hyper else {}) | ({"scaled": scaled} if eta == "asam_eta" else {})
        hyper["perturbation"] = partial(function, **options)
    return hyper
