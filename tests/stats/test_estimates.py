from __future__ import annotations

import math
import random

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as sps
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from bench.stats.estimates import (
    BySeed,
    Comparison,
    accuracy,
    compare_table,
    holm,
    indistinguishable,
    mean_estimate,
    paired_difference,
    pool,
    rating_mean,
    seed_difference,
    wilson,
    win_rate,
)

PREFERENCES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]) | st.none(), min_size=1, max_size=40)


def compare(a: BySeed, b: BySeed) -> Comparison | None:
    """A row by itself: a table of one."""
    return compare_table({"row": (a, b)})["row"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- win rate


def test_win_rate_by_hand():
    """1, 0.5, 0, unscored, 0.5: mean 2/4; squared deviations 0.25 + 0 + 0.25 + 0 over 3 = 1/6; SE = sqrt(1/6/4) = sqrt(1/24)."""
    rate = win_rate([1, 0.5, 0, None, 0.5])
    assert rate is not None
    assert (rate.value, rate.n, rate.n_unscored) == (0.5, 4, 1)
    assert rate.standard_error == pytest.approx(math.sqrt(1 / 24))
    assert rate.low is not None and rate.high is not None and rate.low < 0.5 < rate.high


def test_nothing_scored_has_no_win_rate():
    assert win_rate([None, None]) is None
    assert win_rate([]) is None
    assert rating_mean({"q": [None]}) is None
    assert mean_estimate([None]) is None
    assert accuracy([None]) is None
    assert pool([]) is None


def test_one_item_has_no_interval():
    rate = win_rate([1.0])
    assert rate is not None and (rate.value, rate.standard_error, rate.low, rate.high) == (
        1.0,
        None,
        None,
        None,
    )


def test_sure_wins_get_wilsons_interval_at_their_number():
    """n = 20, all won: Wilson's lower bound is 1 / (1 + z^2 / n) = 20 / (20 + 3.8415)."""
    rate = win_rate([1.0] * 20)
    assert rate is not None and rate.high == 1.0
    assert rate.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan")])
def test_a_preference_outside_its_range_is_refused(bad):
    with pytest.raises(ValueError):
        win_rate([0.5, bad])


@settings(max_examples=40, deadline=None)
@given(PREFERENCES)
def test_swapping_sides_mirrors_the_win_rate(preferences):
    ours = win_rate(preferences)
    theirs = win_rate([None if p is None else 1 - p for p in preferences])
    if ours is None or theirs is None:
        assert ours is theirs
        return
    assert theirs.value == pytest.approx(1 - ours.value)
    assert theirs.standard_error == pytest.approx(ours.standard_error)


@settings(max_examples=40, deadline=None)
@given(PREFERENCES, st.randoms(use_true_random=False))
def test_order_of_items_never_matters_nor_do_unscored_ones(preferences, shuffler: random.Random):
    shuffled = [p for p in preferences if p is not None]
    shuffler.shuffle(shuffled)
    ours, theirs = win_rate(preferences), win_rate(shuffled)
    if ours is None or theirs is None:
        assert ours is theirs
        return
    assert (ours.value, ours.standard_error, ours.low, ours.high) == (
        theirs.value,
        theirs.standard_error,
        theirs.low,
        theirs.high,
    )
    assert ours.n == theirs.n and ours.n_unscored == len(preferences) - len(shuffled)


def test_a_win_rates_interval_is_wilsons_at_the_effective_number_of_items():
    """Votes 1, 0, 0, 0: n_eff = 4 * (3/16) / (1/4) = 3. Ties are worth more: 1, 0, 0.5, 0.5 has n_eff 4 * (1/4) / (1/6) = 6."""
    votes, ties = win_rate([1, 0, 0, 0]), win_rate([1, 0, 0.5, 0.5])
    assert votes is not None and ties is not None
    assert (votes.low, votes.high) == pytest.approx(wilson(0.75, 3))
    assert (ties.low, ties.high) == pytest.approx(wilson(3, 6))
    alike = win_rate([0.5] * 9)
    assert alike is not None and (alike.low, alike.high) == (0.5, 0.5)


def test_bootstrap_interval_agrees_with_scipys():
    y = rng(3).beta(0.6, 0.4, size=300)
    values = {str(i): value for i, value in enumerate(y.tolist())}
    rate = paired_difference(values, dict.fromkeys(values, 0.0), rng(), n_resamples=20_000)
    theirs = sps.bootstrap(
        (y,), np.mean, n_resamples=20_000, method="percentile", rng=rng(1), batch=2000
    ).confidence_interval
    assert rate is not None
    assert (rate.low, rate.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)


# ---- ratings, accuracy, means


def test_rating_mean_by_hand():
    """Items (8, 6), (4, 4), (5, unscored): mean 27/5 = 5.4. Residual sums 14 - 10.8 = 3.2, 8 - 10.8 = -2.8, 5 - 5.4 = -0.4;
    squares 10.24 + 7.84 + 0.16 = 18.24; SE = sqrt(3/2 * 18.24) / 5."""
    rating = rating_mean({"a": [8, 6], "b": [4, 4], "c": [5, None]})
    assert rating is not None
    assert (rating.value, rating.n, rating.n_unscored) == (pytest.approx(5.4), 5, 1)
    assert rating.standard_error == pytest.approx(math.sqrt(1.5 * 18.24) / 5)
    half = sps.t.ppf(0.975, 2) * math.sqrt(1.5 * 18.24) / 5
    assert (rating.low, rating.high) == pytest.approx((5.4 - half, 5.4 + half))


def test_rating_error_agrees_with_clustered_least_squares():
    g = rng(4)
    ratings = {
        f"q{i}": np.clip(g.normal(7, 2) + g.normal(0, 1, size=2), 1, 10).tolist()[: 1 + (i % 5 > 0)]
        for i in range(40)
    }
    y = [v for turns in ratings.values() for v in turns]
    groups = [i for i, turns in enumerate(ratings.values()) for _ in turns]
    theirs = sm.OLS(y, np.ones(len(y))).fit(cov_type="cluster", cov_kwds={"groups": groups})
    ours = rating_mean(ratings)
    assert ours is not None
    assert (ours.value, ours.standard_error) == pytest.approx((theirs.params[0], theirs.bse[0]), abs=1e-9)


def test_two_equal_turns_carry_no_more_information_than_one():
    ratings = {f"q{i}": [float(r)] for i, r in enumerate(rng(0).integers(1, 11, size=30))}
    once, twice = rating_mean(ratings), rating_mean({item: turns * 2 for item, turns in ratings.items()})
    assert once is not None and twice is not None
    assert twice.standard_error == pytest.approx(once.standard_error)


@pytest.mark.parametrize(("n_right", "n"), [(0, 7), (7, 7), (61, 100), (1, 1)])
def test_accuracy_interval_is_wilsons(n_right, n):
    ours = accuracy([True] * n_right + [False] * (n - n_right) + [None])
    assert ours is not None and ours.n == n and ours.n_unscored == 1
    assert (ours.low, ours.high) == pytest.approx(proportion_confint(n_right, n, method="wilson"), abs=1e-12)


def test_mean_interval_agrees_with_scipy():
    x = rng(1).exponential(size=25)
    ours = mean_estimate([*x.tolist(), None])
    theirs = sps.ttest_1samp(x, 0).confidence_interval(0.95)
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.standard_error == pytest.approx(sps.sem(x))


def test_pooling_seeds_by_hand():
    """0.5, 0.6, 0.7: mean 0.6, sd 0.1, half width 4.3027 * 0.1 / sqrt(3) = 0.24841."""
    ours = pool([0.5, 0.6, None, 0.7])
    assert ours is not None and ours.n_seeds == 3
    assert (ours.mean, ours.sd, ours.low, ours.high) == pytest.approx(
        (0.6, 0.1, 0.6 - 0.248414, 0.6 + 0.248414), abs=1e-6
    )
    one = pool([0.5])
    assert one is not None and (one.sd, one.low, one.high) == (None, None, None)


# ---- comparisons


def test_paired_difference_agrees_with_the_paired_t_test():
    g = rng(2)
    b = {f"i{k}": float(v) for k, v in enumerate(g.random(60))}
    a = {item: min(1.0, v + float(g.normal(0.1, 0.2))) for item, v in b.items()}
    ours = paired_difference({**a, "only a": 1.0}, {**b, "i0": None}, rng())
    theirs = sps.ttest_rel([a[i] for i in b if i != "i0"], [b[i] for i in b if i != "i0"])
    assert ours is not None
    assert (ours.t, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert (ours.n, ours.n_dropped) == (59, 2)
    assert ours.low is not None and ours.high is not None and ours.low < ours.value < ours.high


def test_a_large_difference_has_a_p_far_below_what_resampling_resolves():
    g = rng(2)
    a = {str(k): float(g.random() < 0.8) for k in range(400)}
    b = {str(k): float(g.random() < 0.3) for k in range(400)}
    ours = paired_difference(a, b, rng())
    assert ours is not None and ours.p is not None and 0 < ours.p < 1e-20


def test_items_that_all_agree_prove_no_more_than_their_number():
    """Each item differs by 1: the sign-flip test on 5 items has p = 2 / 2^5, and no spread means no interval."""
    ours = paired_difference({str(k): 1.0 for k in range(5)}, {str(k): 0.0 for k in range(5)}, rng())
    assert ours is not None and (ours.p, ours.low, ours.t) == (2 / 2**5, None, None)


def test_a_row_does_not_differ_from_itself():
    row = {s: {str(k): float(v) for k, v in enumerate(rng(s).random(20))} for s in range(3)}
    one = paired_difference(row[0], row[0], rng())
    both = compare(row, row)
    assert one is not None and both is not None and both.combined is not None
    assert one.value == both.combined.value == 0
    assert one.p == both.combined.p == 1


def test_no_shared_item_is_no_comparison():
    assert paired_difference({"a": 1.0}, {"b": 1.0}, rng()) is None
    assert compare({0: {"a": 1.0}}, {1: {"a": 1.0}}) is None
    assert compare({0: {"a": 1.0}}, {0: {"a": None}}) is None


def test_seed_difference_agrees_with_scipy_and_gives_no_p_without_spread():
    ours = seed_difference([0.1, 0.14, 0.09])
    theirs = sps.ttest_1samp([0.1, 0.14, 0.09], 0)
    assert ours is not None and (ours.t, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue))
    flat = seed_difference([0.2, 0.2, 0.2])
    assert flat is not None and (flat.value, flat.p, flat.low) == (pytest.approx(0.2), None, None)


def layout(d: np.ndarray) -> tuple[dict[int, dict[str, float]], dict[int, dict[str, float]]]:
    """(S, P) differences as two rows of a table."""
    a = {s: {str(i): float(v) for i, v in enumerate(row)} for s, row in enumerate(d)}
    return a, {s: dict.fromkeys(row, 0.0) for s, row in a.items()}


def test_combined_error_by_hand():
    """d = [[0, 2, 4], [2, 4, 9]], mean 3.5. Seed means 2 and 5: MS_seed = 3 (2.25 + 2.25) / 1 = 13.5. Item means 1, 3, 6.5:
    MS_prompt = 2 (6.25 + 0.25 + 9) / 2 = 15.5. Residuals +-(0.5, 0.5, -1): MS_residual = 2 * 1.5 / 2 = 1.5.
    Var(mean) = (13.5 + 15.5 - 1.5) / 6 = 27.5 / 6; df = 27.5^2 / (13.5^2 / 1 + 15.5^2 / 2 + 1.5^2 / 2) = 2.4963, cut to P - 1 = 2.
    Components: seed 12 / 3, prompt 14 / 2, residual 1.5; and 4/2 + 7/3 + 1.5/6 is 27.5/6 again."""
    ours = compare(*layout(np.array([[0.0, 2, 4], [2, 4, 9]])))
    assert ours is not None and ours.combined is not None and ours.seeds is not None
    assert ours.combined.value == 3.5 and ours.combined.df == pytest.approx(2)
    assert ours.combined.standard_error == pytest.approx(math.sqrt(27.5 / 6))
    assert (ours.variance_seed, ours.variance_prompt, ours.variance_residual) == pytest.approx((4, 7, 1.5))
    assert ours.seeds.standard_error == pytest.approx(math.sqrt(13.5 / 6))
    assert ours.prompts.standard_error == pytest.approx(math.sqrt(15.5 / 6))
    assert ours.per_seed == {0: 2, 1: 5}


def test_mean_squares_agree_with_least_squares_anova():
    d = rng(9).normal(size=(3, 7)) + rng(1).normal(size=(3, 1)) * 2 + rng(2).normal(size=(1, 7)) * 2
    seed = np.repeat(np.eye(3), 7, axis=0)[:, 1:]
    item = np.tile(np.eye(7), (3, 1))[:, 1:]
    one = np.ones((21, 1))
    full = sm.OLS(d.ravel(), np.hstack([one, seed, item])).fit()
    ms_seed = (sm.OLS(d.ravel(), np.hstack([one, item])).fit().ssr - full.ssr) / 2
    ms_item = (sm.OLS(d.ravel(), np.hstack([one, seed])).fit().ssr - full.ssr) / 6
    ms_rest = full.ssr / 12
    ours = compare(*layout(d))
    assert ours is not None and ours.combined is not None and ours.combined.standard_error is not None
    assert ours.variance_residual == pytest.approx(ms_rest)
    assert ours.combined.standard_error**2 * 21 == pytest.approx(ms_seed + ms_item - ms_rest)
    df = (ms_seed + ms_item - ms_rest) ** 2 / (ms_seed**2 / 2 + ms_item**2 / 6 + ms_rest**2 / 12)
    assert ours.combined.df == pytest.approx(min(max(df, 2), 6))


def test_seeds_that_scatter_no_more_than_the_residual_leave_the_prompt_error():
    d = rng(0).normal(size=(3, 50)) + rng(1).normal(size=(1, 50))
    d -= d.mean(axis=1, keepdims=True) - 0.1
    ours = compare(*layout(d))
    assert ours is not None and ours.combined is not None and ours.variance_seed == 0
    assert ours.combined.standard_error == pytest.approx(ours.prompts.standard_error)
    assert ours.combined.p == pytest.approx(ours.prompts.p)


def test_comparison_drops_items_unscored_under_any_seed_and_seeds_of_one_side():
    a = {0: {"x": 1.0, "y": 1.0, "z": 0.5}, 1: {"x": 1.0, "y": None, "z": 0.0}, 2: {"x": 0.0}}
    b = {0: {"x": 0.0, "y": 0.0, "z": 0.5}, 1: {"x": 0.5, "y": 0.0, "z": 0.0}}
    ours = compare(a, b)
    assert ours is not None
    assert (ours.n_seeds, ours.n_items, ours.n_dropped) == (2, 2, 1)
    assert ours.per_seed == {0: 0.5, 1: 0.25}


def test_one_seed_leads_with_the_prompt_interval():
    ours = compare(*layout(rng(0).normal(0.3, 1, size=(1, 40))))
    assert ours is not None and ours.combined is None and ours.seeds is None
    assert ours.lead is ours.prompts and ours.prompts.p is not None


def test_order_of_items_and_seeds_never_matters_to_a_comparison_and_sides_mirror_it():
    a, b = layout(rng(5).normal(0.1, 1, size=(3, 30)))
    turned = {s: dict(reversed(row.items())) for s, row in reversed(a.items())}
    assert compare(turned, b) == compare(a, b)
    ours, theirs = compare(a, b), compare(b, a)
    assert (
        ours is not None and theirs is not None and ours.combined is not None and theirs.combined is not None
    )
    assert theirs.combined.value == pytest.approx(-ours.combined.value)
    assert theirs.combined.p == pytest.approx(ours.combined.p)


def draw(
    g: np.random.Generator,
    n_rows: int,
    seed: float,
    prompt: float,
    residual: float,
    n_seeds: int = 3,
    n_items: int = 200,
):
    """(rows, S, P) differences of mean 0 from one start model: half of the seed effect, prompt effect and residual is the start's."""

    def effect(sd: float, *shape: int) -> np.ndarray:
        return sd / math.sqrt(2) * (g.normal(size=(n_rows, *shape)) - g.normal(size=(1, *shape)))

    return effect(seed, n_seeds, 1) + effect(prompt, 1, n_items) + effect(residual, n_seeds, n_items)


# (seed sd, prompt sd, residual sd), and how often (row alone, whole table, seeds only, prompts only) cries wolf at 5%:
# 1,300 tables each and more
FALSE_ALARMS = {
    "no seed variance": ((0.0, 0.5, 0.5), (0.039, 0.033, 0.169, 0.051)),
    "half of it": ((0.05, 0.4, 0.5), (0.053, 0.030, 0.080, 0.124)),
    "mostly seeds": ((0.15, 0.4, 0.5), (0.073, 0.031, 0.053, 0.453)),
}


@pytest.mark.parametrize("name", FALSE_ALARMS)
def test_false_alarms_of_each_interval_on_three_seeds(name):
    """The table's interval stays below the nominal 5% everywhere; seeds alone ignore other prompts, prompts alone other seeds.

    Three rows each of 150 tables: within 3.5 binomial standard errors for 150, as rows of a table share their start model.
    """
    variances, long_run = FALSE_ALARMS[name]
    g = rng(20)
    alarms = []
    for _ in range(150):
        pairs = {k: layout(d) for k, d in enumerate(draw(g, 9, *variances))}
        table = compare_table(pairs)
        for k in (0, 3, 6):
            row, alone = table[k], compare(*pairs[k])
            assert row is not None and row.combined is not None and alone is not None
            tests = (alone.combined, row.combined, row.seeds, row.prompts)
            alarms.append([test is not None and test.p is not None and test.p < 0.05 for test in tests])
            assert row.combined.low is not None and row.combined.high is not None
            assert (row.combined.low > 0 or row.combined.high < 0) == alarms[-1][1]
    for rate, expected in zip(np.mean(alarms, axis=0), long_run, strict=True):
        assert abs(rate - expected) < 3.5 * math.sqrt(expected * (1 - expected) / 150)


def test_bootstrap_over_three_seeds_covers_three_quarters():
    """Why there is none here: each of 27 resamples has probability 1/27 > 2.5%, so the interval is [min, max]: 1 - 2/8."""
    x = rng(0).normal(size=(500, 3))
    means = x[:, np.indices((3, 3, 3)).reshape(3, -1).T].mean(axis=2)
    low, high = np.quantile(means, [0.025, 0.975], axis=1, method="inverted_cdf")
    assert np.allclose(low, x.min(axis=1)) and np.allclose(high, x.max(axis=1))
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.75, abs=0.06)


