"""Length control: the win rate if both completions were equally long. Pure numbers, no files.

    logit P(win_i) = w_len tanh(g_i / sd(g)) + w_mod [+ w_dif d_i]  g_i = baseline - policy length, characters
    lc_win_rate = mean_i sigmoid(w_mod [+ w_dif d_i])                     length difference set to 0

The model follows AlpacaEval 2.0 (Dubois et al. 2024), keyed by item. sd has ddof 1 and g is not centred. The
targets are the preferences themselves. Items without a preference enter neither line.

A calibration adds information that one policy's verdicts do not hold: each item's difficulty d_i, and *gamed*
rows. These are the judge's preferences for a verbose and a concise version of the baseline itself. Gamed rows
share w_len and w_dif, have no w_mod, and weigh a tenth each (lambda / 2 at the package's lambda of 0.2). They
keep the fit from explaining the deficit of a weak policy by its shorter completions.

This is not the package's `length_controlled_winrate`, and the two must not share a column. Here a difficulty
belongs to its item; in the package it belongs to its row number, so that dropping the first of 805 rows moves
a model from 19 to 28. Here nothing is penalised; the package has an L1 penalty, with C by cross-validation.
On AlpacaEval's recorded votes with the fixtures' calibration the two differ by 0.1 points or less on complete
files. Without a calibration this one gives 54.0 and 70.1 where 54.0 and 70.2 are published, but 32.4 for 25.3
and 19.8 for 5.9: few wins by mostly shorter completions say little about equal length. Its interval misses the
published value in 9 of 15 recorded models, and models change places. So it has another name, `lc_name`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.records import Verdict
from bench.stats import special
from bench.stats.estimates import Array, Estimate, Unmeasured, percentile_interval, scored_values, wilson


@dataclass(frozen=True)
class LcWinRate(Estimate):
    """A length-controlled win rate with its coefficients, on the logit scale.

    A coefficient is None where its term was not in the fit. `n_failed_refits` counts refits left out of the
    interval.
    """

    length_coefficient: float | None = None
    model_coefficient: float | None = None
    difficulty_coefficient: float | None = None
    n_failed_refits: int = 0


class Gamed(NamedTuple):
    """The judge's preference, in [0, 1], for a deliberately long or short baseline over the real one."""

    preference: float
    gap: float  # baseline length - length of the version, in standard deviations
    weight: float


@dataclass(frozen=True)
class Calibration:
    """Difficulties and gamed rows by item id, known before a policy is judged, and the digest of both."""

    difficulty: Mapping[str, float]
    gamed: Mapping[str, Sequence[Gamed]]
    digest: str


class Columns(NamedTuple):
    """One policy's verdicts as columns, one entry an item.

    `difficulty` and `gamed` come from a calibration; None without one.
    """

    items: Sequence[str]
    preferences: Sequence[float | None]
    policy_lengths: Sequence[int | None]
    baseline_lengths: Sequence[int | None]
    difficulty: Sequence[float] | None = None
    gamed: Sequence[Sequence[Gamed]] | None = None


def columns_of(verdicts: Sequence[Verdict]) -> Columns:
    """Columns of one policy's preference verdicts, without a calibration."""
    return Columns(
        [v.item_id for v in verdicts],
        [v.preference for v in verdicts],
        [v.policy_length for v in verdicts],
        [v.baseline_length for v in verdicts],
    )


def calibrated(verdicts: Sequence[Verdict], calibration: Calibration | None) -> Columns | Unmeasured:
    """Columns of the verdicts and their calibration.

    Unmeasured where an item has no difficulty in the calibration.
    """
    columns = columns_of(verdicts)
    if calibration is None:
        return columns
    if lacking := [item for item in columns.items if item not in calibration.difficulty]:
        return Unmeasured(
            f"the calibration {calibration.digest} has no difficulty for {len(lacking)} of {len(columns.items)} items"
        )
    gamed = [calibration.gamed.get(item, ()) for item in columns.items] if calibration.gamed else None
    return columns._replace(difficulty=[calibration.difficulty[item] for item in columns.items], gamed=gamed)


