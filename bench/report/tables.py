"""Comparison table of a sweep: pooled seeds, rates in percent, 95 % intervals, marks for significance."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from rich.table import Table as RichTable

from bench.config import FITTED, HELDOUT, MAX_CUT, Expectation, GoldJudge, JudgeSettings, JuryJudge
from bench.records import grouped, task_number
from bench.report.groups import (
    Grid,
    Group,
    Verified,
    far_seeds_of,
    matched_kl,
    method_name,
    row_words,
    settings,
    short_name,
    verify,
)
from bench.report.rows import ALPHA, CellRow
from bench.scoring import reasons
from bench.stats import estimates
from bench.stats.contrasts import FarSeed
from bench.stats.length_control import LC_WORDS
from bench.terminal import Terminal

MISSING = "-"
# Matches counts, not digits in names or in decimal numbers.
NUMBERS = re.compile(r"(?<![\w.])\d+(?![\w.]*\d)")
COUNT = "\0"  # Placeholder for a count.

HOW_TO_READ, EXPECTATIONS, JUDGES = "How to read this table", "Expectations", "Judges"
FAIRNESS, FINDINGS = "Fairness", "Findings"
PUBLISHED = "Published tables"
HEADINGS = (HOW_TO_READ, EXPECTATIONS, PUBLISHED, JUDGES, FAIRNESS, FINDINGS)  # In their order under a table.
EXPLAINED_IN = "results/README.md explains every column, mark and file."

Notes = Mapping[str, Sequence[str]]
Column = tuple[str, Callable[[Group], str]]  # Its name, and a group's text in it.


@dataclass(frozen=True)
class Table:
    """Cells of a table as text, and the lines under it, grouped by heading."""

    columns: list[str]
    rows: list[list[str]]
    notes: Notes
    # Labels of evaluations; a column of one is named LABEL/NAME.
    evaluations: tuple[str, ...] = ()
    above: Sequence[str] = ()  # Lines above the numbers, about faults of all of them.

    def placed(self, column: str) -> tuple[str, str]:
        """(label of the evaluation, name) of a column; the label is "" for one of no evaluation."""
        label, _, name = column.partition("/")
        return (label, name) if label in self.evaluations else ("", column)

    @property
    def note_lines(self) -> list[str]:
        """Lines under the table without their headings."""
        return [line for lines in self.notes.values() for line in lines]

    def with_notes(self, more: Notes) -> Table:
        """The table with more lines under its headings."""
        merged = {heading: [*self.notes.get(heading, ()), *more.get(heading, ())] for heading in HEADINGS}
        return replace(self, notes={heading: lines for heading, lines in merged.items() if lines})


def comparison_table(
    pooled: Grid, expectations: Sequence[Expectation] = (), max_cut: float = MAX_CUT
) -> Table:
    """Table with one row per group.

    Columns without a value are left out; missing numbers are explained under the table.
    """
    groups = pooled.groups
    columns: list[Column] = [
        ("row", lambda g: str(g.number)),
        ("method", lambda g: method_name(g.cell)),
    ]
    trained = [group for group in groups if group.is_trained]
    for name, value, varied in (
        ("beta", _beta, any(map(_beta, trained))),
        ("iteration", _iteration, any(map(_iteration, trained))),
        (
            "model",
            lambda g: g.cell.model.name,
            len({g.cell.model.name for g in groups if g.cell.model.name != "none"}) > 1,
        ),
        ("data", lambda g: g.cell.data.name, len({g.cell.data.name for g in groups}) > 1),
        ("labels", _fraction, len({g.cell.data.fraction for g in trained}) > 1),
    ):
        if varied:
            columns.append((name, value))
    columns += [(short_name(key), lambda g, key=key: settings(g.cell).get(key, "")) for key in pooled.varied]  # type: ignore[misc]
    far = {label: far_seeds_of(part.groups) for label, part in pooled.parts.items()}
    marked = {number for rows in far.values() for number in rows}
    columns.append(
        (
            "seeds",
            lambda group: (
                f"{len(group.done)}"
                + (f"/{len(group.rows)}" if len(group.done) < len(group.rows) else "")
                + (" !" if group.number in marked else "")
            ),
        )
    )
    after: list[Column] = []  # Columns of an evaluation that stand behind those of the training.
    for label, part in pooled.parts.items():
        of_label, last = _evaluation_columns(part.groups)
        columns += [_of_part(label, column) for column in [*of_label, *(last if label else [])]]
        after += [] if label else last
    # KL can be measured in another way in each evaluation.
    trained_ones = [
        *_training_columns(),
        *(c for label in pooled.evaluations for c in _training_columns(f"{label}/")),
    ]
    of_tasks: list[Column] = [
        (
            column,
            partial(_percent, number) if column.endswith(" %") else partial(_with_interval, number, 3, 1),
        )
        for column, number in tasks(groups).items()
    ]
    columns += [*map(_of_training, trained_ones), *after, *map(_of_training, of_tasks)]
    cells = [[value(group) for _, value in columns] for group in groups]
    always = ("row", "method", "seeds")
    kept = [
        i for i, (name, _) in enumerate(columns) if name in always or any(row[i] != MISSING for row in cells)
    ]
    seeds = max((len(group.done) for group in groups), default=0)
    verified = {
        label: [_expected(one, seeds, part.groups[0]) for one in verify(expectations, part)]
        for label, part in pooled.parts.items()
    }
    alone = {
        label: [*_far_notes(part.groups, far[label]), *_matched_notes(part.groups)]
        for label, part in pooled.parts.items()
    }
    notes = _notes(pooled) | {EXPECTATIONS: together(verified), FINDINGS: together(alone)}
    shown = [[row[i] for i in kept] for row in cells]
    above = [line for label, part in pooled.parts.items() for line in _cut(part.groups, max_cut, label)]
    return Table([columns[i][0] for i in kept], shown, {}, tuple(pooled.evaluations), above).with_notes(notes)


def _of_part(label: str, column: Column) -> Column:
    """The column of one evaluation in the whole table, under the evaluation's label."""
    name, value = column
    return (f"{label}/{name}" if label else name), partial(_counted, value, lambda g: g.parts.get(label))


