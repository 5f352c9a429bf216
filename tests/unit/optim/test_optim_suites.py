"""What PyTorch, timm and pytorch_optimizer test of every optimizer of theirs, asked of every one of ours.

The schedulers, checkpoints, hooks, dtypes, trainers and averages that those suites ask for have files of their own.
What differs by design stands in one table, "What differs", in ARCHITECTURE.md.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import family
import pytest
import torch
from torch import Tensor, nn

import sharpnb.optim
from sharpnb.optim import LookSAM

OPTIMIZERS = family.OPTIMIZERS


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_gradients_a_step_is_no_step(name: str) -> None:
    optimizer = OPTIMIZERS[name](params := family.parameters())
    before = family.flat(params).detach().clone()
    nothing = torch.zeros(3, requires_grad=True) if name.startswith("ESAM") else torch.tensor(0.0)
    optimizer.step(*([lambda: nothing] if hasattr(optimizer, "first_step") else []))
    assert torch.equal(family.flat(params), before)


def test_losses_that_lead_to_no_weight_are_no_step_of_esam_in_silence() -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):
        OPTIMIZERS["ESAM"](family.parameters()).step(lambda: torch.zeros(3))


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
