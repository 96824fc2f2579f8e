"""Groups of rows that differ only by seed, with pooled numbers and comparisons between groups."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bench.config import Cell, Expectation, NoMethod, SuiteJudge, Written
from bench.records import grouped
from bench.report.rows import ALPHA, CellRow, seedless
from bench.stats import estimates
from bench.stats.contrasts import FarSeed, equivalence_p, far_seeds
from bench.stats.matched_kl import MatchedKl, Point, at_matched_kl

ItemsOf = Callable[[CellRow], estimates.ByItem]


@dataclass(frozen=True)
class Group:
    """Cells that differ only by seed.

    `against_start` is None for start models and where nothing can be compared.
    """

    key: str
    number: int  # Its row in the table, from 1.
    name: str
    cell: Cell
    rows: Sequence[CellRow]
    against_start: estimates.Comparison | None
    others_against_start: Mapping[str, estimates.Comparison]  # Of further numbers, by name.
    among_best: bool  # Has the highest win rate (or rating), or does not differ from it significantly.
    # The group's evaluations by label, where a suite judges it. They hold its comparisons.
    evaluations: Mapping[str, Group] = field(default_factory=dict)

    @property
    def parts(self) -> Mapping[str, Group]:
        """The group as each evaluation sees it, by label; "" where it has one judge."""
        return self.evaluations or {"": self}

    @property
    def is_start(self) -> bool:
        return isinstance(self.cell.method, NoMethod)

    @property
    def is_trained(self) -> bool:
        return self.cell.method.trains

    @property
    def done(self) -> list[CellRow]:
        return [row for row in self.rows if row.done]

    @property
    def failed(self) -> list[CellRow]:
        return [row for row in self.rows if row.failed]

    @property
    def only_rates(self) -> bool:
        """Whether its judge gives ratings and no preferences; comparisons are then of ratings."""
        return any(row.ratings for row in self.rows)

    def pooled(self, metric: str) -> estimates.Pooled | None:
        return estimates.pool([row.metrics.get(metric) for row in self.done])

    def n_seeds(self, metric: str) -> int:
        """Number of seeds with this metric."""
        return sum(metric in row.metrics for row in self.done)

    def interval(self, metric: str) -> tuple[float, float] | None:
        """95 % interval: over seeds (t) where there are several, over prompts where there is one."""
        if self.n_seeds(metric) == 1:
            only = next(row.metrics for row in self.done if metric in row.metrics)
            low, high = only.get(f"{metric}_low"), only.get(f"{metric}_high")
        else:
            low, high = (pooled.low, pooled.high) if (pooled := self.pooled(metric)) else (None, None)
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True)
class Grid:
    """Groups of a sweep, and comparisons of all pairs: first minus second, p Holm-corrected over all pairs.

    `varied` holds settings that differ between groups and have no fixed column (see `varied_settings`).
    """

    groups: Sequence[Group]
    varied: Sequence[str]
    pairs: Mapping[tuple[str, str], estimates.Comparison | None]
    other_pairs: Mapping[
        str, Mapping[tuple[str, str], estimates.Comparison | None]
    ]  # Of further numbers, by name.
    evaluations: Mapping[str, Grid] = field(default_factory=dict)  # By label.

    @property
    def parts(self) -> Mapping[str, Grid]:
        """The groups of each evaluation by label; those with one judge under ""."""
        alone = not self.evaluations or any(not group.evaluations for group in self.groups)
        return ({"": self} if alone else {}) | dict(self.evaluations)


def pool(rows: Sequence[CellRow]) -> Grid:
    """Groups in the order of the sweep. Each is compared with its start model, paired by seed and item, in
    each evaluation alone."""
    grid = _pool(rows)
    outer = {group.key: group for group in grid.groups}
    evaluations: dict[str, Grid] = {}
    for label in dict.fromkeys(label for row in rows for label in row.evaluations):
        of_label = _pool([row.evaluations[label] for row in rows if label in row.evaluations])
        groups = [
            replace(group, number=outer[group.key].number, name=outer[group.key].name)
            for group in of_label.groups
        ]
        evaluations[label] = replace(of_label, groups=groups)
    inner = {label: {group.key: group for group in part.groups} for label, part in evaluations.items()}
    groups = [
        replace(group, evaluations={label: of[key] for label, of in inner.items() if key in of})
        for key, group in outer.items()
    ]
    return replace(grid, groups=groups, evaluations=evaluations)


def _pool(rows: Sequence[CellRow]) -> Grid:
    members = grouped((row.group_key, row) for row in rows)
    pairs = _all_pairs(members, _ratings) | _all_pairs(members, _preferences)
    best = _among_best(members, pairs)
    rated = _against_start(members, _ratings, bootstrap=True)
    plain = {
        key: comparison or rated[key]
        for key, comparison in _against_start(members, _preferences, bootstrap=True).items()
    }
    numbers = {name: partial(_number, name) for name in dict.fromkeys(n for row in rows for n in row.by_item)}
    others = {name: _against_start(members, of) for name, of in numbers.items()}
    varied = varied_settings([row.cell.cell for row in rows])
    names = line_names({key: group[0].cell.cell for key, group in members.items()}, varied)
    groups = [
        Group(
            key,
            number,
            names[key],
            group[0].cell.cell,
            group,
            plain.get(key),
            {name: one for name, of_name in others.items() if (one := of_name.get(key))},
            key in best,
        )
        for number, (key, group) in enumerate(members.items(), 1)
    ]
    return Grid(groups, varied, pairs, {name: _all_pairs(members, of) for name, of in numbers.items()})


OWN_COLUMN = {
    "seed",
    "method.name",
    "method.label",
    "method.beta",
    "method.iteration",
    "data.name",
    "data.fraction",
    "model.name",
}


NAMED_BY = {"method": "method.name", "model": "model.name", "data": "data.name", "world": "data.name"}


def varied_settings(cells: Sequence[Cell]) -> list[str]:
    """Dotted settings that differ between cells of one name and have no fixed column.

    Trainings, start models and files of completions are compared among themselves.
    """
    values: dict[str, dict[Any, set[str]]] = {}
    rows: dict[str, Cell] = {}
    for cell in cells:
        rows.setdefault(seedless(cell), cell)
    for cell in rows.values():
        flat, kind = settings(cell), "" if cell.method.trains else cell.method.name
        named_by = NAMED_BY | ({"method": "method.label"} if isinstance(cell.method, Written) else {})
        for key, value in flat.items():
            name = named_by.get(key.split(".")[0])
            values.setdefault(key, {}).setdefault((kind, flat.get(name) if name else None), set()).add(value)
    return [
        key
        for key, by_name in values.items()
        if key not in OWN_COLUMN and any(len(different) > 1 for different in by_name.values())
    ]


def settings(cell: Cell) -> dict[str, str]:
    """Settings of a cell by dotted key, each as JSON. A suite is named by its evaluations."""
    flat: dict[str, str] = {}

    def visit(value: Any, prefix: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                visit(item, f"{prefix}.{key}" if prefix else key)
        else:
            flat[prefix] = value if isinstance(value, str) else json.dumps(value)

    visit(cell.model_dump(mode="json"), "")
    several = {"judge.name": "+".join(cell.judge.judges)} if isinstance(cell.judge, SuiteJudge) else {}
    return flat | several  # two suites are told apart


def method_name(cell: Cell) -> str:
    """Name of a cell's method in tables; `start` for a start model, the label for a file of completions."""
    if isinstance(cell.method, Written):
        return cell.method.label
    return "start" if isinstance(cell.method, NoMethod) else cell.method.name


