"""Names that differ by wrappers: the weights are the file's, or the message says what to do."""

import copy

import pytest
import torch
from torch import nn

from sharpnb import checkpoints
from sharpnb.checkpoints import Ambiguous, fit

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleDict({"features": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), "head": nn.Linear(2, 3)})


def same(mine, theirs):
    return all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True))


def with_part(name, wrap):
    made = net(1)
    made[name] = wrap(made[name])
    return made


def compiled(module):
    return torch.compile(module, backend="eager")


WRAPPED = {
    "nothing": lambda: net(1),
    "compile": lambda: compiled(net(1)),
    "DataParallel of compile": lambda: nn.DataParallel(compiled(net(1))),
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(net(1)),
    "a part in DataParallel": lambda: with_part("features", nn.DataParallel),
    "the last part in both": lambda: with_part("head", lambda part: nn.DataParallel(compiled(part))),
    "in an attribute": lambda: nn.ModuleDict({"model": net(1)}),
    "two attributes down": lambda: nn.ModuleDict({"system": nn.ModuleDict({"net": nn.DataParallel(net(1))})}),
}


@pytest.mark.parametrize("mine", ["nothing", "compile", "a part in DataParallel", "in an attribute"])
@pytest.mark.parametrize("theirs", WRAPPED)
def test_wrappers_on_either_side(theirs, mine):
    there, here = WRAPPED[theirs](), WRAPPED[mine]()
    with torch.no_grad():
        for p in here.parameters():
            p.zero_()
    fit(here, there.state_dict())
    left, right = ([t for name, t in model.state_dict().items() if "n_averaged" not in name] for model in (here, there))
    assert len(left) == len(right) == 9 and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("part", ["_fsdp_wrapped_module._fpw_module", "_forward_module.module",
                                  "_fsdp_wrapped_module._checkpoint_wrapped_module"])
@pytest.mark.parametrize("where", ["", "features.1.", "head."])
def test_names_of_fsdp_activation_checkpointing_and_fabric(part, where):
    theirs, mine = net(1), net(2)
    state = {name.replace(where, f"{where}{part}.", 1) if name.startswith(where) else name: t
             for name, t in theirs.state_dict().items()}
    assert fit(mine, state) == [] and same(mine, theirs)


def test_a_network_whose_own_parts_have_such_names():
    """``module`` and ``model`` are names that people give too."""
    def own():
        return nn.ModuleDict({"module": nn.Linear(2, 2), "model": nn.ModuleDict({"module": nn.Linear(2, 2)})})

    theirs, mine = own(), own()
    assert fit(mine, theirs.state_dict()) == [] and same(mine, theirs)
    assert fit(mine, nn.DataParallel(own()).state_dict()) == []


# ---- Which network --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("one", "two"), [("student.", "teacher."), ("module.encoder_q.", "module.encoder_k.")])
def test_of_two_towers_none_is_chosen_and_each_can_be_named(one, two, tmp_path):
    first, second, mine = net(1), net(2), net(3)
    towers = ((one, first), (two, second))
    state = {f"{who}{name}": t for who, tower in towers for name, t in tower.state_dict().items()}
    keys = [who.rstrip(".") for who in (one, two)]
    with pytest.raises(Ambiguous):
        fit(mine, state)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "run.pt")
    before = copy.deepcopy(mine)
    with pytest.raises(Ambiguous) as error:
        checkpoints.load(mine, tmp_path / "run.pt")
    shown = [word.split(",")[0].rstrip(".") for word in str(error.value).split("--key ")[1:]]
    assert same(mine, before)
    assert [key.removeprefix("state_dict.") for key in shown] == [key.removeprefix("module.") for key in keys]
    names = [*shown, *(f"state_dict.{key}" for key in keys)]
    for named, tower in zip(names, (first, second) * 2, strict=True):
        checkpoints.load(mine, tmp_path / "run.pt", named)
        assert same(mine, tower)


