from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sharpnb.lab import notebook, sweep
from sharpnb.lab.grid import cells_of
from studies import alpha_lambda as study
from studies import alpha_lambda_claims as claims

A, L = np.indices((8, 9))


def test_separability_tells_axes_from_diagonals_and_noise_from_both():
    axis = 5 + (A - 4) ** 2 / 3 + (L - 5.0) ** 2 / 3
    diagonal = 5 + (A - 4) ** 2 / 9 + (A + L - 8.0) ** 2 / 3
    assert study.separability(axis) > 0.05 and study.separability(diagonal) < -0.05
    draws = [study.separability(np.random.default_rng(k).uniform(5, 20, (8, 9))) for k in range(40)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(40)


@pytest.mark.parametrize("truth", [-1.0, 0.0, 1.0])
def test_the_slope_is_that_of_the_valley(truth):
    errors = 5 + 4 * (np.indices((5, 13))[1] - 6 - truth * (np.indices((5, 13))[0] - 2)) ** 2.0
    assert study.slope(errors) == pytest.approx(truth, abs=1e-3)
    errors[0] = 60 + np.arange(13)  # a row that does not reach the valley is left out
    assert study.slope(errors) == pytest.approx(truth, abs=1e-3)


def test_a_table_is_the_sweeps_and_says_where_a_training_left_the_finite_numbers(project):
    nb = notebook.Notebook("11_alpha_lambda_heatmaps", "quick", "cpu", {})
    short = replace(study.LARGE, steps=8, data={**study.LARGE.data, "train_size": 100})
    grid = {"rule": "sgd", "lr": [0.1, 1e200], "weight_decay": [0.0, 0.5], "schedule": ["cosine"], "seed": range(2)}
    table = study.recorded(nb, "short", short, cells_of(grid))
    table = table.sort_values(["lr", "weight_decay", "seed"], ignore_index=True)
    theirs = sweep(grid, short.data, short.model, steps=8, batch_size=50, folder=project, progress=False,
                   **short.options)
    pd.testing.assert_frame_equal(table, theirs[study.KEPT])
    assert [bool(reason) for reason in table["reason"]] == [False] * 4 + [True] * 4


def test_fig1_takes_the_cosine_from_fig2_and_its_best_cells_by_schedule():
    thin, higher = study.thinned(study.FULL), {"constant": 2, "step": 1, "cosine": 0}
    table = pd.DataFrame([{"rule": rule, "schedule": schedule, "lr": lr, "weight_decay": decay, "seed": 0,
                           "test_error": 50.0 + higher[schedule] + (rule == "adam") + i + j}
                          for rule in ("sgd", "adam", "adamw") for schedule in study.FIG1
                          for i, lr in enumerate(study.FULL.alphas[rule])
                          for j, decay in enumerate(study.FULL.lambdas[rule])])
    own = table["lr"].isin([*thin.alphas["adam"], *thin.alphas["adamw"]]) & (table["rule"] != "sgd")
    cosine = table["schedule"] == "cosine"
    best = study.best_by_schedule(study.with_cosine(table[own & ~cosine], table[cosine], thin))
    assert {pair: float(error[0] - best["adamw", "cosine"][0]) for pair, error in best.items()} == {
        (rule, name): more + (rule == "adam") for rule in ("adam", "adamw") for name, more in higher.items()}


def test_judged_settings_have_seeds_and_data_that_no_tuning_saw():
    judged = study.judging(study.SIGNALS, [2000, 2001])
    assert study.SIGNALS.data["held_out"] and "held_out" not in judged.data
    assert list(study.seeds_of(judged)) == [2000, 2001] and not set(study.JUDGING) & set(study.seeds_of(study.SIGNALS))


def test_claims_are_positive_where_the_paper_is_right():
    best = {("adam", "cosine"): [30.0, 31], ("adamw", "cosine"): [29.0, np.nan], ("adamw", "constant"): [33.0, 34],
            ("adam", "constant"): [30.0, 30]}
    maps = pd.DataFrame([{"seed": s, "rule": rule, "separability": x} for rule, x in (("adam", 0.1), ("adamw", 0.3))
                         for s in (0, 1)])
    found = {claim.id: claim.samples for claim in claims.claims({k: np.array(v) for k, v in best.items()}, maps, None)}
    assert found["adamw-fig-1"] == (1, -59) and found["adamw-schedule"] == (4, -56)
    assert found["adamw-fig-2"] == pytest.approx((0.2, 0.2)) and "adamw-fig2-separable-sgd" not in found
    assert {claim.samples for claim in claims.full(None, None, None)} == {None}
