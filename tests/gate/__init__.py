"""The notebook gate: what pytest checks of every ``.ipynb`` file, beside the unit tests.

:mod:`gate.guards` sees what can be seen without a kernel; nbval executes every cell again and compares its stored text,
numbers within the tolerance of the cell's tags (:mod:`gate.tolerance`); under ``SHARPNB_CHECK=1`` the kernel compares
figures and records with the committed files. :mod:`gate.plugin` brings them together. ``tests/notebooks`` and
``tests/unit/gate`` have the negative controls: each of them can turn red.
"""
