"""Every study of the full profile, at toy size: it keeps its pieces and reads them back, and its records."""

import json
from pathlib import Path

import pytest

from sharpnb import lab, paths
from sharpnb.lab import Record, pieces
from studies import (
    adamw_generalization,
    alpha_lambda,
    label_noise,
    m_sharpness,
    sam,
    sam_family,
    wsam_gamma,
)

ROOT = Path(__file__).parents[3]
STUDIES = {
    "01_sam": lambda nb: [sam.recorded(name, getattr(sam, name), sam.TOY, nb) for name in ("orders", "kinds", "inner")],
    "04_m_sharpness": lambda nb: [m_sharpness.recorded(name, getattr(m_sharpness, name), m_sharpness.TOY, nb)
                                  for name in ("trained", "family")],
    "05_label_noise": lambda nb: label_noise.recorded(label_noise.TOY, nb),
    "08_wsam_gamma": lambda nb: wsam_gamma.table_of(wsam_gamma.TOY, nb).fillna(0).to_dict("list"),
    "09_sam_family": lambda nb: sam_family.trained_on(sam_family.TOY, nb).fillna(0).to_dict("list"),
    "11_alpha_lambda_heatmaps": lambda nb: alpha_lambda.run(alpha_lambda.TOY, ["sgd"], nb, "cells").to_dict("list"),
    "12_adamw_generalization": lambda nb: adamw_generalization.compare("toy", adamw_generalization.REGIMES["toy"]["toy"], nb),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_second_call_makes_no_piece_and_a_lost_record_is_put_together_from_the_pieces(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
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
    ("13_warm_restarts", 2 + 12 + 8), ("14_swa_landscapes", 4), ("15_swap", 2), ("16_lookahead", 4),
    ("17_filter_grafting", 10)])
def test_what_a_notebook_trains_in_its_cells_runs_at_toy_size_and_is_kept(name, count, tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    kept = []
    monkeypatch.setattr(pieces.Work, "_keep", lambda work, *rest, keep=pieces.Work._keep: kept.append(rest) or keep(work, *rest))
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for expected in (count, count):  # a second time nothing is trained
        space = {"__name__": "__main__"}
        for source in code:
            exec(source.replace('"quick"  #', '"toy"  #').replace('"auto"', '"cpu"'), space)
        assert len(kept) == expected
    pyplot.close("all")
