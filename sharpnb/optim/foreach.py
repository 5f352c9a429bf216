# pyright: reportPrivateImportUsage=false
r"""Operations on lists of tensors: what every optimizer here is made of.

All of them are sync-free: on a device, norms and scales stay there as 0-dim tensors, and the decision *not* to perturb
is a step of length zero. On the CPU, where reading a number waits for nobody, they become Python numbers, and what
would be small calls is arithmetic. Memory traffic for one float32 weight on the CPU: norm 4 bytes, copy 8, ascent 12,
restore 8, test for finiteness 4.

Of a parameter that ``fully_shard`` spread over ranks (a DTensor) these lists hold the rank's own part. What is a sum or
a maximum over all weights takes ``ranks`` (:mod:`sharpnb.optim.ranks`), and is then that of all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sharpnb.optim.ranks import Ranks, local, spread

Tensors = list[Tensor] | tuple[Tensor, ...]
_FEW = 16  # so many numbers are read one by one in less time than an operation on all of them takes
_PLAIN = (nn.Parameter, Tensor)  # what is not of these classes may be a DTensor
_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes a number
_HALF = (torch.float16, torch.bfloat16)
_NORMAL = {dtype: (torch.finfo(dtype).tiny, torch.finfo(dtype).max) for dtype in (torch.float32, torch.float64)}

# PyTorch's own multi-tensor operations, under short names and in this one place.
add, sub, mul, div, lerp = (
    torch._foreach_add, torch._foreach_sub, torch._foreach_mul, torch._foreach_div, torch._foreach_lerp)
add_, sub_, mul_, div_, lerp_ = (
    torch._foreach_add_, torch._foreach_sub_, torch._foreach_mul_, torch._foreach_div_, torch._foreach_lerp_)
copy_, addcmul_, addcdiv_ = torch._foreach_copy_, torch._foreach_addcmul_, torch._foreach_addcdiv_
absolute, sign, power, sqrt, rsqrt_ = (
    torch._foreach_abs, torch._foreach_sign, torch._foreach_pow, torch._foreach_sqrt, torch._foreach_rsqrt_)


@dataclass(slots=True)
class Bucket:
    """Parameters of one group, device and dtype, with what the two passes found out about them.

    Complex tensors are held as real views with a last axis (Re, Im), sparse gradients as dense ones, DTensors as the
    rank's own part.
    """

    group: dict[str, Any]
    params: list[Tensor] = field(default_factory=list)
    w: list[Tensor] = field(default_factory=list)  # the parameters, writable
    g: list[Tensor] = field(default_factory=list)  # gradient at w
    g_adv: list[Tensor] = field(default_factory=list)  # gradient at w + eps; then u, what the base gets
    after: list[Tensor] = field(default_factory=list)  # what the method needs past the base's step, if anything
    kind: Any = None  # what sorts parameters of one group apart, if anything


def point(bucket: Bucket, new: Tensors) -> list[Tensor]:
    """Let a bucket's parameters point to other memory; return where they pointed."""
    before = [w.detach() for w in bucket.w]
    for p, data in zip(bucket.params, new, strict=True):
        p.data = like(data, p)
    bucket.w = [real(p) for p in bucket.params]
    return before


