r"""Two methods that the SAM paper sets beside SAM where labels are wrong: Mixup, and the two-stage bootstrap."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sharpnb.many.engine import Batch, Nets


class Mixup:
    r"""Mix each image of a batch with another, and their labels alike (Zhang et al., ICLR 2018, section 2).

    .. math::
        \tilde x_i = \lambda x_i + (1-\lambda)\,x_{\pi(i)},\quad
        \tilde y_i = \lambda\,\mathrm{onehot}(y_i) + (1-\lambda)\,\mathrm{onehot}(y_{\pi(i)}),\qquad
        \lambda\sim\mathrm{Beta}(\alpha,\alpha)

    One :math:`\lambda` and one permutation :math:`\pi` a batch and row, as in the authors' code.

    Args:
        alphas: α of each row, (K,), positive; the SAM paper tries 1, 8, 16 and 32 (its Appendix C.2).
        classes: number of classes.
        seeds: of each row's draws; rows of one seed do not share them with another α.
    """

    def __init__(self, alphas: Sequence[float], classes: int, seeds: Sequence[int]) -> None:
        if len(alphas) != len(seeds) or not all(alpha > 0 for alpha in alphas):
            raise ValueError(f"alphas = {list(alphas)}, {len(seeds)} seeds: give one positive number a row, e.g. 1.0.")
        self.alphas, self.classes = alphas, classes
        self._generators = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, batch: Batch) -> Batch:
        """Return the mixed images, (K, B, ...), and class probabilities, (K, B, C)."""
        x, y = batch
        share = [rng.beta(a, a) for rng, a in zip(self._generators, self.alphas, strict=True)]
        order = np.stack([rng.permutation(y.shape[1]) for rng in self._generators])
        lam, rows = x.new_tensor(share), torch.arange(len(x), device=x.device)[:, None]
        other, hot = torch.as_tensor(order, device=x.device), F.one_hot(y, self.classes).to(x.dtype)
        return _between(x, x[rows, other], lam), _between(hot, hot[rows, other], lam)


def _between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    share = share.view(-1, *[1] * (a.ndim - 1))
    return share * a + (1 - share) * b


def bootstrapped(nets: Nets, w: Tensor) -> Tensor:
    """Return the labels that the weights ``w``, (K, n), predict for the training images of each net, (K, N).

    The SAM paper's bootstrap (section 3.3) trains, predicts the labels of the training images, and trains again from
    scratch on the predictions; this is the step between.
    """
    labels = torch.stack([data.train[1] for data in nets.sets])
    for found, logits, _ in nets.logits(w, "train"):
        labels[found.cpu()] = logits.argmax(2).to(labels)
    return labels
