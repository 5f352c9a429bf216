"""A tiny SWAP: functions of a module, so that other processes can import them."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from sharpnb.averaging import Swapped, swap

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(64, 4, dtype=torch.float64, generator=GENERATOR)
Y = (X[:, 0] + X[:, 1] ** 2 > 0.8).long()


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).double()


def large(model: nn.Module, epoch: int, lr: float = 0.5) -> float:
    """One step of gradient descent on everything; the training accuracy of the batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    logits = model(X)
    F.cross_entropy(logits, Y).backward()
    optimizer.step()
    return (logits.argmax(1) == Y).double().mean().item()


def small(model: nn.Module, worker: int) -> None:
    """Ten steps of small batches drawn from the global random state, which swap seeds."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(10):
        index = torch.randint(64, (8,))
        optimizer.zero_grad()
        F.cross_entropy(model(X[index]), Y[index]).backward()
        optimizer.step()


def run(**options: object) -> tuple[nn.Module, Swapped]:
    """Run the three phases."""
    model = net()
    settings: dict = {"tau": 0.75, "max_epochs": 30, "workers": 3, "seed": 7, **options}
    return model, swap(model, large, settings.pop("small", small), X.split(20), **settings)


def plain() -> nn.Module:
    """A net without BatchNorm, whose statistics would differ from rank to rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()


class Parallel:
    """A phase 1 in DistributedDataParallel: each rank has every other image of the batch."""

    def __init__(self) -> None:
        self.wrapped: nn.Module | None = None

    def __call__(self, model: nn.Module, epoch: int) -> float:
        self.wrapped = self.wrapped or nn.parallel.DistributedDataParallel(model)
        optimizer, mine = torch.optim.SGD(model.parameters(), lr=0.5), slice(dist.get_rank(), None, 2)
        optimizer.zero_grad()
        logits = self.wrapped(X[mine])
        F.cross_entropy(logits, Y[mine]).backward()
        optimizer.step()
        return (logits.argmax(1) == Y[mine]).double().mean().item()


def cleared(model: nn.Module, epoch: int) -> float:
    """Do on one process what :class:`Parallel` does on two."""
    model.zero_grad()
    return large(model, epoch)


def parallel_rank(number: int, world: int, port: int, folder: str) -> None:
    """Run as one rank with a data-parallel phase 1."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=world)
    model = plain()
    result = swap(model, Parallel(), small, [X], tau=0.8, max_epochs=30, workers=3, seed=7)
    torch.save((model.state_dict(), result.workers, result.accuracies), f"{folder}/{number}.pt")
    dist.destroy_process_group()


def _save(number: int, folder: str) -> None:
    model, result = run()
    torch.save((model.state_dict(), result.workers, result.accuracies), f"{folder}/{number}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":  # python -m torch.distributed.run --nproc-per-node 2 swap_work.py FOLDER
    dist.init_process_group("gloo")  # rank, number of ranks and meeting point are in the environment
    _save(dist.get_rank(), sys.argv[1])
    os._exit(0)  # all is saved; where the interpreter then shut down, PyTorch 2.11 aborted one time in six
