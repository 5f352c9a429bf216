"""SAM in Lightning: automatic optimization calls ``optimizer.step(closure)``, which is all that SAM asks for.

The closure runs ``training_step`` and the backward pass; SAM calls it twice. Nothing else changes: schedulers,
``gradient_clip_val`` (each pass is clipped), ``accumulate_grad_batches`` (see below), checkpoints (``state_dict`` holds
the base's state) and ``Trainer.fit(ckpt_path=...)`` work as they do with SGD.

What to know: ``training_step`` runs twice a step, so what it logs is logged twice (the second time at the perturbed
weights): log from ``on_train_batch_end``, whose ``outputs["loss"]`` is the loss at the unperturbed ones.
With ``accumulate_grad_batches`` only the last micro-batch sees the second pass: use a larger batch, or SAM's own
``step([closure, ...])`` under manual optimization.
"""

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
