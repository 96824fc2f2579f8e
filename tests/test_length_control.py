"""Length control against its equations, statsmodels and worlds whose answer is known."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import statsmodels.api as sm

from bench.length_control import LcWinRate, lc_contributions, lc_win_rate
from bench.stats import Unmeasured, mean_estimate


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def world(n: int = 400, seed: int = 0, strength: float = 0.3, bias: float = 1.0, votes: bool = True):
    """A policy that writes 400 characters more, and a judge that likes length: logit = strength + bias * tanh(excess / sd)."""
    g = rng(seed)
    baseline = g.integers(500, 2500, size=n)
    policy = np.maximum(1, baseline + g.normal(400, 500, size=n).astype(int))
    gap = baseline - policy
    p = 1 / (1 + np.exp(-(strength - bias * np.tanh(gap / gap.std(ddof=1)))))
    y = (g.random(n) < p).astype(float) if votes else p
    return y.tolist(), policy.tolist(), baseline.tolist()


def test_lc_win_rate_undoes_a_known_length_bias_exactly_when_the_judge_says_its_probabilities():
    """y = sigmoid(0.3 - tanh(g / sd)) is the model itself, so the fit returns -1 and 0.3, and LC = sigmoid(0.3) = 0.57444."""
    rate = lc_win_rate(*world(votes=False), rng())
    assert isinstance(rate, LcWinRate)
    assert (rate.length_coefficient, rate.model_coefficient) == pytest.approx((-1.0, 0.3), abs=1e-8)
    assert rate.value == pytest.approx(1 / (1 + math.exp(-0.3)), abs=1e-9)


@pytest.mark.parametrize("with_difficulty", [False, True])
def test_one_fit_agrees_with_statsmodels(with_difficulty):
    _, policy, baseline = world(seed=5)
    g = rng(6)
    y = g.beta(0.3, 0.4, size=len(policy))
    gap = np.array(baseline) - np.array(policy)
    x = np.column_stack([np.tanh(gap / gap.std(ddof=1)), np.ones(len(y))])
    difficulty = None
    if with_difficulty:
        difficulty = g.normal(0, 1.5, size=len(y)).tolist()
        x = np.column_stack([x, difficulty])
    w = sm.GLM(y, x, family=sm.families.Binomial()).fit(tol=1e-14, maxiter=100).params
    rate = lc_win_rate(y.tolist(), policy, baseline, rng(), difficulty)
    assert isinstance(rate, LcWinRate)
    ours = [rate.length_coefficient, rate.model_coefficient] + ([rate.difficulty_coefficient] if with_difficulty else [])
    assert ours == pytest.approx(list(w), abs=1e-6)
    at_equal_length = x.copy()
    at_equal_length[:, 0] = 0
    assert rate.value == pytest.approx(float(np.mean(1 / (1 + np.exp(-at_equal_length @ w)))), abs=1e-8)


def test_lc_is_the_same_to_the_last_bit_in_any_order_and_without_unscored_rows():
    y, policy, baseline = world(120)
    difficulty = rng(8).normal(size=120).tolist()
    rows = list(zip(y, policy, baseline, difficulty, strict=True))
    random.Random(1).shuffle(rows)
    rows.insert(7, (None, 10, 9000, 3.0))
    ours = lc_win_rate(y, policy, baseline, rng(), difficulty, n_resamples=60)
    a, b, c, d = (list(column) for column in zip(*rows, strict=True))
    theirs = lc_win_rate(a, b, c, rng(), d, n_resamples=60)
    assert isinstance(ours, LcWinRate) and isinstance(theirs, LcWinRate)
    assert theirs.n_unscored == 1
    assert (ours.value, ours.standard_error, ours.low, ours.high, ours.n) == (
        theirs.value, theirs.standard_error, theirs.low, theirs.high, theirs.n,
    )  # fmt: skip


def test_dropping_the_first_row_hardly_moves_lc():
    """Keyed by row number, as in the package, this shifts every difficulty by one item and the rate by up to 9 points."""
    y, policy, baseline = world(805)
    difficulty = rng(8).normal(0, 1.5, size=805).tolist()
    whole = lc_win_rate(y, policy, baseline, rng(), difficulty, n_resamples=5)
    less = lc_win_rate(y[1:], policy[1:], baseline[1:], rng(), difficulty[1:], n_resamples=5)
    assert isinstance(whole, LcWinRate) and isinstance(less, LcWinRate)
    assert abs(whole.value - less.value) < 0.003


def test_swapping_sides_mirrors_the_lc_win_rate():
    y, policy, baseline = world(200)
    ours = lc_win_rate(y, policy, baseline, rng(), n_resamples=5)
    theirs = lc_win_rate([1 - v for v in y], baseline, policy, rng(), n_resamples=5)
    assert isinstance(ours, LcWinRate) and isinstance(theirs, LcWinRate)
    assert theirs.value == pytest.approx(1 - ours.value, abs=1e-9)


@pytest.mark.parametrize("gap", [0, 300])
def test_lengths_that_differ_by_a_constant_leave_the_plain_rate(gap):
    y = [1.0, 0.0, 0.5, 1.0, 0.3]
    rate = lc_win_rate(y, [100 + gap] * 5, [100] * 5, rng())
    assert isinstance(rate, LcWinRate)
    assert rate.value == pytest.approx(2.8 / 5) and rate.length_coefficient is None
    assert lc_contributions(y, [100 + gap] * 5, [100] * 5) == pytest.approx(y, abs=1e-9)


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_all_lost_or_all_won_is_the_limit_with_wilsons_interval(outcome):
    rate = lc_win_rate([outcome] * 30, list(range(100, 130)), [110] * 30, rng())
    assert isinstance(rate, LcWinRate)
    assert rate.value == outcome and rate.low is not None and rate.high is not None
    assert rate.high - rate.low > 0.05


def test_a_judge_that_only_looks_at_length_leaves_nothing_at_equal_length():
    policy = list(range(100, 160))
    y = [float(length > 130) for length in policy]
    assert isinstance(lc_win_rate(y, policy, [130] * 60, rng()), Unmeasured)
    assert isinstance(lc_contributions(y, policy, [130] * 60), Unmeasured)
    y[5] = 1.0  # one short win: the fit exists again
    assert isinstance(lc_win_rate(y, policy, [130] * 60, rng(), n_resamples=5), LcWinRate)


def test_no_interval_where_many_refits_are_separated():
    """Two losses among 40 that no resample is sure to contain: a share (1 - 1/40)^40 = 36% lacks the one that overlaps."""
    policy = list(range(100, 140))
    y = [float(length > 119) for length in policy]
    y[3] = 1.0
    rate = lc_win_rate(y, policy, [120] * 40, rng(), n_resamples=200)
    assert isinstance(rate, LcWinRate)
    assert 0.2 < rate.n_failed_refits / 200 < 0.5
    assert rate.low is rate.high is rate.standard_error is None


def test_too_few_items_for_a_fit_say_so():
    assert isinstance(lc_win_rate([None], [5], [6], rng()), Unmeasured)
    assert isinstance(lc_win_rate([1.0, 0.0], [5, 9], [6, 6], rng()), Unmeasured)


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="one entry an item"):
        lc_win_rate([0.5, 0.5], [3], [4, 4], rng())


@pytest.mark.parametrize("with_difficulty", [False, True])
def test_contributions_average_to_lc_and_scatter_like_its_refits(with_difficulty):
    y, policy, baseline = world(600, seed=2)
    difficulty = rng(1).normal(size=600).tolist() if with_difficulty else None
    rate = lc_win_rate(y, policy, baseline, rng(), difficulty)
    each = lc_contributions([*y, None], [*policy, 1], [*baseline, 1], None if difficulty is None else [*difficulty, 0.0])
    assert isinstance(rate, LcWinRate) and isinstance(each, list)
    assert each[-1] is None
    mean = mean_estimate(each)
    assert mean is not None and mean.value == pytest.approx(rate.value, abs=1e-10)
    assert mean.standard_error == pytest.approx(rate.standard_error, rel=0.1)


def test_lc_interval_covers_the_truth():
    """sigmoid(0.3) is the rate at equal length; 150 worlds of 200 items. Binomial(150, 0.95) lies above 134 in 99.9%."""
    truth = 1 / (1 + math.exp(-0.3))
    covered = 0
    for seed in range(150):
        rate = lc_win_rate(*world(200, seed=seed), rng(seed), n_resamples=200)
        assert isinstance(rate, LcWinRate) and rate.low is not None and rate.high is not None
        covered += rate.low <= truth <= rate.high
    assert covered >= 134
