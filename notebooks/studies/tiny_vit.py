"""A vision transformer small enough for a CPU, for the continued training that the WSAM paper does with DeiT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sharpnb.lab.models import _leaves_global_state


class Block(nn.Module):
    """Pre-norm transformer block: attention among the tokens, then an MLP of twice the width, each on a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width) -> the same."""
        split = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in split)
        attention = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)  # (B, heads, tokens, tokens)
        x = x + self.out((attention @ v).transpose(-3, -2).flatten(-2))
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """Patches to tokens, learned positions, ``depth`` blocks, mean over the tokens, one linear layer."""

    def __init__(self, size: int, patch: int, channels: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, width)
        self.positions = nn.Parameter(torch.zeros((size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes)."""
        p = self.patch
        x = x.unflatten(-1, (-1, p)).unflatten(-3, (-1, p))  # (B, C, rows, p, columns, p)
        tokens = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return self.head(self.norm(self.blocks(self.embed(tokens) + self.positions)).mean(-2))


@_leaves_global_state
def tiny_vit(
    *, size: int = 8, patch: int = 2, channels: int = 1, width: int = 16, depth: int = 1, heads: int = 2,
    classes: int = 10, seed: int = 0,
) -> TinyViT:
    """A vision transformer whose weights depend on ``seed`` alone: PyTorch's own draws, positions normal of 0.02.

    Raises:
        ValueError: if patches do not tile the image or heads do not divide the width.
    """
    if size % patch or width % heads:
        raise ValueError(f"size = {size}, patch = {patch}, width = {width}, heads = {heads}: choose a patch that "
                         "divides the size and heads that divide the width.")
    torch.manual_seed(seed)
    model = TinyViT(size, patch, channels, width, depth, heads, classes)
    with torch.no_grad():
        model.positions.normal_(0.0, 0.02)
    return model
