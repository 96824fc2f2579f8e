"""What length control knows beforehand of a table's cells: a user's file, or difficulties fitted on the other rows of the table.

A file (judge.calibration=FILE) is an input of a cell's score. Fitted difficulties (judge.calibration=fitted) are the table's: a cell's
own score leaves them out, and its length-controlled numbers are computed when the table is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.config import FITTED
from bench.judges.formats import alpaca_eval
from bench.planning.inputs import CellPlan
from bench.records import Result, Verdict, preference_verdicts
from bench.scoring.numbers import calibration_of, lc_numbers
from bench.stats.estimates import Unmeasured
from bench.stats.length_control import Calibration, fit_difficulty, judged
from bench.store.stage_settings import ScoreSettings
from bench.store.store import Store

Calibrations = Mapping[str, Calibration | Unmeasured]  # by cell key


def by_cell(cells: Sequence[CellPlan], store: Store) -> dict[str, Calibration | Unmeasured]:
    """The calibration of every judged cell whose judge has one."""
    found: dict[str, Calibration | Unmeasured] = dict(fitted([cell for cell in cells if asked(cell) == FITTED], store))
    for cell in cells:
        ready = all(store.is_done(cell.roles.get(f"preference_{what}")) for what in ("verdicts", "items"))
        if ready and "calibration" in cell.score.inputs:
            inputs = {role: store.folder(source) for role, source in cell.score.inputs.items()}
            if (calibration := calibration_of(inputs)) is not None:
                found[cell.key] = calibration
    return found


def asked(cell: CellPlan) -> str | None:
    """What the cell's judge is set to: a file, `fitted`, or nothing."""
    return getattr(cell.cell.judge, "calibration", None)


def fitted(cells: Sequence[CellPlan], store: Store) -> dict[str, Calibration | Unmeasured]:
    """Difficulties from the other judged cells with the same items and judge, for each."""
    ready = [cell for cell in cells if store.is_done(cell.roles.get("preference_verdicts"))]
    verdicts = {cell.key: verdicts_of(cell, store) for cell in ready}
    alike = {cell.key: (cell.roles["preference_items"].key, cell.cell.judge) for cell in ready}
    return {
        key: fitted_on([verdicts[other] for other in alike if other != key and alike[other] == how], NOBODY_ELSE)
        for key, how in alike.items()
    }


NOBODY_ELSE = "no other cell with the same items and judge to fit difficulties on"


def fitted_on(others: Sequence[Sequence[Verdict]], none: str) -> Calibration | Unmeasured:
    """Difficulties from the verdicts on other policies; `none` says why there are none."""
    return alpaca_eval.fitted_calibration(fit_difficulty([judged(verdicts) for verdicts in others])) if others else Unmeasured(none)


def verdicts_of(cell: CellPlan, store: Store) -> list[Verdict]:
    return preference_verdicts(store.folder(cell.roles["preference_verdicts"]))


def recalibrated(result: Result, cell: CellPlan, store: Store, calibration: Calibration | Unmeasured) -> Result:
    """A cell's numbers with length control by this calibration."""
    assert isinstance(cell.score.settings, ScoreSettings)
    controlled = lc_numbers(cell.score.settings, verdicts_of(cell, store), calibration)
    metrics = {name: value for name, value in result.metrics.items() if not name.startswith("lc_win_rate")}
    missing = {name: why for name, why in result.missing.items() if name != "lc_win_rate"}
    return Result(metrics | controlled.metrics, missing | controlled.missing, controlled.calibration)
