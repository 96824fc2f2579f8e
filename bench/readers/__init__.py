"""Public datasets to canonical rows: a file each, with the exact columns of its source, its traps, and what is dropped and counted.

A dataset is a folder laid out as on the hub, whichever way it came here, or one file of it.
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

PEEK = 50  # rows that the door looks at


class Reader(Protocol):
    """What a reader's module holds; HELDOUT_IN_TRAIN_FILES where rows themselves say which split is theirs."""

    VERSION: int  # raised when the same rows come to mean others
    COLUMNS: tuple[str, ...]  # that every row has

    @staticmethod
    def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[Any]:
        """Canonical rows of one split, in their order; what is dropped and cannot be read goes to the tally."""


def load(name: str) -> Reader:
    return import_module(f"bench.readers.{name}")  # type: ignore[return-value]


def version(name: str) -> int:
    return load(name).VERSION


def find_files(path: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a split, in the order of their names; a path that is a file is all there is. Raises ValueError where one is missing."""
    if path.is_file():
        return [path]
    found = {pattern: sorted(path.glob(pattern)) for pattern in patterns}
    if missing := [pattern for pattern, files in found.items() if not files]:
        lying = ", ".join(sorted(str(file.relative_to(path)) for file in itertools.islice(path.rglob("*.*"), 8))) or "nothing"
        raise ValueError(f"{path} must hold {' and '.join(missing)}, as on the hub, or be one such file; it holds {lying}")
    return list(dict.fromkeys(file for files in found.values() for file in files))


def _raws(files: Sequence[Path], split: str, reader: Reader, tally: Tally, names: Sequence[str] = ()) -> Iterator[Raw]:
    """Rows of files, numbered through; those without the reader's columns are problems."""
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
            lacking = [name for name in reader.COLUMNS if name not in columns] if isinstance(columns, Mapping) else list(reader.COLUMNS)
            if lacking or not isinstance(columns, Mapping):
                has = printable(", ".join(map(str, columns)))[:200] if isinstance(columns, Mapping) else describe(columns)
                tally.problems.append(f"{place}: expected columns {', '.join(reader.COLUMNS)}, got {has}")
            else:
                yield Raw(f"{split}-{next(count)}", place, columns)


def place_of(row_id: str, path: Path, dataset: DatasetRows) -> str:
    """File and number of the row that `_raws` has called so."""
    split, _, number = row_id.rpartition("-")
    own = split == "heldout" and path.is_dir() and dataset.heldout_files
    files = find_files(path, dataset.heldout_files if own else dataset.train_files)
    places = (f"{file}:{place}" for file in files for place, _ in raw_rows(file))
    return next(itertools.islice(places, int(number) - 1, None), row_id)


class Shown(NamedTuple):
    """What a first row shows of all: its form, and whether they are messages, which need a chat template."""

    form: Form | None
    messages: bool


def shown_by(row: Any) -> Shown:
    messages = row.messages if isinstance(row, Conversation) else row.prompt
    return Shown(row_form(row), messages[0]["role"] != "text")


def check(path: Path, reading: Reading | Conversations, train_files: Sequence[str], heldout_files: Sequence[str] = ()) -> Shown:
    """What a dataset's first rows show. Raises ValueError for what its reader cannot read."""
    reader, found = load(reading.reader), []
    splits = [("train", find_files(path, train_files))]
    if heldout_files and path.is_dir():
        splits.append(("heldout", find_files(path, heldout_files)))
    for split, files in splits:
        tally = Tally()
        first = [raw for file in files for raw in itertools.islice(_raws([file], split, reader, tally), PEEK)]
        if not first and not tally.problems:
            raise ValueError(f"{', '.join(map(str, files[:3]))}: no rows")
        found += list(reader.read(first, reading, tally, train=split == "train"))
        raise_bad_rows(tally.problems)
    return shown_by(found[0]) if found else Shown(None, False)


def row_form(row: Any) -> Form | None:
    return "paired" if isinstance(row, Pair) else "unpaired" if isinstance(row, Unpaired) else None


@dataclass(frozen=True)
class Splits:
    """All rows of a dataset. `heldout` is None where it has no such split."""

    train: list[Any]
    heldout: list[Any] | None
    counts: Mapping[str, int]  # <split>/read, <split>/dropped/<reason>, <split>/noted/<reason>


def read_dataset(path: Path, reading: Reading, train_files: tuple[str, ...], heldout_files: tuple[str, ...]) -> Splits:
    """Raises BadRows with the place of every row that is not in its source's shape, ValueError where none is left."""
    return _read_dataset(path, tree_stamp(path), reading, train_files, heldout_files)


@lru_cache(maxsize=1)  # cells that differ in fraction and seed read the same rows
def _read_dataset(path: Path, stamp: str, reading: Reading, train_files: tuple[str, ...], heldout_files: tuple[str, ...]) -> Splits:
    reader = load(reading.reader)
    counts: dict[str, int] = {}
    train = _split(reader, reading, find_files(path, train_files), "train", counts)
    heldout = None
    if heldout_files and path.is_dir():
        heldout = _split(reader, reading, find_files(path, heldout_files), "heldout", counts)
    elif getattr(reader, "HELDOUT_IN_TRAIN_FILES", False):
        heldout = _split(reader, reading, find_files(path, train_files), "heldout", counts) or None
    if not train:
        raise ValueError(f"{path}: no train row is left of {counts['train/read']}: {_reasons(counts)}")
    if len({row_form(row) for row in train}) > 1:
        raise ValueError(f"{path}: paired and unpaired rows; a dataset has one form")
    return Splits(train, heldout, counts)


def _split(reader: Reader, reading: Any, files: Sequence[Path], split: str, counts: dict[str, int]) -> list[Any]:
    tally, number = Tally(), 0

    def counted() -> Iterator[Raw]:
        nonlocal number
        for raw in _raws(files, split, reader, tally, reader.COLUMNS):
            number += 1
            yield raw

    rows = list(reader.read(counted(), reading, tally, train=split == "train"))
    raise_bad_rows(tally.problems)
    counts[f"{split}/read"] = number
    for name, found in (("dropped", tally.dropped), ("noted", tally.noted)):
        counts |= {f"{split}/{name}/{reason}": n for reason, n in sorted(found.items()) if n}
    return rows


def _reasons(counts: Mapping[str, int]) -> str:
    """Why train rows were dropped."""
    start = "train/dropped/"
    return ", ".join(f"{n} {name.removeprefix(start)}" for name, n in counts.items() if name.startswith(start)) or "it has none"


def read_conversations(path: Path, settings: ConversationData) -> tuple[list[Conversation], dict[str, int]]:
    counts: dict[str, int] = {}
    rows = _split(load("conversations"), Conversations(reader="conversations"), find_files(path, settings.files), "train", counts)
    if not rows:
        raise ValueError(f"{path}: no conversation is left of {counts['train/read']}: {_reasons(counts)}")
    return rows, counts
