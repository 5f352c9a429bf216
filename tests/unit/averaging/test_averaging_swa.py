"""SWA and the BatchNorm pass against arithmetic means, NumPy moments, and torch.optim.swa_utils where that is right."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from sharpnb.averaging import SWA, update_bn

X = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)).to(dtype)


def flat(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def collected(swa: SWA, model: nn.Module, count: int) -> list[torch.Tensor]:
    rows = []
    for seed in range(count):
        model.load_state_dict(net(seed).to(next(model.parameters()).dtype).state_dict())
        swa.update(model)
        rows.append(flat(model))
    return rows


def test_the_equal_average_is_the_mean_and_torchs():
    model = net()
    swa, theirs = SWA(model), swa_utils.AveragedModel(model)
    rows = []
    for seed in range(7):
        model.load_state_dict(net(seed).state_dict())
        swa.update(model)
        theirs.update_parameters(model)
        rows.append(flat(model))
    torch.testing.assert_close(swa.vector(), torch.stack(rows).mean(0), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(swa.vector(), flat(theirs.module), rtol=1e-13, atol=1e-15)
    assert (swa.vector() - rows[-1]).abs().max() > 0.1


def test_swapping_in_leaves_training_exactly_as_it_was():
    model = net()
    swa = SWA(model)
    rows = collected(swa, model, 3)
    swa.update_bn(X.split(16))
    before = copy.deepcopy(model.state_dict())
    pointers = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(KeyError), swa.average_weights():
        torch.testing.assert_close(flat(model), torch.stack(rows).mean(0))
        with pytest.raises(RuntimeError, match="inside average_weights"):
            swa.update()
        raise KeyError("whatever happens inside")
    assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert not torch.equal(swa.statistics["1.running_mean"], before["1.running_mean"])


class Holder(nn.Module):
    """A module of its own that is called ``module``, beside a weight of the same last name."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.module, self.weight = net(seed)[0], nn.Parameter(torch.full((2, 2), float(seed), dtype=torch.float64))


WRAPS = [lambda model: model, nn.DataParallel, lambda model: torch.compile(model, backend="eager"),
         lambda model: torch.compile(nn.DataParallel(model), backend="eager")]


@pytest.mark.parametrize("wrap", [*WRAPS, lambda model: swa_utils.AveragedModel(model).module])
def test_a_model_with_a_module_called_module_keeps_its_names_apart(wrap):
    swa = SWA(Holder(0))
    swa.update(wrap(Holder(1)))
    swa.update(wrap(Holder(2)))
    assert set(swa.average) == {"module.weight", "module.bias", "weight"}
    assert (swa.average["weight"] == 1.5).all()
    torch.testing.assert_close(swa.average["module.weight"], (net(1)[0].weight + net(2)[0].weight).detach() / 2)


def test_misuse_is_named():
    model = net()
    with pytest.raises(RuntimeError, match="no average yet"), SWA(model).average_weights():
        pass
    swa = SWA(model)
    swa.update()
    with pytest.raises(ValueError, match="differ in"):
        swa.update(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="weight of shape"):
        SWA(nn.Sequential(nn.Linear(7, 7))).load_state_dict(swa.state_dict())
    with swa.average_weights(), pytest.raises(RuntimeError, match="inside average_weights"):
        swa.load_state_dict(swa.state_dict())
    for decay in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"decay = {decay}"):
            SWA(model, decay=decay)


# -- what the suites of torch.optim.swa_utils and timm ask, and AveragedModel's checkpoints ----------------------------


def shake(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))


def test_a_warm_up_of_the_decay_is_an_attribute():
    """timm's: d = min(0.99, (1 + n) / (10 + n)) at collection n."""
    model = nn.Linear(2, 2, bias=False)
    swa, truth = SWA(model, decay=0.0), torch.zeros(2, 2)
    for n in range(30):
        nn.init.constant_(model.weight, float(n))
        swa.decay = min(0.99, (1 + n) / (10 + n))
        truth = truth * swa.decay + (1 - swa.decay) * n if n else torch.zeros(2, 2)
        swa.update()
    torch.testing.assert_close(swa.average["weight"], truth)


