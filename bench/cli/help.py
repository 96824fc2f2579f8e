"""The help: one screen for a bare `bench`, the commands and choices for `--help`, and one choice with its
settings.

Texts are the comments of conf/ and sweeps/ and the docstrings of settings, so help needs no composed config.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from bench.cli.words import CONF, SWEEPS, VERBS, choices, near

SCREEN = """\
bench compares methods that align language models with preferences, and tells which differences are larger than the noise.

  python -m bench +sweep=kto_beta             run a sweep and print its table; finished stages are kept
  python -m bench plan +sweep=kto_beta        what it would run, with time, tokens and cost
  python -m bench status +sweep=kto_beta      the state of every cell
  python -m bench method=dpo,kto seed=0,1     a grid of your own; any setting takes a list
  python -m bench verify                      check the whole results folder

  python -m bench help                        every command and every choice
  python -m bench help method                 the methods, one line each
  python -m bench help method.kto             the settings of one choice

README.md has a first table and how to read it.
"""
TITLES = {
    "method": "how the policy learns",
    "model": "the start model, or a folder",
    "data": "the data to learn from",
    "judge": "the judge of completions",
    "scale": "settings of a paper or of the world",
    "sft": "how a base model becomes the start model",
    "engine": "the program that generates",
    "adapter": "full fine-tuning or LoRA",
    "accelerate": "how one training is spread over devices",
    "hydra/launcher": "where stages run",
    "hardware": "the GPU that a plan computes with",
    "forgetting": "tasks in addition to the judge",
    "tracker": "where a sweep is mirrored",
}


class UnknownTopic(ValueError):
    """There is no such command or choice; the message names the nearest."""


def overview(width: int | None = None) -> str:
    """Every command with a few words, every group with its choices, every sweep."""
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 140)
    lines = [
        "Usage: python -m bench [COMMAND] [+sweep=NAME] [GROUP=CHOICE ...] [KEY=VALUE ...]; a list a,b,c makes an axis.",
    ]
    lines.append("Commands (bench COMMAND, or do=COMMAND; without one: run):")
    for verb in VERBS:
        words = textwrap.shorten(heading(CONF / "do" / f"{verb}.yaml"), width - 15, placeholder=" ...")
        lines.append(f"  {verb:<12} {words}")
    lines += ["Groups (GROUP=CHOICE):"]
    for group, title in TITLES.items():
        lines += _wrapped(f"{group}: {', '.join(choices(group))}", width, title)
    n_sweeps = len(list(SWEEPS.glob("*.yaml")))
    lines.append(
        f"  +sweep (a question in a file): kto_beta and {n_sweeps - 1} more; bench help sweep lists them"
    )
    lines += [
        "More: bench help GROUP, bench help GROUP.CHOICE, bench help COMMAND; bench --cfg job prints every setting and its value;",
    ]
    lines += ["bench --version; bench --hydra-help explains Hydra's own flags, such as --shell-completion."]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, width: int, title: str) -> list[str]:
    """The choices of a group over as many lines as it takes; the title after the group's name."""
    name, _, rest = text.partition(": ")
    return textwrap.wrap(
        f"{name} ({title}): {rest}",
        width,
        initial_indent="  ",
        subsequent_indent="      ",
        break_on_hyphens=False,
    )


def topic(name: str, width: int | None = None) -> str:
    """Help about a group, a choice of one, a command or a sweep. Raises UnknownTopic."""
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 140)
    name = name.lstrip("+").replace("=", ".", 1)
    group, _, choice = name.partition(".")
    if group == "launcher":
        group = "hydra/launcher"
    if name in VERBS:
        return _choice("do", name, width)
    if group == "sweep":
        names = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
        if not choice:
            return _lines({one: heading(SWEEPS / f"{one}.yaml") for one in names}, width)
        if choice in names:
            return _comment((SWEEPS / f"{choice}.yaml").read_text(encoding="utf-8")) + "\n"
        raise UnknownTopic(f"unknown sweep '{choice}'{near(choice, names)}")
    if group not in (*TITLES, "do"):
        raise UnknownTopic(
            f"no help about '{name}'{near(name, [*VERBS, *TITLES, 'sweep'])}; bench help lists everything"
        )
    if not choice:
        return _lines({one: heading(CONF / group / f"{one}.yaml") for one in choices(group)}, width)
    if choice not in choices(group):
        raise UnknownTopic(f"unknown {group} '{choice}'{near(choice, choices(group))}")
    return _choice(group, choice, width)


def _lines(texts: Mapping[str, str], width: int) -> str:
    """One line for each name, cut at the width."""
    longest = max(map(len, texts))
    rows = (
        f"  {name:<{longest}}  {textwrap.shorten(text, max(20, width - longest - 4), placeholder=' ...')}"
        for name, text in texts.items()
    )
    return "\n".join(rows) + "\n"


