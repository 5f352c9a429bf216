r"""Lookahead: k steps forward, one step back (Zhang, Lucas, Hinton & Ba, NeurIPS 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sharpnb.averaging.wrapped import is_sharded, local, reshard
from sharpnb.caches import forget_casts, refuse_parametrization_cache

Momentum = Literal["keep", "reset", "pullback"]
_FIRST_MOMENTS = ("momentum_buffer", "exp_avg")  # what SGD and the Adam family of torch.optim call it


class Lookahead(Optimizer):
    r"""Slow weights :math:`\phi` that follow the fast weights :math:`\theta` of any optimizer (Algorithm 1).

    .. math::
        \theta_{t,0}=\phi_{t-1},\qquad \theta_{t,i}=\mathrm{base}(\theta_{t,i-1}),\ i=1\dots k,\qquad
        \phi_t=\phi_{t-1}+\alpha\,(\theta_{t,k}-\phi_{t-1})

    so that :math:`\phi` is an exponential average of the inner loops' end points, and :math:`\alpha=1` is the base.

    ``param_groups`` are the base's own, so a scheduler may be attached to either, and a group may hold its own ``k``
    and ``alpha``. A base that has an ``alpha`` or ``k`` itself (RMSprop, ASGD, GSAM, LookSAM) is refused until
    ``prefix`` names Lookahead's values otherwise::

        Lookahead(torch.optim.RMSprop(model.parameters()), k=5, alpha=0.5, prefix="lookahead_")  # lookahead_k, …

    A base that was wrapped before gets the new ``k`` and ``alpha`` in every group, and begins a new cycle. Checkpoints
    resume bit by bit, in the middle of a cycle too.

    How it differs from the popular code, and why: (1) the slow weights start at the weights before the first fast step,
    and the first pull is after the k-th (others copy them at the first pull, or pull after the first step); (2) the
    checkpoint holds slow weights, position in the cycle and the base's state; (3) ``"pullback"`` keeps a *copy* of the
    momentum (others alias the live buffer, which turns the weight :math:`\alpha` into :math:`\alpha(2-\alpha)` from the
    second pull on) and works on Adam's first moment too; (4) every parameter that can move is pulled, whether or not it
    has a gradient at that moment.

    Args:
        optimizer: the base, an instance; its ``step`` is called with whatever :meth:`step` is given.
        k: fast steps a cycle (the paper's default 5; its ablation takes 5 and 10).
        alpha: slow step size in (0, 1] (the paper's 0.5; its CIFAR runs tuned 0.8).
        momentum: what happens to the first moment (SGD's buffer, Adam's ``exp_avg``) at a pull: ``"keep"`` (the
            official default), ``"reset"`` to zero, or ``"pullback"``: interpolated like the weights.
        prefix: what stands before the names ``k``, ``alpha`` and ``fast_steps`` (steps so far) in the groups, and
            before ``slow`` in the state.

    Raises:
        TypeError: if ``optimizer`` is not an optimizer.
        ValueError: if ``k``, ``alpha`` or ``momentum`` is out of range, or the base keeps one of these names itself.
    """

    def __init__(
        self, optimizer: Optimizer, k: int = 5, alpha: float = 0.5, momentum: Momentum = "keep", prefix: str = "",
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"Lookahead: optimizer = {optimizer!r} is not an optimizer. Build the base first: "
                            "Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), k=5, alpha=0.5).")
        if momentum not in get_args(Momentum):
            raise ValueError(f"momentum = {momentum!r}: choose 'keep', 'reset' or 'pullback'.")
        self.base_optimizer, self.momentum, self.prefix, self._slow_shown = optimizer, momentum, prefix, False
        self.options = {f"{prefix}k": k, f"{prefix}alpha": alpha, f"{prefix}fast_steps": 0}
        self._check(self.options)
        self._refuse_taken_names()
        for group in optimizer.param_groups:
            if f"{prefix}fast_steps" in group:  # a Lookahead's before: its values are not this one's
                group.update(self.options)
        super().__init__([{**group} for group in optimizer.param_groups], {**optimizer.defaults, **self.options})
        self._share()

    def _refuse_taken_names(self) -> None:
        taken = sorted(self.options.keys() & self.base_optimizer.defaults.keys())
        if taken:
            base, other = type(self.base_optimizer).__name__, "lookahead_" if self.prefix != "lookahead_" else "outer_"
            raise ValueError(f"Lookahead over {base}: both keep {' and '.join(taken)} in the parameter groups. Name "
                             f"Lookahead's values otherwise: Lookahead({base}(...), prefix={other!r}).")

    def _share(self) -> None:
        self.param_groups = self.base_optimizer.param_groups
        for group in self.param_groups:
            for name, default in self.options.items():
                group.setdefault(name, default)
            self._check(group)

    def _check(self, group: dict[str, Any]) -> None:
        k, alpha = group[f"{self.prefix}k"], group[f"{self.prefix}alpha"]
        if not (isinstance(k, int) and k >= 1):
            raise ValueError(f"k = {k!r}: a cycle has a whole number of fast steps, e.g. the paper's 5.")
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha = {alpha}: the slow step lies in (0, 1]; the paper's is 0.5.")

    @torch.no_grad()
    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Make one fast step with the base, and at the end of a cycle the slow one; return what the base returns.

        Raises:
            RuntimeError: inside :meth:`slow_weights`.
        """
        self._refuse_while_shown("step()")
        if self.param_groups is not self.base_optimizer.param_groups:  # the base has loaded a checkpoint by itself
            self._share()
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad and self._slow not in self.state[p]:
                    self.state[p][self._slow] = p.detach().clone(memory_format=torch.preserve_format)
        with torch.enable_grad():
            result = self.base_optimizer.step(*args, **kwargs)
        for group in self.param_groups:
            for name, default in self.options.items():
                group.setdefault(name, default)  # a group that was added to the base alone
            group[f"{self.prefix}fast_steps"] += 1
            if group[f"{self.prefix}fast_steps"] % group[f"{self.prefix}k"] == 0:
                self._pull(group)
        forget_casts()
        return result

    @property
    def _slow(self) -> str:
        return f"{self.prefix}slow"

    def _pull(self, group: dict[str, Any]) -> None:
        alpha = group[f"{self.prefix}alpha"]
        moving = [p for p in group["params"] if self._slow in self.state[p]]
        if moving:
            slow, fast = [local(self.state[p][self._slow]) for p in moving], [local(p) for p in moving]
            torch._foreach_lerp_(slow, fast, alpha)
            torch._foreach_copy_(fast, slow)
        if self.momentum != "keep":
            for p in moving:
                self._pull_momentum(p, alpha)

    def _pull_momentum(self, p: Tensor, alpha: float) -> None:
        for name in _FIRST_MOMENTS:
            moment = self.base_optimizer.state.get(p, {}).get(name)
            if moment is None:
                continue
            if self.momentum == "reset":
                moment.zero_()
                continue
            slow = self.state[p].setdefault(f"{self._slow}_{name}", torch.zeros_like(moment))
            slow.lerp_(moment, alpha)
            moment.copy_(slow)

    @contextmanager
    def slow_weights(self, model: nn.Module | None = None) -> Iterator[None]:
        """Inside the context the parameters are the slow weights, which the paper evaluates; outside, the fast ones.

        Args:
            model: needed under ``fully_shard`` only, whose modules must gather their weights anew.

        Raises:
            RuntimeError: inside itself or ``torch.nn.utils.parametrize.cached()``, or if the parameters are sharded
                and there is no ``model``.
        """
        self._refuse_while_shown("slow_weights()")
        refuse_parametrization_cache("slow_weights()")
        pairs = [(p, self.state[p][self._slow]) for group in self.param_groups for p in group["params"]
                 if self._slow in self.state.get(p, ())]
        if model is None and any(is_sharded(p) for p, _ in pairs):
            raise RuntimeError("slow_weights() of sharded parameters (FSDP2, DTensor): the modules keep whole weights "
                               "that they have gathered. Write slow_weights(model), with the model.")
        fast = [(p, p.detach().clone()) for p, _ in pairs]
        _move(pairs, model)
        self._slow_shown = True
        try:
            yield
        finally:
            self._slow_shown = False
            _move(fast, model)

    def _refuse_while_shown(self, what: str) -> None:
        if self._slow_shown:
            raise RuntimeError(f"{what} inside slow_weights(): the parameters are the slow weights there.")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, by the base's own method."""
        self.base_optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to both; its own cycle starts with its first step."""
        if getattr(self, "param_groups", None) is not self.base_optimizer.param_groups:
            return super().add_param_group(param_group)  # from inside Optimizer.__init__
        group = {**self.options, **param_group}
        self._check(group)
        self.base_optimizer.add_param_group(group)

    def state_dict(self) -> dict[str, Any]:
        """Return slow weights, positions in the cycles and the base's state; ``torch.load(weights_only=True)`` works.

        Raises:
            RuntimeError: inside :meth:`slow_weights`.
        """
        self._refuse_while_shown("state_dict()")
        return {**super().state_dict(), "base": self.base_optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume bit by bit from :meth:`state_dict`; from the bare base's checkpoint the slow weights start anew.

        Raises:
            RuntimeError: inside :meth:`slow_weights`.
        """
        self._refuse_while_shown("load_state_dict()")
        if "base" in state_dict:
            super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
            self.base_optimizer.load_state_dict(state_dict["base"])
        else:
            self.state.clear()
            self.base_optimizer.load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        names = ("base_optimizer", "momentum", "prefix", "options", "defaults", "state", "_slow_shown")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base_optimizer" in state:  # a copy or a pickle; else Optimizer.load_state_dict hands over what it has read
            state = {**state, "param_groups": state["base_optimizer"].param_groups}
        super().__setstate__(state)


@torch.no_grad()
def _move(pairs: list[tuple[Tensor, Tensor]], model: nn.Module | None) -> None:
    if model is not None:
        reshard(model)
    for p, value in pairs:
        p.copy_(value)
    forget_casts()
