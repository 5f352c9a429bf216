"""What ``sharpnb replicate`` does: a notebook's judged settings on fresh seeds, beside the committed effects.

The notebook runs as it is, with its parameter ``seeds`` set; what it writes goes to ``data/runs``, so that nothing
committed changes but the table of the replication.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sharpnb import kept, paths
from sharpnb.lab import board
from sharpnb.lab.board import Row
from sharpnb.lab.claims import Claim
from sharpnb.lab.notebook import seeds_of
from sharpnb.lab.records import commit
from sharpnb.runner import catalogue, surroundings
from sharpnb.runner.catalogue import Notebook, RunnerError

DECIDED = ("supported", "refuted")


def replicate(names: Sequence[str] | None, seeds: str, jobs: int = 1) -> tuple[Path, dict[str, Any]]:
    """Run notebooks on other judging seeds, ``first:end``, none of which one has used; by default all that can.

    Returns:
        The file ``data/replications/<first>-<end>.json`` and what it holds: of each of the ``notebooks`` when and by
        which commit it was run, or why it ``failed``; and ``rows``, one per primary claim of the quick profile, with
        verdict, effect and seeds, ``old`` and ``fresh``. A later call with other notebooks adds to it.
    """
    seeds_of(seeds)
    found = catalogue.select(list(names)) if names else [nb for nb in catalogue.find_all() if "seeds" in nb.parameters]
    if without := [notebook.name for notebook in found if "seeds" not in notebook.parameters]:
        raise RunnerError(f"{', '.join(without)}: no parameter `seeds`, so there is nothing to judge on other seeds.")
    folder = paths.runs("replicate") / seeds.replace(":", "-")
    with ProcessPoolExecutor(jobs) as pool:
        failed = dict(zip((nb.name for nb in found), pool.map(partial(_execute, folder=folder, seeds=seeds), found),
                          strict=True))
    fresh = {name: _claims(folder, name) for name, reason in failed.items() if not reason}
    after = {(row.primary.id, row.profile): row for row in board.rows(fresh)}
    rows = [{"notebook": row.notebook, "claim": row.primary.id, "old": _told(row),
             "fresh": _told(after[row.primary.id, "quick"])}
            for row in board.rows() if row.profile == "quick" and row.notebook in fresh and row.claim]
    file = paths.root() / "data" / "replications" / f"{folder.name}.json"
    before = kept.read(file) if file.exists() else {"notebooks": {}, "rows": []}
    mark = {"commit": commit(""), "finished": datetime.now(UTC).isoformat(timespec="seconds")}
    now = {name: mark | ({"failed": reason} if reason else {}) for name, reason in failed.items()}
    told = {"seeds": seeds, "notebooks": before["notebooks"] | now,
            "rows": [row for row in before["rows"] if row["notebook"] not in failed] + rows}
    kept.write(file, told, indent=1)
    return file, told


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Say how many decided claims have their fresh estimate on the same side, and how many the opposite verdict."""
    decided = [row for row in rows if row["old"]["verdict"] in DECIDED]
    pairs = [(row["old"]["effect"], row["fresh"]["effect"]) for row in decided]
    same = sum(bool(fresh) and old["estimate"] * fresh["estimate"] > 0 for old, fresh in pairs)
    opposite = sum({row["old"]["verdict"], row["fresh"]["verdict"]} == set(DECIDED) for row in decided)
    return (f"Of {len(decided)} decided claims {same} have their fresh estimate on the same side; {opposite} got the "
            "opposite verdict.")


def _told(row: Row) -> dict[str, Any]:
    effect = row.claim.estimated if row.claim else None
    return {"verdict": row.verdict, "effect": asdict(effect) if effect else None,
            "seeds": row.claim.seeds if row.claim else 0,
            "text": board.interval(row.primary, effect) if effect else "–"}


def _execute(notebook: Notebook, folder: Path, seeds: str) -> str:
    """Execute a notebook in this process's own environment; return why it failed, or nothing."""
    import papermill

    os.environ.update({**dict.fromkeys(surroundings.THREADS, "1"), "SHARPNB_MINE": f"replicate/{folder.name}",
                       "TQDM_DISABLE": "1"})
    for name in ("SHARPNB_KEEP", "SHARPNB_CHECK", "SHARPNB_FORCE"):
        os.environ.pop(name, None)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(notebook.path, folder / f"{notebook.name}.ipynb", {"seeds": seeds},
                                   cwd=notebook.path.parent, progress_bar=False)
    except papermill.PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    return ""


def _claims(folder: Path, name: str) -> list[Claim]:
    file = folder / (paths.records(name, "quick") / "claims.json").relative_to(paths.root())
    return [Claim.from_dict(row) for row in kept.read(file)["values"]["claims"]]
