"""TRL's forms (see rows.py), of any dataset of the hub or a copy of one; empty and equal completions are dropped and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bench.readers.common import Raw, Tally, each
from bench.readers.rows import parse_row
from bench.records import Pair, Unpaired

VERSION = 1
COLUMNS = ()


def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[Pair | Unpaired]:
    yield from each(raws, tally, lambda raw: parse_row(raw.columns, raw.id))
