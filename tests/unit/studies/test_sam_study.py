import math

import pytest
import torch

from sharpnb import lab, rules
from studies import sam as study

CURVATURE = torch.tensor([[1.0, 9.0]], dtype=torch.float64)


def quadratic(w):
    return CURVATURE * w


def test_perturbation_is_the_one_that_the_rule_uses():
    w = torch.tensor([[4.0, 1 / 3]], dtype=torch.float64)
    assert torch.allclose(study.perturbation(w, quadratic, 1.0), torch.tensor([[0.8, 0.6]], dtype=torch.float64))
    far = study.perturbation(w, quadratic, 1.0, inner_steps=40)
    assert far.norm().item() == pytest.approx(1.0)
    rise = lambda eps: (CURVATURE * (w + eps) ** 2).sum().item() / 2
    angle = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    assert rise(far) == pytest.approx(((CURVATURE * (w + ring) ** 2).sum(1) / 2).max().item(), rel=1e-6)
    assert rise(far) > rise(study.perturbation(w, quadratic, 1.0))


def test_random_perturbation_has_the_radius_and_forgets_the_gradient():
    asked = []

    def grad(at):
        asked.append(at)
        return quadratic(at)

    w = torch.tensor([[4.0, 1 / 3], [0.0, 0.0]], dtype=torch.float64)
    rho = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    moved, _ = study.random_perturbation(w, grad, rho=rho, generator=torch.Generator().manual_seed(0), lr=0.1)
    assert len(asked) == 1 and torch.allclose((asked[0] - w).norm(dim=1), rho[:, 0])
    assert torch.allclose(moved, w - 0.1 * quadratic(asked[0]))


def test_second_order_update_is_parallel_on_an_isotropic_bowl():
    w = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    grad = lambda at: 3.0 * at
    first = grad(w + study.perturbation(w, grad, 0.1))
    second = first + rules.second_order_term(grad, w, grad(w), first, 0.1)
    assert study.cosine(first, second).item() == pytest.approx(1.0, abs=1e-12)


def test_bound_against_the_formula_written_out():
    b = study.Bound(k=1000, n=200, rho=0.1, norm=5.0)
    inner = 1 + 25 / 0.01 * (1 + math.sqrt(math.log(200) / 1000)) ** 2
    whole = (1000 * math.log(inner) + 4 * math.log(200 / 0.05) + 8 * math.log(6 * 200 + 3 * 1000)) / 199
    assert b.term == pytest.approx(math.sqrt(whole), rel=1e-14)
    assert study.Bound(k=1000, n=2000, rho=0.1, norm=5.0).term < b.term
    assert study.Bound(k=1000, n=200, rho=0.2, norm=5.0).term < b.term < study.Bound(k=1000, n=200, rho=0.1, norm=9.0).term
    assert b.sigma * (math.sqrt(b.k) + math.sqrt(math.log(b.n))) == pytest.approx(b.rho)
    assert b.kl(b.sigma**2) == pytest.approx(0.5 * (b.norm / b.sigma) ** 2)


def test_best_radius_is_that_of_the_least_mean():
    rows = [{"kind": "a", "rho": rho, "seed": seed, "test_error": error}
            for rho, errors in {0.1: (5.0, 7.0), 0.2: (6.5, 5.0)}.items() for seed, error in enumerate(errors)]
    assert study.best_radius(rows, "a") == 0.2 and study.errors_at(rows, kind="a", rho=0.1) == [5.0, 7.0]


def test_the_studies_run_at_the_size_of_a_test():
    s, nb = study.TOY, lab.start("01_sam", profile="toy", device="cpu")
    orders, kinds, inner = study.orders(s, nb), study.kinds(s, nb), study.inner(s, nb)
    steps, seeds = [0, 2, 4], range(s.seeds)
    assert [(r["order"], r["step"], r["seed"]) for r in orders] == [
        (o, t, k) for o in ("first", "second") for t in steps for k in seeds]
    assert all(-1 <= r["cosine"] <= 1 + 1e-6 for r in orders)
    assert {(r["kind"], r["rho"]) for r in kinds} == {("none", 0.0)} | {(k, r) for k in study.KINDS for r in (0.01, 0.1)}
    assert {r["inner"] for r in inner} == set(study.INNER) and len(inner) == 4 * len(steps) * s.seeds
