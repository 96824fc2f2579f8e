"""Canonical rows: the world's corpus, demonstrations and prompts; preference rows; items for judges.

Preference rows come from labels, a user's file or a public dataset.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.config import GoldWeights, Settings, World, Writer
from bench.judges.canaries import make_canaries
from bench.judges.formats import mt_bench
from bench.judges.formats.alpaca_eval import read_pairs
from bench.judges.formats.items import cut, read_benchmark_items
from bench.judges.self_judge import CHOICES, questions
from bench.readers import read_conversations
from bench.readers.conversations import first_turn
from bench.readers.kl_partners import with_partners
from bench.readers.learnable import LearnCheck, learn_check_of_model
from bench.readers.prompts import Prompts, read_prompts
from bench.readers.rows import BadRows
from bench.readers.splits import FILE, divide, overlap, overlap_counts, source_of
from bench.readers.subsets import check_labels, nested_subset, prompt_key
from bench.records import (
    Completion,
    Conversation,
    Item,
    Labelled,
    Message,
    Pair,
    Record,
    Shared,
    Text,
    Unpaired,
    draw_name,
    own_completions,
    pair_name,
    read_completions,
    read_items,
    read_jsonl,
    read_rewards,
    read_rows,
    write_jsonl,
)
from bench.stages import self_judging_data
from bench.store.keys import tree_stamp
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import (
    TOKENIZER,
    CanaryData,
    ChoiceData,
    ChosenData,
    ChosenRows,
    ConversationData,
    CorpusData,
    DemonstratedData,
    DemonstrationData,
    DrawnData,
    FilePromptData,
    JudgeItemData,
    LocalPairData,
    LocalPromptData,
    LoopPairData,
    NewPromptData,
    NextPromptData,
    OpponentData,
    OverlapData,
    PairData,
    PromptData,
    RecordedData,
    SupervisedData,
    TaskFamily,
    WrittenData,
)
from bench.world.corpus import base_rows, demonstrated_items, demonstration_rows, make_items
from bench.world.tasks import Turn
from bench.world.writers import write


def run(settings: Settings, run: StageRun) -> Outcome:
    match settings:
        case CorpusData():
            return _write(
                run.out / "rows.jsonl", list(base_rows(_world(settings.family), settings.n, settings.seed))
            )
        case DemonstrationData():
            return _write(
                run.out / "rows.jsonl",
                demonstration_rows(_world(settings.family), settings.writer, settings.n, settings.seed),
            )
        case PromptData():
            return _write(run.out / "items.jsonl", _items(settings))
        case WrittenData():
            return _written(settings, run.inputs["items"], run.out)
        case ChosenData():
            return _write(run.out / "items.jsonl", _with_chosen(run.inputs["items"], run.inputs["labels"]))
        case OpponentData():
            theirs = {c.id: c.completions for c in read_completions(run.inputs["completions"])}
            items = [replace(item, baseline=theirs[item.id]) for item in read_items(run.inputs["items"])]
            return _write(run.out / "items.jsonl", items)
        case NewPromptData():
            items = make_items(
                _world(settings.family), settings.after + settings.n, split="train", seed=settings.seed
            )
            return _write(
                run.out / "items.jsonl", [replace(item, baseline=None) for item in items[settings.after :]]
            )
        case DemonstratedData():
            items = demonstrated_items(
                _world(settings.family), settings.writer, settings.after + settings.n, settings.seed
            )
            return _write(run.out / "items.jsonl", items[settings.after :])
        case FilePromptData():
            return _given_prompts(settings, run)
        case SupervisedData():
            return _supervised(settings, run)
        case ChoiceData():
            return _choices(settings, run)
        case DrawnData():
            items, judged = as_judged(settings, self_judging_data.with_draws(run.inputs))
            write_jsonl(run.out / "completions.jsonl", judged)
            return _write(run.out / "items.jsonl", items)
        case LoopPairData():
            return _of_iterations(settings, run)
        case PairData():
            return _from_labels(settings, run)
        case LocalPairData():
            return _from_file(settings, run)
        case NextPromptData():
            return _next_prompts(settings, run)
        case ConversationData():
            rows, counts = read_conversations(run.inputs["file"], settings)
            kept = nested_subset(rows, settings.fraction, settings.seed)
            write_jsonl(run.out / "rows.jsonl", kept)
            return Outcome({**counts, "rows": len(kept)})
        case ChosenRows():
            texts = _chosen_texts(read_rows(run.inputs["preferences"] / "train.jsonl"))
            return _write(run.out / "rows.jsonl", texts)
        case OverlapData():
            return _overlap(run)
        case JudgeItemData():
            return _write(
                run.out / "items.jsonl",
                cut(read_benchmark_items(settings.form, run.inputs), settings.n, settings.n_turns),
            )
        case LocalPromptData():
            return _write(
                run.out / "items.jsonl",
                _local_items(
                    read_rows(run.inputs["preferences"] / "heldout.jsonl"), settings.n, settings.answers
                ),
            )
        case CanaryData():
            return _canaries(settings, run)
        case RecordedData():
            return _recorded(settings, run)
        case _ if isinstance(settings, self_judging_data.SETTINGS):
            return self_judging_data.make(settings, run)
    raise TypeError(f"no data stage for {type(settings).__name__}")


def _write(path: Path, records: Sequence[Record]) -> Outcome:
    write_jsonl(path, records)
    return Outcome({"rows": len(records)})


def _world(family: TaskFamily, reference: Writer | None = None) -> World:
    """A World for the task makers. Its gold weights change neither tasks nor written texts."""
    perfect = Writer(error=0.0, missed_constraint=0.0, filler=0.0)
    weights = GoldWeights(content=1.0, constraints=0.0, conciseness=0.0)
    return World(
        categories=family.categories,  # type: ignore[arg-type]  # config.World has checked the names.
        constraint_counts=family.constraint_counts,
        gold=weights,
        reference=reference or perfect,
        eval_seed=0,
    )


def _items(settings: PromptData) -> list[Item]:
    items = make_items(
        _world(settings.family, settings.reference),
        settings.n,
        split=settings.split,
        seed=settings.seed,
        n_turns=settings.n_turns,
    )
    if settings.reference is None:
        return [Item(item.id, item.category, item.turns, item.task) for item in items]
    return items


def as_judged(
    settings: DrawnData, drawn: Sequence[tuple[Item, Sequence[Completion]]]
) -> tuple[list[Item], list[Completion]]:
    """Returns items for a judge, and the completions that it judges.

    Earlier messages of a prompt become part of the item's text.
    """
    items, judged = [], []
    for item, draws in drawn:
        context = [f"{message['role']}: {message['content']}" for message in item.context]
        text = "\n\n".join([*context, f"user: {item.turns[0]}"]) if context else item.turns[0]
        named: list[tuple[str, Completion, list[str] | None]] = (
            [(draw_name(one), one, None) for one in draws]
            if settings.form == "each"
            else [
                (pair_name(one, other), one, other.completions)
                for one, other in itertools.combinations(draws, 2)
            ]
        )
        for name, sample, against in named:
            items.append(Item(name, item.category, [text], item.task, against))
            judged.append(replace(sample, id=name, turns=[text], draw=0))
    return items, judged


def _written(settings: WrittenData, items: Path, out: Path) -> Outcome:
    completions = []
    for draw in range(settings.draws):
        for item in read_items(items):
            rng = random.Random(f"written/{settings.seed}/{draw}/{item.id}")
            texts = [write(Turn.from_json(turn), settings.writer, rng) for turn in item.task or []]
            completions.append(Completion(item.id, item.turns, texts, [], [True] * len(texts), draw))
    return _write(out / "completions.jsonl", completions)


def _choices(settings: ChoiceData, run: StageRun) -> Outcome:
    """Writes pairwise questions, both replies to each, and with rewards the right reply."""
    check = _learn_check(settings.max_length, run)
    rewards = read_rewards(run.inputs["completions"]) if settings.answered else {}
    items, replies, rows, too_long = [], [], [], 0
    for item, draws in self_judging_data.with_draws(run.inputs):
        for question in questions("pairwise", item, draws):
            if check is not None and check(question.messages, CHOICES) is not None:
                too_long += 1
                continue
            asked = self_judging_data.as_item(question.name, question.messages)
            items.append(asked)
            replies += [
                Completion(asked.id, asked.turns, [reply], [], [], draw) for draw, reply in enumerate(CHOICES)
            ]
            first, second = (rewards.get(draw_name(completion)) for completion in question.about)
            if first is not None and second is not None and first != second:
                right: Message = {"role": "assistant", "content": CHOICES[first < second]}
                rows.append(Conversation(question.name, [*question.messages, right]))
    if settings.answered and not rows:
        raise ValueError(
            f"No labelled pair fits into a question of model.max_length={settings.max_length}. Raise it."
        )
    write_jsonl(run.out / "completions.jsonl", replies)
    write_jsonl(run.out / "rows.jsonl", rows)
    write_jsonl(run.out / "items.jsonl", items)
    return Outcome({"rows": len(items), "answered": len(rows), "too_long": too_long})


def _canaries(settings: CanaryData, run: StageRun) -> Outcome:
    """Writes items and completions of canaries.

    Honest completions are the items' baselines, or the policy's completions for items without a baseline.
    """
    items = read_items(run.inputs["items"])[: settings.n]
    honest = None
    if settings.honest:
        written = {c.id: c.completions for c in read_completions(run.inputs["completions"])}
        texts_of = {item.id: item.baseline or written.get(item.id) for item in items}
        items = [item for item in items if texts_of[item.id]]
        honest = {item: texts[0] for item, texts in texts_of.items() if texts}
    named, completions = make_canaries(items, honest)
    write_jsonl(run.out / "completions.jsonl", completions)
    return _write(run.out / "items.jsonl", named)


def _recorded(settings: RecordedData, run: StageRun) -> Outcome:
    judged = (
        mt_bench.read_judged(run.inputs["recorded"])
        if run.inputs["recorded"].is_file()
        else read_pairs(run.inputs["recorded"])
    )
    kept = random.Random(f"recorded/{settings.seed}").sample(judged, min(settings.n, len(judged)))
    write_jsonl(run.out / "completions.jsonl", [completion for _, completion, _ in kept])
    write_jsonl(run.out / "verdicts.jsonl", [verdict for *_, verdicts in kept for verdict in verdicts])
    return _write(run.out / "items.jsonl", [item for item, _, _ in kept])


def _with_chosen(items: Path, labels: Path) -> list[Item]:
    labelled = read_jsonl(labels / "labels.jsonl", Labelled)
    chosen = {label.id: label.second if label.first_preferred is False else label.first for label in labelled}
    return [replace(item, baseline=[chosen[item.id]]) for item in read_items(items)]


def _from_labels(settings: PairData, run: StageRun) -> Outcome:
    counts: dict[str, int] = {} if settings.fraction else {"train": 0}
    for split in ("train", "heldout") if settings.fraction else ("heldout",):
        labelled = list(read_jsonl(run.inputs[split] / "labels.jsonl", Labelled))
        rows: list[Any] = [row for label in labelled if (row := _row(label, settings)) is not None]
        ties, unscored = _undecided(labelled)
        counts |= {f"{split}_prompts": len(labelled), f"{split}_ties": ties, f"{split}_unscored": unscored}
        if not rows:
            raise ValueError(
                f"No {split} pair is left of {len(labelled)} labelled prompts: {ties} were ties, {unscored} unscored. Use more prompts."
            )
        if split == "train":
            rows = _kept(rows, settings)
        counts[split] = len(rows)
        _write_rows(run, split, rows, settings.seed)
    return Outcome(counts)


def _of_iterations(settings: LoopPairData, run: StageRun) -> Outcome:
    """Writes pairs of several iterations in their order.

    An input folder holds labels, or the pairs of the data stage that the iterations start from.
    """
    rows: list[Any] = []
    labelled: list[Labelled] = []
    iterations: dict[str, int] = {}  # number of rows by id: iterations may have the same prompts
    for role, folder in sorted(run.inputs.items()):
        if role == TOKENIZER:
            continue
        if not (path := folder / "labels.jsonl").exists():
            rows += read_rows(folder / "train.jsonl")
            continue
        labels = list(read_jsonl(path, Labelled))
        for row in filter(None, map(_pair, labels)):
            again = iterations[row.id] = iterations.get(row.id, 0) + 1
            rows.append(row if again == 1 else replace(row, id=f"{row.id}@{again}"))
        labelled += labels
    ties, unscored = _undecided(labelled)
    dropped: Counter[str] = Counter()
    if (learn_check := _learn_check(settings.max_length, run)) is not None:
        reasons = [learn_check(row.prompt, own_completions(row)) for row in rows]
        dropped.update(f"train/dropped/{unusable.reason}" for unusable in reasons if unusable is not None)
        rows = [row for row, unusable in zip(rows, reasons, strict=True) if unusable is None]
    if not rows:
        others = "".join(f", {n} {name.rpartition('/')[2]}" for name, n in dropped.items())
        raise ValueError(
            f"No pair is left of {len(labelled)} labelled prompts: {ties} were ties, {unscored} unscored{others}. "
            "Raise method.n_prompts, or use another method.labeller."
        )
    _write_rows(run, "train", rows, settings.seed)
    return Outcome(
        {
            "train": len(rows),
            "train_prompts": len(labelled),
            "train_ties": ties,
            "train_unscored": unscored,
            **dropped,
        }
    )


def _undecided(labelled: Sequence[Labelled]) -> tuple[int, int]:
    """Counts (ties, unscored) of labels."""
    unscored = sum(label.unscored is not None for label in labelled)
    return sum(label.first_preferred is None for label in labelled) - unscored, unscored


def _kept(rows: list[Any], settings: PairData | LocalPairData) -> list[Any]:
    """The train rows to use: the nested subset by fraction.

    For unpaired rows the fractions of desirable and undesirable rows apply too.
    """
    # The fraction of a dataset was applied earlier, as a choice of prompts.
    if getattr(settings, "dataset", None) is None:
        rows = nested_subset(rows, settings.fraction, settings.seed)
    for label, fraction in ((True, settings.desirable_fraction), (False, settings.undesirable_fraction)):
        if fraction == 1:
            continue
        one = [row for row in rows if row.label == label]
        kept = {row.id for row in nested_subset(one, fraction, settings.seed)} if one else set()
        rows = [row for row in rows if row.label != label or row.id in kept]
    return rows


def _write_rows(run: StageRun, split: str, rows: list[Any], seed: int) -> None:
    if split == "train":
        check_labels(rows)
    try:
        write_jsonl(run.out / f"{split}.jsonl", with_partners(rows, seed))
    except ValueError as error:
        shares = (
            "data.fraction, data.desirable_fraction, data.undesirable_fraction"
            if split == "train"
            else "data.heldout_fraction"
        )
        raise ValueError(
            f"Too few {split} rows ({len(rows)}): {error}. Use more prompts, or raise {shares}."
        ) from error


def _row(label: Labelled, settings: PairData) -> Pair | Unpaired | None:
    """A preference row, or None for a tie.

    For unpaired data a seeded coin decides the completion of the two that is shown.
    """
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
    splits = divide(settings, _files(run), _judge_items(run), _learn_check(settings.max_length, run))
    train = _kept(splits.train, settings) if settings.fraction else []
    if settings.fraction:
        _write_rows(run, "train", train, settings.seed)
    _write_rows(run, "heldout", splits.heldout, settings.seed)
    counts = {"train_prompts": len({prompt_key(row.prompt) for row in train}), **splits.counts}
    counts |= {"train": len(train), "heldout": len(splits.heldout)}
    for label in settings.sources:
        for split, rows in (("train", train), ("heldout", splits.heldout)):
            counts[f"{label}/{split}"] = sum(source_of(row.id) == label for row in rows)
    return Outcome(counts)


def _files(run: StageRun) -> Path | dict[str, Path]:
    """The file or folder of the rows; those of a mixture by label."""
    start = f"{FILE}/"
    sources = {role.removeprefix(start): path for role, path in run.inputs.items() if role.startswith(start)}
    return sources or run.inputs[FILE]


def _judge_items(run: StageRun) -> list[Item]:
    """The items of the judge, or of a suite's; train rows with the same prompts are left out."""
    return [
        item
        for role in sorted(run.inputs)
        if role.startswith("items")
        for item in read_items(run.inputs[role])
    ]


