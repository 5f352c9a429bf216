"""SAM with Accelerate, whose ``accumulate`` drops micro-batches without a word: a list of closures does it right.

Inside ``with accelerator.accumulate(model)`` the prepared optimizer's ``step`` does nothing, save on every n-th
micro-batch. ``optimizer.step(closure)`` calls no closure on the others, so they train nothing. (A backward pass before
``step(closure)`` would leave their gradients in ``.grad``: there SAM refuses the step.)

So ``Accelerator()`` gets no ``gradient_accumulation_steps``, and SAM gets all micro-batches of a step at once:

.. code-block:: python

    accelerator = Accelerator()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(epochs):
        losses = train_epoch(accelerator, model, optimizer, loader, cross_entropy, accumulate=4)

Each micro-batch perturbs on its own gradient (over several processes, on the mean of theirs), and the base gets the
mean of what comes out. Step a scheduler once per ``train_epoch`` or, inside it, once per step.
"""

from functools import partial
from itertools import islice


def train_epoch(accelerator, model, optimizer, loader, loss_function, accumulate=1):
    """Go once over the loader, ``accumulate`` micro-batches of equal size per step; return each step's mean loss."""

    def closure(x, y):
        loss = loss_function(model(x), y)
        accelerator.backward(loss)
        return loss.detach()

    losses, batches, sam = [], iter(loader), optimizer.optimizer
    while micro_batches := list(islice(batches, accumulate)):
        closures = [partial(closure, x, y) for x, y in micro_batches]
        # Not the prepared optimizer's own step: with mixed_precision="fp16" it would not unscale what closures make.
        losses.append(sam.step(closures, scaler=accelerator.scaler))
        if accelerator.scaler is not None:
            accelerator.scaler.update()
    return losses
