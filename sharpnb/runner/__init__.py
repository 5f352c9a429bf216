"""Execution of the notebooks: only what changed, each in its own process, whole or not at all.

From Python: :func:`plan` says what would run, :func:`run` runs it. At the terminal: ``sharpnb run``.
"""

from sharpnb.runner.catalogue import RunnerError
from sharpnb.runner.execute import Result, run
from sharpnb.runner.plan import Step, plan

__all__ = ["Result", "RunnerError", "Step", "plan", "run"]
