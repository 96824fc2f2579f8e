"""Evaluation completions, turn by turn: a later turn is asked after the policy's own earlier answers. Or those that a file brings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.config import Settings
from bench.kinds import GenerateSettings, WrittenCompletions
from bench.records import Completion, Item, read_jsonl, write_jsonl
from bench.tokens import conversation, prompt_ids
from bench.worker import Outcome, StageRun
from bench.written import matched, read_written

if TYPE_CHECKING:
    from bench.engines.hf import Written


def run(settings: Settings, run: StageRun) -> Outcome:
    match settings:
        case GenerateSettings():
            return _by_policy(settings, run)
        case WrittenCompletions():
            return _from_file(run)
    raise TypeError(f"no generate stage for {type(settings).__name__}")


def _from_file(run: StageRun) -> Outcome:
    items, rows = list(read_jsonl(run.inputs["items"] / "items.jsonl", Item)), read_written(run.inputs["file"])
    completions = matched(rows, items)
    if not completions and all(len(item.turns) == 1 for item in items):
        asked = f"item {items[0].id} asks {items[0].turns[0]!r}"
        why = f"none of the file's {len(rows)} rows answers one of the {len(items)} prompts; {asked}, the first row"
        raise ValueError(f"{why} answers {rows[0].asked!r}")
    write_jsonl(run.out / "completions.jsonl", completions)
    return Outcome({"rows": len(completions), "missing": len(items) - len(completions), "in_file": len(rows)})


def _by_policy(settings: GenerateSettings, run: StageRun) -> Outcome:
    from bench.engines.hf import Engine

    engine = Engine(run.inputs["model"], settings.dtype, settings.batch_size)
    items = list(read_jsonl(run.inputs["items"] / "items.jsonl", Item))
    total = sum(len(item.turns) for item in items)
    answers: list[list[Written]] = [[] for _ in items]
    for turn in range(max(len(item.turns) for item in items)):
        asked = [i for i, item in enumerate(items) if len(item.turns) > turn]
        prompts = [prompt_ids(engine.tokenizer, conversation(items[i], [w.text for w in answers[i]])) for i in asked]
        done = sum(map(len, answers))

        def progress(n: int, _: int, done: int = done) -> None:
            run.progress(done + n, total)

        written = engine.generate(prompts, settings.decoding, settings.seed * 100 + turn, progress)
        for i, completion in zip(asked, written, strict=True):
            answers[i].append(completion)
    completions = [
        Completion(item.id, item.turns, [w.text for w in ws], [len(w.ids) for w in ws], [w.finished for w in ws], ids=[w.ids for w in ws])
        for item, ws in zip(items, answers, strict=True)
    ]
    write_jsonl(run.out / "completions.jsonl", completions)
    return Outcome({"rows": len(completions), "tokens": sum(sum(c.n_tokens) for c in completions)})
