"""Notebook 03: Hessian spectra along training, of SGD and of SAM, and of nets with and without BatchNorm."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.curvature import HessianOperator, SpectralDensity, spectral_density, top_eigenvalues
from sharpnb.lab import Data, Notebook, models, train, train_many
from sharpnb.lab.figures import COLOURS, MARKERS
from sharpnb.lab.pieces import Work
from sharpnb.lab.records import chosen_by
from sharpnb.lab.training import shift_and_flip
from sharpnb.optim import SAM
from studies import label_noise
from studies.common import Training, spread
from studies.trials import Rows, best, grid, trials

TIMES = ("epoch 1", "middle", "end")  # the paper's panels: epochs 1, 50 and 300 of 300
RULES = ("sgd", "sam")
TOP = 5  # the paper's ratio is that of the largest to the fifth eigenvalue


@dataclass(frozen=True, kw_only=True)
class Settings(Training):
    """One experiment, of nets without BatchNorm as in the paper (section 4.2); ``rho`` is SAM's radius.

    ``many``: train all members as one batched program (small nets) or one after another (large ones).
    ``hessian_images``: training images of the Hessian's loss.
    """

    rho: float
    many: bool = False
    weight_decay: float = 0.0
    hessian_images: int = 10_000


QUICK = Settings(label="MLP, digits", data="digits", train_size=500, steps=600, rho=0.0, seeds=range(2000, 2020),
                 many=True, model=lambda seed: models.mlp((64, 24, 10), seed=seed), dtype=torch.float64)
GRID = {"lr": (0.1, 0.3, 0.5, 1.0), "weight_decay": (0.0, 1e-3, 3e-3)}
RADII = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
# The paper's net is WRN-40-10, 300 epochs of batch 256, rho = 0.05: `replace(FULL, steps=300 * 195)` is that schedule.
FULL = Settings(label="WRN-16-2, CIFAR-10, 10 epochs", data="cifar10", train_size=None, steps=10 * 195, batch_size=256,
                model=lambda seed: models.wide_resnet(16, 2, norm=False, seed=seed), rho=0.05, seeds=2,
                weight_decay=5e-4, hessian_images=1000)
TOY = Settings(label="WRN-10-1, digits", data="digits", train_size=200, steps=12, lr=0.02, rho=0.05, seeds=2,
               model=lambda seed: models.wide_resnet(10, 1, channels=1, norm=False, seed=seed), weight_decay=5e-4,
               hessian_images=64)
SETTINGS = {"quick": QUICK, "mid": QUICK, "full": FULL, "toy": TOY}


@dataclass(frozen=True, kw_only=True)
class Mid(label_noise.Mid):
    """The mid profile: images and seeds of notebook 05's, nets without BatchNorm, SAM's radius tuned.

    A net is also measured where its training loss is first seen at most ``loss``, of looks every ``look`` updates.
    """

    loss: float
    look: int
    hessian_images: int = 1000


MID = Mid(**vars(label_noise.MID) | {
    "label": "ResNet-8 of width 8 without BatchNorm, 1,000 images of Fashion-MNIST at 14x14, 1,280 steps",
    "model": lambda seed: models.resnet(8, width=8, channels=1, norm=False, seed=seed), "steps": 1280, "lr": 0.05,
    "weight_decay": 0.0, "noise": 0.0, "loss": 0.3, "look": 32, "chosen_by": chosen_by("03_hessian_spectra/mid")})
MIDS = {"mid": MID, "toy": Mid(**vars(label_noise.MIDS["toy"]) | {
    "model": lambda seed: models.mlp((16, 8, 10), seed=seed), "noise": 0.0, "steps": 40, "loss": 2.2, "look": 4,
    "hessian_images": 96})}


def times(s: Settings | Mid) -> dict[int, str]:
    """Map the steps at which the Hessian is measured to their names; epoch 50 of 300 is a sixth."""
    images = s.train_size or 50_000
    return {max(1, images // s.batch_size): TIMES[0], s.steps // 6: TIMES[1], s.steps: TIMES[2]}


def tuned(s: Settings, nb: Notebook) -> tuple[Settings, Rows]:
    """Return ``s`` with SGD's best rate and decay on held-out images, right labels, SAM's radius there; all trials."""
    told = {"steps": s.steps, "batch_size": s.batch_size, "dtype": s.dtype}

    def make(_: Work) -> dict[str, Rows]:
        rows = trials([{**s.base, "rule": "sgd"} | own for own in grid(**GRID)], s.images, s.model, **told)
        at = {**s.base, "rule": "sam"} | best(rows, *GRID)
        return {"sgd": rows, "sam": trials([at | {"rho": rho} for rho in RADII], s.images, s.model, **told)}

    fixed = {name: value for name, value in vars(s).items() if name not in ("seeds", "rho", "lr", "weight_decay")}
    found = nb.recorded("tuning", make, of={**fixed, "grid": GRID, "radii": RADII}, kept=True, rtol=5e-2, atol=0.5)
    return replace(s, **best(found["sgd"], *GRID), **best(found["sam"], "rho")), found["sgd"] + found["sam"]


def operator(
    model: nn.Module, data: Data, s: Settings | Mid, weights: Tensor | None = None, mode: Any = "eval"
) -> HessianOperator:
    """Return the Hessian of the mean cross-entropy over the training images, at ``weights`` (flat) if given."""
    if weights is not None:
        nn.utils.vector_to_parameters(weights.to(next(model.parameters()).device), model.parameters())
    device = next(model.parameters()).device
    x, y = (part[: s.hessian_images].to(device) for part in data.train)
    chunks = list(zip(x.split(1000), y.split(1000), strict=True))
    return HessianOperator(model, F.cross_entropy, chunks[0] if len(chunks) == 1 else chunks, mode=mode)


def run(
    s: Settings, nb: Notebook, noise: float = 0.0, work: Work | None = None
) -> tuple[Rows, dict[tuple[str, int], Tensor]]:
    """Train SGD and SAM for every seed, one after another, and measure λ1 … λ5 at the three times: :func:`joined`."""
    work = work or Work(nb)
    return joined([work.do(rule, partial(_alone, s, nb.uses(s.images(seed, noise)), nb, rule, seed), seed=seed)
                   for seed in nb.seeds(s.seeds) for rule in RULES])


def joined(made: Rows) -> tuple[Rows, dict[tuple[str, int], Tensor]]:
    """Return the rows that :func:`measured` gave of each net, and the first seed's weights at each (rule, step)."""
    first = made[0]["rows"][0]["seed"]
    kept = {(row["rule"], row["step"]): w for net in made if net["rows"][0]["seed"] == first
            for row, w in zip(net["rows"], net["weights"], strict=True)}
    return [row for net in made for row in net["rows"]], kept


