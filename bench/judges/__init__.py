"""Judges turn items and completions into verdicts.

A judge compares a policy's completion with that of a fixed opponent (the item's baseline), or rates it alone.
A labeller is a judge that compares two completions of the same policy, to make training pairs.

A judge writes one verdict per item and turn. Win rates and mean ratings are computed later from the stored
verdicts. Each judge has its own file.
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
    """Turns items and completions into verdicts.

    `against` holds the opponent's completions; None for a judge that rates each completion alone.
    """

    against_baseline: ClassVar[bool]  # True: the caller passes the items' baselines as `against`.

    @property
    def name(self) -> str: ...

    def judge(
        self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None
    ) -> Iterator[Verdict]: ...


def baseline(items: Sequence[Item]) -> list[Completion]:
    """The fixed opponent's completions, taken from the items.

    Raises ValueError for an item without a baseline.
    """
    for item in items:
        if item.baseline is None:
            raise ValueError(
                f"item {item.id} has no baseline completion to compare with: add one, or choose a judge that rates completions"
            )
    return [Completion(item.id, item.turns, item.baseline or [], [], []) for item in items]


def text_pairs(
    items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None
) -> Iterator[tuple[Item, str, str]]:
    """(item, completion, opponent's completion) of each first turn."""
    known, others = by_id(items), by_id(against or ())
    for completion in completions:
        yield known[completion.id], completion.completions[0], others[completion.id].completions[0]


class JudgeModule(Protocol):
    """The interface of a judge's module."""

    @staticmethod
    def make_judge(settings: Any, inputs: Mapping[str, Path], ask: Ask, progress: Progress) -> Judge:
        """The judge described by a stage's settings and inputs.

        `ask` sends requests to its language model, if any.
        """


# Modules of judges whose stage settings use a different name.
MODULES = {"gold_preference": "gold", "gold_rating": "gold"}


def load(settings: Settings) -> JudgeModule:
    """The judge's module, found by the settings' `judge`, or by their `manner` for a language model."""
    name: str = getattr(settings, "judge", "") or getattr(settings, "manner", "")
    return import_module(f"bench.judges.{MODULES.get(name, name)}")  # type: ignore[return-value]
