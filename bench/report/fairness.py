"""Fairness certificate: facts equal in all cells, and differences that the sweep's axes do not explain.

Facts of a training are measured by the train stage (bench/training/training_record.py). Facts of judging are
the settings of its stages and the digest of the items. A fact can be unknown: the cell failed, or its
completions come from elsewhere. An unknown fact never counts as equal.

`FACTS` names the settings that may move each fact. Cells are compared at equal values of those of them that
are axes, and at an equal seed where the seed draws the fact. Cells with another value than the most common
one differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from bench.config import NoMethod
from bench.planning.inputs import CellPlan
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
DIGITS = 8  # Shown digits of a digest.


@dataclass(frozen=True)
class Fact:
    """One fact about a cell. An axis over a setting in `moved_by` explains a difference in it.

    Cells are compared only at equal values of the settings in `within`.
    """

    name: str
    moved_by: tuple[str, ...]
    of: Callable[[TrainFacts], Value] | None = None  # None for a fact of judging.
    within: tuple[str, ...] = ()


# Rows of the controlled world are sampled from the start model. Rows of an iterative method are sampled from
# the model of the iteration before, and its labels decide which are kept.
LABELS = (
    "labeller",
    "labelling_judge",
    "judge_init",
    "judge_prompt",
    "learns_from",
    "eft",
    "ift",
    "reward_model",
    "judging_reference",
    "length_penalty",
    "reward_fraction",
)
BEFORE = ("alpha", "distrusted", "threshold", "decoupling", "loss", "betas", "learning_rate_factors")
PROMPTS = ("prompts", "prompt_sets", "n_prompts", "new_prompts", "prompt_writer", "similarity")
ROWS = (
    "data",
    "world",
    "model",
    "scale",
    "method.iteration",
    *(f"method.{name}" for name in (*LABELS, *BEFORE, *PROMPTS)),
)
# The seed policy of an iterative method (iteration 0) has a batch of its own.
BATCH = ("method.batch_size", "method.gradient_accumulation_steps", "scale", "method.iteration")
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
    Fact(
        "schedule",
        ("method.lr_scheduler_type", "method.warmup_ratio", "scale"),
        lambda f: f"{f.schedule}, warm-up {f.warmup:g}",
    ),
    Fact("learning rate", RATE, lambda f: f.learning_rate, ("method.name",)),
    Fact("training dtype", ("model", "scale"), lambda f: f.dtype),
    Fact("decoding", ("judge", "engine", "model.dtype", "scale")),
    Fact("items", ("judge", "world", "data")),
    Fact("judge", ("judge", "world")),
    Fact("votes without log-probs", ("judge", "world")),
)


@dataclass(frozen=True)
class CellFacts:
    """Known facts of one cell. None is unknown; a fact that the cell cannot have is absent.

    `where` holds the cell's values of the axes, of `seed` and of `method.name`.
    """

    key: str
    row: int  # Row of the table; it pools seeds.
    name: str  # Name of that row.
    method: str
    where: Mapping[str, Any]
    facts: Mapping[str, Value | None]


@dataclass(frozen=True)
class UnequalFact:
    """One fact that differs between some cells and the others, with both values."""

    fact: str
    who: tuple[str, ...]  # Methods and rows of the table that differ.
    value: str
    others: str


@dataclass(frozen=True)
class Certificate:
    """Facts sorted by how they compare over the cells.

    - `same`: equal in all cells. `within`: equal between cells with equal values of some settings (the key).
    - `apart`: no two cells can be compared. `by_method`: differs between methods, never within one.
    - `differs`, `not_known`: names of facts by cell key. `unknown`: methods and rows by name of fact.
    """

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
        """Lines of table.md: the facts that are equal, then one line per fact that differs."""
        differences = (
            f"{d.value} in {', '.join(d.who)}; {d.others} in the other cells" for d in self.differences
        )
        return [
            *self._common(),
            *(
                f"{MARK} Cells differ in {d.fact}: {w}."
                for d, w in zip(self.differences, differences, strict=True)
            ),
        ]

    def short(self) -> list[str]:
        """Lines of the terminal: like `lines`, with one line per set of differing cells."""
        lines = self._common()
        for who, differences in groupby(sorted(self.differences, key=lambda d: d.who), key=lambda d: d.who):
            facts = "; ".join(f"{d.fact} {d.value} instead of {d.others}" for d in differences)
            lines.append(f"{MARK} These differ from the other cells: {', '.join(who)} ({facts}).")
        return lines

    def _common(self) -> list[str]:
        apart = f", apart from the axes ({_keys(self.axes, ', ')})" if self.axes else ""
        everywhere = [fact for fact in self.same if fact not in self.unknown]
        where_known = [fact for fact in self.same if fact in self.unknown]
        lines = [f"These facts are equal in all cells{apart}: {', '.join(everywhere)}."] if everywhere else []
        lines += (
            [f"These facts are equal in all cells where they are known{apart}: {', '.join(where_known)}."]
            if where_known
            else []
        )
        lines += [
            f"These facts are equal between cells with the same {keys}: {', '.join(facts)}."
            for keys, facts in self.within.items()
        ]
        lines += [
            f"These facts cannot be compared, because each {k} has its own: {', '.join(facts)}."
            for k, facts in self.apart.items()
        ]
        lines += [
            f"Methods differ in {fact} on purpose: {values}." for fact, values in self.by_method.items()
        ]
        if self.n_trained == 1:
            lines.append("Facts of only one training are known, so there is nothing to compare it with.")
        by_cells = grouped((", ".join(cells), fact) for fact, cells in self.unknown.items())
        return [
            *lines,
            *(
                f"These facts are not known for {cells}: {', '.join(facts)}."
                for cells, facts in by_cells.items()
            ),
        ]

    def words(self, key: str) -> str:
        """Text of the column `differs` of table.csv: facts unlike the other cells', then unknown facts."""
        return "; ".join(
            [*self.differs.get(key, ()), *(f"{fact} not known" for fact in self.not_known.get(key, ()))]
        )

    def to_json(self, cells: Sequence[CellFacts]) -> dict[str, Any]:
        facts = {
            cell.key: {"row": cell.row, "name": cell.name, "seed": cell.where.get("seed"), **cell.facts}
            for cell in cells
        }
        return {**asdict(self), "cells": facts}