class LengthRows(NamedTuple):
    """Items with a preference, sorted so that their order in the input cannot matter."""

    preferences: Array  # (n,)
    gaps: Array  # (n,) baseline length - policy length
    difficulty: Array | None  # (n,)
    gamed: Array  # (n, G, 3) preference, gap, weight; 0 where an item has fewer than G

    def take(self, items: NDArray[np.int_]) -> Sample:
        """Samples of R fits, from the item indices (R, n). The gamed rows of each item are included."""
        gaps = self.gaps[items]
        x = _columns(
            _tanh_gaps(gaps), np.ones_like(gaps), None if self.difficulty is None else self.difficulty[items]
        )
        y, weights = self.preferences[items], np.ones_like(gaps)
        if self.gamed.size:
            n_fits, n_gamed = len(items), items.shape[1] * self.gamed.shape[1]
            gamed = self.gamed[items].reshape(n_fits, n_gamed, 3)
            repeated = (
                None
                if self.difficulty is None
                else np.repeat(self.difficulty[items], self.gamed.shape[1], axis=1)
            )
            more = _columns(np.tanh(gamed[..., 1]), np.zeros((n_fits, n_gamed)), repeated)
            x, y = np.concatenate([x, more], axis=1), np.concatenate([y, gamed[..., 0]], axis=1)
            weights = np.concatenate([weights, gamed[..., 2]], axis=1)
        return Sample(x, y, weights, items.shape[1])


def _tanh_gaps(gaps: Array) -> Array:
    """tanh(g / sd) of each row of gaps (R, n). A row without spread gives 0: there is nothing to control."""
    spread = gaps.std(axis=1, ddof=1, keepdims=True)
    return np.tanh(
        np.divide(gaps, spread, out=np.zeros_like(gaps), where=np.ptp(gaps, axis=1, keepdims=True) > 0)
    )


def _columns(lengths: Array, model: Array, difficulty: Array | None) -> Array:
    return np.stack([lengths, model] + ([] if difficulty is None else [difficulty]), axis=2)


class Sample(NamedTuple):
    """Data of R fits: the rows of the n items first, then their gamed rows."""

    x: Array  # (R, N, k): length, model[, difficulty]
    y: Array  # (R, N)
    weights: Array  # (R, N)
    n: int

    def at_equal_length(self, w: Array) -> Array:
        """Probabilities of a win (R, n) at equal length, from the coefficients (R, k)."""
        return special.expit(np.matmul(self.x[:, : self.n, 1:], w[:, 1:, None])[..., 0])


class _Fit(NamedTuple):
    """Results of R length-controlled fits."""

    coefficients: Array  # (R, k)
    lc: Array  # (R,) probability of a win at equal length, averaged over items
    failed: NDArray[np.bool_]  # (R,) True where there is no finite maximum


def _rows(columns: Columns) -> tuple[LengthRows, list[int]]:
    """The scored rows, sorted, and the index of each in the columns.

    Raises ValueError for inconsistent columns.
    """
    _, preferences, policy_lengths, baseline_lengths, difficulty, gamed = columns
    lengths = [len(column) for column in columns[1:] if column is not None]
    if len(set(lengths)) > 1:
        raise ValueError(f"every column needs one entry an item, got columns of lengths {lengths}")
    scored_values(preferences, 0, 1)
    rows: list[tuple[float, float, float, list[Gamed], int]] = []
    for i, preference in enumerate(preferences):
        if preference is None:
            continue
        baseline, policy = baseline_lengths[i], policy_lengths[i]
        if baseline is None or policy is None:
            raise ValueError(f"item {i} has a preference but no length of both completions")
        hard = 0.0 if difficulty is None else float(difficulty[i])
        rows.append(
            (preference, float(baseline - policy), hard, [] if gamed is None else sorted(gamed[i]), i)
        )
    rows.sort()
    table = np.array([row[:3] for row in rows], dtype=float).reshape(-1, 3)
    most = max((len(row[3]) for row in rows), default=0)
    games = np.array(
        [[*row[3], *[(0.0, 0.0, 0.0)] * (most - len(row[3]))] for row in rows], dtype=float
    ).reshape(len(rows), most, 3)
    if not (np.isfinite(table).all() and np.isfinite(games).all()):
        raise ValueError("a length, difficulty or gamed row is NaN or infinite")
    return LengthRows(table[:, 0], table[:, 1], None if difficulty is None else table[:, 2], games), [
        row[4] for row in rows
    ]


