"""Weight averaging: SWA, SWAP, Lookahead, filter grafting, and the BatchNorm pass that averages need."""

from sharpnb.averaging.batchnorm import update_bn
from sharpnb.averaging.filters import (
    entropy,
    filter_layers,
    filter_norms,
    graft_internal,
    graft_noise,
    invalid_filters,
    mean_magnitude,
)
from sharpnb.averaging.graft import coefficient, graft
from sharpnb.averaging.lookahead import Lookahead
from sharpnb.averaging.swa import SWA
from sharpnb.averaging.swap import Swapped, swap

__all__ = [  # noqa: RUF022  grouped by method
    "SWA", "update_bn",
    "swap", "Swapped",
    "Lookahead",
    "graft", "coefficient", "graft_internal", "graft_noise",
    "entropy", "mean_magnitude", "filter_layers", "filter_norms", "invalid_filters",
]
