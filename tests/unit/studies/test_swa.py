import numpy as np
import pytest
from cells import executed

from studies import lookahead_claims, swa_claims


def test_schedules_are_the_authors():
    cell = executed("14_swa_landscapes", "settings", profile="toy")
    assert [cell["sgd_schedule"](t) for t in (0.0, 0.5, 0.7, 0.9, 1.0)] == pytest.approx([1, 1, 0.505, 0.01, 0.01])
    eta = cell["swa_schedule"](0.5, 0.75)
    assert [eta(t) for t in (0.0, 0.375, 0.525, 0.675, 0.75, 1.0)] == pytest.approx([1, 1, 0.75, 0.5, 0.5, 0.5])
    teeth = cell["cyclic_schedule"](1.0, 0.1, 0.5, 100, 10)
    values = np.array([teeth(step / 100) for step in range(50, 100)]).reshape(5, 10)
    np.testing.assert_allclose(values, np.tile(1 - 0.9 * np.arange(1, 11) / 10, (5, 1)), rtol=1e-9)


def test_claims_of_swas_full_record_are_made_from_it_or_not_run():
    rows = [{"method": m, "seed": s, "test_error": e + s, "average_test_error": e - 1.0 + s}
            for m, e in (("sgd", 14.0), ("swa", 15.5)) for s in (0, 1, 2)]
    order, last = swa_claims.full(rows)
    assert order.samples == (-0.5, -0.5, -0.5) and "was not recorded" in order.regime.fault
    assert last.below == order.id == "swa-table-1" and last.samples == (1.0, 1.0, 1.0)
    assert [claim.samples for claim in swa_claims.full(None)] == [None]


def test_claims_of_lookaheads_full_record_are_of_its_last_evaluation_or_not_run():
    rows = [{"rule": rule, "seed": seed, "step": step, "test_error": error + seed - step / 10}
            for rule, error in (("sgd", 20.0), ("lookahead", 18.0)) for seed in (0, 1) for step in (10, 20)]
    (found,) = lookahead_claims.full(rows)
    assert found.samples == (2.0, 2.0) and found.regime.test_error == 18.5 and found.regime.train_error is None
    assert [claim.samples for claim in lookahead_claims.full(None)] == [None]
