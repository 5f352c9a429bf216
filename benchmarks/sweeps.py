"""How much faster is a cell of a sweep? ``train_many`` beside a plain loop of torch.optim runs and torch.func.vmap.

Ratios of CPU time, one thread, paired within a round, their median and range over the rounds; equal work: the same
steps on the same batches, no evaluation; every side has the allocator's setting of the Makefile.
Run: ``python benchmarks/sweeps.py [--rounds 5] [--members 32] [--write]``; the page RESULTS_sweeps.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import Job, cell, machine, seconds, times
from pages import markdown
from torch import nn
from torch.func import functional_call, grad, vmap

from sharpnb.lab import load_data, models
from sharpnb.lab.training import batches
from sharpnb.many.engine import Nets
from sharpnb.many.settings import validated
from sharpnb.many.train import MembersRule
from sharpnb.optim import SAM

PAGE = Path(__file__).with_name("RESULTS_sweeps.md")
DATA = load_data("digits", train_size=1000)
NETS: dict[str, Callable[[int], nn.Module]] = {
    "MLP 64-64-10": lambda seed: models.mlp((64, 64, 10), seed=seed),
    "CNN, width 8": lambda seed: models.cnn(8, seed=seed),
    "CNN, width 12": lambda seed: models.cnn(12, seed=seed),  # 3,000 weights
    "CNN, width 8, BatchNorm": lambda seed: models.cnn(8, norm=True, seed=seed),
}
GOALS = {net: "3.5" if net.startswith("MLP") else "3.0" for net in NETS}  # over a loop of torch.optim runs
BATCH, LR, MOMENTUM, RHO = 64, 0.05, 0.9, 0.05


def loop(build: Callable[[int], nn.Module], members: int, steps: int, rule: str) -> Job:
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


def by_vmap(build: Callable[[int], nn.Module], members: int, steps: int, rule: str) -> Job | None:
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


def ours(build: Callable[[int], nn.Module], members: int, steps: int, rule: str) -> Job:
    """The batched program of ``train_many``, without its evaluations."""
    config = {"rule": rule, "lr": LR, "momentum": MOMENTUM} | ({"rho": RHO} if rule == "sam" else {})
    configs = [validated(config | {"seed": k}, k) | {"augment": None, "schedule": "constant"} for k in range(members)]
    nets = Nets(range(members), DATA, build, batch_size=BATCH, dtype=torch.float32)
    members_rule = MembersRule(configs, nets, steps)
    return lambda: nets.fit(members_rule, steps, schedule=members_rule.schedules, progress=False)


def measure(name: str, rule: str, members: int, steps: int, rounds: int) -> list[str]:
    """Return a row of the table."""
    made = {kind.__name__: kind(NETS[name], members, steps, rule) for kind in (ours, loop, by_vmap)}
    jobs = {kind: partial(seconds, run) for kind, run in made.items() if run}
    for job in jobs.values():
        job()  # warm-up
    found = times(jobs, rounds)
    ratios = {kind: [a / b for a, b in zip(values, found["ours"], strict=True)] for kind, values in found.items()}
    row = [name, rule, cell(ratios["loop"]), GOALS[name], cell(ratios["by_vmap"]) if "by_vmap" in ratios else ""]
    print(row, flush=True)
    return row


def main() -> None:
    """Print one row a net and rule; with ``--write`` keep the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    head = ["net", "rule", "loop / `train_many` (range)", "goal", "vmap / `train_many` (range)"]
    rows = [measure(name, rule, given.members, given.steps, given.rounds) for name in NETS for rule in ("sgd", "sam")]
    lines = [
        "# Sweeps", "", "Generated by `python benchmarks/sweeps.py --write`; not edited by hand.", "",
        f"CPU time a cell, K = {given.members} cells, batches of {BATCH}, {given.steps} steps, median of "
        f"{given.rounds} rounds. Loop: one `torch.optim` run after the other. vmap: `vmap(grad(functional_call))`, "
        "where there are no buffers.", "", *markdown(head, rows), "", f"On {machine()}.",
    ]
    print("\n".join(lines))
    if given.write:
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
