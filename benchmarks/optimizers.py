"""What a SAM step costs beside its two gradients, side by side with the peers that are installed.

    python benchmarks/optimizers.py [--device cuda]                  # all of it, some ten minutes
    python benchmarks/optimizers.py --only MLP --store FILE          # one piece, kept beside earlier ones
    python benchmarks/optimizers.py --page --store FILE              # RESULTS_optimizers.md from the pieces kept

*Whole steps*: a step as a ratio to the floor, two plain forward and backward passes and one step of
``torch.optim.SGD``. *Optimizer only*: both halves and the base's step on ResNet-18's tensors, the gradients given, as a
ratio to the base's step alone; and the ascent and restore alone, as a ratio to the popular class's. *Within training*:
ascent and restore between the passes of ResNet-18, each candidate in processes of its own, with the C library's
allocator as it comes and as ``allocator.keep_freed_memory`` sets it. *Calls*: aten calls and bytes moved of one
step on ResNet-50's 161 tensors.

Ratios only, of CPU time (on CUDA: of device time), one thread, the candidates in shuffled order within each repetition,
median and quartiles over repetitions. No peer is needed: what cannot be imported is left out. Peers go anywhere on
``PYTHONPATH``, for example ``pip install --no-deps --target peers pytorch-optimizer``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from allocator import keep_freed_memory
from competitors import SGD, NoStep, Tensors, candidates, cnn, mlp, resnet18_shapes, resnet50_shapes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sharpnb.lab import models
from sharpnb.optim import SAM

Step = Callable[[], None]
PAGE = Path(__file__).with_name("RESULTS_optimizers.md")


# -- timing -----------------------------------------------------------------------------------------------------------


def seconds(step: Step, steps: int, device: str) -> float:
    """Return the CPU time, or on CUDA the wall time to the end of the device's work, of some steps."""
    if device == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    for _ in range(steps):
        step()
    return time.process_time() - start


