"""What can be said of a notebook without executing it. Each guard yields one sentence a problem."""

from __future__ import annotations

import ast
import getpass
import json
import re
import socket
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat

from gate import tolerance
from sharpnb.runner import RunnerError, catalogue, stored

LARGEST = 200_000  # bytes; a page that opens at once, and a diff that can be read
LONGEST_FUNCTION = 40  # lines; what is longer belongs into notebooks/studies, where it is tested

WIDGET = "application/vnd.jupyter.widget-view+json"
_READ = ("text/plain", "text/html", "text/markdown", "text/latex")
_IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\(\s*(?:<(?P<angled>[^>]*)>|(?P<plain>[^)\s]*))")
_TAG = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
_LEAKS = {
    "an absolute path": re.compile(
        r"(?<![\w.:/<])/(?:home|root|Users|tmp|usr|opt|var|etc|mnt|srv|work|private|content|kaggle)/[\w.-]+"
        r"|\b[A-Za-z]:\\\w"),
    "a memory address": re.compile(r"\b0x[0-9a-fA-F]{6,}\b"),
    "a date": re.compile(r"\b(?:19|20)\d\d-[01]\d-[0-3]\d\b|\b[0-2]\d:[0-5]\d:[0-5]\d\b"),
    "a raw tensor": re.compile(r"\b(?:tensor|Parameter containing:\s*tensor)\("),
}
# Each of them would take a cell out of the comparison; only a widget's cell may, and it says so by the tag.
_WEAK_TAGS = {"nbval-skip", "nbval-raises-exception", "raises-exception"}
_WEAK_COMMENT = re.compile(r"(?m)^\s*#\s*(?:NBVAL_|PYTEST_VALIDATE_)\w+")


class Subject:
    """A notebook under examination: its file, its content, its (code) cells, each with a name for messages."""

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, path.read_text(encoding="utf-8")
        self.nb = nbformat.reads(self.text, as_version=4)
        self.cells = [(f"cell {cell.get('id', number)!r}", cell) for number, cell in enumerate(self.nb.cells)]
        self.code = [(where, cell) for where, cell in self.cells if cell.cell_type == "code"]
        self.index = self.nb.metadata.get("sharpnb", {}).get("after") == "all"  # the page that lists the others


def tags(cell: Any) -> list[str]:
    """Return a cell's tags."""
    return list(cell.metadata.get("tags", []))


def pictures(cell: Any) -> Iterator[tuple[str, str]]:
    """Yield ``(alternative text, address)`` of every picture that a cell shows, in its text or its outputs."""
    texts = [cell.source] if cell.cell_type == "markdown" else [
        output.data[mime] for output in cell.outputs if "data" in output
        for mime in ("text/markdown", "text/html") if mime in output.data
    ]
    for text in texts:
        for match in _IMAGE.finditer(text):
            yield match["alt"], unquote(match["angled"] or match["plain"] or "")
        for tag in _TAG.findall(text):
            found = {name: re.search(rf"""\b{name}\s*=\s*["']([^"']*)["']""", tag) for name in ("alt", "src")}
            yield tuple(match.group(1) if match else "" for match in found.values())


def small(subject: Subject) -> Iterator[str]:
    """Find a file that is too large."""
    if (size := len(subject.text.encode())) > LARGEST:
        yield f"the file has {size} bytes, allowed are {LARGEST}: show pictures by nb.figure, print less"


def executed(subject: Subject) -> Iterator[str]:
    """Find code cells that were not executed, in order, from a fresh kernel; and a notebook stripped of its outputs."""
    for number, (where, cell) in enumerate(subject.code, 1):
        if cell.execution_count != number:
            yield f"{where} has the execution count {cell.execution_count}, not {number}"
    if not subject.code or not any(cell.outputs for _, cell in subject.code):
        yield "no cell has an output: the notebook was stripped, or never executed"
    for where, cell in subject.code:
        if {"check", "figure", "claims"} & set(tags(cell)) and not cell.outputs:
            yield f"{where} is tagged {', '.join(tags(cell))} and has no output"


def clean_outputs(subject: Subject) -> Iterator[str]:
    """Find errors, warnings, and outputs that no one can compare."""
    for number, (where, cell) in enumerate(subject.code):
        follower = subject.code[number + 1][1] if number + 1 < len(subject.code) else cell
        static = any(pictures(cell)) or any(pictures(follower))
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "error":
                yield f"{where} ends in an error: {output.ename}: {output.evalue}"
            if output.get("name") == "stderr":
                yield f"{where} writes to standard error (a warning?): {output.text.strip()[:100]!r}"
            if "image/svg+xml" in data:
                yield f"{where} shows an inline SVG, which differs from run to run: use nb.figure"
            if {"image/png", "image/jpeg"} & data.keys():
                yield f"{where} shows an inline picture, which has no alternative text: use nb.figure"
            if WIDGET in data and not static:
                yield f"{where} shows a widget, and neither it nor the next cell a static picture beside it"
        if "nbval-ignore-output" in tags(cell) and not static:
            yield f"{where} is tagged nbval-ignore-output, which is for a widget with a static picture beside it"


