"""The words of a command as typed: bare words that are commands, and suggestions for a mistyped word. Imports
no Hydra."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from bench.machine import PACKAGE, ROOT

CONF = next(path for path in (PACKAGE / "_conf", ROOT / "conf") if path.is_dir())
SWEEPS = next(path for path in (PACKAGE / "_sweeps", ROOT / "sweeps") if path.is_dir())


def choices(group: str) -> list[str]:
    """The names of a group's files in conf/."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


VERBS = choices("do")
# Hydra's flags that are followed by a word of theirs.
FLAGS_WITH_A_VALUE = (
    "--config-dir",
    "-cd",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--shell-completion",
    "-sc",
    "--package",
    "-p",
    "--config-name",
    "-cn",
)


def near(name: str, known: Sequence[str]) -> str:
    """The nearest known name, or all names, as the end of a message."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def with_commands(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """(words, problems): a bare word that is a command becomes do=COMMAND; another bare word is a problem."""
    done: list[str] = []
    problems: list[str] = []
    takes_value = False  # True after a flag that takes the next word as its value
    for word in words:
        if takes_value or word.startswith(("-", "+", "~")) or "=" in word or not word:
            done.append(word)
            takes_value = not takes_value and word in FLAGS_WITH_A_VALUE
        elif word in VERBS:
            done.append(f"do={word}")
        else:
            problems.append(f"unknown word '{word}' (command line){_meant(word)}")
    return done, problems


def _meant(word: str) -> str:
    """A suggestion for an unknown bare word, as the end of a message."""
    sweeps = [path.stem for path in SWEEPS.glob("*.yaml")]
    if word in sweeps:
        return f"; a sweep is +sweep={word}"
    if close := difflib.get_close_matches(word, [*VERBS, "help", *sweeps], n=1):
        return f"; did you mean {'+sweep=' if close[0] in sweeps else ''}{close[0]}?"
    return f"; commands: {', '.join([*VERBS, 'help'])}; a setting is KEY=VALUE"
