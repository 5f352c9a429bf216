import pytest
import torch

from sharpnb import lab
from studies import lookahead as study


def test_variance_limits():
    assert study.variance(0.5, 1.0) == pytest.approx(1 / 3)  # gamma² / (1 - 1/4)
    assert study.variance(0.5, 1.0, 4.0, 1.0, 7) == pytest.approx(4 / 3)  # alpha = 1 is SGD, whatever k
    assert study.variance(1e-4, 1.0, 1.0, 0.5, 5) / study.variance(1e-4, 1.0) == pytest.approx(0.5, abs=1e-3)  # small steps: alpha
    assert study.variance(1.0, 1.0, 1.0, 0.5, 5) == pytest.approx(1 / 3)  # independent end points: alpha / (2 - alpha)


def test_simulated_variance_is_within_its_error_and_a_wrong_formula_is_not():
    sample = study.simulated(0.5, 1.0, 0.5, 5, runs=20_000, cycles=40, seed=1).var().item()
    error = sample * (2 / 20_000) ** 0.5
    assert abs(sample - study.variance(0.5, 1.0, 1.0, 0.5, 5)) < 4 * error
    assert abs(sample - study.variance(0.5, 1.0, 1.0, 0.5, 1)) > 20 * error


def test_rates_of_momentum():
    # Under-damped at every curvature, the rate is sqrt(beta); with beta = 0 it is (kappa - 1) / (kappa + 1).
    assert study.momentum_rate(10.0, 0.81) == pytest.approx(0.9, abs=1e-6)
    assert study.momentum_rate(10.0, 0.0) == pytest.approx(9 / 11, abs=0.02)
    assert study.momentum_rate(10.0, 0.81, 1.0, 4) == pytest.approx(0.9, abs=1e-6)  # alpha = 1: k changes nothing
    assert study.momentum_rate(100.0, 0.99, 0.5, 20) < 0.99**0.5 < study.momentum_rate(1e5, 0.99, 0.5, 20)


def test_the_frontier_contains_sgd():
    for row in study.frontier([1.01, 1.2, 3.0]):
        assert row["lookahead"] >= row["sgd"] > 0
    tight, loose = study.frontier([1.001, 1.5])
    assert tight["sgd"] < loose["sgd"] and tight["lookahead"] > 1.2 * tight["sgd"]


def test_losses_of_rows_are_those_of_the_nets():
    data = lab.load_data("digits", train_size=40, dtype=torch.float64)
    nets = [study.small_net(seed).double() for seed in range(3)]
    rows = torch.stack([torch.nn.utils.parameters_to_vector(net.parameters()).detach() for net in nets])
    expected = [torch.nn.functional.cross_entropy(net(data.train_x), data.train_y).item() for net in nets]
    assert study.losses(rows, data.train).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_full_profile_runs_as_a_toy(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "sharpnb").mkdir()
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    nb = lab.start("16_lookahead", profile="toy", device="cpu")
    rows = study.full_rows(nb)
    assert {(row["rule"], row["seed"]) for row in rows} == {(rule, seed) for rule in ("sgd", "lookahead") for seed in range(2)}
    assert study.full_rows(nb) == rows  # a finished record is not run again
