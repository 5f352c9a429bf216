r"""Lookahead: k steps forward, one step back (Zhang, Lucas, Hinton & Ba, NeurIPS 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sharpnb.averaging.wrapped import reshard, wide
from sharpnb.caches import forget_casts, refuse_parametrization_cache
from sharpnb.optim.ranks import is_sharded, local
from sharpnb.optim.wrapper import WrappingOptimizer

Momentum = Literal["keep", "reset", "pullback"]
_FIRST_MOMENTS = ("momentum_buffer", "exp_avg")  # what SGD and the Adam family of torch.optim call it
_OTHERS = {"slow_state": "lookahead_pytorch", "lookahead_slow_buff": "timm", "lookahead_state": "pytorch_optimizer",
           "la_step": "the paper's code"}  # by what is in their checkpoints alone


class Lookahead(WrappingOptimizer):
    r"""Slow weights :math:`\phi` that follow the fast weights :math:`\theta` of any optimizer (Algorithm 1).

    .. math::
        \theta_{t,0}=\phi_{t-1},\qquad \theta_{t,i}=\mathrm{base}(\theta_{t,i-1}),\ i=1\dots k,\qquad
        \phi_t=\phi_{t-1}+\alpha\,(\theta_{t,k}-\phi_{t-1})

    so that :math:`\phi` is an exponential average of the inner loops' end points, and :math:`\alpha=1` is the base.

    A scheduler may be attached to either, and a group may hold its own ``k`` and ``alpha``. A base that has such a name
    itself (RMSprop, ASGD, GSAM, LookSAM) is refused until ``prefix`` names Lookahead's values otherwise::

        Lookahead(torch.optim.RMSprop(model.parameters()), k=5, alpha=0.5, prefix="lookahead_")  # lookahead_k, …

    A base that was wrapped before gets the new ``k`` and ``alpha`` in every group, and begins a new cycle.
    ``param_groups`` and ``state`` *are* the base's, ours in them, so checkpoints hold both, and resume bit by bit, in
    the middle of a cycle too.

    How it differs from the popular code, and why: (1) the slow weights start at the weights before the first fast step
    (others copy them at the first pull, or pull after the first step); (2) ``"pullback"`` keeps a *copy* of the
    momentum (others alias the live buffer, which turns the weight :math:`\alpha` into :math:`\alpha(2-\alpha)`), and
    works on Adam's first moment too; (3) every parameter that can move is pulled, with a gradient at that moment or
    without, and a frozen one stays; (4) slow weights of half-precision parameters are float32: there a small
    :math:`\alpha` would leave them where they are for good.

    Args:
        optimizer: the base, an instance; its ``step`` is called with whatever :meth:`step` is given.
        k: fast steps a cycle (the paper's default 5; its ablation takes 5 and 10).
        alpha: slow step size in (0, 1] (the paper's 0.5; its CIFAR runs tuned 0.8).
        momentum: what happens to the first moment (SGD's buffer, Adam's ``exp_avg``) at a pull: ``"keep"`` (the
            official default), ``"reset"`` to zero, or ``"pullback"``: interpolated like the weights.
        prefix: what stands before the names ``k``, ``alpha`` and ``fast_steps`` (steps so far) in the groups, and
            before ``slow`` in the state.

    Raises:
        TypeError: if ``optimizer`` is not an optimizer, or is ``LBFGS``, which a pull would give a wrong curvature.
        ValueError: if ``k``, ``alpha`` or ``momentum`` is out of range, or the base keeps one of these names itself.
    """

    _own = ("momentum", "prefix")

    def __init__(
        self, optimizer: Optimizer, k: int = 5, alpha: float = 0.5, momentum: Momentum = "keep", prefix: str = "",
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"Lookahead: optimizer = {optimizer!r} is not an optimizer. Build the base first: "
                            "Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), k=5, alpha=0.5).")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError("Lookahead over LBFGS: its next step compares gradients at two points that it believes "
                            "to be one step apart, and a pull moves one. Use SGD, Adam or another first-order base.")
        if momentum not in get_args(Momentum):
            raise ValueError(f"momentum = {momentum!r}: choose 'keep', 'reset' or 'pullback'.")
        self.momentum, self.prefix = momentum, prefix
        options = {f"{prefix}k": k, f"{prefix}alpha": alpha, f"{prefix}fast_steps": 0}
        self._check(options)
        before = [group for group in optimizer.param_groups if f"{prefix}fast_steps" in group]
        super().__init__(optimizer, options)
        for group in before:  # a Lookahead that held the base before has left its values there
            group.update(options)
            for state in (self.state.get(p, {}) for p in group["params"]):
                for name in self._names:
                    state.pop(name, None)

    @property
    def _if_taken(self) -> str:
        other = "lookahead_" if self.prefix != "lookahead_" else "outer_"
        return f"Name Lookahead's values otherwise: Lookahead(..., prefix={other!r})."

    @property
    def _slow(self) -> str:
        return f"{self.prefix}slow"

    @property
    def _names(self) -> tuple[str, ...]:
        """What is ours in the state of a parameter."""
        return (self._slow, *(f"{self._slow}_{name}" for name in _FIRST_MOMENTS))

    def _check(self, group: dict[str, Any]) -> None:
        k, alpha = group[f"{self.prefix}k"], group[f"{self.prefix}alpha"]
        if not (isinstance(k, int) and k >= 1):
            raise ValueError(f"k = {k!r}: a cycle has a whole number of fast steps, e.g. the paper's 5.")
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha = {alpha}: the slow step lies in (0, 1]; the paper's is 0.5.")

    def _rest(self) -> None:
        self._moment = ""  # why this is no moment for a checkpoint or a step

    def _settled(self, call: str) -> None:
        if self._moment:
            raise RuntimeError(f"{call} {self._moment}, where weights and state are not those of training. "
                               "Call it afterwards.")

    @torch.no_grad()
    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Make one fast step with the base, and at the end of a cycle the slow one; return what the base returns.

        Raises:
            RuntimeError: inside :meth:`slow_weights`.
        """
        self._settled("step()")
        self._regrouped()
        own = self._aside()
        self._moment = "in the middle of a step"
        try:
            with torch.enable_grad():
                result = self.base_optimizer.step(*args, **kwargs)
        finally:
            self._moment = ""
            for p, found in own.items():
                self.state.setdefault(p, {}).update(found)
        if self.momentum == "pullback":
            self._begin_moments()
        for group in self.param_groups:
            group[f"{self.prefix}fast_steps"] += 1
            if group[f"{self.prefix}fast_steps"] % group[f"{self.prefix}k"] == 0:
                self._pull(group)
        forget_casts()
        return result

    def _aside(self) -> dict[Tensor, dict[str, Tensor]]:
        """Return new slow weights, and those that stand alone: to many bases an empty state means the first step."""
        own, state, slow, names = {}, self.state, self._slow, set(self._names)
        for p in (p for group in self.param_groups for p in group["params"]):
            there = state.get(p, {})
            if slow in there:
                if there.keys() <= names:
                    own[p] = state.pop(p)
            elif p.requires_grad:
                own[p] = {slow: p.detach().to(wide(p.dtype), copy=True)}
        return own

    def _pull(self, group: dict[str, Any]) -> None:
        alpha = group[f"{self.prefix}alpha"]
        moving = [p for p in group["params"] if p.requires_grad and self._slow in self.state.get(p, ())]
        if moving:
            _lerp([self.state[p][self._slow] for p in moving], moving, alpha)
        for name in _FIRST_MOMENTS if self.momentum != "keep" else ():
            moments = {p: moment for p in moving if isinstance(moment := self.state[p].get(name), Tensor)}
            if self.momentum == "reset":
                for moment in moments.values():
                    moment.zero_()
            elif moments:
                _lerp([self.state[p][f"{self._slow}_{name}"] for p in moments], list(moments.values()), alpha)

    def _begin_moments(self) -> None:
        """Begin the averages of the first moments at zero, as soon as the base has moments."""
        for state in self.state.values():
            for name in _FIRST_MOMENTS:
                if isinstance(moment := state.get(name), Tensor) and f"{self._slow}_{name}" not in state:
                    state[f"{self._slow}_{name}"] = torch.zeros_like(moment, dtype=wide(moment.dtype))

    @contextmanager
    def slow_weights(self, model: nn.Module | None = None) -> Iterator[None]:
        """Inside the context the parameters are the slow weights, which the paper evaluates; outside, the fast ones.

        Args:
            model: needed under ``fully_shard`` only, whose modules must gather their weights anew.

        Raises:
            RuntimeError: inside itself or ``torch.nn.utils.parametrize.cached()``, or if the parameters are sharded
                and there is no ``model``.
        """
        self._settled("slow_weights()")
        refuse_parametrization_cache("slow_weights()")
        pairs = [(p, self.state[p][self._slow]) for group in self.param_groups for p in group["params"]
                 if p.requires_grad and self._slow in self.state.get(p, ())]
        if model is None and any(is_sharded(p) for p, _ in pairs):
            raise RuntimeError("slow_weights() of sharded parameters (FSDP2, DTensor): the modules keep whole weights "
                               "that they have gathered. Write slow_weights(model), with the model.")
        fast = [(p, p.detach().clone()) for p, _ in pairs]
        _move(pairs, model)
        self._moment = "inside slow_weights()"
        try:
            yield
        finally:
            self._moment = ""
            _move(fast, model)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, by the base's own method."""
        self.base_optimizer.zero_grad(set_to_none)

    def _load(self, state_dict: dict[str, Any]) -> None:
        """Let the base load, then see to what is ours; from the bare base's checkpoint the slow weights start anew."""
        self._refuse_others(state_dict)
        self._check_bases(state_dict)
        kept = [{name: group[name] for name in self.options if name in group} for group in self.param_groups]
        self.base_optimizer.load_state_dict(state_dict)
        params, begun = [p for group in self.param_groups for p in group["params"]], False
        for number, p in zip((i for group in state_dict["param_groups"] for i in group["params"]), params, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if name in self._names:  # the base has rounded it to the dtype of the parameter
                    begun = True
                    self.state.setdefault(p, {})[name] = value.to(p.device, wide(value.dtype), copy=True)
        for group, own in zip(self.param_groups, kept, strict=True):
            group.update({name: value for name, value in own.items() if name not in group})
            if not begun:
                group[f"{self.prefix}fast_steps"] = 0

    def _refuse_others(self, state_dict: dict[str, Any]) -> None:
        entries = (name for state in state_dict.get("state", {}).values() if isinstance(state, dict) for name in state)
        for name in _OTHERS.keys() & {*state_dict, *entries}:
            raise ValueError(f"The checkpoint holds {name!r}: it is that of {_OTHERS[name]}'s Lookahead, whose slow "
                             "weights begin at another step. Load the base's part of it: the cycle begins anew.")
        counts = {name for group in state_dict["param_groups"] for name in group if name.endswith("fast_steps")}
        counts -= self.base_optimizer.defaults.keys()
        if (counts and f"{self.prefix}fast_steps" not in counts) or "base" in state_dict:
            raise ValueError(f"The checkpoint is that of a Lookahead of another form: {sorted(counts)} in its groups, "
                             f"prefix={self.prefix!r} here. Load it into one with the prefix that it was saved with.")


def _lerp(slow: list[Tensor], fast: list[Tensor], alpha: float) -> None:
    """Do the slow step in place, and let the fast ones follow."""
    slow, fast = [local(s) for s in slow], [local(f) for f in fast]
    torch._foreach_lerp_(slow, [f.to(s.dtype) for s, f in zip(slow, fast, strict=True)], alpha)
    torch._foreach_copy_(fast, slow)


@torch.no_grad()
def _move(pairs: list[tuple[Tensor, Tensor]], model: nn.Module | None) -> None:
    if model is not None:
        reshard(model)
    for p, value in pairs:
        p.copy_(value)
    forget_casts()
