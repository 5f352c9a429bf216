"""The loss over data is what one large batch would give, however it is cut and laid out, or the count is asked for."""

from collections import UserDict

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, IterableDataset

from conftest import assert_close, dense_hessian
from sharpnb.curvature import FisherOperator, GGNOperator, HessianOperator, average_sharpness, measure, sharpness

F = nn.functional
G = torch.Generator().manual_seed(0)


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.GRU(4, 3), nn.Linear(3, 3)
        self.double()

    def forward(self, x):
        return self.out(self.rnn(x)[0][-1])


class Tokens(TimeFirst):
    def forward(self, x):
        return self.out(self.rnn(x)[0]).movedim(-1, 1)  # (T, classes, B)


S, Y = torch.randn(6, 13, 4, dtype=torch.float64, generator=G), torch.arange(13) % 3
T = torch.randint(0, 3, (6, 13), generator=G)


def dense(net, loss, data, **options):
    return HessianOperator(net, loss, data, **options).to_dense()


@pytest.mark.parametrize("net, target, count", [(TimeFirst(), Y, lambda x, y: len(y)), (Tokens(), T, [10, 3])])
def test_time_first_is_refused_or_right(net, target, count):
    whole, cut, loss = (S, target), [(S[:, :10], target[..., :10]), (S[:, 10:], target[..., 10:])], F.cross_entropy
    for work in (
        lambda data, **o: dense(net, loss, data, **o),
        lambda data, **o: torch.tensor(sharpness(net, loss, data, 0.5, **o).value),
        lambda data, **o: torch.tensor(average_sharpness(net, loss, data, 0.5, samples=2, **o).value),
    ):
        with pytest.raises(ValueError, match=r"Say it with count="):
            work(cut)
        assert_close(work(cut, count=count), work(whole), 1e-10)
    for mode in ("eval", "as_is"):
        with pytest.raises(ValueError, match=r"count="):
            sharpness(net, loss, whole, 0.5, m=4, mode=mode)
    assert_close(dense(net, loss, whole), dense_hessian(net, loss, *whole), 1e-10)


@pytest.mark.parametrize("count", [None, 13, 78])
def test_an_empirical_fisher_of_time_first_data_is_refused_or_right(count):
    with pytest.raises(ValueError, match="no samples with outputs of their own"):
        FisherOperator(Tokens(), F.cross_entropy, (S, T), count=count).to_dense()
    with pytest.raises(ValueError, match="no samples with outputs of their own"):  # those of BatchNorm in training
        FisherOperator(nn.BatchNorm1d(3), F.cross_entropy, (torch.randn(8, 3), Y[:8]), mode="as_is") @ torch.ones(6)
    net, packed = TimeFirst(), pack_padded_sequence(S, [6] * 13)
    each = [torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(net(S[:, [k]]), Y[[k]]), [
        *net.parameters()])]) for k in range(13)]
    right = sum(torch.outer(g, g) for g in each) / 13
    assert_close(FisherOperator(net, F.cross_entropy, (S, Y), count=13).to_dense(), right, 1e-10)
    net.forward = lambda x: net.out(net.rnn(x)[1][-1])
    assert_close(FisherOperator(net, F.cross_entropy, (packed, Y)).to_dense(), right, 1e-10)


# ---- what a loss averages over --------------------------------------------------------------------------------------

X, C = torch.randn(12, 5, 3, dtype=torch.float64, generator=G), torch.randint(0, 2, (12, 5), generator=G)
IGNORED = C.masked_fill(torch.arange(5) > torch.arange(12)[:, None] % 4, -100)
W = torch.rand(12, 5, dtype=torch.float64, generator=G)


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


def by_token(reduction="mean", **options):
    return lambda out, t: F.cross_entropy(out.transpose(1, 2), t, reduction=reduction, **options)


def weighted(out, target):
    t, w = target
    return (w * F.cross_entropy(out.transpose(1, 2), t, reduction="none")).sum() / w.sum()


