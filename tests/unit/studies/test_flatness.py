from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sharpnb import curvature, lab, paths
from sharpnb.lab import models
from sharpnb.lab.pieces import Work, described
from studies import flatness, flatness_pool, flatness_published, flatness_statements, m_sharpness
from studies.flatness_pool import AXES, Settings


@pytest.fixture(scope="module")
def toy():
    """Rows of the toy pool, which runs the full profile's code."""
    return pd.DataFrame(flatness_pool.rows_of(flatness_pool.cells(flatness.TOY), flatness.TOY))


@pytest.fixture
def planted():
    """A table whose target is known: it grows with `good`, falls with `bad`, knows nothing of `none`."""
    table = pd.DataFrame(flatness_pool.cells(Settings(methods=("SGD", "SAM", "SWA", "Adam"), seeds=3)))
    random = np.random.default_rng(0)
    table["test_error"] = random.permutation(len(table)).astype(float)
    table["train_loss"] = random.normal(size=len(table))
    return table.assign(good=table["test_error"] ** 3, bad=-table["test_error"], none=random.normal(size=len(table)))


def test_pairs_differ_in_what_they_say(planted):
    sets = flatness.pairs(planted)
    assert len(sets["all"][0]) == len(planted) * (len(planted) - 1) // 2
    codes = planted[list(AXES)].to_numpy(object)
    for name in AXES:
        i, j = sets[name]
        differs = codes[i] != codes[j]
        assert len(i) and differs.sum() == len(i) and differs[:, AXES.index(name)].all()
    i, j = sets["same method"]
    assert (codes[i][:, AXES.index("method")] == codes[j][:, AXES.index("method")]).all()
    assert set(map(tuple, zip(i, j, strict=True))) < set(map(tuple, zip(*sets["same task"], strict=True)))


def test_tau_over_all_pairs_is_kendalls(planted):
    bootstrap = flatness.Bootstrap(planted, 50)
    x, y = planted["none"].round(1).to_numpy(copy=True), planted["test_error"].to_numpy()
    got = flatness.tau(x, y, flatness.pairs(planted)["all"], bootstrap)
    assert got[0] == pytest.approx(curvature.kendall_tau(x, y), abs=1e-12)
    x[:5] = np.nan
    got = flatness.tau(x, y, flatness.pairs(planted)["all"], bootstrap)
    assert got[0] == pytest.approx(curvature.kendall_tau(x[5:], y[5:]), abs=1e-12)


def test_a_draw_counts_a_net_as_often_as_it_was_drawn(planted):
    bootstrap = flatness.Bootstrap(planted, 20, seed=1)
    x, y = planted["none"].to_numpy(), planted["test_error"].to_numpy()
    drawn = flatness.tau(x, y, flatness.pairs(planted)["all"], bootstrap)[1:]
    for d in range(20):
        times = bootstrap.weights[d][bootstrap.cluster].astype(int)
        assert drawn[d] == pytest.approx(curvature.kendall_tau(np.repeat(x, times), np.repeat(y, times)), abs=1e-12)


def test_relations_find_what_was_planted_and_nothing_else(planted):
    found = flatness.relate(planted, ["good", "bad", "none"], ["test_error"], draws=400).set_index(
        ["relation", "measure"])
    for relation in ("all", "same task", "same method", "one setting", "method"):
        assert found.loc[(relation, "good"), "tau"] == pytest.approx(1.0)
        assert found.loc[(relation, "bad"), "tau"] == pytest.approx(-1.0)
        assert found.loc[(relation, "good"), "p_holm"] < 0.05 and abs(found.loc[(relation, "none"), "tau"]) < 0.4
    row = found.loc[("same task", "none")]
    assert row["lower"] < 0 < row["upper"] and row["p_holm"] > 0.05


def test_a_confounded_measure_loses_its_correlation_within_methods(planted):
    """The optimizer as the common cause: it moves measure and target, which else have nothing to do with each other."""
    random = np.random.default_rng(3)
    cause = planted["method"].map({"SGD": 3.0, "Adam": 2.0, "SWA": 1.0, "SAM": 0.0})
    table = planted.assign(test_error=cause + 0.3 * random.normal(size=len(planted)),
                           mine=cause + 0.3 * random.normal(size=len(planted)))
    found = flatness.relate(table, ["mine"], ["test_error"], draws=100).set_index("relation")["tau"]
    assert found["all"] > 0.5 and found["method"] > 0.5 and abs(found["same method"]) < 0.15


