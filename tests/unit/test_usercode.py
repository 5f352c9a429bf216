"""A user's file runs where it lives. Each test is a project on disk, as people have them."""

import copy
import json
import random
import subprocess
import sys
import textwrap

import pytest

from sharpnb import usercode


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a function that writes files; the working folder is theirs, and nothing of them is left over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    before = dict(sys.modules)

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return tmp_path

    yield write
    for name in set(sys.modules) - set(before):
        if "packages" not in str(getattr(sys.modules[name], "__file__", "packages")):
            del sys.modules[name]
    sys.modules.update(before)


NETS = "WHO = 'nets'\ndef net():\n    return WHO\n"
PROJECTS = {  # what the file imports, where it lies, and what lies beside
    "a neighbour": ("from nets import net as build", "train.py", ["nets.py"]),
    "a package beside it": ("from src.nets import net as build", "train.py", ["src/__init__.py", "src/nets.py"]),
    "in a package, by name": ("from pkg.nets import net as build", "pkg/train.py", ["pkg/__init__.py", "pkg/nets.py"]),
    "in a package, a neighbour": ("from nets import net as build", "pkg/train.py", ["pkg/__init__.py", "pkg/nets.py"]),
    "two packages deep": ("from ..nets import net as build", "pkg/exp/train.py",
                          ["pkg/__init__.py", "pkg/exp/__init__.py", "pkg/nets.py"]),
    "two up without __init__.py": ("from ..nets import net as build", "pkg/exp/train.py", ["pkg/nets.py"]),
    "the package's own file": ("from .nets import net as build", "pkg/__init__.py", ["pkg/nets.py"]),
    "when it is called": ("def build():\n    from nets import net\n    return net()", "train.py", ["nets.py"]),
}


@pytest.mark.parametrize("whence", ["here", "elsewhere", "as a module"])
@pytest.mark.parametrize("name", PROJECTS)
def test_a_file_finds_its_neighbours(project, monkeypatch, name, whence):
    text, file, beside = PROJECTS[name]
    root = project({file: text, **{other: NETS if other.endswith("nets.py") else "" for other in beside}})
    spec = file
    if whence == "elsewhere":
        monkeypatch.chdir("/")
        spec = str(root / file)
    elif whence == "as a module":
        spec = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    found = usercode.find(f"{spec}:build", "model")
    assert found() == "nets" and found.file == root / file
    assert usercode.find(f"{spec}:build", "data").value is found.value, "one file is run once, for model and data"


