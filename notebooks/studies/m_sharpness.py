"""Notebook 04: m-sharpness, to train with (SAM's Fig. 3 middle) and to predict the generalisation gap by (right)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import xlogy
from torch import Tensor

from sharpnb import rules
from sharpnb.curvature import kendall_tau
from sharpnb.lab import Data, Notebook, models
from sharpnb.lab.augment import Augment, shift_and_flip
from sharpnb.lab.figures import COLOURS
from sharpnb.lab.pieces import Work
from sharpnb.lab.records import chosen_by
from sharpnb.many.engine import Nets, losses
from studies import hessian_spectra, label_noise
from studies.common import Training, spread
from studies.trials import Rows, grid, powers, trials
from studies.trials import best as best_of


@dataclass(frozen=True, kw_only=True)
class Settings(Training):
    """What is trained: nets of one ``width`` with m-sharpness, and a ``family`` with SGD, whose gap is predicted.

    ``rhos`` has for each m, images that share a perturbation, its radii; the last m is the batch. ``measured`` are the
    m's of the measure, ``rho`` its radius (default 0.05: SAM's).
    """

    width: int
    noises: tuple[float, ...]
    rhos: dict[int, tuple[float, ...]]
    family: dict[str, tuple[float, ...]]
    measured: tuple[int, ...]
    rho: float = 0.05
    augment: Augment | None = None
    chunk: int = 32
    bf16: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What both experiments tell :func:`sharpnb.lab.train_many`."""
        return {name: getattr(self, name) for name in ("steps", "augment", "dtype", "bf16", "chunk")}


@dataclass(frozen=True, kw_only=True)
class Tuned(Settings):
    """Settings whose rate and decay are :func:`tuned`, and whose family is measured at the loss of ``stop`` nats.

    ``looks`` are updates between two looks at it, and those of each attempt.
    """

    weight_decay: float = 0.0
    stop: float = 0.1
    looks: tuple[int, ...] = (10, 210, 600, 2400)


QUICK = Tuned(label="MLP, MNIST-1D", data="mnist1d", train_size=500, width=64, steps=400, noises=(0.0,),
              model=lambda width, seed: models.mlp((40, width, 10), seed=seed), measured=(1, 4, 16, 64, 250),
              seeds=range(2000, 2020), rhos=dict.fromkeys(
                  (1, 4, 16, 64), (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)),
              family={"width": (32, 128), "batch_size": (64, 250), "lr": (0.1, 0.2), "weight_decay": (0.0, 1e-3)})
GRID = {"lr": (0.2, 0.4, 0.8), "weight_decay": (1e-3, 3e-3, 1e-2)}
# Cut to the budget. Before: all images, 100 epochs, m = 4 and widths of 32 too, 3 seeds.
FULL = Settings(label="ResNet-8, 10,000 images of CIFAR-10, 15 epochs", data="cifar10", train_size=10_000, width=16,
                model=lambda width, seed: models.resnet(8, width=width, seed=seed), steps=15 * 39, batch_size=256,
                noises=(0.0,), rhos=dict.fromkeys((16, 64, 256), (0.02, 0.05, 0.1)), seeds=2, measured=(16, 64, 256),
                family={"width": (8, 16), "batch_size": (64, 256), "lr": (0.03, 0.1), "weight_decay": (0.0, 5e-4)},
                augment=shift_and_flip(4, flip=True), chunk=16, bf16=True)
TOY = Settings(label="CNN, digits", data="digits", train_size=64, width=4, steps=3, batch_size=16, noises=(0.0,),
               model=lambda width, seed: models.cnn(width, seed=seed), rhos={4: (0.05,), 16: (0.05,)}, seeds=2,
               family={"width": (2, 4), "batch_size": (16,), "lr": (0.02, 0.05), "weight_decay": (0.0, 1e-3)},
               measured=(4, 16))
SETTINGS = {"quick": QUICK, "mid": QUICK, "full": FULL, "toy": TOY}


