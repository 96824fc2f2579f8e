"""The help: one screen for a bare `bench`, the commands and choices for `--help`, and one choice with its settings.

Texts are the comments of conf/ and sweeps/, which are read as text, so that help comes without composing anything.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

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
    "data": "what it learns from",
    "judge": "who decides",
    "scale": "settings of a paper or of the world",
    "sft": "how a base model becomes the start model",
    "engine": "who generates",
    "adapter": "full fine-tuning or LoRA",
    "accelerate": "how one training is spread over devices",
    "hydra/launcher": "where stages run",
    "hardware": "the GPU that a plan reckons with",
    "forgetting": "tasks beside the judge",
    "tracker": "where a sweep is mirrored",
}


class UnknownTopic(ValueError):
    """Help was asked for something that is neither a command nor a choice; the message names what is near."""


def overview(width: int | None = None) -> str:
    """Every command with a few words, every group with its choices, every sweep."""
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 140)
    lines = ["Usage: python -m bench [COMMAND] [+sweep=NAME] [GROUP=CHOICE ...] [KEY=VALUE ...]; a list a,b,c makes an axis.", ""]
    lines.append("Commands (bench COMMAND, or do=COMMAND; without one: run):")
    for verb in VERBS:
        words = textwrap.shorten(heading(CONF / "do" / f"{verb}.yaml"), width - 15, placeholder=" ...")
        lines.append(f"  {verb:<12} {words}")
    lines += ["", "Groups (GROUP=CHOICE):"]
    for group, title in TITLES.items():
        lines += _wrapped(f"{group}: {', '.join(choices(group))}", width, title)
    lines += _wrapped(f"+sweep: {', '.join(sorted(path.stem for path in SWEEPS.glob('*.yaml')))}", width, "a question in a file")
    lines += [
        "",
        "More: bench help GROUP, bench help GROUP.CHOICE, bench help COMMAND; bench --cfg job prints every setting and its value;",
    ]
    lines += ["bench --version; bench --hydra-help explains Hydra's own flags, such as --shell-completion."]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, width: int, title: str) -> list[str]:
    """The choices of a group over as many lines as it takes; the title after the group's name."""
    name, _, rest = text.partition(": ")
    return textwrap.wrap(f"{name} ({title}): {rest}", width, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)


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
        raise UnknownTopic(f"no help about '{name}'{near(name, [*VERBS, *TITLES, 'sweep'])}; bench help lists everything")
    if not choice:
        return _lines({one: heading(CONF / group / f"{one}.yaml") for one in choices(group)}, width)
    if choice not in choices(group):
        raise UnknownTopic(f"unknown {group} '{choice}'{near(choice, choices(group))}")
    return _choice(group, choice, width)


def _lines(texts: Mapping[str, str], width: int) -> str:
    """One line for each name, cut at the width."""
    longest = max(map(len, texts))
    rows = (
        f"  {name:<{longest}}  {textwrap.shorten(text, max(20, width - longest - 4), placeholder=' ...')}" for name, text in texts.items()
    )
    return "\n".join(rows) + "\n"


def heading(path: Path) -> str:
    """The first sentence of the comment that opens a YAML file; empty where there is none."""
    comment = " ".join(_comment(path.read_text(encoding="utf-8")).split()).removeprefix("Question: ")
    found = re.match(r"(.*?[.?!])(?= [A-Z(]| *$)", comment)
    return (found[1] if found else comment).rstrip(".")


