"""The path of :func:`sharpnb.lab.sweep` as a module: ``from sharpnb.lab.sweep import sweep``.

The module is the function itself, so that ``from sharpnb.lab import sweep`` is the function after that import too.
"""

import sys
from typing import Any, cast

from sharpnb.lab.sweeps import sweep

vars(sweep)["sweep"] = sweep
sys.modules[__name__] = cast(Any, sweep)
