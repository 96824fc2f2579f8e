"""Rows of a sweep's data frames: pooled groups, training curves, completions, verdicts and findings.

Each function gives flat records of numbers and texts, for notebooks (bench.load) and trackers. Rates are in
[0, 1]. A value that was not measured is None. Records of cells begin with the same columns (`place`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.planning.inputs import CellPlan
from bench.records import by_id, read_completions, read_items, read_verdicts
from bench.report.analysis import Analysis
from bench.report.csv_rows import HEADLINES
from bench.report.findings import read_curve
from bench.report.groups import Group, method_name, settings
from bench.report.rows import ALPHA, CellRow
from bench.report.tables import tasks
from bench.store.store import Store
from bench.training.training_record import TrainFacts

Record = dict[str, Any]

# Numbers of a pooled row, without those of the forgetting check.
NUMBERS = (
    *(name for name in HEADLINES if not name.endswith(("_low", "_high"))),
    "arena_win_rate",
    "style_win_rate",
    "expected_rating",
    "reward_auc",
    "label_accuracy",
    "judge_pair_accuracy",
)
MANNERS = ("preference", "rating", "plain")  # How completions of a cell are judged; plain: not at all.


def pooled_rows(analysis: Analysis) -> list[Record]:
    """One record per row of table.md: settings, numbers with the ends of their 95 % intervals, difference to
    the start model.

    Numbers of one evaluation of several begin with `LABEL/`. Columns without any value are left out.
    """
    groups, certificate = analysis.pooled.groups, analysis.certificate
    of_tasks = list(tasks(groups).values())
    records = []
    for group in groups:
        cell = group.cell
        record: Record = {"row": group.number, "name": group.name, "model": cell.model.name}
        record |= {"data": cell.data.name, "method": method_name(cell)}
        record |= {"beta": getattr(cell.method, "beta", None), "fraction": cell.data.fraction}
        record |= {"iteration": getattr(cell.method, "iteration", None)}
        record |= {key: settings(cell).get(key) for key in analysis.pooled.varied}
        record |= {"n_seeds": len(group.done), "n_cells": len(group.rows)}
        for label in analysis.pooled.parts:
            if (part := group.parts.get(label)) is not None:
                record |= _numbers(part, of_tasks, f"{label}/" if label else "")
        keys = [row.cell.key for row in group.rows]
        record["findings"] = _once(one.name for key in keys for one in analysis.findings.get(key, ()))
        record["differs"] = _once(words for key in keys if (words := certificate.words(key)))
        records.append(record)
    names = dict.fromkeys(name for record in records for name in record)
    kept = [name for name in names if any(record.get(name) not in (None, "") for record in records)]
    return [{name: record.get(name) for name in kept} for record in records]


def _numbers(group: Group, of_tasks: Sequence[str], prefix: str) -> Record:
    numbers: Record = {}
    for name in (*NUMBERS, *of_tasks):
        pooled, interval = group.pooled(name), group.interval(name) or (None, None)
        numbers |= {name: pooled.mean if pooled else None}
        numbers |= {f"{name}_low": interval[0], f"{name}_high": interval[1]}
    numbers["among_best"] = group.among_best
    lead, p = (of.lead, of.p_holm) if (of := group.against_start) else (None, None)
    numbers |= {"vs_start": lead and lead.value, "vs_start_low": lead and lead.low}
    numbers |= {"vs_start_high": lead and lead.high, "vs_start_p_holm": p}
    numbers["like_start"] = None if p is None else p >= ALPHA
    return {f"{prefix}{name}": value for name, value in numbers.items()}


def _once(words: Iterator[str]) -> str:
    return "; ".join(dict.fromkeys(words))


def place(analysis: Analysis, row: CellRow) -> Record:
    """The first columns of each record of a cell."""
    cell = row.cell.cell
    number = next(g.number for g in analysis.pooled.groups if any(r.cell.key == row.cell.key for r in g.rows))
    return {
        "key": row.cell.key,
        "name": row.cell.name,
        "row": number,
        "method": method_name(cell),
        "beta": getattr(cell.method, "beta", None),
        "seed": cell.seed,
    }


def facts_of(cell: CellPlan, store: Store) -> TrainFacts | None:
    """Facts of a cell's training. None where nothing was trained, or the store has none."""
    train = cell.roles.get("train")
    if train is None or not store.is_done(train):
        return None
    path = store.folder(train) / "facts.json"
    return TrainFacts.read(path) if path.exists() else None


