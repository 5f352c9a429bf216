import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from cells import executed

from studies import adamw_generalization as study


def _cloud(method, losses, errors, seed=0):
    return [{"method": method, "seed": seed, "step": 1, "decay": float(i), "train_loss": x, "test_error": y}
            for i, (x, y) in enumerate(zip(losses, errors, strict=True))]


def test_equal_loss_is_compared_and_not_equal_decay():
    losses = np.array([0.01, 0.1, 1.0])
    line = lambda x: 10 + np.log10(x) ** 2
    shifted = _cloud("Adam + L2", losses, line(losses) + 2) + _cloud("AdamW", losses, line(losses))
    assert study.at_equal_loss(shifted) == pytest.approx([2.0])
    # One straight curve, sampled at other losses: no difference at equal loss, although each point differs.
    straight = lambda x: 20 + 3 * np.log10(x)
    other = np.array([0.02, 0.2, 0.8])
    same = _cloud("Adam + L2", losses, -straight(losses)) + _cloud("AdamW", other, -straight(other))
    assert study.at_equal_loss(same) == pytest.approx([0.0], abs=1e-12)


def test_losses_that_never_meet_give_no_number():
    apart = _cloud("Adam + L2", [0.01, 0.02], [5, 6]) + _cloud("AdamW", [0.5, 0.6], [5, 6])
    assert np.isnan(study.at_equal_loss(apart)).all()


def test_the_best_decay_is_that_of_the_lowest_mean_at_the_end():
    rows = _cloud("AdamW", [1, 1], [4, 7], seed=0) + _cloud("AdamW", [1, 1], [8, 6], seed=1)
    rows += [{**row, "step": 0, "test_error": 0.0} for row in rows]
    assert study.best_decays(rows) == {"AdamW": 0.0}
    assert study.of(rows[::-1], "AdamW", "test_error", 1.0, 1).tolist() == [7, 6]


def test_quick_regimes_have_the_papers_numbers_of_decays():
    for regime in study.REGIMES["quick"].values():
        assert len(regime.l2) == 12 and len(regime.lambda_norm) == 7 and regime.steps % regime.every == 0


def test_the_full_profiles_code_runs_at_the_size_of_a_test(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    regime = study.REGIMES["toy"]["toy"]
    rows = executed("12_adamw_generalization", "settings", "train", profile="toy", device="cpu")["rows"]["toy"]
    assert len(rows) == 5 * regime.seeds * 2  # settings, seeds, evaluations
    table = pd.DataFrame(rows)
    assert set(table["method"]) == set(study.ROLES) and table["decay"].notna().all()
    figure, axes = plt.subplots(2, 2)
    study.draw_panels(axes, rows)
    assert all(ax.lines and ax.get_xlabel() and ax.get_ylabel() for ax in axes.flat)
    plt.close(figure)
