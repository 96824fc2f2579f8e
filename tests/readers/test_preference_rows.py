"""A user's preference file: every accepted form, every bad row with its line and reason; fractions, held-out split, partners."""

from __future__ import annotations

import gzip
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.readers.kl_partners import partners, with_partners
from bench.readers.rows import BadRows, Preferences, read_preferences
from bench.readers.subsets import nested_subset, prompt_key, split_heldout
from bench.records import Message, Pair, Unpaired
from bench.text_files import HALF_CHARACTER


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, *rows: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


# Accepted forms ------------------------------------------------------------------------------------------------------

TEXT: list[Message] = [{"role": "text", "content": "Why?"}]
FORMS: dict[str, tuple[dict[str, Any], Pair | Unpaired]] = {
    "paired text": (
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        Pair("1", TEXT, "So.", "No.", "", ""),
    ),
    "paired messages": (
        {"prompt": [SYSTEM, user("Why?")], "chosen": [bot("So.")], "rejected": [bot("No.")]},
        Pair("1", [SYSTEM, user("Why?")], "So.", "No.", "", ""),
    ),
    "paired, prompt inside the conversations": (
        {
            "chosen": [user("Hi"), bot("Hi"), user("Why?"), bot("So.")],
            "rejected": [user("Hi"), bot("Hi"), user("Why?"), bot("No.")],
        },
        Pair("1", [user("Hi"), bot("Hi"), user("Why?")], "So.", "No.", "", ""),
    ),
    "paired, text of the prompt beside conversations (UltraFeedback)": (
        {"prompt": "Why?", "chosen": [user("Why?"), bot("So.")], "rejected": [user("Why?"), bot("No.")]},
        Pair("1", [user("Why?")], "So.", "No.", "", ""),
    ),
    "paired, messages with plain completions": (
        {"prompt": [user("Why?")], "chosen": "So.", "rejected": "No."},
        Pair("1", [user("Why?")], "So.", "No.", "", ""),
    ),
    "paired text, prompt inside (the space before the ends is theirs, as in TRL)": (
        {"chosen": "Why? So.", "rejected": "Why? No."},
        Pair("1", TEXT, " So.", " No.", "", ""),
    ),
    "unpaired text": (
        {"prompt": "Why?", "completion": "So.", "label": True},
        Unpaired("1", TEXT, "So.", True, ""),
    ),
    "unpaired messages": (
        {"prompt": [user("Why?")], "completion": [bot("So.")], "label": False},
        Unpaired("1", [user("Why?")], "So.", False, ""),
    ),
    "other columns and message fields are left aside": (
        {
            "prompt": [user("Why?") | {"name": "x"}],
            "chosen": [bot("So.")],
            "rejected": [bot("No.")],
            "score": 3.5,
            "label": "x",
        },
        Pair("1", [user("Why?")], "So.", "No.", "", ""),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("write", [jsonl, parquet])
def test_each_of_trls_forms_is_read(form: str, write: Any, tmp_path: Path) -> None:
    row, expected = FORMS[form]
    found = read_preferences(write(tmp_path / f"rows.{write.__name__}", row))
    assert found.rows == [expected]
    assert found.form == ("paired" if isinstance(expected, Pair) else "unpaired")


def test_parquet_rows_of_messages_are_read_as_pyarrow_returns_them(tmp_path: Path) -> None:
    """Columns that only some rows fill come as None; structs have every field."""
    rows = [
        {
            "prompt": [user("A?") | {"name": None}],
            "chosen": [bot("a")],
            "rejected": [bot("b")],
            "label": None,
        },
        {"prompt": [SYSTEM, user("B?")], "chosen": [bot("c")], "rejected": [bot("d")], "label": 1},
        {"prompt": None, "chosen": [user("C?"), bot("e")], "rejected": [user("C?"), bot("f")], "label": None},
    ]
    found = read_preferences(parquet(tmp_path / "rows.parquet", *rows)).pairs
    assert [(row.id, [m["content"] for m in row.prompt], row.chosen) for row in found] == [
        ("1", ["A?"], "a"),
        ("2", ["Be brief.", "B?"], "c"),
        ("3", ["C?"], "e"),
    ]


def test_a_json_file_may_be_one_list_and_lines_may_be_zipped(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "so", "rejected": "no"} for i in range(3)]
    whole, zipped = tmp_path / "rows.json", tmp_path / "rows.jsonl.gz"
    whole.write_text(json.dumps(rows, indent=1))
    zipped.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert read_preferences(whole).pairs == read_preferences(zipped).pairs
    assert [row.id for row in read_preferences(whole).pairs] == ["1", "2", "3"]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\n\n", b" \n\t\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_endings_blank_lines_and_a_byte_order_mark_do_no_harm(
    ending: bytes, mark: bytes, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "größer\u2028so", "rejected": "n\r\n"} for i in range(2)]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    file = tmp_path / "rows.JSONL"
    file.write_bytes(mark + ending.join(lines))
    first, second = read_preferences(file).pairs
    assert (first.chosen, first.rejected) == ("größer\u2028so", "n\r\n")
    assert int(second.id) == 1 + ending.count(b"\n")  # ids are line numbers


