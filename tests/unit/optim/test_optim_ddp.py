"""DistributedDataParallel in two processes (gloo) against the formula in one: step([closure of shard 0, of shard
1])."""

from __future__ import annotations

import gc
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from sharpnb.optim import ASAM, ESAM, GSAM, SAM, WSAM, FisherSAM, LookSAM


def _around_zero(base: torch.optim.SGD, **options: Any) -> SAM:
    if dist.is_initialized():
        base = ZeroRedundancyOptimizer(base.param_groups[0]["params"], torch.optim.SGD, lr=0.1, momentum=0.9,
                                       weight_decay=0.01)
    return SAM(base, **options)


BUILDS: dict[str, Any] = {
    "SAM": SAM, "ASAM": ASAM, "FisherSAM": FisherSAM, "GSAM": GSAM, "LookSAM": partial(LookSAM, k=2), "WSAM": WSAM,
    "WSAM coupled": partial(WSAM, decouple=False, gamma=0.7), "SAM second": partial(SAM, second_order=True),
    "SAM exchanged": partial(SAM, in_place=False), "SAM around ZeRO": _around_zero,
    "ESAM": partial(ESAM, beta=1.0, gamma=0.5), "ESAM by rows": partial(ESAM, beta=1.0, gamma=0.5),
}
STEPS = 4


class Net(nn.Module):
    """``aside`` runs on rank 0 only when asked to, and ``never`` on none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = ((4, 6), (6, 6), (6, 6), (6, 2))
        self.first, self.aside, self.never, self.last = (nn.Linear(*size) for size in sizes)
        self.double()

    def forward(self, x: Tensor, aside: bool) -> Tensor:
        h = self.first(x).tanh()
        return self.last(h + self.aside(h).tanh() if aside else h)


def _shard(rank: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(10 + rank)
    return torch.randn(8, 4, generator=draw, dtype=torch.float64), torch.randint(2, (8,), generator=draw)


def _closure(model: nn.Module, rank: int, aside: bool, bad: Any = None, name: str = "") -> Any:
    x, y = _shard(rank)

    def losses(rows: Any) -> Tensor:
        some = slice(None) if rows is None else rows
        return F.cross_entropy(model(x[some], aside and rank == 0), y[some], reduction="none")

    if name.startswith("ESAM"):
        return losses if name == "ESAM by rows" else lambda: losses(None)

    def closure() -> Tensor:
        loss = F.cross_entropy(model(x, aside and rank == 0), y)
        if bad is not None and bad():
            loss = loss * float("nan")
        loss.backward()
        return loss

    return closure


def _vector(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))
    torch.save(_ends(rank), f"{folder}/rank{rank}.pt")
    gc.collect()  # PyTorch 2.11 can wait forever for gloo's threads where a DistributedDataParallel outlives its group
    dist.destroy_process_group()


def _ends(rank: int) -> dict[str, Tensor]:
    ends: dict[str, Tensor] = {}
    for name, build in BUILDS.items():
        for aside in (False, True):
            model = DistributedDataParallel(Net(), find_unused_parameters=True, gradient_as_bucket_view=not aside)
            base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
            optimizer = build(base, rho=0.3, model=model)
            for _ in range(STEPS):
                optimizer.step(_closure(model, rank, aside, name=name))
            ends[f"{name} {aside}"] = _vector(model.module)
    for name in ("SAM", "WSAM"):  # a bad first pass on one rank: all ranks skip, or their weights part
        model = DistributedDataParallel(Net(), find_unused_parameters=True)
        optimizer = BUILDS[name](torch.optim.SGD(model.parameters(), lr=0.1), rho=0.3, model=model)
        calls: list[int] = []
        optimizer.step(_closure(model, rank, False, lambda calls=calls: calls.append(1) or len(calls) == rank))
        ends[f"{name} nan"] = _vector(model.module)
    model = DistributedDataParallel(Net(), find_unused_parameters=True, gradient_as_bucket_view=True)
    with model.no_sync():
        _closure(model, rank, False)()  # an earlier micro-batch
    with pytest.raises(ValueError, match=r"Put it around: SAM\(Zero"):
        ZeroRedundancyOptimizer(model.parameters(), SAM, base_optimizer=torch.optim.SGD, lr=0.1)
    with suppress(RuntimeError):
        SAM(torch.optim.SGD(model.parameters(), lr=0.1)).step(_closure(model, rank, False))
        ends["lost in silence"] = _vector(model.module)
    return ends


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder: Path = tmp_path_factory.mktemp("ddp")
    # no second import of torch
    torch.multiprocessing.start_processes(_worker, (str(folder),), nprocs=2, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("aside", [False, True], ids=["all used", "one unused on rank 1"])
@pytest.mark.parametrize("name", BUILDS)
def test_two_processes_equal_the_formula(ranks: list[dict[str, Tensor]], name: str, aside: bool) -> None:
    model = Net()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    optimizer = BUILDS[name](base, rho=0.3)
    shards = [_closure(model, rank, aside, name=name) for rank in range(2)]

    for _ in range(STEPS):
        optimizer.step(shards)
    assert torch.equal(ranks[0][f"{name} {aside}"], ranks[1][f"{name} {aside}"])
    assert torch.allclose(ranks[0][f"{name} {aside}"], _vector(model), rtol=0, atol=1e-12)


def test_a_bad_gradient_on_one_rank_skips_the_step_on_all(ranks: list[dict[str, Tensor]]) -> None:
    for name in ("SAM", "WSAM"):
        assert torch.equal(ranks[0][f"{name} nan"], ranks[1][f"{name} nan"])
        assert torch.equal(ranks[0][f"{name} nan"], _vector(Net()))


def test_an_earlier_micro_batch_is_refused_where_gradients_lie_in_buckets(ranks: list[dict[str, Tensor]]) -> None:
    assert "lost in silence" not in ranks[0]


def _by_hand(name: str) -> Tensor:
    """Each rank's loop written out: its own two gradients, their mean over the ranks, one SGD step for all."""
    model, momentum, a = Net(), None, {"SAM": 1.0, "WSAM coupled": 0.7 / 0.3}[name]
    params = [p for part, p in model.named_parameters() if part.startswith(("first", "last"))]  # what the loss reaches

    def gradient(rank: int, w: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(w, params)
        x, y = _shard(rank)
        return nn.utils.parameters_to_vector(torch.autograd.grad(F.cross_entropy(model(x, False), y), params))

    w = nn.utils.parameters_to_vector(params).detach().clone()
    for _ in range(STEPS):
        u = 0.01 * w
        for rank in range(2):
            g = gradient(rank, w)
            u = u + ((1 - a) * g + a * gradient(rank, w + 0.3 * g / g.norm())) / 2
        momentum = u if momentum is None else 0.9 * momentum + u
        w = w - 0.1 * momentum
    nn.utils.vector_to_parameters(w, params)
    return _vector(model)


@pytest.mark.parametrize("name", ["SAM", "WSAM coupled"])
def test_two_processes_equal_a_loop_written_by_hand(ranks: list[dict[str, Tensor]], name: str) -> None:
    assert torch.allclose(ranks[0][f"{name} False"], _by_hand(name), rtol=0, atol=1e-12)
