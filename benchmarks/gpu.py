"""What a GPU does with the package's trainers and optimizers, beside what it could do.

    python benchmarks/gpu.py [--only sam sweep]     # measure, part by part, each kept in gpu.json when it is done
    python benchmarks/gpu.py --page                 # RESULTS_gpu.md from what was kept

Each part runs in a process of its own: what cuDNN has once found for a shape it uses again, search or not.
Wall time between two synchronisations, after a warm-up, candidates in shuffled order within each repetition, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from competitors import SGD, cnn
from measuring import Job, seconds, times
from pages import markdown
from torch import Tensor, nn
from torch.nn import functional as F

from sharpnb import paths
from sharpnb.lab import models, train
from sharpnb.lab.augment import shift_and_flip
from sharpnb.lab.data import Data
from sharpnb.many.engine import Nets
from sharpnb.many.train import MembersRule
from sharpnb.optim import SAM

PAGE = Path(__file__).with_name("RESULTS_gpu.md")
STORE = Path(__file__).with_name("gpu.json")
Row = dict[str, Any]
AUGMENT = shift_and_flip(4, flip=True)
# The nets of the full profile, with their batches.
NETS: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "WRN-16-2 without BatchNorm": (lambda seed: models.wide_resnet(16, 2, norm=False, seed=seed), 256),
    "ResNet-18 of width 16": (lambda seed: models.resnet18(width=16, seed=seed), 128),
    "ResNet-8": (lambda seed: models.resnet(8, seed=seed), 128),
}
SMALL: Callable[..., nn.Module] = partial(models.resnet, 8, width=8)
RUN = 468  # updates of one cell of notebook 11's heat map
UPDATES = 600  # of each process side by side


def medians(steps: Mapping[str, Job], count: int, repetitions: int = 9) -> dict[str, float]:
    """Return each candidate's seconds a step."""
    for step in steps.values():
        seconds(step, 5, "cuda")
    found = times({name: partial(seconds, step, count, "cuda") for name, step in steps.items()}, repetitions)
    return {name: statistics.median(values) for name, values in found.items()}


def images(count: int) -> Data:
    """Return random images of CIFAR-10's shape."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 3, 32, 32, generator=draw), torch.randint(10, (count,), generator=draw)
    return Data("random", x, y, x[:1000], y[:1000], 10)


def _captured(step: Job) -> Job:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return lambda step=step: graph.replay()  # whose memory is that of the step's model


def sam() -> list[Row]:
    """Compare a whole step of SAM with two gradients and fused SGD, started kernel by kernel and as one graph."""
    torch.backends.cudnn.benchmark = True
    jobs = {"CNN, 3 convolutions, batch 64, float32": (lambda: cnn(32)[0], 64, False),
            "ResNet-18, batch 128, bfloat16": (lambda: models.resnet18(seed=0), 128, True),
            "ResNet-18, batch 512, bfloat16": (lambda: models.resnet18(seed=0), 512, True)}
    rows = []
    for name, (make, batch, bf16) in jobs.items():
        x, y = torch.randn(batch, 3, 32, 32, device="cuda"), torch.randint(10, (batch,), device="cuda")
        x = x.contiguous(memory_format=torch.channels_last) if bf16 else x

        def gradient(model: nn.Module, x: Tensor = x, y: Tensor = y, bf16: bool = bf16) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        def floor(make: Any = make, gradient: Any = gradient) -> Job:
            model = make().cuda()
            base = torch.optim.SGD(model.parameters(), fused=True, **SGD)

            def step() -> None:
                gradient(model)
                base.zero_grad()
                gradient(model)
                base.step()
                base.zero_grad()
            return step

        def ours(make: Any = make, gradient: Any = gradient, **options: Any) -> Job:
            model = make().cuda()
            optimizer = SAM(torch.optim.SGD(model.parameters(), fused=True, **SGD), model=model, **options)
            return lambda: optimizer.step(lambda: gradient(model))

        eager = medians({"floor": floor(), "SAM": ours(), "SAM, no host read": ours(skip_nonfinite=False)}, 5)
        graph = medians({"floor": _captured(floor()), "SAM": _captured(ours(skip_nonfinite=False))}, 10)
        rows.append({"net": name, "floor_ms": 1e3 * eager["floor"], "sam": eager["SAM"] / eager["floor"],
                     "no_read": eager["SAM, no host read"] / eager["floor"], "graph_floor_ms": 1e3 * graph["floor"],
                     "graph": graph["SAM"] / graph["floor"]})
    return rows


def training() -> list[Row]:
    """Time an update of ``lab.train`` on the full profile's nets, without and with graphs, images moved at random."""
    torch.backends.cudnn.benchmark = True
    data, rows = images(20_000).to("cuda"), []
    for name, (make, batch) in NETS.items():
        row: Row = {"net": name, "batch": batch}
        for graphs in (False, True):
            _, short, long = (_training(make(0), data, batch, steps, graphs) for steps in (20, 60, 260))
            row["graph_ms" if graphs else "eager_ms"] = 1e3 * (long - short) / 200
        rows.append(row)
    return rows