def curves(analysis: Analysis) -> Iterator[Record]:
    """One record per logged step of each cell's training, with its numbers.

    `examples` is the number of preference rows that the policy has seen, so that methods with other batches
    stand on one axis.
    """
    for row in analysis.rows:
        if curve := read_curve(row.cell, analysis.store):
            first, facts = place(analysis, row), facts_of(row.cell, analysis.store)
            for point in curve:
                step = point.get("step")
                seen = None if facts is None or step is None else facts.seen(step)
                yield first | {"step": step, "examples": seen} | dict(point)


def evaluations(row: CellRow) -> Iterator[tuple[str, str, CellPlan]]:
    """(label, manner, plan) of each evaluation of a cell; the label is "" where it has one judge."""
    for label, plan in (row.cell.evaluations or {"": row.cell}).items():
        for manner in MANNERS:
            yield label, manner, plan


def completions(analysis: Analysis, rows: Sequence[CellRow] | None = None) -> Iterator[Record]:
    """One record per turn of each judged completion, with its prompt and the baseline's text."""
    store = analysis.store
    for row in analysis.rows if rows is None else rows:
        first = place(analysis, row)
        for label, manner, plan in evaluations(row):
            items, written = (plan.roles.get(f"{manner}_{what}") for what in ("items", "completions"))
            if not store.is_done(items) or not store.is_done(written):
                continue
            of_item = by_id(read_items(store.folder(items)))
            for one in read_completions(store.folder(written)):
                item = of_item[one.id]
                for turn, (prompt, text) in enumerate(zip(item.turns, one.completions, strict=True)):
                    yield first | {
                        "evaluation": label,
                        "manner": manner,
                        "item_id": item.id,
                        "category": item.category,
                        "turn": turn,
                        "prompt": prompt,
                        "completion": text,
                        "baseline": item.baseline[turn]
                        if item.baseline and turn < len(item.baseline)
                        else None,
                        "n_tokens": one.n_tokens[turn],
                        "finished": one.finished[turn] if one.finished else None,
                    }


def verdicts(analysis: Analysis, rows: Sequence[CellRow] | None = None) -> Iterator[Record]:
    """One record per verdict. `evaluation`, `manner`, `item_id` and `turn` find its completion."""
    store = analysis.store
    for row in analysis.rows if rows is None else rows:
        first = place(analysis, row)
        for label, manner, plan in evaluations(row):
            if not store.is_done(stage := plan.roles.get(f"{manner}_verdicts")):
                continue
            for one in read_verdicts(store.folder(stage)):
                dollars = [call.dollars for call in one.calls if call.dollars is not None]
                yield first | {
                    "evaluation": label,
                    "manner": manner,
                    "item_id": one.item_id,
                    "category": one.category,
                    "turn": one.turn,
                    "judge": one.judge,
                    "preference": one.preference,
                    "rating": one.rating,
                    "unscored": one.unscored,
                    "policy_length": one.policy_length,
                    "baseline_length": one.baseline_length,
                    "reply": one.raw,
                    "served": next((call.served for call in one.calls if call.served), None),
                    "dollars": sum(dollars) if dollars else None,
                }


def findings(analysis: Analysis) -> Iterator[Record]:
    """One record per finding of each cell."""
    for row in analysis.rows:
        for one in analysis.findings.get(row.cell.key, ()):
            yield place(analysis, row) | {
                "finding": one.name,
                "severity": one.severity,
                "says": one.says,
                "value": one.value,
                "unit": one.unit,
                "threshold": one.threshold,
            }
