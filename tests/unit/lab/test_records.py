import json
import math
import subprocess
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from toy import checkout, plain

from sharpnb import lab, paths, sources
from sharpnb.lab import Claim, Record, RecordMismatch, claims, figures, pieces, records
from sharpnb.lab.records import first_difference

matplotlib.use("Agg")
ALT = "A line that rises from zero to one as the number of steps grows."


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    monkeypatch.delenv("SHARPNB_CHECK", raising=False)
    monkeypatch.delenv("SHARPNB_KEEP", raising=False)
    return tmp_path


def _picture(slope=1.0, draw=True):
    figure, ax = plt.subplots()
    if draw:
        ax.fill_between([0, 1], [0, slope])
    return figure, pd.DataFrame({"x": [0.25, 1.5], "y": [0.5, slope + 0.5], "series": ["a", "a"]})


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_and_knows_where_it_is_from():
    nb = lab.start("07_x", seed=3)
    path = nb.record("r", {"a": [1.0, float("nan")], "t": torch.tensor([1, 2]), "s": "text", "none": None})
    back = Record.load(path)
    assert path == paths.records("07_x", "quick") / "r.json"
    assert back.values["t"] == [1, 2] and math.isnan(back.values["a"][1]) and back.values["none"] is None
    assert back.provenance["parameters"]["seed"] == 3 and back.provenance["versions"]["torch"] == torch.__version__.split("+")[0]


def test_a_copy_without_history_is_told_its_commit(monkeypatch):
    monkeypatch.setenv("SHARPNB_COMMIT", "0123abc")
    back = Record.load(lab.start("07_x").record("r", {"a": 1}))
    assert back.provenance["commit"] == "0123abc"
    monkeypatch.delenv("SHARPNB_COMMIT")
    assert Record.load(lab.start("07_x").record("s", {"a": 1})).provenance["commit"] is None  # no checkout here


def _git(*arguments):
    person = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *person, *arguments], check=True, capture_output=True)


@pytest.fixture
def history(project, monkeypatch):
    """A checkout whose history has one commit."""
    monkeypatch.delenv("SHARPNB_COMMIT", raising=False)
    monkeypatch.chdir(checkout(project, {"n": plain("n", "print(1)")}, {"rules.py": "a = 1\n"}))
    _git("init")
    _git("add", ".")
    _git("commit", "-m", "first")
    return project


def _commit_of(nb="n"):
    return records.provenance(nb, {}, torch.device("cpu"), {}, 0.0)["commit"]


def test_a_commit_is_clean_while_only_texts_and_outputs_differ_from_it(history):
    head = _commit_of()
    assert len(head) == 12
    file = history / "notebooks" / "n.ipynb"
    content = json.loads(file.read_text())
    content["cells"][2]["outputs"], content["cells"][0]["source"] = [], "# Another title"
    file.write_text(json.dumps(content))
    (history / "data").mkdir()
    (history / "data" / "result.json").write_text("{}")
    assert _commit_of() == head and _commit_of("unknown") == head


@pytest.mark.parametrize("where", ["cell", "package", "study", "new notebook"])
def test_a_commit_is_marked_where_code_differs_from_it(history, where):
    file = history / "notebooks" / "n.ipynb"
    if where == "cell":
        file.write_text(file.read_text().replace("print(1)", "print(2)"))
    elif where == "package":
        (history / "sharpnb" / "rules.py").write_text("a = 2\n")
    elif where == "study":
        paths.write_whole(history / "notebooks" / "studies" / "n.py", "a = 2\n")
    else:
        (history / "notebooks" / "m.ipynb").write_text(file.read_text())
    assert _commit_of("m" if where == "new notebook" else "n").endswith("+")
    assert len(_commit_of()) == (12 if where == "new notebook" else 13)


@pytest.mark.parametrize(("before", "keep", "renewed"), [
    ("abc+", "0", True), (None, "0", True), ("abc", "0", False), ("abc+", "1", False), ("abc+", "", False)])
