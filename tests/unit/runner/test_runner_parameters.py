from pathlib import Path

import pytest
from toy import code, notebook

from sharpnb.runner.catalogue import Notebook, Parameter, RunnerError, parameters_in

CELL = '''"""What a reader may set."""
profile: str = "quick"  # quick | full
device: str = "auto"  # auto | cpu | cuda; where to train
seed: int = 0
rho: float = 1  # the radius | not a choice
nesterov: bool = False
gammas = [0.5, 0.9]
'''
TOY = Notebook(Path("07_toy.ipynb"), notebook(code(CELL, "p", ("parameters",))))
KNOWN = TOY.parameters


def values(**given):
    return TOY.values(given, "quick")


def test_every_line_is_read_with_type_default_and_choices():
    assert list(KNOWN) == ["profile", "device", "seed", "rho", "nesterov", "gammas"]
    assert KNOWN["device"].choices == ("auto", "cpu", "cuda")
    assert KNOWN["rho"] == Parameter("rho", 1, float)
    assert KNOWN["gammas"].type is list


def test_text_of_the_command_line_becomes_the_parameters_type():
    given = values(seed="3", rho="0.1", nesterov="TRUE", gammas="[0.1]", device="cuda:1")
    assert given == {"profile": "quick", "device": "cuda:1", "seed": 3, "rho": 0.1, "nesterov": True, "gammas": [0.1]}


def test_an_integer_is_a_float_but_a_truth_value_is_no_integer():
    assert repr(values(rho=2)["rho"]) == "2.0"
    with pytest.raises(RunnerError, match=r"seed = True: this parameter is of type int \(default 0\)"):
        values(seed=True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("seed", "1.5", "seed = 1.5: this parameter is of type int"),
        ("seed", "one", "seed = 'one'"),
        ("nesterov", "perhaps", "of type bool"),
        ("device", "gpu", "one of auto, cpu, cuda"),
        ("gammas", "(0.1,)", "of type list"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_does(name, text, message):
    with pytest.raises(RunnerError, match=message.replace("(", r"\(")):
        values(**{name: text})


def test_an_unknown_name_is_refused_with_the_nearest_and_all_allowed():
    with pytest.raises(RunnerError) as refused:
        values(sede=1)
    assert "07_toy has no parameter 'sede'. Did you mean 'seed'? It has: profile, device, seed," in str(refused.value)


def test_two_different_profiles_are_refused():
    with pytest.raises(RunnerError, match="contradicts --profile quick"):
        values(profile="full")


@pytest.mark.parametrize("line", ["rho = 0.05 * 2", "import os", "a = b = 1", "a, b = 1, 2", "seed: int"])
def test_anything_but_a_literal_in_the_cell_is_refused(line):
    with pytest.raises(RunnerError, match="plain literals only, not: "):
        parameters_in(f"seed: int = 0\n{line}", "07_toy")


def test_a_cell_that_is_no_python_is_refused_with_its_line():
    with pytest.raises(RunnerError, match="line 2"):
        parameters_in("seed: int = 0\nrho: = 1", "07_toy")
