"""The process that executes one notebook by papermill: told by a pipe, dead when the pipe closes.

Standard input brings one line of JSON (the job) and then stays open: its end means that the driver is gone, however it
went, and the worker takes the kernel and itself down. Standard output carries one JSON line per event; whatever else
prints goes to standard error.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sharpnb.paths import write_whole


def main() -> None:
    """Read the job, execute, report."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_the_driver, daemon=True).start()
    os.environ.update(job["environment"])

    def tell(**event: Any) -> None:
        print(json.dumps(event), file=events, flush=True)

    tell(**_execute(Path(job["folder"]), job, tell))


def _execute(folder: Path, job: dict[str, Any], tell: Callable[..., None]) -> dict[str, str]:
    """Execute ``job["source"]`` and return how it ended; what a failure leaves stays in the partial file."""
    # A grammar of addresses that jsonschema compiles for 1.6 s when it is imported; no notebook's schema asks for it.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    os.chdir(folder)  # papermill formats paths as templates, and the checkout's own may hold a brace
    partial, source = folder / f"{job['name']}.partial.ipynb", os.path.relpath(job["source"])
    cells = sum(cell.cell_type == "code" for cell in nbformat.read(source, 4).cells) + bool(job["parameters"])
    started = itertools.count(1)
    try:
        notebook = papermill.execute_notebook(
            source, partial.name, job["parameters"], progress_bar=False, cwd=job["working_folder"],
            on_cell_start=lambda cell, cell_index: cell.cell_type == "code" and tell(cell=next(started), of=cells),
            autosave_cell_every=0, execution_timeout=job["cell_limit"])
        write_whole(folder / f"{job['name']}.ipynb", nbformat.writes(notebook))
        partial.unlink()
        return {"end": "done"}
    except papermill.PapermillExecutionError as error:
        return {"end": "failed", "detail": "\n".join(error.traceback) or str(error)}
    except DeadKernelError:
        return {"end": "kernel died"}
    except OSError as error:  # such as a full disk
        notes = getattr(error, "__notes__", [f"The last good copy in {folder} is untouched."])
        return {"end": "failed", "detail": "\n".join([str(error), *notes])}
    except Exception:
        return {"end": "failed", "detail": traceback.format_exc()}


def _die_with_the_driver() -> None:
    sys.stdin.read()
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


if __name__ == "__main__":
    main()
