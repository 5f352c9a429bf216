"""How worker processes are started."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from sharpnb.processes import worker_context

pytestmark = pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="there is no such server")


def has_torch() -> bool:
    return "torch" in sys.modules


def test_a_worker_starts_with_torch_in_it():
    with ProcessPoolExecutor(1, mp_context=worker_context()) as pool:
        assert pool.submit(has_torch).result(60)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert not pool.submit(has_torch).result(60)  # nothing else that it unpickles brings torch


def test_a_fork_of_a_process_that_has_a_server_spawns():
    assert worker_context().get_start_method() == "forkserver"
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    child = fork.Process(target=lambda: queue.put(worker_context().get_start_method()))
    child.start()
    child.join(60)
    assert queue.get() == "spawn"
