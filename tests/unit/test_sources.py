import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy import checkout

from sharpnb import lab, sources
from sharpnb.paths import write_whole

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "__init__.py": "",
    "rules.py": "import math\n",
    "alone.py": "",
    "late.py": "",
    "lab/__init__.py": "from sharpnb.lab.train import train\nfrom . import figures\n",
    "lab/train.py": "from .. import rules\ndef train():\n    from sharpnb import late\n",
    "lab/figures.py": "from ..lab import train\n",  # a circle
}


def notebook(*code: str) -> str:
    cells = [{"cell_type": "markdown", "source": "# x"}, *({"cell_type": "code", "source": [line]} for line in code)]
    return json.dumps({"cells": cells})


@pytest.mark.parametrize(("file", "text", "differs"), [
    ("sharpnb/rules.py", "import os\n", True), ("sharpnb/alone.py", "1\n", False),
    ("notebooks/n.ipynb", notebook("from sharpnb import rules", "def make():\n    return 2", "draw()"), True),
    ("notebooks/n.ipynb", notebook("from sharpnb import rules", "def make():  # so\n    return 1", "draw(2)"), False),
    ("notebooks/n.ipynb", notebook("from sharpnb import alone", "def make():\n    return 1", "draw()"), True),
])
def test_the_mark_of_a_notebook_follows_what_it_reaches_and_what_it_defines(root, file, text, differs):
    first = notebook("from sharpnb import rules", "def make():\n    return 1", "draw()")
    (root / "notebooks" / "n.ipynb").write_text(first)
    before = sources.of_notebook("n")
    assert len(before) == 16 and before == sources.of_notebook("n") and before != sources.of_notebook("another")
    (root / file).write_text(text)
    assert (sources.of_notebook("n") != before) == differs


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    return checkout(tmp_path, {}, FILES)


def reached(*code: str) -> set[str]:
    return {name.removeprefix("sharpnb/") for name in sources.digests(list(code))}


LATER = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sharpnb.alone import x as x\n"
STUDIES, TABLE = "notebooks/studies/__init__.py", "notebooks/studies/table.csv"


@pytest.mark.parametrize(("files", "line", "expected"), [
    ({}, "from sharpnb.rules import sgd", {"__init__.py", "rules.py"}), ({}, "import numpy as np", set()),
    ({}, "import sharpnb.lab", set(FILES) - {"alone.py"}),
    ({}, "def f():\n    from sharpnb.lab import train", set(FILES) - {"alone.py"}),
    ({"sharpnb/style.mplstyle": "x"}, "import sharpnb.alone", {"__init__.py", "alone.py", "style.mplstyle"}),
    ({}, "%matplotlib inline\nif True:\n    !ls\nfrom sharpnb import rules", {"__init__.py", "rules.py"}),
    ({"sharpnb/alone.py": "def broken(:\n"}, "import sharpnb.alone", {"__init__.py", "alone.py"}),
    ({"sharpnb/lab/__init__.py": LATER}, "from sharpnb import lab", {"__init__.py", "lab/__init__.py", "alone.py"}),
    ({STUDIES: "", TABLE: "1"}, "import studies", {STUDIES, TABLE}),
    ({STUDIES: "", TABLE: "1"}, "from sharpnb import rules", {"__init__.py", "rules.py"}),
    ({"notebooks/studies/a.py": "import one\n", "recipes/one.py": "import two\n", "recipes/two.py": "",
      "recipes/three.py": ""}, "from studies import a",
     {"notebooks/studies/a.py", "recipes/one.py", "recipes/two.py"})])
def test_what_is_reached_is_found_and_nothing_else(root, files, line, expected):
    for name, text in files.items():
        write_whole(root / name, text)
    assert reached(line) == expected


def test_the_set_up_call_imports_nothing_that_is_not_found():
    found = sources.digests(["from sharpnb import lab", "lab.start('x')"])
    code = ("import sys; from sharpnb import lab; lab.start('x'); "
            "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'sharpnb'), sep='\\n')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {*done.stdout.splitlines()} <= {str(ROOT / name) for name in found}


def test_what_the_lab_shows_later_is_there():
    for name in dir(lab):
        assert getattr(lab, name) is not None, name
    assert callable(lab.sweep) and callable(lab.train_many) and lab.models.mlp and callable(lab.log2_grid)
    with pytest.raises(AttributeError, match="has no attribute 'train_few'"):
        lab.train_few()