def fit_logistic(
    sample: Sample, tolerance: float = 1e-10, n_iterations: int = 50
) -> tuple[Array, NDArray[np.bool_]]:
    """Coefficients (R, k) of R weighted, unpenalised fractional logistic fits, and a mask (R,).

    The mask marks failed fits. A fit fails where it has no finite maximum. All fits run at once, by Newton's
    method. The 1e-12 n on the Hessian's diagonal damps the steps (so that a column of zeros keeps coefficient
    0); it does not move the maximum. A step changes no linear predictor by more than 3. The predictors of
    separated rows grow by about 1 a step. Such a fit does not converge, or the damping stops it beyond 20,
    where a rate cannot be told from 0 or 1 by data.
    """
    x, y, weights, n = sample
    n_fits, _, k = x.shape
    w = np.zeros((n_fits, k))
    w[:, 1] = special.logit(np.clip(y[:, :n].mean(axis=1), 1e-6, 1 - 1e-6))
    converged = np.zeros(n_fits, dtype=bool)
    for _ in range(n_iterations):
        busy = np.flatnonzero(~converged)
        if busy.size == 0:
            break
        xb, vb = x[busy], weights[busy]
        p = special.expit(np.matmul(xb, w[busy, :, None])[..., 0])
        gradient = np.matmul(xb.transpose(0, 2, 1), (vb * (y[busy] - p))[..., None])
        step = np.linalg.solve(_hessian(xb, vb * p * (1 - p), n), gradient)[..., 0]
        change = np.abs(np.matmul(xb, step[..., None])[..., 0]).max(axis=1)
        w[busy] += step * np.minimum(1, 3 / np.maximum(change, 1e-300))[:, None]
        converged[busy] = change < tolerance
    far = np.abs(np.matmul(x, w[..., None])[..., 0]).max(axis=1) > 20
    return w, ~converged | far


def _hessian(x: Array, curvature: Array, n: int) -> Array:
    return np.matmul((x * curvature[..., None]).swapaxes(-1, -2), x) + 1e-12 * n * np.eye(x.shape[-1])


def _fits(rows: LengthRows, items: NDArray[np.int_]) -> _Fit:
    """R length-controlled rates.

    Where all items are lost or won, the rate is the limit, 0 or 1, and not failed.
    """
    sample = rows.take(items)
    w, failed = fit_logistic(sample)
    y = sample.y[:, : sample.n]
    one_sided = (y.max(axis=1) == 0) | (y.min(axis=1) == 1)
    return _Fit(w, np.where(one_sided, y[:, 0], sample.at_equal_length(w).mean(axis=1)), failed & ~one_sided)


def _problem(rows: LengthRows) -> Unmeasured | None:
    n_coefficients = 2 if rows.difficulty is None else 3
    if rows.preferences.size == 0:
        return Unmeasured("no item was scored")
    if rows.preferences.size <= n_coefficients:
        return Unmeasured(f"{rows.preferences.size} scored items cannot carry {n_coefficients} coefficients")
    return None


SEPARATED = Unmeasured(
    "lengths or difficulty separate wins from losses: what is left at equal length has no estimate"
)
REFITS_AT_ONCE = 100  # 20 MB of rows at 805 items


