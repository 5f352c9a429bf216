"""Pictures of surfaces: the numbers that they show, and the lines that they do not draw."""

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch

from sharpnb.lab import models
from sharpnb.landscape import Plane, surface

mpl.use("Agg")
from matplotlib import pyplot as plt

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(70, 1, 8, 8, dtype=torch.float64, generator=G), torch.randint(0, 10, (70,), generator=G)


def test_pictures_have_the_numbers():
    model = models.mlp((64, 8, 10)).double()
    plane = Plane.random(model)
    found = surface(model, plane, (X, Y), size=9)
    found.values["loss"][0, 0] = math.nan
    path = torch.stack([plane.at(0.1 * t, 0.05 * t * t) for t in range(4)])
    ax = found.plot("loss", marks={"model": model, "corner": (1.0, 1.0)}, trajectory=path)
    assert ax.get_aspect() == 1.0 and "filter norms" in ax.get_xlabel()
    drawn = {artist.get_label(): artist.get_xydata() for artist in ax.lines}
    np.testing.assert_allclose(drawn["model"], [[0, 0]], atol=1e-12)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.1 * t, 0.05 * t * t] for t in range(4)], atol=1e-12)
    assert found.plot3d("error").name == "3d"
    found.values["loss"][:] = math.nan
    with pytest.raises(ValueError, match="no finite value"):
        found.plot("loss")
    plt.close("all")


@pytest.mark.parametrize("noise", [1e-14, -1e-14, 3e-13])
def test_the_last_bits_of_equal_errors_draw_no_lines(noise):
    model = models.mlp((64, 8, 10)).double()
    found = surface(model, Plane.random(model), (X, Y), ("error",), size=7)
    steps = np.add.outer(np.arange(7) // 3, np.arange(7) // 3) * (100 / 70)
    pictures = []
    for moved in (0.0, noise):
        found.values["error"] = 20 + steps + moved * np.random.default_rng(0).standard_normal((7, 7)).round()
        figure, ax = plt.subplots(figsize=(2, 2))
        found.plot("error", ax, cap=30.0, finest=100 / 70, colour_bar=False)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba()))
        plt.close(figure)
    assert np.array_equal(*pictures)
