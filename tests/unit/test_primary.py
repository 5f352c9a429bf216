"""The list of primary claims: complete, each with what its judgement needs; every figure and table has its place."""

import json
import math
import tomllib
from pathlib import Path

import pytest

from sharpnb import paths
from sharpnb.lab import Record, board, records

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"re-made", "stand-in", "missing"}
FIELDS = {"id", "paper", "statement", "effect", "unit", "side", "delta", "notebook", "profiles", "control"}
MAYBE = {"items", "place", "why", "premise", "regime"}
DEFAULTS = {"points of error": 0.5, "log10 of a ratio": math.log10(1.1),
            "log10 of an eigenvalue ratio": math.log10(1.25), "rank correlation": 0.1}


def read(name):
    return tomllib.loads((ROOT / "site" / name).read_text(encoding="utf-8"))


LIST = read("primary.toml")
ITEMS = {(paper["name"], item["item"]): item for paper in read("papers.toml")["paper"] for item in paper["items"]}


@pytest.mark.parametrize("entry", LIST["primary"], ids=lambda entry: entry["id"])
def test_a_primary_claim_says_all_that_its_judgement_needs(entry):
    assert FIELDS <= entry.keys() <= FIELDS | MAYBE
    assert all(entry[name] for name in FIELDS)
    assert ("items" in entry) != ("place" in entry)
    assert entry["statement"].endswith(".") and entry["statement"].count(". ") == 0
    assert entry["side"] in (1, -1) and entry["delta"] > 0
    assert set(entry["profiles"]) <= {"quick", "mid", "full"}
    assert (ROOT / "notebooks" / f"{entry['notebook']}.ipynb").is_file()
    usual = LIST["units"].get(entry["unit"])
    assert entry["delta"] == usual or entry.get("why"), "a δ of its own needs its reason"


def test_the_list_names_no_primary_claim_twice_and_its_units_are_the_design_s():
    assert len(board.primaries()) == len(LIST["primary"]) >= 75
    assert LIST["units"] == {name: pytest.approx(delta, abs=5e-5) for name, delta in DEFAULTS.items()}
    assert all(entry["why"] for entry in LIST["check"])


def test_every_figure_and_table_is_re_made_a_stand_in_or_missing_and_has_a_control():
    assert {item["kind"] for item in ITEMS.values()} == KINDS
    covered = [((entry["paper"], item), entry) for place in ("primary", "check") for entry in LIST[place]
               for item in entry.get("items", [])]
    assert all(entry["control"] for _, entry in covered)
    there = [key for key, item in ITEMS.items() if item["kind"] != "missing"]
    assert sorted(key for key, _ in covered) == sorted(there)
    assert all(ITEMS[key].get("why") for key in ITEMS if ITEMS[key]["kind"] != "re-made")


def test_the_committed_claims_have_their_seeds_and_no_number_is_judged_twice():
    judged = [(claim.id, claim) for own in board.measured().values() for claim in own if not claim.below
              and claim.estimated]
    assert len(judged) > 50
    for name, claim in judged:
        assert claim.samples or claim.effect
        if board.primaries()[name].generalises:
            assert claim.regime is not None, f"{name} ({claim.profile}) is judged without a regime"
    numbers = [claim.samples for _, claim in judged if claim.samples]
    assert len(numbers) == len(set(numbers))


def test_each_quick_record_of_what_is_judged_says_how_its_experiment_was_chosen():
    told = {name: records.chosen_by(name) for name in board.measured()}
    judged = {name for name, own in board.measured().items()
              if any(claim.regime and claim.profile == "quick" and not claim.below for claim in own)}
    assert len(judged) > 10 and all(told[name] for name in judged)
    assert [file for name in told if told[name] for file in paths.records(name, "quick").glob("*.json")
            if Record.load(file).provenance.get("chosen_by") != told[name]] == []


def test_a_live_claim_rests_on_twenty_seeds():
    few = {f"{claim.id}: {claim.seeds}" for own in board.measured().values() for claim in own
           if not claim.below and claim.profile == "quick" and claim.samples and len(claim.samples) < 20}
    assert few == set()


def test_the_seeds_of_the_first_replication_were_written_down_before_it():
    files = (ROOT / "data" / "replications").glob("*.json")
    assert LIST["replication"]["seeds"] in {json.loads(file.read_text(encoding="utf-8"))["seeds"] for file in files}
