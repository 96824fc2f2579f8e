"""Published tables: their schema, their lint, and differences of two published rows with standard errors.

`tables/PAPER.yaml` holds the tables of one paper, `metrics.yaml` the metrics of all. A row is a list: the
table's factors, its metrics, and at most one section at its end with `approx: true` (read off a figure) or a
`note`. A missing metric is null: the source does not give it, or only as a picture. `roles` name rows of the
table; `contrasts` are pairs of roles, [better, worse], in the order that the paper's text claims.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from bench.config.base import Count, Settings
from bench.papers.verdict import Theirs
from bench.text_files import BadFile, describe, read_own_yaml

FACTS = Path(__file__).parent
Value = bool | int | float | str | list[Any] | None
Selector = dict[str, Value]
Kind = Literal[
    "win_rate",
    "lc_win_rate",
    "duel",
    "rating",
    "task",
    "judge_accuracy",
    "human",
    "other",
    "length",
    "count",
    "setting",
]
RANGES = {
    "percent": (0, 100),
    "fraction": (0, 1),
    "score_0_10": (0, 10),
    "correlation": (-1, 1),
    "count": (0, math.inf),
    "words": (0, math.inf),
    "characters": (0, math.inf),
    "tokens": (0, math.inf),
    "hours": (0, math.inf),
}
UNITS = {"percent": 0.01, "fraction": 1.0}  # Of a rate in [0, 1].
KINDS = {
    "win_rate": "a win rate",
    "lc_win_rate": "a length-controlled win rate",
    "duel": "wins in a head to head",
    "rating": "a rating",
    "task": "accuracy on a task",
    "judge_accuracy": "the accuracy of the policy as a judge",
    "human": "of human raters",
    "other": "a rate of another kind",
    "length": "a length",
}


class PublishedMetric(Settings):
    """A metric of published tables."""

    kind: Kind
    unit: str
    about: str
    n: Count | None = None
    """Number of prompts, where every table with this metric has the same."""
    judge: str | None = None


class StandardError(Settings):
    """A column that holds the uncertainty of a metric, as a multiple of its standard error."""

    column: str
    times: float


class Duel(Settings):
    """A table of a head to head: each row is a contrast, wins of the first less wins of the second."""

    win: str
    lose: str | None = None
    """null: the rest of 100 %."""
    second: str | None = None
    """Factor with the second one's name; null: one opponent for all rows."""
    n: str | None = None
    """Column with the number of comparisons; null: the table's n."""


class SeedRows(Settings):
    """Factor whose values are trainings of one setting, and the summary rows beside them."""

    factor: str
    values: list[str]
    average: str
    variance: str


class Slip(Settings):
    """Rows with a slip of the source. No contrast with one of them is counted."""

    rows: list[Selector]
    what: str


class BestSetting(Settings):
    """A metric that holds the best value of a grid, and the setting of ours that it is a value of."""

    metric: str
    setting: str


