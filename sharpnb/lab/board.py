"""The board: every primary claim with its evidence in each profile, the details below it, and its verdict.

What is judged is fixed in ``site/primary.toml``; what was measured lies in ``data/records/*/quick/claims.json``, where
each notebook keeps its live results and what it read from committed records. Equal records give an equal board.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sharpnb import kept, paths
from sharpnb.lab.claims import Claim
from sharpnb.lab.verdicts import FEWEST_SEEDS, SYMBOLS, Effect, Hypothesis, Judged, judge
from sharpnb.lab.withdrawn import listed
from sharpnb.paths import PROFILES

_FILE = "site/primary.toml"


@dataclass(frozen=True)
class Primary:
    """A statement that is judged: of the fields at the head of ``site/primary.toml`` those that a rule reads."""

    id: str
    paper: str
    statement: str
    unit: str
    side: int
    delta: float
    notebook: str
    profiles: tuple[str, ...]
    items: tuple[str, ...] = ()
    place: str = ""
    regime: bool | None = None

    @property
    def where(self) -> str:
        """Figure, table or section of the paper."""
        return ", ".join(self.items) or self.place

    @property
    def generalises(self) -> bool:
        """Whether it speaks of generalisation, and so wants a baseline that fits its training set."""
        return self.unit in ("points of error", "rank correlation") if self.regime is None else self.regime

    def text(self, value: float, signed: bool = True) -> str:
        """Return a value of its unit for a table: a logarithm as the factor that it is."""
        if self.unit.startswith("log10"):
            return f"×{10.0**value:.3g}"
        return f"{value:{'+' if signed else ''}.2f}".replace("-", "−")


@dataclass(frozen=True)
class Row:
    """A primary claim in one profile, with the notebook that measured it or is to, its evidence, and its details."""

    primary: Primary
    profile: str
    notebook: str
    claim: Claim | None
    judged: Judged
    details: tuple[Claim, ...]

    @property
    def verdict(self) -> str:
        """The verdict's name."""
        return self.judged.verdict

    @property
    def symbol(self) -> str:
        """The verdict's sign."""
        return SYMBOLS[self.judged.verdict]

    @property
    def reason(self) -> str:
        """Why there is no verdict, or what limits it; or nothing."""
        claim = self.claim
        if claim is None:
            return ""
        if claim.withdrawn:
            return f"withdrawn: {claim.withdrawn}"
        if self.verdict == "not in the regime":
            return claim.regime.fault if claim.regime else "no regime was recorded"
        if self.verdict == "undecided" and claim.estimated and claim.seeds < FEWEST_SEEDS:
            return f"{claim.seeds} seeds decide nothing"
        if self.verdict == "undecided" and self.judged.visible:
            return f"could see {self.primary.text(self.judged.visible, signed=False)}"
        return claim.apart or ("smaller than δ" if self.judged.smaller else "")


def primaries() -> dict[str, Primary]:
    """Return the statements that are judged by their ids, none where there is no list; ValueError if it is damaged."""
    def made(entry: dict[str, Any]) -> Primary:
        own: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                               for name, value in entry.items() if name in Primary.__dataclass_fields__}
        return Primary(**own)

    return {entry.id: entry for entry in listed(_FILE, "primary", made)}


def measured() -> dict[str, list[Claim]]:
    """Return the claims of the committed records by their notebooks; a ValueError names a damaged record."""
    found = {}
    for file in sorted((paths.root() / "data" / "records").glob("*/quick/claims.json")):
        notebook = file.parents[1].name
        try:
            found[notebook] = [Claim.from_dict(row) for row in kept.read(file)["values"]["claims"]]
            check(found[notebook])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            name = file.relative_to(paths.root()).as_posix()
            raise ValueError(f"{name} is damaged ({type(error).__name__}: {error}). Delete it and make it anew: "
                             f"sharpnb run {notebook} --force") from None
    return found


def check(claims: Sequence[Claim]) -> None:
    """Raise a ValueError unless claims have ids of their own, and each is in the list or stands below what is."""
    known, times = primaries(), Counter((claim.id, claim.profile) for claim in claims)
    if repeated := sorted({name for (name, _), number in times.items() if number > 1}):
        raise ValueError(f"claims need ids of their own in a profile; repeated: {repeated}.")
    for claim in claims:
        if claim.profile not in (*PROFILES, "toy"):  # the toy's are checked, and never judged
            raise ValueError(f"claim {claim.id}: profile = {claim.profile!r}; choose one of {', '.join(PROFILES)}.")
        if (claim.below or claim.id) not in known:
            raise ValueError(f"claim {claim.id}: {claim.below or claim.id!r} is no primary claim of {_FILE}. List it "
                             "there, or say with below= under which one it stands.")
        if claim.below and (claim.id in known or not claim.statement):
            raise ValueError(f"claim {claim.id}: a detail needs an id and a statement of its own.")


