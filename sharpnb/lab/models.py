"""Small members of the model families of the papers, each with and without BatchNorm.

Every builder takes ``seed``: the weights depend on it alone, and the global random state stays as it was.

Without BatchNorm (the Hessian study of the SAM paper removes it) the convolutions carry biases, and the last
convolution of each residual branch is scaled by ``blocks ** -0.5``, so that the signal does not grow with depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# PyTorch draws initial weights from the global state when a layer is made; they are drawn anew from the seed below.
_leaves_global_state = torch.random.fork_rng(devices=[])
_Net = TypeVar("_Net", bound=nn.Module)
_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def _initialise(model: _Net, seed: int, scale: float = 1.0) -> _Net:
    """Draw all weights from ``seed``: He normal (fan-in), the last layer fan-in uniform; ``scale`` multiplies them."""
    generator = torch.Generator().manual_seed(seed)
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    with torch.no_grad():
        for layer in layers:
            fan_in = layer.weight[0].numel()
            if layer is layers[-1]:
                layer.weight.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
            else:
                layer.weight.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)
            layer.weight.mul_(scale)
            if layer.bias is not None:
                layer.bias.zero_()
        branches = [m.last for m in model.modules() if isinstance(m, _Residual) and not m.norm]
        for convolution in branches:
            convolution.weight.mul_(len(branches) ** -0.5)
    return model


@_leaves_global_state
def mlp(
    sizes: Sequence[int] = (64, 64, 10), *, norm: bool = False, activation: str = "relu", seed: int = 0,
    scale: float = 1.0,
) -> nn.Sequential:
    """Fully connected net through ``sizes``: (in, hidden…, classes). Images are flattened.

    Raises:
        ValueError: for fewer than two sizes or an unknown activation.
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes = {tuple(sizes)}: an MLP needs at least its input and output size, e.g. (64, 64, 10).")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation = {activation!r}: choose one of {', '.join(_ACTIVATIONS)}.")
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(fan_in, fan_out))
        if i < len(sizes) - 2:
            layers += [nn.BatchNorm1d(fan_out)] * norm + [_ACTIVATIONS[activation]()]
    return _initialise(nn.Sequential(*layers), seed, scale)


@_leaves_global_state
def cnn(
    width: int = 8, *, channels: int = 1, classes: int = 10, norm: bool = False, activation: str = "relu", seed: int = 0
) -> nn.Sequential:
    """Two 3x3 convolutions (``width``, then 2 ``width`` at half the resolution), global mean, one linear layer.

    Any image size. ``width=8`` on one channel has 1,418 parameters: few enough for a dense Hessian.
    """
    act = _ACTIVATIONS[activation]
    model = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=not norm), *([nn.BatchNorm2d(width)] * norm), act(),
        nn.Conv2d(width, 2 * width, 3, 2, padding=1, bias=not norm), *([nn.BatchNorm2d(2 * width)] * norm), act(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes),
    )
    return _initialise(model, seed)


class _Residual(nn.Module):
    """Two 3x3 convolutions and a skip; ``preact`` orders them norm-relu-conv (WideResNet), else conv-norm-relu."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, norm: bool, preact: bool) -> None:
        super().__init__()
        self.norm, self.preact = norm, preact
        self.first = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=not norm)
        self.last = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=not norm)
        self.norm1 = nn.BatchNorm2d(fan_in if preact else fan_out) if norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(fan_out) if norm else nn.Identity()
        change = stride != 1 or fan_in != fan_out
        self.skip = nn.Conv2d(fan_in, fan_out, 1, stride, bias=False) if change else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C', H/stride, W/stride)
        if self.preact:
            y = F.relu(self.norm1(x))
            skip = x if isinstance(self.skip, nn.Identity) else self.skip(y)
            return skip + self.last(F.relu(self.norm2(self.first(y))))
        return F.relu(self.skip(x) + self.norm2(self.last(F.relu(self.norm1(self.first(x))))))


def _residual_net(
    widths: Sequence[int], blocks: int, channels: int, classes: int, norm: bool, preact: bool, seed: int
) -> nn.Sequential:
    stem = [nn.Conv2d(channels, widths[0], 3, 1, 1, bias=not norm)]
    if not preact:
        stem += [nn.BatchNorm2d(widths[0]) if norm else nn.Identity(), nn.ReLU()]
    body, fan_in = [], widths[0]
    for stage, width in enumerate(widths[1:]):
        for block in range(blocks):
            body.append(_Residual(fan_in, width, 2 if stage and not block else 1, norm, preact))
            fan_in = width
    head = [nn.BatchNorm2d(fan_in) if norm else nn.Identity(), nn.ReLU()] if preact else []
    model = nn.Sequential(*stem, *body, *head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, classes))
    return _initialise(model, seed)


@_leaves_global_state
def resnet(
    depth: int = 20, *, width: int = 16, channels: int = 3, classes: int = 10, norm: bool = True, seed: int = 0
) -> nn.Sequential:
    """CIFAR ResNet of ``depth`` = 6 n + 2 (He et al., CVPR 2016, section 4.2), such as ResNet-20 and ResNet-32.

    Skips across a change of size are 1x1 convolutions (option B). ``width`` is that of the first stage.

    Raises:
        ValueError: if the depth is not 6 n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth = {depth}: a CIFAR ResNet has 6 n + 2 layers: 8, 14, 20, 32, 44, 56, 110.")
    return _residual_net((width, width, 2 * width, 4 * width), (depth - 2) // 6, channels, classes, norm, False, seed)


@_leaves_global_state
def resnet18(
    *, width: int = 64, channels: int = 3, classes: int = 10, norm: bool = True, seed: int = 0
) -> nn.Sequential:
    """ResNet-18 with the 3x3 stem that is usual on CIFAR (no max-pooling); ``width`` 64 is the usual one."""
    return _residual_net((width, width, 2 * width, 4 * width, 8 * width), 2, channels, classes, norm, False, seed)


@_leaves_global_state
def wide_resnet(
    depth: int = 16, width: int = 4, *, stem: int = 16, channels: int = 3, classes: int = 10, norm: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """WideResNet-``depth``-``width``, depth = 6 n + 4 (Zagoruyko & Komodakis, BMVC 2016), no dropout.

    The SAM paper trains WRN-28-10 and, for its Hessian spectra, WRN-40-10 with ``norm=False``. ``stem``: channels of
    the first convolution, of which the stages' are multiples (16 in the papers).

    Raises:
        ValueError: if the depth is not 6 n + 4.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth = {depth}: a WideResNet has 6 n + 4 layers: 10, 16, 22, 28, 40.")
    widths = (stem, stem * width, 2 * stem * width, 4 * stem * width)
    return _residual_net(widths, (depth - 4) // 6, channels, classes, norm, True, seed)
