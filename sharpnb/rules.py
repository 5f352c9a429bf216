r"""Every update rule of the papers on one page, as pure functions on rows.

Shapes: ``w``, ``g`` and each state tensor are ``(K, n)``, row k being one model's flattened weights, gradient or
state. A hyperparameter is a float or a ``(K, 1)`` column, one value a model. Nothing is changed in place.

Base rules map ``(w, g, state)`` to ``(w, state)``; ``state=None`` starts. Ascent rules (SAM and its relatives) take the
gradient as a function ``grad(w) -> (K, n)`` of the same mini-batch, and a base rule that makes the step.

Symbols: :math:`\alpha` = ``lr``, :math:`\eta_t` = ``eta`` (the schedule multiplier, 1 without a schedule),
:math:`\beta` = ``momentum``, :math:`\lambda` = ``weight_decay``. The step size at time t is :math:`\eta_t\alpha`.

Three readers: the notebook that derives a rule, :func:`sharpnb.lab.train_many`, and the tests, where each function is
the twin that the in-place class of :mod:`sharpnb.optim` must equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Column = float | Tensor
State = tuple[Any, ...] | None
Gradient = Callable[[Tensor], Tensor]
Base = Callable[..., tuple[Tensor, State]]
Perturbation = Callable[[Tensor, Tensor, Column], Tensor]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each pair of rows, (K, 1)."""
    return (a * b).sum(dim=1, keepdim=True)


