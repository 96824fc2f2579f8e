"""Reads the text files of users: data, completions, items, prompts, prices, calibrations, configs.

Every reader drops a byte order mark, takes `\\n`, `\\r\\n` and `\\r` as line ends, and reads `.gz`. It raises
`BadFile` for a file that it cannot read, with file, row, what was expected and what came. In JSON, a number
that is not finite (NaN, Infinity, 1e999) is null, because a missing measurement is never a number. Errors
are: a name twice in one object, half of a surrogate pair, nesting deeper than MAX_DEPTH, and rows of more
than `row_limit()` bytes.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import errno
import gzip
import io
import json
import math
import os
import re
import stat
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import yaml

MAX_DEPTH = 100  # levels of nested lists and objects
MAX_YAML_NODES = 100_000  # values of a YAML file, with every alias written out
MAX_YAML_BYTES = 1 << 20  # PyYAML takes about ten seconds for so many.
MAX_DIGITS = 1000  # digits of a whole number
ROW_LIMIT_ENV, ROW_LIMIT_MIB = "BENCH_MAX_ROW_MIB", 16
FILE_LIMIT_ENV, FILE_LIMIT_MIB = "BENCH_MAX_FILE_MIB", 4096
CHUNK = 1 << 20
SHOWN_BAD_ROWS = 20
TOO_DEEP = f"nested deeper than {MAX_DEPTH} lists and objects"
HALF_CHARACTER = r"half a surrogate pair (an escape like \ud83d by itself) is no character: the text was cut in the middle of one"
OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# `float` also accepts 1_000 and digits of other scripts.
CSV_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
GZIP = b"\x1f\x8b"  # the first bytes of a gzip file
BROKEN_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


class BadFile(ValueError):
    """A file or row that cannot be used. The message names the file and, if there is one, the row."""


class NotJson(BadFile):
    """A text that is not JSON."""


def row_limit() -> int:
    """The largest size of a row in bytes, from BENCH_MAX_ROW_MIB (16 MiB by default)."""
    return _limit(ROW_LIMIT_ENV, ROW_LIMIT_MIB)


def file_limit() -> int:
    """The largest unpacked size in bytes of a file that is read whole, from
    BENCH_MAX_FILE_MIB (4 GiB by default)."""
    return _limit(FILE_LIMIT_ENV, FILE_LIMIT_MIB)


def _limit(name: str, default_mib: int) -> int:
    value = os.environ.get(name) or str(default_mib)
    if not value.isascii() or not value.isdecimal() or not int(value):
        raise BadFile(f"the environment variable {name} must be a whole number of MiB, got {value!r}")
    return int(value) << 20


# Values -----------------------------------------------------------------------------------------------------


def number(value: Any) -> float | None:
    """The value as a float where it is a finite number, else None.

    Booleans, texts and integers too large for a float give None.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def describe(value: Any, limit: int = 80) -> str:
    """The type of a value and its beginning, for a message after `got`."""
    match value:
        case None:
            return "null (or a number that is not finite)"
        case bool():
            return str(value).lower()
        case str():
            return "an empty text" if not value else f"the text {printable(repr(_cut(value, limit)))}"
        case Mapping():
            return (
                f"an object with {printable(_cut(', '.join(map(str, value)), limit))}"
                if value
                else "an empty object"
            )
        case list() | tuple():
            return f"a list of {len(value)}"
        case int() | float():
            return f"the number {_cut(repr(value), limit)}"
    return f"{type(value).__name__} {printable(_cut(str(value), limit))}"


def text(value: Any, what: str) -> str:
    """The value itself. Raises BadFile unless it is text; `what` is its place and name."""
    if not isinstance(value, str):
        raise BadFile(f"{what} must be text, got {describe(value)}")
    return value


def optional_text(value: Any, what: str) -> str | None:
    """The value itself, text or None. Raises BadFile for anything else."""
    return None if value is None else text(value, what)