def _alone(s: Settings, data: Data, nb: Notebook, rule: str, seed: int) -> dict[str, Any]:
    """Train one net by itself and measure it: a piece of the full profile."""
    augment = shift_and_flip(4 if s.data == "cifar10" else 1, flip=s.data == "cifar10")
    model = s.model(seed).to(nb.device, s.dtype)
    optimizer, on_gpu = torch.optim.SGD(model.parameters(), **s.base), nb.device.type == "cuda"
    if rule == "sam":
        optimizer = SAM(optimizer, rho=s.rho, model=model, skip_nonfinite=not on_gpu)  # does not wait for the host
    history = train(model, data, optimizer, steps=s.steps, batch_size=s.batch_size, seed=seed, augment=augment,
                    device=nb.device, keep=tuple(times(s)), bf16=nb.bf16, graphs=True)
    return measured(s, nb, data, rule, seed, history.weights, history.rows[-1])


def measured(
    s: Settings | Mid, nb: Notebook, data: Data, rule: str, seed: int, weights: dict[int, Tensor],
    final: dict[str, float], more: Sequence[tuple[int, str]] = (),
) -> dict[str, Any]:
    """Return ``rows`` of one net, eigenvalues and final losses at the three times; its ``weights`` there, (3, n).

    ``more`` are further steps with their names.
    """
    model, rows = s.model(seed).to(nb.device, s.dtype), []
    for step, name in (*times(s).items(), *more):
        values = top_eigenvalues(operator(model, data, s, weights[step]), TOP).values.tolist()
        rows.append({"rule": rule, "seed": seed, "time": name, "step": step, "ratio": values[0] / values[-1],
                     **{f"lambda_{i + 1}": value for i, value in enumerate(values)},
                     **{name: final[name] for name in ("train_loss", "train_error", "test_error")}})
    return {"rows": rows, "weights": torch.stack([weights[step] for step in times(s)])}


def rows_of(
    s: Settings, nb: Notebook, name: str, noise: float = 0.0
) -> tuple[Rows, dict[tuple[str, int], Tensor]]:
    """Run and record an experiment; the full profile returns a finished record instead of training again."""
    kept: dict[tuple[str, int], Tensor] = {}

    def make(work: Work) -> dict[str, Any]:
        rows, weights = run(s, nb, noise, work)
        kept.update(weights)
        return {"rows": rows}

    return nb.recorded(name, make, of={**vars(s), "noise": noise}, rtol=2e-2)["rows"], kept


def draw_over_training(ax: Any, table: pd.DataFrame, column: str, of: str = "rule") -> None:
    """Draw a column at the three times for each rule (or ``net``): mean, each seed, from three on a 95 % interval."""
    looks = {"sgd": (MARKERS["sgd"] + "-", COLOURS["sgd"]), "sam": (MARKERS["sam"] + "-", COLOURS["sam"])}
    shift, wide, size = 0.08, 2.2, 3
    if of == "net":
        looks = {"no BatchNorm": ("o-", COLOURS["adam"]), "BatchNorm": ("s--", COLOURS["wsam"])}
        shift, wide, size = 0.06, 2.5, 4
    for side, (name, (style, colour)) in zip((-1, 1), looks.items(), strict=True):
        own = table[table[of] == name]
        part = spread(own.groupby("time", sort=False)[column]).loc[list(TIMES)]
        ax.errorbar(np.arange(3) + side * shift, part["mean"], part["half"], fmt=style, color=colour, capsize=3, ms=6,
                    label=name.upper() if of == "rule" else name)
        ax.plot(own["time"].map(TIMES.index) + side * wide * shift, own[column], ".", color=colour, ms=size, alpha=0.6)
    ax.set_xticks(range(3), TIMES)


