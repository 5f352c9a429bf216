r"""Hessian tools side by side: the same job, the same products, time and error against the dense spectrum in one run.

    python benchmarks/curvature.py                                   # all of it, about an hour on one core
    python benchmarks/curvature.py --net "CNN 38k" --data five       # one piece, some minutes; --job for a part
    python benchmarks/curvature.py --net "CNN 38k" --data five --store FILE    # ... kept beside earlier pieces
    python benchmarks/curvature.py --page --store FILE               # RESULTS_curvature.md from the pieces kept

Peers are optional imports; what is not installed is left out. They go anywhere on ``PYTHONPATH``, for example
``pip install --no-deps --target peers pyhessian curvlinops-for-pytorch hessian-eigenthings backpack-for-pytorch``. One
thread, CPU time, every tool once a round in turn, medians of the paired ratios (tool / sharpnb: above 1, sharpnb is
faster) with the lowest and the highest round.

PyHessian 0.1 calls ``torch.eig``, which PyTorch removed; it is patched, or it would not run. All tools share one
process, with a heap that keeps what is freed (the setting of the Makefile).
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import cell, machine, pieces, ratios, seconds
from pages import markdown
from sklearn.datasets import load_digits
from spectrum_tools import LOSS, Batch, Measure, Tool, available
from torch import nn

from sharpnb.curvature import HessianOperator, spectral_density
from sharpnb.curvature.spectrum import wasserstein

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
Rows = list[list[str]]
PEERS = ["PyHessian", "curvlinops", "eigenthings"]
DATA = {"one": "one batch of 256", "five": "five batches of 256"}
STEPS = {"MLP 3k": 80, "CNN 3k": 30, "CNN 38k": 15, "MLP 153k": 30}  # of the jobs of equal work: minutes, not hours
JOBS = ("product", "work", "deflated", "errors")
DENSE = ("MLP 3k", "CNN 3k")  # whose Hessian can be written down
PAGE = Path(__file__).with_name("RESULTS_curvature.md")


# ---- Problems -------------------------------------------------------------------------------------------------------


def network(name: str) -> tuple[nn.Module, list[Batch]]:
    """Return a network trained on the digits, with five batches of 256."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32)[:1280], torch.tensor(labels)[:1280]
    torch.manual_seed(0)
    model = {
        "MLP 3k": lambda: nn.Sequential(
            nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)),
        "CNN 3k": lambda: nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 16, 3, 2, padding=1),
            nn.Tanh(), nn.Flatten(), nn.Linear(256, 10)),
        "CNN 38k": lambda: nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
        "MLP 153k": lambda: nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10)),
    }[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(15):
        for rows in torch.randperm(len(x), generator=shuffle).split(64):
            optimizer.zero_grad()
            LOSS(model(x[rows]), y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval(), list(zip(x.split(256), y.split(256), strict=True))


# ---- Measuring ------------------------------------------------------------------------------------------------------


def products(model: nn.Module, batches: list[Batch], tools: dict[str, Tool], rounds: int) -> dict[str, str]:
    """Return the price of one product, in gradients of the same data."""
    parameters = list(model.parameters())

    def gradient() -> None:
        for x, y in batches:
            torch.autograd.grad(LOSS(model(x), y), parameters)

    jobs = {"gradient": partial(seconds, gradient, 10)}
    for name, tool in tools.items():
        made = tool.make()
        tool.product(made)  # graphs are built with the first product
        jobs[name] = partial(seconds, partial(tool.product, made), 10)
    found = ratios(jobs, 2 * rounds + 1)
    return {name: cell(found[name]) for name in tools}


def same_work(tools: dict[str, Tool], steps: int, rounds: int) -> dict[str, str]:
    """Return the time of ten probes, operator included, as ratios to ours."""
    def job(tool: Tool) -> float:
        return seconds(lambda: tool.density(tool.make(), 10, steps))

    found = ratios({name: partial(job, tool) for name, tool in tools.items()}, rounds)
    return {name: cell(found[name]) for name in tools if name != "sharpnb"}


def deflated(model: nn.Module, batches: list[Batch], tools: dict[str, Tool], rounds: int) -> dict[str, str]:
    """Return the time of 10 x 80 plain quadrature over that of two deflated probes.

    Plain probes cost the same one after the other, so one of 80 steps is timed and counted ten times (without the
    making of the operator, which ten share). Ours is timed whole.
    """
    def mine() -> float:
        return seconds(lambda: spectral_density(HessianOperator(model, LOSS, batches), probes=2))

    def peer(tool: Tool, made: Any) -> float:
        return 10 * seconds(lambda: tool.density(made, 1, 80))

    jobs = {"deflated": mine}
    jobs |= {name: partial(peer, tool, tool.make()) for name, tool in tools.items() if name != "sharpnb"}
    found = ratios(jobs, rounds)
    return {name: cell(found[name]) for name in jobs if name != "deflated"}


def accuracy(model: nn.Module, batches: list[Batch], tools: dict[str, Tool], seeds: int) -> list[dict[str, str]]:
    """Return errors against the dense spectrum of 10 x 80 plain quadrature, by each tool, and of deflated probes."""
    double = copy.deepcopy(model).double()
    dense = HessianOperator(double, LOSS, [(x.double(), y) for x, y in batches]).to_dense()
    truth = np.linalg.eigvalsh(((dense + dense.T) / 2).numpy())
    threshold = truth[-1] / 3

    def plain(tool: Tool, seed: int) -> tuple[Measure, int]:
        torch.manual_seed(seed)
        return tool.density(tool.make(), 10, 80), 800

    def locking(probes: int, seed: int) -> tuple[Measure, int]:
        result = spectral_density(HessianOperator(model, LOSS, batches), probes=probes, seed=seed)
        atoms = np.full(len(result.atoms), 1 / result.n)
        return (np.r_[result.atoms, result.nodes], np.r_[atoms, result.weights]), result.products

    jobs: dict[str, Callable[[int], tuple[Measure, int]]] = {
        f"sharpnb, {probes} deflated probes": partial(locking, probes) for probes in (2, 8)}
    jobs |= {f"{name}, 10 x 80 plain": partial(plain, tool) for name, tool in tools.items() if name != "sharpnb"}
    return [{"what": name, **_errors([job(seed) for seed in range(seeds)], truth, threshold)}
            for name, job in jobs.items()]


def _errors(found: list[tuple[Measure, int]], truth: np.ndarray, threshold: float) -> dict[str, str]:
    even, count = np.full(len(truth), 1 / len(truth)), int((truth > threshold).sum())
    w1 = [wasserstein(nodes, weights, truth, even) for (nodes, weights), _ in found]
    trace = [len(truth) * float(nodes @ weights) - truth.sum() for (nodes, weights), _ in found]
    outliers = [len(truth) * float(weights[nodes > threshold].sum()) - count for (nodes, weights), _ in found]
    rms = [float(np.sqrt(np.mean(np.square(errors)))) for errors in (trace, outliers)]
    used = sorted(number for _, number in found)
    return {"products": f"{used[0]}" if used[0] == used[-1] else f"{used[0]} to {used[-1]}",
            "W1": f"{np.mean(w1):.2e} ± {np.std(w1, ddof=1) / len(w1) ** 0.5:.0e}",
            "trace": f"{rms[0]:.3f} of {truth.sum():.2f}", "outliers": f"{rms[1]:.3f} of {count}"}


# ---- The page -------------------------------------------------------------------------------------------------------


def measure(net: str, data: str, jobs: list[str], rounds: int, seeds: int) -> dict[str, Any]:
    """Measure one piece."""
    model, batches = network(net)
    chosen = batches[:1] if data == "one" else batches
    tools = available(model, chosen)
    piece: dict[str, Any] = {"net": net, "data": data, "n": sum(p.numel() for p in model.parameters())}
    if "product" in jobs:
        piece["product"] = products(model, chosen, tools, rounds)
    if "work" in jobs:
        piece["work"] = same_work(tools, steps_of(net, data), rounds)
    if "deflated" in jobs:
        piece["deflated"] = deflated(model, chosen, tools, rounds)
    if "errors" in jobs and data == "one" and net in DENSE:
        piece["errors"] = accuracy(model, chosen, tools, seeds)
    return {**piece, "machine": machine()}


def steps_of(net: str, data: str) -> int:
    """Return the steps of a job of equal work."""
    return STEPS[net] // (1 if data == "one" else 3)


def page(kept: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    order = sorted(kept.values(), key=lambda p: (list(STEPS).index(p["net"]), list(DATA).index(p["data"])))

    def by_tool(job: str, columns: list[str], *between: Callable[[dict[str, Any]], str]) -> Rows:
        return [[*_head(p), *(f(p) for f in between), *(p[job].get(name, "") for name in columns)]
                for p in order if job in p]

    errors = [[p["net"], *row.values()] for p in order for row in p.get("errors", [])]
    lines = [
        "# Hessian spectra, side by side", "",
        "Written by `python benchmarks/curvature.py`; not edited by hand. CPU time on "
        f"{'; '.join(dict.fromkeys(p['machine'] for p in order))}. Networks trained on the digits. Every tool once a "
        "round in turn, in one process; median (lowest to highest) of the paired ratios over rounds. Ratios are a "
        "tool's time over ours: above 1, sharpnb is faster.", "",
        "## One product, in gradients over the same data", "",
        *markdown(["network", "data", "sharpnb", *PEERS], by_tool("product", ["sharpnb", *PEERS])), "",
        "## The same work: ten probes of plain Lanczos quadrature, time over ours", "",
        "Curvlinops does not reorthogonalise, so it does less in the same number of products.", "",
        *markdown(["network", "data", "steps", *PEERS],
               by_tool("work", PEERS, lambda p: str(steps_of(p["net"], p["data"])))), "",
        "## No worse an error: their 10 x 80 over our two deflated probes, time over ours", "",
        "The errors of both are in the next table, where the dense spectrum is known. One of their ten equal probes is "
        "timed and counted ten times; ours is timed whole, its deflation included.", "",
        *markdown(["network", "data", *PEERS], by_tool("deflated", PEERS)), "",
        "## Errors against the dense spectrum", "",
        "Mean Wasserstein-1 distance and its standard error over seeds; root mean square errors of the trace and of "
        "the number of eigenvalues above a third of the largest. One batch of 256.", "",
        *markdown(["network", "how", "products", "W1", "trace", "outliers"], errors)]
    return "\n".join(lines) + "\n"


def _head(piece: dict[str, Any]) -> list[str]:
    return [f"{piece['net']} ({piece['n']:,} parameters)", DATA[piece["data"]]]


def main() -> None:
    """Measure the pieces asked for and print, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=list(STEPS), help="one network; default all")
    parser.add_argument("--data", choices=list(DATA), help="one form of the data; default both")
    parser.add_argument("--job", choices=JOBS, nargs="+", default=list(JOBS), help="some of the measurements")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=8, help="of the errors")
    given, kept = pieces(parser, PAGE)
    if given.page:
        PAGE.write_text(page(kept), encoding="utf-8")
        return
    for net in [given.net] if given.net else STEPS:
        for data in [given.data] if given.data else DATA:
            name, piece = f"{net}, {data}", measure(net, data, given.job, given.rounds, given.seeds)
            kept[name] = {**kept.get(name, {}), **piece}
            if given.store:
                given.store.write_text(json.dumps(kept, indent=1), encoding="utf-8")
            print(page({name: piece}), flush=True)


if __name__ == "__main__":
    main()
