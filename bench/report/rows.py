"""Rows of a report: each cell's numbers from the store, with reasons for missing ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from bench.config import FITTED, MAX_CUT, Cell, Expectation, GoldJudge, NoMethod, WorldData, evaluated
from bench.planning.cells import start_cell
from bench.planning.inputs import CellPlan, single
from bench.records import Result, TaskResult, Verdict, read_jsonl
from bench.scoring import calibration as calibrations
from bench.scoring.by_item import by_item
from bench.scoring.suite import joined
from bench.stats import estimates
from bench.stats.length_control import Calibration
from bench.store.keys import Stage, hash_key
from bench.store.stage_settings import GenerateSettings
from bench.store.store import Store

ALPHA = 0.05


@dataclass(frozen=True)
class Sweep:
    """A sweep for a report: name, question, cells.

    `command` holds the words after `python -m bench` that run it.
    """

    name: str
    question: str
    command: str
    cells: Sequence[CellPlan]
    expectations: Sequence[Expectation] = ()
    axes: Sequence[str] = ()  # Dotted keys and config groups that the sweep varies.
    published: Mapping[str, Any] = field(default_factory=dict)  # Its rows beside published tables.
    max_cut: float = MAX_CUT  # Largest share of cut completions that needs no words above the table.

    columns: Sequence[str] | None = None  # Of table.tex, by the beginnings of their names; None: all.

    @property
    def title(self) -> str:
        return self.question[:1].upper() + self.question[1:] or f"python -m bench {self.command}"


@dataclass(frozen=True)
class CellRow:
    """One cell with its numbers, or the reason why it has none.

    `preferences` and, of a judge that only rates, `ratings` are by item id, for paired comparisons; `by_item`
    has those of other numbers, by name (bench/scoring/by_item.py).
    """

    cell: CellPlan
    failed: str | None
    done: bool
    metrics: Mapping[str, float]
    missing: Mapping[str, str]
    preferences: Mapping[str, float | None] = field(default_factory=dict)
    by_item: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    n_train: int | None = None
    recorded: Sequence[Mapping[str, Any]] = ()  # Versions and device of every stage behind the numbers.
    calibration: str | None = None  # Digest of the calibration that length control used.
    # Share of turns cut at the longest length, by evaluation (`preference`, ...) and for `kl`, where counted.
    cut: Mapping[str, float] = field(default_factory=dict)
    kl_tokens: int | None = None  # Longest sample for KL, in tokens.
    tasks: Sequence[TaskResult] = ()  # Shown results of the forgetting check.
    ratings: Mapping[str, float | None] = field(default_factory=dict)  # None where a turn has no rating.
    # The evaluations of a suite by label, each as if its judge were the only one.
    evaluations: Mapping[str, CellRow] = field(default_factory=dict)
    suite: Cell | None = None  # The cell with all its evaluations, if this is the row of one.

    @property
    def group_key(self) -> str:
        return seedless(self.suite or self.cell.cell)

    @property
    def start_key(self) -> str:
        return seedless(start_cell(self.suite or self.cell.cell))


def seedless(cell: Cell) -> str:
    """Key that is equal for cells that differ only by seed.

    It is also equal for start models that differ only in data that a training would read.
    """
    config = cell.model_dump(mode="json", exclude={"seed"})
    judges = [one.judge for one in evaluated(cell).values()]
    chosen_answers = any(isinstance(j, GoldJudge) and j.preference.opponent == "chosen" for j in judges)
    if isinstance(cell.method, NoMethod) and isinstance(cell.data, WorldData) and not chosen_answers:
        config["data"] = {
            name: config["data"][name] for name in ("kind", "demonstrations", "n_demonstrations", "earlier")
        }
    return hash_key(config)


class Rescored(NamedTuple):
    """Numbers of a cell computed now from its stored verdicts.

    `calibration` replaces the calibration of the cell's judge in length control; None leaves the judge's.
    """

    result: Result
    calibration: Calibration | estimates.Unmeasured | None


def _same_judge(row: CellRow, served: Mapping[str, str], first: dict[str, str]) -> CellRow:
    """The row, or a failed row where its judge was another served model than for the first row.

    `first` maps a judge's model to the served model of its first row, and is filled here.
    """
    for model, by in served.items():
        if first.setdefault(model, by) != by:
            served_by = f"the judge {model} was served by {by} here and by {first[model]} for an earlier cell"
            why = f"{served_by}: verdicts of two models are not pooled"
            return CellRow(row.cell, why, False, {}, {"win_rate": why})
    return row


def _served(cell: CellPlan, store: Store) -> dict[str, str]:
    """Requested model -> served model of a cell's judges.

    Empty for a judge without a model or an endpoint that names none.
    """
    served: dict[str, str] = {}
    for role, stage in cell.roles.items():
        if (
            role.endswith("_verdicts")
            and (manifest := store.status(stage).manifest)
            and "requests" in manifest.counts
        ):
            for verdict in read_jsonl(store.folder(stage) / "verdicts.jsonl", Verdict):
                if call := next((call for call in verdict.calls if call.served), None):
                    served[call.model] = str(call.served)
                    break
    return served


def collect(
    sweep: Sweep, store: Store, failures: Mapping[str, str], rescored: Mapping[str, Rescored] | None = None
) -> list[CellRow]:
    """One row per cell, from the store alone.

    `failures` maps cell keys to reasons of this command; earlier failures are read from the store. `rescored`
    maps cell keys to numbers that replace the stored ones. Where an endpoint served two models for one judge,
    cells with another served model than the first one have failed.
    """
    again, known = rescored or {}, calibrations.by_cell(single(sweep.cells), store)
    first: dict[str, dict[str, str]] = {}  # By label of the evaluation.

    def row_of(cell: CellPlan, label: str = "") -> CellRow:
        now = again.get(cell.key)
        result = now.result if now else stored_result(cell, store)
        calibration = now.calibration if now and now.calibration else known.get(cell.key)
        replaced = now is not None and now.calibration is not None
        if result and calibration and calibrations.calibration_setting(cell) == FITTED and not replaced:
            result = calibrations.recalibrated(result, cell, store, calibration)
        row = _row(cell, store, failures.get(cell.key), result, calibration)
        return _same_judge(row, _served(cell, store) if row.done else {}, first.setdefault(label, {}))

    return [
        _suite_row(cell, {label: row_of(plan, label) for label, plan in cell.evaluations.items()})
        if cell.evaluations
        else row_of(cell)
        for cell in sweep.cells
    ]


def _suite_row(cell: CellPlan, rows: Mapping[str, CellRow]) -> CellRow:
    """The row of a cell with several evaluations. It has the numbers of those that are done, and is done when
    all are."""
    failed = {label: row.failed for label, row in rows.items() if row.failed}
    everywhere = len(failed) == len(rows) and len(set(failed.values())) == 1
    whys = [
        why if everywhere or why.startswith(f"{label}: ") else f"{label}: {why}"
        for label, why in failed.items()
    ]
    done = {label: row for label, row in rows.items() if row.done}
    numbers = joined({label: Result(dict(row.metrics), dict(row.missing)) for label, row in done.items()})
    absent = {
        f"{label}/{name}": why
        for label, row in rows.items()
        if label not in done
        for name, why in row.missing.items()
    }
    recorded = {id(facts): facts for row in rows.values() for facts in row.recorded}
    some = next(iter(done.values()), None)
    return CellRow(
        cell,
        "; ".join(dict.fromkeys(whys)) or None,
        len(done) == len(rows),
        numbers.metrics,
        numbers.missing | absent,
        n_train=some.n_train if some else None,
        recorded=list(recorded.values()),
        tasks=some.tasks if some else (),
        cut={"kl": some.cut["kl"]} if some and "kl" in some.cut else {},
        kl_tokens=some.kl_tokens if some else None,
        evaluations={label: replace(row, suite=cell.cell) for label, row in rows.items()},
    )


def stored_result(cell: CellPlan, store: Store) -> Result | None:
    """Stored numbers of a cell; None where it has none."""
    if not store.is_done(cell.score):
        return None
    return Result.read(store.folder(cell.score) / "result.json")


def _cut(cell: CellPlan, store: Store) -> dict[str, float]:
    """Share of turns that were cut, by evaluation and for `kl`. Stages from before it was counted are left out."""
    written = {
        role.removesuffix("_completions"): s
        for role, s in cell.roles.items()
        if role.endswith("_completions")
    }
    if (samples := _kl_samples(cell)) is not None:
        written["kl"] = samples
    manifests = {name: store.status(stage).manifest for name, stage in written.items()}
    return {
        name: m.counts["cut"] / m.counts["turns"]
        for name, m in manifests.items()
        if m and m.counts.get("turns")
    }


def _kl_samples(cell: CellPlan) -> Stage | None:
    """The stage that samples the completions on which KL is measured."""
    logps = cell.score.inputs.get("kl_policy_logps")
    samples = logps.inputs.get("completions") if isinstance(logps, Stage) else None
    return samples if isinstance(samples, Stage) else None


def _row(
    cell: CellPlan,
    store: Store,
    failed: str | None,
    result: Result | None,
    calibration: Calibration | estimates.Unmeasured | None,
) -> CellRow:
    if result is None:
        failed = failed or next(
            (f"{s.label or s.kind}: {why}" for s in cell.stages if (why := store.failure(s))), None
        )
        return CellRow(cell, failed, False, {}, {"win_rate": failed or "not run yet"})
    verdicts = (
        calibrations.verdicts_of(cell, store) if store.is_done(cell.roles.get("preference_verdicts")) else []
    )
    inputs = {
        role: store.folder(source)
        for role, source in cell.score.inputs.items()
        if isinstance(source, Stage) and store.is_done(source)
    }
    items = by_item(result.metrics, inputs, verdicts, calibration)
    ratings = {} if verdicts else items.pop("rating", {})
    data = store.status(cell.roles["preferences"]).manifest if "preferences" in cell.roles else None
    tasks = cell.roles.get("tasks")
    shown = (
        list(read_jsonl(store.folder(tasks) / "results.jsonl", TaskResult)) if store.is_done(tasks) else []
    )
    samples = _kl_samples(cell)
    return CellRow(
        cell,
        None,
        True,
        result.metrics,
        result.missing,
        {v.item_id: v.preference for v in verdicts},
        items,
        data.counts.get("train") if data else None,
        [store.recorded(stage) for stage in cell.stages],
        result.calibration,
        _cut(cell, store),
        samples.settings.decoding.max_new_tokens
        if samples and isinstance(samples.settings, GenerateSettings)
        else None,
        [task for task in shown if task.shown],
        ratings=ratings,
    )
