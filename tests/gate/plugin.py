"""The notebook gate as a pytest plugin: guards as an item of each notebook, tolerance and environment for nbval's."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from nbval.plugin import IPyNbCell

from gate import guards, tolerance
from sharpnb.runner.surroundings import ALLOCATOR, THREADS, without_profile

# What a kernel finds under the gate, beside what every kernel of ours finds: one thread, no GPU, no bars on standard
# error, and results compared with the committed ones instead of written.
KERNEL = {
    **dict.fromkeys(THREADS, "1"), "CUDA_VISIBLE_DEVICES": "", **ALLOCATOR, "TQDM_DISABLE": "1",
    "SHARPNB_CHECK": "1",
}


class GuardFile(pytest.File):
    """A notebook as far as it can be judged without a kernel."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield the one item."""
        yield GuardItem.from_parent(self, name="guards")


class GuardItem(pytest.Item):
    """All guards over one notebook; the report lists every problem at once."""

    def runtest(self) -> None:
        """Collect the problems and fail on any."""
        if found := guards.problems(self.path):
            pytest.fail("\n".join([f"{self.path.name}:", *found]), pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Name the item in reports."""
        return self.path, None, f"{self.path.name}::guards"


def pytest_configure(config: pytest.Config) -> None:
    """With ``-n``, keep the cells of a notebook together: they share a kernel."""
    if getattr(config.option, "dist", "no") in ("load", "worksteal"):
        config.option.dist = "loadfile"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Keep a user's profile out of the unit tests too, before one imports matplotlib, and of what they start."""
    around = without_profile(os.environ, session.config.rootpath) | {"MPLBACKEND": "agg"}
    for name in os.environ.keys() - around.keys():
        del os.environ[name]
    os.environ.update(around)
    if hasattr(time, "tzset"):  # not on Windows
        time.tzset()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect the guards of every notebook, beside nbval's own collection of its cells."""
    return GuardFile.from_parent(parent, path=file_path) if file_path.suffix == ".ipynb" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give nbval's cells the tolerance that their tags state."""
    for item in items:
        with suppress(ValueError):  # compared exactly; the guards report the tag
            if isinstance(item, IPyNbCell) and (stated := tolerance.of_tags(guards.tags(item.cell))):
                item.sanitize = tolerance.tolerant(item.sanitize, *stated)  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Set the kernels' environment while a notebook's cells run; unit tests must not see it."""
    if not isinstance(item, IPyNbCell):
        return (yield)
    root = item.config.rootpath
    place = {"SHARPNB_ROOT": str(root)}
    if (root / "sharpnb" / "__init__.py").exists():  # a copy of the checkout is judged by its own sources
        place["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    with mock.patch.dict(os.environ, without_profile(os.environ, root) | KERNEL | place, clear=True):
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Pass over what follows a cell that raised: its failures would only hide the first."""
    if isinstance(item, IPyNbCell) and getattr(item.parent, "raised", None):
        pytest.skip(f"{item.parent.raised} raised an exception")  # type: ignore[union-attr]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """Remember the first cell of a notebook that raised (one whose output differs does not stop the others)."""
    report = yield
    differs = call.excinfo is not None and "outputs differ" in str(call.excinfo.value)
    if isinstance(item, IPyNbCell) and report.failed and not differs:
        item.parent.raised = item.name  # type: ignore[union-attr]
    return report
