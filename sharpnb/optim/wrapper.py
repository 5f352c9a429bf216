"""An optimizer around an optimizer: one set of groups and states, two objects that must never disagree about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import Optimizer

from sharpnb.optim.conversion import checked, without_old_weights

_filled: WeakKeyDictionary[Optimizer, dict[int, set[str]]] = WeakKeyDictionary()
"""What a wrapper wrote into which group of a base. Another wrapper of that base takes it for nobody's wish."""


class WrappingOptimizer(Optimizer):
    """Shares ``param_groups`` and ``state`` with the optimizer that it wraps, through checkpoints, copies and pickles.

    The two names mean the *same objects* in both, so a scheduler may be attached to either, a checkpoint holds
    everything, and the wrapper's hyperparameters, its ``options``, stand in the groups beside the base's. What a group
    was given by its author counts before the constructor's value; what an earlier wrapper of the same base left there
    does not. Hooks around a state dict may be registered on either; those on the base see the base's part.

    Raises:
        ValueError: if the base already uses the name of an option in its groups.
    """

    _own: tuple[str, ...] = ()  # attributes that a copy or a pickle keeps, beside the base and the options
    _if_taken = "Choose another base optimizer."

    def __init__(self, base: Optimizer, options: dict[str, Any]) -> None:
        taken = sorted(options.keys() & base.defaults.keys())
        if taken:
            raise ValueError(f"{type(self).__name__} over {type(base).__name__}: both keep {taken} in the parameter "
                             f"groups. {self._if_taken}")
        self.base_optimizer, self.options = base, options
        filled = _filled.pop(base, {})
        for number, group in enumerate(base.param_groups):
            for key in filled.get(number, ()):
                group.pop(key, None)
        super().__init__(base.param_groups, {**base.defaults, **options})
        self._share()

    # -- what a wrapper supplies --------------------------------------------------------------------------------------

    _ranges: tuple[tuple[str, Callable[[Any], bool], str], ...] = ()  # option, whether a value is allowed, which are

    def _check(self, group: dict[str, Any]) -> None:
        """Raise ValueError where a group's hyperparameters are out of range."""
        for name, allows, advice in self._ranges:
            if name in group and not allows(group[name]):
                raise ValueError(f"{name} = {group[name]}: {advice}")

    def _rest(self) -> None:
        """Set everything transient to its state between two steps."""

    def _settled(self, call: str) -> None:
        """Raise RuntimeError where this is no moment for a checkpoint."""

    # -- sharing ------------------------------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's groups, whatever anybody does with them."""
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if self._shares():  # else Optimizer.__init__ begins with none
            self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The base's state."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        if self._shares():
            self.base_optimizer.state = state

    def _shares(self) -> bool:
        return "_known" in vars(self)

    def _share(self) -> None:
        self._regrouped()
        self._rest()

    def _regrouped(self) -> None:
        """Give each group the options that it lacks, and look at it."""
        for number, group in enumerate(self.param_groups):
            missing = self.options.keys() - group.keys()
            if missing:
                group |= {name: self.options[name] for name in missing}
                _filled.setdefault(self.base_optimizer, {}).setdefault(number, set()).update(missing)
            self._check(group)
        self._known = self.param_groups, len(self.param_groups)

    def _look_at_groups(self) -> None:
        """Notice that somebody gave the base a group, or a checkpoint."""
        groups, count = self._known
        if groups is not self.param_groups or count != len(groups):
            self._regrouped()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to both; what it does not name gets the constructor's values."""
        if self._shares():  # else Optimizer.__init__ adds what the base has
            self._check({**self.defaults, **param_group})
            self.base_optimizer.add_param_group(param_group)
            self._regrouped()

    # -- checkpoints and copies ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state and the groups, the wrapper's own included; ``torch.load(weights_only=True)`` works.

        Raises:
            RuntimeError: in the middle of a step.
        """
        self._settled("state_dict()")
        base = self.base_optimizer
        first = self.register_state_dict_post_hook(lambda *_: base.state_dict(), prepend=True)
        try:
            return super().state_dict()
        finally:
            first.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume bit by bit from :meth:`state_dict`; a checkpoint of the bare base optimizer loads too.

        A checkpoint of the popular SAM class holds copies of weights and no state of its base: the groups are taken
        over, the base starts anew, as it does there.

        Raises:
            RuntimeError: in the middle of a step.
            ValueError: if the checkpoint is that of another base; then nothing has changed.
        """
        self._settled("load_state_dict()")
        last = self.register_load_state_dict_pre_hook(lambda _, state: self._loaded(state))
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()

    def _loaded(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Let the base load; return what is left for PyTorch to do, which is nothing."""
        self._load(state_dict)
        self._share()
        return {"state": {}, "param_groups": state_dict["param_groups"]}

    def _load(self, state_dict: dict[str, Any]) -> None:
        state_dict = without_old_weights(state_dict, self)
        self._check_bases(state_dict)
        self.base_optimizer.load_state_dict(state_dict)

    def _check_bases(self, state_dict: dict[str, Any]) -> None:
        """Raise ValueError where a checkpoint is not one of the innermost base."""
        base = self.base_optimizer
        base._check_bases(state_dict) if isinstance(base, WrappingOptimizer) else checked(state_dict, base)

    def __getstate__(self) -> dict[str, Any]:
        self._settled("A copy or a pickle")
        own = {name: getattr(self, name) for name in ("base_optimizer", "options", "defaults", *self._own)}
        return {**own, "filled": _filled.get(self.base_optimizer, {})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base_optimizer" in state:  # a copy or a pickle; else Optimizer.load_state_dict, after the base has loaded
            _filled[state["base_optimizer"]] = state.pop("filled", {})
            super().__setstate__(state)
            self._share()


def base_of(
    name: str, optimizer: Optimizer | Iterable[Any], base_optimizer: type[Optimizer] | None, base_kwargs: dict[str, Any]
) -> Optimizer:
    """Return the base of either form: an optimizer, or parameters with a class and its arguments.

    Raises:
        TypeError: if it is neither, or if the base's step needs a closure.
    """
    if isinstance(optimizer, Optimizer):
        if base_optimizer is not None or base_kwargs:
            extra = ", ".join(base_kwargs) or f"base_optimizer={base_optimizer!r}"
            raise TypeError(f"{name}: got a base optimizer and also {extra}. Give these to the base when you build it; "
                            f"the method's own go by keyword: {name}(torch.optim.SGD(params, lr=0.1), rho=0.05).")
        _check_step(name, type(optimizer))
        return optimizer
    if not (isinstance(base_optimizer, type) and issubclass(base_optimizer, Optimizer)):
        raise TypeError(f"{name}: base_optimizer = {base_optimizer!r} is not a class of optimizers. Write "
                        f"{name}(torch.optim.SGD(params, lr=0.1)) or {name}(params, torch.optim.SGD, lr=0.1).")
    _check_step(name, base_optimizer)
    return base_optimizer(optimizer, **base_kwargs)


def _check_step(name: str, base: type[Optimizer]) -> None:
    """Raise TypeError where the base's step evaluates the loss itself, as LBFGS does."""
    arguments = list(inspect.signature(base.step).parameters.values())[1:]
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(a.default is a.empty and a.kind in plain for a in arguments):
        raise TypeError(f"{name} over {base.__name__}: its step needs a closure, so it would evaluate the loss where "
                        f"{name} has put the weights back. Use a base whose step() takes the gradients that are there, "
                        "such as torch.optim.SGD or torch.optim.AdamW.")