# Bad rows ------------------------------------------------------------------------------------------------------------

NULL = "null (or a number that is not finite)"
TEXT_OR_LIST = "must be text or a list of messages, got"
OK = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
FINE = {"prompt": "Why?", "completion": "So.", "label": True}
BAD: list[tuple[Any, str]] = [
    ([1], "expected an object with named columns, got a list of 1"),
    ("text", "expected an object with named columns, got the text 'text'"),
    (None, f"expected an object with named columns, got {NULL}"),
    ({}, "expected columns prompt, chosen, rejected or prompt, completion, label; got none"),
    ({"prompt": "Why?", "chosen": "So."}, "expected columns prompt, chosen, rejected or prompt, completion, label; got prompt, chosen"),
    ({"input": "a", "output": "b"}, "expected columns prompt, chosen, rejected or prompt, completion, label; got input, output"),
    (
        {"chosen": "So.", "rejected": "No."},
        "chosen and rejected have no common beginning. Plain text needs its prompt there or in a prompt column",
    ),
    ({"completion": "So.", "label": True}, "a completion of plain text needs a prompt column"),
    (OK | {"prompt": ""}, "prompt is empty"),
    (OK | {"prompt": 3}, f"prompt {TEXT_OR_LIST} the number 3"),
    (OK | {"prompt": []}, f"prompt {TEXT_OR_LIST} an empty list"),
    (OK | {"chosen": " \n"}, "chosen is empty"),
    (OK | {"rejected": ""}, "rejected is empty"),
    (OK | {"chosen": None}, f"chosen {TEXT_OR_LIST} {NULL}"),
    (OK | {"rejected": "So."}, "chosen and rejected are the same text: nothing to learn; remove the row"),
    (OK | {"chosen": [bot("So.")]}, "chosen is a list and rejected is text: both must be text, or both a list of messages"),
    (
        OK | {"chosen": [bot("So.")], "rejected": [bot("No.")]},
        "chosen and rejected share no first messages, and no prompt of messages is given",
    ),
    (
        {"chosen": [user("A?"), bot("So.")], "rejected": [user("B?"), bot("No.")]},
        "chosen and rejected share no first messages, and no prompt of messages is given",
    ),
    (
        {"chosen": [user("A?"), bot("So.")], "rejected": [user("A?"), bot("So.")]},
        "chosen and rejected are the same text: nothing to learn; remove the row",
    ),
    (
        {"chosen": [user("A?"), bot("a"), user("B?"), bot("b")], "rejected": [user("A?"), bot("c")]},
        "chosen must be exactly one assistant message after the prompt, got roles assistant, user, assistant",
    ),
    (
        {"chosen": [user("A?"), bot("a"), user("B?")], "rejected": [user("A?"), bot("a"), bot("b")]},
        "prompt must end in a user's message, got roles user, assistant",
    ),
    (
        {"prompt": [user("A?")], "chosen": [user("A?"), bot("a")], "rejected": [user("A?"), bot("b")]},
        "chosen must be exactly one assistant message after the prompt, got roles user, assistant",
    ),
    (
        {"prompt": [user("A?"), bot("a")], "chosen": [bot("b")], "rejected": [bot("c")]},
        "prompt must end in a user's message, got roles user, assistant",
    ),
    ({"prompt": [SYSTEM], "chosen": [bot("b")], "rejected": [bot("c")]}, "prompt must end in a user's message, got roles system"),
    ({"prompt": [user(" ")], "chosen": [bot("b")], "rejected": [bot("c")]}, "prompt is empty"),
    ({"prompt": [user("A?")], "chosen": [bot("")], "rejected": [bot("c")]}, "chosen is empty"),
    (
        {"prompt": [{"role": "text", "content": "A?"}], "chosen": [bot("b")], "rejected": [bot("c")]},
        "message 1 of prompt: role must be one of system, developer, user, assistant, tool, got the text 'text'",
    ),
    (
        {"prompt": [{"from": "human", "value": "A?"}], "chosen": [bot("b")], "rejected": [bot("c")]},
        "message 1 of prompt must have role and content, got an object with from, value",
    ),
    (
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "b", "rejected": "c"},
        "message 1 of prompt: content must be text, or one part of text, got 1 parts (image)",
    ),
    (FINE | {"label": 1}, "label must be true (desirable) or false, got the number 1"),
    (FINE | {"label": "good"}, "label must be true (desirable) or false, got the text 'good'"),
    (FINE | {"label": None}, f"label must be true (desirable) or false, got {NULL}"),
    (FINE | {"completion": [bot("So.")]}, "a completion of messages needs a prompt of messages"),
    (FINE | {"completion": ""}, "completion is empty"),
    (OK | {"rejected": None}, f"rejected {TEXT_OR_LIST} {NULL}"),
    (OK | {"rejected": float("nan")}, f"rejected {TEXT_OR_LIST} {NULL}"),
    (OK | {"rejected": {"role": "assistant", "content": "b"}}, f"rejected {TEXT_OR_LIST} an object with role, content"),
    (OK | {"prompt": True}, f"prompt {TEXT_OR_LIST} true"),
    (FINE | {"completion": 7}, f"completion {TEXT_OR_LIST} the number 7"),
    (OK | {"prompt": [user("A?") | {"content": None}]}, f"message 1 of prompt: content must be text, got {NULL}"),
    (OK | {"prompt": [user("A?") | {"content": {"a": 1}}]}, "message 1 of prompt: content must be text, got an object with a"),
    (
        OK | {"prompt": [user("A?") | {"content": [{"type": "text", "text": "A"}, {"type": "image_url", "image_url": "x"}]}]},
        "message 1 of prompt: content must be text, or one part of text, got 2 parts (text, image_url)",
    ),
    (OK | {"prompt": [user("A?") | {"content": []}]}, "message 1 of prompt: content must be text, or one part of text, got 0 parts ()"),
    (OK | {"prompt": ["A?"]}, "message 1 of prompt must have role and content, got the text 'A?'"),
    (OK | {"tools": [{"type": "function"}]}, "has tools, and bench cannot train on this. Remove the row"),
    (OK | {"images": ["a.png"]}, "has images, and bench cannot train on this. Remove the row"),
    (OK | {"audio": {"path": "a.wav"}}, "has audio, and bench cannot train on this. Remove the row"),
    (
        FINE | {"chat_template_kwargs": {"enable_thinking": False}},
        "has chat_template_kwargs, and bench cannot train on this. Remove the row",
    ),
    (
        {"prompt": [user("A?")], "chosen": [bot("b") | {"reasoning_content": "c"}], "rejected": [bot("c")]},
        "message 1 of chosen has reasoning_content, and bench cannot train on this. Remove the row",
    ),
    (
        OK | {"prompt": [user("A?"), {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}, user("B?")]},
        "message 2 of prompt has tool_calls, and bench cannot train on this. Remove the row",
    ),
    (
        {"prompt": [user("A?"), bot("b") | {"weight": 0}, user("B?")], "chosen": "b", "rejected": "c"},
        "message 2 of prompt has weight=0, but bench would train on the message all the same. Remove the row",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD, ids=[f"{number}" for number in range(len(BAD))])
