"""One look for all figures, and one way to save them: PNG, SVG and the plotted data, with an alternative text."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sharpnb import paths
from sharpnb.lab.records import RecordMismatch, checking, keeping

# Wong's colour-blind-safe palette in seaborn's order; a role keeps its colour through the whole collection.
COLOURS = {
    "sgd": "#0173b2", "sam": "#de8f05", "wsam": "#029e73", "adam": "#d55e00", "adamw": "#cc78bc", "exact": "#000000",
    "grey": "#6c6c6c", "extra": "#ca9161",
}
MARKERS = {"sgd": "o", "sam": "s", "wsam": "^", "adam": "v", "adamw": "D", "exact": "x"}
# Beside matplotlib's own defaults: white ground, readable at column width, no chart junk.
_LOOK: dict[Any, Any] = {
    "figure.dpi": 100, "savefig.dpi": 200, "figure.facecolor": "white", "savefig.facecolor": "white",
    "figure.constrained_layout.use": True, "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.6, "svg.hashsalt": "sharpnb",
    "axes.formatter.min_exponent": 3,  # a log axis reads 2, 10, 50 and not powers
}
# Of those that rcdefaults leaves alone, the ones that a picture or a cell shows.
_ALSO_RESET: tuple[Any, ...] = ("timezone", "date.epoch", "figure.max_open_warning")


def use_style() -> None:
    """Set matplotlib for this process: its own defaults and our look, whatever a user's matplotlibrc or profile says.

    The backend and what belongs to a window stay as they are.
    """
    import matplotlib as mpl

    if "inline" in os.environ.get("MPLBACKEND", ""):
        importlib.import_module("matplotlib_inline.backend_inline")  # it brings an IPython profile's settings, once
    mpl.rcdefaults()
    mpl.rcParams.update({name: mpl.rcParamsDefault[name] for name in _ALSO_RESET} | _LOOK)


def heatmap(
    ax: Any, values: Any, texts: Any, *, rows: Sequence[str], columns: Sequence[str], upwards: bool = False,
    size: float = 8, **style: Any
) -> Any:
    """Draw a table as colours with a text in each cell, black or white as the colour asks; return the colours.

    The middle of the cell in row i and column j is (j + 0.5, i + 0.5).

    ``values`` are the colours, (rows, columns); ``texts`` has their shape and ``size`` points; ``rows`` and ``columns``
    are the names on the axes. ``upwards`` lays the first row at the bottom, as numbers on an axis do. ``style`` is that
    of :func:`seaborn.heatmap`, such as ``cmap``, ``vmin``, ``vmax``.
    """
    import seaborn

    seaborn.heatmap(values, ax=ax, annot=texts, fmt="", annot_kws={"size": size}, cbar=False, xticklabels=list(columns),
                    yticklabels=list(rows), **style)
    ax.set(xlabel="", ylabel="", ylim=(0, len(rows)) if upwards else (len(rows), 0))
    ax.tick_params(axis="y", labelrotation=0)
    ax.grid(False)
    return ax.collections[0]


def save(
    figure: Any, folder: Path, name: str, *, alt: str, data: Any, rtol: float = 1e-3, atol: float = 1e-9
) -> Path:
    """Save ``figure`` as ``name``.png and ``name``.svg and the plotted numbers as ``name``.csv.

    Under ``SHARPNB_CHECK=1`` nothing is written: the numbers are compared with the committed CSV (rtol·|committed| +
    atol, texts exactly), and the picture, coarsely, with the committed PNG, which catches a blank or clipped one.
    Where :func:`sharpnb.lab.records.keeping` says so, a figure that agrees with the committed one in this way stays.
    The settings of :func:`use_style` hold while it is saved, whatever has been set since.

    Args:
        figure: a matplotlib figure; it is closed.
        folder: usually ``figures/<notebook>``.
        name: file name without ending.
        alt: what the picture shows, for a reader who cannot see it: at least 40 characters.
        data: a tidy pandas DataFrame, or a mapping of columns, with every number that is drawn.
        rtol: relative tolerance of the comparison; the default's reason is at :class:`sharpnb.lab.records.Record`.
        atol: absolute tolerance of the comparison.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: if the alternative text or the data is missing.
        RecordMismatch: in checking mode, when numbers or picture differ, or nothing is committed.
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    import pandas as pd

    if len(alt.strip()) < 40:
        raise ValueError(f"figure {name}: alt = {alt!r} is too short. Say in a sentence what the picture shows, for a "
                         "reader who cannot see it.")
    frame = pd.DataFrame(data) if isinstance(data, Mapping) else data
    if frame.empty:
        raise ValueError(f"figure {name}: data is empty. Give the plotted numbers as a tidy table.")
    csv, path = frame.to_csv(index=False, float_format="%.8g"), paths.written(folder / f"{name}.png")
    with mpl.rc_context():
        use_style()
        png = render(figure, "png", alt)
        if checking():
            _compare(path, csv, png, rtol, atol)
        elif not (keeping("figures") and _as_it_was(path, csv, png, rtol, atol)):
            figure.set_layout_engine("none")  # laid out for the PNG; again would take as long as the drawing itself
            for ending, content in ((".png", png), (".svg", render(figure, "svg", alt)), (".csv", csv.encode())):
                file = path.with_suffix(ending)
                if not file.exists() or file.read_bytes() != content:
                    paths.write_whole(file, content)
    plt.close(figure)
    return path


