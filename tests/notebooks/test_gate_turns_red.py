"""Negative controls of the whole gate: pytest, in a process of its own, on a checkout of two small notebooks.

Green as it is; red, and red for that notebook only, when an output is stripped, a printed number is moved by twice its
tolerance, an alternative text is dropped, or a committed figure's or record's number is moved.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import toy

from sharpnb import kept
from sharpnb.runner import run

HERE = Path(__file__).resolve().parents[2]
LAB = """
import matplotlib.pyplot as plt

from sharpnb import lab

nb = lab.start("02_lab", profile=profile, device=device, seed=seed)
figure, ax = plt.subplots(figsize=(2, 1))
data = {"x": [0.0, 1.0, 2.0], "y": [1.0, 0.5, 0.25]}
ax.plot(data["x"], data["y"])
nb.figure(figure, "path", alt="A line that falls from the upper left to the lower right.", caption="A path.", data=data)
"""


def lab_notebook() -> dict:
    claim = 'lab.Claim("a", (0.5, 0.6, 0.7))'
    return toy.notebook(
        toy.markdown("# 02 · The lab\n\nDoes it compare?", "head"), toy.code(toy.PARAMETERS, "params", ("parameters",)),
        toy.code(LAB.strip(), "fig", ("figure",)), toy.code(f"nb.claims([{claim}])", "claims", ("claims",)),
    )


@pytest.fixture(scope="module")
def green(tmp_path_factory):
    """Make a checkout with a plain notebook, and one whose figure and claims the lab has written."""
    root = tmp_path_factory.mktemp("checkout") / "green"
    toy.checkout(root, {"01_toy": toy.guarded(), "02_lab": lab_notebook()})
    toy.picture(root)
    toy.listed(root, "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARPNB_ROOT", str(root))
        assert [result.outcome for result in run(["2"], update=True)] == ["done"]
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(HERE / name, root)
    shutil.copytree(HERE / "tests" / "gate", root / "tests" / "gate", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def check(root: Path, *what: str, **own: str) -> tuple[int, dict[str, str]]:
    """Run the gate under the variables ``own``; return its exit status and what each notebook's one failure says."""
    report = root / "report.xml"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SHARPNB", "PYTEST"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *what]
    done = subprocess.run(command, cwd=root, env=environment | own, capture_output=True, text=True, check=False)
    failed: dict[str, list[str]] = {}
    for case in ET.parse(report).iter("testcase"):
        name = re.search(r"\d\d_\w+", case.get("classname", "") + case.get("name", "")).group()
        failed.setdefault(name, []).extend(part.text for part in case if part.tag in ("failure", "error"))
    assert failed, done.stdout + done.stderr
    assert all(len(failures) <= 1 for failures in failed.values()), failed
    return done.returncode, {name: "".join(failures) for name, failures in failed.items()}


def committed(root: Path) -> dict[str, bytes]:
    """Return the content of the files that git would see."""
    found = (file for file in root.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    inside = {file.relative_to(root).as_posix(): file.read_bytes() for file in found}
    return {name: text for name, text in inside.items() if not name.startswith("data/runs") and name != "report.xml"}


def copied(root: Path, old: str, new: str) -> None:
    """Copy a notebook of the lab, with its figure and its records, under another name."""
    text = (root / "notebooks" / f"{old}.ipynb").read_text(encoding="utf-8")
    (root / "notebooks" / f"{new}.ipynb").write_text(text.replace(old, new), encoding="utf-8")
    for folder in (root / "figures", root / "data" / "records"):
        shutil.copytree(folder / old, folder / new)


def test_one_notebook_alone_is_green_as_it_is(green):
    assert check(green, "notebooks/01_toy.ipynb") == (0, {"01_toy": ""})


def test_a_users_profile_neither_turns_the_gate_red_nor_changes_a_file(green, tmp_path):
    root, own = tmp_path / "own", toy.profile(tmp_path / "user")
    shutil.copytree(green, root)
    settings = (tmp_path / "user" / "matplotlibrc").read_text(encoding="utf-8")
    (root / "notebooks" / "matplotlibrc").write_text(settings + "no.such.key: 1\nfont.size: huge\n", encoding="utf-8")
    before = committed(root)
    assert check(root, "notebooks", **own) == (0, {"01_toy": "", "02_lab": ""})
    assert committed(root) == before


def test_each_mutant_is_red(green, tmp_path):
    root = tmp_path / "red"
    shutil.copytree(green, root)
    stripped, moved, within, dropped = (toy.guarded() for _ in range(4))
    stripped["cells"][2]["outputs"] = []
    for mutant, number in ((moved, "0.123703"), (within, "0.123500")):  # 2 and 0.3 tolerances from 0.123457
        mutant["cells"][2]["outputs"][0]["text"] = f"loss {number} after 150 steps\n"
    dropped["cells"][4]["source"] = dropped["cells"][4]["source"].replace(toy.ALT, "")
    data = dropped["cells"][4]["outputs"][0]["data"]
    data["text/markdown"] = data["text/markdown"].replace(toy.ALT, "")
    mutants = {"03_stripped": stripped, "04_moved": moved, "05_within": within, "06_dropped": dropped}
    for name, mutant in mutants.items():
        (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps(mutant), encoding="utf-8")

    copied(root, "02_lab", "07_record")
    record = root / "data" / "records" / "07_record" / "quick" / "claims.json"
    content = kept.read(record)
    content["values"]["claims"][0]["samples"][0] *= 1 + 2 * content["rtol"]
    kept.write(record, content)
    table = root / "figures" / "02_lab" / "path.csv"
    table.write_text(table.read_text().replace("0.25", "0.2505"))

    status, failed = check(root)
    assert status == 1
    assert failed["01_toy"] == failed["05_within"] == ""
    assert "Unexpected output fields" in failed["03_stripped"]
    assert "mismatch" in failed["04_moved"] and "0.123703" in failed["04_moved"]
    assert "without alternative text" in failed["06_dropped"]
    assert "claims.json: claims[0].samples[0] is 0.5" in failed["07_record"]  # and its figure compared well
    assert "path.csv differs from the committed numbers" in failed["02_lab"]
