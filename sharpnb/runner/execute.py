"""Execution of a plan: one process a notebook, as many at once as asked, the others going on when one fails."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Protocol

import sharpnb
from sharpnb import paths, sources
from sharpnb.runner import catalogue, keys, lock, stored, surroundings
from sharpnb.runner.errors import RunnerError
from sharpnb.runner.plan import FORCE, Step, plan, sidecar, step

QUICK_TIMEOUT = 600.0  # ten times the longest that a quick notebook may take, for slow machines

# glibc's own adaptation ends at these two limits. As it starts, it gives freed megabytes back to the system and takes
# them again page by page, a third of the time of a batched CNN. Other C libraries do not look at them.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**26)}
_THREADS = tuple(f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"))
_REMEDIES = {
    "kernel died": (
        "The kernel died without a word in {place}. Most often the system ended it for want of memory: "
        "close other programs, run with --jobs 1, or ask for less (see the parameters). `sharpnb doctor` shows what is "
        "free."
    ),
    "timed out": (
        "After {timeout:.0f} s it was still at work, in {place}. Give more time with --timeout SECONDS "
        "(0: no limit)."
    ),
    "worker died": (
        "The process that ran the kernel ended unexpectedly (exit status {status}), in {place}; -9 is most "
        "often the system, for want of memory. Its last words:\n{stderr}"
    ),
}


@dataclass(frozen=True)
class Result:
    """How one notebook ended.

    Attributes:
        name: the notebook's.
        why: why it was executed, or why not.
        outcome: ``done``, ``up to date``, ``failed``, ``kernel died``, ``worker died``, ``timed out``.
        seconds: wall time; 0 when nothing was executed.
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


class Watcher(Protocol):
    """Who is told what happens, from several threads."""

    def started(self, step: Step) -> None:
        """A notebook begins."""

    def cell(self, name: str, number: int, total: int) -> None:
        """It reaches a code cell."""

    def ended(self, result: Result) -> None:
        """It has ended, or was up to date."""


class Silence:
    """The watcher that says nothing."""

    def started(self, step: Step) -> None:
        """Say nothing."""

    def cell(self, name: str, number: int, total: int) -> None:
        """Say nothing."""

    def ended(self, result: Result) -> None:
        """Say nothing."""


def run(
    names: list[str] | None = None, profile: str = "quick", jobs: int | None = None,
    parameters: Mapping[str, Any] | None = None, *, force: bool = False, update: bool = False,
    timeout: float | None = None, watcher: Watcher | None = None,
) -> list[Result]:
    """Execute the notebooks that need it and return how each ended.

    Args:
        names: numbers, names or paths of notebooks; all without.
        profile: ``quick`` or ``full``.
        jobs: notebooks at once. Default: two (one on one core) in the quick profile, one in the full, where each has
            the GPU to itself.
        parameters: in the place of the notebooks' defaults.
        force: execute also what is up to date.
        update: for maintainers: the kernel works in ``notebooks/``, and the outputs are stored in the committed file.
        timeout: seconds for a notebook, 0 for none. Default: 600 in the quick profile, none in the full.
        watcher: is told of every start, cell and end.

    Raises:
        RunnerError: before anything is executed, for what :func:`sharpnb.runner.plan` refuses, or while another run
            holds the checkout.
    """
    plan(names, profile, parameters, force=force, update=update)  # refuse before waiting for the lock
    if jobs is None:
        jobs = min(2, os.cpu_count() or 1) if profile == "quick" else 1
    if timeout is None:
        timeout = QUICK_TIMEOUT if profile == "quick" else 0.0
    with lock.only_one(paths.root() / "data" / "runs" / ".lock") as descriptor:
        steps = plan(names, profile, parameters, force=force, update=update)
        crew = _Crew(descriptor, timeout, watcher or Silence())
        results = crew.work([item for item in steps if not item.notebook.after_all], jobs)
        for item in (item for item in steps if item.notebook.after_all):
            results += crew.work([step(item.notebook, item.values, profile, force, update)], 1)
    return results


