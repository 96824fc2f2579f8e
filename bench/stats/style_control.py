"""Style control: the win rate over battles if both completions had the same style. Pure numbers, no files.

A verdict of an Arena-Hard judge is two games of an item, one in each order of the completions. A strong win
counts as three battles, a slight win or a tie as one (Arena-Hard-Auto 2.0). Over the battles of all items

    arena_win_rate   = Σ outcomes / number of battles                           outcome 1 win, 0.5 tie, 0 loss
    logit P(win_i)   = w_mod + Σ_j w_j x_ij / sd(x_j)    style_win_rate = σ(w_mod)   style difference set to 0

a is the policy, b the baseline. x for length is (a - b) / (a + b) in characters. x for headers, lists and
bold is (d_a - d_b) / (d_a + d_b + 1), where d is the number of such Markdown elements outside code blocks per
character. A style without any difference is left out. Intervals come from refits on resampled items. Each w_j
has a log-F(4, 4) prior, of unit curvature at 0 (Greenland and Mansournia 2015: four pseudo-battles, half of
them won). Without the prior one item with the only list would have an infinite coefficient. The prior weighs
like 4 of some 2,000 battles on Arena-Hard's 500 items.

Deviations from Arena-Hard-Auto, on purpose:

- Each policy is fitted by itself.
- x is not centred, so that 0 means equal style (there: the average difference over all models).
- Items are resampled with all their battles, 500 times and seeded (there: battles, as if they were
  independent).
- The interval is 95 % (there: 90 %).
- Lengths are characters (there: tokens of GPT-4o).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.records import Verdict
from bench.stats import special
from bench.stats.estimates import Array, Estimate, Unmeasured, percentile_interval, wilson
from bench.stats.length_control import REFITS_AT_ONCE, Sample, fit_logistic, refit_interval

STRONG = 3  # number of battles of a strong win
PRIOR = 4.0  # number of pseudo-battles for each style
MARKUP = ("headers", "lists", "bold")
STYLES = ("length", *MARKUP)

CODE = re.compile(r"```[^`]*```")
COUNTED = {
    "headers": re.compile(r"^#{1,6}\s", re.MULTILINE),
    "lists": re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}


def markup(text: str) -> dict[str, int]:
    """Numbers of headers, list entries and bold passages of a text, outside its code blocks."""
    plain = CODE.sub("", text)
    return {name: len(pattern.findall(plain)) for name, pattern in COUNTED.items()}


# Games ----------------------------------------------------------------------------------------------------------------


def battles(games: Sequence[float]) -> tuple[float, int]:
    """Mean outcome and number of the battles of an item's games.

    A game is 2, 1, 0, -1 or -2, from a strong win of the policy to a strong loss.
    """
    weights = [STRONG if abs(game) == 2 else 1 for game in games]
    outcomes = [0.5 if game == 0 else float(game > 0) for game in games]
    return sum(w * y for w, y in zip(weights, outcomes, strict=True)) / sum(weights), sum(weights)


def game_facts(games: Sequence[float], policy: str, baseline: str) -> dict[str, float]:
    """`details` of a verdict: the games (policy first, then baseline first) and the markup of both texts."""
    facts = dict(zip(("policy_first", "baseline_first"), map(float, games), strict=True))
    for side, text in (("policy", policy), ("baseline", baseline)):
        facts |= {f"{side}_{name}": float(n) for name, n in markup(text).items()}
    return facts


class StyleRows(NamedTuple):
    """Scored items, sorted so that their order in the input cannot matter.

    All battles of an item share one style and are one row.
    """

    outcomes: Array  # (n,) mean over the item's battles
    weights: Array  # (n,) number of its battles
    styles: Array  # (n, 4) differences in STYLES


def _rows(verdicts: Sequence[Verdict]) -> StyleRows:
    rows = []
    for v in verdicts:
        if v.preference is None:
            continue
        if v.details is None or v.policy_length is None or v.baseline_length is None:
            raise ValueError(f"the verdict on {v.item_id} has no games or lengths")
        outcome, weight = battles([v.details["policy_first"], v.details["baseline_first"]])
        # Each difference, policy against baseline, is in [-1, 1]. An empty completion has density 0.
        ours, theirs = v.policy_length, v.baseline_length
        styles = [(ours - theirs) / (ours + theirs) if ours + theirs else 0.0]
        for name in MARKUP:
            d_a, d_b = (
                v.details[f"{side}_{name}"] / n if n else 0.0
                for side, n in (("policy", ours), ("baseline", theirs))
            )
            styles.append((d_a - d_b) / (d_a + d_b + 1))
        rows.append((outcome, weight, *styles))
    table = np.array(sorted(rows), dtype=float).reshape(-1, 2 + len(STYLES))
    return StyleRows(table[:, 0], table[:, 1], table[:, 2:])


def has_games(verdicts: Sequence[Verdict]) -> bool:
    """Whether there are scored verdicts and all of them come from an Arena-Hard judge."""
    scored = [v for v in verdicts if v.preference is not None]
    return bool(scored) and all(v.details is not None and "baseline_first" in v.details for v in scored)


# Numbers --------------------------------------------------------------------------------------------------------------


def arena_win_rate(
    verdicts: Sequence[Verdict], rng: np.random.Generator, n_resamples: int = 2000
) -> Estimate | Unmeasured:
    """Mean outcome over all battles, in [0, 1].

    Standard error and interval are over items, each with all its battles.
    """
    rows = _rows(verdicts)
    n, n_unscored = len(rows.outcomes), len(verdicts) - len(rows.outcomes)
    if n == 0:
        return Unmeasured("no item was scored")
    value = float(rows.outcomes @ rows.weights / rows.weights.sum())
    if n == 1:
        return Estimate(value, None, None, None, n, n_unscored)
    if value in (0, 1):
        return Estimate(value, 0.0, *wilson(value * n, n), n, n_unscored)
    take = rng.integers(n, size=(n_resamples, n))
    draws = (rows.outcomes * rows.weights)[take].sum(axis=1) / rows.weights[take].sum(axis=1)
    return Estimate(value, float(draws.std(ddof=1)), *percentile_interval(draws), n, n_unscored)


@dataclass(frozen=True)
class StyleWinRate(Estimate):
    """A style-controlled win rate. `coefficients`: by style, on the logit scale, for one standard deviation.

    `n_failed_refits` counts refits left out of the interval.
    """

    coefficients: Mapping[str, float] = field(default_factory=dict)
    n_failed_refits: int = 0


def style_win_rate(
    verdicts: Sequence[Verdict], rng: np.random.Generator, n_resamples: int = 500
) -> StyleWinRate | Unmeasured:
    """The style-controlled win rate defined in the module docstring, in [0, 1].

    All lost or all won: 0 or 1, with Wilson's interval. Unmeasured where there are no more items than
    coefficients, or where the fit has no finite maximum. Refits without a finite maximum are left out and
    counted; above 5 % there is no interval.
    """
    rows = _rows(verdicts)
    n, n_unscored = len(rows.outcomes), len(verdicts) - len(rows.outcomes)
    differ = [j for j in range(len(STYLES)) if n and np.ptp(rows.styles[:, j]) > 0]
    if n == 0:
        return Unmeasured("no item was scored")
    if n <= 1 + len(differ):
        return Unmeasured(f"{n} scored items cannot carry {1 + len(differ)} coefficients")
    if rows.outcomes[-1] == 0 or rows.outcomes[0] == 1:
        value = float(rows.outcomes[0])
        return StyleWinRate(value, 0.0, *wilson(value * n, n), n, n_unscored)
    x = rows.styles[:, differ] / rows.styles[:, differ].std(axis=0, ddof=1)
    w, failed = fit_logistic(_sample(x, rows, np.arange(n)[None]))
    if failed[0]:
        return Unmeasured("wins and losses are separated: what is left at equal style has no estimate")
    take = rng.integers(n, size=(n_resamples, n))
    refits = [
        fit_logistic(_sample(x, rows, take[i : i + REFITS_AT_ONCE]))
        for i in range(0, n_resamples, REFITS_AT_ONCE)
    ]
    one_sided = np.array(
        [np.ptp(rows.outcomes[items]) == 0 and rows.outcomes[items[0]] in (0, 1) for items in take]
    )
    fitted, lost = np.concatenate([w for w, _ in refits])[:, 1], np.concatenate([lost for _, lost in refits])
    draws = np.where(one_sided, rows.outcomes[take[:, 0]], special.expit(fitted))[~lost | one_sided]
    named = dict(zip([STYLES[j] for j in differ], np.delete(w[0], 1).tolist(), strict=False))
    return StyleWinRate(
        value=float(special.expit(w[0, 1])),
        n=n,
        n_unscored=n_unscored,
        coefficients=named,
        **refit_interval(draws, n_resamples),
    )


def _sample(x: Array, rows: StyleRows, items: NDArray[np.int_]) -> Sample:
    """Samples of R fits, from the item indices (R, n).

    The policy's own column is second, where `fit_logistic` expects it. Without styles the first column is 0.
    The rows of the prior come last.
    """
    n, k = len(x), max(1, x.shape[1])
    styles = x if x.shape[1] else np.zeros((n, 1))
    columns = np.hstack([styles[:, :1], np.ones((n, 1)), styles[:, 1:]])
    prior = np.insert(np.eye(k), 1, 0, axis=1)
    n_fits = len(items)
    return Sample(
        np.concatenate([columns[items], np.broadcast_to(prior, (n_fits, k, k + 1))], axis=1),
        np.concatenate([rows.outcomes[items], np.full((n_fits, k), 0.5)], axis=1),
        np.concatenate([rows.weights[items], np.full((n_fits, k), PRIOR)], axis=1),
        items.shape[1],
    )
