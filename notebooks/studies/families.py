r"""Small nets of the papers' families: Shake-Shake, PyramidNet, ShakeDrop (SAM's Table 1), a transformer (WSAM's 4).

Both shakes mix at random while training, with other random numbers backward than forward; in evaluation they use the
mean. With a weight a forward and b backward, the value of a u + (1 - a) v with the gradient of b u + (1 - b) v is

.. math:: y_b + \mathrm{stop}(y_a - y_b)

They draw from the global random state as dropout does, so ``same_dropout=True`` of :mod:`sharpnb.optim` shares the
draws of SAM's two passes. Every builder takes ``seed``, as in :mod:`sharpnb.lab.models`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.lab.models import _initialise, _leaves_global_state


def _mixed(forward: Tensor, backward: Tensor) -> Tensor:
    """Return the value of ``forward`` with the gradient of ``backward``."""
    return backward + (forward - backward).detach()


def _uniform(x: Tensor, channels: int, low: float, high: float) -> Tensor:
    """Draw one number an image and net, (N, K * channels, 1, 1); K > 1 in :mod:`sharpnb.many.net`."""
    drawn = torch.empty(len(x), x.shape[1] // channels, device=x.device, dtype=x.dtype).uniform_(low, high)
    return drawn.repeat_interleave(channels, 1)[:, :, None, None]


class ShakeShake(nn.Module):
    r"""Two residual branches, mixed at random (Gastaldi, 2017, "shake-shake-image").

    .. math:: y = x + \alpha\,F_1(x) + (1-\alpha)\,F_2(x),\qquad \alpha\sim U(0,1)

    and :math:`\beta\sim U(0,1)` in the place of α backward, one of each an image; α = β = ½ in evaluation. With
    ``true_gradient`` β = α: the SAM paper's code does so in the ascent pass (``flax_training.py``).
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False), nn.BatchNorm2d(fan_out),
                nn.ReLU(), nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False), nn.BatchNorm2d(fan_out),
            )
            for _ in range(2)
        )
        change = stride != 1 or fan_in != fan_out
        self.skip = nn.Conv2d(fan_in, fan_out, 1, stride, bias=False) if change else nn.Identity()
        self.channels, self.true_gradient = fan_out, False

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C', H/stride, W/stride)
        """Return skip plus mixture."""
        u, v = (branch(x) for branch in self.branches)
        if not self.training:
            return self.skip(x) + (u + v) / 2
        a = _uniform(u, self.channels, 0.0, 1.0)
        b = a if self.true_gradient else _uniform(u, self.channels, 0.0, 1.0)
        return self.skip(x) + _mixed(a * u + (1 - a) * v, b * u + (1 - b) * v)


