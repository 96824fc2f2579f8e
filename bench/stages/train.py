"""One training: a method's trainer from the start model to a policy or a reward model, with its curve."""

from __future__ import annotations

import json
import shutil

import torch
from transformers import PreTrainedModel

from bench.engines.adapters import add_adapter, is_adapted, own_dropout_off, save_model
from bench.engines.hf import check_fit, in_float32, load_model
from bench.engines.reward import new_reward_model
from bench.kinds import RewardModelSettings, TrainSettings
from bench.methods import load
from bench.methods.training import Recorder, TrainingJob, check_weights, fingerprint, training_facts
from bench.records import read_logps, read_rows
from bench.tokens import load_tokenizer
from bench.worker import Outcome, StageRun

MORE_STEPS = "bring more rows or epochs, make steps smaller (batch_size, gradient_accumulation_steps) or set method.warmup_ratio=0"


def run(settings: TrainSettings | RewardModelSettings, run: StageRun) -> Outcome:
    tokenizer = load_tokenizer(run.inputs["model"])
    if isinstance(settings, RewardModelSettings):
        method, reference = "best_of_n", {}
        model = new_reward_model(run.inputs["model"], settings.dtype, settings.seed)
    else:
        method, reference = settings.method.name, read_logps(run.inputs["reference_logps"])
        model = start_model(settings, run)
        check_fit(run.inputs["model"], model, tokenizer)
    if controls := getattr(model.config, "control_tokens", None):
        raise ValueError(f"the start model is asked with {controls[0]}, which no method trains with: start from the model before it")
    rows = read_rows(run.inputs["preferences"] / "train.jsonl")
    recorder = Recorder(run.progress)
    # float32 weights whatever the dtype: see engines/hf.py
    beside = run.inputs.get("reference_model"), run.inputs.get("base")
    job = TrainingJob(settings, in_float32(model), tokenizer, rows, reference, run.out, recorder, *beside)
    trainer = load(method).make_trainer(job)  # may add tokens to model and tokenizer
    before = fingerprint(model)
    trainer.train()
    if not any(row["learning_rate"] for row in recorder.history):
        raise ValueError(f"all {len(recorder.history)} steps were warm-up: {MORE_STEPS}")
    if not is_adapted(model):
        model.to(getattr(torch, settings.dtype))
    check_weights(model, before)
    recorder.write(run.out)
    (run.out / "facts.json").write_text(json.dumps(training_facts(trainer, job).to_json(), indent=1, allow_nan=False))
    save_model(model, tokenizer, run.out / "model")
    shutil.rmtree(run.out / "trainer", ignore_errors=True)
    return Outcome({"rows": len(rows), "steps": len(recorder.history), "tokens": recorder.tokens}, recorder.recorded_files)


def start_model(settings: TrainSettings, run: StageRun) -> PreTrainedModel:
    """What a training starts from: a whole model, one with a new adapter, or one whose adapter goes on being trained."""
    model = load_model(run.inputs["model"], settings.dtype, settings.loading, run.inputs.get("base"), trainable=True)
    if settings.adapter is not None and not is_adapted(model):
        add_adapter(model, settings.adapter, settings.seed)
    if settings.adapter is not None:
        own_dropout_off(model)
    return model
