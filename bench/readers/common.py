"""What readers share: a raw row with its place, and a tally of what was dropped, what was noted and what cannot be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from bench import text_files
from bench.readers.rows import Unusable
from bench.records import Message

T = TypeVar("T")


class Raw(NamedTuple):
    """A row as its source has it. `id` tells it apart from all others of the dataset; `place` is its file and number, for messages."""

    id: str
    place: str
    columns: Mapping[str, Any]


@dataclass
class Tally:
    """`dropped`: rows by reason; `noted`: rows that were kept and are worth a word; `problems`: rows that are not in the source's shape."""

    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def each(raws: Iterable[Raw], tally: Tally, make: Callable[[Raw], T]) -> Iterator[T]:
    """What `make` makes of the rows, less those that are dropped (Unusable) or cannot be read (ValueError), which are tallied."""
    for raw in raws:
        try:
            made = make(raw)
        except Unusable as error:
            tally.dropped[error.reason] += 1
        except ValueError as error:
            tally.problems.append(f"{raw.place}: {error}")
        else:
            yield made


def by_row(make: Callable[[Raw], T]) -> Callable[..., Iterator[T]]:
    """The `read` of a reader that makes what it makes of each row alone, in the same way of train and held-out ones."""

    def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[T]:
        return each(raws, tally, make)

    return read


def drop(reason: str) -> Unusable:
    return Unusable(reason, reason)


def text(columns: Mapping[str, Any], name: str) -> str:
    """A column that must hold text."""
    return text_files.text(columns.get(name), name)


def number(columns: Mapping[str, Any], name: str) -> float:
    if (value := text_files.number(columns.get(name))) is None:
        raise ValueError(f"{name} must be a number, got {text_files.describe(columns.get(name))}")
    return value


def one_of(columns: Mapping[str, Any], name: str, values: Sequence[Any]) -> Any:
    """A column that must hold one of some values."""
    if isinstance(value := columns.get(name), (list, dict)) or value not in values:
        raise ValueError(f"{name} must be {' or '.join(map(str, values))}, got {text_files.describe(value)}")
    return value


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def alternates(messages: Sequence[Message]) -> bool:
    """Whether user and assistant take turns, the user first, after a system message where there is one."""
    roles = [message["role"] for message in messages]
    if roles[:1] == ["system"]:
        roles = roles[1:]
    return all(role == ("user", "assistant")[place % 2] for place, role in enumerate(roles))
