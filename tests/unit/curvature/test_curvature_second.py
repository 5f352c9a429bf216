"""Does the second derivative exist? Functions and kernels without one, or with a wrong one, against written-out twins."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from conftest import dense_hessian
from sharpnb.curvature import FisherOperator, GGNOperator, HessianOperator, sharpness, top_eigenvalues
from sharpnb.lab import models

F = nn.functional
X, Y = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3


class FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, y):
        with torch.enable_grad():
            d = z.detach().requires_grad_()
            value = F.cross_entropy(d, y)
            (gradient,) = torch.autograd.grad(value, d)
        ctx.save_for_backward(gradient)
        return value.detach()

    @staticmethod
    def backward(ctx, g):
        return ctx.saved_tensors[0] * g, None


class FusedSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, y):
        ctx.save_for_backward(2 * (z - F.one_hot(y, 3)) / z.numel())
        return (z - F.one_hot(y, 3)).square().mean()

    @staticmethod
    def backward(ctx, g):
        return ctx.saved_tensors[0] * g, None


class SlopeKept(torch.autograd.Function):
    """A tangent that saves its slope: differentiable once, and nothing says so."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(1 - x.tanh().square())
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        return ctx.saved_tensors[0] * g


class Tangent(torch.autograd.Function):
    """One that saves its input; how it is differentiated say the classes made from it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()


class WrongKernel(Tangent):
    """Its own second derivative has the wrong factor."""

    @staticmethod
    def backward(ctx, g):
        x, = ctx.saved_tensors
        slope = 1 - x.tanh().square()
        return g * (slope.detach() + 0.5 * (slope - slope.detach()))


class Activated(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.function, self.first, self.last = function, nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def square(z, y):
    return F.mse_loss(z, F.one_hot(y, 3).to(z))


TANH = lambda: Activated(torch.tanh)
MISSING = {  # what lacks its second derivative, its loss, and the twins written out
    "fused cross-entropy": (TANH, FusedCrossEntropy.apply, TANH, F.cross_entropy),
    "fused square": (TANH, FusedSquare.apply, TANH, square),
    "a slope that is kept": (lambda: Activated(SlopeKept.apply), F.cross_entropy, TANH, F.cross_entropy),
    "a wrong kernel": (lambda: Activated(WrongKernel.apply), F.cross_entropy, TANH, F.cross_entropy),
    "hardsigmoid": (lambda: Activated(F.hardsigmoid), F.cross_entropy, lambda: Activated(lambda x: (x / 6 + 0.5).clamp(0, 1)), F.cross_entropy),
}


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_missing_is_found_and_differences_say_their_error(name, dtype):
    build, loss, twin, truth_loss = MISSING[name]
    net, x = build().to(dtype), X.to(dtype)
    truth = dense_hessian(twin().double(), truth_loss, X.double(), Y)
    op = HessianOperator(net, loss, (x, Y))
    with pytest.warns(UserWarning, match="No second derivative here.*central differences.*relative error of about"):
        v = torch.ones(op.n, dtype=dtype)
        product = op @ v
    assert op.method == "finite_difference"
    for row in (v, torch.randn(op.n, dtype=dtype, generator=torch.Generator().manual_seed(1))):
        exact = truth @ row.double()
        assert float((op @ row - exact).norm() / exact.norm()) <= op.error < 1e-5
    assert product.dtype == dtype
    top = top_eigenvalues(op, 1)
    assert abs(float(top.values[0]) - float(torch.linalg.eigvalsh(truth)[-1])) <= float(top.residuals[0])
    assert all(p.grad is None for p in net.parameters()) and [p.dtype for p in net.parameters()] == [dtype] * 4
    with pytest.raises((NotImplementedError, RuntimeError), match=r"away from a difference|differentiated twice"):
        HessianOperator(net, loss, (x, Y), method="autograd") @ v
    if name != "hardsigmoid":
        silent = HessianOperator(net, loss, (x, Y), check=False) @ v
        assert float((silent - truth @ v.double()).norm() / (truth @ v.double()).norm()) > 0.01, "negative control"


@pytest.mark.parametrize("name", ["fused cross-entropy", "fused square"])
def test_gauss_newton_takes_differences_of_a_fused_loss(name):
    build, loss, twin, truth_loss = MISSING[name]
    net = build()
    truth = GGNOperator(twin().double(), truth_loss, (X.double(), Y)).to_dense()
    with pytest.warns(UserWarning, match="No second derivative of the loss here"):
        found = GGNOperator(net, loss, [(X[:12], Y[:12]), (X[12:], Y[12:])]).to_dense()
    assert float((found - truth).norm() / truth.norm()) < 1e-5
    assert not GGNOperator(net, loss, (X, Y), check=False).to_dense().any(), "negative control: silence and zeros"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the Fisher matrix needs first derivatives only
        FisherOperator(net, loss, (X, Y)) @ torch.ones(75)


class NoGraph(Tangent):
    """Its gradient is written into memory of its own."""

    @staticmethod
    def backward(ctx, g):
        x, = ctx.saved_tensors
        return torch.tensor((g * (1 - x.tanh().square())).tolist(), dtype=x.dtype)


def test_gauss_newton_refuses_a_network_without_second_derivative():
    for operator in (GGNOperator, FisherOperator):
        with pytest.raises(NotImplementedError, match=f"cannot be differentiated twice. {operator.__name__} cannot do without"):
            operator(Activated(NoGraph.apply), F.cross_entropy, (X, Y)) @ torch.ones(75)
    found = HessianOperator(Activated(NoGraph.apply), F.cross_entropy, (X, Y), method="finite_difference") @ torch.ones(75)
    truth = dense_hessian(TANH().double(), F.cross_entropy, X.double(), Y).sum(1)
    assert float((found - truth).norm() / truth.norm()) < 1e-5


def on_black(*activation):
    """Two convolutions of images with a black margin, where a bias of 0 puts the first one's outputs exactly on kinks."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), *activation, nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.zeros_(net[0].bias)
    return net, F.pad(torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)), (3,) * 4)


