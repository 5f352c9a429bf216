"""SWAP: the phases one by one, and the same bits wherever the workers run."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
import swap_work as work
import torch
import torch.multiprocessing
from torch import nn

from sharpnb.averaging import swap, update_bn


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_the_phases_one_by_one():
    model, result = work.run()
    by_hand, accuracies = work.net(), []
    while not accuracies or accuracies[-1] < 0.75:
        accuracies.append(work.large(by_hand, len(accuracies)))
    assert result.accuracies == accuracies and result.reached and 1 < len(accuracies) < 30
    assert torch.equal(result.start, nn.utils.parameters_to_vector(by_hand.parameters()))
    ends = []
    for worker in range(3):
        one = work.net()
        one.load_state_dict(by_hand.state_dict())
        torch.manual_seed(7 + worker)
        work.small(one, worker)
        ends.append(nn.utils.parameters_to_vector(one.parameters()).detach())
    assert torch.equal(result.workers, torch.stack(ends))
    assert (ends[0] - ends[1]).norm() > 1e-2
    nn.utils.vector_to_parameters(torch.stack(ends).mean(0), by_hand.parameters())
    update_bn(by_hand, work.X.split(20))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, by_hand.state_dict()[name], rtol=1e-12, atol=1e-14)


def test_two_processes_give_the_same_bits():
    before = torch.get_rng_state()
    alone, ours = work.run()
    assert torch.equal(torch.get_rng_state(), before)  # the caller's
    spread, theirs = work.run(processes=2)
    assert torch.equal(ours.workers, theirs.workers) and same(alone.state_dict(), spread.state_dict())
    other, _ = work.run(seed=8)
    assert not same(alone.state_dict(), other.state_dict())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def two_ranks(target, folder) -> list:
    port = free_port()
    ranks = torch.multiprocessing.get_context("fork")  # they need not import torch again
    both = [ranks.Process(target=target, args=(number, 2, port, str(folder))) for number in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


def test_a_launch_by_torchrun_gives_the_same_bits(tmp_path):
    """``torchrun`` is this module's command; its own folder for the ranks' output would otherwise stay behind."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
               "--master-port", str(free_port()), "--log-dir", str(tmp_path), work.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    alone, ours = work.run()
    other, _ = work.run(seed=8)
    for number in range(2):
        state, workers, accuracies = torch.load(tmp_path / f"{number}.pt")
        assert torch.equal(workers, ours.workers) and accuracies == ours.accuracies
        assert same(alone.state_dict(), state) and not same(other.state_dict(), state)


def test_a_data_parallel_phase_one_is_the_whole_batch_on_one_process(tmp_path):
    alone = work.plain()
    ours = swap(alone, work.cleared, work.small, [work.X], tau=0.8, max_epochs=30, workers=3, seed=7)
    assert 1 < len(ours.accuracies) < 30 and ours.reached
    for state, workers, accuracies in two_ranks(work.parallel_rank, tmp_path):
        assert accuracies == pytest.approx(ours.accuracies, abs=1e-12)
        # two halves are added in another order
        torch.testing.assert_close(workers, ours.workers, rtol=1e-9, atol=1e-11)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11)


def test_a_wrapped_model_is_refused():
    class Wrapped(nn.parallel.DistributedDataParallel):
        def __init__(self):
            nn.Module.__init__(self)

    with pytest.raises(ValueError, match="wrap it inside large"):
        swap(Wrapped(), work.large, work.small, [work.X], tau=0.9, max_epochs=2)


@pytest.mark.parametrize("options, said", [
    ({"tau": 95.0}, "tau = 95.0"), ({"max_epochs": 0}, "max_epochs = 0"), ({"workers": 0}, "workers = 0"),
    ({"processes": 2, "small": lambda model, worker: None}, "cannot be sent"),
])
def test_misuse_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        work.run(**options)
    with pytest.raises(ValueError, match="not percent"):
        swap(work.net(), lambda model, epoch: 97.0, work.small, [work.X], tau=0.9, max_epochs=2)
