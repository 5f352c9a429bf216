"""The claims of notebook 07: the minima that the paper prints, and where the paths end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sharpnb.lab.claims import Claim

_PAPER: dict[str, Any] = {"paper": "WSAM (KDD 2023)", "item": "Fig. 2", "stderr": 0.0}
_DIGIT = "half a unit of the last digit printed in the paper"
_ORBIT = "the orbit around the flat minimum is 0.3 wide after 150 steps"


def claims(marks: Mapping[str, Any], ends: Mapping[str, Tensor]) -> list[Claim]:
    """Return the claims on stationary points (from :func:`wsam_toy.landmarks`) and on the ends of paths, by label."""
    made = []
    for name, mu, loss in (("sharp", -16.8, 0.28), ("flat", 19.8, 0.36)):
        mark = marks[f"{name} minimum"]
        made += [Claim(f"wsam-toy-{name}-mu", statement=f"The {name} minimum lies at μ = {mu}", kind="value",
                       paper_value=mu, measured=float(mark["point"][0]), tolerance=0.05, why=_DIGIT, **_PAPER),
                 Claim(f"wsam-toy-{name}-loss", statement=f"The loss at the {name} minimum is {loss}", kind="value",
                       paper_value=loss, measured=mark["loss"], tolerance=0.005, why=_DIGIT, **_PAPER)]
    flat = "WSAM with γ = 0.95 ends within 0.5 of the flat minimum (0.5 minus the distance)"
    sharp = "SAM ends within 0.5 of the sharp minimum (0.5 minus the distance is positive)"
    for key, statement, end, mark, protocol in (
        ("sam", sharp, "SAM", "sharp minimum", ""),
        ("coupled", flat, "coupled, γ = 0.95", "flat minimum", "coupled update, momentum 0.9"),
        ("decoupled", flat, "decoupled, γ = 0.95", "flat minimum",
         "decoupled update (the paper's Algorithm 2), momentum 0.9"),
    ):
        near = 0.5 - float((ends[end] - marks[mark]["point"]).norm())
        made.append(Claim(f"wsam-toy-{key}", statement=statement, kind="sign", measured=near, why=_ORBIT,
                          protocol=protocol, **_PAPER))
    return made
