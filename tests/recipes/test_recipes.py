"""The recipes for other people's training loops, held against a plain loop; ``make test-recipes`` installs what they need."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from sharpnb.optim import SAM

ROOT = Path(__file__).parents[2]
STEPS = 6


def _recipe(name):
    pytest.importorskip({"lightning_sam": "lightning", "huggingface_sam": "transformers"}[name])
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def _data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8 * STEPS, 5, generator=generator), torch.randint(0, 3, (8 * STEPS,), generator=generator)


def _plain(rho, clip=None):
    """Train with SAM's own halves of a step; return all tensors of the model."""
    model, (xs, ys) = _model(), _data()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=rho)

    def back(x, y):
        nn.functional.cross_entropy(model(x), y).backward()

    for x, y in zip(xs.split(8), ys.split(8), strict=True):
        back(x, y)
        optimizer.first_step(zero_grad=True)
        back(x, y)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.second_step(zero_grad=True)
    return list(model.state_dict().values())


def _same(ours, other):
    return all(torch.allclose(a.float(), b.float(), atol=1e-6) for a, b in zip(ours, other, strict=True))


def test_the_reference_depends_on_the_radius():
    assert not _same(_plain(0.5), _plain(0.0))


def _lightning(recipe, folder, epochs, checkpoint=None):
    import lightning

    module = recipe.Classifier(_model(), lr=0.1, rho=0.5)
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
                                enable_model_summary=False, default_root_dir=folder)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*_data()), batch_size=8)
    trainer.fit(module, loader, ckpt_path=checkpoint)
    return trainer, list(module.model.state_dict().values())


def test_lightning_trains_as_the_plain_loop_does(tmp_path):
    assert _same(_lightning(_recipe("lightning_sam"), tmp_path, epochs=1)[1], _plain(0.5))


def test_lightning_resumes_with_the_base_optimizers_momentum(tmp_path):
    recipe = _recipe("lightning_sam")
    _lightning(recipe, tmp_path / "first", epochs=1)[0].save_checkpoint(tmp_path / "first.ckpt")
    whole = _lightning(recipe, tmp_path / "whole", epochs=2)[1]
    assert _same(_lightning(recipe, tmp_path / "second", 2, tmp_path / "first.ckpt")[1], whole)


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
        disable_tqdm=True, save_strategy="no", **arguments)
    return InOrder(model=model, args=options, train_dataset=rows, rho=0.5)


def test_hugging_faces_trainer_trains_as_the_plain_loop_does(tmp_path):
    recipe, model = _recipe("huggingface_sam"), _Loss()
    trainer = _trainer(recipe, tmp_path, model)
    trainer.optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5)
    trainer.train()
    assert _same(list(model.model.state_dict().values()), _plain(0.5, clip=0.2))


def test_hugging_faces_trainer_wraps_the_optimizer_that_its_arguments_name(tmp_path):
    recipe = _recipe("huggingface_sam")
    optimizer = _trainer(recipe, tmp_path, _Loss()).create_optimizer()
    assert isinstance(optimizer, SAM) and isinstance(optimizer.base_optimizer, torch.optim.SGD)
    with pytest.raises(ValueError, match="gradient_accumulation_steps = 2"):
        _trainer(recipe, tmp_path, _Loss(), gradient_accumulation_steps=2)
