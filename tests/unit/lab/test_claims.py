"""Claims: the verdict follows from the numbers, and holds on its edge."""

import json
import math

import pytest

from sharpnb import lab, paths
from sharpnb.lab import Claim, Record, RecordMismatch, claims

pytestmark = pytest.mark.usefixtures("project")


def _claim(kind="order", **fields):
    return Claim("id", "P", "Fig. 1", "states", kind, **fields)


TWO = {"kind": "value", "paper_value": 2.0}
MANY = {"kind": "value", "paper_value": 95.27, "stderr": None, "n": 1, "tolerance": 0.5}


@pytest.mark.parametrize(("fields", "verdict"), [
    ({"measured": None}, "not run"),
    ({"measured": 1.0, "stderr": 0.1, "n": 10, "comparable": False}, "not comparable"),
    ({"measured": 1.0, "stderr": 0.1, "n": 10}, "reproduced"),                       # 1 - 0.226 > 0
    ({"measured": 0.2, "stderr": 0.1, "n": 10}, "consistent within uncertainty"),   # interval holds 0
    ({"measured": -0.2, "stderr": 0.1, "n": 10}, "inconclusive"),
    ({"measured": -1.0, "stderr": 0.1, "n": 10}, "contradicted"),
    ({"measured": 1.0, "stderr": None, "n": 1}, "inconclusive"),                     # one run decides nothing
    ({"measured": -1.0, "stderr": None, "n": 1}, "inconclusive"),
    ({"measured": 1.0, "stderr": 0.0}, "reproduced"),
    ({"measured": math.nan, "stderr": 0.1, "n": 10}, "inconclusive"),
    ({"kind": "ratio", "measured": 1.5, "stderr": 0.1, "n": 10, "tolerance": 1.0}, "reproduced"),
    ({**TWO, "measured": 2.04, "stderr": 0.0, "tolerance": 0.05}, "reproduced"),
    ({**TWO, "measured": 2.07, "stderr": 0.02, "n": 10, "tolerance": 0.05}, "consistent within uncertainty"),
    ({**TWO, "measured": 2.2, "stderr": 0.0, "tolerance": 0.05}, "contradicted"),
    # Imprecise: an interval wider than the tolerance meets many numbers, also where its middle is the paper's.
    ({**TWO, "paper_value": 24.2, "measured": 73.0, "stderr": 6.38, "n": 2, "tolerance": 4.84}, "inconclusive"),
    ({**TWO, "measured": 2.2, "stderr": 0.1, "n": 10, "tolerance": 0.05}, "inconclusive"),
    ({**TWO, "measured": 2.0, "stderr": 0.1, "n": 10, "tolerance": 0.05}, "inconclusive"),
    ({**TWO, "measured": 3.0, "stderr": 0.1, "n": 10, "tolerance": 0.05}, "contradicted"),
    ({**MANY, "measured": 10.0}, "inconclusive"),
    ({**MANY, "measured": 95.3}, "inconclusive"),
])
def test_the_verdict_follows_from_the_numbers(fields, verdict):
    assert _claim(**{"kind": "order", **fields}).verdict == verdict


def test_the_interval_is_students():
    claim = Claim.from_samples([1.0, 2.0, 3.0], id="i", paper="P", item="F", statement="s", kind="order")
    assert claim.measured == 2 and claim.stderr == pytest.approx(1 / math.sqrt(3))
    assert claim.half_width == pytest.approx(4.302653 / math.sqrt(3))
    assert claims.mean_stderr([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / math.sqrt(3)))
    assert Claim.from_samples(None, id="i", paper="P", item="F", statement="s", kind="order").verdict == "not run"


@pytest.mark.parametrize("fields", [
    {"kind": "guess"}, {"kind": "value", "tolerance": 0.1}, {"kind": "value", "paper_value": 0.05, "tolerance": 0.05},
    {"kind": "value", "paper_value": 1.0, "tolerance": 0.0},
])
def test_a_claim_that_cannot_fail_is_refused(fields):
    with pytest.raises(ValueError, match="claim id"):
        _claim(**fields)