@pytest.mark.parametrize("activation", [[nn.ReLU()], [nn.LeakyReLU(0.3)], [nn.MaxPool2d(2)], [nn.ReLU(), nn.MaxPool2d(2)]])
@pytest.mark.parametrize("operator", [GGNOperator, FisherOperator])
def test_a_kink_is_no_wrong_kernel(operator, activation):
    net, x = on_black(*activation)
    found = operator(net, F.cross_entropy, (x, Y)).to_dense()
    torch.testing.assert_close(found, operator(net, F.cross_entropy, (x, Y), check=False).to_dense())
    wrong, x = on_black(*activation, type("Kept", (nn.Module,), {"forward": lambda _, x: NoGraph.apply(x)})())
    with pytest.raises(NotImplementedError, match="cannot be differentiated twice"):
        operator(wrong, F.cross_entropy, (x, Y)).to_dense()


# ---- checkpoints ----------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.reentrant, self.first, self.last = reentrant, nn.Linear(5, 6), nn.Linear(6, 3)
        self.block = nn.Sequential(nn.Tanh(), nn.Linear(6, 6), nn.Tanh())

    def forward(self, x):
        h = self.first(x)
        return self.last(self.block(h) if self.reentrant is None else checkpoint(self.block, h, use_reentrant=self.reentrant))