@dataclass(frozen=True, kw_only=True)
class Mid(Tuned):
    """The mid profile: images, seeds, net and SGD of notebook 03's, each m's radius tuned; see :data:`MID`."""

    validation: int
    tests: int
    tuning: tuple[int, ...]
    chosen_by: dict[str, Any]

    def images(self, seed: int, noise: float = 0.0) -> Data:
        """Draw a seed's images as notebook 05 does; where it tunes, the test images are the held-out ones."""
        assert self.train_size is not None
        return label_noise.parts(self.data, self.train_size, self.validation, seed, self.dtype, noise,
                                 self.tests)[seed in self.tuning]


def _mid(of: hessian_spectra.Mid, **own: Any) -> Mid:
    return Mid(**{name: value for name, value in vars(of).items() if name in Mid.__dataclass_fields__} | own)


MID = _mid(hessian_spectra.MID, seeds=range(10, 20), width=8, noises=(0.0,), chunk=32, looks=(32, 640, 1280, 5120),
           model=lambda width, seed: models.resnet(8, width=width, channels=1, norm=False, seed=seed),
           rhos=dict.fromkeys((1, 4, 16, 64), powers(-8, -1, 2.0)), measured=(1, 4, 16, 64, 250),
           family={"width": (4, 8), "batch_size": (32, 128), "lr": (0.01, 0.03), "weight_decay": (0.0, 2e-3)})
MIDS = {"mid": MID, "toy": _mid(
    hessian_spectra.MIDS["toy"], seeds=range(10, 12), width=4, noises=(0.0,), steps=4, looks=(2, 4), stop=9.0,
    model=lambda width, seed: models.mlp((16, width, 10), seed=seed), rhos={8: (0.05, 0.1), 32: (0.05, 0.1)},
    measured=(8, 32), family=TOY.family)}
FAMILIES = {**MIDS, "mid": replace(MID, seeds=range(20, 30), stop=0.05, looks=(32, 800, 1600, 4800),
                                   chosen_by=chosen_by("04_m_sharpness/mid"))}


def tuned(s: Tuned, nb: Notebook) -> tuple[Tuned, Rows]:
    """Return ``s`` with the rate and decay at which SGD is best on held-out signals, and the trials, read back."""
    def make(_: Work) -> dict[str, Rows]:
        tried = [{"rule": "sgd", "momentum": s.momentum, **own} for own in grid(**GRID)]
        return {"rows": trials(tried, s.images, partial(s.model, s.width), batch_size=s.batch_size, **s.options)}

    of = {"data": s.data, "train_size": s.train_size, "net": partial(s.model, s.width), "batch_size": s.batch_size,
          "momentum": s.momentum, "grid": GRID, **s.options}
    rows = nb.recorded("tuning", make, of=of, kept=True, rtol=5e-2, atol=0.5)["rows"]
    return replace(s, **best_of(rows, *GRID)), rows


def at_loss(train: Callable[[list[int], int], dict[int, Tensor]], nets: Callable[[list[int]], Nets], number: int,
            stop: float, attempts: Sequence[int]) -> Tensor:
    """Return the weights of each of so many nets when its training loss is first seen at most ``stop``, (number, n).

    ``train`` some of them for so many updates and return the weights at each look; ``nets`` are those, with all images
    in one batch. Who needs more updates than one of the ``attempts`` has is in the next; a ValueError after the last.
    """
    found, waiting = {}, list(range(number))
    for updates in attempts:
        kept, own = train(waiting, updates), nets(waiting)
        x, y = next(own.in_order())
        with torch.no_grad():
            for step in sorted(kept):
                loss = losses(own.forward(kept[step].to(own.w), x), y)
                low = zip(waiting, kept[step].to(own.w), loss <= stop, strict=True)
                found = {k: w for k, w, there in low if there} | found
        waiting = [k for k in waiting if k not in found]
        if not waiting:
            return torch.stack([found[k] for k in range(number)])
    raise ValueError(f"{len(waiting)} of {number} nets do not come to a training loss of {stop} in {attempts[-1]} "
                     "updates; give them more, or a higher loss.")


