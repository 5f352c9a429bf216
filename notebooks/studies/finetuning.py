r"""Notebook 06: pretrain on some classes, fine-tune on others, with and without SAM (SAM's Tables 3 and 10)."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import imagefolder
import imagenet
from sharpnb.lab import Data, Notebook, load_data, models, train_many
from sharpnb.lab.pieces import Work
from sharpnb.lab.records import chosen_by
from sharpnb.many.engine import Nets
from studies.trials import best, grid

STARTS = ("scratch", "pretrained")


@dataclass(frozen=True)
class Settings:
    """What is trained: ``source`` classes are pretrained on, the others of ten are the target; a seed draws all.

    ``labels`` and ``validation`` are signals per target class to train on, and set apart to choose hyperparameters by;
    ``model`` is (classes, seed) -> net. All pairs of ``lrs`` and ``decays`` are SGD's trials; SAM takes over its best
    pair and tries as many radii.
    """

    source: int
    labels: tuple[int, ...]
    signals: int
    validation: int
    model: Callable[[int, int], nn.Module]
    pretrain_steps: int
    steps: int
    lrs: tuple[float, ...]
    decays: tuple[float, ...]
    rhos: tuple[float, ...]
    tuning: range
    seeds: range
    batch_size: int = 12
    chosen_by: str = ""


def _mlp(classes: int, seed: int) -> nn.Module:  # its name is in the record of the tuning
    return models.mlp((40, 100, 100, classes), seed=seed)


QUICK = Settings(
    source=7, labels=(4, 16, 64), signals=3000, validation=100, model=_mlp, pretrain_steps=1000, steps=300,
    lrs=(0.01, 0.03, 0.1), decays=(0.0, 1e-3, 1e-2, 3e-2), tuning=range(100, 106), seeds=range(2000, 2020),
    rhos=(0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    chosen_by=chosen_by("06_finetuning"))


@dataclass(frozen=True)
class Task:
    """One seed's signals: of the source classes, and of the target classes with labels per class; for validation."""

    source: Data
    target: dict[int, Data]
    validation: Data


def task(s: Settings, seed: int) -> Task:
    """Split classes and signals by a seed; the classes of either part are numbered from 0."""
    whole = load_data("mnist1d", train_size=s.signals, seed=seed, dtype=torch.float64)
    new = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).argsort()
    (x, y), (test_x, test_y) = (whole.train_x, new[whole.train_y]), (whole.test_x, new[whole.test_y])
    first, tested = y < s.source, test_y < s.source
    size = 9 * s.signals * s.source // 100  # of each seed equally many
    source = Data("mnist1d", x[first][:size], y[first][:size], test_x[tested], test_y[tested], s.source)
    places = [torch.nonzero(y == c)[:, 0] for c in range(s.source, 10)]

    def target(rows: Tensor, test: tuple[Tensor, Tensor]) -> Data:
        return Data("mnist1d", x[rows], y[rows] - s.source, *test, 10 - s.source)

    held = torch.cat([rows[: s.validation] for rows in places])
    test = test_x[~tested], test_y[~tested] - s.source
    few = {n: torch.cat([rows[s.validation : s.validation + n] for rows in places]) for n in s.labels}
    return Task(source, {n: target(rows, test) for n, rows in few.items()},
                target(few[s.labels[0]], (x[held], y[held] - s.source)))


def start(s: Settings, weights: Tensor | None, seed: int) -> nn.Module:
    """Return a target net: new where ``weights`` is None, else the pretrained one with its last layer drawn anew."""
    net = s.model(10 - s.source, 1000 + seed).double()
    if weights is not None:
        old = s.model(s.source, seed).double()
        nn.utils.vector_to_parameters(weights.clone(), old.parameters())
        for new_layer, old_layer in zip(list(net.children())[:-1], list(old.children())[:-1], strict=True):
            new_layer.load_state_dict(old_layer.state_dict())
    return net


