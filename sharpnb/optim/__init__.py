"""The update rules of the papers as PyTorch optimizers, one file each; the equations stand in :mod:`sharpnb.rules`."""

from sharpnb.optim.adamw import AdamW
from sharpnb.optim.asam import ASAM
from sharpnb.optim.esam import ESAM
from sharpnb.optim.fisher_sam import FisherSAM
from sharpnb.optim.gsam import GSAM
from sharpnb.optim.looksam import LookSAM
from sharpnb.optim.sam import SAM
from sharpnb.optim.sgdw import SGDW
from sharpnb.optim.wsam import WSAM

__all__ = ["ASAM", "ESAM", "GSAM", "SAM", "SGDW", "WSAM", "AdamW", "FisherSAM", "LookSAM"]
