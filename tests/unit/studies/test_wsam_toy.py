import pytest
import torch

from studies import wsam_toy as toy


def test_minima_are_those_the_paper_prints():
    marks = toy.landmarks()
    sharp, flat = marks["sharp minimum"], marks["flat minimum"]
    assert sharp["point"].tolist() == pytest.approx([-16.8, 12.8], abs=0.05) and sharp["loss"] == pytest.approx(0.28, abs=0.005)
    assert flat["point"].tolist() == pytest.approx([19.8, 29.9], abs=0.05) and flat["loss"] == pytest.approx(0.36, abs=0.005)
    assert all(mark["gradient"] < 1e-14 for mark in marks.values())
    assert min(sharp["eigenvalues"]) > 0 and min(flat["eigenvalues"]) > 0 and marks["saddle"]["eigenvalues"][0] < 0
    assert sharp["eigenvalues"][1] > 5 * flat["eigenvalues"][1]


def test_only_the_coupled_update_with_momentum_reaches_the_flat_minimum():
    ends = {
        (gamma, decouple, momentum): toy.where_it_ends(toy.trajectory(gamma, decouple=decouple, momentum=momentum)[:, -1])[0]
        for gamma, decouple, momentum in [(0.5, False, 0.9), (0.6, False, 0.9), (0.95, False, 0.9), (0.95, True, 0.9), (0.95, False, 0.0)]
    }
    assert ends == {
        (0.5, False, 0.9): "sharp minimum", (0.6, False, 0.9): "sharp minimum", (0.95, False, 0.9): "flat minimum",
        (0.95, True, 0.9): "sharp minimum", (0.95, False, 0.0): "saddle",
    }


def test_the_names_of_the_ends_do_not_hang_on_the_last_bit():
    """A start moved by some rounding errors stands for another processor; a smaller radius is the negative control."""
    rhos = torch.linspace(2.4, 2.9, 6, dtype=torch.float64)[:, None]  # where the orbits are widest
    near, wide = set(), set()
    for seed in range(20):
        moved = torch.randn(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3e-14
        ends = toy.trajectory(0.95, decouple=True, rho=rhos, start=torch.tensor(toy.START, dtype=torch.float64) * (1 + moved))[:, -1]
        near.add(tuple(toy.where_it_ends(ends, radius=1.0)))
        wide.add(tuple(toy.where_it_ends(ends)))
    assert len(wide) == 1 < len(near)


def test_rows_are_paths_of_their_own():
    gammas = torch.tensor([[0.5], [0.95]], dtype=torch.float64)
    both = toy.trajectory(gammas, decouple=False)
    for row, gamma in zip(both, (0.5, 0.95), strict=True):
        assert torch.allclose(row, toy.trajectory(gamma, decouple=False)[0], atol=1e-9)
    assert both.shape == (2, toy.STEPS + 1, 2) and both[:, 0].tolist() == [list(toy.START)] * 2


def test_a_path_that_leaves_the_domain_stays_at_its_last_point_there():
    path = toy.trajectory(0.0, decouple=False, lr=5e4, steps=20)
    assert path.isfinite().all() and (path[..., 1] > 0).all()


def test_the_panel_has_a_control_for_each_thing_to_move():
    pytest.importorskip("ipywidgets")
    column, picture = toy.panel().children
    controls, before = column.children, picture.value
    assert [c.description for c in controls] == ["start μ", "start σ", "ρ", "γ", "momentum", "decoupled"]
    controls[3].value = 0.2
    assert picture.value not in (b"", before)