def test_the_partial_correlation_takes_away_what_the_fit_explains(planted):
    random = np.random.default_rng(4)
    noise = [0.3 * random.normal(size=len(planted)) for _ in range(2)]
    table = planted.assign(test_error=planted["train_loss"] + noise[0], mine=planted["train_loss"] + noise[1])
    found = flatness.relate(table, ["mine"], ["test_error"], draws=50).set_index("relation")["tau"]
    assert found["same task"] > 0.5 and abs(found["same task, equal fit"]) < 0.25


def test_holm():
    assert flatness.holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    assert flatness.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_information_is_that_of_notebook_04(planted):
    one = planted[planted["seed"] == 0].reset_index(drop=True)
    one = one.assign(noisy=one["test_error"] + 30 * np.random.default_rng(1).normal(size=len(one)))
    hyper = np.stack([pd.factorize(one[a])[0] for a in AXES if one[a].nunique() > 1], axis=1)
    found = flatness.information(one, "test_error", ["noisy", "good"]).set_index("measure")["information"]
    assert found["noisy"] == pytest.approx(m_sharpness.information(one["noisy"], one["test_error"], hyper), rel=1e-10)
    assert found["good"] == pytest.approx(1.0) and found["(none)"] < 0.1 * found["good"]


def test_paired_difference_of_a_planted_effect(planted):
    table = planted.assign(effect=np.where(planted["method"] == "SAM", 10.0, 100.0))
    assert flatness.paired(table, "effect", "method", "SGD", "SAM")["measured"] == pytest.approx(90)
    found = flatness.paired(table, "effect", "method", "SGD", "SAM", log=True)
    assert found["measured"] == pytest.approx(1.0) and found["stderr"] == pytest.approx(0.0, abs=1e-12)
    assert found["n"] == 20


def test_each_claim_has_what_was_planted_in_every_seed(planted):
    random = np.random.default_rng(5)
    table = planted.assign(gap=planted["test_error"], train_error=0.0, **{
        name: random.lognormal(size=len(planted)) for name in flatness.MEASURES if name != "train_loss"})
    table["sharpness_m1"], table["ray_width"] = table["gap"], 1000 - table["test_error"]
    table.loc[table["method"] == "SGD", "lambda_max"] = 1e3 * table["lambda_max"][table["method"] == "SAM"].to_numpy()
    table.loc[table["label_noise"] > 0, "ray_width"] = 1000 + table["test_error"]
    found = {claim.id: claim for claim in flatness_statements.claims(table, "full")}
    assert {len(claim.samples) for claim in found.values()} == {3}
    assert found["swa-width"].samples == pytest.approx((1, 1, 1)) and found["flat-sam-lambda"].samples == pytest.approx((3, 3, 3))
    assert found["swa-width-noisy"].samples == pytest.approx((-1, -1, -1)) and found["swa-width-noisy"].below == "swa-width"
    assert max(map(abs, found["sam-sharpness-gap"].samples)) < 0.3 and found["sam-fig-3-right"].estimated.estimate > 0.7
    assert found["keskar-worse"].regime.fault == "" and "flat-wsam-lambda" not in found, "the pool has no WSAM"
    worse = table.assign(train_error=10.0)
    assert "10.0 %" in flatness_statements.claims(worse, "full")[0].regime.fault


def test_margins_of_a_net_written_out():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)).double()
    data = lab.load_data("digits", train_size=40, dtype=torch.float64)
    logits = net(data.train_x).detach()
    each = [z[y] - max(v for k, v in enumerate(z) if k != y) for z, y in zip(logits, data.train_y, strict=True)]
    found = flatness_pool.margins(net, data)
    assert found["margin"] == pytest.approx(float(torch.tensor(each).double().quantile(0.1)))
    norm = float(torch.linalg.matrix_norm(net[1].weight.detach(), 2))
    assert found["margin_normalized"] == pytest.approx(found["margin"] / norm)


def test_margins_fold_batchnorm_in(toy):
    cell = {"method": "SGD", "width": 6, "norm": True, "seed": 0, "label_noise": 0.0}
    net = flatness_pool.net_of(cell)(0)
    net[2].weight.data.mul_(3.0)
    net, data = flatness_pool.finished(cell, nn.utils.parameters_to_vector(net.parameters()).detach(), flatness.TOY)
    plain = models.mlp((64, 6, 10), seed=0).double()
    scale = net[2].weight / (net[2].running_var + net[2].eps).sqrt()
    with torch.no_grad():
        plain[1].weight.copy_(scale[:, None] * net[1].weight)
        plain[1].bias.copy_(scale * (net[1].bias - net[2].running_mean) + net[2].bias)
        plain[3].load_state_dict(net[4].state_dict())
    assert flatness_pool.margins(net, data) == pytest.approx(flatness_pool.margins(plain, data))


