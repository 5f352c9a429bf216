"""A user's matplotlibrc, IPython profile and locale against what the lab commits."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from toy import ASCII

from sharpnb import lab
from sharpnb.lab import figures

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
figures.save(fig, Path(sys.argv[1]), "f", alt="A parabola through three points, drawn by a process.", data={"x": [1.23456789, 2]})
"""
LATER = {"savefig.bbox": "tight", "savefig.facecolor": "black", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Serif"]}


def draw(folder: Path) -> dict[str, bytes]:
    """Draw lines, an image and a text into ``folder``; return the saved files."""
    figure, axes = plt.subplots(1, 2)
    axes[0].plot([1, 2, 3], [1, 4, 9], label="$x^2$")
    axes[0].scatter([1, 2], [3, 4])
    axes[0].set(xlabel="x", ylabel="loss (nats)", title="A parabola")
    axes[0].legend()
    axes[1].imshow([[0.0, 1.0], [2.0, 3.0]])
    return saved(figure, folder)


def saved(figure, folder: Path) -> dict[str, bytes]:
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
    {"text.usetex": True}, {"font.family": ["serif"], "font.size": 18}, {"axes.facecolor": "pink", "lines.linestyle": "--"},
    {"axes.prop_cycle": mpl.cycler(color=["red", "black"])}, {"image.cmap": "hot", "image.interpolation": "bilinear"},
    {"savefig.bbox": "tight", "savefig.pad_inches": 1.0, "savefig.transparent": True}, {"figure.figsize": (2, 2)},
    {"xtick.direction": "in", "legend.loc": "lower right", "path.sketch": (1, 100, 2)}, {"svg.fonttype": "none"},
], ids=lambda settings: next(iter(settings)))
def test_a_figure_is_the_same_bytes_under_a_users_settings(settings, own, expected, tmp_path):
    own.update(settings)
    figures.use_style()
    assert draw(tmp_path / "own") == expected


@pytest.mark.parametrize("setting", LATER)
def test_what_is_set_after_the_style_changes_no_saved_file_and_stays_for_its_user(setting, own, expected, tmp_path):
    figures.use_style()
    own[setting] = LATER[setting]
    assert draw(tmp_path / "own") == expected
    assert own[setting] == LATER[setting]


def test_negative_control_the_projects_own_drawing_is_seen(own, expected, tmp_path):
    figures.use_style()
    figure, ax = plt.subplots()
    ax.plot([1, 2, 3], [1, 4, 9], linestyle="--")
    assert saved(figure, tmp_path / "other")[".png"] != expected[".png"]


def test_the_backend_and_the_window_stay_the_users(own):
    backend = mpl.get_backend()
    own.update({"interactive": not own["interactive"], "toolbar": "None", "figure.max_open_warning": 1})
    interactive = own["interactive"]
    figures.use_style()
    assert (mpl.get_backend(), own["interactive"], own["toolbar"]) == (backend, interactive, "None")
    assert own["figure.max_open_warning"] == 20


def test_options_of_pandas_change_no_numbers_of_a_figure(own, expected, tmp_path):
    import pandas as pd

    figures.use_style()
    with pd.option_context("display.precision", 1, "display.float_format", "{:.1f}".format, "display.max_rows", 1):
        assert draw(tmp_path / "own") == expected


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
def test_a_matplotlibrc_in_the_working_folder_or_the_home_changes_no_file(place, plain, tmp_path):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("font.size: 18\nsavefig.bbox: tight\ntext.usetex: True\n", encoding="utf-8")
    assert drawn_by_a_process(tmp_path, {}) == plain


def test_locale_and_time_zone_change_no_file(plain, tmp_path):
    assert drawn_by_a_process(tmp_path, ASCII | {"TZ": "Asia/Kathmandu"}) == plain


PROFILE = {
    "startup/00.py": "import matplotlib, pandas\nmatplotlib.rcParams['font.size'] = 30\npandas.set_option('display.precision', 1)",
    "ipython_kernel_config.py": "get_config().InlineBackend.rc = {'figure.figsize': (2, 2), 'font.size': 5}",
}


@pytest.mark.parametrize("name", PROFILE)
def test_a_readers_own_kernel_saves_the_same_files_whatever_the_ipython_profile_says(name, plain, tmp_path):
    """Such a kernel is started by Jupyter and not by us; what it shows may look otherwise."""
    import nbformat
    from nbclient import NotebookClient

    file = tmp_path / "ipython" / "profile_default" / name
    file.parent.mkdir(parents=True)
    file.write_text(PROFILE[name], encoding="utf-8")
    code = DRAW.replace("sys.argv[1]", repr(str(tmp_path / "out")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        NotebookClient(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), kernel_name="python3").execute()
    assert files(tmp_path / "out") == plain


def test_a_start_gives_pytorch_its_default_dtype_back():
    try:
        torch.set_default_dtype(torch.float64)
        lab.start("01_any", device="cpu")
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def without_encoding(code: str) -> list[int]:
    """Return the lines on which a text file is opened in the encoding that the locale has."""
    found = []
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = [*call.args, *(word.value for word in call.keywords)]
        if name == "open" and isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in ("os", "Image", "zipfile"):
            continue
        binary = name == "open" and any(isinstance(value, ast.Constant) and "b" in str(value.value) for value in given)
        told = any(word.arg == "encoding" for word in call.keywords) or (name == "read_text" and call.args)
        if name in ("open", "read_text", "write_text") and not binary and not told:
            found.append(call.lineno)
    return found


@pytest.mark.parametrize(("code", "lines"), [
    ("open(f)", [1]), ("\nf.open('w')", [2]), ("f.read_text()", [1]), ("f.write_text('λ')", [1]), ("open(f, 'rb')", []),
    ("open(f, encoding='utf-8')", []), ("f.read_text('utf-8')", []), ("Image.open(f)", []), ("f.open('ab')", []),
])
def test_negative_control_of_the_search_for_encodings(code, lines):
    assert without_encoding(code) == lines


@pytest.mark.parametrize("folder", ["sharpnb", "notebooks/studies", "benchmarks", "site", "recipes", "tests/gate"])
def test_every_text_file_is_opened_with_its_encoding(folder):
    code = list((Path(__file__).resolve().parents[3] / folder).rglob("*.py"))
    found = [f"{file}:{line}" for file in code for line in without_encoding(file.read_text(encoding="utf-8"))]
    assert code and not found
