"""Chat templates: reading, dating and rendering them, for plan, cost and run alike. Loads no torch.

transformers' renderer renders them. A template is a program that somebody else wrote. `try_template` runs it
first in a process of its own, on PROBES, and ends that process if it takes too long or too much memory. An
error of a template becomes TemplateFailed, with one line.

A template that reads the clock writes another prompt every day. `dated` puts a fixed date before its text:
`date_string`, and a `strftime_now` that knows only that day. The template then gives the same prompts on
every day, in every program that renders it.
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

# Tokenizer classes whose special tokens are all named in their files.
WITHOUT_TOKENS = ("PreTrainedTokenizerFast", "TokenizersBackend")

# The date that Llama 3.1 and 3.2 write by default. Templates that read the clock get this date.
TEMPLATE_DATE = "2024-07-26"

START_S = 120.0  # Time for the process to load the renderer.
MEMORY = 2 << 30  # Bytes that a template may use.
LONGEST = 1 << 20  # Characters of a rendered probe.
REASON_LENGTH = 300


class TemplateFailed(ValueError):
    """A chat template cannot write a conversation. The message is the template's own error, on one line."""


@dataclass(frozen=True)
class Template:
    """A chat template, and its special tokens by name."""

    text: str
    special: Mapping[str, str] = field(default_factory=dict)

    def render(self, messages: Messages, *, opens: bool = False) -> str:
        """A conversation as text; `opens`: with the start of the next answer. Raises TemplateFailed."""
        from transformers.utils.chat_template_utils import render_jinja_template

        rows, special = [dict(message) for message in messages], dict[str, Any](self.special)
        try:
            rendered: Any = render_jinja_template(
                [rows], chat_template=self.text, add_generation_prompt=opens, **special
            )
        except Exception as error:  # Any error is possible: the template is a program.
            raise TemplateFailed(_reason(error)) from error
        return str(rendered[0][0])  # render_jinja_template returns (texts, positions of answers).

    def refusal(self, messages: Messages) -> str | None:
        """The reason why the template cannot write a conversation; None if it can."""
        try:
            self.render(messages)
        except TemplateFailed as error:
            return str(error)
        return None

    def loses(self, messages: Messages) -> str | None:
        """The role of the first message that the template leaves out or cuts; None if it writes all messages.

        Checked are system and user messages and the last message. Spaces and line ends may change. Raises
        TemplateFailed.
        """
        text = _without_spaces(self.render(messages))
        for place, message in enumerate(messages):
            checked = message["role"] in ("system", "user") or place == len(messages) - 1
            if checked and _without_spaces(str(message["content"])) not in text:
                return str(message["role"])
        return None


def _without_spaces(text: str) -> str:
    return "".join(text.split())


class Refusal(NamedTuple):
    """A conversation that a template cannot write: its index, and the template's error."""

    place: int
    why: str


def refusals(template: Template, conversations: Sequence[Messages]) -> list[Refusal]:
    """Refusals of the conversations that a template cannot write.

    Each conversation is a prompt with its answer.
    """
    reasons = ((place, template.refusal(messages)) for place, messages in enumerate(conversations))
    return [Refusal(place, why) for place, why in reasons if why is not None]


def _reason(error: Exception) -> str:
    """A template's error on one line: its own text if the template raised it itself, otherwise with the
    error's class.
    """
    from jinja2.exceptions import TemplateError

    if isinstance(error, MemoryError):
        return f"it takes more than {MEMORY >> 30} GiB of memory"
    kind = "" if type(error) is TemplateError else f"{type(error).__name__}: "
    where = f" (line {line} of the template)" if (line := getattr(error, "lineno", None)) else ""
    return printable(" ".join(f"{kind}{error}{where}".split()))[:REASON_LENGTH]


# Reading --------------------------------------------------------------------------------------------------------------