LOSSES = {  # loss, target, options that say what it averages over; None: it is a mean over samples and needs none
    "ignore_index": (by_token(ignore_index=-100), IGNORED, {"count": lambda x, y: (y != -100).sum()}),
    "weights of samples, divided by their sum": (weighted, (C, W), {"count": lambda x, y: y[1].sum()}),
    "sum": (by_token("sum"), C, {"reduction": "sum"}),
    "sum over tokens, mean over samples": (lambda o, t: by_token("sum")(o, t) / len(o), C, None),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_over_batches_is_that_of_one_large_batch(name):
    loss, target, options = LOSSES[name]
    net, several = linear(), isinstance(target, tuple)
    cut = [(X[s], tuple(t[s] for t in target) if several else target[s]) for s in (slice(7), slice(7, None))]
    truth = dense_hessian(net, loss, X, target)
    if options is not None:
        for call in (dense, lambda *a: sharpness(*a, 0.1)):
            with pytest.raises(ValueError, match="reduction='sum'" if name == "sum" else "other terms.*count="):
                call(net, loss, cut)
        assert not torch.allclose(dense(net, loss, cut, check=False), truth), "negative control"
    assert_close(dense(net, loss, cut, **(options or {})), truth, 1e-10)
    rise = sharpness(net, loss, (X, target), 0.1).value
    assert sharpness(net, loss, cut, 0.1, **(options or {})).value == pytest.approx(rise, rel=1e-10)
    if options is None:
        with pytest.raises(ValueError, match="reduction='mean'"):
            HessianOperator(net, loss, cut, reduction="sum")


def test_a_loss_inside_the_model_is_compared_too():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = linear()

        def forward(self, x, labels):
            return {"loss": by_token(ignore_index=-100)(self.out(x), labels)}

    def given(labels, *slices):
        found = [(UserDict(x=X[s], labels=labels[s]), None) for s in slices]
        return found if len(found) > 1 else found[0]

    net, halves = Own(), (slice(7), slice(7, None))

    def loss(output, _):
        return output["loss"]

    with pytest.raises(ValueError, match="count="):
        HessianOperator(net, loss, given(IGNORED, *halves))
    counted = dense(net, loss, given(IGNORED, *halves), count=lambda x, _: (x["labels"] != -100).sum())
    assert_close(counted, dense(net, loss, given(IGNORED, slice(None))), 1e-10)
    assert_close(dense(net, loss, given(C, *halves)), dense(net, loss, given(C, slice(None))), 1e-10)


def test_a_coupled_loss_is_asked_for_and_an_interpolating_net_is_not():
    def coupled(out, t):
        return F.cross_entropy(out, t) + out.std()

    x, y, net = X[:, 0], C[:, 0], linear()
    cut = [(x[:7], y[:7]), (x[7:], y[7:])]
    with pytest.raises(ValueError, match=r"couples them.*count=1 takes the plain mean"):
        HessianOperator(net, coupled, cut)
    halves = [dense(net, coupled, batch) for batch in cut]
    assert_close(dense(net, coupled, cut, count=1), (halves[0] + halves[1]) / 2, 1e-10)
    with torch.no_grad():
        net.weight.mul_(0)
        net.bias.copy_(torch.tensor([20.0, -20.0]))
    HessianOperator(net.float(), F.cross_entropy, [(a.float(), 0 * b) for a, b in cut])  # losses of 1e-17: rounding


def test_count_is_everywhere():
    loss, _, options = LOSSES["ignore_index"]
    net, cut, whole = linear(), [(X[:7], IGNORED[:7]), (X[7:], IGNORED[7:])], (X, IGNORED)
    one, cuts = (measure(net, loss, data, steps=8, probes=1, **o) for data, o in ((whole, {}), (iter(cut), options)))
    assert cuts == pytest.approx(one, rel=1e-6, abs=1e-12, nan_ok=True)
    assert_close(GGNOperator(net, loss, cut, **options).to_dense(), GGNOperator(net, loss, whole).to_dense(), 1e-10)
    groups = sharpness(net, loss, cut, 0.1, m=5, **options)
    terms = torch.tensor([float((IGNORED[s] != -100).sum()) for s in (slice(5), slice(5, 10), slice(10, None))])
    assert groups.value == pytest.approx(float((torch.tensor(groups.each) * terms / terms.sum()).sum()))


# ---- structures -----------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __init__(self, draw):
        self.draw = draw

    def __iter__(self):
        yield from zip(self.draw(), C[:, 0], strict=True)


@pytest.mark.parametrize(("operator", "hold"), [(HessianOperator, True), (GGNOperator, False), (FisherOperator, False)])
def test_a_stream_is_data_and_a_random_one_is_named(operator, hold):
    net = linear()
    op = operator(net, F.cross_entropy, DataLoader(Stream(lambda: X[:, 0]), batch_size=5), hold=hold)
    assert_close(op.to_dense(), operator(net, F.cross_entropy, (X[:, 0], C[:, 0])).to_dense(), 1e-10)
    with pytest.raises(ValueError, match="the stream makes each one different"):
        operator(net, F.cross_entropy, DataLoader(Stream(lambda: torch.randn(12, 3).double()), 5), hold=False)


def test_packed_sequences_are_inputs():
    class Packed(TimeFirst):
        def forward(self, x):
            return self.out(self.rnn(x)[1][-1])

    net, of = Packed(), torch.tensor([6, 6, 5, 4, 4, 4, 3, 3, 2, 2, 2, 1, 1])
    cut = [(pack_padded_sequence(S[:, s], of[s]), Y[s]) for s in (slice(8), slice(8, None))]
    op = HessianOperator(net, F.cross_entropy, cut)
    assert_close(op.to_dense(), dense(net, F.cross_entropy, (pack_padded_sequence(S, of), Y)), 1e-10)
    assert "samples=13" in repr(op)
