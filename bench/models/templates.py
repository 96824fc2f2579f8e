"""Chat templates: read, dated and rendered in one place, by transformers' own renderer, for plan, cost and run alike. Loads no torch.

A template is a program that somebody else wrote. `look` runs it in a process of its own first, on PROBES, and ends that process where it
takes too long or too much memory. What a template raises is one line, TemplateFailed.

A template that asks the clock writes another prompt every day. `dated` puts a date before its text: `date_string`, and a `strftime_now`
that knows that day only. Its text then gives the same prompts on every day, in every program that renders it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from bench.machine import python_path
from bench.text_files import BadFile, describe, printable, read_object, read_text

Messages = Sequence[Mapping[str, Any]]

TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"

# Classes of tokenizer that have no special tokens but those that their files name.
WITHOUT_TOKENS = ("PreTrainedTokenizerFast", "TokenizersBackend")

# What Llama 3.1 and 3.2 write where nobody gives a date. A template that asks the clock is given this day.
TEMPLATE_DATE = "2024-07-26"

START_S = 120.0  # for the process to load the renderer
MEMORY = 2 << 30  # bytes that a template may take
LONGEST = 1 << 20  # characters of a probe, rendered
REASON_LENGTH = 300


class TemplateFailed(ValueError):
    """A chat template that cannot write a conversation; the message is the template's own error, on one line."""


@dataclass(frozen=True)
class Template:
    """A chat template and the special tokens that it may write, by name."""

    text: str
    special: Mapping[str, str] = field(default_factory=dict)

    def render(self, messages: Messages, *, opens: bool = False) -> str:
        """A conversation as text; `opens`: up to where an answer begins. Raises TemplateFailed."""
        from transformers.utils.chat_template_utils import render_jinja_template

        rows, special = [dict(message) for message in messages], dict[str, Any](self.special)
        try:
            found: Any = render_jinja_template([rows], chat_template=self.text, add_generation_prompt=opens, **special)
        except Exception as error:  # of any kind: the template is a program
            raise TemplateFailed(_reason(error)) from error
        return str(found[0][0])  # (texts, where answers lie)

    def refusal(self, messages: Messages) -> str | None:
        """Why the template cannot write a conversation; None where it can."""
        try:
            self.render(messages)
        except TemplateFailed as error:
            return str(error)
        return None

    def loses(self, messages: Messages) -> str | None:
        """The role of the first system or user message, or of a last answer, whose text the template leaves out or cuts; None where all
        are written. Spaces and line ends may change. Raises TemplateFailed."""
        text = _without_spaces(self.render(messages))
        for place, message in enumerate(messages):
            looked_at = message["role"] in ("system", "user") or place == len(messages) - 1
            if looked_at and _without_spaces(str(message["content"])) not in text:
                return str(message["role"])
        return None


def _without_spaces(text: str) -> str:
    return "".join(text.split())


class Refusal(NamedTuple):
    """A conversation that a template cannot write: its place among those given, and the template's words."""

    place: int
    why: str


def refusals(template: Template, conversations: Sequence[Messages]) -> list[Refusal]:
    """The conversations, each a prompt with its answer, that a template cannot write."""
    found = ((place, template.refusal(messages)) for place, messages in enumerate(conversations))
    return [Refusal(place, why) for place, why in found if why is not None]


def _reason(error: Exception) -> str:
    """In one line: what a template raises by itself in its words, anything else with its kind."""
    from jinja2.exceptions import TemplateError

    if isinstance(error, MemoryError):
        return f"it takes more than {MEMORY >> 30} GiB of memory"
    kind = "" if type(error) is TemplateError else f"{type(error).__name__}: "
    where = f" (line {line} of the template)" if (line := getattr(error, "lineno", None)) else ""
    return printable(" ".join(f"{kind}{error}{where}".split()))[:REASON_LENGTH]


# Reading --------------------------------------------------------------------------------------------------------------


