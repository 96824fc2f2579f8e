"""What is wrong with a judge, from its verdicts alone: biases, noise, failures, agreement with a truth. Pure numbers, no files.

Of preferences. A preference is for the policy, in [0, 1]. A call is one order of one item; a judge that is a function of the texts has no
calls. A truth is a preference too, by item.

win_rate          mean preference over items
position_bias     mean over items of preference(policy shown first) - preference(policy shown second): the share that goes by place
flip_rate         share of items on which the two orders name different winners (a tie names none)
retest_agreement  share of calls, asked a second time as they were, that name the same winner
noise_rate        the share of votes that would have to be turned at random for that agreement: a = 1 - 2 e (1 - e)
tie_rate          share of readable calls (verdicts, of a function) that are ties
failure_rate      share of calls (verdicts) that could not be read, both passes
length_slope      of logit P(policy) on the length difference, per 100 characters
length_bias       the same with logit of the truth beside it: what length does to two pairs that are equally good
drift             second half of the items in the order asked less the first half: mean preference, or mean (preference - truth)
agreement         1 for the same winner, 1/2 where one side alone says tie, 0 for the other winner; mean over items with a truth
kappa             Cohen's kappa with these weights (1968): agreement beyond what the two sides' own shares would give by chance
corrected_win_rate  mean judge + mean (truth - judge) over the labelled items (prediction-powered; Angelopoulos et al. 2023, section 2)

Of ratings. A rating is 1 to 10, of one turn of an item. A truth is a rating too, by (item, turn). There is no opponent, so no place that
could bias.

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
corrected_rating  mean rating + mean (truth - rating) over the labelled items (prediction-powered)
canaries          mean (rating of the canary - rating of the honest answer to the same item)

Intervals are 95 %: t over items, where calls or turns share an item clustered by it; Wilson's where nothing varies; slopes by sandwich
errors, those of ratings clustered by item (targets of the others are shares and no counts); kappa and the agreement of ratings by
bootstrap; that of noise_sd is of the variance, on a log scale. A statistic that needs what is not there is Unmeasured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bench.records import HumanLabel, Verdict, grouped, over_turns
from bench.stats import estimates
from bench.stats.estimates import Estimate, Unmeasured

Array = NDArray[np.float64]
Found = Estimate | Unmeasured
Truth = Mapping[Any, float]  # by a manner's `place`
Curves = dict[str, list[dict[str, float]]]

NO_ORDER = "a function of the two texts: it is shown no order"
NO_CALLS = "no pair was shown in both orders and read in both"
NO_PAIR = "no item has both a verdict and a truth"
NO_TRUTH = "no turn has both a rating and a truth"
NO_LABELS = "no truth to hold quality fixed by"
CHARACTERS = 100.0  # that a slope is per
NEWTON_STEPS = 50
KAPPA_RESAMPLES = 1000
RESAMPLES = 500


class Said(NamedTuple):
    """A verdict that has a value, and what is true in its place: 0 where no truth is asked about."""

    verdict: Verdict
    value: float
    true: float


def _said(verdicts: Sequence[Verdict], truth: Truth | None, manner: Manner) -> list[Said]:
    """The verdicts that have a value and, where a truth is given, a truth."""
    return [
        Said(v, value, 0.0 if truth is None else truth[manner.place(v)])
        for v in verdicts
        if (value := manner.value(v)) is not None and (truth is None or manner.place(v) in truth)
    ]


def _or(found: Estimate | None, reason: str) -> Found:
    return Unmeasured(reason) if found is None else found


# Preferences ----------------------------------------------------------------------------------------------------------


def preference_statistics(first: Sequence[Verdict], second: Sequence[Verdict] | None, truth: Truth | None) -> dict[str, Found]:
    """All that needs no labels of its own; `second` holds the verdicts of the same questions asked again."""
    agreed, said = retest_agreement(first, second), _said(first, truth, PREFERENCE)
    return {
        "win_rate": _or(estimates.win_rate([v.preference for v in first], np.random.default_rng(0)), "nothing was scored"),
        "position_bias": position_bias(first),
        "flip_rate": flip_rate(first),
        "retest_agreement": agreed,
        "noise_rate": noise_rate(agreed),
        "tie_rate": tie_rate(first),
        "failure_rate": failure_rate([*first, *(second or ())]),
        "length_slope": preference_slope(first, None),
        "length_bias": Unmeasured(NO_LABELS) if truth is None else preference_slope(first, truth),
        "drift": drift([s.value - s.true for s in said], len(first) - len(said), "verdicts"),
    }


def position_bias(verdicts: Sequence[Verdict]) -> Found:
    if not _asked(verdicts):
        return Unmeasured(NO_ORDER)
    return _or(estimates.mean_estimate([first - second for first, second in _both_orders(verdicts)]), NO_CALLS)


def flip_rate(verdicts: Sequence[Verdict]) -> Found:
    if not _asked(verdicts):
        return Unmeasured(NO_ORDER)
    return _or(estimates.accuracy([_side(first) * _side(second) < 0 for first, second in _both_orders(verdicts)]), NO_CALLS)


def retest_agreement(first: Sequence[Verdict], second: Sequence[Verdict] | None) -> Found:
    if second is None:
        return Unmeasured("a function of the two texts: it says the same again")
    again = {(verdict.item_id, call.policy_first): call.preference for verdict in second for call in verdict.calls}
    same: dict[str, list[float | None]] = {}
    for verdict in first:
        for call in verdict.calls:
            other = again.get((verdict.item_id, call.policy_first))
            both = call.preference is not None and other is not None
            same.setdefault(verdict.item_id, []).append(float(_side(call.preference) == _side(other)) if both else None)
    return clustered_share(same, "no question was asked twice and read twice")


def noise_rate(agreed: Found) -> Found:
    """Agreement below one half, which turning votes cannot make, counts as one half."""
    if isinstance(agreed, Unmeasured):
        return agreed

    def turned(a: float) -> float:
        return (1 - math.sqrt(max(0.0, 2 * a - 1))) / 2

    low, high = (None if bound is None else turned(bound) for bound in (agreed.high, agreed.low))
    return replace(agreed, value=turned(agreed.value), standard_error=None, low=low, high=high)


def _asked(verdicts: Sequence[Verdict]) -> bool:
    return any(verdict.calls for verdict in verdicts)


def _both_orders(verdicts: Sequence[Verdict]) -> list[tuple[float, float]]:
    """(preference with the policy first, with it second) of the items that were read in both orders."""
    found = []
    for verdict in verdicts:
        by_order = {call.policy_first: call.preference for call in verdict.calls}
        first, second = by_order.get(True), by_order.get(False)
        if first is not None and second is not None:
            found.append((first, second))
    return found


def _side(preference: float | None) -> int:
    """1 policy, -1 baseline, 0 a tie."""
    assert preference is not None
    return (preference > 0.5) - (preference < 0.5)


def tie_rate(verdicts: Sequence[Verdict]) -> Found:
    ties = {item: [None if p is None else float(p == 0.5) for p in read] for item, read in _read(verdicts)}
    return clustered_share(ties, "nothing was scored")


def failure_rate(verdicts: Sequence[Verdict]) -> Found:
    by_item: dict[str, list[float | None]] = {}
    for item, read in _read(verdicts):
        by_item.setdefault(item, []).extend(float(p is None) for p in read)
    return clustered_share(by_item, "there are no verdicts")


def _read(verdicts: Sequence[Verdict]) -> list[tuple[str, list[float | None]]]:
    """What each call said, by item; of a function what each verdict says. Equal texts, about which nobody was asked, are left out."""
    if not _asked(verdicts):
        return [(verdict.item_id, [verdict.preference]) for verdict in verdicts]
    return [(verdict.item_id, [call.preference for call in verdict.calls]) for verdict in verdicts if verdict.calls]


def clustered_share(by_item: Mapping[str, Sequence[float | None]], none: str) -> Found:
    """A share, clustered by item; Wilson's interval over items where all are alike."""
    found = estimates.rating_mean(by_item)
    if found is None:
        return Unmeasured(none)
    if found.low is not None and found.high is not None:
        return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))
    n = sum(any(value is not None for value in values) for values in by_item.values())
    low, high = estimates.wilson(found.value * n, n)
    return replace(found, low=low, high=high)


