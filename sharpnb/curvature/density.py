r"""Spectral density by stochastic Lanczos quadrature on the complement of the eigenvalues that converged.

A probe is a random unit vector q; the Gauss quadrature of Lanczos from q has the mean :math:`\frac1n\mathrm{tr} f(A)`.
An outlier gets the weight :math:`(q^\top u)^2`, which is 1/n times a :math:`\chi^2_1` variable: one probe counts an
outlier as anything between 0 and 4. Outliers are what Lanczos finds first, so the estimate here locks them, with weight
exactly 1/n, and lets the probes see :math:`PAP` only, with P the projection on the complement of the locked vectors.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from sharpnb.curvature._band import Band
from sharpnb.curvature.eigenvalues import choose
from sharpnb.curvature.lanczos import (
    Ending,
    Krylov,
    LanczosResult,
    advance,
    basis_bytes,
    gaussian_row,
    is_asymmetric,
    tridiagonal_eigen,
    work_dtype,
)
from sharpnb.curvature.spectrum import WIDTH, SpectralDensity, wasserstein
from sharpnb.progress import bar as progress_bar
from sharpnb.resume import Checkpoint

log = logging.getLogger("sharpnb.curvature")

# A Ritz pair is locked when its residual is below this share of its own magnitude: its error is then about a millionth
# of it, and the projected operator keeps less than a thousandth of it.
LOCKED = 1e-3
AUTO_TOP = 5  # "auto" goes on until this many from the top are locked, so that ratio(1, 5) is known
LOCK_STEP_BYTES = 2e9  # a laptop can spare that; more probes at once gain nothing once a graph is shared by some
AUTO_STEPS = (20, 60)  # least and most products that "auto" spends


def spectral_density(  # noqa: D417  some in one line
    op: Any, steps: int = 60, probes: int = 8, deflate: int | Literal["auto"] = "auto", seed: int = 0, *,
    memory: float | None = None, progress: bool = False, checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
) -> SpectralDensity:
    r"""Estimate the spectrum of a symmetric operator.

    Args:
        op: anything with ``shape``, ``dtype``, ``device`` and ``@``.
        steps: Lanczos steps a probe. 60 leaves the bulk of a network resolved to about a hundredth of its width.
        probes: random vectors. Error bars shrink with their square root; 8 give one that is itself good to a quarter.
        deflate: ``"auto"`` locks every Ritz pair that has converged by the time the five largest have (20 to 60
            products more); a number locks that many of largest magnitude; 0 is plain quadrature.
        seed: of everything random. Probes are Gaussian: uniform on the sphere of the complement, so that their mean is
            exact for any n.
        memory: bytes for the bases: as many probes as fit run in lock step and share each batch's graph. ``None`` fits
            them into 2 GB but runs one at a time whatever it takes, ``basis_bytes(op, steps)`` bytes: 13 GB for the
            56 million parameters of a WideResNet-40-10. What will be used is logged before the first product.
        progress, checkpoint, checkpoint_every: as of :func:`~sharpnb.curvature.lanczos.lanczos`.

    How it differs from the popular code: (1) deflation, above; (2) error bars over probes, and brackets that hold
    whatever the spectrum; (3) the kernel is a share of the range, so that the curve is the same for the loss and for a
    thousandth of it; (4) the tridiagonal problem is solved as a symmetric one in float64.

    Raises:
        ValueError: if an argument is out of range, or ``memory`` holds no single basis.
    """
    n = op.shape[0]
    if steps < 1 or probes < 1:
        raise ValueError(f"steps = {steps}, probes = {probes}: both must be at least 1; 60 and 8 are the defaults.")
    if deflate != "auto" and not (isinstance(deflate, int) and 0 <= deflate <= n):
        raise ValueError(f"deflate = {deflate!r}: 'auto', 0 for plain quadrature, or how many eigenvalues to lock.")
    if memory is not None and memory < basis_bytes(op, steps):
        raise ValueError(f"memory = {memory:.3g} bytes: {steps} steps on {n} parameters need a basis of "
                         f"{basis_bytes(op, steps):.3g} bytes. Allow that much, or use "
                         f"steps={int(memory // basis_bytes(op, 1))}.")
    need = memory_plan(op, steps, probes, deflate, memory)
    log.info("spectral_density: n = %d, %d probes of %d steps; %s", n, probes, steps, need)
    key = "spectral_density", n, steps, probes, deflate, seed, need.group
    saved = Checkpoint(checkpoint, key, checkpoint_every, Band, Krylov, LanczosResult, Ending)
    job = _Job(op, steps, probes, deflate, need, seed, saved)
    ending = job.run(progress)
    return SpectralDensity(n, job.atoms, job.residuals, (*job.runs,), steps, seed, job.products, ending, need.probing)


class MemoryPlan(NamedTuple):
    """What the bases of :func:`spectral_density` take.

    Attributes:
        group, probing: probes that run in lock step, and bytes of their bases.
        locking, rows: bytes of the basis of the first phase at its largest, and its vectors; it is gone by then.
    """

    group: int
    probing: int
    locking: int
    rows: int

    def __str__(self) -> str:
        return (f"bases of at most {self.locking / 1e9:.3g} GB to lock outliers, then of {self.probing / 1e9:.3g} GB "
                f"for {self.group} probes at a time")


def memory_plan(
    op: Any, steps: int = 60, probes: int = 8, deflate: int | Literal["auto"] = "auto", memory: float | None = None
) -> MemoryPlan:
    """Return what :func:`spectral_density` with these arguments will take.

    On top come the locked vectors (about ten in a trained network, ``basis_bytes(op, 1)`` each), some ten vectors to
    work with, and the gradient graphs of the operator (``op.graph_bytes()`` a batch).
    """
    group = max(1, min(probes, int((LOCK_STEP_BYTES if memory is None else memory) // basis_bytes(op, steps))))
    rows = op.shape[0] if memory is None else max(4, int(memory // basis_bytes(op, 1)))
    most = min(rows, _products_to_lock(deflate)[1] + 1) if deflate else 0
    return MemoryPlan(group, basis_bytes(op, steps, group), basis_bytes(op, most), rows)


class _Job:
    """The two phases, and where they stand."""

    def __init__(
        self, op: Any, steps: int, probes: int, deflate: int | str, need: MemoryPlan, seed: int, saved: Checkpoint,
    ) -> None:
        self.op, self.steps, self.probes, self.deflate = op, steps, probes, deflate
        self.group, self.rows, self.seed, self.saved, self.n = need.group, need.rows, seed, saved, op.shape[0]
        self.locked = torch.empty(0, self.n, dtype=work_dtype(op), device=op.device)
        self.atoms, self.residuals = np.zeros(0), np.zeros(0)
        self.least, self.most = _products_to_lock(deflate)
        self.spent = 0  # products of the first phase
        self.deflated = deflate == 0
        self.band: Band | None = None  # the first phase, while it runs
        self.runs: list[LanczosResult] = []
        self.chains: list[Krylov] = []

    @property
    def products(self) -> int:
        return self.spent + sum(run.products for run in self.runs)

    def run(self, progress: bool) -> Ending:
        vars(self).update(self.saved.load(self.op.device) or {})
        made = self.products + sum(chain.j for chain in self.chains) + (self.band.products if self.band else 0)
        ending: Ending | None = None
        with progress_bar(progress, self.most + self.probes * self.steps, "spectral density", "product", made) as bar:
            if not self.deflated:
                ending = self._deflate(bar)
                bar.total = self.spent + self.probes * self.steps
            while ending is None and len(self.locked) < self.n and len(self.runs) < self.probes:
                ending = self._next_group(bar)
        return ending or self._verdict()

    def _deflate(self, bar: Any) -> Ending | None:
        """Lock what converges in a space of its own."""
        ending, band = None, self.band or Band(self.n, self.locked.dtype, self.op.device, self.rows)
        if self.band is None:
            band.start(gaussian_row(self.op, self.seed))
        self.band = band
        try:
            while band.waiting and not self._enough(band):  # none waits where the space is invariant, or everything
                if band.full:
                    band.restart(choose(band.ritz()[0], "LM", (self.rows - 2) // 2))
                if not band.step(self.op):
                    ending = Ending.NON_FINITE
                    break
                bar.update(1)
                self.saved.save(self._state)
        except KeyboardInterrupt:
            ending = Ending.INTERRUPTED
        self.spent = band.products
        if band.done:
            self._lock(band)
        self.band, self.deflated = None, True
        del band  # before copies are made
        if len(self.locked):  # Ritz vectors are orthonormal up to the basis's own error
            self.locked = torch.linalg.qr(self.locked.T).Q.T.contiguous()
        return ending

    def _enough(self, band: Band) -> bool:
        if not self.least <= band.products < self.most:
            return band.products >= self.most
        values, residuals, _ = band.ritz()
        which, k = ("LA", AUTO_TOP) if self.deflate == "auto" else ("LM", int(self.deflate))
        wanted = choose(values, which, k)
        return bool((residuals[wanted] <= LOCKED * np.abs(values[wanted])).all())

    def _lock(self, band: Band) -> None:
        values, residuals, s = band.ritz()
        good = np.flatnonzero((residuals <= LOCKED * np.abs(values)) & (values != 0))
        if self.deflate != "auto":
            good = good[choose(values[good], "LM", int(self.deflate))]
        good = good[np.argsort(-values[good])]
        self.atoms, self.residuals = values[good], residuals[good]
        self.locked = band.vectors(s[:, good])

    def _next_group(self, bar: Any) -> Ending | None:
        if not self.chains:
            steps, first = min(self.steps, self.n - len(self.locked)), len(self.runs) + 1
            rows = (gaussian_row(self.op, self.seed, i) for i in range(first, min(first + self.group, self.probes + 1)))
            self.chains = [Krylov(row, steps, self.locked) for row in rows]
        stopped = advance(self.chains, self.op, bar, lambda: self.saved.save(self._state))
        runs = [replace(chain.result(stopped), basis=None) for chain in self.chains if chain.j]
        self.runs, self.chains = self.runs + runs, []
        if stopped:
            return stopped
        return Ending.NON_FINITE if any(run.ending is Ending.NON_FINITE for run in runs) or not runs else None

    def _verdict(self) -> Ending:
        size = max((float(np.abs(run.values).max()) for run in self.runs), default=0.0)
        size = max(size, float(np.abs(self.atoms).max(initial=0.0)))
        if is_asymmetric(max((run.rounding for run in self.runs), default=0.0), size, stacklevel=5):
            return Ending.ASYMMETRIC
        if all(run.ending is Ending.BREAKDOWN for run in self.runs):
            return Ending.BREAKDOWN
        values = np.concatenate([self.atoms, *(run.values for run in self.runs)])
        width = WIDTH * (values.max() - values.min())
        return Ending.CONVERGED if max(_halving(run) for run in self.runs) <= width else Ending.MAX_STEPS

    def _state(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("op", "saved")}


def _products_to_lock(deflate: int | str) -> tuple[int, int]:
    """Return the least and most products of the first phase."""
    return AUTO_STEPS if deflate == "auto" else (int(deflate), 40 + 4 * int(deflate) if deflate else 0)


def _halving(run: LanczosResult) -> float:
    """Return how far the distribution moves (Wasserstein-1) from half the steps to all of them."""
    if run.ending is Ending.BREAKDOWN:
        return 0.0
    if len(run.alpha) < 2:
        return float("inf")
    half = len(run.alpha) // 2
    values, s = tridiagonal_eigen(run.alpha[:half], run.beta[:half])
    return wasserstein(values, s[0] ** 2, run.values, run.weights)
