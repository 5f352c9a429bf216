"""A tiny checkout for the tests of the runner and of the notebook gate."""

from __future__ import annotations

import copy
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

# Python held to ASCII, where it then starts: from a path with an accent PyTorch does not, nor does an editable install.
ASCII = {"LC_ALL": "C", **({"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"} if sys.prefix.isascii() else {})}
KERNEL = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}}
PARAMETERS = """profile: str = "quick"  # quick | mid | full
device: str = "auto"  # auto | cpu | cuda
seed: int = 0
rho: float = 0.05"""


def markdown(source: str, ident: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": ident, "metadata": {}, "source": source}


def code(
    source: str, ident: str, tags: tuple[str, ...] = (), output: str | None = None, mime: str = ""
) -> dict[str, Any]:
    """Make a code cell; ``output`` is what it is stored to have printed, or shown as ``mime``."""
    outputs: list[dict[str, Any]] = []
    if output is not None and not mime:
        outputs = [{"output_type": "stream", "name": "stdout", "text": output}]
    if output is not None and mime:
        outputs = [{"output_type": "display_data", "data": {mime: output}, "metadata": {}}]
    return {
        "cell_type": "code", "id": ident, "metadata": {"tags": list(tags)} if tags else {}, "source": source,
        "outputs": outputs, "execution_count": None,
    }


def notebook(*cells: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """Make a notebook, its code cells counted as executed in order."""
    executed = 0
    for cell in cells:
        if cell["cell_type"] == "code":
            executed += 1
            cell["execution_count"] = executed
    info = {**copy.deepcopy(KERNEL), "language_info": {"name": "python"}, **metadata}
    return {"cells": list(cells), "metadata": info, "nbformat": 4, "nbformat_minor": 5}


def plain(number: str, body: str, **metadata: Any) -> dict[str, Any]:
    """Make a notebook of three cells: heading, parameters, ``body``."""
    link = "[a paper](https://example.org)"
    heading = markdown(f"# {number} · A toy\n\nIs it a toy?\n\n**Re-makes** Fig. 2 of {link}.", "head")
    return notebook(heading, code(PARAMETERS, "params", ("parameters",)), code(body, "body"), **metadata)


def listed(root: Path, *ids: str, **fields: Any) -> None:
    """Write a list of primary claims under ``root``: these ids, of the paper P in points of error unless told else."""
    entry = {"paper": "P", "items": ["Fig. 1"], "statement": "It holds.", "effect": "a difference", "delta": 0.5,
             "unit": "points of error", "side": 1, "notebook": "01_a", "profiles": ["quick", "full"], **fields}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()]
    (root / "site").mkdir(parents=True, exist_ok=True)
    text = "\n".join("\n".join(["[[primary]]", f"id = {json.dumps(name)}", *lines]) for name in ids)
    (root / "site" / "primary.toml").write_text(text + "\n", encoding="utf-8")


def checkout(root: Path, notebooks: dict[str, dict[str, Any]], sources: dict[str, str] | None = None) -> Path:
    """Write a checkout with these notebooks and package files."""
    for folder in ("notebooks", "sharpnb"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "pyproject.toml").write_text('[project]\nname = "toy"\ndependencies = ["numpy>=2.0"]\n', encoding="utf-8")
    for name, content in notebooks.items():
        (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps(content), encoding="utf-8")
    for name, text in (sources or {}).items():
        (root / "sharpnb" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sharpnb" / name).write_text(text, encoding="utf-8")
    return root


def png() -> bytes:
    """Return a white picture of one pixel."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\x00\xff")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


ALT = "A line that falls from the upper left to the lower right."


def guarded() -> dict[str, Any]:
    """Make a notebook that passes the gate, its outputs stored; :func:`picture` makes the figure that it shows."""
    shown = f"![{ALT}](<../figures/01_toy/path.png>)\n\n**Fig. 1.** A path."
    draw = f"from IPython.display import Markdown, display\n\ndisplay(Markdown({shown!r}))"
    show = code(draw, "fig", ("figure",), shown, "text/markdown")
    show["outputs"][0]["data"]["text/plain"] = "<IPython.core.display.Markdown object>"
    environment = '[os.environ[name] for name in ("SHARPNB_CHECK", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")]'
    return notebook(
        markdown("# 01 · A toy\n\nIs it one?", "head"), code(PARAMETERS, "params", ("parameters",)),
        code("loss = 1 / 8.1\nprint(f'loss {loss:.6f} after 150 steps')", "loss", ("rtol=1e-3",),
             "loss 0.123456 after 150 steps\n"),
        code(f"import os\n\nprint({environment})", "check", ("check",), "['1', '1', '']\n"),
        show, code("print('1 of 1 reproduced')", "claims", ("claims",), "1 of 1 reproduced\n"),
    )


def picture(root: Path, name: str = "01_toy") -> None:
    """Write the figure that :func:`guarded` shows."""
    folder = root / "figures" / name
    folder.mkdir(parents=True)
    (folder / "path.png").write_bytes(png())
    (folder / "path.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>', encoding="utf-8")
    (folder / "path.csv").write_text("x,y\n0,1\n", encoding="utf-8")


STARTUP = """
MINE = 1
print("welcome")
import matplotlib, numpy, pandas
matplotlib.rcParams["font.size"] = 30
numpy.set_printoptions(precision=1)
pandas.set_option("display.precision", 1)
"""


def profile(folder: Path) -> dict[str, str]:
    """Write the profile of a user who has set up everything; return the environment that names it."""
    startup = folder / "ipython" / "profile_default" / "startup" / "00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text(STARTUP, encoding="utf-8")
    own = startup.parents[1] / "ipython_kernel_config.py"
    own.write_text("get_config().InteractiveShellApp.exec_lines = ['MINE = 2', 'print(MINE)']", encoding="utf-8")
    told = "font.size: 22\nbackend: svg\nfigure.figsize: 9, 2\naxes.facecolor: black\ntext.usetex: True\n"
    (folder / "matplotlibrc").write_text(told, encoding="utf-8")
    kernel = folder / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text('{"argv": ["false"], "display_name": "mine", "language": "python"}', encoding="utf-8")
    return {
        "IPYTHONDIR": str(folder / "ipython"), "PYTHONSTARTUP": str(startup), "MPLBACKEND": "svg",
        "MATPLOTLIBRC": str(folder / "matplotlibrc"), "MPLCONFIGDIR": str(folder), "TZ": "Asia/Kathmandu", **ASCII,
        "LANG": "C", "LANGUAGE": "de", "COLUMNS": "23", "FORCE_COLOR": "1", "NO_COLOR": "1",
        "PYTHONWARNINGS": "error::DeprecationWarning", "PYTHONOPTIMIZE": "1",
        "JUPYTER_PATH": str(folder / "jupyter"),
    }
