"""Finished work as a JSON file: written whole, with a digest of itself, and never read where it is damaged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sharpnb import paths


def write(file: Path, content: dict[str, Any], indent: int | None = None) -> None:
    """Write ``content`` and its digest to ``file``, whole or not at all.

    Raises:
        OSError: as :func:`sharpnb.paths.write_whole`.
    """
    content = json.loads(json.dumps(content))  # as it will be read: texts as keys, lists
    paths.write_whole(file, json.dumps(content | {"digest": digest(content)}, indent=indent, ensure_ascii=False) + "\n")


def read(file: Path) -> dict[str, Any]:
    """Return the content of a file that :func:`write` has written; one without a digest, of an older hand, as it is.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged: no JSON, or not what its digest says. One turned bit is enough.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} and no entries")
    told = content.pop("digest", None)
    if told is not None and told != digest(content):
        raise ValueError("its content is not that of its digest: it was changed by hand, or a disk or a copy failed")
    return content


def digest(content: dict[str, Any]) -> str:
    """Return the sha256 of nested values, 32 hexadecimal digits, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]