def test_update_renews_a_provenance_whose_sources_are_in_no_commit(history, monkeypatch, before, keep, renewed):
    path = lab.start("n").record("r", {"a": 1.0})
    content = json.loads(path.read_text())
    assert content["provenance"]["sources"] == sources.of_notebook("n")
    content["provenance"]["commit"] = before
    del content["digest"]
    path.write_text(json.dumps(content))
    monkeypatch.setenv("SHARPNB_KEEP", keep)
    lab.start("n").record("r", {"a": 1.0})
    assert Record.load(path).provenance["commit"] == (_commit_of() if renewed else before)


def test_a_provenance_without_a_digest_of_its_sources_is_renewed_by_update(history, monkeypatch):
    path = lab.start("n").record("r", {"a": 1.0})
    content = json.loads(path.read_text())
    del content["provenance"]["sources"], content["digest"]
    path.write_text(json.dumps(content))
    monkeypatch.setenv("SHARPNB_KEEP", "0")
    lab.start("n").record("r", {"a": 1.0})
    assert Record.load(path).provenance["sources"] == sources.of_notebook("n")


def test_where_a_full_record_was_made_is_told_from_its_pieces(monkeypatch):
    monkeypatch.setenv("SHARPNB_COMMIT", "0123abc")
    assert lab.start("07_x").origin_of_full("r") == ""
    full = lab.start("07_x", profile="full", device="cpu")
    work = pieces.Work(full, "r", {})
    work.log = [{"label": "a", "seconds": s, "peak_bytes": b, "device": "card"} for s, b in ((10.0, 2e9), (20.4, 1e9))]
    full.record("r", {"x": 1}, work=work)
    told = lab.start("07_x").origin_of_full("r")
    assert told.startswith("07_x/full/r: 2 pieces on card, 30 s together, at most 2.0 GB; PyTorch ")
    assert told.endswith(", commit 0123abc")


def test_the_same_result_keeps_its_first_provenance_and_another_replaces_it():
    first = lab.start("n").record("r", {"a": 1.0})
    before = first.read_bytes()
    lab.start("n", seed=9).record("r", {"a": 1.0})
    assert first.read_bytes() == before
    lab.start("n", seed=9).record("r", {"a": 1.0 + 1e-15})
    assert Record.load(first).provenance["parameters"]["seed"] == 9


@pytest.mark.parametrize(("keep", "stays"), [(None, True), ("1", True), ("0", False)])
def test_a_result_of_another_processor_keeps_the_record_except_under_update(monkeypatch, keep, stays):
    path = lab.start("n").record("r", {"a": 1.0, "verdict": "yes"}, rtol=1e-2)
    before = path.read_bytes()
    if keep:
        monkeypatch.setenv("SHARPNB_KEEP", keep)
    lab.start("n").record("r", {"a": 1.009, "verdict": "yes"}, rtol=1e-2)
    assert (path.read_bytes() == before) is stays


@pytest.mark.parametrize(("seed", "values"), [(0, {"a": 1.011, "verdict": "yes"}), (0, {"a": 1.0, "verdict": "no"}),
                                              (1, {"a": 1.009, "verdict": "yes"})])
def test_another_result_or_other_parameters_replace_the_record(monkeypatch, seed, values):
    path = lab.start("n").record("r", {"a": 1.0, "verdict": "yes"}, rtol=1e-2)
    monkeypatch.setenv("SHARPNB_KEEP", "1")
    lab.start("n", seed=seed).record("r", values, rtol=1e-2)
    assert Record.load(path).values == values