def test_a_bad_row_is_said_with_its_line_and_reason(row: Any, reason: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", FINE if isinstance(row, dict) and "completion" in row else OK, row)
    with pytest.raises(BadRows) as raised:
        read_preferences(file)
    assert str(raised.value) == f"{file}:2: {reason}"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "not JSON (Expecting value: line 1 column 1 (char 0))"),
        (b'{"prompt": "cut', "not JSON (Unterminated string starting at: line 1 column 12 (char 11))"),
        (
            '{"p": "größer"}'.encode("latin-1"),
            "expected UTF-8, got other bytes (invalid start byte at byte 9): save the file as UTF-8",
        ),
        (b"\x00\x01", "expected UTF-8, got UTF-16: save the file as UTF-8"),
        (b'{"prompt": "\\ud83d"}', f"prompt: {HALF_CHARACTER}"),
    ],
)
def test_a_line_that_cannot_be_read_is_said_like_any_bad_row(
    line: bytes, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([json.dumps(OK).encode(), line, json.dumps(OK).encode()]))
    with pytest.raises(BadRows) as raised:
        read_preferences(file)
    assert str(raised.value) == f"{file}:2: {reason}"


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_what_is_left_aside_of_rows_is_counted(write: Any, tmp_path: Path) -> None:
    """Columns and fields that say nothing in a row (null, empty) are there in every row of a Parquet file."""
    rows = [
        {
            "prompt": [user("A?") | {"name": "Ann"}],
            "chosen": [bot("a")],
            "rejected": [bot("b")],
            "margin": 0.5,
            "tools": [],
        },
        {
            "prompt": [user("B?") | {"name": None}],
            "chosen": [bot("c")],
            "rejected": [bot("d")],
            "margin": 0.0,
            "tools": None,
        },
        {
            "prompt": [user("C?") | {"name": ""}],
            "chosen": [bot("e")],
            "rejected": [bot("f")],
            "margin": None,
            "tools": [],
        },
    ]
    found = read_preferences(write(tmp_path / f"rows.{write.__name__}", *rows))
    assert (len(found.pairs), found.noted) == (
        3,
        {"with margin, which is not read": 2, "with name in a message, which is not read": 1},
    )


