"""How often a table's intervals cover, and how often a table of equal rows calls one apart from the start.

`python tests/stats/test_coverage.py` measures the long-run numbers below: 2,000 tables a scenario.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from bench.stats.estimates import (
    _bootstrap_means,
    _compare,
    _Crossed,
    holm,
    percentile_interval,
    pooled_spread,
    win_rate,
)

N_ROWS = 9


class Scenario(NamedTuple):
    n_seeds: int
    n_items: int
    noisy: float = 1.0  # seed variance of the noisy rows, in that of the others
    n_noisy: int = 1  # the first rows
    sigma: float = 0.0  # spread of the rows' seed sds: log-normal
    collapse: tuple[float, float] | None = None  # row 0 loses so much in that share of its seeds


SCENARIOS = {
    "equal variances": Scenario(3, 805),
    "equal variances, 100 prompts": Scenario(3, 100),
    "equal variances, 5 seeds": Scenario(5, 805),
    "one row of 20 x variance": Scenario(3, 805, noisy=20),
    "one row of 20 x variance, 100 prompts": Scenario(3, 100, noisy=20),
    "one row of 20 x variance, 5 seeds": Scenario(5, 805, noisy=20),
    "two rows of 20 x variance": Scenario(3, 805, noisy=20, n_noisy=2),
    "seed sds log-normal, sigma 1": Scenario(3, 805, sigma=1.0),
    "a row loses 15 points in a fifth of its seeds": Scenario(3, 805, collapse=(0.15, 0.2)),
}
# Percent: (tables with a false alarm after Holm, coverage of row 0, coverage of the other rows).
LONG_RUN = {
    "equal variances": (2.0, 97.2, 97.5),  # half width 2.8
    "equal variances, 100 prompts": (3.0, 97.2, 97.1),  # half width 4.8
    "equal variances, 5 seeds": (1.8, 96.6, 96.9),  # half width 1.8
    "one row of 20 x variance": (3.0, 93.7, 98.0),  # half width 2.9
    "one row of 20 x variance, 100 prompts": (3.0, 94.7, 97.6),  # half width 4.9
    "one row of 20 x variance, 5 seeds": (2.8, 93.8, 97.1),  # half width 1.8
    "two rows of 20 x variance": (4.0, 93.8, 98.9),  # half width 3.2
    "seed sds log-normal, sigma 1": (3.6, 98.1, 97.5),  # half width 4.5
    "a row loses 15 points in a fifth of its seeds": (15.9, 66.1, 97.1),  # half width 2.8
}


class Measured(NamedTuple):
    alarms: float
    noisy: float
    quiet: float
    half_width: float


def one_table(g: np.random.Generator, of: Scenario) -> list[_Crossed]:
    """Differences of rows of no effect from one start model: preferences with spreads as in committed tables."""
    shape = of.n_seeds, of.n_items
    sds = 0.01 * np.exp(g.normal(0, of.sigma, size=N_ROWS)) if of.sigma else np.full(N_ROWS, 0.01)
    sds[: of.n_noisy] *= math.sqrt(of.noisy)
    start = g.normal(0, 0.15, size=shape) + g.normal(0, 0.007, size=(of.n_seeds, 1))
    rows = []
    for n, sd in enumerate(sds):
        seeds = g.normal(0, sd, size=(of.n_seeds, 1))
        if of.collapse and n == 0:
            loss, share = of.collapse
            seeds += loss * (share - (g.random((of.n_seeds, 1)) < share))
        own = g.normal(0, 0.12, size=of.n_items) + g.normal(0, 0.15, size=shape)
        rows.append(_Crossed(list(range(of.n_seeds)), own + seeds - start, 0))
    return rows


def measure(of: Scenario, n_tables: int, seed: int) -> Measured:
    g, alarms, covered, half = np.random.default_rng(seed), 0, np.zeros(N_ROWS), np.zeros(N_ROWS)
    for _ in range(n_tables):
        layouts = one_table(g, of)
        spread = pooled_spread([layout.d.mean(axis=1) for layout in layouts], screened=True)
        leads = [_compare(layout, spread).lead for layout in layouts]
        adjusted = [p for p in holm([lead.p for lead in leads]) if p is not None]
        alarms += min(adjusted) < 0.05
        for n, lead in enumerate(leads):
            assert lead.low is not None and lead.high is not None
            covered[n] += lead.low <= 0 <= lead.high
            half[n] += (lead.high - lead.low) / 2
    shares = 100 * covered / n_tables
    return Measured(
        100 * alarms / n_tables,
        shares[0],
        shares[of.n_noisy :].mean(),
        100 * half[of.n_noisy :].mean() / n_tables,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_tables_intervals_cover_as_measured(name: str) -> None:
    """Within 3.5 binomial standard errors of 300 tables; where seeds are normal, intervals cover 93 % and more."""
    measured = measure(SCENARIOS[name], 300, seed=7)
    for rate, expected in zip(measured, LONG_RUN[name], strict=False):
        assert abs(rate - expected) < 3.5 * math.sqrt(max(expected * (100 - expected), 100) / 300)
    if SCENARIOS[name].collapse is None:
        assert LONG_RUN[name][0] < 6 and LONG_RUN[name][1] > 92.5 and LONG_RUN[name][2] > 95


# Name -> (true rate, draws of preferences).
RATES: dict[str, tuple[float, Callable[[np.random.Generator, int], np.ndarray]]] = {
    "graded, U-shaped, 50 %": (0.5, lambda g, n: g.beta(0.6, 0.6, n)),
    "graded, 2.4 %": (0.05 / 2.05, lambda g, n: g.beta(0.05, 2, n)),
    "votes, 5 %": (0.05, lambda g, n: (g.random(n) < 0.05) * 1.0),
    "votes, 0.5 %": (0.005, lambda g, n: (g.random(n) < 0.005) * 1.0),
}
ITEMS = 50, 100, 805
RATES_LONG_RUN = {
    "graded, U-shaped, 50 %": (94.4, 94.5, 94.8),
    "graded, 2.4 %": (87.6, 91.0, 94.8),
    "votes, 5 %": (96.7, 96.9, 94.3),
    "votes, 0.5 %": (97.9, 90.7, 93.8),
}


def rates_covered(name: str, n_items: int, n_tables: int, seed: int, bootstrap: bool = False) -> float:
    """Percent of 95 % intervals that hold the true rate; of the percentile bootstrap for comparison."""
    (rate, draw), g, covered = RATES[name], np.random.default_rng(seed), 0
    for _ in range(n_tables):
        y = draw(g, n_items)
        if bootstrap and 0 < y.mean() < 1:
            low, high = percentile_interval(_bootstrap_means(y, g, 300))
        else:
            one = win_rate(y.tolist())
            assert one is not None and one.low is not None and one.high is not None
            low, high = one.low, one.high
        covered += low <= rate <= high
    return 100 * covered / n_tables


@pytest.mark.slow
@pytest.mark.parametrize("name", RATES)
def test_the_interval_of_a_win_rate_covers_as_measured(name: str) -> None:
    """Within 3.5 binomial standard errors of 1,000 tables."""
    for n_items, expected in zip(ITEMS, RATES_LONG_RUN[name], strict=True):
        error = math.sqrt(expected * (100 - expected) / 1000)
        assert abs(rates_covered(name, n_items, 1000, seed=7) - expected) < 3.5 * error


if __name__ == "__main__":
    for title in RATES:
        wilsons, resampled = (
            [round(rates_covered(title, n, 1500 if of else 4000, 1, of), 1) for n in ITEMS]
            for of in (False, True)
        )
        print(f"{title}: {wilsons}, bootstrap {resampled}", flush=True)
    for title, scenario in SCENARIOS.items():
        found = measure(scenario, 2000, seed=1)
        rates = f"{found.alarms:.1f}, {found.noisy:.1f}, {found.quiet:.1f}"
        print(f'    "{title}": ({rates}),  # half width {found.half_width:.1f}', flush=True)
