"""Runs lm-evaluation-harness tasks on a policy or its start model.

The scores show whether training has lost abilities.
"""

from __future__ import annotations

from bench.records import write_jsonl
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import TaskSettings


def run(settings: TaskSettings, run: StageRun) -> Outcome:
    from bench.engines.hf import load_model
    from bench.engines.lm_eval import evaluate
    from bench.models.tokenize import load_tokenizer

    model = load_model(run.inputs["model"], settings.dtype, settings.loading, run.inputs.get("base"))
    evaluation = evaluate(model, load_tokenizer(run.inputs["model"]), settings, run.inputs.get("tasks"))
    write_jsonl(run.out / "results.jsonl", evaluation.results)
    write_jsonl(run.out / "answers.jsonl", evaluation.answers)
    return Outcome(
        {
            "tasks": len({result.task for result in evaluation.results if result.shown}),
            "documents": len(evaluation.answers),
        }
    )
