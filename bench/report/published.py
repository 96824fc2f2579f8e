"""A sweep's rows beside published tables: published.csv, a section of table.md, and lines for the terminal.

Built from what the files of a sweep hold (table.csv, pairs.csv, plan.json), so that a committed sweep gives the
same words as a fresh one. The rule itself is in bench/papers/verdict.py.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench import papers
from bench.papers import Ours, PublishedTable, Theirs, VerdictWord, Word
from bench.papers.published import KINDS, UNITS, OurRole, PublishedContrast, metrics
from bench.papers.verdict import obstacle_of
from bench.records import grouped
from bench.report.rows import ALPHA
from bench.report.tables import PUBLISHED
from bench.stats import estimates
from bench.text_files import csv_number, read_csv, read_object

IN_THE_WORLD = (
    "In the controlled world these are directions only: neither sizes nor ratios compare with a paper's."
)
OF_JUDGING = {"decoding", "items", "judge", "votes without log-probs"}  # Words of the certificate.
SHOWN = 3  # Most published metrics of a row; the compared ones are first.
SHORT = 8  # Most contrasts of all tables on a terminal.
# Our measure of a published kind. Wins less losses of a head to head have the sign of a difference of two win rates.
MEASURES = {"win_rate": "win_rate", "duel": "win_rate", "judge_accuracy": "judge_pair_accuracy"}


class OurRow(NamedTuple):
    """A row of a sweep's table: its settings, and its finished cells."""

    number: int
    config: Mapping[str, Any]
    cells: Sequence[Mapping[str, Any]]  # Rows of table.csv that are done.
    evaluation: str = ""  # Label of the evaluation that is compared, where there are several.

    def has(self, where: Mapping[str, Any]) -> bool:
        """Whether the row has these values. The value of a config group is the name of its choice."""
        return all(_chosen(self.config, key) == value for key, value in where.items())

    @property
    def in_world(self) -> bool:
        return bool(_chosen(self.config, "data.kind") == "world")

    def judge_models(self) -> set[str]:
        return set(_models(self.config.get("judge")))

    def by_seed(self, metric: str) -> dict[int, float]:
        values = {int(cell["seed"]): self.measured(cell, metric) for cell in self.cells}
        return {seed: value for seed, value in values.items() if value is not None}

    def measured(self, cell: Mapping[str, Any], name: str) -> float | None:
        return _number(cell, f"{self.evaluation}/{name}" if self.evaluation else name)

    @property
    def trained(self) -> bool:
        return any(_number(cell, "n_train") for cell in self.cells)

    @property
    def _daggers(self) -> set[str]:
        words = {word for cell in self.cells for word in (cell.get("differs") or "").split("; ")}
        return {word for word in words if word and not word.endswith(" not known")}

    def unlike(self, other: OurRow) -> set[str]:
        """Conditions that only one of two rows has beyond the sweep's axes (the dagger).

        Beside a start model only those of judging count, since the other's training is the contrast.
        """
        words = self._daggers ^ other._daggers
        return words if self.trained and other.trained else words & OF_JUDGING

    @property
    def unscored(self) -> float | None:
        """Largest share of unscored verdicts of a cell; None where no cell has counts of its verdicts."""
        counts = [(self.measured(cell, "n_scored"), self.measured(cell, "n_unscored")) for cell in self.cells]
        shares = [
            lost / (scored + lost)
            for scored, lost in counts
            if scored is not None and lost is not None and scored + lost
        ]
        return max(shares, default=None)


class SweepNumbers(NamedTuple):
    """Rows of a sweep, and differences first less second by row numbers with the number of seeds."""

    rows: Sequence[OurRow]
    pairs: Mapping[tuple[int, int], tuple[estimates.Difference, int]]

    def difference(
        self, better: OurRow, worse: OurRow, measure: str
    ) -> tuple[estimates.Difference, int] | None:
        """Difference of two rows: of win rates over seeds and prompts, of other measures over seeds alone."""
        if measure != "win_rate":
            first, second = better.by_seed(measure), worse.by_seed(measure)
            per_seed = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
            found = estimates.seed_difference(per_seed)
            return None if found is None else (found, len(per_seed))
        if (better.number, worse.number) in self.pairs:
            return self.pairs[better.number, worse.number]
        if (worse.number, better.number) in self.pairs:
            found, n_seeds = self.pairs[worse.number, better.number]
            return found.turned, n_seeds
        return None


