"""What an installation without the extras can do, and what it says of the rest."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import toy
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[3]
NOTEBOOKS = ["pandas", "matplotlib", "seaborn", "scipy", "sklearn", "torchvision", "tqdm", "papermill", "ipykernel"]
WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {without!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
for name in {without!r}:  # find_spec says that it is not there
    sys.modules[name] = None
from sharpnb import cli
sys.argv = ["sharpnb", *{arguments!r}]
cli.main()
"""
SWEEP = """
data = {name = "digits"}
model = {name = "mlp"}
train = {steps = 2, batch_size = 8}
[[grid]]
rule = "sgd"
lr = [0.1]
"""


def said(folder: Path, without: list[str], *arguments: str) -> str:
    """Return what the command says where these packages are not installed."""
    code = WITHOUT.format(without=without, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "SHARPNB_ROOT": str(folder)})
    assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
    return " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("without", "command", "extra"),
    [(["typer"], "list", "notebooks"), (["rich"], "spectrum", "notebooks"), (NOTEBOOKS, "run", "notebooks"),
     (NOTEBOOKS, "data", "notebooks"), (NOTEBOOKS, "sweep grid.toml", "notebooks"),
     (NOTEBOOKS, "spectrum --model resnet18 --data noise:3x32x32", "notebooks"),
     (["dask", "distributed"], "sweep grid.toml --scheduler tcp://localhost:8786", "scale")],
)
def test_a_command_without_its_extra_names_it(without, command, extra, tmp_path):
    toy.checkout(tmp_path, {"01_toy": toy.guarded()})
    (tmp_path / "grid.toml").write_text(SWEEP)
    assert f"pip install 'sharpnb[{extra}]'" in said(tmp_path, without, *command.split())


def test_the_wheel_holds_the_package_alone_and_is_small(tmp_path):
    """By what setuptools is told to take; the same zip without the metadata."""
    packages = find_packages(str(ROOT), include=["sharpnb*"])
    assert {name.split(".")[0] for name in packages} == {"sharpnb"} and not [n for n in packages if "studies" in n]
    assert (ROOT / "sharpnb" / "py.typed").exists(), "type checkers read the package's annotations because of it"
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in packages:
            for file in (ROOT / name.replace(".", "/")).glob("*.py"):
                wheel.write(file)
    assert (tmp_path / "wheel.zip").stat().st_size < 600_000
