from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from cells import executed
from torch.nn.functional import cross_entropy

from sharpnb import lab
from sharpnb.lab import models
from studies import hessian_spectra as study
from studies.hessian_spectra_claims import claims

SMALL = replace(study.QUICK, train_size=80, model=lambda seed: models.mlp((64, 5, 10), seed=seed), steps=12,
                batch_size=20, seeds=2, rho=0.2, many=False)
WIDE = replace(study.TOY, steps=18, train_size=32, batch_size=16, seeds=1, hessian_images=4, dtype=torch.float64)


@pytest.fixture
def nb(project):
    return lab.start("03_hessian_spectra", device="cpu")


@pytest.mark.parametrize("s", [SMALL, WIDE])
def test_every_row_is_the_dense_hessians_top_five(s, nb):
    rows, kept = study.run(s, nb)
    assert len(rows) == 2 * s.seeds * 3
    data, model = s.images(0), s.model(0).to(s.dtype)
    x, y = (part[: s.hessian_images] for part in data.train)
    row = next(r for r in rows if (r["rule"], r["seed"], r["time"]) == ("sam", 0, "end"))
    named = dict(model.named_parameters())

    def loss(w):
        parts = w.split([p.numel() for p in named.values()])
        own = {name: part.view_as(named[name]) for name, part in zip(named, parts, strict=True)}
        return cross_entropy(torch.func.functional_call(model, own, (x,)), y)

    w = kept["sam", s.steps]
    if len(w) < 1000:  # the exact Hessian by autograd, independent of the curvature package
        exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, w))
        assert [row[f"lambda_{i}"] for i in range(1, 6)] == pytest.approx(exact.flip(0)[:5].tolist(), rel=1e-4)
    assert row["lambda_1"] >= row["lambda_2"] > 0 and row["ratio"] == pytest.approx(row["lambda_1"] / row["lambda_5"])


def test_what_is_tuned_is_best_on_held_out_images_and_read_back(nb, monkeypatch):
    monkeypatch.setattr(study, "GRID", {"lr": (1e-6, 0.1), "weight_decay": (0.0,)})
    monkeypatch.setattr(study, "RADII", (0.05, 50.0))
    s, rows = study.tuned(SMALL, nb)
    assert (s.lr, s.weight_decay, s.rho) == (0.1, 0.0, 0.05), "what learns nothing and what collapses lose"
    assert len(rows) == 2 * 2 * 6 and {row["seed"] for row in rows} == set(range(100, 106))
    monkeypatch.setattr(study, "trials", lambda *a, **k: pytest.fail("tuned again"))
    assert study.tuned(replace(SMALL, seeds=9, rho=0.7), nb)[0].rho == 0.05


def test_the_effects_are_sgds_over_sams_at_the_end_in_decades():
    def rows(sgd, sam):
        return [{"rule": rule, "seed": seed, "time": time, "lambda_1": value * (1 if time == "end" else 10),
                 "ratio": 2.0 + value}
                for rule, value in (("sgd", sgd), ("sam", sam)) for seed in (5, 6) for time in study.TIMES]

    bn = pd.DataFrame([{"net": net, "seed": seed, "time": time, "ratio": r, "gradient_share": g} for seed in (5, 6)
                       for net, r, g in (("no BatchNorm", 100.0, 0.2), ("BatchNorm", 10.0, 0.5))
                       for time in study.TIMES])
    later = {"right labels": {"rows": rows(3.0, 30.0)}}
    found = {(claim.id, claim.profile): claim.samples
             for claim in claims(SMALL, rows(8.0, 2.0), rows(4.0, 4.0), bn, later, "quick")}
    for name, value in {"sam-fig-3-left": np.log10(4), "sam-fig3-lambda-max-noisy": 0, "sam-fig3-rise": -1,
                        "sam-fig3-ratio": np.log10(2.5), "ghorbani-outliers": 1, "ghorbani-gradient": -0.3}.items():
        assert found[name, "quick"] == pytest.approx([value] * 2)
    assert found["sam-fig-3-left", "full"] == pytest.approx([-1, -1])
    assert found["sam-fig3-lambda-max-noisy", "full"] is None


def test_the_mid_profile_tunes_the_radius_on_other_seeds_and_measures_where_a_loss_is_first_reached(project):
    space, s = executed("03_hessian_spectra", "mid", profile="toy", device="cpu"), study.MIDS["toy"]
    found, rows = space["at_mid"], pd.DataFrame(space["at_mid"]["rows"])
    assert {*rows["seed"]} == {*s.judging} and found["tuned"] in dict(found["trials"]) and len(found["spectra"]) == 6
    told = claims(study.TOY, None, None, pd.DataFrame(), {}, "full", found)
    assert {"sam-fig-3-left", "sam-fig3-equal-loss"} <= {claim.id for claim in told if claim.samples}
    first = rows[(rows["time"] == "equal loss") & (rows["rule"] == "sgd") & (rows["step"] > s.look)].iloc[0]
    member = {"rho": 0.0, "seed": int(first["seed"]), "noise": 0.0}
    again = space["trained"]("again", [member], looks=[int(first["step"]) - s.look, int(first["step"])])["w"][0]
    nets = study.label_noise.nets(s, space["nb"], [member])
    before, there = (nets.evaluate(w[None])["train_loss"][0] for w in again)
    assert there <= s.loss < before
