"""Augmentation on the device, for one model or for many: what is drawn is apart from what is done with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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


def each_by_its_own(augment: Augment, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Return images (K, B, …), changed by K generators; shifts of all rows are drawn row by row and made at once."""
    if isinstance(augment, ShiftAndFlip):
        drawn = torch.cat([augment.draw(x.shape[1], generator) for generator in generators], dim=1)
        return augment.apply(x.flatten(0, 1), drawn).view(x.shape)
    return torch.stack([augment(row, generator) for row, generator in zip(x, generators, strict=True)])


def shift_and_flip(pad: int, flip: bool) -> ShiftAndFlip:
    """Return the papers' basic augmentation: pad by ``pad`` zeros and crop at random, then flip left-right or not."""
    return ShiftAndFlip(pad, flip)


@dataclass(frozen=True)
class Cutout:
    """Set a square of ``side`` pixels to ``fill``, its centre anywhere in the image (DeVries & Taylor, 2017).

    The square may reach over the border, as in the authors' code; the SAM paper cuts 16 of 32 pixels. ``fill`` 0 is the
    mean where images are centred, and the ground of the digits.
    """

    side: int
    fill: float = 0.0

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return images with a hole each, (B, C, H, W)."""
        b, _, h, w = x.shape
        centre = (torch.rand(2, b, 1, generator=generator) * torch.tensor([h, w]).view(2, 1, 1)).floor()
        start = (centre - self.side // 2).to(x.device)
        inside = [(torch.arange(n, device=x.device) >= first) & (torch.arange(n, device=x.device) < first + self.side)
                  for n, first in zip((h, w), start, strict=True)]
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return x.masked_fill(hole, self.fill)


@dataclass(frozen=True)
class AutoAugment:
    """torchvision's AutoAugment (Cubuk et al., CVPR 2019), a policy an image, on normalised images on their device.

    torchvision gives a whole tensor *one* draw of policy, chances and signs; here each image has its own, and images of
    equal draws go through torchvision together. Values are rounded to the 256 levels that its operations know.

    Args:
        policy: ``"cifar10"``, ``"svhn"`` or ``"imagenet"``.
        mean, std: of the normalisation, a number a channel, which is undone and done again.
        side: work at this size and come back by averaging, for images so small that a policy's shifts and shears round
            to whole pixels (None: at their own size).
    """

    policy: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    side: int | None = None

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed images, (B, C, H, W) with 1 or 3 channels."""
        from torchvision.transforms import AutoAugment as Policies
        from torchvision.transforms import AutoAugmentPolicy

        policies: Any = Policies(AutoAugmentPolicy(self.policy))
        centre, spread = (torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
        size = (x.shape[-2], x.shape[-1])
        plain = x * spread + centre
        if self.side:
            plain = F.interpolate(plain, (self.side, self.side), mode="bilinear", align_corners=False)
        pixels = (255 * plain).round().clamp(0, 255).to(torch.uint8)
        number = torch.randint(len(policies.policies), (len(x),), generator=generator)
        chances = torch.rand(len(x), 2, generator=generator)
        signs = torch.randint(2, (len(x), 2), generator=generator)
        hit = torch.stack([chances[:, i] <= torch.tensor([p[i][1] for p in policies.policies])[number] for i in (0, 1)])
        draws = torch.cat([number[:, None], hit.T.long(), signs], 1)  # (B, 5): all that the outcome depends on
        kinds, which = draws.unique(dim=0, return_inverse=True)
        for kind, (k, *rest) in enumerate(kinds.tolist()):
            here = (which == kind).nonzero()[:, 0].to(x.device)
            certain = (torch.tensor([1.0 - rest[0], 1.0 - rest[1]]) * 2, rest[2:])  # 0 is done, 2 is not
            policies.get_params = lambda _, k=k, certain=certain: (k, *certain)
            pixels[here] = policies(pixels[here])
        out = pixels.to(x.dtype) / 255
        return ((F.adaptive_avg_pool2d(out, size) if self.side else out) - centre) / spread


def composed(*parts: Augment) -> Augment:
    """Return one augmentation that does ``parts`` in order."""
    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        for part in parts:
            x = part(x, generator)
        return x

    return apply
