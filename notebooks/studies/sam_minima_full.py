"""Notebook 02 on CIFAR-10 and Fashion-MNIST: cells of SAM's Tables 1 and 5, one record each, resumed by training.

And the survey: the same code on cells that a CPU carries in minutes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from sharpnb.lab import Data, Notebook, Record, evaluate, load_data, models, train
from sharpnb.lab.pieces import Work
from sharpnb.optim import SAM
from studies import families
from studies import sam_minima_published as published
from studies.sam_minima import Entry, Place, augmentation, cells, flatness, pooled

Build = Callable[[int], nn.Module]
SMALL: dict[str, Build] = {  # members of the families of Table 1, of three residual blocks
    "WRN-10-1": lambda seed: models.wide_resnet(10, 1, stem=8, channels=1, seed=seed),
    "Shake-Shake 8 2x8d": lambda seed: families.shake_shake(8, 8, stem=8, channels=1, seed=seed),
    "PyramidNet-8": lambda seed: families.pyramid_net(8, 24, stem=8, channels=1, seed=seed),
    "PyramidNet-8 + ShakeDrop": lambda seed: families.pyramid_net(8, 24, last_keep=0.5, stem=8, channels=1, seed=seed),
}


@dataclass(frozen=True)
class Cell:
    """One cell of Tables 1 and 5: SGD has E and 2E ``epochs``; ``build`` is seed -> net.

    ``flat``: measure the minima too (Fig. 1). ``size``: side of the images.
    """

    data: str
    model: str
    augmentation: str
    epochs: int
    lr: float
    weight_decay: float
    rho: float
    build: Build
    flat: bool = False
    size: int = 32

    @property
    def name(self) -> str:
        """Name of its record."""
        words = f"{self.data} {self.model} {self.augmentation}".lower()
        return "-".join("".join(c if c.isalnum() else " " for c in words).split())

    @property
    def methods(self) -> dict[str, tuple[float, int]]:
        """Method -> radius and multiple of the epochs."""
        return {"SAM": (self.rho, 1), "SGD, E": (0.0, 1), "SGD, 2E": (0.0, 2)}


@dataclass(frozen=True)
class Full:
    """A set of cells and what they share.

    ``grid`` and ``images`` are points a side and training images of the surfaces; ``copies`` are variants of each image
    drawn before a cell's first training (0: anew in each batch).
    """

    cells: tuple[Cell, ...]
    seeds: int
    batch_size: int = 256
    train_size: int | None = None
    grid: int = 51
    images: int = 1024
    test_size: int | None = None
    copies: int = 0
    label: str = "one shard of 256, no extra SVHN images"


def full() -> Full:
    """Return what fits into the budget: two rows of the tables with a small net in the place of WRN-28-10.

    Seeds, augmentations and epochs are cut too; learning rate, weight decay and radius are those of Tables 6 and 7.
    """
    def cell(data: str, name: str, flat: bool, channels: int, size: int) -> Cell:
        wide = published.MODELS[0]
        return Cell(data, wide, name, 5, *published.HYPER[wide], 0.05,
                    lambda seed: models.wide_resnet(10, 2, channels=channels, seed=seed), flat, size)

    cells = (cell("cifar10", "Basic", True, 3, 32), cell("cifar10", "Cutout", False, 3, 32),
             cell("fashion_mnist", "Basic", False, 1, 28))
    return Full(cells, seeds=2, grid=21, images=512, label="WRN-10-2 for WRN-28-10, E = 5 epochs")


def toy() -> Full:
    """The full profile's code on digits: all families, all augmentations."""
    cells = (Cell("digits", net, name, 1, 0.05, 5e-4, 0.05, SMALL[net], net == "WRN-10-1", 8)
             for net, name in zip(SMALL, ("Basic", "Cutout", "AA", "Basic"), strict=True))
    return Full(tuple(cells), seeds=2, batch_size=32, train_size=64, grid=3, images=32)


class TrueAscent(SAM):
    """SAM in whose ascent pass the shakes of ``model`` use their forward numbers backward too (the authors' code)."""

    def _two_passes(self, run: Any, scaler: Any) -> Any:
        families.set_true_gradient(self._shaken, True)
        return super()._two_passes(run, scaler)

    def _at_perturbed(self, run: Any, scaler: Any, first: dict[Tensor, Tensor]) -> None:
        families.set_true_gradient(self._shaken, False)
        super()._at_perturbed(run, scaler, first)

    @property
    def _shaken(self) -> nn.Module:
        assert self.model is not None
        return self.model


@cache
def _images(cell: Cell, data: Data, copies: int) -> Data:
    return pooled(data, cell.augmentation, copies) if copies else data


