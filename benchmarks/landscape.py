"""A loss surface of 41 x 41 points beside copying weights into the module: ratios of CPU time, paired, on one thread.

The reference is what the landscape scripts of today do: for each point copy every parameter into the module and run
batches of 128, a host read a batch. Both sides have the allocator's setting of ``sharpnb.memory``.

The floor is the arithmetic of the layers after the first at the rate of a large matrix product; activations, norms and
pools come on top, and a convolution's kernel may be faster than that product. Run: ``python benchmarks/landscape.py
[--write]``; it prints, asserts nothing, and writes RESULTS_landscape.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sharpnb.lab import models
from sharpnb.landscape import Plane, surface
from sharpnb.memory import keep_freed_memory

PAGE = Path(__file__).with_name("RESULTS_landscape.md")
SAMPLES = 1000
CASES: dict[str, tuple[Callable[[], nn.Sequential], float]] = {  # net, the design's goal
    "MLP 64-64-10": (lambda: models.mlp((64, 64, 10)), 5.0),
    "CNN, width 8": (lambda: models.cnn(8), 3.5),
    "CNN, 3 convolutions": (lambda: _deeper(), 3.5),
    "CNN, 2 pools": (lambda: _staged(8, 24, pools=True), 3.5),
    "CNN, 2 pools, BatchNorm": (lambda: _staged(8, 24, pools=True, norm=True), 3.5),
    "CNN, all at full size": (lambda: _staged(8, 12, 16), 3.5),
    "CNN, tanh": (lambda: _smooth(), 3.5),
}


def _deeper() -> nn.Sequential:
    """1-8-8-16 channels on 8 x 8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )


def _staged(*widths: int, pools: bool = False, norm: bool = False) -> nn.Sequential:
    """A convolution for each width; a pool for each, or one mean at the end."""
    layers: list[nn.Module] = []
    for a, b in pairwise((1, *widths)):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=not norm), *[nn.BatchNorm2d(b)] * norm, nn.ReLU(),
                   *[nn.MaxPool2d(2)] * pools]
    mean, numbers = ([], 4) if pools else ([nn.AdaptiveAvgPool2d(1)], 1)  # two pools leave 2 x 2
    return nn.Sequential(*layers, *mean, nn.Flatten(), nn.Linear(numbers * widths[-1], 10))


def _smooth() -> nn.Sequential:
    """The 3.8 thousand weights of the Hessian pages' CNN 3k."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 16, 3, 2, padding=1), nn.Tanh(), nn.Flatten(),
        nn.Linear(256, 10),
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


def rate() -> float:
    """Return the operations a second of a large matrix product on one thread."""
    a, b, best = torch.randn(768, 768), torch.randn(768, 768), 0.0
    for _ in range(10):
        started = time.process_time()
        _ = [a @ b for _ in range(3)]
        best = max(best, 3 * 2 * 768**3 / (time.process_time() - started))
    return best


def operations(model: nn.Sequential, x: torch.Tensor) -> float:
    """Return the operations of one point in the layers after the first."""
    first = next(i for i, layer in enumerate(model) if list(layer.parameters()))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        later = model[: first + 1](x)
        before = counter.get_total_flops()
        model[first + 1 :](later)
    return counter.get_total_flops() - before


def machine() -> str:
    """Return what the ratios depend on, in neutral words."""
    return (f"{os.cpu_count()} cores, one thread used, PyTorch {torch.__version__}, "
            f"{torch.backends.cpu.get_cpu_capability()}.")


def measure(name: str, size: int, pairs: int, speed: float) -> list[str]:
    """Return a case's row of the table."""
    build, goal = CASES[name]
    torch.manual_seed(0)
    x, y, model = torch.randn(SAMPLES, 1, 8, 8), torch.randint(0, 10, (SAMPLES,)), build().eval()
    floor = operations(model, x) * size**2 / speed
    print(f"{name}: floor {floor:.2f} s", flush=True)
    plane, slow, fast, error = Plane.random(model), [], [], 0.0
    surface(model, plane, (x, y), ("loss",), 5)  # warm-up
    for _ in range(pairs):
        started = time.process_time()
        truth = copied(build().eval(), plane, x, y, size)
        between = time.process_time()
        found = surface(model, plane, (x, y), ("loss",), size).values["loss"]
        slow.append(between - started)
        fast.append(time.process_time() - between)
        error = max(error, float(np.abs(found / truth - 1).max()))
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    print(f"  copying {statistics.median(slow):.2f} s, surface {statistics.median(fast):.2f} s", flush=True)
    return [name, str(len(plane.origin)), f"{statistics.median(s / floor for s in slow):.1f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", f"{goal}", f"{error:.0e}"]


def main() -> None:
    """Print the floor, then one row a case; with ``--write`` keep the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=41)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    speed = rate()
    head = ["net", "weights", "copying / floor", "copying / `surface` (range)", "goal", "largest relative error"]
    table = [head, ["---"] * len(head), *(measure(name, given.size, given.pairs, speed) for name in CASES)]
    lines = [
        "# Loss surfaces", "", "Generated by `python benchmarks/landscape.py --write`; not edited by hand.", "",
        f"{given.size} x {given.size} points, {SAMPLES} images of 8 x 8, CPU time, median of {given.pairs} pairs. "
        "Copying: each point's weights copied into the module, batches of 128. Floor: the arithmetic of the layers "
        "after the first at the rate of a large matrix product. It leaves out what activations, norms and pools cost, "
        "and a convolution's kernel may be faster than that product.", "",
        *(f"| {' | '.join(row)} |" for row in table), "", machine(),
    ]
    print("\n".join(lines))
    if given.write:
        PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
