r"""Networks of torchvision on a folder of images: the SAM paper's ImageNet and fine-tuning protocols, on many GPUs.

.. code-block:: console

    $ python recipes/imagenet.py --data DIR --out runs/b0 --protocol table3 --model efficientnet_b0
    $ torchrun --nproc_per_node=8 recipes/imagenet.py --data DIR --out runs/r50 --protocol table2 --epochs 200

``DIR`` has ``train/<class>/*`` and ``val/<class>/*``. Calling it again with the same arguments goes on after the last
whole epoch, and ends with the same weights as a run that was never stopped (bit by bit where the device computes
deterministically, as a CPU with one thread does).

Under ``torchrun`` each rank perturbs on its own share of the batch and only the final gradients are averaged: with r
ranks the perturbation is that of m-sharpness with m = batch_size / r. ``shard`` makes m smaller, also on one device:

.. math:: g=\frac1J\sum_j\nabla L_j\Big(w+\rho\frac{\nabla L_j(w)}{\|\nabla L_j(w)\|_2}\Big),\qquad J=\text{batch}/m

How it differs from the authors' JAX code: weight decay acts at w, in the base optimizer, and is no part of the loss
that is perturbed; gradients are not clipped; the momentum is PyTorch's, whose buffer does not hold the learning rate.
"""

from __future__ import annotations

import argparse
import inspect
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import imagefolder
from sharpnb import paths
from sharpnb.checkpoints import torchfile
from sharpnb.lab.data import DataError
from sharpnb.lab.training import SCHEDULES, pick_device
from sharpnb.optim import SAM

