"""`do=rescore`: computes tables again from stored verdicts, without a judge or a model.

Without `judgements` it takes the sweep's own verdicts in the store. Every score stage with all its inputs is
computed again with the current code and compared with its stored result. The store does not change.

With `judgements=DIR` it takes a folder in AlpacaEval's layout, one row a model. The package's columns hold
the package's values, and our `lc_win_rate` stands next to them, without a calibration
`equal_length_win_rate`. **All rates of this file are percent**, as in
the package.

With `judgements=FILE.jsonl` it takes FastChat's judgements, one row a model: FastChat's averages over all
rows, and ours over the last row of each question.

Both kinds of files also give paired comparisons between their models, by item or question.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench import report
from bench.cli.compose import BadConfig, CheckedCommand
from bench.commands import OK, SOME_FAILED, bundle
from bench.commands.faults import print_faults
from bench.commands.planned_sweep import sweep_of
from bench.config import FITTED, Rescore, user_path
from bench.judges.formats import alpaca_eval, mt_bench
from bench.output_files import os_reason, write_user_file
from bench.planning.inputs import CellPlan, single
from bench.records import Result, Verdict, grouped, read_items
from bench.scoring.by_item import ratings
from bench.scoring.calibration import fitted, fitted_on, recalibrated
from bench.scoring.numbers import score
from bench.stats.estimates import ByItem, Estimate, Unmeasured, compare_table, rating_mean
from bench.stats.length_control import (
    LC_WORDS,
    Calibration,
    LcWinRate,
    contributions_of_verdicts,
    lc_name,
    lc_of_verdicts,
)
from bench.store.keys import Stage
from bench.store.stage_settings import ScoreSettings
from bench.store.store import Store, Unsound
from bench.terminal import say

BOOTSTRAP_SEED = 0
EXPORT_AGAIN = "run do=report +sweep=... of its sweep to write it again"
Line = dict[str, Any]
Columns = dict[str, Callable[[Line], str]]  # text of each column, from a row
T = TypeVar("T")


def main(opened: CheckedCommand) -> int:
    do = opened.session.do
    assert isinstance(do, Rescore)
    if do.judgements is not None:
        rescores = rescore_files(do)
        written = show(rescores, do)
        return SOME_FAILED if rescores.refused or not written else OK
    opened = bundle.opened_from(opened)
    results = opened.session.results_dir
    store, sweep = Store(results / "store"), sweep_of(opened)
    written = rescore_sweep(do, sweep, store)
    return SOME_FAILED if print_faults(sweep, store, results) or not written else OK


@dataclass
class Rescores:
    """Rows computed from files of judgements, one a model, with the columns and notes of their table."""

    rows: list[Line]
    columns: Columns
    notes: list[str] = field(default_factory=list)
    pairs: list[Line] = field(default_factory=list)  # Comparisons between models.

    @property
    def refused(self) -> bool:
        return any(row["refused"] for row in self.rows)


def rescore_files(do: Rescore) -> Rescores:
    """Rows of a folder or file of judgements.

    Raises BadConfig for a file that is not in the expected format.
    """
    assert do.judgements is not None
    path = user_path(do.judgements)
    return _alpaca_eval(path, do) if path.is_dir() else _fastchat(path, do)


def _read(read: Callable[..., T], *arguments: Any) -> T:
    """Result of `read`. An error in a user's file is raised as BadConfig, because it is no bug of bench."""
    try:
        return read(*arguments)
    except (OSError, ValueError) as error:
        raise BadConfig([str(error)]) from error


def _reference_and_calibration(
    do: Rescore,
) -> tuple[alpaca_eval.Outputs | None, Path | None, Calibration | None]:
    reference = (
        _read(alpaca_eval.read_outputs, user_path(do.reference_outputs)) if do.reference_outputs else None
    )
    if do.calibration in (None, FITTED):
        return reference, None, None
    path = user_path(str(do.calibration))
    items = reference.items if reference else None
    return (
        reference,
        path,
        _read(alpaca_eval.read_calibration, path, items, None if items is None else len(items)),
    )


