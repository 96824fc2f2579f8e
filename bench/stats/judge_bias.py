"""What is wrong with a judge, from its verdicts alone: biases, noise, failures, agreement with a truth. Pure numbers, no files.

A preference is for the policy, in [0, 1]. A call is one order of one item; a judge that is a function of the texts has no calls.

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

Intervals are 95 %: t over items, where calls share an item clustered by it; Wilson's where nothing varies; kappa by bootstrap;
slopes by sandwich errors, for targets are shares and no counts. A statistic that needs what is not there is Unmeasured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bench.records import Verdict
from bench.stats import estimates
from bench.stats.estimates import Estimate, Unmeasured

Array = NDArray[np.float64]
Found = Estimate | Unmeasured
Truth = Mapping[str, float]  # preference for the policy by item

NO_ORDER = "a function of the two texts: it is shown no order"
NO_CALLS = "no pair was shown in both orders and read in both"
CHARACTERS = 100.0  # that a slope is per
NEWTON_STEPS = 50
KAPPA_RESAMPLES = 1000


def verdict_statistics(first: Sequence[Verdict], second: Sequence[Verdict] | None, truth: Truth | None) -> dict[str, Found]:
    """All that needs no labels of its own; `second` holds the verdicts of the same questions asked again."""
    agreed = retest_agreement(first, second)
    return {
        "win_rate": _or(estimates.win_rate([v.preference for v in first], np.random.default_rng(0)), "nothing was scored"),
        "position_bias": position_bias(first),
        "flip_rate": flip_rate(first),
        "retest_agreement": agreed,
        "noise_rate": noise_rate(agreed),
        "tie_rate": tie_rate(first),
        "failure_rate": failure_rate([*first, *(second or ())]),
        "length_slope": length_slope(first, None),
        "length_bias": Unmeasured("no truth to hold quality fixed by") if truth is None else length_slope(first, truth),
        "drift": drift(first, truth),
    }


def truth_statistics(verdicts: Sequence[Verdict], truth: Truth) -> dict[str, Found]:
    """How far the judge says what a truth says, on the items that have one."""
    return {"agreement": agreement(verdicts, truth), "kappa": kappa(verdicts, truth)}


# Orders and repetitions -----------------------------------------------------------------------------------------------


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


# Shares ---------------------------------------------------------------------------------------------------------------


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


def _or(found: Estimate | None, reason: str) -> Found:
    return Unmeasured(reason) if found is None else found


# Length and time ------------------------------------------------------------------------------------------------------


def length_slope(verdicts: Sequence[Verdict], truth: Truth | None) -> Found:
    """Log-odds for the policy per 100 characters that it is longer by; with a truth, at equal logit of it."""
    rows, targets = [], []
    for v in verdicts:
        if v.preference is None or v.policy_length is None or v.baseline_length is None or (truth is not None and v.item_id not in truth):
            continue
        beside = [] if truth is None else [_logit(truth[v.item_id])]
        rows.append([(v.policy_length - v.baseline_length) / CHARACTERS, 1.0, *beside])
        targets.append(v.preference)
    x, y = np.array(rows, dtype=float), np.array(targets, dtype=float)
    if len(rows) <= x.shape[-1]:
        return Unmeasured(f"{len(rows)} verdicts with lengths are too few for a slope")
    if np.linalg.matrix_rank(x) < x.shape[1]:
        return Unmeasured("lengths, or the truth, do not vary over the items")
    fitted = _logistic_fit(x, y)
    if fitted is None:
        return Unmeasured("length and truth tell wins from losses without an error: the slope has no end")
    slope, error = fitted
    z = float(special.stdtrit(len(rows) - x.shape[1], 0.975))
    return Estimate(slope, error, slope - z * error, slope + z * error, len(rows), len(verdicts) - len(rows))


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


def drift(verdicts: Sequence[Verdict], truth: Truth | None) -> Found:
    """Welch's interval for the second half's mean less the first's, in the order in which the items were asked."""
    kept = [(v.item_id, v.preference) for v in verdicts if v.preference is not None and (truth is None or v.item_id in truth)]
    values = np.array([preference if truth is None else preference - truth[item] for item, preference in kept])
    halves = values[: values.size // 2], values[values.size // 2 :]
    if halves[0].size < 2:
        return Unmeasured(f"{values.size} verdicts are too few to halve")
    return sum_of_means([(1.0, halves[1]), (-1.0, halves[0])], len(verdicts) - len(kept))


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


# Against a truth ------------------------------------------------------------------------------------------------------


def agreement(verdicts: Sequence[Verdict], truth: Truth) -> Found:
    pairs = _winners(verdicts, truth)
    return clustered_share({str(i): [1 - abs(a - b) / 2] for i, (a, b) in enumerate(pairs)}, "no item has both a verdict and a truth")


def kappa(verdicts: Sequence[Verdict], truth: Truth) -> Found:
    pairs = _winners(verdicts, truth)
    if not pairs:
        return Unmeasured("no item has both a verdict and a truth")
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
    low, high = estimates.percentile_interval(spread, 0.95) if spread.size > 1 and np.ptp(spread) > 0 else (None, None)
    return Estimate(float(value), float(spread.std(ddof=1)) if spread.size > 1 else None, low, high, n)


def _kappa(counts: Array) -> Array:
    """Linearly weighted kappa of tables (..., 3, 3); NaN where chance alone agrees wholly."""
    shares = counts / counts.sum(axis=(1, 2), keepdims=True)
    apart = np.abs(np.subtract.outer(np.arange(3), np.arange(3))) / 2
    seen = (shares * apart).sum(axis=(1, 2))
    chance = (shares.sum(axis=2)[:, :, None] * shares.sum(axis=1)[:, None, :] * apart).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance > 0, 1 - seen / chance, np.nan)


