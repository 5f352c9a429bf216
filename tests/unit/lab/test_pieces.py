"""Pieces of a long study: kept, shown, resumed after a kill, and what is said when a GPU fails."""

import json
import multiprocessing
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from toy import checkout, code, notebook

from sharpnb import lab, paths, sources
from sharpnb.lab import Record, models, pieces, training
from sharpnb.lab.pieces import GpuLost, Work, described
from studies import hessian_spectra as study

REPOSITORY = Path(__file__).resolve().parents[3]
FORK = multiprocessing.get_context("fork")  # a child need not import torch again


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
    assert not list(nb_files("*.partial"))


def nb_files(pattern):
    return paths.runs("toy").rglob(pattern)


@pytest.mark.parametrize("other", [{"settings": {"s": 2}}, {"record": "q"}, {"label": "b"}, {"seed": 1}])
def test_other_settings_find_no_piece(nb, other):
    def count(settings=None, record="r", label="a", seed=0):
        made = []
        Work(nb, record, settings or {"s": 1}).do(label, lambda: made.append(1) or {}, seed=seed)
        return len(made)

    assert (count(), count(), count(**other)) == (1, 0, 1)


def test_a_damaged_piece_is_made_again(nb):
    Work(nb, "r", 0).do("a", lambda: {"w": torch.ones(2)})
    (arrays,) = nb_files("*.npz")
    arrays.write_bytes(b"half")
    made = Work(nb, "r", 0).do("a", lambda: {"w": torch.zeros(2)})
    assert torch.equal(made["w"], torch.zeros(2))


def test_a_piece_in_which_one_digit_was_changed_is_made_again(nb):
    Work(nb, "r", 0).do("a", lambda: {"x": 1.25})
    (file,) = nb_files("*.json")
    file.write_text(file.read_text().replace("1.25", "1.75"))
    assert Work(nb, "r", 0).do("a", lambda: {"x": 2.5}) == {"x": 2.5}


def test_a_piece_that_cannot_be_read_back_is_an_error_and_no_empty_result(nb, monkeypatch):
    monkeypatch.setattr(pieces.kept, "store", lambda *of: None)
    with pytest.raises(OSError, match="cannot be read back"):
        Work(nb, "r", 0).do("a", lambda: {"x": 1})


def test_other_sources_find_no_piece(nb, tmp_path):
    own = {nb.name: notebook(code("from sharpnb import rules", "a"))}
    checkout(tmp_path, own, {"__init__.py": "", "rules.py": "a = 1"})
    made = []

    def once():
        again = lab.start(nb.name, profile="toy", device="cpu")
        Work(again, "r", 0).do("a", lambda: made.append(1) or {})
        return len(made)

    assert (once(), once()) == (1, 1)
    (tmp_path / "sharpnb" / "rules.py").write_text("a = 2")
    assert (once(), once()) == (2, 2)
    (tmp_path / "sharpnb" / "rules.py").write_text("a = 1")
    assert once() == 2, "the sources of before find theirs again"


def test_force_makes_a_finished_record_again_and_replaces_its_provenance(nb, tmp_path, monkeypatch):
    made = []

    def record():
        again = lab.start(nb.name, profile="toy", device="cpu")
        return again.recorded("r", lambda work: {"x": made.append(1) or 1.0}, of={"s": 1})

    assert record() == record() == {"x": 1.0} and made == [1]
    checkout(tmp_path, {}, {"__init__.py": "# changed"})
    assert record() == {"x": 1.0} and made == [1], "a committed record is found by its settings alone"
    before = Record.find(nb.name, "r", "toy").provenance["sources"]
    monkeypatch.setenv("SHARPNB_FORCE", "1")
    assert record() == {"x": 1.0} and made == [1, 1]
    assert Record.find(nb.name, "r", "toy").provenance["sources"] == sources.of_notebook(nb.name) != before


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


# -- settings ---------------------------------------------------------------------------------------------------------


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


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_gpu_that_is_gone_leaves_what_is_finished_and_says_what_to_do(nb):
    def gone():
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\nlong advice")

    work = Work(nb, "r", 0)
    work.do("a", lambda: {"x": 1})
    with pytest.raises(GpuLost, match=r"launch failure\). .*finished pieces: 1, kept .*restart the kernel"):
        work.do("b", gone)
    again = Work(nb, "r", 0)
    assert again.do("a", lambda: pytest.fail("made again")) == {"x": 1} and again.do("b", lambda: {"x": 2}) == {"x": 2}


def test_an_error_of_another_kind_is_left_as_it_is(nb):
    def wrong():
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match=r"^shapes do not fit$") as caught:
        Work(nb, "r", 0).do("a", wrong)
    assert not isinstance(caught.value, GpuLost)


# -- studies ----------------------------------------------------------------------------------------------------------

TINY = replace(study.TOY, train_size=40, batch_size=20, hessian_images=40,
               model=lambda seed: models.mlp((64, 4, 10), seed=seed))


def test_a_record_of_other_settings_is_not_read(nb, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    study.rows_of(TINY, nb, "clean")
    other = replace(TINY, steps=6, seeds=1)
    assert len(study.rows_of(other, nb, "clean")[0]) == 6
    found = Record.find(nb.name, "clean", "toy")
    assert found is not None and found.provenance["settings"]["steps"] == 6
    monkeypatch.setattr(study, "train", None)
    assert len(study.rows_of(other, nb, "clean")[0]) == 6  # of these it is


def execute(root: Path, **environment: str) -> str:
    """Execute notebook 14 at toy size in a process and checkout of its own; return what it complains of."""
    paths.write_whole(root / "site" / "primary.toml", (REPOSITORY / "site" / "primary.toml").read_bytes())
    complaint, end = FORK.Pipe(duplex=False)
    own = {"SHARPNB_ROOT": str(root), "TQDM_DISABLE": "1", "MPLBACKEND": "agg"}

    def cells() -> None:
        os.chdir(root)
        os.environ.update(own | environment)
        space = {"__name__": "__main__"}
        try:
            for cell in json.loads((REPOSITORY / "notebooks" / "14_swa_landscapes.ipynb").read_text())["cells"]:
                if cell["cell_type"] == "code":
                    code = "".join(cell["source"]).replace('profile: str = "quick"', 'profile: str = "toy"')
                    exec(code.replace('device: str = "auto"', 'device: str = "cpu"'), space)
            end.send("")
        except Exception as error:
            end.send(repr(error))

    child = FORK.Process(target=cells)
    child.start()
    said = complaint.recv()
    child.join()
    return said


def test_a_record_made_in_one_place_is_drawn_and_verified_in_another_without_training(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    assert execute(here) == ""
    shutil.copytree(here / "data" / "records", there / "data" / "records")
    monkeypatch.setattr(training, "train", None)
    assert execute(there, SHARPNB_CHECK="1") == ""
    (there / "data/records/14_swa_landscapes/toy/cifar.json").unlink()
    assert execute(there).startswith("TypeError"), "so training would have been noticed"
