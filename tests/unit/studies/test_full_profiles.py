"""Every study of the full profile, at toy size: it keeps its pieces and reads them back, and its records."""

import json
import shutil
from pathlib import Path

import pytest
from cells import executed

from sharpnb import lab, paths
from sharpnb.lab import Record, pieces
from studies import alpha_lambda

ROOT = Path(__file__).parents[3]


def of_cells(name: str, *idents: str, what: str = "table"):
    """Return what these cells of a notebook make in the toy profile."""
    return executed(name, *idents, profile="toy", device="cpu")[what]


def rows(table):
    return table.astype(object).where(table.notna(), None).to_dict("list")


STUDIES = {
    "01_sam": lambda nb: rows(of_cells("01_sam", "settings", "kinds", "runs", what="runs")),
    "04_m_sharpness": lambda nb: rows(of_cells("04_m_sharpness", "settings", "train", "family", what="family")),
    "05_label_noise": lambda nb: rows(of_cells("05_label_noise", "settings", "train")),
    "08_wsam_gamma": lambda nb: rows(of_cells("08_wsam_gamma", "settings", "sweep")),
    "09_sam_family": lambda nb: rows(of_cells("09_sam_family", "settings", "compare")),
    "11_alpha_lambda_heatmaps": lambda nb: alpha_lambda.recorded(nb, "cells", alpha_lambda.TOY, [
        {"rule": "sgd", "lr": 0.05, "weight_decay": decay, "schedule": "cosine", "seed": seed}
        for decay in (0.0, 0.001) for seed in range(alpha_lambda.TOY.seeds)]).to_dict("list"),
    "12_adamw_generalization": lambda nb: of_cells("12_adamw_generalization", "settings", "tune", what="tried"),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_second_call_makes_no_piece_and_a_lost_record_is_put_together_from_the_pieces(name, project, monkeypatch):
    nb = lab.start(name, profile="toy", device="cpu")
    first = STUDIES[name](nb)
    records = list(paths.records(name, "toy").glob("*.json"))
    assert records and all(Record.load(file).provenance["pieces"] for file in records)
    monkeypatch.setattr(pieces.Work, "_keep", None)
    assert STUDIES[name](nb) == first
    for file in records:
        file.unlink()
    assert json.dumps(STUDIES[name](nb)) == json.dumps(first)


@pytest.mark.parametrize(("name", "count"), [
    ("13_warm_restarts", 2 + 3 + 4), ("14_swa_landscapes", 4), ("15_swap", 2), ("16_lookahead", 4),
    ("17_filter_grafting", 10)])
def test_what_a_notebook_trains_in_its_cells_runs_at_toy_size_and_is_kept(name, count, project, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    (project / "site").mkdir()
    shutil.copy(ROOT / "site" / "primary.toml", project / "site")
    kept, keep = [], pieces.Work._keep
    monkeypatch.setattr(pieces.Work, "_keep", lambda work, *rest: kept.append(rest) or keep(work, *rest))
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for expected in (count, count):  # a second time nothing is trained
        space = {"__name__": "__main__"}
        for source in code:
            exec(source.replace('"quick"  #', '"toy"  #').replace('"auto"', '"cpu"'), space)
        assert len(kept) == expected
    pyplot.close("all")
