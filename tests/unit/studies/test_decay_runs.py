from dataclasses import replace

import pytest
import torch

from sharpnb import lab
from sharpnb.lab import models
from sharpnb.lab.augment import shift_and_flip
from studies import decay_runs

WORLD = decay_runs.World("an MLP", "digits", 80, lambda seed: models.mlp((64, 6, 10), seed=seed), batch_size=20,
                         label_noise=0.1, augment=shift_and_flip(1, flip=False), dtype=torch.float64)
CONFIGS = [
    {"method": "Adam", "rule": "adam", "lr": 0.01, "weight_decay": 0.01, "seed": 1},
    {"method": "SGD", "rule": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "seed": 0,
     "schedule": "constant"},
    {"method": "AdamW", "rule": "adamw", "lr": 0.01, "lambda_norm": 0.3, "seed": 0},
    {"method": "AdamWR", "rule": "adamw", "lr": 0.01, "lambda_norm": 0.3, "seed": 1, "schedule": "restarts", "t_0": 4},
    {"method": "SGDWR", "rule": "sgdw", "lr": 0.05, "momentum": 0.9, "lambda_norm": 0.3, "seed": 0,
     "schedule": "restarts", "t_0": 4},
]


@pytest.fixture
def nb(project):
    return lab.start("n", device="cpu")


def test_one_by_one_is_all_at_once(nb):
    together = decay_runs.run(WORLD, nb, CONFIGS, steps=12, every=4)
    alone = decay_runs.run(replace(WORLD, many=False), nb, CONFIGS, steps=12, every=4)
    assert len(together) == len(alone) == 5 * 3
    key = lambda row: (row["method"], row["step"])
    for a, b in zip(sorted(together, key=key), sorted(alone, key=key), strict=True):
        assert key(a) == key(b) and a["seed"] == b["seed"]
        assert [a[m] for m in decay_runs.MEASURES] == pytest.approx([b[m] for m in decay_runs.MEASURES], rel=1e-9)


def test_tuning_takes_the_lowest_mean_counts_a_diverged_run_as_guessing_and_names_the_edge():
    errors = {(0.1, 0.0): (3, 9), (0.2, 0.0): (5, 5), (0.2, 1.0): (8, 4.5), (0.4, 1.0): (1, float("nan"))}
    rows = [{"method": "m", "lr": lr, "weight_decay": decay, "seed": seed, "step": step, "test_error": e if step else 0}
            for (lr, decay), own in errors.items() for seed, e in enumerate(own) for step in (0, 1)]
    found = decay_runs.tuned(rows)["m"]
    assert found == decay_runs.Tuned({"lr": 0.2, "weight_decay": 0.0}, 5.0, 4, ())  # no decay is no edge
    larger = decay_runs.tuned([row for row in rows if row["lr"] < 0.3 and row["weight_decay"] == 0])["m"]
    assert larger.edge == ("lr",) and "lr" in decay_runs.choices({"m": larger})


def test_signals_to_tune_on_are_not_those_of_the_test_and_a_seed_has_its_own():
    world = replace(WORLD, data="mnist1d", train_size=20)
    own, other = world.images(100), world.images(101)
    held = decay_runs.held_out(own, 100)
    assert torch.equal(own.test_x, other.test_x) and torch.equal(held.train_x, own.train_x)
    assert len(held.test_y) == 4000 and not torch.equal(held.test_x, own.test_x[:4000])
    assert not torch.equal(held.test_x, decay_runs.held_out(other, 101).test_x)
    digits = WORLD.images(0)
    assert decay_runs.held_out(digits, 0) is digits
