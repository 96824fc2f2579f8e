"""Canonical rows: the world's corpus, demonstrations and prompts; preference rows from labels or from a user's file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.canaries import make_canaries
from bench.config import GoldWeights, Settings, World, Writer
from bench.judges.alpaca_eval import read_pairs
from bench.judges.items import cut, read_items
from bench.kinds import (
    CanaryData,
    ChosenData,
    CorpusData,
    DemonstratedData,
    DemonstrationData,
    JudgeItemData,
    LocalPairData,
    LocalPromptData,
    LoopPairData,
    NewPromptData,
    PairData,
    PromptData,
    RecordedData,
    TaskFamily,
    WrittenData,
)
from bench.preferences import nested_subset, prompt_key, read_preferences, split_heldout, with_partners
from bench.records import Completion, Item, Labelled, Pair, Record, Unpaired, read_jsonl, read_rows, write_jsonl
from bench.stages import evaluations
from bench.worker import Outcome, StageRun
from bench.world.corpus import base_rows, demonstrated_items, demonstration_rows, make_items
from bench.world.tasks import Turn
from bench.world.writers import write


def run(settings: Settings, run: StageRun) -> Outcome:
    match settings:
        case CorpusData():
            return _write(run.out / "rows.jsonl", list(base_rows(_world(settings.family), settings.n, settings.seed)))
        case DemonstrationData():
            return _write(run.out / "rows.jsonl", demonstration_rows(_world(settings.family), settings.writer, settings.n, settings.seed))
        case PromptData():
            return _write(run.out / "items.jsonl", _items(settings))
        case WrittenData():
            return _written(settings, run.inputs["items"], run.out)
        case ChosenData():
            return _write(run.out / "items.jsonl", _with_chosen(run.inputs["items"], run.inputs["labels"]))
        case NewPromptData():
            found = make_items(_world(settings.family), settings.after + settings.n, split="train", seed=settings.seed)
            return _write(run.out / "items.jsonl", [replace(item, baseline=None) for item in found[settings.after :]])
        case DemonstratedData():
            found = demonstrated_items(_world(settings.family), settings.writer, settings.after + settings.n, settings.seed)
            return _write(run.out / "items.jsonl", found[settings.after :])
        case LoopPairData():
            return _of_iterations(settings, run)
        case PairData():
            return _from_labels(settings, run)
        case LocalPairData():
            return _from_file(settings, run)
        case JudgeItemData():
            return _write(run.out / "items.jsonl", cut(read_items(settings.form, run.inputs), settings.n, settings.n_turns))
        case LocalPromptData():
            return _write(run.out / "items.jsonl", _local_items(read_rows(run.inputs["preferences"] / "heldout.jsonl"), settings.n))
        case CanaryData():
            items, completions = make_canaries(list(read_jsonl(run.inputs["items"] / "items.jsonl", Item))[: settings.n])
            write_jsonl(run.out / "completions.jsonl", completions)
            return _write(run.out / "items.jsonl", items)
        case RecordedData():
            return _recorded(settings, run)
        case _ if isinstance(settings, evaluations.SETTINGS):
            return evaluations.make(settings, run)
    raise TypeError(f"no data stage for {type(settings).__name__}")


def _write(path: Path, records: Sequence[Record]) -> Outcome:
    write_jsonl(path, records)
    return Outcome({"rows": len(records)})


def _world(family: TaskFamily, reference: Writer | None = None) -> World:
    """What task makers take; the gold weights do not touch what is asked or written."""
    perfect = Writer(error=0.0, missed_constraint=0.0, filler=0.0)
    weights = GoldWeights(content=1.0, constraints=0.0, conciseness=0.0)
    return World(
        categories=family.categories,  # type: ignore[arg-type]  # names that config.World has checked
        constraint_counts=family.constraint_counts,
        gold=weights,
        reference=reference or perfect,
        eval_seed=0,
    )


def _items(settings: PromptData) -> list[Item]:
    items = make_items(
        _world(settings.family, settings.reference), settings.n, split=settings.split, seed=settings.seed, n_turns=settings.n_turns
    )
    if settings.reference is None:
        return [Item(item.id, item.category, item.turns, item.task) for item in items]
    return items


def _written(settings: WrittenData, items: Path, out: Path) -> Outcome:
    completions = []
    for draw in range(settings.draws):
        for item in read_jsonl(items / "items.jsonl", Item):
            rng = random.Random(f"written/{settings.seed}/{draw}/{item.id}")
            text = write(Turn.from_json((item.task or [])[0]), settings.writer, rng)
            completions.append(Completion(item.id, item.turns[:1], [text], [], [True], draw))
    return _write(out / "completions.jsonl", completions)


def _recorded(settings: RecordedData, run: StageRun) -> Outcome:
    pairs = read_pairs(run.inputs["recorded"])
    kept = random.Random(f"recorded/{settings.seed}").sample(pairs, min(settings.n, len(pairs)))
    write_jsonl(run.out / "completions.jsonl", [completion for _, completion, _ in kept])
    write_jsonl(run.out / "verdicts.jsonl", [verdict for _, _, verdict in kept])
    return _write(run.out / "items.jsonl", [item for item, _, _ in kept])


def _with_chosen(items: Path, labels: Path) -> list[Item]:
    labelled = {label.id: label for label in read_jsonl(labels / "labels.jsonl", Labelled)}

    def chosen(label: Labelled) -> str:
        return label.second if label.first_preferred is False else label.first

    return [replace(item, baseline=[chosen(labelled[item.id])]) for item in read_jsonl(items / "items.jsonl", Item)]


def _from_labels(settings: PairData, run: StageRun) -> Outcome:
    counts: dict[str, int] = {}
    for split in ("train", "heldout"):
        labelled = list(read_jsonl(run.inputs[split] / "labels.jsonl", Labelled))
        rows: list[Any] = [row for label in labelled if (row := _row(label, settings)) is not None]
        unscored = sum(label.unscored is not None for label in labelled)
        ties = sum(label.first_preferred is None for label in labelled) - unscored
        counts |= {f"{split}_prompts": len(labelled), f"{split}_ties": ties, f"{split}_unscored": unscored}
        if not rows:
            raise ValueError(f"no {split} pair is left of {len(labelled)} labelled prompts: {ties} were ties, {unscored} unscored")
        if split == "train":
            rows = _kept(rows, settings)
        counts[split] = len(rows)
        _write_rows(run, split, rows, settings.seed)
    return Outcome(counts)


def _of_iterations(settings: LoopPairData, run: StageRun) -> Outcome:
    """Pairs of several iterations in their order; a folder holds labels, or the pairs of the data stage that a loop starts from."""
    rows: list[Any] = []
    labelled = ties = unscored = 0
    for _, folder in sorted(run.inputs.items()):
        if not (path := folder / "labels.jsonl").exists():
            rows += read_rows(folder / "train.jsonl")
            continue
        labels = list(read_jsonl(path, Labelled))
        rows += [row for label in labels if (row := _pair(label)) is not None]
        labelled += len(labels)
        unscored += (n := sum(label.unscored is not None for label in labels))
        ties += sum(label.first_preferred is None for label in labels) - n
    if not rows:
        raise ValueError(f"no pair is left of {labelled} labelled prompts: {ties} were ties, {unscored} unscored")
    _write_rows(run, "train", rows, settings.seed)
    return Outcome({"train": len(rows), "train_prompts": labelled, "train_ties": ties, "train_unscored": unscored})


def _kept(rows: list[Any], settings: PairData | LocalPairData) -> list[Any]:
    """The nested subset of the train rows that is used; of unpaired rows less of either label where that is asked."""
    rows = nested_subset(rows, settings.fraction, settings.seed)
    for label, fraction in ((True, settings.desirable_fraction), (False, settings.undesirable_fraction)):
        if fraction == 1:
            continue
        one = [row for row in rows if row.label == label]
        kept = {row.id for row in nested_subset(one, fraction, settings.seed)} if one else set()
        rows = [row for row in rows if row.label != label or row.id in kept]
    return rows


def _write_rows(run: StageRun, split: str, rows: list[Any], seed: int) -> None:
    try:
        write_jsonl(run.out / f"{split}.jsonl", with_partners(rows, seed))
    except ValueError as error:
        shares = "data.fraction, data.desirable_fraction, data.undesirable_fraction" if split == "train" else "data.heldout_fraction"
        way_out = f"bring more prompts, or set {shares} higher"
        raise ValueError(f"{len(rows)} {split} rows: {error}; {way_out}") from error


def _row(label: Labelled, settings: PairData) -> Pair | Unpaired | None:
    """A preference row, or None for a tie. Unpaired: a seeded coin says which of the two completions was shown."""
    pair = _pair(label)
    if pair is None or settings.form == "paired":
        return pair
    desirable = random.Random(f"unpaired/{settings.seed}/{label.id}").random() < 0.5
    return Unpaired(label.id, label.prompt, pair.chosen if desirable else pair.rejected, desirable, "")


def _pair(label: Labelled) -> Pair | None:
    if label.first_preferred is None:
        return None
    chosen, rejected = (label.first, label.second) if label.first_preferred else (label.second, label.first)
    return Pair(label.id, label.prompt, chosen, rejected, "", "")


def _from_file(settings: LocalPairData, run: StageRun) -> Outcome:
    rows: list[Any] = list(read_preferences(run.inputs["file"]).rows)
    train, heldout = split_heldout(rows, settings.heldout_fraction)
    if not train or not heldout:
        raise ValueError(
            f"{run.inputs['file']}: {len(train)} train and {len(heldout)} held-out rows at "
            f"data.heldout_fraction={settings.heldout_fraction:g}; both need some: change the fraction or bring more prompts"
        )
    train = _kept(train, settings)
    _write_rows(run, "train", train, settings.seed)
    _write_rows(run, "heldout", heldout, settings.seed)
    return Outcome({"train": len(train), "heldout": len(heldout), "train_prompts": len({prompt_key(row.prompt) for row in train})})


def _local_items(rows: Sequence[Pair] | Sequence[Unpaired], n: int) -> list[Item]:
    """The first n different held-out prompts, as items to answer: earlier messages are context, the last one is asked."""
    items: dict[str, Item] = {}
    for row in rows:
        if len(items) == n:
            break
        *context, last = row.prompt
        key = prompt_key(row.prompt)
        items.setdefault(key, Item(f"prompt-{row.id}", None, [last["content"]], context=context, plain=last["role"] == "text"))
    return list(items.values())