def show(rescores: Rescores, do: Rescore) -> bool:
    """Print the table and write the rows to `out`; returns False if they could not be written."""
    cells = [[value(row) for value in rescores.columns.values()] for row in rescores.rows]
    refused = [f"REFUSED {row['model']}: {row['reason']}" for row in rescores.rows if row["refused"]]
    notes = {report.HOW_TO_READ: rescores.notes + refused}
    report.print_table(f"{do.judgements}", report.Table(list(rescores.columns), cells, notes))
    if rescores.pairs:
        shown = rescores.pairs[:SHOWN_PAIRS]
        texts = [[value(row) for value in PAIRED_COLUMNS.values()] for row in shown]
        left = len(rescores.pairs) - len(shown)
        more = [f"{left} more comparisons go to NAME_pairs.csv with out=NAME.csv."] if left else []
        how_to_read = {report.HOW_TO_READ: [*PAIRED_NOTES, *more]}
        report.print_table(
            "Differences between models", report.Table(list(PAIRED_COLUMNS), texts, how_to_read)
        )
    names = list(dict.fromkeys(name for row in rescores.rows for name in row))
    rows = [{name: row.get(name) for name in names if name != "refused"} for row in rescores.rows]
    return _write_rows(do, rows, rescores.pairs)


def _write_rows(do: Rescore, rows: Sequence[Line], pairs: Sequence[Line] = ()) -> bool:
    """Write the rows to `out`, if it is set, and pairs beside it; returns False if they could not be written."""
    if not do.out:
        return True
    files = {do.out: rows} | ({str(Path(do.out).with_suffix("")) + "_pairs.csv": pairs} if pairs else {})
    for (path, lines), what in zip(files.items(), ("rows", "pairs"), strict=False):
        try:
            write_user_file(user_path(path), report.csv_text(lines))
        except OSError as error:
            say(f"not written: {path}: {os_reason(error)}")
            return False
        say(f"{what:8} {path}")
    return True


def _refusal(n_unscored: int, n: int, most: float) -> str | None:
    if n and n_unscored / n > most:
        return f"{n_unscored} of {n} verdicts ({n_unscored / n:.0%}) have no score, more than max_unscored={most:g}, so there is no mean"
    return None


def _interval(name: str, estimate: Estimate | None, factor: float = 1) -> Line:
    """Columns of a value, its standard error and its interval, by name; None without an estimate."""
    parts = {"": "value", "_se": "standard_error", "_low": "low", "_high": "high"}
    values = {suffix: getattr(estimate, part) if estimate else None for suffix, part in parts.items()}
    return {name + suffix: None if value is None else factor * value for suffix, value in values.items()}


def _number(name: str, digits: int) -> Callable[[Line], str]:
    return lambda row: "-" if row.get(name) is None else f"{row[name]:.{digits}f}"


def _bracketed(name: str, digits: int) -> Callable[[Line], str]:
    """Text of a value, with its interval if it has one."""

    def text(row: Line) -> str:
        value, low, high = (_number(name + suffix, digits)(row) for suffix in ("", "_low", "_high"))
        return value if low == "-" else f"{value} [{low}, {high}]"

    return text


# Comparisons between models -------------------------------------------------------------------------------------------

SHOWN_PAIRS = 30
Numbers = Mapping[str, ByItem]  # Values by item, by name of the number.


