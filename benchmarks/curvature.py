r"""Hessian tools side by side: the same job, the same products, time and error against the dense spectrum in one run.

Peers are optional imports; what is not installed is left out. One thread, ``process_time``, every tool once a round in
turn, medians of the paired ratios (tool / sharpnb: above 1, sharpnb is faster) with the lowest and highest round.

    python benchmarks/curvature.py [--rounds 5] [--quick]

PyHessian 0.1 calls ``torch.eig``, which PyTorch removed; it is patched here, or it would not run. Curvlinops does not
reorthogonalise, so it does less work in the same number of products.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import os
import platform
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sharpnb.curvature import HessianOperator, spectral_density, top_eigenvalues
from sharpnb.curvature.spectrum import wasserstein

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
LOSS = nn.CrossEntropyLoss()
Batch = tuple[Tensor, Tensor]
Measure = tuple[np.ndarray, np.ndarray]  # nodes, weights of sum 1
STEPS = {"MLP 3k": 80, "CNN 38k": 15, "MLP 153k": 30}  # of the jobs of equal work
PEERS = {"pyhessian": "PyHessian", "curvlinops-for-pytorch": "curvlinops", "hessian-eigenthings": "eigenthings"}


# ---------------------------------------------------------------------------------------------------------------------
# Problems
# ---------------------------------------------------------------------------------------------------------------------


def networks() -> dict[str, tuple[nn.Module, list[Batch]]]:
    """Return three networks trained on the digits, with five batches of 256."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32)[:1280], torch.tensor(labels)[:1280]
    made = {
        "MLP 3k": nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)),
        "CNN 38k": nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
        "MLP 153k": nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10)),
    }
    for model in made.values():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        shuffle = torch.Generator().manual_seed(0)
        for _ in range(15):
            for rows in torch.randperm(len(x), generator=shuffle).split(64):
                optimizer.zero_grad()
                LOSS(model(x[rows]), y[rows]).backward()
                optimizer.step()
        optimizer.zero_grad()
    batches = list(zip(x.split(256), y.split(256), strict=True))
    return {name: (model.eval(), batches) for name, model in made.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Tools: each returns a function of (probes, steps) and a product
# ---------------------------------------------------------------------------------------------------------------------


def ours(model: nn.Module, batches: list[Batch]) -> tuple[Callable[[int, int], Measure], Callable[[], object]]:
    """Plain quadrature, for the same work."""
    op = HessianOperator(model, LOSS, batches)
    v = torch.randn(op.n)

    def density(probes: int, steps: int) -> Measure:
        result = spectral_density(HessianOperator(model, LOSS, batches), steps, probes, deflate=0)
        return result.nodes, result.weights

    return density, lambda: op @ v


def pyhessian(model: nn.Module, batches: list[Batch]) -> tuple[Callable[[int, int], Measure], Callable[[], object]]:
    """PyHessian, in its fast form where the data is one batch."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eig(matrix)
        return torch.stack([values.real, values.imag], 1), vectors.real

    torch.eig = eig  # type: ignore[attr-defined]
    model = copy.deepcopy(model)
    data = {"data": batches[0]} if len(batches) == 1 else {"dataloader": batches}

    def make() -> object:
        return hessian(model, LOSS, cuda=False, **data)

    def density(probes: int, steps: int) -> Measure:
        nodes, weights = make().density(iter=steps, n_v=probes)
        return np.concatenate(nodes), np.concatenate(weights) / probes

    tool = make()
    v = [torch.randn_like(p) for p in tool.params]
    if len(batches) == 1:
        return density, lambda: hessian_vector_product(tool.gradsH, tool.params, v)
    return density, lambda: tool.dataloader_hv_product(v)


def curvlinops(model: nn.Module, batches: list[Batch]) -> tuple[Callable[[int, int], Measure], Callable[[], object]]:
    """Curvlinops' Lanczos, without the runs that find the spectrum's ends for its grid."""
    from curvlinops import HessianLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    def make() -> HessianLinearOperator:
        params = [p for p in model.parameters() if p.requires_grad]
        return HessianLinearOperator(model, LOSS, params, batches, check_deterministic=False)

    def density(probes: int, steps: int) -> Measure:
        op = make()
        runs = [fast_lanczos(op, steps) for _ in range(probes)]
        nodes, weights = [v.numpy() for v, _ in runs], [s[0].square().numpy() for _, s in runs]
        return np.concatenate(nodes), np.concatenate(weights) / probes

    op = make()
    v = torch.randn(op.shape[1])
    return density, lambda: op @ v


def eigenthings(model: nn.Module, batches: list[Batch]) -> tuple[Callable[[int, int], Measure], Callable[[], object]]:
    """Hessian-eigenthings 1.0."""
    from hessian_eigenthings.algorithms.spectral_density import spectral_density as slq
    from hessian_eigenthings.operators.hessian import HessianOperator as Operator

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return LOSS(network(batch[0]), batch[1])

    def density(probes: int, steps: int) -> Measure:
        result = slq(Operator(model, batches, loss), num_runs=probes, lanczos_steps=steps)
        return result.raw_eigenvalues.numpy().ravel(), result.raw_weights.numpy().ravel() / probes

    op = Operator(model, batches, loss)
    v = torch.randn(op.size)
    return density, lambda: op.matvec(v)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def seconds(job: Callable[[], object], repeats: int = 1) -> float:
    """Return the CPU time of one call."""
    start = time.process_time()
    for _ in range(repeats):
        job()
    return (time.process_time() - start) / repeats


def ratios(jobs: dict[str, Callable[[], object]], rounds: int, repeats: int = 1) -> dict[str, list[float]]:
    """Return each job's time over the first job's, round by round."""
    for job in jobs.values():
        job()
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        times = {name: seconds(job, repeats) for name, job in jobs.items()}
        base = next(iter(times.values()))
        for name, value in times.items():
            found[name].append(value / base)
    return found


def show(title: str, rows: dict[str, list[float]], skip: str = "") -> None:
    """Print medians with their range."""
    cells = [f"{name} {np.median(r):.2f} [{min(r):.2f}, {max(r):.2f}]" for name, r in rows.items() if name != skip]
    print(f"  {title:<34}" + "   ".join(cells))


def available(model: nn.Module, batches: list[Batch]) -> dict[str, tuple[Callable, Callable]]:
    """Return the tools that are installed and run here."""
    tools = {"sharpnb": ours(model, batches)}
    for name, make in (("PyHessian", pyhessian), ("curvlinops", curvlinops), ("eigenthings", eigenthings)):
        with contextlib.suppress(ImportError):
            tools[name] = make(model, batches)
    return tools


def accuracy(model: nn.Module, batches: list[Batch], seeds: int, quick: bool) -> None:
    """Compare errors and times of the default against 10 x 80 plain quadrature, with the dense spectrum as truth."""
    double = copy.deepcopy(model).double()
    dense = HessianOperator(double, LOSS, [(x.double(), y) for x, y in batches]).to_dense()
    truth = np.linalg.eigvalsh(((dense + dense.T) / 2).numpy())
    even, threshold = np.full(len(truth), 1 / len(truth)), truth[-1] / 3
    count = int((truth > threshold).sum())
    plain_steps = 40 if quick else 80
    plain = f"10 x {plain_steps} plain"
    budgets = {plain: {"steps": plain_steps, "probes": 10, "deflate": 0}, "default": {}, "2 probes": {"probes": 2},
               "6 probes": {"probes": 6}}
    print(f"  against {len(truth)} dense eigenvalues, {count} above a third of the largest, {seeds} seeds:")
    times: dict[str, list[float]] = {name: [] for name in budgets}
    for name, options in budgets.items():
        w1, trace, outliers = [], [], []
        for seed in range(seeds):
            start = time.process_time()
            result = spectral_density(HessianOperator(model, LOSS, batches), seed=seed, **options)
            times[name].append(time.process_time() - start)
            nodes = np.r_[result.atoms, result.nodes]
            weights = np.r_[np.full(len(result.atoms), 1 / result.n), result.weights]
            w1.append(wasserstein(nodes, weights, truth, even))
            trace.append(result.trace.value - truth.sum())
            outliers.append(result.n * (1 - result.cdf(threshold).value) - count)
        rms = [float(np.sqrt(np.mean(np.square(errors)))) for errors in (trace, outliers)]
        print(f"    {name:<14} {result.products:>4} products   W1 {np.mean(w1):.2e} ± {np.std(w1):.0e}   "
              f"trace RMSE {rms[0]:.3f}   outlier-count RMSE {rms[1]:.3f}")
    for name in ("default", "2 probes"):
        gains = [a / b for a, b in zip(times[plain], times[name], strict=True)]
        show(f"  our own {plain} / {name}", {"": gains})


def top_five(model: nn.Module, batch: Batch) -> None:
    """Print the products that the five largest eigenvalues take, and how far they are off."""
    op = HessianOperator(model, LOSS, batch)
    found = [top_eigenvalues(op, 5, seed=seed) for seed in range(5)]
    double = HessianOperator(copy.deepcopy(model).double(), LOSS, (batch[0].double(), batch[1]))
    truth = top_eigenvalues(double, 5, tol=1e-9).values
    error = max(float(np.abs(f.values / truth - 1).max()) for f in found)
    print(f"  top five, verified, 5 seeds: {[f.products for f in found]} products, worst relative error {error:.1e}")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer steps, for a first look")
    options = parser.parse_args()
    versions = []
    for package, name in PEERS.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(package)}")
    print(f"torch {torch.__version__}, {', '.join(versions) or 'no peers'}; {platform.machine()}, "
          f"load {os.getloadavg()[0]:.1f}; {options.rounds} rounds, medians [lowest, highest]")
    for name, (model, batches) in networks().items():
        print(f"\n{name} ({sum(p.numel() for p in model.parameters())} parameters)")
        for label, data in (("one batch", batches[:1]), ("five batches", batches)):
            compare(label, model, data, STEPS[name] // (2 if options.quick else 1), options)
        top_five(model, batches[0])
        if name == "MLP 3k":
            accuracy(model, batches, 3 if options.quick else 8, options.quick)


def compare(label: str, model: nn.Module, data: list[Batch], steps: int, options: argparse.Namespace) -> None:
    """Print the tables of one network on one form of the data."""
    tools = available(model, data)

    def gradient() -> None:
        for x, y in data:
            torch.autograd.grad(LOSS(model(x), y), list(model.parameters()))

    def deflated() -> object:
        return spectral_density(HessianOperator(model, LOSS, data), probes=2)

    def work(probes: int, steps: int) -> dict[str, Callable[[], object]]:
        return {name: partial(density, probes, steps) for name, (density, _) in tools.items()}

    jobs = {"gradient": gradient, **{name: one for name, (_, one) in tools.items()}}
    show(f"product / gradient, {label}", ratios(jobs, options.rounds, 10), skip="gradient")
    show(f"10 probes x {steps} steps, {label}", ratios(work(10, steps), options.rounds), skip="sharpnb")
    if not options.quick:
        jobs = {"deflated": deflated, **work(10, 80)}
        show(f"10 x 80 / 2 deflated probes, {label}", ratios(jobs, max(1, options.rounds // 2)), skip="deflated")


if __name__ == "__main__":
    main()
