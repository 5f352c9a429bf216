"""Products against dense truth, and a model that is afterwards exactly what it was."""

import copy
import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from conftest import Residual, assert_close, dense_hessian, images, mlp
from sharpnb.curvature import FisherOperator, GGNOperator, HessianOperator, average_sharpness, sharpness, trace

F = nn.functional


def test_products_and_dense_matrix_are_the_dense_hessian(case):
    op = HessianOperator(case.model, case.loss, (case.x, case.y))
    assert_close(op.to_dense(), case.dense)
    block = torch.randn(op.n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = op.products
    assert_close(op @ block, case.dense @ block)
    assert_close(op @ block[:, 0], case.dense @ block[:, 0])
    assert op.products == before + 4
    assert (op.shape, op.dtype, op.device) == ((op.n, op.n), torch.float64, torch.device("cpu"))


@pytest.mark.parametrize("cut", [[60], [25, 25, 10], [1, 59]])
@pytest.mark.parametrize("memory", [0, 1e9])
def test_how_the_data_is_cut_changes_nothing(mlp_case, cut, memory):
    batches = list(zip(mlp_case.x.split(cut), mlp_case.y.split(cut), strict=True))
    assert_close(HessianOperator(mlp_case.model, mlp_case.loss, batches, memory=memory).to_dense(), mlp_case.dense)
    added = partial(F.cross_entropy, reduction="sum")
    summed = HessianOperator(mlp_case.model, added, batches, reduction="sum")
    assert_close(summed.to_dense() / 60, mlp_case.dense)


def test_blocks_by_name_pattern_module_and_parameter(mlp_case):
    model, data = mlp_case.model, (mlp_case.x, mlp_case.y)
    sizes = [p.numel() for p in model.parameters()]
    own = slice(sizes[0] + sizes[1], sum(sizes[:4]))
    for params in ("3", "3.*", ["3.weight", "3.bias"], model[3], [model[3].weight, model[3].bias]):
        assert_close(HessianOperator(model, mlp_case.loss, data, params).to_dense(), mlp_case.dense[own, own])
    with pytest.raises(ValueError, match=r"'layer9' matches no parameter.*1\.weight"):
        HessianOperator(model, mlp_case.loss, data, ["3", "layer9"])
    with pytest.raises(ValueError, match="params is empty"):
        HessianOperator(model, mlp_case.loss, data, [])


def test_frozen_unused_and_tied_parameters():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.frozen, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(2, 2)
            self.b = nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.gain = nn.Parameter(torch.tensor(0.7))
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.gain * self.b(torch.tanh(self.frozen(torch.tanh(self.a(x)))))

    torch.manual_seed(0)
    model, x, y = Odd().double(), torch.randn(20, 4).double(), torch.randint(0, 4, (20,))
    op = HessianOperator(model, F.cross_entropy, (x, y))
    assert op.names == ["gain", "a.weight", "a.bias", "unused.weight", "unused.bias", "b.bias"]
    dense = op.to_dense()
    assert not dense[21:27].any() and dense[:21, :21].any()
    v = torch.randn(op.n, dtype=torch.float64)
    assert_close(HessianOperator(model, F.cross_entropy, (x, y), method="finite_difference") @ v, op @ v, 1e-6)
    frozen = HessianOperator(model, F.cross_entropy, (x, y), "frozen.*")
    assert frozen.to_dense().any() and frozen.n == 20
    assert not any(p.requires_grad for p in model.frozen.parameters())
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        HessianOperator(model, F.cross_entropy, (x, y))


@pytest.mark.parametrize("operator", [HessianOperator, GGNOperator])
def test_a_linear_loss_has_no_curvature(operator):
    op = operator(nn.Linear(3, 1), lambda out, t: out.mean(), (torch.randn(5, 3), torch.zeros(5)))
    assert not op.to_dense().any()
    assert trace(op).value == 0 and trace(op).stderr == 0


# ---- modes and state ------------------------------------------------------------------------------------------------


def snapshot(model):
    return (
        copy.deepcopy(model.state_dict()), [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()], [id(b) for b in model.buffers()],
        [getattr(m, "track_running_stats", None) for m in model.modules()],
        torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), torch.get_default_dtype(),
    )


