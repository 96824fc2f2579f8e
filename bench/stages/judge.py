"""Completions to verdicts: facts in a file, from which every rate is computed."""

from __future__ import annotations

from collections.abc import Iterator

from bench.config import Settings
from bench.judges import Judge, baseline
from bench.judges.gold import GoldPreference, GoldRating
from bench.kinds import GoldPreferenceSettings, GoldRatingSettings
from bench.records import Completion, Item, Verdict, read_jsonl, write_jsonl
from bench.worker import Outcome, StageRun


def run(settings: Settings, run: StageRun) -> Outcome:
    items = list(read_jsonl(run.inputs["items"] / "items.jsonl", Item))
    completions = list(read_jsonl(run.inputs["completions"] / "completions.jsonl", Completion))
    judge, against = _judge(settings, items)
    verdicts = [*judge.judge(items, completions, against), *_unanswered(items, completions, judge.name)]
    write_jsonl(run.out / "verdicts.jsonl", verdicts)
    return Outcome({"rows": len(verdicts), "unscored": sum(v.unscored is not None for v in verdicts)})


def _unanswered(items: list[Item], completions: list[Completion], judge: str) -> Iterator[Verdict]:
    """A file of completions need not answer every item; what is not there is unscored, not lost."""
    answered = {completion.id for completion in completions}
    for item in items:
        if item.id not in answered:
            for turn in range(len(item.turns)):
                yield Verdict(item.id, judge, turn, item.category, unscored="the policy has no completion of it")


def _judge(settings: Settings, items: list[Item]) -> tuple[Judge, list[Completion] | None]:
    match settings:
        case GoldPreferenceSettings():
            return GoldPreference(settings.gold, settings.temperature), baseline(items)
        case GoldRatingSettings():
            return GoldRating(settings.gold), None
    raise TypeError(f"no judge for {type(settings).__name__}")
