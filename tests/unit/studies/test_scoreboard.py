import json
import re

import pytest

import report
from sharpnb import paths, sources
from sharpnb.lab import Claim
from studies import scoreboard

PAPER = {"paper": "SAM (ICLR 2021)", "item": "Fig. 3", "kind": "sign"}
CLAIMS = {
    ("03_b", "quick"): [
        Claim("a", statement="a | b\nis above 0", measured=1.23456, stderr=0.0456, n=8, protocol="MLP", **PAPER),
        Claim("b", statement="full only", profile="full", **PAPER),
    ],
    ("02_a", "quick"): [Claim("a", statement="exact", measured=-16.8, stderr=0.0, **{**PAPER, "paper": "Another"})],
}


def commit(notebook: str, profile: str, claims: list[Claim]) -> None:
    made = {"versions": {"torch": "2.15.0"}, "device": "cpu (x86_64)", "commit": "abc+"}
    content = {"values": {"claims": [claim.as_dict() for claim in claims]}, "provenance": made}
    paths.write_whole(paths.records(notebook, profile) / "claims.json", json.dumps(content))


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    for (notebook, profile), claims in CLAIMS.items():
        commit(notebook, profile, claims)
    return tmp_path


def test_rows_come_by_paper_and_then_by_notebook():
    assert [(row.paper, row.notebook, row.id) for row in scoreboard.rows()] == [
        ("Another", "02_a", "a"), ("SAM (ICLR 2021)", "03_b", "a"), ("SAM (ICLR 2021)", "03_b", "b")]


def test_every_verdict_is_counted_also_those_that_no_claim_has():
    assert scoreboard.counts(scoreboard.rows()) == {
        "reproduced": 1, "consistent within uncertainty": 0, "contradicted": 1, "inconclusive": 0, "not comparable": 0,
        "not run": 1}


@pytest.mark.parametrize(
    ("measured", "stderr", "expected"),
    [(1.23456, 0.0456, "1.235 ± 0.046 (8)"), (123.4, 12.0, "123 ± 12 (8)"), (1.5, None, "1.5"), (-16.8, 0.0, "-16.8"),
     (None, None, "–"), (float("nan"), 0.1, "nan")],
)
def test_a_measurement_is_shown_to_two_digits_of_its_error(measured, stderr, expected):
    row = scoreboard.Row("03_b", "a", "P", "Fig. 1", "s", "reproduced", "quick", measured=measured, stderr=stderr, n=8)
    assert row.measured_text == expected


def test_what_a_run_of_the_full_profile_leaves_behind_replaces_no_claim():
    before = report.page()
    commit("03_b", "full", [Claim("a", statement="s", measured=2.0, stderr=0.1, n=3, profile="full", **PAPER),
                            Claim("c", statement="s", measured=2.0, stderr=0.1, n=3, profile="full", **PAPER)])
    assert [(row.id, row.profile) for row in scoreboard.rows()] == [("a", "quick"), ("a", "quick"), ("b", "full")]
    assert scoreboard.head(scoreboard.rows()) in before


def test_two_claims_of_one_id_are_refused():
    commit("03_b", "quick", [*CLAIMS["03_b", "quick"], Claim("b", statement="again", **PAPER)])
    with pytest.raises(ValueError, match=r"03_b/quick/claims.json is damaged .*two claims bear the id 'b'"):
        scoreboard.rows()


def _record(name: str, device: str, made_by: str | None = "") -> None:
    """Write a record; by default one that the sources of today have made."""
    made = {"versions": {"torch": "2.11.0"}, "device": device, "commit": "616", "sources": sources.of_notebook("03_b")}
    made |= {} if made_by == "" else {"sources": made_by}
    file = paths.root() / "data" / "records" / "03_b" / f"{name}.json"
    paths.write_whole(file, json.dumps({"values": {}, "provenance": made}))


@pytest.mark.parametrize(("made_by", "rests", "age"), [
    ("", "full, NVIDIA H200", "as today"), ("0123456789abcdef", "full, NVIDIA H200, stale", "changed since"),
    (None, "full, NVIDIA H200, stale", "not noted")])
def test_a_record_of_other_sources_than_todays_is_marked_stale(made_by, rests, age):
    _record("full/clean", "NVIDIA H200", made_by)
    commit("03_b", "quick", [Claim("b", statement="s", measured=2.0, stderr=0.1, n=3, profile="full", **PAPER)])
    page = report.page()
    assert f"| {rests} | ✔ reproduced |" in page
    assert f"| [03_b/full/clean](data/records/03_b/full/clean.json) | NVIDIA H200 | 2.11.0 | 616 | {age} |" in page


@pytest.mark.parametrize(("record", "rests", "links"), [
    ("full/clean", "full, NVIDIA H200", "[record](data/records/03_b/full/clean.json)"),
    ("", "full, NVIDIA H200, cpu (x86_64)", "[clean](data/records/03_b/full/clean.json) · [noisy](data/records/03_b/full/noisy.json)"),
    ("survey", "full, cpu (arm64)", "[5 records](data/records/03_b/survey)"),
    ("full/gone", "full", "[03](<notebooks/03_b.ipynb>)"),
])
def test_a_row_names_the_devices_and_leads_to_the_records_that_it_rests_on(record, rests, links):
    _record("full/clean", "NVIDIA H200")
    _record("full/noisy", "cpu (x86_64)")
    for k in range(5):
        _record(f"survey/{k}", "cpu (arm64)")
    claim = Claim("b", statement="s", measured=2.0, stderr=0.1, n=3, profile="full", record=record, **PAPER)
    commit("03_b", "quick", [claim])
    line = next(line for line in report.page().splitlines() if "2.00 ± 0.10 (3)" in line)
    assert f"| {rests} |" in line and line.endswith(f"{links} |")


