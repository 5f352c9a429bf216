"""What the project set out to show is shown: each place that ``brief.toml`` names exists.

A place is a heading of a notebook without its number (``01_sam#In PyTorch``), a heading of a page
(``site/errata#Printed, and meant``), a test (``tests/unit/test_rules.py::test_sgd_by_hand``) or a name of the package
(``sharpnb.optim.SAM``).
"""

import json
import pkgutil
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = tomllib.loads(Path(__file__).with_name("brief.toml").read_text(encoding="utf-8"))["rows"]


@cache
def headings(path: Path) -> list[str]:
    """Return the headings of a notebook or a Markdown page, without their numbers."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if path.suffix == ".ipynb" and text:
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"]
                         if cell["cell_type"] == "markdown")
    return [re.sub(r"^\d+\s+", "", heading) for heading in re.findall(r"(?m)^#{1,4} +(.+?) *$", text)]


def problem(place: str) -> str:
    """Return what is wrong with a place; empty if it exists."""
    if "::" in place:
        file, test = place.split("::", 1)
        text = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else ""
        return "" if re.search(rf"(?m)^def {re.escape(test)}\(", text) else f"{place}: there is no such test"
    if "#" in place:
        page, heading = place.split("#", 1)
        found = headings(ROOT / (f"{page}.md" if page.startswith("site/") else f"notebooks/{page}.ipynb"))
        return "" if heading in found else f"{place}: there is no such heading"
    try:
        pkgutil.resolve_name(place)
    except (ImportError, AttributeError, ValueError) as error:
        return f"{place}: {error}"
    return ""


def test_every_row_is_shown_somewhere_or_says_why_not():
    assert len({row["id"] for row in ROWS}) == len(ROWS) == 142
    assert {row["scope"] for row in ROWS} == set("CBMX")
    assert [row["id"] for row in ROWS if not row["shown"] and not row.get("why")] == []


def test_every_place_exists():
    assert list(filter(None, (problem(place) for row in ROWS for place in row["shown"]))) == []


@pytest.mark.parametrize(
    ("place", "expected"),
    [("01_sam#No such heading", "no such heading"), ("99_none#In PyTorch", "no such heading"),
     ("site/errata#Nothing", "no such heading"), ("tests/unit/test_rules.py::test_nothing", "no such test"),
     ("tests/unit/none.py::test_sgd_by_hand", "no such test"), ("sharpnb.optim.Nothing", "has no attribute"),
     ("sharpnb.nothing", "nothing")],
)
def test_negative_control_a_place_that_is_not_there_is_named(place, expected):
    assert expected in problem(place)
