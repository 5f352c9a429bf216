"""SAM in Hugging Face's Trainer, which calls ``optimizer.step()`` without a closure: the two halves of a step.

The first pass is the Trainer's own; before its step we perturb the weights and run the pass again, and the Trainer's
``optimizer.step()`` then restores the weights and makes the base's step. Clipping, schedulers, checkpoints and resume
are the Trainer's. With gradient accumulation each micro-batch would have to be seen twice: refused here.
"""

from transformers import Trainer

from sharpnb.optim import SAM


class SAMTrainer(Trainer):
    """A Trainer whose optimizer, whatever ``TrainingArguments`` choose, is wrapped in SAM."""

    def __init__(self, *args, rho=0.05, **kwargs):
        super().__init__(*args, **kwargs)
        self.rho = rho
        if self.args.gradient_accumulation_steps != 1:
            raise ValueError(f"gradient_accumulation_steps = {self.args.gradient_accumulation_steps}: SAM needs both "
                             "passes on the same batch. Use 1 and a larger per_device_train_batch_size.")

    def create_optimizer(self, *args, **kwargs):
        super().create_optimizer(*args, **kwargs)
        if not isinstance(self.optimizer, SAM):
            self.optimizer = SAM(self.optimizer, rho=self.rho)
        return self.optimizer

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, dict(inputs), *args, **kwargs)
        sam = getattr(self.optimizer, "optimizer", self.optimizer)  # inside Accelerate's wrapper
        sam.first_step(zero_grad=True)
        super().training_step(model, dict(inputs), *args, **kwargs)
        return loss
