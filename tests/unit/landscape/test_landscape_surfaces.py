"""Surfaces against one honest forward pass a point, quadratics, BatchNorm by hand, and what must stay untouched."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sharpnb.averaging import update_bn
from sharpnb.lab import models
from sharpnb.landscape import Plane, _points, line, surface
from sharpnb.landscape._points import Points
from sharpnb.many.net import BatchedNet

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(70, 1, 8, 8, dtype=torch.float64, generator=G), torch.randint(0, 10, (70,), generator=G)
CHAINS = {
    "mlp": lambda: models.mlp((64, 12, 12, 10)), "tanh": lambda: models.mlp((64, 12, 10), activation="tanh"),
    "linear": lambda: models.mlp((64, 10)), "mlp with BatchNorm": lambda: models.mlp((64, 12, 12, 10), norm=True), "cnn": lambda: models.cnn(4),
    "windows": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, (3, 2), (1, 2), (0, 1), bias=False), nn.Conv2d(4, 5, 1),
        nn.ReLU(), nn.Flatten(), nn.ReLU(), nn.Linear(150, 7), nn.ReLU(), nn.Linear(7, 10)),
    "flattened": lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(27, 10, bias=False)),
    "adaptive pools": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Mish(), nn.AdaptiveAvgPool2d(4), nn.Conv2d(4, 6, 3, padding=1), nn.Softplus(), nn.AdaptiveMaxPool2d((2, 1)),
        nn.Flatten(), nn.Linear(12, 10), nn.Hardtanh(), nn.Linear(10, 10)),
    "cnn with BatchNorm": lambda: models.cnn(4, norm=True),
    "pools": lambda: nn.Sequential(
        nn.Conv2d(1, 5, 3, dilation=2, padding=2), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(5, 6, (3, 1), padding="same"),
        nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(24), nn.Linear(24, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 10)),
    "twelve channels": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(12, 4, 3),
        nn.BatchNorm2d(4), nn.Conv2d(4, 12, 3, padding=1, bias=False), nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 12), nn.Linear(12, 10)),
}
TOGETHER = CHAINS | {
    "residual": lambda: models.resnet(8, width=4, channels=1, norm=False), "wide residual": lambda: models.wide_resnet(10, 1, channels=1),
    "grouped": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 10)),
    "a class of one's own": lambda: OnesOwn(), "a bias less": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9, bias=False), nn.GELU(), nn.Linear(9, 10)),
    "no flattening": lambda: nn.Sequential(nn.Identity(), nn.Flatten(2), nn.Flatten(), nn.Linear(64, 9), nn.Dropout(0.9), nn.SiLU(), nn.Linear(9, 10)),
}
ONE_BY_ONE = {
    "linear on images": lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(90, 10)),
    "layer norm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.LayerNorm(9), nn.Linear(9, 10)),
    "a layer twice": lambda: (lambda first: nn.Sequential(nn.Flatten(), first, nn.ReLU(), first, nn.Linear(64, 10)))(nn.Linear(64, 64)),
    "hooked": lambda: _hooked(models.mlp((64, 9, 10))),
}


class OnesOwn(nn.Module):
    """Two ways through the net, joined."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.other, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(1, 4, 1), nn.Linear(4, 10)

    def forward(self, x):
        return self.out(F.relu(self.norm(self.one(x)) + self.other(x)).amax((2, 3)))


def _hooked(model):
    model[1].register_forward_hook(lambda _, __, out: 2 * out)
    return model


def one_by_one(model: nn.Module, plane: Plane, x: np.ndarray, y: np.ndarray, bn: object = None) -> dict[str, np.ndarray]:
    """The reference: set the weights, recompute the statistics, evaluate everything at once."""
    model = copy.deepcopy(model)
    found = {"loss": np.empty((len(y), len(x))), "error": np.empty((len(y), len(x)))}
    for i, b in enumerate(y):
        for j, a in enumerate(x):
            nn.utils.vector_to_parameters(plane.at(float(a), float(b)).to(next(model.parameters())), model.parameters())
            if bn is not None:
                model.train()
                update_bn(model, bn)
            model.eval()
            with torch.no_grad():
                out = model(X.to(next(model.parameters()).dtype))
            found["loss"][i, j] = F.cross_entropy(out, Y).item()
            found["error"][i, j] = 100 * (out.argmax(1) != Y).double().mean().item()
    return found


