"""Execution of the notebooks: only what changed, each in its own process, whole or not at all.

::

    catalogue        the notebooks that are there, and what may be set in each
    plan             what a result depends on, and so what must run again and why
    execute, worker  the processes; lock: one run at a time; surroundings: what a kernel finds around it
    progress         what the terminal shows
    stored           the form in which notebooks are committed

From Python: :func:`plan` says what would run, :func:`run` runs it. At the terminal: ``sharpnb run``.
"""

from sharpnb.runner.catalogue import RunnerError
from sharpnb.runner.execute import Result, run
from sharpnb.runner.plan import Step, plan

__all__ = ["Result", "RunnerError", "Step", "plan", "run"]
