"""``sharpnb spectrum`` on a user's own network: the numbers are the dense Hessian's, and every file says whose they are."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from sharpnb import cli, spectrum, usercode
from sharpnb.curvature import HessianOperator
from sharpnb.spectrum import measure

torch.set_num_threads(1)
MODULE = """
import torch
from torch import nn

CALLS = []

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))

def data():
    g = torch.Generator().manual_seed(1)
    return torch.randn(70, 5, generator=g), torch.randint(0, 3, (70,), generator=g)

class Set(torch.utils.data.Dataset):
    def __len__(self): return 70
    def __getitem__(self, i): return data()[0][i], data()[1][i]

def loader(): return torch.utils.data.DataLoader(Set(), batch_size=16)

def number(): return 3

def triples(): return [(1, 2, 3)]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("theirs", None)


@pytest.fixture
def trained(folder):
    """Weights that are not those of ``theirs.net()``."""
    model = usercode.find("theirs:net", "model")()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.7).add_(0.1)
    return model


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sharpnb", "spectrum", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run


def dense(model):
    model = model.double()
    x, y = usercode.find("theirs:data", "data")() if os.path.exists("theirs.py") else sys.modules["theirs"].data()
    return np.linalg.eigvalsh(HessianOperator(model, cross_entropy, (x.double(), y)).to_dense().numpy())


def wrapped(state):
    return {"epoch": 3, "model_state_dict": {f"module.{name}": value for name, value in state.items()},
            "optimizer": {"lr": 0.1}}


@pytest.mark.parametrize("data", ["theirs:data", "theirs:loader", "theirs.py:Set"])
def test_the_numbers_are_those_of_the_checkpoints_dense_hessian(trained, folder, call, data):
    torch.save(wrapped(trained.state_dict()), "run.pt")
    status, out, err = call("--checkpoint", "run.pt", "--model", "theirs:net", "--data", data, "--batch-size", 32,
                            "--dtype", "float64", "--out", "out", "--top", 4)
    assert status == 0, err
    truth = dense(trained)
    other = dense(usercode.find("theirs:net", "model")())
    found = json.loads((folder / "out/spectrum.json").read_text())
    np.testing.assert_allclose(found["largest"]["values"], truth[::-1][:4], rtol=1e-6)
    assert abs(other[-1] / truth[-1] - 1) > 0.01, "the fresh network must have another spectrum for this to mean much"
    assert found["largest"]["verified"] and found["complete"] and found["n"] == len(truth)
    assert found["density"]["lambda_min"] == pytest.approx(truth[0], abs=1e-6 * truth[-1])
    assert found["density"]["trace"] == pytest.approx(truth.sum(), abs=4 * found["density"]["trace_stderr"] + 1e-8)
    assert found["origin"]["checkpoint"] == "run.pt" and found["origin"]["samples"] == 70
    assert found["provenance"]["parameters"]["probes"] == 8 and found["provenance"]["versions"]["torch"]
    for word in ("trace", "memory", "verified", "products", "outliers locked", f"{truth[-1]:.5g}"):
        assert word in out
    table = np.loadtxt(folder / "out/density.csv", delimiter=",", skiprows=1)
    assert np.trapezoid(table[:, 1], table[:, 0]) == pytest.approx(1, abs=1e-3)
    listed = (folder / "out/eigenvalues.csv").read_text().splitlines()
    assert listed[0] == "eigenvalue,residual,source" and sum(line.endswith(",largest") for line in listed) == 4
    assert all((folder / "out" / f"density.{ending}").stat().st_size > 5000 for ending in ("png", "svg"))
    assert not list((folder / "out").glob("state-*")), "a run that is done needs no state"


def test_memory_is_said_before_anything_is_multiplied(folder, call, monkeypatch):
    monkeypatch.setattr(HessianOperator, "_rows", lambda self, rows: (_ for _ in ()).throw(RuntimeError("product")))
    with pytest.raises(RuntimeError, match="product"):
        spectrum.measure_spectrum(
            spectrum.load_model("theirs:net"), cross_entropy, spectrum.load_batches("theirs:data"),
            spectrum.Settings(), folder, say=lambda text: (folder / "said").write_text(text))
    assert "57 parameters, 70 samples in 1 batches" in (folder / "said").read_text()
    assert "GB to lock outliers" in (folder / "said").read_text()