def test_columns_that_other_trainers_read_are_counted(tmp_path: Path) -> None:
    """LLaMA-Factory and Axolotl put `system` and `history` before the prompt; a file may hold both of TRL's forms at once."""
    pair = {"prompt": "A?", "chosen": "a", "rejected": "b"}
    others = [
        {"system": "Be brief."},
        {"system": "", "history": [["B?", "c"]]},
        {"completion": "d", "label": False},
    ]
    noted = read_preferences(jsonl(tmp_path / "rows.jsonl", *(pair | other for other in others))).noted
    of_pairs = {f"with {name}, which is not read of a pair": 1 for name in ("completion", "label")}
    assert noted == {"with system, which is not read": 1, "with history, which is not read": 1, **of_pairs}


@pytest.mark.parametrize(
    ("prompt", "other"),
    [
        ("Name a dog of mine.", False),
        ("  name a dog  of mine", False),
        ("\n\nHuman: Name a dog of mine.\n\nAssistant:", False),
        ("", False),
        ("Name a dog", False),  # cut
        ("Name a cat of mine.", True),
        ("a", True),
    ],
)
def test_a_prompt_beside_other_messages_is_counted(prompt: str, other: bool, tmp_path: Path) -> None:
    asked = user("Name a dog of mine.")
    row = {"prompt": prompt, "chosen": [asked, bot("a")], "rejected": [asked, bot("b")]}
    found = read_preferences(jsonl(tmp_path / "rows.jsonl", row))
    assert found.pairs[0].prompt == [asked]
    assert found.noted == (
        {"with a prompt that its messages do not hold: the messages count": 1} if other else {}
    )


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_one_part_of_text_is_its_text(write: Any, tmp_path: Path) -> None:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    row = {
        name: [{"role": role, "content": [{"type": "text", "text": name}]}] for name, role in roles.items()
    }
    (found,) = read_preferences(write(tmp_path / f"rows.{write.__name__}", row)).pairs
    assert (found.prompt, found.chosen, found.rejected) == ([user("prompt")], "chosen", "rejected")


OFFSETS = pyarrow.array([0, 2, 4], pyarrow.int32()).buffers()[1]
ODD_COLUMNS = {
    "a number that is not finite": (pyarrow.array([1.0, float("nan")]), f"rejected {TEXT_OR_LIST} null"),
    "bytes": (pyarrow.array([b"ab", b"cd"]), f"rejected {TEXT_OR_LIST} bytes"),
    "a timestamp beyond Python's": (
        pyarrow.array([0, 2**62], pyarrow.timestamp("us")), "rejected must be text or a list of messages, got Unreadable (date value out of"
    ),
    "bytes that are no UTF-8": (
        pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, OFFSETS, pyarrow.py_buffer(b"ab\xff\xfe")]),
        "rejected must be text or a list of messages, got Unreadable ('utf-8' codec can't decode byte 0xff",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD_COLUMNS)
