"""``from sharpnb.lab.sweep import sweep``: the module is the function, which ``sharpnb.lab.sweep`` so remains."""

import sys
from typing import Any, cast

from sharpnb.lab.sweeps import sweep

vars(sweep)["sweep"], sys.modules[__name__] = sweep, cast(Any, sweep)
