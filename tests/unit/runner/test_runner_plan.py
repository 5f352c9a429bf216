import json

import pytest
from toy import checkout, code, markdown, notebook, plain

from sharpnb import datafiles, paths, sources
from sharpnb.runner import RunnerError, execute, plan
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
    done = {"key": step.key, "wrote": written(step.name, step.profile), "finished": "now", "seconds": 1.0,
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


def test_first_everything_runs_and_the_index_last(root):
    steps = plan()
    assert [step.name for step in steps] == ["01_a", "02_b", "00_index"]
    assert all("not run yet" in step.reason for step in steps)


def test_then_nothing_does(done):
    assert [step.why for step in plan()] == [(), (), ()]
    assert plan(["1"])[0].reason.startswith("up to date: code, parameters, sources, data and versions")


def test_text_and_outputs_of_a_notebook_do_not_matter_but_code_does(done):
    file = done / "notebooks" / "01_a.ipynb"
    content = json.loads(file.read_text())
    content["cells"][0]["source"] += "\nAnother sentence."
    content["cells"][2]["outputs"] = []
    content["cells"][2]["execution_count"] = 7
    file.write_text(json.dumps(content))
    assert why() == ()
    content["cells"][2]["source"] += " "
    file.write_text(json.dumps(content))
    assert why() == ("the notebook's code changed",)
    assert why("02") == ()


def test_a_changed_source_is_named(done):
    (done / "sharpnb" / "rules.py").write_text("from sharpnb import more\nx = 1\n")
    (done / "sharpnb" / "more.py").write_text("")
    assert why() == ("sharpnb/more.py is new", "sharpnb/rules.py changed")


def test_the_index_runs_when_any_other_does(done):
    (done / "sharpnb" / "rules.py").write_text("x = 2\n")
    assert plan()[-1].why == ("it reads what the others write",)


def test_the_index_runs_when_a_record_changed_but_not_for_its_own(done):
    paths.write_whole(paths.records("00_index", "quick") / "scoreboard.json", "{}")
    assert why("00") == ()
    paths.write_whole(paths.records("01_a", "full") / "claims.json", "{}")
    assert why("00") == ("data/records/01_a/full/claims.json is new",)


def test_the_index_runs_when_a_notebook_is_added(done):
    checkout(done, {"03_c": plain("03", "pass")})
    assert why("00") == ("notebooks/03_c.ipynb is new",)


def test_parameters_profile_and_force_are_named(done):
    assert why(given={"seed": "1"}) == ("parameter seed: 0 → 1",)
    assert why(profile="full") == ("not run yet on this machine",)
    assert why(force=True) == ("--force",)
    step = plan(["1"], given={"seed": 1, "rho": 0.05})[0]
    assert step.injected == {"seed": 1}


def data(step):
    return {name: mark for name, mark in step.key.items() if name.startswith("data set")}


def test_a_data_set_counts_when_the_code_or_a_parameter_names_it(done, monkeypatch):
    monkeypatch.setattr(datafiles, "fingerprint", lambda name: f"of {name}")
    file = done / "notebooks" / "01_a.ipynb"
    file.write_text(json.dumps(plain("01", 'load("digits")')))
    step = plan(["1"])[0]
    assert data(step) == {"data set digits": "#of digits"}
    finish(step)
    monkeypatch.setattr(datafiles, "fingerprint", lambda name: "another")
    assert why() == ("data set digits changed",)


def test_a_data_set_counts_when_the_notebooks_study_names_it(root, monkeypatch):
    monkeypatch.setattr(datafiles, "fingerprint", lambda name: f"of {name}")
    for name, text in {"__init__.py": "", "a.py": 'X = "svhn"'}.items():
        paths.write_whole(root / "notebooks" / "studies" / name, text)
    (root / "notebooks" / "01_a.ipynb").write_text(json.dumps(plain("01", "from studies import a")))
    assert data(plan(["1"])[0]) == {"data set svhn": "#of svhn"}


def test_versions_and_device_are_named_and_one_that_is_no_longer_asked_for(done):
    import numpy

    (step,) = plan(["1"])
    assert step.key["numpy"] == numpy.__version__ and step.key["device"] == "cpu"
    old = {name: value for name, value in step.key.items() if name != "sharpnb/rules.py"}
    old |= {"numpy": "1.0", "device": "cuda", "scipy": "1.0"}
    step.sidecar.write_text(json.dumps({**json.loads(step.sidecar.read_text()), "key": old}))
    assert why() == ("sharpnb/rules.py is new", f"numpy: 1.0 → {numpy.__version__}", "device: cuda → cpu", "scipy is gone")


def test_what_a_run_wrote_must_still_be_there_unchanged(root):
    paths.write_whole(paths.figures("01_a") / "path.png", b"png")
    paths.write_whole(paths.records("01_a", "quick") / "claims.json", "[1]")
    finish(plan(["1"])[0])
    assert why() == ()
    paths.write_whole(paths.figures("01_a") / "full" / "path.png", b"drawn by the full profile")
    assert why() == ()
    paths.write_whole(paths.records("01_a", "quick") / "claims.json", "[2]")
    assert why() == ("data/records/01_a/quick/claims.json was changed since",)
    (paths.figures("01_a") / "path.png").unlink()
    assert "figures/01_a/path.png is missing" in why()
    paths.runs("quick").joinpath("01_a.ipynb").unlink()
    assert "data/runs/quick/01_a.ipynb is missing" in why()
    (root / "data/runs/quick/01_a.ipynb").write_text("{ ")
    assert "data/runs/quick/01_a.ipynb was changed since" in why()


@pytest.mark.parametrize("left", ['{"begun": "now"}', "{", "[]"])
def test_a_run_that_did_not_finish_is_done_again(done, left):
    paths.runs("quick").joinpath("01_a.json").write_text(left)
    assert why() == ("its last run failed or was interrupted",)


def test_the_list_says_how_things_stand(done):
    notebooks = [step.notebook for step in plan()]
    assert [state(notebook) for notebook in notebooks] == ["up to date"] * 3
    (done / "sharpnb" / "rules.py").write_text("x = 2\n")
    assert [state(notebook) for notebook in notebooks] == ["changed since", "changed since", "up to date"]


@pytest.mark.parametrize("name", ["1", "01", "01_a", "notebooks/01_a.ipynb", "01_a.ipynb"])
def test_a_notebook_answers_to_number_name_and_path(root, name):
    assert [step.name for step in plan([name])] == ["01_a"]


def test_what_is_unknown_is_refused_with_what_is_there(root):
    with pytest.raises(RunnerError, match=r"no notebook '01_b'. Did you mean '0._.'\? These are there: 00_index, 01_a"):
        plan(["01_b"])
    with pytest.raises(RunnerError, match=r"no profile 'fully'\. Choose one of quick, full\. Did you mean 'full'"):
        plan(profile="fully")
    with pytest.raises(RunnerError, match="leave out -p and --profile"):
        plan(update=True, given={"seed": 1})


def test_an_ambiguous_number_is_refused(root):
    checkout(root, {"01_c": plain("01", "pass")})
    with pytest.raises(RunnerError, match="more than one notebook: 01_a, 01_c"):
        plan(["1"])


def test_a_damaged_notebook_and_an_empty_checkout_are_named(root, monkeypatch):
    (root / "notebooks" / "01_a.ipynb").write_text('{"cells": [')
    with pytest.raises(RunnerError, match=r"01_a.ipynb cannot be read as a notebook \(JSONDecodeError"):
        plan(["1"])
    assert [step.name for step in plan()] == ["02_b", "00_index"]
    monkeypatch.setenv("SHARPNB_ROOT", str(root / "data"))
    with pytest.raises(RunnerError, match="no notebooks in"):
        plan()


def test_a_notebook_needs_exactly_one_parameter_cell(root):
    checkout(root, {"03_c": notebook(markdown("# 3", "h"), code("pass", "c"))})
    with pytest.raises(RunnerError, match=r"03_c\.ipynb has 0 cells tagged 'parameters'"):
        plan(["3"])


def test_title_and_figures_come_from_the_first_cell(root):
    first = plan(["1"])[0].notebook
    assert (first.title, first.reproduces) == ("A toy", "Fig. 2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Paper: A, *B*, ICLR 2021: Fig. 2, C.3 (Figs 4 to 7, Table 11).", "Fig. 2, Figs 4 to 7, Table 11"),
     ("SAM: Fig. 3 left and section 4.2.\nMore: Fig. 9.", "Fig. 3 left"), ("Propositions 1, 2, 3 and SuppFigs 1–3",
     "Propositions 1, 2, 3, SuppFigs 1–3"), ("No picture, no table.", "")],
)
def test_what_a_notebook_re_makes_is_read_from_its_opening(root, text, expected):
    checkout(root, {"05_e": notebook(markdown(f"# 5\n\n{text}", "h"), code("seed: int = 0", "p", ("parameters",)))})
    assert plan(["5"])[0].notebook.reproduces == expected


@pytest.mark.parametrize(
    ("profile", "device", "expected"),
    [("quick", "auto", "cpu"), ("quick", "cuda", "cuda"), ("full", "auto", "auto"), ("full", "cpu", "cpu"),
     ("full", "cuda:1", "cuda:1")],
)
def test_the_quick_profile_stays_on_the_cpu_unless_told(root, profile, device, expected):
    (step,) = plan(["1"], profile, {"device": device})
    assert step.device == step.key["device"] == expected
    assert (execute._environment(step).get("CUDA_VISIBLE_DEVICES") == "") == (expected == "cpu")