@dataclass(frozen=True)
class ComparedContrast:
    """A published contrast with ours and the word."""

    contrast: PublishedContrast
    rows: tuple[Sequence[int], Sequence[int]]  # Our rows of better and of worse.
    ours: Ours | None
    verdict: VerdictWord
    halves: float | None = (
        None  # Published difference with unread verdicts as halves, where its sign changes.
    )

    @property
    def name(self) -> str:
        value = f"{self.contrast.value}: " if self.contrast.value else ""
        return f"{value}{self.contrast.better} over {self.contrast.worse}"


class ComparedBest(NamedTuple):
    """A published best setting with ours and the word."""

    role: str
    best: float | None
    starred: Sequence[float]
    grid: Sequence[float]
    word: str


@dataclass(frozen=True)
class ComparedTable:
    """A published table beside a sweep."""

    table: PublishedTable
    contrasts: Sequence[ComparedContrast]
    best: Sequence[ComparedBest]
    roles: Sequence[tuple[str, str, OurRole, Sequence[OurRow]]]  # Value of each, role, and rows of ours.

    @property
    def rows_run(self) -> int:
        return sum(bool(rows) for *_, rows in self.roles)

    def count(self) -> Counter[Word]:
        return Counter(one.verdict.word for one in self.contrasts)


# ---- reading --------------------------------------------------------------------------------------------------------


def numbers_of(
    configs: Mapping[str, Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]],
) -> SweepNumbers:
    """Rows and differences from a sweep's plan, table.csv and pairs.csv.

    pairs.csv of earlier versions has no row numbers; its lines are in the order of all pairs of rows.
    """
    numbered = grouped((int(line["row"]), line) for line in lines)
    label = next((pair.get("evaluation") or "" for pair in pairs), "")
    rows = [
        OurRow(number, configs[some[0]["key"]], [line for line in some if line["status"] == "done"], label)
        for number, some in numbered.items()
    ]
    first = [pair for pair in pairs if (pair.get("evaluation") or "") == label]
    order: list[tuple[int, int]] = []
    if first and "first_row" in first[0]:
        order = [(int(pair["first_row"]), int(pair["second_row"])) for pair in first]
    elif len(every := list(itertools.combinations(numbered, 2))) == len(first):
        order = every
    return SweepNumbers(rows, {key: _difference(pair) for key, pair in zip(order, first, strict=bool(order))})


def read_numbers(folder: Path) -> SweepNumbers:
    """Rows and differences from the files of a sweep. Raises BadFile for files that cannot be read."""
    plan = read_object(folder / "plan.json")
    lines = [line for _, line in read_csv(folder / "table.csv", ("row", "key", "status", "seed"))]
    pairs = [pair for _, pair in read_csv(folder / "pairs.csv", ("first", "second"))]
    return numbers_of({cell["key"]: cell["config"] for cell in plan["cells"]}, lines, pairs)


def _number(line: Mapping[str, Any], name: str) -> float | None:
    value = line.get(name)
    return csv_number(value, name) if isinstance(value, str) else value


def _difference(pair: Mapping[str, Any]) -> tuple[estimates.Difference, int]:
    """Leading difference of a line of pairs.csv, and its number of seeds."""
    n_items, n_seeds = (_number(pair, name) for name in ("n_items", "n_seeds"))
    of = "prompts" if _number(pair, "combined_value") is None else "combined"
    value, error, low, high, t, df, p = (
        _number(pair, f"{of}_{part}") for part in ("value", "standard_error", "low", "high", "t", "df", "p")
    )
    assert (
        value is not None and n_items is not None and n_seeds is not None
    )  # every line of pairs.csv has them
    return estimates.Difference(value, error, low, high, t, df, p, int(n_items)), int(n_seeds)