def preference_slope(verdicts: Sequence[Verdict], truth: Truth | None) -> Found:
    """Log-odds for the policy per 100 characters that it is longer by; with a truth, at equal logit of it."""
    kept = [(s, gap) for s in _said(verdicts, truth, PREFERENCE) if (gap := _gap(s.verdict)) is not None]
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
    """By how many characters the policy's completion is longer."""
    if verdict.policy_length is None or verdict.baseline_length is None:
        return None
    return verdict.policy_length - verdict.baseline_length


def _logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def _logistic_fit(x: Array, y: Array) -> tuple[float, float] | None:
    """(first coefficient, its sandwich error) of a logistic regression on shares, by Newton's method; None where it does not end."""
    scale = np.abs(x).max(axis=0)
    x, w = x / scale, np.zeros(x.shape[1])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        hessian = (x * (p * (1 - p))[:, None]).T @ x
        try:
            step = np.linalg.solve(hessian, x.T @ (y - p))
        except np.linalg.LinAlgError:
            return None
        w = w + step * min(1.0, 5.0 / max(1e-300, float(np.abs(step).max())))  # far steps overshoot where the truth is nearly certain
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


def preference_agreement(verdicts: Sequence[Verdict], truth: Truth) -> dict[str, Found]:
    """How far the judge names the winners that a truth names, on the items that have one."""
    pairs = [(_side(s.value), _side(s.true)) for s in _said(verdicts, truth, PREFERENCE)]
    agreed = clustered_share({str(i): [1 - abs(a - b) / 2] for i, (a, b) in enumerate(pairs)}, NO_PAIR)
    return {"agreement": agreed, "kappa": kappa(pairs)}


