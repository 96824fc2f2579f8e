"""The one reader of files that a person hands in: encodings, line ends, nesting, sizes, numbers, and what it refuses."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bench import text_files
from bench.text_files import (
    MAX_DEPTH,
    BadFile,
    csv_number,
    describe,
    id_text,
    lines,
    number,
    open_regular,
    optional_text,
    parse_json,
    parse_yaml,
    printable,
    read_csv,
    read_json,
    read_list,
    read_object,
    read_objects,
    read_rows,
    read_text,
    read_yaml,
    text,
    texts,
    whole_number,
)

MARK = b"\xef\xbb\xbf"
HALF = "half a surrogate pair"


def written(tmp_path: Path, content: bytes, name: str = "f.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def refused(read: Callable[..., Any], *arguments: Any) -> str:
    """The refusal, which is one line."""
    with pytest.raises(BadFile) as error:
        read(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# Encodings ------------------------------------------------------------------------------------------------------------

ENDS = pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
MARKS = pytest.mark.parametrize("mark", [b"", MARK], ids=["plain", "marked"])
NAMES = pytest.mark.parametrize("name", ["f", "f.gz"])


@ENDS
@MARKS
@NAMES
def test_a_mark_and_line_ends_change_nothing(tmp_path: Path, end: bytes, mark: bytes, name: str) -> None:
    path = written(tmp_path, mark + b"a" + end + "\u2028é".encode() + end + end, name)
    assert read_text(path) == "a\n\u2028é\n\n"
    rows = written(tmp_path, mark + b'{"a": 1}' + end + end + '{"b": "\u2028"}'.encode(), name)
    assert list(read_rows(rows)) == [(f"{rows}:1", {"a": 1}), (f"{rows}:3", {"b": "\u2028"})]
    assert read_list(written(tmp_path, mark + end + b"[1," + end + b"2]" + end, name)) == [1, 2]
    assert read_yaml(written(tmp_path, mark + b"a: 1" + end + b"b: [x]" + end, name)) == {"a": 1, "b": ["x"]}
    table = written(tmp_path, mark + b"b,a" + end + b"1,2" + end + end + b"3,4", name)
    assert [row for _, row in read_csv(table, ["a"])] == [{"b": "1", "a": "2"}, {"b": "3", "a": "4"}]
    assert [place for place, _ in read_csv(table)] == [f"{table}:2", f"{table}:4"]


def test_line_ends_inside_a_field_of_csv_stay(tmp_path: Path) -> None:
    path = written(tmp_path, b'a,b\r\n"x\r\ny",1\r\n')
    assert read_csv(path) == [(f"{path}:3", {"a": "x\r\ny", "b": "1"})]


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "read", [read_text, read_json, read_yaml, read_csv, lambda path: list(read_rows(path))]
)
def test_other_encodings_of_unicode_are_refused_by_name(
    tmp_path: Path, codec: str, read: Callable[[Path], Any]
) -> None:
    path = written(tmp_path, '{"a": 1}\n'.encode(codec))
    message = refused(read, path)
    assert message.startswith(str(path)) and message.endswith(
        f"expected UTF-8, got {codec[:6].upper()}: save the file as UTF-8"
    )


def test_other_bytes_are_refused_with_their_place(tmp_path: Path) -> None:
    path = written(tmp_path, b'{"a": 1}\n{"a": "caf\xe9"}\n')
    expected = "expected UTF-8, got other bytes (invalid continuation byte at byte"
    assert refused(lambda: list(read_rows(path))).startswith(f"{path}:2: {expected} 10)")
    assert refused(read_text, path).startswith(f"{path}: {expected} 19)")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="expected a file, got a pipe or a device: move it away"):
        open_regular(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with open_regular(written(tmp_path, b"a")) as file:
        assert file.read() == b"a"


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(os.urandom(9000))[:-2000])
    spoiled = written(tmp_path, b"no gzip", "plain")
    spoiled = spoiled.rename(tmp_path / "f.gz")
    packed = written(tmp_path, gzip.compress(b"{}"), "rows.jsonl")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, why in (
        (
            cut,
            "the gzip file is damaged or incomplete (Compressed file ended before the end-of-stream marker was reached)",
        ),
        (spoiled, "the gzip file is damaged or incomplete (Not a gzipped file (b'no'))"),
        (packed, "is a gzip file: rename it so that its name ends in .gz"),
        (pipe, "expected a file, got a pipe or a device"),
        (tmp_path, "expected a file, got a folder"),
        (tmp_path / "none", "cannot be read (No such file or directory)"),
        (spoiled / "inside", "cannot be read (Not a directory)"),
        (tmp_path / ("long" * 100), "cannot be read (File name too long)"),
    ):
        for read in (read_text, read_json, read_csv, lambda path: list(lines(path))):
            assert refused(read, path) == f"{path}: {why}"
    assert refused(lambda: read_text(Path("a\0b"))) == r"a\x00b: is not a valid file name"


# JSON -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelt", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_is_not_finite_is_null(spelt: str) -> None:
    assert parse_json(f'{{"a": [{spelt}, 1.5]}}', "f") == {"a": [None, 1.5]}


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ('{"a": "x\\ud83d"}', f"f: a: {HALF}"),
        ('{"\\udc00": 1}', f"f: {HALF}"),
        ('[{"a": ""}, {"b": ["", "\\ud83d y"]}]', f"f: row 1, b, 1: {HALF}"),
        ('{"a": 1, "a": 1}', "f: an object holds 'a' twice"),
        ('[0, {"b": {"a": 1, "x": 2, "a": 3}}]', "f: row 1, b: an object holds 'a' twice"),
        ("[" * 100_000, f"f: nested deeper than {MAX_DEPTH} lists and objects"),
        ('{"a":' * 100_000, f"f: nested deeper than {MAX_DEPTH} lists and objects"),
        ("[" * 101 + "]" * 101, f"f: nested deeper than {MAX_DEPTH} lists and objects"),
        (
            f'[1, {{"a": {"[" * 100 + "]" * 100}}}]',
            f"f: row 1: nested deeper than {MAX_DEPTH} lists and objects",
        ),
        (f'{{"a": {"9" * 5000}}}', "f: a whole number has more than 1000 digits; write it as text"),
        ("", "f: not JSON (Expecting value: line 1 column 1 (char 0))"),
        ('{"a": 1}\n{"a": 2}', "f: not JSON (Extra data: line 2 column 1 (char 9))"),
        (
            "{'a': 1}",
            "f: not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
        ),
        ('{"a": "x\ty"}', "f: not JSON (Invalid control character at: line 1 column 9 (char 8))"),
    ],
)
def test_json_that_is_refused(source: str, why: str) -> None:
    assert refused(parse_json, source, "f").startswith(why)


def test_nesting_up_to_the_limit_and_whole_pairs_are_read() -> None:
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "f")
    assert parse_json('"\\ud83d\\ude00"', "f") == "😀"
    assert parse_json('"\\\\ud83d"', "f") == "\\ud83d"  # a backslash and letters


def test_a_name_held_twice_is_found_in_an_object_of_many(tmp_path: Path) -> None:
    begun = time.monotonic()
    many = ", ".join(f'"{n}": 0' for n in range(100_000))
    assert "an object holds '99999' twice" in refused(parse_json, f'{{{many}, "99999": 1}}', "f")
    assert time.monotonic() - begun < 20  # a quadratic search takes minutes


def test_rows_and_whole_files_must_be_of_their_shape(tmp_path: Path) -> None:
    rows = written(tmp_path, b'{"a": 1}\n\n[2]\n', "rows")
    assert refused(lambda: list(read_rows(rows))) == f"{rows}:3: expected an object, got a list of 1"
    whole = written(tmp_path, b'{"a": 1}', "whole")
    assert read_object(whole) == {"a": 1}
    assert refused(read_list, whole) == f"{whole}: expected a list, got an object with a"
    assert refused(read_objects, whole) == f"{whole}: expected a JSON list of objects, got an object with a"
    for source, got in (
        ("[]", "a list of 0"),
        ("NaN", "null (or a number that is not finite)"),
        ("3", "the number 3"),
        ('""', "an empty text"),
    ):
        path = written(tmp_path, source.encode(), "other")
        assert refused(read_object, path) == f"{path}: expected an object, got {got}"
    objects = written(tmp_path, b'{"generator": "m", "rows": [{"a": 1}, {"generator": "n"}]}', "objects")
    assert read_objects(objects) == [
        (f"{objects}: row 0", {"generator": "m", "a": 1}),
        (f"{objects}: row 1", {"generator": "n"}),
    ]
    objects = written(tmp_path, b'[{"a": 1}, null]', "objects")
    assert (
        refused(read_objects, objects)
        == f"{objects}: row 1: expected an object, got null (or a number that is not finite)"
    )


def test_sizes_are_bounded_and_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(text_files.ROW_LIMIT_ENV, "1")
    monkeypatch.setenv(text_files.FILE_LIMIT_ENV, "2")
    fits = b'"' + b"x" * ((1 << 20) - 2) + b'"'
    path = written(tmp_path, b"\n" + fits + b"\n", "rows.gz")
    assert [(line, len(content)) for line, content in lines(path)] == [(2, 1 << 20)]
    path = written(tmp_path, b"\n" + fits + b" \n", "rows.gz")
    assert refused(lambda: list(lines(path))).startswith(
        f"{path}:2: the row is larger than 1 MiB; set BENCH_MAX_ROW_MIB"
    )
    path = written(tmp_path, b"x" * (40 << 20), "rows.gz")  # no end of the row in sight
    assert refused(lambda: list(lines(path))).startswith(f"{path}:1: the row is larger than 1 MiB")
    assert refused(read_text, path).startswith(f"{path}: is larger than 2 MiB; set BENCH_MAX_FILE_MIB")
    monkeypatch.setenv(text_files.ROW_LIMIT_ENV, "0")
    assert (
        refused(lambda: list(lines(path)))
        == "the environment variable BENCH_MAX_ROW_MIB must be a whole number of MiB, got '0'"
    )


def test_blank_lines_by_the_million_are_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path, b"\n" * (30 << 20) + b"{}", "rows.gz")
    assert list(lines(path)) == [((30 << 20) + 1, b"{}")]


@given(
    st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")), max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_lines_are_numbered_whatever_the_chunk(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes], end: bytes
) -> None:
    path = tmp_path_factory.mktemp("lines") / "f"
    path.write_bytes(end.join(rows))
    if path.read_bytes().startswith(
        (MARK, b"\x1f\x8b")
    ):  # a mark is dropped, and gzip without its name refused
        return
    expected = [(n, row) for n, row in enumerate(rows, 1) if row.strip()]
    whole = text_files.CHUNK
    try:
        for text_files.CHUNK in (4, 5, 7, whole):
            assert list(lines(path)) == expected
    finally:
        text_files.CHUNK = whole


# YAML -----------------------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 300))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (LAUGHS, "f: its aliases (*name) expand to more than 100000 values"),
        (MERGES, "f: its aliases (*name) expand to more than 100000 values"),
        (CHAIN, f"f: a100: nested deeper than {MAX_DEPTH} lists and objects"),
        ("a: &a [*a]", "f:1: an alias (*name) contains itself"),
        ("a: 1\nb: 2\na: 3", "f:1: a mapping holds 'a' twice"),
        ("x:\n  a: 1\n  a: 1", "f:2: a mapping holds 'a' twice"),
        ("a: .nan", "f:1: not YAML (.nan is not a finite number)"),
        ("a: 1\nb: -.inf", "f:2: not YAML (-.inf is not a finite number)"),
        ("a: 1.0e+999", "f:1: not YAML (1.0e+999 is not a finite number)"),
        ("[" * 5000, f"f: nested deeper than {MAX_DEPTH} lists and objects"),
        ("a: [1", "f:1: not YAML (expected ',' or ']', but got '<stream end>')"),
        ("a: b: c", "f:1: not YAML (mapping values are not allowed here)"),
        ("--- 1\n--- 2", "f:2: not YAML (but found another document)"),
        ("a: 2024-13-01", "f: not YAML (month must be in 1..12"),
        ("a: !!bool perhaps", "f: not YAML ('perhaps')"),
        ("a: !!timestamp soon", "f: not YAML ("),
        ("a: !!int ''", "f: not YAML ("),
        (
            "a: !!python/object/apply:os.getcwd []",
            "f:1: not YAML (could not determine a constructor for the tag",
        ),
        ('a: "\\ud83d"', f"f: a: {HALF}"),
        ("a: \x07", "f: not YAML (unacceptable character #x0007: special characters are not allowed"),
        ("[a]: 1\n? [b]\n: 2", "f:1: not YAML (found unhashable key)"),
        ("x" * ((1 << 20) + 1), "f: expected at most 1 MiB of YAML, got more"),
    ],
    ids=lambda value: (
        value[:24].encode("ascii", "backslashreplace").decode() if isinstance(value, str) else None
    ),
)
def test_yaml_that_is_refused(source: str, why: str) -> None:
    begun = time.monotonic()
    assert refused(parse_yaml, source, "f").startswith(why)
    assert time.monotonic() - begun < 20


def test_yaml_keeps_its_values() -> None:
    merged = "base: &b {a: 1, c: 2}\nmine:\n  <<: *b\n  a: 3\n"
    assert parse_yaml(merged, "f") == {"base": {"a": 1, "c": 2}, "mine": {"a": 3, "c": 2}}
    nested = "x: &c\n  <<: &b {a: 1}\n  a: 2\n<<: *c\n"  # a mapping is merged into another before it is made itself
    assert parse_yaml(nested, "f") == {"x": {"a": 2}, "a": 2}
    assert parse_yaml("", "f") is None and parse_yaml("# nothing", "f") is None
    assert parse_yaml("{1: a, '1': b}", "f") == {1: "a", "1": "b"}


# CSV ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("", ": expected columns a; got an empty file"),
        ("\n \n", ": expected columns a; got an empty file"),
        ("b;a\n1;2", ": expected a header with column a, comma-separated; got one column 'b;a'"),
        ("b\ta\n1\t2", r": expected a header with column a, comma-separated; got one column 'b\ta'"),
        ("b,c\n1,2", ": expected a header with column a, comma-separated; got columns b, c"),
        ("a,b,a\n1,2,3", ": the header names column 'a' twice"),
        ("a,b\n1,2\n3,4,5", ":3: expected 2 comma-separated fields, as in the header; got 3"),
        ("a,b\n1", ":2: expected 2 comma-separated fields, as in the header; got 1"),
        ('a,b\n"x,1', ":2: not CSV (unexpected end of data)"),
        ('a,b\n"x"y,1', ":2: not CSV (',' expected after '\"')"),
        (f"a\n{'x' * 200_000}", ":2: not CSV (field larger than field limit (131072))"),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, source: str, why: str) -> None:
    path = written(tmp_path, source.encode())
    assert refused(read_csv, path, ["a"]) == f"{path}{why}"


def test_numbers_of_csv() -> None:
    assert [csv_number(field, "f") for field in ("", "  ", "1", " -1.5e3 ", ".5", "+2.", "0")] == [
        None,
        None,
        1,
        -1500,
        0.5,
        2,
        0,
    ]
    for field in ("nan", "inf", "1,5", "1_000", "0x1", "٣", "1e999", "true", "1 000"):
        assert (
            refused(csv_number, field, "f:2: a")
            == f"f:2: a must be a number with a decimal point, got the text {field!r}"
        )


# Values ---------------------------------------------------------------------------------------------------------------


def test_numbers() -> None:
    assert [
        number(value)
        for value in (0, -1, 2.5, 10**400, True, False, "1", None, [1], float("nan"), float("inf"))
    ] == [
        *(0, -1, 2.5),
        *[None] * 8,
    ]
    assert whole_number(3, "n", 1, 3) == 3
    for value in (0, 4, 1.0, True, "1", None):
        assert refused(whole_number, value, "f:1: turn", 1, 3).startswith(
            "f:1: turn must be a whole number from 1 to 3, got "
        )


def test_texts() -> None:
    assert text("", "t") == "" and optional_text(None, "t") is None and texts(["a", ""], "t") == ["a", ""]
    assert [id_text(value, "n") for value in (7, "x", -1)] == ["7", "x", "-1"]
    for value in (None, 1.0, True, "", [], {"a": 1}):
        assert refused(id_text, value, "f:1: id").startswith("f:1: id must be a text or a whole number, got ")
    assert (
        refused(text, {"content": "x", "n": 1}, "f:1: a")
        == "f:1: a must be text, got an object with content, n"
    )
    assert refused(text, None, "f:1: a") == "f:1: a must be text, got null (or a number that is not finite)"
    assert refused(texts, [], "f:1: a") == "f:1: a must be a list of texts, got a list of 0"
    assert refused(texts, "ab", "f:1: a") == "f:1: a must be a list of texts, got the text 'ab'"
    assert refused(texts, ["a", True], "f:1: a") == "f:1: a[1] must be text, got true"


def test_what_is_shown_cannot_steer_a_terminal() -> None:
    assert printable("a\x1b[2J\u202eb\ud83d\u2028é😀") == r"a\x1b[2J\u202eb\ud83d\u2028é😀"
    assert describe({"\x1b]0;x": 1}) == r"an object with \x1b]0;x"
    assert describe("\x1b[2J") == r"the text '\x1b[2J'"
    assert len(describe("x" * 1000)) < 100 and len(describe({f"name{n}": 1 for n in range(1000)})) < 100


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def without_infinities(value: Any) -> Any:
    if isinstance(value, float) and number(value) is None:
        return None
    if isinstance(value, list):
        return [without_infinities(one) for one in value]
    return (
        {name: without_infinities(one) for name, one in value.items()} if isinstance(value, dict) else value
    )


@given(JSON_VALUES)
def test_json_is_read_as_it_was_written_or_refused(value: Any) -> None:
    escaped, whole = json.dumps(value), json.dumps(value, ensure_ascii=False)
    if not text_files.is_unicode(whole):
        assert HALF in refused(parse_json, escaped, "f")
    else:
        assert parse_json(escaped, "f") == parse_json(whole, "f") == without_infinities(value)
        assert parse_json(MARK + whole.encode(), "f") == without_infinities(value)


@given(JSON_VALUES.filter(lambda value: text_files.is_unicode(json.dumps(value, ensure_ascii=False))))
def test_yaml_is_read_as_it_was_written_or_refused(value: Any) -> None:
    source = yaml.safe_dump(value)  # PyYAML folds U+0085 where it writes it as it is
    try:
        found = parse_yaml(source, "f")
    except BadFile as error:
        assert without_infinities(value) != value, error
    else:
        assert found == value


@given(
    st.binary(max_size=60) | st.text(max_size=40).map(lambda source: source.encode("utf-8", "surrogatepass"))
)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "f"
    for suffix in ("", ".gz"):
        path = path.with_suffix(suffix)
        path.write_bytes(content)
        for read in (
            read_text,
            read_json,
            read_list,
            read_object,
            read_objects,
            read_yaml,
            read_csv,
            lambda path: list(read_rows(path)),
        ):
            try:
                read(path)
            except BadFile as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)
