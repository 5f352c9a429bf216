"""Files as training runs write them: the weights come out, no code is run, and what is refused is named."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import json
import pathlib
import pickle
import random
import sys
import types
import uuid

import numpy as np
import pytest
import torch
from torch import nn

from sharpnb import checkpoints
from sharpnb.averaging import SWA
from sharpnb.checkpoints import Ambiguous, read_state


@pytest.fixture
def net():
    return nn.Linear(4, 3)


def same(found, net):
    return all(torch.equal(found[name], value) for name, value in net.state_dict().items()) and len(found) == 2


BESIDE = {
    "namespaces": {"args": argparse.Namespace(lr=0.1, root=pathlib.Path("/data")), "a": types.SimpleNamespace(lr=0.1)},
    "NumPy scalars": {"best": np.float64(93.1), "at": np.int64(3), "ok": np.bool_(True), "day": np.datetime64("2026")},
    "NumPy arrays": {"curve": np.arange(3.0), "names": np.array(["a", 1], dtype=object), "table": np.zeros(2, "f4,i4")},
    "random states": {"rng": np.random.get_state(), "generator": np.random.default_rng(0), "python": random.getstate(),
                      "old": np.random.RandomState(0), "torch": torch.get_rng_state()},
    "containers": {"log": collections.defaultdict(list, loss=[1.0]), "last": collections.deque([1, 2], maxlen=2),
                   "seen": frozenset({1}), "which": range(3), "part": slice(1, 2), "kinds": collections.Counter("aab")},
    "times, numbers, names": {"at": datetime.datetime.now(datetime.UTC), "took": datetime.timedelta(1), "type": int,
                              "price": decimal.Decimal("1.2"), "id": uuid.uuid4(), "version": torch.__version__,
                              "there": pathlib.PureWindowsPath("c:/data")},
    "classes of PyTorch among the settings": {"act": nn.ReLU, "by": torch.optim.SGD},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("name", BESIDE)
def test_what_training_scripts_store_beside_the_weights(net, tmp_path, name, legacy):
    if legacy and "PyTorch" in name:
        pytest.skip("the old format stores a module's source text, which PyTorch's reader refuses")
    held = {"model": net.state_dict(), "epoch": 3, **BESIDE[name]}
    torch.save(held, tmp_path / "run.pt", _use_new_zipfile_serialization=not legacy)
    assert same(read_state(tmp_path / "run.pt"), net)


@dataclasses.dataclass
class Config:
    lr: float = 0.1


class Settings(dict):
    pass


class Slots:
    __slots__ = ("a",)


def test_another_class_is_named_with_its_option_and_passed_over_without_its_code(net, tmp_path):
    slots = Slots()
    slots.a = [1]
    held = {"model": net.state_dict(), "config": Config(), "settings": Settings(a=1), "slots": slots}
    torch.save(held, tmp_path / "run.pt")
    with pytest.raises(ValueError) as error:
        read_state(tmp_path / "run.pt")
    told = str(error.value)
    for name in ("Config", "Settings", "Slots"):
        assert f"{__name__}.{name}" in told and f"--allow-class '{__name__}.{name}'" in told
    assert "weights_only" not in told and "\x1b" not in told
    assert same(read_state(tmp_path / "run.pt", allow=[f"{__name__}.*"]), net)
    with pytest.raises(ValueError, match=r"test_checkpoints_files\.Settings"):
        read_state(tmp_path / "run.pt", allow=[f"{__name__}.Config"])


class Evil:
    def __init__(self, call, *given):
        self.call, self.given = call, given

    def __reduce__(self):
        return self.call, self.given


@pytest.mark.parametrize(("call", "word"), [
    (__import__("os").system, "system"), (eval, "eval"), (__import__("subprocess").call, "call"),
    (pickle.loads, "pickle"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_code_is_refused_and_never_run(net, tmp_path, call, word):
    ran = tmp_path / "ran"
    given = {"system": [f"touch {ran}"], "eval": [f"open({str(ran)!r}, 'w')"], "call": [["touch", str(ran)]],
             "pickle": [pickle.dumps(1)]}[word]
    torch.save({"model": net.state_dict(), "hook": Evil(call, *given)}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=word):
        read_state(tmp_path / "run.pt")
    try:
        assert same(read_state(tmp_path / "run.pt", allow=["*"]), net)
    except ValueError as error:
        assert word == "system" and "can do anything to this machine" in str(error), error
    assert not ran.exists()


def test_other_kinds_of_files_are_named(net, tmp_path):
    torch.jit.script(net).save(str(tmp_path / "script.pt"))
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save(net.state_dict(), tmp_path / "net.pt")
    (tmp_path / "short.pt").write_bytes((tmp_path / "net.pt").read_bytes()[:-40])
    (tmp_path / "folder").mkdir()
    torch.save(net.state_dict(), tmp_path / "five.pt", pickle_protocol=5)
    for file, word in (("script.pt", "torch.jit.load"), ("text.pt", "text.pt"), ("empty.pt", "empty.pt"),
                       ("short.pt", "short.pt"), ("absent.pt", "no such file"), ("folder", "model.safetensors"),
                       ("five.pt", "pickle_protocol=2")):
        with pytest.raises(ValueError) as error:
            read_state(tmp_path / file)
        told = str(error.value)
        assert file in told and word in told and "weights_only" not in told and "\n" not in told, told


# ---- Where the weights are ------------------------------------------------------------------------------------------

DEEP = {
    "a mapping of plain Python": dict,
    "arrays of NumPy": lambda sd: {"params": {name: value.numpy() for name, value in sd.items()}},
    "in a list": lambda sd: {"models": [sd]},
    "three levels down": lambda sd: {"a": {"b": {"c": sd, "step": torch.tensor(3)}}},
    "with numbers in between": lambda sd: {**sd, "epoch": 3, "arch": "x"},
    "with the optimizer in between": lambda sd: {**sd, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "beside curves": lambda sd: {"net": sd, "curves": {"loss": torch.ones(3)}, "class_weights": torch.ones(3)},
    "the same twice": lambda sd: {"model": sd, "best": {name: value.clone() for name, value in sd.items()}},
}


@pytest.mark.parametrize("name", DEEP)
def test_the_state_dict_is_found_at_every_depth(net, tmp_path, name):
    torch.save(DEEP[name](net.state_dict()), tmp_path / "run.pt")
    assert same(read_state(tmp_path / "run.pt"), net)


def test_a_key_is_a_path_and_at_last_the_beginning_of_names(net, tmp_path):
    other = {name: value + 1 for name, value in net.state_dict().items()}
    flat = {**{f"student.{name}": value for name, value in other.items()},
            **{f"teacher.{name}": value for name, value in net.state_dict().items()}}
    torch.save({"state": {"model": net.state_dict(), "step": 3}, "flat": flat, "runs": [{"ema": net.state_dict()}],
                "dotted.name": net.state_dict()}, tmp_path / "run.pt")
    for key in ("state", "state.model", "flat.teacher", "runs.0.ema", "runs", "dotted.name"):
        assert same(read_state(tmp_path / "run.pt", key), net), key
    assert torch.equal(read_state(tmp_path / "run.pt", "flat.student")["bias"], net.bias + 1)
    for key, words in (("state.step", "no state dict under 'state.step'"), ("flat.tutor", "no entry 'flat.tutor'"),
                       ("runs.1", "no entry 'runs.1'. It has 'state' ")):
        with pytest.raises(ValueError, match=words):
            read_state(tmp_path / "run.pt", key)


def test_of_two_networks_none_is_chosen_and_an_optimizer_is_none(net, tmp_path):
    other = {name: value + 1 for name, value in net.state_dict().items()}
    torch.save({"model": net.state_dict(), "ema": other, "epoch": 3}, tmp_path / "run.pt")
    with pytest.raises(Ambiguous, match=r"2 networks.*--key model, --key ema") as error:
        read_state(tmp_path / "run.pt")
    assert list(error.value.choices) == ["model", "ema"]
    assert torch.equal(read_state(tmp_path / "run.pt", "ema")["bias"], net.bias + 1)
    torch.save({"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "rng_state": torch.get_rng_state(),
                "history": {"loss": torch.ones(3)}}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"holds no state dict.*'optimizer' \(dict\)"):
        read_state(tmp_path / "run.pt")


def test_our_own_average_counts_with_its_statistics(tmp_path):
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    swa = SWA(net)
    swa.update()
    with torch.no_grad():
        net[0].weight.add_(1)
    swa.update()
    swa.update_bn([(torch.randn(16, 4), None)])
    torch.save(swa.state_dict(), tmp_path / "swa.pt")
    torch.save({"swa": swa.state_dict(), "epoch": 3}, tmp_path / "run.pt")
    for file in ("swa.pt", "run.pt"):
        mine = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        checkpoints.load(mine, tmp_path / file)
        with swa.average_weights():
            pairs = zip(mine.state_dict().values(), net.state_dict().values(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


# ---- safetensors ----------------------------------------------------------------------------------------------------


def written(folder, state):
    """Two files and their index, as Hugging Face's libraries write them."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    where = {}
    for k, (name, value) in enumerate(state.items(), 1):
        file = f"model-0000{k}-of-00002.safetensors"
        save_file({name: value}, folder / file)
        where[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_safetensors_in_one_file_and_in_several(net, tmp_path, monkeypatch):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    assert same(read_state(tmp_path / "net.safetensors"), net)
    (tmp_path / "many").mkdir()
    written(tmp_path / "many", net.state_dict())
    assert same(read_state(tmp_path / "many" / "model.safetensors.index.json"), net)
    assert same(read_state(tmp_path / "many"), net)
    where = {name: f"pytorch_model-{k}.bin" for k, name in enumerate(net.state_dict(), 1)}
    for name, file in where.items():
        torch.save({name: net.state_dict()[name]}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    assert same(read_state(tmp_path), net)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"pip install 'sharpnb\[safetensors\]'"):
        read_state(tmp_path / "net.safetensors")


def test_damage_to_safetensors_is_named(net, tmp_path):
    written(tmp_path, net.state_dict())
    index, file = tmp_path / "model.safetensors.index.json", tmp_path / "model-00002-of-00002.safetensors"
    good = index.read_text()
    for text, words in ((good.replace('"bias"', '"other"'), "other is in"), ("{}", "weight_map"),
                        (good.replace("model-00001", "../model-00001"), "lie beside"), (good[:-9], "weight_map"),
                        (good.replace("model-00001", "model-00003"), "there is no such file")):
        index.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_state(index)
    index.write_text(good)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="model-00002-of-00002"):
        read_state(index)


