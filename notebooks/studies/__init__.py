"""What the notebooks run, one module a notebook, so that a cell stays short and a test calls the same code."""
