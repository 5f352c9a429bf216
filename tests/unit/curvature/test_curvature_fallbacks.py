"""Networks that PyTorch's tools refuse: what is measured is that of a twin that is not refused, with one word of ours."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sharpnb.averaging import SWA, swap, update_bn
from sharpnb.curvature import FisherOperator, GGNOperator, HessianOperator, average_sharpness, sharpness
from sharpnb.landscape import Plane, surface

F = nn.functional
G = torch.Generator().manual_seed(0)
X, S, Y = torch.randn(18, 5, generator=G), torch.randn(18, 7, 5, generator=G), torch.arange(18) % 3


def assert_close(a, b, tol=1e-5):
    assert float((a - b).norm()) <= tol * float(b.norm()) > 0


OURS = ("measured one after the other", "gradients in its forward pass", "cannot be copied", "sparse=True", "central differences")


def said(caught):
    """Our own words."""
    return [str(w.message) for w in caught if any(words in str(w.message) for words in OURS)]


# ---- vmap -----------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = kind(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


class Asks(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (2 if x.abs().max().item() > 100 else 1)


class Named(nn.Linear):
    def forward(self, x, names):
        assert len(x) == len(names)
        return super().forward(x)


def masked(output, target):
    keep = target != 2
    return F.cross_entropy(output[keep], target[keep])


def linear(kind, *args):
    torch.manual_seed(0)
    return kind(5, 3, *args)


VMAP = {
    "LSTM": (lambda: Recurrent(nn.LSTM), F.cross_entropy, S), "GRU": (lambda: Recurrent(nn.GRU), F.cross_entropy, S),
    "RNN": (lambda: Recurrent(nn.RNN), F.cross_entropy, S), ".item()": (lambda: linear(Asks), F.cross_entropy, X),
    "a boolean mask": (lambda: linear(nn.Linear), masked, X), "texts": (lambda: linear(Named), F.cross_entropy, (X, [str(i) for i in range(18)])),
}


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", VMAP)
def test_groups_that_cannot_run_at_once_run_one_by_one(name, steps):
    build, loss, x = VMAP[name]
    net = build()
    cut = lambda s: (tuple(part[s] for part in x) if isinstance(x, tuple) else x[s], Y[s])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = sharpness(net, loss, (x, Y), 0.05, m=4, steps=steps)
    assert len(said(caught)) == 1 and "measured one after the other" in said(caught)[0]
    alone = [sharpness(net, loss, cut(slice(i, i + 4)), 0.05, steps=steps).value for i in range(0, 18, 4)]
    np.testing.assert_allclose(found.each, alone, rtol=1e-3, atol=1e-6)
    assert found.value == pytest.approx(np.average(alone, weights=[4, 4, 4, 4, 2]), rel=1e-3)


def test_an_error_of_ones_own_is_raised():
    def loss(output, target):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sharpness(linear(nn.Linear), loss, (X, Y), 0.05, m=4)


# ---- gradients in the forward pass ----------------------------------------------------------------------------------


class Forces(nn.Module):
    def __init__(self, careful):
        super().__init__()
        torch.manual_seed(0)
        self.energy, self.careful = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 1)), careful

    def forward(self, x):
        with torch.enable_grad() if self.careful else torch.set_grad_enabled(torch.is_grad_enabled()):
            x = x.detach().requires_grad_()
            return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


class WrittenOut(Forces):
    def forward(self, x):
        first, _, norm, last = self.energy
        h = torch.tanh(first(x))
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return -((last.weight * scale) * (1 - h.square())) @ first.weight


@pytest.mark.parametrize("careful", [True, False])
def test_networks_that_take_gradients_in_their_forward_pass(careful):
    net, twin, data = Forces(careful).double(), WrittenOut(True).double(), (X.double(), X.double().flip(0))
    mse = lambda out, t: (out - t).square().mean()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_close(HessianOperator(net, mse, data).to_dense(), HessianOperator(twin, mse, data).to_dense(), 1e-9)
        assert sharpness(net, mse, data, 0.05).value == pytest.approx(sharpness(twin, mse, data, 0.05).value, rel=1e-9)
        assert average_sharpness(net, mse, data, 0.05).value == pytest.approx(average_sharpness(twin, mse, data, 0.05).value, rel=1e-9)
        cloud = [(data[0][:9], data[1][:9]), (data[0][9:], data[1][9:])]
        assert_close(HessianOperator(net, mse, cloud).to_dense(), HessianOperator(twin, mse, data).to_dense(), 1e-9)
    assert len(said(caught)) == (not careful), "said once of a network"
    plane = Plane.random(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = surface(net, plane, cloud, {"mse": mse}, 3).values["mse"]
        update_bn(net, [x for x, _ in cloud])
        renewed = surface(net, plane, data, {"mse": mse}, 2, update_bn=[data]).values["mse"]
    np.testing.assert_allclose(seen, surface(twin, plane, data, {"mse": mse}, 3).values["mse"], rtol=1e-9)
    h = torch.tanh(net.energy[0](data[0]))
    torch.testing.assert_close(net.energy[2].running_mean, h.mean(0), rtol=1e-9, atol=1e-12)
    assert int(net.energy[2].num_batches_tracked) == 2 and np.isfinite(renewed).all() and not np.allclose(renewed[0, 0], seen[0, 0])
    assert all(p.grad is None for p in net.parameters())


def test_another_error_is_not_taken_for_a_gradients():
    class Broken(nn.Linear):
        def forward(self, x):
            raise RuntimeError("requires_grad of nothing")

    with pytest.raises(RuntimeError, match="of nothing"), warnings.catch_warnings():
        warnings.simplefilter("error")
        HessianOperator(linear(Broken), F.cross_entropy, (X, Y))


# ---- deepcopy -------------------------------------------------------------------------------------------------------


class Locked(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.generator = layer, (i for i in range(3))

    def forward(self, x):
        return self.layer(x)


def _pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


WRAPPED = {
    "weight_norm": nn.utils.weight_norm, "spectral_norm": nn.utils.spectral_norm, "pruned": _pruned, "locked": Locked,
    "parametrized": nn.utils.parametrizations.weight_norm,
}


def wrapped(name):
    torch.manual_seed(0)
    net = nn.Sequential(WRAPPED[name](nn.Linear(5, 8)), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    F.cross_entropy(net(X), Y).backward()  # as after training
    return net


def _step(model, worker):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * (worker + 1))
    optimizer.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_networks_that_cannot_be_copied(name):
    net = wrapped(name)
    before = [copy.deepcopy(net.state_dict()), [p.grad.clone() for p in net.parameters()], [m.training for m in net.modules()]]
    plane, refused = Plane.random(net), name not in ("parametrized",)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = surface(net, plane, (X, Y), ("loss",), 3, update_bn=[X]).values["loss"]
        surface(net, plane, (X, Y), ("loss",), 2)
    assert len(said(caught)) == refused and all("cannot be copied" in text for text in said(caught))
    assert all(torch.equal(value, before[0][key]) for key, value in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before[1], strict=True)) and [m.training for m in net.modules()] == before[2]
    reference = wrapped(name)
    for i, b in enumerate((-1.0, 0.0, 1.0)):
        for j, a in enumerate((-1.0, 0.0, 1.0)):
            with torch.no_grad():
                for p, piece in zip(reference.parameters(), plane.at(a, b).float().split([p.numel() for p in reference.parameters()]), strict=True):
                    p.copy_(piece.view_as(p))
            reference.train()
            update_bn(reference, [X])
            with torch.no_grad():
                assert found[i, j] == pytest.approx(F.cross_entropy(reference.eval()(X), Y).item(), rel=1e-5)
    SWA(net).update()


@pytest.mark.parametrize("name", ["weight_norm", "parametrized"])
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_weight_normalisation_is_written_out_where_pytorchs_own_is_wrong(name):
    class Own(nn.Module):
        def __init__(self, bias, g, v, rest):
            super().__init__()
            self.bias, self.g, self.v = (nn.Parameter(p.detach().clone()) for p in (bias, g, v))
            self.rest = copy.deepcopy(rest)

        def forward(self, x):
            return self.rest(x @ (self.g * self.v / self.v.norm(dim=1, keepdim=True)).T + self.bias)

    net = wrapped(name).double()
    own = Own(*list(net.parameters())[:3], net[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op = HessianOperator(net, F.cross_entropy, (X.double(), Y))
        found = op.to_dense()
    assert_close(found, HessianOperator(own, F.cross_entropy, (X.double(), Y)).to_dense(), 1e-10)
    assert op.method == "auto"


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_swap_trains_workers_of_networks_that_cannot_be_copied(name):
    net, ends = wrapped(name), []
    start = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    for worker in range(3):
        own = wrapped(name)
        _step(own, worker)
        ends.append(nn.utils.parameters_to_vector(own.parameters()).detach())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = swap(net, lambda m, e: 1.0, _step, [X], tau=0.9, max_epochs=1, workers=3)
    torch.testing.assert_close(done.workers, torch.stack(ends))
    torch.testing.assert_close(done.start, start)
    torch.testing.assert_close(nn.utils.parameters_to_vector(net.parameters()).detach(), torch.stack(ends).mean(0))


# ---- embeddings -----------------------------------------------------------------------------------------------------


class Embeds(nn.Module):
    def __init__(self, functional=False, tied=False, **options):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm, self.functional = nn.Embedding(7, 4, **options), nn.BatchNorm1d(4), functional
        self.out = nn.Linear(4, 7 if tied else 3)
        if tied:
            self.out.weight = self.table.weight

    def forward(self, x):
        h = F.embedding(x, self.table.weight, sparse=True) if self.functional else self.table(x)
        return self.out(self.norm(torch.tanh(h).mean(1)))


IDS = torch.randint(0, 7, (18, 5), generator=G)


@pytest.mark.parametrize("functional", [False, True])
def test_sparse_gradients_are_dense(functional):
    net, twin = Embeds(functional, sparse=not functional), Embeds()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        op = HessianOperator(net, F.cross_entropy, (IDS, Y))
        found = op.to_dense()
    assert len(said(caught)) == (not functional) and all("sparse=True" in text for text in said(caught)) and op.method == "auto"
    truth = HessianOperator(twin, F.cross_entropy, (IDS, Y))
    assert_close(found, truth.to_dense())
    torch.testing.assert_close(op.gradient(), truth.gradient())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for m in (None, 4):
            assert sharpness(net, F.cross_entropy, (IDS, Y), 0.1, m=m).value == pytest.approx(sharpness(twin, F.cross_entropy, (IDS, Y), 0.1, m=m).value, rel=1e-3)
    assert net.table.sparse != functional


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_with_a_largest_norm_stays_as_it_was(tied):
    net, y = Embeds(tied=tied, max_norm=1.2), IDS[:, 0] if tied else Y
    with torch.no_grad():
        net.table.weight[:4] *= 3  # rows that a forward pass would shorten
    before, version = net.table.weight.detach().clone(), net.table.weight._version
    shortened = copy.deepcopy(net)
    shortened(IDS)
    assert not torch.equal(shortened.table.weight, before), "negative control: PyTorch writes into it"
    twin = Embeds(tied=tied)
    twin.load_state_dict(net.state_dict())
    loss = F.cross_entropy
    op = HessianOperator(net, loss, (IDS, y))
    found, rise = op.to_dense(), sharpness(net, loss, (IDS, y), 0.1).value
    assert op.method == "auto"
    update_bn(net, [IDS])
    assert torch.equal(net.table.weight, before) and net.table.max_norm == 1.2 and "forward" not in vars(net.table)
    assert net.table.weight._version == version and isinstance(net.table.weight, nn.Parameter)
    if not tied:  # then the function is that of the shortened table
        with torch.no_grad():
            twin.table.weight.copy_(shortened.table.weight)
        assert_close(found, HessianOperator(twin, loss, (IDS, y)).to_dense())
        assert rise == pytest.approx(sharpness(twin, loss, (IDS, y), 0.1).value, rel=1e-4)
    values = surface(net, Plane.random(net), (IDS, y), ("loss",), 2).values["loss"]
    assert torch.equal(net.table.weight, before) and np.isfinite(values).all()


# ---- Monte-Carlo Fisher over positions ------------------------------------------------------------------------------


class Tagger(nn.Module):
    def __init__(self, last):
        super().__init__()
        torch.manual_seed(0)
        self.last, self.out = last, nn.Linear(5, 3)
        self.double()

    def forward(self, x):
        out = self.out(x)
        return out if self.last else out.transpose(1, 2)


TAGS = torch.randint(0, 3, (18, 7), generator=G)
IGNORED = TAGS.masked_fill(torch.arange(7) > torch.arange(18)[:, None] % 5, -100)
FISHER = {
    "classes last": (True, lambda o, t: F.cross_entropy(o.transpose(1, 2), t), TAGS, {}),
    "classes second": (False, F.cross_entropy, TAGS, {}),
    "flattened": (True, lambda o, t: F.cross_entropy(o.flatten(0, 1), t), TAGS.flatten(), {"count": 1}),
    "ignore_index": (True, lambda o, t: F.cross_entropy(o.transpose(1, 2), t), IGNORED, {"count": lambda x, y: (y != -100).sum()}),
    "sum over positions, mean over samples": (False, lambda o, t: F.cross_entropy(o, t, reduction="sum") / len(o), TAGS, {}),
    "sum": (False, lambda o, t: F.cross_entropy(o, t, reduction="sum"), TAGS, {"reduction": "sum"}),
}


@pytest.mark.parametrize("name", FISHER)
def test_drawn_targets_of_positions_tend_to_gauss_newton(name):
    last, loss, target, options = FISHER[name]
    net, x = Tagger(last), S.double()
    data = (x, target) if name == "flattened" else [(x[:12], target[:12]), (x[12:], target[12:])]
    ggn = GGNOperator(net, loss, data, **options).to_dense()
    few, many = (FisherOperator(net, loss, data, kind="mc", draws=d, **options).to_dense() for d in (1, 300))
    far, near = (float((f - ggn).norm() / ggn.norm()) for f in (few, many))
    assert near < 0.05 < far < 1.5
    torch.testing.assert_close(few, few.T, rtol=1e-9, atol=1e-12)
    assert torch.linalg.eigvalsh(few)[0] > -1e-9


def test_an_axis_of_classes_that_is_not_to_be_seen_is_asked_for():
    net, x, y = Tagger(True), torch.randn(4, 3, 5).double(), torch.randint(0, 3, (4, 3))
    loss = lambda o, t: F.cross_entropy(o.transpose(1, 2), t)
    with pytest.raises(ValueError, match=r"which axis holds the classes.*draw="):
        FisherOperator(net, loss, (x, y), kind="mc") @ torch.ones(18).double()
    from sharpnb.curvature.fisher import draw_class

    FisherOperator(net, loss, (x, y), kind="mc", draw=lambda o, g: draw_class(o, g, axis=-1)) @ torch.ones(18).double()