class PublishedTable(Settings):
    """One published table, figure or list of settings."""

    title: str
    locator: str
    paper: str | None = None
    arxiv: str | None = None
    venue: str | None = None
    url: str | None = None
    seen_in: str | None = None
    """Where the digits were read."""
    setup: dict[str, Value] = {}
    factors: list[str]
    metrics: list[str]
    rows: list[list[Any]]
    notes: list[str] = []
    n: Count | None = None
    """Number of prompts of the table's rates."""
    mean_of: dict[str, list[str]] = {}
    """Columns that are means of other columns."""
    standard_errors: dict[str, StandardError] = {}
    seeds: SeedRows | None = None
    duel: Duel | None = None
    argmax: BestSetting | None = None
    """The table claims no order, but a best setting."""
    slips: list[Slip] = []
    compare: list[str] = []
    """Metrics of the contrasts. The first counts; another one has a word of its own where its sign differs."""
    each: dict[str, list[str]] = {}
    """Factor whose values repeat all roles and contrasts."""
    roles: dict[str, Selector] = {}
    contrasts: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = []

    id: str = ""
    file: str = ""
    """Stem of the file: the paper in short."""
    article: str | None = None
    """Source article of the project that the table belongs to."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """Rows by column; `approx` and `note` are absent where a row has none."""
        columns = [*self.factors, *self.metrics]
        return [
            dict(zip(columns, row, strict=False)) | (row[-1] if len(row) > len(columns) else {})
            for row in self.rows
        ]

    @property
    def is_settings(self) -> bool:
        """Whether the table lists settings and no results."""
        return not self.argmax and all(metrics()[name].kind in ("setting", "count") for name in self.metrics)

    @property
    def is_picture(self) -> bool:
        """Whether no value of the table could be read."""
        return all(row.get(name) is None for row in self.records for name in self.metrics)

    @property
    def source(self) -> str:
        """Source in words: locator and arXiv number, or address."""
        where = f"arXiv {self.arxiv}" if self.arxiv else self.url or self.paper or ""
        return ", ".join(filter(None, (self.locator, where)))

    @property
    def values(self) -> list[str]:
        """Values of `each`; one empty value for a table without."""
        return next(iter(self.each.values()), [""])

    def matching(self, role: str, value: str = "") -> list[dict[str, Any]]:
        """Rows of a role, for one value of `each`."""
        where = self.roles[role] | ({next(iter(self.each)): value} if value else {})
        return [row for row in self.records if matches(row, where)]

    def slip(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """What is wrong with one of the rows; None where nothing is known."""
        for slip in self.slips:
            if any(matches(row, where) for row in rows for where in slip.rows):
                return slip.what
        return None

    def theirs(self, better: str, worse: str, metric: str, value: str = "") -> Theirs:
        """Published difference of two roles by one metric, in [-1, 1] for rates."""
        if self.duel:
            return self._duel(better, worse, value)
        sides = [self.matching(role, value) for role in (better, worse)]
        first, second = (self._side(rows, metric) for rows in sides)
        slip = self.slip([*sides[0], *sides[1]])
        if first is None or second is None:
            return Theirs(None, None, slip=slip)
        variance = None if None in (first.variance, second.variance) else first.variance + second.variance  # type: ignore[operator]
        approx = any(row.get("approx") for row in (*sides[0], *sides[1]))
        return Theirs(
            first.mean - second.mean, _with_figure(variance, approx), min(first.n_seeds, second.n_seeds), slip
        )

    def _duel(self, better: str, worse: str, value: str) -> Theirs:
        assert self.duel
        rows = self.matching(better, value)
        if self.duel.second:
            (name,) = self.roles[worse].values()
            rows = [row for row in rows if row[self.duel.second] == name]
        (row,) = rows
        n = row[self.duel.n] if self.duel.n else self.n
        win = row[self.duel.win] / 100
        lose = row[self.duel.lose] / 100 if self.duel.lose else 1 - win
        variance = None if n is None else (win + lose - (win - lose) ** 2) / n
        return Theirs(win - lose, _with_figure(variance, bool(row.get("approx"))), slip=self.slip(rows))

    def _side(self, rows: Sequence[Mapping[str, Any]], metric: str) -> _Side | None:
        """Mean and its variance over the rows of a role: trainings of one setting, or one row."""
        values = [row[metric] for row in rows]
        if None in values:
            return None
        unit = UNITS.get(metrics()[metric].unit, 1.0)
        means = [unit * value for value in values]
        mean = math.fsum(means) / len(means)
        if len(means) > 1:
            variance = math.fsum((m - mean) ** 2 for m in means) / (len(means) - 1) / len(means)
            return _Side(mean, variance, len(means))
        return _Side(mean, self._variance(rows[0], metric, unit), 1)

    def _variance(self, row: Mapping[str, Any], metric: str, unit: float) -> float | None:
        """Variance of a published value: from the source's own uncertainty, else from its n."""
        if (printed := self.standard_errors.get(metric)) and row.get(printed.column) is not None:
            return float(UNITS[metrics()[printed.column].unit] * row[printed.column] / printed.times) ** 2
        if metric in self.mean_of:
            parts = [self._variance(row, part, unit) for part in self.mean_of[metric]]
            return None if None in parts else math.fsum(parts) / len(parts) ** 2  # type: ignore[arg-type]
        of = metrics()[metric]
        n = row.get("n") or self.n or of.n
        if of.unit not in UNITS or of.kind == "length" or n is None:
            return None
        p = unit * row[metric]
        return float(p * (1 - p) / n * (lc_factor(p) ** 2 if of.kind == "lc_win_rate" else 1))

    def without_verdict(self, better: str, worse: str, value: str = "") -> float | None:
        """Difference of wins plus half of the unreadable verdicts, where the source counts those as lost."""
        sides = [self.matching(role, value) for role in (better, worse)]
        if any(len(rows) != 1 or rows[0].get("no_verdict") is None for rows in sides):
            return None
        first, second = ((row["wins"] + row["no_verdict"] / 2) / row["n"] for (row,) in sides)
        return float(first - second)

    def compared(self) -> Iterator[PublishedContrast]:
        """Contrasts of the table, for each value of `each` and each metric that has its own word."""
        for value, (better, worse) in itertools.product(self.values, self.contrasts):
            main, *others = self.compare
            first = self.theirs(better, worse, main, value)
            yield PublishedContrast(better, worse, value, main, first)
            for metric in others:
                other = self.theirs(better, worse, metric, value)
                if None not in (first.value, other.value) and _sign(first.value) != _sign(other.value):
                    yield PublishedContrast(better, worse, value, metric, other)


