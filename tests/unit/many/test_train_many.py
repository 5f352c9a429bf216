"""train_many against the loop that everybody writes: one model, one optimizer object, one batch after the other."""

import functools
import math

import pytest
import torch
from torch import nn

from sharpnb.averaging import update_bn
from sharpnb.lab import load_data, models, train_many, with_label_noise
from sharpnb.lab.augment import shift_and_flip
from sharpnb.lab.training import SCHEDULES, batches
from sharpnb.many.train import MembersRule
from sharpnb.optim import ASAM, ESAM, GSAM, SAM, SGDW, WSAM, AdamW, FisherSAM, LookSAM
from sharpnb.optim.schedules import CosineRestarts

DATA = load_data("digits", train_size=200)
BASES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw_torch": torch.optim.AdamW, "sgdw": SGDW,
         "adamw": AdamW}
ASCENTS = {"sam": SAM, "asam": ASAM, "fisher_sam": FisherSAM, "gsam": GSAM, "looksam": LookSAM, "esam": ESAM,
           "wsam": WSAM}
OTHER_NAMES = {"asam_eta": "eta", "fisher_eta": "eta"}


def _flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def _mlp(seed):
    return models.mlp((64, 12, 10), seed=seed)


def _optimizer(model, config):
    own = ("rule", "base", "seed", "m", "schedule", "t_0", "t_mult")
    hyper = {OTHER_NAMES.get(k, k): v for k, v in config.items() if k not in own}
    if config["rule"] in BASES:
        return BASES[config["rule"]](model.parameters(), **hyper)
    if config["rule"] == "esam":
        hyper["seed"] = config["seed"]
    return ASCENTS[config["rule"]](model.parameters(), BASES[config.get("base", "sgd")], **hyper)


def _closures(model, optimizer, x, y, m, esam):
    def of_images(x, y, rows=None):
        rows = slice(None) if rows is None else rows
        return nn.functional.cross_entropy(model(x[rows]), y[rows], reduction="none")

    def closure(x, y):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return [functools.partial(of_images if esam else closure, a, b)
            for a, b in zip(x.split(m), y.split(m), strict=True)]


def _alone(config, steps, schedule="cosine", build=_mlp, data=DATA, augment=None, after=None):
    """The plain loop in float64, on the batches that train_many draws for this seed."""
    model, data = build(config["seed"]).double().train(), data.to("cpu", torch.float64)
    optimizer = _optimizer(model, config)
    for group in optimizer.param_groups:
        group["initial_lr"] = config["lr"]
    generator = torch.Generator().manual_seed(config["seed"])
    order = batches(200, 32, generator)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config["lr"] * SCHEDULES[schedule](step / steps)
        index = next(order)
        x = augment(data.train_x[index], generator) if augment else data.train_x[index]
        closures = _closures(model, optimizer, x, data.train_y[index], config.get("m", 32), config["rule"] == "esam")
        optimizer.step(closures[0] if len(closures) == 1 else closures)
        if after:
            after(step, model)
    return _flat(model)


def _many(configs, steps, build=_mlp, data=DATA, **options):
    options = {"batch_size": 32, "dtype": torch.float64, "device": "cpu", "progress": False} | options
    return train_many(configs, data, build, steps=steps, **options)


