"""The pages: answers, a line per primary claim, figures and tables, origins; equal records give equal pages."""

import json

import pytest
import toy

import answers
import report
import scoreboard
from sharpnb import paths, sources
from sharpnb.lab import Claim, board

UP = tuple(1 + k / 20 for k in range(20))
DOWN = tuple(-x for x in UP)
TOLD = "+1.48 \\[+1.34, +1.61\\] cosine"


def commit(notebook: str, *claims: Claim, profile: str = "quick") -> None:
    made = {"versions": {"torch": "2.15.0"}, "device": "cpu (x86_64)", "commit": "abc+"}
    content = {"values": {"claims": [claim.as_dict() for claim in claims]}, "provenance": made}
    paths.write_whole(paths.records(notebook, profile) / "claims.json", json.dumps(content))


@pytest.fixture(autouse=True)
def root(project):
    toy.listed(project, "a", "b", unit="cosine", notebook="03_b", statement="a | b\nis above 0.")
    commit("03_b", Claim("a", UP), Claim("a", profile="full"), Claim("b", DOWN))
    report._claims_cell.cache_clear()
    return project


def _record(name: str, device: str, made_by: str | None = "") -> None:
    """Write a record; by default one that the sources of today have made."""
    made = {"versions": {"torch": "2.11.0"}, "device": device, "commit": "616", "sources": sources.of_notebook("03_b")}
    made |= {} if made_by == "" else {"sources": made_by}
    file = paths.root() / "data" / "records" / "03_b" / f"{name}.json"
    paths.write_whole(file, json.dumps({"values": {}, "provenance": made}))


def test_the_page_has_counts_one_line_per_claim_and_origins():
    page, quick = report.page(), "(<data/records/03_b/quick/claims.json>) (n = 20, cpu (x86_64))"
    assert {"| ✔ supported | 1 | 0 | 0 |", "| ✘ refuted | 1 | 0 | 0 |",
            "| primary claims | 2 | 0 | 2 |"} <= {*page.splitlines()}
    assert [text for text in page.splitlines() if text.startswith("| P |")] == [
        rf"| P | Fig. 1 | a \| b is above 0. | {told}]{quick} |  | – not run | [03](<notebooks/03_b.ipynb>) |"
        for told in (f"✔ [{TOLD}", r"✘ [−1.48 \[−1.61, −1.34\] cosine")]
    assert "| [03_b/quick/claims](data/records/03_b/quick/claims.json) | cpu (x86_64) | 2.15.0 | abc+ | live |" in page
    own = scoreboard.as_markdown(board.rows(), lambda row: f"{row.notebook}.ipynb", records="../")
    assert "(<../data/records/03_b/quick/claims.json>)" in own and "(<03_b.ipynb>)" in own
    commit("03_b", Claim("a", DOWN, profile="full"), profile="full")
    assert report.page() == page, "what a run of the full profile leaves behind replaces no claim"


@pytest.mark.parametrize(("unit", "text"), [
    ("points of error", "+1.48 [+1.34, +1.61] points"), ("log10 of a ratio", "×29.9 [×21.7, ×41.1]")])
def test_an_effect_is_shown_in_its_unit_and_a_logarithm_as_a_factor(root, unit, text):
    toy.listed(root, "a", unit=unit)
    assert board.interval(board.primaries()["a"], Claim("a", UP).estimated) == text


@pytest.mark.parametrize(("made_by", "rests", "age"), [
    ("", "NVIDIA H200", "as today"), ("0123456789abcdef", "NVIDIA H200, stale", "changed since"),
    (None, "NVIDIA H200, stale", "not noted")])
def test_a_record_of_other_sources_than_todays_is_marked_stale(made_by, rests, age):
    _record("full/clean", "NVIDIA H200", made_by)
    commit("03_b", Claim("a", UP, profile="full"), Claim("b", UP, protocol="ρ = 1, an edge"))
    page = report.page()
    assert f"✔ [{TOLD}](<data/records/03_b/full/clean.json>) (n = 20, {rests}) |" in page
    assert f"clean.json) | NVIDIA H200 | 2.11.0 | 616 | {age} |" in page and page.count(", tuned to an edge)") == 1


