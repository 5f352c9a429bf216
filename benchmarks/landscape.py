"""A loss surface of 41 x 41 points beside copying weights into the module: ratios of CPU time, paired, on one thread.

The reference is what the landscape scripts of today do: for each point copy every parameter into the module, renew
BatchNorm's statistics by PyTorch's own ``update_bn`` where they are to be renewed, and run batches of 128, a host read
a batch. Both sides have the allocator's setting of ``allocator.py``, and 250 images in a batch of ``update_bn``.
Run: ``python benchmarks/landscape.py [--write]``; it prints, asserts nothing, and writes RESULTS_landscape.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from allocator import keep_freed_memory
from pages import markdown
from torch import nn

from sharpnb.lab import models
from sharpnb.landscape import Plane, surface

PAGE = Path(__file__).with_name("RESULTS_landscape.md")
SAMPLES = 1000
Stage = tuple[int, int, int]  # channels of a convolution, its stride, how many times a pool of 2 x 2 follows


def cnn(
    *stages: Stage, mean: bool = False, hidden: int = 0, norm: bool = False, activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Return 3 x 3 convolutions of 8 x 8 images, then a linear layer, over the places or their ``mean``."""
    layers: list[nn.Module] = []
    for (read, _, _), (written, stride, pools) in pairwise(((1, 1, 0), *stages)):
        layers += [nn.Conv2d(read, written, 3, stride, padding=1, bias=not norm), *[nn.BatchNorm2d(written)] * norm,
                   activation(), *[nn.MaxPool2d(2)] * pools]
    layers += [*[nn.AdaptiveAvgPool2d(1)] * mean, nn.Flatten()]
    numbers = nn.Sequential(*layers).eval()(torch.zeros(1, 1, 8, 8)).numel()
    between = [nn.Linear(numbers, hidden), activation()] if hidden else []
    return nn.Sequential(*layers, *between, nn.Linear(hidden or numbers, 10))


@dataclass(frozen=True)
class Case:
    """A net, the goal for its ratio, whether BatchNorm is renewed at each point, and the points on a side."""

    build: Callable[[], nn.Sequential]
    goal: float = 1.0  # the design's: never slower than copying
    renewed: bool = False
    size: int = 41


CASES = {
    "MLP 64-64-10": Case(lambda: models.mlp((64, 64, 10)), 3.0),
    "MLP 64-64-10, BatchNorm renewed": Case(lambda: models.mlp((64, 64, 10), norm=True), renewed=True),
    "ResNet-8, width 8, BatchNorm renewed": Case(
        lambda: models.resnet(8, width=8, channels=1), renewed=True, size=11),
    "ResNet-8, width 16, BatchNorm renewed": Case(
        lambda: models.resnet(8, width=16, channels=1), renewed=True, size=9),
    "CNN 8-16, two pools at the end": Case(lambda: cnn((8, 1, 0), (16, 1, 2), hidden=24), size=21),
    "CNN 8-16, a pool after each": Case(lambda: cnn((8, 1, 1), (16, 1, 1), hidden=24), size=21),
    "CNN 8-12-16, pools": Case(lambda: cnn((8, 1, 1), (12, 1, 1), (16, 1, 0), mean=True), size=21),
    "CNN of width 8": Case(lambda: models.cnn(8), size=21),
    "CNN of width 64": Case(lambda: models.cnn(64), 0.95, size=7),
}


def copied(model: nn.Module, plane: Plane, x: torch.Tensor, y: torch.Tensor, size: int, renewed: bool) -> np.ndarray:
    """The reference: one parameter after another copied into the module, then batches of 128."""
    parts = [v.float().split([p.numel() for p in model.parameters()]) for v in (plane.origin, plane.u, plane.v)]
    grid, found = np.linspace(-1, 1, size), np.empty((size, size))
    for i, b in enumerate(grid):
        for j, a in enumerate(grid):
            with torch.no_grad():
                for p, o, u, v in zip(model.parameters(), *parts, strict=True):
                    p.copy_((o + a * u + b * v).view_as(p))
                if renewed:
                    torch.optim.swa_utils.update_bn(x.split(250), model)
                total = 0.0
                for xs, ys in zip(x.split(128), y.split(128), strict=True):
                    total += F.cross_entropy(model.eval()(xs), ys, reduction="sum").item()
            found[i, j] = total / len(y)
    return found


def rate() -> float:
    """Return the operations a second of a large matrix product on one thread."""
    a, b, best = torch.randn(768, 768), torch.randn(768, 768), 0.0
    for _ in range(10):
        started = time.process_time()
        _ = [a @ b for _ in range(3)]
        best = max(best, 3 * 2 * 768**3 / (time.process_time() - started))
    return best


def machine() -> str:
    """Return what the ratios depend on, in neutral words."""
    return (f"{os.cpu_count()} cores, one thread used, PyTorch {torch.__version__}, "
            f"{torch.backends.cpu.get_cpu_capability()}.")


def measure(name: str, pairs: int) -> list[str]:
    """Return a case's row of the table."""
    case = CASES[name]
    torch.manual_seed(0)
    x, y, model = torch.randn(SAMPLES, 1, 8, 8), torch.randint(0, 10, (SAMPLES,)), case.build().eval()
    renewed_by = [(part, None) for part in x.split(250)] if case.renewed else None
    plane, slow, fast, error = Plane.random(model), [], [], 0.0
    surface(model, plane, (x, y), ("loss",), 5, update_bn=renewed_by)  # warm-up
    for _ in range(pairs):
        started = time.process_time()
        truth = copied(case.build().eval(), plane, x, y, case.size, case.renewed)
        between = time.process_time()
        found = surface(model, plane, (x, y), ("loss",), case.size, update_bn=renewed_by).values["loss"]
        slow.append(between - started)
        fast.append(time.process_time() - between)
        error = max(error, float(np.abs(found / truth - 1).max()))
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    each = [1e3 * statistics.median(times) / case.size**2 for times in (slow, fast)]
    print(f"{name}: copying {each[0]:.2f} ms a point, surface {each[1]:.2f} ms", flush=True)
    return [name, str(len(plane.origin)), str(case.size), *(f"{ms:.2f}" for ms in each),
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", f"{case.goal}", f"{error:.0e}"]


def main() -> None:
    """Print one row a case; with ``--write`` keep the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    head = ["net", "weights", "points on a side", "copying, ms a point", "`surface`, ms a point",
            "copying / `surface` (range)", "goal", "largest relative error"]
    rows = [measure(name, given.pairs) for name in CASES]
    lines = [
        "# Loss surfaces", "", "Generated by `python benchmarks/landscape.py --write`; not edited by hand.", "",
        f"{SAMPLES} images of 8 x 8, CPU time, median of {given.pairs} pairs. Copying: each point's weights copied "
        "into the module, BatchNorm renewed where it says so by one pass in batches of 250, losses in batches of "
        "128. Of the widest net two points are more than a cache holds: there `surface` copies too, and 0.95 "
        "allows for noise.", "",
        *markdown(head, rows), "", machine(),
    ]
    print("\n".join(lines))
    if given.write:
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