def test_the_width_of_a_ray_is_where_the_loss_has_risen(monkeypatch):
    net, data = models.mlp((64, 6, 10), seed=1).double(), lab.load_data("digits", train_size=60, dtype=torch.float64)
    w = nn.utils.parameters_to_vector(net.parameters()).detach()
    ray = flatness_pool.unit_direction(len(w), 3)
    found = flatness_pool._width(net, w, [ray], np.geomspace(0.05, 60, 200), data)

    def loss(t):
        nn.utils.vector_to_parameters((w + t * ray).clone(), net.parameters())
        return cross_entropy(net(data.train_x), data.train_y).item()

    assert loss(found) - loss(0.0) == pytest.approx(flatness_pool.RISE, rel=0.02)
    assert flatness_pool._width(net, w, [ray], np.array([1e-6, 1e-5]), data) == 1e-5


def test_the_gap_counts_wrong_labels_on_both_sides():
    """A net that knows the truth has no gap under the noise that it was trained with."""
    data = lab.with_label_noise(lab.load_data("digits", train_size=1000, dtype=torch.float64), 0.3)

    class Truth(nn.Module):
        def forward(self, x):
            part = data.test_y if len(x) == len(data.test_y) else truth
            return 20.0 * nn.functional.one_hot(part, 10).double()

    truth = lab.load_data("digits", train_size=1000).train_y
    assert flatness_pool.outcome(Truth(), data, 0.3)["gap"] == pytest.approx(0.0, abs=1e-9)


def test_every_method_and_measure_of_the_toy_pool(toy):
    assert len(toy) == 4 * 2 * 4 * 2 and set(toy["method"]) == set(flatness.TOY.methods)
    assert {*flatness.MEASURES, *flatness.TARGETS} <= set(toy.columns)
    assert np.isfinite(toy[[*flatness.MEASURES]].drop(columns="ratio_1_5").to_numpy()).all()
    assert set(flatness_published.COLUMNS) == set(toy.columns)
    assert set(flatness.QUICK.methods) < set(flatness.FULL.methods) == set(flatness_pool.METHODS)
    quick, full = (pd.DataFrame(flatness_pool.cells(s)) for s in (flatness.QUICK, flatness.FULL))
    assert len(quick.merge(full, on=[a for a in AXES if a != "seed"])) == 3 * len(quick), "each quick net is one of the pool's, on other seeds"
    assert set(quick["seed"]) == set(range(2000, 2020)) and set(full["seed"]) == {0, 1, 2}


def test_what_the_claims_want_is_what_the_pool_measures(toy):
    cell = flatness_pool.cells(flatness.TOY)[2]
    weights = flatness_pool.train([cell], flatness.TOY)[0]
    few = flatness_pool.row(cell, weights, flatness.TOY, whole=False)
    assert len(few) == len(AXES) + 5 + 5
    assert all(few[name] == pytest.approx(toy.iloc[2][name], rel=1e-9) for name in few if name not in AXES)


def test_each_seed_has_the_correlation_of_its_own_nets(planted):
    table = planted.assign(train_loss=0.0, gap=np.where(planted["seed"] == 1, -1, 1) * planted["good"])
    found = flatness.by_seed(table, ["good"])["gap", "same task", "good"]
    assert found.tolist() == pytest.approx([1, -1, 1])


