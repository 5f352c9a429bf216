"""A small float64 problem, and every update rule written a second time in NumPy, without a look at the package.

The problem is nonlinear regression, L(w) = mean_j (tanh(A_j w) - y_j)^2, with its gradient by hand. Its 21 weights are
three tensors in two groups: a matrix and a vector with one radius and learning rate, a matrix with others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sharpnb import rules
from sharpnb.optim import ASAM, ESAM, GSAM, SAM, SGDW, WSAM, AdamW, FisherSAM, LookSAM

SHAPES = [(3, 4), (3,), (2, 3)]
SIZES = [math.prod(shape) for shape in SHAPES]
N = sum(SIZES)
SECOND = np.arange(N) >= SIZES[0] + SIZES[1]  # the weights of the second group
MATRIX = np.concatenate([np.full(size, len(shape) > 1) for shape, size in zip(SHAPES, SIZES, strict=True)])

_draw = np.random.default_rng(7)
A = _draw.normal(size=(30, N))
Y = np.tanh(A @ _draw.normal(size=N)) + 0.1 * _draw.normal(size=30)
START = 0.5 * _draw.normal(size=N)


def numpy_gradient(w: np.ndarray) -> np.ndarray:
    t = np.tanh(A @ w)
    return A.T @ (2 * (t - Y) * (1 - t**2)) / len(Y)


def losses(w: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the per-sample losses of K models, (K, B), from their weights (K, n)."""
    a, y = (torch.as_tensor(x, dtype=dtype, device=w.device) for x in (A, Y))
    return (torch.tanh(w @ a.T) - y).square()


def row_gradient(w: Tensor) -> Tensor:
    w = w.detach().requires_grad_()
    return torch.autograd.grad(losses(w).mean(dim=1).sum(), w)[0]


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    pieces = torch.as_tensor(START, dtype=dtype).split(SIZES)
    return [nn.Parameter(piece.reshape(shape).clone()) for piece, shape in zip(pieces, SHAPES, strict=True)]


def flat(params: list[nn.Parameter]) -> Tensor:
    return torch.cat([p.reshape(-1) for p in params])


def groups(params: list[nn.Parameter], first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"params": params[:2], **first}, {"params": params[2:], **second}]


