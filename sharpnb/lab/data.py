"""Data sets as tensors: where they are looked for, whether they are whole, and what to do when they are not.

``digits`` (1,797 images of 8x8) ships inside scikit-learn and needs nothing. ``mnist1d`` (signals of 40 values, by
Greydanus and Kobak) is made from its seed by the package of that name. The others are torchvision's own files in its
layout, under ``$SHARPNB_DATA`` or ``data/datasets``; they are downloaded when a network is there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpnb import datafiles, paths
from sharpnb.batches import kept_random_state
from sharpnb.many.batches import wrong_labels

# torchvision's class, channel means and deviations in training: CIFAR, SVHN as in SAM's code, Fashion-MNIST measured.
_TORCHVISION: dict[str, tuple[str, tuple[float, ...], tuple[float, ...]]] = {
    "fashion_mnist": ("FashionMNIST", (0.2860,), (0.3530,)),
    "cifar10": ("CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ("CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ("SVHN", (0.4309, 0.4302, 0.4463), (0.1976, 0.2003, 0.1981)),
}
NAMES = datafiles.NAMES


class DataError(RuntimeError):
    """A data set is missing or damaged; the message says which file, where it was looked for and what to do."""


@dataclass(frozen=True)
class Data:
    """A data set in memory.

    Attributes:
        name: one of :data:`NAMES`.
        train_x, test_x: float images, (N, channels, height, width), normalised as :func:`load_data` says.
        train_y, test_y: class numbers, (N,), int64.
        classes: number of classes.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    @cached_property
    def checksum(self) -> str:
        """The first 16 hexadecimal digits of sha256 over all images and labels as they are in this object."""
        digest = hashlib.sha256()
        for tensor in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()[:16]

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """The training images and labels."""
        return self.train_x, self.train_y

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """The test images and labels."""
        return self.test_x, self.test_y

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Data:
        """Return a copy on ``device``, with images of type ``dtype``."""
        return replace(self, train_x=self.train_x.to(device, dtype), test_x=self.test_x.to(device, dtype),
                       train_y=self.train_y.to(device), test_y=self.test_y.to(device))


def load_data(
    name: str, *, train_size: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32,
    root: str | Path | None = None, download: bool = True,
) -> Data:
    """Load a data set whole into memory.

    Args:
        name: one of :data:`NAMES`.
        train_size: number of training images. For ``digits`` the seed draws them and all others are the test set
            (default 1,000); for ``mnist1d`` the seed makes them (default 4,000), and 10,000 other signals are every
            seed's test set; else the first ``train_size`` of the official training set (default all).
        seed: as above; unused for torchvision's.
        dtype: of the images. ``digits`` are scaled to [0, 1]; ``mnist1d`` has images of 1x40 as its package scales
            them, of mean 0 and deviation 1; the others are normalised by channel mean and deviation.
        root: folder of torchvision's layout; default ``$SHARPNB_DATA``, else ``data/datasets``.
        download: whether torchvision may fetch what is missing.

    Raises:
        ValueError: for an unknown name or a size that the set does not have.
        DataError: if files, or a package, are missing and cannot be had, or are damaged.
    """
    if name not in NAMES:
        raise ValueError(f"There is no data set {name!r}. Choose one of {', '.join(NAMES)}.")
    try:
        if name == "digits":
            return _digits(1000 if train_size is None else train_size, seed, dtype)
        if name == "mnist1d":
            return _mnist1d(4000 if train_size is None else train_size, seed, dtype)
        data = _from_torchvision(name, Path(root) if root is not None else paths.datasets(), download, dtype)
    except ModuleNotFoundError as error:
        raise DataError(f"{name} needs {error.name}, which is missing: pip install 'sharpnb[notebooks]'.") from error
    if train_size is None:
        return data
    _check_size(name, train_size, len(data.train_y))
    return replace(data, train_x=data.train_x[:train_size], train_y=data.train_y[:train_size])


def with_label_noise(data: Data, rate: float, seed: int = 0) -> Data:
    """Return ``data`` with a share ``rate`` of the training labels moved to another class, drawn uniformly.

    Symmetric noise as in the SAM paper's Table 4: exactly ``round(rate * N)`` labels, each to a *different* class. The
    test labels stay clean. A ValueError for a rate outside [0, 1].
    """
    return replace(data, train_y=wrong_labels(data.train_y, rate, data.classes, seed))


def status(name: str, root: str | Path | None = None) -> str:
    """Say ``"ready"``, ``"missing: …"`` or ``"damaged: …"`` of a data set; every file is read and its MD5 compared."""
    if package := datafiles.PACKAGES.get(name):
        found = datafiles.fingerprint(name) != "missing"
        return "ready" if found else f"missing: {package} is not installed; pip install 'sharpnb[notebooks]'"
    folder = Path(root) if root is not None else paths.datasets()
    files = dict(zip(datafiles.files(name, folder), _md5s(name), strict=True))
    if absent := [file.name for file in files if not file.exists()]:
        return f"missing: {', '.join(absent[:3])}{' …' if len(absent) > 3 else ''} under {folder}"
    wrong = [file.name for file, md5 in files.items() if hashlib.md5(file.read_bytes()).hexdigest() != md5]
    return f"damaged: {', '.join(wrong)} under {folder}; delete it and call again" if wrong else "ready"


