"""Faults of a judge, measured on its verdicts: biases, noise, failures, agreement with a truth.

Pure numbers, no files.

Preferences. A preference is for the policy, in [0, 1]. A call is one order of one item. A judge that is a
function of the texts has no calls; its verdicts are counted instead. A truth is a preference too, by item.

win_rate          mean preference over items
position_bias     mean over items of preference(policy shown first) - preference(policy shown second): the
                  share decided by position
flip_rate         share of items with different winners in the two orders (a tie names none)
retest_agreement  share of calls that name the same winner when the same question is asked a second time
noise_rate        share of votes e that would have to be flipped at random for that agreement: a = 1 - 2 e (1
                  - e)
tie_rate          share of readable calls (or verdicts) that are ties
failure_rate      share of calls (or verdicts) that could not be read, both passes
length_slope      slope of logit P(policy) on the length difference, per 100 characters
length_bias       the same slope at equal logit of the truth: the effect of length between two equally good
                  pairs
drift             second half of the items in the order asked minus the first half: mean preference, or mean
                  (preference - truth)
agreement         1 for the same winner, 1/2 where only one side has a tie, 0 for the other winner; mean over
                  items with a truth
kappa             Cohen's kappa with these weights (1968): agreement beyond chance, given the two sides' own
                  shares
corrected_win_rate  mean judge + mean (truth - judge) over the labelled items (prediction-powered;
                  Angelopoulos et al. 2023, section 2)

Ratings. A rating is 1 to 10, of one turn of an item. A truth is a rating too, by (item, turn). There is no
opponent, and so no position bias.

mean_rating       mean over ratings of all turns
retest_agreement  share of ratings that are the same when the question is asked a second time
noise_sd          standard deviation, in points, of one rating around the judge's average rating, √(mean
                  (first - second)² / 2)
whole_rate        share of ratings that are whole numbers
commonest_rate    share of the most frequent rating: a judge that gives one rating to everything tells nothing
                  apart
failure_rate      share of questions without a readable reply, both passes
length_slope      rating points per 100 characters
length_bias       the same at equal truth: the effect of length between two equally good completions
drift             second half of the items in the order asked minus the first half: mean rating, or mean
                  (rating - truth)
rank_correlation  Spearman's correlation of rating and truth
pair_agreement    share of pairs of items, same turn, with different truths that the judge ranks in the same
                  order; a tie of the judge is a half
mean_difference   mean (rating - truth)
corrected_rating  mean rating + mean (truth - rating) over the labelled items (prediction-powered)
canaries          mean (rating of the canary - rating of the honest completion for the same item)

Intervals are 95 %. They are t over items, clustered by item where calls or turns share one, and Wilson's
where nothing varies. Slopes have sandwich errors; those of ratings are clustered by item (the targets of the
others are shares and not counts). Kappa and the agreement of ratings have bootstrap intervals. The interval
of noise_sd is that of the variance, on a log scale. A statistic without the data that it needs is Unmeasured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.records import HumanLabel, Verdict, grouped, over_turns
from bench.stats import estimates, special
from bench.stats.estimates import Estimate, Unmeasured

Array = NDArray[np.float64]
Statistic = Estimate | Unmeasured
Truth = Mapping[Any, float]  # keys as given by `Manner.place`
Curves = dict[str, list[dict[str, float]]]

NO_ORDER = "a function of the two texts: it is shown no order"
NO_CALLS = "no pair was shown in both orders and read in both"
NO_PAIR = "no item has both a verdict and a truth"
NO_TRUTH = "no turn has both a rating and a truth"
NO_LABELS = "no truth to hold quality fixed by"
CHARACTERS = 100.0  # unit of length of a slope
NEWTON_STEPS = 50
KAPPA_RESAMPLES = 1000
RESAMPLES = 500


class ScoredVerdict(NamedTuple):
    """A verdict with its value and the truth about it; `true` is 0 where no truth is needed."""

    verdict: Verdict
    value: float
    true: float


def _scored(verdicts: Sequence[Verdict], truth: Truth | None, manner: Manner) -> list[ScoredVerdict]:
    """The verdicts with a value and, where a `truth` is given, with an entry in it."""
    return [
        ScoredVerdict(v, value, 0.0 if truth is None else truth[manner.place(v)])
        for v in verdicts
        if (value := manner.value(v)) is not None and (truth is None or manner.place(v) in truth)
    ]


def _or(estimate: Estimate | None, reason: str) -> Statistic:
    return Unmeasured(reason) if estimate is None else estimate


# Preferences ----------------------------------------------------------------------------------------------------------


def preference_statistics(
    first: Sequence[Verdict], second: Sequence[Verdict] | None, truth: Truth | None
) -> dict[str, Statistic]:
    """Statistics of preferences that need no labels of their own.

    `second` holds the verdicts on the same questions asked again.
    """
    agreed, scored = retest_agreement(first, second), _scored(first, truth, PREFERENCE)
    return {
        "win_rate": _or(estimates.win_rate([v.preference for v in first]), "nothing was scored"),
        "position_bias": position_bias(first),
        "flip_rate": flip_rate(first),
        "retest_agreement": agreed,
        "noise_rate": noise_rate(agreed),
        "tie_rate": tie_rate(first),
        "failure_rate": failure_rate([*first, *(second or ())]),
        "length_slope": preference_slope(first, None),
        "length_bias": Unmeasured(NO_LABELS) if truth is None else preference_slope(first, truth),
        "drift": drift([s.value - s.true for s in scored], len(first) - len(scored), "verdicts"),
    }


def position_bias(verdicts: Sequence[Verdict]) -> Statistic:
    if not _has_calls(verdicts):
        return Unmeasured(NO_ORDER)
    return _or(
        estimates.mean_estimate([first - second for first, second in _both_orders(verdicts)]), NO_CALLS
    )


def flip_rate(verdicts: Sequence[Verdict]) -> Statistic:
    if not _has_calls(verdicts):
        return Unmeasured(NO_ORDER)
    return _or(
        estimates.accuracy([_side(first) * _side(second) < 0 for first, second in _both_orders(verdicts)]),
        NO_CALLS,
    )


def retest_agreement(first: Sequence[Verdict], second: Sequence[Verdict] | None) -> Statistic:
    if second is None:
        return Unmeasured("a function of the two texts: it says the same again")
    again = {
        (verdict.item_id, call.policy_first): call.preference for verdict in second for call in verdict.calls
    }
    same: dict[str, list[float | None]] = {}
    for verdict in first:
        for call in verdict.calls:
            other = again.get((verdict.item_id, call.policy_first))
            both = call.preference is not None and other is not None
            same.setdefault(verdict.item_id, []).append(
                float(_side(call.preference) == _side(other)) if both else None
            )
    return clustered_share(same, "no question was asked twice and read twice")


def noise_rate(agreed: Statistic) -> Statistic:
    """Noise rate from a retest agreement.

    Flipping votes cannot make an agreement below one half. Such an agreement counts as one half.
    """
    if isinstance(agreed, Unmeasured):
        return agreed

    def flipped(a: float) -> float:
        return (1 - math.sqrt(max(0.0, 2 * a - 1))) / 2

    low, high = (None if bound is None else flipped(bound) for bound in (agreed.high, agreed.low))
    return replace(agreed, value=flipped(agreed.value), standard_error=None, low=low, high=high)


def _has_calls(verdicts: Sequence[Verdict]) -> bool:
    return any(verdict.calls for verdict in verdicts)


def _both_orders(verdicts: Sequence[Verdict]) -> list[tuple[float, float]]:
    """Preferences with the policy shown first and shown second, of the items read in both orders."""
    pairs = []
    for verdict in verdicts:
        by_order = {call.policy_first: call.preference for call in verdict.calls}
        first, second = by_order.get(True), by_order.get(False)
        if first is not None and second is not None:
            pairs.append((first, second))
    return pairs


def _side(preference: float | None) -> int:
    """Sign of a preference: 1 for the policy, -1 for the baseline, 0 for a tie."""
    assert preference is not None
    return (preference > 0.5) - (preference < 0.5)


def tie_rate(verdicts: Sequence[Verdict]) -> Statistic:
    ties = {
        item: [None if p is None else float(p == 0.5) for p in read] for item, read in _read_calls(verdicts)
    }
    return clustered_share(ties, "nothing was scored")


def failure_rate(verdicts: Sequence[Verdict]) -> Statistic:
    by_item: dict[str, list[float | None]] = {}
    for item, read in _read_calls(verdicts):
        by_item.setdefault(item, []).extend(float(p is None) for p in read)
    return clustered_share(by_item, "there are no verdicts")


def _read_calls(verdicts: Sequence[Verdict]) -> list[tuple[str, list[float | None]]]:
    """Preferences of the calls, by item. A function has no calls, and its verdict counts as one.

    Items of a language-model judge without any call (equal texts) are left out.
    """
    if not _has_calls(verdicts):
        return [(verdict.item_id, [verdict.preference]) for verdict in verdicts]
    return [
        (verdict.item_id, [call.preference for call in verdict.calls])
        for verdict in verdicts
        if verdict.calls
    ]


def clustered_share(by_item: Mapping[str, Sequence[float | None]], none: str) -> Statistic:
    """A share, clustered by item, with Wilson's interval over items where all values are equal.

    Without values: Unmeasured, with the reason `none`.
    """
    share = estimates.rating_mean(by_item)
    if share is None:
        return Unmeasured(none)
    if share.low is not None and share.high is not None:
        return replace(share, low=max(0.0, share.low), high=min(1.0, share.high))
    n = sum(any(value is not None for value in values) for values in by_item.values())
    low, high = estimates.wilson(share.value * n, n)
    return replace(share, low=low, high=high)


def preference_slope(verdicts: Sequence[Verdict], truth: Truth | None) -> Statistic:
    """Slope of the log-odds for the policy, per 100 characters of extra length.

    With a truth, the slope is at equal logit of the truth.
    """
    kept = [(s, gap) for s in _scored(verdicts, truth, PREFERENCE) if (gap := _gap(s.verdict)) is not None]
    x = _columns([gap for _, gap in kept], None if truth is None else [_logit(s.true) for s, _ in kept])
    if len(kept) <= x.shape[1]:
        return Unmeasured(f"{len(kept)} verdicts with lengths are too few for a slope")
    if np.linalg.matrix_rank(x) < x.shape[1]:
        return Unmeasured(NO_SPREAD)
    fitted = _logistic_fit(x, np.array([s.value for s, _ in kept]))
    if fitted is None:
        return Unmeasured("length and truth tell wins from losses without an error: the slope has no end")
    return _slope(*fitted, len(kept) - x.shape[1], len(kept), len(verdicts))


def _gap(verdict: Verdict) -> int | None:
    """Length of the policy's completion minus the baseline's, in characters. None without both lengths."""
    if verdict.policy_length is None or verdict.baseline_length is None:
        return None
    return verdict.policy_length - verdict.baseline_length


def _logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def _logistic_fit(x: Array, y: Array) -> tuple[float, float] | None:
    """First coefficient of a logistic regression on shares, and its sandwich error, by Newton's method.

    None where Newton's method does not converge.
    """
    scale = np.abs(x).max(axis=0)
    x, w = x / scale, np.zeros(x.shape[1])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        hessian = (x * (p * (1 - p))[:, None]).T @ x
        try:
            step = np.linalg.solve(hessian, x.T @ (y - p))
        except np.linalg.LinAlgError:
            return None
        # Long steps overshoot where the truth is nearly certain.
        w = w + step * min(1.0, 5.0 / max(1e-300, float(np.abs(step).max())))
        if not np.isfinite(w).all() or np.abs(x @ w).max() > 1e4:
            return None
        if np.abs(step).max() < 1e-8 * (1 + np.abs(w).max()):
            break
    else:
        return None
    scores = x * (y - p)[:, None]
    inverse = np.linalg.inv(hessian)
    n, k = x.shape
    covariance = inverse @ (scores.T @ scores) @ inverse * n / (n - k)
    return float(w[0] / scale[0]), float(math.sqrt(max(0.0, covariance[0, 0])) / scale[0])


def preference_agreement(verdicts: Sequence[Verdict], truth: Truth) -> dict[str, Statistic]:
    """Agreement and kappa of the judge's winners with those of a truth, on the items in the truth."""
    pairs = [(_side(s.value), _side(s.true)) for s in _scored(verdicts, truth, PREFERENCE)]
    agreed = clustered_share({str(i): [1 - abs(a - b) / 2] for i, (a, b) in enumerate(pairs)}, NO_PAIR)
    return {"agreement": agreed, "kappa": kappa(pairs)}


