# pyright: reportPrivateImportUsage=false
r"""Operations on lists of tensors: what every optimizer here is made of.

All of them are sync-free: norms and scales stay on the device as 0-dim tensors, and the decision *not* to perturb is a
flag that the kernel reads. Memory traffic for one float32 weight: norm 4 bytes, copy 8, ascent 12, restore 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]

# PyTorch's own multi-tensor operations, under short names and in this one place.
add, sub, mul, div, lerp = (
    torch._foreach_add, torch._foreach_sub, torch._foreach_mul, torch._foreach_div, torch._foreach_lerp)
add_, sub_, mul_, div_, lerp_ = (
    torch._foreach_add_, torch._foreach_sub_, torch._foreach_mul_, torch._foreach_div_, torch._foreach_lerp_)
copy_, sqrt_, addcmul_, addcdiv_ = (
    torch._foreach_copy_, torch._foreach_sqrt_, torch._foreach_addcmul_, torch._foreach_addcdiv_)
absolute, sign, power, sqrt, rsqrt_ = (
    torch._foreach_abs, torch._foreach_sign, torch._foreach_pow, torch._foreach_sqrt, torch._foreach_rsqrt_)


@dataclass(slots=True)
class Bucket:
    """Parameters of one group, device and dtype, with what the two passes found out about them.

    Complex tensors are held as real views with a last axis (Re, Im), sparse gradients as dense ones.
    """

    group: dict[str, Any]
    params: list[Tensor] = field(default_factory=list)
    w: list[Tensor] = field(default_factory=list)  # the parameters, writable
    g: list[Tensor] = field(default_factory=list)  # gradient at w
    g_adv: list[Tensor] = field(default_factory=list)  # gradient at w + eps; then u, what the base gets
    after: list[Tensor] = field(default_factory=list)  # what the method needs past the base's step, if anything
    kind: Any = None  # what sorts parameters of one group apart, if anything


def gradients(groups: Iterable[dict[str, Any]]) -> dict[Tensor, Tensor]:
    """Return the gradients that are there, by parameter."""
    return {p: g for group in groups for p in group["params"] if (g := p.grad) is not None}


def buckets(
    groups: Iterable[dict[str, Any]], g: Mapping[Tensor, Tensor] | None = None,
    g_adv: Mapping[Tensor, Tensor] | None = None, kind: Callable[[dict[str, Any], Tensor], Any] | None = None,
) -> list[Bucket]:
    """Sort the parameters that have a gradient in ``g`` (None: in ``.grad``) or in ``g_adv``; a missing one is zero."""
    found: dict[Any, Bucket] = {}
    for number, group in enumerate(groups):
        for p in group["params"]:
            one = p.grad if g is None else g.get(p)
            two = None if g_adv is None else g_adv.get(p)
            if one is None and two is None:
                continue
            sort = kind(group, p) if kind else None
            key = (number, p.device, p.dtype, sort)
            bucket = found.get(key)
            if bucket is None:
                bucket = found[key] = Bucket(group, kind=sort)
            bucket.params.append(p)
            bucket.w.append(real(p))
            bucket.g.append(dense(p, one))
            if g_adv is not None:
                bucket.g_adv.append(dense(p, two))
    return list(found.values())


def dense(p: Tensor, g: Tensor | None) -> Tensor:
    """Return p's gradient as a dense real tensor of p's dtype; zeros when p took no part in that pass."""
    if g is None:
        return torch.zeros_like(real(p))
    if g.layout != torch.strided:
        g = g.to_dense()
    return real(g if g.dtype == p.dtype else g.to(p.dtype))


def real(t: Tensor) -> Tensor:
    """Return a complex tensor as a real view, any other as it is."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def like(t: Tensor, p: Tensor) -> Tensor:
    """Undo :func:`real` for a tensor that belongs to parameter p."""
    return torch.view_as_complex(t) if p.is_complex() else t


def on(scalar: Tensor, t: Tensor) -> Tensor:
    """Move a 0-dim tensor to the device and dtype of the tensors that it multiplies."""
    return scalar.to(t.device, t.dtype, non_blocking=True)


def clone(tensors: Tensors) -> list[Tensor]:
    """Copy a list of tensors."""
    copy = getattr(torch, "_foreach_clone", None)  # not in every PyTorch that we support
    if copy:
        return list(copy(tensors))
    if any(t.is_complex() for t in tensors):  # where infinity times one is not infinity
        return [t.clone() for t in tensors]
    return list(torch._foreach_mul(tensors, 1.0))  # one call; times one is exact, signed zeros included


def norm(lists: Sequence[Tensors], p: float = 2.0) -> Tensor:
    r"""Return the global p-norm of all tensors of all lists, a 0-dim tensor on the first tensor's device.

    Half-precision tensors are summed in float32. A norm that overflows is infinite: such a gradient counts as
    non-finite everywhere in this package (in float32 beyond 1.8e19).
    """
    return torch.linalg.vector_norm(torch.stack(_parts(lists, p)), p)


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the 2-norm of each tensor, of any kinds and layouts, a sparse one's by its values."""
    kinds: dict[Any, list[Tensor]] = {}
    for t in tensors:
        kinds.setdefault((t.dtype, t.device), []).append(t if t.layout == torch.strided else t.coalesce().values())
    return [part for same in kinds.values() for part in _parts([same], 2.0)]


