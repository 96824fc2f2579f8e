"""The comparison table: seeds pooled, percent, intervals, and marks for what cannot be told apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench.config import FITTED, Expectation, JuryJudge
from bench.records import task_number
from bench.report.groups import Group, Pooled, Verified, method_name, settings, short_name, verify
from bench.report.rows import ALPHA, Row
from bench.scoring import reasons
from bench.stats import estimates

MISSING = "-"
NUMBERS = re.compile(r"(?<![\w.])\d+(?![\w.]*\d)")  # counts, not parts of names or of decimal numbers
COUNT = "\0"  # stands for one


@dataclass(frozen=True)
class Table:
    """Cells as text, and the lines that must stand under them."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def comparison_table(pooled: Pooled, expectations: Sequence[Expectation] = ()) -> Table:
    """One line a group; columns that say nothing in this sweep are left out and, where a judge is missing, said."""
    groups = pooled.groups
    columns: list[tuple[str, Callable[[Group], str]]] = [("row", lambda g: str(g.number)), ("method", _method)]
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
    columns += [(short_name(key), partial(_setting, key)) for key in pooled.varied]
    compared = any("win_rate" in row.metrics for group in groups for row in group.done)  # the rating is then a column beside
    columns.append(("seeds", lambda group: f"{len(group.done)}" + (f"/{len(group.rows)}" if len(group.done) < len(group.rows) else "")))
    columns += [
        ("win rate %", lambda g: _percent(g, "win_rate") + (" *" if g.among_best else "")),
        ("LC win rate %", lambda g: _percent(g, "lc_win_rate")),
        ("Arena-Hard %", lambda g: _percent(g, "arena_win_rate")),
        ("style-controlled %", lambda g: _percent(g, "style_win_rate")),
        *((f"{label} %", partial(_of_member, label)) for label in members(groups)),
        ("vs start", lambda g: _difference(g)),
        ("over seeds", lambda g: _part(g.against_start.seeds if g.against_start else None)),
        ("over prompts", lambda g: _part(g.against_start.prompts if g.against_start and g.against_start.seeds else None)),
        ("SEs", lambda g: _standard_errors(g.against_start)),
        ("p (Holm)", lambda g: _p(g.against_start)),
        ("rating", lambda g: _number(g, "rating", 2) if compared else _with_interval(g, "rating", 2, 1)),
        ("expected rating", lambda g: _number(g, "expected_rating", 2)),
        ("reward acc. %", lambda g: _number(g, "reward_accuracy", 1, 100)),
        ("reward AUC %", lambda g: _number(g, "reward_auc", 1, 100)),
        ("label acc. %", lambda g: _number(g, "label_accuracy", 1, 100)),
        ("noise prec. %", lambda g: _number(g, "noise_precision", 1, 100)),
        ("noise recall %", lambda g: _number(g, "noise_recall", 1, 100)),
        ("judge acc. %", lambda g: _percent(g, "judge_pair_accuracy")),
        ("shorter acc. %", lambda g: _number(g, "judge_shorter_accuracy", 1, 100)),
        ("judge tau", lambda g: _number(g, "judge_kendall", 2)),
        ("parsed %", lambda g: _number(g, "judge_parse_rate", 1, 100)),
        ("KL nats", lambda g: _number(g, "kl", 2)),
        ("length", lambda g: _number(g, "mean_length", 1)),
        *((column, partial(_of_task, column, number)) for column, number in tasks(groups).items()),
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
    first = {task: min(metrics, key=lambda metric: (_rank(metric), metric)) for task, metrics in found.items()}
    return {f"{task} {metric}{' %' if metric.startswith(RATES) else ''}": task_number(task, metric) for task, metric in first.items()}


def _rank(metric: str) -> int:
    return next((i for i, first in enumerate(FIRST) if metric.startswith(first)), len(FIRST))


def _of_task(column: str, number: str, group: Group) -> str:
    return _percent(group, number) if column.endswith(" %") else _with_interval(group, number, 3, 1)


def _tasks_notes(groups: Sequence[Group]) -> list[str]:
    """What the tasks of the forgetting check are, and which cells were asked others."""
    asked: dict[str, dict[tuple[str | None, str | None, int | None, int], None]] = {}
    for result in (result for group in groups for row in group.done for result in row.tasks):
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


def _of_member(label: str, group: Group) -> str:
    return _percent(group, f"win_rate_{label}")


def _method(group: Group) -> str:
    return method_name(group.cell)


def _beta(group: Group) -> str:
    beta = getattr(group.cell.method, "beta", None)
    return "" if beta is None else f"{beta:g}"


def _iteration(group: Group) -> str:
    return str(getattr(group.cell.method, "iteration", ""))


def _setting(key: str, group: Group) -> str:
    return settings(group.cell).get(key, "")


def _fraction(group: Group) -> str:
    if not group.is_trained:
        return ""
    n = {row.n_train for row in group.done if row.n_train is not None}
    return f"{100 * group.cell.data.fraction:g} %" + (f" ({min(n)})" if len(n) == 1 else f" ({min(n)}-{max(n)})" if n else "")


def _percent(group: Group, metric: str) -> str:
    return _with_interval(group, metric, 1, 100)


def _number(group: Group, metric: str, digits: int, factor: float = 1) -> str:
    pooled = group.pooled(metric)
    if pooled is None:
        return MISSING
    fewer = f" (n={pooled.n_seeds})" if pooled.n_seeds < len(group.done) else ""
    return f"{factor * pooled.mean:.{digits}f}{fewer}"


def _with_interval(group: Group, metric: str, digits: int, factor: float) -> str:
    text, interval = _number(group, metric, digits, factor), group.interval(metric)
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
    """One of the two intervals that a difference over seeds and prompts stands on."""
    if difference is None or difference.low is None or difference.high is None:
        return MISSING
    return f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _signed(difference: estimates.Difference) -> str:
    """A difference of rates in percentage points, with its interval."""
    low, high = difference.low, difference.high
    interval = "" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * difference.value:+.1f}{interval}"


