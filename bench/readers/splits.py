"""Splits of a dataset: train, held-out and later iterations' rows.

Overlap of train rows with the judge's items.

Copies of a prompt (`subsets.prompt_group`) stay together in every split. The train prompts have one seeded
order. The first ones are labelled (`fraction`; a smaller fraction is part of a larger one). The next ones are
the prompts of a loop's iterations; those of one iteration are disjoint from those of all earlier ones, as SPA
splits UltraFeedback (Kim et al. 2024: 2K labelled, then 8K, 20K, 30K of one shuffle).

A mixture joins the splits of its sources; the id of a row begins with the label of its source. A prompt that one source
holds out is trained on in none, and a row that several sources have is kept once, in the first of them by label. Then
caps and weights draw the train rows of each source by the seed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.config import Form
from bench.readers import Splits, place_of, read_dataset, row_form
from bench.readers.learnable import AS_CONTROL, UNWRITABLE, LearnCheck
from bench.readers.rows import OPPOSITE, opposites, read_preferences
from bench.readers.subsets import hash_fraction, normalised, prompt_group, prompt_key, split_heldout
from bench.records import Item, Pair, Unpaired, own_completions
from bench.store.stage_settings import DatasetRows, LocalPairData, MixedRows


@dataclass(frozen=True)
class Divided:
    """Rows of a dataset by use, with their counts.

    `next_prompts`: one row of each train prompt that is not labelled, in the seeded order.
    """

    train: list[Any]
    heldout: list[Any]
    next_prompts: list[Any]
    counts: dict[str, int]


Files = Path | Mapping[str, Path]  # a dataset's folder or file, or those of a mixture by label


def divide(
    settings: LocalPairData, files: Files, items: Sequence[Item] = (), learn_check: LearnCheck | None = None
) -> Divided:
    """Rows of a dataset or a mixture by use: train, held-out, prompts of later iterations.

    `items`: the judge's items; train rows with the same questions are dropped or refused (data.overlap).
    `learn_check` checks that a model learns from a row; the other rows are dropped or refused. Raises
    ValueError for an empty split, a refused overlap, and rows that the chat template cannot write.
    """
    if isinstance(files, Mapping):
        divided = _of_mixture(settings, files, learn_check)
    elif settings.dataset:
        divided = _of_dataset(settings, settings.dataset, files, learn_check)
    else:
        divided = _of_file(settings, files, learn_check)
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
    if settings.sources:
        train = _drawn(settings, train, counts)
    if (settings.fraction and not train) or not divided.heldout:
        where = files if isinstance(files, Path) else "the mixture"
        raise ValueError(
            f"{where}: {len(train)} train and {len(divided.heldout)} held-out rows at data.heldout_fraction={settings.heldout_fraction:g}"
            f"{_dropped(counts)}. Both must hold rows: change the fraction or add prompts"
        )
    if settings.dataset is None and not settings.sources:
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
        rows = _learnable(rows, learn_check, settings, None, path, FILE, counts)
    train, heldout = split_heldout(rows, settings.heldout_fraction)
    return Divided(train, heldout, [], counts)


def _of_dataset(
    settings: LocalPairData, dataset: DatasetRows, path: Path, learn_check: LearnCheck | None
) -> Divided:
    divided = _split(settings, dataset, path, learn_check)
    train, heldout = (
        _in_form(dataset.form, rows, settings, str(path)) for rows in (divided.train, divided.heldout)
    )
    return replace(divided, train=train, heldout=_limited(heldout, dataset.n_heldout))


def _in_form(form: Form | None, rows: list[Any], settings: LocalPairData, where: str) -> list[Any]:
    """The rows in the form that data.form asks for. Raises ValueError for unpaired rows where it asks for pairs."""
    if form == "unpaired":
        return [_as_unpaired(row, settings.seed) for row in rows]
    if form == "paired" and any(row_form(row) != "paired" for row in rows):
        raise ValueError(f"{where} holds unpaired rows, but data.form=paired needs pairs")
    return rows


def _limited(heldout: list[Any], n_prompts: int | None) -> list[Any]:
    """The held-out rows of at most `n_prompts` prompts, which their texts alone choose."""
    if n_prompts is None:
        return heldout
    kept = set(sorted({prompt_group(row.prompt) for row in heldout}, key=hash_fraction)[:n_prompts])
    return [row for row in heldout if prompt_group(row.prompt) in kept]


def _split(
    settings: LocalPairData, dataset: DatasetRows, path: Path, learn_check: LearnCheck | None
) -> Divided:
    """Train and held-out rows of a dataset in its own form, without a prompt in both."""
    splits = read_dataset(path, dataset.reading, dataset.train_files, dataset.heldout_files)
    counts = dict(splits.counts)
    for split, rows in (("train", splits.train), ("heldout", splits.heldout or [])):
        if rows and row_form(rows[0]) is not None:
            _note(counts, split, OPPOSITE, opposites(rows))
    if learn_check is not None:
        of_train, of_heldout = splits.train, splits.heldout
        splits = Splits(
            _learnable(of_train, learn_check, settings, dataset, path, "train", counts),
            None
            if of_heldout is None
            else _learnable(of_heldout, learn_check, settings, dataset, path, "heldout", counts),
            counts,
        )
    if splits.heldout is None:
        sides: tuple[list[Any], list[Any]] = ([], [])
        for row in splits.train:
            sides[hash_fraction(prompt_group(row.prompt)) < settings.heldout_fraction].append(row)
        train, heldout = sides
    else:
        same = _shared_prompts(splits.train, splits.heldout)
        counts |= overlap_counts("heldout", same)
        train, heldout = [row for row in splits.train if row.id not in same], splits.heldout
    return Divided(train, heldout, [], counts)


def _shared_prompts(rows: Sequence[Any], others: Sequence[Any]) -> dict[str, How]:
    """Rows whose prompt one of `others` has too, by row id."""
    exact = {prompt_key(row.prompt) for row in others}
    groups = {prompt_group(row.prompt) for row in others}
    return {
        row.id: _how(prompt_key(row.prompt) in exact) for row in rows if prompt_group(row.prompt) in groups
    }


# Mixtures -------------------------------------------------------------------------------------------------------------

IN_ANOTHER = "in another source too"
OPPOSITE_OF_ANOTHER = "with the opposite of a row of another source"
OVER_CAP = "over the source's cap"
OVER_WEIGHT = "over the source's weight"


def source_of(row_id: str) -> str:
    """Label of a row's source in a mixture."""
    return row_id.partition("/")[0]


