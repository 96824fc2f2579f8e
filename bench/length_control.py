"""Length control: the win rate that is left when both completions are equally long. Pure numbers, no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from bench.stats import Array, Estimate, Unmeasured, percentile_interval, scored_values, wilson


@dataclass(frozen=True)
class LcWinRate(Estimate):
    """Coefficients are on the logit scale; None where the term was not in the fit. `n_failed_refits` left the interval."""

    length_coefficient: float | None = None
    model_coefficient: float | None = None
    difficulty_coefficient: float | None = None
    n_failed_refits: int = 0


class _LcRows(NamedTuple):
    preferences: Array  # (n,) sorted rows, scored only
    gaps: Array  # (n,) baseline length - policy length
    difficulty: Array | None  # (n,)


class _LcFit(NamedTuple):
    coefficients: Array  # (R, k): length, model[, difficulty]
    lc: Array  # (R,) probability of a win at equal length, averaged over items
    failed: NDArray[np.bool_]  # (R,) no finite maximum


def _lc_rows(
    preferences: Sequence[float | None],
    policy_lengths: Sequence[int | None],
    baseline_lengths: Sequence[int | None],
    difficulty: Sequence[float] | None,
) -> tuple[_LcRows, list[int]]:
    """Rows with a preference, sorted so that the caller's order cannot matter, and where each came from."""
    columns = [policy_lengths, baseline_lengths] + ([] if difficulty is None else [difficulty])
    if any(len(column) != len(preferences) for column in columns):
        raise ValueError(f"columns of lengths {[len(preferences), *map(len, columns)]}; each needs one entry an item")
    scored_values(preferences, 0, 1)
    rows: list[tuple[float, float, float, int]] = []
    for i, preference in enumerate(preferences):
        if preference is None:
            continue
        baseline, policy = baseline_lengths[i], policy_lengths[i]
        if baseline is None or policy is None:
            raise ValueError(f"item {i} has a preference but no length of both completions")
        rows.append((preference, float(baseline - policy), 0.0 if difficulty is None else float(difficulty[i]), i))
    rows.sort()
    table = np.array([row[:3] for row in rows], dtype=float).reshape(-1, 3)
    if not np.isfinite(table).all():
        raise ValueError("a length or difficulty is NaN or infinite")
    return _LcRows(table[:, 0], table[:, 1], None if difficulty is None else table[:, 2]), [row[3] for row in rows]


def _design(gaps: Array, difficulty: Array | None) -> Array:
    """(R, n) gaps -> (R, n, k) columns: tanh(gap / sd), 1[, difficulty]. Without spread in the lengths the first column is 0."""
    spread = gaps.std(axis=1, ddof=1, keepdims=True)
    lengths = np.tanh(np.divide(gaps, spread, out=np.zeros_like(gaps), where=np.ptp(gaps, axis=1, keepdims=True) > 0))
    columns = [lengths, np.ones_like(gaps)] + ([] if difficulty is None else [difficulty])
    return np.stack(columns, axis=2)


def _fit_logistic(x: Array, y: Array, tolerance: float = 1e-10, n_iterations: int = 50) -> tuple[Array, NDArray[np.bool_]]:
    """R unpenalised fractional logistic fits at once, by Newton: x (R, n, k), y (R, n) -> (R, k), and which have no finite maximum.

    The 1e-12 n on the Hessian's diagonal damps the steps (so that a column of zeros keeps coefficient 0); it does not move the
    maximum. A step changes no linear predictor by more than 3. Separated rows walk off by about 1 a step: they do not
    converge, or the damping stops them beyond 20, where no rate that data can tell from 0 or 1 lies.
    """
    n_fits, n, k = x.shape
    w = np.zeros((n_fits, k))
    w[:, 1] = logit(np.clip(y.mean(axis=1), 1e-6, 1 - 1e-6))
    converged = np.zeros(n_fits, dtype=bool)
    for _ in range(n_iterations):
        busy = np.flatnonzero(~converged)
        if busy.size == 0:
            break
        xb = x[busy]
        p = expit(np.matmul(xb, w[busy, :, None])[..., 0])
        gradient = np.matmul(xb.transpose(0, 2, 1), (y[busy] - p)[..., None])
        hessian = np.matmul((xb * (p * (1 - p))[..., None]).transpose(0, 2, 1), xb) + 1e-12 * n * np.eye(k)
        step = np.linalg.solve(hessian, gradient)[..., 0]
        change = np.abs(np.matmul(xb, step[..., None])[..., 0]).max(axis=1)
        w[busy] += step * np.minimum(1, 3 / np.maximum(change, 1e-300))[:, None]
        converged[busy] = change < tolerance
    far = np.abs(np.matmul(x, w[..., None])[..., 0]).max(axis=1) > 20
    return w, ~converged | far


def _lc_fits(y: Array, gaps: Array, difficulty: Array | None) -> _LcFit:
    """(R, n) each -> R length-controlled rates. Rows all lost or all won are 0 or 1, the limit, and not failed."""
    x = _design(gaps, difficulty)
    w, failed = _fit_logistic(x, y)
    at_equal_length = np.matmul(x[..., 1:], w[:, 1:, None])[..., 0]
    lc = expit(at_equal_length).mean(axis=1)
    one_sided = (y.max(axis=1) == 0) | (y.min(axis=1) == 1)
    return _LcFit(w, np.where(one_sided, y[:, 0], lc), failed & ~one_sided)


