"""``sharpnb spectrum`` on one's own network: the numbers are the dense Hessian's, every file says whose they are."""

import os

import numpy as np
import pytest
import torch
from spectrum_project import Stopped, result
from torch.nn.functional import cross_entropy

from sharpnb import spectrum, usercode
from sharpnb.curvature import HessianOperator
from sharpnb.spectrum import measure

pytest_plugins = ["spectrum_project"]
torch.set_num_threads(1)


@pytest.fixture
def trained(folder):
    """Weights that are not those of ``theirs.net()``."""
    model = usercode.find("theirs:net", "model")()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.7).add_(0.1)
    return model


def dense(model):
    model = model.double()
    x, y = usercode.find("theirs:data", "data")()
    return np.linalg.eigvalsh(HessianOperator(model, cross_entropy, (x.double(), y)).to_dense().numpy())


def wrapped(state):
    return {"epoch": 3, "model_state_dict": {f"module.{name}": value for name, value in state.items()},
            "optimizer": {"lr": 0.1}}


@pytest.mark.parametrize("data", ["theirs:data", "theirs:loader", "theirs.py:Set"])
def test_the_numbers_are_those_of_the_checkpoints_dense_hessian(trained, folder, command, data):
    torch.save(wrapped(trained.state_dict()), "run.pt")
    status, out, err = command("--checkpoint", "run.pt", "--model", "theirs:net", "--data", data, "--batch-size", 32,
                               "--dtype", "float64", "--out", "out", "--top", 4)
    assert status == 0, err
    truth = dense(trained)
    other = dense(usercode.find("theirs:net", "model")())
    found = result(folder, "out")
    np.testing.assert_allclose(found["largest"]["values"], truth[::-1][:4], rtol=1e-6)
    assert abs(other[-1] / truth[-1] - 1) > 0.01, "the fresh network must have another spectrum for this to mean much"
    assert found["largest"]["verified"] and found["complete"] and found["n"] == len(truth)
    assert found["density"]["lambda_min"] == pytest.approx(truth[0], abs=1e-6 * truth[-1])
    assert found["density"]["trace"] == pytest.approx(truth.sum(), abs=4 * found["density"]["trace_stderr"] + 1e-8)
    assert found["origin"]["checkpoint"] == "run.pt" and found["origin"]["samples"] == 40
    assert found["provenance"]["parameters"]["probes"] == 8 and found["provenance"]["versions"]["torch"]
    for word in ("trace", "memory", "verified", "products", "outliers locked", f"{truth[-1]:.5g}"):
        assert word in out
    table = np.loadtxt(folder / "out/density.csv", delimiter=",", skiprows=1)
    assert np.trapezoid(table[:, 1], table[:, 0]) == pytest.approx(1, abs=1e-3)
    listed = (folder / "out/eigenvalues.csv").read_text().splitlines()
    assert listed[0] == "eigenvalue,residual,source" and sum(line.endswith(",largest") for line in listed) == 4
    assert all((folder / "out" / f"density.{ending}").stat().st_size > 5000 for ending in ("png", "svg"))
    assert not list((folder / "out").glob("state-*")), "a run that is done needs no state"


@pytest.mark.parametrize("operator", ["ggn", "fisher"])
def test_other_operators_layers_and_losses(folder, call, operator):
    status, out, err = call(operator=operator, params=2, probes=0)
    assert status == 0, err
    found = result(folder)
    assert found["n"] == 18 and found["density"] is None
    assert min(found["largest"]["values"]) > -1e-6 and not (folder / "o/density.png").exists()
    assert f"{operator} of 18 parameters" in out


def test_a_torchvision_model_by_name(folder, command):
    pytest.importorskip("torchvision")
    status, _, err = command("--model", "mobilenet_v3_small", "--classes", 10, "--data", "noise:3x32x32", "--out", "o",
                             "--batch-size", 8, "--params", "classifier.3", "--top", 1, "--probes", 0)
    assert status == 0, err
    found = result(folder)
    assert found["n"] == 1024 * 10 + 10 and found["largest"]["values"][0] > 0
    assert found["origin"]["data"] == "noise:3x32x32", "synthetic data is named in the record"


class Code:
    def __reduce__(self):
        return os.system, ("touch ran-code",)


def test_what_is_wrong_is_said_with_what_to_do(trained, folder, command):
    torch.save({**trained.state_dict(), "3.weight": torch.ones(2)}, "more.pt")
    torch.save({"state_dict": Code()}, "code.pt")
    net, data = ("--model", "theirs:net"), ("--data", "theirs:data")
    for arguments, words in [
        ((*net, *data, "--checkpoint", "absent.pt"), ["absent.pt", "no such file"]),
        ((*net, *data, "--checkpoint", "code.pt"), ["code.pt", "posix.system"]),
        ((*net, *data, "--checkpoint", "more.pt"), ["1 entries are not in the model: 3.weight"]),
        (("--model", "theirs:nte", *data), ["no 'nte'", "Did you mean 'net'"]),
        (("--model", "theirs:three", *data), ["returned a int", "torch.nn.Module"]),
        (("--model", "resnet81", *data), ["resnet18", "module:function"]),
        ((*net, "--data", "digit"), ["digits, mnist1d", "module:function"]),
        ((*net, "--data", "noise:ax3"), ["noise:3x224x224"]),
        ((*net, "--data", "theirs:triples"), ["tuple", "pair"]),
        ((*net, *data, "--loss", "nll"), ["cross_entropy"]),
        ((*net, *data, "--operator", "hesse"), ["'hesse'", "ggn"]),
        ((*net, *data, "--mode", "train"), ["'train'", "'eval'"]),
        ((*net, *data, "--top", "0", "--probes", "0"), ["top = 0, probes = 0"]),
        ((*net, *data, "--memory", "0.000001"), ["memory = 1e+03 bytes"]),
        ((*net, *data, "--params", "layer9"), ["'layer9'", "0.weight"]),
        ((*net, *data, "--device", "nonsense"), ["device = 'nonsense'", "'auto'"]),
    ]:
        status, _, err = command(*arguments)
        assert status == 2 and all(word in err for word in words), (arguments, err)
    assert not (folder / "ran-code").exists() and not (folder / "spectrum").exists()


@pytest.mark.parametrize("at", [3, 90], ids=["largest", "probes"])
def test_a_killed_run_goes_on_and_another_network_never_continues_it(trained, folder, monkeypatch, at):
    batches = spectrum.load_batches("theirs:data", dtype=torch.float64)
    settings = spectrum.Settings(steps=20, probes=3, top=3, memory=20 * 43 * 8)  # one probe at a time

    def run(model, operator, **options):
        monkeypatch.setitem(measure.OPERATORS, "hessian", operator)
        return spectrum.measure_spectrum(model.double(), cross_entropy, batches, settings, folder, **options)

    whole = run(trained, HessianOperator)
    whole.forget_state()
    monkeypatch.setattr(Stopped, "at", at)
    monkeypatch.setattr(Stopped, "how", RuntimeError)
    with pytest.raises(RuntimeError, match="killed"):
        run(trained, Stopped, checkpoint_every=0)
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
