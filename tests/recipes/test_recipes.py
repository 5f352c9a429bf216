"""The recipes for other people's loops, held against a plain loop; ``make test-recipes`` installs what they need."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from sharpnb.optim import SAM

ROOT = Path(__file__).parents[2]
STEPS = 6


def _recipe(name):
    pytest.importorskip({"lightning_sam": "lightning", "huggingface_sam": "transformers",
                         "accelerate_sam": "accelerate"}[name])
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def _without_norm():
    """Processes with a part of the batch each do not normalise as one with all of it does."""
    model = _model()
    model[1] = nn.Identity()
    return model


def _data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8 * STEPS, 5, generator=generator), torch.randint(0, 3, (8 * STEPS,), generator=generator)


def _by_hand(rho, accumulate=1, clip=None, model=None):
    """Train with SGD on the mean of ``accumulate`` micro-batches' gradients, each at its own weights."""
    model, (xs, ys) = model or _model(), _data()
    params = list(model.parameters())
    sgd = torch.optim.SGD(params, lr=0.1, momentum=0.9)

    def gradient(x, y):
        return torch.autograd.grad(nn.functional.cross_entropy(model(x), y), params)

    def at_perturbed(x, y):
        kept = [w.detach().clone() for w in params]
        first = gradient(x, y)
        norm, buffers = torch.cat([g.flatten() for g in first]).norm(), [b.clone() for b in model.buffers()]
        with torch.no_grad():
            for w, g in zip(params, first, strict=True):
                w += rho * g / norm
        second = gradient(x, y)
        with torch.no_grad():
            for t, before in zip([*params, *model.buffers()], [*kept, *buffers], strict=True):
                t.copy_(before)
        return second

    batches = list(zip(xs.split(8), ys.split(8), strict=True))
    for start in range(0, STEPS, accumulate):
        found = [at_perturbed(x, y) for x, y in batches[start:start + accumulate]]
        for w, gradients in zip(params, zip(*found, strict=True), strict=True):
            w.grad = sum(gradients) / len(gradients)
        if clip:
            nn.utils.clip_grad_norm_(params, clip)
        sgd.step()
    return list(model.state_dict().values())


def _same(ours, other):
    return all(torch.allclose(a.float(), b.float(), atol=1e-6) for a, b in zip(ours, other, strict=True))


def test_the_reference_depends_on_the_radius_and_on_what_is_accumulated():
    assert not _same(_by_hand(0.5), _by_hand(0.0))
    assert not _same(_by_hand(0.5, accumulate=2), _by_hand(0.5))


def _loader():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*_data()), batch_size=8)


def _lightning(module, folder, checkpoint=None, epochs=1, loader=None, **options):
    import lightning

    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
                                enable_model_summary=False, default_root_dir=folder, **options)
    trainer.fit(module, loader or _loader(), ckpt_path=checkpoint)
    return trainer, list(module.model.state_dict().values())


def _classifier(name="Classifier", **options):
    return getattr(_recipe("lightning_sam"), name)(_model(), lr=0.1, rho=0.5, **options)


def test_lightning_trains_as_the_plain_loop_does(tmp_path):
    assert _same(_lightning(_classifier(), tmp_path)[1], _by_hand(0.5))


def test_lightning_resumes_with_the_base_optimizers_momentum(tmp_path):
    _lightning(_classifier(), tmp_path / "first")[0].save_checkpoint(tmp_path / "first.ckpt")
    whole = _lightning(_classifier(), tmp_path / "whole", epochs=2)[1]
    assert _same(_lightning(_classifier(), tmp_path / "second", tmp_path / "first.ckpt", epochs=2)[1], whole)


@pytest.mark.parametrize("accumulate", [1, 2, 4])  # the last four of six batches are two
def test_lightning_accumulates_as_the_plain_loop_does(tmp_path, accumulate):
    trainer, found = _lightning(_classifier("AccumulatingClassifier", accumulate=accumulate), tmp_path)
    assert _same(found, _by_hand(0.5, accumulate))
    assert trainer.global_step == -(-STEPS // accumulate)


class _Share(torch.utils.data.Sampler):
    """Every second row, begun at the number of the process: batches of 4 in two processes are those of 8 in one."""

    def __iter__(self):
        return iter(range(torch.distributed.get_rank(), 8 * STEPS, 2))

    def __len__(self):
        return 4 * STEPS


@pytest.mark.parametrize("name", ["Classifier", "AccumulatingClassifier"])
def test_two_processes_of_lightning_perturb_on_their_mean_gradient(tmp_path, name):
    module = _classifier(name)
    module.model = _without_norm()
    share = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*_data()), batch_size=4, sampler=_Share())
    _lightning(module, tmp_path, loader=share, strategy="ddp_fork", devices=2, use_distributed_sampler=False)
    assert _same(module.model.parameters(), _by_hand(0.5, getattr(module, "accumulate", 1), model=_without_norm()))


def _half_precision():
    """What ``precision="16-mixed"`` means on a GPU: Lightning offers it on none but those."""
    from lightning.pytorch.plugins.precision import MixedPrecision

    return [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]


