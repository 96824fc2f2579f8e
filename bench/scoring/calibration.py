"""Calibrations of length control: from a user's file, or fitted on the other rows of the table.

A file (judge.calibration=FILE) is an input of a cell's score stage. Fitted difficulties
(judge.calibration=fitted) depend on the other cells of the table. The score stage does not use them: the
length-controlled numbers of such a cell are computed when the table is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bench.config import FITTED
from bench.judges.formats import alpaca_eval
from bench.planning.inputs import CellPlan
from bench.records import Result, Verdict, preference_verdicts
from bench.scoring.numbers import calibration_of, lc_numbers
from bench.stats.estimates import Unmeasured
from bench.stats.length_control import Calibration, columns_of, fit_difficulty
from bench.store.stage_settings import ScoreSettings
from bench.store.store import Store

Calibrations = Mapping[str, Calibration | Unmeasured]  # keys: cell keys


def by_cell(cells: Sequence[CellPlan], store: Store) -> dict[str, Calibration | Unmeasured]:
    """Calibrations of the judged cells, by cell key. A cell without judge.calibration has no entry."""
    calibrations = dict(fitted([cell for cell in cells if calibration_setting(cell) == FITTED], store))
    for cell in cells:
        ready = all(store.is_done(cell.roles.get(f"preference_{part}")) for part in ("verdicts", "items"))
        if ready and "calibration" in cell.score.inputs:
            inputs = {role: store.folder(source) for role, source in cell.score.inputs.items()}
            if (calibration := calibration_of(inputs)) is not None:
                calibrations[cell.key] = calibration
    return calibrations


def calibration_setting(cell: CellPlan) -> str | None:
    """Setting judge.calibration of the cell: the path of a file, `fitted`, or None."""
    return getattr(cell.cell.judge, "calibration", None)


def fitted(cells: Sequence[CellPlan], store: Store) -> dict[str, Calibration | Unmeasured]:
    """Calibrations by cell key, each fitted on the other judged cells that have the same items and judge."""
    ready = [cell for cell in cells if store.is_done(cell.roles.get("preference_verdicts"))]
    verdicts = {cell.key: verdicts_of(cell, store) for cell in ready}
    groups = {cell.key: (cell.roles["preference_items"].key, cell.cell.judge) for cell in ready}
    return {
        key: fitted_on(
            [verdicts[other] for other in groups if other != key and groups[other] == group], NOBODY_ELSE
        )
        for key, group in groups.items()
    }


NOBODY_ELSE = "no other cell with the same items and judge to fit difficulties on"


def fitted_on(others: Sequence[Sequence[Verdict]], none: str) -> Calibration | Unmeasured:
    """Difficulties fitted on the verdicts of other policies.

    Without other policies: Unmeasured, with the reason `none`.
    """
    return (
        alpaca_eval.fitted_calibration(fit_difficulty([columns_of(verdicts) for verdicts in others]))
        if others
        else Unmeasured(none)
    )


def verdicts_of(cell: CellPlan, store: Store) -> list[Verdict]:
    return preference_verdicts(store.folder(cell.roles["preference_verdicts"]))


def recalibrated(
    result: Result, cell: CellPlan, store: Store, calibration: Calibration | Unmeasured
) -> Result:
    """The cell's numbers with the length-controlled ones computed again from this calibration."""
    assert isinstance(cell.score.settings, ScoreSettings)
    controlled = lc_numbers(cell.score.settings, verdicts_of(cell, store), calibration)
    other = re.compile(r"(?!lc_win_rate|equal_length_win_rate)")
    metrics = {name: value for name, value in result.metrics.items() if other.match(name)}
    missing = {name: reason for name, reason in result.missing.items() if other.match(name)}
    return Result(metrics | controlled.metrics, missing | controlled.missing, controlled.calibration)
