"""What PyTorch, timm and pytorch_optimizer test of every optimizer of theirs, asked of every one of ours.

The schedulers, checkpoints, hooks, dtypes, trainers and averages that those suites ask for have files of their own.
What differs by design stands in one table, "What differs", in ARCHITECTURE.md.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import family
import pytest
import torch
from torch import Tensor, nn

import sharpnb.optim
from sharpnb.optim import LookSAM

OPTIMIZERS = family.OPTIMIZERS


def _regression(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3).to(dtype), torch.randn(20, 5, dtype=dtype)
    y = x @ torch.randn(5, 3, dtype=dtype)
    return model, lambda: (model(x) - y).square().sum(1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_gradients_a_step_is_no_step(name: str) -> None:
    optimizer = OPTIMIZERS[name](params := family.parameters())
    before = family.flat(params).detach().clone()
    nothing = torch.zeros(3) if name.startswith("ESAM") else torch.tensor(0.0)
    optimizer.step(*([lambda: nothing] if hasattr(optimizer, "first_step") else []))
    assert torch.equal(family.flat(params), before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_gradients_of_zero_only_decay_moves(name: str) -> None:
    params, seen = family.parameters(), []
    optimizer, before = OPTIMIZERS[name](params), family.flat(params).detach().clone()

    def losses() -> Tensor:
        seen.append(family.flat(params).detach().clone())
        return torch.stack([p.sum() for p in params]) * 0

    family.advance(name, optimizer, losses)
    drawn = name.startswith("ESAM")  # leaves out what it has not drawn
    assert torch.equal(family.flat(params), before) and (drawn or all(torch.equal(w, before) for w in seen))
    if "over Adam" in name:
        return  # whose decay is part of the gradient
    family.advance(name, OPTIMIZERS[name](params, weight_decay=0.1), losses)
    factor = 0.9 if name in ("SGDW", "AdamW") else 1 - 0.02 * 0.1
    assert torch.allclose(family.flat(params), factor * before, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_group_that_comes_later_and_one_that_is_frozen(name: str) -> None:
    model, losses = _regression()
    optimizer = OPTIMIZERS[name]([model.weight])
    bias = model.bias.detach().clone()
    family.advance(name, optimizer, losses, 2)
    assert torch.equal(model.bias, bias)
    optimizer.add_param_group({"params": [model.bias]})
    family.advance(name, optimizer, losses, 2)
    assert not torch.equal(model.bias, bias)
    model.weight.requires_grad_(False)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    model.weight.grad = None
    family.advance(name, optimizer, losses, 2)
    assert torch.equal(model.weight, weight) and not torch.equal(model.bias, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_in_low_precision_follows_float64(name: str, dtype: torch.dtype) -> None:
    if name.startswith("SAM second") and dtype != torch.float32:
        pytest.skip("refused for half precision")
    if dtype == torch.float16 and "Adam" in name:
        pytest.skip("Adam's eps is zero in float16")
    (low, low_losses), (high, losses) = _regression(dtype), _regression()
    for p, q in zip(low.parameters(), high.parameters(), strict=True):
        q.data.copy_(p)
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
    build = OPTIMIZERS[name]
    for model, kind in ((low, dtype), (high, torch.float64)):
        inputs = x.to(kind)
        family.advance(name, build(model.parameters()), lambda model=model,
                       inputs=inputs: model(inputs).square().sum(1).to(torch.float64), 5)
    gap = max(float((p - q).abs().max()) for p, q in zip(low.parameters(), high.parameters(), strict=True))
    assert gap < (1e-4 if dtype == torch.float32 else 0.1)
    assert low_losses().dtype == dtype and losses().dtype == torch.float64


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_changes_nothing_but_weights_and_state(name: str) -> None:
    params = family.parameters()
    optimizer = OPTIMIZERS[name](params)
    groups = copy.deepcopy([{k: v for k,
                             v in g.items() if k not in ("params", "updates")} for g in optimizer.param_groups])
    random, mode = torch.get_rng_state(), torch.is_grad_enabled()
    family.advance(name, optimizer, lambda: family.losses(family.flat(params)[None])[0], 3)
    assert [{k: v for k, v in g.items() if k not in ("params", "updates")} for g in optimizer.param_groups] == groups
    assert torch.equal(random, torch.get_rng_state()) and torch.is_grad_enabled() == mode
    assert all(p.requires_grad and p.is_leaf for p in params)


@pytest.mark.parametrize("where", ["first_step", "closure"])
@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_looksam_goes_on_where_its_direction_has_no_length(where: str, scale: float) -> None:
    """A linear loss has one gradient everywhere: nothing of the second is orthogonal to the first."""
    p = nn.Parameter(torch.zeros(1))
    optimizer = LookSAM(torch.optim.SGD([p], lr=0.1), rho=scale, k=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 3 * p.sum()
        loss.backward()
        return loss

    for _ in range(9):
        if where == "closure":
            optimizer.step(closure)
        else:
            closure(), optimizer.first_step(zero_grad=True), closure(), optimizer.second_step()
    assert float(p) == pytest.approx(-2.7, rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_default_dtype_makes_no_other_step(name: str) -> None:
    ends = []
    for dtype in (torch.float32, torch.float64):
        params = family.parameters(torch.float32)
        try:
            torch.set_default_dtype(dtype)
            optimizer = OPTIMIZERS[name](params)
            family.advance(name, optimizer, lambda params=params: family.losses(family.flat(params)[None],
                                                                                torch.float32)[0], 6)
        finally:
            torch.set_default_dtype(torch.float32)
        ends.append(family.flat(params).detach())
    assert ends[0].dtype == ends[1].dtype == torch.float32 and torch.allclose(*ends, rtol=0, atol=1e-6)


def test_no_private_name_of_pytorch_stands_in_the_package_but_foreach() -> None:
    private = re.compile(r"torch\._(?!foreach_)\w+|\._C\b|__code__|(?<!\w)_(?:amp|fused|global)_\w+")
    folder = Path(sharpnb.optim.__file__).parent
    found = {file.name: private.findall(file.read_text()) for file in folder.glob("*.py")}
    # a diagnosis, by sys.modules
    assert {name: hits for name, hits in found.items() if hits} == {"passes.py": ["torch._dynamo"]}
    assert private.findall("torch._C._set_grad_enabled, step.__code__, torch._fused_sgd_") != []