class PublishedContrast(NamedTuple):
    """An order of two roles that a paper claims, and its published difference."""

    better: str
    worse: str
    value: str  # Of the table's `each`; empty without.
    metric: str
    theirs: Theirs


class _Side(NamedTuple):
    mean: float
    variance: float | None
    n_seeds: int


def lc_factor(rate: float) -> float:
    """Standard error of a length-controlled win rate, as a multiple of the plain one's sqrt(p (1 - p) / n).

    1.6 up to a rate of 20 % and 1.0 from 30 % on, measured on recorded models; linear between.
    """
    return min(1.6, max(1.0, 1.6 - 6 * (rate - 0.2)))


def _with_figure(variance: float | None, approx: bool) -> float | None:
    """Standard error; a value read off a figure adds one point."""
    return None if variance is None else math.sqrt(variance) + (0.01 if approx else 0)


def _sign(value: float | None) -> int:
    return 0 if not value else 1 if value > 0 else -1


def matches(row: Mapping[str, Any], where: Mapping[str, Value]) -> bool:
    """Whether a row has these values. A list of values means any of them."""
    return all(
        row.get(key) in value if isinstance(value, list) else row.get(key) == value
        for key, value in where.items()
    )


@cache
def metrics() -> dict[str, PublishedMetric]:
    """Metrics by name."""
    content = read_own_yaml(FACTS / "metrics.yaml")
    return {name: PublishedMetric.model_validate(metric) for name, metric in content.items()}


@cache
def tables() -> dict[str, PublishedTable]:
    """All published tables by id, in the order of files. Raises BadFile for one that breaks the schema."""
    return {
        table.id: table
        for path in sorted((FACTS / "tables").glob("*.yaml"))
        for table in tables_of(read_own_yaml(path), path)
    }


def tables_of(content: Mapping[str, Any], path: Path) -> list[PublishedTable]:
    """Tables of one paper's file. Raises BadFile for a file that breaks the schema."""
    head = {key: value for key, value in content.items() if key != "tables"}
    made = []
    for name, table in content["tables"].items():
        try:
            made.append(PublishedTable.model_validate(head | table | {"id": name, "file": path.stem}))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BadFile(f"{path}: {name}.{where}: {first['msg']}") from error
    return made


# ---- lint -----------------------------------------------------------------------------------------------------------


