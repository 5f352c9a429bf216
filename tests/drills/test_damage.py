"""Damaged files: each is named with what to do, or the damage did no harm; nothing else is touched.

Records, pieces and shards are files of ``sharpnb.kept``, of which the unit tests turn every bit.
"""

from __future__ import annotations

import contextlib

import matplotlib.image as mpimg
import numpy as np
import pytest
import torch
from harm import chances, damaged
from matplotlib import pyplot as plt

from sharpnb import paths, resume
from sharpnb.checkpoints import read_state
from sharpnb.lab import figures
from sharpnb.lab.records import RecordMismatch

ALT = "A line that falls from the upper left to the lower right."


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    return tmp_path


def draw() -> None:
    figure, ax = plt.subplots(figsize=(2, 1), dpi=50)
    ax.plot([0, 1], [1, 0])
    figures.save(figure, paths.figures("n"), "f", alt=ALT, data={"x": [0, 1], "y": [1, 0]})


def test_a_figure(monkeypatch):
    """The gate is red, or what is left of the file says the same; the next run makes it anew."""
    draw()
    folder = paths.figures("n")
    good = {file: file.read_bytes() for file in folder.iterdir()}
    seen = mpimg.imread(folder / "f.png")
    for luck in chances("a figure and its numbers", 12):
        path = luck.choice([folder / "f.png", folder / "f.csv"])
        path.write_bytes(damaged(good[path], luck, flips=path.suffix == ".png"))  # a number with another digit is one
        monkeypatch.setenv("SHARPNB_CHECK", "1")
        try:
            draw()
            assert path.suffix == ".csv" or np.array_equal(mpimg.imread(path), seen)
        except RecordMismatch as error:
            assert path.name in str(error)
        plt.close("all")
        monkeypatch.setenv("SHARPNB_CHECK", "")
        draw()
        assert {file: file.read_bytes() for file in folder.iterdir()} == good


@pytest.mark.parametrize(("name", "words"), [("net.pt", "net.pt"), ("state.npz", "state.npz is damaged")])
def test_a_checkpoint_of_ones_own_and_the_state_of_what_was_interrupted(project, name, words):
    path, state = project / name, {"weight": torch.randn(40, 40), "bias": torch.randn(40)}
    saved, wrong = resume.Checkpoint(path, ("key",)), 0
    torch.save(state, path) if name == "net.pt" else saved.save(lambda: state, force=True)
    good, read = path.read_bytes(), read_state if name == "net.pt" else lambda _: saved.load()

    def same(found) -> bool:
        return all(torch.equal(torch.as_tensor(found[name]), value) for name, value in state.items())

    for luck in chances(f"what is read from {name}", 60):
        path.write_bytes(damaged(good, luck))
        try:
            assert same(read(path))
        except ValueError as error:
            assert words in str(error)
        with contextlib.suppress(Exception):
            wrong += not same(torch.load(path, weights_only=True))
    assert wrong or name != "net.pt", "the control: torch.load alone takes other weights for these"
