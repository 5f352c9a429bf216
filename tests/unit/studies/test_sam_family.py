import numpy as np
import pytest
import torch
from cells import executed

from sharpnb import lab, optim
from sharpnb.lab import Record, models
from studies import sam_family as study
from studies.tiny_vit import tiny_vit

X, Y = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(10)


def counted(rule, **own):
    return study.cost({"rule": rule, "lr": 0.1, "weight_decay": 0.0, **own}, models.mlp((64, 4, 10)), X, Y)


def test_counted_gradients_are_those_of_the_papers():
    assert counted("sgd") == counted("adam") == 1
    for rule, own in (("sam", {}), ("gsam", {"alpha": 0.1}), ("wsam", {"gamma": 0.9}), ("asam", {}), ("fisher_sam", {})):
        assert counted(rule, rho=0.1, **own) == 2
    assert counted("looksam", rho=0.1, k=5, alpha=0.7) == pytest.approx(1.2)
    assert counted("esam", rho=0.1, beta=0.5, gamma=0.5) == pytest.approx(1 + 1 / 3 + 0.5)


def test_every_method_has_as_many_trials_and_an_optimizer_class():
    everything = {**study.VANILLA, **study.GRIDS, **study.ON_ADAM}
    assert {len(grid) for _, grid in everything.values()} == {study.TRIALS}
    for name, (fixed, grid) in everything.items():
        base = {"base": "adam"} if name in study.ON_ADAM else {}
        made = study.optimizer_of({"lr": 0.1, "weight_decay": 0.0, **fixed, **base, **grid[0]}, models.mlp((64, 4, 10)))
        assert isinstance(made, torch.optim.Optimizer)
        if name in study.ON_ADAM:
            assert isinstance(made.base_optimizer, torch.optim.Adam)
    config = {"lr": 0.1, "weight_decay": 0.0, **study.GRIDS["ASAM + WSAM"][0], **study.GRIDS["ASAM + WSAM"][1][0]}
    found = study.optimizer_of(config, models.mlp((64, 4, 10)))
    assert isinstance(found, optim.WSAM) and found.perturbation == "asam"


def test_the_full_grids_offer_every_method_a_weak_perturbation_and_as_many_trials():
    full = study.methods_of(study.FULL, {**study.VANILLA, **study.GRIDS, **study.ON_ADAM})
    assert {len(grid) for _, grid in full.values()} == {study.FULL.trials}
    radii = {name: {trial["rho"] for trial in grid} for name, (_, grid) in full.items() if "rho" in grid[0]}
    assert all(min(own) <= (0.05 if "ASAM" in name else 0.005) for name, own in radii.items())
    assert {name for name, own in radii.items() if max(own) < 0.1} == set()


def test_the_transformer_attends_to_patches_and_depends_on_its_seed_alone():
    state = torch.random.get_rng_state()
    a, b, c = tiny_vit(seed=1), tiny_vit(seed=1), tiny_vit(seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embed.weight, c.embed.weight)
    x = torch.randn(3, 1, 8, 8)
    assert a(x).shape == (3, 10)
    with torch.no_grad():
        a.positions.zero_()
    swapped = torch.cat([x[..., 2:4], x[..., :2], x[..., 4:]], -1)  # two columns of patches change places
    assert torch.allclose(a(x), a(swapped), atol=1e-5)  # without positions a transformer sees a set
    inside = x.clone()
    inside[..., 0], inside[..., 1] = x[..., 1], x[..., 0]
    assert not torch.allclose(a(x), a(inside), atol=1e-3)
    with pytest.raises(ValueError, match="patch = 3"):
        tiny_vit(patch=3)


def test_the_toy_profile_runs_the_full_code(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    toy, cells = study.TOY, ("settings", "compare")
    made = executed("09_sam_family", *cells, profile="toy", device="cpu")
    trials, final = made["trials"], made["final"]
    common = {*study.VANILLA, *study.GRIDS}
    assert set(trials[trials["noise"] == 0.0]["method"]) == common
    assert set(trials[trials["noise"] == 0.2]["method"]) == common | set(study.ON_ADAM)
    assert (trials.groupby(["noise", "method"])["trial"].nunique() == toy.trials).all()
    at_one = final[final["length"] == 1.0]
    assert (at_one.groupby(["noise", "method"])["trial"].nunique() == 1).all() and at_one["lambda_max"].notna().all()
    for (_, method), part in at_one.groupby(["noise", "method"]):
        if method not in study.VANILLA and method not in study.ON_ADAM:
            sgd = at_one[(at_one["noise"] == part["noise"].iloc[0]) & (at_one["method"] == "SGD")]
            assert part["lr"].iloc[0] == sgd["lr"].iloc[0] and part["weight_decay"].iloc[0] == sgd["weight_decay"].iloc[0]
    assert set(final[final["length"] == 2.0]["method"]) == set(study.FOLLOWED)
    pieces = Record.find("09_sam_family", "family", "toy").provenance["pieces"]
    assert [piece["label"] for piece in pieces] == [*study.VANILLA, *study.GRIDS, *study.ON_ADAM, "length 0.5", "length 2.0"]
    again = executed("09_sam_family", *cells, profile="toy", device="cpu")["trials"]  # from the record
    assert np.allclose(again["test_error"], trials["test_error"])


def test_training_on_starts_where_pretraining_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    toy = study.replace(study.TOY, lr=1e-12)
    table = study.train_on(toy, lab.start("09_sam_family", profile="toy", device="cpu"))
    start = table[table["method"] == "start"].set_index("seed")["train_loss"]
    for _, row in table[table["method"].isin(("AdamW", "SAM"))].iterrows():
        assert row["train_loss"] == pytest.approx(start[row["seed"]], rel=1e-6)
    gammas = table[table["method"] == "WSAM"]
    assert set(gammas["trial"]) == set(study.VIT_GAMMAS) and set(gammas["rho"]) <= set(study.VIT_RADII)