def lc_win_rate(columns: Columns, rng: np.random.Generator, n_resamples: int = 500) -> LcWinRate | Unmeasured:
    """The length-controlled win rate defined in the module docstring, in [0, 1].

    standard_error and interval come from refits on resampled items. Each refit computes sd(g) anew and takes
    each item's gamed rows along (the package prints the spread of fitted values, about half). Separated
    refits are left out and counted; above 5% there is no interval. Special cases:

    - Lengths that differ by a constant leave nothing to control: the plain rate.
    - All lost or all won: 0 or 1, with Wilson's interval.
    - Other separated data, or no more items than coefficients: Unmeasured.
    """
    rows, _ = _rows(columns)
    if problem := _problem(rows):
        return problem
    n, n_unscored = int(rows.preferences.size), len(columns.preferences) - int(rows.preferences.size)
    if rows.preferences[-1] == 0 or rows.preferences[0] == 1:
        value = float(rows.preferences[0])
        return LcWinRate(value, 0.0, *wilson(value * n, n), n, n_unscored)

    fit = _fits(rows, np.arange(n)[None])
    if fit.failed[0]:
        return SEPARATED
    take = rng.integers(n, size=(n_resamples, n))
    refits = [_fits(rows, take[i : i + REFITS_AT_ONCE]) for i in range(0, n_resamples, REFITS_AT_ONCE)]
    draws = np.concatenate([refit.lc[~refit.failed] for refit in refits])
    w = fit.coefficients[0]
    return LcWinRate(
        value=float(fit.lc[0]),
        n=n,
        n_unscored=n_unscored,
        length_coefficient=float(w[0]) if np.ptp(rows.gaps) > 0 else None,
        model_coefficient=float(w[1]),
        difficulty_coefficient=None if rows.difficulty is None else float(w[2]),
        **refit_interval(draws, n_resamples),
    )


def refit_interval(draws: Array, n_resamples: int) -> dict[str, Any]:
    """Standard error and interval of an estimate from its successful refits; None if over 5 % failed."""
    n_failed = n_resamples - draws.size
    if n_failed > 0.05 * n_resamples:
        return {"standard_error": None, "low": None, "high": None, "n_failed_refits": n_failed}
    low, high = percentile_interval(draws)
    return {"standard_error": float(draws.std(ddof=1)), "low": low, "high": high, "n_failed_refits": n_failed}


def lc_contributions(columns: Columns) -> list[float | None] | Unmeasured:
    """Contributions of the items to `lc_win_rate`, one number an item; None for unscored items.

    Their mean is `lc_win_rate`, and their spread is its sampling error. With contributions in place of
    preferences, `paired_difference` and `compare_table` work on length-controlled rates. A contribution is
    sigmoid_i + n c' H^-1 sum x (y - p) over the item's rows, the rate plus the item's influence on it; c is
    the rate's gradient, and sd(g) is taken as known. Single values may lie outside [0, 1].
    """
    rows, places = _rows(columns)
    if problem := _problem(rows):
        return problem
    values, n = rows.preferences, rows.preferences.size
    if values[-1] > 0 and values[0] < 1:
        sample = rows.take(np.arange(n)[None])
        w, failed = fit_logistic(sample)
        if failed[0]:
            return SEPARATED
        x, y, weights = sample.x[0], sample.y[0], sample.weights[0]
        p = special.expit(x @ w[0])
        at_equal_length = sample.at_equal_length(w)[0]
        neutral = x[:n].copy()
        neutral[:, 0] = 0
        gradient = (at_equal_length * (1 - at_equal_length)) @ neutral / n
        influence = (x @ np.linalg.solve(_hessian(x, weights * p * (1 - p), n), gradient)) * weights * (y - p)
        values = at_equal_length + n * (
            influence[:n] + influence[n:].reshape(n, rows.gamed.shape[1]).sum(axis=1)
        )
    result: list[float | None] = [None] * len(columns.preferences)
    for place, value in zip(places, values, strict=True):
        result[place] = float(value)
    return result


# ---- of verdicts -----------------------------------------------------------------------------------------------------


LC_WORDS = {"lc_win_rate": "LC win rate", "equal_length_win_rate": "equal-length"}


