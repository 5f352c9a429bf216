"""The claims of notebook 02, from its cells: the live table, the survey, the two minima, and the full profile."""

from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab import Claim, Notebook
from sharpnb.lab.claims import Regime
from studies import sam_minima as study
from studies import sam_minima_full as full_study

Cells = dict[study.Place, pd.DataFrame]
_THEIRS = "the paper: nets of 200 epochs and more, 30 cells"


def claims(nb: Notebook, live: Cells, survey: Cells, later: Cells) -> list[Claim]:
    """Return all claims: on the ``live`` table, on the ``survey``, and on the cells of CIFAR-10 that have been run."""
    cifar = [cell for place, cell in later.items() if place[0] == "cifar10"]
    found = _of_cells(cifar, f"{full_study.full().label}, CIFAR-10; {_THEIRS}", {"profile": "full"}) if cifar else []
    if nb.full:
        return found
    plain = next(iter(live.values()))
    edges = {edge for edge in plain["edge"] if edge not in ("no", "–")}
    label = f"{study.MLP}, 300 digits{', edge of the trials' if edges else ''}, of a survey of SAM; {_THEIRS}"
    found += [*_of_cells([plain], label, {}),
              Claim.from_samples(study.gains(plain, "SAM, untuned"), id="sam-table-9", protocol=label,
                                 paper_value="0.2 to 4.3", regime=_regime([plain])),
              Claim.from_samples(study.gains(plain, against="SGD, E"), id="sam-equal-steps", below="sam-table-1",
                                 statement="the same, SGD no longer than SAM")]
    survived = {"protocol": f"{len(survey)} cells of small nets that underfit, ρ = 0.05", "record": "survey"}
    return [*found, Claim.from_samples(_mean(survey.values(), study.gains), id="sam-survey", below="sam-table-1",
                                       statement="the same while nets underfit", **survived),
            Claim.from_samples(0.5 - _mean(survey.values(), _doubled), id="sam-survey-doubling", below="sam-doubling",
                               statement="the same while nets underfit", **survived)]


def _of_cells(cells: list[pd.DataFrame], protocol: str, note: dict[str, Any]) -> list[Claim]:
    """Return the claims on a mean of cells, and on the minima of the first."""
    note = note | {"protocol": protocol, "regime": _regime(cells)}
    sgd, sam = (study.at(cells[0], method) for method in ("SGD", "SAM"))
    flatter = {key: np.log10(sgd[key].to_numpy() / sam[key].to_numpy()) for key in ("rise", "lambda_max")}
    return [
        Claim.from_samples(_mean(cells, study.gains), id="sam-table-1", paper_value="0.2 to 5.1", **note),
        Claim.from_samples(0.5 - _mean(cells, _doubled), id="sam-doubling", **note),
        Claim.from_samples(flatter["rise"], id="sam-fig-1-surface", **note),
        Claim.from_samples(flatter["lambda_max"], id="sam-fig-1-lambda", below="sam-fig-1-surface",
                           statement="the same of λmax of the Hessian", **note),
    ]


def _mean(cells: Any, of: Any) -> np.ndarray:
    return np.mean([of(cell) for cell in cells], axis=0)


def _doubled(cell: pd.DataFrame) -> np.ndarray:
    return study.errors(cell, "SGD, E") - study.errors(cell, "SGD, 2E")


def _regime(cells: list[pd.DataFrame]) -> Regime:
    """Return what SGD reached at its better budget; twice that is known where the better one is E."""
    train = _mean(cells, lambda cell: study.at(cell, "SGD")["train_error"].mean())
    test, twice = (_mean(cells, lambda cell, m=m: study.errors(cell, m).mean()) for m in ("SGD", "SGD, 2E"))
    return Regime(float(train), float(test), float(twice) if twice != test else None)
