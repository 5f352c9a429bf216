"""The written-out gradient of small chains against autograd, one model at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sharpnb.lab import models
from sharpnb.many.mlp import MLP
from sharpnb.many.net import BatchedNet

K, B = 3, 7


def _norm_once():
    return nn.Sequential(nn.Linear(9, 6), nn.BatchNorm1d(6, eps=0.1), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


NETS = {
    "linear": models.mlp((9, 4)), "relu": models.mlp((9, 8, 4)), "tanh": models.mlp((9, 8, 5, 4), activation="tanh"),
    "norm": models.mlp((9, 8, 5, 4), norm=True), "norm once": _norm_once(),
    "no flatten": nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4)),
}


def _draw(model, probabilities):
    generator = torch.Generator().manual_seed(1)
    n = sum(p.numel() for p in model.parameters())
    w = torch.randn(K, n, generator=generator, dtype=torch.float64)
    x = torch.randn(K, B, 9, generator=generator, dtype=torch.float64)
    if probabilities:
        return w, x, torch.rand(K, B, 4, generator=generator, dtype=torch.float64)  # of any sum, as F.cross_entropy takes them
    return w, x, torch.randint(0, 4, (K, B), generator=generator)


def _by_autograd(model, w, x, y):
    found, model = [], model.double()
    for row, images, targets in zip(w, x, y, strict=True):
        nn.utils.vector_to_parameters(row, model.parameters())
        loss = F.cross_entropy(model(images), targets)
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(found)


@pytest.mark.parametrize("name", NETS)
def test_its_logits_are_the_models(name):
    w, x, _ = _draw(NETS[name], False)
    model = NETS[name].double()
    for row, images, found in zip(w, x, BatchedNet(model, x.shape[2:])(w, x), strict=True):
        nn.utils.vector_to_parameters(row, model.parameters())
        torch.testing.assert_close(found, model(images), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_it_is_autograds_gradient(name, probabilities):
    mlp, drawn = MLP.of(NETS[name]), _draw(NETS[name], probabilities)
    net, exact = BatchedNet(NETS[name], drawn[1].shape[2:]), _by_autograd(NETS[name], *drawn)
    torch.testing.assert_close(mlp.gradient_and_logits(*drawn)[0], exact, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(net.gradient_and_logits(*drawn)[0], exact, rtol=1e-12, atol=1e-14)
    w, x, y = drawn
    assert (mlp.gradient_and_logits(1.01 * w, x, y)[0] - exact).abs().max() > 1e-5  # the comparison can fail


def test_a_row_that_has_left_the_finite_numbers_stays_alone():
    model = NETS["relu"]
    w, x, y = _draw(model, False)
    exact = MLP.of(model).gradient_and_logits(w, x, y)[0]
    w[1] = float("nan")
    found = MLP.of(model).gradient_and_logits(w, x, y)[0]
    assert found[1].isnan().any() and torch.equal(found[[0, 2]], exact[[0, 2]])


def test_one_image_has_no_variance():
    w, x, y = _draw(NETS["norm"], False)
    with pytest.raises(ValueError, match="two or more"):
        MLP.of(NETS["norm"]).gradient_and_logits(w, x[:, :1], y[:, :1])[0]


def _hooked():
    model = models.mlp((9, 8, 4))
    model[1].register_forward_hook(lambda *_: None)
    return model


def _shared():
    layer = nn.Linear(9, 9)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize("model", [
    models.cnn(2), models.mlp((9, 8, 4), activation="gelu"), _hooked(), _shared(),
    nn.Sequential(nn.Linear(9, 8, bias=False), nn.ReLU(), nn.Linear(8, 4)), nn.Sequential(nn.ReLU(), nn.Linear(9, 4)),
    nn.Sequential(nn.Linear(9, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 4)),
    nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4)), nn.Sequential(nn.Linear(9, 4), nn.ReLU()), nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 4)), nn.Sequential(), nn.Linear(9, 4),
])
def test_other_nets_are_left_to_autograd(model):
    assert MLP.of(model) is None
