"""Lookahead against a hand-written loop, its limits, and the state that a resumed run needs."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from sharpnb.averaging import SWA, Lookahead
from sharpnb.optim import SAM

X = torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(X.to(next(model.parameters()).dtype)) - Y.to(next(model.parameters()).dtype)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def flat(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def by_hand(base: str, k: int, alpha: float, steps: int, momentum: str = "keep") -> torch.Tensor:
    """The reference: fast steps by a bare optimizer, slow weights and momentum in lists of its own."""
    model = net()
    optimizer = BASES[base](model.parameters())
    slow = [p.detach().clone() for p in model.parameters()]
    slow_m = [torch.zeros_like(p) for p in slow]
    for step in range(1, steps + 1):
        advance(model, optimizer, 1)
        if step % k:
            continue
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                slow[i] = slow[i] + alpha * (p - slow[i])
                p.copy_(slow[i])
                m = optimizer.state[p]["momentum_buffer" if "momentum_buffer" in optimizer.state[p] else "exp_avg"]
                slow_m[i] = slow_m[i] + alpha * (m - slow_m[i])
                if momentum != "keep":
                    m.copy_(slow_m[i] if momentum == "pullback" else torch.zeros_like(m))
    return flat(model)


@pytest.mark.parametrize("momentum", ["keep", "reset", "pullback"])
@pytest.mark.parametrize("base", BASES)
def test_it_is_the_loop_written_by_hand(base, momentum):
    model = net()
    advance(model, Lookahead(BASES[base](model.parameters()), k=3, alpha=0.4, momentum=momentum), 20)
    truth = by_hand(base, 3, 0.4, 20, momentum)
    torch.testing.assert_close(flat(model), truth, rtol=1e-12, atol=1e-13)
    assert (flat(model) - by_hand(base, 3, 0.5, 20, momentum)).abs().max() > 1e-4  # the comparison can tell


def test_alpha_one_is_the_base_bit_by_bit():
    model, bare = net(), net()
    advance(model, Lookahead(BASES["adam"](model.parameters()), k=4, alpha=1.0), 13)
    advance(bare, BASES["adam"](bare.parameters()), 13)
    assert torch.equal(flat(model), flat(bare))


def test_slow_weights_are_the_exponential_average_of_the_end_points():
    # phi_T = alpha * sum_t (1 - alpha)^(T - t) theta_t,k + (1 - alpha)^T phi_0
    model = net()
    start, ends, alpha, k = flat(model), [], 0.3, 5
    lookahead = Lookahead(BASES["sgd"](model.parameters()), k=k, alpha=alpha)
    lookahead.base_optimizer.register_step_post_hook(lambda *_: ends.append(flat(model)))
    advance(model, lookahead, 4 * k)
    ends = ends[k - 1 :: k]
    unrolled = (1 - alpha) ** 4 * start + sum(alpha * (1 - alpha) ** (3 - t) * end for t, end in enumerate(ends))
    torch.testing.assert_close(flat(model), unrolled, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("momentum", ["keep", "pullback"])
def test_resumes_bit_by_bit_in_the_middle_of_a_cycle(momentum):
    def build():
        model = net()
        return model, Lookahead(BASES["adam"](model.parameters()), k=5, alpha=0.5, momentum=momentum)

    straight, optimizer = build()
    advance(straight, optimizer, 17)
    first, optimizer = build()
    advance(first, optimizer, 8)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second, optimizer = build()
    second.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    advance(second, optimizer, 9)
    assert torch.equal(flat(second), flat(straight))
    # Negative control: without the slow weights (the bare base's checkpoint) the run goes elsewhere.
    third, optimizer = build()
    third.load_state_dict(saved["model"])
    bare = BASES["adam"](net().parameters())
    bare.load_state_dict(saved["optimizer"])  # the base takes it too
    for state in bare.state.values():
        for name in [name for name in state if name.startswith("slow")]:
            del state[name]
    optimizer.load_state_dict(bare.state_dict())
    advance(third, optimizer, 9)
    assert not torch.equal(flat(third), flat(straight))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_continue_alike(duplicate):
    model = net()
    optimizer = Lookahead(BASES["sgd"](model.parameters()), k=4)
    advance(model, optimizer, 6)
    other, twin = duplicate((model, optimizer))
    assert twin.param_groups is twin.base_optimizer.param_groups
    advance(model, optimizer, 5)
    advance(other, twin, 5)
    assert torch.equal(flat(other), flat(model))


def test_slow_weights_can_be_looked_at_and_nothing_moves():
    model = net()
    optimizer = Lookahead(BASES["sgd"](model.parameters()), k=4, alpha=0.5)
    start = flat(model)
    advance(model, optimizer, 3)
    fast = flat(model)
    with optimizer.slow_weights():
        assert torch.equal(flat(model), start)
        with pytest.raises(RuntimeError, match="inside slow_weights"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="inside slow_weights"):
            optimizer.state_dict()
    assert torch.equal(flat(model), fast) and not torch.equal(fast, start)


def test_groups_with_their_own_cycle_schedulers_and_closures():
    model = net()
    base = torch.optim.SGD([{"params": model[0].parameters(), "k": 2, "alpha": 1.0}, {"params": model[2].parameters()}], lr=0.1)
    optimizer = Lookahead(base, k=3, alpha=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    start, fast = [w.detach().clone() for w in (model[0].weight, model[2].weight)], []
    base.register_step_post_hook(lambda *_: fast.append([w.detach().clone() for w in (model[0].weight, model[2].weight)]))

    def closure():
        optimizer.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        expected = (model(X) - Y).square().mean().item()
        assert optimizer.step(closure).item() == expected
        scheduler.step()
    assert base.param_groups[0]["lr"] == pytest.approx(0.0125)
    assert [group["k"] for group in optimizer.param_groups] == [2, 3]
    assert torch.equal(model[0].weight, fast[2][0])  # alpha = 1 never pulls back
    torch.testing.assert_close(model[2].weight.detach(), (start[1] + fast[2][1]) / 2, rtol=1e-14, atol=1e-15)


def test_a_group_added_later_and_a_layer_thawed_later_start_with_their_first_step():
    model = net()
    model[0].requires_grad_(False)
    optimizer = Lookahead(torch.optim.Adam(model[0].parameters(), lr=0.1), k=2, alpha=0.5)
    optimizer.add_param_group({"params": model[2].parameters(), "k": 3})
    frozen = model[0].weight.detach().clone()
    advance(model, optimizer, 3)
    assert torch.equal(model[0].weight, frozen) and "slow" not in optimizer.state[model[0].weight]
    model[0].requires_grad_(True)
    advance(model, optimizer, 1)  # the fourth step: the first group pulls half of its first step back
    torch.testing.assert_close(optimizer.state[model[0].weight]["slow"], model[0].weight.detach())
    assert (model[0].weight - frozen).abs().max().item() == pytest.approx(0.05, rel=1e-3)  # Adam's first step is lr


def test_over_sam_and_under_swa():
    def run(wrap, steps=12):
        model = net()
        optimizer, ends = wrap(SAM(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.05, momentum=0.9)), []
        swa = SWA(model)

        def closure():
            loss = (model(X) - Y).square().mean()
            loss.backward()
            return loss

        for step in range(1, steps + 1):
            optimizer.step(closure)
            if step % 4 == 0:
                swa.update()
                ends.append(flat(model))
        torch.testing.assert_close(swa.vector(), torch.stack(ends).mean(0), rtol=1e-13, atol=1e-15)
        return flat(model)

    bare = run(lambda sam: sam)
    assert torch.equal(run(lambda sam: Lookahead(sam, k=4, alpha=1.0)), bare)
    assert (run(lambda sam: Lookahead(sam, k=4, alpha=0.5)) - bare).abs().max() > 1e-4


def test_half_precision_weights():
    model = net(torch.bfloat16)
    losses = advance(model, Lookahead(torch.optim.SGD(model.parameters(), lr=0.05), k=2), 20)
    assert losses[-1] < losses[0] and flat(model).dtype == torch.bfloat16


@pytest.mark.parametrize("wrong, said", [
    ({"k": 0}, "k = 0"), ({"alpha": 0.0}, r"alpha = 0.0"), ({"alpha": 1.5}, r"alpha = 1.5"), ({"momentum": "drop"}, "'drop'"),
])
def test_settings_out_of_range_are_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        Lookahead(BASES["sgd"](net().parameters()), **wrong)


def test_parameters_instead_of_an_optimizer():
    with pytest.raises(TypeError, match="Build the base first"):
        Lookahead(net().parameters())
