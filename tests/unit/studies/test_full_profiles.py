"""Every study of the full profile, at toy size: it keeps its pieces and reads them back, and its records."""

import json

import pytest
from cells import executed

from sharpnb import lab, paths
from sharpnb.lab import Record, pieces
from studies import (
    alpha_lambda,
    filter_grafting,
    label_noise,
    lookahead,
    m_sharpness,
    sam,
    sam_family,
    swa,
    swap,
    warm_restarts,
)


def of_cells(name: str, *idents: str, what: str = "table"):
    """Return what these cells of a notebook make in the toy profile."""
    return executed(name, *idents, profile="toy", device="cpu")[what]


STUDIES = {
    "01_sam": lambda nb: [sam.recorded(name, getattr(sam, name), sam.TOY, nb) for name in ("orders", "kinds", "inner")],
    "04_m_sharpness": lambda nb: [m_sharpness.recorded(name, getattr(m_sharpness, name), m_sharpness.TOY, nb)
                                  for name in ("trained", "family")],
    "05_label_noise": lambda nb: label_noise.recorded(label_noise.TOY, nb),
    "08_wsam_gamma": lambda nb: of_cells("08_wsam_gamma", "settings", "sweep").fillna(0).to_dict("list"),
    "09_sam_family": lambda nb: sam_family.trained_on(sam_family.TOY, nb).fillna(0).to_dict("list"),
    "11_alpha_lambda_heatmaps": lambda nb: alpha_lambda.recorded(nb, "cells", alpha_lambda.TOY, [
        {"rule": "sgd", "lr": 0.05, "weight_decay": decay, "schedule": "cosine", "seed": seed}
        for decay in (0.0, 0.001) for seed in range(alpha_lambda.TOY.seeds)]).to_dict("list"),
    "12_adamw_generalization": lambda nb: of_cells("12_adamw_generalization", "settings", "train", what="rows"),
    "13_warm_restarts": lambda nb: [warm_restarts.anytime(warm_restarts.ANYTIME["toy"], nb),
                                    warm_restarts.budgets(warm_restarts.BUDGETS["toy"], nb),
                                    warm_restarts.long_adam(warm_restarts.LONG["toy"], nb)],
    "14_swa_landscapes": swa.full_rows, "15_swap": swap.full_rows, "16_lookahead": lookahead.full_rows,
    "17_filter_grafting": lambda nb: filter_grafting.rows_of(filter_grafting.TOY, nb)[0],
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