def _of_training(column: Column) -> Column:
    """The column of a number of the training, also for rows with an evaluation that is not done."""
    name, value = column

    def measured(group: Group) -> Group:
        rows = [replace(row, done=True) for row in group.rows if row.metrics]
        return replace(group, rows=rows) if group.evaluations else group

    return name, partial(_counted, value, measured)


def _counted(value: Callable[[Group], str], part_of: Callable[[Group], Group | None], group: Group) -> str:
    """The text of a part of a group, with its number of seeds where that is not the group's."""
    if (part := part_of(group)) is None:
        return MISSING
    text = value(part)
    other = len(part.done) != len(group.done) and text != MISSING and "(n=" not in text
    return f"{text} (n={len(part.done)})" if other else text


def _evaluation_columns(groups: Sequence[Group]) -> tuple[list[Column], list[Column]]:
    """(columns of one evaluation, those that stand behind the training's where it is the only one)."""
    opponents = {opponent(group.cell.judge) for group in groups}
    against = f" vs {one}" if len(opponents) == 1 and (one := next(iter(opponents))) else ""
    contrast: list[Column] = [
        ("vs start", _difference),
        ("over seeds", lambda g: _part(g.against_start.seeds if g.against_start else None, g)),
        (
            "over prompts",
            lambda g: _part(
                g.against_start.prompts if g.against_start and g.against_start.seeds else None, g
            ),
        ),
        (
            "SEs",
            lambda g: (
                f"{t:+.1f}" if g.against_start and (t := g.against_start.lead.t) is not None else MISSING
            ),
        ),
        (_p_title(groups), lambda g: _p_words(g.against_start.p_holm if g.against_start else None)),
    ]
    preferred: list[Column] = [
        (f"win rate{against} %", partial(_best, partial(_percent, "win_rate"))),
        *((f"{words}{against} %", partial(_percent, name)) for name, words in LC_WORDS.items()),
        ("Arena-Hard %", partial(_percent, "arena_win_rate")),
        ("style-controlled %", partial(_percent, "style_win_rate")),
        *((f"{label} %", partial(_percent, f"win_rate_{label}")) for label in members(groups)),
    ]
    rated: list[Column] = [
        ("rating", partial(_best, partial(_with_interval, "rating", 2, 1))),
        ("turn 1", partial(_number, "rating_turn1", 2, 1)),
        ("turn 2", partial(_number, "rating_turn2", 2, 1)),
    ]
    # Beside a win rate the rating is one of several columns; its interval would make the table too wide.
    beside: list[Column] = [("rating", lambda g: MISSING if g.only_rates else _number("rating", 2, 1, g))]
    expected: Column = ("expected rating", partial(_number, "expected_rating", 2, 1))
    only = [g.only_rates for g in groups]
    columns = [*(() if all(only) and only else preferred), *(rated if any(only) else ()), *contrast]
    columns += [*(() if any(only) else beside), expected]
    behind: list[Column] = [
        ("length", partial(_number, "mean_length", 1, 1)),
    ]
    return columns, behind