def _paired(models: Mapping[str, Numbers], judge: str, factor: float = 1) -> list[Line]:
    """Comparisons between all models of one judge, first less second; p is corrected over one number's pairs.

    Pairs in the order of the first number, the higher model first.
    """
    names = list(dict.fromkeys(name for numbers in models.values() for name in numbers))
    lines = []
    for name in names:
        values = {model: numbers[name] for model, numbers in models.items() if name in numbers}
        order = sorted(values, key=lambda model: -_mean(values[model]))
        pairs = {(a, b): ({0: values[a]}, {0: values[b]}) for a, b in itertools.combinations(order, 2)}
        for (first, second), compared in compare_table(pairs).items():
            if compared is None:
                continue
            lead = compared.lead
            parts = {part: getattr(lead, part) for part in ("value", "standard_error", "low", "high")}
            lines.append(
                {"number": name, "first": first, "second": second, "judge": judge}
                | {part: None if one is None else factor * one for part, one in parts.items()}
                | {"p": lead.p, "p_holm": compared.p_holm}
                | {"n_items": compared.n_items, "n_dropped": compared.n_dropped}
            )
    return lines


def _mean(values: ByItem) -> float:
    scored = [value for value in values.values() if value is not None]
    return statistics.fmean(scored) if scored else 0.0


PAIRED_COLUMNS: Columns = {
    "number": itemgetter("number"),
    "first": itemgetter("first"),
    "second": itemgetter("second"),
    "difference": _bracketed("value", 2),
    "p (Holm)": _number("p_holm", 4),
    "items": _number("n_items", 0),
    "dropped": _number("n_dropped", 0),
    "judge": itemgetter("judge"),
}
PAIRED_NOTES = [
    "The difference is first less second, paired by item (the turns of a question together), with 95 % intervals over items (t).",
    "p is two-sided, Holm-corrected over the pairs of one number and judge. Items without a verdict on either side are dropped.",
]


# AlpacaEval's layout --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Annotated:
    """One model's annotations by one annotator, as read from the files."""

    name: str  # name of the model's folder
    annotations: alpaca_eval.Annotations
    outputs: alpaca_eval.Outputs | None

    @property
    def by_item(self) -> list[Verdict]:
        """The last verdict on each item."""
        return list({verdict.item_id: verdict for verdict in self.annotations.verdicts}.values())


def _alpaca_eval(folder: Path, do: Rescore) -> Rescores:
    reference, path, calibration = _reference_and_calibration(do)
    models, refused = _read(_read_models, folder, reference)
    lc = _lc_name(do)
    rows = [_refused_row(path, reason, lc) for path, reason in refused.items()]
    items: dict[str, dict[str, Numbers]] = {}  # By annotator and model.
    for model in models:
        own = _fitted_without(model, models) if do.calibration == FITTED else calibration
        rows.append(_alpaca_eval_row(model, reference, path, own, do.max_unscored))
        if not rows[-1]["refused"]:
            items.setdefault(model.annotations.annotator, {})[model.name] = _items(model, lc, own)
    columns: Columns = {
        "model": itemgetter("model"),
        f"{LC_WORDS[lc]} %": _bracketed(lc, 2),
        **OFFICIAL_COLUMNS,
    }
    pairs = [line for judge, of_judge in items.items() for line in _paired(of_judge, judge, 100)]
    return Rescores(rows, columns, _alpaca_eval_notes(rows, do), pairs)


def _items(model: _Annotated, lc: str, calibration: Calibration | Unmeasured | None) -> Numbers:
    """The model's numbers by item."""
    verdicts = model.by_item
    preferences = {"win_rate": {v.item_id: v.preference for v in verdicts}}
    if isinstance(calibration, Unmeasured):
        return preferences
    controlled = contributions_of_verdicts(verdicts, calibration)
    return preferences if isinstance(controlled, Unmeasured) else preferences | {lc: controlled}


def _lc_name(do: Rescore) -> str:
    return lc_name(None if do.calibration is None else Unmeasured(""))