def certify(cells: Sequence[CellFacts], axes: Sequence[str]) -> Certificate:
    """Compare the cells' facts with each other."""
    certificate = Certificate(
        tuple(axes),
        sum(any(fact.of and cell.facts.get(fact.name) is not None for fact in FACTS) for cell in cells),
    )
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
    keys = [
        key
        for key in dict.fromkeys([*excuses, *fact.within])
        if len({str(cell.where.get(key)) for cell in cells}) > 1
    ]
    blocks = grouped((tuple(str(cell.where.get(key)) for key in keys), cell) for cell in cells)
    unreadable = [axis for axis in excuses if all(cell.where.get(axis) is None for cell in cells)]
    if unreadable and len(set(values.values())) > 1:
        certificate.apart.setdefault(_keys(unreadable), []).append(fact.name)
        return
    # The most common value. Of two equally common values, the first one counts.
    usual = {
        key: Counter(values[cell.key] for cell in block).most_common(1)[0][0] for key, block in blocks.items()
    }
    odd = {
        key: some
        for key, block in blocks.items()
        if (some := [cell for cell in block if values[cell.key] != usual[key]])
    }
    if odd:
        differing = [cell for block in odd.values() for cell in block]
        for cell in differing:
            certificate.differs.setdefault(cell.key, []).append(fact.name)
        theirs, usuals = _words([values[cell.key] for cell in differing]), _words([usual[key] for key in odd])
        certificate.differences.append(UnequalFact(fact.name, _who(differing, cells), theirs, usuals))
    elif len(set(values.values())) == 1:
        certificate.same.append(fact.name)
    elif keys == ["method.name"]:
        by_value = grouped((values[cell.key], cell.method) for cell in cells)
        certificate.by_method[fact.name] = "; ".join(
            f"{', '.join(dict.fromkeys(m))} {_words([v])}" for v, m in by_value.items()
        )
    else:
        several = any(len(block) > 1 for block in blocks.values())
        (certificate.within if several else certificate.apart).setdefault(_keys(keys), []).append(fact.name)


def excused(axis: str, moved_by: Sequence[str]) -> bool:
    """Whether an axis explains a difference in a fact: it sets a setting in `moved_by`, or a part of one.

    The choice of the method alone explains nothing.
    """
    return any(
        axis == key or axis.startswith(f"{key}.") or (axis != "method" and key.startswith(f"{axis}."))
        for key in moved_by
    )


def _words(values: Sequence[Value | None]) -> str:
    """One value, the range of several numbers, or the first of several texts and how many more there are."""
    different = list(dict.fromkeys(values))
    numbers = sorted(value for value in different if isinstance(value, int | float))
    if len(numbers) == len(different):
        return f"{numbers[0]:g}" if len(numbers) == 1 else f"{numbers[0]:g} to {numbers[-1]:g}"
    return f"{different[0]}" + (f" (and {len(different) - 1} more)" if len(different) > 1 else "")


def _keys(keys: Sequence[str], joined: str = " and ") -> str:
    return joined.join(key.removeprefix("method.").replace("name", "method") for key in keys)


def _who(some: Sequence[CellFacts], cells: Sequence[CellFacts]) -> tuple[str, ...]:
    """Names for `some` of the cells: a method that has all its cells among them, else rows of the table.

    A row with only some of its seeds among them says how many.
    """
    methods: dict[str, None] = {}
    rows: Counter[int] = Counter()
    for cell in some:
        if all(other in some for other in cells if other.method == cell.method):
            methods[cell.method] = None
        else:
            rows[cell.row] += 1
    seeds = Counter(cell.row for cell in cells)
    by_seeds = grouped(
        (f" ({n} of {seeds[row]} seeds)" if n < seeds[row] else "", row) for row, n in rows.items()
    )
    return (*methods, *(f"{row_words(numbers)}{seeds_words}" for seeds_words, numbers in by_seeds.items()))