Row = dict[str, float]


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Protocol:
    """How a network is trained; each field is an option of the command line, with its meaning there.

    The defaults are those of the paper's fine-tuning (Appendix C.1, EfficientNet-b7). Two things the paper does not
    say: ``label_smoothing`` is 0 there, and ``resolution`` 0 takes that of the published weights.
    """

    model: str = _option("efficientnet_b7", "network, by its name in torchvision.models")
    weights: str = _option("DEFAULT", "published weights by name, a file with a state dict or a checkpoint, or none")
    new_head: bool = _option(True, "draw the last linear layer anew")
    frozen_norm: bool = _option(True, "keep BatchNorm in evaluation mode (its scale and shift are trained)")
    epochs: int = _option(0, "length of training in epochs; or give steps")
    steps: int = _option(5000, "length of training in updates; or give epochs")
    batch_size: int = _option(1024, "images an update, over all ranks")
    shard: int = _option(0, "images a perturbation (m of m-sharpness); 0: the share of a rank")
    lr: float = _option(0.016, "first learning rate; it follows a cosine to 0, step by step")
    momentum: float = _option(0.9, "Nesterov momentum of SGD")
    weight_decay: float = _option(1e-5, "L2 penalty, on all parameters")
    rho: float = _option(0.05, "radius of SAM; 0 is SGD")
    label_smoothing: float = _option(0.0, "share of the label spread over all classes")
    resolution: int = _option(0, "side of the image in pixels; 0: that of the weights, 224 without weights")
    augment: str = _option("crop", "crop (random resized crop, mirror image) or none")

    def __post_init__(self) -> None:
        if (self.epochs > 0) == (self.steps > 0):
            raise ValueError(f"epochs = {self.epochs}, steps = {self.steps}: give the length of training in one of "
                             "them, and 0 for the other.")
        for name, low in (("batch_size", 1), ("shard", 0), ("weight_decay", 0), ("rho", 0), ("resolution", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {low}.")
        if self.lr <= 0:
            raise ValueError(f"lr = {self.lr}: must be positive.")
        if self.augment not in imagefolder.AUGMENTS:
            raise ValueError(f"augment = {self.augment!r}: choose one of {', '.join(imagefolder.AUGMENTS)}.")


PROTOCOLS = {
    # Table 2: ResNet-50/101/152 from random weights, 100, 200 or 400 epochs.
    "table2": Protocol(model="resnet50", weights="none", new_head=False, frozen_norm=False, epochs=100, steps=0,
                       batch_size=4096, lr=1.0, weight_decay=1e-4, label_smoothing=0.1, resolution=224),
    # Table 3, all data sets but ImageNet; lr 0.008 and batches of 512 for EfficientNet-L2, which torchvision lacks.
    "table3": Protocol(),
    # Table 3, ImageNet: the head is kept. Batch size and smoothing are those of the example in the authors' code.
    "table3-imagenet": Protocol(new_head=False, epochs=10, steps=0, batch_size=512, lr=0.1, label_smoothing=0.1),
}


def fit(
    data: str | Path, protocol: Protocol, out: str | Path, *, seed: int = 0, device: str = "auto", workers: int = 0,
    bf16: bool = False, report: Callable[[Row], None] = lambda _: None,
) -> list[Row]:
    """Train a network on a folder of images, and go on where a stopped run left off.

    Args:
        data: folder with ``train/<class>/*`` and ``val/<class>/*``.
        protocol: how; see :data:`PROTOCOLS`.
        out: folder for ``checkpoint.pt`` (whole or not at all) and ``history.json``.
        seed: of new weights, the order of the images, augmentation and dropout.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``; under ``torchrun`` each rank takes its own GPU.
        workers: processes that read images, a rank.
        bf16: run forward passes under bfloat16 autocast.
        report: called with each new row, on rank 0.

    Returns:
        One row an evaluation: ``epoch``, ``step``, ``train_loss`` (mean over that epoch, at the unperturbed weights),
        and on ``val/`` ``loss`` (nats), ``top1`` and ``top5`` (errors in percent).

    Raises:
        DataError: if images or published weights are missing and cannot be had.
        ValueError: for a setting that does not fit the data, the ranks or the checkpoint in ``out``.
        FloatingPointError: if the loss is no longer finite; the checkpoint of the epoch before is kept.
    """
    own_group = dist.is_torchelastic_launched() and not dist.is_initialized()
    where = _device(device)
    if own_group:
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        with torch.random.fork_rng([where] if where.type == "cuda" else []):
            run = _Run(Path(data), protocol, Path(out), seed, where, workers, bf16)
            run.resume()
            while run.step < run.steps:
                row = run.epoch()
                run.evaluate_and_save(row)
                if run.rank == 0:
                    report(row)
        if own_group:
            dist.barrier()  # a rank that leaves early takes the connection with it
        return run.rows
    finally:
        if own_group:
            dist.destroy_process_group()


def _device(device: str) -> torch.device:
    where = pick_device(device)
    if where.type == "cuda" and dist.is_torchelastic_launched():
        where = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(where)
    return where


class _Run:
    """One training, on one rank."""

    def __init__(
        self, data: Path, p: Protocol, out: Path, seed: int, device: torch.device, workers: int, bf16: bool
    ) -> None:
        self.p, self.out, self.seed, self.device, self.workers, self.bf16 = p, out, seed, device, workers, bf16
        ranked = dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if ranked else (0, 1)
        self.train, self.val = imagefolder.folders(data)
        self._fit_sizes()
        local = int(os.environ.get("LOCAL_RANK", 0))
        if ranked and local:  # one process of each machine fetches weights before the others look for them
            dist.barrier()
        self.net, preset = imagefolder.network(p.model, p.weights, len(self.train.classes), p.new_head, seed)
        if ranked and not local:
            dist.barrier()
        imagefolder.set_transforms(self.train, self.val, preset, p.resolution, p.augment)
        self.net.to(device)
        if device.type == "cuda":
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = DistributedDataParallel(self.net, **_own_buffers()) if ranked else self.net
        sgd = torch.optim.SGD(self.net.parameters(), lr=p.lr, momentum=p.momentum, weight_decay=p.weight_decay,
                              nesterov=p.momentum > 0)
        # The authors' code, too, gives both passes the same random numbers.
        self.optimizer = SAM(sgd, rho=p.rho, model=self.model, same_dropout=True) if p.rho > 0 else sgd
        self.step, self.rows = 0, []
        self.settings = {**asdict(p), "seed": seed, "ranks": self.world, "classes": self.train.classes,
                         "images": [len(self.train), len(self.val)]}

    def _fit_sizes(self) -> None:
        p, n = self.p, len(self.train)
        if p.batch_size > n:
            raise ValueError(f"batch_size = {p.batch_size}, but there are {n} training images. Choose at most {n}.")
        self.share = p.batch_size // self.world  # images of a rank
        self.m = p.shard or self.share
        if p.batch_size % self.world or self.share % self.m:
            raise ValueError(f"batch_size = {p.batch_size} cannot be cut into {self.world} ranks of whole shards of "
                             f"{self.m}. Choose a batch_size that {self.world * self.m} divides, or another shard.")
        self.per_epoch = n // p.batch_size
        self.steps = p.steps or p.epochs * self.per_epoch

    # -- an epoch -----------------------------------------------------------------------------------------------------

    def epoch(self) -> Row:
        """Train for one epoch, or what is left of the steps."""
        epoch, first = self.step // self.per_epoch, self.step
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self._modes()
        torch.manual_seed(self._number(epoch, self.rank))  # so that an epoch does not depend on the ones before
        for x, y in self._batches(epoch, min(self.per_epoch, self.steps - self.step)):
            total += self._update(x, y)
            self.step += 1
        loss = float(self._summed(total)) / (self.step - first) / self.world
        if not math.isfinite(loss):
            raise FloatingPointError(f"epoch {epoch + 1}: the training loss is {loss}. Lower lr or rho. The checkpoint "
                                     f"in {self.out} is of the last finite epoch, if there was one.")
        if self.world > 1:
            for buffer in self.net.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self._summed(buffer) / self.world)
        return {"epoch": epoch + 1, "step": self.step, "train_loss": loss}

    def _modes(self) -> None:
        self.model.train()
        if self.p.frozen_norm:
            for module in self.net.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _number(self, *key: int) -> int:
        return int(np.random.SeedSequence([self.seed, *key]).generate_state(1)[0])

    def _batches(self, epoch: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self._number(epoch)))
        rows = order[: count * self.p.batch_size].view(count, self.world, self.share)[:, self.rank].tolist()
        return self._loaded(self.train, rows, self._number(epoch, self.rank, 1))

    def _loaded(self, images: Any, rows: list[list[int]], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)  # of the seeds of the reading processes
        loader = DataLoader(images, batch_sampler=rows, num_workers=self.workers, generator=generator,
                            pin_memory=self.device.type == "cuda")
        for x, y in loader:
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def _update(self, x: Tensor, y: Tensor) -> Tensor:
        """Make one step and return the loss of this rank's share of the batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.p.lr * SCHEDULES["cosine"](self.step / self.steps)
        shards = list(zip(x.split(self.m), y.split(self.m), strict=True))
        if isinstance(self.optimizer, SAM):
            return self.optimizer.step([self._closure(*shard) for shard in shards])
        self.optimizer.zero_grad()
        losses = []
        for k, shard in enumerate(shards):  # of one gradient, a piece at a time; the ranks' average with the last
            last = k == len(shards) - 1 or self.world == 1
            with nullcontext() if last else self.model.no_sync():  # type: ignore[operator]
                losses.append(self._closure(*shard, of=len(shards))())
        self.optimizer.step()
        return torch.stack(losses).mean()

    def _closure(self, x: Tensor, y: Tensor, of: int = 1) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
                loss = F.cross_entropy(self.model(x), y, label_smoothing=self.p.label_smoothing)
            (loss / of).backward()
            return loss.detach()

        return closure

    @torch.no_grad()
    def evaluate_and_save(self, row: Row) -> None:
        """Complete the epoch's row by the errors on ``val/``, and write the checkpoint."""
        self.net.eval()
        mine = list(range(len(self.val)))[self.rank :: self.world]
        rows = [mine[k : k + 256] for k in range(0, len(mine), 256)]
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, right, right among the first five
        for x, y in self._loaded(self.val, rows, 0):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
                logits = self.net(x).float()
            found = logits.topk(min(5, logits.shape[1])).indices == y[:, None]
            totals += torch.stack([F.cross_entropy(logits, y, reduction="sum"), found[:, 0].sum(), found.sum()])
        loss, first, five = (self._summed(totals) / len(self.val)).tolist()
        row |= {"loss": loss, "top1": 100 * (1 - first), "top5": 100 * (1 - five)}
        self.rows.append(row)
        if self.rank == 0:
            self._save()

    def _summed(self, x: Tensor) -> Tensor:
        if self.world > 1:
            x = x.clone()
            dist.all_reduce(x)
        return x

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        buffer = io.BytesIO()
        torch.save({"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step,
                    "rows": self.rows, "settings": self.settings}, buffer)
        paths.write_whole(self.out / "checkpoint.pt", buffer.getvalue())
        history = {"settings": self.settings, "rows": self.rows}
        paths.write_whole(self.out / "history.json", json.dumps(history, indent=1))

    def resume(self) -> None:
        """Take up the checkpoint in ``out``, if there is one.

        Raises:
            ValueError: if it belongs to other settings, or is damaged.
        """
        file = self.out / "checkpoint.pt"
        if not file.exists():
            return
        kept = torchfile.read(file)
        other = [f"{k} = {kept['settings'].get(k)!r} there, {v!r} here" for k, v in self.settings.items()
                 if kept["settings"].get(k) != v]
        if other:
            raise ValueError(f"{file} is of a run with other settings ({'; '.join(other)}). Choose another folder for "
                             "this run, or delete that file.")
        self.net.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.step, self.rows = kept["step"], kept["rows"]


