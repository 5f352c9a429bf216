"""The loss over data is what one large batch would give, however it is cut and laid out, or the count is asked for."""

from collections import UserDict

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

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


@pytest.mark.parametrize("net, target, count", [
    (TimeFirst(), Y, lambda x, y: len(y)), (Tokens(), T, lambda x, y: y.numel()), (Tokens(), T, [10, 3]),
])
def test_time_first_is_refused_or_right(net, target, count):
    whole, cut = (S, target), [(S[:, :10], target[..., :10]), (S[:, 10:], target[..., 10:])]
    for work in (
        lambda data, **o: HessianOperator(net, F.cross_entropy, data, **o).to_dense(),
        lambda data, **o: torch.tensor(sharpness(net, F.cross_entropy, data, 0.5, **o).value),
        lambda data, **o: torch.tensor(average_sharpness(net, F.cross_entropy, data, 0.5, samples=2, **o).value),
    ):
        with pytest.raises(ValueError, match=r"Say it with count="):
            work(cut)
        assert_close(work(cut, count=count), work(whole), 1e-10)
    with pytest.raises(ValueError, match=r"count="):
        sharpness(net, F.cross_entropy, whole, 0.5, m=4)
    v = torch.ones(sum(p.numel() for p in net.parameters()), dtype=torch.float64)
    assert_close(HessianOperator(net, F.cross_entropy, whole) @ v,
                 dense_hessian(net, F.cross_entropy, *whole) @ v, 1e-10)


def test_a_loader_that_lays_time_first_is_known():
    def collate(samples):
        return torch.stack([x for x, _ in samples], 1), torch.stack([y for _, y in samples])

    net, loader = TimeFirst(), DataLoader(TensorDataset(S.transpose(0, 1), Y), 5, collate_fn=collate)
    assert_close(HessianOperator(net, F.cross_entropy, loader).to_dense(),
                 HessianOperator(net, F.cross_entropy, (S, Y)).to_dense(), 1e-10)


# ---- what a loss averages over --------------------------------------------------------------------------------------

X, C = torch.randn(12, 5, 3, dtype=torch.float64, generator=G), torch.randint(0, 2, (12, 5), generator=G)
IGNORED = C.masked_fill(torch.arange(5) > torch.arange(12)[:, None] % 4, -100)
W = torch.rand(12, 5, dtype=torch.float64, generator=G)
CLASS = torch.tensor([1.0, 5.0], dtype=torch.float64)


def by_token(reduction="mean", **options):
    return lambda out, t: F.cross_entropy(out.transpose(1, 2), t, reduction=reduction, **options)


def weighted(out, target):
    t, w = target
    return (w * F.cross_entropy(out.transpose(1, 2), t, reduction="none")).sum() / w.sum()


