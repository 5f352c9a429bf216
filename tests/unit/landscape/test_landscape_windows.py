"""Convolutions as products of what lies in memory: every geometry against PyTorch's own convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sharpnb.landscape._windows import Windowed, fits, samples_last

GEOMETRY = st.fixed_dictionaries({
    "kernel_size": st.tuples(st.integers(1, 4), st.integers(1, 5)), "stride": st.tuples(st.integers(1, 3), st.integers(1, 4)),
    "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)), "bias": st.booleans(),
})  # fmt: skip
BETWEEN = st.sampled_from([(), (nn.ReLU(),), (nn.Tanh(),), (nn.Identity(), nn.ReLU()), (nn.ReLU(), nn.Dropout())])


def _images(samples: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(samples, channels, height, width, dtype=torch.float64, generator=draw)


def _weights(layers: Any) -> list[list[Tensor]]:
    return [[p.detach() for p in layer.parameters()] for layer in layers]


def _outputs(program: Windowed, layers: Any, images: Tensor) -> Tensor:
    x = samples_last(images)
    if program.entry is not None:
        program.entry.copy_(program.laid_out(x))
        x = program.entry
    return program(x, program.arranged(_weights(layers))).mT


@settings(max_examples=60, deadline=None)
@given(first=GEOMETRY, second=GEOMETRY, before=BETWEEN, between=BETWEEN, size=st.tuples(st.integers(6, 9), st.integers(7, 11)))
def test_every_geometry_is_a_convolution(first: Any, second: Any, before: Any, between: Any, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layers = [*before, nn.Conv2d(2, 3, **first), *between, nn.Conv2d(3, 4, **second), nn.ReLU()]
    images = _images(5, 2, *size)
    try:
        numbers = nn.Sequential(*layers).double().eval()(images)[0].numel()
    except RuntimeError:  # the kernel is larger than what it should read
        return
    layers += [nn.Flatten(), nn.Linear(numbers, 3).double()]
    assert fits(layers)
    program, net = Windowed(layers, samples_last(images)), nn.Sequential(*layers).eval()
    assert (program.entry is not None) == all(type(layer) is not nn.Tanh for layer in before)
    with torch.no_grad():
        for seed in (1, 2):  # the memory of the first point serves the second
            images = _images(5, 2, *size, seed=seed)
            assert torch.allclose(_outputs(program, layers, images), net(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_outputs_of_its_sample_and_no_further(bad: float) -> None:
    torch.manual_seed(0)
    layers = [nn.ReLU(), nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)]
    for layer in layers:
        layer.double()
    images = _images(4, 1, 8, 8).abs()
    program = Windowed(layers, samples_last(images))
    with torch.no_grad():
        fine = _outputs(program, layers, images)
        images[2, 0, 3, 3] = bad
        assert _outputs(program, layers, images).isfinite().all(1).tolist() == [True, True, False, True]
        images[2, 0, 3, 3] = 1.0
        assert torch.equal(_outputs(program, layers, images)[[0, 1, 3]], fine[[0, 1, 3]])