def test_checking_compares_within_the_tolerance_and_writes_nothing(monkeypatch):
    path = lab.start("n").record("r", {"a": {"b": [1.0, 2.0]}, "word": "x"})
    before = path.read_bytes()
    monkeypatch.setenv("SHARPNB_CHECK", "1")
    nb = lab.start("n")
    nb.record("r", {"a": {"b": [1.0, 2.0 * (1 + 0.9e-3)]}, "word": "x"})
    for wrong in ({"a": {"b": [1.0, 2.0 * (1 + 2e-3)]}, "word": "x"}, {"a": {"b": [1.0, 2.0]}, "word": "y"},
                  {"a": {"b": [1.0]}, "word": "x"}, {"word": "x"}, {"a": {"b": [1.0, float("nan")]}, "word": "x"}):
        with pytest.raises(RecordMismatch):
            nb.record("r", wrong)
    with pytest.raises(RecordMismatch, match="no committed record"):
        nb.record("other", {"a": 1.0})
    assert path.read_bytes() == before and not (path.parent / "other.json").exists()


@pytest.mark.parametrize(("old", "new", "where"), [
    ({"a": 1}, {"a": 2}, "a is 2, committed is 1"), ([1, [2, 3]], [1, [2, 4]], "[1][1]"), ({"a": 1}, {"a": "1"}, "a is '1'"),
    ({"a": 1}, {"b": 1}, "other entries"), ({"a": True}, {"a": 1}, "a is 1"), ({"a": None}, {"a": 0.0}, "a is 0.0"),
])
def test_the_first_difference_is_named(old, new, where):
    assert where in first_difference(old, new, 1e-3, 1e-9)
    assert first_difference(old, old, 0, 0) is None


def test_a_damaged_record_says_what_to_do_and_is_replaced_by_the_next_run():
    path = lab.start("n").record("r", {"a": 1.0})
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match=r"damaged.*sharpnb run n --force"):
        Record.load(path)
    lab.start("n").record("r", {"a": 1.0})
    assert Record.load(path).values == {"a": 1.0}


@pytest.mark.parametrize("change", [("1.25", "1.75"), ("1.25", "-1.25"), ('"yes"', '"Yes"'), ('"seed": 0', '"seed": 8')])
def test_a_record_in_which_one_digit_was_changed_is_damaged(monkeypatch, change):
    path = lab.start("n").record("r", {"a": 1.25, "verdict": "yes"})
    path.write_text(path.read_text().replace(*change))
    assert json.loads(path.read_text())["values"], "it is still JSON"
    with pytest.raises(ValueError, match=r"r\.json is damaged.*digest.*sharpnb run n --force"):
        Record.load(path)
    monkeypatch.setenv("SHARPNB_CHECK", "1")
    with pytest.raises(ValueError, match="damaged"):
        lab.start("n").record("r", {"a": 1.25, "verdict": "yes"})


ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("file", sorted((ROOT / "data" / "records").glob("*/*/*.json")), ids=lambda file: "-".join(file.parts[-3:]))
def test_every_committed_record_is_whole(file):
    assert Record.load(file).values
    if file.parent.name != "quick":  # read back by the notebooks; those of the quick profile get theirs when they are renewed
        assert json.loads(file.read_text())["digest"]


def test_a_full_disk_leaves_the_old_file_whole(monkeypatch):
    path = lab.start("n").record("r", {"a": 1.0})
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        lab.start("n").record("r", {"a": 2.0})
    assert "untouched" in error.value.__notes__[0]
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["r.json"]


def test_a_value_that_json_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="Figure"):
        lab.start("n").record("r", {"a": plt.figure()})


# --- figures ---------------------------------------------------------------------------------------------------------


def test_a_figure_is_a_picture_a_drawing_and_its_numbers(project):
    figure, data = _picture()
    path = figures.save(figure, paths.figures("n"), "f", alt=ALT, data=data)
    svg, png = path.with_suffix(".svg").read_bytes(), path.read_bytes()
    assert pd.read_csv(path.with_suffix(".csv")).equals(data) and ALT.encode() in svg and b"Software" not in png
    figure, data = _picture()
    figures.save(figure, paths.figures("m"), "f", alt=ALT, data=data)
    again = paths.figures("m") / "f.png"
    assert again.read_bytes() == png and again.with_suffix(".svg").read_bytes() == svg  # the same picture is the same bytes