def test_it_is_pickled_and_copied_with_its_model():
    model = net(dtype=torch.float32)
    swa = SWA(model, decay=0.9)
    swa.update(), shake(model), swa.update()
    for other in (pickle.loads(pickle.dumps(swa)), copy.deepcopy(swa)):
        with other.average_weights() as averaged:
            assert averaged is other.model and averaged is not model
            assert torch.equal(flat(averaged), swa.vector())


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_of_averaged_model_is_continued(decay, dtype):
    model = net(dtype=dtype)
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
    assert torch.equal(ours.vector(), flat(theirs).float())
    shake(model), theirs.update_parameters(model), ours.update(model)
    torch.testing.assert_close(ours.vector().to(dtype), flat(theirs), rtol=2e-2, atol=2e-2)
    before = ours.vector()
    for wrong in (
        swa_utils.AveragedModel(nn.Linear(2, 2)).state_dict(), {"n": 1, "decay": None, "average": {}, "statistics": {}},
    ):
        with pytest.raises(ValueError, match="load_state_dict: "):
            ours.load_state_dict(wrong)
        assert torch.equal(ours.vector(), before) and ours.n == 4


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_checkpoint_of_averaged_model_with_tied_weights_inside_a_wrapper(wrap):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    theirs = swa_utils.AveragedModel(wrap(model))
    theirs.update_parameters(model)
    ours = SWA(model)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.average) == [name for name, _ in model.named_parameters()]
    assert torch.equal(ours.vector(), flat(model))


# -- BatchNorm --------------------------------------------------------------------------------------------------------


