r"""Stochastic weight averaging in parallel (Gupta, Serrano & DeCoste, ICLR 2020)."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from sharpnb.averaging.batchnorm import Call, update_bn
from sharpnb.averaging.wrapped import fill
from sharpnb.fallbacks import apart

LargeEpoch = Callable[[nn.Module, int], float]
Small = Callable[[nn.Module, int], object]


@dataclass(frozen=True)
class Swapped:
    """What the three phases leave behind; the averaged network itself is the model.

    Attributes:
        accuracies: training accuracy after each epoch of phase 1, in [0, 1].
        reached: whether phase 1 ended because it reached ``tau`` (else at ``max_epochs``).
        start: flat weights at the end of phase 1, (n,).
        workers: flat weights of each worker at the end of phase 2, (W, n).
    """

    accuracies: list[float]
    reached: bool
    start: Tensor
    workers: Tensor


def swap(
    model: nn.Module, large: LargeEpoch, small: Small, data: Any, *, tau: float, max_epochs: int, workers: int = 8,
    processes: int = 1, seed: int = 0, call: Call | None = None,
) -> Swapped:
    r"""Run the three phases (Algorithm 1); afterwards ``model`` is the average.

    1. ``large(model, epoch)`` trains one epoch with large batches and returns the training accuracy in [0, 1]; it is
       called until that is :math:`\ge\tau`, or ``max_epochs`` times. The paper stops early, :math:`\tau<1`.
    2. ``small(model, worker)`` trains a copy on its own with small batches: its data order and augmentation from the
       worker's number, its own optimizer (so momentum starts anew), no communication.
    3. :math:`w=\frac1W\sum_r w_r`, in float64, and one pass over ``data`` for the BatchNorm statistics.

    Where the workers run changes no bit of the result: one after another; in ``processes`` processes (``small`` must
    then be importable, a function of a module or a ``functools.partial`` of one); or, when a process group is
    initialised as under ``torchrun``, spread over its ranks. There ``large`` runs on every rank, and may wrap the model
    in ``DistributedDataParallel``; its accuracies are averaged and rank 0's weights taken before phase 2. The script
    calls ``torch.distributed.init_process_group("gloo")`` (``"nccl"`` on GPUs), then ``swap``, and is started by::

        torchrun --nproc-per-node 8 train.py

    Each worker finds torch's random state seeded with ``seed + worker``; the caller's is untouched by phase 2.

    Args:
        model: trained in place.
        large: an epoch of phase 1, see above.
        small: a worker's phase 2, see above.
        data: what :func:`sharpnb.averaging.update_bn` takes; the training data.
        tau: training accuracy at which phase 1 stops (the paper: about 0.98 on CIFAR-10, 0.90 on CIFAR-100).
        max_epochs: most epochs of phase 1.
        workers: W (the paper's 8).
        processes: processes for phase 2 on this machine.
        seed: see above.
        call: how a batch of ``data`` is fed to the model; see :func:`sharpnb.averaging.update_bn`.

    Raises:
        ValueError: for a ``tau``, ``max_epochs``, ``workers`` or ``processes`` out of range, an accuracy outside
            [0, 1], a ``small`` that cannot be sent to a process, or a model that is wrapped for data parallelism.
    """
    ranked = dist.is_available() and dist.is_initialized()
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError("model is a DistributedDataParallel, whose copies would go on exchanging gradients in phase "
                         "2. Give swap model.module, and wrap it inside large.")
    _check(tau, max_epochs, workers, processes, ranked, small)
    accuracies: list[float] = []
    while len(accuracies) < max_epochs and (not accuracies or accuracies[-1] < tau):
        accuracies.append(_accuracy(large(model, len(accuracies)), model, ranked))
    if ranked:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)
    start = _flat(model)
    if ranked:
        ends = _over_ranks(model, small, workers, seed)
    elif processes > 1:
        ends = _over_processes(model, small, workers, seed, processes)
    else:
        ends = [_alone(model, small, w, seed) for w in range(workers)]
    stacked = torch.stack([end.to(start.device) for end in ends])
    fill(model, stacked.mean(0, dtype=torch.float64))
    update_bn(model, data, call)
    return Swapped(accuracies, accuracies[-1] >= tau, start, stacked)


def _worker(model: nn.Module, small: Small, worker: int, seed: int) -> nn.Module:
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)):
        torch.manual_seed(seed + worker)
        small(model, worker)
    return model


def _alone(model: nn.Module, small: Small, worker: int, seed: int) -> Tensor:
    with apart(model) as own:
        return _flat(_worker(own, small, worker, seed))


def _over_ranks(model: nn.Module, small: Small, workers: int, seed: int) -> list[Tensor]:
    rank, world = dist.get_rank(), dist.get_world_size()
    ends = _flat(model).new_zeros(workers, sum(p.numel() for p in model.parameters()))
    for w in range(rank, workers, world):
        ends[w] = _alone(model, small, w, seed)
    dist.all_reduce(ends)  # each row is one rank's and zero elsewhere: the sum is exact
    return list(ends)


def _over_processes(model: nn.Module, small: Small, workers: int, seed: int, processes: int) -> list[Tensor]:
    sent = _packed((model, small))
    start, threads = get_context("spawn"), (torch.get_num_threads(),)
    with ProcessPoolExecutor(min(processes, workers), start, torch.set_num_threads, threads) as pool:
        jobs = [pool.submit(_remote, sent, w, seed) for w in range(workers)]
        return [torch.load(io.BytesIO(job.result()), weights_only=True) for job in jobs]


def _remote(sent: bytes, worker: int, seed: int) -> bytes:
    model, small = torch.load(io.BytesIO(sent), weights_only=False)  # from the parent process
    return _packed(_flat(_worker(model, small, worker, seed)).cpu())


def _packed(what: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(what, buffer)
    return buffer.getvalue()


def _flat(model: nn.Module) -> Tensor:
    return parameters_to_vector(model.parameters()).detach().clone()


def _accuracy(value: float, model: nn.Module, ranked: bool) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"large returned the training accuracy {value}; it is a share in [0, 1], not percent.")
    if not ranked:
        return float(value)
    total = torch.tensor(value, device=next(model.parameters()).device, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def _check(tau: float, max_epochs: int, workers: int, processes: int, ranked: bool, small: Small) -> None:
    if not 0 < tau <= 1:
        raise ValueError(f"tau = {tau}: phase 1 stops at a training accuracy in (0, 1], e.g. 0.98.")
    for name, value in (("max_epochs", max_epochs), ("workers", workers), ("processes", processes)):
        if value < 1:
            raise ValueError(f"{name} = {value}: at least 1 is needed.")
    if ranked and processes > 1:
        raise ValueError(f"processes = {processes} inside a process group, whose ranks share the workers: use 1.")
    if processes > 1:
        try:
            pickle.dumps(small)
        except Exception as error:
            raise ValueError(f"small = {small!r} cannot be sent to another process ({error}). Use a function of a "
                             "module, or a functools.partial of one, or processes=1.") from error
