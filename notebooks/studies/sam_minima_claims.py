"""The claims of notebook 02, from its cells: the live table, the survey, the two minima, and the full profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab.claims import Claim
from sharpnb.lab.notebook import Notebook
from studies import sam_minima as study
from studies import sam_minima_full as full_study
from studies import sam_minima_published as published

_SAM = {"paper": "SAM (ICLR 2021)", "kind": "order", "why": "threshold 0; seeds decide"}
_CHOSEN = {"why": "one point, chosen by us"}
_BELOW = "SAM's error is below SGD's at the better of E and 2E"
_EQUAL = "At equal epochs SAM's error is below SGD's"
_NOT_THEIRS = "not the paper's comparison, which gives SGD 2E too"
_DOUBLING = "Doubling SGD's epochs rarely helps: it lowers the error by less than a point (1 − gain above 0)"
_FLATTER = {"lambda_max": "λmax of the Hessian is smaller at SAM's minimum (1 − ratio)",
            "rise": "The loss rises less around SAM's minimum, within one filter norm (1 − ratio)"}
Cells = dict[study.Place, pd.DataFrame]
Minima = dict[str, pd.DataFrame]


def claims(
    nb: Notebook, dots: np.ndarray, live: Cells, survey: Cells, minima: Minima, later: Cells
) -> list[Claim]:
    """Return all claims: on the paper's own ``dots``, the ``live`` table, the ``survey``, and the minima.

    ``minima`` are those of the live net, ``later`` the cells of the full profile that have been run.
    """
    sam = _SAM | {"profile": nb.profile}
    found = [Claim("sam-fig1-negative", measured=float((dots < 0).sum()), stderr=0.0, item="Fig. 1 left",
                   statement="Of the dots in Fig. 1 one is negative (recomputed from Tables 1 to 5)", paper_value=1,
                   tolerance=0.5, protocol="the paper's numbers, no training",
                   **sam | {"kind": "value", "why": "a count"})]
    for (data, model, name), cell in live.items():
        found.append(Claim.from_samples(
            study.gains(cell), id=f"sam-table1-{full_study.slug(data, model, name)}", statement=_BELOW,
            protocol=f"{model}, {data}, {name}, ρ = {study.radius(cell):g}", unit="points", item="Table 1",
            paper_value="30 of 30 cells", **sam))
    if not nb.full:
        found += [*_of_survey(survey, sam), *_of_mlp(live, sam)]
    _, model, name = next(iter(live))
    found += _of_minima(minima, "", f"{model}, {name}; the paper: ResNet-56 without skips", sam)
    if not nb.full:
        label, at_full = full_study.full().label, sam | {"profile": "full"}
        large = later.get(("cifar10", published.MODELS[0], "Basic"))
        pair = large if large is None else {method: study.at(large, method) for method in ("SGD", "SAM")}
        found += _of_minima(pair, "-full", f"{label}, CIFAR-10; the paper: ResNet-56 without skips",
                            at_full | {"record": "full/cifar10-wrn-28-10-200-epochs-basic"})
        found += [claim for row in (*published.TABLE1, *published.TABLE5) for claim in _of_row(later, row, at_full)]
    return found


def _doubled(cell: pd.DataFrame) -> np.ndarray:
    return study.errors(cell, "SGD, E") - study.errors(cell, "SGD, 2E")


def _of_survey(survey: Cells, sam: dict[str, Any]) -> list[Claim]:
    note, found = {"unit": "points", "record": "survey", **sam}, []
    groups = {"all": list(survey), "digits": [place for place in survey if place[0] == "digits"],
              "Fashion-MNIST": [place for place in survey if place[0] == "fashion_mnist"]}
    groups |= {name: [place for place in survey if place[::2] == ("digits", name)] for name in published.AUGMENTATIONS}
    for key, chosen in groups.items():
        kind = f"{key}{', digits' if key in published.AUGMENTATIONS else ''}"
        table = {"item": "Table 5", "paper_value": "4 of 4 cells"} if key == "Fashion-MNIST" else {
            "item": "Table 1", "paper_value": "30 of 30 cells"}
        found.append(Claim.from_samples(
            np.mean([study.gains(survey[place]) for place in chosen], axis=0), id=f"sam-table1-survey-{key.lower()}",
            statement=_BELOW, **table, **note,
            protocol=f"survey record (CPU): mean of {len(chosen)} cells ({kind}), ρ = 0.05, seeds of one split"))
    equal = [study.gains(cell, against="SGD, E") for cell in survey.values()]
    all_cells = f"survey record (CPU): mean of {len(survey)} cells"
    found.append(Claim.from_samples(np.mean(equal, axis=0), id="sam-table1-survey-equal-epochs", item="Table 1",
                                    statement=_EQUAL, protocol=f"{all_cells}; {_NOT_THEIRS}", **note))
    twice = np.mean([_doubled(cell) for cell in survey.values()], axis=0)
    found.append(Claim.from_samples(1.0 - twice, id="sam-doubling-survey", item="footnote to Table 1",
                                    statement=_DOUBLING, protocol=all_cells, **note | _CHOSEN))
    return found


def _of_mlp(live: Cells, sam: dict[str, Any]) -> list[Claim]:
    of = {(model, name): cell for (_, model, name), cell in live.items()}
    points, plain = {"unit": "points", **sam}, of[study.MLP300, study.NONE]
    twice = np.mean([_doubled(of[study.MLP, name]) for name in published.AUGMENTATIONS], axis=0)
    return [
        Claim.from_samples(1.0 - twice, id="sam-doubling-mlp", item="footnote to Table 1", statement=_DOUBLING,
                           protocol="MLP, 100 digits, three augmentations", **points | _CHOSEN),
        Claim.from_samples(study.gains(plain, against="SGD, E"), id="sam-table1-mlp-equal-epochs", item="Table 1",
                           statement=_EQUAL, protocol=f"MLP, 300 digits, no augmentation; {_NOT_THEIRS}", **points),
        *(Claim.from_samples(study.gains(cell, 0.05), id=f"sam-table9-mlp-{name.lower()}", item="Table 9",
                             statement="At the untuned ρ = 0.05 SAM's error is below SGD's",
                             protocol=f"{net}, digits, {name}", **points)
          for (net, name), cell in of.items() if name != study.SMOOTHED),
    ]


def _of_minima(pair: Minima | None, tag: str, protocol: str, sam: dict[str, Any]) -> list[Claim]:
    def below(key: str) -> np.ndarray | None:
        return 1 - pair["SAM"][key].to_numpy() / pair["SGD"][key].to_numpy() if pair else None

    return [Claim.from_samples(below(key), id=f"sam-fig1-{key.replace('_', '-')}{tag}", item="Fig. 1 middle, right",
                               statement=text, protocol=protocol, **sam) for key, text in _FLATTER.items()]


def _of_row(later: Cells, row: tuple[str, str], at_full: dict[str, Any]) -> list[Claim]:
    """Return the claims on a row of Tables 1 and 9, or of Table 5."""
    data, model = row
    cells: Sequence[Any] = published.TABLE1.get(row) or tuple(published.TABLE5[row].values())
    numbers = {"Table 1" if row in published.TABLE1 else "Table 5": [(cell[0], cell[2]) for cell in cells]}
    if row in published.TABLE1:
        numbers["Table 9"] = [(sam, cell[2]) for sam, cell in zip(published.TABLE9[row], cells, strict=True)]
    found = []
    for item, pairs in numbers.items():
        untuned = item == "Table 9"
        gained = full_study.full_gains(later, data, model, untuned=untuned)
        found.append(Claim.from_samples(
            gained, id=f"sam-full-{full_study.slug(item, data, model)}", item=item, unit="points",
            statement=f"SAM{' at ρ = 0.05' if untuned else ''} is below SGD, mean of the row ({data}, {model})",
            paper_value=", ".join(f"{sam} / {sgd}" for sam, sgd in pairs),
            protocol="no GPU run yet" if gained is None else full_study.full().label, **at_full))
    return found
