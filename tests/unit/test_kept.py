import json
import math

import pytest
import torch

from sharpnb import kept

CONTENT = {"b": [1, 2.5, math.nan, None, True], "a": {"text": "σ \n", "empty": {}}}


@pytest.fixture
def file(tmp_path):
    kept.write(tmp_path / "own" / "x.json", CONTENT)
    return tmp_path / "own" / "x.json"


def test_what_is_written_comes_back_without_its_digest(file):
    assert repr(kept.read(file)) == repr(CONTENT)
    assert len(json.loads(file.read_text())["digest"]) == 32
    kept.write(file, {10: (1, 2), 9: "x"}, indent=1)  # keys and tuples as JSON has them
    assert kept.read(file) == {"10": [1, 2], "9": "x"} and file.read_text().count("\n") > 4
    file.write_text(json.dumps(dict(reversed(json.loads(file.read_text()).items())), indent=4))
    assert kept.read(file) == {"9": "x", "10": [1, 2]}, "the order of the keys and the layout do not matter"


def test_every_turned_bit_is_noticed_or_changes_nothing(file):
    good, named = file.read_bytes(), 0
    for place in range(len(good)):
        for bit in range(8):
            file.write_bytes(good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :])
            try:
                found = kept.read(file)
            except ValueError:  # JSON's and Unicode's errors are such
                named += 1
            else:
                found = {key: value for key, value in found.items() if key in CONTENT}
                assert repr(found) == repr(CONTENT)  # a blank became another, or the word "digest" another word
    assert named > 6 * len(good)


# -- finished work ----------------------------------------------------------------------------------------------------

VALUES = {"rows": [{"x": 0.1, "nan": math.nan, "none": None}], "w": torch.tensor([[1.5, 2.5]]), "n": torch.arange(3)}


@pytest.fixture
def place(tmp_path):
    return kept.place(tmp_path, "some words, 3", {"lr": 0.1, "steps": (1, 2)}, "code")


def test_work_comes_back_as_it_was_with_its_tensors(place):
    kept.store(place, VALUES, {"seconds": 1.5})
    values, about = kept.find(place)
    assert about == {"seconds": 1.5} and repr(values["rows"]) == repr(VALUES["rows"]) and set(values) == set(VALUES)
    for name in ("w", "n"):
        torch.testing.assert_close(values[name], VALUES[name], rtol=0, atol=0)  # dtypes too
    assert place.name.startswith("some-words-3-") and len(list(place.parent.iterdir())) == 2


@pytest.mark.parametrize("other", [
    ({"lr": 0.2, "steps": (1, 2)}, "code"), ({"lr": 0.1, "steps": (1, 2)}, "other code"), ({"lr": 0.1}, "code")])
def test_other_settings_and_other_code_never_find_it(tmp_path, place, other):
    kept.store(place, VALUES)
    assert kept.find(kept.place(tmp_path, "some words, 3", *other)) is None
    assert kept.place(tmp_path, "some words, 3", {"steps": [1, 2], "lr": 0.1}, "code") == place, "in whatever order"


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_damaged_or_half_written_work_is_not_there(place, suffix):
    kept.store(place, VALUES)
    file = place.with_suffix(suffix)
    good = file.read_bytes()
    for start in range(0, len(good), 7):
        file.write_bytes(good[:start] + bytes([good[start] ^ 1]) + good[start + 1 :])
        found = kept.find(place)
        assert found is None or all(torch.equal(found[0][name], VALUES[name]) for name in ("w", "n"))
        assert found is None or repr(found[0]["rows"]) == repr(VALUES["rows"])
        assert found is None or suffix == ".json", "of an archive every bit counts"
    file.unlink()
    assert kept.find(place) is None


def test_what_a_file_cannot_hold_is_refused(place):
    with pytest.raises(ValueError, match=r"function.*cannot be kept in a file.*module:function"):
        kept.store(place, {"f": test_what_a_file_cannot_hold_is_refused})
    assert not place.exists()
