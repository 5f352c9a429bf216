"""Lanczos and extreme eigenvalues against dense truth, and against spectra that break other tools."""

from functools import partial

import numpy as np
import pytest
import torch

from conftest import Breaking, Doing, with_spectrum
from sharpnb.curvature import Ending, HessianOperator, lanczos, spectral_density, top_eigenvalues
from sharpnb.lab import load_data, train


def operator(case):
    return HessianOperator(case.model, case.loss, (case.x, case.y))


def test_extreme_eigenvalues_are_those_of_the_dense_hessian_and_residuals_bound_the_error(case):
    op = operator(case)
    np.testing.assert_allclose(lanczos(op, 120).values[[0, -1]], case.eigenvalues[[0, -1]], rtol=1e-8)
    found = top_eigenvalues(op, 6, tol=1e-3)
    measured = (op @ found.vectors - found.vectors * torch.from_numpy(found.values)).norm(dim=0).numpy()
    assert (measured <= 1.1 * found.residuals).all()
    assert (np.abs(found.values[:, None] - case.eigenvalues).min(axis=1) <= found.residuals).all()
    assert (measured >= 0.5 * (found.residuals - 1e-13)).all(), "a bound that is always huge would pass the lines above"
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(6, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_top_eigenvalues_of_each_end(mlp_case, which):
    ev, k = mlp_case.eigenvalues, 5
    largest = ev[np.argsort(-np.abs(ev))]
    expected = {"LA": ev[::-1][:k], "SA": ev[:k], "LM": largest[:k], "BE": np.r_[ev[:2], ev[-3:]]}[which]
    found = top_eigenvalues(operator(mlp_case), k, which, tol=1e-6)
    assert found.converged and found.verified
    np.testing.assert_allclose(found.values, expected, rtol=1e-8, atol=1e-10 * ev[-1])


def test_top_five_of_a_trained_cnn_take_25_products():
    """38,282 weights, on the digits in float32, verified; the truth from float64 at a tight tolerance."""
    data, nn = load_data("digits", train_size=512), torch.nn
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
                          nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
    train(model, data, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), steps=192, batch_size=64)
    assert (model(data.train_x).argmax(1) == data.train_y).float().mean() > 0.9, "it learnt nothing"
    loss, x, y = nn.functional.cross_entropy, data.train_x[:128], data.train_y[:128]
    found = [top_eigenvalues(HessianOperator(model, loss, (x, y)), 5, seed=seed) for seed in range(2)]
    truth = top_eigenvalues(HessianOperator(model.double(), loss, (x.double(), y)), 5, tol=1e-8).values
    assert all(result.verified and result.products <= 25 for result in found)
    np.testing.assert_allclose([result.values for result in found], [truth, truth], rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_huge_eigenvalue_comes_back_once_and_ghosts_without_reorthogonalisation(dtype, monkeypatch):
    op = with_spectrum(np.r_[1e4, np.linspace(0, 1, 399)], dtype=dtype)
    result = lanczos(op, 150)
    assert (np.abs(result.values - 1e4) < 10).sum() == 1
    error = result.basis @ result.basis.T - torch.eye(len(result.alpha), dtype=dtype)
    assert error.abs().max() < 20 * torch.finfo(dtype).eps
    module = __import__("sharpnb.curvature.lanczos", fromlist=["orthogonalize"])
    monkeypatch.setattr(module, "orthogonalize", lambda w, blocks: np.zeros(1))
    assert (np.abs(lanczos(op, 150).values - 1e4) < 10).sum() > 1, "negative control"


def test_quadrature_moments_are_exact_up_to_2m_minus_1():
    op, m = with_spectrum(np.linspace(-1, 1, 50) ** 3), 8
    start = torch.randn(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    run = lanczos(op, m, start)
    unit = power = start / start.norm()
    for k in range(2 * m):
        assert (run.values**k) @ run.weights == pytest.approx(float(unit @ power), rel=1e-8, abs=1e-12)
        power = op @ power
    assert (run.values ** (2 * m)) @ run.weights != pytest.approx(float(unit @ power), rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multiplicities_are_found(dtype):
    op = with_spectrum(np.r_[5, 5, 5, 3, 3, np.linspace(0, 1, 195)], dtype=dtype)
    found = top_eigenvalues(op, 5)
    np.testing.assert_allclose(found.values, [5, 5, 5, 3, 3], rtol=1e-5)
    assert found.verified
    missed = top_eigenvalues(op, 2, verify=False)
    assert not missed.verified and missed.values[1] == pytest.approx(3, rel=1e-5), "one chain alone sees one copy"


def test_no_copy_stays_hidden_by_rounding():
    """In float32 a missed copy grows inside the vector that waits, where an orthogonal start could not see it."""
    rng, n = np.random.default_rng(0), 600
    for trial in range(10):
        outliers = 2 + 8 * rng.random(rng.integers(5, 9))
        outliers = np.r_[outliers, [outliers[rng.integers(0, 5)]] * rng.integers(1, 3)]
        values = np.r_[outliers, rng.random(n - len(outliers)) ** rng.integers(1, 7)]
        found = top_eigenvalues(torch.diag(torch.tensor(values, dtype=torch.float32)), 5, seed=trial)
        np.testing.assert_allclose(found.values, np.sort(values)[::-1][:5], rtol=1e-4)
        assert found.verified and found.converged


@pytest.mark.parametrize(("matrix", "values"), [
    (torch.zeros(7, 7), [0]), (torch.eye(7) * 3, [3]), (torch.tensor([[-2.5]]), [-2.5]),
    (with_spectrum([2.0, -1.0, *np.zeros(48)], dtype=torch.float32)._matrix, [-1, 0, 2]),
    (with_spectrum([2.0, -1.0, *np.zeros(48)])._matrix, [-1, 0, 2]),
], ids=["zero", "3I", "1x1", "rank 2 in float32", "rank 2"])
def test_a_space_that_is_exhausted_ends_in_breakdown(matrix, values):
    run = lanczos(matrix, 20)
    assert run.ending is Ending.BREAKDOWN and run.products == len(values)
    np.testing.assert_allclose(run.values, values, rtol=1e-6, atol=1e-5)
    assert run.weights.sum() == pytest.approx(1, abs=1e-12)
    if len(values) == 1:
        found = top_eigenvalues(matrix, len(matrix))
        np.testing.assert_allclose(found.values, np.full(len(matrix), values[0]), rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-20, 1e-6, 1e6])
def test_everything_scales_with_the_operator(factor):
    values = np.r_[7, 4, np.linspace(-1, 1, 60)]
    op, scaled = with_spectrum(values), with_spectrum(values * factor)
    np.testing.assert_allclose(lanczos(scaled, 30).values, factor * lanczos(op, 30).values, rtol=1e-9,
                               atol=1e-12 * factor)
    c, d = top_eigenvalues(op, 3), top_eigenvalues(scaled, 3)
    assert c.products == d.products
    np.testing.assert_allclose(d.values, factor * c.values, rtol=1e-12)


def test_bounded_memory_restarts_and_gets_there_and_few_products_say_so(mlp_case):
    op, rows = operator(mlp_case), 24
    found = top_eigenvalues(op, 4, "SA", tol=1e-6, memory=rows * op.n * 8, max_products=2000)
    assert found.converged and found.products > rows and (found.residuals <= 1e-6 * mlp_case.eigenvalues[-1]).all()
    np.testing.assert_allclose(found.values, mlp_case.eigenvalues[:4], rtol=1e-8)
    with pytest.raises(ValueError, match=r"memory = .* need at least 14"):
        top_eigenvalues(op, 4, memory=3 * op.n * 8)
    few = top_eigenvalues(op, 5, max_products=6)
    assert few.ending is Ending.MAX_STEPS and not few.converged and few.products == 6
    assert (np.abs(few.values[:, None] - mlp_case.eigenvalues).min(axis=1) <= few.residuals).all()


@pytest.mark.parametrize(("error", "ending"), [(None, Ending.NON_FINITE), (KeyboardInterrupt(), Ending.INTERRUPTED)])
def test_what_was_done_survives_a_bad_product(error, ending):
    op = with_spectrum(np.r_[9, 5, np.linspace(0, 1, 98)])
    run, whole = lanczos(Breaking(op, 13, error), 30), lanczos(op, 12)
    assert run.ending is ending and not run.complete
    np.testing.assert_array_equal(run.values, whole.values)
    found = top_eigenvalues(Breaking(op, 13, error), 2, tol=1e-14)
    assert found.ending is ending and found.products == 12 and found.values[0] == pytest.approx(9, rel=1e-6)


DENSITY = partial(spectral_density, steps=12, probes=3, memory=12 * 100 * 8)  # one probe after the other


@pytest.mark.parametrize(("function", "values", "at"), [
    (partial(lanczos, steps=25), "values", 14), (partial(top_eigenvalues, k=3, tol=1e-10), "values", 14),
    (DENSITY, "nodes", 9), (DENSITY, "nodes", 50)], ids=["lanczos", "top", "locking", "probing"])
def test_a_checkpoint_continues_bit_for_bit(tmp_path, function, values, at):
    op, path = with_spectrum(np.r_[9, 5, 4, np.linspace(0, 1, 97)]), tmp_path / "state.npz"
    with pytest.raises(RuntimeError, match="killed"):
        function(Breaking(op, at, RuntimeError("killed")), checkpoint=path, checkpoint_every=0)
    resumed, before = function(op, checkpoint=path), op.products
    whole = function(op)
    np.testing.assert_array_equal(getattr(resumed, values), getattr(whole, values))
    assert resumed.products == whole.products == before, "some before the kill, the rest after it"
    with pytest.raises(ValueError, match="checkpoint of another run"):
        lanczos(op, 26, checkpoint=path)


def test_wrong_arguments_say_what_to_do():
    op = torch.diag(torch.arange(5.0))
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
    run = lanczos(torch.diag(torch.cat([torch.linspace(0, 1, 39), torch.tensor([4.0])])).bfloat16(), 8)
    assert run.basis.dtype == torch.float32 and run.values[-1] == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("n", [6, 300])
@pytest.mark.parametrize("low_rank", [False, True])
def test_an_asymmetric_operator_is_named(n, low_rank):
    g = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
    noise = torch.randn(n, n, generator=g, dtype=torch.float64)
    noise = torch.outer(q[:, 0], q[:, 5]) if low_rank else noise / noise.norm() * n**0.5
    matrix = (q * torch.cat([torch.tensor([100.0, 60, 30]), torch.linspace(-1, 1, n - 3)]).double()) @ q.T + 40 * noise
    for call in (partial(top_eigenvalues, k=2), partial(top_eigenvalues, verify=False), partial(lanczos, steps=20),
                 partial(spectral_density, steps=10, probes=2), partial(top_eigenvalues, tol=1e-12, max_products=5)):
        with pytest.warns(UserWarning, match=r"not symmetric: u·Av and v·Au differ"):
            found = call(matrix)
        assert found.ending is Ending.ASYMMETRIC and found.complete


def test_noise_in_the_products_is_named_and_no_tolerance_raised_in_silence():
    matrix = with_spectrum(np.r_[9, 5, 4, np.linspace(0, 1, 297)])._matrix
    g = torch.Generator().manual_seed(0)

    def noisy(size):
        def shaken(w):
            return w + size * w.norm() * torch.randn(w.shape, generator=g, dtype=w.dtype) / w.numel() ** 0.5

        return Doing(matrix, shaken)

    exact = top_eigenvalues(noisy(1e-9), 3, tol=1e-6)
    assert exact.ending is Ending.CONVERGED and exact.converged and (exact.residuals <= 1e-6 * 9).all()
    rough = top_eigenvalues(noisy(1e-4), 3, tol=1e-6)
    assert rough.ending is Ending.ROUNDING and not rough.converged and rough.complete and " ± " in repr(rough)
    assert (rough.residuals > 1e-6 * 9).any() and (np.abs(rough.values - [9, 5, 4]) <= rough.residuals).all()
    assert top_eigenvalues(noisy(1e-4), 3, tol=1e-2).ending is Ending.CONVERGED, "less was asked than products give"
    with pytest.warns(UserWarning, match="draw random"):
        assert top_eigenvalues(noisy(0.3), 1, max_products=60).ending is Ending.ASYMMETRIC
