"""The overview of the benchmarks says what their pages say."""

from pathlib import Path

import overview
import pages
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_committed_overview_is_that_of_the_pages():
    """Red after a new page until `python benchmarks/overview.py` has been called."""
    found = pages.all_comparisons()
    assert (BENCHMARKS / "README.md").read_text(encoding="utf-8") == overview.page(found)
    drawn = pd.read_csv(BENCHMARKS / "ratios.csv")
    assert drawn["ratio"].tolist() == pytest.approx([one.ratio for one in found], rel=1e-6)


def one(ratio, peer="rival", goal=None):
    return pages.Comparison("part", "job", peer, ratio, ratio, ratio, goal)


def test_losses_and_missed_goals_are_shown_and_the_floor_is_no_rival():
    text = overview.page([one(0.5), one(2.0, goal=3.0), one(0.9, pages.FLOOR)])
    assert "It is in 1 of 2 comparisons; 0 of 1 goals are met" in text and "**missed**" in text
    losses = text.split("## Where sharpnb is slower")[1].split("## Goals")[0]
    assert "| 0.50 |" in losses and "2.00" not in losses and pages.FLOOR not in losses
    assert "| met |" in overview.page([one(4.0, goal=3.0)])
    assert overview.colour(one(0.99)) == overview.LOSS != overview.colour(one(1.01))
