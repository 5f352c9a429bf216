"""Does the rule of the verdicts keep its promise, and what does it see? Papers are simulated, no network is trained.

A paper has 5 to 60 claims. Each method is an *arm*: a value per seed, drawn from one law; without an effect all arms
of a paper have the same law. Table 1: how many papers without an effect get a ✔ or a ✘, by the rule and by the one
that it replaced. Table 2: how often an effect of δ, 2δ, 4δ is found, and how often "no effect larger than δ" is said.
Table 3: a collapse of one method alone that leaves the mean at 0, which no rule can see before a seed meets it.
Run: ``python benchmarks/verdicts.py [--papers 20000] [--write]``; the page RESULTS_verdicts.md; minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from sharpnb.lab.verdicts import Effect, Hypothesis, Judged, judge, paired

PAGE = Path(__file__).with_name("RESULTS_verdicts.md")
DELTA, GUESSING = 0.5, 90.0  # points of error
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def cliff(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return errors near a learning rate that is too large: one run of ten loses 20 points, one of fifty diverges."""
    errors = 10 + rng.normal(0, 0.5, shape) + 20 * (rng.random(shape) < 0.1)
    return np.where(rng.random(shape) < 0.02, np.nan, errors)


LAWS: dict[str, Draw] = {
    "normal": lambda rng, shape: 10 + rng.normal(0, 0.5, shape),
    "heavy tails (t of 2)": lambda rng, shape: 10 + 0.5 * rng.standard_t(2, shape),
    "skewed (log-normal)": lambda rng, shape: 10 + 0.5 * rng.lognormal(0, 1, shape),
    "cliff": cliff,
    "coarse (whole points)": lambda rng, shape: np.round(10 + rng.normal(0, 0.5, shape)),
    "short tails (uniform)": lambda rng, shape: 10 + rng.random(shape),
}
SHARED = ("one baseline for all", "a baseline each", "one baseline, half of the claims twice")
SEEDS = (5, 6, 8, 10, 20, 40)


