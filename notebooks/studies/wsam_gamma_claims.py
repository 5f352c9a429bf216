"""The claims of notebook 08 on γ, from its table: the same for the quick and the full profile."""

from typing import Any

import pandas as pd

from sharpnb.lab import Claim
from studies import comparison
from studies import wsam_gamma as study
from studies.comparison import Trials
from studies.wsam_gamma import Study


def claims(table: pd.DataFrame | None, trials: Trials, s: Study, profile: str, record: str = "") -> list[Claim]:
    """Return the claims on Fig. 3, of which the noisiest labels' is judged; without a table they are not run."""
    about: dict[str, Any] = {"profile": profile, "record": record}
    if table is None:
        return [Claim("wsam-fig-3", protocol=s.net.label, **about)]
    made = []
    for noise in sorted(s.noises, reverse=True):
        inner, outer, gains = study.inside_or_outside(table, trials, noise)
        part = table[table["noise"] == noise]
        about["regime"] = comparison.regime(part[part["gamma"] == 0.0], "decoupled")
        about["protocol"] = f"{s.net.label}, {noise:.0%} wrong labels; γ = {inner:g} against {outer:g}"
        own = {"below": "wsam-fig-3", "statement": f"The same with {noise:.0%} wrong labels"} if made else {}
        made.append(Claim.from_samples(gains, id=f"wsam-fig-3-{100 * noise:.0f}" if made else "wsam-fig-3",
                                       **own, **about))
        gamma = part[part["method"] == "decoupled"].set_index(["gamma", "seed"])["test_error"]
        sam = part[part["method"] == "SAM"].set_index("seed")["test_error"]
        made += [Claim.from_samples((worse - gamma[inner]).to_numpy(), id=f"wsam-fig-3-{name}-{100 * noise:.0f}",
                                    below="wsam-fig-3", statement=f"γ = {inner:g} is better than {said}", **about)
                 for name, said, worse in (("sam", "SAM at the same radius", sam), ("sgd", "γ = 0, SGD", gamma[0.0]))]
    return made