def test_a_lightning_checkpoint(tmp_path, monkeypatch):
    """As its Trainer writes it: prefixes, the loss beside the network, callbacks, settings in a class of its own."""
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    average = {name: value + 1 for name, value in state.items()}
    torch.save({"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.5.0", "lr_schedulers": [],
                "state_dict": state | {"loss.weight": torch.ones(3)}, "loops": {"fit_loop": {"state_dict": {}}},
                "callbacks": {"EMA": {"ema_state": average}}, "hparams_name": "kwargs",
                "optimizer_states": [torch.optim.SGD(net.parameters()).state_dict()],
                "hyper_parameters": lightning_attributes(monkeypatch)(root=pathlib.Path("/data"), lr=0.1),
                }, tmp_path / "run.ckpt")
    mine = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    assert checkpoints.load(mine, tmp_path / "run.ckpt") == ["1 entries in the file are passed over: loss.weight."]
    assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), net.state_dict().values(), strict=True))


def lightning_attributes(monkeypatch):
    """Return a class that is pickled under the name of Lightning's own."""
    name = "lightning.fabric.utilities.data"
    made = type("AttributeDict", (dict,), {"__module__": name})
    module = types.ModuleType(name)
    module.AttributeDict = made
    for part in ("lightning", "lightning.fabric", "lightning.fabric.utilities"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    return made
