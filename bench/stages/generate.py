"""Evaluation completions, turn by turn: a later turn is asked after the policy's own earlier answers."""

from __future__ import annotations

from collections.abc import Sequence

from bench.engines.hf import Engine, Written
from bench.kinds import GenerateSettings
from bench.records import Completion, Item, read_jsonl, write_jsonl
from bench.tokens import conversation, prompt_ids
from bench.worker import Outcome, StageRun


def run(settings: GenerateSettings, run: StageRun) -> Outcome:
    engine = Engine(run.inputs["model"], settings.dtype, settings.batch_size)
    items = list(read_jsonl(run.inputs["items"] / "items.jsonl", Item))
    total = sum(len(item.turns) for item in items)
    answers: list[list[Written]] = [[] for _ in items]
    for turn in range(max(len(item.turns) for item in items)):
        for temperature, asked in _by_temperature(settings, items, turn).items():
            prompts = [prompt_ids(engine.tokenizer, conversation(items[i], [w.text for w in answers[i]])) for i in asked]
            done = sum(map(len, answers))

            def progress(n: int, _: int, done: int = done) -> None:
                run.progress(done + n, total)

            decoding = settings.decoding.model_copy(update={"temperature": temperature})
            written = engine.generate(prompts, decoding, settings.seed * 100 + turn, progress)
            for i, completion in zip(asked, written, strict=True):
                answers[i].append(completion)
    completions = [
        Completion(item.id, item.turns, [w.text for w in ws], [len(w.ids) for w in ws], [w.finished for w in ws], ids=[w.ids for w in ws])
        for item, ws in zip(items, answers, strict=True)
    ]
    write_jsonl(run.out / "completions.jsonl", completions)
    return Outcome({"rows": len(completions), "tokens": sum(sum(c.n_tokens) for c in completions)})


def _by_temperature(settings: GenerateSettings, items: Sequence[Item], turn: int) -> dict[float, list[int]]:
    """Indices of the items that have this turn, by the temperature at which their category is answered."""
    found: dict[float, list[int]] = {}
    for i, item in enumerate(items):
        if len(item.turns) > turn:
            found.setdefault(settings.temperatures.get(item.category or "", settings.decoding.temperature), []).append(i)
    return found
