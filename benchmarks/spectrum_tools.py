"""The Hessian tools that ``curvature.py`` sets side by side: how each makes its operator, a spectrum and a product."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sharpnb.curvature import HessianOperator, spectral_density

LOSS = nn.CrossEntropyLoss()
Batch = tuple[Tensor, Tensor]
Measure = tuple[np.ndarray, np.ndarray]  # nodes, weights of sum 1


class Tool(NamedTuple):
    """One package: how its operator is made, plain quadrature with it, one product with it."""

    make: Callable[[], Any]
    density: Callable[[Any, int, int], Measure]  # operator, probes, steps
    product: Callable[[Any], object]


def ours(model: nn.Module, batches: list[Batch]) -> Tool:
    """Plain quadrature, for the same work."""

    def density(op: HessianOperator, probes: int, steps: int) -> Measure:
        result = spectral_density(op, steps, probes, deflate=0)
        return result.nodes, result.weights

    v = torch.randn(sum(p.numel() for p in model.parameters()))
    return Tool(lambda: HessianOperator(model, LOSS, batches), density, lambda op: op @ v)


def pyhessian(model: nn.Module, batches: list[Batch]) -> Tool:
    """PyHessian, in its fast form where the data is one batch."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eig(matrix)
        return torch.stack([values.real, values.imag], 1), vectors.real

    patched: Any = torch
    patched.eig = eig
    model = copy.deepcopy(model)
    data = {"data": batches[0]} if len(batches) == 1 else {"dataloader": batches}
    v = [torch.randn_like(p) for p in model.parameters()]

    def density(tool: Any, probes: int, steps: int) -> Measure:
        nodes, weights = tool.density(iter=steps, n_v=probes)
        return np.concatenate(nodes), np.concatenate(weights) / probes

    def product(tool: Any) -> object:
        one = len(batches) == 1
        return hessian_vector_product(tool.gradsH, tool.params, v) if one else tool.dataloader_hv_product(v)

    return Tool(lambda: hessian(model, LOSS, cuda=False, **data), density, product)


def curvlinops(model: nn.Module, batches: list[Batch]) -> Tool:
    """Curvlinops' Lanczos, without the runs that find the spectrum's ends for its grid; it does not reorthogonalise."""
    from curvlinops import HessianLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    def make() -> Any:
        return HessianLinearOperator(model, LOSS, list(model.parameters()), batches, check_deterministic=False)

    def density(op: Any, probes: int, steps: int) -> Measure:
        runs = [fast_lanczos(op, steps) for _ in range(probes)]
        nodes, weights = [v.numpy() for v, _ in runs], [s[0].square().numpy() for _, s in runs]
        return np.concatenate(nodes), np.concatenate(weights) / probes

    v = torch.randn(sum(p.numel() for p in model.parameters()))
    return Tool(make, density, lambda op: op @ v)


def eigenthings(model: nn.Module, batches: list[Batch]) -> Tool:
    """Hessian-eigenthings 1.0."""
    from hessian_eigenthings.algorithms.spectral_density import spectral_density as slq
    from hessian_eigenthings.operators.hessian import HessianOperator as Operator

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        return LOSS(net(batch[0]), batch[1])

    def density(op: Any, probes: int, steps: int) -> Measure:
        result = slq(op, num_runs=probes, lanczos_steps=steps, seed=int(torch.randint(2**31, ())))
        return result.raw_eigenvalues.numpy().ravel(), result.raw_weights.numpy().ravel() / probes

    v = torch.randn(sum(p.numel() for p in model.parameters()))
    return Tool(lambda: Operator(model, batches, loss), density, lambda op: op.matvec(v))


def available(model: nn.Module, batches: list[Batch]) -> dict[str, Tool]:
    """Return the tools that are installed."""
    tools = {"sharpnb": ours(model, batches)}
    for name, make in (("PyHessian", pyhessian), ("curvlinops", curvlinops), ("eigenthings", eigenthings)):
        with contextlib.suppress(ImportError):
            tools[name] = make(model, batches)
    return tools
