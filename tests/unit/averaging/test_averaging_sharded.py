"""Two processes (gloo), each with its shard: averages and slow weights are those of the whole model, or refused."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sharpnb.averaging import SWA, Lookahead, graft

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(16) % 3


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()


def sharded(seed: int = 0) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = net(seed)
    fully_shard(model[0], mesh=init_device_mesh("cpu", (2,)))  # two levels: the inner one is freed after a pass
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model


def evaluated(model: nn.Module) -> Tensor:
    """An evaluation leaves the outermost module gathered: what is written next must reach the next pass."""
    model.eval()
    with torch.no_grad():
        scores = model(X)
    model.train()
    return scores


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    evaluated(model)
    nn.functional.cross_entropy(model(X), Y).backward()
    optimizer.step()
    optimizer.zero_grad()


def averaged(model: nn.Module, tmp: Path) -> list[Tensor]:
    optimizer, swa, seen = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), SWA(model), []
    for _ in range(4):
        train(model, optimizer)
        swa.update()
        swa.update_bn([X])
        seen.append(evaluated(model))
        with swa.average_weights():
            seen.append(evaluated(model))
        seen.append(evaluated(model))
    swa.load_state_dict(swa.state_dict())
    train(model, optimizer)
    swa.update()
    swa.copy_to(model)
    return [*seen, evaluated(model), swa.vector()]


def pulled(model: nn.Module, tmp: Path) -> list[Tensor]:
    optimizer, seen = Lookahead(torch.optim.Adam(model.parameters(), lr=0.1), k=2, momentum="pullback"), []
    for _ in range(5):
        train(model, optimizer)
        seen.append(evaluated(model))
        with optimizer.slow_weights(model):
            seen.append(evaluated(model))
        seen.append(evaluated(model))
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer)
    return [*seen, evaluated(model)]


def refused(tmp: Path) -> list[str]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model, said = sharded(), []
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), k=3)
    train(model, optimizer)
    swa = SWA(model)
    swa.update()
    flattened = FullyShardedDataParallel(net(), device_id=torch.device("cpu"))

    def slow() -> None:
        with optimizer.slow_weights():
            raise AssertionError("not reached")

    for wrong in (
        slow, lambda: graft([model, sharded(1)]), lambda: swa.copy_to(net()),
        lambda: SWA(net()).load_state_dict(swa.state_dict()), lambda: SWA(flattened).update(),
    ):
        try:
            wrong()
            said.append("nothing")
        except (RuntimeError, ValueError) as error:
            said.append(str(error))
    return said


def _rank(rank: int, tmp: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", f"file://{tmp}/store", rank=rank, world_size=2, timeout=timedelta(seconds=90))
    found: dict[str, Any] = {"averaged": averaged(sharded(), tmp), "pulled": pulled(sharded(), tmp),
                             "refused": refused(tmp)}
    if rank == 0:
        torch.save(found, tmp / "found.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tmp = tmp_path_factory.mktemp("sharded")
    torch.multiprocessing.spawn(_rank, (tmp,), nprocs=2)  # pyright: ignore
    return torch.load(tmp / "found.pt", weights_only=True)


@pytest.mark.parametrize("what", ["averaged", "pulled"])
def test_two_shards_give_what_one_process_gives(found: dict[str, Any], what: str, tmp_path: Path) -> None:
    whole = {"averaged": averaged, "pulled": pulled}[what](net(), tmp_path)
    for a, b in zip(found[what], whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert (whole[1] - whole[0]).abs().max() > 1e-3 or (whole[4] - whole[3]).abs().max() > 1e-3  # swapping shows


def test_what_cannot_be_right_is_refused_by_name(found: dict[str, Any]) -> None:
    said = found["refused"]
    assert "slow_weights(model)" in said[0] and "FSDP2" in said[0]
    assert "sharded" in said[1] and "whole models" in said[1]
    assert "sharded" in said[2] and "sharded" in said[3]
    assert "FullyShardedDataParallel" in said[4] and "fully_shard" in said[4]