def _training(net: nn.Module, data: Data, batch: int, steps: int, graphs: bool) -> float:
    """Return the seconds of a training with its last evaluation."""
    optimizer = torch.optim.SGD(net.cuda().parameters(), **SGD)
    return seconds(lambda: train(net, data, optimizer, steps=steps, batch_size=batch, augment=AUGMENT, bf16=True,
                                 device="cuda", progress=False, graphs=graphs), 1, "cuda")


def sweep() -> list[Row]:
    """Time runs of a small net: a plain loop over them, and many at once."""
    torch.backends.cudnn.benchmark = True
    data, rows = images(5000).to("cuda"), []
    net = SMALL(seed=0).cuda()
    optimizer = torch.optim.SGD(net.parameters(), **SGD)

    def plain() -> None:
        index = torch.randint(5000, (128,))
        x, y = AUGMENT(data.train_x[index], torch.Generator()), data.train_y[index]
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    rows.append({"how": "a loop over runs, torch.optim", "members": 1, "first_s": 5 * seconds(plain, 5, "cuda"),
                 "ms": 1e3 * medians({"": plain}, 30, 5)[""]})
    for members, bf16 in ((72, True), (72, False), (16, True)):
        configs = [{"rule": "sgd", "seed": k % 2, **SGD, "lr": 0.01 * (k + 1) / members, "augment": AUGMENT,
                    "schedule": lambda done: 1.0} for k in range(members)]
        torch.cuda.reset_peak_memory_stats()
        nets = Nets([k % 2 for k in range(members)], data, lambda seed: SMALL(seed=seed), batch_size=128,
                    device="cuda", dtype=torch.float32, augment=AUGMENT, bf16=bf16)
        rule = MembersRule(configs, nets, RUN)
        five = lambda nets=nets, rule=rule: nets.fit(rule, 5, schedule=rule.schedules, progress=False)  # noqa: E731
        first = seconds(five, 1, "cuda")
        taken = medians({"": five}, 2, 5)[""] / 5
        rows.append({"how": f"`train_many`, {'bfloat16' if bf16 else 'float32 (TF32)'}", "members": members,
                     "first_s": first, "ms": 1e3 * taken, "peak_gb": torch.cuda.max_memory_allocated() / 1e9})
        print(rows[-1], flush=True)
    return rows


def together() -> list[Row]:
    """Time processes that share the GPU, each with a training of its own by graphs."""
    rows = []
    for count in (1, 6):
        command = [sys.executable, __file__, "--worker"]
        workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                   for _ in range(count)]
        for worker in workers:
            worker.stdout.readline()
        for worker in workers:
            print("go", file=worker.stdin, flush=True)
        taken = max(float(worker.stdout.readline()) for worker in workers)
        rows.append({"processes": count, "ms": 1e3 * taken / UPDATES / count})
    return rows


