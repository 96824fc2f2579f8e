"""Evaluation completions, turn by turn: a later turn is asked after the policy's own earlier answers. Or those that a file brings.

With `best_of` above 1 each turn is drawn so often, and the sample that the reward model likes best is the answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.config import Settings
from bench.models.tokenize import conversation, prompt_ids, row_ids
from bench.readers.completions_file import matched, read_written
from bench.records import Completion, Item, Message, Reward, grouped, read_items, write_jsonl
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
        asked = f"item {items[0].id} asks {items[0].turns[0]!r}"
        why = f"{path}: none of its {len(rows)} rows answers one of the {len(items)} prompts; {asked}, the first row"
        raise BadFile(f"{why} answers {rows[0].prompt_text!r}")
    write_jsonl(run.out / "completions.jsonl", completions)
    return Outcome({"rows": len(completions), "missing": len(items) - len(completions), "in_file": len(rows)})


def _by_policy(settings: GenerateSettings, run: StageRun) -> Outcome:
    from bench.engines.opening import open_engine
    from bench.engines.reward import Scorer

    engine = open_engine(settings, run.inputs)
    scorer = Scorer(run.inputs["reward_model"], settings.dtype, settings.batch_size) if settings.best_of > 1 else None
    items = read_items(run.inputs["items"])
    total = settings.best_of * sum(len(item.turns) for item in items)
    answers: list[list[DrawnCompletion]] = [[] for _ in items]
    rewards: list[Reward] = []
    sampled: list[DrawnCompletion] = []
    for turn in range(max(len(item.turns) for item in items)):
        for temperature, asked in _by_temperature(settings, items, turn).items():
            before = [conversation(items[i], [w.text for w in answers[i]]) for i in asked]
            prompts = [prompt_ids(engine.tokenizer, messages, settings.control) for messages in before]
            decoding = settings.decoding.model_copy(update={"temperature": temperature})
            draws = []
            for draw in range(settings.best_of):
                done = len(sampled)

                def progress(n: int, _: int, done: int = done) -> None:
                    run.progress(done + n, total)

                draws.append(engine.generate(prompts, decoding, draw_seed(settings.seed, turn, draw), progress))
                sampled += draws[-1]
            given = _rewards(scorer, before, draws) if scorer else [[0.0] for _ in asked]
            for place, (i, mine) in enumerate(zip(asked, given, strict=True)):
                best = best_of(mine)
                answers[i].append(draws[best][place])
                rewards.append(Reward(f"{items[i].id}/{turn}", mine[best]))
    completions = [
        Completion(item.id, item.turns, [w.text for w in ws], [len(w.ids) for w in ws], [w.finished for w in ws], ids=[w.ids for w in ws])
        for item, ws in zip(items, answers, strict=True)
    ]
    write_jsonl(run.out / "completions.jsonl", completions)
    counts = {"rows": len(completions), "tokens": sum(sum(c.n_tokens) for c in completions)}
    if scorer:
        write_jsonl(run.out / "rewards.jsonl", rewards)  # of the chosen, by `<item id>/<turn>`
        counts |= {"sampled": len(sampled), "sampled_tokens": sum(len(w.ids) for w in sampled)}
    return Outcome(counts)


def best_of(rewards: Sequence[float]) -> int:
    """Which draw has the largest reward, the first of equals."""
    return max(range(len(rewards)), key=rewards.__getitem__)


def draw_seed(seed: int, turn: int, draw: int) -> int:
    """Of one draw of a turn, whatever the number of draws; the first is what is drawn where there is one."""
    return random.Random(f"draw/{seed}/{turn}/{draw}").getrandbits(40) if draw else seed * 100 + turn


def _rewards(scorer: Scorer, before: Sequence[list[Message]], draws: Sequence[Sequence[DrawnCompletion]]) -> list[list[float]]:
    """Each conversation's rewards by draw. The texts are tokenised as in training, not cut: what is judged is whole.

    Equal texts are scored once: in two batches they would differ in their last digits, and which is chosen would hang on that.
    """
    texts = list(dict.fromkeys((place, draw[place].text) for place in range(len(before)) for draw in draws))
    found = scorer.rewards([row_ids(scorer.tokenizer, before[place], text, None) for place, text in texts])
    rewards = dict(zip(texts, found, strict=True))
    return [[rewards[place, draw[place].text] for draw in draws] for place in range(len(before))]


def _by_temperature(settings: GenerateSettings, items: Sequence[Item], turn: int) -> dict[float, list[int]]:
    """Indices of the items that have this turn, by the temperature at which their category is answered."""
    usual = settings.decoding.temperature
    asked = [i for i, item in enumerate(items) if len(item.turns) > turn]
    return grouped((settings.temperatures.get(items[i].category or "", usual), i) for i in asked)
