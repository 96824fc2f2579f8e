"""The comparison table: seeds pooled, percent, intervals, and marks for what cannot be told apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rich.table import Table as RichTable

from bench.config import FITTED, Expectation, JuryJudge
from bench.records import grouped, task_number
from bench.report.groups import Grid, Group, Verified, method_name, settings, short_name, verify
from bench.report.rows import ALPHA, CellRow
from bench.scoring import reasons
from bench.stats import estimates
from bench.terminal import Terminal

MISSING = "-"
NUMBERS = re.compile(r"(?<![\w.])\d+(?![\w.]*\d)")  # counts, not parts of names or of decimal numbers
COUNT = "\0"  # stands for one


@dataclass(frozen=True)
class Table:
    """Cells as text, and the lines that must stand under them."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def comparison_table(pooled: Grid, expectations: Sequence[Expectation] = ()) -> Table:
    """One line a group; columns that say nothing in this sweep are left out and, where a judge is missing, said."""
    groups = pooled.groups
    columns: list[tuple[str, Callable[[Group], str]]] = [("row", lambda g: str(g.number)), ("method", lambda g: method_name(g.cell))]
    trained = [group for group in groups if group.is_trained]
    for name, value, varied in (
        ("beta", _beta, any(map(_beta, trained))),
        ("iteration", _iteration, any(map(_iteration, trained))),
        ("model", lambda g: g.cell.model.name, len({g.cell.model.name for g in groups if g.cell.model.name != "none"}) > 1),
        ("data", lambda g: g.cell.data.name, len({g.cell.data.name for g in groups}) > 1),
        ("labels", _fraction, len({g.cell.data.fraction for g in trained}) > 1),
    ):
        if varied:
            columns.append((name, value))
    columns += [(short_name(key), lambda g, key=key: settings(g.cell).get(key, "")) for key in pooled.varied]  # type: ignore[misc]
    compared = any("win_rate" in row.metrics for group in groups for row in group.done)  # the rating is then a column beside
    columns.append(("seeds", lambda group: f"{len(group.done)}" + (f"/{len(group.rows)}" if len(group.done) < len(group.rows) else "")))
    columns += [
        ("win rate %", lambda g: _percent("win_rate", g) + (" *" if g.among_best else "")),
        ("LC win rate %", partial(_percent, "lc_win_rate")),
        ("Arena-Hard %", partial(_percent, "arena_win_rate")),
        ("style-controlled %", partial(_percent, "style_win_rate")),
        *((f"{label} %", partial(_percent, f"win_rate_{label}")) for label in members(groups)),
        ("vs start", _difference),
        ("over seeds", lambda g: _part(g.against_start.seeds if g.against_start else None)),
        ("over prompts", lambda g: _part(g.against_start.prompts if g.against_start and g.against_start.seeds else None)),
        ("SEs", lambda g: f"{t:+.1f}" if g.against_start and (t := g.against_start.lead.t) is not None else MISSING),
        ("p (Holm)", lambda g: _p_words(g.against_start.p_holm if g.against_start else None)),
        ("rating", partial(_number if compared else _with_interval, "rating", 2, 1)),
        ("expected rating", partial(_number, "expected_rating", 2, 1)),
        ("reward acc. %", partial(_number, "reward_accuracy", 1, 100)),
        ("reward AUC %", partial(_number, "reward_auc", 1, 100)),
        ("label acc. %", partial(_number, "label_accuracy", 1, 100)),
        ("noise prec. %", partial(_number, "noise_precision", 1, 100)),
        ("noise recall %", partial(_number, "noise_recall", 1, 100)),
        ("judge acc. %", partial(_percent, "judge_pair_accuracy")),
        ("shorter acc. %", partial(_number, "judge_shorter_accuracy", 1, 100)),
        ("judge tau", partial(_number, "judge_kendall", 2, 1)),
        ("parsed %", partial(_number, "judge_parse_rate", 1, 100)),
        ("KL nats", partial(_number, "kl", 2, 1)),
        ("length", partial(_number, "mean_length", 1, 1)),
        *(
            (column, partial(_percent, number) if column.endswith(" %") else partial(_with_interval, number, 3, 1))
            for column, number in tasks(groups).items()
        ),
    ]
    cells = [[value(group) for _, value in columns] for group in groups]
    said = [i for i, (name, _) in enumerate(columns) if name in ("row", "method", "seeds") or any(row[i] != MISSING for row in cells)]
    seeds = max((len(group.done) for group in groups), default=0)
    notes = [*_notes(groups), *(_expected(verify(expectation, pooled), seeds) for expectation in expectations)]
    return Table([columns[i][0] for i in said], [[row[i] for i in said] for row in cells], notes)


