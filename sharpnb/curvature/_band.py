r"""A Krylov space that can be started again from another vector, and keeps what it knows.

The basis Q has j rows that were multiplied by the operator, and one more that waits to be. With T the projected matrix

.. math:: A Q^\top = Q^\top T + q\,c^\top + \sum_f q_f\,c_f^\top

where q is the waiting row, and :math:`q_f` are rows that were waiting when a new start vector took their place. The
Ritz pair :math:`(\theta, Q^\top s)` has a residual norm of about :math:`\sqrt{(c^\top s)^2 + \sum_f (c_f^\top s)^2}`.

One start vector sees one copy of a repeated eigenvalue; a second, random one sees the next. It must not be orthogonal
to the row that was waiting: rounding grows a missed copy in just that row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpnb.curvature.lanczos import BREAKDOWN, SLICE, norm, orthogonalize, product_error, products, unit

SPANNED = 1e-3  # of a unit vector, what is left outside the space may be this small before it counts as inside
CHUNK = 16  # rows allocated together: memory grows as the space does, and nothing is copied


class Band:
    """The space, its projected matrix and its Ritz pairs; of ``limit`` rows at most, n being the operator's order."""

    def __init__(self, n: int, dtype: torch.dtype, device: Any, limit: int) -> None:
        self.n, self.limit = n, limit
        self._like = torch.empty(0, n, dtype=dtype, device=device)
        self._chunks: list[Tensor] = []
        self.count = 0  # rows, the waiting one included
        self.waiting = False
        self.products = 0
        self.matrix = np.zeros((CHUNK, CHUNK))
        self.forgotten = np.zeros((0, CHUNK))  # coupling of the rows set aside ...
        self._aside: list[Tensor] = []  # ... and these rows
        self._first = 0  # first row of the chain that is growing
        self._asymmetry, self._pairs = 0.0, 0
        self.rounding = 0.0  # error of a product, as the last call of ritz() saw it

    @property
    def done(self) -> int:
        """Number of rows that were multiplied."""
        return self.count - self.waiting

    @property
    def full(self) -> bool:
        """Whether the rows allowed are used up."""
        return self.limit <= self.count < self.n

    def start(self, v: Tensor) -> bool:
        """Go on from another vector; return whether anything of it lies outside the space."""
        v = unit(v)
        self._set_aside()
        orthogonalize(v, self._rows())
        return self._append(v, norm(v), SPANNED)

    def resume(self, s: np.ndarray) -> None:
        """Take up a row set aside again, if the Ritz vectors with coefficients ``s`` lean on it most."""
        if not len(self.forgotten):
            return
        j = self.done
        leaning = np.linalg.norm(self.forgotten[:, :j] @ s, axis=1)
        best = int(leaning.argmax())
        if self.waiting and np.linalg.norm(self.matrix[j, :j] @ s) >= leaning[best]:
            return
        v, coupling = self._aside.pop(best).clone(), self.forgotten[best]
        self.forgotten = np.delete(self.forgotten, best, axis=0)
        self._set_aside()
        orthogonalize(v, self._rows())
        left = norm(v)
        # What of it lies in the space was measured when the rows there were multiplied; the rest still couples.
        if self._append(v, left, SPANNED):
            self.matrix[j, :j] = self.matrix[:j, j] = left * coupling[:j]

    def _set_aside(self) -> None:
        if self.waiting:
            self.count, self.waiting = self.count - 1, False
            self._aside.append(self._row(self.count).clone())
            self.forgotten = np.vstack([self.forgotten, self.matrix[self.count]])
            self.matrix[self.count] = self.matrix[:, self.count] = 0
        self._first = self.count

    def step(self, op: Any) -> bool:
        """Multiply the waiting row; return ``False`` (and change nothing) if the product is not finite."""
        row = self.count - 1
        w = products(op, [self._row(row)])[0]
        if not np.isfinite(norm(w)):
            return False
        components = orthogonalize(w, self._rows())
        beta = norm(w)
        self._asymmetry += float(((components - self.matrix[row, : row + 1])[self._first : row] ** 2).sum())
        self._pairs += row - self._first
        self.matrix[row, : row + 1] = self.matrix[: row + 1, row] = components
        self.waiting, self.products = False, self.products + 1
        scale = float(np.abs(self.matrix[: self.count, : self.count]).max())
        if self._append(w, beta, BREAKDOWN * torch.finfo(w.dtype).eps * scale):
            self.matrix[row + 1, row] = self.matrix[row, row + 1] = beta
        return True

    def _append(self, v: Tensor, size: float, floor: float) -> bool:
        if size <= floor or self.count == self.n:
            return False
        if self.count == len(self._chunks) * CHUNK:
            room = min(self.n, max(self.limit, self.count + 1)) - self.count
            self._chunks.append(self._like.new_empty(min(CHUNK, room), self.n))
        if self.count == len(self.matrix):
            self.matrix = np.pad(self.matrix, (0, CHUNK))
            self.forgotten = np.pad(self.forgotten, ((0, 0), (0, CHUNK)))
        torch.div(v, size, out=self._row(self.count))
        self.count, self.waiting = self.count + 1, True
        return True

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return Ritz values (ascending), bounds on their residual norms, and their coefficients (columns)."""
        j = self.done
        values, s = np.linalg.eigh(self.matrix[:j, :j])
        left = self.forgotten[:, :j]
        if self.waiting:
            left = np.vstack([left, self.matrix[j, :j]])
        asymmetry = (self._asymmetry / max(self._pairs, 1)) ** 0.5
        self.rounding = product_error(asymmetry, float(np.abs(values).max(initial=0.0)), self._like)
        return values, np.linalg.norm(left @ s, axis=0) + self.rounding, s

    def vectors(self, s: np.ndarray) -> Tensor:
        """Return the Ritz vectors with coefficients ``s`` as rows ``(k, n)``, orthonormal."""
        out = self._like.new_zeros(s.shape[1], self.n)
        for index, rows in enumerate(self._rows()):
            part = torch.from_numpy(np.ascontiguousarray(s[index * CHUNK : index * CHUNK + len(rows)])).to(rows)
            out.addmm_(part.T, rows[: len(part)])
        return out

    def restart(self, keep: np.ndarray) -> None:
        """Shrink the space to the Ritz vectors ``keep`` (indices) and the waiting row (thick restart).

        Wu & Simon, SIAM Journal on Matrix Analysis and Applications 22, 2000.
        """
        values, _, s = self.ritz()
        j, k, s = self.done, len(keep), s[:, keep]
        coupling, forgotten = self.matrix[j, :j] @ s, self.forgotten[:, :j] @ s
        turn = torch.from_numpy(np.ascontiguousarray(s.T)).to(self._like)
        for start in range(0, self.n, SLICE):  # the Ritz vectors take the place of the first rows
            columns = slice(start, start + SLICE)
            turned = turn @ torch.cat([rows[:, columns] for rows in self._rows()])[:j]
            for index, piece in enumerate(turned):
                self._row(index)[columns] = piece
        if self.waiting:
            self._row(k).copy_(self._row(j))
        self.matrix, self.forgotten = np.zeros_like(self.matrix), np.zeros_like(self.forgotten)
        self.matrix[range(k), range(k)] = values[keep]
        self.forgotten[:, :k] = forgotten
        if self.waiting:
            self.matrix[k, :k] = self.matrix[:k, k] = coupling
        # Ritz vectors that lean on rows set aside have products with what is not in the space: no sign of an error.
        self.count, self._first = k + self.waiting, k if len(self.forgotten) else 0

    def _row(self, index: int) -> Tensor:
        return self._chunks[index // CHUNK][index % CHUNK]

    def _rows(self) -> list[Tensor]:
        return [chunk[: self.count - i * CHUNK] for i, chunk in enumerate(self._chunks) if i * CHUNK < self.count]
