"""Small trained networks in float64, and their Hessians by forward-over-reverse, a way the package never takes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian

torch.set_num_threads(1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        x = x + torch.tanh(self.second(x))
        return self.head(x.mean((2, 3)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))


def cnn() -> nn.Module:
    convolutions = nn.Conv2d(1, 6, 3), nn.Softplus(), nn.Conv2d(6, 8, 3), nn.Softplus()
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32, 4))


class Case(NamedTuple):
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    y: Tensor
    dense: Tensor
    eigenvalues: np.ndarray  # ascending


def dense_hessian(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    params = dict(model.named_parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in params.values()])
    sizes = [p.numel() for p in params.values()]

    def of(w: Tensor) -> Tensor:
        pieces = {k: c.view_as(p) for (k, p), c in zip(params.items(), w.split(sizes), strict=True)}
        return loss(functional_call(model, pieces, (x,)), y)

    return hessian(of)(flat).detach()


def images(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy copies of four patterns: learnable, with a few outliers in the spectrum of what learns it."""
    g = torch.Generator().manual_seed(seed)
    patterns = torch.randn(4, 1, 6, 6, generator=g, dtype=torch.float64)
    y = torch.arange(count) % 4
    return patterns[y] + 0.8 * torch.randn(count, 1, 6, 6, generator=g, dtype=torch.float64), y


def make_case(build: Callable[[], nn.Module]) -> Case:
    torch.manual_seed(0)
    model = build().double()
    x, y = images()
    loss = nn.functional.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    model.eval()
    dense = dense_hessian(model, loss, x, y)
    return Case(model, loss, x, y, dense, np.linalg.eigvalsh(dense.numpy()))


@pytest.fixture(scope="session", params=[mlp, cnn, Residual], ids=["mlp", "cnn", "residual"])
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


@pytest.fixture(scope="session")
def mlp_case() -> Case:
    return make_case(mlp)


class Doing:
    """An operator that is nothing but a matrix, and what is done to its products: what algorithms may rely on."""

    def __init__(self, matrix: Tensor, done: Callable[[Tensor], Tensor] = lambda w: w) -> None:
        self._matrix, self._done, self.products = matrix, done, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, v: Tensor) -> Tensor:
        self.products += 1 if v.dim() == 1 else v.shape[1]
        return self._done(self._matrix @ v)


def assert_close(a: Tensor, b: Tensor, tol: float = 1e-12) -> None:
    """Hold ``a`` to ``b``, relative to the size of ``b``."""
    torch.testing.assert_close(a, b, rtol=tol, atol=tol * float(b.abs().max()))


class Breaking:
    """An operator whose product number ``at`` is NaN or raises."""

    def __init__(self, op, at: int, error: BaseException | None = None) -> None:
        self.op, self.at, self.error = op, at, error
        self.shape, self.dtype, self.device, self.made = op.shape, op.dtype, op.device, 0

    def __matmul__(self, v: Tensor) -> Tensor:
        self.made += 1
        if self.made == self.at:
            if self.error:
                raise self.error
            return torch.full_like(v, float("nan"))
        return self.op @ v


def with_spectrum(values, seed: int = 0, dtype: torch.dtype = torch.float64) -> Doing:
    """A matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(np.asarray(values, dtype=float))
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64)).Q
    return Doing(((q * values) @ q.T).to(dtype))
