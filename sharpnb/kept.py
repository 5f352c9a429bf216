"""Finished work, kept whole and found again: one mechanism for records, pieces of long studies and shards of sweeps.

Work is found by what it was made with and by a digest of the code that made it (:func:`place`): other settings or other
code never find it. A file carries a digest of itself and is never read where it is damaged. A committed *record* is
found by its settings alone; there the digest of the code decides only whether it is marked as stale.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sharpnb import paths

Values = dict[str, Any]


def place(folder: Path, words: str, *made_with: Any) -> Path:
    """Return the file, in a folder, of some finished work; ``words`` are what a reader should see in its name.

    It was ``made_with`` all that the result depends on: settings, a digest of the code (``sources.mark``), versions.
    """
    short = "-".join(re.findall(r"\w+", words))[:60]
    return folder / f"{short}-{digest(plain(made_with))[:16]}.json"


def store(file: Path, values: Values, about: Values | None = None) -> None:
    """Keep ``values``: numbers, texts, lists and mappings; on the first level also tensors, in an archive beside.

    With them is kept what to know ``about`` the result, such as the time that it took.
    """
    tensors = {name: value.detach().cpu().numpy() for name, value in values.items() if hasattr(value, "detach")}
    rest = {name: plain(value) for name, value in values.items() if name not in tensors}
    content: Values = {"about": about or {}, "values": rest}
    if tensors:  # before the text, whose presence says that the work is whole
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **tensors)
        content["archive"] = hashlib.sha256(buffer.getvalue()).hexdigest()
        paths.write_whole(file.with_suffix(".npz"), buffer.getvalue())
    write(file, content)


def find(file: Path) -> tuple[Values, Values] | None:
    """Return values and what is known about them, or None where they are not there or damaged: to be made anew."""
    try:
        content = read(file)
        values, about = content["values"], content["about"]
        if told := content.get("archive"):
            archive = file.with_suffix(".npz").read_bytes()
            if hashlib.sha256(archive).hexdigest() != told:
                return None
            import torch  # a reader of records need not wait for it

            with np.load(io.BytesIO(archive), allow_pickle=False) as arrays:
                values |= {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return values, about
    except (OSError, ValueError, KeyError):
        return None


def write(file: Path, content: Values, indent: int | None = None) -> None:
    """Write ``content`` and its digest to ``file``, as :func:`sharpnb.paths.write_whole` does."""
    content = json.loads(json.dumps(content))  # as it will be read: texts as keys, lists
    paths.write_whole(file, json.dumps(content | {"digest": digest(content)}, indent=indent, ensure_ascii=False) + "\n")


def read(file: Path) -> Values:
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


def digest(content: Any) -> str:
    """Return the sha256 of nested values, 32 hexadecimal digits, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def plain(value: Any) -> Any:
    """Return nested values as JSON knows them, tensors and arrays as lists; ValueError for what it cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{value!r} ({type(value).__name__}) cannot be kept in a file: numbers, texts, lists and mappings "
                     "can. Name functions: schedules by name, models as 'module:function'.")
