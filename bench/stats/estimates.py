"""Statistics of a results table: win rates, intervals, paired comparisons. Pure numbers, no files.

A missing measurement is None: it is not part of the mean and is counted separately. NaN and infinity raise
ValueError. The result of every function does not depend on the order of its items, to the last bit. This
holds for resampling too: values are sorted before the generator draws.

**The difference to the start model in a table.** Several seeds judged on the same items are a crossed design,
seeds x items. It speaks about two populations: other seeds and other prompts. Let D[s, i] be the difference
on item i with seed s:

    D[s, i] = mu + seed_s + prompt_i + residual_si
    Var(mean) = var_seed/S + var_prompt/P + var_residual/(S P)

- `Comparison.prompts` averages over seeds and takes a paired t test over items: "these S trained models,
  other prompts". It leaves out var_seed.
- `Comparison.seeds` is the t interval over S seed means: "other seeds, these prompts". It leaves out
  var_prompt. With S = 3 it has 2 degrees of freedom and reaches p = 0.001 only at t = 32, so after Holm over
  nine rows it rejects nothing but enormous effects.
- `Comparison.combined` estimates all three terms from the two-way mean squares, with Satterthwaite's degrees
  of freedom.

A table should lead with `combined` of `compare_table` and also print `seeds` and `prompts`. `compare_table`
pools the seed variance over the rows of the table, which gives more degrees of freedom than S - 1. Each row
gets the larger of its own seed variance and the pooled one, each with its own degrees of freedom. Against the
start model, rows that are noisy beyond the 1 % point of F leave the pool, so that an interval hardly depends
on the row's neighbours. Measured in percent (tests/stats/test_coverage.py: 9 rows, S = 3, P = 805, graded
preferences; tables with a false alarm at 5 % after Holm, and coverage of nominal 95 %):

    seed variances                           false alarm   noisy row   other rows   their half width, points
    equal                                    2.0           97.2        97.5         2.8
    one row of 20 x variance                 3.0           93.7        98.0         2.9
    two rows of 20 x variance                4.0           93.8        98.9         3.2
    sds log-normal, sigma 1                  3.6           98.1        97.5         4.5
    one loses 15 points in a fifth of seeds  15.9          66.1        97.1         2.8

Three seeds cannot see what happens to one training in five, and no interval covers that: bench/stats/
contrasts.py names a seed far from the others. By itself, a row on three seeds has p below 0.001 in up to 1.6 %
of tables without an effect; `prompts` alone in up to 42 %, where seeds vary much.

Further limits:

- Seeds must be replicates of the whole chain. A start model trained once and used under every seed is one
  draw of it, and no interval here knows how another draw would have done.
- The mean of item-wise differences is treated as about normal, which is fine from some 30 items on.
- Items with a missing verdict under any seed are dropped from both sides. A judge that fails on losses
  therefore biases the difference, whatever the interval says.

There is no bootstrap over three seeds: of 27 equally likely resamples one has the smallest mean and one the
largest, and 1/27 > 2.5%. Its 95% interval is therefore [min, max], which covers 1 - 2/2**3 = 75%.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench.stats import special

Array = NDArray[np.float64]
ByItem = Mapping[str, float | None]
BySeed = Mapping[int, ByItem]
K = TypeVar("K", bound=Hashable)
LEVEL = 0.95  # coverage of every interval


@dataclass(frozen=True)
class Estimate:
    """A value with its sampling error, over `n` measurements.

    `standard_error`, `low` and `high` are None where they cannot be computed: one measurement, or no spread.
    """

    value: float
    standard_error: float | None
    low: float | None
    high: float | None
    n: int
    n_unscored: int = 0


class Unmeasured(NamedTuple):
    """Reason why a number could not be computed."""

    reason: str


@dataclass(frozen=True)
class Difference:
    """Mean difference, first minus second side. `t` is the value in standard errors; `p` is two-sided.

    `n` counts items, or seeds for an interval over seeds. `n_dropped` counts items without a value on both
    sides.
    """

    value: float
    standard_error: float | None
    low: float | None
    high: float | None
    t: float | None
    df: float | None
    p: float | None
    n: int
    n_dropped: int = 0

    @property
    def turned(self) -> Difference:
        """The same difference as second minus first side."""
        low, high, t = (None if end is None else -end for end in (self.high, self.low, self.t))
        return replace(self, value=-self.value, low=low, high=high, t=t)


@dataclass(frozen=True)
class Pooled:
    """Mean over seeds of one value a seed, its sd (ddof 1), and a t interval for the mean."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n_seeds: int


