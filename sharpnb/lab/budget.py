"""What a training should cost on a GPU, counted from its settings and turned into time at assumed rates.

Floating-point operations, bytes and kernels of one gradient are counted by running it without numbers (PyTorch's
``meta`` device). The rates are *assumptions about one H200*, made before any of it was run; what pieces took is in the
records' provenance. On one H200, 22 of them, four at a time, took 0.84 of the plan by share of the card, and 95, six at
a time under NVIDIA's Multi-Process Service, 665 seconds of 971 planned.
``data/full_budget.toml`` holds the plan for the full profile.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sharpnb import paths
from sharpnb.lab.pieces import Kind

PEAK = 989e12  # FLOP/s in bfloat16 without sparsity, NVIDIA's data sheet
BANDWIDTH = 4.8e12  # bytes/s, the same data sheet
# The CIFAR-10 speed runs of cifar10-airbench state 0.36 to 4.9 PFLOP in 3.1 to 34.7 s on an A100, four to five tenths
# of its peak, with wide nets and a compiled step. Ours are narrow and run eagerly: an eighth of that. Many members at
# once run as grouped convolutions in TF32, of which nothing good is known: a hundredth.
SHARE_ALONE, SHARE_TOGETHER, SHARE_BANDWIDTH = 0.05, 0.01, 0.4
LAUNCH = 10e-6  # seconds a kernel, of an eager step that waits for the host
OWN_KERNELS = 40  # of a step besides its gradients: batch, augmentation, update
START = 1.0  # seconds a piece: images to the device, nets made, a first slow step
PROCESS = 20.0  # seconds a notebook: imports, the GPU's context, data from the disk, figures


@dataclass(frozen=True)
class Counted:
    """One gradient of the mean loss of a batch: floating-point operations, bytes in and out of kernels, kernels."""

    flops: int
    bytes: int
    kernels: int


class _Traffic(TorchDispatchMode):
    """Counts kernels and the bytes of their arguments and results; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, out)) if isinstance(leaf, torch.Tensor)]
            self.kernels += 1
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


