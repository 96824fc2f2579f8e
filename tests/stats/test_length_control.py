"""Length control against its equations, statsmodels and worlds whose answer is known."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import statsmodels.api as sm

from bench.records import Verdict
from bench.stats.estimates import Unmeasured, mean_estimate
from bench.stats.length_control import (
    Calibration,
    Columns,
    Gamed,
    LcWinRate,
    calibrated,
    contributions_of_verdicts,
    fit_difficulty,
    lc_of_verdicts,
)
from bench.stats.length_control import lc_contributions as contributions
from bench.stats.length_control import lc_win_rate as controlled


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def lc_win_rate(y, policy, baseline, generator, difficulty=None, gamed=None, n_resamples=500):
    return controlled(Columns([], y, policy, baseline, difficulty, gamed), generator, n_resamples)


def lc_contributions(y, policy, baseline, difficulty=None, gamed=None):
    return contributions(Columns([], y, policy, baseline, difficulty, gamed))


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
    ours = [rate.length_coefficient, rate.model_coefficient] + (
        [rate.difficulty_coefficient] if with_difficulty else []
    )
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
    each = lc_contributions(
        [*y, None], [*policy, 1], [*baseline, 1], None if difficulty is None else [*difficulty, 0.0]
    )
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


# ---- calibrations


def gamed_rows(n: int, seed: int = 3) -> list[list[Gamed]]:
    """A verbose and a concise version of the baseline for each item, of a judge that likes length as `world`'s does."""
    g = rng(seed)
    gaps = np.column_stack([-np.abs(g.normal(1, 0.5, n)), np.abs(g.normal(1, 0.5, n))])
    likes = 1 / (1 + np.exp(np.tanh(gaps)))
    return [
        [Gamed(float(p), float(gap), 0.1) for p, gap in zip(ps, row, strict=True)]
        for ps, row in zip(likes, gaps, strict=True)
    ]


def test_gamed_rows_enter_the_fit_with_their_weight_and_without_the_models_term():
    """statsmodels on the stacked rows, weights as var_weights: each version of the baseline a tenth of an item."""
    y, policy, baseline = world(150, seed=7)
    difficulty, gamed = rng(6).normal(size=150), gamed_rows(150)
    gap = np.array(baseline) - np.array(policy)
    items = np.column_stack([np.tanh(gap / gap.std(ddof=1)), np.ones(150), difficulty])
    more = np.array(
        [[math.tanh(g.gap), 0, d] for games, d in zip(gamed, difficulty, strict=True) for g in games]
    )
    targets = np.array(y + [g.preference for games in gamed for g in games])
    family, weights = sm.families.Binomial(), np.concatenate([np.ones(150), np.full(300, 0.1)])
    w = (
        sm.GLM(targets, np.vstack([items, more]), family=family, var_weights=weights)
        .fit(tol=1e-14, maxiter=100)
        .params
    )
    rate = lc_win_rate(y, policy, baseline, rng(), difficulty.tolist(), gamed, n_resamples=5)
    assert isinstance(rate, LcWinRate)
    assert [rate.length_coefficient, rate.model_coefficient, rate.difficulty_coefficient] == pytest.approx(
        list(w), abs=1e-6
    )
    assert rate.value == pytest.approx(
        float(np.mean(1 / (1 + np.exp(-(w[1] + w[2] * difficulty))))), abs=1e-8
    )


def test_gamed_rows_keep_a_weak_policy_from_being_excused_by_its_length():
    """Wins only where the policy happens to be longer: alone the fit gives all of it to length; the baseline's versions say otherwise."""
    _, policy, baseline = world(300, seed=4)
    short = [length - 600 for length in baseline]
    policy = [s + (500 if i % 10 == 0 else i % 7) for i, s in enumerate(short)]
    y = [0.6 if i % 10 == 0 else 0.02 for i in range(300)]
    alone, calibrated = lc_win_rate(y, policy, baseline, rng(), n_resamples=5), lc_win_rate(
        y, policy, baseline, rng(), None, gamed_rows(300), n_resamples=5
    )  # fmt: skip
    assert isinstance(alone, LcWinRate) and isinstance(calibrated, LcWinRate)
    assert calibrated.value < 0.5 * alone.value


def test_a_calibrated_rate_is_the_same_to_the_last_bit_in_any_order():
    y, policy, baseline = world(90)
    difficulty, gamed = rng(8).normal(size=90).tolist(), gamed_rows(90)
    gamed[3] = gamed[3][:1]  # an item with one gamed row
    order = list(range(90))
    random.Random(2).shuffle(order)
    columns = (y, policy, baseline, difficulty, gamed)
    turned = [[column[i] for i in order] for column in columns]
    turned[4] = [rows[::-1] for rows in turned[4]]
    ours = lc_win_rate(y, policy, baseline, rng(), difficulty, gamed, n_resamples=40)
    assert lc_win_rate(*turned[:3], rng(), *turned[3:], n_resamples=40) == ours


def test_refits_in_parts_are_those_of_one_batch(monkeypatch):
    columns = world(60)
    whole = lc_win_rate(*columns, rng(), n_resamples=90)
    monkeypatch.setattr("bench.stats.length_control.REFITS_AT_ONCE", 7)
    assert lc_win_rate(*columns, rng(), n_resamples=90) == whole