class SeedSpread(NamedTuple):
    """Variance over seeds of a difference's mean over items, and the degrees of freedom of this variance."""

    variance: float
    df: float

    @property
    def sd(self) -> float:
        return math.sqrt(self.variance)


@dataclass(frozen=True)
class Comparison:
    """One row against another on the same items and seeds. The module docstring explains the three intervals.

    `combined` and `seeds` are None with one seed. `variance_*` are the moment estimates of the three
    components; a negative estimate is set to 0. `p_holm` is set by `compare_table`.
    """

    combined: Difference | None
    seeds: Difference | None
    prompts: Difference
    per_seed: Mapping[int, float]
    variance_seed: float | None
    variance_prompt: float | None
    variance_residual: float | None
    n_seeds: int
    n_items: int
    n_dropped: int
    p_holm: float | None = None

    @property
    def lead(self) -> Difference:
        """The difference that a table shows: `combined`, or `prompts` with one seed (the table says so)."""
        return self.combined or self.prompts


def scored_values(values: Sequence[float | None], low: float = -math.inf, high: float = math.inf) -> Array:
    """The values that are not None, sorted.

    Raises ValueError for one that is not finite or outside [low, high].
    """
    kept = np.sort(np.array([v for v in values if v is not None], dtype=float))
    if not np.isfinite(kept).all():
        raise ValueError("a value is NaN or infinite; a missing measurement is None")
    if kept.size and not (low <= kept[0] and kept[-1] <= high):
        raise ValueError(f"values must be in [{low:g}, {high:g}], got {kept[0]:g} to {kept[-1]:g}")
    return kept


def _standard_error(values: Array) -> float | None:
    if values.size < 2:
        return None
    return 0.0 if _no_spread(values) else float(values.std(ddof=1) / math.sqrt(values.size))


def _no_spread(values: Array) -> bool:
    # Equal numbers that were summed in different orders differ by 1e-17. That would make a t of 1e16.
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _bootstrap_means(values: Array, rng: np.random.Generator, n_resamples: int) -> Array:
    # Drawing counts of the distinct values has the same distribution as drawing rows. It costs three columns
    # for a judge that says 0, 0.5 or 1.
    distinct, counts = np.unique(values, return_counts=True)
    return rng.multinomial(values.size, counts / values.size, size=n_resamples) @ distinct / values.size


def percentile_interval(draws: Array) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _t_interval(value: float, standard_error: float | None, df: float) -> tuple[float | None, float | None]:
    if not standard_error:
        return None, None
    margin = float(special.stdtrit(df, (1 + LEVEL) / 2)) * standard_error
    return value - margin, value + margin


def wilson(n_right: float, n: float) -> tuple[float, float]:
    """Wilson's interval for a proportion: never empty, never outside [0, 1]."""
    if not (n > 0 and 0 <= n_right <= n):
        raise ValueError(f"need 0 <= n_right <= n and n > 0, got {n_right} of {n}")
    z = float(special.ndtri((1 + LEVEL) / 2))
    p = n_right / n
    centre, margin = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At p = 0 the lower bound, and at p = 1 the upper bound, are exact except for rounding.
    low = 0.0 if p == 0 else (centre - margin) / (1 + z * z / n)
    high = 1.0 if p == 1 else (centre + margin) / (1 + z * z / n)
    return low, high


def accuracy(right: Sequence[float | None]) -> Estimate | None:
    """Share that is right (a tie is a half), with Wilson's interval. None when nothing was scored."""
    scored = [float(r) for r in right if r is not None]
    n = len(scored)
    if n == 0:
        return None
    p = sum(scored) / n
    return Estimate(p, math.sqrt(p * (1 - p) / n), *wilson(sum(scored), n), n, len(right) - n)