def render(figure: Any, kind: str, alt: str) -> bytes:
    """Return a ``"png"`` or ``"svg"``, without date and program version: the same figure is the same bytes."""
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata={**metadata, "Description": alt})
    return buffer.getvalue()


def _as_it_was(path: Path, csv: str, png: bytes, rtol: float, atol: float) -> bool:
    """Return whether a figure differs from the committed one as two processors' figures do.

    Its numbers are within their tolerance and its text is the same. Of the same numbers no pixel is off by more than
    rounding moves it: more means a new look, which whoever works on it wants to see.
    """
    from PIL import Image

    try:
        worst = _compare(path, csv, png, rtol, atol)
    except RecordMismatch:
        return False
    committed = path.read_bytes()
    texts = {Image.open(io.BytesIO(each)).info.get("Description") for each in (committed, png)}
    same = path.with_suffix(".csv").read_text(encoding="utf-8") == csv
    return path.with_suffix(".svg").exists() and len(texts) == 1 and not (same and worst > 0.2)  # measured: 0.08


def _compare(path: Path, csv: str, png: bytes, rtol: float, atol: float) -> float:
    """Raise a RecordMismatch unless numbers and picture are the committed ones; return how far a pixel is off at most.

    Of the pictures mean brightness on a raster is compared: fonts and rasterisers move a part of it by less than 0.06.
    """
    import matplotlib.image as mpimg
    import numpy as np
    import pandas as pd

    def committed(file: Path, read: Any) -> Any:
        try:
            return read(file)
        except FileNotFoundError:
            raise RecordMismatch(f"{file.name}: no committed figure to compare with; run the notebook and commit "
                                 "it.") from None
        except (OSError, SyntaxError, ValueError) as error:  # what pandas and the reader of PNG files raise
            raise RecordMismatch(f"{file.name} is damaged ({error}). Delete it and run its notebook again: `sharpnb "
                                 f"run {file.parent.name} --force`.") from error

    table = path.with_suffix(".csv")
    old, new = committed(table, pd.read_csv), pd.read_csv(io.StringIO(csv))
    try:
        pd.testing.assert_frame_equal(old, new, check_dtype=False, check_exact=False, rtol=rtol, atol=atol)
    except AssertionError as error:
        raise RecordMismatch(f"{table.name} differs from the committed numbers: {error}") from error
    if committed(path, Path.read_bytes) == png:
        return 0.0  # decoding both takes as long as a simple drawing
    pictures = committed(path, mpimg.imread), mpimg.imread(io.BytesIO(png))
    means = [[[cell.mean() for cell in np.array_split(row, 24)] for row in
              (part.mean(0) for part in np.array_split(image[..., :3].mean(-1), 24))] for image in pictures]
    off = float(np.abs(np.array(means[0]) - np.array(means[1])).max())
    if off > 0.06:
        raise RecordMismatch(f"{path.name} looks different from the committed picture: brightness of a part of it is "
                             f"off by {off:.2f} (allowed 0.06). Look at both; commit the new one if right.")
    one, other = pictures
    return float(abs(one - other).max()) if one.shape == other.shape else 1.0
