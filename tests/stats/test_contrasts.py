from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.weightstats import ttost_paired

from bench.stats.contrasts import Spreads, detectable, equivalence_p, far_seeds
from bench.stats.estimates import Difference, _compare, _Crossed, compare_table


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def one_seed(values: np.ndarray) -> Difference:
    items = {0: {str(n): float(v) for n, v in enumerate(values)}}
    row = compare_table({"row": (items, {0: dict.fromkeys(items[0], 0.0)})})["row"]
    assert row is not None
    return row.lead


@pytest.mark.parametrize("margin", [0.05, 0.3, 2.0])
def test_equivalence_is_two_one_sided_t_tests(margin: float) -> None:
    values = rng(0).normal(0.1, 1, size=40)
    expected, _, _ = ttost_paired(values, np.zeros(40), -margin, margin)
    assert equivalence_p(one_seed(values), margin) == pytest.approx(expected)


def test_equivalence_needs_a_margin_and_a_standard_error() -> None:
    with pytest.raises(ValueError, match="above 0"):
        equivalence_p(one_seed(rng(0).normal(size=9)), 0.0)
    assert equivalence_p(Difference(0.0, None, None, None, None, None, None, 1), 1.0) is None
    assert equivalence_p(Difference(0.5, 0.0, None, None, None, 3, 0.0, 4), 1.0) == 0.0
    assert equivalence_p(Difference(-1.5, 0.0, None, None, None, 3, 0.0, 4), 1.0) == 1.0


@pytest.mark.parametrize(("n_seeds", "n_prompts"), [(3, 200), (5, 100), (1, 300)])
def test_a_difference_of_the_detectable_size_is_told_apart_in_eighty_of_hundred_tables(
    n_seeds: int, n_prompts: int
) -> None:
    """Within 3 binomial standard errors of 600 rows, and 4 points for Satterthwaite's approximation."""
    g, spreads, shape = rng(1), Spreads(0.02**2, 0.3**2, 0.2**2), (n_seeds, n_prompts)
    effect, hits = detectable(spreads, n_seeds, n_prompts), 0
    for _ in range(600):
        seeds = 0.02 * g.normal(size=(n_seeds, 1)) * (n_seeds > 1)
        d = effect + seeds + 0.3 * g.normal(size=n_prompts) + 0.2 * g.normal(size=shape)
        p = _compare(_Crossed(list(range(n_seeds)), d, 0), None).lead.p
        hits += p is not None and p < 0.05
    assert abs(hits / 600 - 0.8) < 3 * math.sqrt(0.8 * 0.2 / 600) + 0.04


def test_more_seeds_prompts_and_fewer_tests_tell_smaller_differences_apart() -> None:
    spreads = Spreads(0.02**2, 0.3**2, 0.2**2)
    base = detectable(spreads, 3, 805, n_tests=10, pooled_df=6)
    assert detectable(spreads, 6, 805, n_tests=10, pooled_df=6) < base
    assert detectable(spreads, 3, 2000, n_tests=10, pooled_df=6) < base
    assert detectable(spreads, 3, 805, n_tests=1, pooled_df=6) < base
    assert detectable(spreads, 3, 805, n_tests=10) > base
    with pytest.raises(ValueError, match="two prompts"):
        detectable(spreads, 3, 1)


def test_a_seed_far_from_the_others_is_named_with_its_gap() -> None:
    rows = {
        "quiet": {0: 39.2, 1: 39.0, 2: 39.9},
        "calm": {0: 44.0, 1: 43.1, 2: 43.7},
        "collapsed": {0: 41.8, 1: 41.1, 2: 31.7},
        "even": {0: 40.0, 1: 41.0, 2: 40.6},
    }
    ((name, far),) = far_seeds(rows).items()
    assert (name, far.seed, far.n_seeds) == ("collapsed", 2, 3)
    assert far.gap == pytest.approx(31.7 - (41.8 + 41.1) / 2)


def test_two_collapsed_rows_do_not_hide_each_other_and_short_rows_name_none() -> None:
    g = rng(3)
    rows = {n: dict(enumerate(40 + g.normal(size=3))) for n in range(9)}
    rows[0][1] -= 20
    rows[1][2] -= 20
    rows[9] = {0: 40.0, 1: 10.0}
    assert {name: far.seed for name, far in far_seeds(rows).items()} == {0: 1, 1: 2}
    assert far_seeds({"alone": {0: 1.0, 1: 1.1, 2: 9.0}}) == {}
