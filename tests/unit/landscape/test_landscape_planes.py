"""Directions and planes: norms to the last digit, coordinates, projections, and what makes no plane."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sharpnb.landscape import Plane, filter_normalized_direction, unit_direction

CLOSE = torch.testing.assert_close


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 3, 2), nn.Flatten(), nn.Linear(12, 5)
        return nn.Sequential(*layers).double()


def tensors(model: nn.Module, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    parts = vector.split([p.numel() for p in model.parameters()])
    return {name: part.view_as(p) for (name, p), part in zip(model.named_parameters(), parts, strict=True)}


def norms(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Of filters: a transposed convolution has its output channels second."""
    return (tensor.transpose(0, 1) if name == "2.weight" else tensor).flatten(1).norm(dim=1)


def test_every_filter_is_as_long_as_the_models():
    model = net()
    with torch.no_grad():
        model[0].weight[2] = 0.0  # a dead filter
    direction = tensors(model, filter_normalized_direction(model))
    for name, p in model.named_parameters():
        if p.dim() < 2:
            assert (direction[name] == 0).all()
        else:
            CLOSE(norms(name, direction[name]), norms(name, p.detach()), rtol=1e-13, atol=0)
    assert (direction["0.weight"][2] == 0).all()
    layer = tensors(model, filter_normalized_direction(model, normalize="layer"))["4.weight"]
    CLOSE(layer.norm(), model[4].weight.detach().norm())
    assert (norms("", layer) / norms("", model[4].weight) - 1).abs().max() > 0.05
    copied = tensors(model, filter_normalized_direction(model, vectors="copy"))
    assert torch.equal(copied["0.bias"], model[0].bias.detach())
    with pytest.raises(ValueError, match=r"normalize = 'weight'"):
        filter_normalized_direction(model, normalize="weight")


def test_directions_are_symmetric_gaussians_with_a_seed_of_their_own():
    model, state = net(), torch.get_rng_state()
    plain = [filter_normalized_direction(model, s, normalize="none") for s in (*range(100), 0)]
    assert torch.equal(plain[0], plain[-1]) and not torch.equal(plain[0], plain[1])
    assert torch.equal(torch.get_rng_state(), state)
    many = torch.cat(plain)
    many = many[many != 0]
    assert abs(many.mean()) < 4 / len(many) ** 0.5 and abs(many.std() - 1) < 0.03  # U[0, 1] would fail
    d = torch.stack([unit_direction(50, seed) for seed in range(200)])
    CLOSE(d.norm(dim=1), torch.ones(200, dtype=torch.float64))
    assert d.mean(0).norm() < 3 * 200**-0.5  # uniform on the sphere: the mean of 200 has norm about 1/sqrt(200)


def test_a_plane_through_three_points():
    w = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 100  # far from the origin
    plane = Plane.through(*w)
    CLOSE(torch.stack([plane.u.norm(), plane.v.norm(), 1 + plane.u @ plane.v]), torch.ones(3).double(), rtol=0,
          atol=1e-14)
    for (x, y), point in zip(plane.points.values(), w, strict=True):
        CLOSE(plane.at(x, y), point, rtol=1e-14, atol=1e-12)
    (x1, y1), (x2, y2), (x3, y3) = plane.points.values()
    assert (x1, y1, y2) == (0, 0, 0) and x2 == pytest.approx((w[1] - w[0]).norm().item()) and y3 > 0
    assert plane.window[0] == pytest.approx(min(x1, x3) - 0.2 * (max(x2, x3) - min(x1, x3)))
    found = plane.project(w)
    CLOSE(torch.stack(found[:2], 1), torch.tensor([*plane.points.values()], dtype=torch.float64), rtol=1e-12,
          atol=1e-11)
    assert found.distance.max() < 1e-10
    models = Plane.through(net(0), net(1), net(2))
    CLOSE(models.at(*models.points["2"]), nn.utils.parameters_to_vector(net(1).parameters()).detach())


def test_the_projection_is_the_nearest_point_for_oblique_directions_too():
    plane = Plane.random(net(), seed=1)
    point = plane.at(0.3, -0.7)
    off = torch.randn(len(point), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    basis = torch.stack([plane.u, plane.v], 1)
    off = off - basis @ torch.linalg.lstsq(basis, off[:, None]).solution[:, 0]
    for away in (0 * off, off):
        found = [float(each) for each in plane.project(point + away)]
        assert found == pytest.approx([0.3, -0.7, away.norm().item()], abs=1e-12)


def test_points_on_a_line_make_no_plane():
    for call in (filter_normalized_direction, lambda model: Plane.through(model, model, model)):
        with pytest.raises(ValueError, match="complex64"):
            call(nn.Linear(2, 2, dtype=torch.complex64))
    w = torch.randn(2, 30, dtype=torch.float64)
    for third in (w[0] + 0.3 * (w[1] - w[0]), w[1], w[0]):
        with pytest.raises(ValueError, match="on one line"):
            Plane.through(w[0], w[1], third)
    Plane.through(w[0], w[1], w[0] + 0.3 * (w[1] - w[0]) + 1e-5)
    with pytest.raises(ValueError, match="one architecture"):
        Plane.through(w[0], w[1], torch.zeros(7))
