import pandas as pd
import pytest

from studies import label_noise as study
from studies import label_noise_claims as statements

ERRORS = {("SAM", 0.0): 30.0, ("SAM", 0.2): 12.0, ("SAM", 0.5): 10.0, ("WSAM", 0.9): 9.0, ("Mixup", 1.0): 14.0,
          ("Bootstrap + SAM", 0.0): 29.0, ("Bootstrap + SAM", 0.5): 8.0, ("GSAM", 0.1): 11.0,
          ("SGD, decay tuned", 0.02): 15.0, ("Bootstrap + Mixup", 1.0): 13.0}


def table(train_error=0.5):
    """Return rows of two seeds in which validation picks the larger radius."""
    return pd.DataFrame([
        {"method": method, "value": value, "noise": noise, "seed": seed, "test_error": error + seed * value,
         "best_epoch": error - 4.0, "validation_error": 1.0 - value, "train_error": train_error}
        for (method, value), error in ERRORS.items() for noise in study.NOISES for seed in (7, 6)
        if method != "GSAM" or noise == 0.4])


def test_a_claim_is_the_other_s_error_minus_one_s_own_seed_by_seed():
    made = statements.claims(table(), "net", "quick", tuned={"sam-table-4": "; ρ = 0.5"})
    found = {claim.id: claim for claim in made}
    assert found["sam-table-4"].samples == (17.0, 16.5)  # of the seeds 6 and 7
    assert found["sam-table-8"].samples == (18.0, 17.5) and found["wsam-table-6"].samples == pytest.approx((-1.4, -1.8))
    assert found["sam-table4-sam-best-40"].samples == (13.0, 12.5)
    assert found["sam-table-4"].protocol == "net, 40% wrong; ρ = 0.5"
    assert [name for name in found if not found[name].below] == ["sam-table-4", "sam-table-8", "wsam-table-6"]
    assert "wsam-noise-gsam-40" in found and "wsam-noise-esam-40" not in found  # which nothing was measured of


def test_the_regime_is_that_of_sgd_at_the_noise_rate():
    for train_error, fault in ((2.0, ""), (2.1, "2.1")):
        claims = statements.claims(table(train_error), "net", "quick")
        assert all(fault in claim.regime.fault and bool(fault) == bool(claim.regime.fault) for claim in claims)
        assert {claim.regime.test_error for claim in claims} == {30.0}


def test_a_table_that_is_not_there_leaves_its_primary_claims_not_run():
    assert [(claim.id, claim.samples) for claim in statements.claims(None, "net", "full")] == [
        ("sam-table-4", None), ("sam-table-8", None), ("wsam-table-6", None)]


def test_each_method_has_as_many_trials_and_a_value_at_the_end_of_its_grid_is_said():
    assert ["an edge" in statements.edge(value, (0.0, 0.1, 0.2, 0.5)) for value in (0.1, 0.2, 0.5)] == [1, 0, 1]
    s = study.QUICK
    assert set(study.TUNING).isdisjoint(s.seeds) and len(s.seeds) == 20
    assert {len(grid) for grid in (s.rhos[1:], s.gammas, s.alphas, s.mixes, study.DECAYS)} == {12}
