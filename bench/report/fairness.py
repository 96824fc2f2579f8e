"""The fairness certificate under a table: what all cells had in common, and which cell differs in what besides the axes of the sweep.

Facts of a training are measured (bench/training/training_record.py, written by the train stage); those of judging are its stages'
settings and the digest of the items. A fact that nobody knows - a cell that failed, completions from elsewhere - is not known, and never
called the same.

Cells are held against each other where the axes leave a fact no excuse: `FACTS` names the settings that may move each fact. Within one
choice of those, and within a seed where the seed draws the fact, the most common value is what the others are held against.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from bench.config import NoMethod
from bench.records import grouped, read_verdicts
from bench.report.groups import Group, chosen, method_name, row_words
from bench.report.rows import CellRow
from bench.store.keys import Stage, hash_key, keyed_settings
from bench.store.stage_settings import GenerateSettings
from bench.store.store import Store
from bench.training.training_record import TrainFacts

Value = str | int | float

MARK = "†"
MANNERS = ("preference", "rating", "plain")
DIGITS = 8  # of a digest, for people


@dataclass(frozen=True)
class Fact:
    """`moved_by`: settings that move it; an axis over one of them excuses a difference. `within`: compared at equal values of these."""

    name: str
    moved_by: tuple[str, ...]
    of: Callable[[TrainFacts], Value] | None = None  # None: a fact of judging
    within: tuple[str, ...] = ()


# The world's rows are sampled from the start model; a loop's from the model of the iteration before, and kept as its labels say.
LABELS = ("labeller", "labelling_judge", "judge_prompt", "learns_from", "eft", "judging_reference", "length_penalty", "reward_fraction")
BEFORE = ("alpha", "distrusted", "threshold", "decoupling", "loss", "betas", "learning_rate_factors")
ROWS = ("data", "world", "model", "scale", "method.iteration", *(f"method.{name}" for name in (*LABELS, *BEFORE)))
BATCH = ("method.batch_size", "method.gradient_accumulation_steps", "scale", "method.iteration")  # a loop's seed has its own
EPOCHS = ("method.num_train_epochs", "scale", "method.iteration")
RATE = ("method.learning_rate", "method.learning_rate_factors", "scale", "method.iteration")
SEED = ("seed",)

FACTS = (
    Fact("examples", ROWS, lambda f: f"{f.rows} rows ({f.examples[:DIGITS]})", SEED),
    Fact("completions in the loss", ROWS, lambda f: " and ".join(f.completions)),
    Fact("order", (*ROWS, *BATCH, *EPOCHS), lambda f: " ".join(part[:DIGITS] for part in f.order), SEED),
    Fact("prompt tokens", (*ROWS, *EPOCHS), lambda f: f.prompt_tokens, SEED),
    Fact("completion tokens", (*ROWS, *EPOCHS), lambda f: f.completion_tokens, SEED),
    Fact("truncated completions", ROWS, lambda f: f.truncated, SEED),
    Fact("max_length", ("model", "scale"), lambda f: f.max_length),
    Fact("template", ("model", "scale"), lambda f: f.template[:DIGITS]),
    Fact("steps", (*ROWS, *BATCH, *EPOCHS), lambda f: f.steps, SEED),
    Fact("completions a step", BATCH, lambda f: f.batch_completions),
    Fact("preference rows a step", BATCH, lambda f: f.batch_rows),
    Fact("epochs", EPOCHS, lambda f: round(f.epochs, 2)),
    Fact("optimiser", ("method.optimizer", "scale"), lambda f: f.optimizer),
    Fact("weight decay", ("method.weight_decay", "scale"), lambda f: f.weight_decay),
    Fact("gradient clip", ("method.max_grad_norm", "scale"), lambda f: f.max_grad_norm),
    Fact("schedule", ("method.lr_scheduler_type", "method.warmup_ratio", "scale"), lambda f: f"{f.schedule}, warm-up {f.warmup:g}"),
    Fact("learning rate", RATE, lambda f: f.learning_rate, ("method.name",)),
    Fact("training dtype", ("model", "scale"), lambda f: f.dtype),
    Fact("decoding", ("judge", "engine", "model.dtype", "scale")),
    Fact("items", ("judge", "world", "data")),
    Fact("judge", ("judge", "world")),
    Fact("votes without log-probs", ("judge", "world")),
)


@dataclass(frozen=True)
class CellFacts:
    """What is known of one cell. `facts`: None is not known; a fact that it cannot have (a start model's training) is absent.

    `where`: its values of the axes, of `seed` and of `method.name`.
    """

    key: str
    row: int  # of the table, where seeds are pooled
    name: str  # that row's
    method: str
    where: Mapping[str, Any]
    facts: Mapping[str, Value | None]


@dataclass(frozen=True)
class UnequalFact:
    fact: str
    who: tuple[str, ...]  # methods and rows of the table that differ
    value: str
    others: str


@dataclass(frozen=True)
class Certificate:
    """`same`: over all cells. `within`: over all cells at equal values of some settings. `apart`: no two cells may be compared.
    `by_method`: differs by method and within none. `differs`, `not_known`: names of facts by cell key; `unknown`: methods and rows
    by name of fact."""

    axes: tuple[str, ...]
    n_trained: int
    same: list[str] = field(default_factory=list)
    within: dict[str, list[str]] = field(default_factory=dict)
    apart: dict[str, list[str]] = field(default_factory=dict)
    by_method: dict[str, str] = field(default_factory=dict)
    differences: list[UnequalFact] = field(default_factory=list)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    not_known: dict[str, list[str]] = field(default_factory=dict)
    differs: dict[str, list[str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What stands under the table: what is the same, and a line for each fact that is not."""
        return [*self._common(), *(f"{MARK} {d.fact}: {', '.join(d.who)} {d.value}, the others {d.others}." for d in self.differences)]

    def short(self) -> list[str]:
        """The same with one line for all facts in which the same cells differ."""
        lines = self._common()
        for who, found in groupby(sorted(self.differences, key=lambda d: d.who), key=lambda d: d.who):
            said = "; ".join(f"{d.fact} {d.value} against {d.others}" for d in found)
            lines.append(f"{MARK} {', '.join(who)} and the others: {said}.")
        return lines

    def _common(self) -> list[str]:
        but = f" but the axes ({_keys(self.axes, ', ')})" if self.axes else ""
        everywhere = [fact for fact in self.same if fact not in self.unknown]
        where_known = [fact for fact in self.same if fact in self.unknown]
        lines = [f"Same over all cells{but}: {', '.join(everywhere)}."] if everywhere else []
        lines += [f"Same over the cells of which it is known{but}: {', '.join(where_known)}."] if where_known else []
        lines += [f"Same at equal {keys}: {', '.join(facts)}." for keys, facts in self.within.items()]
        lines += [f"Not compared, each {keys} has its own: {', '.join(facts)}." for keys, facts in self.apart.items()]
        lines += [f"Differs by method, on purpose: {fact} ({values})." for fact, values in self.by_method.items()]
        if self.n_trained == 1:
            lines.append("One training is known: there is nothing to compare it with.")
        by_cells = grouped((", ".join(cells), fact) for fact, cells in self.unknown.items())
        return [*lines, *(f"Not known of {cells}: {', '.join(facts)}." for cells, facts in by_cells.items())]

    def words(self, key: str) -> str:
        """What table.csv says of a cell: names of the facts in which it differs; those that nobody knows are not the same."""
        return "; ".join([*self.differs.get(key, ()), *(f"{fact} not known" for fact in self.not_known.get(key, ()))])

    def to_json(self, cells: Sequence[CellFacts]) -> dict[str, Any]:
        facts = {cell.key: {"row": cell.row, "name": cell.name, "seed": cell.where.get("seed"), **cell.facts} for cell in cells}
        return {**asdict(self), "cells": facts}


def certify(cells: Sequence[CellFacts], axes: Sequence[str]) -> Certificate:
    """Hold the cells' facts against each other."""
    certificate = Certificate(tuple(axes), sum(any(fact.of and cell.facts.get(fact.name) is not None for fact in FACTS) for cell in cells))
    for fact in FACTS:
        having = [cell for cell in cells if fact.name in cell.facts]
        known = [cell for cell in having if cell.facts[fact.name] is not None]
        if missing := [cell for cell in having if cell not in known]:
            certificate.unknown[fact.name] = list(_who(missing, having))
            for cell in missing:
                certificate.not_known.setdefault(cell.key, []).append(fact.name)
        if len(known) > 1:
            _compare(fact, known, certificate)
    return certificate


def _compare(fact: Fact, cells: Sequence[CellFacts], certificate: Certificate) -> None:
    values = {cell.key: cell.facts[fact.name] for cell in cells}
    excuses = [axis for axis in certificate.axes if excused(axis, fact.moved_by)]
    keys = [key for key in dict.fromkeys([*excuses, *fact.within]) if len({str(cell.where.get(key)) for cell in cells}) > 1]
    blocks = grouped((tuple(str(cell.where.get(key)) for key in keys), cell) for cell in cells)
    unreadable = [axis for axis in excuses if all(cell.where.get(axis) is None for cell in cells)]
    if unreadable and len(set(values.values())) > 1:
        certificate.apart.setdefault(_keys(unreadable), []).append(fact.name)
        return
    # The most common value; of two as common, the one that comes first.
    usual = {key: Counter(values[cell.key] for cell in block).most_common(1)[0][0] for key, block in blocks.items()}
    odd = {key: found for key, block in blocks.items() if (found := [cell for cell in block if values[cell.key] != usual[key]])}
    if odd:
        found = [cell for block in odd.values() for cell in block]
        for cell in found:
            certificate.differs.setdefault(cell.key, []).append(fact.name)
        theirs, usuals = _words([values[cell.key] for cell in found]), _words([usual[key] for key in odd])
        certificate.differences.append(UnequalFact(fact.name, _who(found, cells), theirs, usuals))
    elif len(set(values.values())) == 1:
        certificate.same.append(fact.name)
    elif keys == ["method.name"]:
        by_value = grouped((values[cell.key], cell.method) for cell in cells)
        certificate.by_method[fact.name] = "; ".join(f"{', '.join(dict.fromkeys(m))} {_words([v])}" for v, m in by_value.items())
    else:
        several = any(len(block) > 1 for block in blocks.values())
        (certificate.within if several else certificate.apart).setdefault(_keys(keys), []).append(fact.name)


def excused(axis: str, moved_by: Sequence[str]) -> bool:
    """Whether an axis may move a fact: it sets one of the settings, or something in the group that one names. The choice of the method
    excuses nothing by itself."""
    return any(axis == key or axis.startswith(f"{key}.") or (axis != "method" and key.startswith(f"{axis}.")) for key in moved_by)


def _words(values: Sequence[Value | None]) -> str:
    """One value, the span of numbers, or the first of several texts and how many more there are."""
    found = list(dict.fromkeys(values))
    numbers = sorted(value for value in found if isinstance(value, int | float))
    if len(numbers) == len(found):
        return f"{numbers[0]:g}" if len(numbers) == 1 else f"{numbers[0]:g} to {numbers[-1]:g}"
    return f"{found[0]}" + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")


def _keys(keys: Sequence[str], joined: str = " and ") -> str:
    return joined.join(key.removeprefix("method.").replace("name", "method") for key in keys)


def _who(found: Sequence[CellFacts], cells: Sequence[CellFacts]) -> tuple[str, ...]:
    """A method for all of its cells, else the rows of the table, and how many of their seeds where not all."""
    methods: dict[str, None] = {}
    rows: Counter[int] = Counter()
    for cell in found:
        if all(other in found for other in cells if other.method == cell.method):
            methods[cell.method] = None
        else:
            rows[cell.row] += 1
    seeds = Counter(cell.row for cell in cells)
    by_seeds = grouped((f" ({n} of {seeds[row]} seeds)" if n < seeds[row] else "", row) for row, n in rows.items())
    return (*methods, *(f"{row_words(numbers)}{some}" for some, numbers in by_seeds.items()))


# From the store -------------------------------------------------------------------------------------------------------


def known(row: CellRow, group: Group, axes: Sequence[str], store: Store) -> CellFacts:
    """What the store knows of one cell of a group."""
    cell, roles = row.cell.cell, row.cell.roles
    facts: dict[str, Value | None] = {}
    if not isinstance(cell.method, NoMethod):
        train = roles.get("train")
        measured = None
        if train is not None and store.is_done(train) and (path := store.folder(train) / "facts.json").exists():
            measured = TrainFacts.read(path)
        facts = {fact.name: fact.of(measured) if measured else None for fact in FACTS if fact.of}
    manners = [manner for manner in MANNERS if f"{manner}_completions" in roles]
    facts |= {
        "decoding": _each(manners, lambda manner: _decoding(roles[f"{manner}_completions"], store)),
        "items": _each(manners, lambda manner: _items(roles.get(f"{manner}_items"), roles[f"{manner}_completions"], store)),
        "judge": _each(manners, lambda manner: _judge(roles.get(f"{manner}_verdicts"), cell.judge.name, store)),
    }
    if "votes_from_text" in row.metrics:
        facts["votes without log-probs"] = int(row.metrics["votes_from_text"])
    where = {key: chosen(cell, key) for key in (*axes, "seed", "method.name")}
    return CellFacts(row.cell.key, group.number, group.name, method_name(cell), where, facts)


def _each(manners: Sequence[str], of: Callable[[str], str | None]) -> str | None:
    """The same question of every manner of evaluation; not known where one is not."""
    found = {manner: of(manner) for manner in manners}
    return None if None in found.values() or not found else "; ".join(f"{manner}: {value}" for manner, value in found.items())


def _decoding(stage: Stage, store: Store) -> str | None:
    """None for a file of completions, too."""
    settings = stage.settings
    if (decoding := getattr(settings, "decoding", None)) is None or not store.is_done(stage):
        return None
    assert isinstance(settings, GenerateSettings)
    how = ["greedy" if decoding.temperature == 0 else f"temperature {decoding.temperature:g}, top_p {decoding.top_p:g}"]
    how += [f"{category} {temperature:g}" for category, temperature in sorted(settings.temperatures.items())]
    how += [f"{decoding.max_new_tokens} tokens, {settings.engine} {settings.dtype}"]
    how += [f"best of {settings.best_of}"] if settings.best_of > 1 else []
    how += [f"asked with {settings.control}"] if settings.control else []
    return ", ".join(how)


def _items(stage: Stage | None, completions: Stage, store: Store) -> str | None:
    """Which they are, and how many of them a file of completions answers."""
    if not store.is_done(stage):
        return None
    counts = store.manifest(completions).counts if store.is_done(completions) else {}
    some = f", {counts['rows']} of {counts['rows'] + counts['missing']} answered" if counts.get("missing") else ""
    return f"{store.manifest(stage).digest[:DIGITS]}{some}"


def _judge(stage: Stage | None, name: str, store: Store) -> str | None:
    """Its keyed settings and what it reads from outside (prompts, a model's folder), and the models that its replies name. Nobody is a
    judge like another."""
    if stage is None:
        return name
    if not store.is_done(stage):
        return None
    members = [source for source in stage.inputs.values() if isinstance(source, Stage) and source.kind == "judge"]  # of a jury
    asked = [found for found in (stage, *members) if store.is_done(found)]
    verdicts = [verdict for found in asked for verdict in read_verdicts(store.folder(found))]
    served = sorted({call.served for verdict in verdicts for call in verdict.calls if call.served})
    return ", ".join([f"{name} ({hash_key(_asked(stage))[:DIGITS]})", *served])


def _asked(stage: Stage) -> list[Any]:
    """What makes a judge the one that it is, whatever it judges: a jury's members, too."""
    read = {role: source for role, source in stage.inputs.items() if role not in ("items", "completions")}
    known = {role: _asked(source) if isinstance(source, Stage) else source.key for role, source in read.items()}
    return [keyed_settings(stage.settings), known]
