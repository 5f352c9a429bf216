import copy

import pytest
from toy import code, markdown, notebook

from sharpnb.runner import stored

CLEAN = notebook(markdown("# A", "h"), code("print(1)", "a", output="1\n"), code("2", "b"))


def executed() -> dict:
    """Make the same notebook as papermill would leave it."""
    result = copy.deepcopy(CLEAN)
    info = {"name": "python", "version": "3.11.7"}
    kernel = {"name": "my-env", "display_name": "mine"}
    result["metadata"] |= {"papermill": {"duration": 1.5}, "widgets": {}, "language_info": info, "kernelspec": kernel}
    injected = {**code("seed = 1", "random"), "metadata": {"tags": ["injected-parameters"]}, "execution_count": 1}
    result["cells"].insert(1, injected)
    for number, cell in enumerate(result["cells"]):
        cell["metadata"]["papermill"] = {"start_time": "now"}
        if cell["cell_type"] == "code":
            cell["metadata"]["execution"] = {}
            cell["execution_count"] = number + 4
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "random"}, "text/plain": "Box()"}
    result["cells"][2]["outputs"] = [
        {"output_type": "stream", "name": "stdout", "text": "1"},
        {"output_type": "stream", "name": "stdout", "text": ["\n"]},
        {"output_type": "display_data", "data": widget, "metadata": {}},
    ]
    return result


def test_what_differs_between_equal_runs_is_gone():
    expected = copy.deepcopy(CLEAN)
    before = executed()
    keep = copy.deepcopy(before)
    assert stored.normalised(before) == expected
    assert before == keep


def test_outputs_are_put_back_by_id_and_the_text_around_them_stays():
    source = copy.deepcopy(CLEAN)
    source["cells"][0]["source"] = "# Edited while it ran"
    source["cells"][1] |= {"outputs": [], "source": ["pri", "nt(1)"]}
    result = stored.with_outputs(source, executed())
    assert result["cells"][0]["source"] == "# Edited while it ran"
    assert result["cells"][1]["outputs"] == [{"output_type": "stream", "name": "stdout", "text": "1\n"}]
    assert [cell["id"] for cell in result["cells"]] == ["h", "a", "b"]


@pytest.mark.parametrize(("edit", "which"), [
    (lambda cells: cells[2].update(source="3"), "cells b"), (lambda cells: cells[2].update(id="new"), "cells b, new"),
    (lambda cells: cells.append(cells.pop(1)), "the order of the cells")])
def test_outputs_of_other_code_are_not_put_back(edit, which):
    source = copy.deepcopy(CLEAN)
    edit(source["cells"])
    with pytest.raises(ValueError, match=rf"edited while it ran \({which}\)"):
        stored.with_outputs(source, executed())