def test_a_real_difference_passes_holm_over_nine_rows_on_three_seeds_where_the_seed_t_test_cannot():
    d = draw(rng(3), 9, seed=0.03, prompt=0.4, residual=0.4, n_items=300)
    d[0] += 0.25
    table = compare_table({k: layout(row) for k, row in enumerate(d)})
    best = table[0]
    assert (
        best is not None
        and best.combined is not None
        and best.combined.t is not None
        and best.p_holm is not None
    )
    assert best.combined.t > 3 and best.p_holm < 0.05
    assert all(
        row is not None and row.p_holm is not None and row.p_holm > 0.05 for k, row in table.items() if k
    )
    by_seeds = holm([row.seeds.p if row and row.seeds else None for row in table.values()])
    assert by_seeds[0] is not None and by_seeds[0] > 0.01


def test_pooling_widens_a_row_whose_seeds_agree_by_luck_and_leaves_missing_rows_missing():
    d = draw(rng(3), 5, seed=0.1, prompt=0.3, residual=0.3)
    d[0] -= d[0].mean(axis=1, keepdims=True)
    pairs = {k: layout(row) for k, row in enumerate(d)}
    table = compare_table({**pairs, 9: ({0: {"x": None}}, {0: {"x": 1.0}})})
    alone, row = compare(*pairs[0]), table[0]
    assert alone is not None and alone.combined is not None and row is not None and row.combined is not None
    assert alone.combined.standard_error is not None and row.combined.standard_error is not None
    assert row.combined.standard_error > 2 * alone.combined.standard_error
    assert table[9] is None