def _own_buffers() -> dict[str, Any]:
    """Each rank normalises by its own batch, and epoch() averages the running statistics; newer torch renamed it."""
    newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if newer else "broadcast_buffers": False}


# -- the command line -------------------------------------------------------------------------------------------------


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python recipes/imagenet.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train/<class>/* and val/<class>/*")
    parser.add_argument("--out", required=True, help="folder for checkpoint.pt and history.json")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="table3", help="where the options below start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--workers", type=int, default=4, help="processes that read images, a rank")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    for f in fields(Protocol):
        flag = {"action": argparse.BooleanOptionalAction}
        kind: dict[str, Any] = flag if f.type == "bool" else {"type": type(f.default)}
        starts = ", ".join(f"{getattr(p, f.name)!r} ({name})" for name, p in PROTOCOLS.items())
        kind |= {"default": None, "help": f"{f.metadata['help']} [{starts}]"}
        parser.add_argument("--" + f.name.replace("_", "-"), **kind)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a wrong setting or missing data ends with a message and status 2."""
    args = vars(_arguments(argv))
    given = {f.name: args[f.name] for f in fields(Protocol) if args[f.name] is not None}
    if len({"epochs", "steps"} & given.keys()) == 1:  # the one that is given rules
        given = {"epochs": 0, "steps": 0, **given}
    torch.set_num_threads(1 if args["device"] == "cpu" else max(1, torch.get_num_threads()))
    try:
        protocol = replace(PROTOCOLS[args["protocol"]], **given)
        fit(args["data"], protocol, args["out"], seed=args["seed"], device=args["device"], workers=args["workers"],
            bf16=args["bf16"], report=_say)
    except (DataError, ValueError, FloatingPointError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _say(row: Row) -> None:
    sys.stdout.write("  ".join(f"{name} {value:.4g}" for name, value in row.items()) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
