"""The files that describe the environment agree with pyproject.toml; the core imports with PyTorch and NumPy alone."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _requirements(lines):
    pairs = (re.match(r"\s*(?:- )?([A-Za-z0-9_-]+)\s*(.*)", line).groups() for line in lines)
    return {name.lower().replace("_", "-"): spec.strip() for name, spec in pairs}


def _wanted(*more):
    extras = PROJECT["optional-dependencies"]
    return _requirements([*PROJECT["dependencies"],
                          *(line for name in ("notebooks", "scale", "safetensors", "dev", *more)
                            for line in extras[name])])


def test_environment_yml_names_what_pyproject_names():
    text = (ROOT / "environment.yml").read_text()
    block, by_pip = text.split("dependencies:")[1].split("  - pip\n")
    conda = _requirements([*block.strip().splitlines(), *(line for line in by_pip.splitlines() if ">=" in line)])
    assert conda.pop("python") == PROJECT["requires-python"]
    wanted = _wanted()
    wanted["pytorch"] = wanted.pop("torch")
    assert conda == wanted


def test_constraints_pin_every_direct_dependency_and_name_no_host():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = _requirements(lines)
    assert _wanted("site").keys() <= pins.keys()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!-]+", line) for line in lines), "names and versions only"


# Names under which distributions are imported where the two differ; those that are used and not imported.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "markdown_it": "markdown-it-py", "IPython": "ipython",
                 "curvlinops": "curvlinops-for-pytorch", "pyhessian": "pyhessian"}
TOOLS = {"jupyterlab", "ipykernel", "dask", "pytest-xdist", "pytest-cov", "ruff", "pyright", "myst-nb",
         "sphinx-book-theme", "django-static-mathjax"}
PARTS = {"sharpnb": ("safetensors",), "notebooks": (), "recipes": ("recipes",), "site": ("site",),
         "benchmarks": ("bench",), "tests": ("dev", "recipes", "safetensors")}


def _code(file):
    if file.suffix == ".py":
        return [file.read_text()]
    cells = json.loads(file.read_text())["cells"]
    return ["".join(line for line in cell["source"] if line[:1] not in "%!") for cell in cells
            if cell["cell_type"] == "code"]


def _imported(part):
    """Return the distributions that the files of a part import, besides Python's own modules and the project's."""
    files = [file for file in (ROOT / part).rglob("*") if file.suffix in (".py", ".ipynb")
             and "_build" not in file.parts]
    beside = {"sharpnb": ["site"], "notebooks": ["recipes", "site"], "recipes": ["recipes"], "site": ["site"],
              "benchmarks": ["benchmarks"],
              "tests": ["tests", "benchmarks", "site", "recipes"]}[part]  # on their search path
    own = {"sharpnb", "gate", "studies", *(file.stem for folder in beside for file in (ROOT / folder).rglob("*.py"))}
    found = set()
    for node in (node for file in files for code in _code(file) for node in ast.walk(ast.parse(code))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        found |= {name.split(".")[0] for name in names}
    return {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in found - own - sys.stdlib_module_names}


@pytest.mark.parametrize("part", PARTS)
def test_what_is_imported_is_declared(part):
    extras = PROJECT["optional-dependencies"]
    lines = [line for name in ("notebooks", "scale", *PARTS[part]) for line in extras[name]]
    declared = _requirements([*PROJECT["dependencies"], *lines]).keys()
    assert _imported(part) and _imported(part) <= declared


def test_what_is_declared_is_imported_or_a_tool():
    declared = _requirements([*PROJECT["dependencies"],
                              *(line for lines in PROJECT["optional-dependencies"].values() for line in lines)]).keys()
    imported = set().union(*map(_imported, PARTS))
    assert declared - imported == TOOLS
    core = _imported("sharpnb") | _imported("notebooks") | _imported("site")  # which sharpnb report runs
    wanted = _requirements([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["notebooks"]]).keys()
    assert wanted - core <= TOOLS | {"nbval"}, "the package and its notebooks use what they ask for"


def test_the_core_imports_with_torch_and_numpy_alone():
    """What a user of the optimizers and the Hessian tool gets by `pip install sharpnb`."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pandas", "matplotlib", "scipy", "sklearn", "torchvision", "tqdm", "papermill",
                                  "typer", "rich", "safetensors"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import sharpnb, sharpnb.rules, sharpnb.optim, sharpnb.curvature, sharpnb.checkpoints, sharpnb.spectrum
import sharpnb.landscape, sharpnb.many.train
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", ["import sharpnb.paths", "from sharpnb.runner import plan; assert plan()[10]"])
def test_the_package_is_imported_and_the_runner_plans_without_torch(code):
    """Importing it, and torchvision for the data sets' files, took eight seconds before each run."""
    code = f"{code}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_layers_import_only_what_stands_below_them():
    tools = {"near", "paths", "resume", "rules", "trees", "caches", "counts", "batches", "fallbacks", "progress"}
    below = {
        **{file: set() for file in ("near.py", "paths.py", "rules.py", "trees.py", "caches.py", "devices.py",
                                    "progress.py")}, "usercode.py": {"near"},
        "counts.py": {"trees"}, "batches.py": {"trees", "counts"}, "fallbacks.py": {"trees"},
        "datafiles.py": {"paths"}, "sources.py": {"paths"}, "kept.py": {"paths", "sources"}, "resume.py": {"paths"},
        "optim": tools, "curvature": tools, "averaging": tools | {"optim"},
        "checkpoints": set(),
        "landscape": tools | {"averaging", "curvature", "many"},  # statistics of BatchNorm, captured weights
        "many": tools - {"caches", "counts", "resume"} | {"optim", "devices"},
        "lab": tools - {"resume"} | {"datafiles", "sources", "kept", "optim", "averaging", "curvature", "landscape",
                                     "checkpoints", "usercode", "many", "devices"},
        "spectrum": {"near", "devices", "paths", "datafiles", "trees", "usercode", "checkpoints", "curvature", "lab"},
        # lab: for data sets by name
        "runner": {"near", "paths", "datafiles", "sources", "kept", "lab"},
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


def test_older_paths_lead_to_the_same_objects():
    code = """
from sharpnb import checkpoints, lab
from sharpnb.lab.checkpoint import fit, read_state
from sharpnb.lab.sweep import sweep
assert lab.sweep is sweep and (fit, read_state) == (checkpoints.fit, checkpoints.read_state)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