def counted(net: nn.Module, image: Sequence[int], batch: int) -> Counted:
    """Count one gradient of ``net`` on ``batch`` images of shape ``image``, in float32."""
    net = net.to("meta", torch.float32)
    x, y = torch.empty(batch, *image, device="meta"), torch.empty(batch, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as flops, _Traffic() as traffic:
        F.cross_entropy(net(x), y).backward()
    return Counted(flops.get_total_flops(), traffic.bytes, traffic.kernels)


@dataclass(frozen=True)
class Cost:
    """What one piece computes.

    Attributes:
        net: seed -> net.
        steps, batch: updates of each run and their images.
        gradients: an update (SGD 1, SAM 2, with m-sharpness as many, for each shard is smaller).
        runs: trainings in the piece.
        together: as one batched program, not one after another.
        evaluated: images of each run that only pass forward: evaluations and BatchNorm's statistics.
        products: gradients of ``batch`` images of each run beside training, such as for Hessian products (about two
            gradients each).
        image: shape of an image.
    """

    net: Callable[[int], nn.Module]
    steps: int
    batch: int
    gradients: float = 1.0
    runs: int = 1
    together: bool = False
    evaluated: int = 0
    products: int = 0
    image: tuple[int, int, int] = (3, 32, 32)

    @cached_property
    def counted(self) -> Counted:
        """One gradient of one net."""
        return counted(self.net(0), self.image, self.batch)

    @property
    def computed(self) -> float:
        """Gradients of a batch in the piece; a forward pass is a third of one."""
        return self.runs * (self.steps * self.gradients + self.products + self.evaluated / self.batch / 3)

    @property
    def flops(self) -> float:
        """Floating-point operations in the piece."""
        return self.computed * self.counted.flops

    @property
    def seconds(self) -> float:
        """Planned time: the slowest of arithmetic, memory and launches, at the assumed rates."""
        share = SHARE_TOGETHER if self.together else SHARE_ALONE
        arithmetic, memory = self.counted.flops / (share * PEAK), self.counted.bytes / (SHARE_BANDWIDTH * BANDWIDTH)
        programs = 1 if self.together else self.runs
        kernels = programs * (self.steps * (OWN_KERNELS + self.gradients * self.counted.kernels)
                              + self.products * self.counted.kernels)
        return START + max(self.computed * max(arithmetic, memory), kernels * LAUNCH)


@dataclass(frozen=True)
class Planned:
    """The plan of one notebook's full profile.

    Attributes:
        notebook, pieces, runs, seeds: its name; how many pieces, trainings, seeds.
        epochs: of the longest training.
        gradients, pflop: counted, of batches.
        minutes, longest_minutes: of all, and of the longest piece, at the assumed rates.
        seconds: of one piece of each kind.
    """

    notebook: str
    pieces: int
    runs: int
    epochs: float
    seeds: int
    gradients: int
    pflop: float
    minutes: float
    longest_minutes: float
    seconds: dict[str, float]


# In the order of their value, in which `sharpnb run --profile full` executes them. Each study says what it will do.
STUDIES = {
    "03_hessian_spectra": "hessian_spectra", "05_label_noise": "label_noise", "08_wsam_gamma": "wsam_gamma",
    "11_alpha_lambda_heatmaps": "alpha_lambda", "14_swa_landscapes": "swa", "02_sam_minima": "sam_minima_full",
    "04_m_sharpness": "m_sharpness", "09_sam_family": "sam_family", "12_adamw_generalization": "adamw_generalization",
    "13_warm_restarts": "warm_restarts", "15_swap": "swap", "16_lookahead": "lookahead",
    "17_filter_grafting": "filter_grafting", "01_sam": "sam",
}


def plan() -> list[Planned]:
    """Return the plan of every notebook from the studies' settings of the full profile."""
    paths.let_studies_be_imported()
    return [_planned(name, *importlib.import_module(f"studies.{module}").planned())
            for name, module in STUDIES.items()]


def _planned(notebook: str, seeds: int, images: int, kinds: Sequence[Kind]) -> Planned:
    """``images`` are an epoch's."""
    costs = {kind.name: (kind.count, kind.cost) for kind in kinds}
    known = [(count, cost) for count, cost in costs.values() if cost is not None]
    return Planned(
        notebook, sum(kind.count for kind in kinds), sum(count * cost.runs for count, cost in known if cost.steps),
        round(max(cost.steps * cost.batch for _, cost in known) / images, 1), seeds,
        round(sum(count * cost.runs * (cost.steps * cost.gradients + cost.products) for count, cost in known)),
        round(sum(count * cost.flops for count, cost in known) / 1e15, 3),
        round((PROCESS + sum(count * cost.seconds for count, cost in known)) / 60, 2),
        round(max(cost.seconds for _, cost in known) / 60, 2),
        {name: round(cost.seconds, 1) for name, (_, cost) in costs.items() if cost is not None},
    )


def file() -> Path:
    """Return where the plan is kept."""
    return paths.root() / "data" / "full_budget.toml"


def text(plans: Sequence[Planned]) -> str:
    """Return the plan as TOML."""
    lines = [
        "# Planned before any of it was run, by `python -m sharpnb.lab.budget` from the settings of the full profile.",
        "# Gradients and FLOP are counted; minutes follow from rates that are assumed (one H200), see that module.",
        "", "[assumed]",
        f"peak_tflops = {PEAK / 1e12:g}", f"bandwidth_tb_s = {BANDWIDTH / 1e12:g}", f"share_alone = {SHARE_ALONE}",
        f"share_together = {SHARE_TOGETHER}", f"share_bandwidth = {SHARE_BANDWIDTH}",
        f"launch_microseconds = {LAUNCH * 1e6:g}", f"own_kernels = {OWN_KERNELS}", f"start_seconds = {START}",
        f"process_seconds = {PROCESS}",
    ]
    for planned in plans:
        fields = dict(vars(planned))
        seconds = fields.pop("seconds")
        lines += ["", "[[notebook]]", *(f"{key} = {value!r}".replace("'", '"') for key, value in fields.items()),
                  "seconds_a_piece = {" + ", ".join(f'"{name}" = {value}' for name, value in seconds.items()) + "}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    paths.write_whole(file(), text(plan()))
