"""Words and numbers of the page, as its template shows them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.planning.inputs import CellPlan, all_stages
from bench.records import Verdict, grouped, read_jsonl
from bench.report.analysis import Analysis
from bench.report.findings import Finding
from bench.report.groups import Grid, Group, row_words, verify
from bench.report.rows import ALPHA, CellRow
from bench.report.tables import HOW_TO_READ, MISSING, Table
from bench.scoring import reasons
from bench.store.keys import Stage
from bench.store.store import Store
from bench.training.training_record import TrainFacts

# Column of the table, without the opponent's name and the unit -> what it means.
MEANINGS = {
    "row": "Number of the row. Notes and charts refer to it.",
    "method": "Training method. start: the model that training began from. †: the row differs in what the sweep did not vary on purpose.",
    "beta": "The method's beta.",
    "labels": "Share of the preference labels that was used, with the number of rows.",
    "iteration": "Iterations of training.",
    "seeds": "Finished seeds. !: one seed lies far from the row's others.",
    "win rate": "Mean preference of the judge for the policy over its opponent; a tie is one half. *: highest, or not told apart from it.",
    "LC win rate": "Length-controlled win rate: the win rate that the policy would have at the opponent's length.",
    "equal-length": "The win rate at the opponent's length, uncalibrated: not comparable with published LC win rates.",
    "rating": "Mean rating from 1 to 10.",
    "vs start": "Difference from the start model, paired by seed and prompt. ≈: it is not significant after correction.",
    "over seeds": "The difference from the start model with an interval over seeds alone.",
    "over prompts": "The difference from the start model with an interval over prompts alone.",
    "SEs": "The difference from the start model divided by its standard error.",
    "p (Holm)": "Two-sided p of the difference from the start model, Holm-corrected over the table.",
    "p (of these trainings)": "Two-sided p of the difference from the start model, of these trainings on other prompts, Holm-corrected.",
    "reward acc.": "Share of held-out pairs in which the chosen completion gained more log-probability than the rejected one.",
    "reward AUC": "Chance that a desirable held-out completion gained more log-probability than an undesirable one.",
    "KL nats": "KL divergence from the start model per completion, on the policy's own samples.",
    "length": "Mean characters of a completion.",
    "label acc.": "Share of the latest labels of an iterative method that agree with the truth.",
    "noise prec.": "Share of the labels distrusted by the method that are wrong.",
    "noise recall": "Share of all wrong labels that the method distrusts.",
    "judge acc.": "How often the self-rewarding policy ranks held-out pairs as the truth does.",
    "judge tau": "Kendall's tau of the self-rewarding policy's rankings and the truth.",
}  # fmt: skip
# A number with its interval, as bench/report/tables.py writes it.
NUMBER = re.compile(r"^([+-]?\d[\d.]*)(?: ?\[([+-]?[\d.]+), ([+-]?[\d.]+)\])?")
LINK = re.compile(
    r"\[passport\.html\]\(([^()]+)\)"
)  # As passport_lines writes it; splits a line around its address.
INTERVAL = re.compile(r"^\[([+-]?[\d.]+), ([+-]?[\d.]+)\]")


@dataclass(frozen=True)
class ShownColumn:
    """Column of the table. `hidden`: the reader has to ask for it."""

    name: str
    meaning: str
    numeric: bool
    hidden: bool
    vs_reference: int | None = None  # Number of its evaluation, where it holds differences from a chosen row.


@dataclass(frozen=True)
class ShownCell:
    """Text of the table. `order` sorts it; `bar` holds the places of low end, mean and high end, in percent."""

    text: str
    order: float | str
    bar: tuple[float, float, float] | None = None
    zero: float | None = None  # Place of 0, for a column of differences.


def shown_table(
    table: Table, letters: Mapping[str, Mapping[int, str]]
) -> tuple[list[ShownColumn], list[list[ShownCell]]]:
    """Columns and cells of the table. Intervals become bars, drawn on one scale for each column.

    `letters`: for each evaluation, the letters of each row; they stand behind its first column.
    """
    columns: list[ShownColumn] = []
    by_column: list[list[ShownCell]] = []
    seen: set[str] = set()
    for k, name in enumerate(table.columns):
        label, plain = table.placed(name)
        texts = [row[k] for row in table.rows]
        columns.append(
            ShownColumn(name, _meaning(plain), k > 1, plain in ("SEs", "over seeds", "over prompts"))
        )
        by_column.append(_cells(texts))
        place = table.columns.index("seeds")
        if k > place and label not in seen and label in letters:
            seen.add(label)
            of = f"{label}/" if label else ""
            number = list(letters).index(label)
            same = [letters[label].get(int(row[0]), "") for row in table.rows]
            means = (
                "Rows that share a letter cannot be told apart (5 %, Holm-corrected over all pairs of rows)."
            )
            columns.append(ShownColumn(f"{of}same as", means, False, False))
            by_column.append([ShownCell(text, text or "~") for text in same])
            for what, means in (
                (
                    "vs reference",
                    "Difference from the row chosen as reference, with its 95 % interval. ≈: not significant after correction.",
                ),
                (
                    "p (all pairs)",
                    "Two-sided p of the difference from the reference, Holm-corrected over all pairs of rows.",
                ),
            ):
                columns.append(ShownColumn(f"{of}{what}", means, True, True, number))
                by_column.append([ShownCell("", "") for _ in table.rows])
    return columns, [list(cells) for cells in zip(*by_column, strict=True)]


def _meaning(column: str) -> str:
    name = re.sub(r" (vs \w+ )?%$", "", column)
    return MEANINGS.get(name, "")


def _cells(texts: Sequence[str]) -> list[ShownCell]:
    numbers = [_parsed(text) for text in texts]
    ends = [end for number in numbers if number and number[1] is not None for end in number]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    signed = any(text.startswith(("+", "[+")) for text in texts)
    low, high = (min(low, 0.0), max(high, 0.0)) if signed else (low, high)
    if not ends or high == low:
        return [
            ShownCell(t, n[0] if n else (t if t != MISSING else -1e9))
            for t, n in zip(texts, numbers, strict=True)
        ]

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 1)

    cells = []
    for text, number in zip(texts, numbers, strict=True):
        bar = (
            (place(number[1]), place(number[0]), place(number[2]))
            if number and number[1] is not None
            else None
        )
        zero = place(0.0) if signed and bar else None
        cells.append(ShownCell(text, number[0] if number else -1e9, bar, zero))
    return cells


def _parsed(text: str) -> tuple[float, Any, Any] | None:
    """(number, low, high) of a text; the ends are None without an interval."""
    if (match := INTERVAL.match(text)) is not None:
        low, high = map(float, match.groups())
        return ((low + high) / 2, low, high)
    if (match := NUMBER.match(text.removeprefix("<"))) is None:
        return None
    value, low_end, high_end = match.groups()
    return (float(value), float(low_end) if low_end else None, float(high_end) if high_end else None)


# What cannot be told apart -----------------------------------------------------------------------------------------------


def _means(groups: Sequence[Group]) -> dict[str, float]:
    pooled = {group.key: group.pooled(headline(group)) for group in groups}
    return {key: one.mean for key, one in pooled.items() if one is not None}


def headline(group: Group) -> str:
    return "rating" if group.only_rates else "win_rate"


def _p(part: Grid, a: str, b: str) -> float | None:
    comparison = part.pairs.get((a, b)) or part.pairs.get((b, a))
    return comparison.p_holm if comparison else None


def letters(part: Grid) -> dict[int, str]:
    """Letters of each row of an evaluation. Rows of one judge that share a letter cannot be told apart.

    Insert and absorb (Piepho 2004): one set of all rows is split for each significant pair, and sets within
    others are dropped. Empty where a judge has one row, or needs more than 26 letters.
    """
    numbers = {group.key: group.number for group in part.groups}
    of_row: dict[int, str] = {}
    for groups in grouped((group.cell.judge, group) for group in part.groups).values():
        means = _means(groups)
        ranked = sorted(means, key=lambda key: -means[key])
        sets = [frozenset(ranked)] if len(ranked) > 1 else []
        for i, a in enumerate(ranked):
            for b in ranked[i + 1 :]:
                p = _p(part, a, b)
                if p is None or p >= ALPHA:
                    continue
                split = [s - {one} for s in sets if {a, b} <= s for one in (a, b)]
                sets = [s for s in sets if not {a, b} <= s]
                sets += [
                    s
                    for k, s in enumerate(split)
                    if not any(s < t for t in [*sets, *split]) and s not in [*sets, *split[:k]]
                ]
        sets.sort(key=lambda s: sorted(ranked.index(key) for key in s))
        if len(sets) > 26:
            return {}
        for k, members in enumerate(sets):
            for key in members:
                of_row[numbers[key]] = of_row.get(numbers[key], "") + chr(ord("a") + k)
    return of_row


def answer(analysis: Analysis) -> list[str]:
    """The sweep's answer in two sentences for each evaluation: the best rows, and what was expected."""
    return [
        f"{label}: {sentence}" if label else sentence
        for label, part in analysis.pooled.parts.items()
        for groups in grouped((group.cell.judge, group) for group in part.groups).values()
        for sentence in (_best_sentence(groups), _second_sentence(groups, part, analysis))
        if sentence
    ]


