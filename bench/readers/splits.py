"""Which rows of a dataset are trained on, which are held out, which prompts come next, and which ask what the judge asks.

Copies of a prompt (`preferences.prompt_group`) go together wherever rows are divided. The train prompts lie in one seeded order: the
first ones are labelled (`fraction`; a smaller share inside a larger one), the next ones are the prompts of a loop's iterations, each
iteration's disjoint from all before it, as SPA splits UltraFeedback (Kim et al. 2024: 2K labelled, then 8K, 20K, 30K of one shuffle).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.kinds import DatasetRows, LocalPairData
from bench.preferences import hash_fraction, normalised, prompt_group, prompt_key, read_preferences, split_heldout
from bench.readers import Splits, read_dataset, row_form
from bench.records import Item, Message, Pair, Unpaired

Fits = Callable[[Sequence[Message]], bool]  # whether a prompt leaves a place for a completion
TOO_LONG = "prompt too long"  # why a row is dropped


@dataclass(frozen=True)
class Divided:
    """`next_prompts`: a row of each train prompt that is not labelled, in their order."""

    train: list[Any]
    heldout: list[Any]
    next_prompts: list[Any]
    counts: dict[str, int]


def divide(settings: LocalPairData, path: Path, items: Sequence[Item] = (), fits: Fits | None = None) -> Divided:
    """Rows by what they are for. `items`: what the judge asks, where train rows that ask the same are dropped or refused. `fits`: of a
    dataset, rows whose prompts do not are dropped.

    Raises ValueError where nothing is left of a split, or for an overlap that is refused.
    """
    found = _of_dataset(settings, settings.dataset, path, fits) if settings.dataset else _of_file(settings, path)
    train, counts = found.train, found.counts
    if items:
        same = overlap(train, items)
        counts |= overlap_counts("items", same)
        if same and settings.overlap == "refuse":
            first = next(row for row in train if row.id in same).prompt[-1]["content"]
            raise ValueError(
                f"{len(same)} train rows ask what the judge asks (data.overlap=refuse), the first of them {first[:80]!r}: "
                "take data.overlap=drop, or report to train on them and have it said"
            )
        train = [row for row in train if row.id not in same]
    if (settings.fraction and not train) or not found.heldout:
        raise ValueError(
            f"{path}: {len(train)} train and {len(found.heldout)} held-out rows at data.heldout_fraction={settings.heldout_fraction:g}; "
            "both need some: change the fraction or bring more prompts"
        )
    if settings.dataset is None:
        return Divided(train, found.heldout, [], counts)
    first_rows: dict[str, Any] = {}
    for row in train:
        first_rows.setdefault(prompt_group(row.prompt), row)
    order = list(first_rows)
    random.Random(f"prompts/{settings.seed}").shuffle(order)
    n = max(1, round(settings.fraction * len(order))) if settings.fraction else 0
    labelled = set(order[:n])
    counts |= {"train_prompts": n, "all_train_prompts": len(order), "all_train": len(train)}
    return Divided(
        [row for row in train if prompt_group(row.prompt) in labelled], found.heldout, [first_rows[group] for group in order[n:]], counts
    )


def _of_file(settings: LocalPairData, path: Path) -> Divided:
    rows: list[Any] = list(read_preferences(path).rows)
    train, heldout = split_heldout(rows, settings.heldout_fraction)
    return Divided(train, heldout, [], {})


def _of_dataset(settings: LocalPairData, dataset: DatasetRows, path: Path, fits: Fits | None) -> Divided:
    splits = read_dataset(path, dataset.reading, dataset.train_files, dataset.heldout_files)
    counts = dict(splits.counts)
    if fits is not None:
        splits = _fitting(splits, fits, counts)
    if splits.heldout is None:
        sides: tuple[list[Any], list[Any]] = ([], [])
        for row in splits.train:
            sides[hash_fraction(prompt_group(row.prompt)) < settings.heldout_fraction].append(row)
        train, heldout = sides
    else:
        exact = {prompt_key(row.prompt) for row in splits.heldout}
        groups = {prompt_group(row.prompt) for row in splits.heldout}
        same = {row.id: _how(prompt_key(row.prompt) in exact) for row in splits.train if prompt_group(row.prompt) in groups}
        counts |= overlap_counts("heldout", same)
        train, heldout = [row for row in splits.train if row.id not in same], splits.heldout
    if dataset.form == "unpaired":
        train, heldout = ([_shown(row, settings.seed) for row in rows] for rows in (train, heldout))
    elif dataset.form == "paired" and train and row_form(train[0]) != "paired":
        raise ValueError(f"{path} holds unpaired rows: data.form=paired needs pairs")
    if dataset.n_heldout is not None:
        groups_in_order = sorted({prompt_group(row.prompt) for row in heldout}, key=hash_fraction)
        kept = set(groups_in_order[: dataset.n_heldout])
        heldout = [row for row in heldout if prompt_group(row.prompt) in kept]
    return Divided(train, heldout, [], counts)


def _fitting(splits: Splits, fits: Fits, counts: dict[str, int]) -> Splits:
    """The rows whose prompts fit; the others are counted."""
    known: dict[str, bool] = {}

    def kept(rows: list[Any], split: str) -> list[Any]:
        for row in rows:
            if (key := prompt_key(row.prompt)) not in known:
                known[key] = fits(row.prompt)
        fitting = [row for row in rows if known[prompt_key(row.prompt)]]
        if less := len(rows) - len(fitting):
            counts[f"{split}/dropped/{TOO_LONG}"] = less
        return fitting

    return Splits(kept(splits.train, "train"), None if splits.heldout is None else kept(splits.heldout, "heldout"), splits.counts)


def _shown(row: Any, seed: int) -> Unpaired:
    """Of a pair, the completion that a seeded coin shows; the same for held-out and train rows, as in the controlled world."""
    if not isinstance(row, Pair):
        return row
    desirable = random.Random(f"unpaired/{seed}/{row.id}").random() < 0.5
    return Unpaired(row.id, row.prompt, row.chosen if desirable else row.rejected, desirable, "")


# Overlap --------------------------------------------------------------------------------------------------------------

How = Literal["exact", "normalised"]


def _how(exact: bool) -> How:
    return "exact" if exact else "normalised"


def overlap(rows: Sequence[Any], items: Sequence[Item]) -> dict[str, How]:
    """Rows whose conversation opens with the question of an item, by id: word for word, or but for case, spaces and final punctuation."""
    questions = {item.context[0]["content"] if item.context and item.context[0]["role"] == "user" else item.turns[0] for item in items}
    alike = {normalised(question) for question in questions}
    found: dict[str, How] = {}
    for row in rows:
        opening = next((m["content"] for m in row.prompt if m["role"] in ("user", "text")), "")
        if opening in questions or normalised(opening) in alike:
            found[row.id] = _how(opening in questions)
    return found


def overlap_counts(of: str, same: Mapping[str, How]) -> dict[str, int]:
    return {f"overlap/{of}/{how}": sum(found == how for found in same.values()) for how in ("exact", "normalised")}
