from dataclasses import replace

import pytest
import torch

from sharpnb import lab
from sharpnb.averaging import filter_norms
from studies import filter_grafting as study

SMALL = replace(study.QUICK, epochs=2, train_size=60, seeds=1)


@pytest.fixture(scope="module")
def data():
    return lab.load_data("digits", train_size=60, dtype=torch.float64)


def flat(net):
    return torch.nn.utils.parameters_to_vector(net.parameters()).detach()


def test_learning_rates_are_the_authors():
    assert [study.initial_lr(1.0, 2, j) for j in range(2)] == pytest.approx([0.5, 1.0])
    assert [study.initial_lr(1.0, 4, j) for j in range(4)] == pytest.approx([0.146, 0.5, 0.854, 1.0], abs=1e-3)


def test_the_methods_differ_as_they_should(data):
    single = study.trained(SMALL, data, study.METHODS["baseline"], 0)
    pair = study.trained(SMALL, data, study.METHODS["external"], 0)
    ring = study.trained(SMALL, data, study.METHODS["3 nets"], 0)
    assert (flat(single[0]) - flat(single[1])).norm() > 1
    torch.testing.assert_close(flat(pair[0]), flat(pair[1]), rtol=1e-10, atol=1e-12)  # two grafted networks are one
    assert (flat(ring[0]) - flat(ring[1])).abs().max() > 1e-3


def test_a_single_network_is_its_own_ensemble(data):
    net = study.QUICK.net(0)
    assert study.ensemble_error([net, net], data) == study.row(net.eval(), data)["test_error"]


def test_weak_filters_are_counted_against_their_layer(data):
    net = study.QUICK.net(0)
    before = study.row(net, data)["weak"]
    with torch.no_grad():
        net[1].weight[3] *= 1e-3
    after = study.row(net, data)
    assert after["weak"] == before + 1 and after["smallest"] < 1e-2
    assert study.threshold(net) == pytest.approx(0.5 * torch.cat(list(filter_norms(net).values())).median().item())


def test_the_full_profile_runs_as_a_toy(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "sharpnb").mkdir()
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    nb = lab.start("17_filter_grafting", profile="toy", device="cpu")
    rows, nets = study.rows_of(replace(study.TOY, epochs=1, train_size=60), nb)
    assert [row["method"] for row in rows] == list(study.TOY.methods) * 2 and len(nets["4 nets"]) == 4
