import pytest
import torch
from torch import nn

from sharpnb.lab import load_data, models, train
from sharpnb.lab.training import SCHEDULES, evaluate, pick_device, shift_and_flip
from sharpnb.optim import SAM

DATA = load_data("digits", train_size=200)


def _flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_training_learns_and_tells_loss_and_error_as_they_are():
    model = models.mlp((64, 16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    history = train(model, DATA, optimizer, steps=150, evaluate_every=50, keep=(0, 150), device="cpu", progress=False)
    assert [row["step"] for row in history.rows] == [50, 100, 150] and history.diverged is None
    logits = model(DATA.test_x)
    last, start = history.rows[-1], models.mlp((64, 16, 10))
    assert last["test_loss"] == pytest.approx(nn.functional.cross_entropy(logits, DATA.test_y).item(), rel=1e-5)
    assert last["test_error"] == pytest.approx(100 * (logits.argmax(1) != DATA.test_y).float().mean().item())
    assert last["train_error"] < 5 < 80 < 100 * (start(DATA.train_x).argmax(1) != DATA.train_y).float().mean()
    assert torch.equal(history.weights[150], _flat(model)) and torch.equal(history.weights[0], _flat(start))
    assert optimizer.param_groups[0]["lr"] == 0.1  # put back after the schedule


def test_evaluation_leaves_modes_and_statistics_alone():
    model = models.cnn(4, norm=True)
    model[1].eval()  # one frozen layer
    before = [b.clone() for b in model.buffers()]
    evaluate(model, DATA.test)
    assert model.training and not model[1].training and model[4].training
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


@pytest.mark.parametrize("net", [lambda: models.mlp((64, 8, 10)), lambda: models.cnn(4, norm=True)])
def test_a_pass_written_for_a_graph_is_the_usual_one(net):
    ends = []
    for graphs in (False, True):
        model = net()
        optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.1, model=model)
        train(model, DATA, optimizer, steps=8, device="cpu", label_smoothing=0.1, progress=False, graphs=graphs)
        ends.append(torch.cat([_flat(model), *(b.flatten().float() for b in model.buffers())]))
    assert torch.equal(*ends) and not torch.equal(ends[0][:10], _flat(net())[:10])


@pytest.mark.parametrize("options", [{}, {"in_place": False}])
def test_graphs_ask_for_a_named_model_and_weights_that_stay_where_they_are(options):
    model = models.cnn(4, norm=True)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model if options else None, **options)
    with pytest.raises(ValueError, match="SAM needs model=model and in_place=True"):
        train(model, DATA, optimizer, steps=1, device="cpu", progress=False, graphs=True)


def test_schedules_are_those_of_the_papers():
    assert SCHEDULES["cosine"](0.0) == 1.0 and SCHEDULES["cosine"](0.5) == pytest.approx(0.5)
    assert [SCHEDULES["step"](x) for x in (0.0, 0.49, 0.5, 0.75)] == pytest.approx([1, 1, 0.1, 0.01])


def test_shift_is_a_translation_with_zeros_and_flip_a_mirror():
    x = torch.arange(2 * 1 * 4 * 4, dtype=torch.float32).view(2, 1, 4, 4) + 1
    padded = nn.functional.pad(x, (1,) * 4)
    windows = [padded[:, :, i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
    generator = torch.Generator().manual_seed(0)
    moved, seen = shift_and_flip(1, flip=True), set()
    # is_contiguous() calls one channel contiguous whatever its strides, which are what a convolution looks at.
    assert moved(x, generator).stride() == x.stride()
    for _ in range(60):
        for k, image in enumerate(moved(x, generator)):
            found = [(w, f) for w, window in enumerate(windows) for f in (0, 1)
                     if torch.equal(image, window[k].flip(-1) if f else window[k])]
            assert found
            seen.update(found)
    assert len(seen) == 18  # each of nine shifts, both ways round


def test_a_device_that_is_not_there_is_told_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(ValueError, match=r"0 CUDA devices.*'cpu'"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="is not a device"):
        pick_device("gpu0")


def test_looking_at_the_loss_now_and_then_finds_the_same_first_step():
    found = []
    for every in (1, 3, 100):
        model = models.mlp((64, 16, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
        history = train(model, DATA, optimizer, steps=50, device="cpu", progress=False, look_every=every)
        found.append((history.diverged, history.rows[-1]["step"]))
    assert found[0][0] is not None and found[0][0] < 10 and found[1:] == found[:-1]


@pytest.mark.parametrize("layout", [False, True])
def test_channels_last_is_another_layout_of_the_images(layout):
    model, seen = models.mlp((128, 6, 10)), set()
    model.register_forward_pre_hook(lambda model, x: seen.add((model.training, x[0].stride(1) == 1)))
    data = DATA.__class__(DATA.name, DATA.train_x.repeat(1, 2, 1, 1), DATA.train_y, DATA.test_x.repeat(1, 2, 1, 1),
                          DATA.test_y, 10)
    train(model, data, torch.optim.SGD(model.parameters(), lr=0.05), steps=2, device="cpu", progress=False,
          channels_last=layout)
    assert (True, layout) in seen and (True, not layout) not in seen
