"""`sharpnb replicate`: old and new effect side by side, and nothing committed changes but their table."""

import json

import pytest
import toy

from replicate import replicate, summary
from sharpnb import paths
from sharpnb.lab import Claim, board
from sharpnb.runner import RunnerError

BODY = """
from sharpnb import lab
nb = lab.start("01_a", profile=profile, device=device, seed=seed, seeds=seeds)
nb.claims([lab.Claim("up", tuple(1 + s % 7 / 10 for s in nb.seeds(20))),
           lab.Claim("turns", tuple((1 + s % 7 / 10) * (-1 if s > 5000 else 1) for s in nb.seeds(20)))])
"""


@pytest.fixture
def root(project, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(project / "ipython"))
    with_seeds = toy.notebook(
        toy.markdown("# 01 · A toy", "head"),
        toy.code(f'{toy.PARAMETERS}\nseeds: str = ""', "params", ("parameters",)), toy.code(BODY, "body"))
    fails = toy.notebook(toy.markdown("# 03 · A toy", "head"), toy.code('seeds: str = ""', "params", ("parameters",)),
                         toy.code("raise KeyError(seeds)", "body"))
    toy.checkout(project, {"01_a": with_seeds, "02_b": toy.plain("02", "1"), "03_c": fails})
    toy.listed(project, "up", "turns", unit="cosine", profiles=["quick"])
    claims = [Claim(name, tuple(1 + s % number / 10 for s in range(20))) for name, number in (("up", 7), ("turns", 6))]
    made = {"values": {"claims": [claim.as_dict() for claim in claims]}, "provenance": {}}
    paths.write_whole(paths.records("01_a", "quick") / "claims.json", json.dumps(made))
    return project


def test_fresh_seeds_give_their_effects_beside_the_committed_ones(root):
    committed = (paths.records("01_a", "quick") / "claims.json").read_bytes()
    file, told = replicate(["1"], "7000:7020")
    rows = told["rows"]
    assert file == root / "data" / "replications" / "7000-7020.json"
    kept = json.loads(file.read_text())
    assert kept["rows"] == rows and kept["seeds"] == "7000:7020" and [*kept["notebooks"]] == ["01_a"]
    assert [(row["claim"], row["old"]["verdict"], row["fresh"]["verdict"]) for row in rows] == [
        ("up", "supported", "supported"), ("turns", "supported", "refuted")]
    assert rows[0]["fresh"]["effect"]["estimate"] == pytest.approx(sum(1 + s % 7 / 10 for s in range(7000, 7020)) / 20)
    assert summary(rows).startswith("Of 2 decided claims 1 have") and "; 1 got the opposite" in summary(rows)
    assert (paths.records("01_a", "quick") / "claims.json").read_bytes() == committed
    assert {row.verdict for row in board.rows()} == {"supported"}


def test_a_notebook_that_fails_is_named_and_loses_the_others_nothing(root):
    _, told = replicate(None, "7000:7020", jobs=2)
    assert [row["claim"] for row in told["rows"]] == ["up", "turns"]
    assert told["notebooks"]["03_c"]["failed"] == "KeyError: '7000:7020'" and "failed" not in told["notebooks"]["01_a"]
    _, later = replicate(["3"], "7000:7020")
    assert later["rows"] == told["rows"] and later["notebooks"]["01_a"] == told["notebooks"]["01_a"]


@pytest.mark.parametrize(("names", "seeds", "words"), [
    (["02"], "7000:7020", "02_b: no parameter `seeds`"), (None, "7000", "first:end")])
def test_what_cannot_be_replicated_is_refused(root, names, seeds, words):
    with pytest.raises((RunnerError, ValueError), match=words):
        replicate(names, seeds)
    assert not (root / "data" / "replications").exists()
