"""``sharpnb spectrum``: a network, its data and its weights by name; the spectrum measured and written down."""

from sharpnb.spectrum.measure import Settings as Settings
from sharpnb.spectrum.measure import measure_spectrum as measure_spectrum
from sharpnb.spectrum.named import float_type as float_type
from sharpnb.spectrum.named import load_batches as load_batches
from sharpnb.spectrum.named import load_count as load_count
from sharpnb.spectrum.named import load_loss as load_loss
from sharpnb.spectrum.named import load_model as load_model
from sharpnb.spectrum.named import placed as placed
from sharpnb.spectrum.named import seed_everything as seed_everything
from sharpnb.spectrum.results import Spectrum as Spectrum
