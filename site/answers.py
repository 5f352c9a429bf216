"""What a reader asks, answered from the board: a sentence, the effects behind it, what to do.

Questions and advice stand in ``site/answers.toml``; which advice is shown follows from the verdicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scoreboard import line, shown
from sharpnb.lab import board
from sharpnb.lab.board import Row
from sharpnb.lab.verdicts import SYMBOLS
from sharpnb.lab.withdrawn import listed

COLOURS = dict(zip(SYMBOLS, ("#029e73", "#d55e00", "#0173b2", "#949494", "#cccccc", "#cccccc", "#eeeeee"), strict=True))
WORDS = {"supported": "for it", "refuted": "against it", "no effect larger than δ": "without a difference that matters",
         "undecided": "undecided"}


@dataclass(frozen=True)
class Answer:
    """A question with the rows of the board that speak of it."""

    question: str
    rows: tuple[Row, ...]
    advice: dict[str, str]

    @property
    def judged(self) -> list[Row]:
        """The rows that have an effect to show."""
        return [row for row in self.rows if row.verdict in WORDS and row.claim and row.claim.estimated]

    @property
    def kind(self) -> str:
        """``yes``, ``no``, ``mixed`` or ``open``: what the decided rows say together; a null counts as no."""
        verdicts = {row.verdict for row in self.judged}
        yes, no = "supported" in verdicts, bool(verdicts & {"refuted", "no effect larger than δ"})
        return "mixed" if yes and no else "yes" if yes else "no" if no else "open"

    @property
    def sentence(self) -> str:
        """What was seen, in words: how many effects say what, at which scale; where nothing was judged, why."""
        found = board.counts(self.judged or self.rows)
        told = ", ".join(f"{number} {WORDS.get(verdict, verdict)}" for verdict, number in found.items() if number)
        opening = {"yes": "Yes", "no": "No", "mixed": "In part", "open": "Not known"}[self.kind]
        return f"{opening}: {told} ({', '.join(dict.fromkeys(row.profile for row in self.judged or self.rows))})."

    def numbers(self, most: int = 100) -> str:
        """Return the effects with their intervals, up to ``most`` of them."""
        told = [f"{row.symbol} {row.primary.where} ({row.profile}) {board.interval(row.primary, effect)}"
                for row in self.judged if row.claim and (effect := row.claim.estimated)]
        return "; ".join([*told[:most], *([f"{len(told) - most} more"] if len(told) > most else [])])


def answers(rows: Sequence[Row]) -> list[Answer]:
    """Return the questions in their order, each with the rows of the board that speak of it; none without the list.

    Raises:
        ValueError: if ``site/answers.toml`` cannot be read or names a claim that is not in the list.
    """
    known = board.primaries()

    def made(entry: dict[str, Any]) -> Answer:
        if unknown := [name for name in entry["claims"] if name not in known]:
            raise ValueError(f"{unknown} are no primary claims of site/primary.toml")
        return Answer(entry["question"], tuple(row for row in rows if row.primary.id in entry["claims"]),
                      {kind: entry[kind] for kind in ("yes", "no", "mixed", "open")})

    return listed("site/answers.toml", "answer", made)


def as_markdown(found: Sequence[Answer], numbers: int = 100) -> str:
    """Return the answers as a table, each with the first ``numbers`` of the effects behind it."""
    lines = [line("question", "answer", "effect, 95 % interval", "what to do"), "|:--|:--|:--|:--|"]
    lines += [line(*map(shown, (answer.question, answer.sentence, answer.numbers(numbers) or "–",
                                answer.advice[answer.kind]))) for answer in found]
    return "\n".join(lines)


def draw(found: Sequence[Answer]) -> tuple[Any, list[dict[str, Any]]]:
    """Draw every judged effect with its interval in units of its δ (beyond ±10 an arrow); return figure and data."""
    import matplotlib.pyplot as plt

    told = [answer for answer in found if answer.judged]
    figure, ax = plt.subplots(figsize=(9.5, 0.6 + 0.21 * sum(len(answer.judged) + 1.4 for answer in told)))
    y, data, edge = 0.0, [], 10.0
    for answer in told:
        ax.text(-edge, y, answer.question, fontsize=8.5, weight="bold", va="center")
        y += 1
        for row in answer.judged:
            assert row.claim and row.claim.estimated
            effect, delta = row.claim.estimated, row.primary.delta
            low, mid, high = (v / delta for v in (effect.interval[0], effect.estimate, effect.interval[1]))
            colour = COLOURS[row.verdict]
            ax.plot(np.clip([low, high], -edge, edge), [y, y], color=colour, lw=1.8, solid_capstyle="butt")
            marker = "o" if abs(mid) <= edge else "<" if mid < 0 else ">"
            ax.plot(np.clip(mid, -edge, edge), y, marker, color=colour, ms=5, clip_on=False)
            place = f"{row.symbol} {row.primary.paper.split(' (')[0]}, {row.primary.where} ({row.profile})"
            ax.text(edge * 1.04, y, place, fontsize=7.5, va="center")
            data.append({"question": answer.question, "claim": row.primary.id, "profile": row.profile, "low": low,
                         "effect": mid, "high": high, "verdict": row.verdict})
            y += 1
        y += 0.4
    ax.axvspan(-1, 1, color="0.92", zorder=0)
    ax.axvline(0, color="0.4", lw=0.8, zorder=1)
    ax.set(ylim=(y, -1), xlim=(-edge, edge), yticks=[],
           xlabel="effect in units of the smallest that matters (grey band); right: the paper's side")
    ax.grid(axis="y", visible=False)
    for verdict in WORDS:
        ax.plot([], [], "o-", color=COLOURS[verdict], label=f"{SYMBOLS[verdict]} {verdict}")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    return figure, data