def auc(above: Array, below: Array, rng: np.random.Generator, n_resamples: int = 500) -> Estimate:
    """Chance that a value of `above` is larger than one of `below`; a tie is a half.

    Interval: bootstrap of both.
    """

    def share(a: Array, b: Array) -> float:
        gaps = np.sort(a)[:, None] - np.sort(b)[None, :]
        return float((gaps > 0).mean() + 0.5 * (gaps == 0).mean())

    n = above.size + below.size
    if min(above.size, below.size) < 2:
        return Estimate(share(above, below), None, None, None, n)
    a, b = np.sort(above), np.sort(below)
    draws = np.array([share(rng.choice(a, a.size), rng.choice(b, b.size)) for _ in range(n_resamples)])
    return Estimate(share(above, below), float(draws.std(ddof=1)), *percentile_interval(draws), n)


def mean_estimate(values: Sequence[float | None]) -> Estimate | None:
    """Mean with a t interval: rewards, margins, KL, lengths. None when nothing was measured."""
    x = scored_values(values)
    if x.size == 0:
        return None
    mean, standard_error = float(x.mean()), _standard_error(x)
    low, high = _t_interval(mean, standard_error, x.size - 1)
    return Estimate(mean, standard_error, low, high, int(x.size), len(values) - int(x.size))


def estimate_of(value: float, standard_error: float | None, n: int) -> Estimate:
    """Estimate from a mean that other software computed.

    The interval is Wilson's where the standard error shows that the mean is a share of n; else it is a t
    interval.
    """
    share = standard_error is not None and abs(standard_error**2 * (n - 1) - value * (1 - value)) < 1e-9
    low, high = wilson(value * n, n) if share else _t_interval(value, standard_error, n - 1)
    return Estimate(value, standard_error, low, high, n)


def pool(values: Sequence[float | None]) -> Pooled | None:
    """Mean and sd over seeds of one number a seed, and a t interval with n_seeds - 1 degrees of freedom.

    The interval is about other seeds on these items (the items are the same for all seeds). None when no seed
    has a value.
    """
    mean = mean_estimate(values)
    if mean is None:
        return None
    sd = None if mean.standard_error is None else mean.standard_error * math.sqrt(mean.n)
    return Pooled(mean.value, sd, mean.low, mean.high, mean.n)


def win_rate(preferences: Sequence[float | None]) -> Estimate | None:
    """Mean preference for the policy, in [0, 1]; a tie is 0.5. None when nothing was scored.

    standard_error: sd (ddof 1) / sqrt(n), as in AlpacaEval. Interval: Wilson's at the effective number of
    items n_eff = n p (1 - p) / sd^2, which is n for votes of 0 and 1 and more for graded ones; n where all are
    0, or all 1. Coverage of the nominal 95 % in percent, beside that of the percentile bootstrap
    (tests/stats/test_coverage.py):

        items                              50            100           805
        graded, U-shaped, rate 50 %        94.4  94.0    94.5  94.4    94.8  95.1
        graded, rate 2.4 %                 87.6  85.3    91.0  89.2    94.8  94.5
        votes of 0 and 1, rate 5 %         96.7  99.0    96.9  95.5    94.3  94.2
        votes, rate 0.5 %                  97.9  100     90.7  99.9    93.8  89.7
    """
    y = scored_values(preferences, 0, 1)
    if y.size == 0:
        return None
    mean, n = float(y.mean()), int(y.size)
    low = high = None
    if n > 1:
        variance = mean * (1 - mean)
        n_eff = n * variance / float(y.var(ddof=1)) if not _no_spread(y) else n if variance == 0 else math.inf
        low, high = wilson(mean * n_eff, n_eff) if n_eff < math.inf else (mean, mean)
    return Estimate(mean, _standard_error(y), low, high, n, len(preferences) - n)


# ---- ratings --------------------------------------------------------------------------------------------------------


def rating_mean(ratings_by_item: Mapping[str, Sequence[float | None]]) -> Estimate | None:
    """Mean of all scored ratings of all turns, MT-Bench's score; n counts ratings.

    None when nothing was scored.

    The turns of one question are judged on one conversation, so the standard error is clustered by item. With
    c scored items its square is c / (c - 1) sum_i (sum of item i's ratings - mean * their number)^2 / n^2.
    The interval is t with c - 1 degrees of freedom. Where a turn of an item has no rating, the mean is over
    ratings, as in FastChat, and not the mean of the two turns' means.
    """
    groups = [scored_values(ratings_by_item[item]) for item in sorted(ratings_by_item)]
    n_unscored = sum(len(ratings) for ratings in ratings_by_item.values()) - sum(
        group.size for group in groups
    )
    groups = [group for group in groups if group.size]
    if not groups:
        return None
    n, c = sum(group.size for group in groups), len(groups)
    mean = math.fsum(float(v) for group in groups for v in group) / n
    standard_error = None
    if c > 1:
        residuals = [float(group.sum() - mean * group.size) for group in groups]
        standard_error = math.sqrt(c / (c - 1) * math.fsum(r * r for r in residuals)) / n
    low, high = _t_interval(mean, standard_error, c - 1)
    return Estimate(mean, standard_error, low, high, n, n_unscored)