class Pyramid(nn.Module):
    r"""A PyramidNet block (Han, Kim & Kim, CVPR 2017), with ShakeDrop where ``keep`` < 1 (Yamada et al., 2019).

    .. math::
        y = x + (b+\alpha-b\alpha)\,F(x),\qquad b\sim\mathrm{Bernoulli}(\text{keep}),\ \alpha\sim U(-1,1)

    and :math:`\beta\sim U(0,1)` in the place of α backward; in evaluation the mean, keep · F(x). The skip is the
    identity, averaged over 2x2 where the stride is 2 and filled up with zero channels.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, keep: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(fan_in), nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False), nn.BatchNorm2d(fan_out),
            nn.ReLU(), nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False), nn.BatchNorm2d(fan_out),
        )
        self.stride, self.extra, self.keep = stride, fan_out - fan_in, keep
        self.channels, self.true_gradient = fan_out, False

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C', H/stride, W/stride)
        """Return skip plus (shaken) residual."""
        skip = F.avg_pool2d(x, 2, ceil_mode=True) if self.stride == 2 else x
        nets = skip.unflatten(1, (-1, self.channels - self.extra))
        return F.pad(nets, (0, 0, 0, 0, 0, self.extra)).flatten(1, 2) + self._shaken(self.body(x))

    def _shaken(self, residual: Tensor) -> Tensor:
        if self.keep == 1.0 or not self.training:
            return self.keep * residual
        gate = (_uniform(residual, self.channels, 0.0, 1.0) < self.keep).to(residual.dtype)
        a = _uniform(residual, self.channels, -1.0, 1.0)
        b = a if self.true_gradient else _uniform(residual, self.channels, 0.0, 1.0)
        return _mixed((gate + a - gate * a) * residual, (gate + b - gate * b) * residual)


def shakes(model: nn.Module) -> list[ShakeShake | Pyramid]:
    """Return the parts of ``model`` that mix or keep their branches at random."""
    return [module for module in model.modules() if isinstance(module, (ShakeShake, Pyramid))]


def set_true_gradient(model: nn.Module, on: bool) -> None:
    """Let every shake in ``model`` use its forward numbers backward too, or draw others."""
    for module in shakes(model):
        module.true_gradient = on


@_leaves_global_state
def shake_shake(
    depth: int = 8, width: int = 16, *, stem: int = 16, channels: int = 3, classes: int = 10, seed: int = 0
) -> nn.Sequential:
    """Shake-Shake net of ``depth`` = 6 n + 2, else a ValueError, and first ``width`` (Table 1's: 26 and 96).

    ``stem``: channels of the first convolution (16 in the papers).
    """
    each = _blocks_a_stage(depth)
    widths = [stem, *(width * 2**stage for stage in range(3) for _ in range(each))]
    body = [ShakeShake(widths[k], widths[k + 1], _stride(k, each)) for k in range(3 * each)]
    return _net(channels, body, widths, (nn.ReLU(),), classes, seed)


@_leaves_global_state
def pyramid_net(
    depth: int = 8, alpha: int = 24, *, last_keep: float = 1.0, stem: int = 16, channels: int = 3, classes: int = 10,
    seed: int = 0,
) -> nn.Sequential:
    """PyramidNet of ``depth`` = 6 n + 2, else a ValueError, that widens by ``alpha`` in all (Table 1's: 272 and 200).

    ``last_keep`` < 1, a probability, adds ShakeDrop: a block is left undisturbed with a probability that falls linearly
    to ``last_keep`` at the last one (0.5 in Table 1). ``stem``: channels of the first convolution (16 in the papers).
    """
    each = _blocks_a_stage(depth)
    if not 0 < last_keep <= 1:
        raise ValueError(f"last_keep = {last_keep}: a probability, must lie in (0, 1]; 0.5 is the paper's, 1 is none.")
    blocks = 3 * each
    widths = [stem + round(alpha * k / blocks) for k in range(blocks + 1)]
    body = [Pyramid(widths[k], widths[k + 1], _stride(k, each), 1 - (1 - last_keep) * (k + 1) / blocks)
            for k in range(blocks)]
    return _net(channels, body, widths, (nn.BatchNorm2d(widths[-1]), nn.ReLU()), classes, seed)


def _blocks_a_stage(depth: int) -> int:
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth = {depth}: a net of this family has 6 n + 2 layers: 8, 14, 20, 26.")
    return (depth - 2) // 6


def _stride(block: int, each: int) -> int:
    return 2 if block and block % each == 0 else 1


def _net(channels: int, body: list[Any], widths: list[int], last: tuple[nn.Module, ...], classes: int,
         seed: int) -> nn.Sequential:
    first = (nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    model = nn.Sequential(*first, *body, *last, *head)
    return _initialise(model, seed)


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
    """A vision transformer whose weights depend on ``seed`` alone: PyTorch's own draws, positions normal of 0.02."""
    if size % patch or width % heads:
        raise ValueError(f"size = {size}, patch = {patch}, width = {width}, heads = {heads}: choose a patch that "
                         "divides the size and heads that divide the width.")
    torch.manual_seed(seed)
    model = TinyViT(size, patch, channels, width, depth, heads, classes)
    with torch.no_grad():
        model.positions.normal_(0.0, 0.02)
    return model