def test_every_record_that_claims_rest_on_is_listed_with_its_origin():
    _record("full/clean", "NVIDIA H200")
    _record("full/other", "cpu (arm64)")  # of which no claim speaks
    _record("quick/curves", "cpu (arm64)")  # live: its claims' record stands for it
    full = Claim("b", statement="s", measured=2.0, stderr=0.1, n=3, profile="full", record="full/clean", **PAPER)
    commit("03_b", "quick", [CLAIMS["03_b", "quick"][0], full])
    assert scoreboard.origins() == [
        ("02_a/quick/claims.json", "cpu (x86_64)", "2.15.0", "abc+", "live"),
        ("03_b/full/clean.json", "NVIDIA H200", "2.11.0", "616", "as today"),
        ("03_b/quick/claims.json", "cpu (x86_64)", "2.15.0", "abc+", "live")]


def test_the_page_has_counts_table_links_and_origins_and_is_the_same_each_time():
    page = report.page()
    assert page == report.page()
    for row in ("| verdict | quick | full | claims |", "| ✔ reproduced | 1 | 0 | 1 |", "| – not run | 0 | 1 | 1 |",
                "| all | 2 | 1 | 3 |"):
        assert row in page.splitlines()
    row = (r"| SAM (ICLR 2021) | Fig. 3 | a \| b is above 0 *(MLP)* | – | 1.235 ± 0.046 (8) | quick, cpu (x86_64) | ✔ reproduced | "
           "[03](<notebooks/03_b.ipynb>) · [record](data/records/03_b/quick/claims.json) |")
    assert row in page.splitlines()
    assert "| [03_b/quick/claims](data/records/03_b/quick/claims.json) | cpu (x86_64) | 2.15.0 | abc+ | live |" in page
    assert "](03_b.ipynb)" in scoreboard.as_markdown(scoreboard.rows(), notebooks="")


@pytest.mark.parametrize("left", ["{", "[]", '{"values": {"claims": [{"id": "a"}]}}', '{"values": {"claims": [1]}}'])
def test_a_damaged_record_is_named_with_what_to_do(left):
    paths.write_whole(paths.records("03_b", "quick") / "claims.json", left)
    with pytest.raises(ValueError, match=r"data/records/03_b/quick/claims.json is damaged .*sharpnb run 03_b"):
        report.page()


CATALOGUE = """
[[paper]]
name = "SAM (ICLR 2021)"
items = [
  { kind = "re-made", item = "Fig. 3", shows = "spectra", notebook = "03_b", figures = ["fig3"] },
  { kind = "stand-in", item = "Fig. 4", shows = "curves", notebook = "04_c" },
  { kind = "missing", item = "Table 2", shows = "ImageNet", why = "out of reach" },
]
"""


def test_every_figure_and_table_is_listed_with_its_claims_or_the_reason(root):
    paths.write_whole(root / "site" / "papers.toml", CATALOGUE)
    assert report.page().count("| **not yet** |") == 2, "the notebook and its picture are missing"
    paths.write_whole(root / "figures" / "03_b" / "fig3.png", b"x")
    cells = [{"cell_type": "markdown", "source": ["## 7 Claims"]},
             {"cell_type": "code", "id": "c1", "metadata": {"tags": ["claims"]}, "source": []}]
    paths.write_whole(root / "notebooks" / "03_b.ipynb", json.dumps({"cells": cells}))
    report._claims_cell.cache_clear()
    page = report.page()
    assert all(f"| {kind} | 1 |" in page for kind in ("re-made", "stand-in", "missing"))
    assert ("| SAM (ICLR 2021) | Fig. 3 | spectra | [03](notebooks/03_b.ipynb) | ✔ 1, – 1 | "
            "[fig3](figures/03_b/fig3.png) |  |") in page
    assert "| SAM (ICLR 2021) | Fig. 4 | curves | **not yet** | – | – | belongs to notebook 04 |" in page
    assert "| SAM (ICLR 2021) | Table 2 | ImageNet | **not shown** | – | – | out of reach |" in page
    assert "[03](<notebooks/03_b.ipynb#cell-id=c1>) · [record](data/records/03_b/quick/claims.json) · [fig3](figures/03_b/fig3.png)" in page
    assert "1 claims are about something else" in page


def test_the_html_page_says_the_same_and_asks_no_network():
    page = report.html(report.page())
    assert page.startswith("<!doctype html>") and "<title>Scoreboard · sharpnb</title>" in page
    assert page.count("<tr>") == sum(line.startswith("|") and not line.startswith("|:") for line in report.page().splitlines())
    assert "1.235 ± 0.046 (8)" in page and not re.search(r"(src|href)=.https?:", page)


def test_the_readme_gets_the_counts_between_its_marks_and_is_else_left_alone(root):
    opening, closing = report._MARKS
    (root / "README.md").write_text(f"a\n{opening}\nold\n{closing}\nb\n")
    assert sorted(report.write()) == ["README.md", "REPORT.html", "REPORT.md"]
    text = (root / "README.md").read_text()
    assert text.startswith(f"a\n{opening}\n| verdict") and text.endswith(f"{closing}\nb\n") and "old" not in text
    assert "| ✘ contradicted | 1 |" in text
    assert report.write() == [], "equal records give equal pages"
    assert report.with_head("no marks") == "no marks"