@pytest.mark.parametrize(("record", "cell"), [
    ("full/clean", f"[{TOLD}](<data/records/03_b/full/clean.json>) (n = 20, NVIDIA H200)"),
    ("", f"[{TOLD}](<data/records/03_b/full>) (n = 20, NVIDIA H200, cpu (x86_64))"), ("full/gone", f"{TOLD} (n = 20)")])
def test_a_row_names_the_devices_and_leads_to_the_records_that_it_rests_on(record, cell):
    _record("full/clean", "NVIDIA H200")
    _record("full/noisy", "cpu (x86_64)")
    commit("03_b", Claim("a", UP, profile="full", record=record))
    assert f"✔ {cell} |" in report.page()


@pytest.mark.parametrize("left", ["{", "[]", '{"values": {"claims": [{"id": 3, "x": 1}]}}',
                                  '{"values": {"claims": [{"id": "b"}, {"id": "b"}]}}'])
def test_a_damaged_record_is_named_with_what_to_do(left):
    paths.write_whole(paths.records("03_b", "quick") / "claims.json", left)
    with pytest.raises(ValueError, match=r"data/records/03_b/quick/claims.json is damaged .*sharpnb run 03_b"):
        report.page()


CATALOGUE = """
[[paper]]
name = "P"
items = [
  { kind = "re-made", item = "Fig. 1", shows = "spectra", notebook = "03_b", figures = ["fig3"] },
  { kind = "stand-in", item = "Fig. 4", shows = "curves", notebook = "04_c" },
  { kind = "missing", item = "Table 2", shows = "ImageNet", why = "out of reach" },
]
"""


def test_every_figure_and_table_is_listed_with_its_verdicts_or_the_reason(root):
    paths.write_whole(root / "site" / "papers.toml", CATALOGUE)
    assert report.page().count("| **not yet** |") == 2, "the notebook and its picture are missing"
    paths.write_whole(root / "figures" / "03_b" / "fig3.png", b"x")
    cell = {"cell_type": "code", "id": "c1", "metadata": {"tags": ["claims"]}, "source": []}
    paths.write_whole(root / "notebooks" / "03_b.ipynb", json.dumps({"cells": [cell]}))
    report._claims_cell.cache_clear()
    page = report.page()
    for line in ("| P | Fig. 1 | spectra | [03](notebooks/03_b.ipynb) | ✔ quick, ✘ quick | "
                 "[fig3](figures/03_b/fig3.png) |  |",
                 "| P | Fig. 4 | curves | **not yet** | – | – | belongs to notebook 04 |",
                 "| P | Table 2 | ImageNet | **not shown** | – | – | out of reach |",
                 "[03](<notebooks/03_b.ipynb#cell-id=c1>)", "| re-made | 1 |", "| stand-in | 1 |", "| missing | 1 |"):
        assert line in page


def asked(root, claims):
    advice = 'yes = "Do."\nno = "Do not."\nmixed = "Look."\nopen = "Wait."\n'
    told = f'[[answer]]\nquestion = "Is it?"\nclaims = {json.dumps(claims)}\n{advice}'
    (root / "site" / "answers.toml").write_text(told)
    return answers.answers(board.rows())


@pytest.mark.parametrize(("claims", "sentence", "advice"), [
    (["a"], "Yes: 1 for it (quick).", "Do."), (["b"], "No: 1 against it (quick).", "Do not."),
    (["a", "b"], "In part: 1 for it, 1 against it (quick).", "Look.")])