def _over(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b, and 0 where b is 0."""
    return torch.where(b != 0, a / b, 0)


# ---- Base rules -----------------------------------------------------------------------------------------------------


def sgd(
    w: Tensor, g: Tensor, state: State = None, *, lr: Column, momentum: Column = 0.0, weight_decay: Column = 0.0,
    nesterov: bool = False, eta: Column = 1.0,
) -> tuple[Tensor, State]:
    r"""SGD with heavy-ball momentum and L2 regularisation, as ``torch.optim.SGD`` (dampening 0).

    .. math:: m_t = \beta m_{t-1} + (g_t + \lambda w_{t-1}), \qquad w_t = w_{t-1} - \eta_t\alpha\, m_t
    """
    g = g + weight_decay * w
    m = g if state is None else momentum * state[0] + g
    step = g + momentum * m if nesterov else m
    return w - eta * lr * step, (m,)


def sgdw(
    w: Tensor, g: Tensor, state: State = None, *, lr: Column, momentum: Column = 0.0, weight_decay: Column = 0.0,
    nesterov: bool = False, eta: Column = 1.0, lr_in_momentum: bool = True,
) -> tuple[Tensor, State]:
    r"""SGD with decoupled weight decay (Loshchilov & Hutter, ICLR 2019, Algorithm 1).

    .. math:: m_t = \beta m_{t-1} + \eta_t\alpha\, g_t, \qquad w_t = w_{t-1} - m_t - \eta_t\lambda w_{t-1}

    :math:`\lambda` is *not* multiplied by :math:`\alpha`. ``lr_in_momentum=False`` is the authors' code: the step size
    multiplies the buffer when it is used (:math:`m_t = \beta m_{t-1} + g_t`, step :math:`\eta_t\alpha m_t`); the two
    differ whenever :math:`\eta_t` changes.
    """
    step_size = eta * lr
    inside, outside = (step_size, 1.0) if lr_in_momentum else (1.0, step_size)
    m = inside * g if state is None else momentum * state[0] + inside * g
    step = inside * g + momentum * m if nesterov else m
    return w - outside * step - eta * weight_decay * w, (m,)


def _adam_direction(
    g: Tensor, state: State, betas: tuple[Column, Column], eps: Column
) -> tuple[Tensor, tuple[Tensor, Tensor, int]]:
    r"""Return :math:`\hat m_t/(\sqrt{\hat v_t}+\epsilon)` and the new ``(m, v, t)``."""
    beta1, beta2 = betas
    m, v, t = state if state is not None else (torch.zeros_like(g), torch.zeros_like(g), 0)
    t = t + 1
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return m_hat / (v_hat.sqrt() + eps), (m, v, t)


def adam(
    w: Tensor, g: Tensor, state: State = None, *, lr: Column, betas: tuple[Column, Column] = (0.9, 0.999),
    eps: Column = 1e-8, weight_decay: Column = 0.0, eta: Column = 1.0,
) -> tuple[Tensor, State]:
    r"""Adam with L2 regularisation, as ``torch.optim.Adam``: the penalty passes through the preconditioner.

    .. math:: g_t \leftarrow g_t + \lambda w_{t-1}, \qquad
              w_t = w_{t-1} - \eta_t\alpha\,\hat m_t/(\sqrt{\hat v_t}+\epsilon)
    """
    direction, state = _adam_direction(g + weight_decay * w, state, betas, eps)
    return w - eta * lr * direction, state


def adamw(
    w: Tensor, g: Tensor, state: State = None, *, lr: Column, betas: tuple[Column, Column] = (0.9, 0.999),
    eps: Column = 1e-8, weight_decay: Column = 0.0, eta: Column = 1.0,
) -> tuple[Tensor, State]:
    r"""Adam with decoupled weight decay, the paper's form (Loshchilov & Hutter, ICLR 2019, Algorithm 2).

    .. math:: w_t = w_{t-1} - \eta_t\big(\alpha\,\hat m_t/(\sqrt{\hat v_t}+\epsilon) + \lambda w_{t-1}\big)

    :math:`\lambda` is *not* multiplied by :math:`\alpha`; see :func:`adamw_torch`.
    """
    direction, state = _adam_direction(g, state, betas, eps)
    return w - eta * (lr * direction + weight_decay * w), state


def adamw_torch(
    w: Tensor, g: Tensor, state: State = None, *, lr: Column, betas: tuple[Column, Column] = (0.9, 0.999),
    eps: Column = 1e-8, weight_decay: Column = 0.0, eta: Column = 1.0,
) -> tuple[Tensor, State]:
    r"""``torch.optim.AdamW``: the decay is times the learning rate, :math:`\lambda=\alpha\cdot` ``weight_decay``.

    .. math:: w_t = w_{t-1} - \eta_t\alpha\big(\hat m_t/(\sqrt{\hat v_t}+\epsilon) + \lambda w_{t-1}\big)
    """
    return adamw(w, g, state, lr=lr, betas=betas, eps=eps, weight_decay=lr * weight_decay, eta=eta)


# ---- Perturbations: the ascent step of SAM and its relatives --------------------------------------------------------


def sam_perturbation(g: Tensor, rho: Column, p: float = 2.0) -> Tensor:
    r"""The maximiser of :math:`\epsilon^\top g` over :math:`\|\epsilon\|_p\le\rho`, row by row (Foret et al., eq. 2).

    .. math:: \hat\epsilon = \rho\,\mathrm{sign}(g)\,|g|^{q-1} \big/ \big(\|g\|_q^q\big)^{1/p}, \qquad 1/p + 1/q = 1

    so that :math:`\hat\epsilon^\top g=\rho\|g\|_q`. The limits: p = 2 is :math:`\rho g/\|g\|_2`, p = ∞ is
    :math:`\rho\,\mathrm{sign}(g)`, and p = 1 puts the whole radius on the largest entry.

    How it differs from the popular code: (1) no 1e-12 in the denominator: a row whose gradient is zero or not finite is
    not perturbed, every other row has exactly the radius :math:`\rho`; (2) entries are divided by the largest first, so
    that no power of them overflows; (3) for p = 1 equal largest entries share the radius.

    Raises:
        ValueError: if p is below 1.
    """
    if not p >= 1:
        raise ValueError(f"p = {p}: the norm of the perturbation needs p in [1, inf]. Use p=2 for the paper's default.")
    largest = g.abs().amax(dim=1, keepdim=True)
    usable = (largest > 0) & largest.isfinite()
    z = g / torch.where(usable, largest, 1)
    if p == 1:
        ties = z.abs() == 1
        direction = z.sign() * ties / ties.sum(dim=1, keepdim=True)
    elif p == 2:
        direction = z / torch.linalg.vector_norm(z, dim=1, keepdim=True)
    elif math.isinf(p):
        direction = z.sign()
    else:
        q = p / (p - 1)
        direction = z.sign() * z.abs() ** (q - 1) / (z.abs() ** q).sum(dim=1, keepdim=True) ** (1 / p)
    return torch.where(usable, rho * direction, 0)


def ball(w: Tensor, g: Tensor, rho: Column) -> Tensor:
    r"""SAM's perturbation in the form that every relative's has, :math:`\hat\epsilon(w, g, \rho)`: the 2-norm ball."""
    return sam_perturbation(g, rho)


def asam_perturbation(
    w: Tensor, g: Tensor, rho: Column, *, eta: Column = 0.01, scaled: Tensor | bool = True, p: float = 2.0
) -> Tensor:
    r"""ASAM's ball :math:`\|T_w^{-1}\epsilon\|_p\le\rho` (Kwon et al., ICML 2021, eq. 7 to 9).

    .. math:: \hat\epsilon = \rho\,T_w^2 g \big/ \|T_w g\|_2, \qquad T_w = |w| + \eta

    ``scaled`` marks, by a boolean that broadcasts to ``(K, n)``, the weights that are scaled; :math:`T_w` is 1 for the
    others (the paper's biases).
    """
    t = torch.where(torch.as_tensor(scaled, device=w.device), w.abs() + eta, torch.ones_like(w))
    return t * sam_perturbation(t * g, rho, p)


def fisher_perturbation(w: Tensor, g: Tensor, rho: Column, *, eta: Column = 1.0) -> Tensor:
    r"""Fisher SAM's ellipsoid :math:`\epsilon^\top F\epsilon\le\rho^2`, :math:`F=1+\eta g^2` (Kim et al., ICML 2022).

    .. math:: \hat\epsilon = \rho\,F^{-1}g \big/ \sqrt{g^\top F^{-1}g}
    """
    root = (1 + eta * g * g).rsqrt()
    return root * sam_perturbation(root * g, rho)


# ---- Ascent rules: two gradients a step -----------------------------------------------------------------------------


def sam(
    w: Tensor, grad: Gradient, state: State = None, *, rho: Column, p: float = 2.0, inner_steps: int = 1,
    second_order: bool = False, base: Base = sgd, **hyper: Any,
) -> tuple[Tensor, State]:
    r"""Sharpness-aware minimisation (Foret et al., ICLR 2021, Algorithm 1; the second-order term dropped, eq. 3).

    .. math:: w_t = \mathrm{base}\big(w_{t-1},\ \nabla L(w_{t-1} + \hat\epsilon)\big)

    ``inner_steps`` > 1 climbs on from there, each time by :math:`\rho` and back onto the ball by scaling.
    ``second_order`` (p = 2, one inner step) adds :func:`second_order_term`.
    """
    g = grad(w)
    eps = sam_perturbation(g, rho, p)
    for _ in range(inner_steps - 1):
        eps = eps + sam_perturbation(grad(w + eps), rho, p)
        in_radii = _over(eps, torch.as_tensor(rho, dtype=w.dtype, device=w.device))
        eps = eps / torch.linalg.vector_norm(in_radii, ord=p, dim=1, keepdim=True).clamp(min=1)
    g_adv = grad(w + eps)
    if second_order:
        g_adv = g_adv + second_order_term(grad, w, g, g_adv, rho)
    return base(w, g_adv, state, **hyper)


def second_order_term(grad: Gradient, w: Tensor, g: Tensor, g_adv: Tensor, rho: Column) -> Tensor:
    r"""The term of SAM's gradient that eq. 3 drops, by a central difference of the gradient along z.

    .. math::
        (d\hat\epsilon/dw)^\top\tilde g = Hz,\quad z=\frac{\rho}{\|g\|}(I-\bar g\bar g^\top)\,\tilde g,\qquad
        Hz \approx \frac{\|z\|}{2h}\Big(\nabla L(w+h\bar z)-\nabla L(w-h\bar z)\Big)

    with :math:`\bar g=g/\|g\|`, :math:`\bar z=z/\|z\|` and h the cube root of the machine epsilon.
    """
    z = rho * g_adv
    z = _over(z - _over(_dot(g, z), _dot(g, g)) * g, _dot(g, g).sqrt())
    size, h = _dot(z, z).sqrt(), torch.finfo(w.dtype).eps ** (1 / 3)
    along = h * _over(z, size)
    return size / (2 * h) * (grad(w + along) - grad(w - along))


def asam(
    w: Tensor, grad: Gradient, state: State = None, *, rho: Column, asam_eta: Column = 0.01,
    scaled: Tensor | bool = True, p: float = 2.0, base: Base = sgd, **hyper: Any,
) -> tuple[Tensor, State]:
    r"""Adaptive SAM (Kwon et al., ICML 2021): SAM on the ball of :func:`asam_perturbation` (its eta: ``asam_eta``)."""
    eps = asam_perturbation(w, grad(w), rho, eta=asam_eta, scaled=scaled, p=p)
    return base(w, grad(w + eps), state, **hyper)


def fisher_sam(
    w: Tensor, grad: Gradient, state: State = None, *, rho: Column, fisher_eta: Column = 1.0, base: Base = sgd,
    **hyper: Any,
) -> tuple[Tensor, State]:
    r"""Fisher SAM (Kim et al., ICML 2022): SAM on that of :func:`fisher_perturbation` (its eta: ``fisher_eta``)."""
    eps = fisher_perturbation(w, grad(w), rho, eta=fisher_eta)
    return base(w, grad(w + eps), state, **hyper)


def gsam(
    w: Tensor, grad: Gradient, state: State = None, *, rho: Column, alpha: Column, base: Base = sgd, **hyper: Any
) -> tuple[Tensor, State]:
    r"""Surrogate-gap guided SAM (Zhuang et al., ICLR 2022, Algorithm 1).

    .. math::
        g_\perp = g - \frac{\langle g,\tilde g\rangle}{\|\tilde g\|^2}\,\tilde g, \qquad
        w_t = \mathrm{base}\big(w_{t-1},\ \tilde g - \alpha g_\perp\big)
    """
    g = grad(w)
    g_adv = grad(w + sam_perturbation(g, rho))
    g_perp = g - _over(_dot(g, g_adv), _dot(g_adv, g_adv)) * g_adv
    return base(w, g_adv - alpha * g_perp, state, **hyper)


def gsam_rho(step_size: Column, *, rho: Column, rho_min: Column, lr_max: Column, lr_min: Column = 0.0) -> Column:
    r"""GSAM's radius, linear in the step size :math:`\eta_t\alpha`: rho at ``lr_max``, ``rho_min`` at ``lr_min``."""
    return rho_min + (rho - rho_min) * (step_size - lr_min) / (lr_max - lr_min)


def looksam(
    w: Tensor, grad: Gradient, state: State = None, *, rho: Column, k: int = 5, alpha: Column = 0.7, base: Base = sgd,
    **hyper: Any,
) -> tuple[Tensor, State]:
    r"""LookSAM (Liu et al., CVPR 2022, Algorithm 1): the second gradient every k-th step, its new part in between.

    .. math::
        t\equiv 0\ (k):\ \ g_v = \tilde g-\frac{\langle g,\tilde g\rangle}{\|g\|^2}\,g,\ \ u=\tilde g; \qquad
        \text{otherwise}:\ \ u = g+\alpha\,\frac{\|g\|}{\|g_v\|}\,g_v; \qquad w_t = \mathrm{base}(w_{t-1}, u)
    """
    base_state, g_v, t = state if state is not None else (None, torch.zeros_like(w), 0)
    u = g = grad(w)
    if t % k == 0:
        u = grad(w + sam_perturbation(g, rho))
        g_v = u - _over(_dot(g, u), _dot(g, g)) * g
    else:
        u = g + alpha * _over(_dot(g, g).sqrt(), _dot(g_v, g_v).sqrt()) * g_v
    w, base_state = base(w, u, base_state, **hyper)
    return w, (base_state, g_v, t + 1)


def esam(
    w: Tensor, grad: Callable[[Tensor, Tensor | None], Tensor], losses: Callable[[Tensor], Tensor],
    state: State = None, *, rho: Column, mask: Tensor, beta: Column, gamma: float, base: Base = sgd, **hyper: Any,
) -> tuple[Tensor, State]:
    r"""Efficient SAM (Du et al., ICLR 2022, Algorithm 1): some weights are perturbed, the samples it hurts are kept.

    .. math::
        \hat\epsilon = \frac{\rho}{\beta}\,\frac{\mu\odot g}{\|g\|},\qquad
        B^+ = \text{the }\lceil\gamma B\rceil\text{ samples of largest } \ell_j(w+\hat\epsilon)-\ell_j(w),\qquad
        w_t = \mathrm{base}\big(w_{t-1},\ \nabla L_{B^+}(w_{t-1}+\hat\epsilon)\big)

    ``losses(w)`` is ``(K, B)``; ``grad(w, rows)`` the gradient of the mean over ``rows``, ``(K, count)`` indices, or
    over the batch for None; ``mask`` is :math:`\mu`, ``(K, n)``, drawn with probability :math:`\beta`.
    """
    eps = mask * sam_perturbation(grad(w, None), rho / beta)
    increase = losses(w + eps) - losses(w)
    share = gamma * increase.shape[1]
    count = max(1, math.ceil(share - 1e-9 * share))  # 0.1 * 30 is 3, not 3.0000000000000004
    rows = increase.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return base(w, grad(w + eps, rows), state, **hyper)


def wsam(
    w: Tensor, grad: Gradient, state: State = None, *, rho: Column, gamma: Column, lr: Column, eta: Column = 1.0,
    decouple: bool = True, perturbation: Perturbation = ball, base: Base = sgd, **hyper: Any,
) -> tuple[Tensor, State]:
    r"""Weighted SAM on :math:`L + \frac{\gamma}{1-\gamma}\,(L^{SAM}-L)` (Yue et al., KDD 2023, Algorithms 2 and 4).

    With :math:`g=\nabla L(w)`, :math:`\tilde g=\nabla L(w+\hat\epsilon)` and :math:`a=\gamma/(1-\gamma)`:

    .. math::
        \text{decoupled:}\quad w_t = \mathrm{base}(w_{t-1}, g) - \eta_t\alpha\,a\,(\tilde g-g), \qquad
        \text{coupled:}\quad w_t = \mathrm{base}\big(w_{t-1},\ a\,\tilde g+(1-a)\,g\big)

    Decoupled, the sharpness term passes by momentum and preconditioner. Coupled with :math:`\gamma=1/2` is SAM;
    :math:`\gamma=0` is the base rule either way. ``perturbation`` puts it on a relative's ball, for example
    ``functools.partial(asam_perturbation, scaled=...)`` or :func:`fisher_perturbation`.
    """
    a = gamma / (1 - gamma)
    g = grad(w)
    g_adv = grad(w + perturbation(w, g, rho))
    if not decouple:
        return base(w, a * g_adv + (1 - a) * g, state, lr=lr, eta=eta, **hyper)
    w_base, state = base(w, g, state, lr=lr, eta=eta, **hyper)
    return w_base - eta * lr * a * (g_adv - g), state
