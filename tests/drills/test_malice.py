"""Files and values made to run code: none of it runs, and none of it is mistaken for a result."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from harm import Canary
from toy import checkout, code, markdown, notebook

import imagefolder
import imagenet
import sharpnb
from sharpnb import resume
from sharpnb.checkpoints import read_state
from sharpnb.lab.records import Record
from sharpnb.runner import RunnerError, plan, run


def as_torch(canary) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": {"weight": canary}, "settings": {}}, buffer)
    return buffer.getvalue()


def as_arrays(canary) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, key=np.array("('key',)"), rows=np.array([canary], dtype=object))
    return buffer.getvalue()


def as_state(canary) -> bytes:
    """A state's own form, its digest right."""
    content = b"('key',)\n" + as_torch(canary)
    return hashlib.sha256(content).digest() + content


def resumed(path):
    training = object.__new__(imagenet._Run)
    training.out, training.device = path.parent, torch.device("cpu")
    training.resume()


READERS = {  # every place of the package that reads a file which somebody else can have made
    "a checkpoint given to `sharpnb spectrum`": (read_state, "net.pt"),
    "the state of a spectrum or a surface": (lambda path: resume.Checkpoint(path, ("key",)).load(), "state.npz"),
    "a record": (Record.load, "r.json"),
    "the state of a fine-tuning": (resumed, "checkpoint.pt"),
    "the weights to fine-tune from": (
        lambda path: imagefolder.network("resnet18", str(path), 10, True, 0), "weights.pt"),
}
FORMS = {  # how a file is made, and how it would be read with pickle allowed
    lambda canary: pickle.dumps(canary, protocol=2): lambda path: pickle.loads(path.read_bytes()),
    as_torch: lambda path: torch.load(path, weights_only=False),
    as_state: lambda path: torch.load(io.BytesIO(path.read_bytes()[41:]), weights_only=False),
    as_arrays: lambda path: np.load(path, allow_pickle=True)["rows"],
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_runs_code_when_unpickled(tmp_path, name):
    read, file = READERS[name]
    canary, path = tmp_path / "ran", tmp_path / file
    for make, load in FORMS.items():
        path.write_bytes(make(Canary(canary)))
        with pytest.raises(ValueError, match=file):
            read(path)
        assert not canary.exists()
        load(path)
        assert canary.exists(), "the control: with pickle allowed it runs"
        canary.unlink()


def unsafe(source: str) -> list[str]:
    """Return the lines that read a file in a way that could run code in it; swap reads what its own parent has sent."""
    reads = {"torch.load(": ("weights_only=True", "from the parent process"), "np.load(": ("allow_pickle=False",),
             "pickle.load": ()}
    return [line for line in source.splitlines() for call, safe in reads.items()
            if call in line and not any(word in line for word in safe)]


def test_there_is_no_other_place_that_unpickles():
    root = Path(sharpnb.__file__).parents[1]
    files = [file for part in ("sharpnb", "notebooks/studies", "recipes") for file in (root / part).rglob("*.py")]
    assert files and [line for file in files for line in unsafe(file.read_text(encoding="utf-8"))] == []
    lines = ["torch.load(f)", "np.load(f, allow_pickle=True)", "pickle.loads(b)", "np.load(f, allow_pickle=False)"]
    assert unsafe("\n".join(lines)) == lines[:3]


CELL = """profile: str = "quick"  # quick | full
word: str = "a"
seed: int = 0
rho: float = 0.05
many: list = [1]
yes: bool = True"""
RUNS = "__import__('pathlib').Path('ran').touch()"
TEXTS = [RUNS, f'"; {RUNS}; "', f"\\n{RUNS}\\n#", f"\n{RUNS}\n#", f'"""\n{RUNS}\n"""', "{profile} {0} %s", "\\",
         "$(touch ran)", "é\u2028'\"\x07"]
NOT_VALUES = [RUNS, f"[{RUNS}]", f"0; {RUNS}", "9**9**9", "(" * 3000, "-" * 3000 + "1", "1" * 5000,
              "[" * 400 + "]" * 400, "\0", "lambda: 0", "{**{}}", ""]


def test_parameters_that_are_code(tmp_path, monkeypatch):
    """A text comes out as the text it was; of a number, list or truth value nothing but a literal is taken."""
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cells = [markdown("# 01", "h"), code(CELL, "p", ("parameters",)), code("print(ascii(word))", "b")]
    checkout(tmp_path, {"01_toy": notebook(*cells)})
    refused = [(name, text) for name in ("seed", "rho", "many", "yes") for text in NOT_VALUES]
    for name, text in [*refused, (f"seed; {RUNS}", "1"), ("__name__", "x")]:
        with pytest.raises(RunnerError, match=r"this parameter is|has no parameter"):
            plan(["1"], given={name: text})
    hostile = "\n".join(TEXTS)
    (result,) = run(["1"], parameters={"word": hostile})
    printed = json.loads(result.kept.read_text())["cells"][-1]["outputs"][0]["text"]
    assert "".join(printed) == ascii(hostile) + "\n"
    assert not list(tmp_path.rglob("ran"))
    for text in TEXTS:
        with contextlib.suppress(SyntaxError, NameError):
            exec(f'word = "{text}"')
    assert (tmp_path / "ran").exists(), "the control: pasted between quotes they run"
