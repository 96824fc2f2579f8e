"""What is wrong with a judge that rates, from its verdicts alone: noise, failures, length, agreement with a truth. Pure numbers, no files.

A rating is 1 to 10, of one turn of an item. A truth is a rating too, by (item, turn). There is no opponent, so no place that could bias.

mean_rating       mean over ratings of all turns
retest_agreement  share of ratings that come out the same when asked a second time
noise_sd          points: standard deviation of one rating around what the judge gives on average, √(mean (first - second)² / 2)
whole_rate        share of ratings that are whole numbers
commonest_rate    share of the rating that is given most often: a judge that gives one rating to all tells nothing apart
failure_rate      share of questions whose reply could not be read, both passes
length_slope      rating points per 100 characters
length_bias       the same with the truth beside it: what length does to two answers that are equally good
drift             second half of the items in the order asked less the first half: mean rating, or mean (rating - truth)
rank_correlation  Spearman's, of rating and truth
pair_agreement    share of pairs of items, the same turn, whose truths differ and which the judge ranks alike; a tie of its own is a half
mean_difference   mean (rating - truth)
corrected_rating  mean rating + mean (truth - rating) over the labelled items (prediction-powered; see judge_bias.py)
canaries          mean (rating of the canary - rating of the honest answer to the same item)

Intervals are 95 %, clustered by item: t where a mean is meant, sandwich errors for slopes, bootstrap over items for agreement; that of
noise_sd is of the variance, on a log scale.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import special

from bench.records import Verdict
from bench.stats import estimates
from bench.stats.estimates import Estimate, Unmeasured
from bench.stats.judge_bias import CHARACTERS, Array, Found, binned, clustered_share, prediction_powered, sum_of_means

Truth = Mapping[tuple[str, int], float]  # rating by item and turn

RESAMPLES = 500
NO_TRUTH = "no turn has both a rating and a truth"


def rating_statistics(first: Sequence[Verdict], second: Sequence[Verdict] | None, truth: Truth | None) -> dict[str, Found]:
    """All that needs no labels of its own; `second` holds the verdicts of the same questions asked again."""
    return {
        "mean_rating": _or(estimates.rating_mean(_by_item(first, lambda v: v.rating)), "nothing was rated"),
        "retest_agreement": retest_agreement(first, second),
        "noise_sd": noise_sd(first, second),
        "whole_rate": _share(first, lambda v: None if v.rating is None else float(float(v.rating).is_integer())),
        "commonest_rate": commonest_rate(first),
        "failure_rate": _share([*first, *(second or ())], lambda v: float(v.rating is None)),
        "length_slope": length_slope(first, None),
        "length_bias": Unmeasured("no truth to hold quality fixed by") if truth is None else length_slope(first, truth),
        "drift": drift(first, truth),
    }


def truth_statistics(verdicts: Sequence[Verdict], truth: Truth) -> dict[str, Found]:
    """How far the judge says what a truth says, on the turns that have one."""
    differences = _by_item(verdicts, lambda v: v.rating - truth[_place(v)] if v.rating is not None and _place(v) in truth else None)
    return {
        "rank_correlation": rank_correlation(verdicts, truth),
        "pair_agreement": pair_agreement(verdicts, truth),
        "mean_difference": _or(estimates.rating_mean(differences), NO_TRUTH),
    }


def _place(verdict: Verdict) -> tuple[str, int]:
    return verdict.item_id, verdict.turn


def _or(found: Estimate | None, reason: str) -> Found:
    return Unmeasured(reason) if found is None else found


def _by_item(verdicts: Sequence[Verdict], value: Callable[[Verdict], float | None]) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.item_id, []).append(value(verdict))
    return found


def _share(verdicts: Sequence[Verdict], value: Callable[[Verdict], float | None]) -> Found:
    return clustered_share(_by_item(verdicts, value), "nothing was rated")


# Ratings and repetitions ----------------------------------------------------------------------------------------------


def _twice(first: Sequence[Verdict], second: Sequence[Verdict] | None) -> dict[str, list[tuple[float, float]]] | Unmeasured:
    """(rating, rating when asked again) by item."""
    if second is None:
        return Unmeasured("a function of the text: it says the same again")
    again = {_place(v): v.rating for v in second}
    found: dict[str, list[tuple[float, float]]] = {}
    for v in first:
        if v.rating is not None and (other := again.get(_place(v))) is not None:
            found.setdefault(v.item_id, []).append((v.rating, other))
    return found or Unmeasured("no question was asked twice and read twice")


def retest_agreement(first: Sequence[Verdict], second: Sequence[Verdict] | None) -> Found:
    pairs = _twice(first, second)
    if isinstance(pairs, Unmeasured):
        return pairs
    return clustered_share({item: [float(a == b) for a, b in both] for item, both in pairs.items()}, "")


def noise_sd(first: Sequence[Verdict], second: Sequence[Verdict] | None) -> Found:
    pairs = _twice(first, second)
    if isinstance(pairs, Unmeasured):
        return pairs
    variance = estimates.rating_mean({item: [(a - b) ** 2 / 2 for a, b in both] for item, both in pairs.items()})
    assert variance is not None
    value, error = variance.value, variance.standard_error
    if not error or value <= 0:
        return Estimate(math.sqrt(max(0.0, value)), error, None, None, variance.n)
    factor = math.exp(float(special.stdtrit(max(1, len(pairs) - 1), 0.975)) * error / value)
    return Estimate(math.sqrt(value), error / (2 * math.sqrt(value)), math.sqrt(value / factor), math.sqrt(value * factor), variance.n)


def commonest_rate(verdicts: Sequence[Verdict]) -> Found:
    counts = Counter(v.rating for v in verdicts if v.rating is not None)
    if not counts:
        return Unmeasured("nothing was rated")
    commonest = max(counts, key=lambda rating: (counts[rating], rating))
    return _share(verdicts, lambda v: None if v.rating is None else float(v.rating == commonest))


# Length and time ------------------------------------------------------------------------------------------------------


def length_slope(verdicts: Sequence[Verdict], truth: Truth | None) -> Found:
    """Points per 100 characters by least squares; with a truth, at equal truth. Sandwich errors, clustered by item."""
    kept, rows = [], []
    for v in verdicts:
        if v.rating is not None and v.policy_length is not None and (truth is None or _place(v) in truth):
            kept.append(v)
            rows.append([v.policy_length / CHARACTERS, 1.0, *([] if truth is None else [truth[_place(v)]])])
    x, y = np.array(rows, dtype=float), np.array([v.rating for v in kept], dtype=float)
    items = list(dict.fromkeys(v.item_id for v in kept))
    if len(items) <= x.shape[-1]:
        return Unmeasured(f"{len(items)} rated items with lengths are too few for a slope")
    if np.linalg.matrix_rank(x) < x.shape[1]:
        return Unmeasured("lengths, or the truth, do not vary over the items")
    coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
    scores = x * (y - x @ coefficients)[:, None]
    index = {item: i for i, item in enumerate(items)}
    sums = np.zeros((len(items), x.shape[1]))
    np.add.at(sums, [index[v.item_id] for v in kept], scores)
    bread = np.linalg.inv(x.T @ x)
    (n, k), c = x.shape, len(items)
    covariance = bread @ (sums.T @ sums) @ bread * c / (c - 1) * (n - 1) / (n - k)
    slope, error = float(coefficients[0]), math.sqrt(max(0.0, float(covariance[0, 0])))
    margin = float(special.stdtrit(c - k, 0.975)) * error
    return Estimate(slope, error, slope - margin, slope + margin, n, len(verdicts) - n)


def drift(verdicts: Sequence[Verdict], truth: Truth | None) -> Found:
    """Welch's interval for the second half's mean less the first's, over items in the order in which they were asked."""
    values = np.array(list(_over_items(verdicts, truth).values()))
    halves = values[: values.size // 2], values[values.size // 2 :]
    if halves[0].size < 2:
        return Unmeasured(f"{values.size} rated items are too few to halve")
    return sum_of_means([(1.0, halves[1]), (-1.0, halves[0])], sum(v.rating is None for v in verdicts))


def _over_items(verdicts: Sequence[Verdict], truth: Truth | None) -> dict[str, float]:
    """Each item's mean rating, or mean (rating - truth), over its turns that have it."""
    found: dict[str, list[float]] = {}
    for v in verdicts:
        if v.rating is not None and (truth is None or _place(v) in truth):
            found.setdefault(v.item_id, []).append(v.rating - (truth[_place(v)] if truth is not None else 0.0))
    return {item: math.fsum(values) / len(values) for item, values in found.items()}


# Against a truth ------------------------------------------------------------------------------------------------------


def _both(verdicts: Sequence[Verdict], truth: Truth) -> list[tuple[str, int, float, float]]:
    """(item, turn, rating, truth) of the turns that have both."""
    return [(v.item_id, v.turn, v.rating, truth[_place(v)]) for v in verdicts if v.rating is not None and _place(v) in truth]


def rank_correlation(verdicts: Sequence[Verdict], truth: Truth) -> Found:
    rows = _both(verdicts, truth)
    said, true = np.array([row[2] for row in rows]), np.array([row[3] for row in rows])
    if len(rows) < 3 or np.ptp(said) == 0 or np.ptp(true) == 0:
        return Unmeasured(NO_TRUTH if not rows else "ratings, or the truth, do not vary")
    items = sorted({row[0] for row in rows})
    draws = np.random.default_rng(0).multinomial(len(items), np.full(len(items), 1 / len(items)), size=RESAMPLES)
    weights = draws[:, [items.index(row[0]) for row in rows]].astype(float)
    spread = _spearman(said, true, weights)
    return _bootstrapped(float(_spearman(said, true, np.ones((1, len(rows))))[0]), spread[np.isfinite(spread)], len(rows))


def _spearman(a: Array, b: Array, weights: Array) -> Array:
    """Spearman's correlation of (n,) values under each row of `weights` (R, n), which say how often a value counts; NaN without spread."""
    total = weights.sum(axis=1, keepdims=True)
    first, second = (_ranks(values, weights) for values in (a, b))
    first, second = (ranks - (weights * ranks).sum(axis=1, keepdims=True) / total for ranks in (first, second))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights * first * second).sum(axis=1) / np.sqrt((weights * first**2).sum(axis=1) * (weights * second**2).sum(axis=1))


