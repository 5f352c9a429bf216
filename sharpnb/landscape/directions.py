r"""Directions in weight space: random ones at the scale of the weights, and unit ones."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Normalize = Literal["filter", "layer", "none"]
Vectors = Literal["zero", "copy"]


def filter_normalized_direction(
    model: nn.Module, seed: int | torch.Generator = 0, *, normalize: Normalize = "filter", vectors: Vectors = "zero"
) -> Tensor:
    r"""A Gaussian direction in which every filter is as long as the model's own (Li et al., NeurIPS 2018, section 4).

    .. math:: d\sim N(0,I), \qquad d_{l,i}\leftarrow\frac{d_{l,i}}{\|d_{l,i}\|_F}\,\|w_{l,i}\|_F

    for each filter i of each layer l: an output channel of a convolution, a row of a linear layer or of an embedding.
    So the picture does not change when a ReLU net is rescaled, one layer's weights up and the next one's down. A filter
    of norm 0 gives 0.

    How it differs from the authors' code: no 1e-10 in the denominator, so the norms are equal and not nearly so.

    Args:
        model: whose weights set the scale.
        seed: a number, or a generator to draw from.
        normalize: ``"filter"``, ``"layer"`` (one norm a tensor), or ``"none"``.
        vectors: what becomes of tensors with fewer than two dimensions (biases, BatchNorm): ``"zero"`` (their
            ``ignore=biasbn``, which they plot with) or ``"copy"`` (their other branch: the weights themselves, which
            grow and shrink with the coordinate).

    Returns:
        (n,) in float64 on the CPU, in the order of ``model.parameters()``.
    """
    for name, value, kind in (("normalize", normalize, Normalize), ("vectors", vectors, Vectors)):
        if value not in get_args(kind):
            raise ValueError(f"{name} = {value!r}: choose one of {', '.join(map(repr, get_args(kind)))}.")
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    kinds = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
    transposed = {id(m.weight) for m in model.modules() if isinstance(m, kinds)}
    parts = []
    for p in model.parameters():
        if p.is_complex():
            raise ValueError(f"A parameter has dtype {p.dtype}: directions are of real weights.")
        w = p.detach().cpu().double()
        d = torch.randn(w.shape, generator=generator, dtype=torch.float64)
        if w.dim() < 2:
            d = torch.zeros_like(w) if vectors == "zero" else w
        elif normalize != "none":
            filters = 1 if id(p) in transposed else 0  # the output channels of a transposed convolution
            over = [i for i in range(w.dim()) if i != filters or normalize == "layer"]
            norm = partial(torch.linalg.vector_norm, dim=over, keepdim=True)
            d = d * (norm(w) / norm(d))
        parts.append(d.flatten())
    return torch.cat(parts)


def unit_direction(n: int, seed: int | torch.Generator = 0) -> Tensor:
    """A direction drawn uniformly from the unit sphere, (n,) in float64: the rays of the SWA paper's Fig. 4."""
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, generator=generator, dtype=torch.float64), dim=0)