class _Crew:
    """The worker processes of one run."""

    def __init__(self, descriptor: int, timeout: float, watcher: Watcher) -> None:
        self.descriptor, self.timeout, self.watcher = descriptor, timeout, watcher
        self.busy: set[subprocess.Popen[str]] = set()
        self.stopped, self.door = False, threading.Lock()  # through which each process starts, and none once stopped

    def work(self, steps: list[Step], jobs: int) -> list[Result]:
        """Execute steps, ``jobs`` at once; on Ctrl-C every process is ended before the interrupt goes on."""
        with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
            try:
                return list(pool.map(self._one, steps))
            except BaseException:
                with self.door:
                    self.stopped = True
                for process in list(self.busy):
                    _end(process)
                raise

    def _one(self, item: Step) -> Result:
        begun, outcome, detail = time.monotonic(), "up to date", ""
        before = keys.written(item.name, item.profile) if item.why else {}
        if item.why:
            self.watcher.started(item)
            try:
                _prepare(item)
                outcome, detail = self._attempt(item)
                seconds = time.monotonic() - begun
                kept = _settle(item, outcome, seconds)
            except (OSError, ValueError, RunnerError) as error:
                notes = getattr(error, "__notes__", [])
                outcome, detail = "failed", "\n".join([f"{type(error).__name__}: {error}", *notes])
                seconds, kept = time.monotonic() - begun, None
            renewed = sorted(dict(keys.written(item.name, item.profile).items() - before.items()))
            result = Result(item.name, item.reason, outcome, seconds, detail, kept, tuple(renewed))
        else:
            result = Result(item.name, item.reason, outcome, 0.0, detail, item.copy())
        self.watcher.ended(result)
        return result

    def _attempt(self, item: Step) -> tuple[str, str]:
        """Execute one notebook in a process of its own; return how it ended and the detail."""
        place, ended, late = "the start of the kernel", {}, threading.Event()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            process = self._start(item, errors)
            if process is None:
                return "not run", ""
            timer = threading.Timer(self.timeout, lambda: (late.set(), _end(process)))
            try:
                if self.timeout:
                    timer.start()
                for event in _events(process.stdout):
                    if "cell" in event:
                        place = f"cell {event['cell']} of {event['of']}"
                        self.watcher.cell(item.name, event["cell"], event["of"])
                    else:
                        ended = event
                process.wait()
            finally:
                timer.cancel()
                _end(process)
                self.busy.discard(process)
            errors.seek(0)
            last_words = errors.read()[-2000:].strip() or "(none)"
        outcome = "timed out" if late.is_set() else ended.get("end", "worker died")
        facts = {"place": place, "timeout": self.timeout, "stderr": last_words, "status": process.returncode}
        remedy = _REMEDIES.get(outcome, "").format(**facts)
        return outcome, remedy or ended.get("detail", "")

    def _start(self, item: Step, errors: IO[str]) -> subprocess.Popen[str] | None:
        """Start the worker of one notebook; None where the run has been stopped."""
        job = {
            "name": item.name, "source": str(item.notebook.path), "folder": str(item.folder),
            "working_folder": str(paths.notebooks() if item.update else item.folder),
            "parameters": dict(item.injected), "environment": _environment(item),
        }
        around = surroundings.without_profile(os.environ, paths.root())
        with self.door:
            if self.stopped:
                return None
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sharpnb.runner.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, encoding="utf-8", start_new_session=True, pass_fds=[self.descriptor],
                env={**around, "PYTHONPATH": _search_path(Path(sharpnb.__file__).parents[1])},
            )
            self.busy.add(process)
        assert process.stdin is not None  # it is a pipe; left open, for its end tells the worker that we are gone
        with contextlib.suppress(BrokenPipeError):  # the worker died at once: its last words say why
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        return process


def _events(lines: IO[str] | None) -> Iterator[dict[str, Any]]:
    """Yield what a worker tells; a line of another hand on its standard output is passed over."""
    for line in lines or ():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def _end(process: subprocess.Popen[str]) -> None:
    """End a worker by its own way: at the end of its input it takes the kernel and everything below down with it."""
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _environment(item: Step) -> dict[str, str]:
    """Return what a kernel is to find in its environment: one thread, no bar, our own package.

    An allocator that keeps what is freed, unless the user has set one up.

    Two OpenMP threads on shared cores were measured nine times slower than one; the quick profile fixes the number for
    reproducibility too, the full one leaves a number that the user has set.
    """
    fixed = item.profile == "quick"
    threads = {name: "1" if fixed else os.environ.get(name, "1") for name in _THREADS}
    allocator = {name: os.environ.get(name, value) for name, value in ALLOCATOR.items()}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if item.key["device"] == "cpu" else {}
    return {
        **threads, **hidden, **allocator, "TQDM_DISABLE": "1", "SHARPNB_CHECK": "",
        "SHARPNB_KEEP": "0" if item.update else "1", "SHARPNB_FORCE": "1" if item.forced else "",
        "SHARPNB_ROOT": str(paths.root()), "PYTHONPATH": _search_path(sources.package_folder().parent),
    }


def _search_path(folder: Path) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def _prepare(item: Step) -> None:
    """Mark the last result as void; sweep away what a killed run has left half-written, and what --force makes anew."""
    now = datetime.now().isoformat(" ", "seconds")
    paths.write_whole(sidecar(item.folder, item.name), json.dumps({"begun": now, "forced": item.forced}))
    if FORCE in item.why:
        shutil.rmtree(item.folder / "pieces" / item.name, ignore_errors=True)
    item.copy("partial").unlink(missing_ok=True)
    own = [paths.figures(item.name).rglob(".*.partial"), paths.records(item.name, item.profile).rglob(".*.partial")]
    own.append((item.folder / "pieces" / item.name).rglob(".*.partial"))
    for leftover in (*itertools.chain(*own), *item.folder.glob(f".{item.name}.*.partial")):
        leftover.unlink(missing_ok=True)


def _whole(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def _settle(item: Step, outcome: str, seconds: float) -> Path | None:
    """Keep what a notebook has left; return the copy that was kept."""
    if _whole(item.copy("partial")):
        os.replace(item.copy("partial"), item.copy("failed"))
    item.copy("partial").unlink(missing_ok=True)  # papermill was cut short while it wrote
    if outcome != "done":
        return item.copy("failed") if item.copy("failed").exists() else None
    item.copy("failed").unlink(missing_ok=True)
    if item.update:
        executed = json.loads(item.copy().read_text(encoding="utf-8"))
        now = catalogue.load(item.notebook.path).content  # as somebody may have edited it while it ran
        paths.write_whole(item.notebook.path, stored.text(stored.with_outputs(now, executed)))
    done = {
        "key": item.key, "copy": sources.digest(item.copy()), "wrote": keys.written(item.name, item.profile),
        "seconds": round(seconds, 1), "finished": datetime.now().isoformat(" ", "seconds"),
    }
    if item.update:
        done["stored"] = stored.digest(catalogue.load(item.notebook.path).content)
    paths.write_whole(sidecar(item.folder, item.name), json.dumps(done, indent=1))
    return item.notebook.path if item.update else item.copy()
