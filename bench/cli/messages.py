"""Messages about problems of a command: the expected value, the given one, and the place where it was set."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Discriminator

from bench.cli import sweep_files as sweeps
from bench.cli.sweep_files import CELL_GROUPS, SESSION_GROUPS, CommandLine
from bench.config import NAME_WORDS

GROUPS = (*CELL_GROUPS, *SESSION_GROUPS)
MEMBERS, SOURCES = "judge.judges", "data.sources"

BOUNDS = {
    "greater_than": ("gt", ">"),
    "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"),
    "less_than_equal": ("le", "<="),
}


@dataclass(frozen=True)
class Where:
    """The places where the settings of one point were set, for messages."""

    command: CommandLine
    sweep_file: str
    in_sweep: frozenset[str]  # keys set in the sweep file, axes included
    choices: Mapping[str, str]  # the choice of each group

    def is_given(self, key: str) -> bool:
        """Whether the command line or the sweep file sets the key."""
        return any(_covers(given, key) for given in (*self.command.words, *self.in_sweep))

    def of(self, key: str) -> str:
        """The place where a key was set, as words. A suite's key sets those of its evaluations."""
        if key.startswith(f"{MEMBERS}.") and not self.is_given(key):
            of_suite = f"judge.{key.removeprefix(f'{MEMBERS}.').partition('.')[2]}"
            key = of_suite if self.is_given(of_suite) else key
        if word := next((word for given, word in self.command.words.items() if _covers(given, key)), None):
            return f"{word} on the command line"
        if any(_covers(written, key) or written.split(".")[0] == key for written in self.in_sweep):
            return f"{key} in {self.sweep_file}"
        section = key.split(".")[0]
        group = {"world": "data", "hydra": "hydra/launcher"}.get(section, section)
        if key.startswith("method.labelling_judge") and self.choices.get(sweeps.LABELLING_JUDGE):
            group = sweeps.LABELLING_JUDGE
        if group not in self.choices:
            return f"{key} in conf/config.yaml"
        return f"{group}={self.choices[group]}" if key == group else f"{key} of {group}={self.choices[group]}"


def _covers(given: str, key: str) -> bool:
    """Whether setting `given` also sets `key`; the choice of a group sets no single value in it."""
    return key == given or (given not in GROUPS and key.startswith(f"{given}."))


def in_words(
    detail: Mapping[str, Any], record: type[BaseModel], section: str, where: Where
) -> Iterator[tuple[str, str]]:
    """(key, message) of one pydantic error; several where a validator reports several."""
    path, siblings = _place(record, detail["loc"])
    if path[:1] == ["launcher"]:
        path = ["hydra", *path]
    path = [section, *path] if section else path
    key, kind, context = ".".join(path), detail["type"], detail.get("ctx", {})
    came = f"got {short(detail['input'])} ({where.of(key)})"
    match kind:
        case "misfit":
            for name, text in context["misfits"]:
                yield key, f"{text} ({where.of('.'.join([*path, name]))})"
        case "extra_forbidden":
            yield key, unknown("key", key, siblings, where.of(key), ".".join(path[:-1]))
        case "missing":
            yield key, f"{key} must be set: add {key}=... ({where.of(key)})"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            name, sign = BOUNDS[kind]
            bound = f"{context[name]:g}" if isinstance(context[name], float) else context[name]
            yield key, f"{key} must be {sign} {bound}, {came}"
        case "union_tag_invalid":
            tag = f"{key}.{context['discriminator'].strip(chr(39))}"
            yield (
                key,
                f"{tag} must be one of {context['expected_tags']}, got {context['tag']!r} ({where.of(tag)})",
            )
        case "string_pattern_mismatch":
            yield key, f"{key} must be {NAME_WORDS}, {came}"
        case "too_short" if detail["input"]:
            pass  # its values have faults of their own
        case "too_short" | "string_too_short":
            yield key, f"{key} must not be empty, {came}"
        case "model_attributes_type" if key in GROUPS:
            yield (
                key,
                f"{key} must be its settings, {came}; a choice stands under axes, axes: {{{key}: {detail['input']}}}",
            )
        case "tuple_type":
            yield key, f"{key} must be a list, {came}; one value is written {key}=[{detail['input']}]"
        case _ if path and path[-1].isdecimal() and isinstance(inner := detail["input"], list):
            whole = key.rpartition(".")[0]
            way_out = f"a list is written {whole}=[{','.join(map(str, inner))}]"
            yield (
                key,
                f"{whole} must be one list of values, got a list inside it, {came.removeprefix('got ')}; {way_out}",
            )
        case _:
            text = detail["msg"].removeprefix("Input should be ")
            text = f"{key}: {text}" if text == detail["msg"] else f"{key} must be {text}"
            values = detail["input"] if isinstance(detail["input"], list) else []
            yield (
                key,
                f"{text}, {came}"
                + (f"; an axis is written {key}={','.join(map(str, values))}" if values else ""),
            )


def _place(record: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], list[str]]:
    """(path, names of its sibling fields) of a pydantic location; its extra part for the member of a union is
    left out."""
    path: list[str] = []
    here: type[BaseModel] | None = record
    siblings = list(record.model_fields)
    members: dict[Any, type[BaseModel]] = {}
    by_name: dict[Any, type[BaseModel]] = {}  # members of a union that is a dict's values
    tagged = False  # the next part names the member of a union of plain values, such as a number or a list
    for part in location:
        if tagged:
            tagged = False
            continue
        if part in members:
            here, members = members[part], {}
            siblings = list(here.model_fields)
            continue
        if part in by_name and len(path) > 1:
            here, by_name = by_name[part], {}
            siblings = list(here.model_fields)
            continue
        path.append(str(part))
        if here is None or part not in (siblings := list(here.model_fields)):
            continue
        info = here.model_fields[str(part)]
        tagged = any(isinstance(mark, Discriminator) for mark in info.metadata)
        kinds = get_args(info.annotation) or (info.annotation,)
        if (
            get_origin(info.annotation) is dict and get_origin(kinds[1]) is Annotated
        ):  # a dict of union members, each with its own tag
            union, mark = get_args(kinds[1])[:2]
            by_name = {
                name: kind
                for kind in get_args(union)
                for name in get_args(kind.model_fields[mark.discriminator].annotation)
            }
            here = None
            continue
        records = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if isinstance(tag := info.discriminator, str):
            members = {name: kind for kind in records for name in get_args(kind.model_fields[tag].annotation)}
        here = records[0] if len(records) == 1 else None
    return path, siblings


def unknown(
    what: str, name: Any, known: Sequence[str], where: str, section: str = "", meant: Sequence[str] = ()
) -> str:
    """The message about an unknown name, with the nearest and all known names. `known`: the names in
    `section`, where `name` is the whole dotted key; `meant`: names elsewhere that may be meant."""
    prefix = f"{section}." if section else ""
    close = difflib.get_close_matches(str(name).removeprefix(prefix), known, n=1)
    hint = f"; did you mean {meant[0]}?" if meant else f"; did you mean {prefix}{close[0]}?" if close else ";"
    return f"unknown {what} {str(name)!r} ({where}){hint} known{f' in {section}' if section else ''}: {', '.join(sorted(known))}"


def short(value: Any) -> str:
    """A value as text, cut at 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def one_line(error: Exception) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())
