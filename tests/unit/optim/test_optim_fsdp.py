"""Parameters that ``fully_shard`` spread over two processes (gloo, on the CPU), against one process on the whole
batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import family
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn import functional as F

from sharpnb.optim import ASAM, ESAM, GSAM, SAM, SGDW, WSAM, AdamW, FisherSAM, LookSAM

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
BUILDS: dict[str, Callable[[Any], Any]] = {
    "SGDW": lambda p: SGDW(p, 0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p: AdamW(p, 0.01, weight_decay=0.01),
    **{name: (lambda p, build=build: build(SGD(p), rho=0.5)) for name, build in {
        "SAM": SAM, "SAM p=1": partial(SAM, p=1.0), "SAM p=3": partial(SAM, p=3.0),
        "SAM p=inf": partial(SAM, p=float("inf")),
        "SAM inner": partial(SAM, inner_steps=2), "SAM second": partial(SAM, second_order=True), "ASAM": ASAM,
        "FisherSAM": FisherSAM, "GSAM": GSAM, "LookSAM": partial(LookSAM, k=2), "WSAM": WSAM,
        "WSAM coupled": partial(WSAM, decouple=False, gamma=0.7),
        "WSAM asam": partial(WSAM, perturbation="asam")}.items()},
    "SAM AdamW": lambda p: SAM(AdamW(p, 0.01), rho=0.5),
}
HALVES = [name for name in BUILDS if name not in ("SGDW", "AdamW", "SAM inner", "SAM second")]
STEPS = 3


def _net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1), nn.Linear(1, 3)).double()  # a rank may own no row


def _step(optimizer: Any, model: nn.Module, part: slice, halves: bool = False, bad: bool = False) -> None:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[part]
    y = (torch.arange(16) % 3)[part]

    def closure() -> Tensor:
        loss = F.cross_entropy(model(x), y) * (float("nan") if bad else 1.0)
        loss.backward()
        return loss

    if halves:
        closure(), optimizer.first_step(zero_grad=True), closure(), optimizer.second_step(zero_grad=True)
    else:
        optimizer.step(closure)
        optimizer.zero_grad()


def _whole(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().full_tensor().flatten() for p in model.parameters()])  # type: ignore[attr-defined]


def _sharded(mesh: Any) -> nn.Module:
    model = _net()
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _found(rank: int) -> dict[str, Any]:
    mesh, part, found = init_device_mesh("cpu", (2,)), slice(rank, None, 2), {}
    for name, build in BUILDS.items():
        for halves in (False, True) if name in HALVES else (False,):
            optimizer = build((model := _sharded(mesh)).parameters())
            for _ in range(STEPS):
                _step(optimizer, model, part, halves)
            found[f"{name}{' halves' * halves}"] = _whole(model)
    for name in ("SAM", "LookSAM", "WSAM"):  # a bad batch on one rank: all skip
        optimizer = BUILDS[name]((model := _sharded(mesh)).parameters())
        _step(optimizer, model, part, bad=rank == 1)
        found[f"{name} bad"] = _whole(model)
    for name in ("SAM", "LookSAM", "AdamW"):
        found[f"{name} resumed"] = _resumed(name, mesh, part)
    found["refused"] = _refusals(mesh)
    return found


def _resumed(name: str, mesh: Any, part: slice) -> Tensor:
    """Train a step, save by torch.distributed.checkpoint's state dict, train the rest in new objects."""
    model = _sharded(mesh)
    optimizer = BUILDS[name](model.parameters())
    _step(optimizer, model, part)
    saved, weights = copy.deepcopy(get_optimizer_state_dict(model, optimizer)), _whole(model)
    again = _sharded(mesh)
    with torch.no_grad():
        sizes = [p.numel() for p in again.parameters()]
        for p, piece in zip(again.parameters(), weights.split(sizes), strict=True):
            p.copy_(distribute_tensor(piece.view(p.shape), p.device_mesh, p.placements))  # type: ignore[attr-defined]
    other = BUILDS[name](again.parameters())
    set_optimizer_state_dict(again, other, saved)
    for _ in range(STEPS - 1):
        _step(other, again, part)
    return _whole(again)


