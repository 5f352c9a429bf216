"""Notebook 05: wrong labels. SGD, Mixup, SAM, its relatives, the bootstrap (SAM's Tables 4, 8; WSAM's Table 6)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sharpnb import rules
from sharpnb.lab import models
from sharpnb.lab.augment import Augment, shift_and_flip
from sharpnb.lab.claims import t95
from sharpnb.lab.data import Data, load_data, with_label_noise
from sharpnb.lab.figures import COLOURS
from sharpnb.lab.notebook import Notebook
from sharpnb.lab.pieces import Work, even
from sharpnb.many.engine import Nets
from sharpnb.many.retry_smaller import in_parts_that_fit
from sharpnb.many.train import train_many
from studies.mixup import Mixup, bootstrapped

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
        chunk: members in one program, and in one piece of the full profile.
        bf16: of the gradients, as in :func:`sharpnb.lab.train_many`.
        evaluations: of each training, of which the best is told too.
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
    bf16: bool = False
    evaluations: int = 8

    @property
    def base(self) -> dict[str, float]:
        """The hyperparameters of the base rule."""
        return {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay}


# Net, learning rate and the range of radii are taken over from a survey made before this notebook (1,000 images, 1,200
# steps); images and steps are fewer here, for time. Nothing was tuned here.
QUICK = Settings("MLP, digits", "digits", 300, 200, lambda seed: models.mlp((64, 64, 10), seed=seed), steps=320,
                 rhos=(0.0, 0.1, 0.3, 0.5, 1.0), gammas=(0.8, 0.9), alphas=(0.03, 0.1), mixes=(1.0, 8.0, 32.0), seeds=3,
                 dtype=torch.float64)
# Cut to the budget. The paper: ResNet-32, 45,000 images and 5,000 to choose by, 200 epochs, radii from 0 to 0.5.
FULL = Settings("ResNet-8, 5,000 images of CIFAR-10, 24 epochs", "cifar10", 5000, 1000,
                lambda seed: models.resnet(8, seed=seed), steps=24 * 39, rhos=(0.0, 0.05, 0.1, 0.2), gammas=(0.9,),
                alphas=(0.1,), mixes=(1.0, 8.0), seeds=2, batch_size=128, weight_decay=5e-4,
                augment=shift_and_flip(4, flip=True), bf16=True, evaluations=3)
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
    labels: Sequence[Data] | None = None, work: Work | None = None,
) -> Tensor:
    """Train one member an entry by a rule; fill in the errors, and return the weights, (K, n)."""

    def make(part: Sequence[Entry], sets: Sequence[Data]) -> Tensor:
        configs = [{"seed": entry["seed"], **s.base, **config(entry)} for entry in part]
        many = train_many(configs, sets, s.model, steps=s.steps, batch_size=s.batch_size, augment=s.augment,
                          evaluate_every=max(1, s.steps // s.evaluations), dtype=s.dtype, bf16=s.bf16,
                          device=str(nb.device), chunk=s.chunk)
        for row in many.rows:
            entry = part[row["member"]]
            entry["best_epoch"] = min(entry.get("best_epoch", 100.0), row["test_error"])
        return many.weights

    return _in_pieces(s, nb, entries, make, labels, work, [config(entry) for entry in entries])


def with_mixup(
    s: Settings, nb: Notebook, entries: Sequence[Entry], labels: Sequence[Data] | None = None, work: Work | None = None
) -> Tensor:
    """Train one member an entry by SGD on mixed batches, its ``value`` being α; else as :func:`with_rule`."""

    def fit(part: Sequence[Entry], sets: Sequence[Data]) -> Tensor:
        seeds = [entry["seed"] for entry in part]
        rows = Nets(seeds, sets, s.model, batch_size=s.batch_size, device=nb.device, dtype=s.dtype, augment=s.augment,
                    bf16=s.bf16)

        def probe(_: int, rows: Nets) -> None:
            for entry, error in zip(part, rows.errors(rows.w, "test").tolist(), strict=True):
                entry["best_epoch"] = min(entry.get("best_epoch", 100.0), error)

        rule = partial(rules.sam, rho=0.0, **s.base)  # SGD
        return rows.fit(rule, s.steps, every=max(1, s.steps // s.evaluations), probe=probe,
                        mix=Mixup([entry["value"] for entry in part], sets[0].classes, seeds))

    def make(part: Sequence[Entry], sets: Sequence[Data]) -> Tensor:
        parts: list[Tensor] = []  # in order: halves come in the place of the whole
        for which, attempt in in_parts_that_fit([range(len(part))], "nets on mixed batches"):
            with attempt:
                parts.append(fit([part[k] for k in which], [sets[k] for k in which]))
        return torch.cat(parts)

    return _in_pieces(s, nb, entries, make, labels, work, [{}] * len(entries))


def _in_pieces(
    s: Settings, nb: Notebook, entries: Sequence[Entry], make: Callable[[Sequence[Entry], Sequence[Data]], Tensor],
    labels: Sequence[Data] | None, work: Work | None, configs: Sequence[dict[str, Any]],
) -> Tensor:
    """Train the entries, all at once in the quick profile and else by ``chunk`` a piece; return the weights, (K, n).

    ``labels``, one a member, take the place of the entries' own; a piece is told by its settings and by them.
    """
    sets = _with_labels(s, entries, labels)
    work, size = work or Work(nb), even(len(entries), s.chunk)[1] if nb.full else len(entries)
    weights = []
    for k in range(0, len(entries), size):
        part, own = entries[k : k + size], sets[k : k + size]

        def piece(part: Sequence[Entry] = part, own: Sequence[Data] = own) -> dict[str, Any]:
            fresh = [_bare(entry) for entry in part]
            return {"w": _finish(s, nb, fresh, make(fresh, own)), "entries": fresh}

        told = [{**_bare(entry), **config} for entry, config in zip(part, configs[k : k + size], strict=True)]
        marks = [hashlib.sha256(d.train_y.cpu().numpy().tobytes()).hexdigest()[:16] for d in own] if labels else None
        made = work.do(_kind(part[0]), piece, number=k // size, members=told, labels=marks)
        for entry, done in zip(part, made["entries"], strict=True):
            entry |= done
        weights.append(made["w"])
    return torch.cat(weights).to(nb.device)


def _kind(entry: Entry) -> str:
    return "random labels" if entry["noise"] == RANDOM else entry["method"]


def _rows(s: Settings, nb: Notebook, entries: Sequence[Entry], part: int) -> Nets:
    return Nets([entry["seed"] for entry in entries], [_parts(s, entry)[part] for entry in entries], s.model,
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


def run(s: Settings, nb: Notebook, work: Work | None = None) -> list[Entry]:
    """Train everything: one entry a method, hyperparameter, noise and seed, with its errors in percent."""
    nb.uses(_parts(s, {"seed": 0, "noise": 0.0})[0])
    sam, mixup, random = grid(s, "SAM", s.rhos), grid(s, "Mixup", s.mixes), grid(s, "SAM", s.rhos, (RANDOM,))
    w = with_rule(s, nb, sam, _sam, work=work)
    with_rule(s, nb, random, _sam, work=work)
    out = sam + random + mixup
    mixed = with_mixup(s, nb, mixup, work=work)

    boot = [{**_bare(entry), "method": "Bootstrap + SAM"} for entry in sam]
    with_rule(s, nb, boot, _sam, bootstrapped(_rows(s, nb, sam, 0), w), work)
    chosen = [k for k, e in enumerate(mixup) if e["value"] == picked(mixup, "Mixup", e["noise"])]
    boot_mixup = [{**_bare(mixup[k]), "method": "Bootstrap + Mixup"} for k in chosen]
    labels = bootstrapped(_rows(s, nb, [mixup[k] for k in chosen], 0), mixed[chosen])
    with_mixup(s, nb, boot_mixup, labels, work)

    # The radius is chosen for SAM and reused by its relatives, as in the WSAM paper.
    rho = {noise: picked([e for e in sam if e["value"] > 0], "SAM", noise) for noise in NOISES}
    relatives: dict[str, tuple[Sequence[float], Callable[[float], dict[str, Any]]]] = {
        "ESAM": ((0.6,), lambda v: {"rule": "esam", "beta": v, "gamma": 0.5}),  # the authors' beta and gamma
        "GSAM": (s.alphas, lambda v: {"rule": "gsam", "alpha": v}),
        "WSAM": (s.gammas, lambda v: {"rule": "wsam", "gamma": v}),
    }
    for method, (values, config) in relatives.items():
        entries = grid(s, method, values)
        with_rule(s, nb, entries, lambda e, config=config: {"rho": rho[e["noise"]], **config(e["value"])}, work=work)
        out += entries
    return out + boot + boot_mixup


def _sam(entry: Entry) -> dict[str, Any]:
    return {"rule": "sam", "rho": entry["value"]}


def _bare(entry: Entry) -> Entry:
    return {key: entry[key] for key in ("method", "value", "noise", "seed")}


def recorded(s: Settings, nb: Notebook) -> list[Entry]:
    """Run and record; the full profile returns a finished record instead of training again."""
    return nb.recorded("table", lambda work: {"entries": run(s, nb, work)}, of=s, rtol=5e-2,
                       atol=2.0)["entries"]


def accuracy(entries: Sequence[Entry], method: str, noise: float, column: str = "test_error") -> list[float]:
    """Return the accuracy, seed by seed, of a method at its picked hyperparameter (SGD is SAM with ρ = 0)."""
    name, value = ("SAM", 0.0) if method == "SGD" else (method, picked(_proper(entries), method, noise))
    found = [e for e in entries if (e["method"], e["noise"], e["value"]) == (name, noise, value)]
    return [100.0 - e[column] for e in sorted(found, key=lambda e: e["seed"])]


def _proper(entries: Sequence[Entry]) -> list[Entry]:
    """Leave out ρ = 0, which is SGD and no member of SAM's grid."""
    return [e for e in entries if not (e["method"].endswith("SAM") and e["value"] == 0)]


