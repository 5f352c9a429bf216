"""The table of measures, trace estimates, plots, bars, and products over several processes."""

import math
import multiprocessing
import os

import numpy as np
import pytest
import torch

from conftest import with_spectrum
from sharpnb.curvature import HessianOperator, kendall_tau, measure, spectral_density, top_eigenvalues, trace


def test_stated_trace_intervals_cover_the_truth_and_hutchpp_beats_hutchinson_on_outliers():
    values, errors = np.r_[30, 12, 5, np.linspace(-0.2, 1, 197)], {}
    for method in ("hutch++", "hutchinson"):
        op = with_spectrum(values)
        found = [trace(op, 30, method, seed=s) for s in range(40)]
        errors[method] = np.mean([f.stderr for f in found])
        z = np.array([(f.value - values.sum()) / f.stderr for f in found])
        assert (np.abs(z) <= 1.96).mean() >= 0.85 and errors[method] < 1.5 * np.std([f.value for f in found])
        assert op.products == 40 * 30 == sum(f.products for f in found)
    assert errors["hutch++"] < 0.5 * errors["hutchinson"]


def test_trace_special_cases():
    diagonal = torch.linspace(-1, 4, 50, dtype=torch.float64)
    found = trace(torch.diag(diagonal), 10, "hutchinson")
    assert found.value == pytest.approx(float(diagonal.sum()), rel=1e-12) and found.stderr < 1e-12
    small = trace(torch.diag(torch.tensor([3.0, -1.0])), 30)
    assert small.value == pytest.approx(2, rel=1e-6) and small.stderr == 0
    assert trace(torch.zeros(20, 20), 12).value == 0
    scaled, whole = (trace(torch.diag(diagonal) * f, 12).value for f in (1e-6, 1))
    assert scaled == pytest.approx(1e-6 * whole, rel=1e-9)
    for options, words in [({"products": 5}, "products = 5.*at least 6"), ({"method": "xtrace"}, "'xtrace'")]:
        with pytest.raises(ValueError, match=words):
            trace(torch.eye(3), **options)


def test_kendall_tau_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, y = rng.integers(0, 8, 30), rng.integers(0, 5, 30)
        assert kendall_tau(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))


def test_a_row_of_measures_is_made_of_their_dense_values(mlp_case):
    row = measure(mlp_case.model, mlp_case.loss, (mlp_case.x, mlp_case.y), rho=0.05)
    ev = mlp_case.eigenvalues
    assert row["lambda_max"] == pytest.approx(ev[-1], rel=1e-6)
    assert row["ratio_1_5"] == pytest.approx(ev[-1] / ev[-5], rel=1e-5)
    assert row["trace"] == pytest.approx(ev.sum(), rel=0.2)
    assert row["frobenius"] == pytest.approx(np.sqrt((ev**2).sum()), rel=0.01)
    assert row["sharpness_worst"] >= row["sharpness"]
    assert row["sharpness_average"] == pytest.approx(0.5 * 0.05**2 * ev.sum() / len(ev), rel=0.5)
    assert all(np.isfinite(list(row.values())))


def test_the_plot_shows_bulk_and_every_outlier():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    result = spectral_density(with_spectrum(np.r_[40, 25, 11, np.linspace(-0.1, 1, 297)]))
    ax = pyplot.subplots()[1]
    assert result.plot(ax) is ax and ax.get_yscale() == "log"
    curve, tops = ax.get_lines()
    assert set(np.round([40, 25, 11], 6)) <= set(np.round(tops.get_xdata(), 6))
    (low, high), x, heights = ax.get_ylim(), curve.get_xdata(), curve.get_ydata()
    shown = np.isfinite(heights)
    assert (tops.get_ydata() > low).all() and (tops.get_ydata() < high).all() and heights[shown].max() <= high
    assert heights[(x > 0.1) & (x < 0.9)].min() > low
    assert not shown[(x > 3) & (x < 9)].any(), "no curve where there is nothing"
    assert f"{result.products} products" in ax.get_legend().get_texts()[0].get_text()
    for matrix in (torch.zeros(4, 4), torch.eye(4)):
        spectral_density(matrix).plot()
    pyplot.close("all")


def test_a_progress_bar_counts_products(capsys):
    pytest.importorskip("tqdm")
    op, one_at_a_time = with_spectrum(np.linspace(0, 1, 60)), {"memory": 10 * 60 * 8, "deflate": 3}
    result = spectral_density(op, steps=10, probes=3, progress=True, **one_at_a_time)
    assert f"{result.products}/{result.products}" in capsys.readouterr().err, "the bar counts locking and every group"
    spectral_density(op, steps=10, probes=2, deflate=0)
    assert capsys.readouterr().err == ""


def one_rank(rank, store, results):
    """Compare a product summed over two ranks with the product over all of the data."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    x, y = torch.randn(50, 5).double(), torch.randint(0, 3, (50,))
    loss = torch.nn.functional.cross_entropy
    shard = (x[:35], y[:35]) if rank == 0 else (x[35:], y[35:])
    v = torch.randn(57, 2).double()
    shared, alone, cut = (HessianOperator(model, loss, data, group=group)
                          for data, group in ((shard, None), ((x, y), False), (shard, False)))
    torch.testing.assert_close(shared @ v, alone @ v, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(shared.gradient(), alone.gradient(), rtol=1e-12, atol=1e-14)
    assert not torch.allclose(cut @ v, alone @ v)
    results.put([top_eigenvalues(op, 2).values.tolist() for op in (shared, alone)])
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork") or not torch.distributed.is_available(), reason="needs fork and gloo")
def test_products_are_summed_over_ranks(tmp_path):
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    ranks = [fork.Process(target=one_rank, args=(rank, tmp_path / "store", results)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    first, second = results.get(), results.get()
    assert first == second
    np.testing.assert_allclose(first[0], first[1], rtol=1e-9)