def faults(table: PublishedTable) -> list[str]:
    """Faults of a table; empty for a sound one. A slip of the source that the table names is none."""
    problems = [*_shape(table)] or [*_ranges(table)] or [*_duplicates(table), *_sums(table), *_claims(table)]
    return [f"{table.id}: {problem}" for problem in problems]


def _shape(table: PublishedTable) -> Iterator[str]:
    columns = [*table.factors, *table.metrics]
    if len(set(columns)) < len(columns):
        yield "a column is named twice"
    for name in table.metrics:
        if name not in metrics():
            yield f"unknown metric {name}"
    for number, row in enumerate(table.rows, 1):
        extra = row[len(columns) :]
        if len(row) < len(columns) or len(extra) > 1:
            yield f"row {number} has {len(row)} values for {len(columns)} columns"
        elif extra and not (isinstance(extra[0], dict) and extra[0].keys() <= {"approx", "note"}):
            yield f"row {number} must end with a section of approx or note, got {extra[0]!r}"
    if not (table.arxiv or table.url or table.paper):
        yield "has no source"


def _ranges(table: PublishedTable) -> Iterator[str]:
    for number, row in enumerate(table.records, 1):
        for name in table.metrics:
            low, high = RANGES.get(metrics()[name].unit, (-math.inf, math.inf))
            value = row[name]
            if value is None or metrics()[name].unit == "mixed":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                yield f"row {number}: {name} must be in [{low}, {high}], got {value!r}"


def _duplicates(table: PublishedTable) -> Iterator[str]:
    """Rows of one setting, and results of two settings that are all the same, except slips that are named."""
    named = [
        [row for row in table.records if matches(row, where)] for slip in table.slips for where in slip.rows
    ]
    if any(len(rows) != 1 for rows in named):
        yield "a slip must name one row each"
    for first, second in itertools.combinations(table.records, 2):
        if all(first[name] == second[name] for name in table.factors):
            yield f"two rows of {[first[name] for name in table.factors]}"
        numbers = [(first[name], second[name]) for name in table.metrics if first[name] is not None]
        alike = len(numbers) > 1 and all(a == b for a, b in numbers)
        if (
            alike
            and not (table.duel or table.is_settings)
            and not (table.slip([first]) and table.slip([second]))
        ):
            yield f"identical results of {[first[name] for name in table.factors]} and {[second[name] for name in table.factors]}"


