"""What conf/ records of models and datasets of the hub, so that a plan needs no network: `sizes` of a model
in the words of its config.json, and `rows` of a dataset's splits. Each file names its source."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from bench.models.hub import TRUSTED
from bench.text_files import read_own_yaml

Recorded = Mapping[str, Any]


def sizes(repo: str | None) -> Recorded | None:
    """The recorded config of a model of the hub, with its number of `parameters`, and `chat_template: none`
    where its tokenizer has none."""
    return _by_repository("model", "sizes").get(repo or "")


def rows(repo: str) -> Mapping[str, int] | None:
    """The recorded number of rows by split (train, heldout) of a dataset of the hub."""
    return _by_repository("data", "rows").get(repo) or _by_repository("sft", "rows").get(repo)


def differences(recorded: Recorded, config: Recorded) -> dict[str, tuple[Any, Any]]:
    """(recorded, actual) by size, of the sizes that a config.json has with another value."""
    return {
        name: (recorded[name], config[name])
        for name in recorded.keys() & config.keys()
        if recorded[name] != config[name]
    }


@cache
def _by_repository(group: str, what: str) -> dict[str, Recorded]:
    found: dict[str, Recorded] = {}
    for path in sorted((TRUSTED.parent / group).glob("*.yaml")):
        written: Any = read_own_yaml(path)
        if what in written:
            found[written[group]["hub"]] = written[what]
    return found