def squares(*families: Sequence[Tensors]) -> Tensor:
    r"""Return the squared global 2-norm of each family of lists, all of the same sizes, as one vector."""
    table = torch.stack(_parts([tensors for lists in families for tensors in lists], 2.0))
    return torch.linalg.vector_norm(table.view(len(families), -1), dim=1) ** 2


def _parts(lists: Sequence[Tensors], p: float) -> list[Tensor]:
    """Return each tensor's norm, all in one dtype on one device."""
    kinds = {(tensors[0].dtype, tensors[0].device) for tensors in lists}
    if len(kinds) == 1 and len(lists) > 1:
        lists = [[t for tensors in lists for t in tensors]]
    parts: list[Tensor] = []
    for tensors in lists:
        half = tensors[0].dtype in (torch.float16, torch.bfloat16)
        parts += torch._foreach_norm(tensors, p, dtype=torch.float32 if half else None)
    if len(kinds) == 1:
        return parts
    wide = torch.float64 if any(dtype == torch.float64 for dtype, _ in kinds) else torch.float32
    return [t.to(parts[0].device, wide, non_blocking=True) for t in parts]


def projection(a: Sequence[Tensors], b: Sequence[Tensors]) -> Tensor:
    r"""Return :math:`\langle a,b\rangle/\|b\|^2` (of no account where b is zero), a 0-dim tensor.

    .. math:: \langle a,b\rangle = \tfrac12\big(\|a\|^2+\|b\|^2-\|a-b\|^2\big)

    There is no multi-tensor inner product in PyTorch, and this needs norms only. The error is their rounding, relative
    to :math:`\|a\|^2+\|b\|^2`: right for two gradients of one network.
    """
    aa, bb, difference = squares(a, b, [sub(x, y) for x, y in zip(a, b, strict=True)]).unbind()
    return 0.5 + 0.5 * (aa - difference) / bb.clamp(min=torch.finfo(bb.dtype).tiny)


def steepest(z: Sequence[Tensors], p: float) -> tuple[Sequence[Tensors], Tensor]:
    r"""Return the direction d that maximises :math:`d^\top z` in the p-norm ball, and :math:`\|d\|_p`.

    p = 2 returns z itself; p = inf its signs; p = 1 the signs of its largest entries (equal ones share the radius). The
    length is zero, infinite or NaN where z is: then there is no direction to follow.
    """
    if p == 2:
        return z, norm(z)
    largest = norm(z, math.inf)
    signs = [sign(tensors) for tensors in z]
    if p == 1:
        below = [add(div(absolute(x), on(largest, x[0])), -1.0) for x in z]  # zero at the largest entries only
        d = [mul(s, add(sign(b), 1.0)) for s, b in zip(signs, below, strict=True)]
        length = norm(d, 1)
    elif math.isinf(p):
        d, length = signs, torch.ones_like(largest)
    else:
        q = p / (p - 1)
        a = [div(absolute(x), on(largest, x[0])) for x in z]
        d = [mul(s, power(x, q - 1)) for s, x in zip(signs, a, strict=True)]
        length = norm(a, q) ** (q - 1)
    return d, torch.where((largest > 0) & largest.isfinite(), length, largest)


def stride(scale: Tensor, w: Tensors) -> tuple[Tensor, Tensor]:
    """Return a step length where the tensors are, and whether to skip the step, as a float."""
    scale = scale.to(w[0].device, torch.float64 if w[0].dtype == torch.float64 else torch.float32, non_blocking=True)
    limits = torch.finfo(scale.dtype)
    return scale, (scale.clamp(limits.tiny, limits.max) != scale).float()  # true for NaN, inf, 0 and below


def ascend(w: Tensors, d: Tensors, scale: Tensor, skip: Tensor) -> None:
    r"""Do :math:`w\leftarrow w+s\,d` in place, or nothing at all where ``skip`` is 1: both are from :func:`stride`.

    PyTorch's fused SGD kernel is this operation: one pass over memory, the step length on the device, and a flag that
    cancels it, so that a bad batch needs no host read. Where the kernel does not apply (other devices, strides that
    differ, float64 on CUDA, whose step length it would round) the same is said tensor by tensor.
    """
    if _fused_applies(w, d):
        torch._fused_sgd_(
            w, d, [], weight_decay=0.0, momentum=0.0, lr=scale, dampening=0.0, nesterov=False, maximize=True,
            is_first_step=False, grad_scale=None, found_inf=skip)
        return
    for weight, direction in zip(w, d, strict=True):
        weight.add_(torch.where(skip > 0, 0, direction * on(scale, direction)))


def _fused_applies(w: Tensors, d: Tensors) -> bool:
    kind = w[0].device.type
    if kind not in ("cpu", "cuda") or (kind == "cuda" and w[0].dtype == torch.float64):
        return False
    return all(
        (a.is_contiguous() and b.is_contiguous())
        or (a.stride() == b.stride() and a.is_contiguous(memory_format=torch.channels_last))
        for a, b in zip(w, d, strict=True)
    )
