"""Spectral density against dense spectra: mass, moments, error bars, brackets, outliers, degenerate spectra."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import Breaking, with_spectrum
from sharpnb.curvature import Ending, HessianOperator, SpectralDensity, lanczos, spectral_density

OUTLIERS = np.array([12.0, 8.0, 5.0, 3.0, 2.0])


@pytest.fixture(scope="module")
def networklike():
    """Order 400: five outliers, a bulk decaying towards zero, a small negative part."""
    rng = np.random.default_rng(0)
    bulk = np.sort(0.6 * rng.random(395) ** 6 - 0.02 * rng.random(395) ** 2)
    values = np.sort(np.r_[bulk, OUTLIERS])
    return with_spectrum(values), values


def test_first_ten_moments_are_the_dense_ones_within_their_errors(case):
    op = HessianOperator(case.model, case.loss, (case.x, case.y))
    moments = spectral_density(op, steps=20, probes=12, deflate=0, seed=1).moments(10)
    truth = np.array([(case.eigenvalues**k).mean() for k in range(1, 11)])
    assert moments.value.shape == moments.stderr.shape == (10,)
    assert (np.abs(moments.value - truth) <= 3.5 * moments.stderr).all()
    assert (moments.stderr < np.abs(truth)).all(), "errors wider than the value would make the line above empty"
    deflated = spectral_density(op, steps=20, probes=12, seed=1).moments(10)
    assert (np.abs(deflated.value - truth) <= 3.5 * deflated.stderr + 1e-6 * np.abs(truth)).all()
    assert deflated.stderr[3] < 0.2 * moments.stderr[3]


def test_density_integrates_to_one_and_scales(networklike):
    op, _ = networklike
    result = spectral_density(op, steps=40, probes=4)
    grid = result.grid(4000)
    curve = result.density(grid)
    assert (curve >= 0).all() and np.trapezoid(curve, grid) == pytest.approx(1, abs=1e-3)
    assert result.density(grid.reshape(40, 100)).shape == (40, 100)
    assert result.weights.sum() + len(result.atoms) / result.n == pytest.approx(1, abs=1e-12)
    for factor in (1e-6, 1e3):
        scaled = spectral_density(op._matrix * factor, steps=40, probes=4)
        np.testing.assert_allclose(scaled.density(grid * factor) * factor, curve, rtol=1e-5, atol=1e-9)
        for name in ("trace", "frobenius"):
            np.testing.assert_allclose(getattr(scaled, name), factor * np.array(getattr(result, name)), rtol=1e-9)
        assert scaled.width == pytest.approx(factor * result.width, rel=1e-9)
        assert scaled.ratio(1, 5) == pytest.approx(result.ratio(1, 5), rel=1e-9)
        assert scaled.negative_share().value == pytest.approx(result.negative_share().value, rel=1e-9)
        assert (scaled.products, scaled.ending) == (result.products, result.ending)


def test_outliers_are_counted_exactly_on_every_seed(networklike):
    op, _ = networklike
    for seed in range(12):
        result = spectral_density(op, steps=20, probes=2, seed=seed)
        assert result.n * (1 - result.cdf(1.0).value) == pytest.approx(5, abs=1e-9)
        np.testing.assert_allclose(result.top[:5], OUTLIERS, rtol=1e-6)
        assert result.ratio(1, 5) == pytest.approx(6, rel=1e-6)
    plain = [spectral_density(op, steps=20, probes=2, seed=seed, deflate=0) for seed in range(12)]
    counts = [p.n * (1 - p.cdf(1.0).value) for p in plain]
    assert np.std(counts) > 0.5, "plain quadrature does not know the number: this is what deflation repairs"
    with pytest.raises(ValueError, match=r"ratio\(1, 5\) needs the 5 largest.*deflate=10"):
        plain[0].ratio(1, 5)


@pytest.mark.parametrize("deflate", [0, "auto"])
def test_stated_trace_interval_covers_the_truth(networklike, deflate):
    op, values = networklike
    results = [spectral_density(op, steps=12, probes=8, deflate=deflate, seed=s).trace for s in range(40)]
    z = np.array([(r.value - values.sum()) / r.stderr for r in results])
    assert (np.abs(z) <= 1.96).mean() >= 0.85
    spread = np.std([r.value for r in results])
    assert np.mean([r.stderr for r in results]) < 1.5 * spread, "an interval wider than that says nothing"


def test_cdf_bracket_always_contains_the_probes_own_distribution():
    values = np.sort(np.random.default_rng(1).normal(size=60))
    op = with_spectrum(values)
    start = torch.randn(60, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    mass = (np.linalg.eigh(op._matrix.numpy())[1].T @ (start / start.norm()).numpy()) ** 2
    run, none, x = lanczos(op, 12, start), np.zeros(0), np.linspace(-4, 4, 400)
    bracket = SpectralDensity(60, none, none, (run,), 12, 0, 12, run.ending, 0).cdf(x)
    exact = np.array([mass[values <= at].sum() for at in x])
    assert (bracket.lower <= exact + 1e-12).all() and (exact <= bracket.upper + 1e-12).all()
    assert (bracket.upper - bracket.lower).mean() < 0.4
    assert (np.abs(bracket.value - exact) > 1e-3).any(), "the bracket is needed: the value alone is wrong somewhere"


def test_shares_norm_and_trace_are_the_dense_ones(networklike):
    op, values = networklike
    result = spectral_density(op)
    for estimate, truth in [(result.trace, values.sum()), (result.frobenius, np.sqrt((values**2).sum()))]:
        assert abs(estimate.value - truth) <= 4 * estimate.stderr + 1e-5 * truth
        assert estimate.stderr < 0.05 * truth
    assert result.lambda_max == pytest.approx(values[-1], rel=1e-8)
    share = result.negative_share(tol=1e-3)
    truth = (values < -1e-3 * values.max()).mean()
    assert share.lower <= truth + 2 * share.stderr and truth - 2 * share.stderr <= share.upper
    assert share.lower <= share.value <= share.upper
    at_zero = result.negative_share(0)
    assert at_zero.upper - at_zero.lower > share.upper - share.lower


@pytest.mark.parametrize(("matrix", "values"), [
    (torch.zeros(6, 6), np.zeros(6)), (torch.eye(6) * 2, np.full(6, 2.0)), (torch.tensor([[-3.0]]), [-3.0]),
    (torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0, 1.0, 0.0])), [0, 1, 1, 4, 4, 4]),
    (torch.diag(torch.tensor([2.0, -1.0] + [0.0] * 48)), [-1, *[0] * 48, 2]),
], ids=["zero", "2I", "1x1", "repeated", "rank2"])
@pytest.mark.parametrize("deflate", [0, "auto", 1])
def test_degenerate_spectra(matrix, values, deflate):
    result, values = spectral_density(matrix, deflate=deflate, probes=30), np.asarray(values, dtype=float)
    nodes, grid = np.r_[result.atoms, result.nodes], result.grid(4000)
    assert np.abs(nodes[:, None] - values).min(axis=1).max() < 1e-5, "no node where there is no eigenvalue"
    assert np.trapezoid(result.density(grid), grid) == pytest.approx(1, abs=1e-3)
    assert result.ending is Ending.BREAKDOWN
    assert abs(result.trace.value - values.sum()) <= 4 * result.trace.stderr + 1e-5
    assert np.isfinite([result.frobenius.value, result.lambda_max, result.lambda_min]).all()


@pytest.mark.parametrize(("error", "ending"), [(None, Ending.NON_FINITE), (KeyboardInterrupt(), Ending.INTERRUPTED)])
@pytest.mark.parametrize("at", [1, 45, 70])
def test_a_bad_product_leaves_a_partial_result(networklike, error, ending, at):
    op, _ = networklike
    result = spectral_density(Breaking(op, at, error), steps=30, probes=4, memory=2 * 30 * 400 * 8)
    assert result.ending is ending and not result.complete and result.products <= 150
    assert isinstance(result.summary(), str) and result.to_dict()["ending"] == ending.name.lower()
    if at >= 45:
        assert result.lambda_max == pytest.approx(12, rel=1e-6)
        assert np.trapezoid(result.density(result.grid()), result.grid()) == pytest.approx(1, abs=1e-2)


def test_wrong_arguments_say_what_to_do():
    op = torch.eye(5)
    for options, words in [({"steps": 0}, "steps = 0"), ({"probes": 0}, "probes = 0"), ({"deflate": 6}, "deflate = 6"),
                           ({"deflate": "all"}, "'all'"), ({"steps": 5, "memory": 99}, "use steps=4")]:
        with pytest.raises(ValueError, match=words):
            spectral_density(op, **options)


class Wide:
    """A large order and five outliers: a product without a matrix."""

    def __init__(self, n):
        self.values = torch.linspace(0, 1, n) ** 4
        self.values[:5] = torch.tensor([9.0, 7.0, 5.0, 4.0, 3.0])
        self.shape, self.dtype, self.device = (n, n), torch.float32, torch.device("cpu")

    def __matmul__(self, v):
        return self.values * v if v.dim() == 1 else self.values[:, None] * v


PEAK = """
import sys
import numpy as np
import torch
sys.path.insert(0, {here!r})
from sharpnb.curvature import memory_plan, spectral_density
from test_curvature_density import Wide

def peak():  # of this process alone: getrusage's ru_maxrss begins with what the parent held when it forked
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

torch.set_num_threads(1)
n, row = 1_000_000, 4e6
spectral_density(Wide(1000), 5, 2)
op = Wide(n)
before = peak()
plan = memory_plan(op, 40, 2, memory=40 * row)
result = spectral_density(op, 40, 2, memory=40 * row)
after = peak()
np.testing.assert_allclose(result.top[:5], [9, 7, 5, 4, 3], rtol=1e-5)
truth = float(op.values.double().sum())
assert abs(result.trace.value - truth) < 5 * result.trace.stderr + 1e-3 * truth
print(plan.group, plan.probing / row, (after - before) / row)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_the_peak_is_what_was_stated_and_some_vectors():
    here = os.path.dirname(__file__)
    done = subprocess.run([sys.executable, "-c", PEAK.format(here=here)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    group, stated, used = map(float, done.stdout.split())
    assert group == 1 and stated == 40
    assert 0.8 * stated < used < stated + 20, "five locked vectors and some to work with on top"
