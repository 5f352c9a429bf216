import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from sharpnb import lab, rules
from sharpnb.lab.claims import Regime
from studies import sam as study
from studies import sam_claims as statements

CURVATURE = torch.tensor([[1.0, 9.0]], dtype=torch.float64)
POINT = torch.tensor([[4.0, 1 / 3]], dtype=torch.float64)


def quadratic(w):
    return CURVATURE * w


def test_perturbation_is_the_one_that_the_rule_uses():
    once, far = (study.perturbation(POINT, quadratic, 1.0, inner_steps=count) for count in (1, 40))
    assert torch.allclose(once, torch.tensor([[0.8, 0.6]], dtype=torch.float64))
    assert float(far.norm()) == pytest.approx(1)
    angle = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    once, far, ring = ((CURVATURE * (POINT + eps) ** 2).sum(1) / 2 for eps in (once, far, ring))
    assert float(once) < float(far) == pytest.approx(float(ring.max()), rel=1e-6)


def test_bound_against_the_formula_written_out():
    b = study.Bound(k=1000, n=200, rho=0.1, norm=5.0)
    inner = 1 + 25 / 0.01 * (1 + math.sqrt(math.log(200) / 1000)) ** 2
    whole = (1000 * math.log(inner) + 4 * math.log(200 / 0.05) + 8 * math.log(6 * 200 + 3 * 1000)) / 199
    assert b.term == pytest.approx(math.sqrt(whole), rel=1e-14)
    assert replace(b, n=2000).term < b.term and replace(b, rho=0.2).term < b.term < replace(b, norm=9.0).term
    assert b.sigma * (math.sqrt(b.k) + math.sqrt(math.log(b.n))) == pytest.approx(b.rho)
    assert b.kl(b.sigma**2) == pytest.approx(0.5 * (b.norm / b.sigma) ** 2)


def test_each_kind_is_its_own_rule_and_at_radius_0_all_are_sgd():
    ends = {kind: study.rule_of(kind)(POINT, quadratic, rho=0.5, lr=0.1)[0] for kind in study.LIVE}
    for kind, how in {"2-norm": {}, "five steps": {"inner_steps": 5}, "max-norm": {"p": math.inf}}.items():
        assert torch.equal(ends[kind], rules.sam(POINT, quadratic, rho=0.5, lr=0.1, **how)[0])
    assert len({tuple(end.flatten().tolist()) for end in ends.values()}) == len(study.LIVE)
    still = [study.rule_of(kind)(POINT, quadratic, rho=0.0, lr=0.1)[0] for kind in study.LIVE]
    assert all(torch.allclose(end, POINT - 0.1 * quadratic(POINT)) for end in still)


def test_claims_are_paired_by_seed_and_above_0_where_the_paper_is_right():
    error = {"none": 6.0, "2-norm": 5.0, "second-order": 5.5, "five steps": 4.0, "max-norm": 7.0, "random": 8.0}
    runs = pd.DataFrame([{"kind": kind, "seed": seed, "step": step, "train_error": 0.5, "test_error": value + seed,
                          "cosine": 1 - step / 1000, "rise 1": 1.0, "rise 5": 3.0}
                         for kind, value in error.items() for step in (0, 150, 300) for seed in (0, 1)])
    made = {claim.id: claim for claim in statements.claims(lab.start("01_sam", device="cpu"), study.QUICK, runs, None)}
    assert {name: pytest.approx(claim.samples[0]) for name, claim in made.items()} == {
        "sam-fig-4": 0.5, "sam-fig-5": 0.15, "sam-fig-6": 3.0, "sam-fig-6-max-norm": 2.0, "sam-fig-6-none": 1.0,
        "sam-fig-7": 2.0, "sam-table-11": -0.5}
    assert made["sam-fig-6"].regime == Regime(0.5, 6.5) and made["sam-fig-6-none"].below == "sam-fig-6"