def rows(instead: Mapping[str, Sequence[Claim]] | None = None) -> list[Row]:
    """Return one row per primary claim and profile in which it can be judged, by paper as the list has them.

    ``instead`` has claims by their notebook, in the place of the committed ones.
    """
    claims = [(notebook, claim) for notebook, own in {**measured(), **(instead or {})}.items() for claim in own]
    evidence = {(claim.id, claim.profile): (notebook, claim) for notebook, claim in claims if not claim.below}
    there = [(entry, profile, *evidence.get((entry.id, profile), (entry.notebook, None)))
             for entry in primaries().values() for profile in PROFILES
             if profile in entry.profiles or (entry.id, profile) in evidence]
    families: dict[tuple[str, str], dict[str, Hypothesis]] = {}
    for entry, profile, _, claim in there:
        families.setdefault((entry.paper, profile), {})[entry.id] = hypothesis(entry, claim)
    verdicts = {family: judge(hypotheses) for family, hypotheses in families.items()}
    return [Row(entry, profile, notebook, claim, verdicts[entry.paper, profile][entry.id],
                tuple(claim for _, claim in claims if (claim.below, claim.profile) == (entry.id, profile)))
            for entry, profile, notebook, claim in there]


def hypothesis(entry: Primary, claim: Claim | None) -> Hypothesis:
    """Return what the rule is to judge of a primary claim and its evidence."""
    side = 1 if entry.side == 1 else -1
    if claim is None or claim.estimated is None:
        return Hypothesis(entry.delta, side)
    fault = entry.generalises and (claim.regime is None or bool(claim.regime.fault))
    apart = "not comparable" if claim.apart else "not in the regime" if fault else ""
    return Hypothesis(entry.delta, side, claim.estimated, apart)


def interval(entry: Primary, effect: Effect) -> str:
    """Return an estimate with its 95 % interval, in the unit of a primary claim."""
    low, high = map(entry.text, effect.interval)
    unit = "" if entry.unit.startswith("log10") else f" {entry.unit.removesuffix(' of error')}"
    return f"{entry.text(effect.estimate)} [{low}, {high}]{unit}"


def counts(board: Sequence[Row]) -> dict[str, int]:
    """Return how many rows have each verdict, all verdicts in their order."""
    return {verdict: sum(row.verdict == verdict for row in board) for verdict in SYMBOLS}


def of_notebook(notebook: str, claims: Sequence[Claim]) -> str:
    """Return the table that a notebook shows: its primary claims with their verdicts, and the details below each."""
    lines = ["| verdict | claim | paper | measured, 95 % interval | seeds | rests on |", "|:--|:--|--:|--:|--:|:--|"]
    own = {(claim.below or claim.id, claim.profile) for claim in claims}
    for row in [row for row in rows({notebook: claims}) if (row.primary.id, row.profile) in own]:
        told = f"**{row.primary.statement}** ({row.primary.paper}, {row.primary.where})"
        verdict = f"{row.symbol} {row.verdict}" + (f" ({row.reason})" if row.reason else "")
        lines += [_line(row.primary, row.profile, row.claim, verdict, told)]
        lines += [_line(row.primary, row.profile, detail, "", f"· {detail.statement}") for detail in row.details]
    return "\n".join(lines)


def _line(entry: Primary, profile: str, claim: Claim | None, verdict: str, told: str) -> str:
    if claim is None:
        return f"| {verdict} | {told} | | – | | {profile} |"
    paper = "" if claim.paper_value is None else f"{claim.paper_value}"
    effect = claim.estimated
    number = "–" if effect is None else interval(entry, effect) if not claim.unit else \
        f"{effect.estimate:.3g} [{effect.interval[0]:.3g}, {effect.interval[1]:.3g}] {claim.unit}"
    where = profile + (f"; {claim.protocol}" if claim.protocol else "")
    return f"| {verdict} | {told} | {paper} | {number} | {claim.seeds or ''} | {where} |"