@pytest.mark.parametrize("operator", ["ggn", "fisher"])
def test_other_operators_layers_and_losses(folder, call, operator):
    status, out, err = call("--model", "theirs:net", "--data", "theirs:data", "--operator", operator, "--params", "2",
                            "--probes", 0, "--out", "o")
    assert status == 0, err
    found = json.loads((folder / "o/spectrum.json").read_text())
    assert found["n"] == 21 and found["density"] is None
    assert min(found["largest"]["values"]) > -1e-6 and not (folder / "o/density.png").exists()
    assert f"{operator} of 21 parameters" in out


def test_a_torchvision_model_by_name(folder, call):
    pytest.importorskip("torchvision")
    status, _, err = call("--model", "mobilenet_v3_small", "--classes", 10, "--data", "noise:3x32x32", "--batch-size", 8,
                          "--params", "classifier.3", "--top", 1, "--probes", 0, "--out", "o")
    assert status == 0, err
    found = json.loads((folder / "o/spectrum.json").read_text())
    assert found["n"] == 1024 * 10 + 10 and found["largest"]["values"][0] > 0
    assert found["origin"]["data"] == "noise:3x32x32", "synthetic data is named in the record"


class Code:
    def __reduce__(self):
        return os.system, ("touch ran-code",)


def test_what_is_wrong_is_said_with_what_to_do(trained, folder, call):
    state = trained.state_dict()
    torch.save({"a": {"b": 1}, "epoch": 2}, "empty.pt")
    torch.save({**state, "3.weight": torch.ones(2)}, "more.pt")
    torch.save({name: value for name, value in state.items() if name != "2.bias"}, "less.pt")
    torch.save({**state, "2.weight": torch.ones(4, 6)}, "shape.pt")
    torch.save({"state_dict": Code()}, "code.pt")
    (folder / "noise.pt").write_bytes(b"no torch file")
    net, data = ("--model", "theirs:net"), ("--data", "theirs:data")
    for arguments, words in [
        ((*net, *data, "--checkpoint", "absent.pt"), ["absent.pt", "no such file"]),
        ((*net, *data, "--checkpoint", "noise.pt"), ["noise.pt", "state_dict()"]),
        ((*net, *data, "--checkpoint", "code.pt"), ["code.pt", "posix.system"]),
        ((*net, *data, "--checkpoint", "empty.pt"), ["'a' (dict)", "--key"]),
        ((*net, *data, "--checkpoint", "empty.pt", "--key", "b"), ["no entry 'b'", "'epoch'"]),
        ((*net, *data, "--checkpoint", "more.pt"), ["1 entries are not in the model: 3.weight"]),
        ((*net, *data, "--checkpoint", "less.pt"), ["1 entries are missing in the file: 2.bias"]),
        ((*net, *data, "--checkpoint", "shape.pt"), ["2.weight is (4, 6) in the file and (3, 6)"]),
        (("--model", "theirs:nte", *data), ["no 'nte'", "Did you mean 'net'"]),
        (("--model", "their:net", *data), ["no 'their'"]),
        (("--model", "absent.py:net", *data), ["no 'absent.py'"]),
        (("--model", "theirs:number", *data), ["returned a int", "torch.nn.Module"]),
        (("--model", "resnet81", *data), ["resnet18", "module:function"]),
        ((*net, "--data", "digit"), ["digits, mnist1d", "module:function"]),
        ((*net, "--data", "noise:ax3"), ["noise:3x224x224"]),
        ((*net, "--data", "theirs:triples"), ["tuple", "pair"]),
        ((*net, *data, "--loss", "nll"), ["cross_entropy"]),
        ((*net, *data, "--operator", "hesse"), ["'hesse'", "ggn"]),
        ((*net, *data, "--mode", "train"), ["'train'", "'eval'"]),
        ((*net, *data, "--dtype", "float16"), ["float32 or float64"]),
        ((*net, *data, "--top", "0", "--probes", "0"), ["top = 0, probes = 0"]),
        ((*net, *data, "--memory", "0.000001"), ["memory = 1e+03 bytes"]),
        ((*net, *data, "--params", "layer9"), ["'layer9'", "0.weight"]),
    ]:
        status, _, err = call(*arguments)
        assert status == 2 and all(word in " ".join(err.split()) for word in words), (arguments, err)
    assert not (folder / "ran-code").exists() and not (folder / "spectrum").exists()