def read_template(folder: Path) -> Template | None:
    """The template of a model's folder that transformers takes, and its special tokens; None where there is none. Raises BadFile."""
    path = folder / TOKENIZER_CONFIG
    config = read_object(path) if path.is_file() else {}
    text: Any = None
    if (folder / TEMPLATE).is_file():
        text = read_text(folder / TEMPLATE)
    elif not any((folder / TEMPLATES).glob("*.jinja")):  # which stand in for those of the config, and none of them is the usual one
        text = config.get("chat_template")
    if isinstance(text, list):  # several by name
        text = {entry["name"]: entry.get("template") for entry in text if isinstance(entry, dict) and isinstance(entry.get("name"), str)}
    if isinstance(text, dict):
        text = text.get("default")
    if not text:
        return None
    if not isinstance(text, str):
        raise BadFile(f"{path}: chat_template must be text, got {describe(text)}")
    return Template(text, special_tokens(folder))


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens of a folder's tokenizer by name, as transformers gives them to a template. Raises BadFile."""
    config = read_object(path) if (path := folder / TOKENIZER_CONFIG).is_file() else {}
    path = folder / SPECIAL_TOKENS
    named = {**config, **(read_object(path) if path.is_file() and "added_tokens_decoder" not in config else {})}
    more = named.get("extra_special_tokens")
    named |= more if isinstance(more, dict) else {}
    found = {name: text for name in named if name.endswith("_token") and (text := _token(named[name]))}
    if config.get("tokenizer_class") not in WITHOUT_TOKENS:
        found = {**{name: "" for name in ("bos_token", "eos_token") if name not in named}, **found}
    return {"pad_token": found["eos_token"], **found} if "eos_token" in found else found  # as tokenize.py pads


