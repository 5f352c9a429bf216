from types import SimpleNamespace

import pytest
from gate import plugin


@pytest.mark.parametrize(("asked", "used"), [("load", "loadfile"), ("worksteal", "loadfile"), ("loadscope", "loadscope"),
                                             ("no", "no")])
def test_the_cells_of_a_notebook_stay_on_one_worker(asked, used):
    config = SimpleNamespace(option=SimpleNamespace(dist=asked))
    plugin.pytest_configure(config)
    assert config.option.dist == used


def test_without_xdist_nothing_is_set():
    config = SimpleNamespace(option=SimpleNamespace())
    plugin.pytest_configure(config)
    assert vars(config.option) == {}
