import numpy as np
import pandas as pd
import pytest

from studies import adamw_generalization as study
from studies import adamw_generalization_claims as claims


def _cloud(method, losses, errors, seed=0):
    return [{"method": method, "seed": seed, "step": 1, "decay": float(i), "train_loss": x, "test_error": y}
            for i, (x, y) in enumerate(zip(losses, errors, strict=True))]


def at_equal_loss(rows):
    return study.at_equal_loss(pd.DataFrame(rows))


def test_equal_loss_is_compared_and_not_equal_decay():
    losses = np.array([0.01, 0.1, 1.0])
    line = lambda x: 10 + np.log10(x) ** 2
    shifted = _cloud("Adam + L2", losses, line(losses) + 2) + _cloud("AdamW", losses, line(losses))
    assert at_equal_loss(shifted) == pytest.approx([2.0])
    # One straight curve, sampled at other losses: no difference at equal loss, although each point differs.
    straight = lambda x: 20 + 3 * np.log10(x)
    other = np.array([0.02, 0.2, 0.8])
    same = _cloud("Adam + L2", losses, -straight(losses)) + _cloud("AdamW", other, -straight(other))
    assert at_equal_loss(same) == pytest.approx([0.0], abs=1e-12)


def _judged(errors):
    return [{"method": method, "seed": seed, "step": step, "test_error": 9.0 if step == 1 else error,
             "train_error": 0.5, "train_loss": 0.1}
            for method, own in errors.items() for seed, error in enumerate(own) for step in (1, 2)]


def test_claims_are_of_the_end_and_positive_where_the_paper_is_right_and_know_their_regime():
    rows = _judged({"Adam + L2": [20.0, 40.0], "AdamW": [10.0, 40.0], "SGD + L2": [18.0, np.nan]})
    figure, wilson = claims.claims(rows)
    assert figure.samples == pytest.approx([np.log10(2), 0]) and wilson.samples == pytest.approx([2, -50])
    assert figure.regime == wilson.regime and figure.regime.train_error == 0.5
    older = [{name: x for name, x in row.items() if name != "train_error"} for row in rows]
    assert claims.claims(older)[0].regime.train_error is None
    assert [claim.samples for claim in claims.claims(None)] == [None, None]
