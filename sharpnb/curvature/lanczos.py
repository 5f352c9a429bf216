r"""Lanczos: a symmetric operator seen through the Krylov space of one start vector.

.. math:: A Q_m = Q_m T_m + \beta_m\, q_{m+1} e_m^\top, \qquad Q_m Q_m^\top = I \ \text{(rows)}, \qquad
          T_m = \mathrm{tridiag}(\beta_{j-1}, \alpha_j, \beta_j)

Golub & Van Loan, Matrix Computations, section 10.1; the quadrature reading of :math:`T_m` is Golub & Meurant, Matrices,
Moments and Quadrature, chapter 6: the eigenvalues of :math:`T_m` are the nodes, the squared first components of its
eigenvectors the weights of the Gauss rule of the measure :math:`\sum_i (q_1^\top u_i)^2\,\delta_{\lambda_i}`, exact for
polynomials up to degree 2m - 1.

The basis is ``(m, n)``, one vector a contiguous row, so that orthogonalising against it is two matrix-vector products
at the speed of memory. Coefficients are float64. An operator is anything with ``shape``, ``dtype``, ``device`` and
``@``: ours, a tensor ``(n, n)``, a class of yours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpnb.progress import bar as progress_bar
from sharpnb.resume import Checkpoint

BREAKDOWN = 32.0  # a new direction shorter than so many rounding errors of the operator's size is noise
SECOND_PASS = 0.7  # "twice is enough" (Parlett, The Symmetric Eigenvalue Problem, section 6-9), after cancellation
SLICE = 2**14  # longest piece of an inner product that is added up in the vectors' own dtype
ROUNDING = 10.0  # machine epsilons of the operator's size, by which a product and its orthogonalisation are wrong
# An inner product of unit vectors of length n, in slices, is wrong by less than so many machine epsilons up to n = 1e7,
# and as a random walk of n steps beyond (measured on a diagonal operator: 0.5 at n = 3e5, 1.3 at 2e6).
INNER_PRODUCT = 4.0
# Products whose error is above this share of the operator's size are those of no symmetric operator. Rounding was 1e-6
# to 3e-5 of it in float32, 1e-2 in an MLP fitted until its largest eigenvalue had fallen from 2 to 0.003, and 2 to 6 %
# in bfloat16 (four networks of 80 to 200 thousand weights).
ASYMMETRIC = 0.05


class Ending(Enum):
    """How an iteration ended; the value is the sentence to show."""

    CONVERGED = "converged to the tolerance that was asked"
    ROUNDING = ("as exact as the products are, which is less than the tolerance that was asked: the residuals say how "
                "exact")
    ASYMMETRIC = ("the products are those of no symmetric operator: an eigenvalue is known to its residual and no "
                  "better (randomness, a wrong second derivative, or rounding)")
    MAX_STEPS = "stopped at the number of steps allowed; what is returned is what they gave"
    BREAKDOWN = "the Krylov space is exhausted: what it holds is exact to rounding"
    NON_FINITE = "a product was NaN or infinite; what is returned is from the products before it"
    INTERRUPTED = "interrupted; what is returned is from the products made until then"


class Ended:
    """A result that knows how its iteration ended."""

    ending: Ending

    @property
    def complete(self) -> bool:
        """Whether it ran to its own end (not interrupted, not cut short by a non-finite product)."""
        return self.ending not in (Ending.INTERRUPTED, Ending.NON_FINITE)


@dataclass(frozen=True, repr=False)
class LanczosResult(Ended):
    """One Lanczos run of m steps.

    Attributes:
        alpha: diagonal of T, float64 ``(m,)``.
        beta: norms of the new directions, float64 ``(m,)``; the last one couples to the vector after the basis.
        basis: orthonormal rows ``(m, n)``; ``None`` in the runs of a spectral density.
        n, products: order of the operator, and operator-vector products used.
        ending: how it ended, and what was reached.
        rounding: what rounding adds to a residual: the error of a product as it shows in components that should be zero
            (a network's products cancel inside), and at least ``ROUNDING`` machine epsilons of the size of T.
    """

    alpha: np.ndarray
    beta: np.ndarray
    basis: Tensor | None
    n: int
    ending: Ending
    products: int
    rounding: float = 0.0

    def __repr__(self) -> str:
        ends = f"{self.values[0]:.6g} to {self.values[-1]:.6g}" if len(self.alpha) else "none"
        return f"LanczosResult(n={self.n}, products={self.products}, Ritz values: {ends}, {self.ending.name})"

    @property
    def values(self) -> np.ndarray:
        """Ritz values, ascending ``(m,)``."""
        return tridiagonal_eigen(self.alpha, self.beta)[0]

    @property
    def weights(self) -> np.ndarray:
        """Weights of the Ritz values in the Gauss quadrature of the start vector's measure ``(m,)``; they add to 1."""
        return tridiagonal_eigen(self.alpha, self.beta)[1][0] ** 2

    @property
    def residuals(self) -> np.ndarray:
        r"""Bounds on :math:`\|A u - \theta u\| = \beta_m |s_m|` of the Ritz pairs ``(m,)``, rounding included.

        An eigenvalue lies within this distance of each Ritz value.
        """
        s = tridiagonal_eigen(self.alpha, self.beta)[1]
        return self.beta[-1] * np.abs(s[-1]) + self.rounding if len(self.alpha) else np.zeros(0)

    def vectors(self, index: Sequence[int] | slice = slice(None)) -> Tensor:
        """Return Ritz vectors as columns ``(n, len(index))``."""
        if self.basis is None:
            raise ValueError("The runs of a spectral density keep no basis. Call lanczos, or top_eigenvalues.")
        s = np.ascontiguousarray(tridiagonal_eigen(self.alpha, self.beta)[1][:, index])
        return (torch.from_numpy(s).to(self.basis).T @ self.basis).T


def tridiagonal_eigen(alpha: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues (ascending) and eigenvectors (columns) of tridiag(beta[:-1], alpha, beta[:-1])."""
    if not len(alpha):
        return np.zeros(0), np.zeros((1, 0))
    return np.linalg.eigh(np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1))


def lanczos(
    op: Any, steps: int = 60, start: Tensor | None = None, *, seed: int = 0, progress: bool = False,
    checkpoint: str | Path | None = None, checkpoint_every: float = 60.0,
) -> LanczosResult:
    """Run Lanczos with full reorthogonalisation.

    Args:
        op: symmetric operator.
        steps: at most this many products (and at most n). 60 resolves the ends of a network's spectrum and costs 60
            vectors of memory, ``basis_bytes(op, steps)``.
        start: start vector ``(n,)``, any norm; default Gaussian, which no eigenvector is orthogonal to.
        seed: of the default start vector, drawn on the CPU so that every device gets the same.
        progress: show a bar (imports tqdm).
        checkpoint: file to continue from if it exists and to save to; a kill then costs ``checkpoint_every`` seconds.
        checkpoint_every: seconds between saves.

    How it differs from the popular code: (1) orthogonality is kept by one pass over the whole basis, a second when the
    first cancels, so that no eigenvalue comes back as a ghost; (2) nothing is added to a norm before dividing, so a
    loss times 1e-6 gives everything times 1e-6; (3) an exhausted space ends the run, instead of dividing by noise;
    (4) an interrupt returns what is there.

    Raises:
        ValueError: if ``steps`` is below 1 or ``start`` is zero, not finite or of the wrong shape.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: Lanczos needs at least one step.")
    row = gaussian_row(op, seed) if start is None else start.detach().to(op.device, work_dtype(op)).clone()
    if row.shape != (op.shape[0],):
        raise ValueError(f"start has shape {tuple(row.shape)}, the operator needs ({op.shape[0]},).")
    krylov = Krylov(row, min(steps, op.shape[0]))
    key = "lanczos", op.shape[0], steps, seed, start is None
    saved = Checkpoint(checkpoint, key, checkpoint_every, Krylov, Ending)
    krylov = saved.load(op.device) or krylov
    with progress_bar(progress, krylov.steps, "Lanczos", "product", krylov.j) as bar:
        ending = advance([krylov], op, bar, lambda: saved.save(lambda: krylov))
    result = krylov.result(ending)
    size = float(np.abs(result.values).max(initial=0.0))
    named = result.complete and is_asymmetric(result.rounding, size)
    return replace(result, ending=Ending.ASYMMETRIC) if named else result


class Krylov:
    """One chain of Lanczos steps, advanced one product at a time so that several chains can share an operator.

    It stays orthogonal to the orthonormal rows ``locked``, ``(r, n)``, and sees the operator on their complement.
    """

    def __init__(self, start: Tensor, steps: int, locked: Tensor | None = None) -> None:
        self.locked = [locked] if locked is not None and len(locked) else []
        self.steps, self.j, self.noise = steps, 0, 0.0
        self.alpha, self.beta = np.zeros(steps), np.zeros(steps)
        self.basis = start.new_empty(steps, len(start))
        self.ending: Ending | None = None
        orthogonalize(start, self.locked)
        self.basis[0] = unit(start)

    def absorb(self, w: Tensor) -> None:
        """Take the product of ``basis[j]`` (it may be overwritten) and make one step."""
        j, q = self.j, self.basis[self.j]
        alpha = dot(q, w)
        if not np.isfinite(alpha):
            self.ending = Ending.NON_FINITE
            return
        w.add_(q, alpha=-alpha)
        if j:
            w.add_(self.basis[j - 1], alpha=-self.beta[j - 1])
        correction = orthogonalize(w, [*self.locked, self.basis[: j + 1]])
        self.alpha[j], beta = alpha + correction[-1], norm(w)
        if not np.isfinite(beta):
            self.ending = Ending.NON_FINITE
            return
        size = max(np.abs(self.alpha[: j + 1]).max(), self.beta[:j].max(initial=0.0))
        self.noise = max(self.noise, product_error(float((correction[-j - 1 :] ** 2).mean()) ** 0.5, size, w))
        if beta <= BREAKDOWN * torch.finfo(w.dtype).eps * size or j + 1 == len(w) - sum(map(len, self.locked)):
            beta, self.ending = 0.0, Ending.BREAKDOWN
        elif j + 1 == self.steps:
            self.ending = Ending.MAX_STEPS
        else:
            torch.div(w, beta, out=self.basis[j + 1])
        self.beta[j] = beta
        self.j = j + 1  # last, so that an interrupt anywhere above leaves a whole state

    def result(self, ending: Ending | None = None) -> LanczosResult:
        """Return what there is; ``ending`` is for a chain that was stopped from outside."""
        return LanczosResult(self.alpha[: self.j].copy(), self.beta[: self.j].copy(), self.basis[: self.j],
                             self.basis.shape[1], self.ending or ending or Ending.MAX_STEPS, self.j, self.noise)


def advance(chains: Sequence[Krylov], op: Any, progress: Any, save: Callable[[], None]) -> Ending | None:
    """Run chains in lock step to their ends, so that each batch's gradient graph serves them all.

    Return ``INTERRUPTED`` if a KeyboardInterrupt stopped it, else ``None``: each chain then knows its own ending.
    """
    try:
        while running := [chain for chain in chains if chain.ending is None]:
            for chain, w in zip(running, products(op, [chain.basis[chain.j] for chain in running]), strict=True):
                chain.absorb(w)
            progress.update(len(running))
            save()
    except KeyboardInterrupt:
        return Ending.INTERRUPTED
    return None


def products(op: Any, vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return the products with each vector ``(n,)`` as fresh contiguous vectors in the working dtype."""
    if len(vectors) == 1:
        w = op @ vectors[0].to(op.dtype)
        return [w.detach().to(work_dtype(op), copy=True).contiguous()]  # a copy: an operator may return its argument
    block = op @ torch.stack(list(vectors)).to(op.dtype).T
    return list(block.detach().T.to(work_dtype(op)).contiguous())


def work_dtype(op: Any) -> torch.dtype:
    """Return the dtype of bases: the operator's, or float32 where that is a half precision."""
    return op.dtype if op.dtype in (torch.float32, torch.float64) else torch.float32


def gaussian_row(op: Any, seed: int, index: int = 0) -> Tensor:
    """Return the Gaussian vector ``(n,)`` number ``index`` of ``seed``, drawn on the CPU in float32."""
    return torch.randn(op.shape[0], generator=_generator(seed, index)).to(op.device, work_dtype(op))


def rademacher_row(op: Any, seed: int, index: int = 0) -> Tensor:
    """Return the vector ``(n,)`` of random signs number ``index`` of ``seed``, drawn on the CPU."""
    signs = torch.randint(0, 2, (op.shape[0],), generator=_generator(seed, index), dtype=torch.int8)
    return signs.to(op.device, work_dtype(op)) * 2 - 1


def _generator(seed: int, index: int) -> torch.Generator:
    mixed = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(mixed)


def basis_bytes(op: Any, steps: int, chains: int = 1) -> int:
    """Return the bytes that the bases of ``chains`` runs of ``steps`` take."""
    return chains * min(steps, op.shape[0]) * op.shape[0] * work_dtype(op).itemsize


def norm(v: Tensor) -> float:
    """Return the 2-norm, added up in float64 so that a tiny operator does not underflow."""
    return float(torch.linalg.vector_norm(v, dtype=torch.float64))


def unit(start: Tensor) -> Tensor:
    """Return a start vector with norm 1."""
    size = norm(start)
    if not 0 < size < np.inf:
        raise ValueError(f"The start vector has norm {size}; it must be finite and not zero.")
    return start / size


def dot(a: Tensor, b: Tensor) -> float:
    """Return the inner product: products in the vectors' dtype, added up in float64."""
    return float((a * b).sum(dtype=torch.float64))


def product_error(component: float, size: float, like: Tensor) -> float:
    """Return the norm of the error of a product whose components along basis vectors are wrong by ``component``.

    The basis sees few of the n dimensions that such an error spreads over. Below what the inner product itself is wrong
    by, it is not to be seen, and ``ROUNDING`` stands for it.
    """
    eps, n = torch.finfo(like.dtype).eps, like.shape[-1]
    visible = INNER_PRODUCT * max(1.0, n / 1e7) ** 0.5 * eps * size
    return max(component * n**0.5 if component > visible else 0.0, ROUNDING * eps * size)


def is_asymmetric(rounding: float, size: float, stacklevel: int = 3) -> bool:
    """Return whether products with such an error are those of no symmetric operator, and warn if so."""
    if not rounding > ASYMMETRIC * size:
        return False
    warnings.warn(f"The operator is not symmetric: u·Av and v·Au differ, a product is uncertain by {rounding:.2g}, and "
                  f"the largest eigenvalue in magnitude is about {size:.2g}. Does the network or the loss draw random "
                  "numbers, or jump (matching, sorting); has a kernel a wrong second derivative; or is the type too "
                  "small for a network that fits its data (model.double())?", stacklevel=stacklevel)
    return True


def orthogonalize(w: Tensor, blocks: Sequence[Tensor]) -> np.ndarray:
    """Take the components along orthonormal rows out of ``w`` in place; return them ``(total rows,)``, float64."""
    before = norm(w)
    removed = _pass(w, blocks)
    if norm(w) < SECOND_PASS * before:
        removed += _pass(w, blocks)
    return removed


def _pass(w: Tensor, blocks: Sequence[Tensor]) -> np.ndarray:
    parts = [np.zeros(0)]
    for rows in blocks:
        # In float64, slice by slice: a float32 product over millions of entries can be wrong in its fourth digit.
        found = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for start in range(0, len(w), SLICE):
            found += rows[:, start : start + SLICE] @ w[start : start + SLICE]
        w.addmv_(rows.T, found.to(w.dtype), alpha=-1)
        parts.append(found.cpu().numpy())
    return np.concatenate(parts)
