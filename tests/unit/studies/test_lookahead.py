import pytest

from sharpnb import lab
from studies import lookahead as study
from studies import lookahead_claims


def test_the_full_profile_runs_as_a_toy(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "sharpnb").mkdir()
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    nb = lab.start("16_lookahead", profile="toy", device="cpu")
    rows = study.full_rows(study.TOY, nb)
    assert {(row["rule"], row["seed"]) for row in rows} == {(rule, seed) for rule in ("sgd", "lookahead") for seed in range(2)}
    assert study.full_rows(study.TOY, nb) == rows  # a finished record is not run again


def test_claims_of_the_full_record_are_of_its_last_evaluation_or_not_run():
    rows = [{"rule": rule, "seed": seed, "step": step, "test_error": error + seed - step / 10}
            for rule, error in (("sgd", 20.0), ("lookahead", 18.0)) for seed in (0, 1) for step in (10, 20)]
    found = {claim.id: claim for claim in lookahead_claims.full({"rows": rows})}
    assert found["lookahead-cifar-sgd"].measured == pytest.approx(81.5) and found["lookahead-cifar-sgd"].n == 2
    assert lookahead_claims.made(rows, "toy", "toy")[0].measured == pytest.approx(2.0)
    assert {claim.verdict for claim in lookahead_claims.full(None)} == {"not run"}
