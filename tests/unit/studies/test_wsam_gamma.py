import numpy as np
import pytest
import torch

from sharpnb import rules
from sharpnb.lab.claims import Regime
from studies import wsam_gamma as study
from studies import wsam_gamma_claims as statements
from studies import wsam_theory as theory


@pytest.mark.parametrize("decouple", [True, False])
def test_the_matrix_is_the_rule_and_its_limit_is_the_edge_of_stability(decouple):
    hyper = {"rho": 0.1, "lr": 0.3, "momentum": 0.9, "decouple": decouple}
    matrix, v = theory.heavy_ball(2.0, 4.0, **hyper), np.array([1.0, 0.0])
    x, state = torch.ones(1, 1, dtype=torch.float64), None
    for _ in range(30):
        x, state = rules.wsam(x, lambda x: 2.0 * x, state, gamma=0.8, perturbation=lambda w, g, rho: rho * g, **hyper)
        v = matrix @ v
    assert float(x) == pytest.approx(v[0], abs=1e-13)
    limit = theory.largest_stable_weight(2.0, **hyper)
    inside, outside = (theory.contraction(theory.heavy_ball(2.0, f * limit, **hyper)) for f in (0.999, 1.001))
    assert inside < 1 < outside


def test_without_momentum_the_forms_have_one_matrix_and_one_limit():
    both = [theory.heavy_ball(3.0, 2.0, rho=0.1, lr=0.1, momentum=0.0, decouple=d) for d in (True, False)]
    assert theory.contraction(both[0]) == pytest.approx(theory.contraction(both[1]))
    limits = [theory.largest_stable_weight(3.0, rho=0.1, lr=0.1, momentum=0.0, decouple=d) for d in (True, False)]
    assert limits[0] == pytest.approx(limits[1])


def test_adam_feels_the_scale_of_the_loss_only_when_decoupled():
    scales = torch.tensor([1.0, 100.0], dtype=torch.float64)
    apart = theory.adam_pull(scales, gamma=0.9, rho=0.05, decouple=True)
    assert float(apart[1] / apart[0]) == pytest.approx(100, rel=1e-6)
    together = theory.adam_pull(scales, gamma=0.9, rho=0.05, decouple=False, steps=5)
    assert float(together[1] / together[0]) == pytest.approx(1, rel=1e-3) and float(together[0]) > 0


def of(noise, errors):
    """Trials and a judged table of the decoupled form: {γ: (held-out error, test error)}."""
    rows = [{"method": "decoupled", "noise": noise, "gamma": g, "seed": s, "test_error": test, "train_error": 1.0}
            for g, (_, test) in errors.items() for s in range(3)]
    rows += [{"method": "SAM", "noise": noise, "seed": s, "test_error": 5.0, "train_error": 1.0} for s in range(3)]
    return study.pd.DataFrame(rows), [{"method": "decoupled", "noise": noise, "own": {"gamma": g}, "val_error": val}
                                      for g, (val, _) in errors.items()]


def test_best_inside_and_outside_are_chosen_on_the_tuning_seeds_and_judged_on_the_others():
    table, trials = of(0.2, {0.0: (5.0, 5.0), 0.5: (4.0, 6.0), 0.9: (3.0, 2.0), 0.94: (9.0, 8.0), 0.8: (9.0, 0.0)})
    inner, outer, gains = study.inside_or_outside(table, trials, 0.2)
    assert (inner, outer, gains.tolist()) == (0.9, 0.5, [4.0] * 3)
    table.loc[(table["gamma"] == 0.5) & (table["seed"] == 1), "test_error"] = float("nan")  # a run that diverged
    assert study.inside_or_outside(table, trials, 0.2)[2].tolist() == [4.0, 88.0, 4.0]


def test_the_claim_is_of_the_wrong_labels_and_has_its_baselines_regime():
    table, trials = of(0.2, {0.0: (5.0, 5.0), 0.9: (3.0, 2.0)})
    found = statements.claims(table, trials, study.replace(study.QUICK, noises=(0.2,)), "quick")
    assert [claim.id for claim in found] == ["wsam-fig-3", "wsam-fig-3-sam-20", "wsam-fig-3-sgd-20"]
    assert found[0].samples == (3.0,) * 3 and found[0].regime == Regime(1.0, 5.0)
    assert "0.9 against 0" in found[0].protocol
    assert [claim.samples for claim in statements.claims(None, [], study.FULL, "full")] == [None]