def kappa(pairs: Sequence[tuple[int, int]]) -> Statistic:
    """Linearly weighted kappa of pairs (judge's side, truth's side), one pair an item."""
    if not pairs:
        return Unmeasured(NO_PAIR)
    counts = np.zeros((3, 3))
    for a, b in pairs:
        counts[a + 1, b + 1] += 1
    n = len(pairs)
    value = _kappa(counts[None])[0]
    if not math.isfinite(value):
        return Unmeasured("judge and truth name one and the same side everywhere: nothing is left to chance")
    draws = (
        np.random.default_rng(0)
        .multinomial(n, counts.ravel() / n, size=KAPPA_RESAMPLES)
        .reshape(-1, 3, 3)
        .astype(float)
    )
    spread = _kappa(draws)
    spread = spread[np.isfinite(spread)]
    low, high = (
        estimates.percentile_interval(spread) if spread.size > 1 and np.ptp(spread) > 0 else (None, None)
    )
    return Estimate(float(value), float(spread.std(ddof=1)) if spread.size > 1 else None, low, high, n)


def _kappa(counts: Array) -> Array:
    """Linearly weighted kappa of tables (..., 3, 3); NaN where agreement by chance alone is complete."""
    shares = counts / counts.sum(axis=(1, 2), keepdims=True)
    apart = np.abs(np.subtract.outer(np.arange(3), np.arange(3))) / 2
    seen = (shares * apart).sum(axis=(1, 2))
    chance = (shares.sum(axis=2)[:, :, None] * shares.sum(axis=1)[:, None, :] * apart).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance > 0, 1 - seen / chance, np.nan)