def test_an_answer_follows_from_the_verdicts(root, claims, sentence, advice):
    found = asked(root, claims)
    assert found[0].sentence == sentence
    assert f"| Is it? | {sentence} |" in report.page() and f"| {advice} |" in report.page()
    _, data = answers.draw(found)
    assert [(point["claim"], point["effect"] > 0) for point in data] == [(name, name == "a") for name in claims]


def test_an_answer_whose_claims_were_not_judged_says_why_and_one_of_unknown_claims_is_refused(root):
    commit("03_b", Claim("a", UP, apart="another net"))
    assert asked(root, ["a"])[0].sentence == "Not known: 1 not comparable, 1 not run (quick, full)."
    with pytest.raises(ValueError, match=r"\['zz'\] are no primary claims"):
        asked(root, ["zz"])


def test_a_replication_is_shown_with_how_many_claims_it_bears_out(root):
    told = {"verdict": "supported", "effect": {"estimate": 1.0}, "text": "+1.00 [+0.50, +1.50]"}
    rows = [{"claim": "a", "old": told, "fresh": {**told, "effect": {"estimate": 0.5}}},
            {"claim": "b", "old": {**told, "verdict": "undecided"}, "fresh": told}]
    assert "Replication" not in report.page()
    paths.write_whole(root / "data" / "replications" / "7-9.json", json.dumps(
        {"seeds": "7:9", "rows": rows, "notebooks": {"01_a": {}, "02_b": {"failed": "KeyError: 'x'"}}}))
    page = report.page()
    assert ("Of 1 decided claims 1 have their fresh estimate on the same side; 0 got the opposite verdict. Notebooks: "
            "01_a, 02_b (failed: KeyError: 'x').") in page
    assert r"| a | supported, +1.00 \[+0.50, +1.50\] | supported, +1.00" in page and "| b |" not in page


def test_the_readme_moves_with_the_records_between_its_marks_and_is_else_left_alone(root):
    opening, closing = report._MARKS
    (root / "README.md").write_text(f"a\n{opening}\nold\n{closing}\nb\n")
    assert sorted(report.write()) == ["README.md", "REPORT.html", "REPORT.md"]
    text = (root / "README.md").read_text()
    told = "An effect above 0, or above ×1, speaks for the paper.\n\n| verdict"
    assert text.startswith(f"a\n{opening}\n{told}") and text.endswith(f"{closing}\nb\n") and "old" not in text
    assert report.write() == [], "equal records give equal pages"
    commit("03_b", Claim("a", DOWN), Claim("b", DOWN))
    assert sorted(report.write()) == ["README.md", "REPORT.html", "REPORT.md"]
    assert "| ✘ refuted | 2 | 0 | 0 |" in (root / "README.md").read_text()
    assert report.with_head("no marks") == "no marks"


def test_a_record_that_moves_moves_the_numbers_in_a_head_and_a_verdict_that_turns_is_named(root):
    said = "A is above B by <!--a ✔--><!--/-->, C below D by <!--b ✘--><!--/-->, <!--a train--><!--/--> in all."
    file = root / "notebooks" / "03_b.ipynb"
    paths.write_whole(file, json.dumps({"cells": [{"cell_type": "markdown", "source": [said]}]}, ensure_ascii=False))
    assert "notebooks/03_b.ipynb" in report.write() and report.write() == []
    text = file.read_text(encoding="utf-8")
    assert "above B by <!--a ✔-->1.48 [1.34, 1.61]<!--/-->, C below D by <!--b ✘-->1.48 [1.34, 1.61]<!--/-->" in text
    commit("03_b", Claim("a", tuple(2 * x for x in UP)), Claim("b", UP))
    with pytest.raises(ValueError, match=r"03_b.ipynb: b: the sentence says ✘, the records ✔"):
        report.write()
    assert "<!--a ✔-->2.95 [2.67, 3.23]<!--/-->" in file.read_text(encoding="utf-8")
    unknown = "<!--none ✔-->1<!--/-->"
    assert report.heads.filled(unknown, board.rows()) == (unknown, ["none: nothing was measured"])