NAMES = {
    "model.name": "",
    "data.name": "",
    "method.beta": "beta",
    "data.fraction": "labels",
    "method.iteration": "iteration",
}


def line_names(
    cells: Mapping[str, Cell], varied: Sequence[str], about: Container[str] = ()
) -> dict[str, str]:
    """Names of lines or rows by cell key: the method and the settings that differ within it.

    Of several varied settings, only those where the cell differs from most cells of its method are named.
    Settings in `about`, the axis of a figure, are never named.
    """
    flat = {key: settings(cell) for key, cell in cells.items()}
    methods = {key: method_name(cell) for key, cell in cells.items()}
    trained = [key for key, cell in cells.items() if cell.method.trains]
    names = {}
    for key, method in methods.items():
        alike = [flat[other] for other in cells if methods[other] == method]
        everyone = [*alike, *(flat[other] for other in trained)]
        candidates = [k for k in (*NAMES, *varied) if k not in about and k in flat[key]]
        differing = [
            k
            for k in candidates
            if len({each.get(k) for each in (everyone if k in ("model.name", "data.name") else alike)}) > 1
        ]
        own = [k for k in differing if k not in NAMES]
        usual = {k: Counter(each[k] for each in alike if k in each).most_common(1)[0][0] for k in own}
        named = [k for k in differing if k in NAMES or len(own) == 1 or flat[key][k] != usual[k]]
        words = (f"{NAMES.get(k, short_name(k))} {flat[key][k]}".strip() for k in named)
        names[key] = " ".join([method, *words])
    return names


def short_name(key: str) -> str:
    """Short form of a dotted key: `alpha` for `method.alpha`, `adapter` for `adapter.name`."""
    return key.removesuffix(".name").rpartition(".")[2]