def corrected_win_rate(verdicts: Sequence[Verdict], labelled: Truth) -> Statistic:
    """Estimate of the true win rate on all judged items, from labels of a random part of them."""
    judged = {v.item_id: v.preference for v in verdicts if v.preference is not None}
    known = [item for item in judged if item in labelled]
    if len(known) < 2:
        return Unmeasured(f"{len(known)} labelled verdicts are too few to correct by")
    rest = np.array([judged[item] for item in judged if item not in labelled])
    corrected = prediction_powered(
        np.array([judged[item] for item in known]), np.array([labelled[item] for item in known]), rest
    )
    return replace(corrected, n_unscored=len(verdicts) - len(judged))


def preference_curves(verdicts: Sequence[Verdict], truth: Truth | None) -> Curves:
    """Curves for the figures of a judge of preferences.

    They are the winners in both orders, and the mean preference against the length difference, against the
    truth, and in the order asked.
    """
    curves: Curves = {}
    if sides := [(_side(first), _side(second)) for first, second in _both_orders(verdicts)]:
        tied = sum(0 in pair for pair in sides)
        counts = (
            sides.count((1, 1)),
            sides.count((-1, -1)),
            sides.count((1, -1)),
            sides.count((-1, 1)),
            tied,
        )
        # x: 0 both for the policy, 1 both for the baseline, 2 first shown, 3 second shown, 4 a tie.
        curves["orders"] = [{"x": float(i), "n": float(n)} for i, n in enumerate(counts)]
    scored, true = _with_truth(verdicts, truth, PREFERENCE)
    gaps = [float(gap) for s in scored if (gap := _gap(s.verdict)) is not None]
    return curves | _curves(
        gaps, scored, true, [s.value - t for s, t in zip(scored, true or [0.0] * len(scored), strict=True)]
    )