RATES = ("acc", "exact_match", "em", "f1", "pass@")  # how metrics of tasks begin that are in [0, 1]
FIRST = ("acc_norm", "acc", "exact_match")  # of a task's metrics, the one that has a column


def tasks(groups: Sequence[Group]) -> dict[str, str]:
    """Column of each task of the forgetting check -> the number that it shows. All numbers are in table.csv."""
    found: dict[str, set[str]] = {}
    for result in (result for group in groups for row in group.done for result in row.tasks):
        found.setdefault(result.task, set()).add(result.metric)

    def rank(metric: str) -> int:
        return next((i for i, first in enumerate(FIRST) if metric.startswith(first)), len(FIRST))

    first = {task: min(metrics, key=lambda metric: (rank(metric), metric)) for task, metrics in found.items()}
    return {f"{task} {metric}{' %' if metric.startswith(RATES) else ''}": task_number(task, metric) for task, metric in first.items()}


def _tasks_notes(done: Sequence[CellRow]) -> list[str]:
    """What the tasks of the forgetting check are, and which cells were asked others."""
    asked: dict[str, dict[tuple[str | None, str | None, int | None, int], None]] = {}
    for result in (result for row in done for result in row.tasks):
        asked.setdefault(result.task, {})[result.asked, result.version, result.shots, result.n] = None
    if not asked:
        return []
    notes = []
    words = [f"{task} ({_how_asked(version, shots, n)})" for task, ((_, version, shots, n), *_) in asked.items()]
    where = "over seeds (t) where there are several, else over documents"
    notes.append(f"Tasks of lm-evaluation-harness, beside the judge and no part of a win rate: {', '.join(words)}. Brackets: 95 % {where}.")
    unlike = [task for task, ways in asked.items() if len(ways) > 1]
    return notes + [f"{task} was not asked of all cells alike: other documents, prompts or versions." for task in unlike]


def _how_asked(version: str | None, shots: int | None, n: int) -> str:
    """A group of tasks may have neither shots nor a version of its own."""
    known = ["" if shots is None else f"{shots} shots", f"{n} documents", "" if version is None else f"version {version}"]
    return ", ".join(filter(None, known))


def members(groups: Sequence[Group]) -> list[str]:
    """Labels of the juries' members, each of which has a column of its own."""
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
    return f"{100 * group.cell.data.fraction:g} %" + (f" ({min(n)})" if len(n) == 1 else f" ({min(n)}-{max(n)})" if n else "")


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


def _difference(group: Group) -> str:
    comparison = group.against_start
    if comparison is None:
        return MISSING
    fewer = f" (n={comparison.n_seeds})" if comparison.n_seeds < len(group.done) else ""
    apart = comparison.p_holm is not None and comparison.p_holm < ALPHA
    return f"{_signed(comparison.lead)}{fewer}{'' if apart else ' ≈'}"


def _part(difference: estimates.Difference | None) -> str:
    """The interval of a difference, in percentage points."""
    if difference is None or difference.low is None or difference.high is None:
        return MISSING
    return f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _signed(difference: estimates.Difference) -> str:
    """A difference of rates in percentage points, with its interval."""
    return f"{100 * difference.value:+.1f} {_part(difference)}".removesuffix(f" {MISSING}")


def _p_words(p: float | None) -> str:
    return MISSING if p is None else "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _expected(found: Verified, seeds: int) -> str:
    """What was named before the sweep, and what came."""
    head = f"Expected {found.better} above {found.worse}:"
    lead = found.difference
    if lead is None:
        return f"{head} cannot be said, {found.why}."
    sure = found.p_holm is not None and found.p_holm < ALPHA
    verdict = "undecided" if not sure else "yes" if lead.value > 0 else "no"
    errors = "" if lead.t is None else f", {lead.t:+.1f} SEs"
    verdict += " on this one training" if sure and seeds == 1 else ""
    holm = "(Holm over all pairs of rows; the bracket is this pair's alone)"
    return f"{head} {verdict}, {_signed(lead)} points{errors}, p {_p_words(found.p_holm)} {holm}."


