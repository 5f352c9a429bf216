"""A progress bar that imports tqdm when asked for, and nothing otherwise."""

from __future__ import annotations

from typing import Any


class Progress:
    """Context manager with ``update(k)``.

    Args:
        show: show the bar.
        total: products expected.
        label: text on the left.
        done: products already made (after a resume).
    """

    def __init__(self, show: bool, total: int, label: str, done: int = 0) -> None:
        self._bar: Any = None
        if show:
            try:
                from tqdm.auto import tqdm
            except ImportError as error:
                raise ImportError("progress=True needs tqdm: pip install tqdm, or pass progress=False.") from error
            self._bar = tqdm(total=total, desc=label, unit="product", initial=done)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, products: int) -> None:
        """Count products made."""
        if self._bar is not None:
            self._bar.update(products)

    def expect(self, total: int) -> None:
        """Correct the number of products expected."""
        if self._bar is not None:
            self._bar.total = total
            self._bar.refresh()
