r"""What a convolution's filters know: entropy, norms, and which of them are invalid (Meng et al., CVPR 2020)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sharpnb.caches import forget_casts

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def filter_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return name -> layer for the layers whose rows are filters: convolutions, or in a net without, linear ones.

    Raises:
        ValueError: if there is neither.
    """
    for kinds in (_CONVOLUTIONS, (nn.Linear,)):
        found: dict[str, nn.Module] = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
        if found:
            return found
    raise ValueError(f"{type(model).__name__} has no convolution and no linear layer, so it has no filters to graft.")


def entropy(weights: Tensor, bins: int = 10) -> float:
    r"""Entropy in nats of a layer's weights in equal bins from their minimum to their maximum (section 3.2.1).

    .. math:: H(W) = -\sum_{b=1}^{B} p_b\log p_b, \qquad 0\le H\le\log B

    Constant weights have H = 0. How it differs from the authors' code, and why: the last bin is closed, so that the
    largest weight is counted and the :math:`p_b` add to 1.

    Args:
        weights: any shape.
        bins: B (the paper's 10).

    Raises:
        ValueError: for fewer than two bins, or weights that are not finite.
    """
    if bins < 2:
        raise ValueError(f"bins = {bins}: the entropy of a histogram needs 2 bins or more; the paper's is 10.")
    flat = weights.detach().flatten().double()
    low, high = flat.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise ValueError("The weights hold NaN or infinity and have no histogram. Graft before the training diverges.")
    if low == high:
        return 0.0
    index = ((flat - low) / (high - low) * bins).long().clamp_(max=bins - 1)
    p = torch.bincount(index, minlength=bins).double() / len(flat)
    return float(-torch.special.xlogy(p, p).sum())


def mean_magnitude(weights: Tensor) -> float:
    r"""The other criterion of the paper, the :math:`\ell_1` norm, for each weight: :math:`\|W\|_1/n`.

    Divided by n, so that one scale of :math:`c` serves layers of every size (chosen by us; the paper does not say).
    """
    return float(weights.detach().double().abs().mean())


def filter_norms(model: nn.Module) -> dict[str, Tensor]:
    r"""Return layer name -> :math:`\ell_1` norm of each filter, (filters,) in float64."""
    return {name: _rows(layer).abs().sum(1).double() for name, layer in filter_layers(model).items()}


def invalid_filters(model: nn.Module, threshold: float) -> dict[str, Tensor]:
    r"""Return layer name -> mask of the *invalid* filters, those with an :math:`\ell_1` norm below ``threshold``.

    The paper counts them at 0.1 and 0.01. An absolute threshold depends on the size of the filter and the weight decay.
    """
    return {name: norms < threshold for name, norms in filter_norms(model).items()}


@torch.no_grad()
def graft_noise(model: nn.Module, threshold: float, scale: float, generator: torch.Generator | None = None) -> int:
    r"""Add Gaussian noise of deviation ``scale`` to every invalid filter; return how many there were (section 3.1.1).

    The paper lets the noise shrink, :math:`\sigma_t = a^t` in epoch t with 0 < a < 1; ``scale`` is :math:`\sigma_t`.
    """
    count = 0
    for layer in filter_layers(model).values():
        rows = _rows(layer)
        weak = rows.abs().sum(1) < threshold
        noise = torch.randn(rows.shape, generator=generator, dtype=rows.dtype) * scale
        rows += weak[:, None] * noise.to(rows.device)
        count += int(weak.sum())
    forget_casts()
    return count


@torch.no_grad()
def graft_internal(model: nn.Module, threshold: float) -> int:
    r"""Add to each invalid filter a valid one of its layer, largest to smallest; return how many (section 3.1.2).

    With the filters of a layer sorted by :math:`\ell_1` norm, the i-th smallest, if it is invalid, becomes itself plus
    the i-th largest, if that is valid.
    """
    count = 0
    for layer in filter_layers(model).values():
        rows = _rows(layer)
        norms = rows.abs().sum(1)
        order = norms.argsort(stable=True)
        weak, strong = order[norms[order] < threshold], order.flip(0)
        weak = weak[norms[strong[: len(weak)]] >= threshold]
        rows[weak] += rows[strong[: len(weak)]]
        count += len(weak)
    forget_casts()
    return count


def _rows(layer: nn.Module) -> Tensor:
    """The filters as rows, (filters, weights of one), a view."""
    weight = cast(Tensor, layer.weight).detach()
    return weight.view(len(weight), -1)