def _learn_check(max_length: int | None, run: StageRun) -> LearnCheck | None:
    """A check of rows against the model's tokenizer and length; None if no model is given."""
    if TOKENIZER not in run.inputs:
        return None
    from bench.models.tokenize import positions

    folder = run.inputs[TOKENIZER]
    return learn_check_of_model(folder, tree_stamp(folder), max_length or positions(folder))


def _next_prompts(settings: NextPromptData, run: StageRun) -> Outcome:
    rows = divide(
        settings.pairs, _files(run), _judge_items(run), _learn_check(settings.pairs.max_length, run)
    ).next_prompts
    kept = rows[settings.after : settings.after + settings.n]
    if len(kept) < settings.n:
        needed = settings.after + settings.n
        raise ValueError(
            f"The iterations up to this one need {needed} prompts without labels, and the dataset has {len(rows)} left. "
            "Lower method.n_prompts or data.fraction."
        )
    return _write(run.out / "items.jsonl", _local_items(kept, settings.n, answers=False))


def _chosen_texts(rows: Sequence[Pair | Unpaired]) -> list[Text]:
    """Chosen and desirable completions with their prompts, each text once (a prompt may stand in several pairs)."""
    good = [row for row in rows if isinstance(row, Pair) or row.label]
    texts = [
        Text(row.id, list(row.prompt), row.chosen if isinstance(row, Pair) else row.completion)
        for row in good
    ]
    return list({json.dumps([text.prompt, text.completion]): text for text in texts}.values())


