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
    names = sorted({name for row in rows for name in row.metrics})
    names = [name for name in HEADLINES if name in names] + [name for name in names if name not in HEADLINES]
    varied = varied_settings([row.cell.cell for row in rows])
    calibrated = any(row.calibration for row in rows)
    return [
        _settings(row)
        | {key: settings(row.cell.cell).get(key) for key in varied}
        | {name: row.metrics.get(name) for name in names}
        | ({"calibration": row.calibration} if calibrated else {})
        | {"reason": row.failed or "; ".join(f"{name}: {why}" for name, why in row.missing.items())}
        for row in rows
    ]


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