def _chosen(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config.get("name") if isinstance(config, Mapping) else config


def _models(judge: Any) -> list[str]:
    """Models that a judge's settings name."""
    if not isinstance(judge, Mapping):
        return []
    own = [judge["model"]] if isinstance(judge.get("model"), str) else []
    return own + [model for part in judge.values() for model in _models(part)]


# ---- comparing ------------------------------------------------------------------------------------------------------


def compare(published: Mapping[str, Any], numbers: SweepNumbers) -> list[ComparedTable]:
    """Every table of a sweep file's `published:` part beside the sweep's rows."""
    return [_compare(one, numbers) for one in papers.beside(published)[0]]


def _compare(beside: papers.Beside, numbers: SweepNumbers) -> ComparedTable:
    table = beside.table
    roles = [
        (
            value,
            name,
            role,
            [row for row in numbers.rows if row.cells and role.where is not None and row.has(role.where)],
        )
        for value, name in itertools.product(table.values, table.roles)
        for role in [beside.role(name, value)]
    ]
    rows = {(value, name): found for value, name, _, found in roles}
    drafts = []
    for contrast in table.compared():
        sides = [(beside.role(name, contrast.value), rows[contrast.value, name]) for name in contrast[:2]]
        drafts.append((contrast, [found for _, found in sides], *_ours(contrast, sides, numbers)))
    tested = [ours.difference.p if ours and not obstacle else None for *_, ours, obstacle in drafts]
    p_values = estimates.holm(tested)
    compared = []
    for (contrast, (better, worse), ours, obstacle), p in zip(drafts, p_values, strict=True):
        ours = ours and Ours(ours.difference, p, ours.n_seeds, ours.world, ours.other_judge)
        halves = table.without_verdict(contrast.better, contrast.worse, contrast.value)
        changes = (
            halves is not None and contrast.theirs.value is not None and halves * contrast.theirs.value < 0
        )
        word = papers.verdict(contrast.theirs, ours, obstacle=obstacle)
        found_rows = ([row.number for row in better], [row.number for row in worse])
        compared.append(ComparedContrast(contrast, found_rows, ours, word, halves if changes else None))
    best = [
        _best(table, value, name, role, found, numbers) for value, name, role, found in roles if table.argmax
    ]
    return ComparedTable(table, compared, best, roles)


def _ours(
    contrast: PublishedContrast, sides: Sequence[tuple[OurRole, Sequence[OurRow]]], numbers: SweepNumbers
) -> tuple[Ours | None, VerdictWord | None]:
    """Our difference of a contrast without its corrected p, and what stands in the way of a comparison."""
    metric = metrics()[contrast.metric]
    measure = MEASURES.get(metric.kind)
    found = [rows for _, rows in sides]
    absent = [
        role.why or f"no finished row is {_words(role.where or {})}" for role, rows in sides if not rows
    ]
    counts = (len(found[0]), len(found[1]))
    single = counts == (1, 1)
    obstacle = obstacle_of(
        counts,
        absent=absent,
        kind=None if measure else KINDS[metric.kind],
        differs=[
            f"{name}: {role.differs}"
            for name, (role, _) in zip(contrast[:2], sides, strict=True)
            if role.differs
        ],
        unlike=found[0][0].unlike(found[1][0]) if single else (),
        unscored=max((share for rows in found if (share := rows[0].unscored) is not None), default=None)
        if single
        else None,
    )
    if measure is None or not single:
        return None, obstacle
    better, worse = (rows[0] for rows in found)
    if (difference := numbers.difference(better, worse, measure)) is None:
        return None, obstacle or VerdictWord(Word.NOT_COMPARABLE, f"our two rows have no common {measure}")
    other_judge = metric.judge not in better.judge_models()
    return Ours(difference[0], None, difference[1], better.in_world, other_judge), obstacle


def _words(where: Mapping[str, Any]) -> str:
    """Values of a row in words: `{"method": "kto", "method.beta": 0.1}` becomes `kto beta 0.1`."""
    words = " ".join(f"{key.removeprefix('method.')} {value}" for key, value in where.items())
    return words.removeprefix("method ")


def _best(
    table: PublishedTable, value: str, name: str, role: OurRole, rows: Sequence[OurRow], numbers: SweepNumbers
) -> ComparedBest:
    """A published best setting against our rows of the same role, by win rate."""
    assert table.argmax
    (published,) = (row[table.argmax.metric] for row in table.matching(name, value))
    label = " ".join(filter(None, (value, name)))
    if not rows:
        return ComparedBest(label, published, (), (), f"not run: {role.why or 'no finished row'}")
    means = {row.number: estimates.pool(list(row.by_seed("win_rate").values())) for row in rows}
    grid = {row.number: float(_chosen(row.config, table.argmax.setting)) for row in rows}
    pairs = [pair for pair in numbers.pairs if set(pair) <= grid.keys()]
    adjusted = estimates.holm([numbers.pairs[pair][0].p for pair in pairs])
    p_values = dict(zip(pairs, adjusted, strict=True))
    found = estimates.indistinguishable({k: m.mean if m else None for k, m in means.items()}, p_values, ALPHA)
    starred = [grid[number] for number in grid if found and number in found[1]]
    decided = min(len(row.cells) for row in rows) > 1
    word = papers.best_of_grid(published, starred, list(grid.values()), decided)
    return ComparedBest(label, published, starred, list(grid.values()), word)


# ---- writing --------------------------------------------------------------------------------------------------------


def difference_words(theirs: Theirs, metric: str) -> str:
    """A published difference: in points for rates, with its size in its own standard errors."""
    if theirs.value is None:
        return "picture"
    if metrics()[metric].unit not in UNITS:
        return f"{theirs.value:+.2f}" if metrics()[metric].kind != "length" else f"{theirs.value:+.0f}"
    if theirs.standard_error is None:
        return f"{100 * theirs.value:+.1f}"
    seeds = f", {theirs.n_seeds} seeds" if theirs.n_seeds > 1 else ""
    return f"{100 * theirs.value:+.1f} ({abs(theirs.value) / theirs.standard_error:.1f} SE{seeds})"


def our_words(ours: Ours | None) -> str:
    """Our difference in points with its interval."""
    if ours is None:
        return "-"
    low, high = ours.difference.low, ours.difference.high
    interval = "" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * ours.difference.value:+.1f}{interval}"