LOOKS = {
    "SGD": (COLOURS["sgd"], "o-"), "Mixup": (COLOURS["adamw"], "D--"), "Bootstrap + Mixup": (COLOURS["adamw"], "d:"),
    "SAM": (COLOURS["sam"], "s-"), "Bootstrap + SAM": (COLOURS["sam"], "P:"), "ESAM": (COLOURS["extra"], "<-."),
    "GSAM": (COLOURS["adam"], "v-."), "WSAM": (COLOURS["wsam"], "^-."),
}


def draw_accuracies(ax: Any, entries: Sequence[Entry], column: str) -> list[tuple[str, float, float, float]]:
    """Draw each method's accuracy over the noise rate; return method, noise, mean and half of the 95 % interval.

    A method without entries is left out. Two seeds have no interval that fits the picture; they are drawn without.
    """
    drawn = []
    there = {"SGD", *(entry["method"] for entry in entries)}
    for number, (method, (colour, style)) in enumerate(LOOKS.items()):
        if method not in there:
            continue
        values = np.array([accuracy(entries, method, noise, column) for noise in NOISES])
        half = t95(values.shape[1]) * values.std(1, ddof=1) / np.sqrt(values.shape[1])
        x = 100 * np.array(NOISES) + 0.7 * (number - 3.5)
        ax.errorbar(x, values.mean(1), half if values.shape[1] > 2 else None, fmt=style, color=colour, ms=5, lw=1.2,
                    elinewidth=0.8, label=method)
        drawn += [(method, *row) for row in zip(NOISES, values.mean(1), half, strict=True)]
    ax.set(xlabel="wrong training labels (%)", xticks=[20, 40, 60, 80])
    return drawn


def draw_radii(ax: Any, table: pd.DataFrame, method: str, s: Settings) -> None:
    """Draw a method's test error over the radius, a line a noise rate; from three seeds on with 95 % intervals."""
    import matplotlib.pyplot as plt

    shades = plt.get_cmap("cividis")(np.linspace(0, 0.85, len(NOISES)))
    for noise, colour, marker in zip(NOISES, shades, "osv^", strict=True):
        own = table[(table["method"] == method) & (table["noise"] == noise)]
        part = own.groupby("value")["test_error"].agg(["mean", "sem"])
        half = t95(s.seeds) * part["sem"] if s.seeds > 2 else None
        ax.errorbar(range(len(s.rhos)), part["mean"], half, fmt=marker + "-", color=colour, capsize=3,
                    label=f"{noise:.0%} wrong")
    ax.set_xticks(range(len(s.rhos)), [f"{rho:g}" for rho in s.rhos])
    ax.set(xlabel="radius $\\rho$ (0: SGD)", title=method, ylim=(0, 100))
