"""Who decides. A judge turns items and completions into verdicts; a labeller is a judge that compares two completions of one policy.

A judge writes facts, one verdict an item and turn; rates and ratings are computed from files of them. One judge a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

from bench.config import Settings
from bench.judges.asked.request import Ask, Progress
from bench.records import Completion, Item, Verdict, by_id


class Judge(Protocol):
    """`against` holds the completions that the policy is compared with; None where each is rated by itself."""

    against_baseline: ClassVar[bool]  # it is given the items' own baselines to compare with

    @property
    def name(self) -> str: ...

    def judge(
        self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None
    ) -> Iterator[Verdict]: ...


def baseline(items: Sequence[Item]) -> list[Completion]:
    """The fixed opponent's completions, which items bring with them. Raises ValueError when one has none."""
    for item in items:
        if item.baseline is None:
            raise ValueError(f"item {item.id} has no baseline completion to compare with")
    return [Completion(item.id, item.turns, item.baseline or [], [], []) for item in items]


def compared(
    items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None
) -> Iterator[tuple[Item, str, str]]:
    """Each completion's item, its text and the one that it is compared with, of their first turns."""
    known, others = by_id(items), by_id(against or ())
    for completion in completions:
        yield known[completion.id], completion.completions[0], others[completion.id].completions[0]


class JudgeModule(Protocol):
    """What a judge's module holds."""

    @staticmethod
    def make_judge(settings: Any, inputs: Mapping[str, Path], ask: Ask, progress: Progress) -> Judge:
        """The judge that a stage's settings and inputs describe. `ask` asks the language model, of a judge that is one."""


# Where a judge's stage settings have another name than its module.
MODULES = {"gold_preference": "gold", "gold_rating": "gold", "alpaca_eval": "preference", "mt_bench": "rating"}


def load(settings: Settings) -> JudgeModule:
    """The module of the judge that has these stage settings: by their `judge`, or the manner of a language model."""
    name: str = getattr(settings, "judge", "") or getattr(settings, "manner", "")
    return import_module(f"bench.judges.{MODULES.get(name, name)}")  # type: ignore[return-value]