def _read_models(
    folder: Path, reference: alpaca_eval.Outputs | None
) -> tuple[list[_Annotated], dict[Path, str]]:
    """Models with their annotations, and reasons why other files are refused.

    A file is refused in two cases: bench exported it, and it was changed or the store has other verdicts now;
    or it is about other texts than the output files in its folder. Raises ValueError for a folder without
    annotations.
    """
    models, refused = [], {}
    store = Store(folder.parent / "store")
    for path in alpaca_eval.find_annotations(folder):
        if faults := report.export_faults(path.parent.parent, store):
            refused[path] = f"{faults[0]}: {EXPORT_AGAIN}"
            continue
        outputs_file = alpaca_eval.find_outputs(path)
        outputs = alpaca_eval.read_outputs(outputs_file) if outputs_file else None
        annotations = alpaca_eval.read_annotations(path, outputs, reference)
        if why := alpaca_eval.contradiction(annotations, outputs, reference):
            refused[path] = f"{path}: {why}"
        else:
            models.append(_Annotated(path.parent.parent.name, annotations, outputs))
    if not models and not refused:
        raise ValueError(
            f"{folder}: expected MODEL/ANNOTATOR/annotations.json (or .json.gz), AlpacaEval's layout, and found none"
        )
    return models, refused


def _refused_row(path: Path, why: str, lc: str) -> Line:
    line = {"model": path.parent.parent.name, "annotator": path.parent.name, **_interval(lc, None)}
    return line | dict.fromkeys([*OFFICIAL, *AFTER_OFFICIAL]) | {"reason": why, "refused": True}


def _fitted_without(model: _Annotated, models: Sequence[_Annotated]) -> Calibration | Unmeasured:
    """Calibration fitted on the other models with the same annotator."""
    others = [
        m.by_item for m in models if m is not model and m.annotations.annotator == model.annotations.annotator
    ]
    return fitted_on(others, "no other model has this annotator, so there is nothing to fit difficulties on")


def _controlled(
    verdicts: Sequence[Verdict], calibration: Calibration | Unmeasured | None
) -> LcWinRate | Unmeasured:
    if isinstance(calibration, Unmeasured):
        return calibration
    return lc_of_verdicts(verdicts, calibration, np.random.default_rng(BOOTSTRAP_SEED))


def _alpaca_eval_row(
    model: _Annotated,
    reference: alpaca_eval.Outputs | None,
    path: Path | None,
    calibration: Calibration | Unmeasured | None,
    max_unscored: float,
) -> Line:
    verdicts = model.by_item
    scored = {v.item_id for v in verdicts if v.preference is not None}
    absent = len({item.id for item in reference.items} - {v.item_id for v in verdicts}) if reference else 0
    refusal = _refusal(len(verdicts) - len(scored), len(verdicts), max_unscored)
    missing: dict[str, str] = {"win_rate": refusal} if refusal else {}
    numbers: dict[str, float] = {}
    controlled: LcWinRate | None = None
    if not refusal:
        ours = _controlled(verdicts, calibration)
        official = (
            alpaca_eval.official_win_rate(model.annotations),
            alpaca_eval.official_lc_win_rate(model.annotations, path),
        )
        for name, value in zip(
            (lc_name(calibration), "win_rate", "length_controlled_winrate"), (ours, *official), strict=True
        ):
            if isinstance(value, Unmeasured):
                missing[name] = value.reason
            elif isinstance(value, LcWinRate):
                controlled = value
            else:
                numbers |= value
    if model.outputs is None:
        missing["avg_length"] = "there is no model_outputs.json next to the annotations"
    return {
        "model": model.name,
        "annotator": model.annotations.annotator,
        **_interval(lc_name(calibration), controlled, 100),
        **{name: numbers.get(name) for name in OFFICIAL},
        "avg_length": model.outputs.avg_length if model.outputs else None,
        "n_unscored": len(verdicts) - len(scored) + absent,
        "n_repeated": len(model.annotations.verdicts) - len(verdicts),
        "calibration": calibration.digest if isinstance(calibration, Calibration) else None,
        "reason": "; ".join(f"{name}: {why}" for name, why in missing.items()),
        "refused": refusal is not None,
    }


