"""The written-out gradient of small chains against autograd, one model at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sharpnb.lab import models
from sharpnb.many.mlp import MLP
from sharpnb.many.net import BatchedNet

K, B = 3, 7
NETS = {
    "linear": models.mlp((9, 4)), "relu": models.mlp((9, 8, 4)), "tanh": models.mlp((9, 8, 5, 4), activation="tanh"),
    "norm": models.mlp((9, 8, 5, 4), norm=True),
    "norm once": nn.Sequential(nn.Linear(9, 6), nn.BatchNorm1d(6, eps=0.1), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(),
                               nn.Linear(5, 4)),
}


def _draw(model, probabilities):
    generator, n = torch.Generator().manual_seed(1), sum(p.numel() for p in model.parameters())
    w = torch.randn(K, n, generator=generator, dtype=torch.float64)
    x = torch.randn(K, B, 9, generator=generator, dtype=torch.float64)
    if probabilities:  # of any sum, as F.cross_entropy takes them
        return w, x, torch.rand(K, B, 4, generator=generator, dtype=torch.float64)
    return w, x, torch.randint(0, 4, (K, B), generator=generator)


def _by_autograd(model, w, x, y):
    logits, found, model = [], [], model.double()
    for row, images, targets in zip(w, x, y, strict=True):
        nn.utils.vector_to_parameters(row, model.parameters())
        logits.append(model(images))
        grads = torch.autograd.grad(F.cross_entropy(logits[-1], targets), list(model.parameters()))
        found.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(found), torch.stack(logits)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_its_gradient_and_logits_are_the_models_own(name, probabilities):
    mlp, (w, x, y) = MLP.of(NETS[name]), _draw(NETS[name], probabilities)
    net, (exact, logits) = BatchedNet(NETS[name], x.shape[2:]), _by_autograd(NETS[name], w, x, y)
    torch.testing.assert_close(mlp.gradient_and_logits(w, x, y)[0], exact, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(net.gradient_and_logits(w, x, y)[0], exact, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(net(w, x), logits, rtol=1e-12, atol=1e-14)
    assert (mlp.gradient_and_logits(1.01 * w, x, y)[0] - exact).abs().max() > 1e-5  # the comparison can fail


def _hooked():
    model = models.mlp((9, 8, 4))
    model[1].register_forward_hook(lambda *_: None)
    return model


SHARED = nn.Linear(9, 9)


@pytest.mark.parametrize("model", [
    models.cnn(2), models.mlp((9, 8, 4), activation="gelu"), _hooked(), nn.Sequential(SHARED, nn.ReLU(), SHARED),
    nn.Sequential(nn.Linear(9, 8, bias=False), nn.ReLU(), nn.Linear(8, 4)), nn.Sequential(), nn.Linear(9, 4),
    nn.Sequential(nn.Linear(9, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 4)),
    nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4)),
    nn.Sequential(nn.Linear(9, 4), nn.ReLU()),
])
def test_other_nets_are_left_to_autograd(model):
    assert MLP.of(model) is None
