"""Notebook 18: the pool as a table with a data card, the panel on it, and the drawing of its statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sharpnb import paths
from sharpnb.lab.figures import COLOURS
from sharpnb.lab.notebook import Notebook
from sharpnb.lab.pieces import Work, described
from sharpnb.lab.records import Record
from studies import flatness_pool
from studies.flatness import AXIS_NAMES, MEASURES, TARGETS, TASK
from studies.flatness_pool import AXES, Settings
from studies.panel import with_controls

NOTEBOOK = "18_flatness"
COLLAPSED = 50.0  # percent of test error: no net of the pool that fits its images comes near it
COLUMNS = {
    "method": ("", "optimizer and averaging method; the settings of each are in the record beside this file"),
    "width": ("", "hidden units of the MLP 64-width-10"),
    "lr_factor": ("", "factor of the method's own learning rate"),
    "batch_size": ("images", "images an update"),
    "weight_decay": ("", "as the method's rule takes it: L2, or decoupled in SGDW and AdamW"),
    "label_noise": ("", "share of wrong training labels"),
    "norm": ("", "whether BatchNorm stands before the ReLU"),
    "seed": ("", "of split, wrong labels, initial weights and batches"),
    "parameters": ("", "number of weights"),
    "train_loss": ("nats", "mean cross-entropy on the training images, with their (partly wrong) labels"),
    "train_error": ("%", "error on them"),
    "test_loss": ("nats", "mean cross-entropy on the test images, labels right"),
    "test_error": ("%", "error on them"),
    "gap": ("points", "test error with labels made wrong as in training, in expectation, less the training error"),
    "lambda_max": ("nats", "largest eigenvalue of the Hessian of the training loss"),
    "lambda_min": ("nats", "smallest one; an upper bound"),
    "ratio_1_5": ("", "largest over fifth eigenvalue"),
    "trace": ("nats", "trace of the Hessian"),
    "frobenius": ("nats", "its Frobenius norm, the root of n times the second spectral moment"),
    "moment_3": ("nats³", "third moment of its spectrum"),
    "sharpness": ("nats", "rise of the loss at SAM's first-order perturbation, radius 0.05, all images together"),
    "sharpness_worst": ("nats", "the same after 20 steps of projected ascent"),
    "sharpness_adaptive": ("nats", "first order, ball relative to the weights' magnitudes, radius 0.5"),
    "sharpness_average": ("nats", "mean rise under Gaussian noise of standard deviation 0.05 / √n"),
    "gradient_norm": ("nats", "norm of the training loss's gradient"),
    "weight_norm": ("", "Euclidean norm of all weights"),
    **{f"sharpness_m{m}": ("nats", f"first order, each group of {m} images with its own perturbation")
       for m in flatness_pool.MS},
    "sharpness_adaptive_worst": ("nats", "adaptive, 20 steps of projected ascent"),
    "sharpness_adaptive_average": ("nats", "mean rise under Gaussian noise of 0.05 times each weight"),
    "ray_width": ("", "distance along random unit rays at which the mean loss has risen by 0.1 nats (at most 60)"),
    "ray_width_filter": ("", "the same along filter-normalised directions (at most 6)"),
    "distance": ("", "Euclidean distance from the initial weights"),
    "margin": ("logits", "tenth percentile over the training images of label's logit less the largest other one"),
    "margin_normalized": ("", "that over the product of the layers' spectral norms, BatchNorm folded in"),
}


def folder(profile: str = "full") -> Path:
    """Return the folder of the published pool."""
    return paths.records(NOTEBOOK, profile)


def publish(rows: Sequence[dict[str, Any]], spent: float, s: Settings, nb: Notebook) -> pd.DataFrame:
    """Write ``pool.csv``, ``card.md`` and the record ``pool`` (settings, budget, the table's checksum)."""
    for seed in range(s.seeds):
        nb.uses(flatness_pool.split(s.train_size, seed, 0.0))
    table = pd.DataFrame(rows)[[*COLUMNS]]
    text = table.to_csv(index=False, float_format="%.6g")
    paths.write_whole(folder(nb.profile) / "pool.csv", text)
    paths.write_whole(folder(nb.profile) / "card.md", card(table, spent, s))
    nb.record("pool", {"rows": len(table), "cpu_seconds": round(spent, 1), "sha256": _digest(text),
                       "settings": asdict(s), "methods": {m: flatness_pool.METHODS[m] for m in s.methods}})
    return published(nb.profile)


def published(profile: str = "full", whole: bool = False) -> pd.DataFrame:
    """Return the published pool; nets that collapsed (see :data:`COLLAPSED`) only if ``whole``.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if the table is not the one that its record names.
    """
    file = folder(profile) / "pool.csv"
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there: `sharpnb run 18 --profile {profile}` makes it.")
    text, record = file.read_text(encoding="utf-8"), Record.load(file.with_name("pool.json"))
    if _digest(text) != record.values["sha256"]:
        raise ValueError(f"{file.name} is not the table that {record.path.name} was written with: restore both.")
    table = pd.read_csv(file)
    return table if whole else usable(table)


def usable(table: pd.DataFrame) -> pd.DataFrame:
    """Return the nets that learned: a finite loss, and a test error below :data:`COLLAPSED`."""
    return table[np.isfinite(table["train_loss"]) & (table["test_error"] < COLLAPSED)].reset_index(drop=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def card(table: pd.DataFrame, spent: float, s: Settings) -> str:
    """Return the data card."""
    axes = "\n".join(f"| {AXIS_NAMES[a]} (`{a}`) | {'; '.join(map(str, pd.unique(table[a])))} |" for a in AXES)
    columns = "\n".join(f"| `{name}` | {unit or '–'} | {what} |" for name, (unit, what) in COLUMNS.items())
    return f"""# Pool of {len(table)} small nets, with every measure of flatness

`pool.csv`: one row a net. For the question which measure of a trained net predicts its test error or its gap.

**How it was made.** MLPs 64-width-10 with ReLU on {s.train_size} of scikit-learn's 1,797 handwritten digits (8x8
pixels in [0, 1]; E. Alpaydin and C. Kaynak, UCI, 1998), {s.steps} updates each in float64; all other digits are the
test set. A seed draws split, wrong labels, initial weights and batches. Around one setting each of width, learning
rate, batch size and decay is changed by itself; methods, label noise, BatchNorm and seeds are crossed. Nothing was
tuned for the pool: methods have one setting each (in `pool.json`), so it ranks no methods. Measures are of the training
loss over all training images, BatchNorm's statistics those of these images and held.

**Budget.** {spent / 60:.1f} CPU minutes on one thread, measured, in {len(flatness_pool.shards(s))} shards that resume.
Nets whose test error is {COLLAPSED:g} % or more, or that have no finite loss, count as collapsed:
{len(table) - len(usable(table))} of {len(table)}. They are in the table and left out of the notebook's statistics.

**Use.** Your own measure, tested on a part of the pool; its nets are trained again in seconds:

```python
from studies import flatness, flatness_published
table = flatness_published.published().query("label_noise == 0.2 and norm == False and seed == 0")
nets = flatness.nets(table)
table = table.assign(mine=[my_measure(net, data) for net, data in nets])
print(flatness.relate(table.reset_index(drop=True), ["mine", "lambda_max"]))
```

**Limits.** One architecture, one small data set, {s.seeds} seeds, a fixed number of updates (so nets differ in how far
they fit: `train_loss` is a column for that reason). Retrained weights agree with the measured ones up to rounding, and
differ more on other processors.

| axis | values |
|:--|:--|
{axes}

| column | unit | what |
|:--|:--|:--|
{columns}
"""


def recorded(s: Settings, nb: Notebook) -> pd.DataFrame:
    """Return the pool of a notebook's profile: swept (full, toy; shard by shard, resumable) or trained here (quick)."""
    if nb.full:
        return publish(*flatness_pool.swept(s, Work(nb, "pool", described(s))), s, nb)
    rows = [row for part in flatness_pool.shards(s) for row in flatness_pool.rows_of(part, s)]
    for seed in range(s.seeds):
        nb.uses(flatness_pool.split(s.train_size, seed, 0.0))
    table = pd.DataFrame(rows)
    errors = ["train_error", "test_error", "gap"]  # whole images, so their own tolerance
    nb.record("errors", {"rows": table[[*AXES, *errors]].to_dict("records")}, rtol=5e-2, atol=0.5)
    nb.record("measures", {"rows": table.drop(columns=errors).to_dict("records")}, rtol=5e-2, atol=1e-4)
    return table


def agreement(live: pd.DataFrame, table: pd.DataFrame, columns: Sequence[str] = (*MEASURES, *TARGETS)) -> pd.Series:
    """Return, for each column, the median over nets of |live - published| / |published|, for nets that are in both."""
    both = live.merge(table, on=list(AXES), suffixes=("", "_published"))
    off = {name: (both[name] - both[f"{name}_published"]).abs() / both[f"{name}_published"].abs().clip(lower=1e-9)
           for name in columns}
    return pd.DataFrame(off).median().rename("median relative difference")


# ---------------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------------


def forest(ax: Any, part: pd.DataFrame, names: Sequence[str], **style: Any) -> None:
    """Draw estimates with their intervals, one row a measure, the first on top."""
    rows = part.set_index("measure").loc[list(names)]
    place = np.arange(len(names))[::-1] + style.pop("shift", 0.0)
    ends = np.array([rows["tau"] - rows["lower"], rows["upper"] - rows["tau"]])
    ax.errorbar(rows["tau"], place, xerr=np.maximum(ends, 0), ls="", capsize=2, lw=1.1, ms=4, **style)
    ax.set_yticks(np.arange(len(names))[::-1], [MEASURES[name][0] for name in names], fontsize=8)
    ax.axvline(0, color="0.3", lw=0.8)


def heat(ax: Any, values: pd.DataFrame, names: Sequence[str], relations: Sequence[str]) -> Any:
    """Draw τ as colours with its number: measures down, relations across; bold where p after Holm is below 0.05."""
    grid = values.pivot_table(index="measure", columns="relation", values="tau").loc[list(names), list(relations)]
    p = values.pivot_table(index="measure", columns="relation", values="p_holm").loc[list(names), list(relations)]
    image = ax.imshow(grid, cmap="RdBu_r", vmin=-0.8, vmax=0.8, aspect="auto")
    for (r, c), value in np.ndenumerate(grid.to_numpy()):
        sure = p.to_numpy()[r, c] < 0.05
        text = f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "–"
        ax.text(c, r, text, ha="center", va="center", fontsize=7,
                color="white" if abs(value) > 0.5 else "black", weight="bold" if sure else "normal")
    ax.set_yticks(range(len(names)), [MEASURES[name][0] for name in names], fontsize=8)
    ax.set_xticks(range(len(relations)), [AXIS_NAMES.get(r, r) for r in relations], rotation=40, ha="right", fontsize=8)
    ax.grid(False)
    return image


def scatter(ax: Any, table: pd.DataFrame, measure: str, target: str, group: str) -> None:
    """Draw target over measure, a colour and marker a value of ``group``; a logarithmic axis where all are positive."""
    shades = [*COLOURS.values()]
    for k, (value, part) in enumerate(table.groupby(group, sort=False)):
        ax.plot(part[measure], part[target], "osv^D<>pPX*h"[k % 12], ls="", ms=3.5, alpha=0.6, mew=0, rasterized=True,
                color=shades[k % len(shades)], label=f"{AXIS_NAMES.get(group, group)} {value}")
    if (table[measure] > 0).all():
        ax.set_xscale("log")
    ax.set(xlabel=MEASURES.get(measure, (measure,))[0], ylabel=TARGETS.get(target, target))


def panel(table: pd.DataFrame) -> Any:
    """An ipywidgets panel: pick measure, target, what the colour shows and one task; τ stands in the title."""
    import ipywidgets as widgets
    import matplotlib.pyplot as plt

    from sharpnb.curvature import kendall_tau

    tasks = {"all tasks": table} | {
        " · ".join(f"{AXIS_NAMES[name]} {v}" for name, v in zip(TASK, value, strict=True)): part
        for value, part in table.groupby(list(TASK))}
    options = {"measure": {name: text for name, (text, _) in MEASURES.items()}, "target": TARGETS,
               "group": AXIS_NAMES, "task": dict.fromkeys(tasks, "")}
    choose = {what: widgets.Dropdown(options=[(text or name, name) for name, text in of.items()], description=what)
              for what, of in options.items()}

    def draw(measure: str, target: str, group: str, task: str) -> Any:
        part = tasks[task]
        figure, ax = plt.subplots(figsize=(7, 4))
        scatter(ax, part, measure, target, group)
        ax.set_title(f"Kendall's τ = {MEASURES[measure][1] * kendall_tau(part[measure], part[target]):.2f} "
                     "(positive: the flatter, the better)")
        ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure

    return with_controls(draw, choose)
