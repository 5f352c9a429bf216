"""The form in which a notebook is committed: outputs and nothing that differs between two equal runs."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

_METADATA = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
             "language_info": {"name": "python"}}
_OF_PAPERMILL = {"injected-parameters", "papermill-error-cell-tag"}
_WIDGET = "application/vnd.jupyter.widget-view+json"


def normalised(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return ``notebook`` (format 4 JSON) as it is committed; the argument stays as it is.

    Dropped: papermill's and JupyterLab's execution metadata, the injected parameter cell, error markers, Python's
    version, widgets (the static picture beside them stays). Set: the kernel ``python3``, execution counts 1 to n over
    the executed cells, stream outputs in one piece.
    """
    result = copy.deepcopy(notebook)
    kept = {name: value for name, value in result["metadata"].items() if name not in ("papermill", "widgets")}
    result["metadata"] = kept | copy.deepcopy(_METADATA)
    result["cells"] = [cell for cell in result["cells"] if not _OF_PAPERMILL & {*cell["metadata"].get("tags", [])}]
    executed = 0
    for cell in result["cells"]:
        for name in ("papermill", "execution", "ExecuteTime"):
            cell["metadata"].pop(name, None)
        if cell["cell_type"] == "code":
            executed += cell["execution_count"] is not None
            cell["execution_count"] = cell["execution_count"] and executed
            cell["outputs"] = _outputs(cell["outputs"], cell["execution_count"])
    return result


def with_outputs(source: dict[str, Any], executed: dict[str, Any]) -> dict[str, Any]:
    """Return ``source`` with the outputs that its cells have in ``executed``, matched by id, normalised.

    ``source`` may have other text than what was executed: somebody has edited it meanwhile.

    Raises:
        ValueError: if its code is not that of ``executed``, which then has no outputs for it.
    """
    result = copy.deepcopy(source)
    ran, now = ({cell["id"]: cell for cell in cells if cell["cell_type"] == "code"}
                for cells in (normalised(executed)["cells"], result["cells"]))
    before, after = ([(ident, "".join(cell["source"])) for ident, cell in cells.items()] for cells in (ran, now))
    if before != after:
        other = [ident for ident in {**ran, **now} if dict(before).get(ident) != dict(after).get(ident)]
        which = f"cells {', '.join(other)}" if other else "the order of the cells"
        raise ValueError(f"The notebook's code was edited while it ran ({which}). The edit is kept, and no outputs are "
                         "stored, for they belong to the code before it. Run it again.")
    for ident, cell in now.items():
        cell |= {name: ran[ident][name] for name in ("outputs", "execution_count")}
    return normalised(result)


def digest(notebook: dict[str, Any]) -> str:
    """Return the sha256 of all that :func:`with_outputs` may set: outputs, counts and metadata; 16 digits."""
    code = [[cell["metadata"], cell["execution_count"], cell["outputs"]]
            for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps([notebook["metadata"], code], sort_keys=True).encode()).hexdigest()[:16]


def text(notebook: dict[str, Any]) -> str:
    """Return the file content, in the layout that nbformat and JupyterLab write; ValueError if it is no notebook."""
    import nbformat

    node = nbformat.from_dict(notebook)
    try:
        nbformat.validate(node)
    except nbformat.ValidationError as error:
        raise ValueError(f"The outputs do not make a valid notebook: {error}") from None
    return nbformat.writes(node) + "\n"


def _outputs(outputs: list[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for output in outputs:
        if _WIDGET in output.get("data", {}):
            continue
        if output["output_type"] == "execute_result":
            output["execution_count"] = count
        if output["output_type"] == "stream":
            output["text"] = "".join(output["text"])
            if kept and kept[-1].get("name") == output["name"]:
                kept[-1]["text"] += output["text"]
                continue
        kept.append(output)
    return kept
