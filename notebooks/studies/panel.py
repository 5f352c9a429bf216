"""Controls beside a picture that follows them, for JupyterLab."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def with_controls(draw: Callable[..., Figure], controls: Mapping[str, Any]) -> Any:
    """Return an ipywidgets panel: ``draw(name=value, …)`` makes the picture, now and whenever a control has moved.

    The picture is an image and not an output area, as ``ipywidgets.interactive_output`` would have it: what executes
    notebooks without a browser answers an output area's messages through the very socket on which it awaits the end of
    the cell, and now and then waits for ever (nbclient's issue 312).
    """
    import ipywidgets as widgets
    import matplotlib.pyplot as plt

    picture = widgets.Image(format="png")

    def redraw(_change: Any = None) -> None:
        figure, content = draw(**{name: control.value for name, control in controls.items()}), io.BytesIO()
        figure.savefig(content, format="png", dpi="figure", bbox_inches="tight")
        plt.close(figure)
        picture.value = content.getvalue()

    redraw()
    for control in controls.values():
        control.observe(redraw, "value")
    column = widgets.VBox(list(controls.values()), layout={"flex": "0 0 auto"})  # else the numbers are cut off
    return widgets.HBox([column, picture])
