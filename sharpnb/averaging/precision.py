"""In which numbers an average is kept."""

from __future__ import annotations

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for half precision, where the increments of an average vanish, and any other dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
