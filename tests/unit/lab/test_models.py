import pytest
import torch
from torch import nn

from sharpnb.lab import models


def _count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("model", "parameters"), [
    (models.mlp((64, 64, 10)), 4810),
    (models.mlp((64, 24, 10)), 1810),
    (models.cnn(8), 1418),
    (models.resnet(20), 272_282),   # 0.27 M in He et al., Table 6, plus the 1x1 skips
    (models.resnet18(), 11_173_962 - 1792),  # the usual CIFAR variant has BatchNorm on its three 1x1 skips
    (models.wide_resnet(28, 10), 36_479_194),  # 36.5 M in Zagoruyko & Komodakis, Table 4
])
def test_sizes_are_those_of_the_families(model, parameters):
    assert _count(model) == parameters


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("build", [
    lambda **k: models.cnn(4, channels=3, **k), lambda **k: models.resnet(8, width=4, **k),
    lambda **k: models.resnet18(width=4, **k), lambda **k: models.wide_resnet(10, 1, **k),
])
def test_nets_run_with_and_without_batchnorm(build, norm):
    model = build(norm=norm, seed=1).eval()
    logits = model(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 10) and logits.isfinite().all()
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == norm


def test_the_seed_alone_decides_the_weights_and_the_global_state_stays():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = (nn.utils.parameters_to_vector(models.cnn(4, seed=s).parameters()) for s in (1, 1, 2))
    state_moved = not torch.equal(torch.rand(1), expected)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not state_moved


def test_the_signal_keeps_its_size_through_a_deep_net_without_batchnorm():
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for depth in (10, 40):
        features = models.wide_resnet(depth, 2, norm=False)[:-1](x)
        assert 0.05 < features.std() < 5


@pytest.mark.parametrize(("call", "words"), [
    (lambda: models.resnet(21), ["21", "20"]), (lambda: models.wide_resnet(20, 2), ["20", "16"]),
    (lambda: models.mlp((10,)), ["(10,)", "input and output"]),
    (lambda: models.mlp((4, 4), activation="swish"), ["swish", "relu"]),
])
def test_bad_input_is_told_what_is_allowed(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words)
