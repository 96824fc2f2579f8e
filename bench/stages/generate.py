"""Completions of evaluation prompts, sampled turn by turn or read from a file.

A later turn is sampled after the policy's own earlier completions. With `best_of` above 1 each turn is
sampled that often, and the sample with the highest reward is the completion.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.config import Settings
from bench.models.tokenize import all_prompt_ids, conversation, positions, row_ids
from bench.readers.completions_file import matched, read_written
from bench.records import (
    POSITIONS_PASSED,
    Completion,
    Item,
    Message,
    Reward,
    grouped,
    read_items,
    write_jsonl,
)
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import GenerateSettings, WrittenCompletions
from bench.text_files import BadFile

if TYPE_CHECKING:
    from bench.engines.base import DrawnCompletion
    from bench.engines.reward import Scorer


def run(settings: Settings, run: StageRun) -> Outcome:
    match settings:
        case GenerateSettings():
            return _by_policy(settings, run)
        case WrittenCompletions():
            return _from_file(settings, run)
    raise TypeError(f"no generate stage for {type(settings).__name__}")


def _from_file(settings: WrittenCompletions, run: StageRun) -> Outcome:
    path = run.inputs["file"]
    items, rows = read_items(run.inputs["items"]), read_written(path)
    completions = matched(rows, items)
    if not completions and (settings.alone or all(len(item.turns) == 1 for item in items)):
        first = f"The judge's first prompt is {items[0].turns[0]!r} (item {items[0].id}), and the first row's is {rows[0].prompt_text!r}"
        raise BadFile(
            f"{path}: none of its {len(rows)} rows is for one of the judge's {len(items)} prompts. {first}. Bring completions of the "
            "judge's prompts, written exactly alike."
        )
    write_jsonl(run.out / "completions.jsonl", completions)
    return Outcome({"rows": len(completions), "missing": len(items) - len(completions), "in_file": len(rows)})


def _by_policy(settings: GenerateSettings, run: StageRun) -> Outcome:
    from bench.engines.opening import open_engine
    from bench.engines.reward import Scorer

    engine = open_engine(settings, run.inputs)
    scorer = (
        Scorer(run.inputs["reward_model"], settings.dtype, settings.batch_size)
        if settings.best_of > 1
        else None
    )
    items = read_items(run.inputs["items"])
    total = settings.best_of * sum(len(item.turns) for item in items)
    written: list[list[DrawnCompletion]] = [[] for _ in items]
    rewards: list[Reward] = []
    sampled: list[DrawnCompletion] = []
    places, passed = positions(run.inputs.get("base", run.inputs["model"])), 0
    for turn in range(max(len(item.turns) for item in items)):
        for temperature, indices in _by_temperature(settings, items, turn).items():
            before = [conversation(items[i], [w.text for w in written[i]]) for i in indices]
            prompts = all_prompt_ids(engine.tokenizer, before, settings.control)
            decoding = settings.decoding.model_copy(update={"temperature": temperature})
            draws = []
            for draw in range(settings.best_of):
                done = len(sampled)

                def progress(n: int, _: int, done: int = done) -> None:
                    run.progress(done + n, total)

                draws.append(
                    engine.generate(prompts, decoding, draw_seed(settings.seed, turn, draw), progress)
                )
                sampled += draws[-1]
            scores = _rewards(scorer, before, draws) if scorer else [[0.0] for _ in indices]
            for place, (i, by_draw) in enumerate(zip(indices, scores, strict=True)):
                best = best_of(by_draw)
                written[i].append(draws[best][place])
                passed += places is not None and len(prompts[place]) + len(written[i][-1].ids) > places
                rewards.append(Reward(f"{items[i].id}/{turn}", by_draw[best]))
    completions = [
        Completion(
            item.id,
            item.turns,
            [w.text for w in ws],
            [len(w.ids) for w in ws],
            [w.finished for w in ws],
            ids=[w.ids for w in ws],
        )
        for item, ws in zip(items, written, strict=True)
    ]
    write_jsonl(run.out / "completions.jsonl", completions)
    ends = [finished for c in completions for finished in c.finished]
    counts = {"rows": len(completions), "tokens": sum(sum(c.n_tokens) for c in completions)}
    counts |= {"turns": len(ends), "cut": ends.count(False)}
    counts |= {POSITIONS_PASSED: passed} if passed else {}
    if scorer:
        write_jsonl(run.out / "rewards.jsonl", rewards)  # of the chosen samples; ids are `<item id>/<turn>`
        counts |= {"sampled": len(sampled), "sampled_tokens": sum(len(w.ids) for w in sampled)}
    return Outcome(counts)


def best_of(rewards: Sequence[float]) -> int:
    """Index of the largest reward; of equal rewards the first."""
    return max(range(len(rewards)), key=rewards.__getitem__)


def draw_seed(seed: int, turn: int, draw: int) -> int:
    """The seed of one draw of a turn, independent of the number of draws.

    The first draw is the one of best_of=1.
    """
    return random.Random(f"draw/{seed}/{turn}/{draw}").getrandbits(40) if draw else seed * 100 + turn


def _rewards(
    scorer: Scorer, before: Sequence[list[Message]], draws: Sequence[Sequence[DrawnCompletion]]
) -> list[list[float]]:
    """Rewards by conversation and draw. Texts are tokenised as in training but never cut.

    Equal texts are scored once. In two batches their rewards would differ in the last digits, and the choice
    would depend on that.
    """
    texts = list(dict.fromkeys((place, draw[place].text) for place in range(len(before)) for draw in draws))
    values = scorer.rewards([row_ids(scorer.tokenizer, before[place], text, None) for place, text in texts])
    rewards = dict(zip(texts, values, strict=True))
    return [[rewards[place, draw[place].text] for draw in draws] for place in range(len(before))]


def _by_temperature(settings: GenerateSettings, items: Sequence[Item], turn: int) -> dict[float, list[int]]:
    """Indices of the items that have this turn, grouped by the temperature of their category."""
    usual = settings.decoding.temperature
    indices = [i for i, item in enumerate(items) if len(item.turns) > turn]
    return grouped((settings.temperatures.get(items[i].category or "", usual), i) for i in indices)
