"""Splits of a dataset: train, held-out and later iterations' rows.

Overlap of train rows with the judge's items.

Copies of a prompt (`subsets.prompt_group`) stay together in every split. The train prompts have one seeded
order. The first ones are labelled (`fraction`; a smaller fraction is part of a larger one). The next ones are
the prompts of a loop's iterations; those of one iteration are disjoint from those of all earlier ones, as SPA
splits UltraFeedback (Kim et al. 2024: 2K labelled, then 8K, 20K, 30K of one shuffle).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.readers import Splits, place_of, read_dataset, row_form
from bench.readers.learnable import AS_CONTROL, UNWRITABLE, LearnCheck
from bench.readers.rows import OPPOSITE, opposites, read_preferences
from bench.readers.subsets import hash_fraction, normalised, prompt_group, prompt_key, split_heldout
from bench.records import Item, Pair, Unpaired, own_completions
from bench.store.stage_settings import DatasetRows, LocalPairData


@dataclass(frozen=True)
class Divided:
    """Rows of a dataset by use, with their counts.

    `next_prompts`: one row of each train prompt that is not labelled, in the seeded order.
    """

    train: list[Any]
    heldout: list[Any]
    next_prompts: list[Any]
    counts: dict[str, int]


def divide(
    settings: LocalPairData, path: Path, items: Sequence[Item] = (), learn_check: LearnCheck | None = None
) -> Divided:
    """Rows of a dataset by use: train, held-out, prompts of later iterations.

    `items`: the judge's items; train rows with the same questions are dropped or refused (data.overlap).
    `learn_check` checks that a model learns from a row; the other rows are dropped or refused. Raises
    ValueError for an empty split, a refused overlap, and rows that the chat template cannot write.
    """
    divided = (
        _of_dataset(settings, settings.dataset, path, learn_check)
        if settings.dataset
        else _of_file(settings, path, learn_check)
    )
    train, counts = divided.train, divided.counts
    if items:
        same = overlap(train, items)
        counts |= overlap_counts("items", same)
        if same and settings.overlap == "refuse":
            first = next(row for row in train if row.id in same).prompt[-1]["content"]
            raise ValueError(
                f"{len(same)} train rows have the question of an item of the judge (data.overlap=refuse), for example {first[:80]!r}. "
                "Set data.overlap=drop to leave them out, or data.overlap=report to train on them with a note in the report"
            )
        train = [row for row in train if row.id not in same]
    if (settings.fraction and not train) or not divided.heldout:
        raise ValueError(
            f"{path}: {len(train)} train and {len(divided.heldout)} held-out rows at data.heldout_fraction={settings.heldout_fraction:g}"
            f"{_dropped(counts)}. Both must hold rows: change the fraction or add prompts"
        )
    if settings.dataset is None:
        return Divided(train, divided.heldout, [], counts)
    first_rows: dict[str, Any] = {}
    for row in train:
        first_rows.setdefault(prompt_group(row.prompt), row)
    order = list(first_rows)
    random.Random(f"prompts/{settings.seed}").shuffle(order)
    n = max(1, round(settings.fraction * len(order))) if settings.fraction else 0
    labelled = set(order[:n])
    counts |= {"train_prompts": n, "all_train_prompts": len(order), "all_train": len(train)}
    return Divided(
        [row for row in train if prompt_group(row.prompt) in labelled],
        divided.heldout,
        [first_rows[group] for group in order[n:]],
        counts,
    )


def _dropped(counts: Mapping[str, int]) -> str:
    """Counts of dropped rows by reason, in words; empty without any."""
    reasons = [f"{n} {name.partition('/dropped/')[2]}" for name, n in counts.items() if "/dropped/" in name]
    return f" (dropped: {', '.join(reasons)})" if reasons else ""


FILE = "file"  # first part of the names of counts of a file's rows, before they are split


def _of_file(settings: LocalPairData, path: Path, learn_check: LearnCheck | None) -> Divided:
    preferences = read_preferences(path)
    rows: list[Any] = list(preferences.rows)
    counts = {f"{FILE}/read": len(rows)} | {
        f"{FILE}/noted/{words}": n for words, n in sorted(preferences.noted.items())
    }
    _note(counts, FILE, OPPOSITE, opposites(rows))
    if learn_check is not None:
        rows = _learnable(rows, learn_check, settings, path, FILE, counts)
    train, heldout = split_heldout(rows, settings.heldout_fraction)
    return Divided(train, heldout, [], counts)


def _of_dataset(
    settings: LocalPairData, dataset: DatasetRows, path: Path, learn_check: LearnCheck | None
) -> Divided:
    splits = read_dataset(path, dataset.reading, dataset.train_files, dataset.heldout_files)
    counts = dict(splits.counts)
    for split, rows in (("train", splits.train), ("heldout", splits.heldout or [])):
        if rows and row_form(rows[0]) is not None:
            _note(counts, split, OPPOSITE, opposites(rows))
    if learn_check is not None:
        of_train, of_heldout = splits.train, splits.heldout
        splits = Splits(
            _learnable(of_train, learn_check, settings, path, "train", counts),
            None
            if of_heldout is None
            else _learnable(of_heldout, learn_check, settings, path, "heldout", counts),
            counts,
        )
    if splits.heldout is None:
        sides: tuple[list[Any], list[Any]] = ([], [])
        for row in splits.train:
            sides[hash_fraction(prompt_group(row.prompt)) < settings.heldout_fraction].append(row)
        train, heldout = sides
    else:
        exact = {prompt_key(row.prompt) for row in splits.heldout}
        groups = {prompt_group(row.prompt) for row in splits.heldout}
        same = {
            row.id: _how(prompt_key(row.prompt) in exact)
            for row in splits.train
            if prompt_group(row.prompt) in groups
        }
        counts |= overlap_counts("heldout", same)
        train, heldout = [row for row in splits.train if row.id not in same], splits.heldout
    if dataset.form == "unpaired":
        train, heldout = ([_as_unpaired(row, settings.seed) for row in rows] for rows in (train, heldout))
    elif dataset.form == "paired" and train and row_form(train[0]) != "paired":
        raise ValueError(f"{path} holds unpaired rows, but data.form=paired needs pairs")
    if dataset.n_heldout is not None:
        groups_in_order = sorted({prompt_group(row.prompt) for row in heldout}, key=hash_fraction)
        kept = set(groups_in_order[: dataset.n_heldout])
        heldout = [row for row in heldout if prompt_group(row.prompt) in kept]
    return Divided(train, heldout, [], counts)


def _learnable(
    rows: list[Any],
    learn_check: LearnCheck,
    settings: LocalPairData,
    path: Path,
    split: str,
    counts: dict[str, int],
) -> list[Any]:
    """The rows that a model learns from. The others are counted in `counts`.

    Raises ValueError for rows that the chat template cannot write, unless data.unwritable=drop.
    """
    kept, refused = [], []
    for row in rows:
        problem = learn_check(row.prompt, own_completions(row))
        if problem is None:
            kept.append(row)
            for mark in learn_check.special_tokens(row.prompt, own_completions(row)):
                _note(counts, split, f"with {mark} {AS_CONTROL}", 1)
        elif problem.reason == UNWRITABLE and settings.unwritable == "refuse":
            refused.append((row, problem.why))
        else:
            name = f"{split}/dropped/{problem.reason}"
            counts[name] = counts.get(name, 0) + 1
    if refused:
        row, why = refused[0]
        place = f"{path}:{row.id}" if settings.dataset is None else place_of(row.id, path, settings.dataset)
        raise ValueError(
            f"the model's chat template cannot write {len(refused)} of {len(rows)} {'' if split == FILE else f'{split} '}rows. "
            f"The first is {place}: {why}. Set another model.chat_template, or data.unwritable=drop to leave them out and count them"
        )
    return kept


def _note(counts: dict[str, int], split: str, reason: str, n: int) -> None:
    """Add `n` to the count of rows that are kept and noted for `reason`."""
    if n:
        name = f"{split}/noted/{reason}"
        counts[name] = counts.get(name, 0) + n


def _as_unpaired(row: Any, seed: int) -> Unpaired:
    """Unpaired row from a pair: a seeded coin takes its chosen or its rejected completion.

    Unpaired rows stay as they are. Train and held-out rows are treated the same, as in the controlled world.
    """
    if not isinstance(row, Pair):
        return row
    desirable = random.Random(f"unpaired/{seed}/{row.id}").random() < 0.5
    return Unpaired(row.id, row.prompt, row.chosen if desirable else row.rejected, desirable, "")


# Overlap --------------------------------------------------------------------------------------------------------------

How = Literal["exact", "normalised"]


def _how(exact: bool) -> How:
    return "exact" if exact else "normalised"


def overlap(rows: Sequence[Any], items: Sequence[Item]) -> dict[str, How]:
    """Rows with the question of an item as their first message, by row id.

    A row is "exact" if the texts are equal, and "normalised" if they differ only in case, spaces and
    punctuation at the ends.
    """
    questions = {
        item.context[0]["content"] if item.context and item.context[0]["role"] == "user" else item.turns[0]
        for item in items
    }
    normalised_questions = {normalised(question) for question in questions}
    overlaps: dict[str, How] = {}
    for row in rows:
        opening = next((m["content"] for m in row.prompt if m["role"] in ("user", "text")), "")
        if opening in questions or normalised(opening) in normalised_questions:
            overlaps[row.id] = _how(opening in questions)
    return overlaps


def overlap_counts(of: str, same: Mapping[str, How]) -> dict[str, int]:
    return {
        f"overlap/{of}/{how}": sum(kind == how for kind in same.values()) for how in ("exact", "normalised")
    }
