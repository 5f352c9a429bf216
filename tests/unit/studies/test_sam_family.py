import pandas as pd
import pytest
import torch
from cells import executed

from sharpnb import optim
from sharpnb.lab import models
from sharpnb.lab.claims import Regime
from studies import sam_family as study
from studies import sam_family_claims as statements
from studies.families import tiny_vit

X, Y = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(10)


def counted(rule, **own):
    return study.cost({"rule": rule, "lr": 0.1, "weight_decay": 0.0, **own}, models.mlp((64, 4, 10)), X, Y)


def test_counted_gradients_are_those_of_the_papers():
    assert counted("sgd") == counted("adam") == 1
    for rule in ("sam", "gsam", "wsam", "asam", "fisher_sam"):
        assert counted(rule, rho=0.1) == 2
    assert counted("looksam", rho=0.1, k=5, alpha=0.7) == pytest.approx(1.2)
    assert counted("esam", rho=0.1, beta=0.5, gamma=0.5) == pytest.approx(1 + 1 / 3 + 0.5)


def test_every_method_has_as_many_trials_and_an_optimizer_class():
    for of in (study.METHODS, study.TRAINED_ON):
        assert {len(method.grid) for s in (study.QUICK, study.FULL) for method in s.methods(of).values()} == {12}
    made = {name: study.optimizer_of({"lr": 0.1, "weight_decay": 0.0, "rho": 0.1, **method.fixed, **method.grid[0]},
                                     models.mlp((64, 4, 10))) for name, method in study.METHODS.items()}
    assert all(isinstance(each, torch.optim.Optimizer) for each in made.values())
    found = made["ASAM + WSAM"]
    assert isinstance(found, optim.WSAM) and found.perturbation == "asam"


def test_the_transformer_attends_to_patches_and_depends_on_its_seed_alone():
    state = torch.random.get_rng_state()
    a, b, c = (tiny_vit(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(a.embed.weight, b.embed.weight) and not torch.equal(a.embed.weight, c.embed.weight)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        a.positions.zero_()
    swapped = torch.cat([x[..., 2:4], x[..., :2], x[..., 4:]], -1)  # two columns of patches change places
    assert torch.allclose(a(x), a(swapped), atol=1e-5)  # without positions a transformer sees a set
    assert not torch.allclose(a(x), a(x.flip(-1)), atol=1e-3) and a(x).shape == (3, 10)
    with pytest.raises(ValueError, match="patch = 3"):
        tiny_vit(patch=3)


def test_the_toy_profile_runs_the_full_code(project):
    toy, everything = study.TOY, {*study.METHODS, study.TWICE}
    made = executed("09_sam_family", "settings", "compare", profile="toy", device="cpu")
    trials, table = made["trials"], made["table"]
    for noise in toy.noises:
        own = study.of_noise(trials, noise)
        assert {row["method"] for row in own} == everything and len(own) == toy.trials * len(everything)
        part = table[table["noise"] == noise]
        assert set(part["method"]) == everything | {study.COUPLED}
        assert (part.groupby("method")["seed"].nunique() == toy.seeds).all()
        chosen = part.groupby("method")[["lr", "weight_decay", "rho", "gamma"]].first()
        stands = [name for name in chosen.index if not name.startswith("SGD")]
        assert (chosen.loc[stands, ["lr", "weight_decay"]] == chosen.loc["SGD", ["lr", "weight_decay"]]).all(axis=None)
        assert set(chosen.loc[["SAM", "GSAM", "WSAM", study.COUPLED], "rho"]) == {chosen.loc["SAM", "rho"]}
        assert chosen.loc["WSAM", "gamma"] == chosen.loc[study.COUPLED, "gamma"]
        assert part[part["method"].isin(study.FLAT)]["lambda_max"].notna().all()


def test_the_claims_are_those_of_right_labels_and_half_a_point_is_esams():
    errors = {"SGD": 9.0, study.TWICE: 8.0, "SAM": 7.0, "ESAM": 7.2, "GSAM": 6.5, "WSAM": 6.0, study.COUPLED: 90.0,
              "ASAM": 8.0, "ASAM + WSAM": 5.0, "Fisher SAM": 7.0, "Fisher SAM + WSAM": 7.5}
    rows = [{"noise": noise, "method": name, "seed": s, "test_error": e + 10 * noise * (name == "SAM"),
             "train_error": 0.5, "lambda_max": 10.0 if name == "SGD" else 1.0}
            for noise in (0.0, 0.2) for name, e in errors.items() for s in range(3)]
    found = {c.id: c for c in statements.claims(pd.DataFrame(rows), [], study.QUICK, "quick") if not c.below}
    gains = {"wsam-table-2": 1.0, "wsam-table-7": 3.0, "wsam-table-8": 84.0, "gsam-main": 0.5, "asam-main": -1.0,
             "fisher-main": 0.0, "esam-accuracy": 0.3, "wsam-minima": 1.0}
    assert {name: pytest.approx(claim.samples[0]) for name, claim in found.items()} == gains
    assert found["gsam-main"].regime == Regime(0.5, 9.0, 8.0)
    assert {claim.samples for claim in statements.claims(None, [], study.FULL, "full")} == {None}