def test_claims_are_kept_with_their_verdicts_and_need_ids_of_their_own(capsys):
    nb = lab.start("n")
    nb.claims([_claim(measured=1.0, stderr=0.1, n=10)])
    stored = json.loads((paths.records("n", "quick") / "claims.json").read_text())["values"]["claims"]
    assert stored[0]["verdict"] == "reproduced" and stored[0]["n"] == 10
    assert "✔ reproduced" in claims.as_markdown([_claim(measured=1.0, stderr=0.1, n=10)])
    with pytest.raises(ValueError, match="repeated"):
        nb.claims([_claim(), _claim()])


def test_the_full_profile_shows_its_claims_and_publishes_none(monkeypatch):
    shown = []
    monkeypatch.setattr(lab.Notebook, "_show", staticmethod(shown.append))
    lab.start("n").claims([_claim(measured=1.0, stderr=0.1, n=10, record="full/clean")])
    path = paths.records("n", "quick") / "claims.json"
    before = path.read_bytes()
    assert json.loads(before)["values"]["claims"][0]["record"] == "full/clean"
    lab.start("n", profile="full", device="cpu").claims([_claim(measured=-1.0, stderr=0.1, n=10)])
    assert "✘ contradicted" in shown[-1] and path.read_bytes() == before and not paths.records("n", "full").exists()


@pytest.mark.parametrize(("committed", "fresh", "verdict"), [
    ((18.3, 2.84), (17.2, 4.0), "reproduced"),                     # 17.2 - 17.2: the committed verdict stands
    ((18.3, 2.84), (14.9, 4.0), "consistent within uncertainty"),  # outside of the tolerance: its own
    ((0.1, 1.0), (-0.1, 1.0), "consistent within uncertainty"), ((-0.1, 1.0), (0.1, 1.0), "inconclusive"),
    ((1.0, 0.1), (-0.5, 0.1), "contradicted"),                     # within the tolerance, and no neighbour
    (None, (17.2, 4.0), "consistent within uncertainty"),
])
def test_a_verdict_on_its_edge_is_the_committed_one(committed, fresh, verdict):
    old = _claim(measured=committed[0], stderr=committed[1], n=3).as_dict() if committed else None
    assert claims.settled(_claim(measured=fresh[0], stderr=fresh[1], n=3), old, rtol=5e-2, atol=2.0) == verdict


@pytest.mark.parametrize(("committed", "fresh", "verdict"), [
    ((2.0, 0.0221), (2.0, 0.0222), "reproduced"), ((2.0, 0.0222), (2.0, 0.0221), "inconclusive"),  # h is 0.05 at 0.0221
    ((2.0, 0.02), (2.13, 0.02), "contradicted"),  # within the numbers' tolerance; the interval stays clear of the band
])
def test_the_edge_of_a_value_claim_is_the_width_of_its_interval_too(committed, fresh, verdict):
    value = {**TWO, "tolerance": 0.05, "n": 10}
    old = _claim(measured=committed[0], stderr=committed[1], **value).as_dict()
    assert claims.settled(_claim(measured=fresh[0], stderr=fresh[1], **value), old, rtol=0.1, atol=0.0) == verdict


def test_a_notebook_shows_and_keeps_the_verdict_that_it_compares_with(monkeypatch):
    shown, edge = [], _claim(measured=17.2, stderr=4.0, n=3)
    monkeypatch.setattr(lab.Notebook, "_show", staticmethod(shown.append))
    lab.start("n").claims([_claim(measured=18.3, stderr=2.84, n=3)], rtol=5e-2, atol=2.0)
    path = paths.records("n", "quick") / "claims.json"
    for check in ("", "1"):
        monkeypatch.setenv("SHARPNB_CHECK", check)
        lab.start("n").claims([edge], rtol=5e-2, atol=2.0)
        assert "✔ reproduced" in shown[-1] and Record.load(path).values["claims"][0]["measured"] == 18.3
    with pytest.raises(RecordMismatch, match="verdict"):
        lab.start("n").claims([_claim(measured=-17.2, stderr=0.1, n=3)], rtol=5e-2, atol=100.0)
    monkeypatch.setenv("SHARPNB_CHECK", "")
    monkeypatch.setenv("SHARPNB_KEEP", "0")
    lab.start("n").claims([edge], rtol=5e-2, atol=2.0)
    assert "≈ consistent" in shown[-1] and Record.load(path).values["claims"][0]["measured"] == 17.2
    monkeypatch.setenv("SHARPNB_KEEP", "1")
    path.write_text("{")
    lab.start("n").claims([edge])
    assert Record.load(path).values["claims"][0]["measured"] == 17.2
