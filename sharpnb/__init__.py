"""sharpnb: flat minima, weight averaging and decoupled weight decay, with numbers.

The layers, each importing only what stands below it::

    rules                                          every update rule, as pure functions on rows
    optim, averaging, curvature, landscape         tools for one's own training code (torch and NumPy only)
    lab                                            what an experiment needs around them
    runner, cli                                    execution of the notebooks

Importing ``sharpnb`` imports none of them.
"""

__version__ = "0.1.0"