def _value_words(row: Mapping[str, Any], metric: str) -> str:
    value = row[metric]
    if value is None:
        return "-"
    unit = UNITS.get(metrics()[metric].unit)
    return f"{100 * unit * value:.1f} %" if unit else f"{value:g}"


def count_words(tables: Sequence[ComparedTable]) -> str:
    """Contrasts by word, such as `3 same direction, separable; 1 not run`."""
    words = sum((table.count() for table in tables), Counter[Word]())
    best = Counter(one.word.partition(":")[0] for table in tables for one in table.best)
    parts = [f"{words[word]} {word}" for word in Word if words[word]]
    parts += ["best settings: " + ", ".join(f"{n} {word}" for word, n in best.items())] if best else []
    return "; ".join(parts) or "no order of the paper listed"


def lines(tables: Sequence[ComparedTable], where: str) -> list[str]:
    """Lines for the terminal: a count for each table and its first contrasts; all are in the file `where`."""
    if not tables:
        return []
    shown, left, n = [], 0, 0
    for table in tables:
        shown.append(f"{table.table.title} ({table.table.source}): {count_words([table])}.")
        for one in (one for one in table.contrasts if one.verdict.word is not Word.NOT_RUN):
            if (n := n + 1) > SHORT:
                left += 1
                continue
            theirs = difference_words(one.contrast.theirs, one.contrast.metric)
            shown.append(f"- {one.name}: published {theirs}, here {our_words(one.ours)}. {_sentence(one)}")
    if _in_world(tables):
        shown.append(IN_THE_WORLD)
    return [*shown, f"All rows and contrasts{f', {left} of them not here,' if left else ''} are in {where}."]


def _in_world(tables: Sequence[ComparedTable]) -> bool:
    return any(one.ours and one.ours.world for table in tables for one in table.contrasts)


def _sentence(one: ComparedContrast) -> str:
    halves = (
        ""
        if one.halves is None
        else f" With unread verdicts as halves the published one is {100 * one.halves:+.1f}."
    )
    return f"{one.verdict.text[:1].upper()}{one.verdict.text[1:]}.{halves}"


