"""Shared parts of the readers: raw rows with their place, and a tally of dropped and unreadable rows."""

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
    """A row as its source has it.

    `id` is unique in the dataset. `place` is the row's file and number, for messages.
    """

    id: str
    place: str
    columns: Mapping[str, Any]


@dataclass
class Tally:
    """Counts of rows by reason, and problems.

    `dropped`: rows that were left out. `noted`: rows that were kept and are mentioned. `problems`: messages
    about rows that are not in the source's format.
    """

    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def each(raws: Iterable[Raw], tally: Tally, make: Callable[[Raw], T]) -> Iterator[T]:
    """Results of `make` for the rows, in order.

    A row for which `make` raises Unusable is dropped and counted; one for which it raises ValueError becomes
    a problem.
    """
    for raw in raws:
        try:
            row = make(raw)
        except Unusable as error:
            tally.dropped[error.reason] += 1
        except ValueError as error:
            tally.problems.append(f"{raw.place}: {error}")
        else:
            yield row


def by_row(make: Callable[[Raw], T]) -> Callable[..., Iterator[T]]:
    """Function `read` of a reader that applies `make` to each row alone, in train and held-out rows alike."""

    def read(raws: Iterable[Raw], reading: Any, tally: Tally, *, train: bool) -> Iterator[T]:
        return each(raws, tally, make)

    return read


def drop(reason: str) -> Unusable:
    """An exception that drops a row and counts it by `reason`."""
    return Unusable(reason, reason)


def text(columns: Mapping[str, Any], name: str) -> str:
    """Text of a column. Raises ValueError for another value."""
    return text_files.text(columns.get(name), name)


def number(columns: Mapping[str, Any], name: str) -> float:
    """Number of a column. Raises ValueError for another value."""
    if (value := text_files.number(columns.get(name))) is None:
        raise ValueError(f"{name} must be a number, got {text_files.describe(columns.get(name))}")
    return value


def one_of(columns: Mapping[str, Any], name: str, values: Sequence[Any]) -> Any:
    """Value of a column, one of `values`. Raises ValueError for another value."""
    if isinstance(value := columns.get(name), (list, dict)) or value not in values:
        raise ValueError(f"{name} must be {' or '.join(map(str, values))}, got {text_files.describe(value)}")
    return value


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def alternates(messages: Sequence[Message]) -> bool:
    """Whether user and assistant take turns, the user first. A system message may stand before them."""
    roles = [message["role"] for message in messages]
    if roles[:1] == ["system"]:
        roles = roles[1:]
    return all(role == ("user", "assistant")[place % 2] for place, role in enumerate(roles))
