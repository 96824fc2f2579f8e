"""Completions to verdicts: facts in a file, from which every rate is computed."""

from __future__ import annotations

from bench.config import Settings
from bench.judges import Judge, baseline
from bench.judges.gold import GoldPreference, GoldRating
from bench.kinds import GoldPreferenceSettings, GoldRatingSettings
from bench.records import Completion, Item, read_jsonl, write_jsonl
from bench.worker import Outcome, StageRun


def run(settings: Settings, run: StageRun) -> Outcome:
    items = list(read_jsonl(run.inputs["items"] / "items.jsonl", Item))
    completions = list(read_jsonl(run.inputs["completions"] / "completions.jsonl", Completion))
    judge, against = _judge(settings, items)
    verdicts = list(judge.judge(items, completions, against))
    write_jsonl(run.out / "verdicts.jsonl", verdicts)
    return Outcome({"rows": len(verdicts), "unscored": sum(v.unscored is not None for v in verdicts)})


def _judge(settings: Settings, items: list[Item]) -> tuple[Judge, list[Completion] | None]:
    match settings:
        case GoldPreferenceSettings():
            return GoldPreference(settings.gold, settings.temperature), baseline(items)
        case GoldRatingSettings():
            return GoldRating(settings.gold), None
    raise TypeError(f"no judge for {type(settings).__name__}")