def _standard_errors(comparison: estimates.Comparison | None) -> str:
    return MISSING if comparison is None or comparison.lead.t is None else f"{comparison.lead.t:+.1f}"


def _p(comparison: estimates.Comparison | None) -> str:
    return _p_words(None if comparison is None else comparison.p_holm)


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
    notes = []
    scored = [row for group in groups for row in group.done if "win_rate" in row.metrics]
    seeds = max((len(group.done) for group in groups), default=0)
    if scored:
        n = sorted({int(row.metrics["n_scored"]) for row in scored})
        unscored = sum(int(row.metrics["n_unscored"]) for row in scored)
        ratings = sum(int(row.metrics.get("n_ratings_unscored", 0)) for row in scored)
        pooled = ", the variance between seeds pooled over the rows" if seeds > 1 else ""
        over = "seeds and prompts, then over seeds (t) and over prompts alone" if seeds > 1 else "prompts (paired bootstrap)"
        brackets = "95 % over seeds (t)" if seeds > 1 else "95 % over prompts (bootstrap); one seed says nothing of another training"
        if seeds > 1 and any(len(group.done) == 1 for group in groups):
            brackets += ", over prompts where one seed is left"
        prompts = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
        turns = sum(int(row.metrics.get("n_turns_unscored", 0)) for row in scored)
        unrated = (f" and {ratings} ratings" if ratings else "") + (f" and {turns} turns of others" if turns else "")
        notes.append(f"Judged on {prompts} prompts a cell, {unscored} verdicts{unrated} unscored. Brackets: {brackets}.")
        notes.append(
            f"vs start: win rate minus the start model's on the same seeds and prompts, 95 % over {over}; SEs: that difference in standard "
            f"errors{pooled}; p: two-sided, Holm-corrected over the table."
        )
        notes.append("* highest win rate, or not to be told apart from it; ≈ not to be told apart from the start model (5 %, corrected).")
    notes += _ratings_notes(groups) if not scored else []
    notes += _asked_notes([row for group in groups for row in group.done])
    notes += _judges_notes(groups)
    notes += _tasks_notes(groups)
    notes += _missing([row for group in groups for row in group.done])
    reasons: dict[str, list[str]] = {}
    for row in (row for group in groups for row in group.rows if not row.done):
        reasons.setdefault(f"FAILED ({row.failed.splitlines()[0]})" if row.failed else "not run", []).append(row.cell.name)
    notes += [f"{reason}: {', '.join(names)}" for reason, names in reasons.items()]
    notes += _mixed(groups)
    return notes


