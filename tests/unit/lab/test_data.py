import shutil
import sys

import pytest
import torch

from sharpnb import datafiles
from sharpnb.datafiles import fingerprint
from sharpnb.lab import data as module
from sharpnb.lab.data import DataError, load_data, status, with_label_noise


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_label_noise_moves_exactly_its_share_to_another_class_and_to_each_as_often(rate):
    data = load_data("digits", train_size=1700)
    noisy = [with_label_noise(data, rate, seed=seed) for seed in range(20)]
    shifts = torch.stack([(each.train_y - data.train_y) % 10 for each in noisy])
    moved, counts = round(rate * 1700), torch.bincount(shifts.flatten(), minlength=10)
    assert ((shifts > 0).sum(1) == moved).all() and all(torch.equal(each.test_y, data.test_y) for each in noisy)
    assert (counts[1:] - 20 * moved / 9).abs().max() <= 4 * (20 * moved * (1 / 9) * (8 / 9)) ** 0.5
    assert noisy[0].checksum != data.checksum or rate == 0


@pytest.mark.parametrize(("call", "words"), [
    (lambda: load_data("mnist"), ["mnist", "digits", "cifar10"]),
    (lambda: load_data("digits", train_size=1797), ["1797", "1 to 1796"]),
    (lambda: with_label_noise(load_data("digits"), 1.5), ["1.5", "[0, 1]"]),
])
def test_bad_input_is_told_what_is_allowed(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("download", [False, True])
def test_a_missing_set_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch, download):
    import torchvision.datasets

    def refuse(*args, **kwargs):
        raise OSError("no network")

    own = type("CIFAR10", (torchvision.datasets.CIFAR10,), {"__init__": refuse})
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", own)
    with pytest.raises(DataError, match="missing: data_batch_1") as told:
        load_data("cifar10", root=tmp_path, download=download)
    assert all(word in str(told.value) for word in (str(tmp_path), "SHARPNB_DATA", "no network" if download else ""))


def _fake_svhn(root, monkeypatch):
    """Two small files in SVHN's place, whose true MD5s torchvision is made to expect."""
    import hashlib

    import torchvision.datasets

    contents = {"train_32x32.mat": b"train", "test_32x32.mat": b"test"}
    for name, content in contents.items():
        (root / name).write_bytes(content)
    splits = {name.split("_")[0]: ["url", name, hashlib.md5(content).hexdigest()] for name, content in contents.items()}
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", splits)


def test_status_tells_ready_missing_and_damaged_apart(tmp_path, monkeypatch):
    _fake_svhn(tmp_path, monkeypatch)
    assert status("svhn", tmp_path) == "ready"
    (tmp_path / "test_32x32.mat").write_bytes(b"tesT")
    assert status("svhn", tmp_path).startswith("damaged: test_32x32.mat")
    with pytest.raises(DataError, match="damaged"):
        load_data("svhn", root=tmp_path)
    (tmp_path / "test_32x32.mat").unlink()
    assert status("svhn", tmp_path).startswith("missing: test_32x32.mat")


def test_the_fingerprint_follows_the_files(tmp_path, monkeypatch):
    _fake_svhn(tmp_path, monkeypatch)
    monkeypatch.setenv("SHARPNB_DATA", str(tmp_path))
    before = fingerprint("svhn")
    (tmp_path / "train_32x32.mat").write_bytes(b"longer than before")
    assert fingerprint("svhn") != before
    shutil.rmtree(tmp_path)
    assert fingerprint("svhn") == "missing"
    assert fingerprint("digits").startswith("scikit-learn ") and "digits" in datafiles.NAMES


def test_files_are_read_for_their_checksums_once_and_again_after_a_change(tmp_path, monkeypatch):
    _fake_svhn(tmp_path, monkeypatch)
    looked, checked = [], module.status
    monkeypatch.setattr(module, "status", lambda *of: looked.append(of) or checked(*of))
    monkeypatch.setattr(module, "_read", lambda *of: of)
    for _ in range(3):
        assert load_data("svhn", root=tmp_path)[2] is False  # nothing to fetch
    assert len(looked) == 1
    (tmp_path / "test_32x32.mat").write_bytes(b"longer than before")
    for _ in range(2):
        with pytest.raises(DataError, match=r"damaged: test_32x32\.mat"):
            load_data("svhn", root=tmp_path)
    assert len(looked) == 2


def test_digits_are_those_of_scikit_learn_in_the_order_of_the_seed():
    from sklearn.datasets import load_digits

    own = load_data("digits", train_size=1000, seed=3, dtype=torch.float64)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(3))
    images = torch.from_numpy(load_digits().data[order]) / 16
    assert torch.equal(torch.cat([own.train_x, own.test_x]).flatten(1), images)
    assert torch.equal(torch.cat([own.train_y, own.test_y]), torch.from_numpy(load_digits().target[order]))
    assert own.train_x.shape == (1000, 1, 8, 8) and own.test_x.shape == (797, 1, 8, 8) and own.classes == 10
    sums = [load_data("digits", train_size=300, seed=seed).checksum for seed in (3, 3, 4)]
    assert sums[0] == sums[1] != sums[2]


def test_the_files_are_those_that_torchvision_looks_for():
    from torchvision import datasets as sets

    for name, source in {"cifar10": sets.CIFAR10, "cifar100": sets.CIFAR100}.items():
        files = tuple(file for file, _ in (*source.train_list, *source.test_list))
        assert datafiles.LAYOUT[name] == (source.base_folder, files)
    assert datafiles.LAYOUT["fashion_mnist"][1] == tuple(file for file, _ in sets.FashionMNIST.resources)
    assert datafiles.LAYOUT["svhn"][1] == tuple(sets.SVHN.split_list[part][1] for part in ("train", "test"))


def test_images_in_every_layout_of_torchvision_become_channels_first():
    class Part:
        def __init__(self, data):
            self.data, self.targets = data, [1, 2]

    grey, colour = (torch.randint(0, 256, size, dtype=torch.uint8) for size in ((2, 5, 6), (2, 5, 6, 3)))
    x, y = module._as_tensors(Part(grey), (0.5,), (0.25,), torch.float64)
    assert x.shape == (2, 1, 5, 6) and torch.allclose(x[:, 0], (grey / 255 - 0.5).double() / 0.25, atol=1e-6)
    x, _ = module._as_tensors(Part(colour.numpy()), (0.5,) * 3, (1.0,) * 3, torch.float32)
    assert x.shape == (2, 3, 5, 6) and torch.allclose(x[1, 2], colour[1, :, :, 2] / 255 - 0.5)
    assert y.tolist() == [1, 2]


def test_a_package_that_is_missing_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"cifar10 needs torchvision, .* pip install 'sharpnb\[notebooks\]'"):
        load_data("cifar10", download=False)
