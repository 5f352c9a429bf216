"""What each of K nets sees: tensors without the lab, shared streams, wrong labels."""

import subprocess
import sys

import pytest
import torch

from sharpnb.lab import load_data, with_label_noise
from sharpnb.lab.training import batches
from sharpnb.many.augment import shift_and_flip
from sharpnb.many.batches import Batches, one_each, wrong_labels

DIGITS = load_data("digits", train_size=40, dtype=torch.float64)
WITHOUT_LAB = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("sharpnb.lab") or name.split(".")[0] in {"pandas", "matplotlib", "scipy", "sklearn", "tqdm"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import torch
from sharpnb.many.batches import Tensors
from sharpnb.many.train import train_many
torch.manual_seed(0)
x, y = torch.randn(60, 40), torch.randint(3, (60,))
data = Tensors((x[:40], y[:40]), (x[40:], y[40:]), 3)
def net(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(40, 8), torch.nn.BatchNorm1d(8), torch.nn.GELU(), torch.nn.Linear(8, 3))
sam = {"rule": "sam", "rho": 0.1, "lr": 0.1, "label_noise": 0.1}
found = train_many([sam | {"seed": s} for s in (0, 1)], data, net, steps=30, batch_size=20)
assert found.final()[0]["train_error"] < 30, found.final()
"""


def test_tensors_alone_train_where_there_is_no_lab():
    done = subprocess.run([sys.executable, "-c", WITHOUT_LAB], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("augment", [None, shift_and_flip(1, flip=True)])
def test_nets_of_one_seed_and_the_same_images_share_a_stream_that_is_the_plain_loops(augment):
    other = load_data("digits", train_size=40, seed=3, dtype=torch.float64)
    noisy = with_label_noise(DIGITS, 0.5, 1)
    found = Batches([DIGITS, DIGITS, noisy, other], [5, 6, 5, 5], 16, augment, "cpu", torch.float64)
    assert len(found.generators) == 3  # the third net sees what the first does, under other labels
    plain = []
    for data, seed in ((DIGITS, 5), (DIGITS, 6), (noisy, 5), (other, 5)):
        generator = torch.Generator().manual_seed(seed)
        plain.append((data, generator, batches(40, 16, generator)))
    for _ in range(5):  # two batches an epoch
        x, y = found.draw()
        for k, (data, generator, order) in enumerate(plain):
            index = next(order)
            images = augment(data.train_x[index], generator) if augment else data.train_x[index]
            assert torch.equal(x[k], images) and torch.equal(y[k], data.train_y[index])
    assert torch.equal(torch.cat([x[3] for x, _ in found.in_order()]), other.train_x[:32])
    assert torch.equal(torch.cat([y[2] for _, y in found.in_order()]), noisy.train_y[:32])
    whole = Batches([DIGITS], [0], 100, None, "cpu", torch.float64)  # a batch is never larger than the data
    assert whole.size == 40 and whole.draw()[1][0].sort().values.equal(DIGITS.train_y.sort().values)


def test_data_sets_are_one_for_all_or_one_each():
    assert one_each(DIGITS, 3) == [DIGITS] * 3
    with pytest.raises(ValueError, match="2 data sets for 3 nets"):
        one_each([DIGITS, DIGITS], 3)
    with pytest.raises(ValueError, match="one each of one size"):
        one_each([DIGITS, load_data("digits", train_size=30)], 2)


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_wrong_labels_are_as_many_as_asked_for_and_none_is_right(rate):
    y = torch.arange(200) % 7
    found = wrong_labels(y, rate, 7, seed=2)
    assert int((found != y).sum()) == round(200 * rate) and found.min() >= 0 and found.max() < 7
    assert torch.equal(with_label_noise(DIGITS, rate, 2).train_y, wrong_labels(DIGITS.train_y, rate, 10, 2))
    with pytest.raises(ValueError, match=r"rate = 1\.5"):
        wrong_labels(y, 1.5, 7, seed=2)
