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


class OnesOwn(nn.Module):
    """Two ways through the net, joined."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other, self.out = nn.Conv2d(1, 4, 1), nn.Linear(4, 10)

    def forward(self, x):
        return self.out(F.relu(self.norm(self.one(x)) + self.other(x)).amax((2, 3)))


def _hooked(model):
    model[1].register_forward_hook(lambda _, __, out: 2 * out)
    return model


def _twice():
    first = nn.Linear(64, 64)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), first, nn.Linear(64, 10))


TOGETHER = {  # by more than one point in a call
    "mlp": lambda: models.mlp((64, 12, 12, 10)), "linear": lambda: models.mlp((64, 10)),
    "mlp with BatchNorm": lambda: models.mlp((64, 12, 12, 10), norm=True), "cnn": lambda: models.cnn(4),
    "cnn with BatchNorm": lambda: models.cnn(4, norm=True),
    "pools": lambda: nn.Sequential(
        nn.Conv2d(1, 5, 3, dilation=2, padding=2), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(5, 6, (3, 1), padding="same"), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(24),
        nn.Linear(24, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 10)),
    "residual": lambda: models.resnet(8, width=4, channels=1), "a class of one's own": OnesOwn,
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 10)),
    "no flattening": lambda: nn.Sequential(
        nn.Identity(), nn.Flatten(2), nn.Flatten(), nn.Linear(64, 9, bias=False), nn.Dropout(0.9), nn.Linear(9, 10)),
}
ONE_BY_ONE = {
    "linear on images": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(90, 10)),
    "group norm beside it": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.Flatten(),
        nn.BatchNorm1d(96), nn.Linear(96, 10)),
    "a layer twice": _twice, "hooked": lambda: _hooked(models.mlp((64, 9, 10))),
}


def net(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = (TOGETHER | ONE_BY_ONE)[name]().double()
    with torch.no_grad():
        for p in model.parameters():  # models of the lab have a seed of their own
            p.add_(0.05 * torch.randn_like(p))
    return model


def small() -> nn.Module:
    return models.mlp((64, 8, 10)).double()


def one_by_one(model, plane, x, y, bn=None):
    """The reference: set the weights, recompute the statistics, evaluate everything at once."""
    model = copy.deepcopy(model)
    found = {"loss": np.empty((len(y), len(x))), "error": np.empty((len(y), len(x)))}
    for i, b in enumerate(y):
        for j, a in enumerate(x):
            w = plane.at(float(a), float(b)).to(next(model.parameters()))
            nn.utils.vector_to_parameters(w, model.parameters())
            if bn is not None:
                update_bn(model.train(), bn)
            with torch.no_grad():
                out = model.eval()(X.to(w))
            found["loss"][i, j] = F.cross_entropy(out, Y).item()
            found["error"][i, j] = 100 * (out.argmax(1) != Y).double().mean().item()
    return found


def runs_together(model, data, bn=None):
    return Points(model, Plane.random(model, seed=1), data, ("loss",), bn).together is not None


@pytest.mark.parametrize("name", [*TOGETHER, *ONE_BY_ONE])
def test_it_is_one_forward_pass_a_point(name):
    model = net(name)
    plane = Plane.random(model, seed=1)
    found = surface(model, plane, (X, Y), size=(5, 4), batch_size=32)  # 32 + 32 + 6: the last batch counts as 6
    truth = one_by_one(model, plane, found.x, found.y)
    if name != "a layer twice":  # which may run either way
        assert runs_together(model, (X, Y)) == (name in TOGETHER)
    for key in truth:
        np.testing.assert_allclose(found.values[key], truth[key], rtol=1e-11, atol=1e-11)
    assert truth["loss"].std() > 1e-3


def test_the_fast_way_is_left_where_it_does_not_find_what_the_model_does(monkeypatch):
    monkeypatch.setattr(BatchedNet, "_is_right", lambda *_: True)  # so that twins read the last axis of images
    for name in ("linear on images", "cnn"):
        model, data = net(name).float(), (X.float(), Y)
        assert runs_together(model, data) == (name in TOGETHER)
        plane = Plane.random(model)
        found = surface(model, plane, data, ("loss",), size=3)
        truth = one_by_one(model, plane, found.x, found.y)["loss"]
        np.testing.assert_allclose(found.values["loss"], truth, rtol=1e-5)


@pytest.mark.parametrize(("name", "dtype", "tol"), [
    ("mlp", torch.bfloat16, 0.03), ("mlp", torch.float16, 0.03), ("mlp", torch.float32, 1e-6),
    ("cnn with BatchNorm", torch.float32, 1e-6), ("residual", torch.float32, 1e-6),
])
def test_smaller_types_are_near_the_same_in_double(name, dtype, tol):
    model = net(name).to(dtype)
    plane, data = Plane.random(model, seed=2), (X.to(dtype), Y)
    assert runs_together(model, data)
    found = surface(model, plane, data, ("loss",), size=5)
    truth = one_by_one(copy.deepcopy(model).double(), plane, found.x, found.y)["loss"]
    np.testing.assert_allclose(found.values["loss"], truth, rtol=tol)


def test_outputs_that_are_images_go_to_the_loss_as_images():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).double()
    plane, target, seen = Plane.random(model), X[:, :, 2:6, 2:6], []

    def mse(out, y):
        seen.append(out.shape)
        return F.mse_loss(out, y.expand_as(out))

    found = surface(model, plane, (X, target), {"mse": mse}, size=(3, 1))
    assert set(seen) == {(70, 3, 4, 4)}
    nn.utils.vector_to_parameters(plane.at(float(found.x[2]), float(found.y[0])), model.parameters())
    assert found.values["mse"][0, 2] == pytest.approx(mse(model(X), target).item(), rel=1e-12)


def test_a_quadratic_and_its_curvature():
    a = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    a, model = a @ a.T, nn.Linear(6, 1, bias=False).double()
    plane = Plane.random(model, seed=4, normalize="none")
    data = (torch.eye(6, dtype=torch.float64), torch.zeros(6))  # the outputs are the weights
    losses = {"f": lambda out, _: 0.5 * out[:, 0] @ a @ out[:, 0]}
    found = surface(model, plane, data, losses, (9, 7), window=(-1, 1, -3, 2))
    assert (found.x[0], found.x[-1], found.y[0], found.y[-1]) == (-1, 1, -3, 2)
    w, basis = plane.origin, torch.stack([plane.u, plane.v])
    for i, y in enumerate(found.y):
        for j, x in enumerate(found.x):
            point = w + torch.tensor([x, y]) @ basis
            assert found.values["f"][i, j] == pytest.approx((0.5 * point @ a @ point).item(), rel=1e-12)
    h, row = found.x[1] - found.x[0], found.values["f"][3]
    assert (row[5] - 2 * row[4] + row[3]) / h**2 == pytest.approx((plane.u @ a @ plane.u).item(), rel=1e-9)
    x, y = found.lowest("f")
    i, j = np.argwhere(found.values["f"] == found.values["f"].min())[0]
    assert (x, y) == (found.x[j], found.y[i])


NORMALISED = ["mlp with BatchNorm", "cnn with BatchNorm", "pools", "residual", "a class of one's own",
              "group norm beside it"]


@pytest.mark.parametrize("name", NORMALISED)
def test_batchnorm_is_recomputed_at_every_point(name):
    model, bn = net(name), [(X[:50], None), (X[50:], None)]  # 50 + 20: each normalised by itself
    plane, before = Plane.through(*(net(name, seed) for seed in range(3))), copy.deepcopy(model.state_dict())
    found = surface(model, plane, {"train": (X, Y)}, size=(3, 2), update_bn=iter(bn))
    assert runs_together(model, (X, Y), bn) == (name in TOGETHER)
    truth = one_by_one(model, plane, found.x, found.y, bn)["loss"]
    np.testing.assert_allclose(found.values["train_loss"], truth, rtol=1e-11)
    assert np.abs(surface(model, plane, (X, Y), size=(3, 2)).values["loss"] - truth).max() > 1e-2, "stale ones"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", [name for name in NORMALISED if name != "a class of one's own"])
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_batchnorm_layer_keeps_its_statistics_at_every_point(name, frozen):
    model = net(name).train()
    model(3 * X + 1)  # statistics worth keeping
    [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)][frozen].eval()
    reference = copy.deepcopy(model)
    centre = partial(surface, model, Plane.random(model), (X, Y), size=1, window=(0, 0, 0, 0), update_bn=[X])
    found = centre().values["loss"].item()
    update_bn(reference, [X])
    assert found == pytest.approx(F.cross_entropy(reference.eval()(X), Y).item(), rel=1e-12)
    model.train()
    assert found != pytest.approx(centre().values["loss"].item(), rel=1e-6)


@pytest.mark.parametrize("name", ["cnn with BatchNorm", "mlp with BatchNorm"])
def test_statistics_of_nothing_are_an_error(name):
    model = net(name)
    for bn, said in [([], "no batch"), (X, "x.split")] + [([X[:1]], "one sample")] * name.startswith("mlp"):
        with pytest.raises(ValueError, match=said):
            surface(model, Plane.random(model), (X, Y), size=2, update_bn=bn)


def test_several_sets_and_losses_at_once_and_a_line_is_a_row():
    model = small()
    plane, cut = Plane.random(model), [(X[:40], Y[:40]), (X[40:60], Y[40:60])]
    found = surface(model, plane, {"train": cut, "test": (X[60:], Y[60:])}, size=3)
    assert list(found.values) == ["train_loss", "train_error", "test_loss", "test_error"]
    whole = surface(model, plane, (X[:60], Y[:60]), size=3).values["loss"]
    np.testing.assert_allclose(found.values["train_loss"], whole, rtol=1e-12)
    np.testing.assert_allclose(line(model, model, plane.u, [-1, 0, 1], cut).values["loss"], whole[1], rtol=1e-12)
    alone = surface(model, plane, (X[60:], Y[60:]), ("error",), size=3).values["error"]
    np.testing.assert_allclose(found.values["test_error"], alone)


def test_the_surface_of_a_rescaled_relu_net_is_the_same():
    model, scaled = small(), small()
    with torch.no_grad():
        for p, c in ((scaled[1].weight, 10), (scaled[1].bias, 10), (scaled[3].weight, 0.1)):
            p.mul_(c)
    for normalize in ("filter", "none"):
        a, b = (surface(m, Plane.random(m, 6, normalize=normalize), (X, Y), size=5).values["loss"]
                for m in (model, scaled))
        off = np.abs(a / b - 1).max()
        assert off < 1e-10 if normalize == "filter" else off > 0.1, "without the normalisation it is not"


def test_cells_are_raw_and_the_model_is_untouched():
    model = small().train()
    plane, before, state = Plane.random(model), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = surface(model, plane, (X, Y), size=3, window=(0, 1e308, 0, 1))
    assert math.isfinite(found.values["loss"][0, 0]) and not np.isfinite(found.values["loss"][0, -1])
    assert found.values["error"][0, -1] == 100.0
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_interrupted_surface_continues(tmp_path, monkeypatch):
    model = models.resnet(8, width=2, channels=1, norm=False).double()
    file, calls, call = tmp_path / "surface.npz", [], Points.__call__
    measure = partial(surface, model, Plane.random(model), size=5)
    whole = measure((X, Y))
    monkeypatch.setitem(_points._BYTES, "cpu", 70 * 2 * 8 * 8 * 8)  # so that points go one by one

    def killed(self, xy):
        calls.append(xy)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return call(self, xy)

    monkeypatch.setattr(Points, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        measure((X, Y), checkpoint=file)
    corners = {(float(x), float(y)) for x in whole.x[::4] for y in whole.y[::4]}
    assert {xy[0] for xy in calls[:4]} == corners, "coarse to fine"
    again = measure((X, Y), checkpoint=file)
    assert len(calls) == 8 + 25 - 7
    np.testing.assert_allclose(again.values["loss"], whole.values["loss"], rtol=1e-12)
    with pytest.raises(ValueError, match="another run"):
        measure((X + 1, Y), checkpoint=file)


def test_pictures_have_the_numbers_and_the_last_bits_of_equal_errors_draw_no_lines():
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    model = small()
    found = surface(model, Plane.random(model), (X, Y), size=7)
    found.values["loss"][0, 0] = math.nan
    ax = found.plot("loss", marks={"model": model, "corner": (1.0, 1.0)})
    assert ax.get_aspect() == 1.0 and "filter norms" in ax.get_xlabel()
    drawn = {artist.get_label(): artist.get_xydata() for artist in ax.lines}
    np.testing.assert_allclose([*drawn["model"], *drawn["corner"]], [[0, 0], [1, 1]], atol=1e-12)
    found.values["loss"][:] = math.nan
    with pytest.raises(ValueError, match="no finite value"):
        found.plot("loss")
    steps, pictures = np.add.outer(np.arange(7) // 3, np.arange(7) // 3) * (100 / 70), []
    for noise in (0.0, 1e-14, -1e-14, 3e-13):
        found.values["error"] = 20 + steps + noise * np.random.default_rng(0).standard_normal((7, 7)).round()
        figure, ax = plt.subplots(figsize=(2, 2))
        found.plot("error", ax, cap=30.0, finest=100 / 70)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba()))
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
    plt.close("all")


@pytest.mark.parametrize("change, said", [
    ({"losses": ("accuracy",)}, "'accuracy'"), ({"losses": "loss"}, "losses = 'loss'"), ({"losses": ()}, "losses = "),
    ({"data": (X, Y.double()), "losses": ("error",)}, "labels"), ({"data": (X, Y[:, None])}, "labels"),
    ({"data": []}, "no sample"), ({"model": models.mlp((64, 9, 10)).double()}, "weights of 1 types"),
])
def test_misuse_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        surface(**{"model": small(), "plane": Plane.random(small()), "data": (X, Y), "size": 2, **change})
