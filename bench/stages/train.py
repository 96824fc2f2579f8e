"""One training: a method's trainer from the start model to a policy, with its curve."""

from __future__ import annotations

import math
import shutil

import torch

from bench.engines.hf import load_model
from bench.methods import load
from bench.methods.training import Recorder, TrainingJob, moved
from bench.plan import TrainSettings
from bench.records import read_logps, read_rows
from bench.tokens import load_tokenizer
from bench.worker import Outcome, StageRun


def run(settings: TrainSettings, run: StageRun) -> Outcome:
    tokenizer = load_tokenizer(run.inputs["model"])
    model = load_model(run.inputs["model"], settings.dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = read_rows(run.inputs["preferences"] / "train.jsonl")
    recorder = Recorder(run.progress)
    job = TrainingJob(settings, model, tokenizer, rows, read_logps(run.inputs["reference_logps"]), run.out, recorder)
    trainer = load(settings.method.name).make_trainer(job)
    trainer.train()
    _check(recorder, moved(before, model))
    recorder.write(run.out)
    with torch.no_grad():
        model.save_pretrained(run.out / "model", safe_serialization=True)
    tokenizer.save_pretrained(run.out / "model")
    shutil.rmtree(run.out / "trainer", ignore_errors=True)
    return Outcome({"rows": len(rows), "steps": len(recorder.history), "tokens": recorder.tokens}, recorder.recorded_files)


def _check(recorder: Recorder, largest_change: float) -> None:
    """A training that diverged or never reached the model is a failure, not a row of the table."""
    bad = [row["step"] for row in recorder.history if not math.isfinite(row["loss"])]
    if bad:
        raise FloatingPointError(f"the loss was not finite at step {int(bad[0])} of {len(recorder.history)}: lower method.learning_rate")
    if not math.isfinite(largest_change):
        raise FloatingPointError("the trained weights are not finite: lower method.learning_rate")
    if largest_change == 0:
        raise RuntimeError("training left every weight as it was: the learning rate is too small for this precision, or training was skipped")