# ---- comparisons ----------------------------------------------------------------------------------------------------


def t_difference(
    value: float, standard_error: float | None, df: float, n_items: int, n_dropped: int
) -> Difference:
    """t test of a mean of item-wise differences.

    p is never below 2 ** (1 - n), the smallest p of a sign-flip test on n items: three items that agree prove
    little, however well they agree. Without any spread (a t of infinity) this bound is the p-value.
    """
    if standard_error is None:
        return Difference(value, None, None, None, None, None, None, n_items, n_dropped)
    low, high = _t_interval(value, standard_error, df)
    if standard_error == 0:
        t, p = None, 1.0 if value == 0 else 0.0
    else:
        t = value / standard_error
        p = float(2 * special.stdtr(df, -abs(t)))
    return Difference(
        value, standard_error, low, high, t, df, max(p, 2.0 ** (1 - n_items)), n_items, n_dropped
    )


def paired_difference(
    a: ByItem, b: ByItem, rng: np.random.Generator, n_resamples: int = 2000
) -> Difference | None:
    """Mean of a - b over the items scored on both sides: one model against another.

    None where there are none.

    Interval: percentile bootstrap over items. p: paired t test over items, because a bootstrap cannot tell p
    from 0 below 1 / n_resamples, and a correction over a table needs smaller p-values. Both are about other
    prompts, not other seeds: see `compare_table`.
    """
    pairs = [(a[item], b[item]) for item in a.keys() & b.keys()]
    d = scored_values([x - y for x, y in pairs if x is not None and y is not None])
    if d.size == 0:
        return None
    n_dropped = len(a.keys() | b.keys()) - int(d.size)
    result = t_difference(float(d.mean()), _standard_error(d), d.size - 1, int(d.size), n_dropped)
    if not result.standard_error:
        return result
    low, high = percentile_interval(_bootstrap_means(d, rng, n_resamples))
    return replace(result, low=low, high=high)


def seed_difference(per_seed: Sequence[float]) -> Difference | None:
    """t test over seed-level paired differences, n_seeds - 1 degrees of freedom: other seeds, these prompts.

    It answers "would retraining change the sign?". It is wrong as the only interval: where the items matter
    more than the seeds, it covers the difference on new prompts far less often than its level says (61%
    instead of 95% for S = 3, P = 200, residual variance 0.2, prompt variance 1, no seed variance). Without
    spread over seeds p is None.
    """
    x = scored_values(per_seed)
    if x.size == 0:
        return None
    mean, standard_error, n = float(x.mean()), _standard_error(x), int(x.size)
    if not standard_error:
        return Difference(mean, standard_error, None, None, None, None, None, n)
    low, high = _t_interval(mean, standard_error, n - 1)
    t = mean / standard_error
    return Difference(
        mean, standard_error, low, high, t, float(n - 1), float(2 * special.stdtr(n - 1, -abs(t))), n
    )


class _MeanSquares(NamedTuple):
    seed: float
    prompt: float
    residual: float


def _mean_squares(d: Array) -> _MeanSquares:
    """Mean squares of a two-way layout without replication, d (S, P) with S and P above 1.

    Expectations: residual + P seed, residual + S prompt, residual.
    """
    n_seeds, n_items = d.shape
    by_seed, by_item, mean = d.mean(axis=1, keepdims=True), d.mean(axis=0, keepdims=True), d.mean()
    return _MeanSquares(
        seed=float(n_items * ((by_seed - mean) ** 2).sum() / (n_seeds - 1)),
        prompt=float(n_seeds * ((by_item - mean) ** 2).sum() / (n_items - 1)),
        residual=float(((d - by_seed - by_item + mean) ** 2).sum() / ((n_seeds - 1) * (n_items - 1))),
    )


