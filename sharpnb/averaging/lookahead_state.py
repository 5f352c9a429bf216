"""Checkpoints of Lookahead that are not of today's form: earlier ones, and those of other packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OTHERS = {"slow_state": "lookahead_pytorch", "lookahead_slow_buff": "timm", "lookahead_state": "pytorch_optimizer",
           "la_step": "the paper's code"}


def converted(
    state_dict: dict[str, Any], prefix: str, names: tuple[str, ...], base_defaults: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a checkpoint, of Lookahead or its bare base, in today's form: ours beside the base's in states and groups.

    Of a parameter's state ``names`` are Lookahead's, of the groups ``base_defaults`` are the base's.

    Raises:
        ValueError: if it is the checkpoint of another package's Lookahead.
    """
    states = state_dict.get("state", {})
    for name in (*state_dict, *(name for state in states.values() if isinstance(state, dict) for name in state)):
        if name in _OTHERS:
            raise ValueError(f"The checkpoint holds {name!r}: it is that of {_OTHERS[name]}'s Lookahead, whose slow "
                             "weights begin at another step. Load the base's part of it: the cycle begins anew.")
    if "base" in state_dict:  # version 0.1 kept the two states apart, and the groups in both
        base = state_dict["base"]
        theirs = base["state"]
        merged = {number: {**theirs.get(number, {}), **states.get(number, {})} for number in {**theirs, **states}}
        state_dict = {**base, "state": merged, "param_groups": state_dict["param_groups"]}
    if prefix and "fast_steps" not in base_defaults:
        return _prefixed(state_dict, prefix, names, base_defaults)
    return state_dict


def _prefixed(
    state_dict: dict[str, Any], prefix: str, names: tuple[str, ...], base_defaults: Mapping[str, Any],
) -> dict[str, Any]:
    """Give our values the prefix that this Lookahead has, where the checkpoint was made without one."""
    groups = []
    for group in state_dict["param_groups"]:
        ours = [name for name in ("k", "alpha", "fast_steps") if name in group and name not in base_defaults]
        if "fast_steps" in ours:
            group = {f"{prefix}{name}" if name in ours else name: value for name, value in group.items()}
        groups.append(group)
    ours = {name.removeprefix(prefix): name for name in names}
    state = {number: {ours.get(name, name): value for name, value in of.items()} if isinstance(of, dict) else of
             for number, of in state_dict["state"].items()}
    return {**state_dict, "state": state, "param_groups": groups}
