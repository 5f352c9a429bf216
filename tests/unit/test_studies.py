"""Every way of running a notebook, and each kind of worker process, finds ``notebooks/studies``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy import checkout, plain

from sharpnb import paths
from sharpnb.runner import run

ROOT = Path(__file__).resolve().parents[2]
SET_UP = "from sharpnb import lab\n\nlab.start('01_a')\n\nfrom studies import a\n\nprint('the study says', a.WORD)"


def called(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call Python in ``folder``, where the package is found and ``notebooks/`` is not."""
    clean = {name: value for name, value in os.environ.items() if name != "SHARPNB_ROOT"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder,
                          env={**clean, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("folder", ["", "notebooks", "tests/unit"])
def test_the_set_up_call_lets_the_studies_be_imported_in_any_folder_of_the_checkout(folder):
    code = "from sharpnb import lab; lab.start('x'); from studies import swa; print(swa.__file__)"
    done = called(ROOT / folder, "-c", code)
    assert done.stdout.strip() == str(ROOT / "notebooks" / "studies" / "swa.py"), done.stderr


WORKERS = """
import multiprocessing
from sharpnb import lab
lab.start("x")
from distributed import Client, LocalCluster
from studies import sam_minima_published as study
here = study.figure1_left()
for context in map(multiprocessing.get_context, ("spawn", "forkserver")):
    with context.Pool(1) as pool:
        assert pool.apply(study.figure1_left) == here
if __name__ == "__main__":
    with LocalCluster(1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        assert client.submit(study.figure1_left).result(60) == here
"""


def test_worker_processes_and_dask_are_sent_functions_of_a_study():
    pytest.importorskip("distributed", reason="the extra [scale] is not installed")
    done = called(ROOT, "-c", WORKERS)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def toy_root(project):
    """Make a checkout with one notebook and its study."""
    root = checkout(project, {"01_a": plain("01", SET_UP)})
    paths.write_whole(root / "notebooks" / "studies" / "__init__.py", "")
    paths.write_whole(root / "notebooks" / "studies" / "a.py", "WORD = 'found'\n")
    return root


def by_papermill(root: Path) -> Path:
    """Execute it as a reader without our command would, from the root of the checkout."""
    done = called(root, "-m", "papermill", "notebooks/01_a.ipynb", "out.ipynb")
    assert done.returncode == 0, done.stderr
    return root / "out.ipynb"


def by_our_command(root: Path) -> Path:
    """Execute it by ``sharpnb run``."""
    (result,) = run(["01"])
    assert result.ok and result.kept, result.detail
    return result.kept


def by_jupyterlab(root: Path) -> Path:
    """Execute it as JupyterLab, VS Code and nbval do: the kernel is started in the notebook's folder."""
    code = ("import nbclient, nbformat\nnotebook = nbformat.read('01_a.ipynb', 4)\nnbclient.execute(notebook)\n"
            "nbformat.write(notebook, 'out.ipynb')")
    done = called(root / "notebooks", "-c", code)
    assert done.returncode == 0, done.stderr
    return root / "notebooks" / "out.ipynb"


@pytest.mark.parametrize("way", [by_papermill, by_our_command, by_jupyterlab])
def test_a_notebook_finds_its_study(way, toy_root):
    assert "the study says found" in way(toy_root).read_text(encoding="utf-8")
