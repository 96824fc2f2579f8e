"""Rows that differ by seed only, as groups with pooled numbers and comparisons."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from bench.config import Cell, Expectation, NoMethod, Written
from bench.records import grouped
from bench.report.rows import ALPHA, CellRow, seedless
from bench.stats import estimates


@dataclass(frozen=True)
class Group:
    """Cells that differ by seed only. `against_start` is None for start models and where nothing can be compared."""

    key: str
    number: int  # its line in the table, from 1
    name: str
    cell: Cell
    rows: Sequence[CellRow]
    against_start: estimates.Comparison | None
    lc_against_start: estimates.Comparison | None
    among_best: bool  # by win rate: the best group, or not to be told apart from it

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

    def pooled(self, metric: str) -> estimates.Pooled | None:
        return estimates.pool([row.metrics.get(metric) for row in self.done])

    def n_seeds(self, metric: str) -> int:
        """Seeds that have this metric."""
        return sum(metric in row.metrics for row in self.done)

    def interval(self, metric: str) -> tuple[float, float] | None:
        """95 %: over seeds where there are several, over prompts where there is one."""
        if self.n_seeds(metric) == 1:
            only = next(row.metrics for row in self.done if metric in row.metrics)
            low, high = only.get(f"{metric}_low"), only.get(f"{metric}_high")
        else:
            low, high = (pooled.low, pooled.high) if (pooled := self.pooled(metric)) else (None, None)
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True)
class Grid:
    """The groups of a sweep, and every pair of them compared by win rate (first minus second; p Holm-corrected over all pairs).

    `varied`: settings that tell groups apart and have no column of their own (see `varied_settings`).
    """

    groups: Sequence[Group]
    varied: Sequence[str]
    pairs: Mapping[tuple[str, str], estimates.Comparison | None]


def pool(rows: Sequence[CellRow]) -> Grid:
    """Rows pooled over seeds, in the order of the sweep, each compared with its start model seed by seed and item by item."""
    members = grouped((row.group_key, row) for row in rows)
    pairs = _all_pairs(members)
    best = _among_best(members, pairs)
    plain, lc = _against_start(members, "preferences"), _against_start(members, "lc")
    varied = varied_settings([row.cell.cell for row in rows])
    names = line_names({key: group[0].cell.cell for key, group in members.items()}, varied)
    found = [
        Group(key, number, names[key], group[0].cell.cell, group, plain.get(key), lc.get(key), key in best)
        for number, (key, group) in enumerate(members.items(), 1)
    ]
    return Grid(found, varied, pairs)


OWN_COLUMN = {"seed", "method.name", "method.label", "method.beta", "method.iteration", "data.name", "data.fraction", "model.name"}


NAMED_BY = {"method": "method.name", "model": "model.name", "data": "data.name", "world": "data.name"}


def varied_settings(cells: Sequence[Cell]) -> list[str]:
    """Dotted settings, without a column of their own, that differ between rows which otherwise are called the same: trainings, start
    models and files of completions each by themselves."""
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
    return [key for key, by_name in values.items() if key not in OWN_COLUMN and any(len(found) > 1 for found in by_name.values())]


def settings(cell: Cell) -> dict[str, str]:
    """A cell's settings by dotted key, each as JSON."""
    flat: dict[str, str] = {}

    def visit(value: Any, prefix: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                visit(item, f"{prefix}.{key}" if prefix else key)
        else:
            flat[prefix] = value if isinstance(value, str) else json.dumps(value)

    visit(cell.model_dump(mode="json"), "")
    return flat


def method_name(cell: Cell) -> str:
    """How tables call a cell's method."""
    if isinstance(cell.method, Written):
        return cell.method.label
    return "start" if isinstance(cell.method, NoMethod) else cell.method.name


NAMES = {"model.name": "", "data.name": "", "method.beta": "beta", "data.fraction": "labels", "method.iteration": "iteration"}


def line_names(cells: Mapping[str, Cell], varied: Sequence[str], about: Container[str] = ()) -> dict[str, str]:
    """How lines of a figure or a table are called, by the cells' keys: the method, and what tells its cells apart.

    Of several varied settings those are named in which a cell is unlike most of its method; settings that a figure is `about`, never.
    """
    flat = {key: settings(cell) for key, cell in cells.items()}
    methods = {key: method_name(cell) for key, cell in cells.items()}
    trained = [key for key, cell in cells.items() if cell.method.trains]
    names = {}
    for key, method in methods.items():
        alike = [flat[other] for other in cells if methods[other] == method]
        everyone = [*alike, *(flat[other] for other in trained)]
        told = [k for k in (*NAMES, *varied) if k not in about and k in flat[key]]
        told = [k for k in told if len({each.get(k) for each in (everyone if k in ("model.name", "data.name") else alike)}) > 1]
        own = [k for k in told if k not in NAMES]
        usual = {k: Counter(each[k] for each in alike if k in each).most_common(1)[0][0] for k in own}
        said = [k for k in told if k in NAMES or len(own) == 1 or flat[key][k] != usual[k]]
        words = (f"{NAMES.get(k, short_name(k))} {flat[key][k]}".strip() for k in said)
        names[key] = " ".join([method, *words])
    return names


def short_name(key: str) -> str:
    """`method.alpha` as `alpha`, `adapter.name` as `adapter`."""
    return key.removesuffix(".name").rpartition(".")[2]


def row_words(numbers: Sequence[int]) -> str:
    """Lines of the table: `row 3`, `rows 2 to 5, 9`."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    words = [f"{span[0]}" if len(span) == 1 else f"{span[0]}{' to' if len(span) > 2 else ','} {span[-1]}" for span in spans]
    return f"row{'s' if len(set(numbers)) > 1 else ''} {', '.join(words)}"


class Verified(NamedTuple):
    """What became of an expectation: better minus worse, or why the two cannot be compared."""

    better: str
    worse: str
    difference: estimates.Difference | None = None
    p_holm: float | None = None
    why: str = ""


def verify(expectation: Expectation, pooled: Grid) -> Verified:
    """Compare the two groups that an expectation names, each of which must be one group of the sweep."""
    sides = (expectation.better, expectation.worse)
    # `{"method": "kto", "method.beta": 0.1}` as `kto beta 0.1`
    words = (" ".join(f"{key.removeprefix('method.')} {value}" for key, value in side.items()) for side in sides)
    first, second = (text.removeprefix("method ") for text in words)
    keys = []
    for side, name in zip(sides, (first, second), strict=True):
        found = [group.key for group in pooled.groups if matches(group.cell, side)]
        if len(found) != 1:
            return Verified(first, second, why=f"{name} names {len(found)} groups of this table")
        keys += found
    better, worse = keys
    if (comparison := pooled.pairs.get((better, worse))) is not None:
        return Verified(first, second, comparison.lead, comparison.p_holm)
    if (comparison := pooled.pairs.get((worse, better))) is not None:
        lead = comparison.lead
        low, high, t = (None if end is None else -end for end in (lead.high, lead.low, lead.t))
        turned = replace(lead, value=-lead.value, low=low, high=high, t=t)
        return Verified(first, second, turned, comparison.p_holm)
    return Verified(first, second, why="one of them was not judged")


def matches(cell: Cell, choice: Mapping[str, Any]) -> bool:
    """Whether a cell has these values; a group's value is its choice's name."""
    return all(chosen(cell, key) == value for key, value in choice.items())


def chosen(cell: Cell, key: str) -> Any:
    """A cell's value of a dotted key, or the name of its choice of a group; None for what no cell holds."""
    value: Any = cell
    for part in key.split("."):
        value = getattr(value, part, None)
    return list(value) if isinstance(value, tuple) else getattr(value, "name", value)


def _values(group: Sequence[CellRow], of: str) -> dict[int, Mapping[str, float | None]]:
    return {row.cell.cell.seed: getattr(row, of) for row in group if getattr(row, of)}


def _against_start(members: Mapping[str, Sequence[CellRow]], of: str) -> dict[str, estimates.Comparison | None]:
    starts = {key: members.get(group[0].start_key, ()) for key, group in members.items() if group[0].start_key != key}
    pairs = {key: (_values(members[key], of), _values(start, of)) for key, start in starts.items()}
    return {key: _bootstrapped(found, *pairs[key]) for key, found in estimates.compare_table(pairs).items()}


def _bootstrapped(found: estimates.Comparison | None, ours: estimates.BySeed, theirs: estimates.BySeed) -> estimates.Comparison | None:
    """With one seed the interval is the paired bootstrap over prompts; the p-value stays that of the paired t."""
    if found is None or found.n_seeds > 1:
        return found
    (seed,) = found.per_seed
    again = estimates.paired_difference(ours[seed], theirs[seed], np.random.default_rng(0))
    return found if again is None else replace(found, prompts=again)


def _all_pairs(members: Mapping[str, Sequence[CellRow]]) -> dict[tuple[str, str], estimates.Comparison | None]:
    """Every pair of groups that one judge judged, over the seeds that both have; a file of completions is the same for every seed."""
    values = {key: by_seed for key, group in members.items() if (by_seed := _values(group, "preferences"))}
    seedless_ones = {key: next(iter(values[key].values())) for key in values if isinstance(members[key][0].cell.cell.method, Written)}
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


def _among_best(members: Mapping[str, Sequence[CellRow]], pairs: Mapping[tuple[str, str], estimates.Comparison | None]) -> frozenset[str]:
    """Groups that cannot be told apart from the one with the highest win rate; two judges' rates are never held against each other."""
    by_judge: dict[Any, dict[str, float | None]] = {}
    for key, group in members.items():
        pooled = estimates.pool([row.metrics.get("win_rate") for row in group])
        by_judge.setdefault(group[0].cell.cell.judge, {})[key] = pooled.mean if pooled else None
    p_values = {pair: c.p_holm if c else None for pair, c in pairs.items()}
    found = [estimates.indistinguishable(means, p_values, ALPHA) for means in by_judge.values() if len(means) > 1]
    return frozenset(key for one in found if one for key in one[1])