def closure_for(params: list[nn.Parameter]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        loss = losses(flat(params)[None], params[0].dtype).mean()
        loss.backward()
        return loss

    return closure


# -- base rules in NumPy, for one vector of weights or several rows ---------------------------------------------------


def numpy_sgd(w, g, s, lr, momentum=0.0, weight_decay=0.0, nesterov=False):
    g = g + weight_decay * w
    s["b"] = g if "b" not in s else momentum * s["b"] + g
    return w - lr * (g + momentum * s["b"] if nesterov else s["b"])


def numpy_sgdw(w, g, s, lr, momentum=0.0, decay=0.0, nesterov=False, inside=True):
    """``decay`` is eta_t lambda; ``inside`` says that the buffer holds the rate."""
    g = lr * g if inside else g
    s["b"] = momentum * s.get("b", 0.0) + g
    return w - (1 if inside else lr) * (g + momentum * s["b"] if nesterov else s["b"]) - decay * w


def numpy_adam(w, g, s, lr, weight_decay=0.0, decay=0.0, b1=0.9, b2=0.999, eps=1e-8):
    """``weight_decay`` is part of the gradient, ``decay`` of the step."""
    g = g + weight_decay * w
    s["t"] = s.get("t", 0) + 1
    s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g**2
    return w - lr / (1 - b1 ** s["t"]) * s["m"] / (np.sqrt(s["v"] / (1 - b2 ** s["t"])) + eps) - decay * w


def numpy_adamw_torch(w, g, s, lr, weight_decay):
    return numpy_adam(w, g, s, lr, decay=lr * weight_decay)


@dataclass
class Base:
    """One base optimizer three times: PyTorch's class, the rule on rows, NumPy."""

    cls: type[torch.optim.Optimizer]
    rule: Callable[..., Any]
    numpy: Callable[..., np.ndarray]
    lr: float
    hyper: dict[str, Any] = field(default_factory=dict)


BASES = {
    "sgd": Base(torch.optim.SGD, rules.sgd, numpy_sgd, 0.1),
    "momentum": Base(torch.optim.SGD, rules.sgd, numpy_sgd, 0.05, {"momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": Base(torch.optim.SGD, rules.sgd, numpy_sgd, 0.05,
                     {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    "adam": Base(torch.optim.Adam, rules.adam, numpy_adam, 0.01, {"weight_decay": 0.1}),
    "adamw": Base(torch.optim.AdamW, rules.adamw_torch, numpy_adamw_torch, 0.01, {"weight_decay": 0.1}),
}


# -- the family in NumPy: from the gradient G, what the base gets, and what goes past it over lr ----------------------


def norm(x):
    return np.sqrt((x * x).sum(-1, keepdims=True))


def p_ball(g, rho, p=2.0):
    if p == 1:
        eps = np.zeros_like(g)
        eps[np.abs(g).argmax()] = np.sign(g[np.abs(g).argmax()])
        return rho * eps
    q = 1.0 if math.isinf(p) else p / (p - 1)
    d = np.sign(g) * np.abs(g) ** (q - 1)
    return rho * d / (np.abs(g) ** q).sum(-1, keepdims=True) ** (0.0 if math.isinf(p) else 1 / p)


def asam_ball(w, g, rho, eta=0.01, matrix=MATRIX):
    t = np.where(matrix, np.abs(w) + eta, 1.0)
    return rho * t**2 * g / norm(t * g)


def fisher_ball(w, g, rho, eta=1.0):
    f = g / (1 + eta * g**2)
    return rho * f / np.sqrt((g * f).sum(-1, keepdims=True))


def sam_ball(w, g, rho):
    return p_ball(g, rho)


def numpy_plain(w, G, s, rho):
    return G(w), 0.0


def numpy_sam(w, G, s, rho, p=2.0):
    return G(w + p_ball(G(w), rho, p)), 0.0


def numpy_inner(w, G, s, rho, steps=3):
    eps = p_ball(G(w), rho)
    for _ in range(steps - 1):
        eps = eps + p_ball(G(w + eps), rho)
        eps = eps / max(1.0, np.linalg.norm(eps / rho))
    return G(w + eps), 0.0


def numpy_in(w, G, s, rho, ball):
    return G(w + ball(w, G(w), rho)), 0.0


def numpy_gsam(w, G, s, rho, alpha=0.4):
    g = G(w)
    h = G(w + p_ball(g, rho))
    unit = h / norm(h)
    return h - alpha * (g - (g * unit).sum(-1, keepdims=True) * unit), 0.0


def numpy_looksam(w, G, s, rho, k=3, alpha=0.7):
    """``s["t"]`` counts the steps; the directions of all shards of a step stand in ``s["news"]``, their mean is v."""
    g = G(w)
    if s["t"] % k:
        v = np.mean(s["news"], 0)
        return g + alpha * norm(g) * v / norm(v), 0.0
    if s.get("of") != s["t"]:
        s["of"], s["news"] = s["t"], []
    h, unit = G(w + p_ball(g, rho)), g / norm(g)
    s["news"].append(h - (h * unit).sum(-1, keepdims=True) * unit)
    return h, 0.0


def numpy_wsam(w, G, s, rho, gamma=0.8, decouple=True, ball=sam_ball):
    a, g = gamma / (1 - gamma), G(w)
    h = G(w + ball(w, g, rho))
    return (g, a * (h - g)) if decouple else ((1 - a) * g + a * h, 0.0)


def numpy_step(method, base, w, gradients, s, inner, rho, lr):
    """One step from the gradients of some shards; ``inner`` is the base's state."""
    outcomes = [method(w, G, s, rho) for G in gradients]
    s["t"] += 1
    return base(w, np.mean([u for u, _ in outcomes], 0), inner, lr) - lr * np.mean([past for _, past in outcomes], 0)


@dataclass
class Method:
    """One relative three times: the class, the twin, NumPy."""

    cls: type[Any]
    rule: Callable[..., Any]
    numpy: Callable[..., np.ndarray]
    options: dict[str, Any] = field(default_factory=dict)
    rule_options: dict[str, Any] | None = None

    @property
    def for_rule(self) -> dict[str, Any]:
        return self.options if self.rule_options is None else self.rule_options


_scaled = torch.as_tensor(MATRIX)
METHODS = {
    "SAM": Method(SAM, rules.sam, numpy_sam),
    "SAM p=1": Method(SAM, rules.sam, partial(numpy_sam, p=1.0), {"p": 1.0}),
    "SAM p=1.5": Method(SAM, rules.sam, partial(numpy_sam, p=1.5), {"p": 1.5}),
    "SAM p=inf": Method(SAM, rules.sam, partial(numpy_sam, p=math.inf), {"p": math.inf}),
    "SAM inner": Method(SAM, rules.sam, numpy_inner, {"inner_steps": 3}),
    "SAM exchanged": Method(SAM, rules.sam, numpy_sam, {"in_place": False}, {}),
    "SAM inner exchanged": Method(SAM, rules.sam, numpy_inner, {"inner_steps": 3, "in_place": False},
                                  {"inner_steps": 3}),
    "ASAM": Method(ASAM, rules.asam, partial(numpy_in, ball=asam_ball), {}, {"scaled": _scaled}),
    "FisherSAM": Method(FisherSAM, rules.fisher_sam, partial(numpy_in, ball=fisher_ball)),
    "GSAM": Method(GSAM, rules.gsam, numpy_gsam, {"alpha": 0.4}),
    "LookSAM": Method(LookSAM, rules.looksam, numpy_looksam, {"k": 3}),
    "WSAM": Method(WSAM, rules.wsam, numpy_wsam, {"gamma": 0.8}),
    "WSAM coupled": Method(WSAM, rules.wsam, partial(numpy_wsam, gamma=0.6, decouple=False),
                           {"gamma": 0.6, "decouple": False}),
    "WSAM on ASAM": Method(WSAM, rules.wsam, partial(numpy_wsam, ball=asam_ball),
                           {"gamma": 0.8, "perturbation": "asam"},
                           {"gamma": 0.8, "perturbation": partial(rules.asam_perturbation, scaled=_scaled)}),
    "WSAM on Fisher": Method(WSAM, rules.wsam, partial(numpy_wsam, ball=fisher_ball),
                             {"gamma": 0.8, "perturbation": "fisher"},
                             {"gamma": 0.8, "perturbation": rules.fisher_perturbation}),
}


# -- every class of the family on any model, by one name --------------------------------------------------------------

CLASSES: dict[str, Callable[..., Any]] = {
    "SAM": SAM, "SAM p=inf": partial(SAM, p=math.inf), "SAM p=1": partial(SAM, p=1.0), "SAM p=3": partial(SAM, p=3.0),
    "SAM inner": partial(SAM, inner_steps=2), "SAM second": partial(SAM, second_order=True), "ASAM": ASAM,
    "FisherSAM": FisherSAM, "ESAM": ESAM, "GSAM": GSAM,
    "LookSAM": partial(LookSAM, k=3), "WSAM": WSAM, "WSAM coupled": partial(WSAM, decouple=False, gamma=0.6),
    "SAM exchanged": partial(SAM, in_place=False),
    "SAM second exchanged": partial(SAM, second_order=True, in_place=False),
    "GSAM exchanged": partial(GSAM, in_place=False), "WSAM asam": partial(WSAM, perturbation="asam"),
    "WSAM fisher": partial(WSAM, perturbation="fisher"),
}
TWO_HALVES = [name for name in CLASSES if not name.startswith(("SAM inner", "SAM second", "ESAM"))]


def _over(build: Callable[..., Any], base: Callable[..., Any], params: Any, lr: Any = 0.02, **options: Any) -> Any:
    return build(base(params, lr=lr, **options), rho=0.05)


_momentum = partial(torch.optim.SGD, momentum=0.9)
OPTIMIZERS: dict[str, Callable[..., Any]] = {  # from parameters, lr=, and options of the base
    "SGDW": partial(SGDW, lr=0.02, momentum=0.9), "AdamW": partial(AdamW, lr=0.02),
    **{name: partial(_over, build, _momentum) for name, build in CLASSES.items()},
    **{f"{name} over Adam": partial(_over, CLASSES[name], torch.optim.Adam) for name in ("SAM", "WSAM", "GSAM",
                                                                                         "LookSAM")},
}


def closure_of(name: str, losses_now: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return the closure that a class wants, from a function that computes per-sample losses."""
    if name.startswith("ESAM"):
        return losses_now

    def closure() -> Tensor:
        loss = losses_now().mean()
        loss.backward()
        return loss

    return closure


def advance(name: str, optimizer: Any, losses_now: Callable[[], Tensor], steps: int = 1) -> float:
    """Step as an ordinary loop does; return the last loss."""
    loss = torch.tensor(float("nan"))
    for _ in range(steps):
        optimizer.zero_grad()
        if hasattr(optimizer, "first_step"):
            loss = optimizer.step(closure_of(name, losses_now))
        else:
            loss = losses_now().mean()
            loss.backward()
            optimizer.step()
    return float(loss.detach())


def losses_of(params: list[nn.Parameter]) -> Callable[[], Tensor]:
    """Return what computes the per-sample losses of this file's problem."""
    return lambda: losses(flat(params)[None], params[0].dtype)[0]


def vector(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()