def test_towers_that_are_the_same_or_of_another_shape_leave_no_choice():
    theirs, mine = nn.Linear(4, 3), nn.Linear(4, 3)
    state = theirs.state_dict()
    twice = {f"{who}.{name}": t.clone() for who in ("student", "teacher") for name, t in state.items()}
    assert fit(mine, twice)[0] == "The weights are those below 'student'." and same(mine, theirs)
    mine = nn.Linear(4, 3)
    layers = {f"fc1.{name}": t for name, t in nn.Linear(4, 5).state_dict().items()}
    assert fit(mine, layers | {f"fc2.{name}": t for name, t in state.items()}) == [
        "The weights are those below 'fc2'.", "2 entries in the file are passed over: fc1.weight, fc1.bias."]
    assert same(mine, theirs)


@pytest.mark.parametrize("who", ["ema", "module"])
def test_a_tower_without_a_prefix_is_not_chosen_in_silence_either(tmp_path, who):
    theirs, mine = net(1), net(2)
    state = {**theirs.state_dict(), **{f"{who}.{name}": t + 1 for name, t in theirs.state_dict().items()}}
    with pytest.raises(ValueError, match=rf"9 entries are not in the model: {who}\.feat.*'{who}\.\*'.*'{who}\.' too"):
        fit(mine, state)
    assert fit(mine, state, allow_unexpected=[f"{who}.*"]) and same(mine, theirs)
    torch.save(state, tmp_path / "run.pt")
    checkpoints.load(mine, tmp_path / "run.pt", who)
    assert torch.equal(mine["head"].weight, theirs["head"].weight + 1)


def test_of_several_state_dicts_the_one_that_fits(tmp_path):
    theirs, mine = net(1), net(2)
    torch.save({"generator": theirs.state_dict(), "discriminator": nn.Linear(9, 1).state_dict()}, tmp_path / "gan.pt")
    assert checkpoints.load(mine, tmp_path / "gan.pt") == [
        "The weights are those in 'generator'; 'discriminator' fit another network."]
    assert same(mine, theirs)
    torch.save({"a": nn.Linear(8, 2).state_dict(), "b": nn.Linear(9, 1).state_dict()}, tmp_path / "other.pt")
    with pytest.raises(Ambiguous, match="--key a, --key b"):
        checkpoints.load(mine, tmp_path / "other.pt")


# ---- What is missing, unexpected, or more than tensors --------------------------------------------------------------


def test_missing_and_unexpected_say_what_the_options_would_do():
    theirs, mine = net(1), net(2)
    state = theirs.state_dict()
    del state["head.bias"]
    state.update({"aux.weight": torch.ones(2), "aux.bias": torch.ones(3)})
    with pytest.raises(ValueError) as error:
        fit(mine, state, "run.pt")
    assert str(error.value) == (
        "run.pt does not fit the model: 1 entries are missing in the file: head.bias; 2 entries are not in the model: "
        "aux.weight, aux.bias. --allow-missing 'head.bias' leaves them as the model was built. "
        "--allow-unexpected 'aux.*' passes over them.")
    bias = mine["head"].bias.clone()
    assert fit(mine, state, allow_missing=["head.bias"], allow_unexpected=["aux.*"]) == [
        "1 entries stay as the model was built: head.bias.",
        "2 entries in the file are passed over: aux.weight, aux.bias."]
    assert torch.equal(mine["head"].weight, theirs["head"].weight) and torch.equal(mine["head"].bias, bias)


def test_another_shape_is_named_and_can_be_left_out():
    theirs, mine = net(1), net(2)
    theirs["head"] = nn.Linear(2, 7)
    words = r"head.weight is \(7, 2\) in the file and \(3, 2\) .*--allow-unexpected 'head\.\*' --allow-missing 'head"
    with pytest.raises(ValueError, match=words):
        fit(mine, theirs.state_dict())
    head = mine["head"].weight.clone()
    fit(mine, theirs.state_dict(), allow_unexpected=["head.*"], allow_missing=["head.*"])
    assert torch.equal(mine["head"].weight, head)
    assert torch.equal(mine["features"][0].weight, theirs["features"][0].weight)


class Scaled(nn.Linear):
    seen = None

    def get_extra_state(self):
        return {"amax": 1.5}

    def set_extra_state(self, state):
        self.seen = state


