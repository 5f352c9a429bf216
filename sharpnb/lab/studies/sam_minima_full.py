"""Notebook 02 at the paper's scale: every cell of SAM's Tables 1, 5 and 9, one record each, resumed by training.

And the survey: the same code on cells that a CPU carries in minutes.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sharpnb.lab import families, models
from sharpnb.lab.data import Data, load_data
from sharpnb.lab.notebook import Notebook, start
from sharpnb.lab.records import Record
from sharpnb.lab.studies import sam_minima_published as published
from sharpnb.lab.studies.sam_minima import NETS, SMALL, Build, Entry, augmentation, flatness, gains, pooled
from sharpnb.lab.training import evaluate, train
from sharpnb.optim import SAM


@dataclass(frozen=True)
class Cell:
    """One cell of Tables 1 and 5.

    Attributes:
        data, model, augmentation: where it stands.
        epochs: E; SGD has E and 2E.
        lr, weight_decay, rho: Tables 6 and 7.
        build: seed -> net.
        flat: measure the minima too (Fig. 1).
        size: side of the images.
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
        plain = "".join(c if c.isalnum() else "-" for c in f"{self.data} {self.model} {self.augmentation}".lower())
        return "-".join(part for part in plain.split("-") if part)

    @property
    def methods(self) -> dict[str, tuple[float, int]]:
        """Method -> radius and multiple of the epochs; SAM at 0.05 (Table 9) where that is not the tuned radius."""
        untuned = {} if self.rho == 0.05 else {"SAM, untuned": (0.05, 1)}
        return {"SAM": (self.rho, 1), "SGD, E": (0.0, 1), "SGD, 2E": (0.0, 2), **untuned}


@dataclass(frozen=True)
class Full:
    """A set of cells and what they share.

    Attributes:
        cells: in the order in which they are run.
        seeds: of each method.
        batch_size: images an update.
        train_size: training images (None: all).
        grid, images: points a side, and training images, of the surfaces.
        test_size: images to test on (None: all).
        copies: variants of each image that are drawn before a cell's first training (0: anew in each batch).
    """

    cells: tuple[Cell, ...]
    seeds: int = 5
    batch_size: int = 256
    train_size: int | None = None
    grid: int = 51
    images: int = 1024
    test_size: int | None = None
    copies: int = 0


def _builders(classes: int, channels: int) -> dict[str, tuple[Build, int]]:
    """Return each of Table 1's nets with its epochs. Those of the last three are ours: no source at hand has them."""
    shape = {"classes": classes, "channels": channels}
    wide: Build = lambda seed: models.wide_resnet(28, 10, **shape, seed=seed)  # noqa: E731
    return dict(zip(published.MODELS, (
        (wide, 200), (wide, 1800), (lambda seed: families.shake_shake(26, 96, **shape, seed=seed), 1800),
        (lambda seed: families.pyramid_net(272, 200, **shape, seed=seed), 200),
        (lambda seed: families.pyramid_net(272, 200, last_keep=0.5, **shape, seed=seed), 1800),
    ), strict=True))


def full() -> Full:
    """Return every cell of Tables 1 and 5, those of few epochs first."""
    cells = []
    for (data, model), (lr, decay, rho) in published.HYPER.items():
        small = data in ("svhn", "fashion_mnist")
        build, epochs = _builders(100 if data == "cifar100" else 10, 1 if data == "fashion_mnist" else 3)[model]
        for name in ("Basic", "AA") if small else published.AUGMENTATIONS:
            flat = (data, model, name) == ("cifar10", published.MODELS[0], "Basic")
            cells.append(Cell(data, model, name, 200 if small else epochs, lr, decay, rho, build, flat,
                              28 if data == "fashion_mnist" else 32))
    return Full(tuple(sorted(cells, key=lambda cell: cell.epochs)))