def _best_sentence(groups: Sequence[Group]) -> str:
    means = _means(groups)
    if not means:
        return "No row has a number yet."
    best = max((group for group in groups if group.key in means), key=lambda group: means[group.key])
    what, factor, unit = ("rating", 1, "") if best.only_rates else ("win rate", 100, " %")
    ends = best.interval(headline(best))
    digits = 2 if best.only_rates else 1
    interval = f" [{factor * ends[0]:.{digits}f}, {factor * ends[1]:.{digits}f}]" if ends else ""
    text = f"Row {best.number} ({best.name}) has the highest {what}, {factor * means[best.key]:.{digits}f}{unit}{interval}"
    others = [group.number for group in groups if group.among_best and group.key != best.key]
    if len(means) == 1:
        return f"{text}; no other row has a number."
    if not others:
        return f"{text}, and every other row is significantly lower."
    return f"{text}, but {row_words(others)} cannot be told apart from it."


def _second_sentence(groups: Sequence[Group], part: Grid, analysis: Analysis) -> str:
    trained = [group for group in groups if group.against_start and not group.is_start]
    words = []
    better, worse, level = list[int](), list[int](), list[int]()
    for group in trained:
        comparison = group.against_start
        assert comparison is not None
        p = comparison.p_holm
        (level if p is None or p >= ALPHA else better if comparison.lead.value > 0 else worse).append(
            group.number
        )
    if trained:
        parts = [
            f"{row_words(numbers)} {is_ if len(numbers) == 1 else are} {what}"
            for numbers, is_, are, what in (
                (better, "is", "are", "better than the start model"),
                (worse, "is", "are", "worse than the start model"),
                (level, "is", "are", "not told apart from the start model"),
            )
            if numbers
        ]
        words.append(", ".join(parts))
    if analysis.sweep.expectations:
        verdicts = Counter(
            "cannot be decided"
            if one.difference is None
            else "not decided"
            if one.p_holm is None or one.p_holm >= ALPHA
            else "met"
            if one.difference.value > 0
            else "not met"
            for one in verify(analysis.sweep.expectations, part)
        )
        words.append(
            f"of {len(analysis.sweep.expectations)} expectations {', '.join(f'{n} {what}' for what, n in verdicts.items())}"
        )
    if trained and max(len(group.done) for group in trained) == 1:
        words.append("each row is one training, and another one may differ")
    text = "; ".join(words)
    return f"{text[0].upper()}{text[1:]}." if text else ""


