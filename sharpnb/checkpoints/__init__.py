"""Weights from other people's files, into other people's networks."""

from sharpnb.checkpoints.files import read as read
from sharpnb.checkpoints.fitting import fit as fit
from sharpnb.checkpoints.fitting import load as load
from sharpnb.checkpoints.states import Ambiguous as Ambiguous
from sharpnb.checkpoints.states import read_state as read_state