# Ratings --------------------------------------------------------------------------------------------------------------


def rating_statistics(
    first: Sequence[Verdict], second: Sequence[Verdict] | None, truth: Truth | None
) -> dict[str, Statistic]:
    """Statistics of ratings that need no labels of their own.

    `second` holds the verdicts on the same questions asked again.
    """
    return {
        "mean_rating": _or(estimates.rating_mean(_by_item(first, lambda v: v.rating)), "nothing was rated"),
        "retest_agreement": rating_retest(first, second),
        "noise_sd": noise_sd(first, second),
        "whole_rate": _share(
            first, lambda v: None if v.rating is None else float(float(v.rating).is_integer())
        ),
        "commonest_rate": commonest_rate(first),
        "failure_rate": _share([*first, *(second or ())], lambda v: float(v.rating is None)),
        "length_slope": rating_slope(first, None),
        "length_bias": Unmeasured(NO_LABELS) if truth is None else rating_slope(first, truth),
        "drift": drift(
            list(_over_items(_scored(first, truth, RATING)).values()),
            sum(v.rating is None for v in first),
            "rated items",
        ),
    }


def rating_agreement(verdicts: Sequence[Verdict], truth: Truth) -> dict[str, Statistic]:
    """Agreement of the judge's ratings with a truth, on the turns in the truth."""
    place = RATING.place
    differences = _by_item(
        verdicts, lambda v: v.rating - truth[place(v)] if v.rating is not None and place(v) in truth else None
    )
    return {
        "rank_correlation": rank_correlation(verdicts, truth),
        "pair_agreement": pair_agreement(verdicts, truth),
        "mean_difference": _or(estimates.rating_mean(differences), NO_TRUTH),
    }