def _p_title(groups: Sequence[Group]) -> str:
    """Name of the column with p. With one seed p says nothing about another training of the same method."""
    one_seed = all(len(group.done) < 2 for group in groups)
    return "p (of these trainings)" if one_seed else "p (Holm)"


OPPONENTS = {
    "previous": "the policy of the previous iteration, and for the first one the start model",
    "start": "the start model, which plays against itself in its own row",
    "chosen": "the chosen answer to each held-out prompt",
}


def opponent(judge: JudgeSettings) -> str:
    """The opponent where it is a policy or the chosen answers of held-out prompts; empty for any other."""
    return judge.rival or ("chosen" if getattr(judge, "items", None) == HELDOUT else "")


def _training_columns(prefix: str = "") -> list[Column]:
    """Columns of the training; `prefix` begins their names and those of its numbers."""
    return [
        (f"{prefix}reward acc. %", partial(_number, f"{prefix}reward_accuracy", 1, 100)),
        (f"{prefix}reward AUC %", partial(_number, f"{prefix}reward_auc", 1, 100)),
        (f"{prefix}label acc. %", partial(_number, f"{prefix}label_accuracy", 1, 100)),
        (f"{prefix}noise prec. %", partial(_number, f"{prefix}noise_precision", 1, 100)),
        (f"{prefix}noise recall %", partial(_number, f"{prefix}noise_recall", 1, 100)),
        (f"{prefix}judge acc. %", partial(_percent, f"{prefix}judge_pair_accuracy")),
        (f"{prefix}shorter acc. %", partial(_number, f"{prefix}judge_shorter_accuracy", 1, 100)),
        (f"{prefix}judge tau", partial(_number, f"{prefix}judge_kendall", 2, 1)),
        (f"{prefix}parsed %", partial(_number, f"{prefix}judge_parse_rate", 1, 100)),
        (f"{prefix}KL nats", partial(_number, f"{prefix}kl", 2, 1)),
    ]


def _cut(groups: Sequence[Group], most: float, label: str) -> list[str]:
    """One line on the rows of an evaluation whose judged completions were cut too often; none where there are none."""
    shares = {
        group.number: max(share for row in group.done for share in judged_cut(row))
        for group in groups
        if any(judged_cut(row) for row in group.done)
    }
    over = {number: share for number, share in shares.items() if share > most}
    if not over:
        return []
    span = " to ".join(
        dict.fromkeys(f"{100 * share:.3g}" for share in (min(over.values()), max(over.values())))
    )
    of, key = (f" of {label}", f"judge.judges.{label}") if label else ("", "judge")
    judged = any(group.cell.judge.gives for group in groups)
    which, what = ("judged completions", "Verdicts and lengths") if judged else ("completions", "Lengths")
    return [
        f"CUT: in {row_words(list(over))} {span} % of the {which}{of} were cut at their longest length, more than max_cut={most:g}. "
        f"{what} measure this limit too: set a larger {key}.decoding.max_new_tokens."
    ]


def judged_cut(row: CellRow) -> list[float]:
    """Shares of cut completions, one for each manner of verdict."""
    counted = [share for name, share in row.cut.items() if name != "kl"]
    return counted or [row.metrics[name] for name in ("unfinished",) if name in row.metrics]


def _kl_notes(done: Sequence[CellRow]) -> list[str]:
    """One line on the length of the samples on which KL is measured, and how many of them were cut."""
    measured = [row for row in done if "kl" in row.metrics and row.kl_tokens]
    if not measured:
        return []
    cut = [100 * row.cut["kl"] for row in measured if "kl" in row.cut]
    lengths = _span([row.kl_tokens for row in measured if row.kl_tokens])
    span = " to ".join(dict.fromkeys(f"{share:.3g}" for share in (min(cut), max(cut)))) if cut else ""
    of = (
        "how many were cut there was not counted"
        if not cut
        else f"{span} % were cut there, and theirs is the KL of the beginning"
        if max(cut)
        else "none was cut, so it is the KL of whole completions"
    )
    return [
        f"KL nats is measured on the policy's own samples of up to {lengths} tokens, at temperature 1; {of}."
    ]


