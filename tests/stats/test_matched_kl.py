"""Two methods at equal KL: by hand, and how often the interval covers (`python tests/stats/test_matched_kl.py`)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.stats.matched_kl import Point, at_matched_kl

# (seeds, prompts) -> percent of intervals that hold the true difference, over 4,000 tables.
LONG_RUN = {(3, 100): 96.5, (3, 805): 93.3, (5, 100): 96.5, (5, 805): 95.2}


def flat(kl: float, rate: float) -> Point:
    """Three seeds and four prompts without any noise."""
    return Point(np.full(3, kl), np.full((3, 4), rate))


def test_the_area_between_two_frontiers_by_hand() -> None:
    """First: 0.2 + 0.1 KL from 0 to 4. Second: 0.3 from 1 to 5. Over 1 to 4 the first is 0.45 on average: +0.15."""
    found = at_matched_kl([flat(4, 0.6), flat(0, 0.2)], [flat(1, 0.3), flat(5, 0.3)])
    assert found is not None and (found.low_kl, found.high_kl) == (1, 4)
    assert found.difference.value == pytest.approx(0.15)
    turned = at_matched_kl([flat(1, 0.3), flat(5, 0.3)], [flat(4, 0.6), flat(0, 0.2)])
    assert turned is not None and turned.difference.value == pytest.approx(-0.15)


def test_frontiers_without_a_common_range_or_with_one_point_are_not_compared() -> None:
    low, high = [flat(0, 0.2), flat(1, 0.3)], [flat(2, 0.3), flat(3, 0.4)]
    assert at_matched_kl(low, high) is None and at_matched_kl(low, low[:1]) is None


def one_table(g: np.random.Generator, n_seeds: int, n_prompts: int) -> tuple[list[Point], list[Point]]:
    """Two methods with one frontier 0.25 + 0.03 KL, and KLs of their own."""
    start = g.normal(0, 0.007, (n_seeds, 1)) + g.normal(0, 0.15, (n_seeds, n_prompts))
    sides = []
    for kls in ((0.5, 2.0, 4.0, 7.0), (1.0, 2.5, 5.0, 8.0)):
        points = []
        for kl in kls:
            own = g.normal(0, 0.12, n_prompts) + g.normal(0, 0.15, (n_seeds, n_prompts))
            wins = 0.25 + 0.03 * kl + start + own + g.normal(0, 0.01, (n_seeds, 1))
            points.append(Point(kl * (1 + g.normal(0, 0.1, n_seeds)), wins))
        sides.append(points)
    return sides[0], sides[1]


def covered(n_seeds: int, n_prompts: int, n_tables: int, seed: int) -> float:
    g, hits = np.random.default_rng(seed), 0
    for _ in range(n_tables):
        found = at_matched_kl(*one_table(g, n_seeds, n_prompts))
        assert found is not None and found.difference.low is not None and found.difference.high is not None
        hits += found.difference.low <= 0 <= found.difference.high
    return 100 * hits / n_tables


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "prompts"), LONG_RUN)
def test_the_interval_at_matched_kl_covers_as_measured(seeds: int, prompts: int) -> None:
    """Within 3.5 binomial standard errors of 1,000 tables."""
    expected = LONG_RUN[seeds, prompts]
    assert abs(covered(seeds, prompts, 1000, 7) - expected) < 3.5 * math.sqrt(
        expected * (100 - expected) / 1000
    )


if __name__ == "__main__":
    for case in LONG_RUN:
        print(case, round(covered(*case, 4000, 1), 1), flush=True)
