"""A run that is killed outright leaves nothing half-done, and the next one finishes the rest."""

import functools
import json
import signal
import subprocess
import sys
import time

import psutil
from harm import chances
from toy import checkout, plain

from sharpnb import paths
from sharpnb.runner import run

RUN = [sys.executable, "-m", "sharpnb.cli", "run", "--jobs", "1"]

WAITS = """
import os
import time
from pathlib import Path

Path("process").write_text(str(os.getpid()))
while not Path("go").exists():
    time.sleep(0.05)
print("went on")
"""


def wait_for(condition, seconds=60.0):
    """Wait until ``condition()`` is true, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return value


def test_an_interrupted_run_takes_its_kernels_along_and_the_next_one_finishes(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    checkout(tmp_path, {"01_done": plain("01", "print('first')"), "02_waits": plain("02", WAITS)})
    process = paths.runs("quick") / "process"
    # In a shell's background job SIGINT is ignored, and the driver would inherit that.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    driver = subprocess.Popen(RUN, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    kernel = int(wait_for(lambda: process.exists() and process.read_text()))
    family = psutil.Process(driver.pid).children(recursive=True)
    assert kernel in {member.pid for member in family} and len(family) >= 2  # the worker and the kernel
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=60)
    wait_for(lambda: not any(_runs(member.pid) for member in family))
    assert driver.returncode == 130 and "the same command goes on from there" in said

    assert json.loads((paths.runs("quick") / "01_done.json").read_text())["key"]
    assert not (paths.runs("quick") / "02_waits.ipynb").exists()
    (paths.runs("quick") / "go").touch()
    assert [result.outcome for result in run()] == ["up to date", "done"]
    assert "went on" in (paths.runs("quick") / "02_waits.ipynb").read_text()
    assert not list(tmp_path.rglob("*partial*"))


def test_a_worker_that_is_killed_is_reported_and_its_kernel_goes_too(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    body = WAITS.replace("while not", "os.kill(os.getppid(), 9)\nwhile not")
    checkout(tmp_path, {"01_worker": plain("01", body)})
    (result,) = run()
    assert result.outcome == "worker died" and "in cell 2 of 2" in result.detail
    assert "(exit status -9)" in result.detail
    kernel = int((paths.runs("quick") / "process").read_text())
    wait_for(lambda: not _runs(kernel))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stored(root) -> dict[str, list]:
    """Return what each notebook is stored to have printed; a notebook that is no whole JSON raises."""
    cells = {file.stem: json.loads(file.read_text())["cells"] for file in (root / "notebooks").glob("*.ipynb")}
    return {name: ["".join(output["text"]) for output in last["outputs"]] for name, (*_, last) in cells.items()}


def test_a_run(tmp_path, monkeypatch):
    """With ``--update``, which writes into the notebooks themselves."""
    bodies = {f"0{number}_toy": plain(f"0{number}", f"print('{number} ' * 1000)") for number in (1, 2)}
    outputs = {f"0{number}_toy": [f"{number} " * 1000 + "\n"] for number in (1, 2)}
    for number, luck in enumerate(chances("a run of two notebooks", 1)):
        root = checkout(tmp_path / str(number), bodies)
        monkeypatch.setenv("SHARPNB_ROOT", str(root))
        driver = subprocess.Popen([*RUN, "--update"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if luck.random() < 0.5:
            wait_for(lambda root=root: stored(root)["01_toy"])
        time.sleep(luck.uniform(0, 3))
        family = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
        driver.kill()
        driver.wait()
        wait_for(lambda family=family: not any(_runs(member.pid) for member in family))
        before = stored(root)
        assert all(before[name] in ([], outputs[name]) for name in outputs), "each notebook is the old one or the new"
        sidecars = {name: paths.runs("committed") / f"{name}.json" for name in outputs}
        done = {name for name, file in sidecars.items() if file.exists() and "key" in json.loads(file.read_text())}
        results = run(update=True)
        assert {result.name for result in results if result.outcome == "up to date"} == done
        assert stored(root) == outputs and all(result.ok for result in results)
        assert not list(root.rglob("*partial*"))
