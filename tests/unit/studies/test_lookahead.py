import pytest

from studies import lookahead_claims


def test_claims_of_the_full_record_are_of_its_last_evaluation_or_not_run():
    rows = [{"rule": rule, "seed": seed, "step": step, "test_error": error + seed - step / 10}
            for rule, error in (("sgd", 20.0), ("lookahead", 18.0)) for seed in (0, 1) for step in (10, 20)]
    found = {claim.id: claim for claim in lookahead_claims.full({"rows": rows})}
    assert found["lookahead-cifar-sgd"].measured == pytest.approx(81.5) and found["lookahead-cifar-sgd"].n == 2
    assert lookahead_claims.made(rows, "toy", "toy")[0].measured == pytest.approx(2.0)
    assert {claim.verdict for claim in lookahead_claims.full(None)} == {"not run"}