ASAM_BALL = {"rule": "wsam", "rho": 0.3, "gamma": 0.7, "perturbation": "asam", "asam_eta": 0.02}
ESAM_HALF = {"rule": "esam", "rho": 0.1, "beta": 0.6, "gamma": 0.5}
ADAM = {"base": "adam", "lr": 0.01}
EVERY = {
    "sgd": {"rule": "sgd", "momentum": 0.9, "weight_decay": 1e-3},
    "nesterov": {"rule": "sgd", "momentum": 0.9, "nesterov": True},
    "sgdw": {"rule": "sgdw", "momentum": 0.9, "weight_decay": 1e-3},
    "sgdw, as in the authors' code": {"rule": "sgdw", "momentum": 0.9, "weight_decay": 1e-3, "lr_in_momentum": False},
    "adam": {"rule": "adam", "lr": 0.01, "weight_decay": 0.01, "betas": (0.8, 0.99)},
    "adamw": {"rule": "adamw", "lr": 0.01, "weight_decay": 1e-3},
    "adamw_torch": {"rule": "adamw_torch", "lr": 0.01, "weight_decay": 0.1},
    "sam": {"rule": "sam", "rho": 0.1}, "sam on adam": {"rule": "sam", "rho": 0.1} | ADAM,
    "sam on sgdw": {"rule": "sam", "rho": 0.1, "base": "sgdw", "weight_decay": 1e-3},
    "sam, p = inf": {"rule": "sam", "rho": 0.002, "p": math.inf},
    "sam, 3 steps": {"rule": "sam", "rho": 0.05, "inner_steps": 3},
    "sam, second order": {"rule": "sam", "rho": 0.1, "second_order": True},
    "asam": {"rule": "asam", "rho": 0.5, "asam_eta": 0.02},
    "fisher_sam": {"rule": "fisher_sam", "rho": 0.1, "fisher_eta": 2.0},
    "gsam": {"rule": "gsam", "rho": 0.1, "alpha": 0.3},
    "gsam, falling radius": {"rule": "gsam", "rho": 0.1, "alpha": 0.3, "rho_min": 0.02},
    "looksam": {"rule": "looksam", "rho": 0.1, "k": 3}, "esam": ESAM_HALF,
    "wsam": {"rule": "wsam", "rho": 0.05, "gamma": 0.8, "momentum": 0.9},
    "wsam, coupled": {"rule": "wsam", "rho": 0.05, "gamma": 0.8, "decouple": False}, "wsam on asam": ASAM_BALL,
    "wsam on fisher": {"rule": "wsam", "rho": 0.05, "gamma": 0.7, "perturbation": "fisher"} | ADAM | {"base": "adamw"},
    "m-sharpness": {"rule": "sam", "rho": 0.1, "m": 8},
    "m-sharpness, looksam": {"rule": "looksam", "rho": 0.1, "k": 3, "m": 16},
    "m-sharpness, wsam on asam": ASAM_BALL | {"m": 8}, "m-sharpness, esam on adam": ESAM_HALF | ADAM | {"m": 16},
}


@pytest.mark.parametrize("name", EVERY)
def test_each_row_equals_a_run_of_the_optimizer_class_of_its_own(name):
    config, steps, bound = {"lr": 0.1} | EVERY[name], 100, 1e-12
    if "second_order" in config:  # a difference of gradients carries their rounding, divided by its step: 1e-16 / 6e-6
        steps, bound = 30, 1e-9
    configs = [config | {"seed": 0}, config | {"seed": 1, "lr": 0.5 * config["lr"]}]
    if "rho" in config:
        configs[1]["rho"] = 0.7 * config["rho"]
    many = _many(configs, steps)
    for row, each in zip(many.weights, configs, strict=True):
        assert (row - _alone(each, steps)).abs().max() < bound
    other = _many([configs[0], configs[0] | {"lr": config["lr"] * (1 + 1e-6)}], steps)
    assert (other.weights[1] - other.weights[0]).abs().max() > 10 * bound, "the bound sees a millionth"


@pytest.mark.parametrize("build", [
    lambda seed: models.mlp((64, 10, 8, 10), norm=True, seed=seed), lambda seed: models.cnn(2, norm=True, seed=seed),
    lambda seed: models.resnet(8, width=2, channels=1, seed=seed),
], ids=["mlp", "cnn", "resnet"])
@pytest.mark.parametrize("more", [
    {"rule": "sgd", "momentum": 0.9, "weight_decay": 1e-3}, {"rule": "sam", "rho": 0.1, "m": 16},
], ids=["sgd", "m-sharpness"])
def test_batchnorm_is_each_members_own_and_evaluated_with_the_training_set(build, more):
    configs = [{"lr": 0.1, "seed": 0} | more, {"lr": 0.05, "seed": 1} | more]
    many = _many(configs, 100 if len(build(0)) < 12 else 30, build=build)
    for k, config in enumerate(configs):
        steps = many.rows[-1]["step"]
        assert (many.weights[k] - _alone(config, steps, build=build)).abs().max() < 1e-10
        model, data = build(0).double(), DATA.to("cpu", torch.float64)
        nn.utils.vector_to_parameters(many.weights[k], model.parameters())
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.momentum = None
        model.train()(data.train_x)
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model.eval()(data.test_x), data.test_y).item()
        assert many.final()[k]["test_loss"] == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize("size", [2, 251, 501])
