"""Lanczos and eigenvalues against dense truth, and on the spectra that break other tools."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from conftest import Breaking
from sharpnb.curvature import Ending, HessianOperator, lanczos, spectral_density, top_eigenvalues


def operator(case):
    return HessianOperator(case.model, case.loss, (case.x, case.y))


def test_extreme_eigenvalues_are_those_of_the_dense_hessian(case):
    result = lanczos(operator(case), 120)
    assert len(case.eigenvalues) < 2000
    assert result.values[-1] == pytest.approx(case.eigenvalues[-1], rel=1e-8)
    assert result.values[0] == pytest.approx(case.eigenvalues[0], rel=1e-8)


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_top_eigenvalues_of_each_end(mlp_case, which):
    ev, k = mlp_case.eigenvalues, 5
    largest = ev[np.argsort(-np.abs(ev))]
    expected = {"LA": ev[::-1][:k], "SA": ev[:k], "LM": largest[:k], "BE": np.r_[ev[:2], ev[-3:]]}[which]
    found = top_eigenvalues(operator(mlp_case), k, which, tol=1e-6)
    assert found.converged and found.verified
    np.testing.assert_allclose(found.values, expected, rtol=1e-8, atol=1e-10 * ev[-1])


def test_top_five_of_a_trained_cnn_take_25_products():
    """Two convolutions, 38,282 parameters, on the digits in float32, verified; truth from float64 at a tight tolerance."""
    images, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    x, y = torch.tensor(images[:512] / 16, dtype=torch.float32), torch.tensor(labels[:512])
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), nn.functional.cross_entropy
    for _ in range(12):
        for rows in torch.randperm(512).split(64):
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.9, "a net that learnt nothing has no outliers"
    x, y = x[:128], y[:128]
    found = [top_eigenvalues(HessianOperator(model, loss, (x, y)), 5, seed=seed) for seed in range(2)]
    truth = top_eigenvalues(HessianOperator(model.double(), loss, (x.double(), y)), 5, tol=1e-8).values
    for result in found:
        assert result.verified and result.products <= 25
        np.testing.assert_allclose(result.values, truth, rtol=1e-4)


def test_residuals_are_true_and_bound_the_error(case):
    op = operator(case)
    found = top_eigenvalues(op, 6, tol=1e-3)
    measured = (op @ found.vectors - found.vectors * torch.from_numpy(found.values)).norm(dim=0).numpy()
    assert (measured <= 1.1 * found.residuals).all()
    nearest = np.abs(found.values[:, None] - case.eigenvalues).min(axis=1)
    assert (nearest <= found.residuals).all()
    assert (measured >= 0.5 * (found.residuals - 1e-13)).all(), "a bound that is always huge would pass the tests above"
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(6, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_huge_eigenvalue_comes_back_once(spectrum_of, dtype):
    op = spectrum_of(np.r_[1e4, np.linspace(0, 1, 399)], dtype=dtype)
    result = lanczos(op, 150)
    assert (np.abs(result.values - 1e4) < 1e-3 * 1e4).sum() == 1
    error = result.basis @ result.basis.T - torch.eye(len(result.alpha), dtype=dtype)
    assert error.abs().max() < 20 * torch.finfo(dtype).eps


def test_ghosts_appear_without_reorthogonalisation(spectrum_of, monkeypatch):
    """Negative control of the test above."""
    module = __import__("sharpnb.curvature.lanczos", fromlist=["orthogonalize"])
    monkeypatch.setattr(module, "orthogonalize", lambda w, blocks: np.zeros(1))
    result = lanczos(spectrum_of(np.r_[1e4, np.linspace(0, 1, 399)], dtype=torch.float32), 150)
    assert (np.abs(result.values - 1e4) < 1e-3 * 1e4).sum() > 1


def test_quadrature_moments_are_exact_up_to_2m_minus_1(spectrum_of):
    values = np.linspace(-1, 1, 50) ** 3
    op = spectrum_of(values)
    start = torch.randn(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    m = 8
    run = lanczos(op, m, start)
    power = start / start.norm()
    unit = power.clone()
    for k in range(2 * m):
        assert (run.values**k) @ run.weights == pytest.approx(float(unit @ power), rel=1e-8, abs=1e-12)
        power = op @ power
    assert (run.values ** (2 * m)) @ run.weights != pytest.approx(float(unit @ power), rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multiplicities_are_found(spectrum_of, dtype):
    op = spectrum_of(np.r_[5, 5, 5, 3, 3, np.linspace(0, 1, 195)], dtype=dtype)
    found = top_eigenvalues(op, 5)
    np.testing.assert_allclose(found.values, [5, 5, 5, 3, 3], rtol=1e-5)
    assert found.verified
    missed = top_eigenvalues(op, 2, verify=False)
    assert not missed.verified and missed.values[1] == pytest.approx(3, rel=1e-5), "one chain alone sees one copy"


def test_a_low_rank_operator_ends_in_breakdown(spectrum_of):
    for dtype in (torch.float32, torch.float64):
        run = lanczos(spectrum_of([2.0, -1.0, *np.zeros(48)], dtype=dtype), 20)
        assert run.ending is Ending.BREAKDOWN and run.products == 3
        np.testing.assert_allclose(run.values, [-1, 0, 2], atol=1e-5)
        assert run.weights.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("matrix", [torch.zeros(7, 7), torch.eye(7) * 3, torch.tensor([[-2.5]])])
def test_degenerate_operators(matrix):
    run = lanczos(matrix, 10)
    assert run.ending is Ending.BREAKDOWN
    np.testing.assert_allclose(run.values, [float(matrix[0, 0])], rtol=1e-6)
    found = top_eigenvalues(matrix, len(matrix))
    np.testing.assert_allclose(found.values, np.full(len(matrix), float(matrix[0, 0])), rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e6, 1e-20])
def test_everything_scales_with_the_operator(spectrum_of, factor):
    values = np.r_[7, 4, np.linspace(-1, 1, 60)]
    op, scaled = spectrum_of(values), spectrum_of(values * factor)
    a, b = lanczos(op, 30), lanczos(scaled, 30)
    np.testing.assert_allclose(b.values, factor * a.values, rtol=1e-9, atol=1e-12 * factor)
    c, d = top_eigenvalues(op, 3), top_eigenvalues(scaled, 3)
    assert c.products == d.products
    np.testing.assert_allclose(d.values, factor * c.values, rtol=1e-12)


def test_bounded_memory_restarts_and_gets_there(mlp_case):
    op = operator(mlp_case)
    rows = 24
    found = top_eigenvalues(op, 4, "SA", tol=1e-6, memory=rows * op.n * 8, max_products=2000)
    assert found.converged and found.products > rows and (found.residuals <= 1e-6 * mlp_case.eigenvalues[-1]).all()
    np.testing.assert_allclose(found.values, mlp_case.eigenvalues[:4], rtol=1e-8)
    with pytest.raises(ValueError, match=r"memory = .* need at least 14"):
        top_eigenvalues(op, 4, memory=3 * op.n * 8)


def test_fewer_products_than_needed_says_so(mlp_case):
    found = top_eigenvalues(operator(mlp_case), 5, max_products=6)
    assert found.ending is Ending.MAX_STEPS and not found.converged and found.products == 6
    nearest = np.abs(found.values[:, None] - mlp_case.eigenvalues).min(axis=1)
    assert (nearest <= found.residuals).all()


@pytest.mark.parametrize(("error", "ending"), [(None, Ending.NON_FINITE), (KeyboardInterrupt(), Ending.INTERRUPTED)])
def test_what_was_done_survives_a_bad_product(spectrum_of, error, ending):
    op = spectrum_of(np.r_[9, 5, np.linspace(0, 1, 98)])
    run, whole = lanczos(Breaking(op, 13, error), 30), lanczos(op, 12)
    assert run.ending is ending and not run.complete
    np.testing.assert_array_equal(run.values, whole.values)
    found = top_eigenvalues(Breaking(op, 13, error), 2, tol=1e-14)
    assert found.ending is ending and found.products == 12 and found.values[0] == pytest.approx(9, rel=1e-6)


def test_seeds_reproduce_bit_for_bit(mlp_case):
    op = operator(mlp_case)
    a, b, c = (lanczos(op, 20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.basis, b.basis) and not torch.equal(a.basis, c.basis)


@pytest.mark.parametrize("function", [partial(lanczos, steps=25), partial(top_eigenvalues, k=3, tol=1e-10)])
def test_a_checkpoint_continues_bit_for_bit(spectrum_of, tmp_path, function):
    op = spectrum_of(np.r_[9, 5, 4, np.linspace(0, 1, 97)])
    path = tmp_path / "state.npz"
    with pytest.raises(RuntimeError, match="killed"):
        function(Breaking(op, 14, RuntimeError("killed")), checkpoint=path, checkpoint_every=0)
    resumed, before = function(op, checkpoint=path), op.products
    whole = function(op)
    np.testing.assert_array_equal(resumed.values, whole.values)
    assert resumed.products == whole.products == before, "13 before the kill, the rest after it"
    with pytest.raises(ValueError, match="checkpoint of another run"):
        lanczos(op, 26, checkpoint=path)


def test_wrong_arguments_say_what_to_do(spectrum_of):
    op = spectrum_of(np.arange(5.0))
    for call, words in [
        (lambda: lanczos(op, 0), "steps = 0"),
        (lambda: lanczos(op, 3, torch.zeros(5)), "norm 0"),
        (lambda: lanczos(op, 3, torch.ones(4)), r"shape \(4,\)"),
        (lambda: top_eigenvalues(op, 6), "k = 6.*between 1 and 5"),
        (lambda: top_eigenvalues(op, 1, "LR"), "'LR'.*'LA'"),
        (lambda: top_eigenvalues(op, 1, tol=0), "tol = 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def test_half_precision_operators_get_a_float32_basis():
    class Half:
        shape, dtype, device = (40, 40), torch.bfloat16, torch.device("cpu")

        def __matmul__(self, v):
            assert v.dtype == torch.bfloat16
            return torch.cat([torch.linspace(0, 1, 39), torch.tensor([4.0])]).bfloat16() * v

    run = lanczos(Half(), 8)
    assert run.basis.dtype == torch.float32 and run.values[-1] == pytest.approx(4, rel=0.02)


def test_no_copy_stays_hidden_by_rounding():
    """In float32 a missed copy grows inside the vector that waits, where an orthogonal start could not see it."""
    rng, n = np.random.default_rng(0), 600
    for trial in range(10):
        outliers = 2 + 8 * rng.random(rng.integers(5, 9))
        outliers = np.r_[outliers, [outliers[rng.integers(0, 5)]] * rng.integers(1, 3)]
        values = np.r_[outliers, rng.random(n - len(outliers)) ** rng.integers(1, 7)]
        diagonal = torch.tensor(values, dtype=torch.float32)
        found = top_eigenvalues(torch.diag(diagonal), 5, seed=trial)
        np.testing.assert_allclose(found.values, np.sort(values)[::-1][:5], rtol=1e-4)
        assert found.verified and found.converged


# ---- what was reached -----------------------------------------------------------------------------------------------


class Doing:
    """A matrix whose products something is done to."""

    def __init__(self, matrix, done):
        self.matrix, self.done = matrix, done
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, v):
        return self.done(self.matrix @ v)


def asymmetric(n, share, low_rank):
    g = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
    matrix = (q * torch.cat([torch.tensor([100.0, 60, 30]), torch.linspace(-1, 1, n - 3)]).double()) @ q.T
    noise = torch.randn(n, n, generator=g, dtype=torch.float64)
    noise = torch.outer(q[:, 0], q[:, 5]) if low_rank else noise / noise.norm() * n**0.5
    return matrix + 100 * share * noise


@pytest.mark.parametrize("n", [6, 300])
@pytest.mark.parametrize("low_rank", [False, True])
def test_an_asymmetric_operator_is_named(n, low_rank):
    matrix = asymmetric(n, 0.4, low_rank)
    for call in (lambda: top_eigenvalues(matrix, 2), lambda: top_eigenvalues(matrix, 1, verify=False), lambda: lanczos(matrix, 20), lambda: spectral_density(matrix, 10, 2)):
        with pytest.warns(UserWarning, match=r"not symmetric: u·Av and v·Au differ"):
            found = call()
        assert found.ending is Ending.ASYMMETRIC and found.complete and "no symmetric operator" in found.ending.value
    with pytest.warns(UserWarning, match="not symmetric"):
        assert top_eigenvalues(matrix, 1, tol=1e-12, max_products=5).ending is Ending.ASYMMETRIC, "no time to converge"


def test_noise_in_the_products_is_named_and_no_tolerance_raised_in_silence(spectrum_of):
    values = np.r_[9, 5, 4, np.linspace(0, 1, 297)]
    g = torch.Generator().manual_seed(0)
    noisy = {size: Doing(spectrum_of(values)._matrix, lambda w, size=size: w + size * w.norm() * torch.randn(w.shape, generator=g, dtype=w.dtype) / w.numel() ** 0.5)
             for size in (1e-9, 1e-4, 0.3)}
    exact = top_eigenvalues(noisy[1e-9], 3, tol=1e-6)
    assert exact.ending is Ending.CONVERGED and exact.converged and (exact.residuals <= 1e-6 * 9).all()
    rough = top_eigenvalues(noisy[1e-4], 3, tol=1e-6)
    assert rough.ending is Ending.ROUNDING and not rough.converged and rough.complete
    assert (rough.residuals > 1e-6 * 9).any() and (np.abs(rough.values - [9, 5, 4]) <= rough.residuals).all()
    assert top_eigenvalues(noisy[1e-4], 3, tol=1e-2).ending is Ending.CONVERGED, "less was asked than the products give"
    with pytest.warns(UserWarning, match="draw random"):
        random = top_eigenvalues(noisy[0.3], 1, max_products=60)
    assert random.ending is Ending.ASYMMETRIC and not random.converged
    assert " ± " in repr(rough) and "ROUNDING" in repr(rough)


def test_a_network_with_a_wrong_kernel_is_named():
    class Crooked(torch.autograd.Function):
        """A linear layer whose second derivative in the weights is a multiple: the matrix has no symmetry."""

        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x @ w.T

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g @ (w + 3 * (w - w.detach())), g.T @ x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.w = nn.Linear(5, 8), nn.Parameter(torch.randn(3, 8))

        def forward(self, x):
            return Crooked.apply(torch.tanh(self.a(x)), self.w)

    x, y = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    op = HessianOperator(Net(), nn.functional.cross_entropy, (x, y), check=False)
    with pytest.warns(UserWarning, match="wrong second derivative"):
        assert top_eigenvalues(op, 1).ending is Ending.ASYMMETRIC
    with pytest.warns(UserWarning, match="away from a difference"):
        found = top_eigenvalues(HessianOperator(Net(), nn.functional.cross_entropy, (x, y)), 1)
    assert found.converged
