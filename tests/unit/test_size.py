"""The project stays small: lines by part, the width of lines, the length of files.

Every number here is a ceiling that was true when it was written. One that has become too high is lowered, none is ever
raised: take something away first. The goals are 10,500 lines of package, 6,000 of studies, 30,000 of Python in all, no
line over 120 characters, no file over 400 lines.
"""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WIDEST, LONGEST = 120, 400
LINES = {"sharpnb": 16_432, "notebooks/studies": 6_414, "": 44_843}


def sources(folder: Path) -> list[Path]:
    """Return the Python files of a checkout, or of a part of it; what is built or downloaded there is none of them."""
    foreign = {"data", "build", "dist", "_build", "__pycache__"}
    found = (file.relative_to(folder) for file in folder.rglob("*.py"))
    return sorted(folder / file for file in found
                  if not any(part in foreign or part.startswith(".") for part in file.parts[:-1]))


def lines(file: Path) -> list[str]:
    """Return the lines of a Python file, or of the code cells of a notebook."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
    return text.splitlines()


def wide(file: Path) -> list[str]:
    """Return where a file has lines over ``WIDEST``."""
    return [f"{file}:{number}" for number, line in enumerate(lines(file), 1) if len(line) > WIDEST]


def long(root: Path) -> list[str]:
    """Return the files over ``LONGEST``."""
    return [file.relative_to(root).as_posix() for file in sources(root) if len(lines(file)) > LONGEST]


@pytest.mark.parametrize("part", LINES, ids=lambda part: part or "all")
def test_a_part_does_not_grow(part):
    assert sum(len(lines(file)) for file in sources(ROOT / part)) <= LINES[part]


def test_no_file_is_long():
    assert long(ROOT) == []


def test_no_line_is_wide():
    assert [place for file in (*sources(ROOT), *(ROOT / "notebooks").glob("*.ipynb")) for place in wide(file)] == []


def test_negative_control_what_is_too_long_or_too_wide_is_seen(tmp_path):
    for name, text in {"a.py": "x\n" * 401, "b.py": "x\n" * 400, "c/d.py": "#" * 121, "c/e.py": "#" * 120,
                       "data/f.py": "x\n" * 500, ".venv/g.py": "x\n" * 500, "site/_build/h.py": "x\n" * 500}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [file.name for file in sources(tmp_path)] == ["a.py", "b.py", "d.py", "e.py"]
    assert long(tmp_path) == ["a.py"]
    assert [place for file in sources(tmp_path) for place in wide(file)] == [f"{tmp_path / 'c' / 'd.py'}:1"]
    cells = {"cells": [{"cell_type": "code", "source": ["x\n", "y" * 121]},
                       {"cell_type": "markdown", "source": ["z" * 200]}]}
    (tmp_path / "n.ipynb").write_text(json.dumps(cells))
    assert wide(tmp_path / "n.ipynb") == [f"{tmp_path / 'n.ipynb'}:2"]
