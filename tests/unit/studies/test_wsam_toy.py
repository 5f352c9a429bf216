import pytest
import torch

from studies import wsam_toy as toy


def test_minima_are_those_the_paper_prints():
    marks = toy.landmarks()
    for name, point, loss in (("sharp minimum", [-16.8, 12.8], 0.28), ("flat minimum", [19.8, 29.9], 0.36)):
        assert marks[name]["point"].tolist() == pytest.approx(point, abs=0.05)
        assert marks[name]["loss"] == pytest.approx(loss, abs=0.005) and min(marks[name]["eigenvalues"]) > 0
    assert all(mark["gradient"] < 1e-14 for mark in marks.values()) and marks["saddle"]["eigenvalues"][0] < 0
    assert marks["sharp minimum"]["eigenvalues"][1] > 5 * marks["flat minimum"]["eigenvalues"][1]


@pytest.mark.parametrize(("gamma", "decouple", "momentum", "end"), [
    (0.5, False, 0.9, "sharp minimum"), (0.6, False, 0.9, "sharp minimum"), (0.95, False, 0.9, "flat minimum"),
    (0.95, True, 0.9, "sharp minimum"), (0.95, False, 0.0, "saddle")])
def test_only_the_coupled_update_with_momentum_reaches_the_flat_minimum(gamma, decouple, momentum, end):
    path = toy.trajectory(gamma, decouple=decouple, momentum=momentum)
    assert path.shape == (1, toy.STEPS + 1, 2) and toy.where_it_ends(path[:, -1]) == [end]


def test_the_names_of_the_ends_do_not_hang_on_the_last_bit():
    """A start moved by some rounding errors stands for another processor; a smaller radius is the negative control."""
    rhos = torch.linspace(2.4, 2.9, 6, dtype=torch.float64)[:, None]  # where the orbits are widest
    near, wide, start = set(), set(), torch.tensor(toy.START, dtype=torch.float64)
    for seed in range(20):
        moved = torch.randn(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3e-14
        ends = toy.trajectory(0.95, decouple=True, rho=rhos, start=start * (1 + moved))[:, -1]
        near.add(tuple(toy.where_it_ends(ends, radius=1.0)))
        wide.add(tuple(toy.where_it_ends(ends)))
    assert len(wide) == 1 < len(near)


def test_a_path_that_leaves_the_domain_stays_at_its_last_point_there():
    path = toy.trajectory(0.0, decouple=False, lr=5e4, steps=20)
    assert path.isfinite().all() and (path[..., 1] > 0).all()
