"""A grid of settings as a table of results: cut into shards, resumed after a kill, on this machine or on a cluster."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sharpnb import datafiles, kept, paths, sources, usercode
from sharpnb.devices import pick_device
from sharpnb.lab import models
from sharpnb.lab.data import Data, load_data
from sharpnb.lab.grid import PER_CALL, Grid, cells_of, whole
from sharpnb.lab.training import METRICS
from sharpnb.many import settings
from sharpnb.many.schedules import schedule_of
from sharpnb.many.train import train_many
from sharpnb.near import near
from sharpnb.progress import bar

if TYPE_CHECKING:
    import pandas as pd

Rows = list[dict[str, Any]]
OURS: dict[str, dict[str, Callable[..., Any]]] = {
    "model": {build.__name__: build for build in (
        models.mlp, models.cnn, models.resnet, models.resnet18, models.wide_resnet)},
    "data": {name: functools.partial(load_data, name) for name in datafiles.NAMES},
}


def sweep(
    grid: Grid, data: Mapping[str, Any], model: Mapping[str, Any], *, steps: int | None = None, batch_size: int = 64,
    schedule: str = "cosine", evaluate_every: int = 0, dtype: str = "float32", bf16: bool = False, device: str = "auto",
    client: Any = None, jobs: int = 1, shard_size: int = 32, folder: str | Path | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Train every cell of a grid and return the table of results, one row a cell, in the grid's order.

    The grid is cut into shards of cells that form one batched program. A finished shard is kept in ``folder`` under a
    name made of everything it depends on (settings, sources, also of functions of one's own, data files, PyTorch), so
    the same call after a kill trains only what is missing, and another call never finds it. Shards do not depend on who
    runs them: any number of processes or machines of one kind gives the same table to the last bit. One that fails (an
    error, a worker's death) is tried once more by itself. If it fails again its cells are rows with the ``reason`` and
    no numbers, a warning names their settings, and the next call tries them anew.

    Example::

        sweep({"rule": ["sgd", "sgdw"], "lr": log2_grid(-8, 0), "weight_decay": [0, 1e-3], "seed": range(3)},
              data={"name": "digits", "train_size": 500}, model={"name": "mlp", "sizes": (64, 24, 10)}, steps=100)

    Args:
        grid: see :func:`sharpnb.lab.grid.cells_of`.
        data: ``name`` and arguments of :func:`sharpnb.lab.load_data`; ``"seed": "cell"`` gives each seed its own split.
            A name ``"module:function"`` or ``"file.py:function"`` is a function of one's own.
        model: ``name`` and arguments of a builder in :mod:`sharpnb.lab.models`, or of one's own; it is called with
            ``seed=`` too. A file of one's own is run where it lives (:mod:`sharpnb.usercode`); workers on other
            machines need it at the same place.
        steps: updates of each cell, unless it is an axis of the grid.
        batch_size: images an update, unless it is an axis of the grid.
        schedule: by its name, unless it is an axis of the grid.
        evaluate_every: evaluate each so many steps (0: at the end alone).
        dtype: by its name, ``"float32"`` or ``"float64"``.
        bf16: as in :func:`sharpnb.lab.train_many`.
        device: likewise.
        client: a ``distributed.Client`` or the address of a Dask scheduler; None runs here.
        jobs: processes here, one thread each; 1 is this process.
        shard_size: cells in a shard at most (default 32: one chunk of ``train_many``).
        folder: where finished shards are kept; default ``data/runs/sweeps``.
        progress: show a bar with cells a second and the time left (default: where one can be drawn).

    Returns:
        The cells' settings, the final metrics (nats and percent; those of SWA and Lookahead as ``average_…``),
        ``reason`` (empty if all went well, else why there are no numbers) and ``curve``, the list of evaluations.

    Raises:
        ValueError: for a bad grid, data set, model or setting, before anything is trained.
        RuntimeError: if it is called by a file that is being imported, for the model that the file defines.
    """
    if file := usercode.importing():
        raise RuntimeError(f"sweep() is called by {file}, which is imported for a function of its own, here or in a "
                           "worker process. Put the call under: if __name__ == \"__main__\":")
    cells = cells_of(grid)
    if steps is None and not all("steps" in cell for cell in cells):
        raise ValueError("steps is missing: give steps=, or steps as an axis of the grid.")
    counts = {"steps": 1 if steps is None else steps, "batch_size": batch_size, "shard_size": shard_size, "jobs": jobs}
    for name, value in counts.items():
        whole(name, value)
    whole("evaluate_every", evaluate_every, least=0)
    schedule_of(schedule)
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype = {dtype!r}: choose float32 or float64.")
    common = {"steps": steps, "batch_size": batch_size, "schedule": schedule, "evaluate_every": evaluate_every,
              "dtype": dtype, "bf16": bf16, "device": str(pick_device(device)) if client is None else device}
    shards = _shards(cells, portable(kept.plain(data)), portable(kept.plain(model)), common, shard_size)
    _try_first(next(iter(shards.values()))[1])
    return _table(cells, _results(shards, client, jobs, Path(folder or paths.runs("sweeps")), progress))


