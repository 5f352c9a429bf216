"""Under their old names: weights out of a file, into a network."""

from sharpnb.checkpoints import fit as fit
from sharpnb.checkpoints import read_state as read_state
