"""In which numbers an average is kept, and what has no average."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for 8 and 16 bits, where the increments of an average vanish (complex64 likewise), else itself."""
    if dtype.is_floating_point and dtype.itemsize < 4:
        return torch.float32
    return torch.complex64 if dtype == torch.complex32 else dtype


def is_number(t: Tensor) -> bool:
    """Return whether the tensor has a mean: floating-point and complex ones have, integers and booleans do not."""
    return t.is_floating_point() or t.is_complex()
