"""The files that describe the environment agree with pyproject.toml, and the core imports with PyTorch and NumPy alone."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _requirements(lines):
    pairs = (re.match(r"\s*(?:- )?([A-Za-z0-9_-]+)\s*(.*)", line).groups() for line in lines)
    return {name.lower().replace("_", "-"): spec.strip() for name, spec in pairs}


def _wanted(*more):
    extras = PROJECT["optional-dependencies"]
    return _requirements([*PROJECT["dependencies"], *(line for name in ("notebooks", "scale", "safetensors", "dev", *more) for line in extras[name])])


def test_environment_yml_names_what_pyproject_names():
    text = (ROOT / "environment.yml").read_text()
    block = text.split("dependencies:")[1].split("  - pip\n")[0].strip().splitlines()
    conda = _requirements(block)
    assert conda.pop("python") == PROJECT["requires-python"]
    wanted = _wanted()
    wanted["pytorch"] = wanted.pop("torch")
    assert conda == wanted


def test_constraints_pin_every_direct_dependency_and_name_no_host():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = _requirements(lines)
    assert _wanted("site").keys() <= pins.keys()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!-]+", line) for line in lines), "names and versions only"


def test_the_core_imports_with_torch_and_numpy_alone():
    """What a user of the optimizers and the Hessian tool gets by `pip install sharpnb`."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pandas", "matplotlib", "scipy", "sklearn", "torchvision", "tqdm", "papermill", "typer", "rich", "safetensors"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import sharpnb, sharpnb.rules, sharpnb.optim, sharpnb.curvature, sharpnb.checkpoints, sharpnb.landscape, sharpnb.many.train
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_no_torch():
    code = "import sys, sharpnb, sharpnb.paths; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_runner_plans_without_torch():
    """Importing it, and torchvision for the data sets' files, took eight seconds before each run."""
    code = "import sys; from sharpnb.runner import plan; assert len(plan()) > 10; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_layers_import_only_what_stands_below_them():
    tools = {"paths", "resume", "rules", "trees", "caches", "counts", "batches"}
    below = {
        **{file: set() for file in ("paths.py", "rules.py", "trees.py", "caches.py", "devices.py", "progress.py")},
        "counts.py": {"trees"}, "batches.py": {"trees", "counts"},
        "datafiles.py": {"paths"}, "resume.py": {"paths"}, "optim": tools, "curvature": tools, "averaging": tools,
        "checkpoints": set(),
        "landscape": tools | {"averaging", "many"},  # BatchNorm's statistics at a point are those of an average
        "many": tools - {"caches", "counts", "resume"} | {"optim", "devices", "progress"},
        "lab": tools - {"resume"} | {"devices", "progress"} | {"datafiles", "optim", "averaging", "curvature", "landscape", "checkpoints", "many"},
        "runner": {"paths", "datafiles"},
    }
    for part, allowed in below.items():
        base = ROOT / "sharpnb" / part
        for file in [base] if base.is_file() else base.rglob("*.py"):
            used = set(re.findall(r"from sharpnb\.(\w+)", file.read_text())) | set(
                re.findall(r"^\s*from sharpnb import (\w+)", file.read_text(), re.M))
            assert used <= allowed | {part.removesuffix(".py"), "__version__"}, f"{file.name} imports {used - allowed}"


def test_of_many_the_net_stands_below_landscape_and_the_training_above():
    allowed = {"landscape": {"net"}, "many/net.py": {"mlp"}, "many/mlp.py": set()}
    for part, below in allowed.items():
        base = ROOT / "sharpnb" / part
        for file in [base] if base.is_file() else base.rglob("*.py"):
            used = set(re.findall(r"from sharpnb\.many(?:\.(\w+)| import)", file.read_text()))
            assert used <= below, f"{file.name} imports {used - below} of many"