def test_bn_statistics_are_weighted_by_batch_size():
    model = net()
    model[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
    seen: list[np.ndarray] = []
    update_bn(model, [X[:40], X[40:]])
    mean = (40 * seen[0].mean(0) + 10 * seen[1].mean(0)) / 50
    var = (40 * seen[0].var(0, ddof=1) + 10 * seen[1].var(0, ddof=1)) / 50
    np.testing.assert_allclose(model[1].running_mean.numpy(), mean, rtol=1e-13)
    np.testing.assert_allclose(model[1].running_var.numpy(), var, rtol=1e-13)
    np.testing.assert_allclose(model[1].running_mean.numpy(), np.concatenate(seen).mean(0), rtol=1e-12)
    theirs = net()  # torch weighs the two batches equally
    swa_utils.update_bn([X[:40], X[40:]], theirs)
    assert (theirs[1].running_mean - model[1].running_mean).abs().max() > 1e-3


def test_with_equal_batches_it_is_torchs():
    ours, theirs = net(), net()
    theirs[3].eval()
    ours[3].p = theirs[3].p = 0.0
    update_bn(ours, X.split(10))
    swa_utils.update_bn(X.split(10), theirs)
    torch.testing.assert_close(ours[1].running_mean, theirs[1].running_mean, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(ours[1].running_var, theirs[1].running_var, rtol=1e-13, atol=1e-15)


def test_modes_momenta_and_random_state_are_put_back():
    model = net()
    model[3].eval()
    model[1].momentum = 0.3
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    update_bn(model, [(X, None)])
    assert [m.training for m in model.modules()] == modes and model[1].momentum == 0.3
    assert torch.equal(torch.get_rng_state(), random)
    model.eval()
    update_bn(model, (X, torch.zeros(50).long()))  # a net in evaluation mode as a whole has no frozen layers
    assert not model[1].training and not torch.equal(model[1].running_mean, torch.zeros(4, dtype=torch.float64))


def test_a_frozen_layer_keeps_its_statistics():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).double()
    model[0].eval()
    before = copy.deepcopy(model[0].state_dict())
    update_bn(model, X.split(25))
    assert all(torch.equal(value, before[name]) for name, value in model[0].state_dict().items())
    torch.testing.assert_close(model[1].running_mean * (1 + 1e-5) ** 0.5, X.mean(0), rtol=1e-9, atol=1e-12)
    assert model[1].num_batches_tracked == 2
    assert not model[0].training and model[1].training


def test_batches_of_other_kinds_and_none():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.norm = nn.Parameter(torch.ones(1, dtype=torch.float64)), nn.BatchNorm1d(3).double()

        def forward(self, a, b):
            return self.norm(self.scale * (a + b))

    model = Two()
    update_bn(model, [{"a": X, "b": X}], call=lambda m, batch: m(**batch))
    torch.testing.assert_close(model.norm.running_mean, 2 * X.mean(0))
    with pytest.raises(ValueError, match="no batch"):
        update_bn(model, iter(()))
    torch.testing.assert_close(model.norm.running_mean, 2 * X.mean(0))  # what was there before is untouched
    with pytest.raises(ValueError, match="is a tensor of shape"):
        update_bn(net(), X)
    bare = nn.BatchNorm1d(3, affine=False).double()  # no parameter at all
    update_bn(bare, X.split(25))
    torch.testing.assert_close(bare.running_mean, X.mean(0))
    update_bn(nn.Linear(3, 1), [])  # without BatchNorm there is nothing to do


def test_swa_has_statistics_of_its_own():
    model = net()
    swa = SWA(model)
    collected(swa, model, 3)
    model[1].running_mean.fill_(7.0)
    swa.update_bn(X.split(16))
    assert (model[1].running_mean == 7.0).all()
    reference = net()
    nn.utils.vector_to_parameters(swa.vector(), reference.parameters())
    update_bn(reference, X.split(16))
    with swa.average_weights() as averaged:
        torch.testing.assert_close(averaged.eval()(X), reference.eval()(X), rtol=1e-12, atol=1e-13)
    swa.update(net(5))
    assert swa.statistics == {}  # a new average has none yet


class TimeFirst(nn.Module):
    """(T, B, F) in; BatchNorm over all steps, and over the last one."""

    def __init__(self):
        super().__init__()
        self.steps, self.last = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()

    def forward(self, x, names=None):
        return self.last(self.steps(x.flatten(0, 1)).view_as(x)[-1])


SEQUENCES = torch.randn(6, 13, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("batches", [
    [(SEQUENCES[:, :10],), (SEQUENCES[:, 10:],)], [(SEQUENCES[:, :10], None), (SEQUENCES[:, 10:], None)],
    [{"x": SEQUENCES[:, :10], "names": ["a"] * 10}, {"names": ["b"] * 3, "x": SEQUENCES[:, 10:]}],
])
def test_the_layer_knows_what_it_averages_wherever_the_samples_lie(batches):
    cut, whole = TimeFirst(), TimeFirst()
    update_bn(cut, batches)
    update_bn(whole, [SEQUENCES])
    torch.testing.assert_close(cut.steps.running_mean, SEQUENCES.mean((0, 1)), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(cut.steps.running_mean, whole.steps.running_mean, rtol=1e-12, atol=1e-14)
    given = TimeFirst()
    update_bn(given, batches, count=[10, 3])
    assert all(torch.equal(a, b) for a, b in zip(given.buffers(), cut.buffers(), strict=True))
    update_bn(given, batches, count=lambda batch: 1)
    parts = [SEQUENCES[:, :10].mean((0, 1)), SEQUENCES[:, 10:].mean((0, 1))]
    torch.testing.assert_close(given.steps.running_mean, (parts[0] + parts[1]) / 2)


@pytest.mark.parametrize("pair", [(X, X * 10 + 50), (X, torch.zeros(50, 1)), [X, torch.zeros(50).long()], (X, None)])
def test_a_pair_itself_is_one_batch_whatever_its_target(pair):
    model = nn.BatchNorm1d(3).double()
    update_bn(model, pair)
    torch.testing.assert_close(model.running_mean, X.mean(0))
    with pytest.raises(ValueError, match=r"two batches of inputs\?.*count="):
        update_bn(model, [X, X * 10 + 50])
    torch.testing.assert_close(model.running_mean, X.mean(0))


@pytest.mark.parametrize("count", [[4, 1, 2], lambda x: x.shape[2], lambda x: 3 * x.shape[2]])
def test_count_weighs_batches_of_swa_as_of_update_bn(count):
    """BatchNorm over (samples, channels, length): by the lengths, whatever a padded layer counts itself."""
    model, batches = nn.Sequential(nn.BatchNorm1d(3)), [torch.randn(2, 3, length) * length for length in (4, 1, 2)]
    average = SWA(model)
    average.update()
    average.update_bn(batches, count=count)
    weights = torch.tensor([4.0, 1.0, 2.0]) / 7
    variances = [batch.transpose(0, 1).flatten(1).var(1) for batch in batches]
    truth = sum(w * v for w, v in zip(weights, variances, strict=True))
    torch.testing.assert_close(average.statistics["0.running_var"], truth, rtol=1e-5, atol=1e-6)
    even = SWA(model)
    even.update()
    even.update_bn(batches, count=1)
    assert (even.statistics["0.running_var"] - truth).abs().max() > 0.1
