
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.nn.utils import parameters_to_vector

from sharpnb import curvature, lab, paths
from sharpnb.lab import models
from studies import flatness, flatness_pool, flatness_published, flatness_statements, m_sharpness
from studies.flatness import TOY
from studies.flatness_pool import AXES, Settings


@pytest.fixture(scope="module")
def toy():
    """Rows of the toy pool, which runs the full profile's code."""
    return pd.DataFrame(flatness_pool.rows_of(flatness_pool.cells(TOY), TOY))


@pytest.fixture
def planted():
    """A table whose target is known: it grows with `good`, falls with `bad`, knows nothing of `none`."""
    table = pd.DataFrame(flatness_pool.cells(Settings(methods=("SGD", "SAM", "SWA", "Adam"), seeds=3)))
    random = np.random.default_rng(0)
    table["test_error"] = random.permutation(len(table)).astype(float)
    table["train_loss"] = random.normal(size=len(table))
    return table.assign(good=table["test_error"] ** 3, bad=-table["test_error"], none=random.normal(size=len(table)))


def test_tau_is_kendalls_and_a_draw_counts_a_net_as_often_as_it_was_drawn(planted):
    bootstrap, over = flatness.Bootstrap(planted, 20, seed=1), flatness.pairs(planted)["all"]
    x, y = planted["none"].round(1).to_numpy(copy=True), planted["test_error"].to_numpy()
    whole, *drawn = flatness.tau(x, y, over, bootstrap)
    assert whole == pytest.approx(curvature.kendall_tau(x, y), abs=1e-12)
    for value, weights in zip(drawn, bootstrap.weights, strict=True):
        times = weights[bootstrap.cluster].astype(int)
        assert value == pytest.approx(curvature.kendall_tau(np.repeat(x, times), np.repeat(y, times)), abs=1e-12)
    x[:5] = np.nan
    assert flatness.tau(x, y, over, bootstrap)[0] == pytest.approx(curvature.kendall_tau(x[5:], y[5:]), abs=1e-12)


def test_relations_find_what_was_planted_and_nothing_else(planted):
    found = flatness.relate(planted, ["good", "bad", "none"], ["test_error"], draws=400).set_index(
        ["relation", "measure"])
    for relation in ("all", "same task", "same method", "one setting", "method"):
        assert found.loc[(relation, "good"), "tau"] == pytest.approx(1.0)
        assert found.loc[(relation, "bad"), "tau"] == pytest.approx(-1.0)
        assert found.loc[(relation, "good"), "p_holm"] < 0.05 and abs(found.loc[(relation, "none"), "tau"]) < 0.4
    row = found.loc[("same task", "none")]
    assert row["lower"] < 0 < row["upper"] and row["p_holm"] > 0.05
    assert flatness.holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    by_seed = flatness.by_seed(planted.assign(gap=np.where(planted["seed"] == 1, -1, 1) * planted["good"]), ["good"])
    assert by_seed["gap", "same task", "good"].tolist() == pytest.approx([1, -1, 1])


def test_information_is_that_of_notebook_04(planted):
    one = planted[planted["seed"] == 0].reset_index(drop=True)
    one = one.assign(noisy=one["test_error"] + 30 * np.random.default_rng(1).normal(size=len(one)))
    hyper = np.stack([pd.factorize(one[a])[0] for a in AXES if one[a].nunique() > 1], axis=1)
    found = flatness.information(one, "test_error", ["noisy", "good"]).set_index("measure")["information"]
    assert found["noisy"] == pytest.approx(m_sharpness.information(one["noisy"], one["test_error"], hyper), rel=1e-10)
    assert found["good"] == pytest.approx(1.0) and found["(none)"] < 0.1 * found["good"]


def test_each_claim_has_what_was_planted_in_every_seed(planted):
    random = np.random.default_rng(5)
    table = planted.assign(gap=planted["test_error"], train_error=0.0, **{
        name: random.lognormal(size=len(planted)) for name in flatness.MEASURES if name != "train_loss"})
    table["sharpness_m1"], table["ray_width"] = table["gap"], 1000 - table["test_error"]
    table.loc[table["method"] == "SGD", "lambda_max"] = 1e3 * table["lambda_max"][table["method"] == "SAM"].to_numpy()
    table.loc[table["label_noise"] > 0, "ray_width"] = 1000 + table["test_error"]
    found = {claim.id: claim for claim in flatness_statements.claims(table, "full")}
    assert {len(claim.samples) for claim in found.values()} == {3}
    for name, value in {"swa-width": 1, "flat-sam-lambda": 3, "swa-width-noisy": -1}.items():
        assert found[name].samples == pytest.approx([value] * 3)
    assert found["swa-width-noisy"].below == "swa-width" and "flat-wsam-lambda" not in found, "the pool has no WSAM"
    assert max(map(abs, found["sam-sharpness-gap"].samples)) < 0.3
    assert found["sam-fig-3-right"].estimated.estimate > 0.7 and found["keskar-worse"].regime.fault == ""
    assert "10.0 %" in flatness_statements.claims(table.assign(train_error=10.0), "full")[0].regime.fault
    before = found["keskar-worse"].samples
    table.loc[(table["batch_size"] == 150) & (table["seed"] == 1), "test_error"] = 90.0  # a net that collapsed counts
    after = {claim.id: claim for claim in flatness_statements.claims(table, "full")}["keskar-worse"].samples
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]