def markdown(tables: Sequence[ComparedTable]) -> str:
    """Section of table.md: for each published table, rows and contrasts side by side."""
    if not tables:
        return ""
    parts = [f"\n## {PUBLISHED}\n"]
    if _in_world(tables):
        parts.append(f"{IN_THE_WORLD} The judge is the world's truth.\n")
    parts.append(
        "Published differences of one training each, unless seeds are named; SE is their own standard error, from the paper or from its n. "
        "Ours: 95 % intervals; p is Holm-corrected over the contrasts of the table. bench/papers/verdict.py holds the rule.\n"
    )
    for one in tables:
        parts.append(
            f"### {one.table.title}\n\n{one.table.source}. {count_words([one])[:1].upper()}{count_words([one])[1:]}.\n"
        )
        parts += [table_text(*part) for part in sides(one)]
        parts += [f"- {note}" for note in one.table.notes]
        parts.append("")
    return "\n".join(parts)


def sides(one: ComparedTable) -> list[tuple[list[str], list[list[str]]]]:
    """(columns, rows) of a published table's rows, its contrasts and its best settings, each beside ours."""
    others = [name for name in one.table.metrics if metrics()[name].kind in KINDS]
    names = list(dict.fromkeys([*one.table.compare, *others]))[:SHOWN]
    rows = [
        [" ".join(filter(None, (value, name)))]
        + [_values(one.table, name, value, metric) for metric in names]
        + _row_words(role, found)
        for value, name, role, found in one.roles
        if one.table.matching(name, value) or found
    ]
    contrasts = [
        [
            c.name + ("" if c.contrast.metric == one.table.compare[0] else f" ({c.contrast.metric})"),
            difference_words(c.contrast.theirs, c.contrast.metric),
            our_words(c.ours),
            "-"
            if c.ours is None or c.ours.p is None
            else "<0.0001"
            if c.ours.p < 1e-4
            else f"{c.ours.p:.4f}",
            _sentence(c).removesuffix("."),
        ]
        for c in one.contrasts
    ]
    best = [[b.role, f"{b.best:g}", _listed(b.starred), _listed(b.grid), b.word] for b in one.best]
    parts = [
        (["role", *names, "our row", "our win rate"], rows),
        (["contrast", "published", "here", "p", "verdict"], contrasts),
        (["best setting", "published", "not told apart from our best", "our grid", "verdict"], best),
    ]
    return [(columns, lines) for columns, lines in parts if lines or columns[0] == "role"]


def _values(table: PublishedTable, role: str, value: str, metric: str) -> str:
    return ", ".join(_value_words(row, metric) for row in table.matching(role, value))


def _row_words(role: OurRole, rows: Sequence[OurRow]) -> list[str]:
    """Our row and its win rate, or why there is none."""
    if not rows:
        return [role.why or (f"not finished: {_words(role.where)}" if role.where is not None else "-"), "-"]
    if len(rows) > 1:
        return [", ".join(str(row.number) for row in rows), "-"]
    pooled = estimates.pool(list(rows[0].by_seed("win_rate").values()))
    differs = f" ({role.differs})" if role.differs else ""
    return [f"{rows[0].number}{differs}", f"{100 * pooled.mean:.1f} %" if pooled else "-"]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "-"


def table_text(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )


def csv_lines(tables: Sequence[ComparedTable]) -> list[dict[str, Any]]:
    """Rows of published.csv: one for each contrast, with differences in [-1, 1] for rates."""
    made = []
    for table in tables:
        for one in table.contrasts:
            theirs, ours, word = one.contrast.theirs, one.ours, one.verdict
            made.append(
                {
                    "table": table.table.id,
                    "setting": one.contrast.value,
                    "better": one.contrast.better,
                    "worse": one.contrast.worse,
                    "metric": one.contrast.metric,
                    "published": theirs.value,
                    "published_standard_error": theirs.standard_error,
                    "published_seeds": theirs.n_seeds,
                    "better_rows": json.dumps(list(one.rows[0])),
                    "worse_rows": json.dumps(list(one.rows[1])),
                    "ours": ours.difference.value if ours else None,
                    "ours_low": ours.difference.low if ours else None,
                    "ours_high": ours.difference.high if ours else None,
                    "p_holm": ours.p if ours else None,
                    "n_seeds": ours.n_seeds if ours else None,
                    "word": word.word.value,
                    "why": word.why,
                    "suffixes": "; ".join(word.suffixes),
                    "counts": word.counts,
                }
            )
    return made
