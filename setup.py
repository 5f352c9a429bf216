"""The page on PyPI is README with absolute links, for no checkout is beside it. All else is in pyproject.toml."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
RELATIVE = r"\(<?(?![a-z]+:|#)([^)<>\s]+)>?\)"


def absolute(markdown: str, home: str) -> str:
    """Return Markdown whose links and pictures lead into the repository at ``home``; code blocks stay as they are."""
    files = home.replace("github.com", "raw.githubusercontent.com") + "/main/"

    def led(text: str) -> str:
        text = re.sub(rf"(!\[[^\]]*\]){RELATIVE}", rf"\1({files}\2)", text)
        return re.sub(rf"\]{RELATIVE}", rf"]({home}/blob/main/\1)", text)

    parts = re.split(r"(?ms)(^```.*?^```$)", markdown)
    return "".join(part if part.startswith("```") else led(part) for part in parts)


project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
setup(
    long_description=absolute((HERE / "README.md").read_text(encoding="utf-8"), project["urls"]["Repository"]),
    long_description_content_type="text/markdown",
)
