import pytest
import torch
from torch import nn

from sharpnb.averaging import update_bn
from sharpnb.lab import load_data, models
from sharpnb.lab.training import evaluate
from sharpnb.many.net import BatchedNet, evaluate_many

DATA = load_data("digits", train_size=200)


def _flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("model", [
    models.mlp((64, 9, 7, 10), activation="tanh"), models.mlp((64, 9, 10), norm=True), models.cnn(3), models.cnn(3, norm=True),
    models.resnet(8, width=2, channels=1), models.wide_resnet(10, 1, channels=1, norm=False),
    nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.LayerNorm(6), nn.Linear(6, 10)),
])
def test_the_batched_forward_is_the_models_own(model):
    model = model.double()
    rows = torch.stack([_flat(model), 2 * _flat(model)])
    x = DATA.train_x[:12].double().view(2, 6, 1, 8, 8)
    out = BatchedNet(model, (1, 8, 8))(rows, x)
    assert torch.allclose(out[0], model(x[0]), atol=1e-12)
    nn.utils.vector_to_parameters(rows[1], model.parameters())
    assert torch.allclose(out[1], model(x[1]), atol=1e-12)


def test_many_are_evaluated_as_each_alone_also_where_the_last_block_is_smaller():
    model = models.cnn(3).double()
    x, y = DATA.train_x.double(), DATA.train_y
    rows = torch.stack([_flat(model), 3 * _flat(model)])
    found = evaluate_many(BatchedNet(model, (1, 8, 8)), rows, (x, y), at_once=60)
    for row, loss, error in zip(rows, *found, strict=True):
        nn.utils.vector_to_parameters(row, model.parameters())
        with torch.no_grad():
            alone = evaluate(model, (x, y))
        assert (loss, error) == pytest.approx(alone, rel=1e-12)
    assert found[0][0] != found[0][1]


class _MixesChannels(nn.Module):
    """A forward pass that the twins would get wrong, K models being channels: it must run by vmap."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()

    def forward(self, x):
        return self.last(self.norm(self.first(x)).softmax(1).mean((2, 3)))


def test_a_forward_pass_of_ones_own_is_never_silently_wrong():
    model = _MixesChannels(norm=False).double()
    rows, x = torch.stack([_flat(model), 2 * _flat(model)]), DATA.train_x[:12].double().view(2, 6, 1, 8, 8)
    out = BatchedNet(model, (1, 8, 8))(rows, x)
    assert torch.allclose(out[0], model(x[0]), atol=1e-12)
    with pytest.raises(ValueError, match=r"BatchNorm.*Conv2d"):
        BatchedNet(_MixesChannels(norm=True), (1, 8, 8))


def test_dropout_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"Dropout.*one model at a time"):
        BatchedNet(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(), nn.Linear(8, 10)), (1, 8, 8))


def test_dropout_rests_in_evaluation():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.9), nn.Linear(8, 10)).double().eval()
    rows, x = torch.stack([_flat(model), 2 * _flat(model)]), DATA.train_x[:6].double()
    out = BatchedNet(model, (1, 8, 8))(rows, x.expand(2, *x.shape), [])
    assert torch.allclose(out[0], model(x), atol=1e-12) and isinstance(model[2], nn.Dropout)


@pytest.mark.parametrize("which", [0, 1])
def test_fixed_statistics_are_kept_and_used_while_the_others_are_measured(which):
    model = models.cnn(2, norm=True).double()
    norms, x = [m for m in model if isinstance(m, nn.BatchNorm2d)], DATA.train_x[:50].double()
    kept = [(torch.full((m.num_features,), 0.3, dtype=torch.float64), torch.full((m.num_features,), 2.0, dtype=torch.float64)) for m in norms]
    net = BatchedNet(model, (1, 8, 8))
    assert net.norms == norms
    rows = torch.stack([_flat(model), 2 * _flat(model)])
    fixed = [tuple(t.repeat(2) for t in pair) if k == which else None for k, pair in enumerate(kept)]
    found = net.statistics(rows, [x[:30][None], x[30:][None]], fixed)
    for k, row in enumerate(rows):
        nn.utils.vector_to_parameters(row, model.parameters())
        norms[which].running_mean, norms[which].running_var = (t.clone() for t in kept[which])
        model.train()
        norms[which].eval()
        update_bn(model, [(x[:30], None), (x[30:], None)])
        for (mean, variance), norm in zip(found, norms, strict=True):
            assert torch.allclose(mean.view(2, -1)[k], norm.running_mean, atol=1e-12)
            assert torch.allclose(variance.view(2, -1)[k], norm.running_var, atol=1e-12)
    assert not torch.allclose(found[1][0], net.statistics(rows, [x[:30][None], x[30:][None]])[1][0], atol=1e-3)
    with pytest.raises(ValueError, match="one sample"):
        BatchedNet(models.mlp((64, 4, 10), norm=True), (64,)).statistics(torch.zeros(1, 64 * 4 + 4 + 8 + 50), [torch.zeros(1, 1, 64)])


def test_statistics_count_chunks_by_their_size_as_update_bn_does():
    model = models.cnn(2, norm=True).double()
    chunks = [x.double() for x in DATA.train_x.split(80)]
    torch.optim.swa_utils.update_bn(chunks, model)  # counts chunks alike, whatever their size
    net, row = BatchedNet(model, (1, 8, 8)), _flat(model)[None]
    (mean, _), _ = net.statistics(row, [x[None] for x in chunks[:2]])
    first = nn.functional.conv2d(torch.cat(chunks[:2]), model[0].weight, padding=1)
    assert torch.allclose(mean, first.mean((0, 2, 3)), atol=1e-12)
    (mean, _), _ = net.statistics(row, [x[None] for x in chunks])
    assert torch.allclose(mean, nn.functional.conv2d(torch.cat(chunks), model[0].weight, padding=1).mean((0, 2, 3)), atol=1e-12)
    assert not torch.allclose(mean, model[1].running_mean, atol=1e-6)  # 80, 80 and 40 images
    whole = net.statistics(row, [torch.cat(chunks)[None]])[0][1]
    assert torch.allclose(whole, nn.functional.conv2d(torch.cat(chunks), model[0].weight, padding=1).transpose(0, 1).flatten(1).var(1))


@pytest.mark.parametrize("head", [nn.AdaptiveAvgPool2d(1), nn.Identity()])
def test_gradients_of_images_lie_in_memory_as_the_images_do(head):
    seen = []
    features = 3 if isinstance(head, nn.AdaptiveAvgPool2d) else 108
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), head, nn.Flatten(), nn.Linear(features, 10))
    net = BatchedNet(model, (1, 8, 8))
    net._model[0][1].register_full_backward_hook(lambda _, grad_in, grad_out: seen.append(grad_out[0]))
    rows = torch.stack([_flat(model)] * 2).requires_grad_()
    net(rows, DATA.train_x[:10].view(2, 5, 1, 8, 8)).sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and not seen[0].is_contiguous()