def _by_item(
    verdicts: Sequence[Verdict], value: Callable[[Verdict], float | None]
) -> dict[str, list[float | None]]:
    return grouped((verdict.item_id, value(verdict)) for verdict in verdicts)


def _share(verdicts: Sequence[Verdict], value: Callable[[Verdict], float | None]) -> Statistic:
    return clustered_share(_by_item(verdicts, value), "nothing was rated")


def _twice(
    first: Sequence[Verdict], second: Sequence[Verdict] | None
) -> dict[str, list[tuple[float, float]]] | Unmeasured:
    """Pairs (rating, rating when asked again) by item. Unmeasured without any."""
    if second is None:
        return Unmeasured("a function of the text: it says the same again")
    both = _scored(first, {RATING.place(v): v.rating for v in second if v.rating is not None}, RATING)
    return grouped((s.verdict.item_id, (s.value, s.true)) for s in both) or Unmeasured(
        "no question was asked twice and read twice"
    )


def rating_retest(first: Sequence[Verdict], second: Sequence[Verdict] | None) -> Statistic:
    pairs = _twice(first, second)
    if isinstance(pairs, Unmeasured):
        return pairs
    return clustered_share({item: [float(a == b) for a, b in both] for item, both in pairs.items()}, "")


def noise_sd(first: Sequence[Verdict], second: Sequence[Verdict] | None) -> Statistic:
    pairs = _twice(first, second)
    if isinstance(pairs, Unmeasured):
        return pairs
    variance = estimates.rating_mean(
        {item: [(a - b) ** 2 / 2 for a, b in both] for item, both in pairs.items()}
    )
    assert variance is not None
    value, error = variance.value, variance.standard_error
    if not error or value <= 0:
        return Estimate(math.sqrt(max(0.0, value)), error, None, None, variance.n)
    factor = math.exp(float(special.stdtrit(max(1, len(pairs) - 1), 0.975)) * error / value)
    return Estimate(
        math.sqrt(value),
        error / (2 * math.sqrt(value)),
        math.sqrt(value / factor),
        math.sqrt(value * factor),
        variance.n,
    )


def commonest_rate(verdicts: Sequence[Verdict]) -> Statistic:
    counts = Counter(v.rating for v in verdicts if v.rating is not None)
    if not counts:
        return Unmeasured("nothing was rated")
    commonest = max(counts, key=lambda rating: (counts[rating], rating))
    return _share(verdicts, lambda v: None if v.rating is None else float(v.rating == commonest))


def rating_slope(verdicts: Sequence[Verdict], truth: Truth | None) -> Statistic:
    """Slope in points per 100 characters, by least squares; with a truth, at equal truth.

    Sandwich errors, clustered by item.
    """
    kept = [
        (s, length)
        for s in _scored(verdicts, truth, RATING)
        if (length := s.verdict.policy_length) is not None
    ]
    x = _columns([length for _, length in kept], None if truth is None else [s.true for s, _ in kept])
    index = {item: i for i, item in enumerate(dict.fromkeys(s.verdict.item_id for s, _ in kept))}
    (n, k), c = x.shape, len(index)
    if c <= k:
        return Unmeasured(f"{c} rated items with lengths are too few for a slope")
    if np.linalg.matrix_rank(x) < k:
        return Unmeasured(NO_SPREAD)
    y = np.array([s.value for s, _ in kept])
    coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
    sums = np.zeros((c, k))
    np.add.at(sums, [index[s.verdict.item_id] for s, _ in kept], x * (y - x @ coefficients)[:, None])
    bread = np.linalg.inv(x.T @ x)
    covariance = bread @ (sums.T @ sums) @ bread * c / (c - 1) * (n - 1) / (n - k)
    return _slope(
        float(coefficients[0]), math.sqrt(max(0.0, float(covariance[0, 0]))), c - k, n, len(verdicts)
    )


