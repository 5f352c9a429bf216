"""Notebook 18: the pool as a table with a data card, the panel on it, and the drawing of its statistics."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from sharpnb import paths
from sharpnb.lab import Notebook, Record
from sharpnb.lab.figures import COLOURS
from sharpnb.lab.pieces import Work, described
from studies import flatness_pool
from studies.common import with_controls
from studies.flatness import AXIS_NAMES, MEASURES, TARGETS, TASK
from studies.flatness_pool import AXES, Settings

NOTEBOOK = "18_flatness"
CARD = Path(__file__).parents[2] / "data" / "flatness_card.md"  # its text, and a row for each column of the table
COLUMNS = re.findall(r"(?m)^\| `(\w+)` \| ", CARD.read_text(encoding="utf-8"))


def publish(rows: Sequence[dict[str, Any]], spent: float, s: Settings, nb: Notebook) -> pd.DataFrame:
    """Write ``pool.csv``, ``card.md`` and the record ``pool`` (settings, budget, the table's checksum)."""
    table = pd.DataFrame(rows)[COLUMNS]
    for seed in sorted(set(table["seed"])):
        nb.uses(flatness_pool.split(s.train_size, seed, 0.0))
    text, folder = table.to_csv(index=False, float_format="%.6g"), paths.records(NOTEBOOK, nb.profile)
    paths.write_whole(folder / "pool.csv", text)
    paths.write_whole(folder / "card.md", card(table, spent, s))
    nb.record("pool", {"rows": len(table), "cpu_seconds": round(spent, 1), "sha256": _digest(text),
                       "settings": asdict(s), "methods": {m: flatness_pool.METHODS[m] for m in s.methods}})
    return published(nb.profile)


def published(profile: str = "full") -> pd.DataFrame:
    """Return the published pool, nets that collapsed too; refuse one that is not there, or not as its record says."""
    file = paths.records(NOTEBOOK, profile) / "pool.csv"
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there: `sharpnb run 18 --profile {profile}` makes it.")
    text, record = file.read_text(encoding="utf-8"), Record.load(file.with_name("pool.json"))
    if _digest(text) != record.values["sha256"]:
        raise ValueError(f"{file.name} is not the table that {record.path.name} was written with: restore both.")
    return pd.read_csv(file)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def card(table: pd.DataFrame, spent: float, s: Settings) -> str:
    """Return the data card."""
    axes = "\n".join(f"| {AXIS_NAMES[a]} (`{a}`) | {'; '.join(map(str, pd.unique(table[a])))} |" for a in AXES)
    return Template(CARD.read_text(encoding="utf-8")).substitute(
        axes=axes, nets=len(table), images=s.train_size, updates=s.steps, seeds=table["seed"].nunique(),
        minutes=f"{spent / 60:.1f}", shards=len(flatness_pool.shards(s)),
        collapsed=int((table["test_error"] >= 50).sum()))


def recorded(s: Settings, nb: Notebook) -> pd.DataFrame:
    """Sweep the pool of the full profile (or of its toy), shard by shard, publish it, and return it."""
    return publish(*flatness_pool.swept(s, Work(nb, "pool", described(s))), s, nb)


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
    """Pick measure, target, what the colour shows and one task in an ipywidgets panel; τ stands in the title."""
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
