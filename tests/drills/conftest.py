"""A drill of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tally import SEED, TIMES, Drill

torch.set_num_threads(1)  # also without make: threads of OpenMP do not live on in the processes that the drills fork


@pytest.fixture
def drill(request: pytest.FixtureRequest) -> Drill:
    made = request.node.drill = Drill()
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Say with a failure how to have it again."""
    report = yield
    drill = getattr(item, "drill", None)
    if drill and report.failed:
        report.sections.append(("drill", f"try {drill.tried} of SHARPNB_DRILL_SEED={SEED} SHARPNB_DRILL_TIMES={TIMES}"))
    return report