RATES = ("acc", "exact_match", "em", "f1", "pass@")  # Metrics of tasks with these prefixes are in [0, 1].
FIRST = ("acc_norm", "acc", "exact_match")  # The first of these metrics that a task has is its column.


def tasks(groups: Sequence[Group]) -> dict[str, str]:
    """Column title -> metric name for one metric of each task of the forgetting check.

    table.csv has all metrics.
    """
    metrics_of_task: dict[str, set[str]] = {}
    for result in (result for group in groups for row in group.done for result in row.tasks):
        metrics_of_task.setdefault(result.task, set()).add(result.metric)

    def rank(metric: str) -> int:
        return next((i for i, first in enumerate(FIRST) if metric.startswith(first)), len(FIRST))

    first = {
        task: min(metrics, key=lambda metric: (rank(metric), metric))
        for task, metrics in metrics_of_task.items()
    }
    return {
        f"{task} {metric}{' %' if metric.startswith(RATES) else ''}": task_number(task, metric)
        for task, metric in first.items()
    }


def _tasks_notes(done: Sequence[CellRow]) -> list[str]:
    """Lines on the tasks of the forgetting check: shots, documents, versions, differences between cells."""
    settings_of_task: dict[str, dict[tuple[str | None, str | None, int | None, int], None]] = {}
    for result in (result for row in done for result in row.tasks):
        settings_of_task.setdefault(result.task, {})[result.asked, result.version, result.shots, result.n] = (
            None
        )
    if not settings_of_task:
        return []
    words = [
        f"{task} ({_task_settings(version, shots, n)})"
        for task, ((_, version, shots, n), *_) in settings_of_task.items()
    ]
    notes = [
        f"Tasks of lm-evaluation-harness were run too; they do not enter the win rate: {', '.join(words)}. Their square brackets are "
        "95 % intervals over seeds (t), or over documents where a row has one seed."
    ]
    unlike = [task for task, ways in settings_of_task.items() if len(ways) > 1]
    same = "was not run alike in all cells: documents, prompts or versions differ"
    return notes + [f"The task {task} {same}." for task in unlike]


def _task_settings(version: str | None, shots: int | None, n: int) -> str:
    """Shots, documents and version in words. A group of tasks may have neither shots nor a version."""
    known = [
        "" if shots is None else f"{shots} shots",
        f"{n} documents",
        "" if version is None else f"version {version}",
    ]
    return ", ".join(filter(None, known))


def members(groups: Sequence[Group]) -> list[str]:
    """Labels of the juries' members; each member has its own column."""
    juries = [group.cell.judge for group in groups if isinstance(group.cell.judge, JuryJudge)]
    return list(dict.fromkeys(label for jury in juries for label in jury.judges))


def _beta(group: Group) -> str:
    beta = getattr(group.cell.method, "beta", None)
    return "" if beta is None else f"{beta:g}"


def _iteration(group: Group) -> str:
    return str(getattr(group.cell.method, "iteration", ""))


def _fraction(group: Group) -> str:
    if not group.is_trained:
        return ""
    n = {row.n_train for row in group.done if row.n_train is not None}
    return f"{100 * group.cell.data.fraction:g} %" + (
        f" ({min(n)})" if len(n) == 1 else f" ({min(n)}-{max(n)})" if n else ""
    )


def _percent(metric: str, group: Group) -> str:
    return _with_interval(metric, 1, 100, group)


def _number(metric: str, digits: int, factor: float, group: Group) -> str:
    pooled = group.pooled(metric)
    if pooled is None:
        return MISSING
    fewer = f" (n={pooled.n_seeds})" if pooled.n_seeds < len(group.done) else ""
    return f"{factor * pooled.mean:.{digits}f}{fewer}"


def _with_interval(metric: str, digits: int, factor: float, group: Group) -> str:
    text, interval = _number(metric, digits, factor, group), group.interval(metric)
    if text == MISSING or interval is None:
        return text
    return f"{text} [{factor * interval[0]:.{digits}f}, {factor * interval[1]:.{digits}f}]"


def _best(value: Callable[[Group], str], group: Group) -> str:
    return value(group) + (" *" if group.among_best else "")


def _difference(group: Group) -> str:
    comparison = group.against_start
    if comparison is None:
        return MISSING
    fewer = f" (n={comparison.n_seeds})" if comparison.n_seeds < len(group.done) else ""
    if comparison.n_dropped:
        fewer += f" (on {comparison.n_items} of {comparison.n_items + comparison.n_dropped})"
    apart = comparison.p_holm is not None and comparison.p_holm < ALPHA
    return f"{_signed(comparison.lead, group)}{fewer}{'' if apart else ' ≈'}"


