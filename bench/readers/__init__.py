"""Readers of public datasets: one file for each dataset.

A reader turns the dataset's rows into canonical rows.

Each file lists the exact columns of its source, its traps, and the rows that are dropped and counted. A
dataset is a folder laid out as on the hub, or one file of it. It does not matter how it came here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bench.config import Conversations, Form, Reading
from bench.readers.common import Raw, Tally
from bench.readers.rows import check_columns, raise_bad_rows, raw_rows, refusal
from bench.records import Conversation, Pair, Unpaired
from bench.store.keys import tree_stamp
from bench.store.stage_settings import ConversationData, DatasetRows
from bench.text_files import describe, printable

PEEK = 50  # rows of each file that are checked before a command starts


class Reader(Protocol):
    """Interface of a reader's module.

    A module may also set HELDOUT_IN_TRAIN_FILES = True: its rows then name their own split.
    """

    VERSION: int  # raised when the reader gives other rows for the same file
    COLUMNS: tuple[str, ...]  # columns that every row must have

    @staticmethod
    def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[Any]:
        """Canonical rows of one split, in order. Dropped and unreadable rows are counted in the tally."""


def load(name: str) -> Reader:
    return import_module(f"bench.readers.{name}")  # type: ignore[return-value]


def version(name: str) -> int:
    return load(name).VERSION


def find_files(path: Path, patterns: Sequence[str]) -> list[Path]:
    """Files of a split, by pattern and then by name. A `path` that is a file is the whole split.

    Raises ValueError for a pattern without a file.
    """
    if path.is_file():
        return [path]
    by_pattern = {pattern: sorted(path.glob(pattern)) for pattern in patterns}
    if missing := [pattern for pattern, files in by_pattern.items() if not files]:
        present = (
            ", ".join(sorted(str(file.relative_to(path)) for file in itertools.islice(path.rglob("*.*"), 8)))
            or "nothing"
        )
        raise ValueError(
            f"{path}: expected a folder laid out as on the hub, or one data file; {' and '.join(missing)} is missing, it holds {present}"
        )
    return list(dict.fromkeys(file for files in by_pattern.values() for file in files))


def _raws(
    files: Sequence[Path], split: str, reader: Reader, tally: Tally, names: Sequence[str] = ()
) -> Iterator[Raw]:
    """Rows of the files, numbered across files.

    A row without the reader's columns becomes a problem in the tally.
    """
    count = itertools.count(1)
    for file in files:
        for number, take in raw_rows(file, names):
            place = f"{file}:{number}"
            try:
                columns = take()
                noted = check_columns(columns, reader.COLUMNS) if isinstance(columns, Mapping) else []
            except ValueError as error:
                tally.problems.append(refusal(place, error))
                continue
            tally.noted.update(noted)
            lacking = (
                [name for name in reader.COLUMNS if name not in columns]
                if isinstance(columns, Mapping)
                else list(reader.COLUMNS)
            )
            if lacking or not isinstance(columns, Mapping):
                has = (
                    printable(", ".join(map(str, columns)))[:200]
                    if isinstance(columns, Mapping)
                    else describe(columns)
                )
                tally.problems.append(f"{place}: expected columns {', '.join(reader.COLUMNS)}, got {has}")
            else:
                yield Raw(f"{split}-{next(count)}", place, columns)


def place_of(row_id: str, path: Path, dataset: DatasetRows) -> str:
    """File and row number of the row with the id `row_id`, as `_raws` gives ids."""
    split, _, number = row_id.rpartition("-")
    has_own_files = split == "heldout" and path.is_dir() and dataset.heldout_files
    files = find_files(path, dataset.heldout_files if has_own_files else dataset.train_files)
    places = (f"{file}:{place}" for file in files for place, _ in raw_rows(file))
    return next(itertools.islice(places, int(number) - 1, None), row_id)


class Shown(NamedTuple):
    """Form of a dataset's rows, as its first row shows it.

    `messages`: the rows hold messages, so that the model needs a chat template.
    """

    form: Form | None
    messages: bool


def shown_by(row: Any) -> Shown:
    messages = row.messages if isinstance(row, Conversation) else row.prompt
    return Shown(row_form(row), messages[0]["role"] != "text")


def check(
    path: Path,
    reading: Reading | Conversations,
    train_files: Sequence[str],
    heldout_files: Sequence[str] = (),
) -> Shown:
    """Form of a dataset's rows, from the first rows of each file.

    Raises ValueError where its reader cannot read them.
    """
    rows: list[Any] = []
    reader = load(reading.reader)
    splits = [("train", find_files(path, train_files))]
    if heldout_files and path.is_dir():
        splits.append(("heldout", find_files(path, heldout_files)))
    for split, files in splits:
        tally = Tally()
        first = [raw for file in files for raw in itertools.islice(_raws([file], split, reader, tally), PEEK)]
        if not first and not tally.problems:
            raise ValueError(f"{', '.join(map(str, files[:3]))}: the file holds no rows")
        rows += list(reader.read(first, reading, tally, train=split == "train"))
        raise_bad_rows(tally.problems)
    return shown_by(rows[0]) if rows else Shown(None, False)


def row_form(row: Any) -> Form | None:
    return "paired" if isinstance(row, Pair) else "unpaired" if isinstance(row, Unpaired) else None


@dataclass(frozen=True)
class Splits:
    """All rows of a dataset. `heldout` is None for a dataset without a held-out split."""

    train: list[Any]
    heldout: list[Any] | None
    counts: Mapping[str, int]  # <split>/read, <split>/dropped/<reason>, <split>/noted/<reason>


def read_dataset(
    path: Path, reading: Reading, train_files: tuple[str, ...], heldout_files: tuple[str, ...]
) -> Splits:
    """All rows of a dataset, by split.

    Raises BadRows with the place of every row that is not in its source's format, and ValueError where no
    train row is left.
    """
    return _read_dataset(path, tree_stamp(path), reading, train_files, heldout_files)


@lru_cache(maxsize=4)  # cells that differ only in fraction and seed read the same rows, of several sources
def _read_dataset(
    path: Path, stamp: str, reading: Reading, train_files: tuple[str, ...], heldout_files: tuple[str, ...]
) -> Splits:
    reader = load(reading.reader)
    counts: dict[str, int] = {}
    train = _split(reader, reading, find_files(path, train_files), "train", counts)
    heldout = None
    if heldout_files and path.is_dir():
        heldout = _split(reader, reading, find_files(path, heldout_files), "heldout", counts)
    elif getattr(reader, "HELDOUT_IN_TRAIN_FILES", False):
        heldout = _split(reader, reading, find_files(path, train_files), "heldout", counts) or None
    if not train:
        raise ValueError(f"{path}: none of {counts['train/read']} train rows can be used: {_reasons(counts)}")
    if len({row_form(row) for row in train}) > 1:
        raise ValueError(
            f"{path}: holds paired and unpaired rows. A dataset must hold one kind: remove the others"
        )
    return Splits(train, heldout, counts)


def _split(
    reader: Reader, reading: Any, files: Sequence[Path], split: str, counts: dict[str, int]
) -> list[Any]:
    tally, number = Tally(), 0

    def counted() -> Iterator[Raw]:
        nonlocal number
        for raw in _raws(files, split, reader, tally, reader.COLUMNS):
            number += 1
            yield raw

    rows = list(reader.read(counted(), reading, tally, train=split == "train"))
    raise_bad_rows(tally.problems)
    counts[f"{split}/read"] = number
    for name, reasons in (("dropped", tally.dropped), ("noted", tally.noted)):
        counts |= {f"{split}/{name}/{reason}": n for reason, n in sorted(reasons.items()) if n}
    return rows


def _reasons(counts: Mapping[str, int]) -> str:
    """Reasons why train rows were dropped, with their counts, in words."""
    start = "train/dropped/"
    return (
        ", ".join(f"{n} {name.removeprefix(start)}" for name, n in counts.items() if name.startswith(start))
        or "there are no rows"
    )


def read_conversations(path: Path, settings: ConversationData) -> tuple[list[Conversation], dict[str, int]]:
    """Conversations of a dataset, and their counts.

    Raises BadRows for unreadable rows, ValueError where no row is left.
    """
    counts: dict[str, int] = {}
    rows = _split(
        load("conversations"),
        Conversations(reader="conversations"),
        find_files(path, settings.files),
        "train",
        counts,
    )
    if not rows:
        raise ValueError(
            f"{path}: none of {counts['train/read']} conversations can be used: {_reasons(counts)}"
        )
    return rows, counts