def row_words(numbers: Sequence[int]) -> str:
    """Row numbers in words, such as `row 3` or `rows 2 to 5, 9`."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    words = [
        f"{span[0]}" if len(span) == 1 else f"{span[0]}{' to' if len(span) > 2 else ','} {span[-1]}"
        for span in spans
    ]
    return f"row{'s' if len(set(numbers)) > 1 else ''} {', '.join(words)}"


class Verified(NamedTuple):
    """Result of an expectation: the difference better minus worse, or `why` the two cannot be compared."""

    better: str
    worse: str
    difference: estimates.Difference | None = None
    p_holm: float | None = None
    why: str = ""
    post_hoc: bool = False  # Then p is corrected over all pairs of rows, else over the planned orders.
    equal_within: float | None = None  # The margin in percentage points, where equivalence is shown (TOST).


def verify(expectations: Sequence[Expectation], pooled: Grid) -> list[Verified]:
    """Compare the two sides of each expectation in one evaluation.

    Orders that were planned are one family of Holm's correction.
    """
    of_all = [_verified(expectation, pooled) for expectation in expectations]
    planned = [not expectation.post_hoc for expectation in expectations]
    p_values = [
        one.difference.p if own and one.difference else None for one, own in zip(of_all, planned, strict=True)
    ]
    return [
        one._replace(p_holm=p) if own else one
        for one, own, p in zip(of_all, planned, estimates.holm(p_values), strict=True)
    ]


def _verified(expectation: Expectation, pooled: Grid) -> Verified:
    """One expectation with the p-value over all pairs. Each side must match exactly one group."""
    sides = (expectation.better, expectation.worse)
    # `{"method": "kto", "method.beta": 0.1}` becomes `kto beta 0.1`.
    words = (
        " ".join(f"{key.removeprefix('method.')} {value}" for key, value in side.items()) for side in sides
    )
    first, second = (text.removeprefix("method ") for text in words)
    keys = []
    for side, name in zip(sides, (first, second), strict=True):
        matching = [group.key for group in pooled.groups if matches(group.cell, side)]
        if len(matching) != 1:
            return Verified(
                first, second, why=f"'{name}' matches {len(matching)} rows of this table instead of one"
            )
        keys += matching
    better, worse = keys
    lead, comparison = None, pooled.pairs.get((better, worse))
    if comparison is not None:
        lead = comparison.lead
    elif (comparison := pooled.pairs.get((worse, better))) is not None:
        lead = comparison.lead.turned
    if comparison is not None and lead is not None:
        rates = not pooled.groups[0].only_rates
        equivalence = equivalence_p(lead, expectation.margin / 100) if rates else None
        equal = expectation.margin if equivalence is not None and equivalence < ALPHA else None
        return Verified(first, second, lead, comparison.p_holm, "", expectation.post_hoc, equal)
    return Verified(first, second, why="one of the two rows was not judged, or not by the same judge")


class Matched(NamedTuple):
    """Two methods at equal KL, first less second; p is corrected over all pairs of methods."""

    first: str
    second: str
    at: MatchedKl
    p_holm: float | None


def matched_kl(groups: Sequence[Group]) -> list[Matched]:
    """Win rates of methods with several betas at equal KL.

    Methods are compared where their cells differ in settings of the method alone, over the seeds and prompts
    that all their cells have.
    """
    sides: dict[tuple[str, str], dict[str, list[Group]]] = {}
    for group in groups:
        if (
            group.is_trained
            and group.done
            and all("kl" in row.metrics and row.preferences for row in group.done)
        ):
            flat = settings(group.cell)
            shared = json.dumps({key: value for key, value in flat.items() if not key.startswith("method.")})
            own = json.dumps(
                {k: v for k, v in flat.items() if k.startswith("method.") and k != "method.beta"}
            )
            name = re.sub(r" beta \S+", "", group.name)
            sides.setdefault((shared, name), {}).setdefault(own, []).append(group)
    found: list[Matched] = []
    for ((world, first), ours), ((other, second), theirs) in itertools.combinations(sides.items(), 2):
        if world != other or len(ours) > 1 or len(theirs) > 1:
            continue
        (one,), (two,) = ours.values(), theirs.values()
        rows = [{row.cell.cell.seed: row for row in group.done} for group in (*one, *two)]
        seeds = sorted(set.intersection(*map(set, rows)))
        scored = [row.preferences for of in rows for seed, row in of.items() if seed in seeds]
        items = sorted(
            item for item in (scored[0] if scored else ()) if all(s.get(item) is not None for s in scored)
        )
        if not seeds or len(items) < 2:
            continue
        points = [
            Point(
                np.array([of[seed].metrics["kl"] for seed in seeds]),
                np.array([[of[seed].preferences[item] for item in items] for seed in seeds], dtype=float),
            )
            for of in rows
        ]
        if (at := at_matched_kl(points[: len(one)], points[len(one) :])) is not None:
            found.append(Matched(first, second, at, None))
    adjusted = estimates.holm([one.at.difference.p for one in found])
    return [one._replace(p_holm=p) for one, p in zip(found, adjusted, strict=True)]


def far_seeds_of(groups: Sequence[Group]) -> dict[int, FarSeed]:
    """Seeds whose headline number lies far from the row's other seeds, by number of the row."""
    metric = "rating" if groups and groups[0].only_rates else "win_rate"
    values = {
        group.number: {row.cell.cell.seed: row.metrics[metric] for row in group.done if metric in row.metrics}
        for group in groups
    }
    return far_seeds({number: seeds for number, seeds in values.items() if len(seeds) > 1})


