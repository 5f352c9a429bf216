"""The numbers in the notebooks' heads: each stands between two marks, and ``sharpnb report`` fills it in.

``better by <!--sam-table-1 ✔-->0.98 [0.52, 1.44] points<!--/-->`` names a primary claim (of another profile than the
quick one as ``sam-table-1@mid``) and the verdict that the sentence puts into words; a negative number stands without
its sign behind ✘, where the sentence says "worse". A detail has no verdict: behind ``+`` and ``−`` it is the sign that
is put into words. ``test`` and ``train`` are the baseline's errors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from sharpnb.lab import board
from sharpnb.lab.board import Row
from sharpnb.lab.claims import Claim

MARK = re.compile(r"<!--([\w.-]+)(?:@(\w+))? (\w+|[^\w\s])-->(.*?)<!--/-->")


def filled(text: str, rows: Sequence[Row]) -> tuple[str, list[str]]:
    """Return a text with what the board says between its marks, and what its sentences say wrongly."""
    known = {((claim or row.primary).id, row.profile): (row, claim)
             for row in rows for claim in (row.claim, *row.details)}
    wrong: list[str] = []

    def told(mark: re.Match[str]) -> str:
        name, profile, said, _ = mark.groups()
        row, claim = known.get((name, profile or "quick"), (None, None))
        if row is None or claim is None or claim.estimated is None:
            wrong.append(f"{name}: nothing was measured")
            return mark.group()
        seen = row.symbol if name == row.primary.id else "−" if claim.estimated.estimate < 0 else "+"
        if said not in ("test", "train", seen):
            wrong.append(f"{name}: the sentence says {said}, the records {seen}")
        return mark.group().partition(">")[0] + f">{_number(row, claim, said)}<!--/-->"

    return MARK.sub(told, text), wrong


def _number(row: Row, claim: Claim, said: str) -> str:
    if said in ("test", "train"):
        value = claim.regime and (claim.regime.test_error if said == "test" else claim.regime.train_error)
        return f"{value:.1f} %" if value is not None else "–"
    assert claim.estimated
    entry, effect = replace(row.primary, unit=claim.unit or row.primary.unit), claim.estimated
    if said in "✘−" and not entry.unit.startswith("log10"):
        effect = replace(effect, estimate=-effect.estimate)
    told = board.interval(entry, effect).replace("+", "").replace("×", "")
    return told if told.endswith("points") else told.partition("]")[0] + "]"