def test_checking_a_figure_sees_moved_numbers_and_a_blank_picture(monkeypatch):
    figure, data = _picture()
    figures.save(figure, paths.figures("n"), "f", alt=ALT, data=data)
    monkeypatch.setenv("SHARPNB_CHECK", "1")
    figures.save(_picture()[0], paths.figures("n"), "f", alt=ALT, data=data)
    moved = data.assign(y=data["y"] * (1 + 2e-3))
    with pytest.raises(RecordMismatch, match=r"f\.csv differs"):
        figures.save(_picture()[0], paths.figures("n"), "f", alt=ALT, data=moved)
    with pytest.raises(RecordMismatch, match="looks different"):
        figures.save(_picture(draw=False)[0], paths.figures("n"), "f", alt=ALT, data=data)
    with pytest.raises(RecordMismatch, match="no committed figure"):
        figures.save(_picture()[0], paths.figures("n"), "new", alt=ALT, data=data)


def _kept(slope=1.0, alt=ALT, factor=1.0, draw=True) -> bool:
    """Save a figure, then another in its place; return whether the three files stayed."""
    figure, data = _picture()
    path = figures.save(figure, paths.figures("n"), "f", alt=ALT, data=data)
    before = [path.with_suffix(end).read_bytes() for end in (".png", ".svg", ".csv")]
    figures.save(_picture(slope, draw)[0], paths.figures("n"), "f", alt=alt, data=data.assign(y=data["y"] * factor))
    return [path.with_suffix(end).read_bytes() for end in (".png", ".svg", ".csv")] == before


@pytest.mark.parametrize(("keep", "stays"), [("1", True), ("", False), ("0", False)])
def test_a_run_on_another_processor_keeps_the_figure_and_a_reader_sees_the_fresh_one(monkeypatch, keep, stays):
    monkeypatch.setenv("SHARPNB_KEEP", keep)
    assert _kept(slope=1.0004, factor=1 + 5e-4) is stays
    assert _kept(slope=1.00002) is stays  # a pixel of the drawing, the numbers the same


@pytest.mark.parametrize("changed", [
    {"factor": 1 + 2e-3}, {"factor": 1 + 5e-4, "draw": False}, {"factor": 1 + 5e-4, "alt": ALT + " And more."},
    {"slope": 0.98},  # the same numbers, to the last digit, in another look
])
def test_a_run_replaces_a_figure_with_other_numbers_another_look_or_another_text(monkeypatch, changed):
    monkeypatch.setenv("SHARPNB_KEEP", "1")
    assert not _kept(**changed)


@pytest.mark.parametrize(("alt", "rows", "words"), [("", 2, "too short"), ("A plot.", 2, "too short"), (ALT, 0, "empty")])
def test_a_figure_without_alternative_text_or_numbers_is_refused(alt, rows, words):
    figure, data = _picture()
    with pytest.raises(ValueError, match=words):
        figures.save(figure, paths.figures("n"), "f", alt=alt, data=data.head(rows))


def test_a_heat_map_has_a_cell_and_a_text_where_it_says():
    figure, ax = plt.subplots()
    values = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    colours = figures.heatmap(ax, values, [["a", "b", "c"], ["d", "e", "f"]], rows=["r", "s"], columns=["x", "y", "z"],
                              upwards=True, vmin=0, vmax=10)
    figure.canvas.draw()
    places = {text.get_text(): text.get_position() for text in ax.texts}
    assert places["a"] == (0.5, 0.5) and places["f"] == (2.5, 1.5)  # column, row
    assert colours.get_array().ravel().tolist() == [1, 2, 3, 4, 5, 6] and colours.get_clim() == (0, 10)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["r", "s"] and ax.get_ylim() == (0, 2)
    figures.heatmap(ax, values, values, rows=["r", "s"], columns=["x", "y", "z"])
    assert ax.get_ylim() == (2, 0)
    plt.close(figure)


