"""The tools and the trainers on a GPU: in float64 they give the CPU's numbers, and a full memory is no end.

They run where there is a GPU. SHARPNB_TEST_DEVICE=cpu runs on the CPU what does not need one, to debug the tests.
"""

from __future__ import annotations

import copy
import functools
import gc
import math
import multiprocessing
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sharpnb.averaging import SWA, Lookahead, graft, swap
from sharpnb.curvature import (
    FisherOperator,
    GGNOperator,
    HessianOperator,
    average_sharpness,
    sharpness,
    spectral_density,
    top_eigenvalues,
    trace,
)
from sharpnb.lab import load_data, models, train, train_many
from sharpnb.lab.augment import shift_and_flip
from sharpnb.landscape import Plane, surface
from sharpnb.many.cuda_graph import Captured
from sharpnb.optim import SAM, WSAM, AdamW

DEVICE = os.environ.get("SHARPNB_TEST_DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")
pytestmark = pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="no CUDA device here")
on_gpu_only = pytest.mark.skipif(not ON_GPU, reason="only CUDA has this")

NETS: dict[str, Callable[[int], nn.Module]] = {
    "mlp, BatchNorm": lambda seed: models.mlp((64, 16, 12, 10), norm=True, seed=seed),
    "cnn": lambda seed: models.cnn(4, seed=seed),
    "cnn, BatchNorm": lambda seed: models.cnn(4, norm=True, seed=seed),
    "resnet": lambda seed: models.resnet(8, width=2, channels=1, seed=seed),
}
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=1e-3),
    "sam": lambda p: SAM(p, torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9),
    "wsam": lambda p: WSAM(p, torch.optim.SGD, rho=0.05, gamma=0.8, lr=0.1, momentum=0.9),
}
RULES: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9}, "adamw": {"lr": 0.01, "weight_decay": 1e-3},
    "sam": {"lr": 0.1, "momentum": 0.9, "rho": 0.05}, "wsam": {"lr": 0.1, "momentum": 0.9, "rho": 0.05, "gamma": 0.8},
    "esam": {"lr": 0.1, "rho": 0.05, "beta": 0.6, "gamma": 0.5},
}


@functools.cache
def _digits() -> Any:
    data = load_data("digits", train_size=128, dtype=torch.float64)
    return replace(data, test_x=data.test_x[:100], test_y=data.test_y[:100])


