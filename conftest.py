"""Load the notebook gate, for ``pytest notebooks/07_wsam_toy.ipynb`` as for the whole suite."""

pytest_plugins = ["gate.plugin"]