def lc_name(calibration: Calibration | Unmeasured | None) -> str:
    """Name of the controlled rate: `lc_win_rate` is AlpacaEval's and needs a calibration."""
    return "equal_length_win_rate" if calibration is None else "lc_win_rate"


def lc_of_verdicts(
    verdicts: Sequence[Verdict], calibration: Calibration | None, rng: np.random.Generator
) -> LcWinRate | Unmeasured:
    """`lc_win_rate` of a policy's verdicts. Unmeasured where an item has no difficulty in the calibration."""
    columns = calibrated(verdicts, calibration)
    return columns if isinstance(columns, Unmeasured) else lc_win_rate(columns, rng)


def contributions_of_verdicts(
    verdicts: Sequence[Verdict], calibration: Calibration | None
) -> dict[str, float | None] | Unmeasured:
    """`lc_contributions` of a policy's verdicts, by item id."""
    columns = calibrated(verdicts, calibration)
    each = columns if isinstance(columns, Unmeasured) else lc_contributions(columns)
    return (
        each if isinstance(each, Unmeasured) else dict(zip([v.item_id for v in verdicts], each, strict=True))
    )


# ---- difficulty ------------------------------------------------------------------------------------------------------


def _scored(policy: Columns) -> Iterator[tuple[str, float, float]]:
    """Tuples (item, preference, baseline length - policy length) of the scored items."""
    for item, preference, length, opposite in zip(*policy[:4], strict=True):
        if preference is not None and length is not None and opposite is not None:
            yield item, preference, float(opposite - length)


def fit_difficulty(policies: Sequence[Columns]) -> dict[str, float]:
    """Difficulties by item, from several policies' verdicts, without the effects of policy and length.

        logit P(policy m wins on item i) = a_m + b_m tanh(g_mi / sd(g_m)) + d_i        d_i ~ N(0, 1)

    This is the joint fit behind AlpacaEval's own difficulties, with a ridge of unit variance on d. Without
    the ridge an item lost by all policies would be infinitely hard. A positive difficulty means that policies
    win. Leave a policy's own verdicts out of the fit for its difficulties: they would be fitted twice.
    """
    # Rows are sorted by item and policies by their rows. The result is then the same to the last bit for any
    # input order.
    scored = sorted(rows for policy in policies if len(rows := sorted(_scored(policy))) > 1)
    names = sorted({item for rows in scored for item, _, _ in rows})
    number = {name: i for i, name in enumerate(names)}
    of = [np.array([number[item] for item, _, _ in rows]) for rows in scored]
    y = [np.array([preference for _, preference, _ in rows]) for rows in scored]
    x = [
        _columns(_tanh_gaps(gaps), np.ones_like(gaps), None)[0]
        for gaps in (np.array([[gap for _, _, gap in rows]]) for rows in scored)
    ]

    def loss(theta: Array) -> tuple[float, Array]:
        d, w = theta[: len(names)], theta[len(names) :].reshape(-1, 2)
        value, gradient = 0.5 * float(d @ d), np.concatenate([d, np.zeros(w.size)])
        for m, (xm, ym, items) in enumerate(zip(x, y, of, strict=True)):
            z = xm @ w[m] + d[items]
            value += float(np.logaddexp(0, z).sum() - ym @ z)
            residual = special.expit(z) - ym
            gradient[: len(names)] += np.bincount(items, residual, len(names))
            gradient[len(names) + 2 * m : len(names) + 2 * m + 2] = xm.T @ residual
        # A policy that loses everything has no finite strength. The penalty of 1e-3 keeps it finite.
        return value + 5e-4 * float((w**2).sum()), gradient + np.concatenate(
            [np.zeros(len(names)), 1e-3 * w.ravel()]
        )

    from scipy.optimize import minimize  # slow to import, and most commands fit nothing

    fit = minimize(
        loss,
        np.zeros(len(names) + 2 * len(x)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 1000, "gtol": 1e-7},
    )
    return dict(zip(names, fit.x[: len(names)].tolist(), strict=True))