@pytest.mark.parametrize("name", [*TOGETHER, *ONE_BY_ONE])
def test_it_is_one_forward_pass_a_point(name):
    torch.manual_seed(0)
    model = (TOGETHER | ONE_BY_ONE)[name]().double()
    plane = Plane.random(model, seed=1)
    found = surface(model, plane, (X, Y), size=(5, 4), batch_size=32)  # 32 + 32 + 6: the last batch counts as 6
    truth = one_by_one(model, plane, found.x, found.y)
    if name != "a layer twice":  # which may run either way
        assert (Points(model, plane, (X, Y), ("loss",)).together is not None) == (name in TOGETHER)
    for key in truth:
        np.testing.assert_allclose(found.values[key], truth[key], rtol=1e-11, atol=1e-11)
    assert truth["loss"].std() > 1e-3


def test_the_fast_way_is_left_where_it_does_not_find_what_the_model_does(monkeypatch):
    monkeypatch.setattr(BatchedNet, "_is_right", lambda *_: True)  # so that twins read the last axis of images
    for name in ("linear on images", "cnn"):
        model = (TOGETHER | ONE_BY_ONE)[name]()
        plane, data = Plane.random(model), (X.float(), Y)
        assert (Points(model, plane, data, ("loss",)).together is None) == (name in ONE_BY_ONE)
        found = surface(model, plane, data, ("loss",), size=3)
        np.testing.assert_allclose(found.values["loss"], one_by_one(model, plane, found.x, found.y)["loss"], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_the_same_in_double(dtype):
    model = CHAINS["tanh"]().to(dtype)
    plane = Plane.random(model, seed=1)
    assert Points(model, plane, (X.to(dtype), Y), ("loss",)).together is not None
    found = surface(model, plane, (X.to(dtype), Y), ("loss",), size=3)
    np.testing.assert_allclose(found.values["loss"], one_by_one(copy.deepcopy(model).double(), plane, found.x, found.y)["loss"], rtol=0.03)


def test_points_go_together_as_long_as_the_largest_output_is_small_and_then_one_by_one():
    """2 MiB on a CPU, which 250 samples of the widest layer share."""
    small, wide = models.cnn(4), models.cnn(128)
    plane = Plane.random(small)
    assert Points(small, plane, (X.float(), Y), ("loss",)).at_once == 2**21 // (70 * 4 * 8 * 8 * 4)
    many = torch.zeros(1000, 1, 8, 8), torch.zeros(1000).long()
    found = Points(small, plane, many, ("loss",))
    assert found.at_once == 2**21 // (250 * 4 * 8 * 8 * 4) and [len(b.inputs) for b in found.sets[""]] == [250] * 4
    alone = Points(wide, Plane.random(wide), many, ("loss",))
    assert alone.at_once == 1 and alone.together is None and [len(b.inputs) for b in alone.sets[""]] == [128] * 7 + [104]


@pytest.mark.parametrize("name", ["mlp", "cnn", "cnn with BatchNorm", "residual"])
def test_in_float32_the_error_is_below_1e_6(name):
    model = TOGETHER[name]()
    plane = Plane.random(model, seed=2)
    found = surface(model, plane, (X.float(), Y), ("loss",), size=7)
    truth = one_by_one(copy.deepcopy(model).double(), plane, found.x, found.y)
    assert np.abs(found.values["loss"] / truth["loss"] - 1).max() < 1e-6


def test_outputs_that_are_images_go_to_the_loss_as_images():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).double()
    plane, seen = Plane.random(model), []
    found = surface(model, plane, (X, X[:, :, 2:6, 2:6]), {"mse": lambda out, y: seen.append(out.shape) or F.mse_loss(out, y.expand_as(out))}, size=(3, 1))
    assert set(seen) == {(70, 3, 4, 4)}
    nn.utils.vector_to_parameters(plane.at(float(found.x[2]), float(found.y[0])), model.parameters())
    assert found.values["mse"][0, 2] == pytest.approx(F.mse_loss(model(X), X[:, :, 2:6, 2:6].expand(-1, 3, -1, -1)).item(), rel=1e-12)