def _missing(rows: Sequence[Row]) -> list[str]:
    """A line for each reason why numbers are missing, with those numbers and how many cells lack them; reasons that differ in a count only
    are one."""
    alike: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in rows:
        for name, why in row.missing.items():
            if why not in reasons.BY_DESIGN:
                alike.setdefault((name, NUMBERS.sub(COUNT, why)), []).append((row.cell.key, why))
    names: dict[str, list[str]] = {}
    for (name, why), found in sorted(alike.items()):
        for counts in zip(*(map(int, NUMBERS.findall(text)) for _, text in found), strict=True):
            why = why.replace(COUNT, f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}", 1)
        cells = len({key for key, _ in found})
        names.setdefault(why + (f" ({cells} cell{'s' if cells > 1 else ''})" if len(rows) > 1 else ""), []).append(name)
    return [f"{', '.join(lacking)}: {why}" for why, lacking in names.items()]


def _ratings_notes(groups: Sequence[Group]) -> list[str]:
    """Of a judge that rates and compares with nobody."""
    rated = [row for group in groups for row in group.done if "n_ratings" in row.metrics]
    if not rated:
        return []
    n = sorted({int(row.metrics["n_ratings"]) for row in rated})
    unscored = sum(int(row.metrics["n_ratings_unscored"]) for row in rated)
    seeds = any(len(group.done) > 1 for group in groups)
    over = "seeds (t), over questions where there is one seed" if seeds else "questions (their turns together)"
    answers = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    return [f"Rating, 1 to 10: mean over {answers} answers a cell, {unscored} answers unscored. Brackets: 95 % over {over}."]


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


def _asked_notes(rows: Sequence[Row]) -> list[str]:
    """Of judges that were asked: replies without a verdict, by reason, and without log-probs."""
    notes, n = [], {kind: sum(int(row.metrics.get(f"unscored_{kind}", 0)) for row in rows) for kind in REASONS}
    if any(n.values()):
        found = ", ".join(f"{n[kind]} {words}" for kind, words in REASONS.items() if n[kind])
        notes.append(f"Replies of the judge without a verdict: {found}. Such items are not missing at random.")
    if votes := sum(int(row.metrics.get("votes_from_text", 0)) for row in rows):
        cells = [row for row in rows if row.metrics.get("votes_from_text")]
        weighed = sum(int(row.metrics["votes_weighed"]) for row in cells)
        notes.append(f"{votes} of {weighed} votes of {_cells(len(cells))} read from text, as 0 or 1, without log-probs.")
    if lacking := sum(int(row.metrics.get("n_without_expected_rating", 0)) for row in rows):
        notes.append(f"Expected rating: {lacking} rated answers without log-probs have no part in it.")
    return notes


def _cells(n: int) -> str:
    return "1 cell" if n == 1 else f"{n} cells"


def _judges_notes(groups: Sequence[Group]) -> list[str]:
    """What a jury's, an Arena-Hard judge's and a calibrated number is."""
    done, notes = [row for group in groups for row in group.done], []
    if labels := members(groups):
        lost = {label: sum(int(row.metrics.get(f"n_unscored_{label}", 0)) for row in done) for label in labels}
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


def _mixed(groups: Sequence[Group]) -> list[str]:
    """Says when the stages behind one table ran with different code, packages or devices."""
    recorded = [facts for group in groups for row in group.done for facts in row.recorded if facts]
    values: dict[str, set[str]] = {}
    for facts in recorded:
        for name, value in {**facts, **facts.get("packages", {})}.items():
            if not isinstance(value, dict):
                values.setdefault(name, set()).add(str(value))
    words = {"revision": "revisions of bench", "device": "devices", "machine": "kinds of machine", "threads": "numbers of threads"}
    return [
        f"Stages behind this table mix {words.get(name, name)}: {', '.join(sorted(found))}."
        for name, found in sorted(values.items())
        if len(found) > 1
    ]


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
