"""A user's matplotlibrc, IPython profile and locale against what the lab commits."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient
from toy import ASCII

from sharpnb import lab
from sharpnb.lab import figures
from sharpnb.paths import write_whole

ALT = "A parabola through three points, with a legend and a title."
DRAW = """
import sys
from pathlib import Path
import matplotlib.pyplot as plt
from sharpnb.lab import figures
figures.use_style()
fig, ax = plt.subplots()
ax.plot([1, 2, 3], [1, 4, 9])
ax.set(xlabel="x", ylabel="\\u03bb (nats)")
figures.save(fig, Path(sys.argv[1]), "f", alt="A parabola through three points, drawn by a process.",
             data={"x": [1.23456789, 2]})
"""


def draw(folder: Path, **style) -> dict[str, bytes]:
    """Draw lines, an image and a text into ``folder``; return the saved files."""
    figure, axes = plt.subplots(1, 2)
    axes[0].plot([1, 2, 3], [1, 4, 9], label="$x^2$", **style)
    axes[0].scatter([1, 2], [3, 4])
    axes[0].set(xlabel="x", ylabel="loss (nats)", title="A parabola")
    axes[0].legend()
    axes[1].imshow([[0.0, 1.0], [2.0, 3.0]])
    figures.save(figure, folder, "f", alt=ALT, data={"x": [1.23456789, 2.0, 3.0]})
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {file.suffix: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def own():
    """Let a test be a user whose settings end with it."""
    with mpl.rc_context():
        yield mpl.rcParams


@pytest.fixture
def expected(tmp_path):
    with mpl.rc_context():
        mpl.rcdefaults()
        figures.use_style()
        return draw(tmp_path / "expected")


@pytest.mark.parametrize("settings", [
    {"text.usetex": True, "font.family": ["serif"], "font.size": 18, "svg.fonttype": "none", "figure.figsize": (2, 2)},
    {"axes.facecolor": "pink", "lines.linestyle": "--", "axes.prop_cycle": mpl.cycler(color=["red", "black"])},
    {"image.cmap": "hot", "xtick.direction": "in", "legend.loc": "lower right", "path.sketch": (1, 100, 2)},
    {"savefig.bbox": "tight", "savefig.pad_inches": 1.0, "savefig.transparent": True, "savefig.facecolor": "black"},
], ids=lambda settings: next(iter(settings)))
@pytest.mark.parametrize("later", [False, True])
def test_a_figure_is_the_same_bytes_under_a_users_settings(settings, later, own, expected, tmp_path):
    """Also under those of a file's saving that are set after the style, which stay for their user."""
    given = {name: value for name, value in settings.items() if not later or name.split(".")[0] in ("savefig", "svg")}
    if later:
        figures.use_style()
    own.update(given)
    if not later:
        figures.use_style()
    with pd.option_context("display.precision", 1, "display.float_format", "{:.1f}".format, "display.max_rows", 1):
        assert draw(tmp_path / "own") == expected
    assert not later or all(own[name] == value for name, value in given.items())
    assert draw(tmp_path / "other", linestyle=":")[".png"] != expected[".png"], "the control: another drawing is seen"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return drawn_by_a_process(tmp_path_factory.mktemp("plain"), {})


def drawn_by_a_process(folder: Path, environment: dict[str, str]) -> dict[str, bytes]:
    """Draw in a process that ``environment`` describes and whose working folder and home is ``folder``."""
    around = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HOME": str(folder), "PATH": os.environ["PATH"],
              "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", DRAW, str(folder / "out")], cwd=folder, env=around | environment,
                          capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return files(folder / "out")


@pytest.mark.parametrize("place", ["matplotlibrc", ".config/matplotlib/matplotlibrc"])
def test_a_matplotlibrc_a_locale_and_a_time_zone_change_no_file(place, plain, tmp_path):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("font.size: 18\nsavefig.bbox: tight\ntext.usetex: True\n", encoding="utf-8")
    assert drawn_by_a_process(tmp_path, ASCII | {"TZ": "Asia/Kathmandu"}) == plain


PROFILE = {
    "startup/00.py": "import matplotlib, pandas\nmatplotlib.rcParams['font.size'] = 30",
    "ipython_kernel_config.py": "get_config().InlineBackend.rc = {'figure.figsize': (2, 2), 'font.size': 5}",
}


def test_a_readers_own_kernel_saves_the_same_files_whatever_the_ipython_profile_says(plain, tmp_path):
    """Such a kernel is started by Jupyter and not by us; what it shows may look otherwise."""
    for name, text in PROFILE.items():
        write_whole(tmp_path / "ipython" / "profile_default" / name, text)
    code = DRAW.replace("sys.argv[1]", repr(str(tmp_path / "out")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        cells = [nbformat.v4.new_code_cell(code)]
        NotebookClient(nbformat.v4.new_notebook(cells=cells), kernel_name="python3").execute()
    assert files(tmp_path / "out") == plain


def test_a_start_gives_pytorch_its_default_dtype_back():
    try:
        torch.set_default_dtype(torch.float64)
        lab.start("01_any", device="cpu")
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
