"""What the pages of the benchmarks hold, as numbers: every comparison, above 1 where sharpnb is faster, and its goal.

The tables are read by their headings and the names of their columns; a page that lacks one is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
Table = list[dict[str, str]]
# The goals of the project that stand on no page of their own: SAM over two gradients and torch.optim.SGD; tools' time
# over ours.
STEP_GOALS = {"MLP": 1.15, "CNN 8x8": 1.05, "CNN 32x32": 1.03}
FLOOR, OURS = "two gradients + SGD", "sharpnb SAM"
SMALL_NET = 5000
WORK_GOALS = {"small": 5.0, "five": 1.5}  # over PyHessian and curvlinops
DEFLATED_GOALS = {"one": 4.0, "five": 5.0}


@dataclass(frozen=True)
class Comparison:
    """One thing measured with sharpnb and with something else.

    Attributes:
        part: which page, as a heading.
        what: the job.
        peer: the other.
        ratio: the other's time over ours.
        low, high: range of the paired ratios; equal to ``ratio`` where the page has medians alone.
        goal: least ratio that was aimed at, or None.
    """

    part: str
    what: str
    peer: str
    ratio: float
    low: float
    high: float
    goal: float | None = None

    @property
    def floor(self) -> bool:
        """Whether the other is no rival but the least that the job can take."""
        return self.peer == FLOOR


def all_comparisons() -> list[Comparison]:
    """Return the comparisons of all pages, in the pages' order.

    Raises:
        ValueError: if a page lacks a table or a column; the message names it.
    """
    return [*_steps(), *_sweeps(), *_surfaces(), *_spectra()]


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return a table as lines of Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def tables(page: str) -> dict[str, Table]:
    """Return the tables of a page by the last heading above each."""
    found: dict[str, Table] = {}
    heading, names = "", []
    for line in (HERE / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading, names = line.lstrip("# "), []
        elif not line.startswith("|"):
            names = []
        elif not (cells := [cell.strip() for cell in line.strip("|").split("|")]) or set("".join(cells)) <= set("-: "):
            continue
        elif not names:
            names, found[heading] = cells, []
        else:
            found[heading].append(dict(zip(names, cells, strict=True)))
    return found


def _table(page: str, heading: str) -> Table:
    for name, table in tables(page).items():
        if name.startswith(heading):
            return table
    raise ValueError(f"{page} has no table under a heading that begins with {heading!r}. Make the page anew.")


def _cell(row: dict[str, str], column: str, page: str) -> str:
    for name, text in row.items():
        if name.startswith(column):
            return text
    raise ValueError(f"{page} has a table without a column {column!r}: it has {', '.join(row)}. Make the page anew.")


def _numbers(text: str) -> tuple[float, float, float]:
    """Return ``1.5 (1.2 to 1.9)`` or ``1.5 [1.2, 1.9]`` as numbers; a number alone is its own range."""
    middle, *ends = map(float, re.findall(r"\d+(?:\.\d+)?", text))
    return (middle, *ends) if ends else (middle, middle, middle)


def _steps() -> Iterator[Comparison]:
    page = "RESULTS_optimizers.md"
    peers = {"2 gradients + SGD": FLOOR, "popular class": "popular class", "pytorch-optimizer SAM": "pytorch-optimizer"}
    for net, goal in STEP_GOALS.items():
        medians = {_cell(row, "", page): float(_cell(row, "median", page))
                   for row in _table(page, f"Whole steps, {net}")}
        for name, median in medians.items():
            if peer := peers.get(name.split(" (")[0]):
                ratio = median / medians[OURS]
                yield Comparison("One step of SAM", f"whole step, {net}", peer, ratio, ratio, ratio,
                                 1 / goal if peer == FLOOR else None)


def _sweeps() -> Iterator[Comparison]:
    page = "RESULTS_sweeps.md"
    for row in _table(page, "Sweeps"):
        goal, what = _cell(row, "goal", page), f"{_cell(row, 'net', page)}, {_cell(row, 'rule', page).upper()}"
        for peer, column in (("torch.optim loop", "loop / `train_many`"), ("vmap", "vmap")):
            if text := _cell(row, column, page):
                aim = float(goal) if goal and peer != "vmap" else None
                yield Comparison("A cell of a sweep", what, peer, *_numbers(text), aim)


def _surfaces() -> Iterator[Comparison]:
    page = "RESULTS_landscape.md"
    for row in _table(page, "Loss surfaces"):
        yield Comparison("A loss surface", _cell(row, "net", page), "weights copied",
                         *_numbers(_cell(row, "copying / `surface`", page)), float(_cell(row, "goal", page)))


def _spectra() -> Iterator[Comparison]:
    page = "RESULTS_curvature.md"
    jobs = {"One product": "product", "The same work": "10 probes", "No worse an error": "equal error"}
    for heading, job in jobs.items():
        for row in _table(page, heading):
            net, data = _cell(row, "network", page), _cell(row, "data", page).split()[0]
            what = f"{job}, {net.split(' (')[0]}, {data} batch{'es' if data != 'one' else ''}"
            ours = _numbers(_cell(row, "sharpnb", page))[0] if job == "product" else None
            for peer in ("PyHessian", "curvlinops", "eigenthings"):
                if text := _cell(row, peer, page):
                    middle, low, high = _numbers(text)
                    if ours:
                        middle = low = high = middle / ours
                    yield Comparison("Hessian spectra", what, peer, middle, low, high, _goal(job, net, data, peer))


def _goal(job: str, net: str, data: str, peer: str) -> float | None:
    if job == "equal error":
        return DEFLATED_GOALS[data]
    if job == "product" or peer == "eigenthings":
        return None
    size = int(re.sub(r"\D", "", net.split("(")[1]))
    return WORK_GOALS["small"] if size < SMALL_NET else WORK_GOALS.get(data)
