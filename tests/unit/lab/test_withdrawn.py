"""What rests on a withdrawn record is judged nowhere, until the record is made again; a void entry is refused."""

import json

import pytest
import toy

import report
from sharpnb import lab, paths
from sharpnb.lab import Claim, Record, board, withdrawn

WHY = "its grid was cut unequally"
UP = tuple(1 + k / 20 for k in range(20))
WHOLE = {"record": "08_x/full/gamma", "commit": "0123abc", "date": "2026-11-30", "why": WHY}
PART = {**WHOLE, "claims": ["noise-esam-*"]}


@pytest.fixture(autouse=True)
def root(project, monkeypatch):
    monkeypatch.setenv("SHARPNB_COMMIT", "0123abc")
    toy.listed(project, "a", unit="cosine", notebook="08_x")
    return project


def table(*entries):
    lines = [line for entry in entries for line in (
        "[[withdrawn]]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items()))]
    paths.write_whole(paths.root() / "data" / "withdrawn.toml", "\n".join(lines) + "\n")


def make(settings=1, value=1.0):
    """Make the record by its two pieces, or read it back; return how many pieces were made."""
    made = []

    def piece():
        made.append(1)
        return {"x": value}

    lab.start("08_x", profile="full", device="cpu").recorded(
        "gamma", lambda work: {"x": [work.do("a", piece, seed=k)["x"] for k in range(2)]}, of={"s": settings})
    return len(made)


def stated(*more):
    """Let the quick notebook state its claims; return those that are committed."""
    told = [Claim("a", UP, profile="full"), Claim("noise-esam-20", UP, below="a", statement="s", profile="full"),
            Claim("a", UP), *more]
    lab.start("08_x").claims(told)
    return board.measured()["08_x"]


def verdicts():
    return {row.profile: (row.verdict, row.reason) for row in board.rows()}


GONE, HELD = ("not run", f"withdrawn: {WHY}"), ("supported", "")


@pytest.mark.parametrize(("entry", "whole"), [(WHOLE, True), (PART, False)])
def test_what_rests_on_a_withdrawn_record_is_not_judged_and_says_why(entry, whole, monkeypatch, capsys):
    make()
    stated()
    assert set(verdicts().values()) == {HELD} and "withdrawn" not in report.page()  # without an entry
    shown = []
    monkeypatch.setattr(lab.Notebook, "_show", staticmethod(shown.append))
    table(entry)
    with pytest.raises(ValueError, match="its table does not say so"):
        report.page()
    full, detail, quick = stated()
    assert verdicts() == {"quick": HELD, "full": GONE if whole else HELD}
    assert (full.withdrawn, full.samples) == ((WHY, None) if whole else ("", UP))
    assert (detail.withdrawn, detail.samples, quick.withdrawn) == (WHY, None, "")
    assert shown[-1].count(f"– not run (withdrawn: {WHY})") == whole
    page = report.page()
    assert f"| – not run | 0 | 0 | {int(whole)} |" in page and f"| ✔ supported | 1 | 0 | {2 - whole - 1} |" in page
    assert page.count(f"– not run (withdrawn: {WHY})") == whole
    assert ("1 of those that are not run rested on records that were withdrawn" in page) == whole
    assert f"| `0123abc` | 2026-11-30 | {WHY} |" in page
    capsys.readouterr()
    assert lab.start("08_x").full_record("gamma") == (None if whole else {"x": [1.0, 1.0]})
    part = "" if whole else " in part (noise-esam-*)"
    assert capsys.readouterr().out == f"08_x/full/gamma of commit 0123abc was withdrawn{part}: {WHY}.\n"
    assert lab.start("08_x").withdrawn_of_full("gamma") and not lab.start("08_x").withdrawn_of_full("other")


@pytest.mark.parametrize("entry", [WHOLE, PART])
def test_the_full_profile_makes_a_withdrawn_record_again_with_all_of_its_void_pieces(entry, monkeypatch):
    assert (make(), make()) == (2, 0), "a finished record is read back"
    table(entry)
    monkeypatch.setenv("SHARPNB_COMMIT", "4567def")
    assert make() == 2, "the same values, within any tolerance, and yet the file is replaced"
    made = Record.find("08_x", "gamma", "full")
    assert made and made.provenance["commit"] == "4567def"
    stated()
    assert make() == 0 and set(verdicts().values()) == {HELD}


def test_a_record_put_together_from_a_void_piece_is_void_as_well(monkeypatch):
    make()
    table(WHOLE)
    path = paths.records("08_x", "full") / "gamma.json"
    content = json.loads(path.read_text())
    pieces = content["provenance"]["pieces"]
    for made, verdict in ((content["provenance"], GONE), (pieces[0], GONE), (pieces[1], HELD)):
        made["commit"] = "4567def"
        path.write_text(json.dumps(content))
        stated()
        assert verdicts()["full"] == verdict


@pytest.mark.parametrize(("change", "words"), [
    ({"record": "08_x/full/gama"}, r"withdraws 08_x/full/gama of commit 0123abc, and there is none"),
    ({"commit": "89abcde"}, r"89abcde, and the one there is of 0123abc\. If it has been made again, delete the entry"),
    ({"claims": ["nois-esam-*"]}, r"no claim that rests on 08_x/full/gamma is named nois-esam-\*"),
    ({"why": "another reason"}, r"claim a rests on 08_x/full/gamma.*sharpnb run 08_x --force --update"),
])
def test_an_entry_that_holds_for_nothing_or_is_not_shown_is_refused(change, words):
    make()
    table(WHOLE)
    stated()
    report.page()
    table({**WHOLE, **change})
    with pytest.raises(ValueError, match=words):
        report.page()


@pytest.mark.parametrize("text", ["[[withdrawn]\n", '[[withdrawn]]\nrecord = "a/full/b"\n', "withdrawn = 3\n",
                                  '[[withdrawn]]\nrecord = "a/b"\ncommit = "c"\ndate = 2026-11-30\nwhy = "w"\n'])
def test_a_damaged_table_is_named(text, root):
    assert withdrawn.entries() == []
    paths.write_whole(root / "data" / "withdrawn.toml", text)
    with pytest.raises(ValueError, match=r"data/withdrawn\.toml"):
        withdrawn.entries()