def kappa(pairs: Sequence[tuple[int, int]]) -> Found:
    """Of (judge's side, truth's side) of each item."""
    if not pairs:
        return Unmeasured(NO_PAIR)
    counts = np.zeros((3, 3))
    for a, b in pairs:
        counts[a + 1, b + 1] += 1
    n = len(pairs)
    value = _kappa(counts[None])[0]
    if not math.isfinite(value):
        return Unmeasured("judge and truth name one and the same side everywhere: nothing is left to chance")
    draws = np.random.default_rng(0).multinomial(n, counts.ravel() / n, size=KAPPA_RESAMPLES).reshape(-1, 3, 3).astype(float)
    spread = _kappa(draws)
    spread = spread[np.isfinite(spread)]
    low, high = estimates.percentile_interval(spread) if spread.size > 1 and np.ptp(spread) > 0 else (None, None)
    return Estimate(float(value), float(spread.std(ddof=1)) if spread.size > 1 else None, low, high, n)


def _kappa(counts: Array) -> Array:
    """Linearly weighted kappa of tables (..., 3, 3); NaN where chance alone agrees wholly."""
    shares = counts / counts.sum(axis=(1, 2), keepdims=True)
    apart = np.abs(np.subtract.outer(np.arange(3), np.arange(3))) / 2
    seen = (shares * apart).sum(axis=(1, 2))
    chance = (shares.sum(axis=2)[:, :, None] * shares.sum(axis=1)[:, None, :] * apart).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance > 0, 1 - seen / chance, np.nan)


def corrected_win_rate(verdicts: Sequence[Verdict], labelled: Truth) -> Found:
    """The win rate that the truth would give on all judged items, from the labels of some of them, which must be a random part."""
    judged = {v.item_id: v.preference for v in verdicts if v.preference is not None}
    known = [item for item in judged if item in labelled]
    if len(known) < 2:
        return Unmeasured(f"{len(known)} labelled verdicts are too few to correct by")
    rest = np.array([judged[item] for item in judged if item not in labelled])
    found = prediction_powered(np.array([judged[item] for item in known]), np.array([labelled[item] for item in known]), rest)
    return replace(found, n_unscored=len(verdicts) - len(judged))


