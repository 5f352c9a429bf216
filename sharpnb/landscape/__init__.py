"""Loss landscapes: planes and lines through weight space, what is measured on them, and their pictures."""

from sharpnb.landscape.directions import filter_normalized_direction, unit_direction
from sharpnb.landscape.plane import Plane, Projection
from sharpnb.landscape.surface import Line, Surface, line, surface

__all__ = ["Line", "Plane", "Projection", "Surface", "filter_normalized_direction", "line", "surface", "unit_direction"]