def paper(rng: np.random.Generator, law: Draw, m: int, n: int, shared: str = SHARED[0]) -> list[np.ndarray]:
    """Return the paired differences of m claims without an effect over n seeds; NaN and above count as guessing."""
    seed = rng.normal(0, 1, n)  # what a seed does to every arm
    arms = law(rng, (2 * m if shared == SHARED[1] else m + 1, n)) + seed
    pairs = [(arms[2 * i], arms[2 * i + 1]) for i in range(m)] if shared == SHARED[1] else [
        (arms[1 + (i // 2 * 2 if shared == SHARED[2] else i)], arms[0]) for i in range(m)]
    return [paired(ours, baseline, GUESSING) for ours, baseline in pairs]


def verdicts(differences: list[np.ndarray]) -> list[Judged]:
    """Return the rule's verdicts on the claims of a paper."""
    family = {str(i): Hypothesis(DELTA, 1, Effect.of(d)) for i, d in enumerate(differences)}
    return list(judge(family).values())


def decides(differences: list[np.ndarray]) -> bool:
    """Return whether the rule gives any claim of the paper a ✔ or a ✘."""
    return any(judged.verdict in ("supported", "refuted") for judged in verdicts(differences))


def old_decides(differences: list[np.ndarray]) -> bool:
    """Return the same by the rule before: each claim for itself by its interval of 95 %, which must leave out 0."""
    def outside(d: np.ndarray) -> bool:
        spread = d.std(ddof=1) / len(d) ** 0.5
        return abs(d.mean()) > stdtrit(len(d) - 1, 0.975) * spread

    return any(map(outside, differences))


def false_papers(law: Draw, papers: int, seed: int = 0) -> Iterator[tuple[bool, bool]]:
    """Yield for papers without an effect, of all sizes, seeds and ways of sharing, whether each rule is wrong."""
    rng = np.random.default_rng(seed)
    for _ in range(papers):
        m, n, shared = int(rng.integers(5, 61)), int(rng.choice(SEEDS)), str(rng.choice(SHARED))
        differences = paper(rng, law, m, n, shared)
        yield decides(differences), old_decides(differences)


def found(size: float, m: int, n: int, papers: int, law: Draw = LAWS["normal"]) -> dict[str, float]:
    """Return the shares of the verdicts on claims of which each third has an effect: none, -size, +size."""
    rng = np.random.default_rng([m, n])
    right = wrong = null = false_null = total = nulls = 0
    for _ in range(papers):
        sign = np.resize([0, -1, 1], m)
        judged = verdicts([d + size * s for d, s in zip(paper(rng, law, m, n), sign, strict=True)])
        for one, s in zip(judged, sign, strict=True):
            total, nulls = total + (s != 0), nulls + (s == 0)
            right += bool(s) and one.verdict == ("supported" if s > 0 else "refuted")
            wrong += bool(s) and one.verdict == ("refuted" if s > 0 else "supported")
            null += not s and one.verdict == "no effect larger than δ"
            false_null += bool(s) and one.verdict == "no effect larger than δ"
    return {"found": right / total, "opposite": wrong / total, "= said of them": false_null / total,
            "= where nothing is": null / nulls}


def one_sided(n: int, papers: int, q: float = 0.05, loss: float = 20.0) -> float:
    """Return how often one claim is decided whose method alone collapses, and is better else, so that its mean is 0."""
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(papers):
        d = rng.normal(0, 0.7, n) + q * loss - loss * (rng.random(n) < q)
        hits += decides([d])
    return hits / papers


def _found(size: int, m: int, n: int, papers: int, law: Draw = LAWS["normal"]) -> str:
    shares = found(size * DELTA, m, n, papers, law).values()
    return f"| {size}δ | {m} | {n} | " + " | ".join(f"{share:.1%}" for share in shares) + " |"


def page(papers: int) -> str:
    """Return the three tables as Markdown."""
    lines = ["# The rule of the verdicts on simulated papers", "",
             f"By `python benchmarks/verdicts.py --papers {papers} --write`. No network is trained. An arm is one "
             "value per seed; a claim is the paired difference of two arms; a paper has 5 to 60 claims, 5 to 40 seeds, "
             "and arms that claims share or that are listed twice.", "",
             "## Papers without any effect that get a ✔ or a ✘", "",
             "The promise is 5 %. ± is one standard error of the simulation.", "",
             "| law of an arm | the rule | the rule before |", "|:--|--:|--:|"]
    for name, law in LAWS.items():
        shares = np.mean(list(false_papers(law, papers)), axis=0)
        told = (f"{p:.1%} ± {np.sqrt(p * (1 - p) / papers):.1%}" for p in shares)
        lines.append("| " + " | ".join([name, *told]) + " |")
    keys = ["found", "opposite", "= said of them", "= where nothing is"]
    head = ["", "| effect | claims | seeds | " + " | ".join(keys) + " |", "|:--|--:|--:|" + "--:|" * len(keys)]
    lines += ["", "## What is found", "",
              f"δ = {DELTA} points; the paired difference has a standard deviation of 0.7 (normal). A third of the "
              "claims has no effect, a third one on the paper's side, a third one on the other side.", *head]
    lines += [_found(size, m, n, max(20, papers // m // 10)) for size in (1, 2, 4) for m in (5, 15, 60)
              for n in (5, 10, 20, 40)]
    lines += ["", "At a cliff of the learning rate (one run of ten loses 20 points, in every arm) the same:", *head]
    lines += [_found(size, 15, n, max(20, papers // 150), cliff) for size in (1, 2, 4) for n in (10, 20, 40)]
    lines += ["", "## What no rule can see", "",
              "One method alone collapses in 5 % of its runs by 20 points and is 1 point better else: its mean "
              "effect is 0, its usual one is not. How often a single such claim gets a verdict:", "",
              "| seeds | decided | no seed met the collapse |", "|--:|--:|--:|"]
    lines += [f"| {n} | {one_sided(n, max(200, papers // 10)):.0%} | {0.95**n:.0%} |" for n in (5, 10, 20, 40, 80)]
    return "\n".join([*lines, "", "A verdict is about the runs that were seen: judging seeds are many, and a setting "
                      "at a cliff is not taken.", ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--papers", type=int, default=20_000)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    text = page(asked.papers)
    PAGE.write_text(text, encoding="utf-8") if asked.write else print(text)
