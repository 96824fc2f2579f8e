"""Rows of table.csv and cells.parquet: one flat record per cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.report.groups import method_name, settings, varied_settings
from bench.report.rows import CellRow

HEADLINES = (
    "win_rate",
    "win_rate_low",
    "win_rate_high",
    "lc_win_rate",
    "equal_length_win_rate",
    "rating",
    "reward_accuracy",
    "kl",
    "mean_length",
)


LEADING = (
    "key",
    "name",
    "status",
    "model",
    "data",
    "method",
    "beta",
    "fraction",
    "iteration",
    "seed",
    "n_train",
)


def flat_rows(rows: Sequence[CellRow]) -> list[dict[str, Any]]:
    """Rows of table.csv and cells.parquet: varied settings, then metrics. A missing value is None."""
    names = _in_order({name for row in rows for name in row.metrics}, _labels(rows))
    varied = varied_settings([row.cell.cell for row in rows])
    calibrated = any(row.calibration for row in rows)
    calibrated_ones = [label for label in _labels(rows) if any(_calibration(row, label) for row in rows)]
    return [
        _settings(row)
        | {key: settings(row.cell.cell).get(key) for key in varied}
        | {name: row.metrics.get(name) for name in names}
        | ({"calibration": row.calibration} if calibrated else {})
        | {f"{label}/calibration": _calibration(row, label) for label in calibrated_ones}
        | {"reason": row.failed or "; ".join(f"{name}: {why}" for name, why in row.missing.items())}
        for row in rows
    ]


def _labels(rows: Sequence[CellRow]) -> list[str]:
    """Labels of the rows' evaluations."""
    return list(dict.fromkeys(label for row in rows for label in row.evaluations))


def _calibration(row: CellRow, label: str) -> str | None:
    return row.evaluations[label].calibration if label in row.evaluations else None


def _in_order(names: set[str], labels: Sequence[str]) -> list[str]:
    """Names of numbers: the headlines, those of each evaluation, then all others by name."""
    headlines = [f"{place}{name}" for place in (*(f"{label}/" for label in labels), "") for name in HEADLINES]
    first = [name for name in headlines if name in names]
    return first + sorted(names.difference(first))


def _settings(row: CellRow) -> dict[str, Any]:
    cell = row.cell.cell
    values = (
        row.cell.key,
        row.cell.name,
        "done" if row.done else "failed" if row.failed else "absent",
        cell.model.name,
        cell.data.name,
        method_name(cell),
        getattr(cell.method, "beta", None),
        cell.data.fraction,
        getattr(cell.method, "iteration", None),
        cell.seed,
        row.n_train,
    )
    return dict(zip(LEADING, values, strict=True))
