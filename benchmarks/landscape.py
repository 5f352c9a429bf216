"""A loss surface of 41 x 41 points: seconds against copying weights into the module, paired, on one thread.

The reference is what the landscape scripts of today do: for each point copy every parameter into the module and run
batches of 128, a host read a batch. Run it as ``python benchmarks/landscape.py``; it prints ratios and asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sharpnb.lab import models
from sharpnb.landscape import Plane, surface

CASES: dict[str, tuple[Callable[[], nn.Module], int, float]] = {  # net, samples, the design's goal
    "MLP 64-64-10": (lambda: models.mlp((64, 64, 10)), 1000, 5.0),
    "CNN of width 8": (lambda: models.cnn(8), 1000, 3.5),
    "CNN of width 8, 2 conv more": (lambda: _deeper(), 1000, 3.5),
}


def _deeper() -> nn.Module:
    """A CNN of about 3,000 parameters: 1-8-8-16 channels on 8 x 8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )


@torch.no_grad()
def copied(model: nn.Module, plane: Plane, x: torch.Tensor, y: torch.Tensor, size: int) -> np.ndarray:
    """The reference: one parameter after another copied into the module, then batches of 128."""
    parts = [v.float().split([p.numel() for p in model.parameters()]) for v in (plane.origin, plane.u, plane.v)]
    grid, found = np.linspace(-1, 1, size), np.empty((size, size))
    for i, b in enumerate(grid):
        for j, a in enumerate(grid):
            for p, o, u, v in zip(model.parameters(), *parts, strict=True):
                p.copy_((o + a * u + b * v).view_as(p))
            total = 0.0
            for xs, ys in zip(x.split(128), y.split(128), strict=True):
                total += F.cross_entropy(model(xs), ys, reduction="sum").item()
            found[i, j] = total / len(y)
    return found


def main() -> None:
    """Print one line a case: the reference's CPU seconds, ours, the median of the paired ratios, the largest error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=41)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.size} x {options.size} points, {options.pairs} pairs, one thread, CPU seconds")
    for name, (build, samples, goal) in CASES.items():
        x, y = torch.randn(samples, 1, 8, 8), torch.randint(0, 10, (samples,))
        model = build().eval()
        plane, ratios = Plane.random(model), []
        for _ in range(options.pairs):
            t0 = time.process_time()
            slow = copied(build().eval(), plane, x, y, options.size)
            t1 = time.process_time()
            fast = surface(model, plane, (x, y), ("loss",), options.size).values["loss"]
            t2 = time.process_time()
            ratios.append((t1 - t0) / (t2 - t1))
        error, weights = np.abs(fast / slow - 1).max(), len(plane.origin)
        print(f"{name:28s} {weights:6d} weights  {t1 - t0:6.2f} s  {t2 - t1:6.2f} s  "
              f"x{statistics.median(ratios):.1f} (goal x{goal})  largest relative error {error:.1e}")


if __name__ == "__main__":
    main()