def test_a_parquet_value_that_is_no_text_is_said_with_its_row_and_column(kind: str, tmp_path: Path) -> None:
    column, reason = ODD_COLUMNS[kind]
    table = pyarrow.table({"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": column})
    pyarrow.parquet.write_table(table, file := tmp_path / "rows.parquet")
    with pytest.raises(BadRows) as raised:
        read_preferences(file)
    assert f"{file}:2: {reason}" in str(raised.value)


def test_a_parquet_value_that_nobody_reads_does_no_harm(tmp_path: Path) -> None:
    column, _ = ODD_COLUMNS["a timestamp beyond Python's"]
    table = pyarrow.table(
        {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"], "written": column}
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert len(read_preferences(tmp_path / "rows.parquet").pairs) == 2


def test_a_parquet_file_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays(
        [pyarrow.array(["a"])] * 4, names=["prompt", "chosen", "rejected", "chosen"]
    )
    pyarrow.parquet.write_table(table, file := tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet: holds the column 'chosen' twice"):
        read_preferences(file)


ODD_JSON = [
    '{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}',
    f'{{"x": {"[" * 200}{"]" * 200}}}',
    "NaN",
]


@pytest.mark.parametrize("line", ODD_JSON)
def test_json_that_two_readers_read_differently_is_said_with_its_line(line: str, tmp_path: Path) -> None:
    (file := tmp_path / "rows.jsonl").write_text(f"{json.dumps(OK)}\n{line}\n")
    with pytest.raises(BadRows, match=r"^[^\n]*rows\.jsonl:2: [^\n]*(twice|deeper than|got null)[^\n]*$"):
        read_preferences(file)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "text", "user", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "other"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "completion", "label"]), VALUES))
def test_any_row_is_taken_or_refused_and_nothing_else(row: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            (found,) = read_preferences(jsonl(Path(folder) / "rows.jsonl", row)).rows
        except BadRows as error:
            assert "rows.jsonl:1: " in str(error)
        else:
            assert found.prompt and all(
                message["role"] and isinstance(message["content"], str) for message in found.prompt
            )


def test_all_bad_rows_are_said_up_to_a_readable_number(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", OK, *[{"a": 1}] * 24)
    with pytest.raises(BadRows) as raised:
        read_preferences(file)
    lines = str(raised.value).splitlines()
    assert [line.split(": ")[0] for line in lines[:-1]] == [f"{file}:{number}" for number in range(2, 22)]
    assert lines[-1] == "... and 4 more"


def test_a_file_holds_one_form(tmp_path: Path) -> None:
    with pytest.raises(
        BadRows, match=r"rows\.jsonl: holds 2 paired and 1 unpaired rows\. A file must hold one kind"
    ):
        read_preferences(jsonl(tmp_path / "rows.jsonl", OK, FINE, OK))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "rows.jsonl",
            b"",
            "no rows; expected columns prompt, chosen, rejected or prompt, completion, label",
        ),
        (
            "rows.jsonl",
            b"\n \n",
            "no rows; expected columns prompt, chosen, rejected or prompt, completion, label",
        ),
        (
            "rows.csv",
            b"a,b",
            "expected .jsonl, .json (one object a line, or a list of them), either with .gz, or .parquet",
        ),
        (
            "rows",
            b"a,b",
            "expected .jsonl, .json (one object a line, or a list of them), either with .gz, or .parquet",
        ),
        ("rows.parquet", b"PAR1 no", "cannot be read as Parquet: "),
        (
            "rows.json",
            b'[\n{"prompt": "a"}\n',
            "not JSON (Expecting ',' delimiter: line 2 column 16 (char 17))",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="rows") as raised:
        read_preferences(tmp_path / name)
    assert reason in str(raised.value) and str(tmp_path / name) in str(raised.value)


@pytest.mark.parametrize("name", ["folder.jsonl", "folder.parquet", "missing.jsonl", "missing.parquet"])
def test_a_folder_or_a_missing_file_is_an_error_with_its_path(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises((OSError, ValueError), match=name):
        read_preferences(tmp_path / name)


def test_a_parquet_file_of_no_rows_holds_none(tmp_path: Path) -> None:
    schema = pyarrow.schema(
        [("prompt", pyarrow.string()), ("chosen", pyarrow.string()), ("rejected", pyarrow.string())]
    )
    pyarrow.parquet.write_table(schema.empty_table(), tmp_path / "rows.parquet")
    with pytest.raises(BadRows, match="no rows"):
        read_preferences(tmp_path / "rows.parquet")


# Splits and partners -------------------------------------------------------------------------------------------------


def pairs(prompts: list[str]) -> list[Pair]:
    return [
        Pair(f"{i}", [user(prompt)], f"chosen {i}", f"rejected {i}", "", "")
        for i, prompt in enumerate(prompts)
    ]


@given(st.integers(1, 200), st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 5))
def test_a_smaller_fraction_lies_inside_a_larger_one(n: int, one: float, other: float, seed: int) -> None:
    rows = pairs([f"{i}" for i in range(n)])
    small, large = (nested_subset(rows, fraction, seed) for fraction in sorted((one, other)))
    assert {row.id for row in small} <= {row.id for row in large}
    assert len(small) == max(1, round(min(one, other) * n))
    assert large == [row for row in rows if row in large], "the file's order is kept"
    assert nested_subset(rows, 1.0, seed) == rows


def test_another_seed_draws_another_subset() -> None:
    rows = pairs([f"{i}" for i in range(100)])
    assert nested_subset(rows, 0.1, 0) == nested_subset(rows, 0.1, 0) != nested_subset(rows, 0.1, 1)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60), st.floats(0.05, 0.95))