LOSSES = {  # loss, target, options that say what it averages over; None: it is a mean over samples and needs none
    "mean over tokens": (by_token(), C, None),
    "ignore_index": (by_token(ignore_index=-100), IGNORED, {"count": lambda x, y: (y != -100).sum()}),
    "weights of classes": (by_token(weight=CLASS), C, {"count": lambda x, y: CLASS[y].sum()}),
    "weights of samples, divided by their sum": (weighted, (C, W), {"count": lambda x, y: y[1].sum()}),
    "weights of samples": (lambda o, t: weighted(o, t) * t[1].sum() / t[1].numel(), (C, W), None),
    "sum": (by_token("sum"), C, {"reduction": "sum"}),
    "sum over tokens, mean over samples": (lambda o, t: by_token("sum")(o, t) / len(o), C, None),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_over_batches_is_that_of_one_large_batch(name):
    loss, target, options = LOSSES[name]
    torch.manual_seed(0)
    net, first = nn.Linear(3, 2).double(), slice(None, 7)
    cut = [(X[s], tuple(t[s] for t in target) if isinstance(target, tuple) else target[s]) for s in (first, slice(7, None))]
    truth = dense_hessian(net, loss, X, target)
    if options is not None:
        for call in (lambda: HessianOperator(net, loss, cut), lambda: sharpness(net, loss, cut, 0.1)):
            with pytest.raises(ValueError, match="reduction='sum'" if name == "sum" else "averages over other terms.*count="):
                call()
    op = HessianOperator(net, loss, cut, **(options or {}))
    assert_close(op.to_dense(), truth, 1e-10)
    assert_close(torch.tensor(sharpness(net, loss, cut, 0.1, **(options or {})).value),
                 torch.tensor(sharpness(net, loss, (X, target), 0.1).value), 1e-10)
    if name == "mean over tokens":
        with pytest.raises(ValueError, match="reduction='mean'"):
            HessianOperator(net, loss, cut, reduction="sum")


def test_a_loss_inside_the_model_is_compared_too():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 2).double()

        def forward(self, x, labels):
            return {"loss": by_token(ignore_index=-100)(self.out(x), labels)}

    torch.manual_seed(0)
    net, loss = Own(), lambda output, _: output["loss"]
    cut = [(UserDict(x=X[:7], labels=IGNORED[:7]), None), (UserDict(x=X[7:], labels=IGNORED[7:]), None)]
    with pytest.raises(ValueError, match="count="):
        HessianOperator(net, loss, cut)
    whole = HessianOperator(net, loss, ({"x": X, "labels": IGNORED}, None)).to_dense()
    assert_close(HessianOperator(net, loss, cut, count=lambda x, _: (x["labels"] != -100).sum()).to_dense(),
                 whole, 1e-10)
    same = [({"x": X[s], "labels": C[s]}, None) for s in (slice(7), slice(7, None))]
    assert_close(HessianOperator(net, loss, same).to_dense(),
                 HessianOperator(net, loss, ({"x": X, "labels": C}, None)).to_dense(), 1e-10)


def test_a_coupled_loss_is_asked_for_and_an_interpolating_net_is_not():
    x, y = X[:, 0], C[:, 0]
    net = nn.Linear(3, 2).double()
    cut = [(x[:7], y[:7]), (x[7:], y[7:])]
    coupled = lambda out, t: F.cross_entropy(out, t) + out.std()
    with pytest.raises(ValueError, match=r"couples them.*count=1 takes the plain mean"):
        HessianOperator(net, coupled, cut)
    halves = [HessianOperator(net, coupled, batch).to_dense() for batch in cut]
    assert_close(HessianOperator(net, coupled, cut, count=1).to_dense(), (halves[0] + halves[1]) / 2, 1e-10)
    sure = nn.Linear(3, 2)
    with torch.no_grad():
        sure.weight.mul_(0)
        sure.bias.copy_(torch.tensor([20.0, -20.0]))
    data = [(x[:7].float(), torch.zeros(7).long()), (x[7:].float(), torch.zeros(5).long())]
    HessianOperator(sure, F.cross_entropy, data)  # losses of 1e-17: rounding is no disagreement


def test_count_is_everywhere():
    loss, _, options = LOSSES["ignore_index"]
    torch.manual_seed(0)
    net, cut = nn.Linear(3, 2).double(), [(X[:7], IGNORED[:7]), (X[7:], IGNORED[7:])]
    one, cuts = (measure(net, loss, data, steps=8, probes=1, **o) for data, o in (((X, IGNORED), {}), (iter(cut), options)))
    assert cuts == pytest.approx(one, rel=1e-6, abs=1e-12, nan_ok=True)
    assert_close(GGNOperator(net, loss, cut, **options).to_dense(),
                 GGNOperator(net, loss, (X, IGNORED)).to_dense(), 1e-10)
    groups = sharpness(net, loss, cut, 0.1, m=5, **options)
    assert len(groups.each) == 3
    terms = torch.tensor([float((IGNORED[s] != -100).sum()) for s in (slice(5), slice(5, 10), slice(10, None))])
    assert groups.value == pytest.approx(float((torch.tensor(groups.each) * terms / terms.sum()).sum()))