# From the store -------------------------------------------------------------------------------------------------------


def known(row: CellRow, group: Group, axes: Sequence[str], store: Store) -> CellFacts:
    """Facts of one cell of a group, read from the store."""
    cell, roles = row.cell.cell, row.cell.roles
    facts: dict[str, Value | None] = {}
    if not isinstance(cell.method, NoMethod):
        train = roles.get("train")
        measured = None
        if (
            train is not None
            and store.is_done(train)
            and (path := store.folder(train) / "facts.json").exists()
        ):
            measured = TrainFacts.read(path)
        facts = {fact.name: fact.of(measured) if measured else None for fact in FACTS if fact.of}
    judging = {
        label: _judging_facts(plan, store) for label, plan in (row.cell.evaluations or {"": row.cell}).items()
    }
    for name in ("decoding", "items", "judge"):
        of_all = {label: known[name] for label, known in judging.items()}
        facts[name] = (
            None
            if None in of_all.values()
            else "; ".join(f"{a}: {b}" if a else str(b) for a, b in of_all.items())
        )
    votes = [int(n) for name, n in row.metrics.items() if name.rpartition("/")[2] == "votes_from_text"]
    if votes:
        facts["votes without log-probs"] = sum(votes)
    where = {key: chosen(cell, key) for key in (*axes, "seed", "method.name")}
    return CellFacts(row.cell.key, group.number, group.name, method_name(cell), where, facts)


def _judging_facts(plan: CellPlan, store: Store) -> dict[str, str | None]:
    """Facts of one evaluation, read from the store."""
    roles, name = plan.roles, plan.cell.judge.name
    manners = [manner for manner in MANNERS if f"{manner}_completions" in roles]
    return {
        "decoding": _each(manners, lambda manner: _decoding(roles[f"{manner}_completions"], store)),
        "items": _each(
            manners,
            lambda manner: _items(roles.get(f"{manner}_items"), roles[f"{manner}_completions"], store),
        ),
        "judge": _each(manners, lambda manner: _judge(roles.get(f"{manner}_verdicts"), name, store)),
    }


def _each(manners: Sequence[str], of: Callable[[str], str | None]) -> str | None:
    """One fact for every manner of evaluation. None (unknown) where it is unknown for one of them."""
    values = {manner: of(manner) for manner in manners}
    return (
        None
        if None in values.values() or not values
        else "; ".join(f"{manner}: {value}" for manner, value in values.items())
    )


def _decoding(stage: Stage, store: Store) -> str | None:
    """Decoding settings in words.

    None where nothing was generated yet, or the completions come from a file.
    """
    settings = stage.settings
    if (decoding := getattr(settings, "decoding", None)) is None or not store.is_done(stage):
        return None
    assert isinstance(settings, GenerateSettings)
    how = [
        "greedy"
        if decoding.temperature == 0
        else f"temperature {decoding.temperature:g}, top_p {decoding.top_p:g}"
    ]
    how += [f"{category} {temperature:g}" for category, temperature in sorted(settings.temperatures.items())]
    how += [f"{decoding.max_new_tokens} tokens, {settings.engine} {settings.dtype}"]
    how += [f"best of {settings.best_of}"] if settings.best_of > 1 else []
    how += [f"control token {settings.control}"] if settings.control else []
    return ", ".join(how)


def _items(stage: Stage | None, completions: Stage, store: Store) -> str | None:
    """Digest of the items, and how many of them a file of completions answers."""
    if not store.is_done(stage):
        return None
    counts = store.manifest(completions).counts if store.is_done(completions) else {}
    some = (
        f", {counts['rows']} of {counts['rows'] + counts['missing']} answered"
        if counts.get("missing")
        else ""
    )
    return f"{store.manifest(stage).digest[:DIGITS]}{some}"


def _judge(stage: Stage | None, name: str, store: Store) -> str | None:
    """Name of the judge, a digest of its identity (see `_identity`), and its served models.

    Without a judge stage (`judge=none`) the name alone.
    """
    if stage is None:
        return name
    if not store.is_done(stage):
        return None
    members = [
        source for source in stage.inputs.values() if isinstance(source, Stage) and source.kind == "judge"
    ]
    judged = [judge for judge in (stage, *members) if store.is_done(judge)]
    verdicts = [verdict for judge in judged for verdict in read_verdicts(store.folder(judge))]
    served = sorted({call.served for verdict in verdicts for call in verdict.calls if call.served})
    return ", ".join([f"{name} ({hash_key(_identity(stage))[:DIGITS]})", *served])


def _identity(stage: Stage) -> list[Any]:
    """Keyed settings of a judge and its own inputs: prompts, a model's folder, a jury's members."""
    read = {role: source for role, source in stage.inputs.items() if role not in ("items", "completions")}
    known = {
        role: _identity(source) if isinstance(source, Stage) else source.key for role, source in read.items()
    }
    return [keyed_settings(stage.settings), known]