def _sums(table: PublishedTable) -> Iterator[str]:
    """Numbers that do not follow from others of their row, to the last printed digit."""
    for number, row in enumerate(table.records, 1):
        expected = [
            (name, [row[part] for part in parts], 1 / len(parts)) for name, parts in table.mean_of.items()
        ]
        expected.append(("n", [row.get(name) for name in ("wins", "losses", "no_verdict")], 1))
        expected.append(
            ("tie_percent", [100, _minus(row.get("win_percent")), _minus(row.get("lose_percent"))], 1)
        )
        if row.get("n"):
            expected.append(("win_rate", [row.get("wins")], 1 / row["n"]))
        for name, parts, factor in () if table.slip([row]) else expected:
            if row.get(name) is None or None in parts:
                continue
            if abs((total := factor * math.fsum(parts)) - row[name]) > 0.0051:
                yield f"row {number}: {name} is {row[name]}, other columns give {total:.3f}"
    if table.seeds:
        yield from _summaries(table, table.seeds)


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _summaries(table: PublishedTable, seeds: SeedRows) -> Iterator[str]:
    """Printed averages and sample variances that the printed values of the seeds do not give."""
    others = [name for name in table.factors if name != seeds.factor]
    groups: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in table.records:
        groups.setdefault(tuple(row[name] for name in others), {})[row[seeds.factor]] = row
    for group, name in itertools.product(groups.values(), table.metrics):
        values = [group[value][name] for value in seeds.values]
        mean = math.fsum(values) / len(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        for kind, expected in ((seeds.average, mean), (seeds.variance, variance)):
            if abs(group[kind][name] - expected) > 0.0101 and not table.slip([group[kind]]):
                yield f"{kind} of {name} is {group[kind][name]}, the values give {expected:.3f}"


def _claims(table: PublishedTable) -> Iterator[str]:
    """Roles and contrasts that do not fit the rows."""
    for value, role in itertools.product(table.values, table.roles):
        n = len(table.matching(role, value))
        expected = len(table.seeds.values) if table.seeds else 1
        if n != expected and not table.duel:
            yield f"role {role} {value} matches {n} rows instead of {expected}"
    for name in [role for pair in table.contrasts for role in pair if role not in table.roles]:
        yield f"unknown role {name} in a contrast"
    for name in [
        *table.compare,
        *table.standard_errors,
        *table.mean_of,
        *([table.argmax.metric] if table.argmax else []),
    ]:
        if name not in table.metrics:
            yield f"{name} is no metric of the table"
    if table.contrasts and not table.compare:
        yield "contrasts without a metric to compare"
    if len({tuple(pair) for pair in table.contrasts}) < len(table.contrasts):
        yield "a contrast stands twice"


# ---- a sweep's rows beside a table --------------------------------------------------------------------------------------


class OurRole(NamedTuple):
    """Row of a sweep that stands for a role of a published table.

    `where` selects it as an expectation does; None where there is none, and `why` says why. `differs` says what it
    has unlike the paper's row.
    """

    where: Mapping[str, Any] | None
    why: str = ""
    differs: str = ""


@dataclass(frozen=True)
class Beside:
    """A published table beside a sweep, with the sweep's rows by value of `each` and role."""

    table: PublishedTable
    roles: Mapping[tuple[str, str], OurRole]

    def role(self, name: str, value: str = "") -> OurRole:
        return self.roles.get((value, name)) or OurRole(None, f"no row of this sweep stands for {name}")


def beside(written: Any) -> tuple[list[Beside], list[str]]:
    """Tables that the `published:` part of a sweep file names, and the faults of the part.

    It maps each table to its roles, and each role to values of a row of ours (written as axes, and `differs: TEXT`
    for what is unlike the paper) or to the reason why there is none. `every` holds values of all its rows. In a
    table with `each`, the roles stand under its values.
    """
    if not isinstance(written, dict):
        return [], [f"published must map published tables to their roles, got {describe(written)}"]
    made, problems = [], []
    for name, roles in written.items():
        if (table := tables().get(str(name))) is None:
            close = difflib.get_close_matches(str(name), tables(), n=1)
            known = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(tables())}"
            problems.append(f"unknown published table {name!r}{known}")
            continue
        by_value = (
            {str(key): part for key, part in (roles or {}).items()} if table.each else {"": roles or {}}
        )
        found: dict[tuple[str, str], OurRole] = {}
        for value, part in by_value.items():
            place = f"published.{name}" + (f".{value}" if value else "")
            if value not in table.values:
                problems.append(f"{place}: expected one of {', '.join(table.values)}")
            elif not isinstance(part, dict):
                problems.append(f"{place} must map roles to rows of ours, got {describe(part)}")
            elif not isinstance(every := part.get("every", {}), dict):
                problems.append(f"{place}.every must be values of rows, got {describe(every)}")
            else:
                for role, ours in part.items():
                    if role == "every":
                        continue
                    if role not in table.roles:
                        problems.append(f"{place}: unknown role {role!r}; known: {', '.join(table.roles)}")
                    elif isinstance(ours, str):
                        found[value, role] = OurRole(None, ours)
                    elif isinstance(ours, dict) and isinstance(ours.get("differs", ""), str):
                        where = every | {key: item for key, item in ours.items() if key != "differs"}
                        found[value, role] = OurRole(where, "", ours.get("differs", ""))
                    else:
                        what = "values of a row, or the reason why there is none"
                        problems.append(f"{place}.{role} must be {what}, got {describe(ours)}")
        made.append(Beside(table, found))
    return made, problems
