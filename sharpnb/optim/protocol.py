r"""The protocol of every optimizer that needs the gradient at two points: in one place, for the whole family.

.. math::
    g=\nabla L(w),\qquad \hat\epsilon=\rho\,R\,\frac{d(Rg)}{\|d(Rg)\|_p},\qquad \tilde g=\nabla L(w+\hat\epsilon),\qquad
    w\leftarrow\mathrm{base}\big(w,\ u(g,\tilde g)\big)

:math:`d(z)=\mathrm{sign}(z)|z|^{q-1}` with 1/p + 1/q = 1 is the steepest ascent direction of the p-norm (z itself for
p = 2), and the diagonal :math:`R` gives the ball its shape, :math:`\|R^{-1}\epsilon\|_p\le\rho`. A relative of SAM is
a choice of :math:`R` (:meth:`SharpnessAware._shape`) and of :math:`u` (:meth:`SharpnessAware._combine`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sharpnb.caches import forget_casts, refuse_parametrization_cache
from sharpnb.optim import foreach
from sharpnb.optim.accumulation import EarlierGradients
from sharpnb.optim.foreach import Bucket
from sharpnb.optim.passes import FrozenStatistics, RandomNumbers, refuse_scaler_around
from sharpnb.optim.ranks import Replicas, ranks_of
from sharpnb.optim.wrapper import WrappingOptimizer, base_of

Closure = Callable[..., Any]


class SharpnessAware(WrappingOptimizer):
    r"""What all two-pass optimizers share: they wrap a base optimizer, perturb, evaluate again, restore and call it.

    Two ways to build one::

        SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05)
        SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)

    Two ways to step::

        loss = optimizer.step(closure)                     # closure: compute the loss, back-propagate it, return it
        optimizer.first_step(zero_grad=True)               # after a backward pass at w
        optimizer.second_step(zero_grad=True)              # after another one, at the perturbed weights

    ``param_groups`` and ``state`` *are* the base's, so schedulers, hooks, checkpoints and added groups act on both; the
    method's hyperparameters live in the groups beside the learning rate, and each group may have its own.

    How it differs from the popular code, and why: (1) the base's state is in ``state_dict``, so a run resumes exactly;
    (2) weights move and return in place, bit by bit, so storage stays where captured graphs, flattened RNN weights and
    views expect it; (3) exactly the set that was perturbed is restored, whatever has a gradient in the second pass;
    (4) no constant in the denominator: a gradient of norm zero, or not finite, is not followed at all;
    (5) ``step(closure)`` makes both passes itself, and refuses another batch's gradient in ``.grad``.

    Over ``fully_shard`` (FSDP2) the radius is that of the whole gradient, and the step that of one process.

    Memory in the second pass, beside weights and gradient: one copy of the weights (on the CPU it stays allocated),
    and for GSAM, LookSAM and WSAM the gradient at w.

    Args:
        optimizer: the base optimizer, or the parameters (then ``base_optimizer`` is its class).
        base_optimizer: class of the base, which gets the remaining keyword arguments.
        rho: radius of the perturbation, in the units of the weights (0 is the base optimizer).
        p: the norm of the ball, in [1, inf].
        options: the method's other hyperparameters with their defaults; they go into the groups.
        model: names the model under ``DistributedDataParallel``, so that each rank perturbs on its own shard, and where
            it runs inside a compiled function. It also spares small models the hook's microseconds.
        skip_nonfinite: when a gradient of either pass is not finite, leave weights and state exactly as they were (one
            host read a step). False never reads the device, for CUDA graphs; a ``GradScaler`` still skips.
        same_dropout: give all passes the same random numbers, as the authors' JAX code does (needs ``step(closure)``).
        in_place: perturb the weights where they lie. False exchanges pointers for the second pass: on the CPU 28 bytes
            of traffic a float32 weight and not 36. A captured graph, flattened RNN weights or a view of a parameter
            then miss the perturbation.
        base_kwargs: what is left for ``base_optimizer``.

    Raises:
        TypeError: if ``optimizer`` is neither an optimizer nor parameters with a class.
        ValueError: if a hyperparameter is out of range, the base maximises, or shards hide the whole gradient.
    """

    keeps_gradient: bool = False  # whether u needs the gradient at w: one more copy of the weights in the second pass
    _own = ("p", "model", "skip_nonfinite", "same_dropout", "in_place")
    _remembers: str = ""  # what the method keeps in the state of each parameter, if anything
    closure_only: str = ""  # why first_step and second_step cannot do the method, or empty
    _step_supports_amp_scaling = True  # GradScaler.step then always reaches us, and perturbed weights always return

    def __init__(
        self, optimizer: Optimizer | Iterable[Any], base_optimizer: type[Optimizer] | None = None, *, rho: float = 0.05,
        p: float = 2.0, options: dict[str, Any] | None = None, model: nn.Module | None = None,
        skip_nonfinite: bool = True, same_dropout: bool = False, in_place: bool = True, **base_kwargs: Any,
    ) -> None:
        if not p >= 1:
            raise ValueError(f"p = {p}: the norm of the perturbation needs p in [1, inf]. Use 2, the papers' choice.")
        self.p, self.model, self.in_place = p, model, in_place
        self.skip_nonfinite, self.same_dropout = skip_nonfinite, same_dropout
        base = base_of(type(self).__name__, optimizer, base_optimizer, base_kwargs)
        super().__init__(base, {"rho": rho, **(options or {})})

    def _shape(self, bucket: Bucket) -> list[Tensor] | None:
        """Return the diagonal R for a bucket's tensors (``bucket.w`` and ``bucket.g`` are there), or None for R = I."""

    _kind: Callable[[dict[str, Any], Tensor], Any] | None = None  # what sorts a group's parameters apart (bucket.kind)

    def _radius(self, group: dict[str, Any]) -> Any:
        """Return the radius that a group has in this step."""
        return group["rho"]

    def _ascends(self) -> bool:
        """Return whether this step perturbs at all."""
        return True

    def _at_perturbed(self, run: Closure, scaler: Any, first: dict[Tensor, Tensor]) -> None:
        """Leave the gradient of the perturbed loss in ``.grad``."""
        self._evaluate(run, scaler)

    def _combine(self, buckets: list[Bucket]) -> None:
        """Overwrite each ``g_adv`` with u; set ``after`` to what :meth:`_past_base` needs. If ``keeps_gradient``."""

    def _past_base(self, after: dict[Tensor, Tensor]) -> None:
        """Do what follows the base's step; ``after`` is averaged over shards and ranks as u is."""

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if not (group["rho"] >= 0 and math.isfinite(group["rho"])):
            raise ValueError(f"rho = {group['rho']}: the radius must be finite and not negative. Use rho=0 for none.")
        if group.get("maximize"):
            raise ValueError(f"maximize=True: {type(self).__name__} looks for the largest loss nearby, so its base "
                             "must minimise. Leave maximize=False and change the sign of the loss.")

    def _regrouped(self) -> None:
        super()._regrouped()
        name = type(self).__name__
        self._replicas = Replicas(self.model)
        self._ranks = ranks_of(self.param_groups, name)
        if self._ranks and not self.in_place:
            raise ValueError(f"{name}(in_place=False) over DTensors (fully_shard): no pointers to exchange. Use True.")

    def _rest(self) -> None:
        self._statistics = FrozenStatistics(self.model)
        self._backup: list[tuple[Bucket, list[Tensor]]] = []  # what was perturbed, and the weights to return to
        self._copies = foreach.Copies()
        self._earlier = EarlierGradients()
        self._first: dict[Tensor, Tensor] | None = None  # between the halves of a step
        self._after: dict[Tensor, Tensor] = {}
        self._numbers: RandomNumbers | None = None

    def _settled(self, call: str) -> None:
        if self._first is not None:
            raise RuntimeError(f"{call} in the middle of a step: the weights are perturbed by first_step(). Call "
                               "second_step(), or restore() to give that step up.")

    # -- a step -------------------------------------------------------------------------------------------------------

    def step(self, closure: Closure | Sequence[Closure] | None = None, *, scaler: Any = None) -> Any:
        """Make one step and return the loss of the unperturbed pass.

        Args:
            closure: computes the loss, back-propagates it and returns it; it may zero the gradients or not. It is
                called as often as the method needs. A list of closures, one a shard of equal size, is m-sharpness: each
                perturbs on its own gradient, the outcomes are averaged, and so is the returned loss. None does the
                second half of a step that :meth:`first_step` began.
            scaler: a ``torch.amp.GradScaler`` whose ``scale`` the closure applied; call ``scaler.update()`` afterwards.

        Raises:
            RuntimeError: without a closure and without a ``first_step``; with a closure in the middle of a step, or
                where ``.grad`` held gradients of another batch.
            ValueError: if the list of closures is empty.
        """
        with torch.no_grad():
            if closure is None:
                return self._second_half()
            self._begin("step(closure)")
            refuse_scaler_around(self, scaler)
            if callable(closure):
                self._earlier.look(self._params)
                loss = self._two_passes(closure, scaler)
            else:
                loss = self._shards(list(closure), scaler)
            self._descend()
            return loss

    def _shards(self, closures: list[Closure], scaler: Any) -> Any:
        """Leave the shards' mean u in ``.grad``; return the mean of their losses."""
        if not closures:
            raise ValueError("step([]): the list of closures is empty. Give one closure a shard of the batch.")
        losses, total, share = [], ({}, {}), 1 / len(closures)
        for run in closures:
            losses.append(self._two_passes(run, scaler))
            for sums, news in zip(total, (foreach.gradients(self._params), self._after), strict=True):
                for p, t in news.items():
                    sums[p] = t * share if p not in sums else sums[p].add_(t, alpha=share)
        for p, u in total[0].items():
            p.grad = u
        self._after = total[1]
        return sum(losses) / len(losses)

    def _two_passes(self, run: Closure, scaler: Any) -> Any:
        """Leave u in ``.grad`` and the weights as they were; return the loss of the unperturbed pass."""
        self._numbers = RandomNumbers(self._params) if self.same_dropout else None
        with self._replicas.no_sync():
            loss = self._evaluate(run, scaler)
        if self._earlier.found:
            self._earlier.compare(self._params, type(self).__name__)
        first = self._first_gradients()
        if self._ascends():
            try:
                self._climb()
                self._statistics.start()
                with self._replicas.no_sync() if self.keeps_gradient else nullcontext():
                    self._at_perturbed(run, scaler, first)
            except BaseException:
                self._earlier.leave(self._params)
                raise
            finally:
                self._return()
        self._finish_gradient(first)
        return loss

    def _evaluate(self, run: Closure, scaler: Any) -> Any:
        """Clear the gradients, call the closure, unscale; return its loss."""
        self._prepare()
        with torch.enable_grad():
            loss = run()
        self._unscale(scaler)
        return loss

    def first_step(self, zero_grad: bool = False, *, scaler: Any = None) -> None:
        """Perturb the weights on the gradients that are there: the first half of a step.

        Args:
            zero_grad: clear the gradients afterwards, as the second backward pass needs it.
            scaler: a ``torch.amp.GradScaler`` whose ``scale`` was applied; ``scaler.step(self)`` makes the second half.

        Raises:
            RuntimeError: if the weights are perturbed already, or the method needs ``step(closure)``.
        """
        if reason := self.closure_only or ("same_dropout=True rewinds the random numbers" if self.same_dropout else ""):
            raise RuntimeError(f"{type(self).__name__}.first_step: {reason}, which needs step(closure).")
        self._begin("first_step()")
        self._unscale(scaler)
        with torch.no_grad():
            self._first = self._first_gradients()
            if self._ascends():
                self._climb()
        self._statistics.start()
        if zero_grad:
            self._clear()

    def second_step(self, zero_grad: bool = False) -> None:
        """Restore the weights and make the base's step on the gradients that are there: the second half of a step."""
        self.step()
        if zero_grad:
            self._clear()

    def _second_half(self) -> None:
        if (first := self._first) is None:
            # torch.distributed.checkpoint has a base's fresh state made by a step that can move nothing
            grads = foreach.gradients(p for group in self.param_groups for p in group["params"])
            if any(float(group["lr"]) for group in self.param_groups) or any(g.any() for g in grads.values()):
                raise RuntimeError("step() without a closure: no first_step() came before it. Call step(closure), or "
                                   "first_step() and second_step() around a second backward pass.")
            self.base_optimizer.step()
            for p in grads if self._remembers else ():
                self.state[p].setdefault(self._remembers, torch.zeros_like(p))
            return
        self._return()
        scale = getattr(self, "grad_scale", None)  # set by GradScaler.step, unless the gradients are unscaled already
        if scale is not None:
            for p, g in foreach.gradients(self._params).items():
                p.grad = g / scale.to(g.device)
        self._finish_gradient(first)
        self._descend()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        super().zero_grad(set_to_none)
        self._earlier.forget()

    def restore(self) -> None:
        """Put weights and norm statistics back as they were before the perturbation; harmless when they are."""
        if self._first is not None:
            self._earlier.leave(self._params)
        with torch.no_grad():
            self._return()

    # -- its parts ----------------------------------------------------------------------------------------------------

    def _begin(self, call: str) -> None:
        self._settled(call)
        if self._statistics.parametrized:
            refuse_parametrization_cache(call)
        self._look_at_groups()
        self._params = [p for group in self.param_groups for p in group["params"]]
        self._lengths: list[Tensor | float] = []  # not finite where an ascent gradient was not
        self._unscaled: list[Any] = []

    def _prepare(self) -> None:
        for p in self._params:
            p.grad = None
        for p, (_, zeros) in self._earlier.found.items():  # a closure that clears its gradients itself takes them away
            p.grad = zeros
        if self._numbers is not None:
            self._numbers.rewind()

    def _clear(self) -> None:
        self._earlier.forget()
        self._prepare()

    def _unscale(self, scaler: Any) -> None:
        """Unscale the gradients, which the scaler allows each optimizer once an update: each pass has its own name."""
        if scaler is not None:
            self._unscaled.append(SimpleNamespace(param_groups=self.param_groups))  # kept: names are told apart by id
            scaler.unscale_(self._unscaled[-1])

    def _first_gradients(self) -> dict[Tensor, Tensor]:
        """Return the gradients at w if the method keeps them, else nothing."""
        return foreach.kept_gradients(self._params) if self.keeps_gradient else {}

    def _climb(self) -> None:
        """Perturb the weights on their gradients."""
        buckets = foreach.buckets(self.param_groups, kind=self._kind)
        if not buckets:
            return
        directions, length = self._direction(buckets)
        for number, (bucket, d) in enumerate(zip(buckets, directions, strict=True)):
            scale = foreach.stride(self._radius(bucket.group), length, bucket.w)
            copies = self._copies.take(number, bucket.w)
            if not self.in_place:
                copies = foreach.point(bucket, copies)
            self._backup.append((bucket, copies))
            foreach.ascend(bucket.w, d, scale)
            bucket.g = []  # the first gradient is freed before the second pass, unless the method keeps it
        forget_casts()

    def _direction(self, buckets: list[Bucket]) -> tuple[Sequence[foreach.Tensors], Tensor | float]:
        r"""Return :math:`R\,d(Rg)` and :math:`\|d(Rg)\|_p`."""
        shapes = [self._shape(bucket) for bucket in buckets]
        z = [b.g if r is None else foreach.mul(r, b.g) for b, r in zip(buckets, shapes, strict=True)]
        d, length = foreach.steepest(z, self.p, self._ranks)
        self._lengths.append(length)
        return [x if r is None else foreach.mul(r, x) for x, r in zip(d, shapes, strict=True)], length

    def _copy_back(self) -> None:
        for bucket, copies in self._backup:
            foreach.copy_(bucket.w, copies)

    def _return(self) -> None:
        self._statistics.stop(self._params)
        for bucket, weights in self._backup:
            foreach.copy_(bucket.w, weights) if self.in_place else foreach.point(bucket, weights)
        forget_casts()
        self._backup, self._first = [], None
        if self.keeps_gradient:  # two copies are never there beside what u needs
            self._copies = foreach.Copies()

    def _perturbed(self, gradients: dict[Tensor, Tensor]) -> list[Bucket]:
        """Sort gradients into the buckets that were perturbed, in that order; a missing one is zero."""
        return [foreach.Bucket(b.group, b.params, b.w, [foreach.dense(p, gradients.get(p)) for p in b.params])
                for b, _ in self._backup]

    def _finish_gradient(self, first: dict[Tensor, Tensor]) -> None:
        """Turn the two gradients into u."""
        if not self.keeps_gradient:
            return
        self._after = {}
        buckets = foreach.buckets(self.param_groups, first, foreach.gradients(self._params))
        if buckets:
            self._combine(buckets)
        for bucket in buckets:
            for p, u in zip(bucket.params, bucket.g_adv, strict=True):
                p.grad = foreach.like(u, p)
            self._after |= {p: foreach.like(t, p) for p, t in zip(bucket.params, bucket.after, strict=False)}

    def _descend(self) -> None:
        """Let the base make its step, unless something was not finite."""
        try:
            if self.keeps_gradient and self._replicas:
                grads = foreach.gradients(self._params)
                self._replicas.average(self._params, [grads, self._after])
                for p, g in grads.items():
                    p.grad = g
            if (self.skip_nonfinite or self._unscaled or hasattr(self, "found_inf")) and not self._all_finite():
                return  # a GradScaler, which the last two show, skips a bad step anyway
            self.base_optimizer.step()
            self._past_base(self._after)
            forget_casts()
        finally:
            self._after = {}
            self._earlier.leave(self._params)

    def _all_finite(self) -> bool:
        bad = foreach.nonfinite([*[g for p in self._params if (g := p.grad) is not None], *self._after.values()])
        for length in self._lengths:
            bad = bad + length * 0  # which is NaN where the length is not finite
        together = self._replicas or self._ranks  # none of whom may skip a step alone
        return float(together.total(bad) if together else bad) == 0
