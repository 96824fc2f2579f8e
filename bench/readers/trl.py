"""Datasets in TRL's formats (see rows.py), from the hub or a copy.

Empty and equal completions are dropped and counted.
"""

from __future__ import annotations

from bench.readers.common import by_row
from bench.readers.rows import parse_row

VERSION = 1
COLUMNS = ()

read = by_row(lambda raw: parse_row(raw.columns, raw.id))
