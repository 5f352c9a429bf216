"""Figures: three files whole or not at all, compared with the committed ones."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from sharpnb import paths
from sharpnb.lab import RecordMismatch, figures

ALT = "A line that rises from zero to one as the number of steps grows."
pytestmark = pytest.mark.usefixtures("project")


def _picture(slope=1.0, draw=True):
    figure, ax = plt.subplots()
    if draw:
        ax.fill_between([0, 1], [0, slope])
    return figure, pd.DataFrame({"x": [0.25, 1.5], "y": [0.5, slope + 0.5], "series": ["a", "a"]})


def test_a_figure_is_a_picture_a_drawing_and_its_numbers(project):
    figure, data = _picture()
    path = figures.save(figure, paths.figures("n"), "f", alt=ALT, data=data)
    svg, png = path.with_suffix(".svg").read_bytes(), path.read_bytes()
    assert pd.read_csv(path.with_suffix(".csv")).equals(data) and ALT.encode() in svg and b"Software" not in png
    figure, data = _picture()
    figures.save(figure, paths.figures("m"), "f", alt=ALT, data=data)
    again = paths.figures("m") / "f.png"
    assert (again.read_bytes(), again.with_suffix(".svg").read_bytes()) == (png, svg), "the same bytes"


def test_checking_a_figure_sees_moved_numbers_and_a_blank_picture(monkeypatch):
    figure, data = _picture()
    figures.save(figure, paths.figures("n"), "f", alt=ALT, data=data)
    monkeypatch.setenv("SHARPNB_CHECK", "1")
    figures.save(_picture()[0], paths.figures("n"), "f", alt=ALT, data=data)
    moved = data.assign(y=data["y"] * (1 + 2e-3))
    with pytest.raises(RecordMismatch, match=r"f\.csv differs"):
        figures.save(_picture()[0], paths.figures("n"), "f", alt=ALT, data=moved)
    with pytest.raises(RecordMismatch, match="looks different"):
        figures.save(_picture(draw=False)[0], paths.figures("n"), "f", alt=ALT, data=data)
    with pytest.raises(RecordMismatch, match="no committed figure"):
        figures.save(_picture()[0], paths.figures("n"), "new", alt=ALT, data=data)


def _kept(slope=1.0, alt=ALT, factor=1.0, draw=True) -> bool:
    """Save a figure, then another in its place; return whether the three files stayed."""
    figure, data = _picture()
    path = figures.save(figure, paths.figures("n"), "f", alt=ALT, data=data)
    before = [path.with_suffix(end).read_bytes() for end in (".png", ".svg", ".csv")]
    figures.save(_picture(slope, draw)[0], paths.figures("n"), "f", alt=alt, data=data.assign(y=data["y"] * factor))
    return [path.with_suffix(end).read_bytes() for end in (".png", ".svg", ".csv")] == before


@pytest.mark.parametrize(("keep", "stays"), [("1", True), ("", False), ("0", False)])
def test_a_run_on_another_processor_keeps_the_figure_and_a_reader_sees_the_fresh_one(monkeypatch, keep, stays):
    monkeypatch.setenv("SHARPNB_KEEP", keep)
    assert _kept(slope=1.0004, factor=1 + 5e-4) is stays
    assert _kept(slope=1.00002) is stays  # a pixel of the drawing, the numbers the same


@pytest.mark.parametrize("changed", [
    {"factor": 1 + 2e-3}, {"factor": 1 + 5e-4, "draw": False}, {"factor": 1 + 5e-4, "alt": ALT + " And more."},
    {"slope": 0.98},  # the same numbers, to the last digit, in another look
])
def test_a_run_replaces_a_figure_with_other_numbers_another_look_or_another_text(monkeypatch, changed):
    monkeypatch.setenv("SHARPNB_KEEP", "1")
    assert not _kept(**changed)


@pytest.mark.parametrize(("alt", "rows", "words"), [
    ("", 2, "too short"), ("A plot.", 2, "too short"), (ALT, 0, "empty")])
def test_a_figure_without_alternative_text_or_numbers_is_refused(alt, rows, words):
    figure, data = _picture()
    with pytest.raises(ValueError, match=words):
        figures.save(figure, paths.figures("n"), "f", alt=alt, data=data.head(rows))