def _check_size(name: str, size: int, available: int) -> None:
    if not 1 <= size <= available:
        raise ValueError(f"train_size = {size}: {name} has {available} images to train on; choose 1 to {available}.")


@cache
def _all_digits() -> Any:
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)  # (1797, 64) and labels


def _digits(train_size: int, seed: int, dtype: torch.dtype) -> Data:
    images, labels = _all_digits()
    _check_size("digits", train_size, len(labels) - 1)
    x = torch.from_numpy(images).to(dtype).div(16).view(-1, 1, 8, 8)
    y = torch.from_numpy(labels).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    train, test = order[:train_size], order[train_size:]
    return Data("digits", x[train], y[train], x[test], y[test], classes=10)


_TEST_SEED, _TEST_SIZE = 2**31, 10_000  # of mnist1d; a seed of the training set is below 2**31


def _mnist1d(train_size: int, seed: int, dtype: torch.dtype) -> Data:
    _check_size("mnist1d", train_size, 50_000)
    train, test = _signals(train_size, seed % _TEST_SEED, dtype), _signals(_TEST_SIZE, _TEST_SEED, dtype)
    return Data("mnist1d", *train, *test, classes=10)  # all seeds share the test set in memory: many nets in one pass


@lru_cache(maxsize=128)
def _signals(size: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Make signals, (size, 1, 1, 40), and labels, by the package's own generators, which it seeds."""
    if dtype != torch.float64:
        x, y = _signals(size, seed, torch.float64)
        return x.to(dtype), y
    from mnist1d.data import get_dataset_args, make_dataset

    arguments: Any = get_dataset_args()
    vars(arguments).update(num_samples=10 * -(-size // 10), train_split=1.0, seed=seed)
    with kept_random_state():
        made = make_dataset(arguments)
    return torch.from_numpy(made["x"][:size]).view(-1, 1, 1, 40), torch.from_numpy(made["y"][:size]).long()


def _torchvision_class(name: str) -> Any:
    from torchvision import datasets

    return getattr(datasets, _TORCHVISION[name][0])


def _md5s(name: str) -> list[str]:
    """Return the MD5s that torchvision publishes, in the order of :func:`sharpnb.datafiles.files`."""
    source = _torchvision_class(name)
    if name == "svhn":
        return [source.split_list[part][2] for part in ("train", "test")]
    if name == "fashion_mnist":
        return [md5 for _, md5 in source.resources]
    return [md5 for _, md5 in (*source.train_list, *source.test_list)]


def _from_torchvision(name: str, root: Path, download: bool, dtype: torch.dtype) -> Data:
    mark = datafiles.mark(name, root)
    state, why = _checked(name, root, mark), ""
    if state == "ready" or (state.startswith("missing") and download):
        try:
            return _read(name, root, state != "ready", dtype, mark)
        except Exception as error:  # torchvision raises whatever its transport or its reader raised
            why = f", and torchvision could not fetch or read it ({error})"
    raise DataError(f"{name} is {state}{why}.\nPut torchvision's files of {_TORCHVISION[name][0]} under {root}, or set "
                    "SHARPNB_DATA to the folder that has them, or call again where a network is. `sharpnb data` shows "
                    "what is where; digits always works.")


@cache
def _checked(name: str, root: Path, mark: str) -> str:
    """Return :func:`status` of files with this ``mark``: hundreds of megabytes are read once, and after a change."""
    return status(name, root)


@lru_cache(maxsize=2)  # a study of the full profile asks for the same images piece by piece
def _read(name: str, root: Path, fetch: bool, dtype: torch.dtype, mark: str) -> Data:
    """Read a whole data set; ``mark`` is that of its files, so that others are read anew."""
    source, (_, mean, std) = _torchvision_class(name), _TORCHVISION[name]
    parts = [{"split": "train"}, {"split": "test"}] if name == "svhn" else [{"train": True}, {"train": False}]
    # A complete Fashion-MNIST still needs download=True, which unpacks the archives and fetches nothing.
    train, test = (source(str(root), download=fetch or name == "fashion_mnist", **part) for part in parts)
    (train_x, train_y), (test_x, test_y) = (_as_tensors(part, mean, std, dtype) for part in (train, test))
    return Data(name, train_x, train_y, test_x, test_y, classes=int(train_y.max()) + 1)


def _as_tensors(
    part: Any, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return normalised images, (N, C, H, W), and labels of one of torchvision's data sets."""
    images = torch.as_tensor(np.asarray(part.data))
    if images.ndim == 3:  # (N, H, W), grey
        images = images[:, None]
    elif images.shape[-1] == 3:  # (N, H, W, 3), as CIFAR
        images = images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(np.asarray(part.targets if hasattr(part, "targets") else part.labels)).long()
    centre, spread = (torch.tensor(values, dtype=dtype).view(1, -1, 1, 1) for values in (mean, std))
    return ((images.to(dtype) / 255 - centre) / spread).contiguous(), labels