def preference_curves(verdicts: Sequence[Verdict], truth: Truth | None) -> Curves:
    """Who won in both orders; mean preference against the length difference, against the truth, and in the order asked."""
    found: Curves = {}
    if sides := [(_side(first), _side(second)) for first, second in _both_orders(verdicts)]:
        tied = sum(0 in pair for pair in sides)
        counts = (sides.count((1, 1)), sides.count((-1, -1)), sides.count((1, -1)), sides.count((-1, 1)), tied)
        found["orders"] = [{"x": float(i), "n": float(n)} for i, n in enumerate(counts)]  # policy, baseline, first, second, a tie
    said, true = _with_truth(verdicts, truth, PREFERENCE)
    gaps = [float(gap) for s in said if (gap := _gap(s.verdict)) is not None]
    return found | _curves(gaps, said, true, [s.value - t for s, t in zip(said, true or [0.0] * len(said), strict=True)])


# Ratings --------------------------------------------------------------------------------------------------------------


def rating_statistics(first: Sequence[Verdict], second: Sequence[Verdict] | None, truth: Truth | None) -> dict[str, Found]:
    """All that needs no labels of its own; `second` holds the verdicts of the same questions asked again."""
    return {
        "mean_rating": _or(estimates.rating_mean(_by_item(first, lambda v: v.rating)), "nothing was rated"),
        "retest_agreement": rating_retest(first, second),
        "noise_sd": noise_sd(first, second),
        "whole_rate": _share(first, lambda v: None if v.rating is None else float(float(v.rating).is_integer())),
        "commonest_rate": commonest_rate(first),
        "failure_rate": _share([*first, *(second or ())], lambda v: float(v.rating is None)),
        "length_slope": rating_slope(first, None),
        "length_bias": Unmeasured(NO_LABELS) if truth is None else rating_slope(first, truth),
        "drift": drift(list(_over_items(_said(first, truth, RATING)).values()), sum(v.rating is None for v in first), "rated items"),
    }


def rating_agreement(verdicts: Sequence[Verdict], truth: Truth) -> dict[str, Found]:
    """How far the judge says what a truth says, on the turns that have one."""
    place = RATING.place
    differences = _by_item(verdicts, lambda v: v.rating - truth[place(v)] if v.rating is not None and place(v) in truth else None)
    return {
        "rank_correlation": rank_correlation(verdicts, truth),
        "pair_agreement": pair_agreement(verdicts, truth),
        "mean_difference": _or(estimates.rating_mean(differences), NO_TRUTH),
    }


def _by_item(verdicts: Sequence[Verdict], value: Callable[[Verdict], float | None]) -> dict[str, list[float | None]]:
    return grouped((verdict.item_id, value(verdict)) for verdict in verdicts)


def _share(verdicts: Sequence[Verdict], value: Callable[[Verdict], float | None]) -> Found:
    return clustered_share(_by_item(verdicts, value), "nothing was rated")


def _twice(first: Sequence[Verdict], second: Sequence[Verdict] | None) -> dict[str, list[tuple[float, float]]] | Unmeasured:
    """(rating, rating when asked again) by item."""
    if second is None:
        return Unmeasured("a function of the text: it says the same again")
    both = _said(first, {RATING.place(v): v.rating for v in second if v.rating is not None}, RATING)
    return grouped((s.verdict.item_id, (s.value, s.true)) for s in both) or Unmeasured("no question was asked twice and read twice")


def rating_retest(first: Sequence[Verdict], second: Sequence[Verdict] | None) -> Found:
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


def rating_slope(verdicts: Sequence[Verdict], truth: Truth | None) -> Found:
    """Points per 100 characters by least squares; with a truth, at equal truth. Sandwich errors, clustered by item."""
    kept = [(s, length) for s in _said(verdicts, truth, RATING) if (length := s.verdict.policy_length) is not None]
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
    return _slope(float(coefficients[0]), math.sqrt(max(0.0, float(covariance[0, 0]))), c - k, n, len(verdicts))


def _over_items(said: Sequence[Said]) -> dict[str, float]:
    """Each item's mean (rating - truth) over its turns."""
    by_item = grouped((s.verdict.item_id, s.value - s.true) for s in said)
    return {item: math.fsum(values) / len(values) for item, values in by_item.items()}


