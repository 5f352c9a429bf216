"""SAM in Lightning: automatic optimization calls ``optimizer.step(closure)``, which is all that SAM asks for.

The closure runs ``training_step`` and the backward pass; SAM calls it twice. Nothing else changes: schedulers,
``gradient_clip_val`` (each pass is clipped), checkpoints (``state_dict`` holds the base's state) and
``Trainer.fit(ckpt_path=...)`` work as they do with SGD.

What to know: ``training_step`` runs twice a step, so what it logs is logged twice (the second time at the perturbed
weights): log from ``on_train_batch_end``, whose ``outputs["loss"]`` is the loss at the unperturbed ones.
With ``strategy="ddp"`` all processes perturb alike, on their mean gradient.

Two settings of the Trainer hide something from SAM, which then refuses the first step. ``accumulate_grad_batches=2``
shows it the last micro-batch alone. ``precision="16-mixed"`` hands no closure on; ``"bf16-mixed"`` does.
:class:`AccumulatingClassifier` is right with both (``accumulate=1`` accumulates nothing).
"""

from functools import partial

import lightning
import torch
from torch import nn

from sharpnb.optim import SAM


class Classifier(lightning.LightningModule):
    """Any module; only ``configure_optimizers`` knows of SAM."""

    def __init__(self, model: nn.Module, lr: float = 0.1, rho: float = 0.05) -> None:
        super().__init__()
        self.model, self.lr, self.rho = model, lr, rho

    def training_step(self, batch, batch_index):
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def configure_optimizers(self):
        return SAM(torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9), rho=self.rho)


class AccumulatingClassifier(Classifier):
    """One step of SAM for every ``accumulate`` micro-batches of equal size, under manual optimization.

    Each micro-batch perturbs on its own gradient, and SGD gets the mean of what comes out. (One closure that goes over
    all of them would perturb on their mean gradient: SAM of the large batch.)

    Manual optimization leaves to you: ``self.lr_schedulers().step()``, and ``self.clip_gradients`` after the backward
    pass. The hook ``on_before_optimizer_step`` is not called.
    """

    def __init__(self, model: nn.Module, lr: float = 0.1, rho: float = 0.05, accumulate: int = 2) -> None:
        super().__init__(model, lr, rho)
        self.automatic_optimization = False
        self.accumulate, self.waiting = accumulate, []

    def training_step(self, batch, batch_index):
        self.waiting.append(batch)
        if len(self.waiting) < self.accumulate and not self.trainer.is_last_batch:
            return None
        closures = [partial(self.back_propagate, waiting) for waiting in self.waiting]
        self.waiting = []
        # Lightning's own wrapper of the optimizer hands on one closure and no list. What else it does, we do:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # of "16-mixed"
        loss = self.optimizers(use_pl_optimizer=False).step(closures, scaler=scaler)
        if scaler is not None:
            scaler.update()
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.increment_completed()  # global_step
        return loss

    def back_propagate(self, batch):
        loss = super().training_step(batch, 0)
        self.manual_backward(loss)
        return loss
