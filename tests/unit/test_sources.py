import json
import sys

import pytest
from toy import checkout

from sharpnb import sources

FILES = {
    "__init__.py": "",
    "rules.py": "import math\n",
    "alone.py": "",
    "late.py": "",
    "named.py": "",
    "lab/__init__.py": "from sharpnb.lab.train import train\nfrom . import figures\n",
    "lab/train.py": "from .. import rules\ndef train():\n    from sharpnb import late\n    import importlib\n"
                    "    importlib.import_module('sharpnb.named')\n",
    "lab/figures.py": "from ..lab import train\n",  # a circle
}


def notebook(*code: str) -> str:
    return json.dumps({"cells": [{"cell_type": "markdown", "source": "# x"}, *({"cell_type": "code", "source": [line]} for line in code)]})


@pytest.mark.parametrize(("file", "text", "differs"), [
    ("sharpnb/rules.py", "import os\n", True), ("sharpnb/alone.py", "1\n", False),
    ("notebooks/n.ipynb", notebook("from sharpnb import rules", "def make():\n    return 2", "draw()"), True),
    ("notebooks/n.ipynb", notebook("from sharpnb import rules", "def make():  # in other words\n    return 1", "draw(size=2)"), False),
    ("notebooks/n.ipynb", notebook("from sharpnb import alone", "def make():\n    return 1", "draw()"), True),
])
def test_the_mark_of_a_notebook_follows_what_it_reaches_and_what_it_defines(root, file, text, differs):
    (root / "notebooks" / "n.ipynb").write_text(notebook("from sharpnb import rules", "def make():\n    return 1", "draw()"))
    before = sources.of_notebook("n")
    assert len(before) == 16 and before == sources.of_notebook("n") and before != sources.of_notebook("another")
    (root / file).write_text(text)
    assert (sources.of_notebook("n") != before) == differs


OWN = {"own.py": "import beside\nfrom pack.inner import f\nimport json, torch\n", "beside.py": "import own\n", "alone.py": "",
       "pack/__init__.py": "", "pack/inner.py": "from . import more\nfrom ..beside import x\n", "pack/more.py": "from .deep.end import y\n",
       "pack/deep/__init__.py": "", "pack/deep/end.py": "y = 1\n"}


@pytest.mark.parametrize(("module", "expected"), [
    ("own", {"own.py", "beside.py", "pack/__init__.py", "pack/inner.py", "pack/more.py", "pack/deep/__init__.py", "pack/deep/end.py"}),
    ("beside", {"beside.py", "own.py", "pack/__init__.py", "pack/inner.py", "pack/more.py", "pack/deep/__init__.py", "pack/deep/end.py"}),
    ("pack.deep.end", {"pack/__init__.py", "pack/deep/__init__.py", "pack/deep/end.py"}),
    ("pack.deep", {"pack/__init__.py", "pack/deep/__init__.py"}), ("alone", {"alone.py"}),
    ("not_there", set()), ("not.there", set()), ("sys", set())])
def test_around_a_module_of_ones_own_are_the_files_that_it_imports(tmp_path, monkeypatch, module, expected):
    for name, text in OWN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("own", "beside", "pack", "alone")]:
        monkeypatch.delitem(sys.modules, name)
    assert sources.around(module).keys() == expected


def test_an_installed_package_is_followed_within_itself():
    assert {name.split("/")[0] for name in sources.around("numpy.lib")} == {"numpy"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    return checkout(tmp_path, {}, FILES)


def reached(*code: str) -> set[str]:
    return {name.removeprefix("sharpnb/") for name in sources.digests(list(code))}


@pytest.mark.parametrize(
    "line", ["from sharpnb import lab", "import sharpnb.lab", "def f():\n    from sharpnb.lab import train"]
)
def test_everything_behind_an_import_is_found(root, line):
    assert reached(line) == set(FILES) - {"alone.py"}


def test_one_module_brings_only_itself_and_its_package(root):
    assert reached("import numpy", "from sharpnb.rules import sgd") == {"__init__.py", "rules.py"}
    assert reached("import numpy as np") == set()


def test_other_files_of_the_package_count(root):
    (root / "sharpnb" / "lab" / "style.mplstyle").write_text("x")
    assert "lab/style.mplstyle" in reached("import sharpnb.alone")


def test_magics_do_not_hide_imports(root):
    assert "rules.py" in reached("%matplotlib inline\nif True:\n    !ls\nfrom sharpnb import rules")


def test_a_file_that_is_no_python_counts_and_stops_nothing(root):
    (root / "sharpnb" / "alone.py").write_text("def broken(:\n")
    assert reached("import sharpnb.alone") == {"__init__.py", "alone.py"}


def test_a_changed_file_changes_its_digest_and_its_imports(root):
    before = sources.digests(["import sharpnb.rules"])
    (root / "sharpnb" / "rules.py").write_text("from sharpnb import alone\n")
    after = sources.digests(["import sharpnb.rules"])
    assert after.keys() - before.keys() == {"sharpnb/alone.py"}
    assert after["sharpnb/rules.py"] != before["sharpnb/rules.py"]
    assert after["sharpnb/__init__.py"] == before["sharpnb/__init__.py"]


def test_without_sources_of_its_own_a_checkout_uses_the_installed_package(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(checkout(tmp_path, {})))
    assert {"sharpnb/__init__.py", "sharpnb/rules.py"} <= sources.digests(["from sharpnb import rules"]).keys()
