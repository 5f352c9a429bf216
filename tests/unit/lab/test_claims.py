"""Claims: what a notebook emits, what is kept of it, and which of it may be judged."""

import json

import pytest
import toy

from sharpnb import lab, paths
from sharpnb.lab import Claim, Record, RecordMismatch, board, claims
from sharpnb.lab.claims import Regime
from sharpnb.lab.verdicts import Effect

FITS = Regime(train_error=0.4, test_error=6.0, twice=5.8)
UP = tuple(1 + k / 20 for k in range(20))  # clearly above 0


@pytest.fixture(autouse=True)
def listed(project):
    toy.listed(project, "a", "b")
    return project


@pytest.fixture
def shown(monkeypatch):
    texts = []
    monkeypatch.setattr(lab.Notebook, "_show", staticmethod(texts.append))
    return texts


def verdict(**fields):
    row = next(row for row in board.rows({"n": [Claim("a", **{"samples": UP, "regime": FITS, **fields})]})
               if row.claim and row.primary.id == "a")
    return f"{row.symbol} {row.verdict}", row.reason


@pytest.mark.parametrize(("fields", "expected"), [
    ({}, ("✔ supported", "")),
    ({"samples": tuple(-x for x in UP)}, ("✘ refuted", "")),
    ({"samples": tuple(0.01 * (x - 1.5) for x in UP)}, ("= no effect larger than δ", "")),
    ({"samples": UP[:4]}, ("? undecided", "4 seeds decide nothing")),
    ({"samples": None}, ("– not run", "")),
    ({"samples": None, "effect": Effect(1.0, 0.1, 19, 1e-6)}, ("✔ supported", "")),
    ({"apart": "another net"}, ("≠ not comparable", "another net")),
    ({"withdrawn": "void"}, ("– not run", "withdrawn: void")),
    ({"regime": None}, ("◦ not in the regime", "no regime was recorded")),
    ({"regime": Regime(2.1, 9.0)}, ("◦ not in the regime", "the baseline's training error is 2.1 %")),
    ({"regime": Regime(None, 9.0)}, ("◦ not in the regime", "the baseline's training error was not recorded")),
    ({"regime": Regime(float("nan"), 9.0)}, ("◦ not in the regime", "the baseline's training error is nan %")),
    ({"regime": Regime(1.9, 2.3)}, ("◦ not in the regime", "the baseline's gap is 0.4 points")),
    ({"regime": Regime(0.0, 9.0, missing="no filter dies")}, ("◦ not in the regime", "no filter dies")),
])
def test_the_verdict_follows_from_the_samples_and_the_regime(fields, expected):
    assert verdict(**fields) == expected


@pytest.mark.parametrize(("fields", "wants"), [
    ({"unit": "rank correlation"}, True), ({"unit": "cosine"}, False), ({"unit": "log10 of a ratio"}, False),
    ({"unit": "rank correlation", "regime": False}, False), ({"unit": "cosine", "regime": True}, True)])
def test_only_claims_about_generalisation_want_a_regime(listed, fields, wants):
    toy.listed(listed, "a", **fields)
    assert (verdict(regime=None)[0] == "◦ not in the regime") == wants


def test_the_claims_of_one_paper_and_profile_are_judged_together():
    edge = Effect(1.0, 0.4, 19, 0.03)  # alone below 0.05, and of two above 0.025
    for others, expected in (([], "supported"), ([Claim("b", effect=edge, regime=FITS)], "undecided"),
                             ([Claim("b", effect=edge, regime=FITS, profile="full")], "supported"),
                             ([Claim("b", effect=edge, regime=Regime(50.0, 60.0))], "supported")):
        rows = board.rows({"n": [Claim("a", effect=edge, regime=FITS)], "m": others})
        assert next(row.verdict for row in rows if (row.primary.id, row.profile) == ("a", "quick")) == expected


