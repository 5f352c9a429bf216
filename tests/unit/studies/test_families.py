import pytest
import torch

from studies import families

BUILDERS = {
    "shake": lambda seed=0: families.shake_shake(8, 4, channels=1, seed=seed),
    "pyramid": lambda seed=0: families.pyramid_net(8, 6, channels=1, seed=seed),
    "shakedrop": lambda seed=0: families.pyramid_net(8, 6, last_keep=0.5, channels=1, seed=seed),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_weights_come_from_the_seed_and_only_the_shakes_are_random_and_only_in_training(name):
    before = torch.random.get_rng_state()
    first, again, other = BUILDERS[name](), BUILDERS[name](), BUILDERS[name](1)
    assert torch.equal(before, torch.random.get_rng_state())
    a, b, c = (torch.nn.utils.parameters_to_vector(m.parameters()) for m in (first, again, other))
    assert torch.equal(a, b) and not torch.equal(a, c)
    x = torch.rand(4, 1, 9, 9)
    assert torch.equal(first.eval()(x), first(x)) and first(x).shape == (4, 10)
    assert torch.equal(first.train()(x), first(x)) == (name == "pyramid")


def test_shake_shake_mixes_value_and_gradient_by_their_own_numbers(monkeypatch):
    block, x = families.ShakeShake(2, 2, 1).double(), torch.rand(3, 2, 4, 4, dtype=torch.float64)
    numbers = iter([torch.tensor(a, dtype=torch.float64) for a in (0.9, 0.2)])
    monkeypatch.setattr(families, "_uniform", lambda *_: next(numbers))
    kept = [None, None]
    for k, branch in enumerate(block.branches):
        branch.register_forward_hook(lambda _, __, out, k=k: kept.__setitem__(k, out))
    y = block(x)
    u, v = kept
    assert torch.allclose(y, x + 0.9 * u + 0.1 * v)
    g = torch.autograd.grad(y.sum(), (u, v))
    assert torch.allclose(g[0], torch.full_like(u, 0.2)) and torch.allclose(g[1], torch.full_like(v, 0.8))


def test_true_gradient_is_the_gradient_of_the_value():
    block = families.Pyramid(2, 2, 1, keep=0.5).double().train()
    block.true_gradient = True
    x = torch.rand(6, 2, 4, 4, dtype=torch.float64)
    residual = torch.rand(6, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    value = block._shaken(residual)
    slope = torch.autograd.grad(value.sum(), residual)[0]
    assert torch.allclose(value, slope * residual) and block(x).shape == x.shape


def test_shakedrop_in_evaluation_is_the_mean_of_training():
    block = families.Pyramid(1, 1, 1, keep=0.7).double()
    residual = torch.ones(200_000, 1, 1, 1, dtype=torch.float64)
    torch.manual_seed(0)
    sampled = block.train()._shaken(residual).mean().item()
    assert block.eval()._shaken(residual)[0].item() == pytest.approx(0.7)
    assert sampled == pytest.approx(0.7, abs=5e-3)  # its standard error is 1e-3
