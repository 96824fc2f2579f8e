"""What a table may say about a difference beyond its p-value. Pure numbers, no files.

- Equivalence by two one-sided t tests (TOST; Schuirmann 1987): the words "equal" and "no loss" need it.
- The smallest difference that a planned number of seeds and prompts tells apart.
- Seeds far from the others of their row: three seeds cannot see what happens to one training in five.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from bench.stats import special
from bench.stats.estimates import Difference, pooled_spread

K = TypeVar("K")
ALPHA = 0.05
POWER = 0.8  # chance of telling a difference apart that is as large as `detectable` says
FAR = 4.0  # spreads, from which on a seed is named


def equivalence_p(difference: Difference, margin: float) -> float | None:
    """P-value of TOST: the larger of the two one-sided p-values that the difference lies within ±margin.

    Below 0.05 the 90 % interval lies inside ±margin. None where the difference has no standard error.
    """
    if margin <= 0:
        raise ValueError(f"a margin of equivalence must be above 0, got {margin}")
    if difference.standard_error is None:
        return None
    gap = margin - abs(difference.value)
    if difference.standard_error == 0 or difference.df is None:
        return 0.0 if gap > 0 else 1.0
    return float(special.stdtr(difference.df, -gap / difference.standard_error))


@dataclass(frozen=True)
class Spreads:
    """Components of a paired difference's variance: between seeds, between prompts, and the rest."""

    seed: float
    prompt: float
    residual: float


def detectable(
    spreads: Spreads, n_seeds: int, n_prompts: int, n_tests: int = 1, pooled_df: float | None = None
) -> float:
    """The smallest true difference that is told apart with 80 % power, at 5 % over `n_tests` comparisons.

    (t_{1 - α/2m} + t_{0.8}) SE with SE² = seed/S + prompt/P + residual/(S P) and Satterthwaite's degrees of
    freedom; α/m is Holm's first step. `pooled_df`: degrees of freedom of the seed variance where a table pools
    it over rows; None: S - 1. With one seed the answer is about these trainings alone, and `seed` is left out.
    """
    if min(n_seeds, n_prompts, n_tests) < 1 or n_prompts < 2:
        raise ValueError(f"need a seed, two prompts and a test, got {n_seeds}, {n_prompts}, {n_tests}")
    prompt = spreads.prompt / n_prompts + spreads.residual / (n_seeds * n_prompts)
    seed = spreads.seed / n_seeds if n_seeds > 1 else 0.0
    variance, df = seed + prompt, float(n_prompts - 1)
    if seed > 0:
        seed_df = pooled_df or n_seeds - 1.0
        df = variance**2 / (seed**2 / seed_df + prompt**2 / (n_prompts - 1))
    quantiles = special.stdtrit(df, 1 - ALPHA / (2 * n_tests)) + special.stdtrit(df, POWER)
    return float(quantiles) * math.sqrt(variance)


class FarSeed(NamedTuple):
    """A seed whose value lies far from the mean of the row's other seeds: `gap` is its value less that mean."""

    seed: int
    gap: float
    n_seeds: int


def far_seeds(rows: Mapping[K, Mapping[int, float]]) -> dict[K, FarSeed]:
    """The farthest seed of each row where it is more than four spreads from the row's other seeds.

    `rows` holds the value of each seed. The spread is the sd over seeds, pooled over the other rows without
    those that are noisy beyond the 1 % point of F. Rows of fewer than three seeds name none.
    """
    far = {}
    for name, row in rows.items():
        others = [list(other.values()) for key, other in rows.items() if key != name]
        spread = pooled_spread([np.array(values) for values in others], screened=True)
        if len(row) < 3 or spread is None or spread.variance == 0:
            continue
        gaps = {seed: value - _mean(row, but=seed) for seed, value in row.items()}
        seed = max(gaps, key=lambda one: abs(gaps[one]))
        if abs(gaps[seed]) > FAR * spread.sd:
            far[name] = FarSeed(seed, gaps[seed], len(row))
    return far


def _mean(row: Mapping[int, float], but: int) -> float:
    others: Sequence[float] = [value for seed, value in row.items() if seed != but]
    return math.fsum(others) / len(others)