def _lc_problem(rows: _LcRows) -> Unmeasured | None:
    n_coefficients = 2 if rows.difficulty is None else 3
    if rows.preferences.size == 0:
        return Unmeasured("no item was scored")
    if rows.preferences.size <= n_coefficients:
        return Unmeasured(f"{rows.preferences.size} scored items cannot carry {n_coefficients} coefficients")
    return None


SEPARATED = Unmeasured("lengths or difficulty separate wins from losses: what is left at equal length has no estimate")


def lc_win_rate(
    preferences: Sequence[float | None],
    policy_lengths: Sequence[int | None],
    baseline_lengths: Sequence[int | None],
    rng: np.random.Generator,
    difficulty: Sequence[float] | None = None,
    n_resamples: int = 500,
    level: float = 0.95,
) -> LcWinRate | Unmeasured:
    """Length-controlled win rate in the manner of AlpacaEval 2.0 (Dubois et al. 2024), keyed by item, in [0, 1].

        logit P(win_i) = w_len tanh(g_i / sd(g)) + w_mod [+ w_dif d_i]        g_i = baseline length - policy length, characters
        lc_win_rate = mean_i sigmoid(w_mod [+ w_dif d_i])                     length difference set to 0

    sd with ddof 1, g not centred; the targets are the preferences themselves; items without one are in neither line.

    It is not the package's `length_controlled_winrate` and the two must not share a column: here no rows of the gamed (verbose,
    concise) baselines steady the length coefficient, nothing is penalised (there: L1, C by cross-validation), and a difficulty goes
    with its item (there: with its row number, so that dropping the first row moves a model from 19 to 28). On AlpacaEval's recorded
    votes without difficulty: 54.0 and 70.1 where 54.0 and 70.2 are published, but 32.4 for 25.3 and 19.8 for 5.9, with standard
    errors to match (2.5, 4.0): few wins by mostly shorter answers say little about equal length.

    standard_error and interval: refits on resampled items, sd(g) included (the package prints the spread of fitted values, about half).
    Refits that are separated are left out and counted; above 5% there is no interval. Lengths that differ by a constant leave
    nothing to control: the plain rate. All lost or all won: 0 or 1, with Wilson's interval. Other separated data: Unmeasured, as is
    an item count no larger than the number of coefficients.
    """
    rows, _ = _lc_rows(preferences, policy_lengths, baseline_lengths, difficulty)
    if problem := _lc_problem(rows):
        return problem
    n, n_unscored = int(rows.preferences.size), len(preferences) - int(rows.preferences.size)
    if rows.preferences[-1] == 0 or rows.preferences[0] == 1:
        value = float(rows.preferences[0])
        return LcWinRate(value, 0.0, *wilson(value * n, n, level), n, n_unscored)

    fit = _lc_fits(rows.preferences[None], rows.gaps[None], None if rows.difficulty is None else rows.difficulty[None])
    if fit.failed[0]:
        return SEPARATED
    take = rng.integers(n, size=(n_resamples, n))
    refits = _lc_fits(rows.preferences[take], rows.gaps[take], None if rows.difficulty is None else rows.difficulty[take])
    draws, n_failed = refits.lc[~refits.failed], int(refits.failed.sum())
    trusted = n_failed <= 0.05 * n_resamples
    low, high = percentile_interval(draws, level) if trusted else (None, None)
    w = fit.coefficients[0]
    return LcWinRate(
        value=float(fit.lc[0]),
        standard_error=float(draws.std(ddof=1)) if trusted else None,
        low=low,
        high=high,
        n=n,
        n_unscored=n_unscored,
        length_coefficient=float(w[0]) if np.ptp(rows.gaps) > 0 else None,
        model_coefficient=float(w[1]),
        difficulty_coefficient=None if rows.difficulty is None else float(w[2]),
        n_failed_refits=n_failed,
    )


def lc_contributions(
    preferences: Sequence[float | None],
    policy_lengths: Sequence[int | None],
    baseline_lengths: Sequence[int | None],
    difficulty: Sequence[float] | None = None,
) -> list[float | None] | Unmeasured:
    """One number an item whose mean is `lc_win_rate` and whose spread is its sampling error; None for unscored items.

    With these in place of preferences `paired_difference` and `compare` work on length-controlled rates. They are the rate plus each
    item's influence on it, sigmoid_i + n c' H^-1 x_i (y_i - p_i), c the rate's gradient; sd(g) is taken as known. Single values
    may lie outside [0, 1].
    """
    rows, places = _lc_rows(preferences, policy_lengths, baseline_lengths, difficulty)
    if problem := _lc_problem(rows):
        return problem
    y, n = rows.preferences, rows.preferences.size
    values = y
    if y[-1] > 0 and y[0] < 1:
        x = _design(rows.gaps[None], None if rows.difficulty is None else rows.difficulty[None])
        w, failed = _fit_logistic(x, y[None])
        if failed[0]:
            return SEPARATED
        p = expit(x[0] @ w[0])
        neutral = x[0].copy()
        neutral[:, 0] = 0
        at_equal_length = expit(neutral @ w[0])
        gradient = (at_equal_length * (1 - at_equal_length)) @ neutral / n
        hessian = (x[0] * (p * (1 - p))[:, None]).T @ x[0] + 1e-12 * n * np.eye(x.shape[2])
        values = at_equal_length + n * (x[0] @ np.linalg.solve(hessian, gradient)) * (y - p)
    result: list[float | None] = [None] * len(preferences)
    for place, value in zip(places, values, strict=True):
        result[place] = float(value)
    return result