# ---- corrections


def test_holm_by_hand():
    """Of 3 tests 0.01, 0.03, 0.04: 3 * 0.01, 2 * 0.03, and 1 * 0.04 raised to the 0.06 before it. None is no test."""
    assert holm([0.03, None, 0.01, 0.04]) == [
        pytest.approx(0.06),
        None,
        pytest.approx(0.03),
        pytest.approx(0.06),
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1) | st.none(), max_size=8))
def test_holm_agrees_with_statsmodels(p_values):
    measured = [p for p in p_values if p is not None]
    ours = holm(p_values)
    assert [p is None for p in ours] == [p is None for p in p_values]
    if measured:
        assert [p for p in ours if p is not None] == pytest.approx(
            list(multipletests(measured, method="holm")[1])
        )


def test_rows_that_cannot_be_told_apart_from_the_best():
    values = {"dpo": 0.61, "kto": 0.6, "simpo": 0.4, "orpo": 0.5, "failed": None}
    p_holm = {("kto", "dpo"): 0.8, ("dpo", "simpo"): 0.001, ("dpo", "orpo"): None, ("kto", "simpo"): 0.2}
    assert indistinguishable(values, p_holm) == ("dpo", {"dpo", "kto", "orpo"})
    assert indistinguishable({"failed": None}, {}) is None
