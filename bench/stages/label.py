"""Two samples of each prompt to a labelled pair, by a labeller; ties and unscored pairs stay in the file, without a label."""

from __future__ import annotations

import random

from bench.judges.gold import GoldAnnotator
from bench.kinds import GoldLabels
from bench.records import Completion, Item, Labelled, Verdict, read_jsonl, write_jsonl
from bench.tokens import conversation
from bench.worker import Outcome, StageRun
from bench.world.gold import draw_label


def run(settings: GoldLabels, run: StageRun) -> Outcome:
    items = list(read_jsonl(run.inputs["items"] / "items.jsonl", Item))
    completions = list(read_jsonl(run.inputs["completions"] / "completions.jsonl", Completion))
    first, second = ([c for c in completions if c.draw == draw] for draw in (0, 1))
    labeller = GoldAnnotator(settings.gold, settings.annotator)
    texts = {c.id: (c.completions[0], d.completions[0]) for c, d in zip(first, second, strict=True)}
    verdicts = list(labeller.judge(items, first, second))
    labels = [_label(item, verdict, *texts[item.id], settings) for item, verdict in zip(items, verdicts, strict=True)]
    write_jsonl(run.out / "labels.jsonl", labels)
    judged = [label.correct for label in labels if label.correct is not None]
    unscored = sum(verdict.unscored is not None for verdict in verdicts)
    ties = sum(label.first_preferred is None for label in labels) - unscored
    return Outcome({"rows": len(labels), "ties": ties, "unscored": unscored, "correct": sum(judged), "with_truth": len(judged)})


def _label(item: Item, verdict: Verdict, first: str, second: str, settings: GoldLabels) -> Labelled:
    """A tie of the annotator's opinion (equal margin) has no label; otherwise one is drawn, and flipped now and then."""
    rng = random.Random(f"label/{settings.seed}/{item.id}")
    prompt = conversation(item, [])
    if verdict.preference is None or verdict.details is None:
        return Labelled(item.id, prompt, first, second, None, None, unscored=verdict.unscored)
    tie = verdict.preference == 0.5 or first == second
    preferred = None if tie else draw_label(verdict.preference, settings.annotator.flip_rate, rng)
    difference = verdict.details["gold_first"] - verdict.details["gold_second"]
    correct = None if preferred is None or difference == 0 else preferred == (difference > 0)
    return Labelled(item.id, prompt, first, second, verdict.preference, preferred, correct)