def _ranks(values: Array, weights: Array) -> Array:
    """Mean ranks (R, n)."""
    below, level = np.less.outer(values, values).astype(float), np.equal.outer(values, values).astype(float)
    return weights @ below + (weights @ level + 1) / 2


def pair_agreement(verdicts: Sequence[Verdict], truth: Truth) -> Found:
    rows = sorted(_both(verdicts, truth))
    index = {item: i for i, item in enumerate(dict.fromkeys(row[0] for row in rows))}
    alike, counted = np.zeros((len(index), len(index))), np.zeros((len(index), len(index)))
    for turn in {row[1] for row in rows}:
        part = [row for row in rows if row[1] == turn]
        places = np.ix_(*[[index[row[0]] for row in part]] * 2)
        said, true = (np.sign(np.subtract.outer(*[[row[column] for row in part]] * 2)) for column in (2, 3))
        counted[places] += true != 0
        alike[places] += (true != 0) * (1 + said * true) / 2
    if not counted.any():
        return Unmeasured(NO_TRUTH if not rows else "the truth is the same for all")
    n = len(index)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)
    above, below = (np.einsum("ri,ri->r", weights @ table, weights) for table in (alike, counted))
    draws = above[below > 0] / below[below > 0]
    return _bootstrapped(float(alike.sum() / counted.sum()), draws, len(rows))