def _comment(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    kept: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            break
        kept.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(kept)


@dataclass(frozen=True)
class Setting:
    """A key of a choice: its value in the file, and its comment there."""

    key: str
    value: str
    comment: str


def settings(path: Path) -> dict[str, Setting]:
    """The keys of one YAML file by name, those of files that it builds on first; nested ones as their dotted key."""
    text = path.read_text(encoding="utf-8")
    found: dict[str, Setting] = {}
    for one in (yaml.safe_load(text) or {}).get("defaults", []):
        name = one.partition("@")[0] if isinstance(one, str) else ""
        base = CONF / f"{name.lstrip('/')}.yaml" if name.startswith("/") else path.parent / f"{name}.yaml"
        if name not in ("", "_self_") and base.is_file():
            found |= settings(base)
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith("#"):
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
        if value.strip() and key != "defaults":
            found[dotted] = Setting(dotted, value.strip(), " ".join([*comment, tail.strip()]).strip())
        comment = []
    first = next(iter(_key_under_the_first_comment(text)), None)
    if first in found:  # the comment at the top is the file's, not its first key's
        found[first] = Setting(first, found[first].value, "")
    return found


def _key_under_the_first_comment(text: str) -> Iterator[str]:
    """The first key, where the comment that opens the file stands directly over it."""
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    if lines and lines[0].startswith("#"):
        for line in lines:
            if not line.startswith("#"):
                if match := re.match(r"(\w+):", line):
                    yield match[1]
                return


def _choice(group: str, choice: str, width: int) -> str:
    path = CONF / group / f"{choice}.yaml"
    lines = textwrap.wrap(" ".join(_comment(path.read_text(encoding="utf-8")).split()), width)
    known = _fields(group, choice)
    rows = [setting for key, setting in settings(path).items() if key not in ("name", "kind")]
    if rows:
        lines.append("")
    prefix = {"hydra/launcher": "hydra.launcher", "do": ""}.get(group, group)
    for setting in rows:
        key = setting.key if setting.key.startswith(f"{prefix}.") or not prefix else f"{prefix}.{setting.key}"
        meaning, bound = known.get(setting.key.removeprefix(f"{prefix}."), ("", ""))
        value = setting.value
        if scaled := re.fullmatch(r"\$\{scale\.([\w.]+)\}", value):
            value = f"from scale= ({scaled[1]})"
        lines.append(f"  {key} = {value}" + (f"   ({bound})" if bound else ""))
        lines += textwrap.wrap(meaning or setting.comment, width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"


def _fields(group: str, choice: str) -> dict[str, tuple[str, str]]:
    """(meaning, bounds) of each field of the settings class that a choice makes, as far as the class can be told."""
    from pydantic import BaseModel

    from bench.config import Cell, Session

    section = {"hydra/launcher": "launcher"}.get(group, group)
    owner = next((one for one in (Cell, Session) if section in one.model_fields), None)
    if owner is None:
        return {}
    raw = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text(encoding="utf-8")) or {}
    raw = raw.get(section, raw) if isinstance(raw, dict) else {}
    records = [one for one in _parts(owner.model_fields[section].annotation) if isinstance(one, type) and issubclass(one, BaseModel)]
    for record in records:
        tags = {key: get_args(field.annotation) for key, field in record.model_fields.items() if get_origin(field.annotation) is Literal}
        if all(raw.get(key, choice) in values for key, values in tags.items() if key in ("name", "kind")):
            return dict(_described(record, ""))
    return {}


def _described(record: Any, prefix: str) -> Iterator[tuple[str, tuple[str, str]]]:
    from pydantic import BaseModel

    for name, field in record.model_fields.items():
        yield f"{prefix}{name}", (" ".join((field.description or "").split()), _bounds(field))
        for part in _parts(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _described(part, f"{prefix}{name}.")


def _bounds(field: Any) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [
        f"{sign} {getattr(one, name)}" for one in field.metadata for name, sign in signs.items() if getattr(one, name, None) is not None
    ]
    options = [value for part in _parts(field.annotation) if get_origin(part) is Literal for value in get_args(part)]
    return ", ".join(found) or (" | ".join(map(str, options)) if len(options) > 1 else "")


def _parts(annotation: Any) -> list[Any]:
    """The members of a union, however it is annotated."""
    args = [one for one in get_args(annotation) if not isinstance(one, (str, int, float, bool))]
    if get_origin(annotation) is Literal or not args:
        return [annotation]
    return [part for one in args for part in _parts(one)]