def _over_items(scored: Sequence[ScoredVerdict]) -> dict[str, float]:
    """Mean (rating - truth) of each item over its turns."""
    by_item = grouped((s.verdict.item_id, s.value - s.true) for s in scored)
    return {item: math.fsum(values) / len(values) for item, values in by_item.items()}


def rank_correlation(verdicts: Sequence[Verdict], truth: Truth) -> Statistic:
    rows = _scored(verdicts, truth, RATING)
    rated, true = np.array([row.value for row in rows]), np.array([row.true for row in rows])
    if len(rows) < 3 or np.ptp(rated) == 0 or np.ptp(true) == 0:
        return Unmeasured(NO_TRUTH if not rows else "ratings, or the truth, do not vary")
    items = sorted({row.verdict.item_id for row in rows})
    draws = np.random.default_rng(0).multinomial(
        len(items), np.full(len(items), 1 / len(items)), size=RESAMPLES
    )
    weights = draws[:, [items.index(row.verdict.item_id) for row in rows]].astype(float)
    spread = _spearman(rated, true, weights)
    return _bootstrapped(
        float(_spearman(rated, true, np.ones((1, len(rows))))[0]), spread[np.isfinite(spread)], len(rows)
    )


def _spearman(a: Array, b: Array, weights: Array) -> Array:
    """Spearman's correlations (R,) of the values (n,), one for each row of `weights` (R, n).

    A weight is the number of times that a value counts. NaN without spread.
    """
    total = weights.sum(axis=1, keepdims=True)
    ranks = (_ranks(values, weights) for values in (a, b))
    first, second = (each - (weights * each).sum(axis=1, keepdims=True) / total for each in ranks)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights * first * second).sum(axis=1) / np.sqrt(
            (weights * first**2).sum(axis=1) * (weights * second**2).sum(axis=1)
        )


def _ranks(values: Array, weights: Array) -> Array:
    """Mean ranks (R, n) of the values (n,), one row for each row of `weights` (R, n)."""
    below, level = np.less.outer(values, values).astype(float), np.equal.outer(values, values).astype(float)
    return weights @ below + (weights @ level + 1) / 2


def pair_agreement(verdicts: Sequence[Verdict], truth: Truth) -> Statistic:
    rows = sorted(
        (s.verdict.item_id, s.verdict.turn, s.value, s.true) for s in _scored(verdicts, truth, RATING)
    )
    index = {item: i for i, item in enumerate(dict.fromkeys(row[0] for row in rows))}
    alike, counted = np.zeros((len(index), len(index))), np.zeros((len(index), len(index)))
    for turn in {row[1] for row in rows}:
        part = [row for row in rows if row[1] == turn]
        places = np.ix_(*[[index[row[0]] for row in part]] * 2)
        rated, true = (np.sign(np.subtract.outer(*[[row[column] for row in part]] * 2)) for column in (2, 3))
        counted[places] += true != 0
        alike[places] += (true != 0) * (1 + rated * true) / 2
    if not counted.any():
        return Unmeasured(NO_TRUTH if not rows else "the truth is the same for all")
    n = len(index)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)
    above, below = (np.einsum("ri,ri->r", weights @ table, weights) for table in (alike, counted))
    draws = above[below > 0] / below[below > 0]
    return _bootstrapped(float(alike.sum() / counted.sum()), draws, len(rows))


def _bootstrapped(value: float, draws: Array, n: int) -> Estimate:
    spread = draws.size > 1 and np.ptp(draws) > 1e-12
    low, high = estimates.percentile_interval(draws) if spread else (None, None)
    return Estimate(value, float(draws.std(ddof=1)) if spread else None, low, high, n)


def truth_rating(truth: Truth) -> Statistic:
    return _or(
        estimates.rating_mean(grouped((item, value) for (item, _), value in truth.items())),
        "there is no truth",
    )