def read_template(folder: Path) -> Template | None:
    """The chat template of a model's folder, chosen as transformers does, with its special tokens; None if
    there is none.

    Raises BadFile for a template that is no text.
    """
    path = folder / TOKENIZER_CONFIG
    config = read_object(path) if path.is_file() else {}
    text: Any = None
    if (folder / TEMPLATE).is_file():
        text = read_text(folder / TEMPLATE)
    elif not any((folder / TEMPLATES).glob("*.jinja")):
        # Such files would replace the config's templates, and none of them is the default.
        text = config.get("chat_template")
    if isinstance(text, list):  # Several templates, by name.
        text = {
            entry["name"]: entry.get("template")
            for entry in text
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
    if isinstance(text, dict):
        text = text.get("default")
    if not text:
        return None
    if not isinstance(text, str):
        raise BadFile(f"{path}: chat_template must be text, got {describe(text)}")
    return Template(text, special_tokens(folder))


def special_tokens(folder: Path) -> dict[str, str]:
    """Special tokens of a folder's tokenizer by name, as transformers passes them to a template.

    Raises BadFile.
    """
    config = read_object(path) if (path := folder / TOKENIZER_CONFIG).is_file() else {}
    path = folder / SPECIAL_TOKENS
    named = {
        **config,
        **(read_object(path) if path.is_file() and "added_tokens_decoder" not in config else {}),
    }
    more = named.get("extra_special_tokens")
    named |= more if isinstance(more, dict) else {}
    tokens = {name: text for name in named if name.endswith("_token") and (text := _token(named[name]))}
    if config.get("tokenizer_class") not in WITHOUT_TOKENS:
        tokens = {**{name: "" for name in ("bos_token", "eos_token") if name not in named}, **tokens}
    # tokenize.py also pads with EOS.
    return {"pad_token": tokens["eos_token"], **tokens} if "eos_token" in tokens else tokens


def _token(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


# The date -------------------------------------------------------------------------------------------------------------

CLOCK, DATE = "strftime_now", "date_string"  # Names from which templates read a date.
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
NUMBERS = ("d", "m", "y", "Y", "j", "H", "I", "M", "S", "f", "u", "w", "U", "W", "V", "G")
UNPADDED = ("d", "m", "j", "H", "I", "M", "S")  # A dash before these letters removes leading zeros.
PERCENT = "\ue000"  # Stands for %% while the other directives are replaced.


@functools.cache
def variables(text: str) -> frozenset[str]:
    """Names of the variables that a template reads but does not set, the clock included.

    Raises TemplateFailed if the template cannot be compiled.
    """
    from jinja2 import meta
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        environment = _compile_jinja_template(text).environment.overlay()
        environment.globals = {name: value for name, value in environment.globals.items() if name != CLOCK}
        return frozenset(meta.find_undeclared_variables(environment.parse(text)))
    except Exception as error:
        raise TemplateFailed(_reason(error)) from error


def is_dated(reads: frozenset[str], day: str | None) -> bool:
    """Whether a template that reads these variables gets a date.

    It does if it reads the clock, or if a day is set and it reads a date. Without a set day, a template keeps
    its own date.
    """
    return CLOCK in reads or (day is not None and DATE in reads)


def dated(text: str, day: str | None) -> str:
    """The template with a fixed date: `day`, or TEMPLATE_DATE if None.

    Names of days and months are English.
    """
    when = date.fromisoformat(day or TEMPLATE_DATE)
    parts = "".join(
        f" | replace('{directive}', '{value}')"
        for directive, value in {"%%": PERCENT, **_parts(when), PERCENT: "%"}.items()
    )
    # Each added line ends in a tag, and the renderer drops the line end after a tag: nothing is added to the
    # template's output.
    return (
        f"{{% set {DATE} = '{when.day:02d} {MONTHS[when.month - 1][:3]} {when.year}' %}}\n"
        f"{{% macro {CLOCK}(format) %}}{{{{ format{parts} }}}}{{% endmacro %}}\n{text}"
    )


def without_clock(template: Template) -> Template:
    """The template, with TEMPLATE_DATE if it reads the clock.

    Raises TemplateFailed if it cannot be compiled.
    """
    return (
        replace(template, text=dated(template.text, None))
        if is_dated(variables(template.text), None)
        else template
    )


def _parts(when: date) -> dict[str, str]:
    """Texts of all strftime directives at midnight of a day."""
    day, month = DAYS[when.weekday()], MONTHS[when.month - 1]
    numbers = {f"%{letter}": when.strftime(f"%{letter}") for letter in NUMBERS if letter not in "HIMSf"}
    numbers |= {"%H": "00", "%I": "12", "%M": "00", "%S": "00", "%f": "000000", "%Y": f"{when.year:04d}"}
    parts = {f"%-{letter}": numbers[f"%{letter}"].lstrip("0") or "0" for letter in UNPADDED} | numbers
    parts |= {
        "%A": day,
        "%a": day[:3],
        "%B": month,
        "%b": month[:3],
        "%h": month[:3],
        "%e": f"{when.day:2d}",
        "%p": "AM",
    }
    parts |= {"%F": when.isoformat(), "%T": "00:00:00", "%X": "00:00:00", "%R": "00:00", "%z": "", "%Z": ""}
    short = f"{when.month:02d}/{when.day:02d}/{when.year % 100:02d}"
    return parts | {
        "%D": short,
        "%x": short,
        "%c": f"{day[:3]} {month[:3]} {when.day:2d} 00:00:00 {when.year:04d}",
    }


# Trying a template in a process of its own ----------------------------------------------------------------------------

_QUESTION = {"role": "user", "content": "Name a dog."}
_ANSWER = {"role": "assistant", "content": "Rex"}
PROBES: dict[str, list[dict[str, str]]] = {
    "a question": [_QUESTION, _ANSWER],
    "a system message": [{"role": "system", "content": "Be brief."}, _QUESTION, _ANSWER],
    "several turns": [
        _QUESTION,
        _ANSWER,
        {"role": "user", "content": "Another?"},
        {"role": "assistant", "content": "Fido"},
    ],
    "thinking in an answer": [
        _QUESTION,
        {"role": "assistant", "content": "<think>\nA short name.\n</think>\n\nRex"},
    ],
    "spaces around an answer": [_QUESTION, {"role": "assistant", "content": " \n Rex \n "}],
}


@dataclass(frozen=True)
class TemplateTrial:
    """Results of trying a template on PROBES."""

    reads: frozenset[str]  # Variables that it reads but does not set.
    refuses: Mapping[str, str]  # The template's error, by name of the probe that it cannot write.
    loses: Mapping[str, str]  # The role of a lost message, by name of the probe.


def try_template(template: Template, seconds: float) -> TemplateTrial:
    """Try a template on PROBES, in a process of its own.

    Raises TemplateFailed if it cannot be compiled, cannot write any of PROBES, leaves out a user's question,
    or takes more than `seconds` or MEMORY.
    """
    return _try_template(template.text, tuple(sorted(template.special.items())), seconds)


@functools.cache
def _try_template(text: str, special: tuple[tuple[str, str], ...], limit: float) -> TemplateTrial:
    environment = {**os.environ, "PYTHONPATH": python_path()}
    line = [sys.executable, "-P", "-m", "bench.models.templates"]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as child:
        try:
            output, _ = child.communicate(
                json.dumps([text, special, limit]).encode(), timeout=START_S + limit
            )
        except subprocess.TimeoutExpired:
            child.kill()
            output, _ = child.communicate()
    if child.returncode:
        ended = f"the process that rendered it ended with exit code {child.returncode}"
        slow = f"it took more than {limit:g} s for a few short conversations (bounds.template_s)"
        raise TemplateFailed(slow if child.returncode in (-signal.SIGALRM, -signal.SIGKILL) else ended)
    result = json.loads(output)
    if "failed" in result:
        raise TemplateFailed(result["failed"])
    return TemplateTrial(frozenset(result["reads"]), result["refuses"], result["loses"])


def main() -> None:
    """Try a template given on standard input, and print the result as JSON.

    A signal ends the process if it takes too long.
    """
    from transformers.utils import chat_template_utils

    assert chat_template_utils
    text, special, limit = json.load(sys.stdin)
    signal.setitimer(signal.ITIMER_REAL, limit)  # SIGALRM ends the process at any point.
    _limit_memory()
    template = Template(text, dict(special))
    try:
        result: dict[str, Any] = {"reads": sorted(variables(text)), **_probed(template)}
        if len(result["refuses"]) == len(PROBES):
            result = {"failed": next(iter(result["refuses"].values()))}
        elif result["loses"].get("a question") == "user":
            result = {
                "failed": "it leaves out user messages that are plain text (templates for images expect a list of parts)"
            }
    except TemplateFailed as error:
        result = {"failed": str(error)}
    print(json.dumps(result))


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):  # Not all systems support this.
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _probed(template: Template) -> dict[str, dict[str, str]]:
    """`refuses` and `loses` of TemplateTrial, by name."""
    refuses, loses = {}, {}
    for name, messages in PROBES.items():
        try:
            whole = template.render(messages)
            longest = max(len(whole), len(template.render(messages[:-1], opens=True)))
            if longest > LONGEST:
                raise TemplateFailed(f"it writes {longest:,} characters for a short conversation")
            if CLOCK not in variables(template.text) and template.render(messages) != whole:
                raise TemplateFailed(
                    "it writes the same conversation differently each time (it may use `random`)"
                )
            if (role := template.loses(messages)) is not None:
                loses[name] = role
        except TemplateFailed as error:
            refuses[name] = str(error)
    return {"refuses": refuses, "loses": loses}


if __name__ == "__main__":
    main()