def no_leaks(subject: Subject) -> Iterator[str]:
    """Find in the outputs what belongs to one machine, one moment or one process."""
    names = (socket.gethostname(), Path.home().as_posix(), getpass.getuser())
    own = {name for name in names if len(name) > 5 and name != "localhost"}
    for where, cell in subject.code:
        for output in cell.outputs:
            texts = [output.get("text", ""), *(output.get("data", {}).get(mime, "") for mime in _READ)]
            text = re.sub(r"data:image/[^\"')]*", "", "\n".join(texts))
            for what, pattern in _LEAKS.items():
                if match := pattern.search(text):
                    yield f"{where} shows {what}: {match.group()!r}"
            yield from (f"{where} shows this machine's own {name!r}" for name in own if name in text)


def one_parameter_cell(subject: Subject) -> Iterator[str]:
    """Find a parameter cell that is missing, doubled, or not read completely by papermill."""
    import papermill

    try:
        ours = catalogue.Notebook(subject.path, json.loads(subject.text)).parameters
    except RunnerError as error:
        yield str(error)
        return
    theirs = papermill.inspect_notebook(subject.path)
    for name in ours.keys() - theirs.keys():
        yield f"papermill does not see the parameter {name!r}: write `name: type = literal  # comment`, no other ="
    for name, found in theirs.items():
        known = ours.get(name, catalogue.Parameter(name, None, type(None)))
        if repr(ast.literal_eval(found["default"])) != repr(known.default):
            yield f"papermill reads {found['default']} for the parameter {name!r}, Python {known.default!r}"


def as_committed(subject: Subject) -> Iterator[str]:
    """Find metadata that differ from run to run, another kernel than ``python3``, ids that are missing or doubled."""
    kernel = subject.nb.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        yield f"the kernel is {kernel!r}, and must be 'python3', which every installation has"
    if "papermill" in subject.nb.metadata or any("papermill" in cell.metadata for _, cell in subject.cells):
        yield "there are metadata of papermill"
    ids = [cell.get("id") for cell in json.loads(subject.text)["cells"]]
    for ident in sorted({str(ident) for ident in ids if ident is None or ids.count(ident) > 1}):
        yield f"the cell id {ident!r} is missing or not unique"
    if stored.normalised(subject.nb) != subject.nb:
        yield f"it is not in the form that is committed: sharpnb run {subject.path.stem} --update"


def readable_pictures(subject: Subject) -> Iterator[str]:
    """Find pictures without alternative text, without file, or without SVG and numbers beside it."""
    for where, cell in subject.cells:
        for alt, address in pictures(cell):
            if not alt.strip():
                yield f"{where} shows {address} without alternative text"
            if re.match(r"[a-z]+://|data:", address):
                yield f"{where} shows a picture from elsewhere: {address[:80]}"
                continue
            file = subject.path.parent / address
            ends = (".png", ".svg", ".csv") if file.suffix == ".png" else (file.suffix,)
            yield from (f"{where} shows {address}, and there is no {file.with_suffix(end).name}"
                        for end in ends if not file.with_suffix(end).is_file())


def short_functions(subject: Subject) -> Iterator[str]:
    """Find functions that belong into notebooks/studies, and code that is no Python."""
    for where, cell in subject.code:
        try:
            tree = ast.parse(cell.source)
        except SyntaxError as error:
            yield f"{where} is not plain Python (line {error.lineno}): no magics, no shell"
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    yield (f"{where} defines {node.name} in {lines} lines: over {LONGEST_FUNCTION} go to "
                           "notebooks/studies")


def headings(subject: Subject) -> Iterator[str]:
    """Find a first cell that is no heading, a second title, and levels that are left out."""
    levels = []
    for _, cell in subject.cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"(?ms)^(```|~~~).*?^\1", "", cell.source)
            levels += [(len(marks), text) for marks, text in re.findall(r"(?m)^(#{1,6})\s+(.+)$", prose)]
    first = subject.nb.cells[0] if subject.nb.cells else None
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell must be Markdown and begin with the title: # 07 · …"
    if [level for level, _ in levels].count(1) != 1:
        yield f"there must be one title (# …), not {[level for level, _ in levels].count(1)}"
    for (above, _), (level, text) in pairwise(levels):
        if level > above + 1:
            yield f"the heading {text!r} leaves out a level"


def judged(subject: Subject) -> Iterator[str]:
    """Find a notebook without claims, an index that leaves a notebook out, and what takes a cell out of comparison."""
    if not subject.index and not any("claims" in tags(cell) for _, cell in subject.code):
        yield "no cell is tagged 'claims': every notebook ends in verdicts"
    if subject.index:
        for other in sorted(subject.path.parent.glob("*.ipynb")):
            if other.stem not in subject.text:
                yield f"the index does not mention {other.stem}"
    for where, cell in subject.code:
        weak = {*(_WEAK_TAGS & set(tags(cell))), *_WEAK_COMMENT.findall(cell.source)}
        yield from (f"{where} bears {mark.strip()!r}, which takes it out of the comparison" for mark in weak)
        try:
            tolerance.of_tags(tags(cell))
        except ValueError as error:
            yield f"{where}: {error}"


GUARDS: tuple[Callable[[Subject], Iterator[str]], ...] = (
    small, executed, clean_outputs, no_leaks, one_parameter_cell, as_committed, readable_pictures, short_functions,
    headings, judged,
)


def problems(path: Path) -> list[str]:
    """Return everything that the guards have against a notebook."""
    try:
        subject = Subject(path)
    except (ValueError, AttributeError) as error:
        return [f"it cannot be read as a notebook: {error}"]
    return [f"{guard.__name__}: {problem}" for guard in GUARDS for problem in guard(subject)]
