"""What can be said of built pages without a browser: links, pictures, texts, and who is asked over a network."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page points to, and the fragments that it has."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links, self.fragments, self.bare = [], set(), []
        self.feed(file.read_text(encoding="utf-8"))

    def has(self, fragment: str) -> bool:
        """Return whether the page has a place of this name."""
        return unquote(fragment) in self.fragments

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links, fragments, and pictures without a text."""
        given = dict(attrs)
        self.fragments |= {given[name] for name in ("id", "name") if given.get(name)}
        target = given.get("href") or given.get("src")
        if target and not (tag == "a" and target.startswith(("http", "mailto:"))):  # a reader may leave; a page may not
            self.links.append(target)
        if tag == "img" and not (given.get("alt") or "").strip():
            self.bare.append(given.get("src"))


def broken(folder: Path, files: list[Path]) -> list[str]:
    """Return a sentence for each link that leads nowhere, each thing from a network, each picture without a text."""
    known, problems = {file.resolve(): Page(file) for file in files}, []
    for file, page in known.items():
        name = file.relative_to(folder.resolve())
        problems += [f"{name}: no alternative text: {source}" for source in page.bare]
        for link in page.links:
            parts = urlsplit(link)
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                problems.append(f"{name}: asks the network for {link}")
            elif not target.exists():
                problems.append(f"{name}: no such file: {link}")
            elif parts.fragment and target in known and not known[target].has(parts.fragment):
                problems.append(f"{name}: no such place: {link}")
    return problems


def anchor(heading: str) -> str:
    """Return the fragment that JupyterLab, and the site, give to a heading: ``7 Claims`` is at ``#7-Claims``."""
    return re.sub(r"\s", "-", heading.strip())


def fragment(heading: str) -> str:
    """Return ``#`` and the :func:`anchor`; empty for a heading with formulas or code in it."""
    return "" if re.search(r"[$`*]", heading) else f"#{anchor(heading)}"
