"""The recipe for networks of torchvision on a folder of images, at the size of a test."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("torchvision", reason="the extra [notebooks] is not installed")

import imagefolder
import imagenet
from studies import finetuning as study

FORK = multiprocessing.get_context("fork")  # a child need not import torch again
# shufflenet is torchvision's smallest network; BatchNorm by batches: random weights have no statistics to freeze
SMALL = imagenet.Protocol(model="shufflenet_v2_x0_5", weights="none", frozen_norm=False, epochs=2, steps=0,
                          batch_size=8,
                          resolution=32)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return study.toy_images(tmp_path_factory.mktemp("images"))  # 18 to train on, 9 to test on


def _model(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)["model"]


def _same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_two_ranks_train_as_one_process_with_two_shards(images, tmp_path):
    alone = replace(SMALL, epochs=1, augment="none")
    fields = ("model", "weights", "epochs", "batch_size", "resolution", "augment")
    options = [f"--{name.replace('_', '-')}={getattr(alone, name)}" for name in fields]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", imagenet.__file__,
               f"--data={images}", f"--out={tmp_path / 'ranks'}", "--no-frozen-norm", "--device=cpu", "--workers=0"]
    done = subprocess.run([*command, *options], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = imagenet.fit(images, replace(alone, shard=4), tmp_path / "shards", device="cpu")
    imagenet.fit(images, alone, tmp_path / "whole", device="cpu")
    ranks, shards, whole = (_model(tmp_path / name) for name in ("ranks", "shards", "whole"))
    weights = [name for name in ranks if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    off = {other: max(float((ranks[n] - model[n]).abs().max()) for n in weights)
           for other, model in (("shards", shards), ("whole", whole))}
    assert off["shards"] < 1e-6 < 1e-4 < off["whole"], off
    assert done.stdout.count("epoch") == 1 and f"train_loss {rows[0]['train_loss']:.4g}" in done.stdout


def test_a_killed_run_goes_on_to_the_same_weights(images, tmp_path):
    p = replace(SMALL, epochs=8)
    process = FORK.Process(target=imagenet.fit, args=(images, p, tmp_path / "killed"), kwargs={"device": "cpu"})
    process.start()
    file, deadline = tmp_path / "killed" / "history.json", time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 0 < len(json.loads(file.read_text())["rows"]) < p.epochs
    stopped = _model(tmp_path / "killed")
    rows = imagenet.fit(images, p, tmp_path / "killed", device="cpu")
    assert rows == imagenet.fit(images, p, tmp_path / "straight", device="cpu")
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert _same(_model(tmp_path / "killed"), _model(tmp_path / "straight"))
    assert not _same(stopped, _model(tmp_path / "straight"))  # the comparison can fail


def test_fine_tuning_keeps_the_statistics_and_the_body_and_draws_a_new_head(images, tmp_path):
    imagenet.fit(images, SMALL, tmp_path / "before", device="cpu")
    tuned = replace(SMALL, weights=str(tmp_path / "before" / "checkpoint.pt"), frozen_norm=True, epochs=1, lr=1e-9)
    imagenet.fit(images, tuned, tmp_path / "after", seed=5, device="cpu")
    before, after = _model(tmp_path / "before"), _model(tmp_path / "after")
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    assert torch.allclose(before["conv1.0.weight"], after["conv1.0.weight"], atol=1e-6)
    assert (before["fc.weight"] - after["fc.weight"]).abs().max() > 1e-3
    imagenet.fit(images, replace(tuned, new_head=False), tmp_path / "kept", seed=5, device="cpu")
    assert torch.allclose(before["fc.weight"], _model(tmp_path / "kept")["fc.weight"], atol=1e-6)


def test_messages_say_what_is_wrong(images, tmp_path, capsys):
    with pytest.raises(ValueError, match="batch_size = 99"):
        imagenet.fit(images, replace(SMALL, batch_size=99), tmp_path)
    with pytest.raises(ValueError, match="whole shards"):
        imagenet.fit(images, replace(SMALL, shard=3), tmp_path)
    with pytest.raises(ValueError, match="give the length"):
        imagenet.Protocol(epochs=3, steps=3)
    with pytest.raises(ValueError, match="neither a file nor published"):
        imagefolder.network("resnet18", "BEST", 3, True, 0)
    assert imagenet.main(["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 2
    assert "nowhere/train" in capsys.readouterr().err
    imagenet.fit(images, replace(SMALL, epochs=1), tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match=r"other settings .*rho = 0.05 there, 0.1 here"):
        imagenet.fit(images, replace(SMALL, epochs=1, rho=0.1), tmp_path / "run", device="cpu")