def told(s: Settings) -> dict[str, Any]:
    """Return what a record says of its settings: all of them, and the net, which two numbers build."""
    return {**vars(s), "net of": partial(s.model, s.width)}


def told_of_radii(s: Settings) -> dict[str, Any]:
    """Return what the record of the radii that were tried says: all but what is the family's and the judging's."""
    return {name: value for name, value in told(s).items()
            if name not in ("family", "measured", "rho", "stop", "looks", "seeds")}


def m_sharpness(nets: Nets, w: Tensor, rho: float) -> Tensor:
    r"""Return the first-order m-sharpness of each net, m being the batch size of ``nets``, (K,).

    .. math:: S_m = \frac1G\sum_B\big[L_B(w+\hat\epsilon_B)-L_B(w)\big],\qquad \hat\epsilon_B=\rho\,g_B/\|g_B\|

    :func:`sharpnb.curvature.sharpness` measures one model; this measures K at once.
    """
    rises = []
    for batch in nets.in_order():
        gradient = nets.gradient(batch)
        eps = rules.sam_perturbation(gradient(w), rho)
        rises.append(gradient.losses(w + eps).mean(1) - gradient.losses(w).mean(1))
    return torch.stack(rises).mean(0)


def information(measure: Sequence[float], gap: Sequence[float], hyper: Sequence[Sequence[float]]) -> float:
    r"""Conditional mutual information of Jiang et al. (ICLR 2020, section 4.2), normalised, in [0, 1].

    .. math::
        \min_{|S|\le2}\ I(V_\mu;V_g\mid U_S)\,/\,H(V_g\mid U_S)

    over pairs of nets: :math:`V_\mu` and :math:`V_g` are the signs of the differences in measure and in gap, and
    :math:`U_S` the values of the hyperparameters in S for both nets, so that a measure gets nothing for telling what
    they tell. Pairs of equal gap are left out, and sets S that leave nothing uncertain. ``hyper`` are each net's
    hyperparameters.
    """
    mu, g = np.asarray(measure), np.asarray(gap)
    i, j = np.nonzero(g[:, None] != g[None, :])
    signs = 2 * (mu[i] > mu[j]) + (g[i] > g[j])
    return float(np.nanmin([share(np.bincount(4 * label + signs)) for label in conditions(np.transpose(hyper), i, j)]))


def conditions(columns: Iterable[Any], i: np.ndarray, j: np.ndarray) -> list[np.ndarray]:
    """Return for each set of at most two hyperparameters the number of the values that both nets of a pair have."""
    labels = []
    for chosen in (c for size in range(3) for c in combinations([pd.factorize(x)[0] for x in columns], size)):
        label = np.zeros(len(i), np.int64)
        for code in chosen:
            label = (label * (code.max() + 1) + code[i]) * (code.max() + 1) + code[j]
        labels.append(pd.factorize(label)[0])
    return labels


def share(counts: np.ndarray) -> np.ndarray:
    """I(v; g | label) / H(g | label) from counts (…, keys) of keys 4 label + 2 v + g; NaN where nothing is unsure."""
    padded = np.pad(counts, [(0, 0)] * (counts.ndim - 1) + [(0, -counts.shape[-1] % 4)])
    p = padded.reshape(*counts.shape[:-1], -1, 2, 2) / counts.sum(-1)[..., None, None, None]

    def entropy(q: np.ndarray) -> np.ndarray:
        return -xlogy(q, q).reshape(*counts.shape[:-1], -1).sum(-1)

    cell, label = entropy(p), entropy(p.sum((-2, -1)))
    h_g, h_v = entropy(p.sum(-2)) - label, entropy(p.sum(-1)) - label
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(h_g > 1e-12, (h_v + h_g - (cell - label)) / h_g, np.nan)