def _combined(d: Array, spread: SeedSpread | None, n_dropped: int) -> Difference:
    """The difference with seed and prompt variance, from d (S, P).

    Var(mean) = (MS_seed + MS_prompt - MS_residual) / (S P), where MS_seed and MS_prompt are raised to at
    least MS_residual. Degrees of freedom by Satterthwaite.
    """
    n_seeds, n_items = d.shape
    value = float(d.mean())
    if _no_spread(d):
        return t_difference(float(d[0, 0]), 0.0, n_items - 1, n_items, n_dropped)
    squares = _mean_squares(d)
    seed, seed_df, residual = squares.seed, float(n_seeds - 1), squares.residual
    # The larger of the two is used, with its own degrees of freedom: the pooled one alone raises false alarms
    # to 12% at 5% in rows noisier than the rest.
    if spread is not None and n_items * spread.variance >= seed:
        seed, seed_df = n_items * spread.variance, spread.df
    prompt, prompt_df = max(squares.prompt, residual), n_items - 1
    if seed <= residual:
        total, df = prompt, float(prompt_df)
    else:
        total = seed + prompt - residual
        df = total**2 / (
            seed**2 / seed_df + prompt**2 / prompt_df + residual**2 / ((n_seeds - 1) * prompt_df)
        )
        df = min(max(df, min(seed_df, prompt_df)), prompt_df)
    return t_difference(value, math.sqrt(total / (n_seeds * n_items)), df, n_items, n_dropped)


class _Crossed(NamedTuple):
    seeds: list[int]
    d: Array  # (S, P)
    n_dropped: int


ABSENT = -math.inf  # of an item that a side does not have; NaN stands for one that is unscored


def _row_maker(sides: Iterable[ByItem]) -> Callable[[ByItem], Array]:
    """Values of a side as an array over the items of all sides; each is made once, however many pairs have it."""
    columns = {item: n for n, item in enumerate(dict.fromkeys(itertools.chain.from_iterable(sides)))}
    rows: dict[int, Array] = {}

    def row(side: ByItem) -> Array:
        if id(side) not in rows:
            rows[id(side)] = made = np.full(len(columns), ABSENT)
            scored = [value for value in side.values() if value is not None]
            if not np.isfinite(np.array(scored, dtype=np.float64)).all():
                raise ValueError("a value is NaN or infinite; a missing measurement is None")
            made[[columns[item] for item in side]] = [
                math.nan if value is None else value for value in side.values()
            ]
        return rows[id(side)]

    return row


def _crossed(a: BySeed, b: BySeed, row: Callable[[ByItem], Array]) -> _Crossed | None:
    seeds = sorted(a.keys() & b.keys())
    left, right = (np.array([row(side[seed]) for seed in seeds]) for side in (a, b))
    if not left.size:
        return None
    both = np.concatenate([left, right])
    scored = np.isfinite(both).all(axis=0)
    if not scored.any():
        return None
    d: Array = left[:, scored] - right[:, scored]
    n_dropped = int((both != ABSENT).any(axis=0).sum() - scored.sum())
    return _Crossed(seeds, d[:, np.lexsort(d)], n_dropped)


def _compare(crossed: _Crossed, spread: SeedSpread | None) -> Comparison:
    d, n_dropped = crossed.d, crossed.n_dropped
    n_seeds, n_items = d.shape
    by_item, by_seed = d.mean(axis=0), d.mean(axis=1)
    prompts = t_difference(float(d.mean()), _standard_error(by_item), n_items - 1, n_items, n_dropped)
    squares = _mean_squares(d) if n_seeds > 1 and n_items > 1 else None
    return Comparison(
        combined=_combined(d, spread, n_dropped) if squares else None,
        seeds=seed_difference(by_seed.tolist()) if n_seeds > 1 else None,
        prompts=prompts,
        per_seed=dict(zip(crossed.seeds, by_seed.tolist(), strict=True)),
        variance_seed=max(0.0, (squares.seed - squares.residual) / n_items) if squares else None,
        variance_prompt=max(0.0, (squares.prompt - squares.residual) / n_seeds) if squares else None,
        variance_residual=squares.residual if squares else None,
        n_seeds=n_seeds,
        n_items=n_items,
        n_dropped=n_dropped,
    )