# Matrix and categories ------------------------------------------------------------------------------------------------------


def pair_lines(part: Grid) -> list[list[Any]]:
    """[first row, second row, difference, low, high, p] of every pair; in points for rates."""
    numbers = {group.key: group.number for group in part.groups}
    rates = {group.key: not group.only_rates for group in part.groups}
    return [
        [
            numbers[a],
            numbers[b],
            *(
                None if v is None else round(v * (100 if rates[a] else 1), 3)
                for v in (pair.lead.value, pair.lead.low, pair.lead.high)
            ),
            pair.p_holm,
        ]
        for (a, b), pair in part.pairs.items()
        if pair is not None
    ]


def categories(analysis: Analysis) -> list[dict[str, Any]]:
    """For each evaluation and number: categories, and each row's mean and n in them."""
    made = []
    for label, part in analysis.pooled.parts.items():
        sums: dict[str, dict[int, dict[str, list[float]]]] = {}
        for group in part.groups:
            for row in group.done:
                for manner in ("preference", "rating"):
                    stage = row.cell.roles.get(f"{manner}_verdicts")
                    if not analysis.store.is_done(stage):
                        continue
                    of_row = sums.setdefault(manner, {}).setdefault(group.number, {})
                    for verdict in read_jsonl(analysis.store.folder(stage) / "verdicts.jsonl", Verdict):
                        value = verdict.preference if manner == "preference" else verdict.rating
                        if verdict.category and value is not None:
                            of_row.setdefault(verdict.category, []).append(value)
        for manner, of_rows in sums.items():
            names = sorted({name for of_row in of_rows.values() for name in of_row})
            if len(names) < 2:
                continue
            low, high = (0.0, 1.0) if manner == "preference" else (1.0, 10.0)
            lines = [
                {
                    "row": group.number,
                    "name": group.name,
                    "cells": [
                        _heat(of_rows[group.number].get(name, []), low, high, manner) for name in names
                    ],
                }
                for group in part.groups
                if group.number in of_rows
            ]
            what = "Win rate by category, %" if manner == "preference" else "Rating by category"
            made.append({"title": f"{what}{f' ({label})' if label else ''}", "names": names, "lines": lines})
    return made