def _of_mixture(
    settings: LocalPairData, files: Mapping[str, Path], learn_check: LearnCheck | None
) -> Divided:
    """Rows of all sources, before caps and weights. The names of counts begin with the label of the source."""
    parts: dict[str, Divided] = {}
    for label, source in sorted(settings.sources.items()):
        try:
            part = _split(settings, source.rows, files[label], learn_check)
        except ValueError as error:
            raise ValueError(
                "\n".join(f"data.sources.{label}: {line}" for line in str(error).splitlines())
            ) from error
        train, held = (
            [replace(row, id=f"{label}/{row.id}") for row in rows] for rows in (part.train, part.heldout)
        )
        parts[label] = replace(part, train=train, heldout=held)
    forms = {label: row_form(part.train[0]) for label, part in parts.items() if part.train}
    if settings.mixed_form is None and len(set(forms.values())) > 1:
        words = ", ".join(f"{label} {form}" for label, form in forms.items())
        raise ValueError(
            f"the sources of a mixture must be all paired or all unpaired, got {words}. "
            "Set data.form=unpaired to make one judged completion of each pair, and a method that learns from them"
        )
    all_heldout = [row for part in parts.values() for row in part.heldout]
    seen: set[tuple[str, ...]] = set()
    whole: dict[str, list[Any]] = {}
    heldout: list[Any] = []
    counts: dict[str, int] = {}
    for label, part in parts.items():
        own = Counter({f"{label}/{name}": n for name, n in part.counts.items()})
        same = _shared_prompts(part.train, all_heldout)
        own.update({f"{label}/{name}": n for name, n in overlap_counts("heldout", same).items()})
        counts |= own
        there = {"train": [row for row in part.train if row.id not in same], "heldout": part.heldout}
        new = {split: [row for row in rows if _content(row) not in seen] for split, rows in there.items()}
        seen |= {_content(row) for rows in there.values() for row in rows}
        for split, rows in there.items():
            _note(counts, f"{label}/{split}", IN_ANOTHER, len(rows) - len(new[split]), "dropped")
        whole[label] = new["train"]
        heldout += _limited(
            _in_form(settings.mixed_form, new["heldout"], settings, label),
            settings.sources[label].rows.n_heldout,
        )
    mixed = [row for rows in whole.values() for row in rows]
    _note(counts, "train", OPPOSITE_OF_ANOTHER, opposites(mixed) - sum(map(opposites, whole.values())))
    return Divided(_in_form(settings.mixed_form, mixed, settings, "the mixture"), heldout, [], counts)