def test_calibrated_contributions_average_to_the_rate_and_scatter_like_its_refits():
    y, policy, baseline = world(500, seed=2)
    difficulty, gamed = rng(1).normal(size=500).tolist(), gamed_rows(500)
    rate = lc_win_rate(y, policy, baseline, rng(), difficulty, gamed, n_resamples=300)
    each = lc_contributions(y, policy, baseline, difficulty, gamed)
    assert isinstance(rate, LcWinRate) and isinstance(each, list)
    mean = mean_estimate(each)
    assert mean is not None and mean.value == pytest.approx(rate.value, abs=1e-10)
    assert mean.standard_error == pytest.approx(rate.standard_error, rel=0.12)


def verdicts(columns, names):
    return [
        Verdict(
            name,
            "j",
            preference=y,
            unscored=None if y is not None else "no vote",
            policy_length=p,
            baseline_length=b,
        )
        for name, y, p, b in zip(names, *columns, strict=True)
    ]


def test_verdicts_take_their_own_items_difficulty_and_gamed_rows():
    y, policy, baseline = world(60)
    names, difficulty, gamed = [f"i{n}" for n in range(60)], rng(1).normal(size=60).tolist(), gamed_rows(60)
    calibration = Calibration(
        dict(zip(names[::-1], difficulty[::-1], strict=True)), dict(zip(names, gamed, strict=True)), "abc"
    )
    direct = lc_win_rate(y, policy, baseline, rng(), difficulty, gamed)
    assert lc_of_verdicts(verdicts((y, policy, baseline), names), calibration, rng()) == direct
    each = contributions_of_verdicts(verdicts((y, policy, baseline), names), calibration)
    assert isinstance(each, dict) and list(each) == names


def test_a_calibration_that_lacks_items_measures_nothing():
    calibration = Calibration({"a": 0.1}, {}, "abc")
    three = [Verdict(name, "j", preference=0.5, policy_length=1, baseline_length=2) for name in "abc"]
    assert calibrated(three[:1], None) == (["a"], [0.5], [1], [2], None, None)
    assert calibrated(three[:1], calibration) == (["a"], [0.5], [1], [2], [0.1], None)
    lacking = calibrated(three, calibration)
    assert (
        isinstance(lacking, Unmeasured)
        and lacking.reason == "the calibration abc has no difficulty for 2 of 3 items"
    )
    some = verdicts(([1.0, 0.0, 0.5], [1, 2, 3], [3, 2, 2]), ["a", "b", "c"])
    assert lc_of_verdicts(some, calibration, rng()) == contributions_of_verdicts(some, calibration) == lacking


# ---- difficulties from several policies


def planted(n_policies: int = 8, n: int = 300) -> tuple[list[Columns], np.ndarray]:
    g = rng(11)
    difficulty, names = g.normal(size=n), [f"i{k}" for k in range(n)]
    policies = []
    for m in range(n_policies):
        baseline = g.integers(500, 2500, size=n)
        policy = np.maximum(1, baseline + g.normal(200, 400, size=n).astype(int))
        gap = baseline - policy
        p = 1 / (1 + np.exp(-(0.4 * m - 1.5 - np.tanh(gap / gap.std(ddof=1)) + difficulty)))
        policies.append(
            Columns(names, (g.random(n) < p).astype(float).tolist(), policy.tolist(), baseline.tolist())
        )
    return policies, difficulty


def test_planted_difficulties_come_back():
    """8 votes an item of logistic noise: reliability about 8 v / (8 v + 1), v = 0.18, so a correlation of some 0.75."""
    policies, difficulty = planted()
    found = fit_difficulty(policies)
    assert list(found) == sorted(found)
    assert np.corrcoef([found[f"i{k}"] for k in range(len(difficulty))], difficulty)[0, 1] > 0.7


def test_difficulties_solve_their_penalised_equations():
    """Gradient of the joint likelihood with the unit ridge on d: sum over policies of (y - p) equals d, for every item."""
    policies, _ = planted(3, 80)
    found = fit_difficulty(policies)
    d = np.array([found[name] for name in policies[0].items])
    residual = np.zeros(80)
    for policy in policies:
        gap = np.array(policy.baseline_lengths) - np.array(policy.policy_lengths)
        x = np.column_stack([np.tanh(gap / gap.std(ddof=1)), np.ones(80)])
        y = np.array(policy.preferences)
        fit = sm.GLM(y, x, family=sm.families.Binomial(), offset=d).fit(tol=1e-14)
        residual += y - fit.fittedvalues
    assert residual == pytest.approx(d, abs=5e-3)  # the fit's own ridge of 1e-3 on strengths is in there


def test_difficulties_do_not_depend_on_the_order_and_take_items_that_some_policies_lack():
    policies, _ = planted(4, 50)
    order = rng(5).permutation(50)
    shuffled = [Columns(*([column[i] for i in order] for column in policy[:4])) for policy in policies]
    assert fit_difficulty(shuffled[::-1]) == fit_difficulty(policies)
    first = policies[0]
    partly = Columns(
        first.items[:30],
        [None, *first.preferences[1:30]],
        first.policy_lengths[:30],
        first.baseline_lengths[:30],
    )
    assert len(fit_difficulty([partly, *policies[1:]])) == 50
    lost = Columns(first.items, [0.0] * 50, first.policy_lengths, first.baseline_lengths)
    assert all(math.isfinite(value) and value < 0 for value in fit_difficulty([lost]).values())