def _heat(values: Sequence[float], low: float, high: float, manner: str) -> dict[str, Any] | None:
    if not values:
        return None
    mean = sum(values) / len(values)
    text = f"{100 * mean:.0f}" if manner == "preference" else f"{mean:.1f}"
    return {"text": text, "shade": round(100 * (mean - low) / (high - low)), "n": len(values)}


# Rows in detail -----------------------------------------------------------------------------------------------------------


def row_details(analysis: Analysis) -> list[dict[str, Any]]:
    """For each row: its findings, what is not comparable, its cells, their lineage and what they took."""
    return [
        {
            "number": group.number,
            "name": group.name,
            "findings": _findings(group, analysis.findings),
            "unlike": _unlike(group, analysis),
            "missing": list(
                dict.fromkeys(
                    f"{name}: {why}"
                    for row in group.rows
                    for name, why in row.missing.items()
                    if why not in (reasons.BY_EVALUATION if row.evaluations else reasons.BY_DESIGN)
                )
            ),
            "cells": [
                {
                    "key": row.cell.key,
                    "name": row.cell.name,
                    "seed": row.cell.cell.seed,
                    "state": "done" if row.done else "failed" if row.failed else "not run yet",
                    "why": row.failed or "",
                }
                for row in group.rows
            ],
            "lineage": list(_lineage(group.rows[0].cell, analysis.store)),
        }
        for group in analysis.pooled.groups
    ]


def _findings(group: Group, of_cell: Mapping[str, Sequence[Finding]]) -> list[dict[str, str]]:
    several = len(group.rows) > 1
    return [
        {
            "name": one.name,
            "severity": one.severity,
            "says": (f"Seed {row.cell.cell.seed}: " if several else "") + one.says,
            "threshold": one.threshold,
        }
        for row in group.rows
        for one in of_cell.get(row.cell.key, ())
    ]


def _unlike(group: Group, analysis: Analysis) -> list[str]:
    """What differs from the other rows beyond the axes, with both values."""
    certificate = analysis.certificate
    facts = list(
        dict.fromkeys(name for row in group.rows for name in certificate.differs.get(row.cell.key, ()))
    )
    words = {
        one.fact: f"{one.fact}: {one.value}, and {one.others} in the other cells"
        for one in certificate.differences
    }
    unknown = dict.fromkeys(
        name for row in group.rows for name in certificate.not_known.get(row.cell.key, ())
    )
    return [*(words[name] for name in facts if name in words), *(f"{name} is not known" for name in unknown)]


