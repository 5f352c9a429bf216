"""What every notebook shares: its set-up, its checks, its figures, records and claims."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sharpnb import paths, sources
from sharpnb.devices import pick_device
from sharpnb.lab import board, figures, withdrawn
from sharpnb.lab.claims import Claim
from sharpnb.lab.data import Data
from sharpnb.lab.pieces import Work, described
from sharpnb.lab.records import Record, forced, provenance
from sharpnb.lab.withdrawn import Withdrawal

# "toy" is the code of the long profiles at the size of a test; its results are kept apart and never committed.
PROFILES = (*paths.PROFILES, "toy")


class Notebook:
    """The context of one notebook, with its ``name``, ``profile``, ``device`` and ``parameters``; see :func:`start`."""

    def __init__(self, name: str, profile: str, device: str, parameters: dict[str, Any], judging: str = "") -> None:
        self.name, self.profile, self.parameters = name, profile, parameters
        self.device, self._judging = pick_device(device), seeds_of(judging)
        self._started, self._data = time.time(), {}

    @property
    def full(self) -> bool:
        """Whether a long profile is asked for: mid, full, or their code as a toy."""
        return self.profile != "quick"

    @cached_property
    def sources(self) -> str:
        """The digest of the sources that the notebook reaches, see :func:`sharpnb.sources.of_notebook`."""
        return sources.of_notebook(self.name)

    @property
    def bf16(self) -> bool:
        """Whether large nets train under bfloat16 autocast: in the full profile on any device, in its toy on a GPU."""
        return self.profile == "full" or (self.full and self.device.type == "cuda")

    def seeds(self, own: int | Sequence[int]) -> list[int]:
        """Return the judging seeds: a study's ``own`` (of a number the first ones), unless others were asked for."""
        return list(self._judging or (range(own) if isinstance(own, int) else own))

    def uses(self, data: Data) -> Data:
        """Note a data set and its checksum for the provenance of the records that follow."""
        self._data[data.name] = data.checksum
        return data

    def check(self, what: str, residual: float, bound: float) -> None:
        """Check that |residual| ≤ bound, and print so; else an AssertionError has its value."""
        if not abs(residual) <= bound:
            raise AssertionError(f"{what}: the residual is {residual:.3g}, allowed is {bound:g}.")
        self.say(f"✔ {what} (residual ≤ {bound:g})")

    def record(
        self, name: str, values: dict[str, Any], *, rtol: float = 1e-3, atol: float = 1e-9, work: Work | None = None
    ) -> Path:
        """Save ``values`` as ``data/records/<notebook>/<profile>/<name>.json`` with their provenance.

        ``work`` is what made them: its settings and pieces belong to the provenance of the long profiles.
        """
        origin = provenance(self.name, self.parameters, self.device, self._data, self._started)
        if work and work.settings is not None:
            origin |= {"settings": work.settings, "pieces": work.log}
        return Record(self.name, name, self.profile, values, rtol, atol, origin).save()

    def recorded(
        self, name: str, make: Callable[[Work], dict[str, Any]], *, of: Any, rtol: float = 1e-3, atol: float = 1e-9,
        kept: bool = False,
    ) -> dict[str, Any]:
        """Make the values of a record, piece by piece, and save it; return them, or those of :meth:`begun`.

        ``make`` is given the :class:`~sharpnb.lab.pieces.Work` and returns the values; ``of`` are the settings (see
        :func:`~sharpnb.lab.pieces.described`). With ``kept`` what is committed is read back in the quick profile too:
        for what takes long and is not judged, such as the tuning of hyperparameters.
        """
        work = self.begun(name, of=of, kept=kept)
        if work.values is None:
            work.values = make(work)
            self.record(name, work.values, rtol=rtol, atol=atol, work=work)
        return work.values

    def begun(self, name: str, *, of: Any, kept: bool = False) -> Work:
        """Begin the work on a record, with the settings ``of``; a cell that trains in view goes on with it.

        In a long profile it has the ``values`` of a finished record of the same parameters and settings, for a machine
        without a GPU. One that is withdrawn, also in part, is made again, and under ``sharpnb run --force`` any.
        """
        if not (self.full or kept):
            return Work(self, name)
        work = Work(self, name, described(of))
        found = None if forced() or self.withdrawn_of_full(name, self.profile) else self._find(name, self.profile, of)
        if found and (kept or found.provenance.get("parameters") == self.parameters):
            self.say(f"Read back and not made: {self.origin_of_full(name, self.profile)}")
            work.values = found.values
        return work

    def full_record(self, name: str, of: Any = None, profile: str = "full") -> dict[str, Any] | None:
        """Return the values of a committed record of a profile, None where it was not run (with the settings ``of``).

        What is withdrawn of it is said; a record that is withdrawn as a whole is not returned.
        """
        for entry in self.withdrawn_of_full(name, profile):
            self.say(f"{entry}")
            if "*" in entry.claims:
                return None
        found = self._find(name, profile, of)
        return found.values if found else None

    def withdrawn_of_full(self, name: str, profile: str = "full") -> list[Withdrawal]:
        """Return what holds of a record of a profile in ``data/withdrawn.toml``."""
        return withdrawn.of(self.name, profile, name)

    def origin_of_full(self, name: str, profile: str = "full") -> str:
        """Say where a committed record of a long profile was made, in how many pieces, how long and with what."""
        found = self._find(name, profile)
        if found is None:
            return ""
        pieces, versions = found.provenance["pieces"], found.provenance["versions"]
        seconds, peak = sum(p["seconds"] for p in pieces), max([0, *(p["peak_bytes"] for p in pieces)])
        return (f"{self.name}/{profile}/{name}: {len(pieces)} pieces on {', '.join({p['device'] for p in pieces})}, "
                f"{seconds:.0f} s together, at most {peak / 1e9:.1f} GB; PyTorch {versions['torch']}, "
                f"commit {found.provenance['commit']}")

    def _find(self, name: str, profile: str, of: Any = None) -> Record | None:
        """Return a committed record, None where there is none made with the settings ``of``."""
        found = Record.find(self.name, name, profile)
        return found if found and (of is None or found.provenance.get("settings") == described(of)) else None

    def figure(
        self, figure: Any, name: str, *, alt: str, caption: str, data: Any, rtol: float = 1e-3, atol: float = 1e-9
    ) -> None:
        """Save a figure with its data and show it; see :func:`sharpnb.lab.figures.save`."""
        folder = paths.figures(self.name) / (self.profile if self.full else "")
        path = figures.save(figure, folder, name, alt=alt, data=data, rtol=rtol, atol=atol)
        here = Path(os.path.relpath(path, Path.cwd())).as_posix()
        stem = here.removesuffix(".png")
        self._show(f"![{' '.join(alt.split())}](<{here}>)\n\n{caption} "
                   f"[vector](<{stem}.svg>) · [numbers](<{stem}.csv>)")

    def claims(self, claims: Sequence[Claim], *, rtol: float = 2e-2, atol: float = 1e-6) -> None:
        """Save the claims and show them with their verdicts; in a long profile only show them.

        The quick notebook publishes the claims of every profile, those of the others from their committed records. A
        verdict depends on all primary claims of its paper; those of other notebooks are read from their records. What
        agrees with the committed claims within the tolerances is shown, and judged, with the committed numbers. What
        rests on a withdrawn record is not judged. A ValueError as :func:`sharpnb.lab.board.check`.
        """
        claims = [claim.without(withdrawn.why(self.name, claim.profile, claim.id)) for claim in claims]
        board.check(claims)
        if self.profile == "quick":
            path = self.record("claims", {"claims": [claim.as_dict() for claim in claims]}, rtol=rtol, atol=atol)
            claims = [Claim.from_dict(row) for row in Record.load(path).values["claims"]]
        self._show(board.of_notebook(self.name, claims))

    @staticmethod
    def _show(markdown: str) -> None:
        from IPython.display import Markdown, display

        display(Markdown(markdown))

    @staticmethod
    def say(text: str) -> None:
        """Print a line into the notebook."""
        print(text)  # noqa: T201 (the notebook's own output)


