"""Which files each data set consists of, and a mark that changes when they do.

No torch here, and no torchvision, whose import takes seconds: the runner asks for the marks before every run.
"""

from __future__ import annotations

from pathlib import Path

from sharpnb import paths

# name -> (folder, its files) of torchvision's layout; a test holds them against torchvision's own lists.
LAYOUT: dict[str, tuple[str, tuple[str, ...]]] = {
    "fashion_mnist": ("FashionMNIST/raw", tuple(
        f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))),
    "cifar10": ("cifar-10-batches-py", (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")),
    "cifar100": ("cifar-100-python", ("train", "test")),
    "svhn": (".", ("train_32x32.mat", "test_32x32.mat")),
}
# name -> the package that ships it or makes it.
PACKAGES = {"digits": "scikit-learn", "mnist1d": "mnist1d"}
NAMES = (*PACKAGES, *LAYOUT)


def files(name: str, root: Path) -> list[Path]:
    """Return where the files of one of torchvision's data sets lie under ``root``, whether they are there or not."""
    folder, names = LAYOUT[name]
    return [root / folder / file for file in names]


def mark(name: str, root: Path) -> str:
    """Return a short text that changes when the files under ``root`` do: names, sizes and times; nothing is read."""
    found = [(file.name, file.stat()) for file in files(name, root) if file.exists()]
    return ";".join(f"{file}:{stat.st_size}:{stat.st_mtime_ns}" for file, stat in found) or "missing"


def fingerprint(name: str) -> str:
    """Return :func:`mark` of a data set where it is looked for; or the package that it comes from."""
    if name not in PACKAGES:
        return mark(name, paths.datasets())
    found = paths.version(PACKAGES[name])
    return f"{PACKAGES[name]} {found}" if found else "missing"