class Stopping(HessianOperator):
    """Stops at one product, in the way asked for."""

    at, how = 0, RuntimeError

    def __matmul__(self, v):
        if self.products >= type(self).at:
            raise type(self).how("killed")
        return super().__matmul__(v)


@pytest.mark.parametrize("at", [3, 30, 90], ids=["largest", "locking", "probes"])
def test_a_killed_run_goes_on_and_another_network_never_continues_it(trained, folder, monkeypatch, at):
    batches = spectrum.load_batches("theirs:data", dtype=torch.float64)
    settings = spectrum.Settings(steps=20, probes=3, top=3, memory=20 * 57 * 8)  # one probe at a time

    def run(model, operator, **options):
        monkeypatch.setitem(measure.OPERATORS, "hessian", operator)
        return spectrum.measure_spectrum(model.double(), cross_entropy, batches, settings, folder, **options)

    whole = run(trained, HessianOperator)
    whole.forget_state()
    Stopping.at = at
    with pytest.raises(RuntimeError, match="killed"):
        run(trained, Stopping, checkpoint_every=0)
    states = set(folder.glob("state-*"))
    assert states
    other = run(spectrum.load_model("theirs:net"), HessianOperator)
    other.forget_state()
    assert set(folder.glob("state-*")) == states, "another network neither uses nor removes them"
    resumed = run(trained, HessianOperator)
    assert set(folder.glob("state-*")) >= states, "they stay until the result is written"
    resumed.forget_state()
    assert not set(folder.glob("state-*"))
    np.testing.assert_array_equal(resumed.density.nodes, whole.density.nodes)
    np.testing.assert_array_equal(resumed.eigenvalues.values, whole.eigenvalues.values)
    assert other.eigenvalues.values[0] != whole.eigenvalues.values[0]
    assert resumed.op.products < whole.op.products, "what was done is not done again"


def test_an_interrupt_leaves_a_partial_result(folder, call, monkeypatch):
    monkeypatch.setitem(measure.OPERATORS, "hessian", Stopping)
    monkeypatch.setattr(Stopping, "at", 60)
    monkeypatch.setattr(Stopping, "how", KeyboardInterrupt)
    status, out, err = call("--model", "theirs:net", "--data", "theirs:data", "--out", "o")
    assert status == 130 and "interrupted" in out and "same command goes on" in err
    found = json.loads((folder / "o/spectrum.json").read_text())
    assert not found["complete"] and found["largest"]["verified"] and found["density"]["ending"] == "interrupted"


PROJECT = {
    "nets.py": "from torch import nn\ndef Net():\n    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))\n",
    "train.py": "import argparse, torch\nfrom nets import Net\nargs = argparse.ArgumentParser().parse_args()\n"
                "def build():\n    torch.manual_seed(0)\n    return Net()\ndef loader():\n    import theirs\n    return theirs.data()\n",
    "random.py": "1 / 0\n",
}


@pytest.mark.parametrize("where", ["train:", "train.py:", "pkg/train.py:", "elsewhere"])
def test_a_project_with_neighbours_a_package_and_arguments_of_its_own(folder, call, where):
    for name, text in PROJECT.items():
        (folder / name).write_text(text)
        (folder / "pkg").mkdir(exist_ok=True)
        (folder / "pkg" / name).write_text(text.replace("from nets", "from .nets"))
    (folder / "pkg" / "__init__.py").touch()
    spec = f"{folder}/train.py:" if where == "elsewhere" else where
    if where == "elsewhere":
        os.chdir("/")
    status, _, err = call("--model", f"{spec}build", "--data", f"{spec}loader", "--top", 1, "--probes", 0, "--dtype", "float64",
                          "--out", folder / "o")
    assert status == 0, err
    found = json.loads((folder / "o/spectrum.json").read_text())
    assert found["largest"]["values"][0] == pytest.approx(dense(usercode.find(f"{folder}/theirs.py:net", "model")())[-1], rel=1e-6)
    for name in ("train", "nets", "pkg", "pkg.train", "pkg.nets"):
        sys.modules.pop(name, None)