def test_a_prompt_is_trained_on_or_held_out_and_never_both(prompts: list[str], fraction: float) -> None:
    rows = pairs(prompts)
    train, heldout = split_heldout(rows, fraction)
    assert sorted(train + heldout, key=lambda row: int(row.id)) == rows
    assert not {prompt_key(row.prompt) for row in train} & {prompt_key(row.prompt) for row in heldout}


def test_the_held_out_share_is_about_what_was_asked_and_grows_with_it() -> None:
    rows = pairs([f"prompt {i}" for i in range(2000)])
    tenth, third = (split_heldout(rows, fraction)[1] for fraction in (0.1, 1 / 3))
    assert 150 < len(tenth) < 250 and 590 < len(third) < 740
    assert {row.id for row in tenth} <= {row.id for row in third}


@given(
    st.lists(st.sampled_from("abc"), min_size=2, max_size=40).filter(lambda prompts: len(set(prompts)) > 1),
    st.integers(0, 9),
)
def test_a_partner_is_always_of_another_prompt(prompts: list[str], seed: int) -> None:
    found = partners(prompts, seed)
    assert all(prompts[partner] != prompt for prompt, partner in zip(prompts, found, strict=True))
    assert found == partners(prompts, seed)


@given(st.integers(2, 60), st.integers(0, 9))
def test_rows_of_different_prompts_are_each_the_partner_of_one(n: int, seed: int) -> None:
    assert sorted(partners([f"{i}" for i in range(n)], seed)) == list(range(n))


def test_one_prompt_alone_has_no_partners() -> None:
    with pytest.raises(ValueError, match="must have two prompts or more"):
        partners(["a", "a", "a"], 0)


def test_partners_among_many_equal_prompts_take_no_time() -> None:
    """100 000 rows of two prompts, half and half or all but one of the same: 0.1 s; a search from each row took minutes."""
    start = time.monotonic()
    assert Counter(partners(["a"] * 99_999 + ["b"], 0)[:-1]) == {99_999: 99_999}
    partners(["a", "b"] * 50_000, 0)
    assert time.monotonic() - start < 5


def test_partners_bring_their_completions_to_both_forms() -> None:
    first, second = with_partners(pairs(["a", "b"]), seed=0)
    assert (first.mismatched_chosen, first.mismatched_rejected) == ("chosen 1", "rejected 1")
    assert (second.mismatched_chosen, second.mismatched_rejected) == ("chosen 0", "rejected 0")
    rows = [Unpaired("0", [user("a")], "A", True, ""), Unpaired("1", [user("b")], "B", False, "")]
    assert [row.mismatched for row in with_partners(rows, seed=0)] == ["B", "A"]


def test_either_form_is_its_rows() -> None:
    rows = pairs(["a"])
    assert (Preferences(rows, []).rows, Preferences(rows, []).form) == (rows, "paired")
    assert Preferences([], [Unpaired("0", [user("a")], "A", True, "")]).form == "unpaired"
