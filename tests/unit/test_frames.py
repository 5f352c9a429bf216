"""The experiment is in view: from the cell that trains to the update rule a reader steps through a few frames."""

import json
import sys
import traceback
from pathlib import Path

import pytest

from sharpnb import rules

ROOT = Path(__file__).resolve().parents[2]
FRAMES, FILES = 6, 3  # at most, the cell itself not counted
TRAINING = {"02_sam_minima": ["cd527807", "train-live"]}  # the cell of the settings, and the cell that trains


class Reached(Exception):
    """The first call of a function of ``sharpnb/rules.py``."""


def stop_at_a_rule(frame, event, _):
    """Stop, as a profiler, where a function of the rules is called."""
    if event == "call" and frame.f_code.co_filename == rules.__file__:
        sys.setprofile(None)
        raise Reached


def frames_to_the_rule(notebook: str, idents: list[str]) -> list[traceback.FrameSummary]:
    """Execute the set-up of a notebook and these cells; return the frames below the cell where a rule is reached."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"}
    first = [ident for ident, text in code.items() if ident in list(code)[:1] or "lab.start(" in text]
    space: dict = {"__name__": "__main__"}
    for ident in [*first, *idents]:
        program = compile(code[ident], f"<cell {ident}>", "exec")
        if ident != idents[-1]:
            exec(program, space)
    sys.setprofile(stop_at_a_rule)
    try:
        exec(program, space)
    except Reached as reached:
        below = traceback.extract_tb(reached.__traceback__)
    finally:
        sys.setprofile(None)
    start = next(k for k, frame in enumerate(below) if frame.filename == f"<cell {idents[-1]}>")
    return [frame for frame in below[start + 1 :] if frame.filename != __file__]


@pytest.mark.parametrize("notebook", TRAINING)
def test_the_update_rule_is_a_few_frames_below_the_cell(notebook, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    found = frames_to_the_rule(notebook, TRAINING[notebook])
    files = {frame.filename for frame in found if not frame.filename.startswith("<cell")}
    assert found[-1].filename == rules.__file__
    assert len(found) <= FRAMES and len(files) <= FILES, [f"{frame.filename}: {frame.name}" for frame in found]