def mps() -> list[Row]:
    """Time them under NVIDIA's Multi-Process Service, where their kernels run side by side."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True)
        try:
            return together()
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, check=False)
            del os.environ["CUDA_MPS_PIPE_DIRECTORY"], os.environ["CUDA_MPS_LOG_DIRECTORY"]


def _worker() -> None:
    data, net = images(5000).to("cuda"), models.resnet18(width=16)
    _training(net, data, 128, 20, graphs=True)
    print("ready", flush=True)
    sys.stdin.readline()
    print(_training(net, data, 128, UPDATES, graphs=True), flush=True)


PARTS: dict[str, Callable[[], list[Row]]] = {
    "sam": sam, "training": training, "sweep": sweep, "together": together, "mps": mps}
# Of each part's table: heading, a sentence, columns, a row of it.
TABLES: dict[str, tuple[str, str, list[str], Callable[[Row], list[str]]]] = {
    "sam": (
        "A step of SAM over two gradients and fused SGD",
        "The goal is at most 1.05. Started kernel by kernel, the host sets the pace; as one graph, the device.",
        ["net", "floor, ms", "SAM", "no host read", "floor as a graph, ms", "SAM as a graph"],
        lambda r: [r["net"], f"{r['floor_ms']:.2f}", f"{r['sam']:.3f}", f"{r['no_read']:.3f}",
                   f"{r['graph_floor_ms']:.2f}", f"{r['graph']:.3f}"]),
    "training": (
        "An update of `lab.train` in bfloat16", "The update moves its images too.",
        ["net", "batch", "kernel by kernel, ms", "by graphs, ms"],
        lambda r: [r["net"], str(r["batch"]),
                   *(f"{r[name]:.2f}" if name in r else "not measured" for name in ("eager_ms", "graph_ms"))]),
    "sweep": (
        f"Sweeps: ResNet-8 of width 8, batches of 128, runs of {RUN} updates",
        "Evaluations apart. *First five*: seconds of the first five updates, with the capture of graphs and cuDNN's "
        "search for the fastest convolutions.",
        ["how", "members", "first five, s", "ms an update of all", "runs a minute", "peak, GB"],
        lambda r: [r["how"], str(r["members"]), f"{r['first_s']:.1f}", f"{r['ms']:.2f}",
                   f"{60e3 * r['members'] / r['ms'] / RUN:.0f}", f"{r['peak_gb']:.1f}" if "peak_gb" in r else ""]),
    "together": (
        "Processes side by side: ResNet-18 of width 16", "Each trains a net of its own by graphs; they take turns.",
        ["processes", "ms an update, of all processes"], lambda r: [str(r["processes"]), f"{r['ms']:.2f}"]),
    "mps": (
        "The same under NVIDIA's Multi-Process Service", "Their kernels run side by side.",
        ["processes", "ms an update, of all processes"], lambda r: [str(r["processes"]), f"{r['ms']:.2f}"]),
}


def page(kept: dict[str, Any]) -> str:
    """Return the page; of a part that was not measured it says so."""
    lines = ["# On a GPU", "", "Generated by `python benchmarks/gpu.py --page`; not edited by hand.", "",
             f"{kept['device']}, PyTorch {kept['torch']}.", ""]
    for name, (heading, sentence, columns, row) in TABLES.items():
        if name in kept:
            note = "".join(r.get("note", "") for r in kept[name])
            lines += [f"## {heading}", "", sentence + note, "", *markdown(columns, [row(r) for r in kept[name]]), ""]
    if absent := [name for name in TABLES if name not in kept]:
        lines.append(f"Not measured yet: {', '.join(absent)}.")
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Measure and keep, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return _worker()
    kept = json.loads(given.store.read_text(encoding="utf-8")) if given.store.exists() else {}
    if given.page:
        PAGE.write_text(page(kept), encoding="utf-8")
        return None
    if len(given.only) > 1:
        for name in given.only:
            subprocess.run([sys.executable, __file__, "--store", given.store, "--only", name], check=True)
        return None
    name, began = given.only[0], time.perf_counter()
    kept |= {name: PARTS[name](), "device": torch.cuda.get_device_name(), "torch": torch.__version__}
    paths.write_whole(given.store, json.dumps(kept, indent=1))
    print(f"{name}: {time.perf_counter() - began:.0f} s", json.dumps(kept[name]), flush=True)
    return None


if __name__ == "__main__":
    main()