OFFICIAL = (
    "win_rate",
    "standard_error",
    "n_wins",
    "n_wins_base",
    "n_draws",
    "n_total",
    "discrete_win_rate",
    "length_controlled_winrate",
    "lc_standard_error",
)
AFTER_OFFICIAL = ("avg_length", "n_unscored", "n_repeated", "calibration")
OFFICIAL_COLUMNS: Columns = {
    "win rate %": _number("win_rate", 2),
    "SE": _number("standard_error", 2),
    "discrete %": _number("discrete_win_rate", 2),
    "official LC %": _number("length_controlled_winrate", 2),
    "length": _number("avg_length", 0),
    "n": _number("n_total", 0),
    "unscored": _number("n_unscored", 0),
    "annotator": itemgetter("annotator"),
}


def _alpaca_eval_notes(rows: Sequence[Line], do: Rescore) -> list[str]:
    digests = sorted({row["calibration"] for row in rows if row["calibration"]})
    words = LC_WORDS[_lc_name(do)]
    by = {None: "without a calibration", FITTED: "difficulties fitted on the other rows, no gamed rows"}.get(
        do.calibration, f"calibration {', '.join(digests)} ({do.calibration})"
    )
    notes = [
        f"{words} % is bench's own, by item, {by}.",
        f"Brackets are 95 % intervals over items (500 refits, seed {BOOTSTRAP_SEED}).",
        "Official LC is the package's length_controlled_winrate, by row position. Unscored counts items without a vote or a row.",
    ]
    if len({row["annotator"] for row in rows}) > 1:
        notes.append("The rows come from several annotators. Do not compare rows of different annotators.")
    if repeated := [f"{row['model']} {row['n_repeated']}" for row in rows if row["n_repeated"]]:
        notes.append(
            f"Some rows repeat an instruction: {', '.join(repeated)}. The package counts each of them, {words} % only the last."
        )
    reasons = grouped((row["reason"], row["model"]) for row in rows if row["reason"] and not row["refused"])
    return notes + [
        why + ("" if len(models) == len(rows) else f" ({', '.join(models)})")
        for why, models in reasons.items()
    ]


# FastChat's judgements ------------------------------------------------------------------------------------------------


def _fastchat(path: Path, do: Rescore) -> Rescores:
    if faults := report.export_faults(path.parent, Store(path.parent.parent.parent / "store")):
        raise Unsound(f"{faults[0]}: {EXPORT_AGAIN}")
    rows = _read(mt_bench.read_judgements, path)
    singles = [row for row in rows if isinstance(row, mt_bench.Rated)]
    pairs = [row for row in rows if isinstance(row, mt_bench.Compared)]
    if singles:
        groups = dict.fromkeys((row.model, row.verdict.judge) for row in singles)
        lines = [
            _single_row(
                model,
                judge,
                [r for r in singles if (r.model, r.verdict.judge) == (model, judge)],
                do.max_unscored,
            )
            for model, judge in groups
        ]
        rated: dict[str, dict[str, Numbers]] = {}
        for line in lines:
            if not line["refused"]:
                own = [r for r in singles if (r.model, r.verdict.judge) == (line["model"], line["judge"])]
                items = ratings(mt_bench.last_ratings(own))
                rated.setdefault(line["judge"], {})[line["model"]] = {"rating": items}
        return Rescores(lines, SINGLE_COLUMNS, _fastchat_notes(lines), _of_judges(rated))
    names = dict.fromkeys((model, row.judge) for row in pairs for model in row.models)
    lines = [
        _pair_row(model, judge, [r for r in pairs if model in r.models and r.judge == judge], do.max_unscored)
        for model, judge in names
    ]
    preferred: dict[str, dict[str, Numbers]] = {}
    for line in lines:
        if not line["refused"]:
            model, judge = line["model"], line["judge"]
            own_pairs = [r for r in pairs if model in r.models and r.judge == judge]
            preferred.setdefault(judge, {})[model] = {"pairwise_win_rate": _by_question(own_pairs, model)}
    return Rescores(lines, PAIR_COLUMNS, _fastchat_notes(lines), _of_judges(preferred))