def test_a_single_image_left_over_by_the_evaluation_costs_no_training(size):
    data = load_data("digits", train_size=size, dtype=torch.float64)
    build = functools.partial(models.mlp, (64, 6, 10), norm=True)
    found = train_many([{"rule": "sgd", "lr": 0.1, "seed": 1}], data, lambda seed: build(seed=seed), steps=2,
                       batch_size=min(size, 32), dtype=torch.float64)
    net = build(seed=1).double()
    nn.utils.vector_to_parameters(found.weights[0], net.parameters())
    cut = [size] if size <= 251 else [250, size - 250]
    update_bn(net, data.train_x.split(cut))
    loss = nn.functional.cross_entropy(net.eval()(data.test_x), data.test_y).item()
    assert found.final()[0]["test_loss"] == pytest.approx(loss, rel=1e-12)


def test_each_member_has_its_own_schedule_and_decay_of_its_budget():
    own = {"rule": "adamw", "lr": 0.01, "seed": 0}
    configs = [own | {"weight_decay": 1e-3}, own | {"weight_decay": 1e-3, "schedule": "step"},
               own | {"lambda_norm": 0.02, "schedule": "restarts", "t_0": 10}, own | {"lambda_norm": 0.02}]
    rows = _many(configs, 40).weights
    assert (rows[0] - _alone(configs[0], 40)).abs().max() < 1e-12
    assert (rows[1] - _alone(configs[0], 40, "step")).abs().max() < 1e-12
    assert (rows[3] - _alone(own | {"weight_decay": 0.02 / math.sqrt(40)}, 40)).abs().max() < 1e-12
    model, data = _mlp(0).double(), DATA.to("cpu", torch.float64)
    optimizer = AdamW(model.parameters(), lr=0.01)
    restarts = CosineRestarts(optimizer, 10, lambda_norm=0.02)
    order = batches(200, 32, torch.Generator().manual_seed(0))
    for _ in range(40):
        index = next(order)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train_x[index]), data.train_y[index]).backward()
        optimizer.step()
        restarts.step()
    assert (rows[2] - _flat(model)).abs().max() < 1e-12


@pytest.mark.parametrize("augment", [
    shift_and_flip(1, flip=True), lambda x, g: x + 0.1 * torch.rand(x.shape, generator=g).to(x)],
    ids=["ours", "one's own"])
def test_augmentation_is_drawn_from_each_members_seed(augment):
    sgd = {"rule": "sgd", "lr": 0.1}
    configs = [sgd | {"seed": 0}, sgd | {"seed": 1}, sgd | {"seed": 1, "augment": None}]
    rows = _many(configs, 20, augment=augment).weights
    assert (rows[0] - _alone(configs[0], 20, augment=augment)).abs().max() < 1e-12
    assert (rows[1] - _alone(configs[1], 20, augment=augment)).abs().max() < 1e-12
    assert (rows[2] - _alone(configs[1], 20)).abs().max() < 1e-12 < 1e-3 < (rows[2] - rows[1]).abs().max()


