import math

import pandas as pd
import pytest
import torch
from cells import executed

from sharpnb import paths, rules
from sharpnb.lab import Record, pieces
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
    table = pd.DataFrame([{"kind": "a", "rho": rho, "seed": seed, "test_error": error}
                          for rho, errors in {0.1: (5.0, 7.0), 0.2: (6.5, 5.0)}.items() for seed, error in enumerate(errors)])
    assert study.best_radius(table, "a") == 0.2
    assert study.by_seed(table, "test_error", kind="a", rho=0.1).tolist() == [5.0, 7.0]


def test_the_experiments_run_at_the_size_of_a_test_and_go_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    run = lambda: executed("01_sam", "settings", "orders", "kinds", "inner", profile="toy", device="cpu")
    space, steps, seeds = run(), [0, 2, 4], range(study.TOY.seeds)
    orders, kinds, inner = (space[name] for name in ("orders", "kinds", "inner"))
    assert [tuple(row) for row in orders[["order", "step", "seed"]].to_numpy()] == [
        (order, step, seed) for order in ("first", "second") for step in steps for seed in seeds]
    assert orders["cosine"].between(-1, 1 + 1e-6).all()
    assert set(zip(kinds["kind"], kinds["rho"], strict=True)) == {
        ("none", 0.0)} | {(kind, rho) for kind in study.KINDS for rho in (0.01, 0.1)}
    assert set(inner["inner"]) == set(study.INNER) and len(inner) == 4 * len(steps) * len(seeds)
    records = list(paths.records("01_sam", "toy").glob("*.json"))
    assert len(records) == 3 and all(Record.load(file).provenance["pieces"] for file in records)
    monkeypatch.setattr(pieces.Work, "_keep", None)  # nothing is trained again
    for _ in range(2):
        again = run()
        assert all(again[name].equals(space[name]) for name in ("orders", "kinds", "inner"))
        for file in records:
            file.unlink(missing_ok=True)
