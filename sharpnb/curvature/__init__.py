"""Curvature of a trained network: operators, Lanczos, spectral density, trace, sharpness, and what they predict."""

from sharpnb.curvature.density import MemoryPlan, memory_plan, spectral_density
from sharpnb.curvature.eigenvalues import Eigenvalues, top_eigenvalues
from sharpnb.curvature.fisher import FisherOperator
from sharpnb.curvature.ggn import GGNOperator
from sharpnb.curvature.hessian import HessianOperator
from sharpnb.curvature.lanczos import Ending, LanczosResult, basis_bytes, lanczos
from sharpnb.curvature.measures import kendall_tau, measure
from sharpnb.curvature.operators import ModelOperator, select_parameters
from sharpnb.curvature.sharpness import Sharpness, average_sharpness, sharpness
from sharpnb.curvature.spectrum import Bracket, Estimate, SpectralDensity
from sharpnb.curvature.trace import TraceEstimate, trace

__all__ = [  # noqa: RUF022  grouped by what they are for
    # operators
    "HessianOperator", "GGNOperator", "FisherOperator", "ModelOperator", "select_parameters",
    # spectra
    "lanczos", "top_eigenvalues", "spectral_density", "trace", "basis_bytes", "memory_plan",
    # sharpness
    "sharpness", "average_sharpness", "measure", "kendall_tau",
    # results
    "Bracket", "Eigenvalues", "Ending", "Estimate", "LanczosResult", "MemoryPlan", "Sharpness", "SpectralDensity",
    "TraceEstimate",
]
