"""Completions for training: `draws` of each item's first turn, each with its own seed."""

from __future__ import annotations

from bench.engines.opening import open_engine
from bench.models.tokenize import all_prompt_ids, conversation
from bench.records import Completion, read_items, write_jsonl
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import SampleSettings


def run(settings: SampleSettings, run: StageRun) -> Outcome:
    engine = open_engine(settings, run.inputs)
    items = read_items(run.inputs["items"])
    prompts = all_prompt_ids(engine.tokenizer, [conversation(item, []) for item in items])
    completions = []
    for draw in range(settings.draws):
        done = draw * len(items)

        def progress(n: int, _: int, done: int = done) -> None:
            run.progress(done + n, settings.draws * len(items))

        written = engine.generate(prompts, settings.decoding, settings.seed * settings.draws + draw, progress)
        completions += [
            Completion(item.id, item.turns[:1], [w.text], [len(w.ids)], [w.finished], draw)
            for item, w in zip(items, written, strict=True)
        ]
    write_jsonl(run.out / "completions.jsonl", completions)
    return Outcome({"rows": len(completions), "tokens": sum(sum(c.n_tokens) for c in completions)})
