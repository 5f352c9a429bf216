"""``sharpnb spectrum``: a network, its data and its weights by name; the spectrum measured and written down."""

from sharpnb.spectrum.measure import Settings, measure_spectrum
from sharpnb.spectrum.named import float_type, load_batches, load_count, load_loss, load_model, placed, seed_everything
from sharpnb.spectrum.results import Spectrum

__all__ = ["Settings", "Spectrum", "float_type", "load_batches", "load_count", "load_loss", "load_model",
           "measure_spectrum", "placed", "seed_everything"]