def _content(row: Pair | Unpaired) -> tuple[str, ...]:
    return (prompt_group(row.prompt), *own_completions(row), str(getattr(row, "label", "")))


def _drawn(settings: LocalPairData, train: list[Any], counts: dict[str, int]) -> list[Any]:
    """The train rows that caps and weights leave of each source, drawn by the seed."""
    by_source: dict[str, list[Any]] = {label: [] for label in sorted(settings.sources)}
    for row in train:
        by_source[source_of(row.id)].append(row)
    there = {label: len(rows) for label, rows in by_source.items()}
    shares = drawn_sizes(there, settings.sources)
    kept: set[str] = set()
    for label, rows in by_source.items():
        order = list(rows)
        random.Random(f"mixture/{settings.seed}/{label}").shuffle(order)
        kept |= {row.id for row in order[: shares[label]]}
        capped = min(len(rows), settings.sources[label].cap or len(rows))
        _note(counts, f"{label}/train", OVER_CAP, len(rows) - capped, "dropped")
        _note(counts, f"{label}/train", OVER_WEIGHT, capped - shares[label], "dropped")
    return [row for row in train if row.id in kept]


def drawn_sizes(there: Mapping[str, int], sources: Mapping[str, MixedRows]) -> dict[str, int]:
    """Train rows that caps and weights take of each source."""
    capped = {label: min(n, sources[label].cap or n) for label, n in there.items()}
    weights = {label: source.weight for label, source in sources.items() if source.weight is not None}
    return weighted(capped, weights) if weights else capped


def weighted(there: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """Rows of each source in proportion to its weight.

    The source with the fewest rows for its weight gives all that are there. Raises ValueError for a source without rows.
    """
    if empty := [label for label, n in there.items() if not n]:
        raise ValueError(
            f"data.sources.{empty[0]} has no train row left, and the weights need rows of each source: leave it out"
        )
    size = min(there[label] / weight for label, weight in weights.items())
    return {label: max(1, min(n, round(size * weights[label]))) for label, n in there.items()}


def _learnable(
    rows: list[Any],
    learn_check: LearnCheck,
    settings: LocalPairData,
    dataset: DatasetRows | None,
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
            _note(counts, split, problem.reason, 1, "dropped")
    if refused:
        row, why = refused[0]
        place = f"{path}:{row.id}" if dataset is None else place_of(row.id, path, dataset)
        raise ValueError(
            f"the model's chat template cannot write {len(refused)} of {len(rows)} {'' if split == FILE else f'{split} '}rows. "
            f"The first is {place}: {why}. Set another model.chat_template, or data.unwritable=drop to leave them out and count them"
        )
    return kept


def _note(counts: dict[str, int], split: str, reason: str, n: int, kind: str = "noted") -> None:
    """Add `n` to the count of rows that are noted and kept, or dropped, for `reason`."""
    if n:
        name = f"{split}/{kind}/{reason}"
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