def _of_judges(models: Mapping[str, Mapping[str, Numbers]]) -> list[Line]:
    return [line for judge, of_judge in models.items() for line in _paired(of_judge, judge)]


def _single_row(model: str, judge: str, rows: Sequence[mt_bench.Rated], max_unscored: float) -> Line:
    last = mt_bench.last_ratings(rows)
    unscored = sum(v.rating is None for v in last)
    refusal = _refusal(unscored, len(last), max_unscored)
    ours = None if refusal else rating_mean(grouped((v.item_id, v.rating) for v in last))
    categories = {v.category: None for v in last if v.category}
    means = (
        {}
        if refusal
        else {
            c: rating_mean(grouped((v.item_id, v.rating) for v in [v for v in last if v.category == c]))
            for c in categories
        }
    )
    return {
        "model": model,
        "judge": judge,
        **_interval("rating", ours),
        **({} if refusal else mt_bench.fastchat_averages(rows)),
        "rows": len(rows),
        "failed": sum(row.score is None for row in rows),
        "duplicate_keys": len(rows) - len(last),
        "n_scored": len(last) - unscored,
        "n_unscored": unscored,
        **{f"rating_{category}": mean.value for category, mean in means.items() if mean},
        "reason": refusal,
        "refused": refusal is not None,
    }


def _by_question(rows: Sequence[mt_bench.Compared], model: str) -> dict[str, float | None]:
    """Mean preference for the model on each question, over its turns and opponents; None without a verdict."""
    of_question = grouped(
        (row.question, mt_bench.preference_for(row, model)) for row in mt_bench.last_comparisons(rows)
    )
    return {
        question: statistics.fmean(scored) if (scored := [p for p in some if p is not None]) else None
        for question, some in of_question.items()
    }


def _pair_row(model: str, judge: str, rows: Sequence[mt_bench.Compared], max_unscored: float) -> Line:
    last = mt_bench.last_comparisons(rows)
    preferences = grouped((row.question, mt_bench.preference_for(row, model)) for row in last)
    unscored = sum(row.preference is None for row in last)
    refusal = _refusal(unscored, len(last), max_unscored)
    return {
        "model": model,
        "judge": judge,
        **_interval("pairwise_win_rate", None if refusal else rating_mean(preferences)),
        **({} if refusal else mt_bench.fastchat_wins(rows, model)),
        "rows": len(rows),
        "failed": sum(row.preference is None for row in rows),
        "duplicate_keys": len(rows) - len(last),
        "order_flips": sum(row.flipped for row in last),
        "n_scored": len(last) - unscored,
        "n_unscored": unscored,
        "reason": refusal,
        "refused": refusal is not None,
    }


COUNTS: Columns = {
    "rows": lambda row: str(row["rows"]),
    "failed": lambda row: str(row["failed"]),
    "repeated": lambda row: str(row["duplicate_keys"]),
    "judge": itemgetter("judge"),
}
SINGLE_COLUMNS: Columns = {
    "model": itemgetter("model"),
    "rating": _bracketed("rating", 2),
    "turn 1": _number("turn1", 4),
    "turn 2": _number("turn2", 4),
    "average": _number("average", 4),
    **COUNTS,
}
PAIR_COLUMNS: Columns = {
    "model": itemgetter("model"),
    "win rate": _bracketed("pairwise_win_rate", 3),
    "win": _number("win", 0),
    "loss": _number("loss", 0),
    "tie": _number("tie", 0),
    "adjusted": _number("win_rate_adjusted", 6),
    "flips": lambda row: str(row["order_flips"]),
    **COUNTS,
}


def _fastchat_notes(lines: Sequence[Line]) -> list[str]:
    notes = [
        "The first number is bench's own: over the last row of each question and turn, with 95 % intervals clustered by question.",
        "The other numbers are FastChat's, over all rows.",
    ]
    if repeated := [f"{line['model']} {line['duplicate_keys']}" for line in lines if line["duplicate_keys"]]:
        notes.append(
            f"Some rows repeat a question and turn: {', '.join(repeated)}. FastChat counts each of them."
        )
    return notes


