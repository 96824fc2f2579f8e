"""Generated rows through every reader and form of file: a refusal that names file and row, or the right value; nothing in between.

`BENCH_FUZZ_EXAMPLES=20000 pytest -n 0 tests/readers/test_rows_fuzzed.py` looks longer; the plain run looks at a few of each.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published import PUBLISHED, Row, bot, user

from bench.config import (
    Conversations,
    HalosFeedback,
    HhRlhf,
    Oasst1,
    OrcaDpoPairs,
    Reading,
    Shp,
    TrlRows,
    UltraFeedbackBinarized,
    UltraFeedbackCleaned,
)
from bench.readers import _raws, load
from bench.readers.common import Tally
from bench.readers.prompts import read_prompts
from bench.readers.rows import NOT_TRAINED_ON, THOUGHTS, BadRows, read_preferences
from bench.records import Conversation, Pair, Text, Unpaired
from bench.text_files import printable

EXAMPLES = int(os.environ.get("BENCH_FUZZ_EXAMPLES", "25"))
READINGS: dict[str, tuple[Reading | Conversations, str]] = {
    "trl": (TrlRows(reader="trl"), "dataset"),
    "ultrafeedback_binarized": (
        UltraFeedbackBinarized(reader="ultrafeedback_binarized", ties="keep"),
        "ultrafeedback_binarized",
    ),
    "ultrafeedback_cleaned": (UltraFeedbackCleaned(reader="ultrafeedback_cleaned"), "ultrafeedback_cleaned"),
    "orca_dpo_pairs": (OrcaDpoPairs(reader="orca_dpo_pairs"), "orca_dpo_pairs"),
    "hh_rlhf": (HhRlhf(reader="hh_rlhf"), "hh_rlhf"),
    "shp": (Shp(reader="shp", min_score_ratio=2.0, max_pairs=5), "shp"),
    "oasst1": (Oasst1(reader="oasst1", languages=("en",)), "oasst1"),
    "halos": (HalosFeedback(reader="halos"), "halos"),
    "conversations": (Conversations(reader="conversations"), "ultrachat_200k"),
}
MESSAGE_ROWS: list[Row] = [
    {"prompt": [user("one?")], "chosen": [bot("yes")], "rejected": [bot("no")]},
    {"chosen": [user("two?"), bot("yes")], "rejected": [user("two?"), bot("no")]},
    {"prompt": "three?", "completion": "yes", "label": True},
]

# Values ---------------------------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(
    ["", " ", "a", "yes", "Why?", "\ud83d", "é\u2028", "None", "\x00\x1b[2J", "\ufeffx", "0"]
) | st.text(max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([10**30, -(10**400), float("nan"), float("inf"), 1e308, 0.5])
    | st.floats()
    | TEXTS
)
ROLE = st.sampled_from(["user", "assistant", "system", "tool", "gpt", None, 3])
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]), "text": TEXTS | st.none()}), max_size=2
)
EXTRA = {
    name: SCALARS | st.lists(SCALARS, max_size=1)
    for name in (*sorted(NOT_TRAINED_ON | THOUGHTS), "name", "weight", "other")
}
MESSAGE = st.fixed_dictionaries({"role": ROLE, "content": TEXTS | SCALARS | PARTS}, optional=EXTRA)
VALUES = (
    SCALARS
    | st.lists(MESSAGE, max_size=3)
    | st.lists(SCALARS, max_size=2)
    | MESSAGE
    | st.dictionaries(TEXTS, SCALARS, max_size=2)
)
FORMS = ("jsonl", "json", "list.json", "jsonl.gz", "parquet")


def put(path: Path, rows: Sequence[Row]) -> bool:
    """Whether the rows can be written so."""
    try:
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
            return True
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        text = json.dumps(list(rows), indent=1) if path.name.endswith("list.json") else lines
        path.write_bytes(gzip.compress(text.encode(), 1) if path.suffix == ".gz" else text.encode())
    except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError):
        return False
    return True


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


def made_of(row: Pair | Unpaired | Conversation | Text) -> list[str]:
    said = [m["content"] for m in (row.messages if isinstance(row, Conversation) else row.prompt)]
    match row:
        case Pair():
            return [*said, row.chosen, row.rejected]
        case Unpaired() | Text():
            return [*said, row.completion]
    return said


def says_more(row: Any) -> bool:
    """Whether a row, at its top, says what is not trained on: in a text or a list."""
    said = [row.get(name) for name in NOT_TRAINED_ON] if isinstance(row, Mapping) else []
    return any(isinstance(value, (str, list)) and value for value in said)


def check(path: Path, rows: Sequence[Any], problems: Sequence[str], found: Sequence[Any]) -> None:
    """The oracle, of what a reader has refused and made."""
    for line in problems:
        assert line.startswith(f"{path}"), line
        assert printable(line) == line
        assert path.name.endswith("list.json") or line[len(str(path)) :].split(":")[1].isdigit(), line
    texts = [text for row in rows for text in strings(row)]
    for row in found:
        for said in made_of(row):
            assert any(said in text for text in texts), f"{said!r} stands in no row"
            said.encode()


COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "label",
    *sorted(NOT_TRAINED_ON | THOUGHTS),
    "margin",
)
BAD = st.dictionaries(st.sampled_from(COLUMNS), VALUES)
CHANGES = st.lists(st.tuples(st.integers(0, 30), VALUES | st.just("(left out)")), min_size=1, max_size=3)
TRIED: dict[str, list[int]] = {}


@pytest.mark.parametrize("name", READINGS)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(changes=CHANGES, form=st.sampled_from(FORMS), more=BAD, seed=st.integers(0, 9))
def test_a_reader_refuses_a_row_by_place_or_gives_its_very_texts(
    name: str, changes: Any, form: str, more: Row, seed: int
) -> None:
    reading, source = READINGS[name]
    rng, rows = random.Random(seed), []
    for i in range(3):
        rows += PUBLISHED[source].make(i, rng)
    if name == "trl":
        rows = [*rows[:1], dict(rng.choice(MESSAGE_ROWS)), *rows[1:]]
    for place, value in changes:
        row = rows[1] = dict(rows[1])
        column = list(row)[place % len(row)] if row else "prompt"
        row.pop(column, None) if value == "(left out)" else row.__setitem__(column, value)
    if rng.random() < 0.3:
        rows[1] |= {
            column: value for column, value in more.items() if column not in rows[1] or rng.random() < 0.5
        }
    with tempfile.TemporaryDirectory() as folder:
        if not put(path := Path(folder) / f"rows.{form}", rows):
            return
        reader, tally, count = load(name), Tally(), 0
        try:
            raws = list(_raws([path], "train", reader, tally))
            count, refused = len(raws), len(tally.problems)
            found = list(reader.read(raws, reading, tally, train=True))
        except ValueError as error:
            assert form in ("list.json", "parquet"), error  # a file of lines is refused line by line
            check(path, rows, str(error).splitlines(), [])
            return
        check(path, rows, tally.problems, found)
        assert count + refused == len(rows)
        if name != "halos":
            assert len(found) + sum(tally.dropped.values()) + len(tally.problems) == len(rows)
        if form != "parquet" and says_more(rows[1]) and name != "oasst1":
            assert tally.problems, rows[1]
        TRIED.setdefault(name, [0, 0])[bool(tally.problems)] += 1


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(row=BAD, form=st.sampled_from(FORMS), answered=st.booleans())
def test_a_users_file_is_refused_by_place_or_gives_its_very_texts(
    row: Row, form: str, answered: bool
) -> None:
    good: Row = {"prompt": "Why?", "completion": "So.", "label": True}
    rows = [good, row, {**good, "prompt": "What?"}]
    with tempfile.TemporaryDirectory() as folder:
        if not put(path := Path(folder) / f"rows.{form}", rows):
            return
        for read in (lambda: read_preferences(path).rows, lambda: read_prompts(path, answered).rows):
            try:
                found = read()
            except BadRows as error:
                whole = [line for line in str(error).splitlines() if "A file must hold one kind" not in line]
                check(path, rows, whole, [])
            except ValueError as error:
                assert form in ("list.json", "parquet"), error
                check(path, rows, str(error).splitlines(), [])
            else:
                check(path, rows, [], found)
                assert not says_more(row) or form == "parquet"


ODD_LINES = (
    b'{"prompt": "a", "prompt": "b"}',
    b"\xff\xfe",
    b"[" * 5000,
    b"{" * 300,
    b'{"a": "\\ud83d"}',
    b"\r",
    b"1e999",
)
LINES = st.binary(max_size=40) | st.sampled_from(ODD_LINES)
NAMES = ("rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.parquet")


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(lines=st.lists(LINES, max_size=4), name=st.sampled_from(NAMES), cut=st.integers(0, 30))
def test_bytes_that_are_no_rows_are_refused_by_place(lines: list[bytes], name: str, cut: int) -> None:
    content = b"\n".join(lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(gzip.compress(content)[: -cut or None] if name.endswith(".gz") else content)
        with pytest.raises(ValueError) as raised:
            read_preferences(path)
        for line in str(raised.value).splitlines():
            assert line.startswith((f"{path}", "... and ")) and printable(line) == line
