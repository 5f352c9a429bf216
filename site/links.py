"""The places of headings, as JupyterLab has them, so that links hold there and on the site."""

import re


def anchor(heading: str) -> str:
    """Return the fragment that JupyterLab, and the site, give to a heading: ``7 Claims`` is at ``#7-Claims``."""
    return re.sub(r"\s", "-", heading.strip())


def fragment(heading: str) -> str:
    """Return ``#`` and the :func:`anchor`; empty for a heading with formulas or code in it."""
    return "" if re.search(r"[$`*]", heading) else f"#{anchor(heading)}"