def _trained(name: str, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a net in float64, some steps from its start, and the images, on a device."""
    model, (x, y) = NETS[name](0).double(), _digits().train
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.to(device), x.to(device), y.to(device)


def _flat(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().cpu()


def _table(rows: list[dict[str, float]]) -> Tensor:
    names = ("train_loss", "train_error", "test_loss", "test_error")
    return torch.tensor([[row[name] for name in names] for row in rows], dtype=torch.float64)


# ---- What is the same on a GPU: each returns tensors, numbers or the state of nets ----------------------------------


def _products(name: str, mode: Any, operator: Any, device: str) -> list[Tensor]:
    model, x, y = _trained(name, device)
    op = operator(model, F.cross_entropy, [(x[:100], y[:100]), (x[100:], y[100:])], mode=mode)
    assert op.device.type == torch.device(device).type
    block = torch.randn(op.shape[0], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    return [op @ block[:, 0], op @ block]


def _spectrum(device: str) -> list[float]:
    model, x, y = _trained("cnn", device)
    op = HessianOperator(model, F.cross_entropy, (x, y))
    top, density = top_eigenvalues(op, 3, tol=1e-8), spectral_density(op, steps=20, probes=2, seed=1)
    assert top.converged and top.vectors is not None and top.vectors.device.type == op.device.type
    return [*top.values, density.lambda_max, density.lambda_min, density.trace.value, trace(op).value]


def _sharpness(device: str) -> list[float]:
    model, x, y = _trained("cnn, BatchNorm", device)
    net = model, F.cross_entropy, (x, y)
    kinds = [{}, {"m": 32}, {"steps": 5}, {"adaptive": True, "rho": 0.5}, {"p": math.inf, "rho": 0.005}]
    return [*(sharpness(*net, **({"rho": 0.05} | kind)).value for kind in kinds), average_sharpness(*net, 0.01).value]


def _surface(name: str, renewed: bool, device: str) -> list[Any]:
    model, x, y = _trained(name, device)
    data = {"train": (x, y), "some": [(x[:50], y[:50]), (x[50:70], y[50:70])]}
    plane = Plane.random(_trained(name, "cpu")[0], seed=1)
    return list(surface(model, plane, data, size=5, update_bn=x.split(60) if renewed else None).values.values())


def _averages(device: str) -> list[Tensor]:
    model, x, y = _trained("cnn, BatchNorm", device)
    optimizer = Lookahead(SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05), k=3)
    swa, other = SWA(model), copy.deepcopy(model)

    def closure() -> Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    def epoch(model: nn.Module, number: int) -> float:
        F.cross_entropy(model(x[32 * number : 32 * number + 32]), y[32 * number : 32 * number + 32]).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        model.zero_grad()
        return 0.5

    for _ in range(8):
        optimizer.step(closure)
        swa.update()
    swa.update_bn(x.split(50))
    resumed = SWA(model)
    resumed.load_state_dict(swa.state_dict())
    resumed.copy_to(model)
    swap(other, epoch, epoch, x.split(50), tau=1.0, max_epochs=2, workers=2)
    graft([copy.deepcopy(model), grafted := copy.deepcopy(other)])
    return [t for net in (model, other, grafted) for t in net.state_dict().values()]


@pytest.mark.parametrize("made", [
    partial(_products, "cnn", "eval", HessianOperator), partial(_products, "cnn, BatchNorm", "eval", HessianOperator),
    partial(_products, "cnn, BatchNorm", "batch_stats", HessianOperator),
    partial(_products, "cnn", "eval", GGNOperator), partial(_products, "cnn, BatchNorm", "batch_stats", GGNOperator),
    partial(_products, "cnn, BatchNorm", "eval", FisherOperator), _spectrum, _sharpness, _averages,
    *(partial(_surface, name, renewed) for name in NETS for renewed in (False, True))])
def test_what_a_tool_gives_is_what_it_gives_on_the_cpu(made: Callable[[str], list[Any]]) -> None:
    here, there = ([torch.as_tensor(value).cpu() for value in made(device)] for device in ("cpu", DEVICE))
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6 if made is _spectrum else 1e-7, atol=1e-9)
    assert max(float(value.abs().max()) for value in here) > 1e-2


# ---- Trainings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize("name", NETS)
def test_a_training_is_that_of_the_cpu_also_by_graphs(name: str, rule: str) -> None:
    ends = []
    for device, graphs in (("cpu", False), (DEVICE, False), (DEVICE, True)):
        model = NETS[name](0).double().to(device)
        optimizer = OPTIMIZERS[rule](model.parameters())
        if graphs and rule in ("sam", "wsam"):
            optimizer.model = optimizer._statistics.model = model
        history = train(model, _digits(), optimizer, steps=12, batch_size=32, device=device, evaluate_every=4, seed=1,
                        augment=shift_and_flip(1, flip=False), keep=(5,), progress=False, graphs=graphs)
        buffers = [torch.zeros(1), *(b.double().flatten().cpu() for b in model.buffers())]
        ends.append((_flat(model), history.weights[5], _table(history.rows), torch.cat(buffers)))
        assert next(model.parameters()).device.type == torch.device(device).type
    for here, there, captured in zip(*ends, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(captured, there, rtol=1e-9, atol=1e-10)
    assert (ends[0][0] - _flat(NETS[name](0))).abs().max() > 1e-2


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NETS)
def test_many_trainings_are_those_of_the_cpu(name: str, rule: str) -> None:
    configs = [RULES[rule] | {"rule": rule, "seed": seed} for seed in (0, 1, 2)]
    configs[1]["lr"] *= 0.7
    configs[2] |= {"swa_start": 0.5, "label_noise": 0.1}
    ends = []
    for device in ("cpu", DEVICE):
        many = train_many(configs, _digits(), NETS[name], steps=10, batch_size=32, device=device, dtype=torch.float64,
                          augment=shift_and_flip(1, flip=False), evaluate_every=5, progress=False)
        ends.append((many.weights, many.averaged, _table(many.rows)))
    for there, here in zip(ends[1], ends[0], strict=True):
        torch.testing.assert_close(there, here, rtol=1e-7, atol=1e-8)
    assert (ends[0][0][0] - _flat(NETS[name](0))).abs().max() > 1e-2


@on_gpu_only
def test_bfloat16_trains_and_images_come_channels_last() -> None:
    data = _digits().to("cpu", torch.float32)
    colours = replace(data, train_x=data.train_x.repeat(1, 3, 1, 1), test_x=data.test_x.repeat(1, 3, 1, 1))
    model, seen = models.resnet(8, width=8, seed=0), set()
    model[0].register_forward_pre_hook(lambda layer, given: seen.add(
        (layer.training, given[0].is_contiguous(memory_format=torch.channels_last))))
    history = train(model, colours, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), steps=40,
                    batch_size=32, device=DEVICE, bf16=True, progress=False)
    assert (True, True) in seen and (True, False) not in seen
    assert history.diverged is None and history.rows[-1]["train_loss"] < 1.0
    assert all(p.dtype is torch.float32 for p in model.parameters())


@on_gpu_only
def test_the_third_call_is_captured_and_each_result_is_the_callers_own() -> None:
    count, calls = [0], Captured(lambda x, y: (count.__setitem__(0, count[0] + 1), (x @ y, x + y))[1])
    draws = [[torch.randn(5, 5, device=DEVICE, dtype=torch.float64) for _ in range(2)] for _ in range(6)]
    kept = [calls(*pair) for pair in draws]
    assert count[0] == 3
    for (x, y), (product, total) in zip(draws, kept, strict=True):
        torch.testing.assert_close(product, x @ y)
        assert torch.equal(total, x + y)
    assert calls(*(draw[:2, :2] @ draw[:2, :2] for draw in draws[0]))[0].shape == (2, 2) and count[0] == 4


@on_gpu_only
def test_what_cannot_be_captured_goes_on_without_a_graph() -> None:
    calls = Captured(lambda x: x * float(x.sum()))  # reads on the host
    x = torch.arange(4.0, device=DEVICE)
    with pytest.warns(UserWarning, match="could not be captured as a CUDA graph"):
        found = [calls(x + k) for k in range(5)]
    for k, result in enumerate(found):
        torch.testing.assert_close(result, (x + k) * (x + k).sum())


def _wide(chunk: int) -> Any:
    """Train eight members whose features, which go by the chunk, outweigh what is there of all of them."""
    configs = [RULES["sam"] | {"rule": "sam", "seed": seed} for seed in range(8)]
    return train_many(configs, load_data("digits", train_size=512), lambda seed: models.mlp((64, 16384, 10), seed=seed),
                      steps=3, batch_size=512, device=DEVICE, chunk=chunk, progress=False)


def _halved() -> tuple[list[int], float, bool]:
    """Return the sizes that were tried, how far weights are off at most, and whether the errors are equal."""
    _wide(1)  # what libraries take once
    torch.cuda.reset_peak_memory_stats()
    _wide(8)
    large = torch.cuda.max_memory_allocated()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.9 * large / torch.cuda.mem_get_info()[1])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        halved = _wide(8)
    torch.cuda.set_per_process_memory_fraction(1.0)
    sizes = [int(found[1]) for w in said if (found := re.search(r"do not fit .* going on with (\d+)", str(w.message)))]
    expected = _wide(sizes[-1])
    off = float(((halved.weights - expected.weights).abs() - 1e-5 * expected.weights.abs()).max())
    return sizes, off, [r["test_error"] for r in halved.rows] == [r["test_error"] for r in expected.rows]


@on_gpu_only
def test_a_full_memory_halves_the_chunk_and_the_result_is_that_of_the_smaller_one() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # where no other test has left memory reserved
        sizes, off, equal = pool.apply(_halved)
    assert sizes and sizes == [4, 2, 1][: len(sizes)]
    assert off <= 1e-6 and equal
