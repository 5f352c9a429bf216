import numpy as np
import pandas as pd
import pytest
import torch
from cells import executed
from torch.nn.functional import cross_entropy

from sharpnb import lab
from sharpnb.curvature import sharpness
from sharpnb.lab import models
from sharpnb.lab.claims import Regime
from sharpnb.many.engine import Nets
from studies import m_sharpness as study
from studies.m_sharpness_claims import claims


def test_information_of_a_table_written_out():
    v, g = np.array([0, 0, 0, 1, 1, 1, 0, 1]), np.array([0, 0, 0, 1, 1, 1, 1, 0])
    p = np.array([[3, 1], [1, 3]]) / 8
    truth = (p * np.log(p / 0.25)).sum() / np.log(2)
    assert study.share(np.bincount(2 * v + g)) == pytest.approx(truth)
    assert np.isnan(study.share(np.bincount(2 * v + 1)))
    split = np.array([0, 0, 0, 1, 1, 1, 2, 3])  # where the label tells g, nothing is left to share
    assert np.isnan(study.share(np.bincount(4 * split + 2 * v + g)))


@pytest.mark.parametrize("m", [8, 32])
def test_batched_measure_is_that_of_each_net(m):
    data = lab.load_data("digits", train_size=32, dtype=torch.float64)
    rows = Nets([0, 1], data, lambda seed: models.mlp((64, 6, 10), seed=seed), batch_size=m)
    found = study.m_sharpness(rows, rows.w, 0.1)
    for k in range(2):
        alone = sharpness(models.mlp((64, 6, 10), seed=k).double(), cross_entropy, data.train, 0.1, m=m).value
        assert found[k].item() == pytest.approx(alone, rel=1e-10)


def test_the_experiments_run_at_the_size_of_a_test_and_rank_what_they_should(project):
    space = executed("04_m_sharpness", "settings", "train", "family", "mid", profile="toy", device="cpu")
    s = study.TOY
    trained, family = space["trained"], space["family"]
    assert len(trained) == s.seeds * (1 + len(s.rhos)) and len(family) == s.seeds * 8
    rho, errors = study.best(trained, min(s.rhos), 0.0, [0.05])
    assert rho == 0.05 and len(errors) == s.seeds
    planted = family.assign(sharpness_4=family["gap"], sharpness_16=-family["gap"])
    for row in study.predictive(s, planted).itertuples():
        assert row.tau == pytest.approx(1.0 if row.m == 4 else -1.0)
    mid, found = study.MIDS["toy"], space["at_mid"]  # radii are tried on other seeds; each m is judged at its best
    tried, judged = (pd.DataFrame(found["fashion"][name]) for name in ("trained", "judged"))
    assert {*tried["seed"]} == {*mid.tuning} and {*judged["seed"]} == {*mid.seeds}
    assert {(m, study.best(tried, m, 0.0, radii)[0]) for m, radii in mid.rhos.items()} | {(mid.batch_size, 0.0)} == {
        *judged[["m", "rho"]].itertuples(index=False, name=None)}
    told = claims(judged, pd.DataFrame(found["fashion-family"]["rows"]), mid, "mid", 90.0)
    assert [claim.record for claim in told] == ["mid/fashion"] + 3 * ["mid/fashion-family"]


def test_the_change_against_sgd_is_paired_by_seed():
    rows = [{"noise": 0.0, "m": 16, "rho": 0.0, "seed": seed, "test_error": 10.0 + seed} for seed in range(3)]
    rows += [{"noise": 0.0, "m": m, "rho": 0.1, "seed": seed, "test_error": 10.0 + seed + shift + seed * m / 16}
             for m, shift in ((4, -2.0), (16, 1.0)) for seed in range(3)]
    found = study.against_sgd(pd.DataFrame(rows))
    assert found.loc[(0.0, 4, 0.1), "mean"] == pytest.approx(-1.75)
    assert found.loc[(0.0, 16, 0.1), "mean"] == pytest.approx(2.0)
    assert found.loc[(0.0, 16, 0.1), "half"] == pytest.approx(4.303 / 3**0.5, rel=1e-3)


def test_a_net_is_taken_where_it_first_comes_to_the_loss():
    data = lab.load_data("digits", train_size=40, dtype=torch.float64)
    many = lab.train_many([{"rule": "sgd", "lr": lr, "momentum": 0.9} for lr in (0.05, 0.2)], data,
                          lambda seed: models.mlp((64, 8, 10), seed=seed), steps=80, batch_size=20,
                          keep=range(5, 81, 5), evaluate_every=5, schedule="constant", dtype=torch.float64,
                          device="cpu", progress=False)
    asked = []

    def train(which, updates):
        asked.append((which, updates))
        return {step: w[which] for step, w in many.kept.items() if step <= updates}

    def nets(which):
        return Nets([0] * len(which), data, lambda seed: models.mlp((64, 8, 10), seed=seed), batch_size=40)

    first = [next(row["step"] for row in many.rows if row["member"] == k and row["train_loss"] <= 0.5)
             for k in range(2)]
    found = study.at_loss(train, nets, 2, 0.5, (first[1], 4 * first[1]))
    assert asked == [([0, 1], first[1]), ([0], 4 * first[1])], "only who has not come there goes on"
    assert all(torch.equal(found[k], many.kept[first[k]][k]) for k in range(2))
    with pytest.raises(ValueError, match="2 of 2 nets do not come to a training loss of 1e-09 in 80 updates"):
        study.at_loss(train, nets, 2, 1e-9, (20, 80))


def test_the_claims_are_large_m_minus_small_m_and_carry_the_regime():
    trained = pd.DataFrame([{"noise": 0.0, "m": m, "rho": rho, "seed": seed, "train_error": 1.0,
                             "test_error": error + seed} for seed in range(3)
                            for m, rho, error in ((4, 0.05, 9.0), (16, 0.05, 12.0), (16, 0.0, 20.0))])
    random = np.random.default_rng(0)
    family = pd.DataFrame([{"seed": seed, **dict.fromkeys(study.TOY.family, k), "gap": float(k), "sharpness_4": k,
                            "sharpness_16": random.normal(), "train_error": 3.0, "test_error": 30.0}
                           for seed in range(3) for k in range(8)])
    found = {claim.id: claim for claim in claims(trained, family, study.TOY, "quick", 19.0)}
    assert found["sam-fig-3-middle"].samples == (3, 3, 3)
    assert found["sam-fig-3-middle"].regime == Regime(1.0, 21.0, 19.0)
    assert found["sam-fig-3-right"].regime == Regime(3.0, 30.0) and "3.0 %" in found["sam-fig-3-right"].regime.fault
    tau = study.predictive(study.TOY, family).pivot(index="seed", columns="m", values="tau")
    assert found["sam-fig3-positive"].samples == (1, 1, 1)
    assert found["sam-fig-3-right"].samples == pytest.approx(1 - tau[16])
    later = claims(None, family, study.TOY, "full")
    assert [claim.id for claim in later][:2] == ["sam-fig-3-middle", "sam-fig3-tau"] and later[0].samples is None
