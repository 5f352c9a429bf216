"""What the test suites of torch.optim.swa_utils and timm ask of averages, asked of ours.

The cases are theirs, written anew: checkpoints and pickles, a decay that warms up. (SWALR is one of the schedulers that
the optimizers' tests have.)
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


def convolutional() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(5, momentum=0.3), nn.Conv2d(5, 2, 3), nn.ReLU(),
        nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 10))


def shake(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))


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