def ratios(steps: dict[str, Step], floor: str, inner: int, reps: int, device: str) -> dict[str, list[float]]:
    """Return each candidate's ratios to the floor, one a repetition, all measured in shuffled order within it."""
    order, found = list(steps), {name: [] for name in steps}
    for step in steps.values():
        seconds(step, max(3, inner // 4), device)
    for _ in range(reps):
        random.shuffle(order)
        times = {name: seconds(steps[name], inner, device) for name in order}
        for name in steps:
            found[name].append(times[name] / times[floor])
    return found


def table(title: str, found: dict[str, list[float]]) -> list[str]:
    """Return medians and quartiles as Markdown, one row a candidate."""
    lines = [f"## {title}", "", "| | median | quartiles |", "|---|---|---|"]
    for name, values in found.items():
        low, middle, high = statistics.quantiles(values, n=4)
        lines.append(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    return lines


# -- the tables -----------------------------------------------------------------------------------------------------


SETTINGS: dict[str, tuple[Any, int]] = {"MLP": (mlp, 40), "CNN 8x8": (lambda: cnn(8), 8),
                                        "CNN 32x32": (lambda: cnn(32), 1)}


def whole_steps(title: str, device: str, reps: int) -> list[str]:
    """Compare whole training steps of one network."""
    make, inner = SETTINGS[title]
    steps: dict[str, Step] = {}
    model, shape = make()
    x = torch.randn(shape, device=device)
    y = torch.randint(10, (len(x),), device=device)

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return make()[0].to(device)

    steps["2 gradients + SGD"] = _plain(fresh(), x, y, step=True)
    steps["2 gradients only"] = _plain(fresh(), x, y, step=False)
    for name, build in candidates().items():
        steps[name] = _halves(build, fresh(), x, y)
    steps["sharpnb SAM, step(closure)"] = _closure(fresh(), x, y)
    steps["sharpnb SAM, step(closure), model= given"] = _closure(fresh(), x, y, named=True)
    weights = sum(p.numel() for p in model.parameters())
    return table(f"Whole steps, {title} ({weights:,} weights, batches of {len(x)}), over two gradients and "
                 "torch.optim.SGD", ratios(steps, "2 gradients + SGD", inner, reps, device))


def _plain(model: nn.Module, x: Tensor, y: Tensor, step: bool) -> Step:
    base = torch.optim.SGD(model.parameters(), **SGD)

    def run() -> None:
        F.cross_entropy(model(x), y).backward()
        base.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if step:
            base.step()
        base.zero_grad()
    return run


def _halves(build: Any, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    optimizer = build(model, torch.optim.SGD)

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.first_step(zero_grad=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.second_step(zero_grad=True)
    return step


def _closure(model: nn.Module, x: Tensor, y: Tensor, named: bool = False) -> Step:
    optimizer = SAM(torch.optim.SGD(model.parameters(), **SGD), model=model if named else None)

    def closure() -> Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss
    return lambda: optimizer.step(closure)


def optimizer_only(device: str, reps: int) -> list[str]:
    """Compare both halves on ResNet-18's tensors, the gradients given."""
    def given(base: type, builders: dict[str, Any]) -> dict[str, Step]:
        steps: dict[str, Step] = {}
        for name, build in builders.items():
            model = Tensors(resnet18_shapes()).to(device)
            gradients = [torch.randn_like(p) for p in model.parameters()]
            optimizer = build(model, base)

            def step(model: nn.Module = model, gradients: Any = gradients, optimizer: Any = optimizer) -> None:
                for half in ("first_step", "second_step"):
                    for p, g in zip(model.parameters(), gradients, strict=True):
                        p.grad = g
                    getattr(optimizer, half)(zero_grad=True)
            steps[name] = step
        return steps

    steps = given(torch.optim.SGD, candidates())
    model = Tensors(resnet18_shapes()).to(device)
    base = torch.optim.SGD(model.parameters(), **SGD)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    steps = {"torch.optim.SGD alone": lambda: base.step(), **steps}
    lines = table("Both halves and the base, 11 million weights, over one step of torch.optim.SGD",
                  ratios(steps, "torch.optim.SGD alone", 2, reps, device))
    alone = given(NoStep, candidates())
    return [*lines, "", *table("Ascent and restore alone (a base that does nothing), 11 million weights, over the "
                               "popular class", ratios(alone, "popular class (own writing)", 2, reps, device))]


def within_training(reps: int) -> list[str]:
    """Compare ascent and restore where they are used: between passes that fill and free memory, on the CPU."""
    reference, lines = "popular class (own writing)", []
    names = [name for name in candidates() if " SAM" in name or name == reference]
    for keep in (False, True):
        found: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(reps):
            with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a heap of its own for every measurement
                times = {name: pool.apply(_between_passes, (name, keep)) for name in random.sample(names, len(names))}
            for name, values in found.items():
                values.append(times[name] / times[reference])
        allocator = "after `keep_freed_memory()`" if keep else "as it comes"
        lines += [*table(f"Ascent and restore within a training of ResNet-18 (11 million weights), the allocator "
                         f"{allocator}, over the popular class", found), ""]
    return lines[:-1]


def _between_passes(name: str, keep: bool) -> float:
    """Return the median CPU time of both halves of a step, the base doing nothing."""
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    model, x, y = models.resnet18(), torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    optimizer, times = candidates()[name](model, NoStep), []
    for _ in range(12):
        spent = 0.0
        for half in ("first_step", "second_step"):
            F.cross_entropy(model(x), y).backward()
            start = time.process_time()
            getattr(optimizer, half)(zero_grad=True)
            spent += time.process_time() - start
        times.append(spent)
    return statistics.median(times[4:])


class Traffic(TorchDispatchMode):
    """Counts aten calls, and the bytes of every tensor that they read or write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call and add it up."""
        out = func(*args, **(kwargs or {}))
        views = {"view", "_unsafe_view", "detach", "alias", "select", "unbind", "empty_like"}
        name = func.__name__.split(".")[0]
        if func.namespace == "aten" and name not in views:
            self.calls[name] += 1
            written = _sizes(out) if not name.endswith("_") else _sizes(args[:1])
            fills = name in ("zeros_like", "zero_", "copy_", "_foreach_copy_", "clone", "_foreach_clone")
            read = _sizes(args) - (written if name in ("copy_", "_foreach_copy_", "zero_") else 0)
            self.bytes += max(read, 0) + written if fills or read >= 0 else written
        return out


def _sizes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(_sizes(v) for v in value) if isinstance(value, list | tuple) else 0


def calls(device: str) -> list[str]:
    """Count calls and bytes of one step on ResNet-50's tensors, the base's step left out."""
    lines = ["## One step on ResNet-50's 161 tensors, the base left out", "",
             "| | aten calls | bytes read and written a weight |", "|---|---|---|"]
    for name, build in candidates().items():
        model = Tensors(resnet50_shapes()).to(device)
        weights = sum(p.numel() for p in model.parameters())
        optimizer = build(model, NoStep)
        traffic = Traffic()
        for measured in (False, True):
            for half in ("first_step", "second_step"):
                for p in model.parameters():
                    p.grad = torch.randn_like(p)
                if measured:
                    with traffic:
                        getattr(optimizer, half)(zero_grad=True)
                else:
                    getattr(optimizer, half)(zero_grad=True)
        lines.append(f"| {name} | {sum(traffic.calls.values())} | {traffic.bytes / weights:.0f} |")
    return lines


def machine(device: str, reps: int) -> str:
    """Say in neutral words where the numbers are from."""
    where = torch.cuda.get_device_name() if device == "cuda" else f"one thread of {os.cpu_count()} CPU cores"
    try:
        peer = f"pytorch-optimizer {importlib.metadata.version('pytorch-optimizer')}"
    except importlib.metadata.PackageNotFoundError:
        peer = "no peers"
    return (f"{where} ({platform.machine()}), PyTorch {torch.__version__.split('+')[0]}, Python "
            f"{platform.python_version()}, {peer}, {reps} repetitions")


PIECES = (*SETTINGS, "parts", "training", "calls")


def page(pieces: dict[str, dict[str, Any]]) -> str:
    """Return the tables as Markdown."""
    text = ["# What a sharpness-aware step costs beside its gradients", "",
            "Written by `python benchmarks/optimizers.py`; not edited by hand. Ratios of CPU time (on CUDA: of device "
            "time), all candidates in shuffled order within a repetition: below 1 is cheaper than what the heading "
            "names. *No host read* is `skip_nonfinite=False`, *not in place* `in_place=False`, *neither* both."]
    for name in PIECES:
        if name in pieces:
            text += ["", *pieces[name]["lines"], "", f"({pieces[name]['machine']})"]
    return "\n".join(text) + "\n"


def main() -> None:
    """Measure the pieces asked for and print, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--reps", type=int, default=31)
    parser.add_argument("--only", choices=PIECES, help="one piece; default all")
    parser.add_argument("--store", type=Path, help="JSON file that gathers pieces")
    parser.add_argument("--page", action="store_true", help=f"write {PAGE.name} from what --store has, measure nothing")
    options = parser.parse_args()
    kept = json.loads(options.store.read_text(encoding="utf-8")) if options.store and options.store.exists() else {}
    if options.page:
        PAGE.write_text(page(kept), encoding="utf-8")
        return
    torch.set_num_threads(1)
    for name in [options.only] if options.only else PIECES:
        if name == "training" and options.device != "cpu":
            continue
        random.seed(0)
        reps = {"parts": max(7, options.reps // 3), "training": max(5, options.reps // 4), "calls": 1}.get(
            name, options.reps)
        if name in SETTINGS:
            lines = whole_steps(name, options.device, reps)
        elif name == "training":
            lines = within_training(reps)
        else:
            lines = optimizer_only(options.device, reps) if name == "parts" else calls(options.device)
        kept[name] = {"lines": lines, "machine": machine(options.device, reps)}
        if options.store:
            options.store.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        print(page({name: kept[name]}), flush=True)


if __name__ == "__main__":
    main()
