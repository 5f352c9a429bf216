from studies import lookahead_claims


def test_claims_of_the_full_record_are_of_its_last_evaluation_or_not_run():
    rows = [{"rule": rule, "seed": seed, "step": step, "test_error": error + seed - step / 10}
            for rule, error in (("sgd", 20.0), ("lookahead", 18.0)) for seed in (0, 1) for step in (10, 20)]
    (found,) = lookahead_claims.full(rows)
    assert found.samples == (2.0, 2.0) and found.regime.test_error == 18.5 and found.regime.train_error is None
    assert [claim.samples for claim in lookahead_claims.full(None)] == [None]