def matches(cell: Cell, choice: Mapping[str, Any]) -> bool:
    """Whether a cell has these values. The value of a config group is the name of its choice."""
    return all(chosen(cell, key) == value for key, value in choice.items())


def chosen(cell: Cell, key: str) -> Any:
    """Value of a dotted key in a cell; for a config group, the name of its choice.

    None for an unknown key.
    """
    value: Any = cell
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    return list(value) if isinstance(value, tuple) else getattr(value, "name", value)


def _preferences(row: CellRow) -> estimates.ByItem:
    return row.preferences


def _ratings(row: CellRow) -> estimates.ByItem:
    return row.ratings


def _number(name: str, row: CellRow) -> estimates.ByItem:
    return row.by_item.get(name, {})


def _values(group: Sequence[CellRow], of: ItemsOf) -> dict[int, estimates.ByItem]:
    return {row.cell.cell.seed: items for row in group if (items := of(row))}


def _against_start(
    members: Mapping[str, Sequence[CellRow]], of: ItemsOf, bootstrap: bool = False
) -> dict[str, estimates.Comparison | None]:
    starts = {
        key: members.get(group[0].start_key, ())
        for key, group in members.items()
        if group[0].start_key != key
    }
    pairs = {key: (_values(members[key], of), _values(start, of)) for key, start in starts.items()}
    compared = estimates.compare_table(pairs, screened=True)
    if not bootstrap:
        return compared
    return {key: _bootstrapped(comparison, *pairs[key]) for key, comparison in compared.items()}


def _bootstrapped(
    comparison: estimates.Comparison | None, ours: estimates.BySeed, theirs: estimates.BySeed
) -> estimates.Comparison | None:
    """The comparison; with one seed its interval is the paired bootstrap over prompts.

    The p-value stays that of the paired t.
    """
    if comparison is None or comparison.n_seeds > 1:
        return comparison
    (seed,) = comparison.per_seed
    bootstrap = estimates.paired_difference(ours[seed], theirs[seed], np.random.default_rng(0))
    return comparison if bootstrap is None else replace(comparison, prompts=bootstrap)


def _all_pairs(
    members: Mapping[str, Sequence[CellRow]], of: ItemsOf
) -> dict[tuple[str, str], estimates.Comparison | None]:
    """Comparisons of all pairs of groups with the same judge, over the seeds that both have.

    A file of completions counts as equal for every seed.
    """
    values = {key: by_seed for key, group in members.items() if (by_seed := _values(group, of))}
    seedless_ones = {
        key: next(iter(values[key].values()))
        for key in values
        if isinstance(members[key][0].cell.cell.method, Written)
    }
    pairs = {}
    for a, b in itertools.combinations(values, 2):
        if members[a][0].cell.cell.judge != members[b][0].cell.cell.judge:
            continue
        ours, theirs = values[a], values[b]
        if a in seedless_ones and b not in seedless_ones:
            ours = dict.fromkeys(theirs, seedless_ones[a])
        elif b in seedless_ones and a not in seedless_ones:
            theirs = dict.fromkeys(ours, seedless_ones[b])
        pairs[a, b] = ours, theirs
    return estimates.compare_table(pairs)


def _among_best(
    members: Mapping[str, Sequence[CellRow]], pairs: Mapping[tuple[str, str], estimates.Comparison | None]
) -> frozenset[str]:
    """Keys of the groups that do not differ significantly from the highest win rate, or rating, of their judge.

    Numbers of two judges are never compared.
    """
    by_judge: dict[Any, dict[str, float | None]] = {}
    for key, group in members.items():
        metric = "rating" if any(row.ratings for row in group) else "win_rate"
        pooled = estimates.pool([row.metrics.get(metric) for row in group])
        by_judge.setdefault(group[0].cell.cell.judge, {})[key] = pooled.mean if pooled else None
    p_values = {pair: c.p_holm if c else None for pair, c in pairs.items()}
    best = [
        estimates.indistinguishable(means, p_values, ALPHA) for means in by_judge.values() if len(means) > 1
    ]
    return frozenset(key for one in best if one for key in one[1])