def predictive(s: Settings, family: pd.DataFrame) -> pd.DataFrame:
    """Return, for each seed and m, Kendall's τ between sharpness and gap over the family, and the information."""
    out = []
    for seed, nets in family.groupby("seed"):
        gap, hyper = nets["gap"].tolist(), nets[list(s.family)].to_numpy().tolist()
        for m in s.measured:
            measure = nets[f"sharpness_{m}"].tolist()
            out.append({"seed": seed, "m": m, "tau": kendall_tau(measure, gap),
                        "information": information(measure, gap, hyper)})
    return pd.DataFrame(out)


def best(trained: pd.DataFrame, m: int, noise: float, rhos: Sequence[float]) -> tuple[float, np.ndarray]:
    """Return the radius of least mean error among ``rhos``, and the errors there by seed."""
    own = trained[(trained["noise"] == noise) & (trained["m"] == m) & trained["rho"].isin(rhos)]
    wide = own.pivot_table(index="seed", columns="rho", values="test_error")
    chosen = wide.sum().idxmin()
    return float(chosen), wide[chosen].to_numpy()


def against_sgd(trained: pd.DataFrame) -> pd.DataFrame:
    """Return each noise's, m's and radius' change of the test error against SGD, with what :func:`spread` says."""
    sgd = trained[trained["rho"] == 0].set_index(["noise", "seed"])["test_error"]
    paired = trained[trained["rho"] > 0]
    at = list(zip(paired["noise"], paired["seed"], strict=True))
    paired = paired.assign(change=paired["test_error"] - sgd.loc[at].to_numpy())
    return spread(paired.groupby(["noise", "m", "rho"])["change"])


def draw_middle(ax: Any, summary: pd.DataFrame, noise: float, s: Settings, judged: Any = None) -> None:
    """Draw Fig. 3 middle for one noise from :func:`against_sgd`, curves and judged points, with 95 % intervals."""
    import matplotlib.pyplot as plt

    shades = plt.get_cmap("cividis")(np.linspace(0, 0.85, len(s.rhos)))
    ticks = sorted({rho for radii in s.rhos.values() for rho in radii})
    for k, (m, colour, marker) in enumerate(zip(s.rhos, shades, "osv^", strict=False)):
        for table, look in ((summary, {"fmt": marker + "-", "color": colour, "label": f"m = {m}", "lw": 1.2}),
                            (judged, {"fmt": "*", "ms": 13, "mfc": colour, "color": "black", "zorder": 5})):
            if table is not None and (noise, m) in table.index.droplevel("rho"):
                got = table.loc[noise, m]
                ax.errorbar(got.index * (1 + 0.03 * (k - 1.5)), got["mean"], got["half"], capsize=2, **look)
    ax.axhline(0, color=COLOURS["sgd"], ls=":", label="SGD")
    ax.set(xscale="log", xlabel="radius $\\rho$", title=f"{noise:.0%} wrong labels" if noise else "clean labels")
    ax.set_xticks(ticks, [f"{rho:.2g}" for rho in ticks])
    ax.minorticks_off()


def draw_right(axes: Sequence[Any], found: pd.DataFrame) -> None:
    """Draw Fig. 3 right on two axes from :func:`predictive`: τ and the information over m; two seeds as dots."""
    seeds = found["seed"].nunique()
    for ax, column, label, role, style in zip(
        axes, ("tau", "information"), ("Kendall's $\\tau$ with the gap", "conditional mutual information (share)"),
        ("sgd", "sam"), ("o-", "s-"), strict=True,
    ):
        got = spread(found.groupby("m")[column])
        ax.errorbar(range(len(got)), got["mean"], got["half"], fmt=style, color=COLOURS[role], capsize=3, label="mean")
        places = found["m"].map({m: k for k, m in enumerate(got.index)})
        ax.plot(places + 0.12, found[column], ".", color=COLOURS[role], ms=4, alpha=0.5, label=f"the {seeds} seeds")
        ax.set_xticks(range(len(got)), [str(m) for m in got.index])
        ax.set(xlabel="m (images that share a perturbation)", ylabel=label)
        ax.axhline(0, color="0.4", lw=0.8)
        ax.legend(fontsize=8)
