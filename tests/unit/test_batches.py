"""What a batch is, how many there are, and how many samples: batches of every structure, and what is refused."""

from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, TensorDataset

from sharpnb.batches import Batches, each, forward, inputs_of
from sharpnb.counts import counted
from sharpnb.trees import joined, lengths, mapped, part, tensors

CPU = torch.device("cpu")
X, Y = torch.randn(12, 5), torch.arange(12) % 3
PACKED = pack_sequence([torch.randn(n, 5) for n in (4, 3, 1)])


class Named(NamedTuple):
    x: torch.Tensor
    name: str


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    ids: list[str]


# ---- trees ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [
    X, (X, Y), [X, None, "text"], {"x": X, "ids": ["a", "b"], "epoch": 3}, UserDict(x=X, more=(Y, 1.5)), Named(X, "n"),
    Record(X, ["a"]), PACKED, ({"x": [X, {"y": Y}]}, Named(Y, "m")),
])
def test_a_mapped_tree_keeps_its_structure(tree):
    doubled = mapped(lambda t: t * 2 if t.is_floating_point() else t, tree)
    assert type(doubled) is type(tree) and doubled is not tree
    for old, new in zip(tensors(tree), tensors(doubled), strict=True):
        assert torch.equal(new, old * 2 if old.is_floating_point() else old)
    if isinstance(tree, UserDict):
        assert tree["x"] is X, "the batch itself is not written into"


def test_lengths_joining_and_cutting():
    assert list(lengths(({"x": X}, Named(Y, "n"), torch.tensor(1.0), "text", PACKED))) == [12, 12, 3]
    batches = [({"x": X[:5], "ids": list("abcde"), "n": 2}, Y[:5]),
               ({"x": X[5:], "ids": list("fghijkl"), "n": 2}, Y[5:])]
    whole = joined(batches)
    assert torch.equal(whole[0]["x"], X) and torch.equal(whole[1], Y) and whole[0]["ids"] == list("abcdefghijkl")
    cut = part(whole, 5, 12, 12)
    assert torch.equal(cut[0]["x"], X[5:]) and cut[0]["ids"] == list("fghijkl") and cut[0]["n"] == 2
    for trees in ([X, torch.randn(3, 6)], [{"n": 1}, {"n": 2}], [PACKED, PACKED], [(X,), (X, X)]):
        with pytest.raises(ValueError, match="join"):
            joined(trees)


# ---- one batch or many ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data, count", [
    ((X, Y), 1), ([X, Y], 1), ([(X, Y)], 1), ([(X, Y), (X, Y)], 2), (((X, X), (Y, Y)), 1), (({"x": X}, {"x": Y}), 1),
    ((PACKED, Y[:3]), 1), (((X, X, X), (Y, Y, Y)), 1), (([*"ab"], Y), 1), ([(X, ["a"]), (X, ["b", "c"])], 2),
])
def test_pairs_are_told_from_lists_of_batches(data, count):
    assert len(list(each(data))) == count


@pytest.mark.parametrize("data, count", [
    ((X, Y), 1), ((X, X * 10 + 50), 1), ((X, torch.randn(12, 1)), 1), ((torch.zeros(12, 3).long(), Y), 1),
    (X.split(6), 2), ([torch.randn(8, 5), torch.randn(4, 5)], 2), ([(X,), (X,)], 2), ([{"x": X}, {"x": X}], 2),
    (([*"ab"], X), 1), (PACKED, 1), ([PACKED, PACKED], 2), ([(["a"], X, Y), (["b"], X, Y)], 2),
])
def test_batches_without_targets_are_told_too(data, count):
    assert len(list(each(data, pairs=False))) == count


def test_what_can_be_read_either_way_is_asked():
    two = [torch.randn(6, 5), torch.randn(6, 5)]
    with pytest.raises(ValueError, match=r"one batch \(x, y\) or two batches.*count=\[6, 6\]"):
        each(two, pairs=False)
    assert len(each(two, False, [6, 6])) == 2 and len(each(two, False, [6])) == 1
    with pytest.raises(ValueError, match="is a tensor of shape"):
        each(X)
    with pytest.raises(ValueError, match="TensorDataset, whose entries are samples"):
        each(TensorDataset(X, Y))