# ---- structures -----------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X[:, 0], C[:, 0], strict=True)


@pytest.mark.parametrize("operator", [HessianOperator, GGNOperator, FisherOperator])
@pytest.mark.parametrize("hold", [True, False])
def test_a_stream_is_data(operator, hold):
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    op = operator(net, F.cross_entropy, DataLoader(Stream(), batch_size=5), hold=hold)
    assert_close(op.to_dense(), operator(net, F.cross_entropy, (X[:, 0], C[:, 0])).to_dense(), 1e-10)


def test_a_random_stream_is_named():
    class Noise(IterableDataset):
        def __iter__(self):
            yield from zip(torch.randn(12, 3).double(), C[:, 0], strict=True)

    with pytest.raises(ValueError, match="the stream makes each one different"):
        HessianOperator(nn.Linear(3, 2).double(), F.cross_entropy, DataLoader(Noise(), 5), hold=False)


def test_packed_sequences_are_inputs():
    class Packed(TimeFirst):
        def forward(self, x):
            return self.out(self.rnn(x)[1][-1])

    net, of = Packed(), torch.tensor([6, 6, 5, 4, 4, 4, 3, 3, 2, 2, 2, 1, 1])
    packed = [pack_padded_sequence(S[:, s], of[s]) for s in (slice(8), slice(8, None))]
    op = HessianOperator(net, F.cross_entropy, [(packed[0], Y[:8]), (packed[1], Y[8:])])
    assert_close(op.to_dense(),
                 HessianOperator(net, F.cross_entropy, (pack_padded_sequence(S, of), Y)).to_dense(), 1e-10)
    assert "samples=13" in repr(op)


def test_several_inputs_and_outputs_with_ids_beside_them():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()

        def forward(self, first, second, names=None):
            return self.a(first) * self.b(second), self.b(first)

    def loss(outputs, targets):
        return sum(F.cross_entropy(o, t) for o, t in zip(outputs, targets[:2], strict=True))

    net, x1, x2, y1, y2 = Two(), X[:, 0], X[:, 1], C[:, 0], C[:, 1]
    whole = HessianOperator(net, loss, ((x1, x2), (y1, y2))).to_dense()
    for make in (
        lambda s, ids: ((x1[s], x2[s]), (y1[s], y2[s])), lambda s, ids: ((x1[s], x2[s], ids), [y1[s], y2[s], ids]),
        lambda s, ids: (UserDict(first=x1[s], second=x2[s], names=ids), (y1[s], y2[s], 3)),
    ):
        cut = [make(slice(7), list("abcdefg")), make(slice(7, None), list("hijkl"))]
        assert_close(HessianOperator(net, loss, cut).to_dense(), whole, 1e-10)
        assert sharpness(net, loss, cut, 0.1).value == pytest.approx(sharpness(net, loss, ((x1, x2), (y1, y2)), 0.1).value, rel=1e-9)
    in_groups = [sharpness(net, loss, data, 0.1, m=4).each for data in (((x1, x2), (y1, y2)), [((x1[:7], x2[:7]), (y1[:7], y2[:7])), ((x1[7:], x2[7:]), (y1[7:], y2[7:]))])]
    assert in_groups[0] == pytest.approx(in_groups[1], rel=1e-9)


def test_negative_control_without_counts_and_check_the_mean_is_over_other_terms():
    batches = [(X[:6], IGNORED[:6]), (X[6:], IGNORED[6:])]
    model, loss = nn.Linear(3, 2).double(), by_token(ignore_index=-100)
    whole = HessianOperator(model, loss, (X, IGNORED)).to_dense()
    assert not torch.allclose(HessianOperator(model, loss, batches, check=False).to_dense(), whole)
    counted = HessianOperator(model, loss, batches, count=lambda x, y: int((y != -100).sum()))
    assert torch.allclose(counted.to_dense(), whole, rtol=1e-10)