def seeds_of(text: str) -> range:
    """Return the seeds ``first:end``, none of an empty text; ValueError for another form."""
    first, colon, end = text.partition(":")
    if text and not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise ValueError(f"seeds = {text!r}: write first:end, such as 7000:7020, or nothing for the study's own.")
    return range(int(first), int(end)) if text else range(0)


def start(name: str, *, profile: str = "quick", device: str = "auto", seed: int = 0, seeds: str = "",
          **parameters: Any) -> Notebook:
    """Set a notebook up: check its parameters, seed PyTorch's generator, set the figures' look, find its studies.

    PyTorch's default dtype is float32 again, and matplotlib's settings are its own, whatever a start-up file says. The
    number of threads stays as it is (`sharpnb run` sets ``OMP_NUM_THREADS=1``: two threads on shared cores were
    measured nine times slower). After this call ``from studies import …`` finds the notebook's study.

    ``seeds`` such as ``"7000:7020"`` are judging seeds in the place of the study's own, see :meth:`Notebook.seeds`.

    Raises:
        ValueError: for an unknown profile, a device that is not there, or seeds of another form; with what is allowed.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile = {profile!r}: choose one of {', '.join(PROFILES)}.")
    parameters |= {"seeds": seeds} if seeds else {}
    notebook = Notebook(name, profile, device, {"profile": profile, "device": device, "seed": seed, **parameters},
                        seeds)
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float32)  # an IPython start-up file may have set another
    if notebook.full and notebook.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # the fastest convolutions, which may round otherwise in another run
    figures.use_style()
    paths.let_studies_be_imported()
    if paths.readers_own():
        notebook.say(f"What you make here goes to {os.path.relpath(paths.runs('mine'))}; the committed results stay as "
                     f"they are. `sharpnb run {name} --update` renews those.")
    return notebook