@pytest.mark.parametrize("params", [None, "block.*"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_networks_have_all_their_curvature(reentrant, params):
    net, fired = Checkpointed(reentrant), []
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(fired.append)
    net.last.bias.grad = torch.ones(3)
    op = HessianOperator(net, F.cross_entropy, (X, Y), params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if reentrant else "error")
        found = op.to_dense()
    truth = HessianOperator(Checkpointed(None).double(), F.cross_entropy, (X.double(), Y), params).to_dense()
    assert float((found - truth).norm() / truth.norm()) < 1e-5 and op.method == ("finite_difference" if reentrant else "auto")
    gradient = HessianOperator(Checkpointed(None), F.cross_entropy, (X, Y), params).gradient()
    torch.testing.assert_close(op.gradient(), gradient, rtol=1e-5, atol=1e-7)
    assert not fired and torch.equal(net.last.bias.grad, torch.ones(3)) and net.first.weight.grad is None


@pytest.mark.parametrize("params", [None, "block.*"])
@pytest.mark.parametrize("m", [None, 7])
def test_sharpness_of_reentrant_checkpoints(m, params):
    net, twin = Checkpointed(True), Checkpointed(None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sharpness(net, F.cross_entropy, [(X[:9], Y[:9]), (X[9:], Y[9:])], 0.1, m, steps=3, params=params)
    truth = sharpness(twin, F.cross_entropy, (X, Y), 0.1, m, steps=3, params=params)
    assert found.value == pytest.approx(truth.value, rel=1e-4) and truth.value > 1e-4
    assert all(p.grad is None for p in net.parameters())


# ---- exact ways -----------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.embed, self.qkv, self.out = kind, nn.Embedding(11, 8), nn.Linear(8, 24), nn.Linear(8, 11)
        self.whole = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        h = self.embed(x)
        if self.kind == "whole":
            return self.out(self.whole(h, h, h, need_weights=False)[0].mean(1))
        q, k, v = (part[:, None] for part in self.qkv(h).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.kind == "causal")[:, 0].mean(1))


@pytest.mark.parametrize("kind", ["plain", "causal", "whole"])
def test_attention_over_several_batches_is_exact(kind):
    net, x, y = Attention(kind), torch.randint(0, 11, (16, 6)), torch.randint(0, 11, (16,))
    with sdpa_kernel(SDPBackend.MATH):
        truth = dense_hessian(copy.deepcopy(net).double(), F.cross_entropy, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op = HessianOperator(net, F.cross_entropy, [(x[:10], y[:10]), (x[10:], y[10:])])
        assert op.graph_bytes() > 1000  # the memory is estimated with the same kernel
        found = op.to_dense()
        ggn = GGNOperator(net, F.cross_entropy, [(x[:10], y[:10]), (x[10:], y[10:])]).to_dense()
    assert (op.method, op.error) == ("auto", 0) and float((found - truth).norm() / truth.norm()) < 1e-5
    assert torch.linalg.eigvalsh(ggn)[0] > -1e-5


def test_compiled_parts_are_differentiated_as_they_are_written():
    net = TANH()
    truth = dense_hessian(TANH().double(), F.cross_entropy, X.double(), Y)
    net.first = torch.compile(net.first, backend="aot_eager")  # which refuses double backward
    net(X)
    op = HessianOperator(net, F.cross_entropy, (X, Y), method="autograd")
    assert float((op.to_dense() - truth).norm() / truth.norm()) < 1e-5


class Vendor(Activated):
    """A kernel that has no second derivative while the vendor's library is on."""

    def forward(self, x):
        if torch.backends.mkldnn.enabled and torch.is_grad_enabled():
            raise NotImplementedError("derivative for aten::mkldnn_rnn_layer_backward is not implemented")
        return super().forward(x)


def test_a_vendors_kernel_without_a_second_derivative_is_left_out():
    flags = lambda: (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32)
    before = flags()
    op = HessianOperator(Vendor(torch.tanh), F.cross_entropy, (X, Y), check=False)
    found, truth = op.to_dense(), dense_hessian(TANH().double(), F.cross_entropy, X.double(), Y)
    assert op.method == "auto" and float((found - truth).norm() / truth.norm()) < 1e-5
    assert before == flags()


# ---- no false alarm -------------------------------------------------------------------------------------------------


class Narrow(nn.Module):
    """Makes its own types: integers to float, autocast inside, a table built the first time and kept."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.table, self.made = models.cnn(4, channels=1), {}, False

    def forward(self, x):
        if not self.made:
            self.table["shift"], self.scale, self.made = torch.full((1,), 0.1), torch.tensor(255.0), True
        return self.net(x.float() / self.scale + self.table["shift"])


def _zeros(biases=0.0):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 10))
    nn.init.constant_(net[0].bias, biases)
    return net


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = _zeros(0.1)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x)


IMAGES, LABEL = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 10
HONEST = {
    "relu": (lambda: models.mlp((64, 40, 40, 10)), IMAGES), "residual with norm": (lambda: models.resnet(8, width=4, channels=1), IMAGES),
    "images with exact zeros on kinks": (_zeros, IMAGES * (IMAGES > 0)), "bytes": (Narrow, torch.randint(0, 255, (12, 1, 8, 8), dtype=torch.uint8)),
    "autocast inside": (Autocast, IMAGES), "bfloat16": (lambda: _zeros(0.1).bfloat16(), IMAGES.bfloat16()),
    "scripted": (lambda: torch.jit.script(_zeros(0.1)), IMAGES), "a loss that is flat": (lambda: _zeros(0.1), IMAGES),
}


@pytest.mark.parametrize("mode", ["eval", "batch_stats"])
@pytest.mark.parametrize("name", HONEST)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_what_is_there_is_not_doubted(name, mode):
    build, x = HONEST[name]
    net = build()
    loss = (lambda o, t: (o * 0).sum()) if "flat" in name else (lambda o, t: F.cross_entropy(o.float(), t))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op = HessianOperator(net, loss, (x, LABEL), mode=mode)
        op @ torch.ones(op.n)
        assert op.method == "auto" and op.products == 1
        if isinstance(net, Narrow):
            assert not net.made and net.table == {} and not hasattr(net, "scale"), "what it built is gone"
            net(x)
            op @ torch.ones(op.n)
            assert net.made and net.scale.dtype == net.table["shift"].dtype == torch.float32


def test_the_model_is_left_as_it_was_found_by_differences_too():
    net = nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 6)), nn.BatchNorm1d(6), nn.Hardsigmoid(), nn.GRU(6, 4), nn.Identity())
    net[4].forward = lambda out: out[0]
    before = copy.deepcopy(net.state_dict())
    objects = [(id(p), p.data_ptr(), p._version) for p in net.parameters()] + [id(b) for b in net.buffers()]
    weight, flat = net[0].weight, [id(w) for w in net[3]._flat_weights]
    with pytest.warns(UserWarning, match="central differences"):
        HessianOperator(net, F.cross_entropy, (X, Y % 3), mode="batch_stats") @ torch.ones(sum(p.numel() for p in net.parameters()))
    assert objects == [(id(p), p.data_ptr(), p._version) for p in net.parameters()] + [id(b) for b in net.buffers()]
    assert net[0].weight is weight and flat == [id(w) for w in net[3]._flat_weights]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
