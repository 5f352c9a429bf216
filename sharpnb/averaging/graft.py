r"""Filter grafting: networks trained side by side lend each other their filters (Meng et al., CVPR 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sharpnb.averaging.filters import entropy, filter_layers, mean_magnitude
from sharpnb.averaging.wrapped import is_number, plain, unwrapped, wide
from sharpnb.caches import forget_casts
from sharpnb.optim.ranks import is_sharded

Criterion = Literal["entropy", "l1"] | Callable[[Tensor], float]
_CRITERIA: dict[str, Callable[[Tensor], float]] = {"entropy": entropy, "l1": mean_magnitude}


def coefficient(own: float, other: float, a: float = 0.4, c: float = 500.0) -> float:
    r"""The share that a layer keeps of itself, from its information and its peer's (eq. 6, in the form of the code).

    .. math::
        \alpha = \frac{a}{\pi}\arctan\big(c\,(H_{own}-H_{other})\big) + \frac12
        \in \Big(\frac{1-a}2,\frac{1+a}2\Big)

    The code rounds to two decimals; this does not, so that two networks' shares add to 1 exactly.
    """
    return a / math.pi * math.atan(c * (own - other)) + 0.5


@torch.no_grad()
def graft(
    models: Sequence[nn.Module], a: float = 0.4, c: float = 500.0, criterion: Criterion = "entropy"
) -> list[dict[str, float]]:
    r"""Graft networks of one architecture onto each other, in place; call it after each epoch (Algorithm 1).

    In a ring: network j takes from network j - 1, the first from the last, all from the weights *before* grafting.

    .. math:: W^{(j)}_l \leftarrow \alpha^{(j)}_l W^{(j)}_l + (1-\alpha^{(j)}_l)\,W^{(j-1)}_l

    with one :math:`\alpha` a layer l, see :func:`coefficient`. As in the authors' code every floating-point (or
    complex) tensor between one convolution and the next in the state dictionary (BatchNorm's scale, shift and
    statistics, a final linear layer) takes the :math:`\alpha` of the convolution before it. The optimizers' buffers are
    untouched.

    Two networks have :math:`\alpha^{(1)}+\alpha^{(2)}=1`, so both become the same network: it takes different learning
    rates or data orders to make them two again until the next grafting.

    How it differs from the authors' code, and why: (1) tensors before the first convolution take that one's
    :math:`\alpha` (theirs fails); (2) integer buffers stay as they are (theirs passes them through floats); (3) no
    files between processes: the models are in one, and none reads a half-written peer.

    Args:
        models: two or more.
        a: the width of the range of :math:`\alpha` in [0, 1] (the code's 0.4: within 0.3 and 0.7). 0 is the plain mean.
        c: the steepness (the code's default 500; its README's best rows have 1 to 100).
        criterion: information of a layer: ``"entropy"`` (the paper's), ``"l1"`` (what it compares with), or a function
            of the weight tensor.

    Returns:
        For each network: name of the layer -> its :math:`\alpha`.

    Raises:
        ValueError: for fewer than two networks, different architectures, or a, c, criterion out of range.
    """
    _check(models, a, c, criterion)
    measure = criterion if callable(criterion) else _CRITERIA[criterion]
    states = [plain(unwrapped(model).state_dict()) for model in models]
    heads = _heads(models[0])
    information = [{head: measure(state[head]) for head in heads} for state in states]
    shares = [
        {head: coefficient(own[head], information[j - 1][head], a, c) for head in heads}
        for j, own in enumerate(information)
    ]
    last = {name: t.clone() for name, t in states[-1].items() if _mixes(t)}  # the only one changed before it is read
    for j in reversed(range(len(models))):
        _mix(states[j], states[j - 1] if j else last, shares[j])
    forget_casts()
    return [{head.removesuffix(".weight"): share for head, share in of.items()} for of in shares]


def _heads(model: nn.Module) -> list[str]:
    """Return the plain names of the weights of the layers that are grafted."""
    model = unwrapped(model)
    layers, names = filter_layers(model), list(model.state_dict())
    heads = {f"{name}.weight".lstrip("."): name for name in layers}
    for head, name in heads.items():
        if head not in names:
            raise ValueError(f"layer {name} has no weight of its own in the state (weight_norm, pruning, another "
                             "parametrization). Make it permanent first, e.g. parametrize.remove_parametrizations.")
    return [short for name, short in zip(names, plain(dict.fromkeys(names)), strict=True) if name in heads]


def _mixes(value: Any) -> bool:
    return isinstance(value, Tensor) and is_number(value)


def _mix(own: dict[str, Any], peer: dict[str, Any], shares: dict[str, float]) -> None:
    share, done = next(iter(shares.values())), set()
    for name, tensor in own.items():
        share = shares.get(name, share)
        if _mixes(tensor) and (tensor.data_ptr(), tensor.shape) not in done:  # tied weights have two names
            done.add((tensor.data_ptr(), tensor.shape))
            mixed = tensor.to(wide(tensor.dtype))
            mixed.mul_(share).add_(peer[name].to(mixed), alpha=1 - share)
            tensor.copy_(mixed)


def _check(models: Sequence[nn.Module], a: float, c: float, criterion: Criterion) -> None:
    different = len({id(model) for model in models})
    if different < max(2, len(models)):
        raise ValueError(f"{len(models)} models, {different} of them different: grafting needs two or more.")
    for j, model in enumerate(models):
        if any(is_sharded(p) for p in model.parameters()):
            raise ValueError(f"model {j} is sharded (FSDP2, DTensor), and the information of a layer is that of all "
                             "its weights. Graft whole models, e.g. from get_model_state_dict(full_state_dict=True).")
    states = [plain(unwrapped(model).state_dict()) for model in models]
    shapes = [{name: getattr(value, "shape", None) for name, value in state.items()} for state in states]
    for j, other in enumerate(shapes[1:], 1):
        if other != shapes[0]:
            differ = [n for n in {**shapes[0], **other} if shapes[0].get(n) != other.get(n)]
            raise ValueError(f"model {j} differs from model 0 in {differ[0]}: graft networks of one architecture.")
    if not 0 <= a <= 1:
        raise ValueError(f"a = {a}: the range of the coefficient lies in [0, 1]; the authors' code has 0.4.")
    if not c >= 0:
        raise ValueError(f"c = {c}: the steepness is 0 or more; the authors' code has 500.")
    if not callable(criterion) and criterion not in _CRITERIA:
        raise ValueError(f"criterion = {criterion!r}: choose 'entropy', 'l1' or a function of the weight tensor.")