def rank_correlation(verdicts: Sequence[Verdict], truth: Truth) -> Found:
    rows = _said(verdicts, truth, RATING)
    said, true = np.array([row.value for row in rows]), np.array([row.true for row in rows])
    if len(rows) < 3 or np.ptp(said) == 0 or np.ptp(true) == 0:
        return Unmeasured(NO_TRUTH if not rows else "ratings, or the truth, do not vary")
    items = sorted({row.verdict.item_id for row in rows})
    draws = np.random.default_rng(0).multinomial(len(items), np.full(len(items), 1 / len(items)), size=RESAMPLES)
    weights = draws[:, [items.index(row.verdict.item_id) for row in rows]].astype(float)
    spread = _spearman(said, true, weights)
    return _bootstrapped(float(_spearman(said, true, np.ones((1, len(rows))))[0]), spread[np.isfinite(spread)], len(rows))


def _spearman(a: Array, b: Array, weights: Array) -> Array:
    """Spearman's correlation of (n,) values under each row of `weights` (R, n), which say how often a value counts; NaN without spread."""
    total = weights.sum(axis=1, keepdims=True)
    ranks = (_ranks(values, weights) for values in (a, b))
    first, second = (each - (weights * each).sum(axis=1, keepdims=True) / total for each in ranks)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights * first * second).sum(axis=1) / np.sqrt((weights * first**2).sum(axis=1) * (weights * second**2).sum(axis=1))


def _ranks(values: Array, weights: Array) -> Array:
    """Mean ranks (R, n)."""
    below, level = np.less.outer(values, values).astype(float), np.equal.outer(values, values).astype(float)
    return weights @ below + (weights @ level + 1) / 2


def pair_agreement(verdicts: Sequence[Verdict], truth: Truth) -> Found:
    rows = sorted((s.verdict.item_id, s.verdict.turn, s.value, s.true) for s in _said(verdicts, truth, RATING))
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
    low, high = estimates.percentile_interval(draws) if spread else (None, None)
    return Estimate(value, float(draws.std(ddof=1)) if spread else None, low, high, n)


def truth_rating(truth: Truth) -> Found:
    return _or(estimates.rating_mean(grouped((item, value) for (item, _), value in truth.items())), "there is no truth")


def corrected_rating(verdicts: Sequence[Verdict], labelled: Truth) -> Found:
    """The mean rating that the truth would give on all rated items, from the labels of some of them, which must be a random part.

    Each item counts once, as the mean of its turns that were rated (of a labelled one: rated and labelled).
    """
    known = _over_items(both := _said(verdicts, labelled, RATING))  # mean (rating - label)
    if len(known) < 2:
        return Unmeasured(f"{len(known)} labelled items are too few to correct by")
    judged = np.array(list(_over_items([s._replace(true=0.0) for s in both]).values()))
    rest = np.array([value for item, value in _over_items(_said(verdicts, None, RATING)).items() if item not in known])
    return prediction_powered(judged, judged - np.array(list(known.values())), rest)


def canary_difference(canaries: Mapping[str, float | None], honest: Mapping[str, float | None]) -> Found:
    """Of one canary: its rating less the honest answer's, by item, which must be below 0."""
    pairs = [(rating, honest.get(item)) for item, rating in canaries.items()]
    differences = [None if rating is None or other is None else rating - other for rating, other in pairs]
    return _or(estimates.mean_estimate(differences), "no rating of it, or of the honest answers, could be read")


def rating_curves(verdicts: Sequence[Verdict], truth: Truth | None) -> Curves:
    """histogram of ratings; mean rating against length, against the truth, and in the order asked."""
    said, true = _with_truth(verdicts, truth, RATING)
    counts = Counter(round(s.value) for s in said)
    found = {"histogram": [{"x": float(score), "n": float(counts[score])} for score in range(1, 11)]}
    lengths = [float(s.verdict.policy_length) for s in said if s.verdict.policy_length is not None]
    return found | _curves(lengths, said, true, list(_over_items(_said(verdicts, truth, RATING)).values()))


# Both -----------------------------------------------------------------------------------------------------------------

NO_SPREAD = "lengths, or the truth, do not vary over the items"


def _columns(lengths: Sequence[int], truths: Sequence[float] | None) -> Array:
    """(n, 2 or 3): hundreds of characters, 1, and what quality is held fixed by."""
    return np.column_stack([np.array(lengths) / CHARACTERS, np.ones(len(lengths)), *([] if truths is None else [truths])])