def test_lightning_accumulates_under_a_loss_scale(tmp_path):
    module = _classifier("AccumulatingClassifier", accumulate=2)
    found = _lightning(module, tmp_path, plugins=_half_precision())[1]
    gaps = [float((a - b).abs().max()) for a, b in zip(found, _by_hand(0.5, 2), strict=True)]
    assert 0 < max(gaps) < 2e-2, gaps  # half precision has three digits; the scale is 65536


@pytest.mark.parametrize(("settings", "message"), [
    (lambda: {"accumulate_grad_batches": 2}, r"recipes/lightning_sam.py"),
    (lambda: {"plugins": _half_precision()}, r"step\(\) without a closure"),
])
def test_what_lightning_hides_from_sam_is_refused_at_the_first_step(tmp_path, settings, message):
    module = _classifier()
    before = [w.detach().clone() for w in module.model.parameters()]
    with pytest.raises(RuntimeError, match=message):
        _lightning(module, tmp_path, **settings())
    assert module.trainer.global_step == 0
    assert _same(module.model.parameters(), before)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("scaled", [False, True])
def test_accelerate_trains_as_the_plain_loop_does(accumulate, scaled):
    recipe = _recipe("accelerate_sam")
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), _model()
    if scaled:  # as mixed_precision="fp16" has it, on a GPU
        accelerator.scaler = torch.amp.GradScaler("cpu")
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5)
    model, optimizer, loader = accelerator.prepare(model, sam, _loader())
    losses = recipe.train_epoch(accelerator, model, optimizer, loader, nn.functional.cross_entropy, accumulate)
    assert _same(model.state_dict().values(), _by_hand(0.5, accumulate))
    assert len(losses) == -(-STEPS // accumulate)


def _accelerated(recipe, folder):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)  # what the fork brought along
    accelerator, model = Accelerator(cpu=True), _without_norm()
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5)
    share = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*_data()), batch_size=4, sampler=_Share())
    prepared, optimizer = accelerator.prepare(model, sam)
    recipe.train_epoch(accelerator, prepared, optimizer, share, nn.functional.cross_entropy, accumulate=2)
    if accelerator.is_main_process:
        torch.save(list(model.parameters()), folder / "end.pt")
    accelerator.end_training()


def test_two_processes_of_accelerate_perturb_on_their_mean_gradient(tmp_path):
    recipe = _recipe("accelerate_sam")
    from accelerate import debug_launcher

    debug_launcher(_accelerated, (recipe, tmp_path), num_processes=2)
    assert _same(torch.load(tmp_path / "end.pt"), _by_hand(0.5, 2, model=_without_norm()))


class _Loss(nn.Module):
    """What the Trainer asks of a model: a mapping with the loss."""

    def __init__(self):
        super().__init__()
        self.model = _model()

    def forward(self, x, labels):
        return {"loss": nn.functional.cross_entropy(self.model(x), labels)}


def _trainer(recipe, tmp_path, model, **arguments):
    import transformers

    xs, ys = _data()
    rows = [{"x": x, "labels": y} for x, y in zip(xs, ys, strict=True)]

    class InOrder(recipe.SAMTrainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(rows)

    options = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=8, num_train_epochs=1, learning_rate=0.1, optim="sgd",
        optim_args="momentum=0.9", lr_scheduler_type="constant", max_grad_norm=0.2, report_to=[], use_cpu=True,
        disable_tqdm=True, **{"save_strategy": "no", **arguments})
    return InOrder(model=model, args=options, train_dataset=rows, rho=0.5)


def test_hugging_faces_trainer_trains_as_the_plain_loop_does(tmp_path):
    recipe, model = _recipe("huggingface_sam"), _Loss()
    trainer = _trainer(recipe, tmp_path, model)
    trainer.optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5)
    trainer.train()
    assert _same(list(model.model.state_dict().values()), _by_hand(0.5, clip=0.2))


def test_hugging_faces_trainer_resumes_with_the_base_optimizers_momentum(tmp_path):
    recipe, stopped, resumed = _recipe("huggingface_sam"), _Loss(), _Loss()
    import transformers

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_save = control.should_training_stop = state.global_step == 3

    first = _trainer(recipe, tmp_path, stopped, save_strategy="steps", save_steps=99)
    first.add_callback(Stop())
    first.train()
    second = _trainer(recipe, tmp_path, resumed)
    second.train(resume_from_checkpoint=True)
    assert (first.state.global_step, second.state.global_step) == (3, STEPS)
    assert _same(resumed.model.state_dict().values(), _by_hand(0.5, clip=0.2))
    assert not _same(stopped.model.state_dict().values(), _by_hand(0.5, clip=0.2))


def test_hugging_faces_trainer_wraps_the_optimizer_that_its_arguments_name(tmp_path):
    recipe = _recipe("huggingface_sam")
    optimizer = _trainer(recipe, tmp_path, _Loss()).create_optimizer()
    assert isinstance(optimizer, SAM) and isinstance(optimizer.base_optimizer, torch.optim.SGD)
    with pytest.raises(ValueError, match="gradient_accumulation_steps = 2"):
        _trainer(recipe, tmp_path, _Loss(), gradient_accumulation_steps=2)
