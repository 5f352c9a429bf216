"""``python -m sharpnb``: the ``sharpnb`` command."""

from sharpnb.cli import main

if __name__ == "__main__":
    main()