def _notes(groups: Sequence[Group]) -> list[str]:
    notes, done = [], [row for group in groups for row in group.done]
    scored = [row for row in done if "win_rate" in row.metrics]
    seeds = max((len(group.done) for group in groups), default=0)
    if scored:
        n = [int(row.metrics["n_scored"]) for row in scored]
        unscored = _sum(scored, "n_unscored")
        ratings = _sum(scored, "n_ratings_unscored")
        pooled = ", the variance between seeds pooled over the rows" if seeds > 1 else ""
        over = "seeds and prompts, then over seeds (t) and over prompts alone" if seeds > 1 else "prompts (paired bootstrap)"
        brackets = "95 % over seeds (t)" if seeds > 1 else "95 % over prompts (bootstrap); one seed says nothing of another training"
        if seeds > 1 and any(len(group.done) == 1 for group in groups):
            brackets += ", over prompts where one seed is left"
        turns = _sum(scored, "n_turns_unscored")
        unrated = (f" and {ratings} ratings" if ratings else "") + (f" and {turns} turns of others" if turns else "")
        notes.append(f"Judged on {_span(n)} prompts a cell, {unscored} verdicts{unrated} unscored. Brackets: {brackets}.")
        notes.append(
            f"vs start: win rate minus the start model's on the same seeds and prompts, 95 % over {over}; SEs: that difference in standard "
            f"errors{pooled}; p: two-sided, Holm-corrected over the table."
        )
        notes.append("* highest win rate, or not to be told apart from it; ≈ not to be told apart from the start model (5 %, corrected).")
    notes += _ratings_notes(done, seeds) if not scored else []
    notes += _asked_notes(done)
    notes += _judges_notes(done, members(groups))
    notes += _tasks_notes(done)
    notes += _missing(done)
    absent = [row for group in groups for row in group.rows if not row.done]
    why = grouped((f"FAILED ({row.failed.splitlines()[0]})" if row.failed else "not run", row.cell.name) for row in absent)
    notes += [f"{reason}: {', '.join(names)}" for reason, names in why.items()]
    notes += _mixed(done)
    return notes


def _sum(rows: Sequence[CellRow], metric: str) -> int:
    return sum(int(row.metrics.get(metric, 0)) for row in rows)


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _missing(rows: Sequence[CellRow]) -> list[str]:
    """A line for each reason why numbers are missing, with those numbers and how many cells lack them; reasons that differ in a count only
    are one."""
    lacking = [(name, why, row.cell.key) for row in rows for name, why in row.missing.items() if why not in reasons.BY_DESIGN]
    alike = grouped(((name, NUMBERS.sub(COUNT, why)), (key, why)) for name, why, key in lacking)
    names: dict[str, list[str]] = {}
    for (name, why), found in sorted(alike.items()):
        for counts in zip(*(map(int, NUMBERS.findall(text)) for _, text in found), strict=True):
            why = why.replace(COUNT, _span(counts), 1)
        cells = len({key for key, _ in found})
        names.setdefault(why + (f" ({cells} cell{'s' if cells > 1 else ''})" if len(rows) > 1 else ""), []).append(name)
    return [f"{', '.join(some)}: {why}" for why, some in names.items()]


def _ratings_notes(done: Sequence[CellRow], seeds: int) -> list[str]:
    """Of a judge that rates and compares with nobody."""
    rated = [row for row in done if "n_ratings" in row.metrics]
    if not rated:
        return []
    n = [int(row.metrics["n_ratings"]) for row in rated]
    unscored = _sum(rated, "n_ratings_unscored")
    over = "seeds (t), over questions where there is one seed" if seeds > 1 else "questions (their turns together)"
    return [f"Rating, 1 to 10: mean over {_span(n)} answers a cell, {unscored} answers unscored. Brackets: 95 % over {over}."]


REASONS = {
    "cut": "cut at max_tokens",
    "filtered": "stopped by the provider's content filter",
    "refused": "refused by the model",
    "request_refused": "requests that the endpoint refused",
    "too_long": "longer than the model can take",
    "thinking_unended": "thinking not ended",
    "thinking_unmarked": "thinking not marked off",
    "empty": "empty",
    "unreadable": "unreadable",
}


