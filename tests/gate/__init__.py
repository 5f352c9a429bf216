"""The notebook gate: what pytest checks of every ``.ipynb`` file, beside the unit tests.

* :mod:`gate.guards`: what can be seen without a kernel (nbval alone passes a notebook whose outputs were stripped);
* nbval: every cell is executed again and its stored text compared;
* :mod:`gate.tolerance`: the numbers in it, within the tolerance that the cell's tags state;
* ``SHARPNB_CHECK=1`` in the kernel: figures' data and records are compared with the committed files.

:mod:`gate.plugin` brings them together; ``conftest.py`` at the root loads it. The negative controls, which show that
each of them can turn red, are in ``tests/notebooks``.
"""
