"""``sharpnb spectrum`` as people run it, with harm done on purpose: nothing is lost, what is wrong is a sentence."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from spectrum_project import MODULE, Stopped, arguments, result
from toy import ASCII

from sharpnb import paths, usercode
from sharpnb.curvature import HessianOperator
from sharpnb.spectrum import load_batches, measure, seed_everything
from sharpnb.spectrum.preflight import examine

pytest_plugins = ["spectrum_project"]


# ---- What is wrong is a sentence ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "data", "loss", "words"), [
    ("nan_weight", "data", None,
     ["Batch 1: the loss is nan. The model's 2.weight holds 1 of 15 numbers that are NaN", "earlier checkpoint"]),
    ("on_meta", "data", None, ["4 weights of the model are on the meta device", "0.weight", "--checkpoint"]),
    ("lazy", "data", None, ["0.weight, 0.bias of the model have no shape yet"]),
    ("net", "nan_input", None, ["Batch 1: the loss is nan. Its inputs of shape (16, 4) hold 1 numbers that are NaN"]),
    ("net", "wrong_label", None, ["Batch 1: 1 labels are no class of the model", "outside 0 … 2, from 3 to 3"]),
    ("net", "empty", None, ["Batch 1 is empty: its inputs have the shape (0, 4)"]),
    ("net", "integers", None, ["Batch 1: the model does not take inputs of int64 (16, 4)", "x.float()"]),
    ("net", "wide", None, ["the model does not take inputs of float32 (16, 7)", "RuntimeError"]),
    ("net", "float_target", None,
     ["the loss does not take an output of float32 (16, 3) with a target of float32 (16,)"]),
    ("net", "Broken", None, ["batch 1 cannot be read: KeyError: 'no such picture'"]),
    ("Detaches", "data", None, ["The loss has no gradient: the network cuts its output off", "detach()"]),
    ("Overflows", "data", None, ["the loss is nan. Weights and data are finite, the model's output is not"]),
    ("net", "data", "hits", ["The loss has no gradient: the loss cuts it off"]),
    ("net", "data", "constant", ["The loss is constant: its gradient and every product are exactly 0"]),
    ("net", "data", "root", ["The gradient of 0.weight, 0.bias, 2.weight, 2.bias is not finite, though the loss is"]),
    ("Flat", "data", "kink", ["The second derivative is not finite", "in the rows of layer.weight, layer.bias"]),
    ("net", "data", "crashes", ["the loss does not take an output of float32 (16, 3)", "TypeError: no"]),
])
def test_what_is_wrong_is_named_before_anything_is_written(call, folder, model, data, loss, words):
    told = {} if loss is None else {"loss": loss if loss == "mse" else f"theirs.py:{loss}"}
    status, _, err = call(model, data, batch_size=16, **told)
    assert status == 2 and all(word in err for word in words), err
    assert "Traceback" not in err and "goes on" not in err and not (folder / "o" / "spectrum.json").exists()
    assert not list(folder.glob("o/state-*"))


def test_what_is_only_worth_a_word_is_said(call, folder):
    status, out, _ = call("HalfUsed")
    assert status == 0 and "No gradient reaches spare.weight, spare.bias: their rows are 0." in out
    status, out, _ = call("Flat", loss="theirs.py:linear", out="p")
    assert status == 0 and "Every product was exactly 0: the loss is linear" in " ".join(out.replace("│", " ").split())
    assert result(folder, "p")["notes"] and result(folder, "p")["largest"]["values"] == [0, 0]


@pytest.mark.parametrize(("model", "data"), [("Masked", "ids"), ("recurrent", "data")])
def test_masks_of_infinity_and_ids_are_right(call, folder, model, data):
    status, _, err = call(model, data, probes=0, top=1)
    assert status == 0 and result(folder)["largest"]["values"][0] > 0, err


def test_sparse_gradients_are_looked_at(folder):
    made, batches = usercode.find("theirs.py:Masked", "model")(sparse=True), load_batches("theirs.py:ids")
    assert examine(made, torch.nn.functional.cross_entropy, batches, "eval") == []
    made.embed.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match=r"embed\.weight holds 4 of 28"):
        examine(made, torch.nn.functional.cross_entropy, batches, "eval")


# ---- Nothing is lost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "variables"), [
    ("| head -1", {}), (">/dev/full", {}), (">&-", {}), ("", {"PYTHONIOENCODING": "latin-1"}), ("", ASCII),
], ids=str)
def test_the_result_is_written_whatever_the_terminal_does(folder, end, variables):
    call = shlex.join([sys.executable, "-m", "sharpnb.cli", "spectrum", *arguments(top=1)])
    clean = {name: value for name, value in os.environ.items() if name not in ("LANG", "LC_ALL", "PYTHONIOENCODING")}
    done = subprocess.run(["bash", "-c", f"{call} {end}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True,
                          errors="replace", env=clean | variables)
    found = result(folder)
    assert found["complete"] and found["density"] and (folder / "o/density.png").exists()
    assert not list(folder.glob("o/state-*")) and done.returncode == (1 if "full" in end else 0), done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if end == ">/dev/full":
        assert "No space left on device" in done.stderr and "o/spectrum.json" in done.stderr


@pytest.mark.parametrize("name", ["[bold] %s {0}", "a $b$ λ"])
def test_names_are_names(command, folder, name):
    (folder / name).mkdir(parents=True)
    (folder / name / "theirs.py").write_text(MODULE)
    status, out, err = command("--model", f"{name}/theirs.py:net", "--data", f"{name}/theirs.py:data", "--top", 1,
                               "--steps", 8, "--probes", 1, "--out", f"{name}/o", "--checkpoint", _saved(folder / name))
    assert status == 0 and f"{name}/theirs.py:net" in out and (folder / name / "o/density.svg").exists(), err


def _saved(folder):
    torch.save(usercode.find(f"{folder}/theirs.py:other", "model")().state_dict(), folder / "run.pt")
    return folder / "run.pt"


def test_the_state_stays_until_the_result_is_written(call, folder, monkeypatch):
    def full(path, content):
        if path.name == "spectrum.json":
            raise OSError(28, "No space left on device")
        write(path, content)

    write = paths.write_whole
    monkeypatch.setattr(paths, "write_whole", full)
    monkeypatch.setattr("sharpnb.resume.write_whole", write)
    monkeypatch.setitem(measure.measure_spectrum.__kwdefaults__, "checkpoint_every", 0.0)
    status, _, err = call()
    assert status == 2 and "No space left" in err and len(list(folder.glob("o/state-*"))) == 2
    monkeypatch.setattr(paths, "write_whole", write)
    used = []
    counted = HessianOperator.__matmul__
    monkeypatch.setattr(HessianOperator, "__matmul__", lambda self, v: used.append(v.shape) or counted(self, v))
    assert call()[0] == 0 and result(folder)["complete"] and not list(folder.glob("o/state-*"))
    assert len(used) < result(folder)["products"] / 3, "what was saved is not multiplied again"


def test_a_folder_that_cannot_be_written_to_is_named_at_once(call, folder, monkeypatch):
    (folder / "file").touch()
    for out in ("file", "file/deeper"):
        status, _, err = call(out=out)
        assert status == 2 and f"--out {out}" in err and "is a file and no folder" in err
    monkeypatch.setattr(os, "access", lambda place, how: False)
    status, _, err = call(out="new/deeper")
    assert status == 2 and "cannot be written to by you" in err and not (folder / "new").exists()


def test_a_complete_result_is_never_replaced_by_an_interrupted_or_another_one(call, folder, monkeypatch):
    assert call("net")[0] == 0
    good = {file.name: file.read_bytes() for file in (folder / "o").iterdir()}

    def unharmed():
        files = [file for file in (folder / "o").iterdir() if not file.name.startswith("state-")]
        return {file.name: file.read_bytes() for file in files} == good

    status, out, _ = call("other")
    assert status == 0 and unharmed() and "o holds a complete result of another measurement" in out
    assert result(folder, "o-2")["origin"]["model"] == "theirs.py:other"
    assert "o-2/spectrum.json" in out.replace("\n", "")
    with monkeypatch.context() as m:
        m.setitem(measure.OPERATORS, "hessian", Stopped)
        for model, place in (("net", "o-3"), ("other", "o-3")):
            status, out, err = call(model)
            assert status == 130 and unharmed() and result(folder, "o-2")["complete"]
            assert not result(folder, place)["complete"]
            assert "o holds a complete result, and this one is not" in out and "goes on from its last save" in err
    assert call("net")[0] == 0 and not (folder / "o-4").exists(), "its own result is made anew where it was"
    assert result(folder)["largest"]["values"] == json.loads(good["spectrum.json"])["largest"]["values"]
    assert call("other")[0] == 0 and result(folder, "o-2")["complete"] and not (folder / "o-4").exists()


def test_a_figure_that_cannot_be_drawn_costs_no_number(call, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, _ = call()
    assert status == 0 and "The figure was not drawn (ModuleNotFoundError" in " ".join(out.split())
    assert not (folder / "o/density.png").exists()
    assert len((folder / "o/density.csv").read_text().splitlines()) == 2001


def test_a_users_matplotlibrc_changes_no_figure(call, folder, monkeypatch):
    import matplotlib as mpl

    assert call()[0] == 0
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "black")
    monkeypatch.setitem(mpl.rcParams, "savefig.bbox", "tight")
    assert call(out="p")[0] == 0
    assert (folder / "o/density.png").read_bytes() == (folder / "p/density.png").read_bytes()
    assert mpl.rcParams["axes.facecolor"] == "black"


@pytest.mark.parametrize(("model", "top", "steps", "probes"), [
    ("net", 5, 60, 8), ("Flat", 1, 10, 0)])
def test_the_products_are_counted_beforehand(call, folder, model, top, steps, probes):
    """Within a factor of two; the seconds are said too, and no test asserts those."""
    status, out, _ = call(model, top=top, steps=steps, probes=probes, dtype="float64")
    assert status == 0 and "It will take about " in out
    found = result(folder)
    said = found["cost"]["said"]["products"]
    assert f"It will take about {said} products" in out and found["cost"]["said"]["seconds"] > 0
    assert 0.5 < said / found["products"] < 2


# ---- The order of the data ------------------------------------------------------------------------------------------


def test_a_loader_that_shuffles_follows_the_seed_and_says_so(call, folder):
    status, out, _ = call(data="shuffled", batches=1)
    assert status == 0 and "Its order follows --seed here, so that a run" in " ".join(out.split())
    torch.manual_seed(99)
    np.random.seed(99)
    assert call(data="shuffled", batches=1, out="p")[0] == 0
    assert call(data="shuffled", batches=1, seed=1, out="q")[0] == 0
    marks = [result(folder, out)["origin"]["data_fingerprint"] for out in "opq"]
    assert marks[0] == marks[1] != marks[2]
    assert "shuffles" not in call(data="seeded", out="r")[1]
    said = []
    seed_everything(3)
    load_batches("theirs.py:shuffled", say=said.append)
    load_batches("theirs.py:data", say=said.append)
    assert len(said) == 1


def test_data_that_differ_from_run_to_run_cannot_be_resumed_and_that_is_said(call, folder, monkeypatch):
    monkeypatch.setitem(measure.measure_spectrum.__kwdefaults__, "checkpoint_every", 0.0)
    with monkeypatch.context() as m:
        m.setitem(measure.OPERATORS, "hessian", Stopped)
        assert call(data="shuffled")[0] == 130 and call(data="at_random", out="p")[0] == 130
    status, out, _ = call(data="shuffled")
    assert status == 0 and "cannot resume" not in out and not list(folder.glob("o/state-*"))
    status, out, _ = call(data="at_random", out="p")
    assert status == 0 and "This run cannot resume it and begins anew" in " ".join(out.split()) and "state-" in out
    assert "cannot resume" not in call(data="seeded", out="p")[1], "another command's state says nothing about this one"
