"""Notebook 05: wrong labels. SGD, Mixup, SAM, its relatives, the bootstrap (SAM's Tables 4, 8; WSAM's Table 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from sharpnb import rules
from sharpnb.lab import models
from sharpnb.lab.augment import Augment, shift_and_flip
from sharpnb.lab.data import Data, load_data, with_label_noise
from sharpnb.lab.many import train_many
from sharpnb.lab.mixup import Mixup, bootstrapped
from sharpnb.lab.notebook import Notebook
from sharpnb.lab.records import Record
from sharpnb.lab.rows import Rows

NOISES = (0.2, 0.4, 0.6, 0.8)
RANDOM = 0.9  # of ten classes: every label is then as likely as every other
Entry = dict[str, Any]

# Accuracies of the paper's Table 4 in percent, by method and NOISES; the rows above the line are quoted from the
# literature there, and here.
LITERATURE = {
    "Sanchez et al. 2019": (94.0, 92.8, 90.3, 74.1), "Zhang & Sabuncu 2018": (89.7, 87.6, 82.7, 67.9),
    "Lee et al. 2019": (87.1, 81.8, 75.4, None), "Chen et al. 2019": (89.7, None, None, 52.3),
    "Huang et al. 2019": (92.6, 90.3, 43.4, None), "MentorNet 2017": (92.0, 91.2, 74.2, 60.0),
    "Mixup 2017": (94.0, 91.5, 86.8, 76.9), "MentorMix 2019": (95.6, 94.2, 91.3, 81.0),
}
PAPER = {
    "SGD": (84.8, 68.8, 48.2, 26.2), "Mixup": (93.0, 90.0, 83.8, 70.2), "Bootstrap + Mixup": (93.3, 92.0, 87.6, 72.0),
    "SAM": (95.1, 93.4, 90.5, 77.9), "Bootstrap + SAM": (95.4, 94.2, 91.8, 79.9),
}
METHODS = (*PAPER, "ESAM", "GSAM", "WSAM")


@dataclass(frozen=True)
class Settings:
    """What is trained, and over which hyperparameters.

    Attributes:
        label: net and data in a few words, for the claims.
        data: name of the data set.
        train_size: training images whose labels are made wrong.
        validation: clean images beside them, which choose ρ, α and γ (the paper's way).
        model: seed -> net.
        steps, batch_size, lr, momentum, weight_decay: of every method.
        rhos: radii of SAM; the first is 0, which is SGD.
        gammas, alphas: weights of WSAM, and of GSAM's orthogonal part.
        seeds: number of seeds.
        mixes: Mixup's α; the default is the paper's (Appendix C.2).
        dtype: of weights and images.
        augment: of the training images.
        chunk: members in one program.
    """

    label: str
    data: str
    train_size: int
    validation: int
    model: Callable[[int], nn.Module]
    steps: int
    rhos: tuple[float, ...]
    gammas: tuple[float, ...]
    alphas: tuple[float, ...]
    seeds: int
    mixes: tuple[float, ...] = (1.0, 8.0, 16.0, 32.0)
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    dtype: torch.dtype = torch.float32
    augment: Augment | None = None
    chunk: int = 32

    @property
    def base(self) -> dict[str, float]:
        """The hyperparameters of the base rule."""
        return {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay}


# Net, learning rate and the range of radii are taken over from a survey made before this notebook (1,000 images, 1,200
# steps); images and steps are fewer here, for time. Nothing was tuned here.
QUICK = Settings("MLP, digits", "digits", 300, 200, lambda seed: models.mlp((64, 64, 10), seed=seed), steps=320,
                 rhos=(0.0, 0.1, 0.3, 0.5, 1.0), gammas=(0.8, 0.9), alphas=(0.03, 0.1), mixes=(1.0, 8.0, 32.0), seeds=3,
                 dtype=torch.float64)
# The paper's net, schedule, radii and validation split.
FULL = Settings("ResNet-32, CIFAR-10", "cifar10", 45_000, 5000, lambda seed: models.resnet(32, seed=seed),
                steps=200 * 175, rhos=(0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5), gammas=(0.8, 0.9, 0.94),
                alphas=(0.02, 0.1, 0.3), seeds=3, batch_size=256, weight_decay=5e-4,
                augment=shift_and_flip(4, flip=True), chunk=12)
TOY = Settings("MLP with BatchNorm, digits", "digits", 96, 32,
               lambda seed: models.mlp((64, 8, 10), norm=True, seed=seed),
               steps=4, rhos=(0.0, 0.05), gammas=(0.8,), alphas=(0.1,), seeds=2, batch_size=32, lr=0.02,
               augment=shift_and_flip(1, flip=False), chunk=8)


def settings(profile: str) -> Settings:
    """Return the settings of a profile."""
    return {"quick": QUICK, "full": FULL, "toy": TOY}[profile]


@cache
def parts(name: str, size: int, validation: int, seed: int, dtype: torch.dtype, noise: float) -> tuple[Data, Data]:
    """Return the data with a share of wrong training labels; and the same, its test set the clean validation images."""
    whole = load_data(name, train_size=size + validation, seed=seed, dtype=dtype)
    data = with_label_noise(replace(whole, train_x=whole.train_x[:size], train_y=whole.train_y[:size]), noise, seed)
    return data, replace(data, test_x=whole.train_x[size:], test_y=whole.train_y[size:])


def _parts(s: Settings, entry: Entry) -> tuple[Data, Data]:
    size = s.train_size // (3 if entry["noise"] == RANDOM else 1)  # memorising takes long; a third of the images does
    return parts(s.data, size, s.validation, entry["seed"], s.dtype, entry["noise"])


def grid(s: Settings, method: str, values: Sequence[float], noises: Sequence[float] = NOISES) -> list[Entry]:
    """Return one entry for each hyperparameter, noise and seed of a method."""
    return [{"method": method, "value": value, "noise": noise, "seed": seed}
            for value in values for noise in noises for seed in range(s.seeds)]


def _with_labels(s: Settings, entries: Sequence[Entry], labels: Sequence[Data] | None) -> list[Data]:
    return list(labels) if labels is not None else [_parts(s, entry)[0] for entry in entries]


def with_rule(
    s: Settings, nb: Notebook, entries: Sequence[Entry], config: Callable[[Entry], dict[str, Any]],
    labels: Sequence[Data] | None = None,
) -> Tensor:
    """Train one member an entry by a rule; fill in the errors, and return the weights, (K, n)."""
    configs = [{"seed": entry["seed"], **s.base, **config(entry)} for entry in entries]
    many = train_many(configs, _with_labels(s, entries, labels), s.model, steps=s.steps, batch_size=s.batch_size,
                      augment=s.augment, evaluate_every=max(1, s.steps // 8), dtype=s.dtype, device=str(nb.device),
                      chunk=s.chunk)
    for row in many.rows:
        entry = entries[row["member"]]
        entry["best_epoch"] = min(entry.get("best_epoch", 100.0), row["test_error"])
    return _finish(s, nb, entries, many.weights)


def with_mixup(
    s: Settings, nb: Notebook, entries: Sequence[Entry], labels: Sequence[Data] | None = None
) -> Tensor:
    """Train one member an entry by SGD on mixed batches, its ``value`` being α; else as :func:`with_rule`."""
    seeds, sets = [entry["seed"] for entry in entries], _with_labels(s, entries, labels)
    rows = Rows(seeds, sets, s.model, batch_size=s.batch_size, device=nb.device, dtype=s.dtype, augment=s.augment)

    def probe(_: int, rows: Rows) -> None:
        for entry, error in zip(entries, rows.errors(rows.w, "test").tolist(), strict=True):
            entry["best_epoch"] = min(entry.get("best_epoch", 100.0), error)

    rule = partial(rules.sam, rho=0.0, **s.base)  # SGD
    rows.fit(rule, s.steps, every=max(1, s.steps // 8), probe=probe,
             mix=Mixup([entry["value"] for entry in entries], sets[0].classes, seeds))
    return _finish(s, nb, entries, rows.w)


def _rows(s: Settings, nb: Notebook, entries: Sequence[Entry], part: int) -> Rows:
    return Rows([entry["seed"] for entry in entries], [_parts(s, entry)[part] for entry in entries], s.model,
                batch_size=s.batch_size, device=nb.device, dtype=s.dtype)


def _finish(s: Settings, nb: Notebook, entries: Sequence[Entry], w: Tensor) -> Tensor:
    """Fill in the final errors: test, clean validation, and on the (partly wrong) labels of training."""
    w = w.to(nb.device)
    noisy, clean = _rows(s, nb, entries, 0), _rows(s, nb, entries, 1)
    columns = (noisy.errors(w, "test"), clean.errors(w, "test"), noisy.errors(w, "train"))
    for entry, (test, validation, train) in zip(entries, torch.stack(columns, 1).tolist(), strict=True):
        entry |= {"test_error": test, "validation_error": validation, "train_error": train}
        entry["best_epoch"] = min(entry["best_epoch"], test)
    return w


def picked(entries: Sequence[Entry], method: str, noise: float) -> float:
    """Return the hyperparameter of least mean error on the clean validation images."""
    found: dict[float, float] = {}
    for entry in entries:
        if entry["method"] == method and entry["noise"] == noise:
            found[entry["value"]] = found.get(entry["value"], 0.0) + entry["validation_error"]
    return min(found, key=found.__getitem__)


def run(s: Settings, nb: Notebook) -> list[Entry]:
    """Train everything: one entry a method, hyperparameter, noise and seed, with its errors in percent."""
    nb.uses(_parts(s, {"seed": 0, "noise": 0.0})[0])
    sam, mixup, random = grid(s, "SAM", s.rhos), grid(s, "Mixup", s.mixes), grid(s, "SAM", s.rhos, (RANDOM,))
    w = with_rule(s, nb, sam, _sam)
    with_rule(s, nb, random, _sam)
    out = sam + random + mixup
    mixed = with_mixup(s, nb, mixup)

    boot = [{**_bare(entry), "method": "Bootstrap + SAM"} for entry in sam]
    with_rule(s, nb, boot, _sam, bootstrapped(_rows(s, nb, sam, 0), w))
    chosen = [k for k, e in enumerate(mixup) if e["value"] == picked(mixup, "Mixup", e["noise"])]
    boot_mixup = [{**_bare(mixup[k]), "method": "Bootstrap + Mixup"} for k in chosen]
    labels = bootstrapped(_rows(s, nb, [mixup[k] for k in chosen], 0), mixed[chosen])
    with_mixup(s, nb, boot_mixup, labels)

    # The radius is chosen for SAM and reused by its relatives, as in the WSAM paper.
    rho = {noise: picked([e for e in sam if e["value"] > 0], "SAM", noise) for noise in NOISES}
    relatives: dict[str, tuple[Sequence[float], Callable[[float], dict[str, Any]]]] = {
        "ESAM": ((0.6,), lambda v: {"rule": "esam", "beta": v, "gamma": 0.5}),  # the authors' beta and gamma
        "GSAM": (s.alphas, lambda v: {"rule": "gsam", "alpha": v}),
        "WSAM": (s.gammas, lambda v: {"rule": "wsam", "gamma": v}),
    }
    for method, (values, config) in relatives.items():
        entries = grid(s, method, values)
        with_rule(s, nb, entries, lambda e, config=config: {"rho": rho[e["noise"]], **config(e["value"])})
        out += entries
    return out + boot + boot_mixup


def _sam(entry: Entry) -> dict[str, Any]:
    return {"rule": "sam", "rho": entry["value"]}


def _bare(entry: Entry) -> Entry:
    return {key: entry[key] for key in ("method", "value", "noise", "seed")}


def recorded(s: Settings, nb: Notebook) -> list[Entry]:
    """Run and record; the full profile returns a finished record instead of training again."""
    found = Record.find(nb.name, "table", nb.profile) if nb.full else None
    if found and found.provenance.get("parameters") == nb.parameters:
        return found.values["entries"]
    entries = run(s, nb)
    nb.record("table", {"entries": entries}, rtol=5e-2, atol=2.0)
    return entries


def accuracy(entries: Sequence[Entry], method: str, noise: float, column: str = "test_error") -> list[float]:
    """Return the accuracy, seed by seed, of a method at its picked hyperparameter (SGD is SAM with ρ = 0)."""
    name, value = ("SAM", 0.0) if method == "SGD" else (method, picked(_proper(entries), method, noise))
    found = [e for e in entries if (e["method"], e["noise"], e["value"]) == (name, noise, value)]
    return [100.0 - e[column] for e in sorted(found, key=lambda e: e["seed"])]


def _proper(entries: Sequence[Entry]) -> list[Entry]:
    """Leave out ρ = 0, which is SGD and no member of SAM's grid."""
    return [e for e in entries if not (e["method"].endswith("SAM") and e["value"] == 0)]