def test_label_noise_is_a_column():
    configs = [{"rule": "sgd", "lr": 0.1, "seed": 3, "label_noise": noise} for noise in (0.0, 0.2, 0.4)]
    many = _many(configs, 20)
    for config, row, final in zip(configs, many.weights, many.final(), strict=True):
        noisy = with_label_noise(DATA, config["label_noise"], 3)
        plain = {"rule": "sgd", "lr": 0.1, "seed": 3}
        assert (row - _alone(plain, 20, data=noisy)).abs().max() < 1e-12
        alone = _many([plain], 20, data=noisy).final()[0]
        for part in ("train_loss", "test_loss"):
            assert final[part] == pytest.approx(alone[part])


def test_lookahead_and_swa_act_on_top_of_any_rule():
    config = {"rule": "sam", "lr": 0.1, "momentum": 0.9, "rho": 0.1, "seed": 1}
    configs = [config | {"lookahead_k": 5, "lookahead_alpha": 0.3}, config | {"swa_start": 0.5, "swa_every": 3}, config]
    many = _many(configs, 32)
    slow, kept = _flat(_mlp(1).double()), {}

    def pull(step, model):
        nonlocal slow
        if (step + 1) % 5 == 0:
            slow = slow + 0.3 * (_flat(model) - slow)
            nn.utils.vector_to_parameters(slow.clone(), model.parameters())

    assert (many.weights[0] - _alone(config, 32, after=pull)).abs().max() < 1e-12
    assert (many.averaged[0] - slow).abs().max() < 1e-12 < 1e-6 < (many.averaged[0] - many.weights[0]).abs().max()
    last = _alone(config, 32, after=lambda step, model: kept.update({step + 1: _flat(model).clone()}))
    mean = torch.stack([kept[t] for t in (17, 20, 23, 26, 29, 32)]).mean(0)
    assert (many.averaged[1] - mean).abs().max() < 1e-12 and (many.weights[1] - last).abs().max() < 1e-12
    assert torch.equal(many.averaged[2], many.weights[2])
    model, data = _mlp(1).double(), DATA.to("cpu", torch.float64)
    nn.utils.vector_to_parameters(mean, model.parameters())
    loss = nn.functional.cross_entropy(model(data.test_x), data.test_y).item()
    assert many.final()[1]["average_test_loss"] == pytest.approx(loss)
    assert "average_test_loss" not in many.final()[2]


def test_rows_do_not_depend_on_their_company():
    configs = [{"rule": "sam", "lr": 0.1, "momentum": 0.9, "rho": 0.1, "seed": 1},
               {"rule": "wsam", "lr": 0.1, "rho": 0.1, "gamma": 0.8, "decouple": False, "seed": 2},
               {"rule": "sam", "lr": 0.05, "momentum": 0.9, "rho": 0.3, "seed": 3},
               {"rule": "sam", "lr": 0.05, "momentum": 0.9, "rho": 0.2, "seed": 3}]
    sets = [load_data("digits", train_size=200, seed=s) for s in (0, 0, 1, 1)]
    together = _many(configs, 40, data=sets, keep=(0, 20, 40), chunk=2)
    for k, (config, data) in enumerate(zip(configs, sets, strict=True)):
        alone = _many([config], 40, data=data, keep=(20,))
        assert (together.weights[k] - alone.weights[0]).abs().max() < 1e-12
        assert (together.kept[20][k] - alone.kept[20][0]).abs().max() < 1e-12
        assert together.final()[k]["test_loss"] == pytest.approx(alone.final()[0]["test_loss"], rel=1e-9)
    assert (together.weights[2] - _many(configs, 40).weights[2]).abs().max() > 1e-3, "its data are its own"


def test_a_diverged_member_is_a_row_and_spoils_no_other():
    configs = [{"rule": "sgd", "lr": 1e25, "seed": 0}, {"rule": "sgd", "lr": 0.1, "seed": 0}]
    options = {"evaluate_every": 10, "dtype": torch.float32}
    many, alone = _many(configs, 30, **options), _many(configs[1:], 30, **options)
    assert many.diverged == [10, None] and math.isnan(many.final()[0]["train_loss"])
    assert many.final()[1]["train_loss"] == pytest.approx(alone.final()[0]["train_loss"], rel=1e-4)


