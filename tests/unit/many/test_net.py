import pytest
import torch
from torch import nn

from sharpnb.averaging import update_bn
from sharpnb.lab import load_data, models
from sharpnb.lab.training import evaluate
from sharpnb.many.net import BatchedNet, evaluate_many

DATA = load_data("digits", train_size=200, dtype=torch.float64)
X, SHAPE = DATA.train_x, (1, 8, 8)


class _MixesChannels(nn.Module):
    """A forward pass that the twins would get wrong, K models being channels: it must run by vmap."""

    def __init__(self, norm=False):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()

    def forward(self, x):
        return self.last(self.norm(self.first(x)).softmax(1).mean((2, 3)))


def rows_of(model):
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    return torch.stack([flat, 2 * flat])


def alone(model, rows):
    """Give the model one row after the other."""
    for row in rows:
        nn.utils.vector_to_parameters(row, model.parameters())
        yield model


@pytest.mark.parametrize("model", [
    models.mlp((64, 9, 7, 10), activation="tanh"), models.mlp((64, 9, 10), norm=True), models.cnn(3),
    models.cnn(3, norm=True), models.resnet(8, width=2, channels=1), models.wide_resnet(10, 1, channels=1, norm=False),
    nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.LayerNorm(6), nn.Linear(6, 10)), _MixesChannels(),
])
def test_the_batched_forward_is_the_models_own(model):
    rows, x = rows_of(model.double()), X[:12].view(2, 6, *SHAPE)
    out = BatchedNet(model, SHAPE)(rows, x)
    for k, each in enumerate(alone(model, rows)):
        assert torch.allclose(out[k], each(x[k]), atol=1e-12)


def test_many_are_evaluated_as_each_alone_also_where_the_last_block_is_smaller():
    model = models.cnn(3).double()
    rows = rows_of(model)
    found = evaluate_many(BatchedNet(model, SHAPE), rows, DATA.train, at_once=60)
    for each, loss, error in zip(alone(model, rows), *found, strict=True):
        with torch.no_grad():
            assert (loss, error) == pytest.approx(evaluate(each, DATA.train), rel=1e-12)
    assert found[0][0] != found[0][1]


def test_what_cannot_be_many_at_a_time_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"BatchNorm.*Conv2d"):
        BatchedNet(_MixesChannels(norm=True), SHAPE)
    dropout = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.9), nn.Linear(8, 10)).double()
    with pytest.raises(ValueError, match=r"Dropout.*one model at a time"):
        BatchedNet(dropout, SHAPE)
    rows, x = rows_of(dropout.eval()), X[:6]  # in evaluation it rests
    out = BatchedNet(dropout, SHAPE)(rows, x.expand(2, *x.shape), [])
    assert torch.allclose(out[0], dropout(x), atol=1e-12) and isinstance(dropout[2], nn.Dropout)
    norm = models.mlp((64, 4, 10), norm=True).double()
    for call in (lambda net: net.statistics(rows_of(norm), [X[:1].flatten(1)[None]]),
                 lambda net: net.gradient_and_logits(rows_of(norm), X[:2].view(2, 1, 64), torch.zeros(2, 1).long())):
        with pytest.raises(ValueError, match="Use batches of two or more"):
            call(BatchedNet(norm, (64,)))


@pytest.mark.parametrize("which", [0, 1, None])
def test_statistics_are_update_bns_and_fixed_ones_are_kept_and_used(which):
    model, chunks = models.cnn(2, norm=True).double(), [X[:30], X[30:50]]  # that count by their sizes
    norms, rows = [m for m in model if isinstance(m, nn.BatchNorm2d)], rows_of(model)
    kept = [(torch.full_like(m.running_mean, 0.3), torch.full_like(m.running_var, 2.0)) for m in norms]
    net = BatchedNet(model, SHAPE)
    assert net.norms == norms
    fixed = [tuple(t.repeat(2) for t in pair) if k == which else None for k, pair in enumerate(kept)]
    found = net.statistics(rows, [x[None] for x in chunks], fixed)
    for k, each in enumerate(alone(model, rows)):
        each.train()
        if which is not None:
            norms[which].running_mean, norms[which].running_var = (t.clone() for t in kept[which])
            norms[which].eval()
        update_bn(each, [(x, None) for x in chunks])
        for (mean, variance), norm in zip(found, norms, strict=True):
            assert torch.allclose(mean.view(2, -1)[k], norm.running_mean, atol=1e-12)
            assert torch.allclose(variance.view(2, -1)[k], norm.running_var, atol=1e-12)
    free = net.statistics(rows, [x[None] for x in chunks])
    assert torch.allclose(found[1][0], free[1][0], atol=1e-3) is (which is None)