class Both(NamedTuple):
    """A spectrum twice: by quadrature and exactly."""

    estimated: SpectralDensity
    exact: np.ndarray


def draw_spectra(axes: Any, nets: dict[tuple[str, str], Both]) -> pd.DataFrame:
    """Draw Fig. 3 left, a row for each time: eigenvalues counted, and the quadrature's density; return the numbers."""
    drawn = []
    for (rule, name), both in nets.items():
        ax, n = axes[TIMES.index(name), RULES.index(rule)], len(both.exact)
        low = min(other.exact[0] for (_, time), other in nets.items() if time == name)
        high = max(other.exact[-1] for (_, time), other in nets.items() if time == name)
        edges = np.linspace(low - 0.03 * (high - low), high * 1.05, 61)
        step = edges[1] - edges[0]
        counts, _ = np.histogram(both.exact, edges)
        ax.bar(edges[:-1], counts, step, align="edge", color="0.8", label="exact, counted")
        grid = np.linspace(edges[0], edges[-1], 600)
        bulk = both.estimated.density_band(grid)
        mid, above, below = (np.maximum(bulk.value + k * bulk.stderr, 1e-9) * n * step for k in (0, 2, -2))
        ax.plot(grid, mid, color=COLOURS[rule], lw=1.3, label="quadrature ± 2 s.e.")
        ax.fill_between(grid, below, above, color=COLOURS[rule], alpha=0.25, lw=0)
        atoms = both.estimated.atoms
        ax.plot(atoms, np.ones(len(atoms)), "|", color="black", ms=9, label="locked outliers")
        ax.set(yscale="log", ylim=(0.3, 3000), xlim=(edges[0], edges[-1]))
        ax.set_title(f"{rule.upper()}, {name}: $\\lambda_{{max}}$ = {both.exact[-1]:.2f}, "
                     f"$\\lambda_{{max}}/\\lambda_5$ = {both.exact[-1] / both.exact[-5]:.1f}")
        found = both.estimated.density_band(edges[:-1] + step / 2)
        drawn += [(rule, name, *row) for row in zip(edges[:-1], counts, *found, strict=True)]
    return pd.DataFrame(drawn, columns=["rule", "time", "bin", "exact count", "density", "standard error"])


def quadrature_and_dense(s: Settings, data: Data, weights: Tensor, seed: int = 0) -> Both:
    """Return the quadrature's spectrum of one net beside the eigenvalues of its dense Hessian, (n,), ascending."""
    op = operator(s.model(0).to(s.dtype), data, s, weights)
    return Both(spectral_density(op, seed=seed), torch.linalg.eigvalsh(op.to_dense()).numpy())


def batchnorm(nb: Notebook, own: range = range(2000, 2020), steps: int = 400, top: int = 10) -> Rows:
    """Train a deep MLP with and without BatchNorm and measure what Ghorbani et al. (ICML 2019) state.

    Return a row a net, seed and time: λ1, the ratio λ1/λ10 of the ten largest (as many as there are classes), and the
    share of the squared gradient in their eigenspace. The net with BatchNorm is measured as it is trained, with the
    statistics of the batch, which is here the whole training set.
    """
    measured, seeds, rows = {500 // 64: TIMES[0], steps // 6: TIMES[1], steps: TIMES[2]}, nb.seeds(own), []
    images = [nb.uses(QUICK.images(seed)) for seed in seeds]
    for norm in (False, True):
        net = partial(models.mlp, (64, 24, 24, 24, 10), norm=norm)
        many = train_many([{"rule": "sgd", "lr": 0.1, "momentum": 0.9, "seed": seed} for seed in seeds], images,
                          lambda seed, net=net: net(seed=seed), steps=steps, keep=tuple(measured), dtype=torch.float64,
                          device="cpu")
        for k, (seed, data) in enumerate(zip(seeds, images, strict=True)):
            model = net(seed=seed).double()
            for step, name in measured.items():
                op = operator(model, data, QUICK, many.kept[step][k], "batch_stats" if norm else "eval")
                found, g = top_eigenvalues(op, top, tol=1e-3), op.gradient()
                share = (found.vectors.T @ g).square().sum() / g.square().sum()
                rows.append({"net": "BatchNorm" if norm else "no BatchNorm", "seed": seed, "time": name, "step": step,
                             "lambda_1": found.values[0], "ratio": found.values[0] / found.values[-1],
                             "gradient_share": share.item()})
    return rows