def pooled_spread(rows: Sequence[Array], screened: bool = False) -> SeedSpread | None:
    """Variance over seeds, pooled over the rows of a table, each given by one value a seed.

    None with fewer than two rows of two seeds. Rows that share their start models share half of the
    difference's seed effect: a correlation of 1/2 when both sides vary alike. So K rows count as
    K / (1 + (K - 1) / 4) independent rows: at S = 3 nine rows give 6 degrees of freedom, never more than 8.
    Where `screened`, the noisiest row is left out while it lies beyond the 1 % point of F against the others,
    so that noisy rows do not widen the intervals of their neighbours.
    """
    kept = sorted((float(row.var(ddof=1)), row.size - 1) for row in rows if row.size > 1)
    while screened and (rest := _pooled(kept[:-1])) is not None:
        variance, df = kept[-1]
        if variance <= float(special.fdtri(df, rest.df, 0.99)) * rest.variance:
            break
        kept.pop()
    return _pooled(kept)


def _pooled(rows: Sequence[tuple[float, int]]) -> SeedSpread | None:
    """The pooled variance of rows of (variance, degrees of freedom); None for fewer than two rows."""
    if len(rows) < 2:
        return None
    df = sum(own for _, own in rows)
    return SeedSpread(math.fsum(v * f for v, f in rows) / df, df / (1 + (len(rows) - 1) / 4))


def compare_table(
    pairs: Mapping[K, tuple[BySeed, BySeed]], screened: bool = False
) -> dict[K, Comparison | None]:
    """Comparisons of one table and one metric, by row. None for a row without a common seed or scored item.

    The seed variance is pooled over the rows, and `p_holm` is Holm's correction of the leading p over them.

    Each side of a row is {seed: {item: value}}, paired by seed and item. Seeds of only one side are left out.
    Items unscored anywhere are left out too (`n_dropped`), to keep the layout balanced. A side without seeds
    of its own (one start model for all) is passed under each seed, and its draw is then taken as given. In a
    table of one row the p-value of `combined` is too small in the tail where seeds vary much. `screened`
    leaves noisy rows out of the pooled variance (`pooled_spread`). It is for comparisons with the start model:
    over all pairs it raises false alarms to 9 % where two rows are noisy.

    Against the start model: {row: (row's values, its start model's)}. For telling rows apart: {(row, other):
    (..., ...)} over all pairs. The module docstring gives the assumptions of the pooling and how they were
    checked.
    """
    sides = {id(side): side for both in pairs.values() for by_seed in both for side in by_seed.values()}
    row_of = _row_maker(sides.values())
    layouts = {name: _crossed(a, b, row_of) for name, (a, b) in pairs.items()}
    means = [layout.d.mean(axis=1) for layout in layouts.values() if layout and layout.d.shape[1] > 1]
    spread = pooled_spread(means, screened)
    rows = {name: None if layout is None else _compare(layout, spread) for name, layout in layouts.items()}
    adjusted = holm([None if row is None else row.lead.p for row in rows.values()])
    return {
        name: None if row is None else replace(row, p_holm=p)
        for (name, row), p in zip(rows.items(), adjusted, strict=True)
    }


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the given order.

    A None stays None and is not counted as a test.
    """
    order = sorted((i for i, p in enumerate(p_values) if p is not None), key=lambda i: p_values[i])  # type: ignore[arg-type,return-value]
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        p = p_values[i]
        assert p is not None
        if not 0 <= p <= 1:
            raise ValueError(f"a p-value must be in [0, 1], got {p}")
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted


def indistinguishable(
    values: Mapping[K, float | None], p_holm: Mapping[tuple[K, K], float | None], alpha: float = 0.05
) -> tuple[K, frozenset[K]] | None:
    """The best row, and the set of rows that cannot be told apart from it, including itself.

    The best row has the highest value; the first one wins a tie. `p_holm`: adjusted p by pair of rows, in
    either order. It must be adjusted over **all** pairs of the table and not only those with the best row:
    the best row is chosen on the same data, and a correction over K - 1 comparisons does not account for that
    choice. Two rows without a p cannot be told apart. Rows without a value are left out. None when no row has
    one.
    """
    rows = {name: value for name, value in values.items() if value is not None}
    if not rows:
        return None
    best = max(rows, key=lambda name: rows[name])

    def apart(name: K) -> bool:
        p = p_holm.get((best, name), p_holm.get((name, best)))
        return p is not None and p < alpha

    return best, frozenset(name for name in rows if name == best or not apart(name))
