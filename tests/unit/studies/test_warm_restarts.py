import numpy as np
import pandas as pd
import pytest

from studies import warm_restarts as study
from studies import warm_restarts_claims


def test_periods_end_where_the_paper_says():
    assert study.ends(100, 2, 1800) == [100, 300, 700, 1500] and study.ends(10, 2, 150) == [10, 30, 70, 150]
    assert study.ends(5, 1, 19) == [5, 10, 15] and study.ends(5, 2, 4) == []


@pytest.mark.parametrize("profile", ["quick", "full", "toy"])
def test_the_budget_ends_with_a_period_and_is_evaluated_there(profile):
    s = study.ANYTIME[profile]
    ends = study.ends(s.t_0, 2, s.steps)
    assert ends[-1] == s.steps and all(end % s.every == 0 for end in ends)


def _rows(errors):
    return [{"method": "a", "seed": seed, "step": step, "test_error": error}
            for seed, own in enumerate(errors) for step, error in zip((10, 20, 30), own, strict=True)]


def test_values_go_by_seed():
    rows = _rows([[5, 3, 4], [9, 9, 9]])
    assert study.at(rows[::-1], "a", 20).tolist() == [3, 9]


@pytest.mark.parametrize("power", [-0.5, 0.3])
def test_the_exponent_of_a_made_up_law_is_found(power):
    decays = 2.0 ** -np.arange(12, 1, -1)
    rows = [{"method": "m", "seed": seed, "budget": t, "lr": lr, "weight_decay": d,
             "test_error": 5 + lr + (np.log2(d) + 6 - power * np.log2(t / 100)) ** 2}
            for seed in (0, 1) for t in (50, 200, 800) for lr in (0.1, 0.2) for d in decays]
    best = study.optimum(pd.DataFrame(rows))
    assert study.exponents(best, "m") == pytest.approx([power, power], abs=1e-9) and not best["edge"].any()


def test_an_optimum_at_the_edge_is_marked():
    rows = [{"method": "m", "seed": 0, "budget": 1, "lr": 1, "weight_decay": d, "test_error": d} for d in (0.25, 0.5, 1)]
    best = study.optimum(pd.DataFrame(rows))
    assert best["edge"].tolist() == [True] and best["log2_decay"].tolist() == [-2]


def test_the_best_cell_is_that_of_the_lowest_mean():
    cells = {(0.1, 0.0): (3, 9), (0.2, 0.0): (5, 5), (0.2, 1.0): (8, 4.5)}
    rows = [{"method": "m", "lr": lr, "weight_decay": l2, "seed": seed, "test_error": e}
            for (lr, l2), own in cells.items() for seed, e in enumerate(own)]
    assert study.best_cell(rows, "m") == [5, 5]


def test_the_claim_on_anytime_performance_is_positive_where_restarts_lead_and_a_diverged_run_counts_as_guessing():
    s = study.ANYTIME["quick"]
    rows = [{"method": method, "seed": seed, "step": step, "test_error": error + seed, "train_loss": 0.1 * error}
            for method, error in {"AdamW": 9.0, "AdamWR": 7.0, "SGDW": 20.0, "SGDWR": np.nan}.items() for seed in (0, 1)
            for step in range(s.every, s.steps + 1, s.every)]
    found = {claim.id: claim for claim in warm_restarts_claims.fig4(rows, s, None)}
    assert found["adamw-fig-4"].samples == pytest.approx([2, 2])
    assert found["adamw-fig4-anytime-sgd"].samples == pytest.approx([-70, -69])
    assert found["adamw-suppfig-5"].samples == pytest.approx([np.log10(20 / 9)] * 2)


def test_falling_decay_and_long_adam_count_for_the_paper():
    law = pd.DataFrame([{"method": "AdamW", "seed": k, "budget": t, "log2_decay": -0.5 * np.log2(t), "edge": False}
                        for k in range(3) for t in (50, 200, 800)])
    assert warm_restarts_claims.budgets(law, "")[0].samples == pytest.approx([0.5] * 3)
    long = warm_restarts_claims.long_adam(np.array([30.0, 32.0]), np.array([31.0, 31.0]), None, "")
    assert long.samples == (-0.5, 1.5)