def _bootstrapped(value: float, draws: Array, n: int) -> Estimate:
    spread = draws.size > 1 and np.ptp(draws) > 1e-12
    low, high = estimates.percentile_interval(draws, 0.95) if spread else (None, None)
    return Estimate(value, float(draws.std(ddof=1)) if spread else None, low, high, n)


def truth_mean(truth: Truth) -> Found:
    by_item: dict[str, list[float | None]] = {}
    for (item, _), value in truth.items():
        by_item.setdefault(item, []).append(value)
    return _or(estimates.rating_mean(by_item), "there is no truth")


def corrected_rating(verdicts: Sequence[Verdict], labelled: Truth) -> Found:
    """The mean rating that the truth would give on all rated items, from the labels of some of them, which must be a random part.

    Each item counts once, as the mean of its turns that were rated (of a labelled one: rated and labelled).
    """
    said = _over_items(verdicts, None)
    known = {v.item_id for v in verdicts if v.rating is not None and _place(v) in labelled}
    if len(known) < 2:
        return Unmeasured(f"{len(known)} labelled items are too few to correct by")
    of_known = [v for v in verdicts if v.item_id in known and _place(v) in labelled]
    judge, off = _over_items(of_known, None), _over_items(of_known, labelled)
    rest = np.array([value for item, value in said.items() if item not in known])
    judged = np.array([judge[item] for item in judge])
    return prediction_powered(judged, judged - np.array([off[item] for item in judge]), rest)


def canary_difference(canaries: Mapping[str, float | None], honest: Mapping[str, float | None]) -> Found:
    """Of one canary: its rating less the honest answer's, by item, which must be below 0."""
    differences: list[float | None] = []
    for item, rating in canaries.items():
        other = honest.get(item)
        differences.append(None if rating is None or other is None else rating - other)
    return _or(estimates.mean_estimate(differences), "no rating of it, or of the honest answers, could be read")


# For figures ----------------------------------------------------------------------------------------------------------


def curves(verdicts: Sequence[Verdict], truth: Truth | None) -> dict[str, list[dict[str, float]]]:
    """histogram of ratings; mean rating against length, against the truth, and in the order asked."""
    rated = [(v, v.rating) for v in verdicts if v.rating is not None]
    counts = Counter(round(rating) for _, rating in rated)
    found = {"histogram": [{"x": float(score), "n": float(counts[score])} for score in range(1, 11)]}
    true = [truth[_place(v)] for v, _ in rated] if truth and all(_place(v) in truth for v, _ in rated) else None
    with_length = [(float(v.policy_length), rating) for v, rating in rated if v.policy_length is not None]
    if len(with_length) == len(rated):
        found["length"] = binned([length for length, _ in with_length], [rating for _, rating in rated], true)
    if true:
        found["truth"] = binned(true, [rating for _, rating in rated], None)
    over = list(_over_items(verdicts, truth).values())
    found["time"] = binned([float(i) for i in range(len(over))], over, None)
    return found