def _slope(slope: float, error: float, df: int, n: int, n_verdicts: int) -> Estimate:
    margin = float(special.stdtrit(df, 0.975)) * error
    return Estimate(slope, error, slope - margin, slope + margin, n, n_verdicts - n)


def drift(values: Sequence[float], n_unscored: int, what: str) -> Found:
    """Welch's interval for the second half's mean less the first's, in the order in which the items were asked."""
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
    """Mean truth, from the judge on the labelled items (n,), their truth (n,) and the judge on the N - n others.

    mean judge + mean (truth - judge), written over disjoint parts, for the labelled items are judged too:
    mean over labelled of (truth - (1 - n/N) judge) + (1 - n/N) mean over the others of judge.
    """
    if rest.size < 2:  # nothing to learn from beside the labels
        return sum_of_means([(1.0, truth)], 0)
    share = rest.size / (rest.size + judge.size)
    return sum_of_means([(1.0, truth - share * judge), (share, rest)], 0)


# For figures ----------------------------------------------------------------------------------------------------------

BINS = 8


def _with_truth(verdicts: Sequence[Verdict], truth: Truth | None, manner: Manner) -> tuple[list[Said], list[float] | None]:
    """The verdicts that have a value, and the truth of all of them; None where one has none."""
    said, known = _said(verdicts, None, manner), _said(verdicts, truth or {}, manner)
    return said, [s.true for s in known] if truth and len(known) == len(said) else None


def _curves(lengths: Sequence[float], said: Sequence[Said], true: Sequence[float] | None, time: Sequence[float]) -> Curves:
    """`lengths`: of those that have one; `time`: in the order asked."""
    found, values = {}, [s.value for s in said]
    if len(lengths) == len(said):
        found["length"] = binned(lengths, values, true)
    if true:
        found["truth"] = binned(true, values, None)
    return found | {"time": binned([float(i) for i in range(len(time))], time, None)}


def binned(x: Sequence[float], judge: Sequence[float], truth: Sequence[float] | None) -> list[dict[str, float]]:
    """Means over bins of about equally many, in the order of x; `low`, `high`: 95 % of the judge's, where they vary."""
    order = np.argsort(np.array(x, dtype=float), kind="stable")
    rows = []
    for part in np.array_split(order, min(BINS, max(1, len(order) // 5))) if len(order) else ():
        found = estimates.mean_estimate([judge[i] for i in part])
        assert found is not None
        row = {"x": float(np.mean([x[i] for i in part])), "judge": found.value, "n": float(part.size)}
        if found.low is not None and found.high is not None:
            row |= {"low": found.low, "high": found.high}
        rows.append(row | ({} if truth is None else {"truth": float(np.mean([truth[i] for i in part]))}))
    return rows


# The two kinds of verdict ---------------------------------------------------------------------------------------------


class Manner(NamedTuple):
    """How verdicts of one kind are read and examined."""

    mean: str  # name of the mean verdict among the statistics
    value: Callable[[Verdict | HumanLabel], float | None]
    place: Callable[[Verdict | HumanLabel], Any]  # what a truth is of
    each: Callable[[Iterable[Verdict]], list[Verdict]]  # one an item, or one a turn
    statistics: Callable[[Sequence[Verdict], Sequence[Verdict] | None, Truth | None], dict[str, Found]]
    agreement: Callable[[Sequence[Verdict], Truth], dict[str, Found]]
    corrected: Callable[[Sequence[Verdict], Truth, Truth], dict[str, Found]]  # of a truth, and the labels that may be used
    curves: Callable[[Sequence[Verdict], Truth | None], Curves]


PREFERENCE = Manner(
    "win_rate",
    lambda v: v.preference,
    lambda v: v.item_id,
    over_turns,
    preference_statistics,
    preference_agreement,
    lambda verdicts, truth, labelled: {
        "true_win_rate": _or(estimates.win_rate([*truth.values()], np.random.default_rng(0)), "there is no truth"),
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
    lambda verdicts, truth, labelled: {"true_rating": truth_rating(truth), "corrected_rating": corrected_rating(verdicts, labelled)},
    rating_curves,
)
