"""Networks that PyTorch's tools refuse: what is measured is that of a twin that is not, with one word of ours."""

import copy
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, prune, vector_to_parameters

from conftest import assert_close
from sharpnb.averaging import SWA, swap, update_bn
from sharpnb.curvature import FisherOperator, GGNOperator, HessianOperator, average_sharpness, sharpness
from sharpnb.landscape import Plane, surface

F = nn.functional
G = torch.Generator().manual_seed(0)
X, S, Y = torch.randn(18, 5, generator=G), torch.randn(18, 7, 5, generator=G), torch.arange(18) % 3
OURS = ("measured one after the other", "gradients in its forward pass", "cannot be copied", "sparse=True",
        "central differences")


@contextmanager
def said(count, words=""):
    """Hold what is done inside to so many words of ours."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    found = [str(w.message) for w in caught if any(sign in str(w.message) for sign in OURS)]
    assert len(found) == count and all(words in text for text in found), found


# ---- vmap -----------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
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


VMAP = {
    "LSTM": (Recurrent, [nn.LSTM], F.cross_entropy, S), "GRU": (Recurrent, [nn.GRU], F.cross_entropy, S),
    ".item()": (Asks, (5, 3), F.cross_entropy, X), "a boolean mask": (nn.Linear, (5, 3), masked, X),
    "texts": (Named, (5, 3), F.cross_entropy, (X, [str(i) for i in range(18)])),
}


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", VMAP)
def test_groups_that_cannot_run_at_once_run_one_by_one(name, steps):
    build, args, loss, x = VMAP[name]
    torch.manual_seed(0)
    net = build(*args)
    with said(1, "measured one after the other"):
        found = sharpness(net, loss, (x, Y), 0.05, m=4, steps=steps)
    alone = []
    for s in (slice(i, i + 4) for i in range(0, 18, 4)):
        part = tuple(each[s] for each in x) if isinstance(x, tuple) else x[s]
        alone.append(sharpness(net, loss, (part, Y[s]), 0.05, steps=steps).value)
    np.testing.assert_allclose(found.each, alone, rtol=1e-3, atol=1e-6)
    assert found.value == pytest.approx(np.average(alone, weights=[4, 4, 4, 4, 2]), rel=1e-3)


def test_an_error_of_ones_own_is_raised():
    def loss(output, target):
        raise KeyError("mine")

    class Broken(nn.Linear):
        def forward(self, x):
            raise RuntimeError("requires_grad of nothing")

    with pytest.raises(KeyError, match="mine"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sharpness(nn.Linear(5, 3), loss, (X, Y), 0.05, m=4)
    with pytest.raises(RuntimeError, match="of nothing"), said(0):
        HessianOperator(Broken(5, 3), F.cross_entropy, (X, Y))


# ---- gradients in the forward pass ----------------------------------------------------------------------------------


class Forces(nn.Module):
    def __init__(self, careful):
        super().__init__()
        torch.manual_seed(0)
        self.energy = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.careful = careful

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
    def mse(out, t):
        return (out - t).square().mean()

    net, twin, data = Forces(careful).double(), WrittenOut(True).double(), (X.double(), X.double().flip(0))
    cut = [(data[0][:9], data[1][:9]), (data[0][9:], data[1][9:])]
    with said(not careful):  # once of a network
        for batches in (data, cut):
            truth = HessianOperator(twin, mse, data).to_dense()
            assert_close(HessianOperator(net, mse, batches).to_dense(), truth, 1e-9)
        for measure in (sharpness, average_sharpness):
            assert measure(net, mse, data, 0.05).value == pytest.approx(measure(twin, mse, data, 0.05).value, rel=1e-9)
    plane = Plane.random(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = surface(net, plane, cut, {"mse": mse}, 3).values["mse"]
        update_bn(net, [x for x, _ in cut])
        renewed = surface(net, plane, data, {"mse": mse}, 2, update_bn=[data]).values["mse"]
    np.testing.assert_allclose(seen, surface(twin, plane, data, {"mse": mse}, 3).values["mse"], rtol=1e-9)
    h = torch.tanh(net.energy[0](data[0]))
    torch.testing.assert_close(net.energy[2].running_mean, h.mean(0), rtol=1e-9, atol=1e-12)
    assert int(net.energy[2].num_batches_tracked) == 2 and np.isfinite(renewed).all()
    assert not np.allclose(renewed[0, 0], seen[0, 0]) and all(p.grad is None for p in net.parameters())


# ---- deepcopy -------------------------------------------------------------------------------------------------------


class Locked(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.generator = layer, (i for i in range(3))

    def forward(self, x):
        return self.layer(x)


WRAPPED = {
    "weight_norm": nn.utils.weight_norm, "spectral_norm": nn.utils.spectral_norm, "locked": Locked,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5) or layer,
    "parametrized": nn.utils.parametrizations.weight_norm,
}


def wrapped(name):
    torch.manual_seed(0)
    net = nn.Sequential(WRAPPED[name](nn.Linear(5, 8)), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    F.cross_entropy(net(X), Y).backward()  # as after training
    return net


def state(net):
    return copy.deepcopy([*net.state_dict().values(), *(p.grad for p in net.parameters())])


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_networks_that_cannot_be_copied(name):
    net, reference = wrapped(name), wrapped(name)
    before, modes, plane = state(net), [m.training for m in net.modules()], Plane.random(net)
    with said(name != "parametrized", "cannot be copied"):
        found = surface(net, plane, (X, Y), ("loss",), 3, update_bn=[X])
        surface(net, plane, (X, Y), ("loss",), 2)
    assert all(map(torch.equal, state(net), before)) and [m.training for m in net.modules()] == modes
    for i, b in enumerate(found.y):
        for j, a in enumerate(found.x):
            with torch.no_grad():
                pieces = plane.at(a, b).float().split([p.numel() for p in reference.parameters()])
                for p, piece in zip(reference.parameters(), pieces, strict=True):
                    p.copy_(piece.view_as(p))
            update_bn(reference.train(), [X])
            with torch.no_grad():
                truth = F.cross_entropy(reference.eval()(X), Y).item()
            assert found.values["loss"][i, j] == pytest.approx(truth, rel=1e-5)
    SWA(net).update()


@pytest.mark.parametrize("name", ["spectral_norm", "pruned"])
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_swap_trains_workers_of_networks_that_cannot_be_copied(name):
    def step(model, worker):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * (worker + 1))
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()

    net, own = wrapped(name), [wrapped(name) for _ in range(3)]
    start = parameters_to_vector(net.parameters()).detach().clone()
    for worker, model in enumerate(own):
        step(model, worker)
    ends = torch.stack([parameters_to_vector(model.parameters()).detach() for model in own])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = swap(net, lambda m, e: 1.0, step, [X], tau=0.9, max_epochs=1, workers=3)
    torch.testing.assert_close(done.workers, ends)
    torch.testing.assert_close(done.start, start)
    torch.testing.assert_close(parameters_to_vector(net.parameters()).detach(), ends.mean(0))


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
    net, twin, data = Embeds(functional, sparse=not functional), Embeds(), (IDS, Y)
    with said(not functional, "sparse=True"):
        op = HessianOperator(net, F.cross_entropy, data)
        found = op.to_dense()
    truth = HessianOperator(twin, F.cross_entropy, data)
    assert op.method == "auto"
    assert_close(found, truth.to_dense(), 1e-5)
    torch.testing.assert_close(op.gradient(), truth.gradient())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for m in (None, 4):
            rise = sharpness(twin, F.cross_entropy, data, 0.1, m=m).value
            assert sharpness(net, F.cross_entropy, data, 0.1, m=m).value == pytest.approx(rise, rel=1e-3)
    assert net.table.sparse != functional


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_with_a_largest_norm_stays_as_it_was(tied):
    net, twin, data = Embeds(tied=tied, max_norm=1.2), Embeds(tied=tied), (IDS, IDS[:, 0] if tied else Y)
    with torch.no_grad():
        net.table.weight[:4] *= 3  # rows that a forward pass would shorten
    before, version, shortened = net.table.weight.detach().clone(), net.table.weight._version, copy.deepcopy(net)
    shortened(IDS)
    assert not torch.equal(shortened.table.weight, before), "negative control: PyTorch writes into it"
    op = HessianOperator(net, F.cross_entropy, data)
    found, rise = op.to_dense(), sharpness(net, F.cross_entropy, data, 0.1).value
    assert op.method == "auto"
    update_bn(net, [IDS])
    assert torch.equal(net.table.weight, before) and net.table.max_norm == 1.2 and "forward" not in vars(net.table)
    assert net.table.weight._version == version and isinstance(net.table.weight, nn.Parameter)
    if not tied:  # then the function is that of the shortened table
        vector_to_parameters(parameters_to_vector(shortened.parameters()), twin.parameters())
        assert_close(found, HessianOperator(twin, F.cross_entropy, data).to_dense(), 1e-5)
        assert rise == pytest.approx(sharpness(twin, F.cross_entropy, data, 0.1).value, rel=1e-4)
    values = surface(net, Plane.random(net), data, ("loss",), 2).values["loss"]
    assert torch.equal(net.table.weight, before) and np.isfinite(values).all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"padding_idx": 0, "scale_grad_by_freq": True}], ids=str)
def test_padding_and_frequencies_of_tables(tied, options):
    net, target = Embeds(tied=tied, **options), IDS[:, 0] if tied else Y
    twin = Embeds(tied=tied, padding_idx=0).double()  # its row of padding has no gradient
    truth = HessianOperator(twin, F.cross_entropy, (IDS, target), method="autograd", check=False)
    for method in ("auto", "finite_difference"):
        op = HessianOperator(net, F.cross_entropy, (IDS, target), method=method)
        assert_close(op.to_dense().double(), truth.to_dense(), 1e-5)
        assert op.method == method
    torch.testing.assert_close(op.gradient().double(), truth.gradient(), rtol=1e-4, atol=1e-6)
    rise = sharpness(twin, F.cross_entropy, (IDS, target), 0.1).value
    assert sharpness(net, F.cross_entropy, (IDS, target), 0.1).value == pytest.approx(rise, rel=1e-4)


# ---- around a network -----------------------------------------------------------------------------------------------


class Rotates(nn.Module):
    """Makes a buffer the first time, as rotary embeddings do, and multiplies by another, which may be sparse."""

    def __init__(self, layout=torch.strided):
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.out = nn.Module(), nn.Linear(5, 3)
        self.register_buffer("graph", (torch.eye(18) + torch.eye(18).roll(1, 0)).to_sparse(layout=layout)
                             if layout != torch.strided else torch.eye(18) + torch.eye(18).roll(1, 0))

    def forward(self, x, graph=None):
        if not hasattr(self.inside, "turn"):
            self.inside.register_buffer("turn", torch.arange(5).to(x) / 5, persistent=False)
        return self.out(torch.tanh((self.graph if graph is None else graph) @ (x * self.inside.turn)) ** 2)


@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo, torch.sparse_csr], ids=str)
def test_sparse_tensors_and_buffers_that_are_made_in_the_forward_pass(layout):
    twin, net = Rotates(), Rotates(layout)
    for data in ((X, Y), ((X, net.graph), Y)):
        found = HessianOperator(net, F.cross_entropy, data)
        assert_close(found.to_dense(), HessianOperator(twin, F.cross_entropy, (X, Y)).to_dense(), 1e-5)
        assert found.graph_bytes() > 0
        rise, values = sharpness(twin, F.cross_entropy, (X, Y), 0.1).value, []
        assert sharpness(net, F.cross_entropy, data, 0.1).value == pytest.approx(rise, rel=1e-4)
        for each, own in ((net, data), (twin, (X, Y))):
            values.append(surface(each, Plane.random(twin), own, ("loss",), 2, batch_size=4).values["loss"])
        np.testing.assert_allclose(*values, rtol=1e-5)
    assert not hasattr(net.inside, "turn") and not list(net.inside.buffers())


@pytest.mark.parametrize("operator", [HessianOperator, GGNOperator, FisherOperator])
def test_inference_mode_around_changes_nothing(operator):
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    truth, rise = operator(net, F.cross_entropy, (X, Y)).to_dense(), sharpness(net, F.cross_entropy, (X, Y), 0.1, 4)
    with torch.inference_mode(), said(0):
        data = (X.clone(), Y.clone())
        torch.testing.assert_close(operator(net, F.cross_entropy, data).to_dense(), truth)
        assert sharpness(net, F.cross_entropy, data, 0.1, 4).value == rise.value
    torch.testing.assert_close(operator(net, F.cross_entropy, data).to_dense(), truth)


def test_weights_that_would_stay_when_others_are_moved_are_named():
    torch.manual_seed(0)
    net = nn.utils.parametrizations.orthogonal(nn.Linear(5, 3))
    held = list(net.parameters())

    def decayed(output, target, own=None):
        return F.cross_entropy(output, target) + 0.3 * sum(p.square().sum() for p in own or held)

    def by_name(output, target):
        return decayed(output, target, list(net.parameters()))

    data, plane = (X, Y), Plane.random(net)
    op, twin = HessianOperator(net, decayed, data), HessianOperator(net, by_name, data)
    assert_close(op.to_dense(), twin.to_dense(), 1e-5)
    assert op.method == "auto" and twin.gradient().any()
    calls = [op.gradient, lambda: surface(net, plane, data, {"loss": by_name}, 2),
             *(lambda k=k, m=m: k(net, decayed, data, 0.1, **m) for k, m in (
                 (sharpness, {}), (sharpness, {"m": 4}), (average_sharpness, {})))]
    for call in calls:
        with pytest.raises(ValueError, match="parameters"):
            call()
    with nn.utils.parametrize.cached():
        for call in (lambda: HessianOperator(net, F.cross_entropy, data), lambda: surface(net, plane, data, size=2),
                     lambda: sharpness(net, F.cross_entropy, data, 0.1)):
            with pytest.raises(RuntimeError, match=r"parametrize\.cached"):
                call()