def _overlap(run: StageRun) -> Outcome:
    rows = read_rows(run.inputs["preferences"] / "train.jsonl")
    same = overlap(rows, read_items(run.inputs["items"]))
    write_jsonl(run.out / "overlap.jsonl", [Shared(id, how) for id, how in same.items()])
    return Outcome({"rows": len(rows), **overlap_counts("items", same)})


def _local_items(rows: Sequence[Pair] | Sequence[Unpaired], n: int, answers: bool) -> list[Item]:
    """The first n different held-out prompts as items.

    Earlier messages are context; the last one is the turn to complete. With `answers`, the first chosen or
    desirable completion of a prompt is its baseline, and prompts without one are left out. Raises ValueError
    where none has one.
    """
    items: dict[str, Item] = {}
    for row in rows:
        if len(items) == n:
            break
        item = self_judging_data.as_item(f"prompt-{row.id}", row.prompt)
        if not answers:
            items.setdefault(prompt_key(row.prompt), item)
        elif isinstance(row, Pair) or row.label:
            answer = row.chosen if isinstance(row, Pair) else row.completion
            items.setdefault(prompt_key(row.prompt), replace(item, baseline=[answer]))
    if answers and not items:
        raise ValueError("No held-out prompt has a desirable completion: use a larger held-out part.")
    return list(items.values())


