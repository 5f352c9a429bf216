"""What a SAM step costs beside its two gradients, side by side with the peers that are installed.

    python benchmarks/optimizers.py [--device cuda]                  # all of it, some ten minutes
    python benchmarks/optimizers.py --only MLP --store FILE          # one net, kept beside earlier ones
    python benchmarks/optimizers.py --page --store FILE              # RESULTS_optimizers.md from the pieces kept

A step as a ratio to the floor, two plain forward and backward passes and one step of ``torch.optim.SGD``: CPU time (on
CUDA device time), one thread, the candidates in shuffled order within each repetition, median and quartiles. No peer is
needed: what cannot be imported is left out. Peers go anywhere on ``PYTHONPATH``, for example
``pip install --no-deps --target peers pytorch-optimizer``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from competitors import SGD, candidates, cnn, mlp
from measuring import Job, machine, pieces, ratios, seconds
from pages import markdown
from torch import Tensor, nn
from torch.nn import functional as F

from sharpnb.lab import models
from sharpnb.optim import SAM

PAGE = Path(__file__).with_name("RESULTS_optimizers.md")
NETS: dict[str, tuple[Any, int]] = {  # a net and the shape of its batch; steps in one measurement
    "MLP": (mlp, 40), "CNN 8x8": (lambda: cnn(8), 8), "CNN 32x32": (lambda: cnn(32), 1),
    "ResNet-8 32x32": (lambda: (models.resnet(8), (64, 3, 32, 32)), 1)}


def measure(name: str, device: str, rounds: int) -> dict[str, Any]:
    """Compare whole training steps of one network."""
    make, inner = NETS[name]
    model, shape = make()
    x, y = torch.randn(shape, device=device), torch.randint(10, (shape[0],), device=device)

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return make()[0].to(device)

    steps = {"2 gradients + SGD": plain(fresh(), x, y, step=True), "2 gradients only": plain(fresh(), x, y, step=False)}
    steps |= {other: halves(build, fresh(), x, y) for other, build in candidates().items()}
    steps["sharpnb SAM, step(closure)"] = closure(fresh(), x, y)
    steps["sharpnb SAM, step(closure), model= given"] = closure(fresh(), x, y, named=True)
    jobs = {other: partial(seconds, step, inner, device) for other, step in steps.items()}
    for job in jobs.values():
        job()  # warm-up
    return {"weights": sum(p.numel() for p in model.parameters()), "batch": len(x), "rounds": rounds,
            "machine": torch.cuda.get_device_name() if device == "cuda" else machine(),
            "quartiles": {k: statistics.quantiles(v, n=4) for k, v in ratios(jobs, rounds).items()}}


def plain(model: nn.Module, x: Tensor, y: Tensor, step: bool) -> Job:
    """Two gradients, and a step of SGD or none."""
    base = torch.optim.SGD(model.parameters(), **SGD)

    def run() -> None:
        F.cross_entropy(model(x), y).backward()
        base.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if step:
            base.step()
        base.zero_grad()
    return run


def halves(build: Any, model: nn.Module, x: Tensor, y: Tensor) -> Job:
    """A step in the popular form."""
    optimizer = build(model)

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.first_step(zero_grad=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.second_step(zero_grad=True)
    return step


def closure(model: nn.Module, x: Tensor, y: Tensor, named: bool = False) -> Job:
    """A step of ours by a closure."""
    optimizer = SAM(torch.optim.SGD(model.parameters(), **SGD), model=model if named else None)

    def loss() -> Tensor:
        value = F.cross_entropy(model(x), y)
        value.backward()
        return value
    return lambda: optimizer.step(loss)


def page(kept: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    text = ["# What a sharpness-aware step costs beside its gradients", "",
            "Written by `python benchmarks/optimizers.py`; not edited by hand. Ratios of CPU time (on CUDA: of device "
            "time), all candidates in shuffled order within a repetition: below 1 is cheaper than what the heading "
            "names. *No host read* is `skip_nonfinite=False`."]
    for name in [name for name in NETS if name in kept]:
        piece = kept[name]
        rows = [[other, f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]
                for other, (low, middle, high) in piece["quartiles"].items()]
        text += ["", f"## Whole steps, {name} ({piece['weights']:,} weights, batches of {piece['batch']}), over two "
                 "gradients and torch.optim.SGD", "", *markdown(["", "median", "quartiles"], rows), "",
                 f"({piece['machine']}, {piece['rounds']} repetitions)"]
    return "\n".join(text) + "\n"


def main() -> None:
    """Measure the nets asked for and print, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--reps", type=int, default=31)
    parser.add_argument("--only", choices=NETS, help="one net; default all")
    given, kept = pieces(parser, PAGE)
    if given.page:
        PAGE.write_text(page(kept), encoding="utf-8")
        return
    torch.set_num_threads(1)
    random.seed(0)
    for name in [given.only] if given.only else NETS:
        kept[name] = measure(name, given.device, given.reps)
        if given.store:
            given.store.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        print(page({name: kept[name]}), flush=True)


if __name__ == "__main__":
    main()
