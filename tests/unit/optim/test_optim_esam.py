"""ESAM's two selections, and GSAM's radius."""

from __future__ import annotations

import family
import pytest
import torch
from torch import Tensor, nn

from sharpnb.optim import ESAM, GSAM


def _linear(slopes: list[float]) -> tuple[nn.Parameter, Tensor]:
    return nn.Parameter(torch.zeros(1)), torch.tensor(slopes)


@pytest.mark.parametrize(("gamma", "expected"), [
    (0.01, [2]), (0.125, [2]), (0.126, [2, 3]), (0.375, [2, 3, 5]), (0.5, [0, 2, 3, 5]), (1.0, list(range(8))),
])  # fmt: skip
@pytest.mark.parametrize("by_rows", [False, True])
def test_exactly_the_ceiling_of_the_share_is_back_propagated(gamma: float, expected: list[int], by_rows: bool) -> None:
    """Losses l_j = s_j w: the increase is in the order of the slopes. Rows 2, 3 and 5 tie; the first ones stay."""
    p, slopes = _linear([2.0, -1.0, 3.0, 3.0, 1.0, 3.0, 0.0, 0.5])
    reached = torch.zeros(8)

    def arrived(index: Tensor) -> None:
        reached.zero_()
        reached[index] = 1

    def losses(rows: Tensor | None = None) -> Tensor:
        index = torch.arange(8) if rows is None else rows
        value = p * slopes[index]
        if value.requires_grad:
            value.register_hook(lambda g: arrived(index[g != 0]))
        return value

    optimizer = ESAM(torch.optim.SGD([p], lr=1.0), rho=0.1, beta=1.0, gamma=gamma)
    loss = optimizer.step(losses if by_rows else lambda: losses())
    assert reached.nonzero().flatten().tolist() == expected
    assert p.item() == pytest.approx(-slopes[expected].mean().item()) and loss.item() == 0.0


def test_the_closure_must_return_the_vector() -> None:
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"returned \(\).*per-sample.*reduction='none'"):
        ESAM(torch.optim.SGD([p], lr=1.0)).step(lambda: p.sum())


def test_the_expected_perturbation_is_sams() -> None:
    params, eps = family.parameters(), []
    optimizer = ESAM(torch.optim.SGD(params, lr=0.0), rho=0.2, beta=0.5)
    start = family.flat(params).detach().clone()

    def closure() -> Tensor:
        eps.append(family.flat(params).detach() - start)
        return family.losses(family.flat(params)[None])[0]

    for _ in range(600):
        optimizer.step(closure)
    g = torch.as_tensor(family.numpy_gradient(family.START))
    mean, sam = torch.stack(eps[1::2]).mean(0), 0.2 * g / g.norm()
    assert ((mean - sam).abs() <= 5 * sam.abs() / 600**0.5).all()  # five standard errors: sqrt((1 - beta) / beta) = 1
    assert len({tuple((e != 0).tolist()) for e in eps[1::2]}) > 500


def test_masks_depend_on_the_seed_and_the_update_only() -> None:
    def masks(seed: int, noise: int) -> list[Tensor]:
        params, seen = family.parameters(), []
        optimizer = ESAM(torch.optim.SGD(params, lr=0.1), seed=seed)
        torch.manual_seed(noise)

        def closure() -> Tensor:
            seen.append(family.flat(params).detach().clone())
            return family.losses(family.flat(params)[None])[0]

        for _ in range(5):
            optimizer.step(closure)
        return [b != a for a, b in zip(seen[0::2], seen[1::2], strict=True)]

    assert all(torch.equal(a, b) for a, b in zip(masks(1, 2), masks(1, 3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(masks(1, 2), masks(2, 2), strict=True))


def test_gsams_radius_follows_each_groups_learning_rate() -> None:
    params, seen = family.parameters(), []
    base = torch.optim.SGD(family.groups(params, {"lr": 0.4}, {"lr": 0.2}))
    optimizer = GSAM(base, rho=0.3, rho_min=0.1, lr_min=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 - 0.25 * t)

    def closure() -> Tensor:
        seen.append([family.flat(params[:2]).detach().clone(), family.flat(params[2:]).detach().clone(), None])
        loss = family.closure_for(params)()
        seen[-1][2] = [torch.cat([p.grad.flatten() for p in ps]) for ps in (params[:2], params[2:])]
        return loss

    radii = []
    for _ in range(3):
        optimizer.step(closure)
        schedule.step()
        (a, b, (ga, gb)), (c, d, _) = seen[-2:]
        total = torch.cat([ga, gb]).norm()
        radii.append([((c - a).norm() / ga.norm() * total).item(), ((d - b).norm() / gb.norm() * total).item()])
    # lr: 0.4, 0.3, 0.2 and 0.2, 0.15, 0.1, over [0.1, 0.4] and [0.1, 0.2]
    assert radii == [pytest.approx([0.3, 0.3]), pytest.approx([0.1 + 0.2 * 2 / 3, 0.2]),
                     pytest.approx([0.1 + 0.2 / 3, 0.1])]