def one(nb: Notebook, scale: Full, cell: Cell, data: Data, method: str, seed: int) -> Entry:
    """Train one net of a cell; SGD has Nesterov momentum, as the authors'."""
    (rho, times), on_gpu = cell.methods[method], nb.device.type == "cuda"  # where the host is not to be waited for
    model, began = cell.build(seed).to(nb.device), time.process_time()
    base = torch.optim.SGD(model.parameters(), lr=cell.lr, momentum=0.9, weight_decay=cell.weight_decay, nesterov=True)
    optimizer = TrueAscent(base, rho=rho, model=model, skip_nonfinite=not on_gpu) if rho else base
    epoch, images = max(1, len(data.train_y) // scale.batch_size), _images(cell, data, scale.copies)
    augment = None if scale.copies else augmentation(cell.data, cell.augmentation, cell.size)
    with torch.random.fork_rng(devices=[nb.device] if on_gpu else []):
        torch.manual_seed(seed)
        history = train(model, images, optimizer, steps=times * cell.epochs * epoch, batch_size=scale.batch_size,
                        seed=seed, device=nb.device, augment=augment, bf16=nb.bf16,
                        graphs=not families.shakes(model))
    families.set_true_gradient(model, False)
    entry = {"data": cell.data, "model": cell.model, "augmentation": cell.augmentation, "method": method, "rho": rho,
             "seed": seed, "test_error": history.rows[-1]["test_error"],
             "train_error": evaluate(model, data.to(nb.device).train)[1],  # of the images themselves
             "cpu_seconds": round(time.process_time() - began, 2)}
    if cell.flat:
        part = tuple(t[: scale.images].to(nb.device) for t in data.train)
        entry |= flatness(model.eval(), (part[0], part[1]), size=scale.grid, seed=seed)
    return entry


def _settings(scale: Full, cell: Cell) -> str:
    text = f"{cell.methods} {cell.epochs} epochs, lr {cell.lr}, decay {cell.weight_decay}, batch {scale.batch_size}"
    text += f", {scale.train_size or 'all'} images, {scale.copies} copies" if scale.copies else ""
    return text + (f", {scale.label}" if scale.label != Full.label else "")


def _entries(values: dict[str, Any] | None, scale: Full, cell: Cell) -> list[Entry]:
    """Return the entries of a record that holds every training of a cell, made with these settings; of others none."""
    same = values and values["settings"] == _settings(scale, cell)
    return values["entries"] if same and len(values["entries"]) == scale.seeds * len(cell.methods) else []


def run_cell(nb: Notebook, scale: Full, cell: Cell) -> list[Entry]:
    """Run a cell, a piece a training, or read its record."""
    settings = _settings(scale, cell)

    def make(work: Work) -> dict[str, Any]:
        data = load_data(cell.data, train_size=scale.train_size)
        data = nb.uses(replace(data, test_x=data.test_x[: scale.test_size], test_y=data.test_y[: scale.test_size]))
        entries = [work.do(method, partial(one, nb, scale, cell, data, method, seed), seed=seed)
                   for seed in range(scale.seeds) for method in cell.methods]
        return {"settings": settings, "entries": entries}

    return nb.recorded(cell.name, make, of=[settings, cell], rtol=5e-2, atol=0.5)["entries"]


def run_full(nb: Notebook) -> list[Entry]:
    """Run the cells of the budget one after another."""
    scale = full() if nb.profile == "full" else toy()
    return [entry for cell in scale.cells for entry in run_cell(nb, scale, cell)]


def full_cells(nb: Notebook) -> dict[Place, pd.DataFrame]:
    """Return the cells whose full record is committed and was made with the settings of today."""
    scale = full()
    return cells([entry for cell in scale.cells for entry in _entries(nb.full_record(cell.name), scale, cell)])


def survey() -> Full:
    """Return the cells of Tables 1 and 5 as small nets on few images; 15 to 20 CPU minutes were allowed for all.

    Learning rate and weight decay are those of Tables 6 and 7 for the family (CIFAR-10's for the digits), the radius is
    the default of 0.05 (Table 9). Fashion-MNIST has its two augmentations of Table 5, for the first net; its images are
    averaged over 2 x 2 pixels by the net's first layer.
    """
    def halved(seed: int) -> nn.Module:
        return nn.Sequential(nn.AvgPool2d(2), SMALL["WRN-10-1"](seed))

    families_of, cells = (published.MODELS[0], *published.MODELS[2:]), []
    for name in published.AUGMENTATIONS:
        cells += [Cell("digits", net, name, 20, *published.HYPER[paper], 0.05, SMALL[net], size=8)
                  for net, paper in zip(SMALL, families_of, strict=True)]
        if name != "Cutout":
            cells.append(Cell("fashion_mnist", "WRN-10-1", name, 60, *published.HYPER[families_of[0]], 0.05, halved,
                              size=28))
    return Full(tuple(cells), seeds=3, batch_size=25, train_size=300, test_size=2000, copies=8)


def surveyed() -> list[Entry]:
    """Return the entries of the survey's complete records, which :func:`run_cell` makes where the profile is that."""
    scale = survey()
    found = {cell: Record.find("02_sam_minima", cell.name, "survey") for cell in scale.cells}
    return [entry for cell, record in found.items() for entry in _entries(record and record.values, scale, cell)]