def portable(told: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Name a function of one's own by its file, in a folder or the working one, so that another process finds it."""
    return {**told, "name": usercode.absolute(str(told.get("name")), folder)}


# ---- A shard: plain values that any machine can run -----------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """Cells that are trained together; ``data``, ``model`` and ``training`` as :func:`sweep` has them."""

    cells: Rows
    data: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]

    @property
    def made_with(self) -> dict[str, Any]:
        """All that the result depends on: settings, sources (also functions of one's own), data files, PyTorch."""
        own = [usercode.digest(name) for name in (self.data["name"], self.model["name"]) if ":" in name]
        files = datafiles.fingerprint(self.data["name"]) if self.data["name"] in datafiles.NAMES else ""
        return {"shard": asdict(self), "code": sources.mark(["import sharpnb.lab.sweeps"]), "own": own, "files": files,
                "torch": torch.__version__}

    def net(self, seed: int) -> nn.Module:
        """Build the net of a seed."""
        options = {**self.model}
        return _named(options.pop("name"), "model")(**options, seed=seed)

    def data_of(self, seed: int) -> Data:
        """Load the data of a cell with this seed."""
        options = {**self.data}
        options |= {"seed": seed} if options.get("seed") == "cell" else {}
        return _named(options.pop("name"), "data")(**options)


def run(shard: Shard) -> Rows:
    """Train a shard's cells on one thread; return each one's metrics, ``reason`` (empty if it went well) and curve."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        loaded = functools.cache(shard.data_of)
        sets = [loaded(int(cell.get("seed", 0))) for cell in shard.cells]
        options = shard.training | {"dtype": getattr(torch, shard.training["dtype"])}
        many = train_many(shard.cells, sets, shard.net, **options, chunk=len(shard.cells), progress=False)
    finally:
        torch.set_num_threads(threads)
    curves: list[Rows] = [[] for _ in shard.cells]
    for row in many.rows:
        measured = {name: row[name] for name in row if name == "step" or name.endswith(("_loss", "_error"))}
        curves[row["member"]].append(measured)
    ends = ["" if step is None else f"diverged: the loss is not finite at step {step}" for step in many.diverged]
    return [{**curve[-1], "reason": end, "curve": curve} for curve, end in zip(curves, ends, strict=True)]


def _named(name: str, what: str) -> Callable[..., Any]:
    """Return what builds a ``"model"`` or loads ``"data"``, ours or one of one's own; ValueError if nothing does."""
    if ":" in name:
        return usercode.find(name, what)
    if name not in OURS[what]:
        raise ValueError(f"name = {name!r}: there is no such {what}.{near(name, OURS[what])} Choose one of "
                         f"{', '.join(OURS[what])}, or name one of your own as 'module:function' or "
                         "'file.py:function'.")
    return OURS[what][name]


def _shards(
    cells: Rows, data: dict[str, Any], model: dict[str, Any], common: dict[str, Any], size: int
) -> dict[str, tuple[list[int], Shard]]:
    """Return the name of its file -> (places of its cells, shard)."""
    budgets: dict[tuple[Any, ...], list[int]] = {}
    for k, cell in enumerate(cells):
        budgets.setdefault(tuple(cell.get(name, common[name]) for name in PER_CALL), []).append(k)
    shards = {}
    for budget, members in budgets.items():
        own = [{name: value for name, value in cells[k].items() if name not in PER_CALL} for k in members]
        training = common | dict(zip(PER_CALL, budget, strict=True))
        for group in settings.grouped([settings.validated(cell, k) for k, cell in enumerate(own)], size):
            shard = Shard([own[k] for k in group], data, model, training)
            file = kept.place(Path(), f"{len(group)} cells", shard.made_with).name
            shards[file] = ([members[k] for k in group], shard)
    return shards


def _try_first(shard: Shard) -> None:
    """Raise at once what would fail every shard: no such data set, no such model, the two do not fit."""
    try:
        shard.net(0).eval()(shard.data_of(0).train[0][:2])
    except ValueError:
        raise
    except Exception as error:  # whatever functions of one's own raise or return
        raise ValueError(f"data = {shard.data} with model = {shard.model}: {type(error).__name__}: {error}") from error


