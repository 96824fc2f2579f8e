"""Which rows of a dataset are trained on, which are held out, which prompts come next, and which ask what the judge asks.

Copies of a prompt (`subsets.prompt_group`) go together wherever rows are divided. The train prompts lie in one seeded order: the
first ones are labelled (`fraction`; a smaller share inside a larger one), the next ones are the prompts of a loop's iterations, each
iteration's disjoint from all before it, as SPA splits UltraFeedback (Kim et al. 2024: 2K labelled, then 8K, 20K, 30K of one shuffle).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.readers import Splits, place_of, read_dataset, row_form
from bench.readers.learnable import AS_CONTROL, UNWRITABLE, Look
from bench.readers.rows import OPPOSITE, opposites, read_preferences
from bench.readers.subsets import hash_fraction, normalised, prompt_group, prompt_key, split_heldout
from bench.records import Item, Pair, Unpaired, own_completions
from bench.store.stage_settings import DatasetRows, LocalPairData


@dataclass(frozen=True)
class Divided:
    """`next_prompts`: a row of each train prompt that is not labelled, in their order."""

    train: list[Any]
    heldout: list[Any]
    next_prompts: list[Any]
    counts: dict[str, int]


def divide(settings: LocalPairData, path: Path, items: Sequence[Item] = (), look: Look | None = None) -> Divided:
    """Rows by what they are for. `items`: what the judge asks, where train rows that ask the same are dropped or refused. `look` tells
    which rows a model learns from; the others are dropped or refused.

    Raises ValueError where nothing is left of a split, for an overlap that is refused, and for rows that a template cannot write.
    """
    found = _of_dataset(settings, settings.dataset, path, look) if settings.dataset else _of_file(settings, path, look)
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
            f"{path}: {len(train)} train and {len(found.heldout)} held-out rows at data.heldout_fraction={settings.heldout_fraction:g}"
            f"{_dropped(counts)}; both need some: change the fraction or bring more prompts"
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


def _dropped(counts: Mapping[str, int]) -> str:
    """Why there are fewer rows than were read, in words."""
    found = [f"{n} {name.partition('/dropped/')[2]}" for name, n in counts.items() if "/dropped/" in name]
    return f" (dropped: {', '.join(found)})" if found else ""


FILE = "file"  # begins the counts of a file's rows, before they are split


def _of_file(settings: LocalPairData, path: Path, look: Look | None) -> Divided:
    found = read_preferences(path)
    rows: list[Any] = list(found.rows)
    counts = {f"{FILE}/read": len(rows)} | {f"{FILE}/noted/{words}": n for words, n in sorted(found.noted.items())}
    _note(counts, FILE, OPPOSITE, opposites(rows))
    if look is not None:
        rows = _learnable(rows, look, settings, path, FILE, counts)
    train, heldout = split_heldout(rows, settings.heldout_fraction)
    return Divided(train, heldout, [], counts)


def _of_dataset(settings: LocalPairData, dataset: DatasetRows, path: Path, look: Look | None) -> Divided:
    splits = read_dataset(path, dataset.reading, dataset.train_files, dataset.heldout_files)
    counts = dict(splits.counts)
    for split, rows in (("train", splits.train), ("heldout", splits.heldout or [])):
        if rows and row_form(rows[0]) is not None:
            _note(counts, split, OPPOSITE, opposites(rows))
    if look is not None:
        of_train, of_heldout = splits.train, splits.heldout
        splits = Splits(
            _learnable(of_train, look, settings, path, "train", counts),
            None if of_heldout is None else _learnable(of_heldout, look, settings, path, "heldout", counts),
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


def _learnable(rows: list[Any], look: Look, settings: LocalPairData, path: Path, split: str, counts: dict[str, int]) -> list[Any]:
    """The rows that something is learnt from; the others are counted. Raises ValueError for rows that the template cannot write, unless
    they are to be dropped too."""
    kept, refused = [], []
    for row in rows:
        found = look(row.prompt, own_completions(row))
        if found is None:
            kept.append(row)
            for mark in look.marks(row.prompt, own_completions(row)):
                _note(counts, split, f"with {mark} {AS_CONTROL}", 1)
        elif found.reason == UNWRITABLE and settings.unwritable == "refuse":
            refused.append((row, found.why))
        else:
            name = f"{split}/dropped/{found.reason}"
            counts[name] = counts.get(name, 0) + 1
    if refused:
        row, why = refused[0]
        place = f"{path}:{row.id}" if settings.dataset is None else place_of(row.id, path, settings.dataset)
        raise ValueError(
            f"{len(refused)} of {len(rows)} {'' if split == FILE else f'{split} '}rows cannot be written with the model's chat template, "
            f"first {place}: {why}; name another model.chat_template, or take data.unwritable=drop to leave them out and count them"
        )
    return kept


def _note(counts: dict[str, int], split: str, reason: str, n: int) -> None:
    """Count rows that are kept all the same."""
    if n:
        name = f"{split}/noted/{reason}"
        counts[name] = counts.get(name, 0) + n


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
