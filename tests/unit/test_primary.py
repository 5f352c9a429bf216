"""The list of primary claims: every claim of the records stands in one place of it, every figure and table too."""

import copy
import json
import math
import tomllib
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"re-made", "stand-in", "missing"}
FIELDS = {"id", "paper", "statement", "effect", "unit", "side", "delta", "notebook", "profiles", "control", "folds"}
MAYBE = {"items", "place", "why", "premise", "regime", "claims"}
DEFAULTS = {"points of error": 0.5, "log10 of a ratio": math.log10(1.1),
            "log10 of an eigenvalue ratio": math.log10(1.25), "rank correlation": 0.1}


def read(name):
    return tomllib.loads((ROOT / "site" / name).read_text(encoding="utf-8"))


LIST = read("primary.toml")
ITEMS = {(paper["name"], item["item"]): item for paper in read("papers.toml")["paper"] for item in paper["items"]}
CLAIMS = {claim["id"]: claim for file in sorted((ROOT / "data" / "records").glob("*/quick/claims.json"))
          for claim in json.loads(file.read_text(encoding="utf-8"))["values"]["claims"]}


def patterns(listed):
    """Yield where the list puts which claims: the place, the paper (or none) and the pattern of ids."""
    for entry in listed["primary"]:
        yield from (("primary", entry["paper"], name) for name in entry.get("claims", {}).values())
        yield from (("folded", entry["paper"], name) for name in entry["folds"])
    for place in ("check", "dropped"):
        yield from ((place, entry.get("paper"), name) for entry in listed[place] for name in entry["claims"])


def faults(listed):
    """Return the claims that stand in no place or in several, and the patterns that name no claim."""
    named = [(place, pattern, [name for name in CLAIMS if fnmatchcase(name, pattern)])
             for place, _, pattern in patterns(listed)]
    times = Counter(name for _, _, names in named for name in names)
    return [name for name in CLAIMS if times[name] != 1] + [pattern for _, pattern, names in named if not names]


def test_every_claim_stands_in_exactly_one_place():
    assert len(CLAIMS) > 500
    assert faults(LIST) == []


def test_negative_control_a_claim_that_is_left_out_or_listed_twice_or_unknown_is_seen():
    for spoil, found in ((lambda new: new["check"].pop(), "zhang-memorise"),
                         (lambda new: new["primary"][0]["folds"].append("sam-cost"), "sam-cost"),
                         (lambda new: new["dropped"][0]["claims"].append("sam-fig-99"), "sam-fig-99")):
        spoiled = copy.deepcopy(LIST)
        spoil(spoiled)
        assert found in faults(spoiled)


def test_claims_stand_with_their_own_paper_and_numbers_are_judged_once():
    for _, paper, pattern in patterns(LIST):
        found = {claim["paper"] for name, claim in CLAIMS.items() if fnmatchcase(name, pattern)}
        assert found == {paper} or paper is None, pattern
    judged = []
    for entry in LIST["primary"]:
        for profile, name in entry.get("claims", {}).items():
            assert profile == CLAIMS[name]["profile"] and profile in entry["profiles"], (entry["id"], name)
            if CLAIMS[name]["stderr"]:
                judged.append((CLAIMS[name]["measured"], CLAIMS[name]["stderr"]))
    assert len(judged) == len(set(judged))


@pytest.mark.parametrize("entry", LIST["primary"], ids=lambda entry: entry["id"])
def test_a_primary_claim_says_all_that_its_judgement_needs(entry):
    assert FIELDS <= entry.keys() <= FIELDS | MAYBE
    assert all(entry[name] for name in FIELDS - {"folds"})
    assert ("items" in entry) != ("place" in entry)
    assert entry["statement"].endswith(".") and entry["statement"].count(". ") == 0
    assert entry["side"] in (1, -1) and entry["delta"] > 0
    assert set(entry["profiles"]) <= {"quick", "mid", "full"}
    assert (ROOT / "notebooks" / f"{entry['notebook']}.ipynb").is_file()
    usual = LIST["units"].get(entry["unit"])
    assert entry["delta"] == usual or entry.get("why"), "a δ of its own needs its reason"
    assert entry["id"] not in CLAIMS  # the name of a primary claim is no name of a measurement


def test_the_list_names_no_primary_claim_twice_and_its_units_are_the_design_s():
    ids = [entry["id"] for entry in LIST["primary"]]
    assert len(ids) == len(set(ids))
    assert LIST["units"] == {name: pytest.approx(delta, abs=5e-5) for name, delta in DEFAULTS.items()}
    assert all(entry["why"] for place in ("check", "dropped") for entry in LIST[place])


def test_every_figure_and_table_is_re_made_a_stand_in_or_missing_and_has_a_control():
    assert {item["kind"] for item in ITEMS.values()} == KINDS
    covered = [((entry["paper"], item), entry) for place in ("primary", "check") for entry in LIST[place]
               for item in entry.get("items", [])]
    assert all(entry["control"] for _, entry in covered)
    there = [key for key, item in ITEMS.items() if item["kind"] != "missing"]
    assert sorted(key for key, _ in covered) == sorted(there)
    assert all(ITEMS[key].get("why") for key in ITEMS if ITEMS[key]["kind"] != "re-made")
