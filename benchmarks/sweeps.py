"""How much faster is a cell of a sweep? ``train_many`` beside a plain loop of torch.optim runs and torch.func.vmap.

Ratios of CPU time, one thread, paired within a round, their median and range over the rounds; equal work: the same
steps on the same batches, no evaluation. On request the CPU seconds of a whole heatmap with its evaluations.
Run: ``python benchmarks/sweeps.py [--rounds 5] [--members 32] [--heatmap]``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from sharpnb.lab import load_data, models, sweep
from sharpnb.lab.many import _Group
from sharpnb.lab.settings import validated
from sharpnb.lab.studies import alpha_lambda
from sharpnb.lab.training import batches
from sharpnb.optim import SAM

DATA = load_data("digits", train_size=1000)
NETS: dict[str, Callable[[int], nn.Module]] = {
    "MLP 64-64-10": lambda seed: models.mlp((64, 64, 10), seed=seed),
    "CNN, width 8": lambda seed: models.cnn(8, seed=seed),
    "CNN, width 8, BatchNorm": lambda seed: models.cnn(8, norm=True, seed=seed),
}
BATCH, LR, MOMENTUM, RHO = 64, 0.05, 0.9, 0.05


def loop(build: Callable[[int], nn.Module], members: int, steps: int, rule: str) -> Callable[[], object]:
    """One model, one torch.optim.SGD (and our SAM around it), one batch after the other."""
    runs = []
    for k in range(members):
        model = build(k)
        sgd = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        order = batches(1000, BATCH, torch.Generator().manual_seed(k))
        runs.append((model, SAM(sgd, rho=RHO) if rule == "sam" else sgd, order))

    def run() -> None:
        for model, optimizer, order in runs:
            for _ in range(steps):
                index = next(order)
                x, y = DATA.train_x[index], DATA.train_y[index]

                def closure(model: nn.Module = model, x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
                    model.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    return loss

                optimizer.step(closure)

    return run


def by_vmap(build: Callable[[int], nn.Module], members: int, steps: int, rule: str) -> Callable[[], object] | None:
    """K gradients by ``vmap(grad(functional_call))``, as PyTorch's own tutorial on model ensembling does; SGD only."""
    if rule != "sgd" or any(True for _ in build(0).buffers()):
        return None
    model, nets = build(0), [build(k) for k in range(members)]
    params, _ = torch.func.stack_module_state(nets)
    params = {name: p.detach() for name, p in params.items()}
    buffers = {name: torch.zeros_like(p) for name, p in params.items()}
    orders = [batches(1000, BATCH, torch.Generator().manual_seed(k)) for k in range(members)]
    gradient = vmap(grad(lambda p, x, y: F.cross_entropy(functional_call(model, p, (x,)), y)))

    def run() -> None:
        for _ in range(steps):
            index = torch.stack([next(order) for order in orders])
            for name, g in gradient(params, DATA.train_x[index], DATA.train_y[index]).items():
                buffers[name].mul_(MOMENTUM).add_(g)
                params[name] = params[name] - LR * buffers[name]

    return run


def ours(build: Callable[[int], nn.Module], members: int, steps: int, rule: str) -> Callable[[], object]:
    """The batched program of ``train_many``, without its evaluations."""
    config = {"rule": rule, "lr": LR, "momentum": MOMENTUM} | ({"rho": RHO} if rule == "sam" else {})
    configs = [validated(config | {"seed": k}, k) | {"augment": None, "schedule": "constant"} for k in range(members)]
    members_of = list(range(members))
    group = _Group(members_of, configs, [DATA] * members, build, steps, BATCH, torch.device("cpu"), torch.float32)

    def run() -> None:
        for step in range(steps):
            group.step(step)

    return run


def heatmap() -> object:
    """Notebook 11's four maps: 10 x 10 cells, 3 seeds, 4 optimizers, 100 steps each."""
    r = alpha_lambda.LARGE
    axes = [(rule, r.alphas[rule], r.lambdas[rule]) for rule in r.lambdas]
    grid = [{"rule": rule, "lr": alphas, "weight_decay": decays, "seed": range(3)} for rule, alphas, decays in axes]
    with tempfile.TemporaryDirectory() as folder:
        return sweep(grid, r.data, r.model, steps=r.steps, batch_size=r.batch_size, folder=folder, **r.options)


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the processor time of one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def main() -> None:
    """Measure and print one line a net and rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--heatmap", action="store_true", help="also train the heatmap")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"CPU time a cell over train_many's: K = {given.members}, batch {BATCH}, median (range) of {given.rounds}")
    for name, build in NETS.items():
        for rule in ("sgd", "sam"):
            runs = {"torch.optim loop": loop, "torch.func.vmap": by_vmap}
            made = {rival: make(build, given.members, given.steps, rule) for rival, make in runs.items()}
            rivals = {rival: run for rival, run in made.items() if run}
            mine = ours(build, given.members, given.steps, rule)
            for run in (mine, *rivals.values()):
                run()  # warm-up
            ratios: dict[str, list[float]] = {rival: [] for rival in rivals}
            for _ in range(given.rounds):
                own = cpu_seconds(mine)
                for rival, run in rivals.items():
                    ratios[rival].append(cpu_seconds(run) / own)
            told = [f"{rival} {statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for rival, r in ratios.items()]
            print(f"{name:24} {rule:4} {'; '.join(told)}")
    if given.heatmap:
        print(f"heatmap, 1200 cells: {cpu_seconds(heatmap):.1f} CPU seconds")


if __name__ == "__main__":
    main()
