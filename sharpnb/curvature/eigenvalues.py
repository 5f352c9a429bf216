r"""Extreme eigenvalues, stopped by their residuals and checked against missed copies.

For a Ritz pair with residual norm r there is an eigenvalue within r of the Ritz value, and for a gap g to the rest of
the spectrum the error is at most :math:`r^2/g` (Parlett, The Symmetric Eigenvalue Problem, section 11-7): a tolerance
of 1e-4 usually gives eight digits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sharpnb.curvature._band import Band
from sharpnb.curvature.lanczos import Ended, Ending, basis_bytes, gaussian_row, is_asymmetric, work_dtype
from sharpnb.progress import bar as progress_bar
from sharpnb.resume import Checkpoint

log = logging.getLogger("sharpnb.curvature")

Which = Literal["LA", "SA", "LM", "BE"]

# Products spent on looking for a missed copy, least and most: it goes on while a Ritz value outside the result could,
# by its residual, still climb into it.
VERIFY_STEPS = (6, 25)


@dataclass(frozen=True, repr=False)
class Eigenvalues(Ended):
    """Extreme eigenvalues of an operator.

    Attributes:
        values: float64 ``(k,)``: LA largest first, SA smallest first, LM largest magnitude first, BE ascending. Fewer
            than k if the run was cut short before it had k.
        residuals: bounds on the residual norms ``(k,)``: each value has an eigenvalue within this distance.
        vectors: eigenvectors as columns ``(n, k)``, unit norm, largest entry positive; ``None`` if not asked for.
        n: order of the operator.
        which: the end that was asked for.
        products: operator-vector products used.
        ending: how it ended, and what was reached: the tolerance (``CONVERGED``, ``BREAKDOWN``), what the products' own
            error allows (``ROUNDING``, ``ASYMMETRIC``), or what there was time for.
        verified: whether a second random chain looked for missed copies and found none.
    """

    values: np.ndarray
    residuals: np.ndarray
    vectors: Tensor | None
    n: int
    which: Which
    products: int
    ending: Ending
    verified: bool

    @property
    def converged(self) -> bool:
        """Whether every residual met the tolerance that was asked."""
        return self.ending in (Ending.CONVERGED, Ending.BREAKDOWN)

    def __repr__(self) -> str:
        values = ", ".join(f"{v:.6g} ± {r:.1g}" for v, r in zip(self.values, self.residuals, strict=True))
        how = f"products={self.products}, {self.ending.name}, verified={self.verified}"
        return f"Eigenvalues({self.which}: {values}; {how})"


def top_eigenvalues(  # noqa: D417  some in one line
    op: Any, k: int = 1, which: Which = "LA", tol: float = 1e-4, *, max_products: int = 300, verify: bool = True,
    vectors: bool = True, start: Tensor | None = None, seed: int = 0, memory: float | None = None,
    progress: bool = False, checkpoint: str | Path | None = None, checkpoint_every: float = 60.0,
) -> Eigenvalues:
    """Return k extreme eigenvalues.

    Args:
        op: symmetric operator (anything with ``shape``, ``dtype``, ``device`` and ``@``).
        k: how many.
        which: ``"LA"`` largest algebraic, ``"SA"`` smallest algebraic, ``"LM"`` largest magnitude, ``"BE"`` both ends
            (k // 2 from the low one).
        tol: bound on the residual norms, relative to the largest Ritz value in magnitude. Default 1e-4: see the head of
            this file. Where the products' own error, as the run measures it, is above half of that, it goes on to twice
            that error, and the ending says so.
        max_products: give up after so many.
        verify: start a second random chain after convergence, and go on if it finds something. At least 6 products:
            one chain alone cannot see that an eigenvalue is repeated.
        vectors: return the eigenvectors.
        start: start vector ``(n,)``, for instance the sum of the vectors of the epoch before; default Gaussian.
        seed: of the random vectors.
        memory: bytes for the basis; at the limit the space restarts from its best part. ``None``: no limit, one vector
            a product. What will be used is logged (``sharpnb.curvature``, level INFO) before the first product.
        progress, checkpoint, checkpoint_every: as of :func:`~sharpnb.curvature.lanczos.lanczos`.

    Raises:
        ValueError: for k outside [1, n], an unknown ``which``, a tol that is not positive, or too little memory.
    """
    n = op.shape[0]
    if not 1 <= k <= n:
        raise ValueError(f"k = {k}: an operator of order {n} has between 1 and {n} eigenvalues to ask for.")
    if which not in get_args(Which):
        raise ValueError(f"which = {which!r}: choose 'LA' (largest), 'SA' (smallest), 'LM' (magnitude), 'BE' (both).")
    if not tol > 0 or max_products < 1:
        raise ValueError(f"tol = {tol}, max_products = {max_products}: the relative residual must be positive (1e-4 is "
                         "the default), and at least one product is needed.")
    limit = _row_limit(op, k, max_products, memory)
    log.info("top_eigenvalues: n = %d, basis of at most %d vectors, %.1f MB", n, limit, basis_bytes(op, limit) / 1e6)
    key = ("top_eigenvalues", n, k, which, tol, seed, verify, limit, start is None)
    saved = Checkpoint(checkpoint, key, checkpoint_every, _Search, Band)
    search = saved.load(op.device)
    if search is None:
        band = Band(n, work_dtype(op), op.device, limit)
        band.start(gaussian_row(op, seed) if start is None else start.detach().to(op.device, work_dtype(op)))
        search = _Search(band, k, which, tol, seed, verify)
    band, ending = search.band, None
    try:
        with progress_bar(progress, max_products, f"{k} eigenvalues {which}", "product", band.products) as bar:
            while band.products < max_products and not (ending := search.advance(op)):
                bar.update(1)
                saved.save(lambda: search)
    except KeyboardInterrupt:
        ending = Ending.INTERRUPTED
    if ending is None and band.done:
        ending = search.reached(np.zeros(0), np.inf, Ending.MAX_STEPS)
    return search.result(ending or Ending.MAX_STEPS, vectors)


def _row_limit(op: Any, k: int, max_products: int, memory: float | None) -> int:
    n, row = op.shape[0], basis_bytes(op, 1)
    most = min(n, max_products + 2)
    if memory is None:
        return most
    rows, least = int(memory // row), min(n, 2 * k + 6)
    if rows < least:
        raise ValueError(f"memory = {memory:.3g} bytes holds {rows} vectors of {row:.3g} bytes; {k} eigenvalues need "
                         f"at least {least}. Allow {least * row:.3g} bytes, or ask for fewer.")
    return min(rows, most)


def choose(values: np.ndarray, which: Which, k: int) -> np.ndarray:
    """Return the indices of the k wanted among ascending ``values``, in the order of the result."""
    n = len(values)
    if which == "LA":
        return np.arange(n)[::-1][:k]
    if which == "SA":
        return np.arange(n)[:k]
    if which == "LM":
        return np.argsort(-np.abs(values), kind="stable")[:k]
    low = min(k // 2, n)
    return np.unique(np.concatenate([np.arange(low), np.arange(max(n - (k - low), 0), n)]))


def could_enter(values: np.ndarray, residuals: np.ndarray, wanted: np.ndarray, which: Which, k: int) -> bool:
    """Return whether a Ritz value that is not wanted would be, if it were off by its residual bound."""
    for i, sign in product(np.setdiff1d(np.arange(len(values)), wanted), (-1, 1)):
        others = np.append(np.delete(values, i), values[i] + sign * residuals[i])
        order = np.argsort(others, kind="stable")
        if len(values) - 1 in order[choose(others[order], which, k)]:
            return True
    return False


class _Search:
    """The loop of :func:`top_eigenvalues`: expand, test, look for missed copies."""

    def __init__(self, band: Band, k: int, which: Which, tol: float, seed: int, verify: bool) -> None:
        self.band, self.k, self.tol, self.seed = band, k, tol, seed
        self.which: Which = which
        self.verify, self.verified = verify, False
        self.probing, self.chains = 0, 1
        self.before: np.ndarray = np.zeros(0)

    def advance(self, op: Any) -> Ending | None:
        """Make one product; return how it ended, if it did."""
        band = self.band
        if not band.waiting:
            self._inject(op)
        if band.full:
            values, _, _ = band.ritz()
            band.restart(choose(values, self.which, max(self.k, (band.limit - 2) // 2)))
        if not band.step(op):
            return Ending.NON_FINITE
        self.probing += self.probing > 0
        if band.done > 60 and band.products % 5 and not self.probing and band.done < band.n:
            return None  # a dense eigenproblem a product would begin to count
        return self._test(op)

    def _test(self, op: Any) -> Ending | None:
        values, residuals, s = self.band.ritz()
        wanted = choose(values, self.which, self.k)
        asked = self.tol * np.abs(values).max()
        resolved = max(asked, 2 * self.band.rounding)
        least, most = VERIFY_STEPS
        if self.band.done == self.band.n:
            self.verified = True
            return self.reached(residuals[wanted], np.inf, Ending.BREAKDOWN)
        if len(wanted) < self.k or (residuals[wanted] > resolved).any():
            if not 0 < self.probing <= least:
                self.band.resume(s[:, wanted])
            return None
        if not self.verify:
            return self.reached(residuals[wanted], asked, Ending.CONVERGED)
        same = bool(self.probing) and np.abs(values[wanted] - self.before).max() <= resolved
        if same and self.probing > least:
            self.verified = self.probing > most or not could_enter(values, residuals, wanted, self.which, self.k)
            if self.verified:
                return self.reached(residuals[wanted], asked, Ending.CONVERGED)
        if not same:  # converged for the first time, or the new chain found something and has converged on it
            self.before, self.probing = values[wanted], 1
            self._inject(op)
        return None

    def reached(self, residuals: np.ndarray, asked: float, ending: Ending) -> Ending:
        """Return the ending, or what kept the residuals from the tolerance that was asked."""
        size = float(np.abs(self.band.ritz()[0]).max(initial=0.0))
        if is_asymmetric(self.band.rounding, size, stacklevel=5):
            return Ending.ASYMMETRIC
        return Ending.ROUNDING if (residuals > asked).any() else ending

    def _inject(self, op: Any) -> None:
        """Start another random chain (again if the draw lies in the space, which only rounding can bring about)."""
        while self.band.done < self.band.n:
            self.chains += 1
            if self.band.start(gaussian_row(op, self.seed, self.chains)):
                return

    def result(self, ending: Ending, vectors: bool) -> Eigenvalues:
        values, residuals, s = self.band.ritz()
        wanted = choose(values, self.which, self.k)
        columns = _signed(self.band.vectors(s[:, wanted])).T if vectors else None
        return Eigenvalues(values[wanted], residuals[wanted], columns, self.band.n, self.which, self.band.products,
                           ending, self.verified)


def _signed(rows: Tensor) -> Tensor:
    """Make the largest entry of each row positive and its norm 1."""
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return rows * largest.sign()