# --- claims ----------------------------------------------------------------------------------------------------------


def _claim(kind="order", **fields):
    return Claim("id", "P", "Fig. 1", "states", kind, **fields)


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
    ({"kind": "value", "paper_value": 2.0, "measured": 2.04, "stderr": 0.0, "tolerance": 0.05}, "reproduced"),
    ({"kind": "value", "paper_value": 2.0, "measured": 2.07, "stderr": 0.02, "n": 10, "tolerance": 0.05}, "consistent within uncertainty"),
    ({"kind": "value", "paper_value": 2.0, "measured": 2.2, "stderr": 0.0, "tolerance": 0.05}, "contradicted"),
    # Imprecise: an interval wider than the tolerance meets many numbers, also where its middle happens to be the paper's.
    ({"kind": "value", "paper_value": 24.2, "measured": 73.0, "stderr": 6.38, "n": 2, "tolerance": 4.84}, "inconclusive"),
    ({"kind": "value", "paper_value": 2.0, "measured": 2.2, "stderr": 0.1, "n": 10, "tolerance": 0.05}, "inconclusive"),
    ({"kind": "value", "paper_value": 2.0, "measured": 2.0, "stderr": 0.1, "n": 10, "tolerance": 0.05}, "inconclusive"),
    ({"kind": "value", "paper_value": 2.0, "measured": 3.0, "stderr": 0.1, "n": 10, "tolerance": 0.05}, "contradicted"),
    ({"kind": "value", "paper_value": 95.27, "measured": 10.0, "stderr": None, "n": 1, "tolerance": 0.5}, "inconclusive"),
    ({"kind": "value", "paper_value": 95.27, "measured": 95.3, "stderr": None, "n": 1, "tolerance": 0.5}, "inconclusive"),
])
def test_the_verdict_follows_from_the_numbers(fields, verdict):
    assert _claim(**{"kind": "order", **fields}).verdict == verdict


def test_the_interval_is_students():
    claim = Claim.from_samples([1.0, 2.0, 3.0], id="i", paper="P", item="F", statement="s", kind="order")
    assert claim.measured == 2 and claim.stderr == pytest.approx(1 / math.sqrt(3)) and claim.half_width == pytest.approx(4.302653 / math.sqrt(3))
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
    ((18.3, 2.84), (17.2, 4.0), "reproduced"),                     # 17.2 - 17.2 is on the edge; the committed verdict stands
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
    value = {"kind": "value", "paper_value": 2.0, "tolerance": 0.05, "n": 10}
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


# --- the notebook's context ------------------------------------------------------------------------------------------


def test_a_check_passes_below_its_bound_and_fails_above_it_or_on_nan(capsys):
    nb = lab.start("n")
    nb.check("it holds", -1e-13, 1e-12)
    assert capsys.readouterr().out == "✔ it holds (residual ≤ 1e-12)\n"
    for residual in (2e-12, float("nan")):
        with pytest.raises(AssertionError, match="it fails"):
            nb.check("it fails", residual, 1e-12)


@pytest.mark.parametrize(("parameters", "words"), [({"profile": "fast"}, "quick, full"), ({"device": "tpu9"}, "device")])
def test_bad_parameters_are_told_what_is_allowed(parameters, words):
    with pytest.raises(ValueError, match=words):
        lab.start("n", **parameters)


def test_a_figure_is_shown_with_its_text_relative_to_the_working_folder(project, monkeypatch):
    shown = []
    monkeypatch.setattr(lab.Notebook, "_show", staticmethod(shown.append))
    (project / "notebooks").mkdir()
    monkeypatch.chdir(project / "notebooks")
    figure, data = _picture()
    lab.start("n").figure(figure, "f", alt=ALT, caption="**Fig.**", data=data)
    assert shown[0].startswith(f"![{ALT}](<../figures/n/f.png>)") and "[numbers](<../figures/n/f.csv>)" in shown[0]