def gradients(params: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """Return the gradients that are there, by parameter."""
    return {p: g for p in params if (g := p.grad) is not None}


def kept_gradients(params: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """Return copies of them: the next pass may write where they lie (``gradient_as_bucket_view`` of DDP)."""
    return {p: g.clone() for p, g in gradients(params).items()}


def buckets(
    groups: Iterable[dict[str, Any]], g: Mapping[Tensor, Tensor] | None = None,
    g_adv: Mapping[Tensor, Tensor] | None = None, kind: Callable[[dict[str, Any], Tensor], Any] | None = None,
) -> list[Bucket]:
    """Sort the parameters that have a gradient in ``g`` (None: in ``.grad``) or in ``g_adv``; a missing one is zero."""
    found: dict[Any, Bucket] = {}
    for number, group in enumerate(groups):
        last = bucket = None  # where the parameter before this one belongs: most are alike
        for p in group["params"]:
            one = p.grad if g is None else g.get(p)
            two = None if g_adv is None else g_adv.get(p)
            if one is None and two is None:
                continue
            here = (p.dtype, p.device, type(p), kind(group, p) if kind else None)
            if bucket is None or here != last:
                bucket, last = found.setdefault((number, *here), Bucket(group, kind=here[-1])), here
            bucket.params.append(p)
            bucket.g.append(dense(p, one))
            if g_adv is not None:
                bucket.g_adv.append(dense(p, two))
    for bucket in found.values():
        first = bucket.params[0]
        plain = type(first) in _PLAIN and not first.is_complex()
        bucket.w = bucket.params if plain else [real(p) for p in bucket.params]
    return list(found.values())


def dense(p: Tensor, g: Tensor | None) -> Tensor:
    """Return p's gradient as a dense real tensor of p's dtype; zeros when p took no part in that pass."""
    if g is None:
        return torch.zeros_like(real(p))
    if type(g) not in _PLAIN:
        g = local(g, p)
    if g.layout is not torch.strided:
        g = g.to_dense()
    if g.dtype is not p.dtype:
        g = g.to(p.dtype)
    return real(g) if g.is_complex() else g


def real(t: Tensor) -> Tensor:
    """Return a complex tensor as a real view, a DTensor as the rank's own part, any other as it is."""
    if type(t) not in _PLAIN:
        t = local(t)
    return torch.view_as_real(t.resolve_conj()) if t.dtype.is_complex else t


def like(t: Tensor, p: Tensor) -> Tensor:
    """Undo :func:`real` for a tensor that belongs to parameter p."""
    if p.is_complex():
        t = torch.view_as_complex(t)
    return t if type(p) in _PLAIN else spread(t, p)


def on_host(t: Tensor) -> bool:
    """Return whether reading a number from a tensor waits for nobody."""
    return t.is_cpu


def on(scalar: Tensor, t: Tensor) -> Tensor:
    """Move a 0-dim tensor to the device and dtype of the tensors that it multiplies."""
    return scalar.to(t.device, t.dtype, non_blocking=True)


def number(value: Any) -> Any:
    """Return a tensor of one number as a Python number where that waits for nobody, anything else as it is."""
    return float(value) if isinstance(value, Tensor) and on_host(value) else value


def clone(tensors: Tensors) -> list[Tensor]:
    """Copy a list of tensors."""
    copy = getattr(torch, "_foreach_clone", None)  # not in every PyTorch that we support
    return list(copy(tensors)) if copy else [t.clone() for t in tensors]


class Copies:
    """Copies of lists of tensors, on the CPU in memory that is used again: fresh pages cost much of the copying there.

    On a device the allocator does as much, and a captured graph needs its copy in memory that nobody else can free.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Any, list[Tensor]]] = {}  # what a list is like, and its copy

    def take(self, number: int, tensors: Tensors) -> list[Tensor]:
        """Return a copy of a list of one dtype and device; it stays as it is until its number is asked for again."""
        if not on_host(tensors[0]):
            return clone(tensors)
        alike, kept = (tensors[0].dtype, [t.shape for t in tensors]), self._kept.get(number)
        if kept and kept[0] == alike:
            copy_(kept[1], tensors)
        else:
            kept = self._kept[number] = alike, clone(tensors)
        return kept[1]


# -- norms ------------------------------------------------------------------------------------------------------------


def norm(lists: Sequence[Tensors], p: float = 2.0, ranks: Ranks | None = None) -> Tensor:
    r"""Return the global p-norm of all tensors of all lists, a 0-dim tensor on the first tensor's device.

    Half-precision tensors are summed in float32. A norm that overflows is infinite: an ascent gradient beyond (in
    float32, 1.8e19) counts as non-finite everywhere in this package.
    """
    here = torch.linalg.vector_norm(torch.stack(_parts(lists, p)), p)
    if ranks is None:
        return here
    return ranks.largest(here) if math.isinf(p) else ranks.total(here**p) ** (1 / p)


def length(lists: Sequence[Tensors], ranks: Ranks | None = None) -> Tensor | float:
    """Return the global 2-norm as :func:`norm` does, but of a few tensors on the CPU as a Python number."""
    if ranks is not None:
        return norm(lists, 2.0, ranks)
    parts = _parts(lists, 2.0)
    if len(parts) <= _FEW and on_host(parts[0]):  # where all of them are
        return math.hypot(*[t.item() for t in parts])
    return torch.linalg.vector_norm(torch.stack(parts))


def lengths(*families: Sequence[Tensors], ranks: Ranks | None = None) -> Tensor:
    """Return the global 2-norm of each family of lists, all of the same sizes, as one vector."""
    table = torch.stack(_parts([tensors for lists in families for tensors in lists], 2.0))
    here = torch.linalg.vector_norm(table.view(len(families), -1), dim=1)
    return here if ranks is None else ranks.total(here**2).sqrt()


def _parts(lists: Sequence[Tensors], p: float) -> list[Tensor]:
    """Return each tensor's norm, all in one dtype on one device."""
    if len(lists) == 1:
        return _norms(lists[0], p)
    kinds = {(tensors[0].dtype, tensors[0].device) for tensors in lists}
    if len(kinds) == 1:
        return _norms([t for tensors in lists for t in tensors], p)
    wide = torch.float64 if any(dtype == torch.float64 for dtype, _ in kinds) else torch.float32
    parts = [t for tensors in lists for t in _norms(tensors, p)]
    return [t.to(parts[0].device, wide, non_blocking=True) for t in parts]


def _norms(tensors: Tensors, p: float) -> list[Tensor]:
    if math.isinf(p):  # which PyTorch does not define for a tensor without numbers, as a rank may hold
        tensors = [t if t.numel() else t.new_zeros(1) for t in tensors]
    return list(torch._foreach_norm(tensors, p, dtype=torch.float32 if tensors[0].dtype in _HALF else None))


def nonfinite(tensors: Iterable[Tensor]) -> Tensor | float:
    """Return 0 if every number in every tensor is finite, else 1: a Python number on the CPU, else a 0-dim tensor.

    On the CPU the sum is asked first, at a twentieth of the time of asking each number. Where it is finite everything
    is. Where it is not, it may be the sum alone that overflows.
    """
    found = [t if type(t) in _PLAIN else local(t) for t in tensors]
    if all(map(on_host, found)):
        total = sum([t.sum().item() for t in found])
        return 0.0 if total - total == 0 or all(_numbers(t).isfinite().all() for t in found) else 1.0
    kinds: dict[Any, list[Tensor]] = {}
    for t in map(_numbers, found):
        if t.numel():
            kinds.setdefault((t.device, t.dtype), []).append(t)
    return (~torch.stack(_parts(list(kinds.values()), math.inf)).isfinite()).any().float()


def _numbers(t: Tensor) -> Tensor:
    """Return what a tensor of any layout holds, as a dense real tensor."""
    return real(t.coalesce().values() if t.layout is not torch.strided else t)


def projection(a: Sequence[Tensors], b: Sequence[Tensors], ranks: Ranks | None = None) -> Tensor:
    r"""Return :math:`\langle a,b\rangle/\|b\|^2` (of no account where b is zero), a 0-dim tensor.

    .. math:: \langle a,b\rangle = \tfrac12\big(\|a\|^2+\|b\|^2-\|a-b\|^2\big)

    There is no multi-tensor inner product in PyTorch, and this needs norms only. The error is their rounding, relative
    to :math:`\|a\|^2+\|b\|^2`: right for two gradients of one network.
    """
    difference = [sub(x, y) for x, y in zip(a, b, strict=True)]
    aa, bb, difference = (lengths(a, b, difference, ranks=ranks) ** 2).unbind()
    return 0.5 + 0.5 * (aa - difference) / bb.clamp(min=torch.finfo(bb.dtype).tiny)


# -- moves ------------------------------------------------------------------------------------------------------------


def steepest(
    z: Sequence[Tensors], p: float, ranks: Ranks | None = None
) -> tuple[Sequence[Tensors], Tensor | float]:
    r"""Return the direction d that maximises :math:`d^\top z` in the p-norm ball, and :math:`\|d\|_p`.

    p = 2 returns z itself; p = inf its signs; p = 1 the signs of its largest entries (equal ones share the radius). The
    length is zero, infinite or NaN where z is: then there is no direction to follow.
    """
    if p == 2:
        return z, length(z, ranks)
    largest = norm(z, math.inf, ranks)
    d = [sign(tensors) for tensors in z]
    size = torch.ones_like(largest)
    if not math.isinf(p):
        a = [div(absolute(x), on(largest, x[0])) for x in z]
        if p == 1:  # one at the largest entries only
            a = [add(sign(add(x, -1.0)), 1.0) for x in a]
            d = [mul(s, x) for s, x in zip(d, a, strict=True)]
            size = norm(d, 1, ranks)
        else:
            q = p / (p - 1)
            d = [mul(s, power(x, q - 1)) for s, x in zip(d, a, strict=True)]
            size = norm(a, q, ranks) ** (q - 1)
    return d, torch.where((largest > 0) & largest.isfinite(), size, largest)


def stride(radius: Any, size: Tensor | float, w: Tensors) -> Any:
    """Return the step length radius/size where the tensors are, 0 where there is no direction to follow.

    It is a Python number on the CPU, a 0-dim tensor elsewhere.
    """
    dtype = torch.float64 if w[0].dtype == torch.float64 else torch.float32
    least, most = _NORMAL[dtype]
    if on_host(w[0]) and not (isinstance(size, Tensor) and not on_host(size)):
        scale = float(radius) / number if (number := float(size)) else 0.0
        return scale if least <= scale <= most else 0.0  # not for NaN, infinity, 0 and below
    scale = torch.as_tensor(radius / size).to(w[0].device, dtype, non_blocking=True)
    return torch.where((scale >= least) & (scale <= most), scale, 0)


def ascend(w: Tensors, d: Tensors, scale: Any) -> None:
    r"""Do :math:`w\leftarrow w+s\,d` in place, or nothing at all where s, from :func:`stride`, is 0.

    On a device nothing is read. The bits of d are cleared there where s is 0, since 0 times NaN is not 0.
    """
    if not isinstance(scale, Tensor):
        if scale:
            add_(w, d, alpha=scale)
        return
    word = _WORDS[d[0].element_size()]
    bits = mul([t.view(word) for t in d], (scale > 0).to(word))
    followed = [t.view(d[0].dtype) for t in bits]
    mul_(followed, on(scale, d[0]))
    add_(w, followed)


def descend(w: Tensors, d: Tensors, scale: Any) -> None:
    r"""Do :math:`w\leftarrow w-s\,d` in place; s is a number, or a 0-dim tensor that is not read."""
    if isinstance(scale, Tensor):
        sub_(w, mul(d, on(scale, d[0])))
    else:
        add_(w, d, alpha=-scale)
