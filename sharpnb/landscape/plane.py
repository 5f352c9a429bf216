r"""Two-dimensional slices of weight space, with coordinates, and the projection onto them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sharpnb.landscape.directions import Normalize, Vectors, filter_normalized_direction

Weights = Tensor | nn.Module


class Projection(NamedTuple):
    """Where points lie seen from a plane; each field (K,), or () for one point.

    Attributes:
        x, y: coordinates of the nearest point of the plane.
        distance: Euclidean distance to it. A point off the plane does not have the loss that the plane shows there.
    """

    x: Tensor
    y: Tensor
    distance: Tensor


@dataclass(frozen=True)
class Plane:
    r"""The points :math:`P(x,y) = o + x\,u + y\,v`.

    Attributes:
        origin, u, v: o and the two directions, (n,), float64 on the CPU, in the order of ``model.parameters()``.
        window: x from, x to, y from, y to: what :func:`sharpnb.landscape.surface` draws by default.
        unit: of the coordinates, for the axes' labels.
        points: label -> coordinates of the points that made the plane.
    """

    origin: Tensor
    u: Tensor
    v: Tensor
    window: tuple[float, float, float, float]
    unit: str = "distance in weight space"
    points: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def through(cls, w1: Weights, w2: Weights, w3: Weights, *, margin: float = 0.2) -> Plane:  # noqa: D417
        r"""The plane through three points (Garipov et al., NeurIPS 2018; SWA paper, footnote 1).

        .. math:: \hat u = \frac{w_2-w_1}{\|w_2-w_1\|}, \qquad
                  \hat v = \frac{v}{\|v\|},\quad v = (w_3-w_1) - \langle w_3-w_1,\hat u\rangle\,\hat u

        so coordinates are distances in weight space, the same unit on both axes, and the points lie at (0, 0),
        (‖w₂ − w₁‖, 0) and (⟨w₃ − w₁, û⟩, ‖v‖).

        Args:
            w1, w2, w3: flat weights, or models.
            margin: of the window around the points, as a share of their extent (the authors' 0.2).

        Raises:
            ValueError: if the points lie on one line, or have different sizes.
        """
        origin, second, third = (flat(w) for w in (w1, w2, w3))
        if not origin.shape == second.shape == third.shape:
            raise ValueError(f"The points have {len(origin)}, {len(second)} and {len(third)} weights; three "
                             "points of one architecture make a plane.")
        along = (second - origin).norm()
        u, v = (second - origin) / along, third - origin
        x3 = v @ u
        v = v - x3 * u
        v = v - (v @ u) * u  # again: the first pass leaves rounding of the size of x3
        height = v.norm()
        if not (along > 0 and height > 1e-8 * max(along, abs(x3))):
            raise ValueError("The three points lie on one line and make no plane. Take another third point, or draw "
                             "the line with sharpnb.landscape.line.")
        corners = {"1": (0.0, 0.0), "2": (float(along), 0.0), "3": (float(x3), float(height))}
        return cls(origin, u, v / height, _around(corners, margin), points=corners)

    @classmethod
    def random(
        cls, model: nn.Module, seed: int = 0, *, normalize: Normalize = "filter", vectors: Vectors = "zero",
    ) -> Plane:
        r"""The plane at a model's weights along two random directions, see :func:`filter_normalized_direction`.

        As in the paper the directions are not orthogonalised, which would undo the normalisation; in high dimension
        their cosine is near 0. The window is [−1, 1] on both axes.
        """
        generator = torch.Generator().manual_seed(seed)
        u, v = (filter_normalized_direction(model, generator, normalize=normalize, vectors=vectors) for _ in range(2))
        unit = {"filter": "filter norms", "layer": "layer norms", "none": "standard deviations"}[normalize]
        return cls(flat(model), u, v, (-1.0, 1.0, -1.0, 1.0), unit, {"model": (0.0, 0.0)})

    def at(self, x: float, y: float) -> Tensor:
        """The weights at (x, y), (n,) in float64."""
        return self.origin + x * self.u + y * self.v

    def project(self, w: Weights) -> Projection:
        """Coordinates of the nearest points of the plane and the distances to them, for weights (n,) or rows (K, n)."""
        away = flat(w) - self.origin
        basis, rows = torch.stack([self.u, self.v]), away.reshape(-1, len(self.u))
        xy = torch.linalg.solve(basis @ basis.T, basis @ rows.T).T
        found = xy[:, 0], xy[:, 1], (rows - xy @ basis).norm(dim=1)
        return Projection(*(each.reshape(away.shape[:-1]) for each in found))


def flat(w: Weights) -> Tensor:
    """Weights of a model, or given ones, as float64 on the CPU: (n,) or (K, n)."""
    vector = nn.utils.parameters_to_vector(w.parameters()) if isinstance(w, nn.Module) else w
    if vector.is_complex():
        raise ValueError(f"The weights have dtype {vector.dtype}: planes are of real ones.")
    return vector.detach().cpu().double()


def _around(points: dict[str, tuple[float, float]], margin: float) -> tuple[float, float, float, float]:
    xs, ys = zip(*points.values(), strict=True)
    dx, dy = margin * (max(xs) - min(xs)), margin * (max(ys) - min(ys))
    return min(xs) - dx, max(xs) + dx, min(ys) - dy, max(ys) + dy