def heading(path: Path) -> str:
    """The first sentence of the comment that opens a YAML file; empty where there is none."""
    comment = " ".join(_comment(path.read_text(encoding="utf-8")).split())
    return first_sentence(comment.removeprefix("Question: "))


def first_sentence(text: str) -> str:
    """The first sentence without its final dot: it ends at a dot or mark before a capital letter or a bracket."""
    match = re.match(r"(.*?[.?!])(?= [A-Z(]| *$)", text)
    return (match[1] if match else text).rstrip(".")


def _comment(text: str) -> str:
    """The comment that opens a YAML file, without its marks."""
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    kept: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            break
        kept.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(kept)


@dataclass(frozen=True)
class Setting:
    """A key of a YAML file: dotted, with the text of its value and its comment."""

    key: str
    value: str
    comment: str


def bases(path: Path) -> list[Path]:
    """The YAML files that a file of conf/ builds on, by its `defaults`."""
    names = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
    names = [name.partition("@")[0] for name in names if isinstance(name, str) and name != "_self_"]
    files = [
        CONF / f"{name.lstrip('/')}.yaml" if name.startswith("/") else path.parent / f"{name}.yaml"
        for name in names
    ]
    return [file for file in files if file.is_file()]


def settings(path: Path) -> dict[str, Setting]:
    """The keys of a YAML file and of the files it builds on, by their dotted name."""
    merged: dict[str, Setting] = {}
    for base in bases(path):
        merged |= settings(base)
    return merged | own_settings(path)


def own_settings(path: Path) -> dict[str, Setting]:
    """The keys that stand in one YAML file, by their dotted name; its opening comment belongs to none of them."""
    text = path.read_text(encoding="utf-8")
    read: dict[str, Setting] = {}
    parents: list[tuple[int, str]] = []
    opening = len(_comment(text).splitlines())
    comment: list[str] = []
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    for number, line in enumerate(lines):
        bare = line.strip()
        if bare.startswith("#"):
            if number >= opening:
                comment.append(bare.lstrip("# "))
            continue
        match = re.match(r"( *)([\w@/]+): *(.*)$", line)
        if match is None:
            comment = []
            continue
        depth, key, value = len(match[1]), match[2], match[3]
        parents = [(place, name) for place, name in parents if place < depth]
        dotted = ".".join([*(name for _, name in parents), key])
        parents.append((depth, key))
        value, _, tail = value.partition(" # ")
        following = iter(lines[number + 1 :])
        while value.count("{") > value.count("}"):  # a mapping over several lines
            value = f"{value} {next(following).strip()}"
        if value.strip() and key != "defaults":
            read[dotted] = Setting(dotted, value.strip(), " ".join([*comment, tail.strip()]).strip())
        comment = []
    return read


