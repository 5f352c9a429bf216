"""What a run would do and why: stamps, names, parameters, damaged files."""

import json
from pathlib import Path

import numpy
import pytest
from toy import checkout, code, notebook, plain

from sharpnb import datafiles, paths, sources
from sharpnb.runner import RunnerError, execute, plan
from sharpnb.runner.catalogue import Notebook, Parameter, parameters_in
from sharpnb.runner.plan import state, written

BODY = "from sharpnb import rules\nprint(rules.x)"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    sources = {"__init__.py": "", "rules.py": "x = 1\n"}
    index = plain("00", "pass", sharpnb={"after": "all"})
    return checkout(tmp_path, {"00_index": index, "01_a": plain("01", BODY), "02_b": plain("02", BODY)}, sources)


def finish(step) -> None:
    """Leave what a successful run leaves."""
    paths.write_whole(step.copy(), "{}")
    done = {"key": step.key, "wrote": written(step.name, step.profile), "finished": "now",
            "copy": sources.digest(step.copy())}
    paths.write_whole(step.sidecar, json.dumps(done))


def why(name="01", **options) -> tuple[str, ...]:
    return plan([name], **options)[0].why


@pytest.fixture
def done(root):
    for step in plan():
        finish(step)
    finish(plan(["00"])[0])
    return root


def test_first_everything_runs_and_the_index_last_and_then_nothing(root):
    steps = plan()
    assert [step.name for step in steps] == ["01_a", "02_b", "00_index"]
    for name in ("1", "01", "01_a", "notebooks/01_a.ipynb", "01_a.ipynb"):
        assert [step.name for step in plan([name])] == ["01_a"]
    assert all("not run yet" in step.reason for step in steps)
    for name in ("1", "2", "0"):
        finish(plan([name])[0])
    assert [step.why for step in plan()] == [(), (), ()]
    assert plan(["1"])[0].reason == "up to date: nothing has changed since the last run (now)"
    for left in ('{"begun": "now"}', "{", "[]"):
        paths.runs("quick").joinpath("01_a.json").write_text(left)
        assert why() == ("its last run failed or was interrupted",)


def test_text_and_outputs_of_a_notebook_do_not_matter_but_code_does(done):
    file = done / "notebooks" / "01_a.ipynb"
    content = json.loads(file.read_text())
    content["cells"][0]["source"] += "\nAnother sentence."
    content["cells"][2] |= {"outputs": [], "execution_count": 7}
    file.write_text(json.dumps(content))
    assert why() == ()
    content["cells"][2]["source"] += " "
    file.write_text(json.dumps(content))
    assert why() == ("the notebook's code changed",) and why("02") == ()


def test_a_changed_source_is_named_and_the_index_runs_when_any_other_does(done):
    notebooks = [step.notebook for step in plan()]
    assert [state(notebook) for notebook in notebooks] == ["up to date"] * 3
    (done / "sharpnb" / "rules.py").write_text("from sharpnb import more\nx = 1\n")
    (done / "sharpnb" / "more.py").write_text("")
    assert why() == ("sharpnb/more.py is new", "sharpnb/rules.py changed")
    assert plan()[-1].why == ("it reads what the others write",)
    assert [state(notebook) for notebook in notebooks] == ["changed since", "changed since", "up to date"]


def test_the_index_runs_when_a_record_or_a_notebook_is_new_but_not_for_its_own(done):
    paths.write_whole(paths.records("00_index", "quick") / "scoreboard.json", "{}")
    assert why("00") == ()
    paths.write_whole(paths.records("01_a", "full") / "claims.json", "{}")
    checkout(done, {"03_c": plain("03", "pass")})
    assert why("00") == ("data/records/01_a/full/claims.json is new", "notebooks/03_c.ipynb is new")


def test_parameters_profile_and_force_are_named(done):
    assert why(given={"seed": "1"}) == ("parameter seed: 0 → 1",)
    assert why(profile="full") == ("not run yet on this machine",)
    assert why(force=True) == ("--force",)
    assert plan(["1"], given={"seed": 1, "rho": 0.05})[0].injected == {"seed": 1}


def test_a_data_set_counts_when_code_parameter_or_study_names_it(done, monkeypatch):
    monkeypatch.setattr(datafiles, "fingerprint", lambda name: f"of {name}")
    for name, text in {"__init__.py": "", "a.py": 'X = "svhn"'}.items():
        paths.write_whole(done / "notebooks" / "studies" / name, text)
    (done / "notebooks" / "01_a.ipynb").write_text(json.dumps(plain("01", 'from studies import a\nload("digits")')))
    (step,) = plan(["1"])
    data = {name: mark for name, mark in step.key.items() if name.startswith("data set")}
    assert data == {"data set digits": "#of digits", "data set svhn": "#of svhn"}
    finish(step)
    monkeypatch.setattr(datafiles, "fingerprint", lambda name: "another")
    assert why() == ("data set digits changed", "data set svhn changed")


