"""What the test suites of torch.optim.swa_utils and timm ask of averages, asked of ours.

The cases are theirs, written anew: averages of a network on all devices, checkpoints and pickles, a decay that warms
up, the BatchNorm pass over loaders. (SWALR is one of the schedulers that the optimizers' tests have.)
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from sharpnb.averaging import SWA

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def convolutional() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(5, momentum=0.3), nn.Conv2d(5, 2, 3), nn.ReLU(),
        nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 10))


def shake(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))


# -- swa_utils: averages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay, use_buffers", [(None, False), (0.9, False), (0.9, True), (0.999, False)])
@pytest.mark.parametrize("device", DEVICES)
def test_both_averages_are_those_of_averaged_model(device: str, decay: float | None, use_buffers: bool,
                                                   dtype: torch.dtype) -> None:
    """Also of the formula, in float64: theirs divides by a count in float32. (Its equal average of buffers fails.)"""
    model = convolutional().to(device, dtype)
    average = swa_utils.get_swa_multi_avg_fn() if decay is None else swa_utils.get_ema_multi_avg_fn(decay)
    theirs = swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=use_buffers)
    ours, rows = SWA(model, decay), []
    for _ in range(10):
        shake(model)
        model[3](torch.randn(4, 5, 2, 2, device=device, dtype=dtype))  # buffers move as well
        theirs.update_parameters(model)
        ours.update(model)
        rows.append([p.detach().clone().double() for p in model.parameters()])
    d = decay or 0.0
    shares = [0.1] * 10 if decay is None else [d**9, *((1 - d) * d ** (9 - i) for i in range(1, 10))]
    for a, p, *column in zip(ours.average.values(), theirs.module.parameters(), *rows, strict=True):
        exact = sum(share * row for share, row in zip(shares, column, strict=True))
        torch.testing.assert_close(a.double(), exact, rtol=1e-6 if dtype == torch.float32 else 1e-13,
                                   atol=1e-6 if dtype == torch.float32 else 1e-14)
        torch.testing.assert_close(a, p.detach(), rtol=1e-5, atol=1e-6)
        assert a.device.type == device and a.dtype == dtype
    assert ours.n == int(theirs.n_averaged) == 10
    buffers = copy.deepcopy(list(model.buffers()))
    with ours.average_weights():  # by design: buffers are the model's, or those of a pass over data
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))


def test_a_warm_up_of_the_decay_is_an_attribute() -> None:
    """timm's: d = min(0.99, (1 + n) / (10 + n)) at collection n."""
    model = nn.Linear(2, 2, bias=False)
    swa, truth = SWA(model, decay=0.0), torch.zeros(2, 2)
    for n in range(30):
        nn.init.constant_(model.weight, float(n))
        swa.decay = min(0.99, (1 + n) / (10 + n))
        truth = truth * swa.decay + (1 - swa.decay) * n if n else torch.zeros(2, 2)
        swa.update()
    torch.testing.assert_close(swa.average["weight"], truth)


def test_it_is_pickled_and_copied_with_its_model() -> None:
    model = convolutional()
    swa = SWA(model, decay=0.9)
    swa.update(), shake(model), swa.update()
    for other in (pickle.loads(pickle.dumps(swa)), copy.deepcopy(swa)):
        with other.average_weights() as averaged:
            assert averaged is other.model and averaged is not model
            assert torch.equal(nn.utils.parameters_to_vector(averaged.parameters()).detach(), swa.vector())


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_of_averaged_model_is_continued(decay: float | None, dtype: torch.dtype) -> None:
    model = convolutional().to(dtype)
    average = swa_utils.get_swa_multi_avg_fn() if decay is None else swa_utils.get_ema_multi_avg_fn(decay)
    theirs = swa_utils.AveragedModel(model, multi_avg_fn=average)
    for _ in range(3):
        shake(model), theirs.update_parameters(model)
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    ours = SWA(model, decay)
    ours.load_state_dict(torch.load(file, weights_only=True))
    assert ours.n == 3 and not ours.statistics and all(a.dtype == torch.float32 for a in ours.average.values())
    assert torch.equal(ours.vector(), nn.utils.parameters_to_vector(theirs.parameters()).detach().float())
    shake(model), theirs.update_parameters(model), ours.update(model)
    torch.testing.assert_close(ours.vector().to(dtype), nn.utils.parameters_to_vector(theirs.parameters()).detach(),
                               rtol=2e-2, atol=2e-2)
    before = ours.vector()
    for wrong in (
        swa_utils.AveragedModel(nn.Linear(2, 2)).state_dict(), {"n": 1, "decay": None, "average": {}, "statistics": {}},
    ):
        with pytest.raises(ValueError, match="load_state_dict: "):
            ours.load_state_dict(wrong)
        assert torch.equal(ours.vector(), before) and ours.n == 4


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel, lambda model: torch.compile(model,
                                                                                                    backend="eager")])
def test_a_checkpoint_of_averaged_model_with_tied_weights_inside_a_wrapper(wrap: Callable[[nn.Module], Any]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    theirs = swa_utils.AveragedModel(wrap(model))
    theirs.update_parameters(model)
    ours = SWA(model)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.average) == [name for name, _ in model.named_parameters()]
    assert torch.equal(ours.vector(), nn.utils.parameters_to_vector(model.parameters()).detach())


# -- swa_utils: the BatchNorm pass ------------------------------------------------------------------------------------
