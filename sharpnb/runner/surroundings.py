"""What a kernel finds around it: the same on every machine, and nothing of its user's profile.

`sharpnb run` and the gate both start their kernels with it. So a matplotlibrc, an IPython profile, a locale, a time
zone or the settings of a terminal change no committed file and no comparison.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from sharpnb import paths

# glibc's own adaptation ends at these two limits. As it starts, it gives freed megabytes back to the system and takes
# them again page by page, a third of the time of a batched CNN. Other C libraries do not look at them.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**26)}
THREADS = tuple(f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"))
FIXED = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": os.devnull, "TZ": "UTC",
    "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONHASHSEED": "0",
}
# matplotlib reads a matplotlibrc beside the notebooks whatever the environment says, and warns of what is wrong in it.
START = 'import logging\n\nlogging.getLogger("matplotlib").setLevel("ERROR")\n'
# A start-up file; other words, colours and widths; warnings as errors; no asserts; another command as the kernel.
REMOVED = (
    "PYTHONSTARTUP", "LANGUAGE", "PYTHONIOENCODING", "COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "CLICOLOR",
    "CLICOLOR_FORCE", "PY_COLORS", "PYTHON_COLORS", "PYTHONWARNINGS", "PYTHONOPTIMIZE", "JUPYTER_PATH",
)


def without_profile(environment: Mapping[str, str], root: Path) -> dict[str, str]:
    """Return ``environment`` for a kernel: without what a user's profile sets, with :data:`FIXED` in its place.

    IPython gets a folder of its own below ``data/runs`` of the checkout at ``root``, with :data:`START` as its one
    start-up file. A checkout that cannot be written has none: IPython then takes a temporary one, and says so.
    """
    folder = root / "data" / "runs" / ".ipython"
    first = folder / "profile_default" / "startup" / "quiet.py"
    with contextlib.suppress(OSError):
        if not first.exists():
            paths.write_whole(first, START)
    return {n: value for n, value in environment.items() if n not in REMOVED} | FIXED | {"IPYTHONDIR": str(folder)}