def test_the_command_lines_arguments_are_not_theirs(project, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sharpnb", "spectrum", "--model", "parsed.py:build"])
    root = project({"parsed.py": """
        import argparse, sys
        parser = argparse.ArgumentParser()
        parser.add_argument("--width", type=int, default=7)
        width, argv = parser.parse_args().width, list(sys.argv)
        def build():
            return width, argv, list(sys.argv), sys.path[0]
        """})
    argv = [str(root / "parsed.py")]
    assert usercode.find("parsed.py:build", "model")() == (7, argv, argv, str(root))
    assert sys.argv == ["sharpnb", "spectrum", "--model", "parsed.py:build"]
    assert sys.path[0] != str(root) and str(root) in sys.path


SHADOWING = {"random.py": "WHO = 'their random'\n", "json.py": "import random\nWHO = 'their json, ' + random.WHO\n",
             "colorsys.py": "WHO = 'their colorsys'\n", "pandas/__init__.py": "from .core import WHO\n",
             "pandas/core.py": "WHO = 'their pandas'\n", "train.py": """
                 import json, random, pandas, colorsys, pandas.core as core
                 from random import WHO as who
                 import copy, os.path
                 def build():
                     import random, pandas.core
                     from json import WHO
                     return WHO, random.WHO, who, pandas.WHO, pandas.core.WHO, core.WHO, colorsys.WHO, copy.__name__
                 """}


@pytest.mark.parametrize("whence", ["here", "elsewhere"])
def test_a_neighbour_called_like_another_module_is_theirs_and_shadows_nothing_for_others(project, monkeypatch, whence):
    root = project(SHADOWING)
    for name in ("colorsys", "chunk"):
        sys.modules.pop(name, None)
    monkeypatch.chdir("/" if whence == "elsewhere" else root)
    found = usercode.find(f"{root / 'train.py' if whence == 'elsewhere' else 'train.py'}:build", "model")
    for _ in range(2):
        assert found() == ("their json, their random", "their random", "their random", *["their pandas"] * 3,
                           "their colorsys", "copy")
    import colorsys  # not imported before, so that it is looked for only now

    assert sys.modules["random"] is random and sys.modules["json"] is json and hasattr(colorsys, "rgb_to_hsv")
    import pandas

    assert hasattr(pandas, "DataFrame")
    worker = f"import sys; sys.path[:] = {sys.path!r}; import json, random, pandas; json.dumps(random.random())"
    done = subprocess.run([sys.executable, "-c", worker], capture_output=True, text=True)
    assert done.returncode == 0, f"a worker process, which gets sys.path, is not led astray either: {done.stderr}"


@pytest.mark.parametrize("name", ["random", "test", "copy"])
def test_the_named_file_itself_may_be_called_so(project, name):
    project({f"{name}.py": "import copy as itself, nets\ndef build():\n    return nets.WHO\n", "nets.py": NETS})
    before = sys.modules.get(name)
    for spec in (f"{name}.py:build", f"{name}:build"):
        assert usercode.find(spec, "model")() == "nets"
    assert sys.modules.get(name) is before and copy.deepcopy([1]) == [1]


def test_within_a_package_the_modules_of_python_are_meant(project):
    """``python -m pkg.train`` has not the package's own folder on its path."""
    project({"pkg/__init__.py": "", "pkg/logging.py": "WHO = 'theirs'\n", "pkg/colorsys.py": "WHO = 'theirs'\n",
             "pkg/train.py": "import logging, colorsys\nfrom . import logging as own\n"
                             "def build():\n    return logging.getLogger, colorsys.hls_to_rgb, own.WHO\n"})
    assert usercode.find("pkg/train.py:build", "model")()[2] == "theirs"


def test_two_files_of_one_name_are_two(project):
    train = "import nets\ndef build():\n    return nets.WHO\n"
    root = project({"a/train.py": train, "a/nets.py": "WHO = 'a'\n", "b/train.py": train, "b/nets.py": "WHO = 'b'\n"})
    assert [usercode.find(f"{root}/{who}/train.py:build", "model")() for who in "abab"] == ["a", "b", "a", "b"]


@pytest.mark.parametrize(("text", "words"), [
    ("import sys\nsys.exit(3)\n", ["bad.py, line 2", "status 3", "__main__"]),
    ("import argparse\np = argparse.ArgumentParser()\np.add_argument('--must', required=True)\np.parse_args()\n",
     ["bad.py, line 4", "gets no arguments"]), ("x = 1\ny = (\n", ["bad.py, line 2", "SyntaxError"]),
    ("import absent_thing\n", ["no 'absent_thing'", "bad.py, line 1"]),
    ("def build():\n    return 1 / 0\n", ["bad.py, line 2", "ZeroDivisionError: division by zero"]),
    ("def buidl(): pass\n", ["has no 'build'", "Did you mean 'buidl'"]),
])
def test_what_goes_wrong_in_it_is_a_sentence_with_file_and_line(project, text, words):
    project({"bad.py": text})
    with pytest.raises(ValueError) as error:
        usercode.find("bad.py:build", "model")()
    assert str(error.value).startswith("model 'bad.py:build': ")
    assert all(word in str(error.value) for word in words), error.value


def test_a_name_that_is_none(project):
    for spec, words in (("train", "write module:function"), (":f", "write module:function"),
                        ("absent.py:f", "there is no 'absent.py' here"), ("absent:f", "there is no 'absent' here")):
        with pytest.raises(ValueError, match=words):
            usercode.find(spec, "model")


def test_installed_modules_are_installed_ones(project):
    found = usercode.find("torch.nn:Linear", "model")
    assert found.file is None and found(3, 2).out_features == 2
    marks = [usercode.digest(spec) for spec in ("rich.text:Text", "json:loads", "json:dumps")]
    assert marks[0] != marks[1] == marks[2] and usercode.absolute("digits") == "digits"
    assert usercode.absolute("torch.nn:Linear") == "torch.nn:Linear"


def test_the_mark_of_their_files_changes_with_a_neighbour_and_with_nothing_else(project):
    def mark():
        call = "from sharpnb import usercode; print(usercode.digest('train.py:build'))"
        return subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True).stdout

    root = project({"train.py": "from nets import net as build\n", "nets.py": NETS, "plots.py": ""})
    first = mark()
    (root / "plots.py").write_text("x = 1\n")
    assert mark() == first and len(first) == 33
    (root / "nets.py").write_text(NETS + "# another\n")
    assert mark() != first
    assert usercode.absolute("train:build") == usercode.absolute("train.py:build") == f"{root / 'train.py'}:build"


def test_classes_reach_processes_that_are_started_anew(project):
    project({"train.py": """
        import multiprocessing
        from nets import Thing
        def work(thing):
            return thing.value
        def build():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return pool.map(work, [Thing(3)])
        """, "nets.py": "class Thing:\n    def __init__(self, value):\n        self.value = value\n"})
    call = "from sharpnb import usercode\nif __name__ == '__main__':\n    print(usercode.find('train.py:build', 'm')())"
    done = subprocess.run([sys.executable, "-P", "-c", call], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[3]\n", done.stderr