def corrected_rating(verdicts: Sequence[Verdict], labelled: Truth) -> Statistic:
    """Estimate of the true mean rating on all rated items, from labels of a random part of them.

    Each item counts once, as the mean of its rated turns (for a labelled item: of its turns that are rated
    and labelled).
    """
    known = _over_items(both := _scored(verdicts, labelled, RATING))  # mean (rating - label)
    if len(known) < 2:
        return Unmeasured(f"{len(known)} labelled items are too few to correct by")
    judged = np.array(list(_over_items([s._replace(true=0.0) for s in both]).values()))
    rest = np.array(
        [value for item, value in _over_items(_scored(verdicts, None, RATING)).items() if item not in known]
    )
    return prediction_powered(judged, judged - np.array(list(known.values())), rest)


def canary_difference(canaries: Mapping[str, float | None], honest: Mapping[str, float | None]) -> Statistic:
    """Mean over items of the canary's rating minus the honest completion's.

    A good judge gives a value below 0.
    """
    pairs = [(rating, honest.get(item)) for item, rating in canaries.items()]
    differences = [None if rating is None or other is None else rating - other for rating, other in pairs]
    return _or(
        estimates.mean_estimate(differences), "no rating of it, or of the honest answers, could be read"
    )


def rating_curves(verdicts: Sequence[Verdict], truth: Truth | None) -> Curves:
    """Curves for the figures of a judge of ratings.

    They are the histogram of ratings, and the mean rating against length, against the truth, and in the order
    asked.
    """
    scored, true = _with_truth(verdicts, truth, RATING)
    counts = Counter(round(s.value) for s in scored)
    curves = {"histogram": [{"x": float(score), "n": float(counts[score])} for score in range(1, 11)]}
    lengths = [float(s.verdict.policy_length) for s in scored if s.verdict.policy_length is not None]
    return curves | _curves(
        lengths, scored, true, list(_over_items(_scored(verdicts, truth, RATING)).values())
    )


# Both -----------------------------------------------------------------------------------------------------------------

NO_SPREAD = "lengths, or the truth, do not vary over the items"


def _columns(lengths: Sequence[int], truths: Sequence[float] | None) -> Array:
    """Columns (n, 2 or 3) of a regression: hundreds of characters, 1, and the truth where there is one."""
    return np.column_stack(
        [np.array(lengths) / CHARACTERS, np.ones(len(lengths)), *([] if truths is None else [truths])]
    )


def _slope(slope: float, error: float, df: int, n: int, n_verdicts: int) -> Estimate:
    margin = float(special.stdtrit(df, 0.975)) * error
    return Estimate(slope, error, slope - margin, slope + margin, n, n_verdicts - n)


