import numpy as np
import pytest
import torch

from sharpnb import lab
from studies import swa as study


def test_schedules_are_the_authors():
    assert [study.sgd_schedule(t) for t in (0.0, 0.5, 0.7, 0.9, 1.0)] == pytest.approx([1, 1, 0.505, 0.01, 0.01])
    eta = study.swa_schedule(0.5, 0.75)
    assert [eta(t) for t in (0.0, 0.375, 0.525, 0.675, 0.75, 1.0)] == pytest.approx([1, 1, 0.75, 0.5, 0.5, 0.5])
    teeth = study.cyclic_schedule(1.0, 0.1, 0.5, 100, 10)
    values = np.array([teeth(step / 100) for step in range(50, 100)]).reshape(5, 10)
    np.testing.assert_allclose(values, np.tile(1 - 0.9 * np.arange(1, 11) / 10, (5, 1)), rtol=1e-9)


def test_the_averages_are_those_of_the_kept_iterates(monkeypatch):
    monkeypatch.setattr(study, "SEEDS", 2)
    data = lab.load_data("digits", train_size=100, dtype=torch.float64)
    sgd, swa = study.trained(study.Regime(6, 80), data, (0.5,), False)
    assert len(sgd.weights) == len(swa.averaged) == 2
    rows = study.rows_of(swa, ["SWA"])
    assert {row["step"] for row in rows} == {20, 40, 60, 80, 100, 120} and {row["seed"] for row in rows} == {0, 1}
    # Collected after the steps 61, 81 and 101 (an epoch of 20 from 60 on); kept at 60, 80 and 90: the last is none of them.
    assert not torch.allclose(swa.averaged, swa.weights)
    assert study.column(rows, "average_train_loss", step=40) == pytest.approx(study.column(rows, "train_loss", step=40))


def test_lines_and_rays_start_at_their_point():
    data = lab.load_data("digits", train_size=60, dtype=torch.float64)
    a, b = (torch.nn.utils.parameters_to_vector(study.MAIN.net(seed).parameters()).detach().double() for seed in range(2))
    values = study.along(data, a, b, np.linspace(0, 1, 3))
    rays = study.rays(data, {"a": a[None], "b": b[None]}, [0.0, 1.0], directions=2)
    assert rays[0]["train_loss"] == pytest.approx(values["train_loss"][0], rel=1e-12)
    assert rays[2]["test_loss"] == pytest.approx(values["test_loss"][2], rel=1e-12)
    assert rays[1]["train_loss"] != pytest.approx(rays[0]["train_loss"], rel=1e-3)


def test_batchnorm_rows_tell_the_three_apart():
    rows = study.with_batchnorm(lab.load_data("digits", train_size=100, dtype=torch.float64), seeds=1, steps=80)
    assert set(rows[0]) == {"seed", "last iterate", "average, old statistics", "average, own statistics"}
    assert 0 < rows[0]["average, own statistics"] < 90


def test_the_full_profile_runs_as_a_toy(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "sharpnb").mkdir()
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    rows = study.full_rows(lab.start("14_swa_landscapes", profile="toy", device="cpu"))
    assert [row["method"] for row in rows] == ["sgd", "swa"] * 2 and "average_test_error" in rows[1]


def test_the_window_of_a_plane_is_square_and_its_lowest_level_no_finer_than_asked():
    data = lab.load_data("digits", train_size=60, dtype=torch.float64)
    points = [torch.nn.utils.parameters_to_vector(study.MAIN.net(seed).parameters()).detach().double() for seed in range(2)]
    points.append(points[0] + 0.3 * (points[1] - points[0]) + 1e-3 * torch.arange(len(points[0])).double().cos())  # nearly on their line
    found = study.plane_surface(data, points, size=5)
    assert np.ptp(found.x) == pytest.approx(np.ptp(found.y)) and np.ptp(found.x) > 2 * (points[1] - points[0]).norm()
    for finest, gap in ((0.0, None), (3.0, 3.0)):
        levels = found.plot("test_error", finest=finest, colour_bar=False).collections[0].levels
        assert levels[1] - levels[0] == pytest.approx(gap or 0.02 * (levels[-1] - levels[0]))