SGD, WSAM_ONE = {"rule": "sgd", "lr": 1}, {"rule": "wsam", "lr": 1, "rho": 1, "gamma": 0.5}


@pytest.mark.parametrize(("config", "words"), [
    (None, ["0 settings"]), ({"rule": "sdg", "lr": 1}, ["sdg", "Did you mean", "sgdw"]),
    ({"rule": "sam", "lr": 0.1}, ["setting 0", "rho"]), (SGD | {"beta": 1}, ["sgd has no beta", "momentum"]),
    (SGD | {"lr": 0.0}, ["lr = 0.0", "positive"]), (SGD | {"momentum": -1}, ["momentum = -1"]),
    (SGD | {"m": 8}, ["has no m"]), ({"rule": "sam", "lr": 0.1, "rho": 0.1, "m": 7}, ["m = 7", "64"]),
    (SGD | {"schedule": "cosin"}, ["cosin", "restarts"]), (SGD | {"schedule": "restarts"}, ["t_0"]),
    (SGD | {"label_noise": 1.5}, ["label_noise = 1.5", "[0, 1]"]), (SGD | {"swa_every": 2}, ["swa_start"]),
    (SGD | {"seed": 0.5}, ["seed = 0.5", "whole number"]), (WSAM_ONE | {"gamma": 1.0}, ["gamma = 1.0", "[0, 1)"]),
    ({"rule": "adam", "lr": 1, "betas": (0.9, 0.99, 0.9)}, ["betas = (0.9, 0.99, 0.9)", "two numbers"]),
    ({"rule": "gsam", "lr": 1, "rho": 1, "alpha": 1, "lr_max": 1}, ["rho_min"]),
    ({"rule": "adamw", "lr": 1, "weight_decay": 1, "lambda_norm": 1}, ["not both"]),
    (WSAM_ONE | {"perturbation": "ball"}, ["ball", "fisher"]), ({"rule": "sam", "base": "lbfgs"}, ["lbfgs", "adamw"]),
])
def test_bad_settings_are_told_before_anything_runs(config, words):
    with pytest.raises(ValueError) as error:
        train_many([] if config is None else [config], DATA, lambda s: models.mlp(seed=s), steps=1)
    assert all(word in str(error.value) for word in words), error.value


# -- memory -----------------------------------------------------------------------------------------------------------


def _with_room_for(members, monkeypatch):
    """Let a step of more members than that fail as it does on a full GPU; return the sizes that were tried."""
    call, tried = MembersRule.__call__, []

    def limited(rule, w, *rest, **of_step):
        tried.append(len(w))
        if len(w) > members:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return call(rule, w, *rest, **of_step)

    monkeypatch.setattr(MembersRule, "__call__", limited)
    return tried


def test_what_does_not_fit_into_memory_is_done_in_halves_and_not_tried_again(monkeypatch):
    five = [{"rule": "sam", "rho": 0.05, "lr": 0.1, "momentum": 0.9, "seed": seed} for seed in range(5)]
    configs = [*five, *({"rule": "sgd", "lr": 0.1, "seed": seed} for seed in range(4))]
    whole = _many(configs, 6)
    tried = _with_room_for(2, monkeypatch)
    with pytest.warns(UserWarning, match=r"5 members .* do not fit .* going on with 2") as said:
        halved = _many(configs, 6)
    assert len(said) == 1 and tried[0] == 5 and set(tried[1:]) == {1, 2}
    assert torch.allclose(halved.weights, whole.weights, rtol=0, atol=1e-12)
    for name in ("member", "test_error"):
        assert [row[name] for row in halved.rows] == [row[name] for row in whole.rows]


def test_a_member_that_does_not_fit_alone_is_a_message(monkeypatch):
    _with_room_for(0, monkeypatch)
    with pytest.warns(UserWarning), pytest.raises(torch.OutOfMemoryError, match=r"even one .*\n.*batch_size"):
        _many([{"rule": "sgd", "lr": 0.1, "seed": seed} for seed in range(3)], 6)
