"""Augmentation on the device, for one model or for many: what is drawn is apart from what is done with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class ShiftAndFlip:
    """Pad by ``pad`` zeros and crop at random, then flip left-right or not; see :func:`shift_and_flip`.

    ``train_many`` draws for each member from the member's own generator and then moves all images of all members at
    once; called as a function of a batch and a generator it does both.
    """

    pad: int
    flip: bool

    def draw(self, b: int, generator: torch.Generator) -> Tensor:
        """Return for each of b images its row offset, column offset and whether it is mirrored: (3, b)."""
        offsets = torch.randint(0, 2 * self.pad + 1, (2, b), generator=generator)
        mirrored = torch.rand(b, generator=generator) < 0.5 if self.flip else torch.zeros(b)
        return torch.cat([offsets, mirrored[None].long()])

    def apply(self, x: Tensor, drawn: Tensor) -> Tensor:
        """Return the moved images, (B, C, H, W)."""
        b, c, h, w = (torch.arange(size, device=x.device) for size in x.shape)
        dy, dx, mirrored = drawn.to(x.device)
        rows, columns = dy[:, None] + h, dx[:, None] + w
        padded = F.pad(x, (self.pad,) * 4)
        # All four axes are indexed, so that the result is (B, C, H, W) in memory too. As a permuted view it would lead
        # PyTorch's CPU convolutions into channels_last, whose 1x1 stride-2 backward of 4 channels corrupts the heap
        # on processors with AVX2 alone (PyTorch 2.15).
        moved = padded[b.view(-1, 1, 1, 1), c.view(-1, 1, 1), rows[:, None, :, None], columns[:, None, None, :]]
        return torch.where(mirrored.bool()[:, None, None, None], moved.flip(-1), moved) if self.flip else moved

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draw and apply."""
        return self.apply(x, self.draw(len(x), generator))


def shift_and_flip(pad: int, flip: bool) -> ShiftAndFlip:
    """Return the papers' basic augmentation: pad by ``pad`` zeros and crop at random, then flip left-right or not."""
    return ShiftAndFlip(pad, flip)
