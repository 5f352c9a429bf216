"""Execution of a plan: one process a notebook, as many at once as asked, the others going on when one fails."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import sharpnb
from sharpnb import paths, sources
from sharpnb.runner import catalogue, lock, stored, surroundings
from sharpnb.runner.plan import FORCE, Step, plan, step, written

CELL_LIMIT = 3600  # seconds for a cell of the quick profile, whose longest, a tuning made anew, takes a quarter of that
_REMEDIES = {
    "kernel died": "The kernel died without a word in {place}. Most often the system ended it for want of memory: "
    "close other programs, run with --jobs 1, or ask for less (see the parameters). `sharpnb doctor` says what is free",
    "worker died": "The process that ran the kernel ended unexpectedly (exit status {status}), in {place}; -9 is most "
    "often the system, for want of memory. Its last words:\n{words}",
}


@dataclass(frozen=True)
class Result:
    """How one notebook ended, and why it was executed or not.

    Attributes:
        outcome: ``done``, ``up to date``, ``failed``, ``kernel died``, ``worker died``, ``not run``.
        detail: the failing cell's traceback, or what went wrong and what to do.
        kept: the executed copy, up to the failure if there was one.
        renewed: the records and figures that were not there, or not the same within their tolerance.
    """

    name: str
    why: str
    outcome: str
    seconds: float = 0.0
    detail: str = ""
    kept: Path | None = None
    renewed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the notebook's result is there and current."""
        return self.outcome in ("done", "up to date")


class Watcher:
    """Who is told what happens, from several threads; this one says nothing."""

    def started(self, step: Step) -> None:
        """A notebook begins."""

    def cell(self, name: str, number: int, total: int) -> None:
        """It reaches a code cell."""

    def ended(self, result: Result) -> None:
        """It has ended, or was up to date."""


def run(
    names: list[str] | None = None, profile: str = "quick", jobs: int | None = None,
    parameters: Mapping[str, Any] | None = None, *, force: bool = False, update: bool = False,
    watcher: Watcher | None = None,
) -> list[Result]:
    """Execute the notebooks that need it and return how each ended.

    Args:
        names: numbers, names or paths of notebooks; all without.
        profile: ``quick``, ``mid`` or ``full``.
        jobs: notebooks at once. Default: two (one on one core) in the quick profile, else one.
        parameters: in the place of the notebooks' defaults.
        force: execute also what is up to date.
        update: for maintainers: the kernel works in ``notebooks/``, and the outputs are stored in the committed file.
        watcher: is told of every start, cell and end.

    Raises:
        RunnerError: before anything is executed: what ``plan`` refuses, or another run that holds the checkout.
    """
    asked: dict[str, Any] = {"profile": profile, "force": force, "update": update, "given": parameters or {}}
    plan(names, **asked)  # refuse before waiting for the lock
    jobs = jobs or (min(2, os.cpu_count() or 1) if profile == "quick" else 1)
    with lock.only_one(paths.root() / "data" / "runs" / ".lock") as descriptor:
        steps, crew = plan(names, **asked), _Crew(descriptor, watcher or Watcher())
        results = crew.work([item for item in steps if not item.notebook.after_all], jobs)
        for item in (item for item in steps if item.notebook.after_all):
            results += crew.work([step(item.notebook, **asked)], 1)
    return results