def _part(difference: estimates.Difference | None, group: Group) -> str:
    """Interval of a difference, in percentage points or points of the rating."""
    if difference is None or difference.low is None or difference.high is None:
        return MISSING
    return f"[{_points(difference.low, group)}, {_points(difference.high, group)}]"


def _points(value: float, group: Group) -> str:
    return f"{value:+.2f}" if group.only_rates else f"{100 * value:+.1f}"


def _signed(difference: estimates.Difference, group: Group) -> str:
    """A difference with its interval, in percentage points or points of the rating."""
    return f"{_points(difference.value, group)} {_part(difference, group)}".removesuffix(f" {MISSING}")


def _p_words(p: float | None) -> str:
    return MISSING if p is None else "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _expected(verified: Verified, seeds: int, group: Group) -> str:
    """One line with an expectation and the measured result."""
    named = "Expected after results were seen (post hoc)" if verified.post_hoc else "Expected"
    head = f"{named}: {verified.better} above {verified.worse}. Result:"
    lead = verified.difference
    if lead is None:
        return f"{head} cannot be decided, because {verified.why}."
    significant = verified.p_holm is not None and verified.p_holm < ALPHA
    verdict = "not decided" if not significant else "yes" if lead.value > 0 else "no"
    if not significant and verified.equal_within is not None:
        verdict = f"no, equal within {verified.equal_within:g} points (two one-sided tests at 5 %)"
    verdict += " for this one training" if verdict != "not decided" and seeds == 1 else ""
    errors = "" if lead.t is None else f", {lead.t:+.1f} standard errors"
    family = "all pairs of rows" if verified.post_hoc else "the planned orders"
    p = f"p {_p_words(verified.p_holm)}, Holm-corrected over {family}; the interval is for this pair alone"
    points = "points" if group.only_rates else "percentage points"
    return f"{head} {verdict}, difference {_signed(lead, group)} {points}{errors} ({p})."


def _far_notes(groups: Sequence[Group], far: Mapping[int, FarSeed]) -> list[str]:
    """Lines on seeds far from the others of their row; none without one."""
    rates = not (groups and groups[0].only_rates)
    lines = [
        f"! Row {number}: seed {seed}, 1 of {n} seeds, lies {abs(gap) * (100 if rates else 1):.1f} points "
        f"{'below' if gap < 0 else 'above'} the row's others, more than four usual spreads between seeds."
        for number, (seed, gap, n) in far.items()
    ]
    return (
        [*lines, "Few seeds cannot see what happens to one training in five, and no interval covers it."]
        if lines
        else []
    )


def _matched_notes(groups: Sequence[Group]) -> list[str]:
    """Lines on methods compared at equal KL; none where fewer than two methods have several betas."""
    seeds = max((len(group.done) for group in groups), default=0)
    about = "seeds and prompts together" if seeds > 1 else "prompts alone, of these trainings"
    return [
        f"At equal KL ({at.low_kl:.2f} to {at.high_kl:.2f} nats, averaged, linear between betas): {first} less {second} "
        f"{_signed(at.difference, groups[0])} percentage points, p {_p_words(p)} (Holm over pairs of methods; over {about})."
        for first, second, at, p in matched_kl(groups)
    ]