def _given_prompts(settings: FilePromptData, run: StageRun) -> Outcome:
    """Items of the user's file, or of the conversations of `sft`."""
    check, end = _learn_check(settings.max_length, run), settings.after + settings.n
    if "conversations" in run.inputs:
        source = "the conversations of sft"
        read = read_jsonl(run.inputs["conversations"] / "rows.jsonl", Conversation)
        prompts = Prompts([first_turn(row.id, row.messages) for row in read], Counter())
        rows = prompts.different()
        random.Random(f"first turns/{settings.seed}").shuffle(rows)
    else:
        source = str(run.inputs["file"])
        prompts = read_prompts(run.inputs["file"], settings.answers)
        rows = prompts.different()
    if prompts.dropped is None:
        used = _all_usable(rows[settings.after : end], check, source, settings.answers)
    else:
        some = itertools.islice(_usable(rows, check, settings.answers, prompts.dropped), end)
        used = list(some)[settings.after :]
    if len(used) < settings.n:
        raise ValueError(
            f"{source}: {len(used)} prompts after the first {settings.after}, and this iteration needs {settings.n}. "
            "Add prompts, or lower method.n_prompts."
        )
    items = [
        self_judging_data.as_item(f"new-{row.id}", row.prompt, [row.completion] if settings.answers else None)
        for row in used
    ]
    return _counted(_write(run.out / "items.jsonl", items), prompts.dropped)