def _asked_notes(rows: Sequence[CellRow]) -> list[str]:
    """Of judges that were asked: replies without a verdict, by reason, and without log-probs."""
    notes, n = [], {kind: _sum(rows, f"unscored_{kind}") for kind in REASONS}
    if any(n.values()):
        found = ", ".join(f"{n[kind]} {words}" for kind, words in REASONS.items() if n[kind])
        notes.append(f"Replies of the judge without a verdict: {found}. Such items are not missing at random.")
    if votes := _sum(rows, "votes_from_text"):
        cells = [row for row in rows if row.metrics.get("votes_from_text")]
        weighed = _sum(cells, "votes_weighed")
        notes.append(
            f"{votes} of {weighed} votes of {len(cells)} cell{'s' if len(cells) > 1 else ''} read from text, as 0 or 1, without log-probs."
        )
    if lacking := _sum(rows, "n_without_expected_rating"):
        notes.append(f"Expected rating: {lacking} rated answers without log-probs have no part in it.")
    return notes


def _judges_notes(done: Sequence[CellRow], labels: Sequence[str]) -> list[str]:
    """What a jury's, an Arena-Hard judge's and a calibrated number is."""
    notes = []
    if labels:
        lost = {label: _sum(done, f"n_unscored_{label}") for label in labels}
        silent = f" Unscored by: {', '.join(f'{label} {n}' for label, n in lost.items())}." if done else ""
        notes.append(f"Win rate by a jury: the median of its members' verdicts, whose own rates stand beside it.{silent}")
    if any("arena_win_rate" in row.metrics for row in done):
        notes.append("Arena-Hard: mean outcome of all battles, a strong win counting 3; style-controlled: at equal length and Markdown.")
    by_how: dict[str | None, set[str]] = {}
    for row in done:
        if row.calibration:
            by_how.setdefault(getattr(row.cell.cell.judge, "calibration", None), set()).add(row.calibration)
    for how, digests in by_how.items():
        what = "item difficulties fitted on the other rows" if how == FITTED else f"by the calibration {how or ''}".rstrip()
        notes.append(f"LC win rate: {what} ({min(digests) if len(digests) == 1 else f'{len(digests)} digests, in table.csv'}).")
    return notes


def _mixed(done: Sequence[CellRow]) -> list[str]:
    """Says when the stages behind one table ran with different code, packages or devices."""
    values: dict[str, set[str]] = {}
    for facts in (facts for row in done for facts in row.recorded if facts):
        for name, value in {**facts, **facts.get("packages", {})}.items():
            if not isinstance(value, dict):
                values.setdefault(name, set()).add(str(value))
    words = {"revision": "revisions of bench", "device": "devices", "machine": "kinds of machine", "threads": "numbers of threads"}
    return [
        f"Stages behind this table mix {words.get(name, name)}: {', '.join(sorted(found))}."
        for name, found in sorted(values.items())
        if len(found) > 1
    ]


def print_titled(title: str, table: RichTable, notes: Sequence[str]) -> None:
    """A title, a table and its notes, those that say what is wrong in red."""
    console = Terminal(soft_wrap=True)
    console.print()
    console.plain(title, "bold")
    console.whole(table)
    for note in notes:
        # A terminal breaks long lines between words; what is piped stays one line a note.
        console.plain(note, "red" if note.startswith(("FAILED", "REFUSED", "FAULT")) else "dim", soft_wrap=not console.is_terminal)
    console.print()


# Writing ----------------------------------------------------------------------------------------------------------------


def markdown(title: str, command: str, table: Table) -> str:
    lines = [f"# {title}", "", f"`{command}`", "", _line(table.columns), _line(["---"] * len(table.columns))]
    lines += [_line(row) for row in table.rows]
    lines += ["", *(f"{note}  " for note in table.notes), ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def latex(table: Table) -> str:
    """A booktabs tabular, with the notes as comments."""
    escape = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "≈": r"$\approx$", "*": r"$^{*}$", "†": r"$^{\dagger}$", "<": "$<$"}

    def tex(text: str) -> str:
        return "".join(escape.get(letter, letter) for letter in text)

    lines = [f"% {note}" for note in table.notes]
    lines += [rf"\begin{{tabular}}{{rl{'r' * (len(table.columns) - 2)}}}", r"\toprule"]
    lines += [" & ".join(map(tex, table.columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(tex, row)) + r" \\" for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