def _lineage(cell: CellPlan, store: Store) -> Iterator[dict[str, str]]:
    for stage in cell.stages:
        sources = [s.label or s.kind for s in stage.input_stages]
        manifest = store.status(stage).manifest
        counts = ", ".join(
            f"{n:,} {name}" for name, n in (manifest.counts if manifest else {}).items() if "/" not in name
        )
        yield {
            "label": stage.label or stage.kind,
            "key": f"{stage.kind}/{stage.key[:8]}",
            "from": ", ".join(dict.fromkeys(sources)),
            "counts": counts,
        }


# Cost and time ---------------------------------------------------------------------------------------------------------

PARTS = {"train": "training", "sft": "training", "generate": "writing", "judge": "judging"}


@dataclass
class Cost:
    """What some stages took. Seconds are those when they ran, wherever that was."""

    seconds: dict[str, float]
    trained_tokens: int = 0
    written_tokens: int = 0
    requests: int = 0
    judge_tokens: int = 0
    dollars: float | None = None

    def cells(self) -> list[str]:
        times = [
            f"{self.seconds.get(part, 0.0):,.0f}" for part in ("training", "writing", "judging", "other")
        ]
        counts = (self.trained_tokens, self.written_tokens, self.requests, self.judge_tokens)
        return [
            *times,
            *(f"{n:,}" if n else MISSING for n in counts),
            MISSING if self.dollars is None else f"${self.dollars:,.2f}",
        ]


COST_COLUMNS = (
    "row",
    "training s",
    "writing s",
    "judging s",
    "other s",
    "trained tokens",
    "written tokens",
    "judge requests",
    "judge tokens",
    "judge dollars",
)


def costs(analysis: Analysis) -> list[list[str]]:
    """Cells of the table of cost and time: a line for each row, and one with every stage once."""
    of_stage: dict[Stage, Cost] = {}

    def line(name: str, cells: Sequence[CellPlan]) -> list[str]:
        total = Cost({})
        for stage in all_stages(cells):
            one = of_stage.get(stage) or of_stage.setdefault(stage, _cost(stage, analysis.store))
            for part, seconds in one.seconds.items():
                total.seconds[part] = total.seconds.get(part, 0.0) + seconds
            total.trained_tokens += one.trained_tokens
            total.written_tokens += one.written_tokens
            total.requests += one.requests
            total.judge_tokens += one.judge_tokens
            if one.dollars is not None:
                total.dollars = (total.dollars or 0.0) + one.dollars
        return [name, *total.cells()]

    groups = analysis.pooled.groups
    lines = [line(f"{g.number} {g.name}", [row.cell for row in g.rows]) for g in groups]
    return [*lines, line("all, each stage once", [row.cell for row in analysis.rows])]


def _cost(stage: Stage, store: Store) -> Cost:
    cost = Cost({})
    if not store.is_done(stage):
        return cost
    manifest = store.manifest(stage)
    cost.seconds[PARTS.get(stage.kind, "other")] = manifest.timings.get("wall_s", 0.0)
    facts = store.folder(stage) / "facts.json"
    if stage.kind == "train" and facts.is_file():
        measured = TrainFacts.read(facts)
        cost.trained_tokens = measured.prompt_tokens + measured.completion_tokens
    if stage.kind in ("generate", "sample"):
        cost.written_tokens = manifest.counts.get("tokens", 0)
    if stage.kind == "judge" and "requests" in manifest.counts:
        for verdict in read_jsonl(store.folder(stage) / "verdicts.jsonl", Verdict):
            for call in verdict.calls:
                cost.requests += 1
                cost.judge_tokens += (call.prompt_tokens or 0) + (call.completion_tokens or 0)
                if call.dollars is not None:
                    cost.dollars = (cost.dollars or 0.0) + call.dollars
    return cost


def provenance(rows: Sequence[CellRow]) -> list[tuple[str, str]]:
    """Revisions, versions and machines of the stages behind the table."""
    values: dict[str, set[str]] = {}
    for facts in (facts for row in rows for facts in row.recorded if facts):
        for name, value in {**facts, **facts.get("packages", {})}.items():
            if not isinstance(value, dict):
                values.setdefault(name, set()).add(str(value))
    return [(name, ", ".join(sorted(some))) for name, some in values.items()]


def how_to_read(table: Table) -> list[str]:
    return list(table.notes.get(HOW_TO_READ, ()))
