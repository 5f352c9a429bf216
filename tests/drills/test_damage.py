"""Damaged files: each is named with what to do, or the damage did no harm; nothing else is touched."""

from __future__ import annotations

import contextlib
import hashlib
import json

import matplotlib.image as mpimg
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.datasets
from harm import damaged
from matplotlib import pyplot as plt
from toy import checkout, listed, plain

from sharpnb import kept, lab, paths, resume
from sharpnb.checkpoints import read_state
from sharpnb.lab import board, figures
from sharpnb.lab.data import DataError, load_data, status
from sharpnb.lab.records import Record, RecordMismatch
from sharpnb.runner import RunnerError, plan

HARM = "cut short, or a stretch of it overwritten, at a random place"
FLIPPED = f"{HARM}, or one bit turned"
ALT = "A line that falls from the upper left to the lower right."


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    return tmp_path


def hurt(path, good: bytes, luck, flips=False) -> None:
    path.write_bytes(damaged(good, luck, flips))


def test_a_record(drill):
    """The next run of its notebook makes it anew; until then the scoreboard names it."""
    listed(paths.root(), "a")
    claims = [{"id": "a", "samples": [1.0, 2.0]}]
    path = lab.start("n").record("claims", {"claims": claims})
    good, values = path.read_bytes(), Record.load(path).values
    for luck in drill.tries("a record", FLIPPED, 60):
        hurt(path, good, luck, flips=True)
        for reader in (lambda: Record.load(path).values, lambda: {"claims": [one.as_dict() for one in board.measured()["n"]]}):
            try:
                assert [*reader()["claims"][0]["samples"]] == [1.0, 2.0]  # only the last line break is gone
            except ValueError as error:
                assert "damaged" in str(error) and "claims.json" in str(error) and "Delete it" in str(error)
        lab.start("n").record("claims", {"claims": claims})
        assert Record.load(path).values == values


def draw() -> None:
    figure, ax = plt.subplots(figsize=(2, 1), dpi=50)
    ax.plot([0, 1], [1, 0])
    figures.save(figure, paths.figures("n"), "f", alt=ALT, data={"x": [0, 1], "y": [1, 0]})


def test_a_figure(drill, monkeypatch):
    """The gate is red, or what is left of the file says the same; the next run makes it anew."""
    draw()
    folder = paths.figures("n")
    good = {file: file.read_bytes() for file in folder.iterdir()}
    seen = mpimg.imread(folder / "f.png")
    for luck in drill.tries("a figure and its numbers", FLIPPED, 12):
        path = luck.choice([folder / "f.png", folder / "f.csv"])
        hurt(path, good[path], luck, flips=path.suffix == ".png")
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


def test_a_notebook(drill, project):
    """A run names it before anything is executed, and the other notebooks can be run."""
    checkout(project, {"01_toy": plain("01", "print(1)"), "02_toy": plain("02", "print(2)")})
    path = project / "notebooks" / "01_toy.ipynb"
    good = path.read_bytes()
    for luck in drill.tries("a notebook", HARM, 20):
        hurt(path, good, luck)
        with pytest.raises(RunnerError, match=r"01_toy\.ipynb cannot be read as a notebook"):
            plan(["1"])
        path.write_bytes(good)  # from git, as the message has it
        assert len(plan()) == 2


def test_a_data_file(drill, project, monkeypatch):
    good = {"train_32x32.mat": b"train" * 99, "test_32x32.mat": b"test" * 99}
    sums = {part: ["", f"{part}_32x32.mat", hashlib.md5(good[f"{part}_32x32.mat"]).hexdigest()] for part in ("train", "test")}
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", sums)
    for luck in drill.tries("a data file", FLIPPED, 20):
        for name, content in good.items():
            (project / name).write_bytes(content)
        assert status("svhn", project) == "ready"
        name = luck.choice(list(good))
        hurt(project / name, good[name], luck, flips=True)
        with pytest.raises(DataError, match=f"damaged: {name}.*delete it and call again"):
            load_data("svhn", root=project)


def test_a_checkpoint_of_ones_own(drill, project):
    path, state = project / "net.pt", {"weight": torch.randn(40, 40), "bias": torch.randn(40)}
    torch.save(state, path)
    good = path.read_bytes()
    for luck in drill.tries("a checkpoint given to `sharpnb spectrum`", FLIPPED, 60):
        hurt(path, good, luck, flips=True)
        try:
            found = read_state(path)
            assert all(torch.equal(found[name], value) for name, value in state.items())
        except ValueError as error:
            assert "net.pt" in str(error)
    wrong = 0
    for luck in drill.same():
        hurt(path, good, luck, flips=True)
        with contextlib.suppress(Exception):
            found = torch.load(path, weights_only=True)
            wrong += not all(torch.equal(found[name], value) for name, value in state.items())
    drill.control("torch.load alone, which takes other weights for these", wrong)


def test_a_state(drill, project):
    """Of a spectrum or a surface that was interrupted: named, and made anew once it is deleted."""
    path, rows = project / "state.npz", np.random.default_rng(0).normal(size=(20, 20))
    saved = resume.Checkpoint(path, ("key",))
    saved.save(lambda: {"rows": rows}, force=True)
    good = path.read_bytes()
    for luck in drill.tries("the state of a spectrum or a surface", FLIPPED, 60):
        hurt(path, good, luck, flips=True)
        try:
            found = saved.load()
            assert found is not None
            np.testing.assert_array_equal(found["rows"], rows)
        except ValueError as error:
            assert "state.npz is damaged" in str(error) and "Delete it" in str(error)


def test_a_shard(drill, project):
    """Of a sweep: trained anew, to the same table."""
    def table(name="kept"):
        return lab.sweep({"rule": "sgd", "lr": [0.05, 0.1]}, {"name": "digits", "train_size": 60}, {"name": "mlp", "sizes": (64, 4, 10)},
                         steps=4, batch_size=20, dtype="float64", device="cpu", progress=False, shard_size=1, folder=project / name)

    whole = table()
    good = {file: file.read_bytes() for file in (project / "kept").iterdir()}
    for luck in drill.tries("a finished shard of a sweep", FLIPPED, 12):
        path = luck.choice(sorted(good))
        hurt(path, good[path], luck, flips=True)
        found = table()
        pd.testing.assert_frame_equal(found, whole, check_exact=True)
        path.write_bytes(good[path])  # a bit of a blank, or of the word "digest", does no harm and stays
        assert {file: file.read_bytes() for file in (project / "kept").iterdir()} == good
    wrong = json.loads(good[path])
    wrong["values"]["rows"][0]["test_error"] += 1.0
    path.write_text(json.dumps(wrong))
    assert table().equals(whole)
    kept.write(path, {name: value for name, value in wrong.items() if name != "digest"})
    assert not table().equals(whole)  # negative control: what somebody seals again is believed
