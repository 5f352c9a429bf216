"""K networks as one program.

:mod:`~sharpnb.many.net` is the forward pass and the gradient of K networks of one architecture.
:mod:`~sharpnb.many.train` trains K settings. :mod:`~sharpnb.many.engine` leaves each step to the caller.
"""