def together(lines: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of several evaluations by label, each once; a line that not all have names those that have it."""
    labels: dict[str, list[str]] = {}
    for label, some in lines.items():
        for line in some:
            labels.setdefault(line, []).append(label)
    return [
        line if len(having) == len(lines) else f"{', '.join(filter(None, having)) or 'Other rows'}: {line}"
        for line, having in labels.items()
    ]


def _notes(pooled: Grid) -> dict[str, list[str]]:
    """Lines under the table by heading."""
    groups = pooled.groups
    done = [row for group in groups for row in group.done]
    reading = together({label: _part_notes(part.groups, label) for label, part in pooled.parts.items()})
    if pooled.evaluations:
        reading.append(
            "A column begins with the label of its evaluation, whose first number is the win rate or the rating. Each evaluation is tested "
            "alone: its p-values are corrected over its own rows, not over the evaluations."
        )
    others = dict.fromkeys(name for part in pooled.parts.values() for name in part.other_pairs)
    if others:
        reading.append(
            f"other_numbers.csv compares {', '.join(others)} in the same way: against the start model, and between any two rows. Each "
            "number has its own correction."
        )
    reading += [*_kl_notes(done), *_tasks_notes(done), *_missing(done)]
    absent = [row for group in groups for row in group.rows if not row.done]
    by_reason = grouped((row.failed.splitlines()[0] if row.failed else None, row.cell.name) for row in absent)
    for reason, names in by_reason.items():
        reading.append(
            f"FAILED: {', '.join(names)}. Reason: {reason}" if reason else f"Not run yet: {', '.join(names)}."
        )
    judges = {
        label: [
            *_opponent_notes(part.groups),
            *_reply_notes(scored),
            *_judges_notes(scored, members(part.groups)),
        ]
        for label, part in pooled.parts.items()
        for scored in [[row for group in part.groups for row in group.done]]
    }
    some = [row for group in groups for row in group.rows if row.metrics]
    return {HOW_TO_READ: [*reading, EXPLAINED_IN], JUDGES: together(judges), FAIRNESS: _mixed(some)}


def _part_notes(groups: Sequence[Group], label: str) -> list[str]:
    """Lines on the numbers of one evaluation; those on its differences name no number where it is one of several."""
    done = [row for group in groups for row in group.done]
    scored = [row for row in done if "win_rate" in row.metrics]
    seeds = max((len(group.done) for group in groups), default=0)
    number = "first number" if label else "win rate" if scored else "rating"
    contrast = _contrast_notes(number, groups) if scored or any(row.ratings for row in done) else []
    if not scored:
        return [*_ratings_notes(done, seeds), *contrast]
    return [*_win_rate_notes(scored, seeds, any(len(group.done) == 1 for group in groups)), *contrast]


def _win_rate_notes(scored: Sequence[CellRow], seeds: int, some_with_one_seed: bool) -> list[str]:
    """How many prompts were judged, and how intervals, differences and marks of the win rate are meant."""
    n = [int(row.metrics["n_scored"]) for row in scored]
    ratings, turns = _sum(scored, "n_ratings_unscored"), _sum(scored, "n_turns_unscored")
    unrated = (f" and {ratings} ratings" if ratings else "") + (
        f" and {turns} turns of scored items" if turns else ""
    )
    unscored = f"{_sum(scored, 'n_unscored')} verdicts{unrated} are unscored and left out of the means"
    brackets = "Square brackets are 95 % intervals over seeds (t)."
    if seeds > 1:
        brackets += " Rows with one finished seed have intervals over prompts." if some_with_one_seed else ""
    else:
        brackets = (
            "Square brackets are 95 % intervals over prompts. One seed says nothing about another training."
        )
    return [
        f"Each cell was judged on {_span(n)} prompts; {unscored}.",
        brackets,
    ]


def _contrast_notes(number: str, groups: Sequence[Group]) -> list[str]:
    """How differences and marks of a number are meant."""
    seeds, p = max(len(group.done) for group in groups), _p_title(groups)
    interval, pooled = "Its 95 % interval is over prompts (paired bootstrap).", ""
    if seeds > 1:
        interval = "Its 95 % interval covers seeds and prompts together; the columns over seeds (t) and over prompts cover one alone."
        pooled = f" The variance between seeds is pooled over the rows{_spread_words(groups)}."
    return [
        f"vs start is the {number} minus the start model's {number} on the same seeds and prompts. {interval}",
        f"SEs is vs start divided by its standard error.{pooled} {p} is its two-sided p-value, Holm-corrected over the table.",
        f"A * marks the highest {number} and every row that does not differ from it significantly. ≈ marks rows that do not differ "
        "significantly from the start model (both at 5 %, corrected).",
    ]


NOISY = 3.0  # Times the pooled spread, from which on a row's own is printed.


def _spread_words(groups: Sequence[Group]) -> str:
    """The pooled spread between seeds of vs start, and the spread of rows with three times as much."""
    by_seed = {
        group.number: np.array(list(group.against_start.per_seed.values()))
        for group in groups
        if group.against_start and group.against_start.n_seeds > 1
    }
    pooled = estimates.pooled_spread(list(by_seed.values()), screened=True)
    if pooled is None:
        return ""
    own = {number: float(values.std(ddof=1)) for number, values in by_seed.items()}
    noisy = [
        f"row {number} {_points(sd, groups[0])}".replace("+", "")
        for number, sd in own.items()
        if sd > NOISY * pooled.sd
    ]
    words = f", sd {_points(pooled.sd, groups[0])} points".replace("+", "")
    return words + (f" (three times as much or more: {', '.join(noisy)})" if noisy else "")


def _sum(rows: Sequence[CellRow], metric: str) -> int:
    return sum(int(row.metrics.get(metric, 0)) for row in rows)


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _missing(rows: Sequence[CellRow]) -> list[str]:
    """One line per reason for missing numbers, with the numbers and how many cells lack them.

    Reasons that differ only in a count share a line.
    """
    lacking = [
        (name, why, row.cell.key)
        for row in rows
        for name, why in row.missing.items()
        if why not in (reasons.BY_DESIGN if not row.evaluations else reasons.BY_EVALUATION)
    ]
    alike = grouped(((name, NUMBERS.sub(COUNT, why)), (key, why)) for name, why, key in lacking)
    names: dict[tuple[str, int], list[str]] = {}
    for (name, why), same in sorted(alike.items()):
        for counts in zip(*(map(int, NUMBERS.findall(text)) for _, text in same), strict=True):
            why = why.replace(COUNT, _span(counts), 1)
        names.setdefault((why, len({key for key, _ in same})), []).append(name)
    lines = []
    for (why, n), some in names.items():
        where = f" in {n} of {len(rows)} cells" if len(rows) > 1 else ""
        lines.append(f"Missing{where}: {', '.join(some)}. Reason: {why}.")
    return lines


def _ratings_notes(done: Sequence[CellRow], seeds: int) -> list[str]:
    """Lines on a judge that only rates; empty where no cell has ratings."""
    rated = [row for row in done if "n_ratings" in row.metrics]
    if not rated:
        return []
    n = [int(row.metrics["n_ratings"]) for row in rated]
    unscored = _sum(rated, "n_ratings_unscored")
    over = (
        "seeds (t), or over questions where a row has one seed"
        if seeds > 1
        else "questions (the turns of one together)"
    )
    return [
        f"The rating is a mean of ratings from 1 to 10, over {_span(n)} completions a cell; {unscored} are unscored and left out.",
        f"Square brackets are 95 % intervals over {over}.",
    ]


REASONS = {
    "cut": "were cut at max_tokens",
    "filtered": "were stopped by the provider's content filter",
    "refused": "were refused by the model",
    "request_refused": "were refused by the endpoint",
    "too_long": "were not made, because the request does not fit the model",
    "thinking_unended": "never ended their thinking",
    "thinking_unmarked": "did not mark off their thinking",
    "empty": "were empty",
    "unreadable": "could not be read",
}


def _reply_notes(rows: Sequence[CellRow]) -> list[str]:
    """Lines on a language model's replies: without a verdict (by reason), and without log-probs."""
    notes, n = [], {kind: _sum(rows, f"unscored_{kind}") for kind in REASONS}
    if any(n.values()):
        by_reason = ", ".join(f"{n[kind]} {words}" for kind, words in REASONS.items() if n[kind])
        notes.append(
            f"Replies of the judge without a verdict: {by_reason}. These items are not missing at random."
        )
    if votes := _sum(rows, "votes_from_text"):
        cells = [row for row in rows if row.metrics.get("votes_from_text")]
        weighed, where = _sum(cells, "votes_weighed"), f"{len(cells)} cell{'s' if len(cells) > 1 else ''}"
        notes.append(
            f"{votes} of {weighed} votes in {where} had no log-probs; they count as 0 or 1, read from the text."
        )
    if lacking := _sum(rows, "n_without_expected_rating"):
        notes.append(
            f"The expected rating leaves out {lacking} rated completions, because their ratings had no log-probs."
        )
    return notes


def _opponent_notes(groups: Sequence[Group]) -> list[str]:
    """One line for each opponent that does not come with a benchmark's items."""
    named = dict.fromkeys(filter(None, (opponent(group.cell.judge) for group in groups)))
    return [f"Opponent of the win rate ({name}): {OPPONENTS[name]}." for name in named]


def _judges_notes(done: Sequence[CellRow], labels: Sequence[str]) -> list[str]:
    """Lines on how a jury, an Arena-Hard judge and a calibrated length control arrive at their numbers."""
    notes = []
    notes += [
        f"The controlled world's truth already counts conciseness as quality. {words} % removes that part too, so it may disagree "
        "with the win rate, which is the truth here."
        for name, words in LC_WORDS.items()
        if any(name in row.metrics and isinstance(row.cell.cell.judge, GoldJudge) for row in done)
    ]
    if any("equal_length_win_rate" in row.metrics for row in done):
        notes.append("equal-length % has no calibration: do not compare it with published LC win rates.")
    if labels:
        lost = {label: _sum(done, f"n_unscored_{label}") for label in labels}
        silent = f" Unscored by: {', '.join(f'{label} {n}' for label, n in lost.items())}." if done else ""
        notes.append(
            f"The win rate is a jury's: the median of its members' verdicts. Each member has its own column.{silent}"
        )
    if any("arena_win_rate" in row.metrics for row in done):
        notes.append(
            "Arena-Hard % is the mean outcome of all battles, in which a strong win counts 3 times; style-controlled % is the same at "
            "equal length and Markdown."
        )
    by_setting: dict[str | None, set[str]] = {}
    for row in done:
        if row.calibration:
            by_setting.setdefault(getattr(row.cell.cell.judge, "calibration", None), set()).add(
                row.calibration
            )
    for setting, digests in by_setting.items():
        what = (
            "item difficulties fitted on the other rows"
            if setting == FITTED
            else f"the calibration {setting or ''}".rstrip()
        )
        digest_words = (
            f"digest {min(digests)}" if len(digests) == 1 else f"{len(digests)} digests, in table.csv"
        )
        notes.append(f"LC win rate % uses {what} ({digest_words}).")
    return notes


def _mixed(done: Sequence[CellRow]) -> list[str]:
    """Lines on stages of one table that ran with different code, packages or devices."""
    values: dict[str, set[str]] = {}
    for facts in (facts for row in done for facts in row.recorded if facts):
        for name, value in {**facts, **facts.get("packages", {})}.items():
            if not isinstance(value, dict):
                values.setdefault(name, set()).add(str(value))
    words = {
        "revision": "revisions of bench",
        "device": "devices",
        "machine": "kinds of machine",
        "threads": "numbers of threads",
    }
    return [
        f"The stages behind this table mix {words.get(name, f'versions of {name}')}: {', '.join(sorted(different))}."
        for name, different in sorted(values.items())
        if len(different) > 1
    ]


ALARMS = ("FAILED", "REFUSED", "FAULT", "CUT")  # Lines that begin with these are red on a terminal.


def print_titled(title: str, table: RichTable, notes: Notes, above: Sequence[str] = ()) -> None:
    """Print a title, a table, the lines `above` it and those under it, grouped under their headings."""
    console = Terminal(soft_wrap=True)
    console.print()
    console.plain(title, "bold")
    for line in above:
        console.plain(line, "red", soft_wrap=not console.is_terminal)
    console.whole(table)
    for heading, lines in notes.items():
        console.print()
        console.plain(heading, "bold")
        for line in lines:
            # A terminal breaks long lines between words. Piped output keeps one line per note.
            console.plain(
                line, "red" if line.startswith(ALARMS) else "dim", soft_wrap=not console.is_terminal
            )
    console.print()


# Writing ----------------------------------------------------------------------------------------------------------------


def markdown(title: str, command: str, table: Table) -> str:
    """table.md: the question, its command, the table, and the lines under it as lists with headings."""
    lines = [
        f"# {title}",
        "",
        f"`{command}`",
        *(part for line in table.above for part in ("", f"**{line}**")),
    ]
    for part in for_paper(table):
        lines += ["", _line(part.columns), _line(["---"] * len(part.columns)), *map(_line, part.rows)]
    for heading, notes in table.notes.items():
        lines += ["", f"### {heading}", "", *(f"- {_escaped(note)}" for note in notes)]
    return "\n".join([*lines, ""])


# Columns of an evaluation that have a table of their own, because one of them all is too wide to read.
DETAILS = ("over seeds", "over prompts", "SEs", "length")


def for_paper(table: Table) -> list[Table]:
    """The table, and with several evaluations a second one with the details of each."""
    names = [table.placed(column) for column in table.columns]
    details = [k for k, (label, name) in enumerate(names) if label and name in DETAILS]
    if not details:
        return [table]
    main = [k for k in range(len(names)) if k not in details]
    return [
        replace(
            table,
            columns=[table.columns[k] for k in kept],
            rows=[[row[k] for k in kept] for row in table.rows],
        )
        for kept in (main, [0, 1, *details])
    ]


def _escaped(note: str) -> str:
    """A line with its lone asterisk escaped for Markdown."""
    return note.replace(" * ", " \\* ")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
