"""What the notebooks run: one module a notebook, its loss or its nets, its settings at either profile, its drawings.

A notebook shows the reasoning and calls these; so a cell stays short and a test can call the same code.
"""
