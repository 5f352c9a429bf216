"""A loss surface of 41 x 41 points beside copying weights into the module: ratios of CPU time, paired, on one thread.

The reference is what the landscape scripts of today do: for each point copy every parameter into the module and run
batches of 128, a host read a batch. Both sides have the allocator's setting of ``allocator.py``.

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
from allocator import keep_freed_memory
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

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


THREE_THOUSAND = 3.5  # the design's goal, which does not say which CNN of 3 thousand weights it means
CASES: dict[str, tuple[Callable[[], nn.Sequential], float]] = {  # net, goal
    "MLP 64-64-10": (lambda: models.mlp((64, 64, 10)), 5.0),
    "CNN 8-16, two pools at the end": (lambda: cnn((8, 1, 0), (16, 1, 2), hidden=24), THREE_THOUSAND),
    "CNN 8-16, a pool after each": (lambda: cnn((8, 1, 1), (16, 1, 1), hidden=24), THREE_THOUSAND),
    "CNN 8-24, a pool after each": (lambda: cnn((8, 1, 1), (24, 1, 1)), THREE_THOUSAND),
    "CNN 8-24, a pool after each, BatchNorm": (lambda: cnn((8, 1, 1), (24, 1, 1), norm=True), THREE_THOUSAND),
    "CNN 8-12-16, pools": (lambda: cnn((8, 1, 1), (12, 1, 1), (16, 1, 0), mean=True), THREE_THOUSAND),
    "CNN 8-12-16, strides": (lambda: cnn((8, 1, 0), (12, 2, 0), (16, 2, 0), mean=True), THREE_THOUSAND),
    "CNN 8-12-16, full size": (lambda: cnn((8, 1, 0), (12, 1, 0), (16, 1, 0), mean=True), THREE_THOUSAND),
    "CNN 8-16, stride": (lambda: cnn((8, 1, 0), (16, 2, 0)), THREE_THOUSAND),
    "CNN 8-16, stride, tanh": (lambda: cnn((8, 1, 0), (16, 2, 0), activation=nn.Tanh), THREE_THOUSAND),
    "CNN 8-8-16, stride": (lambda: cnn((8, 1, 0), (8, 1, 0), (16, 2, 0)), THREE_THOUSAND),
    "CNN of width 8": (lambda: models.cnn(8), THREE_THOUSAND),
}


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
            f"{statistics.median(s / floor for s in fast):.1f}",
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
    head = ["net", "weights", "copying / floor", "`surface` / floor", "copying / `surface` (range)", "goal",
            "largest relative error"]
    table = [head, ["---"] * len(head), *(measure(name, given.size, given.pairs, speed) for name in CASES)]
    lines = [
        "# Loss surfaces", "", "Generated by `python benchmarks/landscape.py --write`; not edited by hand.", "",
        f"{given.size} x {given.size} points, {SAMPLES} images of 8 x 8, CPU time, median of {given.pairs} pairs. "
        "Copying: each point's weights copied into the module, batches of 128. Floor: the arithmetic of the layers "
        "after the first at the rate of a large matrix product. It leaves out what activations, norms and pools cost, "
        "and a convolution's kernel may be faster than that product.", "",
        "The goal of 3.5 is for a CNN of 3 thousand weights, whatever its layers: where copying takes few floors, "
        "there is little to gain.", "",
        *(f"| {' | '.join(row)} |" for row in table), "", machine(),
    ]
    print("\n".join(lines))
    if given.write:
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
