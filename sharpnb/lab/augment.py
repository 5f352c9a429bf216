"""Augmentation of images on their device; shifts and mirror images are :mod:`sharpnb.many.augment`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sharpnb.many.augment import Augment as Augment
from sharpnb.many.augment import ShiftAndFlip as ShiftAndFlip
from sharpnb.many.augment import shift_and_flip as shift_and_flip


@dataclass(frozen=True)
class Cutout:
    """Set a square of ``side`` pixels to ``fill``, its centre anywhere in the image (DeVries & Taylor, 2017).

    The square may reach over the border, as in the authors' code; the SAM paper cuts 16 of 32 pixels.
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
        side: work at this size and come back by averaging: a policy's shifts of small images round to whole pixels.
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
