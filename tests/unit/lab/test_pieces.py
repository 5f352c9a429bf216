"""Pieces of a long study: kept, shown, resumed after a kill."""

import json
from dataclasses import dataclass

import pytest
import torch
from toy import checkout, code, notebook

from sharpnb import lab, paths, sources
from sharpnb.lab import Record, models
from sharpnb.lab.pieces import Work, described


@pytest.fixture
def nb(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    return lab.start("03_hessian_spectra", profile="toy", device="cpu")


def test_a_finished_piece_is_read_back_as_it_was(nb):
    value = {"rows": [{"x": 0.1, "n": None, "nan": float("nan")}], "w": torch.tensor([[1.5, 2.5]])}
    for make in (lambda: value, lambda: pytest.fail("made again")):
        work = Work(nb, "r", {"s": 1})
        got = work.do("a", make, seed=0)
        assert got["rows"][0]["x"] == 0.1 and torch.equal(got["w"], value["w"]) and got["w"].dtype == torch.float32
        assert work.log[0]["label"] == "a" and work.log[0]["seconds"] >= 0 and work.log[0]["peak_bytes"] > 1e6
    files = paths.runs("toy").rglob
    assert not list(files("*.partial"))
    next(files("*.npz")).write_bytes(b"half")
    assert torch.equal(Work(nb, "r", {"s": 1}).do("a", lambda: {"w": torch.zeros(2)}, seed=0)["w"], torch.zeros(2))


def test_other_sources_find_no_piece(nb, tmp_path):
    checkout(tmp_path, {nb.name: notebook(code("from sharpnb import rules", "a"))}, {"__init__.py": ""})
    made = []

    def once():
        again = lab.start(nb.name, profile="toy", device="cpu")
        Work(again, "r", 0).do("a", lambda: made.append(1) or {})
        return len(made)

    for text, expected in (("a = 1", 1), ("a = 1", 1), ("a = 2", 2), ("a = 1", 2)):
        (tmp_path / "sharpnb" / "rules.py").write_text(text)
        assert once() == expected


def test_force_makes_a_finished_record_again_and_replaces_its_provenance(nb, tmp_path, monkeypatch):
    made = []

    def record(settings=1):
        again = lab.start(nb.name, profile="toy", device="cpu")
        return again.recorded("r", lambda work: {"x": made.append(1) or 1.0}, of={"s": settings})

    assert record() == record() == {"x": 1.0} and made == [1]
    checkout(tmp_path, {}, {"__init__.py": "# changed"})
    assert record() == {"x": 1.0} and made == [1], "a committed record is found by its settings alone"
    before = Record.find(nb.name, "r", "toy").provenance["sources"]
    monkeypatch.setenv("SHARPNB_FORCE", "1")
    assert record() == {"x": 1.0} and made == [1, 1]
    assert Record.find(nb.name, "r", "toy").provenance["sources"] == sources.of_notebook(nb.name) != before
    monkeypatch.delenv("SHARPNB_FORCE")
    assert (record(2), record(2)) == ({"x": 1.0},) * 2 and made == [1, 1, 1], "that of other settings is not read"
    assert Record.find(nb.name, "r", "toy").provenance["settings"] == {"s": 2}


def test_a_gpu_that_is_gone_leaves_what_is_finished_and_says_what_to_do(nb):
    def gone():
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    work = Work(nb, "r", 0)
    work.do("a", lambda: {"x": 1})
    with pytest.raises(RuntimeError, match="launch failure") as caught:
        work.do("b", gone)
    assert all(words in caught.value.__notes__[0] for words in ("1 finished pieces are kept", "restart the kernel"))
    again = Work(nb, "r", 0)
    assert again.do("a", lambda: pytest.fail("made again")) == {"x": 1} and again.do("b", lambda: {"x": 2}) == {"x": 2}


def test_what_is_made_is_shown_and_what_is_read_back_is_not(nb, capsys):
    for seeds in (1, 3):
        work = Work(nb, "r", 0)
        for seed in range(seeds):
            work.do("with SAM", dict, seed=seed, weights=["not shown"])
    assert capsys.readouterr().out.splitlines() == [
        f"Piece {k + 1} of r, with SAM {k}, begins; {k} are finished." for k in range(3)]


def test_the_quick_profile_keeps_nothing_and_shows_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    quick = lab.start("03_hessian_spectra", device="cpu")
    assert quick.recorded("r", lambda work: work.do("any", lambda: {"x": 1}), of={"s": 1}) == {"x": 1}
    assert [path.name for path in tmp_path.rglob("*.json")] == ["r.json"] and capsys.readouterr().out == ""
    assert "pieces" not in Record.load(next(tmp_path.rglob("r.json"))).provenance


@dataclass
class Some:
    net: object
    dtype: torch.dtype = torch.float32
    steps: tuple = (1, 2)


def test_settings_are_told_by_what_they_build_and_not_by_where_they_lie_in_memory():
    def some(width):
        return described(Some(lambda seed: models.mlp((64, width, 10), seed=seed)))

    assert some(4) == some(4) != some(5)
    assert some(4)["dtype"] == "torch.float32" and "net of 310 weights" in some(4)["net"]
    assert json.loads(json.dumps(some(4))) == some(4)