def same(a, b):
    if isinstance(a, dict):
        return all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(np.all(a == b))


@pytest.mark.parametrize("mode", ["eval", "batch_stats", "as_is"])
@pytest.mark.parametrize("fails", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_left_as_it_was_found(mode, fails):
    torch.manual_seed(0)
    model, (x, y), calls = Residual().double().train(), images(20), []
    model.second.requires_grad_(False)
    model.head.eval()
    model.first.weight.grad = torch.ones_like(model.first.weight)

    def loss(output, target):
        calls.append(torch.rand(1) + np.random.rand() + random.random())
        if fails and len(calls) > 3:
            raise fails("in the middle")
        return F.cross_entropy(output, target)

    before = snapshot(model)
    try:
        op = HessianOperator(model, loss, [(x[:9], y[:9]), (x[9:], y[9:])], None if fails else "*", mode=mode, memory=0)
        op @ torch.randn(op.n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    except (RuntimeError, KeyboardInterrupt) as error:
        assert fails and isinstance(error, fails)
    assert len(calls) >= 4
    assert same(before, snapshot(model))
    with torch.no_grad():
        model.first.bias.add_(1)
    assert not same(before, snapshot(model)), "negative control"


class WrittenOut(nn.Module):
    """BatchNorm by hand: PyTorch's own forward-over-reverse Hessian of it is not even symmetric (torch 2.15)."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x):
        centred = x - x.mean((0, 2, 3), keepdim=True)
        scaled = centred / (centred.square().mean((0, 2, 3), keepdim=True) + self.eps).sqrt()
        return scaled * self.weight[:, None, None] + self.bias[:, None, None]


def test_batch_statistics_are_another_operator():
    torch.manual_seed(0)
    model, (x, y) = Residual().double(), images(12)
    by_batch = HessianOperator(model, F.cross_entropy, (x, y), mode="batch_stats").to_dense()
    manual = copy.deepcopy(model)
    manual.norm = WrittenOut(model.norm)
    assert_close(by_batch, HessianOperator(manual, F.cross_entropy, (x, y)).to_dense())
    assert not torch.allclose(HessianOperator(model, F.cross_entropy, (x, y)).to_dense(), by_batch, rtol=0.1)
    with pytest.raises(ValueError, match=r"'training'.*'batch_stats'"):
        HessianOperator(model, F.cross_entropy, (x, y), mode="training")


def test_randomness_is_refused_and_its_cause_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Dropout(0.5), nn.Linear(8, 4)).double().train()
    data = images(20)
    for measure in (HessianOperator, partial(sharpness, rho=0.1), partial(average_sharpness, rho=0.1)):
        with pytest.raises(ValueError, match="dropout is active in 2"):
            measure(model, F.cross_entropy, data, mode="as_is")
    HessianOperator(model, F.cross_entropy, data, mode="eval")
    with pytest.raises(ValueError, match="no Dropout layer"):
        HessianOperator(model, lambda o, t: F.cross_entropy(F.dropout(o, 0.5), t), data)


class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, i):
        return torch.randn(1, 6, 6).double(), i % 4


def test_random_loaders_are_named():
    model, (x, y) = mlp().double(), images(20)
    shuffled = partial(DataLoader, TensorDataset(x, y), 8, shuffle=True)
    with pytest.raises(ValueError, match="shuffling"):
        HessianOperator(model, F.cross_entropy, shuffled(), hold=False)
    with pytest.raises(ValueError, match="augmentation"):
        HessianOperator(model, F.cross_entropy, DataLoader(Noisy(), 8), hold=False)
    with pytest.warns(UserWarning, match="augmentation"):
        HessianOperator(model, F.cross_entropy, DataLoader(Noisy(), 8))
    with pytest.warns(UserWarning, match="shuffling"):
        HessianOperator(model, F.cross_entropy, shuffled(drop_last=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a shuffled pass over everything is the same sum
        HessianOperator(model, F.cross_entropy, shuffled())


def test_weights_next_to_nothing_are_no_reason_for_differences(mlp_case):
    model = copy.deepcopy(mlp_case.model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e-10)
    op = HessianOperator(model, mlp_case.loss, (mlp_case.x, mlp_case.y))
    assert_close(op.to_dense(), dense_hessian(model, mlp_case.loss, mlp_case.x, mlp_case.y))
    assert op.method == "auto"


def test_a_changed_network_empties_the_cache(mlp_case):
    model = copy.deepcopy(mlp_case.model)
    op = HessianOperator(model, mlp_case.loss, (mlp_case.x, mlp_case.y))
    v = torch.randn(op.n, dtype=torch.float64)
    old = op @ v
    with torch.no_grad():
        model[1].weight.mul_(1.5)
    new = op @ v
    assert_close(new, dense_hessian(model, mlp_case.loss, mlp_case.x, mlp_case.y) @ v)
    assert not torch.allclose(old, new)
    model[1].weight.data = mlp_case.model[1].weight.data.clone()
    assert_close(op @ v, old)
    model.append(nn.BatchNorm1d(4).double())
    op = HessianOperator(model.train(), mlp_case.loss, (mlp_case.x, mlp_case.y), mode="as_is")
    assert not torch.allclose(op @ torch.ones(op.n).double(), model.eval() and op @ torch.ones(op.n).double())
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    for call in (lambda: op @ torch.ones(op.n), op.gradient):
        with pytest.raises(ValueError, match="other parameters"):
            call()


# ---- Gauss-Newton and Fisher ----------------------------------------------------------------------------------------


def jacobian(model, x):
    params, out = list(model.parameters()), model(x)
    grads = [torch.autograd.grad(o, params, retain_graph=True) for o in out.reshape(-1)]
    return out.detach(), torch.stack([torch.cat([g.reshape(-1) for g in grad]) for grad in grads]).view(*out.shape, -1)


@pytest.mark.parametrize("cut", [[30], [20, 7, 3]])
def test_gauss_newton_and_fisher_against_explicit_jacobians(mlp_case, cut):
    x, y, model = mlp_case.x[:30], mlp_case.y[:30], mlp_case.model
    out, j = jacobian(model, x)
    p = out.softmax(1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    batches = list(zip(x.split(cut), y.split(cut), strict=True))
    ggn = GGNOperator(model, mlp_case.loss, batches).to_dense()
    assert_close(ggn, torch.einsum("bon,boq,bqm->nm", j, curvature, j) / 30, 1e-10)
    halves = GGNOperator(model, lambda z, t: F.mse_loss(z, t), [(a, 0 * model(a).detach()) for a, _ in batches])
    assert_close(halves.to_dense(), 0.5 * torch.einsum("bon,bom->nm", j, j) / 30, 1e-10)
    assert torch.linalg.eigvalsh(ggn)[0] > -1e-12
    score = torch.einsum("bo,bon->bn", p - F.one_hot(y, 4), j)
    empirical = FisherOperator(model, mlp_case.loss, batches)
    assert_close(empirical.to_dense(), score.T @ score / 30, 1e-10)
    v = torch.randn(empirical.n, 4, dtype=torch.float64)
    empirical._batched = False
    assert_close(empirical @ v, score.T @ (score @ v) / 30, 1e-10)


def test_wrong_arguments_say_what_to_do(mlp_case):
    model, loss, data, recurrent = mlp_case.model, mlp_case.loss, (mlp_case.x, mlp_case.y), nn.GRU(36, 4).double()
    make = partial(HessianOperator, model, loss)
    for call, words in [
        (lambda: HessianOperator(model, lambda o, t: o, data), r"one number.*shape \(60, 4\)"),
        (lambda: make([]), "no batch"), (lambda: make([data[0]] * 3), r"pair \(inputs, target\)"),
        (lambda: make(data, reduction="none"), "'none'"), (lambda: make(data, method="exact"), "'exact'"),
        (lambda: make(data) @ torch.ones(3).double(), r"\(3,\): pass a vector \(848,\)"),
        (lambda: make(data).to_dense(limit=10), "order 848.*limit is 10"),
        (lambda: FisherOperator(model, loss, data, mode="batch_stats"), "BatchNorm then mixes"),
        (lambda: FisherOperator(model, loss, data, kind="exact"), "'exact'"),
        (lambda: FisherOperator(model, loss, data, draws=0), "draws = 0"),
        (lambda: GGNOperator(recurrent, loss, (data[0].flatten(1), data[1]), check=False).to_dense(), "a tuple"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
