from types import SimpleNamespace

import pytest
from gate import plugin


@pytest.mark.parametrize(("asked", "used"), [
    ("load", "loadfile"), ("worksteal", "loadfile"), ("loadscope", "loadscope"), (None, None)])
def test_the_cells_of_a_notebook_stay_on_one_worker(asked, used):
    config = SimpleNamespace(option=SimpleNamespace(**({"dist": asked} if asked else {})))
    plugin.pytest_configure(config)
    assert getattr(config.option, "dist", None) == used
