"""How much faster is a cell of a sweep? ``train_many`` beside a plain loop of torch.optim runs and torch.func.vmap.

Ratios of CPU time, one thread, paired within a round, their median and range over the rounds; equal work: the same
steps on the same batches, no evaluation; every side has the allocator's setting of ``allocator.py``. The floor is the
arithmetic of a step, forwards and backwards, at the rate of a large matrix product. On request the CPU seconds of a
whole heatmap with its evaluations.
Run: ``python benchmarks/sweeps.py [--rounds 5] [--members 32] [--heatmap] [--write]``; the page RESULTS_sweeps.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import landscape
import torch
import torch.nn.functional as F
from allocator import keep_freed_memory
from pages import markdown
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from sharpnb import paths
from sharpnb.lab import load_data, models, sweep
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
    "CNN, width 8, BatchNorm": lambda seed: models.cnn(8, norm=True, seed=seed),
    **{net: lambda seed, net=net: _seeded(landscape.CASES[net].build, seed) for net in (
        "CNN 8-12-16, pools", "CNN 8-16, a pool after each", "CNN 8-16, two pools at the end")},
}
GOALS = {net: "3.5" if net.startswith("MLP") else "3.0" for net in NETS}  # over a loop of torch.optim runs
BATCH, LR, MOMENTUM, RHO = 64, 0.05, 0.9, 0.05


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build()


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
    nets = Nets(range(members), DATA, build, batch_size=BATCH, dtype=torch.float32)
    members_rule = MembersRule(configs, nets, steps)
    return lambda: nets.fit(members_rule, steps, schedule=members_rule.schedules, progress=False)


def heatmap() -> object:
    """Notebook 11's four maps: 10 x 10 cells, 3 seeds, 4 optimizers, 100 steps each."""
    paths.let_studies_be_imported()
    from studies import alpha_lambda

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


def floor(build: Callable[[int], nn.Module], rule: str, speed: float) -> float:
    """Return the seconds that the arithmetic of one step of one cell takes at ``speed``."""
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(build(0)(DATA.train_x[:BATCH]), DATA.train_y[:BATCH]).backward()
    return counter.get_total_flops() * (2 if rule == "sam" else 1) / speed


def measure(name: str, rule: str, members: int, steps: int, rounds: int, speed: float) -> list[str]:
    """Return a row of the table."""
    build = NETS[name]
    least = floor(build, rule, speed) * members * steps
    print(f"{name} {rule}: floor {least:.3f} s for {members} cells and {steps} steps", flush=True)
    mine = ours(build, members, steps, rule)
    made = {"loop": loop(build, members, steps, rule), "vmap": by_vmap(build, members, steps, rule)}
    rivals = {rival: run for rival, run in made.items() if run}
    for run in (mine, *rivals.values()):
        run()  # warm-up
    own: list[float] = []
    times: dict[str, list[float]] = {rival: [] for rival in rivals}
    for _ in range(rounds):
        own.append(cpu_seconds(mine))
        for rival, run in rivals.items():
            times[rival].append(cpu_seconds(run))
    ratios = {rival: [a / b for a, b in zip(times[rival], own, strict=True)] for rival in rivals}
    told = {k: f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for k, r in ratios.items()}
    print(f"  train_many {statistics.median(own):.2f} s; rival / train_many: {told}", flush=True)
    ceiling = f"{statistics.median(times['loop']) / least:.1f}"
    return [name, rule, ceiling, told["loop"], GOALS[name], told.get("vmap", "")]


def main() -> None:
    """Print the floor, then one row a net and rule; with ``--write`` keep the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--heatmap", action="store_true", help="also train the heatmap")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    speed = landscape.rate()
    head = ["net", "rule", "loop / floor", "loop / `train_many` (range)", "goal", "vmap / `train_many` (range)"]
    rows = [measure(name, rule, given.members, given.steps, given.rounds, speed)
            for name in NETS for rule in ("sgd", "sam")]
    lines = [
        "# Sweeps", "", "Generated by `python benchmarks/sweeps.py --write`; not edited by hand.", "",
        f"CPU time a cell, K = {given.members} cells, batches of {BATCH}, {given.steps} steps, median of "
        f"{given.rounds} rounds. Loop: one `torch.optim` run after the other. Floor: the arithmetic of a step at the "
        "rate of a large matrix product; nothing can be faster than loop / floor. vmap: "
        "`vmap(grad(functional_call))`, where there are no buffers.", "",
        *markdown(head, rows), "",
    ]
    if given.heatmap:
        took = cpu_seconds(heatmap)
        lines += [f"Notebook 11's heatmap, 10 x 10 cells, 3 seeds, 4 optimizers, 100 steps and their evaluations: "
                  f"{took:.0f} CPU seconds (goal: at most 60).", ""]
    lines += [landscape.machine()]
    print("\n".join(lines))
    if given.write:
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
