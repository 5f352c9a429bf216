"""The code cells of a notebook, executed without a kernel."""

import json
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def programs(notebook: str) -> dict[str, CodeType]:
    """Return the code cells of a notebook by their ids, compiled."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: compile("".join(cell["source"]), f"<cell {cell['id']}>", "exec")
            for cell in cells if cell["cell_type"] == "code"}


def executed(notebook: str, *idents: str, **parameters: Any) -> dict[str, Any]:
    """Execute parameters, set-up and the cells of these ids; return what they define."""
    code, space = programs(notebook), {"__name__": "__main__"}
    exec(code[next(iter(code))], space)
    space |= parameters
    for ident in [list(code)[1], *idents]:
        exec(code[ident], space)
    return space
