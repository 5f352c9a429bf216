import numpy as np
import pandas as pd
import pytest

from studies import decay_runs, warm_restarts_claims
from studies import warm_restarts as study


@pytest.mark.parametrize("power", [-0.5, 0.3])
def test_the_exponent_of_a_made_up_law_is_found(power):
    decays = 2.0 ** -np.arange(12, 1, -1)
    rows = [{"method": "m", "seed": seed, "budget": t, "lr": lr, "weight_decay": d,
             "test_error": 5 + lr + (np.log2(d) + 6 - power * np.log2(t / 100)) ** 2}
            for seed in (0, 1) for t in (50, 200, 800) for lr in (0.1, 0.2) for d in decays]
    best = study.optimum(pd.DataFrame(rows))
    assert study.exponents(best, "m") == pytest.approx([power, power], abs=1e-9) and not best["edge"].any()


def test_each_optimizer_of_fig_4_has_as_many_trials_and_tuned_ones_are_judged_once_a_seed():
    s = study.ANYTIME["quick"]
    grid = study.anytime_grid(s, [100])
    assert pd.DataFrame(grid).groupby("method").size().tolist() == [25] * 5
    found = {"AdamWR": decay_runs.Tuned({"lr": 0.25, "lambda_norm": 0.5}, 1.0, 25, ())}
    told = {"method": "AdamWR", "rule": "adamw", "schedule": "restarts", "t_0": s.t_0, "lr": 0.25, "lambda_norm": 0.5}
    assert study.chosen(grid, found, [7, 8]) == [told | {"seed": 7}, told | {"seed": 8}]
    trials = {method: len(own) for method, (_, _, own) in study.long_grids(study.LONG["quick"], [100]).items()}
    assert trials == {"Adam, fixed": 25, "AdamW, 1/18": 25}


def test_the_claim_on_anytime_performance_is_positive_where_restarts_lead_and_a_diverged_run_counts_as_guessing():
    s = study.ANYTIME["quick"]
    rows = [{"method": method, "seed": seed, "step": step, "test_error": error + seed, "train_error": 1.0,
             "train_loss": 0.1 * error}
            for method, error in {"AdamW": 9.0, "AdamWR": 7.0, "SGDW": 20.0, "SGDWR": np.nan}.items() for seed in (0, 1)
            for step in range(s.every, s.steps + 1, s.every)]
    found = {claim.id: claim for claim in warm_restarts_claims.fig4(rows, s)}
    assert found["adamw-fig-4"].samples == pytest.approx([2, 2])
    assert found["adamw-fig4-anytime-sgd"].samples == pytest.approx([-70, -69])
    assert found["adamw-suppfig-5"].samples == pytest.approx([np.log10(20 / 9)] * 2)


def test_falling_decay_and_long_adam_count_for_the_paper():
    law = pd.DataFrame([{"method": "AdamW", "seed": k, "budget": t, "log2_decay": -0.5 * np.log2(t), "edge": False}
                        for k in range(3) for t in (50, 200, 800)])
    assert warm_restarts_claims.budgets(law, "").samples == pytest.approx([0.5] * 3)
    rows = {method: [{"method": method, "seed": k, "step": 9, "test_error": x, "train_error": 3.0}
                     for k, x in enumerate(own)]
            for method, own in {"Adam, fixed": (30, 32), "AdamW, 1/18": (31, 31)}.items()}
    long = warm_restarts_claims.long_adam(rows, "")
    assert long.samples == (-0.5, 1.5) and "3.0 %" in long.regime.fault
