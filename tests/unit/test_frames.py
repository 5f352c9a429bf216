"""The experiment is in view: from the cell that trains to the update rule a reader steps through a few frames."""

import sys
import traceback

import pytest
from cells import executed, programs

from sharpnb import rules

FRAMES, FILES = 6, 3  # at most, the cell itself not counted
TRAINING = {  # the cells before, and the cell that trains
    "01_sam": ["settings", "kinds", "runs"],
    "02_sam_minima": ["cd527807", "train-live"],
    "03_hessian_spectra": ["settings", "train"],
    "05_label_noise": ["settings", "train"],
    "11_alpha_lambda_heatmaps": ["settings", "tune", "fig2-train"],
    "12_adamw_generalization": ["settings", "tune", "train"],
}


class Reached(Exception):
    """The first call of a function of ``sharpnb/rules.py``."""


def stop_at_a_rule(frame, event, _):
    """Stop, as a profiler, where a function of the rules is called."""
    if event == "call" and frame.f_code.co_filename == rules.__file__:
        sys.setprofile(None)
        raise Reached


def frames_to_the_rule(program, space: dict) -> list[traceback.FrameSummary]:
    """Execute a cell until a rule is reached; return the frames below the cell."""
    below = []
    sys.setprofile(stop_at_a_rule)
    try:
        exec(program, space)
    except Reached as reached:
        below = traceback.extract_tb(reached.__traceback__)
    finally:
        sys.setprofile(None)
    start = next(k for k, frame in enumerate(below) if frame.filename == program.co_filename)
    return [frame for frame in below[start + 1 :] if frame.filename != __file__]


@pytest.mark.parametrize("notebook", TRAINING)
def test_the_update_rule_is_a_few_frames_below_the_cell(notebook, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    *shown, trains = TRAINING[notebook]
    found = frames_to_the_rule(programs(notebook)[trains], executed(notebook, *shown))
    files = {frame.filename for frame in found if not frame.filename.startswith("<cell")}
    assert found[-1].filename == rules.__file__
    assert len(found) <= FRAMES and len(files) <= FILES, [f"{frame.filename}: {frame.name}" for frame in found]


def test_negative_control_functions_between_the_cell_and_the_rule_are_counted():
    deep = "import torch\nfrom sharpnb import rules\ndef f0(w): rules.sgd(w, w, lr=0.1)\n"
    deep += "".join(f"def f{k}(w): f{k - 1}(w)\n" for k in range(1, 7)) + "f6(torch.ones(1, 1))"
    assert [frame.name for frame in frames_to_the_rule(compile(deep, "<cell a>", "exec"), {})] == [
        *(f"f{k}" for k in range(6, -1, -1)), "sgd"]
