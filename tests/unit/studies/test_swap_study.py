from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from sharpnb import lab
from sharpnb.averaging import swap, update_bn
from sharpnb.lab.training import evaluate
from sharpnb.landscape import Plane, Surface
from studies import swap as study

SHORT = replace(study.QUICK, width=6, large=40, small=20, epochs=6, late_epochs=2, tau=0.5)


@pytest.fixture(scope="module")
def data():
    return lab.load_data("digits", train_size=80, dtype=torch.float64)


@pytest.fixture
def two_seeds(monkeypatch):
    monkeypatch.setattr(study, "SEEDS", 2)


def flat(net):
    return parameters_to_vector(net.parameters()).detach()


def test_schedules():
    assert [study.rising_and_falling(t) for t in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert study.QUICK.workers == 8 and study.QUICK.large_lr == pytest.approx(0.8)


def test_the_batched_phases_are_swap(data, two_seeds):
    large = study.baseline(data, SHORT.large, SHORT.large_lr, SHORT)
    epochs = study.reached(large, SHORT.tau, SHORT)
    assert min(epochs) >= 1 and max(epochs) <= SHORT.epochs
    start = study.starts(large, epochs, SHORT)
    late = study.late(data, start, workers=SHORT.workers, epochs=SHORT.late_epochs, s=SHORT)
    for seed in range(2):
        model = SHORT.model(seed).double()
        done = swap(model, study.LargeBatch(data, seed, SHORT), study.Worker(data, 100 * seed, SHORT),
                    study.statistics(data), tau=SHORT.tau, max_epochs=SHORT.epochs, workers=SHORT.workers)
        assert len(done.accuracies) == epochs[seed]
        torch.testing.assert_close(done.start, start[seed], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(done.workers, late.weights[2 * seed : 2 * seed + 2], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(flat(model), study.average(late.weights, 2)[seed], rtol=1e-9, atol=1e-12)
    assert (late.weights[0] - late.weights[1]).norm() > 1e-3


def test_phase_one_ends_at_the_first_epoch_that_is_good_enough(two_seeds):
    errors = [[90, 90], [40, 60], [50, 30], [10, 20], [10, 20], [10, 20]]
    rows = [{"train_error": float(e)} for pair in errors for e in pair]
    large = study.Many([], torch.empty(0), rows=rows, kept={s: torch.tensor([[s], [-s]]) for s in range(0, 13, 2)})
    assert study.reached(large, 0.5, SHORT) == [2, 3] and study.reached(large, 1.0, SHORT) == [6, 6]
    assert study.starts(large, [2, 3], SHORT).tolist() == [[4], [-6]]


def test_measured_is_the_net_with_fresh_statistics(data):
    nets = [SHORT.model(seed).double() for seed in range(2)]
    found = study.measured(data, torch.stack([flat(net) for net in nets]), SHORT)
    for k, net in enumerate(nets):
        update_bn(net, study.statistics(data))
        for part in ("train", "test"):
            loss, error = evaluate(net, getattr(data, part))
            assert found[f"{part}_loss"][k] == pytest.approx(loss, rel=1e-10)
            assert found[f"{part}_error"][k] == pytest.approx(error, abs=1e-9)


def test_the_sequential_average_is_that_of_the_ends_of_its_cycles(data, two_seeds):
    start = torch.stack([flat(SHORT.model(seed).double()) for seed in range(2)])
    got = study.sequential(data, start, SHORT)
    cycle = SHORT.late_epochs * 4

    def teeth(done):
        return 1 - (round(done * 2 * cycle) % cycle) / cycle

    many = study.late(data, start, workers=1, epochs=4, schedule=teeth, s=SHORT)
    torch.testing.assert_close(got, (many.kept[cycle] + many.weights) / 2, rtol=1e-10, atol=1e-12)


def test_the_critical_path_in_closed_form(data):
    assert study.critical_path(data, large=3, s=SHORT) == 6
    assert study.critical_path(data, large=3, small=2, averaged=True, s=SHORT) == pytest.approx(6 + 8 + 4 / 3)


def test_cosines_know_the_way_downhill(data):
    start = flat(SHORT.model(0).double())
    rows = study.Nets([0], data, SHORT.model, batch_size=20, augment=SHORT.augment())
    downhill = -sum(rows.gradient(rows.draw())(start[None]) for _ in range(4))[0]
    for sign in (1, -1):
        found = study.cosines(data, start[None], start + sign * downhill, 0, SHORT)
        assert found["mean"][0] == pytest.approx(sign, abs=1e-9) and 0.2 < sign * found["batch"][0] < 1


def test_geometry_of_known_shapes():
    x = np.linspace(-1, 1, 21)
    radius = np.hypot(*np.meshgrid(x, x))
    plane = Plane(torch.zeros(3).double(), torch.eye(3).double()[0], torch.eye(3).double()[1], (-1, 1, -1, 1))
    disc = Surface(plane, x, x, {"disc": radius, "ring": np.abs(radius - 0.6)})
    assert study.convexity(disc, "disc", 0.7) == 1.0
    assert study.convexity(disc, "ring", 0.25) < 0.9
    with pytest.raises(ValueError, match="too few"):
        study.convexity(disc, "disc", 0.0)
    assert study.off_centre(disc, "disc", [torch.tensor([0.3, 0.4, 5.0])]) == pytest.approx([0.5])
    assert study.flat_share(np.array([[1.0, 2.0], [2.1, 9.0]])) == 0.5


def test_the_plane_holds_its_points(data):
    points = [flat(SHORT.model(seed).double()) for seed in range(3)]
    found = study.plane_surface(data, points, size=3, s=SHORT)
    column = 1
    expected = study.measured(data, torch.stack([found.plane.at(found.x[column], found.y[0])]), SHORT)
    assert found.values["test_loss"][0, column] == pytest.approx(expected["test_loss"][0], rel=1e-9)


def test_the_full_profile_runs_as_a_toy(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "sharpnb").mkdir()
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    nb = lab.start("15_swap", profile="toy", device="cpu")
    rows = study.full_rows(nb)
    assert [row["seed"] for row in rows] == [0, 1] and rows[0]["swap_updates"] > rows[0]["large_updates"]
    assert study.full_rows(nb) == rows  # a finished record is not run again