def _token(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


# The date -------------------------------------------------------------------------------------------------------------

CLOCK, DATE = "strftime_now", "date_string"  # what templates read a date from
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
NUMBERS = ("d", "m", "y", "Y", "j", "H", "I", "M", "S", "f", "u", "w", "U", "W", "V", "G")
UNPADDED = ("d", "m", "j", "H", "I", "M", "S")  # without leading zeros after a dash
PERCENT = "\ue000"  # stands for %% while the others are replaced


@functools.cache
def variables(text: str) -> frozenset[str]:
    """What a template reads and does not set, the clock among it. Raises TemplateFailed for one that cannot be compiled."""
    from jinja2 import meta
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        environment = _compile_jinja_template(text).environment.overlay()
        environment.globals = {name: value for name, value in environment.globals.items() if name != CLOCK}
        return frozenset(meta.find_undeclared_variables(environment.parse(text)))
    except Exception as error:
        raise TemplateFailed(_reason(error)) from error


def is_dated(reads: frozenset[str], day: str | None) -> bool:
    """Whether a template that reads these variables is given a date: where it asks the clock, or where a day was set and it reads one.
    A template with a date of its own keeps it where no day was set."""
    return CLOCK in reads or (day is not None and DATE in reads)


def dated(text: str, day: str | None) -> str:
    """A template that writes one day, TEMPLATE_DATE where none is given, on every day. Names of days and months are English."""
    when = date.fromisoformat(day or TEMPLATE_DATE)
    parts = "".join(f" | replace('{directive}', '{value}')" for directive, value in {"%%": PERCENT, **_parts(when), PERCENT: "%"}.items())
    # Each line ends in a tag, whose line end the renderer drops: not a character is added to what the template writes.
    return (
        f"{{% set {DATE} = '{when.day:02d} {MONTHS[when.month - 1][:3]} {when.year}' %}}\n"
        f"{{% macro {CLOCK}(format) %}}{{{{ format{parts} }}}}{{% endmacro %}}\n{text}"
    )


def without_clock(template: Template) -> Template:
    """The template itself, or with TEMPLATE_DATE where it asks the clock. Raises TemplateFailed for one that cannot be compiled."""
    return replace(template, text=dated(template.text, None)) if is_dated(variables(template.text), None) else template


def _parts(when: date) -> dict[str, str]:
    """What each directive of strftime gives at midnight of a day."""
    day, month = DAYS[when.weekday()], MONTHS[when.month - 1]
    numbers = {f"%{letter}": when.strftime(f"%{letter}") for letter in NUMBERS if letter not in "HIMSf"}
    numbers |= {"%H": "00", "%I": "12", "%M": "00", "%S": "00", "%f": "000000", "%Y": f"{when.year:04d}"}
    found = {f"%-{letter}": numbers[f"%{letter}"].lstrip("0") or "0" for letter in UNPADDED} | numbers
    found |= {"%A": day, "%a": day[:3], "%B": month, "%b": month[:3], "%h": month[:3], "%e": f"{when.day:2d}", "%p": "AM"}
    found |= {"%F": when.isoformat(), "%T": "00:00:00", "%X": "00:00:00", "%R": "00:00", "%z": "", "%Z": ""}
    short = f"{when.month:02d}/{when.day:02d}/{when.year % 100:02d}"
    return found | {"%D": short, "%x": short, "%c": f"{day[:3]} {month[:3]} {when.day:2d} 00:00:00 {when.year:04d}"}


# A look at a template in a process of its own -------------------------------------------------------------------------

_ASKED = {"role": "user", "content": "Name a dog."}
_REX = {"role": "assistant", "content": "Rex"}
PROBES: dict[str, list[dict[str, str]]] = {
    "a question": [_ASKED, _REX],
    "a system message": [{"role": "system", "content": "Be brief."}, _ASKED, _REX],
    "several turns": [_ASKED, _REX, {"role": "user", "content": "Another?"}, {"role": "assistant", "content": "Fido"}],
    "thinking in an answer": [_ASKED, {"role": "assistant", "content": "<think>\nA short name.\n</think>\n\nRex"}],
    "spaces around an answer": [_ASKED, {"role": "assistant", "content": " \n Rex \n "}],
}


@dataclass(frozen=True)
class Look:
    """What a template reads, and which of PROBES it cannot write, with its words, or writes without all of the texts."""

    reads: frozenset[str]
    refuses: Mapping[str, str]
    loses: Mapping[str, str]


def look(template: Template, seconds: float) -> Look:
    """A first look at a template that somebody else wrote. Raises TemplateFailed where it cannot be compiled, writes none of PROBES, or
    takes more than so many seconds or MEMORY."""
    return _look(template.text, tuple(sorted(template.special.items())), seconds)


@functools.cache
def _look(text: str, special: tuple[tuple[str, str], ...], limit: float) -> Look:
    environment = {**os.environ, "PYTHONPATH": python_path()}
    line = [sys.executable, "-P", "-m", "bench.models.templates"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as child:
        try:
            answer, _ = child.communicate(json.dumps([text, special, limit]).encode(), timeout=START_S + limit)
        except subprocess.TimeoutExpired:
            child.kill()
            answer, _ = child.communicate()
    if child.returncode:
        ended = f"the process that rendered it ended with code {child.returncode}"
        slow = f"it took more than {limit:g} s for a few short conversations (bounds.template_s)"
        raise TemplateFailed(slow if child.returncode in (-signal.SIGALRM, -signal.SIGKILL) else ended)
    found = json.loads(answer)
    if "failed" in found:
        raise TemplateFailed(found["failed"])
    return Look(frozenset(found["reads"]), found["refuses"], found["loses"])


def main() -> None:
    """Look at a template given on standard input, and end by a signal where it takes too long."""
    from transformers.utils import chat_template_utils

    assert chat_template_utils
    text, special, limit = json.load(sys.stdin)
    signal.setitimer(signal.ITIMER_REAL, limit)  # SIGALRM ends the process, whatever it is doing
    _limit_memory()
    template = Template(text, dict(special))
    try:
        answer: dict[str, Any] = {"reads": sorted(variables(text)), **_probed(template)}
        if len(answer["refuses"]) == len(PROBES):
            answer = {"failed": next(iter(answer["refuses"].values()))}
        elif answer["loses"].get("a question") == "user":
            answer = {"failed": "it leaves out what the user says where that is text (templates of images and text want a list of parts)"}
    except TemplateFailed as error:
        answer = {"failed": str(error)}
    print(json.dumps(answer))


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):  # not on every system
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _probed(template: Template) -> dict[str, dict[str, str]]:
    refuses, loses = {}, {}
    for name, messages in PROBES.items():
        try:
            whole = template.render(messages)
            longest = max(len(whole), len(template.render(messages[:-1], opens=True)))
            if longest > LONGEST:
                raise TemplateFailed(f"it writes {longest:,} characters for a short conversation")
            if CLOCK not in variables(template.text) and template.render(messages) != whole:
                raise TemplateFailed("it writes the same conversation in another way each time (by `random`, say)")
            if (role := template.loses(messages)) is not None:
                loses[name] = role
        except TemplateFailed as error:
            refuses[name] = str(error)
    return {"refuses": refuses, "loses": loses}


if __name__ == "__main__":
    main()
