import json
import math

import pytest

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


def test_the_order_of_the_keys_and_the_layout_do_not_matter(file):
    file.write_text(json.dumps(dict(reversed(json.loads(file.read_text()).items())), indent=4))
    assert repr(sorted(kept.read(file).items(), reverse=True)) == repr(list(CONTENT.items()))


def test_an_older_file_without_a_digest_is_read_and_what_is_no_file_of_ours_is_refused(file):
    file.write_text(json.dumps({"a": 1}))
    assert kept.read(file) == {"a": 1}
    for text in ("[1]", "", "{", "1"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"."):
            kept.read(file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        kept.read(file)