# ---- Running shards -------------------------------------------------------------------------------------------------


def _results(
    shards: dict[str, tuple[list[int], Shard]], client: Any, jobs: int, folder: Path, progress: bool | None
) -> dict[int, dict[str, Any]]:
    """Return the result of each cell by its place, from the folder where it is there."""
    found = {key: kept.find(folder / key) for key in shards}
    done: dict[str, Rows] = {key: work[0]["rows"] for key, work in found.items() if work}
    left = {key: shard for key, (_, shard) in shards.items() if key not in done}
    cells = sum(len(places) for places, _ in shards.values())
    with bar(progress, cells, "sweep", "cell", sum(map(len, done.values()))) as shown:

        def finished(key: str, rows: Rows) -> None:
            kept.store(folder / key, {"rows": rows}, vars(shards[key][1]))
            done[key] = json.loads(json.dumps(rows))  # as a resumed sweep would read them
            shown.update(len(rows))

        failed = _attempt(left, client, jobs, jobs if client is None else len(left), finished)
        failed = _attempt({key: left[key] for key in failed}, client, jobs, 1, finished)
    for key, error in failed.items():
        reason = f"failed twice: {type(error).__name__}: {error}"
        done[key] = [{"reason": reason, "curve": []} for _ in left[key].cells]
        warnings.warn(f"A shard {reason}. Its cells have no result: {left[key].cells}", stacklevel=3)
    return {place: row for key, (places, _) in shards.items() for place, row in zip(places, done[key], strict=True)}


def _table(cells: Rows, results: Mapping[int, Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    last = ["reason", "curve"]
    order = dict.fromkeys([*METRICS, *(name for k in sorted(results) for name in results[k] if name != "step")])
    rows = [cell | {name: results[k].get(name, float("nan")) for name in order} for k, cell in enumerate(cells)]
    columns = dict.fromkeys(name for row in rows for name in row if name not in last)
    return pd.DataFrame(rows, columns=[*columns, *last])


def _attempt(
    shards: Mapping[str, Shard], client: Any, jobs: int, window: int, finished: Callable[[str, Rows], None]
) -> dict[str, BaseException]:
    """Run shards, ``window`` of them at once; return the errors of those that failed."""
    failed: dict[str, BaseException] = {}
    waiting = deque(shards)
    while waiting:
        with _workers(client, jobs) as submit:  # new ones when a worker's death broke the last
            running: dict[Future[Any], str] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < window:
                        running[submit(run, shards[waiting[0]])] = waiting[0]
                        waiting.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        key = running.pop(future)
                        try:
                            rows = future.result()
                        except Exception as error:  # the shard's, or that its worker is gone
                            failed[key] = error
                        else:
                            finished(key, rows)
            except BrokenExecutor as error:  # at the next shard
                failed |= dict.fromkeys(running.values(), error)
    return failed


@contextmanager
def _workers(client: Any, jobs: int) -> Iterator[Callable[..., Future[Any]]]:
    """Yield how a call is submitted; at an error or Ctrl-C wait for no worker, training or still to come."""
    if client is None and jobs == 1:
        yield _here
        return
    others = set(multiprocessing.active_children())
    with _at_address(client) if isinstance(client, str) else nullcontext(client) as dask:
        executor = dask.get_executor(pure=False) if dask else ProcessPoolExecutor(
            jobs, multiprocessing.get_context("spawn"), _end_with_parent)

        def submit(*call: Any) -> Future[Any]:
            with usercode.starting_workers():
                return executor.submit(*call)

        try:
            yield submit
        except BaseException:
            own = set(multiprocessing.active_children()) - others
            executor.shutdown(wait=False)
            for worker in own:
                worker.terminate()
            raise
        executor.shutdown()


def _here(function: Callable[..., Any], *given: Any) -> Future[Any]:
    """Call a function in this process."""
    future: Future[Any] = Future()
    try:
        future.set_result(function(*given))
    except Exception as error:
        future.set_exception(error)
    return future


@contextmanager
def _at_address(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("A Dask scheduler needs dask and distributed: pip install 'sharpnb[scale]'.") from error
    try:
        client = Client(address)
    except (OSError, ValueError) as error:
        raise ValueError(f"No Dask scheduler answers at {address} ({error}). Start one: dask scheduler") from error
    with client:
        if not client.scheduler_info()["workers"]:
            warnings.warn(f"{address} has no worker yet, and the sweep waits for one. Start one: dask worker {address}",
                          stacklevel=6)
        yield client


def _end_with_parent() -> None:
    """End this worker when the driver is killed: a SIGKILL leaves nobody to tell it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