def test_margins_of_a_net_written_out_and_with_batchnorm_folded_in():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)).double()
    data = lab.load_data("digits", train_size=40, dtype=torch.float64)
    logits = net(data.train_x).detach()
    each = [z[y] - max(v for k, v in enumerate(z) if k != y) for z, y in zip(logits, data.train_y, strict=True)]
    found = flatness_pool.margins(net, data)
    assert found["margin"] == pytest.approx(float(torch.tensor(each).double().quantile(0.1)))
    norm = float(torch.linalg.matrix_norm(net[1].weight.detach(), 2))
    assert found["margin_normalized"] == pytest.approx(found["margin"] / norm)
    cell = {"method": "SGD", "width": 6, "norm": True, "seed": 0, "label_noise": 0.0}
    net = flatness_pool.net_of(cell)(0)
    net[2].weight.data.mul_(3.0)
    net, data = flatness_pool.finished(cell, parameters_to_vector(net.parameters()).detach(), TOY)
    plain = models.mlp((64, 6, 10), seed=0).double()
    scale = net[2].weight / (net[2].running_var + net[2].eps).sqrt()
    with torch.no_grad():
        plain[1].weight.copy_(scale[:, None] * net[1].weight)
        plain[1].bias.copy_(scale * (net[1].bias - net[2].running_mean) + net[2].bias)
        plain[3].load_state_dict(net[4].state_dict())
    assert flatness_pool.margins(net, data) == pytest.approx(flatness_pool.margins(plain, data))


def test_the_gap_counts_wrong_labels_on_both_sides():
    """A net that knows the truth has no gap under the noise that it was trained with."""
    clean = lab.load_data("digits", train_size=1000, dtype=torch.float64)

    class Truth(nn.Module):
        def forward(self, x):
            return 20.0 * one_hot(clean.test_y if len(x) == len(clean.test_y) else clean.train_y, 10).double()

    assert flatness_pool.outcome(Truth(), lab.with_label_noise(clean, 0.3), 0.3)["gap"] == pytest.approx(0, abs=1e-9)


def test_every_method_and_measure_of_the_toy_pool(toy):
    assert len(toy) == 4 * 2 * 4 * 2 and set(toy["method"]) == set(TOY.methods)
    assert np.isfinite(toy[[*flatness.MEASURES, *flatness.TARGETS]].drop(columns="ratio_1_5").to_numpy()).all()
    assert set(flatness_published.COLUMNS) == set(toy.columns)
    quick, full = (pd.DataFrame(flatness_pool.cells(s)) for s in (flatness.QUICK, flatness.FULL))
    assert len(quick.merge(full, on=[a for a in AXES if a != "seed"])) == 3 * len(quick), "of the pool, on other seeds"
    assert set(quick["seed"]) == set(range(2000, 2020)) and set(full["seed"]) == {0, 1, 2}
    s = Settings(seeds=1, train_size=40, steps=12, noises=(0.2,), norms=(False,), changed=(),
                 base=(("width", 4), ("lr_factor", 1.0), ("batch_size", 20), ("weight_decay", 1e-4)))
    weights = torch.stack(flatness_pool.train(flatness_pool.cells(s), s))
    assert weights.isfinite().all() and len(torch.unique(weights, dim=0)) == len(flatness_pool.METHODS)


def test_what_is_published_is_what_was_recorded(project, toy):
    nb = lab.start("18_flatness", profile="toy", device="cpu")
    table = flatness_published.publish(toy.to_dict("records"), 90.0, TOY, nb)
    whole = flatness_published.published("toy")
    assert len(table) == len(whole) == len(toy), "nets that collapsed are there too"
    columns = ["trace", *flatness.TARGETS]
    np.testing.assert_allclose(whole[columns], toy[columns], rtol=1e-5)
    file = paths.records(nb.name, "toy") / "pool.csv"
    text = file.with_name("card.md").read_text()
    assert "1.5 CPU minutes" in text and all(f"`{name}`" in text for name in toy.columns)
    file.write_text(file.read_text().replace("SGD", "SGDX", 1))
    with pytest.raises(ValueError, match="restore both"):
        flatness_published.published("toy")
    with pytest.raises(FileNotFoundError, match="profile full"):
        flatness_published.published("full")