class Bench:
    """The tasks of some seeds and the nets that fine-tuning starts from.

    ``source`` are mean training and test error on the source classes after pretraining, in percent.
    """

    def __init__(self, s: Settings, seeds: Sequence[int]) -> None:
        self.s, self.tasks = s, {seed: task(s, seed) for seed in seeds}
        rule = {"rule": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
        many = train_many([{**rule, "seed": seed} for seed in seeds], [t.source for t in self.tasks.values()],
                          lambda seed: s.model(s.source, seed), steps=s.pretrain_steps, device="cpu",
                          dtype=torch.float64)
        self.source = pd.DataFrame(many.final())[["train_error", "test_error"]].mean()
        self._nets = {name: {seed: start(s, w if name == "pretrained" else None, seed)
                             for seed, w in zip(seeds, many.weights, strict=True)} for name in STARTS}

    def fit(self, name: str, labels: int, trials: Sequence[Mapping[str, Any]], times: int = 1) -> list[dict[str, Any]]:
        """Train each trial from each seed's net ``name``, ``times`` as long; return a row each, errors in percent."""
        nets, there = self._nets[name], {"start": name, "labels": labels, "times": times}
        configs = [{"momentum": 0.9, **trial, "seed": seed} for trial in trials for seed in self.tasks]
        many = train_many(configs, [t.target[labels] for _ in trials for t in self.tasks.values()], nets.__getitem__,
                          steps=times * self.s.steps, batch_size=self.s.batch_size, device="cpu", dtype=torch.float64)
        held = Nets([config["seed"] for config in configs], [self.tasks[c["seed"]].validation for c in configs],
                    nets.__getitem__).errors(many.weights, "test").tolist()
        return [{**there, "rho": 0.0, **config, "train_error": final["train_error"], "test_error": final["test_error"],
                 "validation_error": error}
                for config, final, error in zip(configs, many.final(), held, strict=True)]


def tuned(s: Settings) -> dict[str, Any]:
    """Train all trials on the tuning seeds; return the rows of :meth:`Bench.fit`, column by column."""
    bench, rows = Bench(s, s.tuning), []
    for labels in s.labels:
        sgd = grid(rule=["sgd"], lr=s.lrs, weight_decay=s.decays)
        for name in STARTS:
            rows += bench.fit(name, labels, sgd)
        sam = {**picked(rows, labels)["pretrained"], "rule": "sam"}
        rows += bench.fit("pretrained", labels, [{**sam, "rho": rho} for rho in s.rhos])
    return pd.DataFrame(rows).drop(columns=["momentum", "times"]).to_dict("list")


def picked(rows: Any, labels: int) -> dict[str, dict[str, Any]]:
    """Return the trials of least mean validation error: SGD's from either start, and ``"SAM"``; of equals the first."""
    table = pd.DataFrame(rows)
    table, found = table[table["labels"] == labels], {}
    for name, begun, rule in (*((name, name, "sgd") for name in STARTS), ("SAM", "pretrained", "sam")):
        keys = ["rule", "lr", "weight_decay"] + ["rho"] * (rule == "sam")
        own = table[(table["start"] == begun) & (table["rule"] == rule)]
        if len(own):
            found[name] = {key: value if key == "rule" else float(value)
                           for key, value in best(own, *keys, error="validation_error").items()}
    return found


def toy_images(root: Path, a_class: int = 6, side: int = 32) -> Path:
    """Write PNGs of three classes that differ in colour: ``train/`` and half as many in ``val/``."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", a_class), ("val", a_class // 2)):
        for colour in range(3):
            folder = root / part / f"class{colour}"
            folder.mkdir(parents=True, exist_ok=True)
            for k in range(count):
                pixels = rng.integers(0, 120, (side, side, 3), dtype=np.uint8)
                pixels[..., colour] += 100
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return root


def full_rows(nb: Notebook, images: str, network: str) -> list[dict[str, Any]]:
    """Fine-tune ``network`` on a folder of images: SGD, SGD twice as long, SAM with rho = 0.05, three seeds each.

    The protocol is ``imagenet.PROTOCOLS["table3"]``, with batches of 1,024 images or all there are. A stopped run goes
    on from its checkpoint. Without a folder the answer is empty.
    """
    if nb.profile == "toy":
        return _toy_rows(network)
    if not images:
        return []
    count = len(imagefolder.folders(Path(images))[0])
    p = replace(imagenet.PROTOCOLS["table3"], model=network, batch_size=min(1024, count))
    every = max(1, p.steps // (count // p.batch_size) // 50)

    def make(work: Work) -> dict[str, Any]:
        rows = _runs(p, Path(images), work.folder, seeds=3, work=work, device=str(nb.device), every=every,
                     bf16=nb.device.type == "cuda", workers=8)
        return {"rows": rows, "images": count, "network": network}

    return nb.recorded("finetuning", make, of={"protocol": p, "images": images}, rtol=5e-2)["rows"]


def _toy_rows(network: str) -> list[dict[str, Any]]:
    p = replace(imagenet.PROTOCOLS["table3"], model=network, weights="none", frozen_norm=False, steps=2, batch_size=6,
                resolution=32)
    with tempfile.TemporaryDirectory() as folder:
        images = toy_images(Path(folder, "images"))
        return _runs(p, images, Path(folder, "runs"), seeds=1, device="cpu", every=1)


def _runs(
    p: imagenet.Protocol, images: Path, runs: Path, seeds: int, work: Work | None = None, **options: Any
) -> list[dict[str, Any]]:
    arms = {"SGD": replace(p, rho=0.0), "SGD, twice": replace(p, rho=0.0, steps=2 * p.steps), "SAM": p}
    rows = []
    for seed in range(seeds):
        for name, arm in arms.items():
            out = runs / f"{p.model}-{name.replace(', ', '-')}-{seed}"
            fit = partial(imagenet.fit, images, arm, out, seed=seed, **options)
            history = fit() if work is None else work.do(name, lambda fit=fit: {"rows": fit()}, seed=seed)["rows"]
            rows += [{"method": name, "seed": seed, **row} for row in history]
    return rows