def _winners(verdicts: Sequence[Verdict], truth: Truth) -> list[tuple[int, int]]:
    """(judge's side, truth's side) of the items that have both."""
    return [(_side(v.preference), _side(truth[v.item_id])) for v in verdicts if v.preference is not None and v.item_id in truth]


def corrected_win_rate(verdicts: Sequence[Verdict], labelled: Truth) -> Found:
    """The win rate that the truth would give on all judged items, from the labels of some of them, which must be a random part."""
    judged = {v.item_id: v.preference for v in verdicts if v.preference is not None}
    known = [item for item in judged if item in labelled]
    if len(known) < 2:
        return Unmeasured(f"{len(known)} labelled verdicts are too few to correct by")
    rest = np.array([judged[item] for item in judged if item not in labelled])
    found = prediction_powered(np.array([judged[item] for item in known]), np.array([labelled[item] for item in known]), rest)
    return replace(found, n_unscored=len(verdicts) - len(judged))


def prediction_powered(judge: Array, truth: Array, rest: Array) -> Estimate:
    """Mean truth, from the judge on the labelled items (n,), their truth (n,) and the judge on the N - n others.

    mean judge + mean (truth - judge), written over disjoint parts, for the labelled items are judged too:
    mean over labelled of (truth - (1 - n/N) judge) + (1 - n/N) mean over the others of judge.
    """
    if rest.size < 2:  # nothing to learn from beside the labels
        return sum_of_means([(1.0, truth)], 0)
    share = rest.size / (rest.size + judge.size)
    return sum_of_means([(1.0, truth - share * judge), (share, rest)], 0)


def truth_win_rate(truth: Truth) -> Found:
    return _or(estimates.win_rate([*truth.values()], np.random.default_rng(0)), "there is no truth")


# For figures ----------------------------------------------------------------------------------------------------------

BINS = 8


def curves(verdicts: Sequence[Verdict], truth: Truth | None) -> dict[str, list[dict[str, float]]]:
    """Who won in both orders; mean preference against the length difference, against the truth, and in the order asked."""
    found = {}
    if sides := [(_side(first), _side(second)) for first, second in _both_orders(verdicts)]:
        tied = sum(0 in pair for pair in sides)
        counts = (sides.count((1, 1)), sides.count((-1, -1)), sides.count((1, -1)), sides.count((-1, 1)), tied)
        found["orders"] = [{"x": float(i), "n": float(n)} for i, n in enumerate(counts)]  # policy, baseline, first, second, a tie
    read = [(v, v.preference) for v in verdicts if v.preference is not None]
    true = [truth[v.item_id] for v, _ in read] if truth and all(v.item_id in truth for v, _ in read) else None
    said = [p for _, p in read]
    gaps = [float(v.policy_length - v.baseline_length) for v, _ in read if v.policy_length is not None and v.baseline_length is not None]
    if len(gaps) == len(read):
        found["length"] = binned(gaps, said, true)
    if true:
        found["truth"] = binned(true, said, None)
    less = true or [0.0] * len(said)
    found["time"] = binned([float(i) for i in range(len(said))], [p - t for p, t in zip(said, less, strict=True)], None)
    return found


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