# A sweep's own verdicts -----------------------------------------------------------------------------------------------


def rescore_sweep(do: Rescore, sweep: report.Sweep, store: Store) -> bool:
    """Print the sweep's table with every score computed again, and the stored numbers that changed.

    Writes the rows to `out` if set. Returns False if they could not be written.
    """
    cells = list({cell.key: cell for cell in single(sweep.cells)}.values())
    calibrations = _calibrations(do, cells, store)
    rescored: dict[str, report.Rescored] = {}
    messages: list[str] = []
    for cell in cells:
        if gone := [role for role, source in cell.score.inputs.items() if not _done(source, store)]:
            if not _done(cell.score, store):
                continue  # not run: the table shows this
            messages.append(
                f"{cell.name} shows its stored numbers, because the store has no {', '.join(gone).replace('_', ' ')}"
            )
            continue
        calibration = calibrations.get(cell.key)
        result = _scored(cell, store, calibration)
        rescored[cell.key] = report.Rescored(result, calibration)
        messages += _changes(cell, report.stored_result(cell, store), result)
    rows = report.collect(sweep, store, {}, rescored)
    report.print_comparison(sweep, rows)
    for line in messages:
        say(line)
    how = "" if do.calibration is None else f", length control by calibration={do.calibration}"
    what = "evaluations" if len(cells) > len(rows) else "cells"
    say(
        f"{len(rescored)} of {len(cells)} {what} were scored again from the store{how}. The store was not changed."
    )
    return _write_rows(
        do,
        [
            line if row.evaluations else line | {"calibration": row.calibration}
            for line, row in zip(report.flat_rows(rows), rows, strict=True)
        ],
    )


def _done(stage: object, store: Store) -> bool:
    return not isinstance(stage, Stage) or store.is_done(stage)


def _scored(cell: CellPlan, store: Store, calibration: Calibration | Unmeasured | None) -> Result:
    assert isinstance(cell.score.settings, ScoreSettings)
    inputs = {role: store.folder(source) for role, source in cell.score.inputs.items()}
    result = score(cell.score.settings, inputs)
    return result if calibration is None else recalibrated(result, cell, store, calibration)


def _calibrations(
    do: Rescore, cells: Sequence[CellPlan], store: Store
) -> Mapping[str, Calibration | Unmeasured]:
    """Calibration of each judged cell, by cell key; empty without do.calibration."""
    if do.calibration is None:
        return {}
    if do.calibration == FITTED:
        return fitted(cells, store)
    _, _, whole = _reference_and_calibration(do)
    assert whole is not None
    roles = ("preference_verdicts", "preference_items")
    ready = [
        cell for cell in cells if all(role in cell.roles and _done(cell.roles[role], store) for role in roles)
    ]
    items = {cell.key: read_items(store.folder(cell.roles["preference_items"])) for cell in ready}
    return {key: alpaca_eval.for_items(whole, of_cell) for key, of_cell in items.items()}


def _changes(cell: CellPlan, stored: Result | None, now: Result) -> list[str]:
    """Lines about the cell's numbers that differ from the stored ones.

    Differences in the last digits are ignored: they occur between machines.
    """
    if stored is None:
        return [f"{cell.name} has no stored numbers to compare with"]
    changed: list[str] = []
    lines = []
    for name in sorted(stored.metrics.keys() | now.metrics.keys()):
        before, after = stored.metrics.get(name), now.metrics.get(name)
        if before is None or after is None or not math.isclose(before, after, rel_tol=1e-9, abs_tol=1e-12):
            # Skip the interval of a number that changed.
            if not any(name.startswith(f"{other}_") for other in changed):
                lines.append(
                    f"{name} {'-' if before is None else f'{before:.6g}'} -> {'-' if after is None else f'{after:.6g}'}"
                )
            changed.append(name)
    return [f"{cell.name} changed: {', '.join(lines)}"] if lines else []