def toy() -> Full:
    """The full profile's code on digits: all families, all augmentations, both radii."""
    kinds = zip(SMALL, ("Basic", "Cutout", "AA", "Basic"), (0.05, 0.02, 0.05, 0.05), strict=True)
    cells = (Cell("digits", net, name, 1, 0.05, 5e-4, rho, NETS[net].build, net == SMALL[0], 8)
             for net, name, rho in kinds)
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
    rho, times = cell.methods[method]
    model, began = cell.build(seed), time.process_time()
    base = torch.optim.SGD(model.parameters(), lr=cell.lr, momentum=0.9, weight_decay=cell.weight_decay, nesterov=True)
    optimizer = TrueAscent(base, rho=rho, model=model) if rho else base
    epoch, images = max(1, len(data.train_y) // scale.batch_size), _images(cell, data, scale.copies)
    augment = None if scale.copies else augmentation(cell.data, cell.augmentation, cell.size)
    with torch.random.fork_rng(devices=[nb.device] if nb.device.type == "cuda" else []):
        torch.manual_seed(seed)
        history = train(model, images, optimizer, steps=times * cell.epochs * epoch, batch_size=scale.batch_size,
                        seed=seed, device=nb.device, augment=augment, bf16=nb.device.type == "cuda", keep=(0, epoch))
    families.set_true_gradient(model, False)
    seen = history.weights
    entry = {"data": cell.data, "model": cell.model, "augmentation": cell.augmentation, "method": method, "rho": rho,
             "seed": seed, "test_error": history.rows[-1]["test_error"],
             "train_error": evaluate(model, data.to(nb.device).train)[1],  # of the images themselves
             "first_epoch": float((seen[epoch] - seen[0]).norm()) if epoch in seen else math.nan,  # distance moved
             "cpu_seconds": round(time.process_time() - began, 2)}
    if cell.flat:
        part = tuple(t[: scale.images].to(nb.device) for t in data.train)
        entry |= flatness(model.eval(), (part[0], part[1]), size=scale.grid, seed=seed)
    return entry


def _loaded(nb: Notebook, scale: Full, name: str) -> Data:
    data = load_data(name, train_size=scale.train_size)
    return nb.uses(replace(data, test_x=data.test_x[: scale.test_size], test_y=data.test_y[: scale.test_size]))


def _settings(scale: Full, cell: Cell) -> str:
    text = f"{cell.methods} {cell.epochs} epochs, lr {cell.lr}, decay {cell.weight_decay}, batch {scale.batch_size}"
    return text + (f", {scale.train_size or 'all'} images, {scale.copies} copies" if scale.copies else "")


def run_cell(nb: Notebook, scale: Full, cell: Cell) -> list[Entry]:
    """Run what a cell's record lacks, and save after each training, so that a killed run goes on where it was."""
    settings = _settings(scale, cell)
    found = Record.find(nb.name, cell.name, nb.profile)
    entries = list(found.values["entries"]) if found and found.values["settings"] == settings else []
    done = {(e["method"], e["seed"]) for e in entries}
    todo = [(m, seed) for seed in range(scale.seeds) for m in cell.methods if (m, seed) not in done]
    data = _loaded(nb, scale, cell.data) if todo else None
    for method, seed in todo:
        assert data is not None
        entries.append(one(nb, scale, cell, data, method, seed))
        nb.record(cell.name, {"settings": settings, "entries": entries}, rtol=5e-2, atol=0.5)
    return entries


def run_full(nb: Notebook, only: str = "") -> list[Entry]:
    """Run the cells whose name contains ``only``, one after another."""
    scale = full() if nb.profile == "full" else toy()
    return [entry for cell in scale.cells if only in cell.name for entry in run_cell(nb, scale, cell)]


def full_gains(nb: Notebook, data: str, model: str, *, untuned: bool = False) -> list[float] | None:
    """Return SGD's error less SAM's from the committed full records of a row, or None until all its cells are there.

    One number a seed: the mean over the row's augmentations. ``untuned`` is Table 9: the radius 0.05.
    """
    scale = full()
    rows = []
    for cell in (cell for cell in scale.cells if (cell.data, cell.model) == (data, model)):
        values = nb.full_record(cell.name)
        if values is None or len(values["entries"]) < scale.seeds * len(cell.methods):
            return None
        rows.append(gains(values["entries"], model, cell.augmentation, 0.05 if untuned else cell.rho))
    return np.mean(rows, axis=0).tolist()


# -- the survey -------------------------------------------------------------------------------------------------------


def survey() -> Full:
    """Return the cells of Tables 1 and 5 as small nets on few images; 15 to 20 CPU minutes were allowed for all.

    Learning rate and weight decay are those of Tables 6 and 7 for the family (CIFAR-10's for the digits), the radius is
    the default of 0.05 (Table 9). Fashion-MNIST has its two augmentations of Table 5, for the first net; its images are
    averaged over 2 x 2 pixels by the net's first layer.
    """
    families_of = (published.MODELS[0], *published.MODELS[2:])
    cells = []
    for name in published.AUGMENTATIONS:
        for net, paper in zip(SMALL, families_of, strict=True):
            lr, decay, _ = published.HYPER["cifar10", paper]
            cells.append(Cell("digits", net, name, 20, lr, decay, 0.05, NETS[net].build, size=8))
        if name != "Cutout":
            lr, decay, _ = published.HYPER["fashion_mnist", published.MODELS[0]]
            cells.append(Cell("fashion_mnist", SMALL[0], name, 60, lr, decay, 0.05, _halved(SMALL[0]), size=28))
    return Full(tuple(cells), seeds=3, batch_size=25, train_size=300, test_size=2000, copies=8)


def _halved(net: str) -> Build:
    return lambda seed: nn.Sequential(nn.AvgPool2d(2), NETS[net].build(seed))


def run_survey(only: str = "", seconds: float = math.inf) -> None:
    """Run what the survey's records lack, cells whose name contains ``only``; start no cell after so many seconds."""
    scale, began = survey(), time.monotonic()
    for cell in scale.cells:
        if only in cell.name and time.monotonic() - began < seconds:
            run_cell(_survey_context(), scale, cell)


def _survey_context() -> Notebook:
    """Return a context for one cell, whose provenance then has the cell's own time."""
    nb = start("02_sam_minima", profile="full", device="cpu")
    nb.profile = nb.parameters["profile"] = "survey"
    return nb


def surveyed() -> list[Entry]:
    """Return the entries of the survey's committed records that are complete, in the order of its cells."""
    scale, entries = survey(), []
    for cell in scale.cells:
        found = Record.find("02_sam_minima", cell.name, "survey")
        if found and found.values["settings"] == _settings(scale, cell):
            mine = found.values["entries"]
            entries += mine if len(mine) == scale.seeds * len(cell.methods) else []
    return entries


def again(entry: Entry) -> Entry:
    """Train one net of the survey anew, to be compared with its ``entry`` in the record."""
    scale, nb = survey(), _survey_context()
    where = ("data", "model", "augmentation")
    cell = next(cell for cell in scale.cells if all(getattr(cell, key) == entry[key] for key in where))
    return one(nb, scale, cell, _loaded(nb, scale, cell.data), entry["method"], entry["seed"])