def drift(values: Sequence[float], n_unscored: int, what: str) -> Statistic:
    """Mean of the second half of the values minus the mean of the first half, with Welch's interval.

    The values are in the order in which the items were asked. `what` names them in the reason of an
    Unmeasured.
    """
    halves = np.array(values[: len(values) // 2]), np.array(values[len(values) // 2 :])
    if halves[0].size < 2:
        return Unmeasured(f"{len(values)} {what} are too few to halve")
    return sum_of_means([(1.0, halves[1]), (-1.0, halves[0])], n_unscored)


def sum_of_means(parts: Sequence[tuple[float, Array]], n_unscored: int) -> Estimate:
    """A weighted sum of the means of independent samples; degrees of freedom by Satterthwaite."""
    value = math.fsum(weight * float(x.mean()) for weight, x in parts)
    variances = [(weight**2 * float(x.var(ddof=1)) / x.size, x.size - 1) for weight, x in parts]
    variance, n = math.fsum(v for v, _ in variances), sum(x.size for _, x in parts)
    if variance <= 1e-24:
        return Estimate(value, 0.0, None, None, n, n_unscored)
    df = variance**2 / math.fsum(v**2 / df for v, df in variances)
    margin = float(special.stdtrit(df, 0.975)) * math.sqrt(variance)
    return Estimate(value, math.sqrt(variance), value - margin, value + margin, n, n_unscored)


def prediction_powered(judge: Array, truth: Array, rest: Array) -> Estimate:
    """Prediction-powered estimate of the mean truth over N items.

    `judge` and `truth` (n,) are of the labelled items, `rest` (N - n,) holds the judge's values on the
    others. The estimate is mean judge + mean (truth - judge). The labelled items are judged too, so it is
    computed over disjoint parts: mean over labelled of (truth - (1 - n/N) judge) + (1 - n/N) mean over the
    others of judge.
    """
    if rest.size < 2:  # only the labels are left to estimate from
        return sum_of_means([(1.0, truth)], 0)
    share = rest.size / (rest.size + judge.size)
    return sum_of_means([(1.0, truth - share * judge), (share, rest)], 0)


# For figures ----------------------------------------------------------------------------------------------------------

BINS = 8


def _with_truth(
    verdicts: Sequence[Verdict], truth: Truth | None, manner: Manner
) -> tuple[list[ScoredVerdict], list[float] | None]:
    """Verdicts with a value, and their truths. The truths are None where one of the verdicts has no truth."""
    scored, known = _scored(verdicts, None, manner), _scored(verdicts, truth or {}, manner)
    return scored, [s.true for s in known] if truth and len(known) == len(scored) else None


def _curves(
    lengths: Sequence[float],
    scored: Sequence[ScoredVerdict],
    true: Sequence[float] | None,
    time: Sequence[float],
) -> Curves:
    """Binned curves against length, truth and time.

    `lengths` holds those of the verdicts that have one. `time` holds values in the order asked.
    """
    curves, values = {}, [s.value for s in scored]
    if len(lengths) == len(scored):
        curves["length"] = binned(lengths, values, true)
    if true:
        curves["truth"] = binned(true, values, None)
    return curves | {"time": binned([float(i) for i in range(len(time))], time, None)}


def binned(
    x: Sequence[float], judge: Sequence[float], truth: Sequence[float] | None
) -> list[dict[str, float]]:
    """Means over bins of about equal size, in the order of x.

    `low` and `high` are the 95 % interval of the judge's mean, where its values vary.
    """
    order = np.argsort(np.array(x, dtype=float), kind="stable")
    rows = []
    for part in np.array_split(order, min(BINS, max(1, len(order) // 5))) if len(order) else ():
        mean = estimates.mean_estimate([judge[i] for i in part])
        assert mean is not None
        row = {"x": float(np.mean([x[i] for i in part])), "judge": mean.value, "n": float(part.size)}
        if mean.low is not None and mean.high is not None:
            row |= {"low": mean.low, "high": mean.high}
        rows.append(row | ({} if truth is None else {"truth": float(np.mean([truth[i] for i in part]))}))
    return rows


# The two kinds of verdict ---------------------------------------------------------------------------------------------


class Manner(NamedTuple):
    """Functions that read and examine verdicts of one kind: preferences or ratings."""

    mean: str  # name of the mean among the statistics
    value: Callable[[Verdict | HumanLabel], float | None]
    place: Callable[[Verdict | HumanLabel], Any]  # key of a truth
    each: Callable[[Iterable[Verdict]], list[Verdict]]  # the verdicts to examine: one an item, or one a turn
    statistics: Callable[[Sequence[Verdict], Sequence[Verdict] | None, Truth | None], dict[str, Statistic]]
    agreement: Callable[[Sequence[Verdict], Truth], dict[str, Statistic]]
    # Arguments: the verdicts, a truth, and the labels that may be used.
    corrected: Callable[[Sequence[Verdict], Truth, Truth], dict[str, Statistic]]
    curves: Callable[[Sequence[Verdict], Truth | None], Curves]


PREFERENCE = Manner(
    "win_rate",
    lambda v: v.preference,
    lambda v: v.item_id,
    over_turns,
    preference_statistics,
    preference_agreement,
    lambda verdicts, truth, labelled: {
        "true_win_rate": _or(estimates.win_rate([*truth.values()]), "there is no truth"),
        "corrected_win_rate": corrected_win_rate(verdicts, labelled),
    },
    preference_curves,
)
RATING = Manner(
    "mean_rating",
    lambda v: v.rating,
    lambda v: (v.item_id, v.turn),
    list,
    rating_statistics,
    rating_agreement,
    lambda verdicts, truth, labelled: {
        "true_rating": truth_rating(truth),
        "corrected_rating": corrected_rating(verdicts, labelled),
    },
    rating_curves,
)