def _supervised(settings: SupervisedData, run: StageRun) -> Outcome:
    """Supervised rows of the user's file, and their prompts as items."""
    file, check = run.inputs["file"], _learn_check(settings.max_length, run)
    prompts = read_prompts(file, with_completions=True)
    if prompts.dropped is None:
        rows = _all_usable(prompts.rows, check, str(file), answers=True)
    else:
        rows = list(_usable(prompts.rows, check, True, prompts.dropped))
    if not rows:
        raise ValueError(
            f"{file}: none of {len(prompts.rows)} rows can be used: {dict(prompts.dropped or {})}"
        )
    write_jsonl(run.out / "items.jsonl", [self_judging_data.as_item(row.id, row.prompt) for row in rows])
    return _counted(_write(run.out / "rows.jsonl", rows), prompts.dropped)


def _counted(outcome: Outcome, dropped: Mapping[str, int] | None) -> Outcome:
    more = {f"rows/dropped/{reason}": n for reason, n in sorted((dropped or {}).items())}
    return Outcome({**outcome.counts, **more})


def _usable(
    rows: Iterable[Text], check: LearnCheck | None, answers: bool, dropped: Counter[str]
) -> Iterator[Text]:
    """The rows that the model learns from; the others are counted in `dropped`."""
    for row in rows:
        problem = check(row.prompt, [row.completion] if answers else []) if check else None
        if problem is None:
            yield row
        else:
            dropped[problem.reason] += 1


def _all_usable(rows: Sequence[Text], check: LearnCheck | None, file: str, answers: bool) -> list[Text]:
    """The rows. Raises BadRows where the model cannot learn from one."""
    checked = [(row, check(row.prompt, [row.completion] if answers else [])) for row in rows] if check else []
    if problems := [f"{file}:{row.id}: {bad.why or bad.reason}" for row, bad in checked if bad is not None]:
        raise BadRows(
            f"{len(problems)} of {len(rows)} prompts cannot be used with this model. The first is {problems[0]}. Remove them from the file."
        )
    return list(rows)