def _refusals(mesh: Any) -> dict[str, str]:
    mixed = _net()
    fully_shard(mixed[0], mesh=mesh)
    told = {}
    for name, build in {
        "ESAM": lambda: ESAM(SGD(_sharded(mesh).parameters())),
        "exchanged": lambda: SAM(SGD(_sharded(mesh).parameters()), in_place=False),
        "mixed": lambda: SAM(SGD(mixed.parameters())),
        "FSDP1": lambda: SAM(SGD(FullyShardedDataParallel(_net(), use_orig_params=True,
                                                          device_id=torch.device("cpu")).parameters())),
        "FSDP1 flat": lambda: SAM(SGD(FullyShardedDataParallel(_net(), device_id=torch.device("cpu")).parameters())),
    }.items():
        try:
            build()
            told[name] = "taken"
        except Exception as error:
            told[name] = str(error)
    return told


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                            timeout=timedelta(seconds=120))
    torch.save(_found(rank), f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("fsdp")
    torch.multiprocessing.start_processes(_worker, (str(folder),), nprocs=2, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def _alone(name: str, steps: int = STEPS) -> Tensor:
    model = _net()
    optimizer = BUILDS[name](model.parameters())
    for _ in range(steps):
        _step(optimizer, model, slice(None))
    return family.vector(model)


@pytest.mark.parametrize("name", [*BUILDS, *(f"{name} halves" for name in HALVES), "SAM resumed", "LookSAM resumed",
                                  "AdamW resumed"])
def test_two_ranks_make_the_step_of_one_process(ranks: list[dict[str, Any]], name: str) -> None:
    here = _alone(name.removesuffix(" halves").removesuffix(" resumed"))
    assert torch.equal(ranks[0][name], ranks[1][name])
    assert torch.allclose(ranks[0][name], here, rtol=0, atol=1e-12)


def test_negative_control_the_radius_matters_here() -> None:
    model = _net()
    optimizer = SGD(model.parameters())
    for _ in range(STEPS):
        _step(optimizer, model, slice(None))
    assert (nn.utils.parameters_to_vector(model.parameters()) - _alone("SAM")).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["SAM", "LookSAM", "WSAM"])
def test_a_bad_batch_on_one_rank_skips_the_step_on_all(ranks: list[dict[str, Any]], name: str) -> None:
    assert torch.equal(ranks[0][f"{name} bad"], nn.utils.parameters_to_vector(_net().parameters()))


@pytest.mark.parametrize(("what", "message"), [
    ("ESAM", "ESAM over DTensors"), ("exchanged", "in_place=False"), ("mixed", "2 of 6 parameters are DTensors"),
    ("FSDP1", "FSDP1"), ("FSDP1 flat", "FSDP1")])
def test_what_cannot_follow_is_refused_by_name(ranks: list[dict[str, Any]], what: str, message: str) -> None:
    assert message in ranks[0]["refused"][what] and "fully_shard" in ranks[0]["refused"][what]


def _held(model: nn.Module, optimizer: Any) -> dict[str, set[str]]:
    return {name: set(state) for name, state in get_optimizer_state_dict(model, optimizer)["state"].items()}


@pytest.mark.parametrize("name", ["SAM", "LookSAM", "SGDW", "AdamW"])
def test_pytorchs_optimizer_state_dict_goes_around_in_one_process(name: str) -> None:
    """A fresh optimizer has its states made by a step with every rate 0; nothing may move."""
    model = _net()
    optimizer = BUILDS[name](model.parameters())
    before = family.vector(model)
    held = _held(model, optimizer)
    assert torch.equal(before, nn.utils.parameters_to_vector(model.parameters()))
    with pytest.raises(RuntimeError, match="no first_step"):
        optimizer.step() if hasattr(optimizer, "first_step") else SAM(optimizer).step()
    for _ in range(2):
        _step(optimizer, model, slice(None))
    assert _held(model, optimizer) == held  # else torch.distributed.checkpoint would not read it from a file
    other = BUILDS[name]((again := copy.deepcopy(model)).parameters())
    set_optimizer_state_dict(again, other, copy.deepcopy(get_optimizer_state_dict(model, optimizer)))
    for o, m in ((optimizer, model), (other, again)):
        _step(o, m, slice(None))
    assert torch.equal(*(nn.utils.parameters_to_vector(m.parameters()) for m in (model, again)))