def test_what_is_kept_is_what_was_measured(shown):
    detail = Claim("c", (1.0, 2.0), below="a", statement="At half of the radius too.", paper_value="1.2 points")
    told = [Claim("a", UP, regime=FITS, protocol="an MLP"), detail,
            Claim("a", effect=Effect(2.0, 0.1, 4, 1e-4), profile="full", record="full/clean", regime=Regime(None, 9.0))]
    lab.start("n").claims(told)
    stored = json.loads((paths.records("n", "quick") / "claims.json").read_text())["values"]["claims"]
    regime = {"train_error": 0.4, "test_error": 6.0, "twice": 5.8, "missing": ""}
    assert stored[0] == {"id": "a", "samples": list(UP), "protocol": "an MLP", "regime": regime}
    assert board.measured() == {"n": told}
    assert "| **It holds.** (P, Fig. 1) |  | +1.48 [+1.34, +1.61] points | 20 | quick; an MLP" in shown[-1]
    assert "|  | · At half of the radius too. | 1.2 points | +1.50 [−4.85, +7.85] points | 2 | quick |" in shown[-1]
    assert "| ◦ not in the regime (the baseline's training error was not recorded) |" in shown[-1]
    assert "(P, Fig. 1)" in shown[-1] and "**b**" not in shown[-1]


@pytest.mark.parametrize(("made", "words"), [
    ([Claim("a", UP), Claim("a", UP)], "repeated"), ([Claim("zz", UP)], "'zz' is no primary claim"),
    ([Claim("d", UP, below="zz", statement="s")], "'zz' is no primary"), ([Claim("d", UP, below="a")], "statement"),
    ([Claim("b", UP, below="a", statement="s")], "an id and a statement of its own"),
    ([Claim("a", UP, profile="fast")], "profile = 'fast'"),
])
def test_a_claim_that_has_no_place_is_refused_and_nothing_is_written(made, words):
    with pytest.raises(ValueError, match=words):
        lab.start("n").claims(made)
    assert not paths.records("n", "quick").exists()


def test_the_full_profile_shows_its_claims_and_publishes_none(shown):
    lab.start("n").claims([Claim("a", UP, regime=FITS)])
    path = paths.records("n", "quick") / "claims.json"
    before = path.read_bytes()
    lab.start("n", profile="full", device="cpu").claims([Claim("a", tuple(-x for x in UP), regime=FITS)])
    assert "✘ refuted" in shown[-1] and path.read_bytes() == before and not paths.records("n", "full").exists()


def test_what_agrees_with_the_committed_claims_is_judged_with_their_numbers(shown, monkeypatch):
    """A verdict is a threshold: two processors that agree within the tolerance must not fall on its two sides."""
    samples = tuple(0.3 + 0.5 * (-1) ** k for k in range(20))
    edge = [Claim("a", tuple(x - shift for x in samples), regime=FITS) for shift in (0.0, 0.1)]
    lab.start("n").claims(edge[:1], atol=0.2)
    assert "✔ supported" in shown[-1]
    for check in ("", "1"):
        monkeypatch.setenv("SHARPNB_CHECK", check)
        monkeypatch.setenv("SHARPNB_KEEP", "1")
        lab.start("n").claims(edge[1:], atol=0.2)
        assert "✔ supported" in shown[-1]
    with pytest.raises(RecordMismatch, match=r"samples\[0\]"):
        lab.start("n").claims(edge[1:], rtol=0, atol=0.05)
    monkeypatch.setenv("SHARPNB_CHECK", "")
    monkeypatch.setenv("SHARPNB_KEEP", "0")
    lab.start("n").claims(edge[1:], atol=0.2)
    assert "✔" not in shown[-1], "the control: alone they are on the other side"
    assert Record.load(paths.records("n", "quick") / "claims.json").values["claims"][0]["samples"][0] < samples[0]


def test_other_judging_seeds_can_be_asked_for():
    assert lab.start("n").seeds(3) == [0, 1, 2] and lab.start("n").seeds(range(2000, 2003)) == [2000, 2001, 2002]
    nb = lab.start("n", seeds="70:72")
    assert nb.seeds(3) == [70, 71] and nb.parameters["seeds"] == "70:72" and "seeds" not in lab.start("n").parameters
    for text in ("7", "7:", "9:7", "a:b", "-1:2"):
        with pytest.raises(ValueError, match="first:end"):
            lab.start("n", seeds=text)


def test_the_interval_is_students():
    assert claims.mean_stderr([1.0, 2.0, 3.0]) == pytest.approx((2.0, 3**-0.5))
    assert claims.t95(3) == pytest.approx(4.302653)