def _choice(group: str, choice: str, width: int) -> str:
    """A choice's opening comment, then its settings: value, bounds and meaning of each."""
    path = CONF / group / f"{choice}.yaml"
    lines = textwrap.wrap(" ".join(_comment(path.read_text(encoding="utf-8")).split()), width)
    known = fields(path)
    every = settings(path)
    by_scale = _by_scale(every)
    rows = [
        setting
        for key, setting in every.items()
        if key.rpartition(".")[2] not in ("name", "kind") and not key.startswith(("rates.", "by_scale."))
    ]
    if rows:
        lines.append("")
    prefix = {"hydra/launcher": "hydra.launcher.", "do": ""}.get(group, f"{group}.")
    for setting in rows:
        key = (
            setting.key
            if setting.key in known and "@package _global_" in path.read_text(encoding="utf-8")
            else f"{prefix}{setting.key}"
        )
        meaning, bounds = known.get(setting.key, ("", ""))
        value = setting.value
        if scaled := re.fullmatch(r"\$\{scale\.([\w.]+)\}", value):
            value = f"from scale= ({scaled[1]})"
        lines += _row(key, value, bounds, meaning or setting.comment, width, indent=2)
        if of_scales := by_scale.get(setting.key):
            lines += textwrap.wrap(
                f"By scale: {'; '.join(of_scales)}.", width, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
        inside = yaml.safe_load(value) if value.startswith("{") else {}
        for name, part in inside.items():
            meaning, bounds = known.get(f"{setting.key}.{name}", ("", ""))
            if meaning:
                lines += _row(
                    f"{key}.{name}", "null" if part is None else str(part), bounds, meaning, width, indent=6
                )
    return "\n".join(lines) + "\n"


def _by_scale(every: Mapping[str, Setting]) -> dict[str, list[str]]:
    """Words on the values that a method's settings take by scale (`rates` and `by_scale`), by setting."""
    words: dict[str, list[str]] = {}
    for key, setting in every.items():
        part, _, scale = key.partition(".")
        comment = f" ({setting.comment})" if setting.comment else ""
        if part == "rates":
            words.setdefault("learning_rate", []).append(f"{scale} {setting.value}{comment}")
        elif part == "by_scale":
            for name, value in yaml.safe_load(setting.value).items():
                words.setdefault(name, []).append(f"{scale} {value}{comment}")
    return words


def _row(key: str, value: str, bounds: str, meaning: str, width: int, indent: int) -> list[str]:
    """The lines of one setting."""
    pad = " " * (indent + 4)
    first = f"{' ' * indent}{key} = {value}" + (f"   ({bounds})" if bounds else "")
    return [first, *textwrap.wrap(meaning, width, initial_indent=pad, subsequent_indent=pad)]


def fields(path: Path) -> dict[str, tuple[str, str]]:
    """(meaning, bounds) of the keys of a file in conf/, from the fields of the settings class that it fills."""
    from bench.config import Cell, Scale, Session, Training

    if path == CONF / "config.yaml":
        return dict([*_described(Cell, ""), *_described(Session, "")])
    if path == CONF / "training.yaml":
        return dict(_described(Training, ""))
    group = path.parent.relative_to(CONF).as_posix()
    section = {"hydra/launcher": "launcher"}.get(group, group)
    if section == "scale":
        return dict(_described(Scale, ""))
    tree = _tree(path)
    known: dict[str, tuple[str, str]] = {}
    whole = "# @package _global_" in path.read_text(encoding="utf-8")
    for name, part in tree.items() if whole else [(section, tree)]:
        owner = next((record for record in (Cell, Session) if name in record.model_fields), None)
        if owner is not None and (record := _record(owner.model_fields[name].annotation, part, path.stem)):
            known |= _described(record, f"{name}." if whole else "")
    return known


def _tree(path: Path) -> dict[str, Any]:
    """The sections of a YAML file and of the files it builds on; a section's keys are merged."""
    merged: dict[str, Any] = {}
    own = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for tree in [*map(_tree, bases(path)), own]:
        for key, value in tree.items():
            merged[key] = (
                merged[key] | value
                if isinstance(value, dict) and isinstance(merged.get(key), dict)
                else value
            )
    return merged


def _record(annotation: Any, part: Any, choice: str) -> Any:
    """The settings class of a section, found among a union's members by the section's `name`, `kind` or
    `source`."""
    from pydantic import BaseModel

    part = part if isinstance(part, dict) else {}
    for record in _parts(annotation):
        if isinstance(record, type) and issubclass(record, BaseModel):
            options = {
                name: field.annotation
                for name, field in record.model_fields.items()
                if name in ("name", "kind", "source")
            }
            tags = {
                name: get_args(option) for name, option in options.items() if get_origin(option) is Literal
            }
            if all(part.get(name, choice) in values for name, values in tags.items()):
                return record
    return None


def _described(record: Any, prefix: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """(dotted key, (meaning, bounds)) of each field of a record and of the records in it."""
    from pydantic import BaseModel

    from bench.config.base import meanings

    texts = meanings(record)
    for name, field in record.model_fields.items():
        yield f"{prefix}{name}", (texts.get(name, ""), _bounds(field))
        for part in _parts(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _described(part, f"{prefix}{name}.")


def _bounds(field: Any) -> str:
    """The bounds of a number, or the options of a field that has several."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    marks = [*field.metadata, *(mark for part in _annotated(field.annotation) for mark in part)]
    bounds = [
        f"{sign} {getattr(mark, name)}"
        for mark in marks
        for name, sign in signs.items()
        if getattr(mark, name, None) is not None
    ]
    options = [
        value for part in _parts(field.annotation) if get_origin(part) is Literal for value in get_args(part)
    ]
    return ", ".join(dict.fromkeys(bounds)) or (" | ".join(map(str, options)) if len(options) > 1 else "")


def _annotated(annotation: Any) -> Iterator[list[Any]]:
    """The marks of a union's numbers: of `Annotated[int, Field(ge=1)] | None`, for one."""
    for part in get_args(annotation):
        if get_origin(part) is Annotated and get_origin(annotation) in (Union, UnionType):
            yield [mark for one in get_args(part)[1:] for mark in getattr(one, "metadata", [one])]


def _parts(annotation: Any) -> list[Any]:
    """The members of a union, however it is annotated."""
    args = [one for one in get_args(annotation) if not isinstance(one, (str, int, float, bool))]
    if get_origin(annotation) is Literal or not args:
        return [annotation]
    return [part for one in args for part in _parts(one)]
