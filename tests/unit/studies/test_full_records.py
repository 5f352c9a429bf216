"""Every committed record of the full profile is found by the settings of its study, and so drawn by the notebooks."""

import pytest

from sharpnb import lab, paths
from sharpnb.lab import Record
from sharpnb.lab.pieces import described
from studies import (
    adamw_generalization,
    alpha_lambda,
    filter_grafting,
    hessian_spectra,
    label_noise,
    m_sharpness,
    sam,
    sam_minima_full,
    swa,
    swap,
    warm_restarts,
)

SETTINGS = {
    "01_sam/kinds": sam.FULL,
    "03_hessian_spectra/clean": {**vars(hessian_spectra.FULL), "noise": 0.0},
    "03_hessian_spectra/noisy": {**vars(hessian_spectra.FULL), "noise": 0.2},
    "04_m_sharpness/family": m_sharpness.told(m_sharpness.FULL),
    "04_m_sharpness/trained": m_sharpness.told(m_sharpness.FULL),
    "05_label_noise/table": label_noise.FULL,
    "11_alpha_lambda_heatmaps/cells": {
        "regime": alpha_lambda.FULL, "rules": list(alpha_lambda.TITLES), "schedules": ("cosine",)},
    "11_alpha_lambda_heatmaps/schedules": {
        "regime": alpha_lambda.thinned(alpha_lambda.FULL), "rules": ["adam", "adamw"],
        "schedules": alpha_lambda.FIG1[:2]},
    "12_adamw_generalization/CIFAR-10": adamw_generalization.REGIMES["full"]["CIFAR-10"],
    "13_warm_restarts/anytime": warm_restarts.ANYTIME["full"],
    "14_swa_landscapes/cifar": swa.FULL,
    "15_swap/cifar": {**vars(swap.FULL), "net of": swap.FULL.model},
    "17_filter_grafting/runs": {**vars(filter_grafting.FULL), "net of": filter_grafting.FULL.net},
}
OTHERWISE = {"08_wsam_gamma/sharpness", "18_flatness/pool"}  # read back by their names alone
WITHDRAWN = {"08_wsam_gamma/gamma", "09_sam_family/family"}  # of grids that have been mended since


def committed(name: str) -> Record:
    notebook, record = name.split("/")
    found = Record.find(notebook, record, "full")
    assert found is not None
    return found


def test_every_committed_full_record_is_listed_here():
    files = {f"{file.parts[-3]}/{file.stem}" for file in (paths.root() / "data" / "records").glob("*/full/*.json")}
    cells = {f"02_sam_minima/{cell.name}" for cell in sam_minima_full.full().cells}
    assert files - cells == {*SETTINGS, *OTHERWISE, *WITHDRAWN} and len(files & cells) == 2


@pytest.mark.parametrize("name", SETTINGS)
def test_a_committed_full_record_is_found_by_its_settings(name):
    assert committed(name).provenance["settings"] == described(SETTINGS[name])


def test_the_cells_of_the_sam_paper_are_found_by_their_settings():
    scale, nb = sam_minima_full.full(), lab.start("02_sam_minima", device="cpu")
    there = sam_minima_full.full_cells(nb)
    assert [len(there.get((cell.data, cell.model, cell.augmentation), ())) for cell in scale.cells] == [6, 6, 0]


def test_the_mid_records_are_found_by_their_settings():
    files = [*(paths.root() / "data" / "records").glob("0[45]*/mid/*.json")]
    told = [described(s) for own in label_noise.cells("mid").values() for s in own.values()]
    told += [described(m_sharpness.told(s)) for s in (m_sharpness.MID, m_sharpness.FAMILIES["mid"])]
    assert files and all(Record.load(file).provenance["settings"] in told for file in files)
