"""A policy, or its start model, at tasks of lm-evaluation-harness: whether it still can what it could."""

from __future__ import annotations

from bench.records import write_jsonl
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import TaskSettings


def run(settings: TaskSettings, run: StageRun) -> Outcome:
    from bench.engines.hf import load_model
    from bench.engines.lm_eval import evaluate
    from bench.models.tokenize import load_tokenizer

    model = load_model(run.inputs["model"], settings.dtype, settings.loading, run.inputs.get("base"))
    found = evaluate(model, load_tokenizer(run.inputs["model"]), settings, run.inputs.get("tasks"))
    write_jsonl(run.out / "results.jsonl", found.results)
    write_jsonl(run.out / "answers.jsonl", found.answers)
    return Outcome({"tasks": len({result.task for result in found.results if result.shown}), "documents": len(found.answers)})
