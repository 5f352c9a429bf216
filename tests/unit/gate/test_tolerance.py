import pytest
from gate.tolerance import Tolerant, of_tags, tolerant

STORED = "λ₁ = 3.1400 ± 0.0020 after 150 steps of conv1"


def close(stored: str, new: str, rtol: float = 1e-3, atol: float = 0.0) -> bool:
    """Compare as nbval does: stored first, by !=, both wrapped."""
    differs = Tolerant(stored, rtol, atol) != Tolerant(new, rtol, atol)
    assert differs != (Tolerant(stored, rtol, atol) == Tolerant(new, rtol, atol))
    return not differs


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("", "", True), ("3.1400", "3.1431", True), ("3.1400 ±", "3.1400  ±", True), ("3.1400", "3.1463", False),
    ("150", "151", False), ("conv1", "conv2", False), ("after", "before", False), ("3.1400", "-3.1400", False),
    ("3.1400", "nan", False), ("conv1", "conv1\n", False), ("conv1", "conv1 1", False)])
def test_words_are_compared_exactly_and_numbers_within_the_tolerance(old, new, expected):
    assert close(STORED, STORED.replace(old, new)) is expected


@pytest.mark.parametrize(
    ("stored", "new", "rtol", "atol", "expected"),
    [
        *((text, text.replace(text[-1], "8"), 0.9, 0.0, False) for text in ("conv1", "v2.15", "x_3", "float64")),
        ("0", "1e-7", 1e-3, 0.0, False),  # relative to the stored number: nothing is close to 0
        ("0", "1e-7", 0.0, 1e-6, True),
        ("1e-7", "0", 0.0, 1e-6, True),
        ("100", "102", 1e-2, 1.0, True),  # both together
        ("100", "102.1", 1e-2, 1.0, False),
        ("-5.0", "−5.001", 1e-3, 0.0, True),
        ("1.5e-3", "1.5001e-03", 1e-3, 0.0, True),
        ("nan inf -inf", "nan inf -inf", 1e-3, 0.0, True),
        ("inf", "-inf", 1e-3, 0.0, False),
        ("34%", "34.01%", 1e-3, 0.0, True),
        ("(0.5,0.6)", "(0.5,0.7)", 1e-3, 0.0, False),
        ("1-2", "1-3", 0.9, 0.0, True),
    ],
)
def test_numbers(stored, new, rtol, atol, expected):
    assert close(stored, new, rtol, atol) is expected


@pytest.mark.parametrize("tag", ["rtol=1", "rtol=0", "atol=-1", "atol=nan", "rtol=little"])
def test_a_tolerance_is_stated_by_tags_and_one_that_would_pass_everything_is_refused(tag):
    assert of_tags(["figure"]) is None and of_tags(["atol=0.5", "rtol=1e-2"]) == (1e-2, 0.5)
    with pytest.raises(ValueError, match="a tolerance is a number above 0"):
        of_tags([tag])


def test_the_wrapper_keeps_what_nbval_cleaned_and_what_is_no_text():
    wrapped = tolerant(lambda text: text.replace("a", "b") if isinstance(text, str) else text, 0.5, 0.0)
    assert wrapped("a 1") == wrapped("b 1.4")
    assert str.__eq__(wrapped("a"), "b")
    assert wrapped({"key": 1}) == {"key": 1}


def test_nbval_passes_both_sides_through_sanitize_before_it_compares():
    """The one habit of the pinned nbval on which the tolerance rests."""
    from nbformat.v4 import new_output
    from nbval.plugin import IPyNbCell, nocolors

    class Cell(IPyNbCell):
        def sanitize(self, s):
            return Tolerant(s, 1e-3, 0.0)

        def format_output_compare(self, key, left, right):
            self.compared = (key, type(left), type(right))

    cell = object.__new__(Cell)  # pytest makes its nodes from a session only
    cell.colors = nocolors
    near, stored, far = ([new_output("stream", text=text)] for text in ("loss 1.0001", "loss 1.0", "loss 1.1"))
    skip = ("output_type", "name", "metadata")
    assert cell.compare_outputs(near, stored, skip)
    assert not cell.compare_outputs(far, stored, skip)
    assert cell.compared == ("stdout", Tolerant, Tolerant)