def test_extra_state_goes_where_there_is_a_place_for_it():
    theirs, mine = nn.Sequential(Scaled(4, 3)), nn.Sequential(Scaled(4, 3))
    assert fit(mine, theirs.state_dict()) == [] and mine[0].seen == {"amax": 1.5}
    wrapped = nn.Sequential(Scaled(4, 3))
    fit(wrapped, nn.DataParallel(theirs).state_dict())
    assert wrapped[0].seen == {"amax": 1.5}
    without = nn.Sequential(nn.Linear(4, 3))
    assert fit(without, theirs.state_dict()) == ["1 entries in the file are passed over: 0._extra_state."]
    with pytest.raises(ValueError, match=r"--allow-missing '0\._extra_state'"):
        fit(mine, without.state_dict())


def test_a_profilers_and_an_averages_counters_are_passed_over():
    theirs, mine = net(1), net(2)
    state = {**theirs.state_dict(), "n_averaged": torch.tensor(3), "embed.position_ids": torch.arange(5)}
    for name in ("", "features.", "features.0.", "head."):
        state.update({f"{name}total_ops": torch.zeros(1), f"{name}total_params": torch.zeros(1)})
    (note,) = fit(mine, state)
    assert "10 entries in the file are passed over: n_averaged" in note and same(mine, theirs)


class Tied(nn.Module):
    def __init__(self, seed=0, entry=True):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(5, 3)
        if entry:
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight


def test_a_tied_head_needs_one_of_its_two_entries():
    theirs, mine = Tied(1), Tied(2)
    for left_out in ("head.weight", "embed.weight"):  # safetensors keep one of the two
        fit(mine, {name: t for name, t in theirs.state_dict().items() if name != left_out})
        assert torch.equal(mine.embed.weight, theirs.embed.weight) and mine.head.weight is mine.embed.weight
    bare = Tied(3, entry=False)
    assert fit(bare, theirs.state_dict()) == ["1 entries in the file are passed over: head.weight."]
    assert torch.equal(bare.embed.weight, theirs.embed.weight)
    untied = {**theirs.state_dict(), "head.weight": torch.ones(5, 3)}
    with pytest.raises(ValueError, match=r"embed.weight and head.weight are one tensor in the model, and two that"):
        fit(mine, untied)
    with pytest.raises(ValueError, match=r"1 entries are not in the model: head.weight"):
        fit(bare, untied)


def test_weights_without_values_or_shapes_are_replaced_and_stay_tied():
    theirs = Tied(1)
    with torch.device("meta"):
        mine = Tied()
    fit(mine, theirs.state_dict())
    assert torch.equal(mine.embed.weight, theirs.embed.weight) and mine.head.weight is mine.embed.weight
    assert len(list(mine.parameters())) == 1 and mine.embed.weight.requires_grad
    theirs, mine = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.LazyLinear(3))
    fit(mine, nn.DataParallel(theirs).state_dict())
    assert torch.equal(mine[0].weight, theirs[0].weight)


def test_older_files_are_converted_by_the_models_own_hooks():
    """Weight normalisation changed its names, and BatchNorm got a counter: PyTorch knows, by hooks."""
    old = nn.utils.weight_norm(nn.Linear(4, 3))
    for state in (old.state_dict(), nn.DataParallel(old).state_dict(),
                  {f"net.{name}": t for name, t in old.state_dict().items()}):
        mine = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
        fit(mine, state)
        assert torch.allclose(mine.weight, old.weight) and torch.equal(mine.bias, old.bias)
    theirs, mine = net(1), net(2)
    state = {name: t for name, t in theirs.state_dict().items() if "num_batches" not in name}
    assert fit(mine, state) == [] and same(mine, theirs)


def test_the_versions_of_modules_reach_their_hooks():
    class Versioned(nn.Linear):
        _version = 7
        met = None

        def _load_from_state_dict(self, state, prefix, metadata, *rest):
            self.met = metadata.get("version")
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    for wrap in (nn.DataParallel, lambda part: nn.ModuleDict({"model": compiled(part)}), lambda part: part):
        theirs, mine = nn.Sequential(Versioned(4, 3)), nn.Sequential(Versioned(4, 3))
        fit(mine, wrap(theirs).state_dict())
        assert mine[0].met == 7
