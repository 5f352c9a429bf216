"""What an experiment needs around the tools: data, models, training, records, claims, figures.

What every notebook uses comes with the package. The trainers, the sweeps and the models come when they
are first asked for, so that a notebook without them neither waits for them nor depends on their sources.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sharpnb.lab.claims import Claim as Claim
from sharpnb.lab.claims import mean_stderr as mean_stderr
from sharpnb.lab.claims import t95 as t95
from sharpnb.lab.data import Data as Data
from sharpnb.lab.data import DataError as DataError
from sharpnb.lab.data import load_data as load_data
from sharpnb.lab.data import with_label_noise as with_label_noise
from sharpnb.lab.notebook import Notebook as Notebook
from sharpnb.lab.notebook import start as start
from sharpnb.lab.records import Record as Record
from sharpnb.lab.records import RecordMismatch as RecordMismatch

if TYPE_CHECKING:  # the runner reads here, too, where a name comes from
    from sharpnb.lab import models as models
    from sharpnb.lab.grid import log2_grid as log2_grid
    from sharpnb.lab.sweeps import sweep as sweep
    from sharpnb.lab.training import History as History
    from sharpnb.lab.training import evaluate as evaluate
    from sharpnb.lab.training import train as train
    from sharpnb.many.train import Many as Many
    from sharpnb.many.train import train_many as train_many

# Their modules below sharpnb: a full name would count as an import.
_LATER = {"Many": "many.train", "log2_grid": "lab.grid", "sweep": "lab.sweeps", "train_many": "many.train",
          **dict.fromkeys(("History", "evaluate", "train"), "lab.training")}


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("sharpnb.lab.models")
    if name in _LATER:
        return getattr(import_module(f"sharpnb.{_LATER[name]}"), name)
    raise AttributeError(f"module 'sharpnb.lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, "models"})