def test_both_sizes_of_batch_have_their_best_rate_and_equal_trials(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    s, tried = Settings(train_size=150, steps=2), []
    monkeypatch.setattr(flatness_pool, "train", lambda pool, s: tried.extend(pool) or [None] * len(pool))
    monkeypatch.setattr(flatness_pool, "finished", lambda cell, w, s: (cell, w))

    def outcome(cell, data, noise):
        return {"test_error": abs(cell["lr_factor"] - cell["batch_size"] / 37.5) + cell["weight_decay"]}

    monkeypatch.setattr(flatness_pool, "outcome", outcome)
    nb = lab.start("18_flatness", device="cpu")
    for _ in range(2):  # the second time from the record
        cells = flatness_pool.at_best([7, 8], s, nb)
        assert [(c["batch_size"], c["lr_factor"], c["weight_decay"], c["seed"]) for c in cells] == [
            (30, 1.0, 0.0, 7), (30, 1.0, 0.0, 8), (150, 4.0, 0.0, 7), (150, 4.0, 0.0, 8)]
    assert len(tried) == 2 * 20 * 6 and {c["seed"] for c in tried} == set(range(100, 106))


def test_every_method_trains():
    s = Settings(seeds=1, train_size=40, steps=12, noises=(0.2,), norms=(False,), changed=(),
                 base=(("width", 4), ("lr_factor", 1.0), ("batch_size", 20), ("weight_decay", 1e-4)))
    weights = torch.stack(flatness_pool.train(flatness_pool.cells(s), s))
    assert weights.isfinite().all() and len(torch.unique(weights, dim=0)) == len(flatness_pool.METHODS)


def test_a_net_does_not_depend_on_what_is_trained_beside_it(toy):
    pool = flatness_pool.cells(flatness.TOY)
    together = flatness_pool.train(pool, flatness.TOY)
    for k in (0, 21, 40, 63):
        alone = flatness_pool.train([pool[k]], flatness.TOY)[0]
        assert torch.allclose(alone, together[k], rtol=0, atol=1e-12)
    rows = toy.iloc[[5, 40]]
    for (net, data), (_, row) in zip(flatness.nets(rows, flatness.TOY), rows.iterrows(), strict=True):
        assert flatness_pool.outcome(net, data, row["label_noise"])["test_loss"] == pytest.approx(row["test_loss"])


def test_a_sweep_resumes(tmp_path, monkeypatch, toy):
    calls, s = [], replace(flatness.TOY, methods=("SGD", "Filter grafting"), seeds=1, noises=(0.0,))
    original = flatness_pool.rows_of
    monkeypatch.setattr(flatness_pool, "rows_of", lambda part, s: calls.append(len(part)) or original(part, s))
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    nb = lab.start("18_flatness", profile="toy", device="cpu")
    rows, spent = flatness_pool.swept(s, Work(nb, "pool", described(s)))
    done = len(calls)
    assert done == len(flatness_pool.shards(s)) == 4 and spent > 0
    next(tmp_path.rglob("*.json")).unlink()  # killed while it was at this one
    again, _ = flatness_pool.swept(s, Work(nb, "pool", described(s)))
    assert len(calls) == done + 1 and [{a: row[a] for a in AXES} for row in rows] == flatness_pool.cells(s)
    pd.testing.assert_frame_equal(pd.DataFrame(again), pd.DataFrame(rows))
    both = toy.merge(pd.DataFrame(rows), on=list(AXES), suffixes=("", "_alone"))
    assert len(both) == len(rows)
    np.testing.assert_allclose(both["trace"], both["trace_alone"], rtol=1e-8)


def test_what_is_published_is_what_was_recorded(tmp_path, monkeypatch, toy):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    nb = lab.start("18_flatness", profile="toy", device="cpu")
    table = flatness_published.publish(toy.to_dict("records"), 90.0, flatness.TOY, nb)
    whole = flatness_published.published("toy")
    assert len(table) == len(whole) == len(toy), "nets that collapsed are there too"
    np.testing.assert_allclose(whole["trace"], toy["trace"], rtol=1e-5)
    file = paths.records(nb.name, "toy") / "pool.csv"
    text = file.with_name("card.md").read_text()
    assert "1.5 CPU minutes" in text and all(f"`{name}`" in text for name in toy.columns)
    np.testing.assert_allclose(whole[[*flatness.TARGETS]], toy[[*flatness.TARGETS]], rtol=1e-5)
    file.write_text(file.read_text().replace("SGD", "SGDX", 1))
    with pytest.raises(ValueError, match="restore both"):
        flatness_published.published("toy")
    with pytest.raises(FileNotFoundError, match="profile full"):
        flatness_published.published("full")


def test_the_panel_draws_any_choice(toy):
    pytest.importorskip("ipywidgets")
    box = flatness_published.panel(toy)
    dropdowns = box.children[0].children
    assert [len(d.options) for d in dropdowns] == [len(flatness.MEASURES), 2, len(AXES), 1 + 8]
    pictures = [box.children[1].value]
    dropdowns[0].value = "ray_width"
    pictures.append(box.children[1].value)
    dropdowns[3].index = 2
    assert len({*pictures, box.children[1].value}) == 3 and all(bytes(picture).startswith(b"\x89PNG") for picture in pictures)