def test_inputs_reach_the_model_as_it_takes_them():
    def model(*args, **kwargs):
        return args, kwargs

    (only,), _ = forward(model, PACKED)
    assert only is PACKED
    assert len(forward(model, (X, Y))[0]) == 2 and list(forward(model, UserDict(a=X))[1]) == ["a"]
    one, open_ended, several = (lambda batch: batch), (lambda **names: names), (lambda x, y=None: (x, y))
    assert forward(one, {"x": X})["x"] is X and forward(one, {"batch": X}) is X
    assert list(forward(open_ended, {"x": X})) == ["x"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        forward(several, {"z": X})
    assert inputs_of((X, Y)) is X and inputs_of(PACKED) is PACKED and list(inputs_of({"x": X})) == ["x"]


# ---- the number of samples ------------------------------------------------------------------------------------------


def sizes(data, **options):
    batches = Batches(data, CPU, **options)
    return [b.size for b in batches], [b.count for b in batches]


def test_samples_are_seen_where_all_agree():
    assert sizes([(X[:7], Y[:7]), (X[7:], Y[7:])]) == ([7, 5], [7.0, 5.0])
    nested = [((x, {"m": x}, "id"), (y, y)) for x, y in ((X[:7], Y[:7]), (X[7:], Y[7:]))]
    assert sizes(nested)[0] == [7, 5]
    packed = [(pack_sequence([torch.randn(n, 2) for n in of]), torch.arange(len(of))) for of in ((4, 2, 1), (3, 3))]
    assert sizes(packed)[0] == [3, 2] and isinstance(next(iter(Batches(packed, CPU))).inputs, PackedSequence)
    padded = [(torch.randn(4, 9), Y[:4]), (torch.randn(4, 6), Y[:4]), (torch.randn(2, 3), Y[:2])]
    assert sizes(padded)[1] == [4, 4, 2], "sentences of other lengths with one label each"


SEQUENCE_FIRST = {
    "label of a sequence": lambda b: (torch.randn(7, b, 5), Y[:b]),
    "label of a step": lambda b: (torch.zeros(7, b), torch.zeros(7, b)),
    "time and samples equal at first": lambda b: (torch.randn(10, b, 5), Y[:b]),
}


@pytest.mark.parametrize("name", SEQUENCE_FIRST)
def test_samples_that_are_not_first_are_asked_for(name):
    make = SEQUENCE_FIRST[name]
    with pytest.raises(ValueError, match=r"Say it with count="):
        Batches([make(10), make(3)], CPU)
    equal = Batches([make(10), make(10)], CPU)
    assert equal.weight(next(iter(equal))) == 0.5
    assert len(list(Batches(make(10), CPU))) == 1, "one batch is all of it"
    for count in (lambda x, y: x.shape[1], lambda batch: batch[0].shape[1], [10, 3]):
        assert sizes([make(10), make(3)], count=count)[1] == [10.0, 3.0]
    added = Batches([make(10), make(3)], CPU, "sum")
    assert [added.weight(b) for b in added] == [1.0, 1.0], "a sum weighs nothing"


def test_targets_of_other_lengths_are_asked_for():
    with pytest.raises(ValueError, match=r"Batches differ in length.*count="):
        Batches([(torch.zeros(4, 9), torch.zeros(4, 9)), (torch.zeros(4, 6), torch.zeros(4, 6))], CPU)
    assert sizes([(torch.zeros(4, 9), torch.zeros(4, 9)), (torch.zeros(2, 9), torch.zeros(2, 9))])[1] == [4, 2]


def test_a_loader_knows_its_batches_whatever_their_layout():
    def time_first(samples):
        return torch.stack([x for x, _ in samples], 1), torch.stack([y for _, y in samples])

    data = TensorDataset(torch.randn(13, 7, 5), torch.arange(13))
    assert sizes(DataLoader(data, 5, collate_fn=time_first))[1] == [5, 5, 3]
    assert sizes(DataLoader(data, 5, collate_fn=time_first, drop_last=True))[1] == [5, 5]
    some_left_out = DataLoader(data, 5, collate_fn=lambda s: torch.utils.data.default_collate(s[:4]))
    assert sizes(some_left_out)[1] == [4, 4, 3]
    with pytest.raises(ValueError, match="count="):
        Batches(list(DataLoader(data, 5, collate_fn=time_first)), CPU)


def test_counts_as_they_are_given():
    data = [(X[:7], Y[:7]), (X[7:], Y[7:])]
    assert sizes(data, count=1)[1] == [1, 1] and sizes(data, count=(2, 0.5))[1] == [2, 0.5]
    assert sizes(data, count=lambda x, y: (y == 0).sum())[1] == [3, 1]
    kept = list(Batches(data, CPU, count=[0, 4]))
    assert [b.index for b in kept] == [1], "what counts nothing is left out: its mean may be NaN"
    for count, words in [(-1, "not negative"), ([1], "one for each"), ([1, 2, 3], "3 numbers for 2"),
                         (float("nan"), "nan"), (0, "no loss term")]:
        with pytest.raises(ValueError, match=words):
            Batches(data, CPU, count=count)
    assert counted(len, 0, [X]) == 1.0


def test_a_second_pass_must_be_the_first():
    class Growing:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([(X, Y)] * self.passes)

    batches = Batches(Growing(), CPU, hold=False)
    with pytest.raises(ValueError, match="1 batches in the first pass, and more"):
        list(batches)
    with pytest.raises(ValueError, match="iterator can be read once"):
        Batches(iter([(X, Y)]), CPU, hold=False)
    state = torch.get_rng_state()
    list(Batches(DataLoader(TensorDataset(X, Y), 5), CPU, hold=False))
    assert torch.equal(state, torch.get_rng_state())
