"""Does the second derivative exist? Functions without one, or with a wrong one, against written-out twins."""

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


def function(forward, backward):
    """An autograd function of tensors that are all saved."""
    def saved(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        return forward(*inputs)

    members = {"forward": saved, "backward": lambda ctx, g: backward(g, *ctx.saved_tensors)}
    return type("Own", (torch.autograd.Function,), {name: staticmethod(f) for name, f in members.items()}).apply


def slope_of(loss):
    """Return the gradient of a loss in z as fused kernels give it: without a graph."""
    def slope(g, z, y):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(loss(z, y), z)[0] * g, None

    return slope


def square(z, y):
    return F.mse_loss(z, F.one_hot(y, 3).to(z))


def wrong_kernel(g, x):
    slope = 1 - x.tanh().square()
    return g * (slope.detach() + 0.5 * (slope - slope.detach()))


def no_graph(g, x):
    """Write the gradient into memory of its own."""
    return torch.tensor((g * (1 - x.tanh().square())).tolist(), dtype=x.dtype)


class Activated(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.function, self.first, self.last = function, nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


ENTROPY, TANH, NO_GRAPH = F.cross_entropy, torch.tanh, function(torch.tanh, no_graph)
MISSING = {  # an activation and a loss, of which one lacks its second derivative; and the twins written out
    "fused cross-entropy": (TANH, function(ENTROPY, slope_of(ENTROPY)), TANH, ENTROPY),
    "fused square": (TANH, function(square, slope_of(square)), TANH, square),
    "a slope that is kept": (function(TANH, lambda g, x: g * (1 - x.tanh().square()).detach()), ENTROPY, TANH, ENTROPY),
    "a wrong kernel": (function(TANH, wrong_kernel), ENTROPY, TANH, ENTROPY),
    "hardsigmoid": (F.hardsigmoid, ENTROPY, lambda x: (x / 6 + 0.5).clamp(0, 1), ENTROPY),
}


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_missing_is_found_and_differences_say_their_error(name, dtype):
    activation, loss, twin, truth_loss = MISSING[name]
    net, data = Activated(activation).to(dtype), (X.to(dtype), Y)
    truth = dense_hessian(Activated(twin).double(), truth_loss, X.double(), Y)
    op = HessianOperator(net, loss, data)
    v = torch.ones(op.n, dtype=dtype)
    with pytest.warns(UserWarning, match="No second derivative here.*central differences.*relative error of about"):
        assert (op @ v).dtype == dtype
    assert op.method == "finite_difference"
    for row in (v, torch.randn(op.n, dtype=dtype, generator=torch.Generator().manual_seed(1))):
        exact = truth @ row.double()
        assert float((op @ row - exact).norm() / exact.norm()) <= op.error < 1e-5
    top = top_eigenvalues(op, 1)
    assert abs(float(top.values[0]) - float(torch.linalg.eigvalsh(truth)[-1])) <= float(top.residuals[0])
    assert all(p.grad is None for p in net.parameters()) and [p.dtype for p in net.parameters()] == [dtype] * 4
    forced = HessianOperator(net, loss, data, method="autograd")
    for _ in range(2):  # and not by the first product alone
        with pytest.raises((NotImplementedError, RuntimeError), match=r"away from a difference|differentiated twice"):
            forced @ v
    if name != "hardsigmoid":
        silent = HessianOperator(net, loss, data, check=False) @ v
        assert float((silent - truth @ v.double()).norm() / (truth @ v.double()).norm()) > 0.01, "negative control"


@pytest.mark.parametrize(("loss", "truth_loss"), [
    (MISSING["fused square"][1], square), (lambda o, t: F.multi_margin_loss(o, t) + ENTROPY(o, t), ENTROPY)])
def test_gauss_newton_takes_differences_of_a_loss_without_second_derivative(loss, truth_loss):
    net = Activated(TANH)
    truth = GGNOperator(Activated(TANH).double(), truth_loss, (X.double(), Y)).to_dense()
    with pytest.warns(UserWarning, match="No second derivative of the loss here"):
        found = GGNOperator(net, loss, [(X[:12], Y[:12]), (X[12:], Y[12:])]).to_dense()
    assert float((found - truth).norm() / truth.norm()) < 1e-5
    if truth_loss is square:
        assert not GGNOperator(net, loss, (X, Y), check=False).to_dense().any(), "negative control: silence and zeros"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the Fisher matrix needs first derivatives only
        FisherOperator(net, loss, (X, Y)) @ torch.ones(75)


def test_gauss_newton_refuses_a_network_without_second_derivative():
    net = Activated(NO_GRAPH)
    for operator in (GGNOperator, FisherOperator):
        with pytest.raises(NotImplementedError, match=f"twice. {operator.__name__} cannot do without"):
            operator(net, ENTROPY, (X, Y)) @ torch.ones(75)
    found = HessianOperator(net, ENTROPY, (X, Y), method="finite_difference") @ torch.ones(75)
    truth = dense_hessian(Activated(TANH).double(), ENTROPY, X.double(), Y).sum(1)
    assert float((found - truth).norm() / truth.norm()) < 1e-5


# ---- checkpoints ----------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.reentrant, self.first, self.last = reentrant, nn.Linear(5, 6), nn.Linear(6, 3)
        self.block = nn.Sequential(nn.Tanh(), nn.Linear(6, 6), nn.Tanh())

    def forward(self, x):
        h = self.first(x)
        if self.reentrant is None:
            return self.last(self.block(h))
        if self.reentrant == "whole":  # none of its inputs has a gradient
            return checkpoint(lambda x: self.last(self.block(self.first(x))), x, use_reentrant=True)
        return self.last(checkpoint(self.block, h, use_reentrant=self.reentrant))


@pytest.mark.parametrize("params", [None, "block.*"])
@pytest.mark.parametrize("reentrant", [True, False, "whole"])
def test_checkpointed_networks_have_all_their_curvature_and_sharpness(reentrant, params):
    net, twin, fired = Checkpointed(reentrant), Checkpointed(None), []
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(fired.append)
    net.last.bias.grad = torch.ones(3)
    op = HessianOperator(net, ENTROPY, (X, Y), params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if reentrant else "error")
        found = op.to_dense()
    truth = HessianOperator(copy.deepcopy(twin).double(), ENTROPY, (X.double(), Y), params).to_dense()
    assert float((found - truth).norm() / truth.norm()) < 1e-5
    assert op.method == ("finite_difference" if reentrant else "auto")
    if reentrant:
        with pytest.raises(NotImplementedError, match="reentrant"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            GGNOperator(net, ENTROPY, (X, Y), params) @ torch.ones(op.n)
    gradient = HessianOperator(twin, ENTROPY, (X, Y), params).gradient()
    torch.testing.assert_close(op.gradient(), gradient, rtol=1e-5, atol=1e-7)
    for m in (None, 7):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = [(X[:9], Y[:9]), (X[9:], Y[9:])]
            rise = sharpness(net, ENTROPY, data, 0.1, m, steps=3, params=params).value
        expected = sharpness(twin, ENTROPY, (X, Y), 0.1, m, steps=3, params=params).value
        assert rise == pytest.approx(expected, rel=1e-4) and expected > 1e-4
    assert not fired and torch.equal(net.last.bias.grad, torch.ones(3)) and net.first.weight.grad is None


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


@pytest.mark.parametrize("kind", ["causal", "whole"])
def test_attention_over_several_batches_is_exact(kind):
    net, x, y = Attention(kind), torch.randint(0, 11, (16, 6)), torch.randint(0, 11, (16,))
    with sdpa_kernel(SDPBackend.MATH):
        truth = dense_hessian(copy.deepcopy(net).double(), ENTROPY, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op, ggn = (kind(net, ENTROPY, [(x[:10], y[:10]), (x[10:], y[10:])]) for kind in (HessianOperator, GGNOperator))
        assert op.graph_bytes() > 1000  # the memory is estimated with the same kernel
        found = op.to_dense()
    assert (op.method, op.error) == ("auto", 0) and float((found - truth).norm() / truth.norm()) < 1e-5
    assert torch.linalg.eigvalsh(ggn.to_dense())[0] > -1e-5


def test_compiled_parts_and_wrappers_are_differentiated_as_they_are_written():
    net, truth = Activated(TANH), dense_hessian(Activated(TANH).double(), ENTROPY, X.double(), Y)
    assert HessianOperator(nn.DataParallel(torch.compile(net)), ENTROPY, (X, Y)).model is net
    net.first = torch.compile(net.first, backend="aot_eager")  # which refuses double backward
    net(X)
    op = HessianOperator(net, ENTROPY, (X, Y), method="autograd")
    assert float((op.to_dense() - truth).norm() / truth.norm()) < 1e-5


class Vendor(Activated):
    """A kernel that has no second derivative while the vendor's library is on."""

    def forward(self, x):
        if torch.backends.mkldnn.enabled and torch.is_grad_enabled():
            raise NotImplementedError("derivative for aten::mkldnn_rnn_layer_backward is not implemented")
        return super().forward(x)


def test_a_vendors_kernel_without_a_second_derivative_is_left_out():
    def flags():
        return torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32

    before, op = flags(), HessianOperator(Vendor(TANH), ENTROPY, (X, Y), check=False)
    found, truth = op.to_dense(), dense_hessian(Activated(TANH).double(), ENTROPY, X.double(), Y)
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


IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
HONEST = {
    "residual with norm": (lambda: models.resnet(8, width=4, channels=1), IMAGES),
    "images with exact zeros on kinks": (_zeros, IMAGES * (IMAGES > 0)),
    "bytes": (Narrow, torch.randint(0, 255, (12, 1, 8, 8), dtype=torch.uint8)), "autocast inside": (Autocast, IMAGES),
    "bfloat16": (lambda: _zeros(0.1).bfloat16(), IMAGES.bfloat16()),
    "scripted": (lambda: torch.jit.script(_zeros(0.1)), IMAGES), "a loss that is flat": (lambda: _zeros(0.1), IMAGES),
}


@pytest.mark.parametrize("mode", ["eval", "batch_stats"])
@pytest.mark.parametrize("name", HONEST)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_what_is_there_is_not_doubted(name, mode):
    build, x = HONEST[name]
    net = build()
    loss = (lambda o, t: (o * 0).sum()) if "flat" in name else (lambda o, t: ENTROPY(o.float(), t))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op = HessianOperator(net, loss, (x, torch.arange(12) % 10), mode=mode)
        op @ torch.ones(op.n)
        assert op.method == "auto" and op.products == 1
        if isinstance(net, Narrow):
            assert not net.made and net.table == {} and not hasattr(net, "scale"), "what it built is gone"
            net(x)
            op @ torch.ones(op.n)
            assert net.made and net.scale.dtype == net.table["shift"].dtype == torch.float32


def test_the_model_is_left_as_it_was_found_by_differences_too():
    net = nn.Sequential(
        nn.utils.weight_norm(nn.Linear(5, 6)), nn.BatchNorm1d(6), nn.Hardsigmoid(), nn.GRU(6, 4), nn.Identity())
    net[4].forward = lambda out: out[0]
    before, weight, flat = copy.deepcopy(net.state_dict()), net[0].weight, [id(w) for w in net[3]._flat_weights]

    def objects():
        return [(id(p), p.data_ptr(), p._version) for p in net.parameters()] + [id(b) for b in net.buffers()]

    found = objects()
    with pytest.warns(UserWarning, match="central differences"):
        op = HessianOperator(net, ENTROPY, (X, Y), mode="batch_stats")
        op @ torch.ones(op.n)
    assert objects() == found and net[0].weight is weight and flat == [id(w) for w in net[3]._flat_weights]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
