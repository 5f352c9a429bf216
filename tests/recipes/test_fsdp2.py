"""The recipe for FSDP2 in two processes (gloo), held against SAM and AdamW written out in one."""

import importlib.util
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

HALF, STEPS = 3, 6


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("fsdp2_sam", Path(__file__).parents[2] / "recipes" / "fsdp2_sam.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _worker(rank, folder, recipe):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))
    first = recipe.build("cpu")
    assert recipe.load(folder / "kept", *first) == 0
    recipe.train(*first, range(HALF), "cpu")
    recipe.save(folder / "kept", *first, HALF)
    second = recipe.build("cpu")  # knows of the first what the checkpoint says
    assert recipe.load(folder / "kept", *second) == HALF
    ends = {}
    for name, (model, optimizer) in {"straight": first, "resumed": second}.items():
        recipe.train(model, optimizer, range(HALF, STEPS), "cpu")
        ends[name] = [p.full_tensor().detach() for p in model.parameters()]
    assert all(p.to_local().numel() < p.numel() for p in first[0].parameters())  # each process holds a part
    torch.save(ends, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def _by_hand(recipe, rho):
    """Return what one process comes to, from the whole batches and the equations."""
    model = recipe.network()
    params = list(model.parameters())
    adamw = torch.optim.AdamW(params, lr=0.01)
    for step in range(STEPS):
        draw = torch.Generator().manual_seed(step)
        x, y = torch.randn(recipe.BATCH, 20, generator=draw), torch.randint(5, (recipe.BATCH,), generator=draw)
        kept = [p.detach().clone() for p in params]
        first = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), params)
        norm = torch.cat([g.flatten() for g in first]).norm()
        with torch.no_grad():
            for p, g in zip(params, first, strict=True):
                p += rho * g / norm
        second = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), params)
        with torch.no_grad():
            for p, w, g in zip(params, kept, second, strict=True):
                p.copy_(w)
                p.grad = g
        adamw.step()
    return [p.detach() for p in params]


def _gap(a, b):
    return max(float((p - q).abs().max()) for p, q in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def ends(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp2")
    torch.multiprocessing.start_processes(_worker, (folder, recipe), nprocs=2, start_method="fork")  # no second import
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_train_as_one(recipe, ends):
    by_hand = _by_hand(recipe, 0.1)
    assert _gap(ends[0]["straight"], by_hand) < 1e-5
    assert _gap(_by_hand(recipe, 0.0), by_hand) > 1e-3  # AdamW alone comes elsewhere


def test_a_run_resumed_from_the_checkpoint_ends_at_the_same_weights(ends):
    assert _gap(ends[0]["resumed"], ends[0]["straight"]) == 0
    assert _gap(ends[1]["resumed"], ends[0]["straight"]) == 0