def texts(value: Any, what: str) -> list[str]:
    """The value itself. Raises BadFile unless it is a list of at least one text."""
    if not isinstance(value, list) or not value:
        raise BadFile(f"{what} must be a list of texts, got {describe(value)}")
    return [text(one, f"{what}[{place}]") for place, one in enumerate(value)]


def id_text(value: Any, what: str) -> str:
    """The value as an id: text that is not empty, or a whole number as text.

    Raises BadFile for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise BadFile(f"{what} must be a text or a whole number, got {describe(value)}")
    return str(value)


def whole_number(value: Any, what: str, low: int, high: int) -> int:
    """The value itself. Raises BadFile unless it is a whole number from `low` to `high`, ends included."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadFile(f"{what} must be a whole number from {low} to {high}, got {describe(value)}")
    return value


def printable(value: str) -> str:
    """The text on one line, with control, format and unpaired characters escaped.

    Escaped, it cannot move the cursor, set the terminal's title or turn the direction of the line.
    """
    return "".join(
        _escaped(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in value
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _cut(value: str, limit: int) -> str:
    return value if len(value) <= limit else f"{value[: limit - 3]}..."


def listed_problems(problems: Sequence[str]) -> str:
    """The first SHOWN_BAD_ROWS problems, one a line, and the number of the others."""
    left = len(problems) - SHOWN_BAD_ROWS
    return "\n".join([*problems[:SHOWN_BAD_ROWS], *([f"... and {left} more"] if left > 0 else [])])


def is_unicode(value: str) -> bool:
    """Whether a text can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# Text -------------------------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """A whole file; .gz is unpacked.

    Raises BadFile for one that cannot be read or is larger than `file_limit()`.
    """
    limit = file_limit()
    with open_binary(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise BadFile(f"{path}: is larger than {limit >> 20} MiB; set {FILE_LIMIT_ENV} to allow larger files")
    return content


def read_text(path: Path) -> str:
    """A whole text file without byte order mark, with `\\n` as line end.

    Raises BadFile for other bytes than UTF-8.
    """
    return re.sub("\r\n?", "\n", decode(read_bytes(path), str(path)))


def decode(content: bytes, where: str) -> str:
    """The text of UTF-8 bytes, without byte order mark.

    Raises BadFile, its message beginning with `where`.
    """
    encoding = next((known for mark, known in OTHER_MARKS.items() if content.startswith(mark)), None)
    if encoding is None and content[:4].count(0):  # UTF-16 and UTF-32 are recognised without a mark too.
        encoding = {"utf-16": "UTF-16", "utf-32": "UTF-32"}.get(json.detect_encoding(content)[:6])
    if encoding:
        raise BadFile(f"{where}: expected UTF-8, got {encoding}: save the file as UTF-8")
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(
            f"{where}: expected UTF-8, got other bytes ({error.reason} at byte {error.start}): save the file as UTF-8"
        ) from error


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading bytes. Raises OSError for anything else; it never waits for a pipe."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(file, "rb")
    os.close(file)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "expected a file, got a pipe or a device: move it away", str(path))


@contextlib.contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file for reading bytes; .gz is unpacked. Raises BadFile, also while the file is read."""
    shown = printable(str(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadFile(
                f"{shown}: expected a file, got {'a folder' if path.is_dir() else 'a pipe or a device'}"
            )
        packed = path.suffix.lower() == ".gz"
        with gzip.open(path) if packed else path.open("rb") as file:
            if not packed and file.peek(2)[:2] == GZIP:
                raise BadFile(f"{shown}: is a gzip file: rename it so that its name ends in .gz")
            yield file  # type: ignore[misc]  # GzipFile is not an IO[bytes].
    except BROKEN_GZIP as error:
        raise BadFile(f"{shown}: the gzip file is damaged or incomplete ({printable(str(error))})") from error
    except OSError as error:
        raise BadFile(f"{shown}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        if isinstance(error, BadFile) or "null byte" not in str(error):
            raise
        raise BadFile(f"{shown}: is not a valid file name") from error


# JSON -------------------------------------------------------------------------------------------------------


def parse_json(content: str | bytes, where: str) -> Any:
    """The value of a JSON text, by the rules at the top of this file.

    Raises BadFile; the message begins with `where`.
    """
    source = decode(content, where) if isinstance(content, bytes) else content
    try:
        value = _DECODER.decode(source.strip(" \t\r\n"))
    except RecursionError:
        raise BadFile(f"{where}: {TOO_DEEP}") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"{where}: not JSON ({error})") from error
    except ValueError as error:
        raise BadFile(
            f"{where}: a whole number has more than {MAX_DIGITS} digits; write it as text"
        ) from error
    _check(value, where, escapes="\\u" in source)
    return value


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises BadFile."""
    return parse_json(read_bytes(path), str(path))


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises BadFile."""
    return _an_object(read_json(path), str(path))


def _an_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadFile(f"{where}: expected an object, got {describe(value)}")
    return value


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) for every row of a JSONL file. The place is `FILE:LINE`. Raises BadFile."""
    for line, parse in json_lines(path):
        place = f"{path}:{line}"
        yield place, _an_object(parse(), place)


def json_lines(path: Path) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Yield (line number, parser) for every line that is not blank.

    The parser raises BadFile for its line, so a caller can collect the errors of several lines. Raises
    BadFile for the file itself.
    """
    for line, content in lines(path):
        yield line, partial(parse_json, content, f"{path}:{line}")


def read_list(path: Path) -> list[Any]:
    """The list of a JSON file. Raises BadFile."""
    value = read_json(path)
    if not isinstance(value, list):
        raise BadFile(f"{path}: expected a list, got {describe(value)}")
    return value


def read_objects(path: Path, expected: str = "objects") -> list[tuple[str, dict[str, Any]]]:
    """(place, object) for every row of a JSON list with at least one object.

    The place is `FILE: row N`, from 0. The file may also hold one object with a list `rows`: each row then
    gets the object's other entries. Raises BadFile; `expected` names the rows in its message.
    """
    try:
        value = read_json(path)
    except NotJson as error:
        raise BadFile(f"{error}; expected a JSON list of {expected}") from error
    common: dict[str, Any] = {}
    if isinstance(value, dict) and isinstance(value.get("rows"), list):
        common = {name: one for name, one in value.items() if name != "rows"}
        value = value["rows"]
    if not isinstance(value, list) or not value:
        raise BadFile(f"{path}: expected a JSON list of {expected}, got {describe(value)}")
    places = [f"{path}: row {number}" for number in range(len(value))]
    return [(place, common | _an_object(row, place)) for place, row in zip(places, value, strict=True)]


def begins_as_list(path: Path) -> bool:
    """Whether the first character of a file is `[`, after blanks."""
    with open_binary(path) as file:
        while chunk := file.read(CHUNK):
            if start := chunk.removeprefix(codecs.BOM_UTF8).lstrip():
                return start[:1] == b"["
    return False


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, bytes) of the lines that are not blank, without byte order mark and line ends.

    Raises BadFile for a line of more than `row_limit()` bytes.
    """
    limit = row_limit()
    number, rest, first = 0, b"", True
    with open_binary(path) as file:
        while chunk := file.read(CHUNK):
            if first:
                chunk, first = (
                    chunk if chunk.startswith(tuple(OTHER_MARKS)) else chunk.removeprefix(codecs.BOM_UTF8),
                    False,
                )
            if not rest and not chunk.strip(b"\n"):  # There may be millions of blank lines.
                number += len(chunk)
                continue
            if chunk.endswith(b"\r"):
                chunk += file.read(1)  # `\r\n` may lie across two chunks.
            *whole, rest = re.split(rb"\r\n?|\n", rest + chunk)
            for line in whole:
                number += 1
                if line.strip():
                    yield number, _bounded(line, path, number, limit)
            _bounded(rest, path, number + 1, limit)
        if rest.strip():
            yield number + 1, rest


def _bounded(line: bytes, path: Path, number: int, limit: int) -> bytes:
    if len(line) > limit:
        raise BadFile(
            f"{path}:{number}: the row is larger than {limit >> 20} MiB; set {ROW_LIMIT_ENV} to allow larger rows"
        )
    return line


def _check(value: Any, where: str, *, escapes: bool) -> None:
    """Raise BadFile where a value has a fault (see `_fault`).

    The message gives the path to the faulty part.
    """
    fault = _fault(value, escapes)
    if fault is None:
        return
    path: list[str] = []
    part: tuple[Any, Any] | None = ("", value)
    while part is not None:
        inside = (
            part[1].items()
            if isinstance(part[1], dict)
            else enumerate(part[1])
            if isinstance(part[1], list)
            else ()
        )
        if part := next(((name, one) for name, one in inside if _fault(one, escapes)), None):
            path.append(
                f"row {part[0]}"
                if isinstance(part[0], int) and not path
                else printable(_cut(str(part[0]), 40))
            )
    raise BadFile(": ".join(filter(None, (where, ", ".join(path[:5]), fault))))


def _fault(value: Any, escapes: bool) -> str | None:
    """The fault of a value: half a surrogate pair, a name twice, or too deep nesting; None without one.

    It goes level by level, without recursion, because a value may be very deep.
    """
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        if escapes and not all(is_unicode(one) for one in level if isinstance(one, str)):
            return HALF_CHARACTER
        level = [one for one in level if isinstance(one, (dict, list))]
        if twice := next((one for one in level if isinstance(one, _NamedTwice)), None):
            return f"an object holds {printable(_cut(repr(twice.name), 60))} twice"
        if not level:
            return None
        level = [part for one in level for part in ((*one, *one.values()) if isinstance(one, dict) else one)]
    return TOO_DEEP


class _NamedTwice(dict[str, Any]):
    """A JSON object with the same name twice; `name` is that name."""

    name: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    names: set[str] = set()
    twice = _NamedTwice(value)
    twice.name = next(name for name, _ in pairs if name in names or names.add(name))  # type: ignore[func-returns-value]
    return twice


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError
    return int(digits)


def _float(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_int=_whole, parse_constant=lambda _: None
)  # type: ignore[arg-type]


# YAML -------------------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> Any:
    """The value of a YAML file, read with the safe schema. Raises BadFile."""
    return parse_yaml(read_text(path), str(path))


def read_own_yaml(path: Path) -> Any:
    """The value of a YAML file of ours, read by libyaml: ten times as fast as `read_yaml`, its errors in other words."""
    return parse_yaml(read_text(path), str(path), _OwnLoader)


def parse_yaml(content: str, where: str, make_loader: Any = None) -> Any:
    """The value of a YAML text.

    Raises BadFile for aliases that expand to more than MAX_YAML_NODES values or contain themselves, for a
    name twice in one mapping, and for numbers that are not finite.
    """
    if len(content) > MAX_YAML_BYTES:
        raise BadFile(f"{where}: expected at most {MAX_YAML_BYTES >> 20} MiB of YAML, got more")
    loader: Any = None
    try:
        loader = (make_loader or _Loader)(content)
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}, where) > MAX_YAML_NODES:
            raise BadFile(f"{where}: its aliases (*name) expand to more than {MAX_YAML_NODES} values")
        value = loader.construct_document(node)
    except RecursionError:
        raise BadFile(f"{where}: {TOO_DEEP}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        raise BadFile(f"{place}: not YAML ({printable(str(error.problem or error.context))})") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # Such as a date in month 13, or `!!bool x`
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"{where}: not YAML ({printable(' '.join(str(error).split()))})") from error
    finally:
        if loader is not None:
            loader.dispose()
    _check(value, where, escapes="\\u" in content or "\\U" in content)
    return value


class _Loader(yaml.SafeLoader):
    """The safe YAML loader. It refuses numbers that are not finite."""

    def construct_yaml_float(self, node: Any) -> float:
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value} is not a finite number", node.start_mark
            )
        return value


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_OwnLoader = type("_OwnLoader", (yaml.CSafeLoader, _Loader), {}) if yaml.__with_libyaml__ else _Loader


def _written_out(node: Any, sizes: dict[int, int | None], where: str, depth: int = 0) -> int:
    """The number of values of a node with its aliases expanded. Each node is visited once.

    Raises BadFile for a mapping with the same name twice, and for an alias that contains itself.
    """
    if depth > MAX_DEPTH:
        raise BadFile(f"{where}: {TOO_DEEP}")
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in sizes:
        size = sizes[id(node)]
        if size is None:
            raise BadFile(f"{where}:{node.start_mark.line + 1}: an alias (*name) contains itself")
        return size
    sizes[id(node)] = None
    parts = node.value
    if isinstance(node, yaml.MappingNode):
        names = Counter((name.tag, name.value) for name, _ in node.value if isinstance(name, yaml.ScalarNode))
        for (_, twice), n in names.items():
            if n > 1:
                raise BadFile(
                    f"{where}:{node.start_mark.line + 1}: a mapping holds {printable(_cut(repr(twice), 60))} twice"
                )
        parts = [part for pair in node.value for part in pair]
    sizes[id(node)] = size = 1 + sum(_written_out(part, sizes, where, depth + 1) for part in parts)
    return size


# CSV --------------------------------------------------------------------------------------------------------


def read_csv(path: Path, needed: Sequence[str] = ()) -> list[tuple[str, dict[str, str]]]:
    """(place, fields by column) for every row of a comma-separated file with a header.

    Blank lines are skipped. Raises BadFile for a header without a needed column or with a column twice, and
    for a row with more or fewer fields than the header.
    """
    source = decode(read_bytes(path), str(path))  # read_text would change the line ends inside fields.
    reader = csv.reader(io.StringIO(source, newline=""), strict=True)
    rows: list[tuple[str, dict[str, str]]] = []
    head: list[str] = []
    try:
        for fields in reader:
            place = f"{path}:{reader.line_num}"
            if not any(field.strip() for field in fields):
                continue
            if not head:
                head = _head(path, [field.strip() for field in fields], needed)
            elif len(fields) != len(head):
                raise BadFile(
                    f"{place}: expected {len(head)} comma-separated fields, as in the header; got {len(fields)}"
                )
            else:
                rows.append((place, dict(zip(head, fields, strict=True))))
    except csv.Error as error:
        raise BadFile(f"{path}:{reader.line_num}: not CSV ({error})") from error
    if not head:
        raise BadFile(f"{path}: expected columns {', '.join(needed)}; got an empty file")
    return rows


def _head(path: Path, head: list[str], needed: Sequence[str]) -> list[str]:
    if lacking := [name for name in needed if name not in head]:
        came = (
            f"one column {_cut(head[0], 60)!r}" if len(head) == 1 else f"columns {_cut(', '.join(head), 120)}"
        )
        raise BadFile(
            f"{path}: expected a header with column {' and '.join(lacking)}, comma-separated; got {printable(came)}"
        )
    if twice := [name for name in head if head.count(name) > 1]:
        raise BadFile(f"{path}: the header names column {twice[0]!r} twice")
    return head


def csv_number(field: str, what: str) -> float | None:
    """The finite number in a CSV field; None for an empty field. Raises BadFile for anything else."""
    if not field.strip():
        return None
    if not CSV_NUMBER.fullmatch(field.strip()) or not math.isfinite(value := float(field)):
        raise BadFile(f"{what} must be a number with a decimal point, got {describe(field)}")
    return value
