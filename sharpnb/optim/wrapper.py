"""An optimizer around an optimizer: one set of groups and states, two objects that must never disagree about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    _use_grad_for_differentiable,
)

# Of the two wrappers that PyTorch puts around a step: for hooks and profilers, and for its gradient mode.
_OBSERVING = Optimizer.profile_hook_step(lambda *_: None).__code__
_SETTING_GRAD = _use_grad_for_differentiable(lambda *_: None).__code__


class WrappingOptimizer(Optimizer):
    """Shares ``param_groups`` and ``state`` with the optimizer that it wraps, through checkpoints, copies and pickles.

    The two names mean the *same objects* in both, so a scheduler may be attached to either, a checkpoint holds
    everything, and the wrapper's hyperparameters stand in the groups beside the base's.

    Args:
        optimizer: the base optimizer, or the parameters (then ``base_optimizer`` is its class).
        base_optimizer: class of the base, which gets ``base_kwargs``.
        options: the wrapper's hyperparameters with their defaults; a group may hold its own.
        base_kwargs: arguments of the base, when its class is given.

    Raises:
        TypeError: if ``optimizer`` is neither an optimizer nor parameters with a class.
        ValueError: if the base already uses the name of an option in its groups.
    """

    _own: tuple[str, ...] = ()  # attributes that a copy or a pickle keeps, beside the base and the options

    def __init__(
        self, optimizer: Optimizer | Iterable[Any], base_optimizer: type[Optimizer] | None, options: dict[str, Any],
        base_kwargs: dict[str, Any],
    ) -> None:
        name = type(self).__name__
        self.base_optimizer = _base(name, optimizer, base_optimizer, base_kwargs)
        taken = sorted(options.keys() & self.base_optimizer.defaults.keys())
        if taken:
            raise ValueError(f"{name} over {type(self.base_optimizer).__name__}: both keep {taken} in the parameter "
                             "groups. Choose another base optimizer.")
        self.options = options
        super().__init__(self.base_optimizer.param_groups, {**self.base_optimizer.defaults, **options})
        self._share()

    # -- what a wrapper supplies --------------------------------------------------------------------------------------

    def _check(self, group: dict[str, Any]) -> None:
        """Raise ValueError where a group's hyperparameters are out of range."""

    def _rest(self) -> None:
        """Set everything transient to its state between two steps."""

    def _unsettled(self) -> str:
        """Return why this is no moment for a checkpoint, or nothing."""
        return ""

    # -- the base's step ----------------------------------------------------------------------------------------------

    def _step_base(self) -> None:
        """Let the base make its step, gradients being off, past PyTorch's wrappers where they have nothing to do.

        For a small model they cost a tenth of its two gradients. Whatever else wraps a step is called as it is.
        """
        base = self.base_optimizer
        step: Any = type(base).step
        if "step" in vars(base) or getattr(step, "__code__", None) is not _OBSERVING or not unobserved(base):
            base.step()
            return
        step = step.__wrapped__
        if getattr(step, "__code__", None) is _SETTING_GRAD and not base.defaults["differentiable"]:
            step = step.__wrapped__
        step(base)

    # -- sharing ------------------------------------------------------------------------------------------------------

    def _share(self) -> None:
        self.param_groups, self.state = self.base_optimizer.param_groups, self.base_optimizer.state
        for group in self.param_groups:
            for name, default in self.options.items():
                group.setdefault(name, default)
            self._check(group)
        self._rest()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to both; what it does not name gets the constructor's values."""
        if getattr(self, "param_groups", None) is not self.base_optimizer.param_groups:
            return super().add_param_group(param_group)  # from inside Optimizer.__init__
        group = {**self.options, **param_group}
        self._check({**self.defaults, **group})
        self.base_optimizer.add_param_group(group)
        self._check(self.param_groups[-1])

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state and the groups, the wrapper's own included; ``torch.load(weights_only=True)`` works.

        Raises:
            RuntimeError: in the middle of a step.
        """
        if self._unsettled():
            raise RuntimeError(f"state_dict() in the middle of a step: {self._unsettled()}.")
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume bit by bit from :meth:`state_dict`; a checkpoint of the bare base optimizer loads too.

        Raises:
            RuntimeError: in the middle of a step.
        """
        if self._unsettled():
            raise RuntimeError(f"load_state_dict() in the middle of a step: {self._unsettled()}.")
        self.base_optimizer.load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("base_optimizer", "options", "defaults", *self._own)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        base = state["base_optimizer"]
        super().__setstate__({**state, "param_groups": base.param_groups, "state": base.state})
        self._share()


def _base(
    name: str, optimizer: Optimizer | Iterable[Any], base_optimizer: type[Optimizer] | None, base_kwargs: dict[str, Any]
) -> Optimizer:
    """Return the base optimizer of either constructor form."""
    if isinstance(optimizer, Optimizer):
        if base_optimizer is not None or base_kwargs:
            extra = ", ".join(base_kwargs) or f"base_optimizer={base_optimizer!r}"
            raise TypeError(f"{name}: got a base optimizer and also {extra}. Give these to the base when you build it; "
                            f"the method's own go by keyword: {name}(torch.optim.SGD(params, lr=0.1), rho=0.05).")
        return optimizer
    if not (isinstance(base_optimizer, type) and issubclass(base_optimizer, Optimizer)):
        raise TypeError(f"{name}: base_optimizer = {base_optimizer!r} is not a class of optimizers. Write "
                        f"{name}(torch.optim.SGD(params, lr=0.1)) or {name}(params, torch.optim.SGD, lr=0.1).")
    return base_optimizer(optimizer, **base_kwargs)


def unobserved(optimizer: Optimizer) -> bool:
    """Return whether no hook and no profiler wants to know about an optimizer's steps."""
    return not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
                or _global_optimizer_pre_hooks or _global_optimizer_post_hooks or torch.autograd._profiler_enabled())