def test_versions_and_device_are_named_and_one_that_is_no_longer_asked_for(done):
    (step,) = plan(["1"])
    assert step.key["numpy"] == numpy.__version__ and step.key["device"] == "cpu"
    old = {name: value for name, value in step.key.items() if name != "sharpnb/rules.py"}
    old |= {"numpy": "1.0", "device": "cuda", "scipy": "1.0"}
    step.sidecar.write_text(json.dumps({**json.loads(step.sidecar.read_text()), "key": old}))
    assert why() == ("sharpnb/rules.py is new", f"numpy: 1.0 → {numpy.__version__}", "device: cuda → cpu",
                     "scipy is gone")


def test_what_a_run_wrote_must_still_be_there_unchanged(root):
    figure, record = paths.figures("01_a") / "path.png", paths.records("01_a", "quick") / "claims.json"
    for file in (figure, record):
        paths.write_whole(file, "[1]")
    finish(plan(["1"])[0])
    assert why() == ()
    for other in ("full", "mid"):
        paths.write_whole(paths.figures("01_a") / other / "path.png", b"drawn by another profile")
    assert why() == () and list(written("01_a", "mid")) == ["figures/01_a/mid/path.png"]
    record.write_text("[2]")
    assert why() == ("data/records/01_a/quick/claims.json was changed since",)
    figure.unlink()
    assert "figures/01_a/path.png is missing" in why()
    paths.runs("quick").joinpath("01_a.ipynb").unlink()
    assert "data/runs/quick/01_a.ipynb is missing" in why()
    (root / "data/runs/quick/01_a.ipynb").write_text("{ ")
    assert "data/runs/quick/01_a.ipynb was changed since" in why()


def test_what_is_unknown_or_ambiguous_is_refused_with_what_is_there(root):
    with pytest.raises(RunnerError, match=r"no notebook '01_b'. Did you mean '0._.'\? These are there: 00_index, 01_a"):
        plan(["01_b"])
    with pytest.raises(RunnerError, match=r"no profile 'fully'\. Choose one of quick, mid, full\. Did you mean 'full'"):
        plan(profile="fully")
    with pytest.raises(RunnerError, match="leave out -p and --profile"):
        plan(update=True, given={"seed": 1})
    checkout(root, {"01_c": plain("01", "pass")})
    with pytest.raises(RunnerError, match="more than one notebook: 01_a, 01_c"):
        plan(["1"])


@pytest.mark.parametrize(("profile", "device", "expected"), [
    ("quick", "auto", "cpu"), ("quick", "cuda", "cuda"), ("full", "auto", "auto"), ("full", "cuda:1", "cuda:1"),
    ("mid", "auto", "cpu")])
def test_the_quick_and_the_mid_profile_stay_on_the_cpu_unless_told(root, profile, device, expected):
    (step,) = plan(["1"], profile, {"device": device})
    assert step.device == step.key["device"] == expected
    assert (execute._environment(step).get("CUDA_VISIBLE_DEVICES") == "") == (expected == "cpu")


CELL = '''"""What a reader may set."""
profile: str = "quick"  # quick | full
device: str = "auto"  # auto | cpu | cuda; where to train
seed: int = 0
rho: float = 1  # the radius | not a choice
nesterov: bool = False
gammas = [0.5, 0.9]
'''
TOY = Notebook(Path("07_toy.ipynb"), notebook(code(CELL, "p", ("parameters",))))


def values(**given):
    return TOY.values(given, "quick")


def test_text_of_the_command_line_becomes_the_parameters_type_and_an_integer_a_float():
    given = values(seed="3", rho="0.1", nesterov="TRUE", gammas="[0.1]", device="cuda:1")
    assert given == {"profile": "quick", "device": "cuda:1", "seed": 3, "rho": 0.1, "nesterov": True, "gammas": [0.1]}
    assert repr(values(rho=2)["rho"]) == "2.0" and TOY.parameters["rho"] == Parameter("rho", 1, float)


@pytest.mark.parametrize(("name", "value", "message"), [
    ("seed", True, "seed = True: this parameter is of type int (default 0)"),
    ("seed", "one", "seed = 'one'"),
    ("nesterov", "perhaps", "of type bool"), ("device", "gpu", "one of auto, cpu, cuda"),
    ("gammas", "(0.1,)", "of type list"), ("profile", "full", "contradicts --profile quick"),
    ("sede", 1, "07_toy has no parameter 'sede'. Did you mean 'seed'? It has: profile, device, seed,")])
def test_a_value_or_name_that_does_not_fit_is_refused_with_what_does(name, value, message):
    with pytest.raises(RunnerError) as refused:
        values(**{name: value})
    assert message in str(refused.value)


@pytest.mark.parametrize("line", ["rho = 0.05 * 2", "import os", "a = b = 1", "a, b = 1, 2", "seed: int", "rho: = 1"])
def test_anything_but_a_literal_in_the_cell_is_refused(line):
    with pytest.raises(RunnerError, match="line 2" if line == "rho: = 1" else "plain literals only, not: "):
        parameters_in(f"seed: int = 0\n{line}", "07_toy")
