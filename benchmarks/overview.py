"""One page over all benchmarks, README.md, and one figure, ratios.png: ours against the others, wins and losses alike.

Both are made from what the pages RESULTS_*.md hold and measure nothing. Run: ``python benchmarks/overview.py``.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from pages import HERE, Comparison, all_comparisons, markdown

from sharpnb import paths
from sharpnb.lab import figures

MARKERS = "osD^vPX*<>"
WIN, LOSS, FLOOR = figures.COLOURS["sgd"], figures.COLOURS["adam"], figures.COLOURS["grey"]
TITLES = {"optimizers": "One step of SAM", "sweeps": "Sweeps", "landscape": "Loss surfaces",
          "curvature": "Hessian spectra", "gpu": "On a GPU"}


def colour(one: Comparison) -> str:
    """Return the colour that says whether sharpnb is the faster."""
    return FLOOR if one.floor else WIN if one.ratio >= 1 else LOSS


def draw(found: list[Comparison]) -> Any:
    """Draw a line a job and a mark a rival, on a logarithmic axis; a bar where there is a goal."""
    peers = list(dict.fromkeys(one.peer for one in found))
    parts = [(part, [list(job) for _, job in groupby(group, lambda one: one.what)])
             for part, group in groupby(found, lambda one: one.part)]
    figure, axes = plt.subplots(len(parts), sharex=True, figsize=(7.4, 9.2),
                                height_ratios=[len(jobs) + 0.8 for _, jobs in parts])
    for ax, (part, jobs) in zip(axes, parts, strict=True):
        for row, job in enumerate(jobs):
            for goal in {one.goal for one in job if one.goal}:
                ax.plot([goal, goal], [row - 0.4, row + 0.4], color=figures.COLOURS["exact"], lw=2.2)
            for number, one in enumerate(job):
                y = row + 0.2 * (number - (len(job) - 1) / 2)
                ax.plot([one.low, one.high], [y, y], color=colour(one), lw=1.2)
                ax.plot(one.ratio, y, MARKERS[peers.index(one.peer)], color=colour(one), ms=5,
                        mfc="white" if colour(one) == LOSS else None)
        ax.axvline(1, color=figures.COLOURS["exact"], lw=0.8)
        ax.set_yticks(range(len(jobs)), [job[0].what for job in jobs], fontsize=8)
        ax.set(xscale="log", ylim=(len(jobs) - 0.4, -0.6))
        ax.set_title(part, loc="left", fontweight="bold", fontsize=9)
    axes[-1].set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes[-1].set_xlabel("time of the other / time of sharpnb   (left of 1: sharpnb is slower)")
    marks = [Line2D([], [], marker=MARKERS[k], ls="", color=FLOOR, label=peer) for k, peer in enumerate(peers)]
    kinds = [Line2D([], [], marker="o", ls="", color=WIN, label="sharpnb is faster"),
             Line2D([], [], marker="o", ls="", color=LOSS, mfc="white", label="sharpnb is slower"),
             Line2D([], [], color=figures.COLOURS["exact"], lw=2.2, marker="", label="goal")]
    figure.legend(handles=[*kinds, *marks], loc="outside lower center", ncols=4, fontsize=8)
    return figure


def alt(found: list[Comparison]) -> str:
    """Say what the picture shows."""
    rivals = [one for one in found if not one.floor]
    best, worst = max(rivals, key=lambda one: one.ratio), min(rivals, key=lambda one: one.ratio)
    faster = sum(one.ratio >= 1 for one in rivals)
    return (f"Marks on a log axis, the time of {len({one.peer for one in rivals})} others over that of sharpnb for "
            f"{len({one.what for one in found})} jobs: {faster} of {len(rivals)} lie to the right of 1, where sharpnb "
            f"is faster, up to {best.ratio:.3g} ({best.what}, {best.peer}); the others go down to {worst.ratio:.2g} "
            f"({worst.what}, {worst.peer}).")


def page(found: list[Comparison]) -> str:
    """Return the overview as Markdown."""
    rivals = [one for one in found if not one.floor]
    losses = sorted((one for one in rivals if one.ratio < 1), key=lambda one: one.ratio)
    aimed = [one for one in found if one.goal]
    met = sum(one.ratio >= one.goal for one in aimed if one.goal)
    rows = [[one.part, one.what, one.peer, _ratio(one), f"{one.goal:.2f}" if one.goal else "",
             ("met" if one.ratio >= one.goal else "**missed**") if one.goal else ""] for one in found if one.goal]
    lines = [
        "# Benchmarks", "", "Written by `python benchmarks/overview.py` from the pages beside it; not edited by hand. "
        "`make bench` measures all of it anew, in some hours on one core.", "",
        f"Ratios of CPU time, on one thread, the rival's over sharpnb's: above 1, sharpnb is faster. It is in "
        f"{len(rivals) - len(losses)} of {len(rivals)} comparisons; {met} of {len(aimed)} goals are met. Two gradients "
        "and `torch.optim.SGD` are no rival but the least that a step of SAM can take.", "",
        f"![{alt(found)}](ratios.png)", "",
        "Lines are ranges of the paired ratios, where a page has them. [Vector](ratios.svg) · [numbers](ratios.csv).",
        "",
        "## Where sharpnb is slower", "", *markdown(["", "job", "rival", "rival's time / ours"],
                                                 [[one.part, one.what, one.peer, _ratio(one)] for one in losses]), "",
        "## Goals", "", *markdown(["", "job", "over", "ratio (range)", "goal", ""], rows), "",
        "## Pages", "", *[f"- [{title}](RESULTS_{name}.md)"
                          for name, title in TITLES.items() if (HERE / f"RESULTS_{name}.md").exists()], ""]
    return "\n".join(lines)


def _ratio(one: Comparison) -> str:
    return f"{one.ratio:.2f}" + (f" ({one.low:.2f} to {one.high:.2f})" if one.low < one.high else "")


def main() -> None:
    """Write figure, numbers and page."""
    found = all_comparisons()
    with mpl.rc_context():
        figures.use_style()
        names = ("part", "what", "peer", "ratio", "low", "high", "goal")
        figures.save(draw(found), Path(HERE), "ratios", alt=alt(found),
                     data={name: [getattr(one, name) for one in found] for name in names})
    paths.write_whole(HERE / "README.md", page(found))
    print(f"{len(found)} comparisons: {HERE / 'README.md'}")


if __name__ == "__main__":
    main()