class _Crew:
    """The worker processes of one run."""

    def __init__(self, descriptor: int, watcher: Watcher) -> None:
        self.descriptor, self.watcher = descriptor, watcher
        self.busy: set[subprocess.Popen[str]] = set()
        self.stopped, self.door = False, threading.Lock()  # through which each process starts, and none once stopped

    def work(self, steps: list[Step], jobs: int) -> list[Result]:
        """Execute steps, ``jobs`` at once; on Ctrl-C every process is ended before the interrupt goes on."""
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            try:
                return list(pool.map(self._one, steps))
            except BaseException:
                with self.door:
                    self.stopped = True
                for process in list(self.busy):
                    _end(process)
                raise

    def _one(self, item: Step) -> Result:
        result = self._executed(item) if item.why else Result(item.name, item.reason, "up to date", kept=item.copy())
        self.watcher.ended(result)
        return result

    def _executed(self, item: Step) -> Result:
        begun, before, kept = time.monotonic(), written(item.name, item.profile), None
        self.watcher.started(item)
        try:
            _prepare(item)
            outcome, detail = self._attempt(item)
            kept = _settle(item, outcome)
        except (OSError, ValueError, catalogue.RunnerError) as error:
            notes = getattr(error, "__notes__", [])
            outcome, detail = "failed", "\n".join([f"{type(error).__name__}: {error}", *notes])
        renewed = sorted(dict(written(item.name, item.profile).items() - before.items()))
        return Result(item.name, item.reason, outcome, time.monotonic() - begun, detail, kept, tuple(renewed))

    def _attempt(self, item: Step) -> tuple[str, str]:
        """Execute one notebook in a process of its own; return how it ended and the detail."""
        place, ended = "the start of the kernel", {}
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            process = self._start(item, errors)
            if process is None:
                return "not run", ""
            try:
                for line in process.stdout or ():
                    with contextlib.suppress(ValueError, TypeError):  # a line of another hand
                        ended = dict(json.loads(line))
                        if "cell" in ended:
                            place = f"cell {ended['cell']} of {ended['of']}"
                            self.watcher.cell(item.name, ended["cell"], ended["of"])
                process.wait()
            finally:
                _end(process)
                self.busy.discard(process)
            errors.seek(0)
            words = errors.read()[-2000:].strip() or "(none)"
        outcome = ended.get("end", "worker died")
        remedy = _REMEDIES.get(outcome, "").format(place=place, words=words, status=process.returncode)
        return outcome, remedy or ended.get("detail", "")

    def _start(self, item: Step, errors: IO[str]) -> subprocess.Popen[str] | None:
        """Start the worker of one notebook; None where the run has been stopped."""
        job = {"name": item.name, "source": str(item.notebook.path), "folder": str(item.folder),
               "working_folder": str(paths.notebooks() if item.update else item.folder),
               "parameters": dict(item.injected), "environment": _environment(item),
               "cell_limit": CELL_LIMIT if item.profile == "quick" else None}
        around = surroundings.without_profile(os.environ, paths.root())
        with self.door:
            if self.stopped:
                return None
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sharpnb.runner.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, encoding="utf-8", start_new_session=True, pass_fds=[self.descriptor],
                env={**around, "PYTHONPATH": _search_path(Path(sharpnb.__file__).parents[1])})
            self.busy.add(process)
        assert process.stdin is not None  # it is a pipe; left open, for its end tells the worker that we are gone
        with contextlib.suppress(BrokenPipeError):  # the worker died at once: its last words say why
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        return process


def _end(process: subprocess.Popen[str]) -> None:
    """End a worker by its own way: at the end of its input it takes the kernel and everything below down with it."""
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _environment(item: Step) -> dict[str, str]:
    """Return what a kernel is to find in its environment: one thread, no bar, our own package, no GPU on the CPU.

    The quick profile fixes the number of threads for reproducibility; others leave one that the user has set.
    """
    threads = dict.fromkeys(surroundings.THREADS, "1")
    own = {name: os.environ.get(name, value) for name, value in {**threads, **surroundings.ALLOCATOR}.items()}
    return {
        **own, **(threads if item.profile == "quick" else {}),
        **({"CUDA_VISIBLE_DEVICES": ""} if item.device == "cpu" else {}), "TQDM_DISABLE": "1", "SHARPNB_CHECK": "",
        "SHARPNB_KEEP": "0" if item.update else "1", "SHARPNB_FORCE": "1" if item.forced else "",
        "SHARPNB_ROOT": str(paths.root()), "PYTHONPATH": _search_path(sources.package_folder().parent),
    }


def _search_path(folder: Path) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def _now() -> str:
    return datetime.now().isoformat(" ", "seconds")


def _prepare(item: Step) -> None:
    """Mark the last result as void; sweep away what a killed run has left half-written, and what --force makes anew."""
    paths.write_whole(item.sidecar, json.dumps({"begun": _now(), "forced": item.forced}))
    pieces = item.folder / "pieces" / item.name
    if FORCE in item.why:
        shutil.rmtree(pieces, ignore_errors=True)
    folders = (paths.figures(item.name), paths.records(item.name, item.profile), pieces)
    for leftover in [item.copy("partial"), *item.folder.glob(f".{item.name}.*.partial"),
                     *(file for folder in folders for file in folder.rglob(".*.partial"))]:
        leftover.unlink(missing_ok=True)


def _settle(item: Step, outcome: str) -> Path | None:
    """Keep what a notebook has left; return the copy that was kept."""
    with contextlib.suppress(OSError, ValueError):  # papermill was cut short while it wrote
        json.loads(item.copy("partial").read_text(encoding="utf-8"))
        os.replace(item.copy("partial"), item.copy("failed"))
    item.copy("partial").unlink(missing_ok=True)
    if outcome != "done":
        return item.copy("failed") if item.copy("failed").exists() else None
    item.copy("failed").unlink(missing_ok=True)
    done: dict[str, Any] = {"key": item.key, "copy": sources.digest(item.copy()), "finished": _now(),
                            "wrote": written(item.name, item.profile)}
    if item.update:
        executed = json.loads(item.copy().read_text(encoding="utf-8"))
        now = catalogue.load(item.notebook.path).content  # as somebody may have edited it while it ran
        paths.write_whole(item.notebook.path, stored.text(stored.with_outputs(now, executed)))
        done["stored"] = stored.digest(catalogue.load(item.notebook.path).content)
    paths.write_whole(item.sidecar, json.dumps(done, indent=1))
    return item.notebook.path if item.update else item.copy()