class Coordinates(nn.Module):
    """Two weights, and the output is both: a loss of them shows where a cell was evaluated."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        return self.w.expand(len(x), 2)


def test_every_cell_is_at_its_printed_coordinate():
    model = Coordinates()
    w = torch.eye(2, dtype=torch.float64)
    plane = Plane.through(torch.zeros(2), w[0], w[1])
    data = (torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3, 2))
    found = surface(model, plane, data, {"place": lambda out, _: out[0, 0] + 100 * out[0, 1]}, size=(7, 5), window=(-1, 2, -3, 1))
    np.testing.assert_allclose(found.values["place"], found.x[None] + 100 * found.y[:, None], rtol=1e-13)
    assert (found.x[0], found.x[-1], found.y[0], found.y[-1]) == (-1, 2, -3, 1)
    bowl = surface(model, plane, data, {"bowl": lambda out, _: (out[0] - torch.tensor([0.5, -1.0])).square().sum()}, size=(7, 5), window=(-1, 2, -3, 1))
    assert bowl.lowest("bowl") == (0.5, -1.0)


def test_a_quadratic_and_its_curvature():
    a = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    a = a @ a.T
    model = nn.Linear(6, 1, bias=False).double()
    plane = Plane.random(model, seed=4, normalize="none")
    data = (torch.eye(6, dtype=torch.float64), torch.zeros(6))  # the outputs are the weights
    found = surface(model, plane, data, {"f": lambda out, _: 0.5 * out[:, 0] @ a @ out[:, 0]}, size=9)
    w, basis = plane.origin, torch.stack([plane.u, plane.v])
    for i, y in enumerate(found.y):
        for j, x in enumerate(found.x):
            point = w + torch.tensor([x, y]) @ basis
            assert found.values["f"][i, j] == pytest.approx((0.5 * point @ a @ point).item(), rel=1e-12)
    h = found.x[1] - found.x[0]
    centre = found.values["f"][4]
    assert (centre[5] - 2 * centre[4] + centre[3]) / h**2 == pytest.approx((plane.u @ a @ plane.u).item(), rel=1e-9)


def _seeded(name, seed=0):
    torch.manual_seed(seed)
    return (TOGETHER | {"group norm beside it": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.Flatten(), nn.BatchNorm1d(96), nn.Linear(96, 10))})[name]()


NORMALISED = {
    "cnn": lambda seed=0: models.cnn(4, norm=True, seed=seed), "mlp": lambda seed=0: models.mlp((64, 12, 12, 10), norm=True, seed=seed),
    "pools": partial(_seeded, "pools"), "twelve channels": partial(_seeded, "twelve channels"), "residual": lambda seed=0: models.resnet(8, width=4, channels=1, seed=seed),
    "a class of one's own": partial(_seeded, "a class of one's own"), "group norm beside it": partial(_seeded, "group norm beside it"),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_batchnorm_is_recomputed_at_every_point(name):
    model, three = NORMALISED[name]().double(), [NORMALISED[name](s).double() for s in range(3)]
    plane, bn = Plane.through(*three), [(X[:50], None), (X[50:], None)]  # 50 + 20: each normalised by itself
    before = copy.deepcopy(model.state_dict())
    found = surface(model, plane, {"train": (X, Y)}, size=(3, 2), update_bn=iter(bn))
    assert (Points(model, plane, (X, Y), ("loss",), bn).together is not None) == (name != "group norm beside it")
    truth = one_by_one(model, plane, found.x, found.y, bn)
    np.testing.assert_allclose(found.values["train_loss"], truth["loss"], rtol=1e-11)
    stale = surface(model, plane, (X, Y), size=(3, 2))
    assert np.abs(stale.values["loss"] - truth["loss"]).max() > 1e-2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", [name for name in NORMALISED if name != "a class of one's own"])
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_batchnorm_layer_keeps_its_statistics_at_every_point(name, frozen):
    model = NORMALISED[name]().double()
    model.train()
    model(3 * X + 1)  # statistics worth keeping
    [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)][frozen].eval()
    reference = copy.deepcopy(model)
    plane = Plane.random(model)
    found = surface(model, plane, (X, Y), size=1, window=(0, 0, 0, 0), update_bn=[X])
    update_bn(reference, [X])
    reference.eval()
    assert found.values["loss"].item() == pytest.approx(F.cross_entropy(reference(X), Y).item(), rel=1e-12)
    model.train()
    assert found.values["loss"].item() != pytest.approx(surface(model, plane, (X, Y), size=1, window=(0, 0, 0, 0), update_bn=[X]).values["loss"].item(), rel=1e-6)


@pytest.mark.parametrize("name, bn, said", [
    ("cnn", [], "no batch"), ("mlp", [], "no batch"), ("cnn", X, "x.split"), ("mlp", X, "x.split"), ("mlp", [X[:1]], "one sample"),
])
def test_statistics_of_nothing_are_an_error(name, bn, said):
    model = NORMALISED[name]().double()
    with pytest.raises(ValueError, match=said):
        surface(model, Plane.random(model), (X, Y), size=2, update_bn=bn)


def test_several_sets_and_losses_at_once():
    model = models.mlp((64, 8, 10)).double()
    plane = Plane.random(model)
    found = surface(model, plane, {"train": [(X[:40], Y[:40]), (X[40:60], Y[40:60])], "test": (X[60:], Y[60:])}, size=3)
    assert list(found.values) == ["train_loss", "train_error", "test_loss", "test_error"]
    whole = surface(model, plane, (X[:60], Y[:60]), size=3)
    np.testing.assert_allclose(found.values["train_loss"], whole.values["loss"], rtol=1e-12)
    np.testing.assert_allclose(found.values["test_error"], surface(model, plane, (X[60:], Y[60:]), ("error",), size=3).values["error"])


def test_a_line_is_the_row_of_a_surface():
    model = models.mlp((64, 8, 10)).double()
    plane = Plane.random(model, seed=5)
    row = surface(model, plane, (X, Y), size=(9, 1), window=(-1, 1, 0, 0))
    along = line(model, model, plane.u, np.linspace(-1, 1, 9), (X, Y))
    np.testing.assert_allclose(along.values["loss"], row.values["loss"][0], rtol=1e-12)


def test_the_three_points_have_their_own_losses():
    three = [models.mlp((64, 8, 10), seed=s).double() for s in range(3)]
    plane = Plane.through(*three)
    for model, (x, y) in zip(three, plane.points.values(), strict=True):
        found = surface(three[0], plane, (X, Y), size=1, window=(x, x, y, y))
        assert found.values["loss"].item() == pytest.approx(F.cross_entropy(model(X), Y).item(), rel=1e-12)


def test_the_surface_of_a_rescaled_relu_net_is_the_same():
    model = models.mlp((64, 8, 10)).double()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for p, c in ((scaled[1].weight, 10), (scaled[1].bias, 10), (scaled[3].weight, 0.1)):
            p.mul_(c)
    a, b = (surface(m, Plane.random(m, seed=6), (X, Y), size=5).values["loss"] for m in (model, scaled))
    np.testing.assert_allclose(a, b, rtol=1e-10)
    plain = [surface(m, Plane.random(m, seed=6, normalize="none"), (X, Y), size=5).values["loss"] for m in (model, scaled)]
    assert np.abs(plain[0] / plain[1] - 1).max() > 0.1  # without the normalisation it is not


def test_cells_are_raw_and_the_model_is_untouched():
    model = models.mlp((64, 8, 10)).double()
    plane, before = Plane.random(model), copy.deepcopy(model.state_dict())
    model.train()
    state = torch.get_rng_state()
    found = surface(model, plane, (X, Y), size=3, window=(0, 1e308, 0, 1))
    again = surface(model, plane, (X, Y), size=3, window=(0, 1e308, 0, 1))
    assert math.isfinite(found.values["loss"][0, 0]) and not np.isfinite(found.values["loss"][0, -1])
    assert found.values["error"][0, -1] == 100.0
    np.testing.assert_array_equal(found.values["loss"], again.values["loss"])
    assert model.training and torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_interrupted_surface_continues(tmp_path, monkeypatch):
    model = models.resnet(8, width=2, channels=1, norm=False).double()
    plane, file = Plane.random(model), tmp_path / "surface.npz"
    whole = surface(model, plane, (X, Y), size=5)
    monkeypatch.setitem(_points._BYTES, "cpu", 70 * 2 * 8 * 8 * 8)  # so that points go one by one
    calls, call = [], Points.__call__

    def killed(self, xy):
        calls.append(xy)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return call(self, xy)

    monkeypatch.setattr(Points, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        surface(model, plane, (X, Y), size=5, checkpoint=file)
    saved = np.load(file)
    assert saved["done"].sum() == 7 and saved["done"][::4, ::4].all()  # coarse to fine: the corners first
    again = surface(model, plane, (X, Y), size=5, checkpoint=file)
    assert len(calls) == 8 + 25 - 7
    np.testing.assert_allclose(again.values["loss"], whole.values["loss"], rtol=1e-12)
    with pytest.raises(ValueError, match="another run"):
        surface(model, plane, (X + 1, Y), size=5, checkpoint=file)


def test_pictures_have_the_numbers():
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    model = models.mlp((64, 8, 10)).double()
    plane = Plane.random(model)
    found = surface(model, plane, (X, Y), size=9)
    found.values["loss"][0, 0] = math.nan
    ax = found.plot("loss", marks={"model": model, "corner": (1.0, 1.0)})
    assert ax.get_aspect() == 1.0 and "filter norms" in ax.get_xlabel()
    drawn = {artist.get_label(): artist.get_xydata() for artist in ax.lines}
    np.testing.assert_allclose(drawn["model"], [[0, 0]], atol=1e-12)
    np.testing.assert_allclose(drawn["corner"], [[1, 1]])
    found.values["loss"][:] = math.nan
    with pytest.raises(ValueError, match="no finite value"):
        found.plot("loss")
    plt.close("all")


@pytest.mark.parametrize("noise", [1e-14, -1e-14, 3e-13])
def test_the_last_bits_of_equal_errors_draw_no_lines(noise):
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    model = models.mlp((64, 8, 10)).double()
    found = surface(model, Plane.random(model), (X, Y), ("error",), size=7)
    steps = np.add.outer(np.arange(7) // 3, np.arange(7) // 3) * (100 / 70)
    pictures = []
    for moved in (0.0, noise):
        found.values["error"] = 20 + steps + moved * np.random.default_rng(0).standard_normal((7, 7)).round()
        figure, ax = plt.subplots(figsize=(2, 2))
        found.plot("error", ax, cap=30.0, finest=100 / 70)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba()))
        plt.close(figure)
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("change, said", [
    ({"losses": ("accuracy",)}, "'accuracy'"), ({"losses": "loss"}, "losses = 'loss'"), ({"losses": ()}, "losses = "), ({"data": []}, "no sample"),
    ({"model": models.mlp((64, 9, 10)).double()}, "weights of 1 types"),
])
def test_misuse_is_named(change, said):
    model = models.mlp((64, 8, 10)).double()
    arguments = {"model": model, "plane": Plane.random(model), "data": (X, Y), "size": 2, **change}
    with pytest.raises(ValueError, match=said):
        surface(**arguments)


def test_statistics_of_images_of_several_sizes_are_weighed_by_their_places():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 10)).double()
    plane, bn = Plane.random(model), [(X[:50], None), (X[50:, :, :5, :5], None)]
    assert Points(model, plane, (X, Y), ("loss",), bn).together is not None
    found = surface(model, plane, (X, Y), ("loss",), 2, update_bn=bn)
    np.testing.assert_allclose(found.values["loss"], one_by_one(model, plane, found.x, found.y, bn)["loss"], rtol=1e-11)
