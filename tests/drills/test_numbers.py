"""Losses that are no number: a step that meets one leaves weights and state as they were, and neighbours are not touched."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from sharpnb.lab import load_data, models, train_many
from sharpnb.optim import ASAM, ESAM, GSAM, SAM, WSAM, FisherSAM, LookSAM

CLASSES = (SAM, ASAM, FisherSAM, ESAM, GSAM, LookSAM, WSAM)
STEPS = 12


def trained(make, poison: dict[int, float]) -> torch.Tensor:
    """Return the weights after as many good steps as :data:`STEPS`; before the steps named, one of a bad loss."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 5, generator=generator), torch.randint(3, (16,), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = make(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))

        def losses(factor: float) -> torch.Tensor:
            each = nn.functional.cross_entropy(net(x), y, reduction="none") * factor
            if not isinstance(optimizer, ESAM):  # which takes the vector and selects
                optimizer.zero_grad()
                each = each.mean()
                each.backward()
            return each

        for step in range(STEPS):
            if step in poison:
                state = torch.get_rng_state()  # ESAM draws its weights anew each step
                optimizer.step(partial(losses, poison[step]))
                torch.set_rng_state(state)
            optimizer.step(partial(losses, 1.0))
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def test_an_optimizer(drill):
    makes = [partial(kind, rho=0.05) for kind in CLASSES]
    whole = {make: trained(make, {}) for make in makes}
    for luck in drill.tries("a training with one of seven optimizers", "a loss of NaN or infinity at three random steps", 14):
        make = makes[drill.tried % len(makes)]
        poison = {step: luck.choice([math.nan, math.inf, -math.inf]) for step in luck.sample(range(STEPS), 3)}
        found = trained(make, poison)
        assert torch.equal(found, whole[make]), make
    hurt = sum(not trained(lambda base: base, {luck.randrange(STEPS): math.nan}).isfinite().all() for luck in drill.same())
    drill.control("torch.optim.SGD, lost", hurt)


def test_neighbours_of_one_that_diverges(drill):
    """In one batched program: K settings, one of which has an absurd learning rate."""
    data = load_data("digits", train_size=100)

    def weights(rates) -> list[dict]:
        cells = [{"rule": "sam", "rho": 0.05, "lr": lr, "seed": k} for k, lr in enumerate(rates)]
        return train_many(cells, data, lambda seed: models.mlp((64, 6, 10), seed=seed), steps=10, batch_size=25,
                          dtype=torch.float64, device="cpu", progress=False).final()

    good = [0.05, 0.1, 0.2, 0.4]
    whole = weights(good)
    for luck in drill.tries("four settings in one program", "one of them diverges", 4):
        bad = luck.randrange(4)
        found = weights([1e300 if k == bad else lr for k, lr in enumerate(good)])
        assert not math.isfinite(found[bad]["train_loss"])
        assert all(found[k] == whole[k] for k in range(4) if k != bad)
    assert weights([2 * lr for lr in good]) != whole  # the comparison can fail
