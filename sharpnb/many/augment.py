"""Random shifts and mirror images, for one model or for many: what is drawn is apart from what is done with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Augment = Callable[[Tensor, torch.Generator], Tensor]  # images (B, ...) and a generator -> changed images


@dataclass(frozen=True)
class ShiftAndFlip:
    """The papers' basic augmentation: pad by ``pad`` zeros and crop at random, then flip left-right or not.

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
        h, w = (torch.arange(size, device=x.device) for size in x.shape[2:])
        dy, dx, mirrored = drawn.to(x.device)
        padded = F.pad(x, (self.pad,) * 4)
        pixels = (dy[:, None] + h)[:, :, None] * padded.shape[3] + (dx[:, None] + w)[:, None]  # (B, H, W)
        # A gather, so that the result is (B, C, H, W) in memory too. As a permuted view it would lead PyTorch's CPU
        # convolutions into channels_last, whose 1x1 stride-2 backward of 4 channels corrupts the heap on processors
        # with AVX2 alone (PyTorch 2.15).
        moved = padded.flatten(2).gather(2, pixels.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view(x.shape)
        return torch.where(mirrored.bool()[:, None, None, None], moved.flip(-1), moved) if self.flip else moved

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draw and apply."""
        return self.apply(x, self.draw(len(x), generator))


shift_and_flip = ShiftAndFlip


def each_by_its_own(augment: Augment, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Return images (K, B, ...), changed by K generators; shifts of all rows are drawn row by row and made at once."""
    if isinstance(augment, ShiftAndFlip):
        drawn = torch.cat([augment.draw(x.shape[1], generator) for generator in generators], dim=1)
        return augment.apply(x.flatten(0, 1), drawn).view(x.shape)
    return torch.stack([augment(row, generator) for row, generator in zip(x, generators, strict=True)])
