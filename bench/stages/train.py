"""One training: a method's trainer turns the start model into a policy or reward model, with its curve."""

from __future__ import annotations

import json

from transformers import PreTrainedModel

from bench.engines.adapters import add_adapter, is_adapted, own_dropout_off
from bench.engines.hf import check_fit, in_float32, load_model
from bench.engines.reward import new_reward_model
from bench.methods import load
from bench.models.tokenize import load_tokenizer
from bench.records import read_logps, read_rows
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import RewardModelSettings, TrainSettings
from bench.training.distributed import devices_of, spread, train_and_save
from bench.training.trainers import Recorder, TrainingJob, training_facts


def run(settings: TrainSettings | RewardModelSettings, run: StageRun) -> Outcome:
    return spread(train, settings, run)


def train(settings: TrainSettings | RewardModelSettings, run: StageRun) -> Outcome:
    """Trains in this process, one of several on several devices."""
    tokenizer = load_tokenizer(run.inputs["model"])
    if isinstance(settings, RewardModelSettings):
        reference = {}
        model = new_reward_model(run.inputs["model"], settings.dtype, settings.seed)
    else:
        reference = read_logps(run.inputs["reference_logps"])
        model = start_model(settings, run)
        check_fit(run.inputs["model"], model, tokenizer)
    if controls := getattr(model.config, "control_tokens", None):
        raise ValueError(
            f"The start model was trained with the control token {controls[0]} (CSFT). Use the model it was trained from."
        )
    rows = read_rows(run.inputs["preferences"] / "train.jsonl")
    recorder = Recorder(run.progress)
    # Weights are float32 whatever the dtype: see engines/hf.py.
    others = run.inputs.get("reference_model"), run.inputs.get("base"), devices_of(run)
    job = TrainingJob(settings, in_float32(model), tokenizer, rows, reference, run.out, recorder, *others)
    # A trainer may add tokens to model and tokenizer.
    trainer = load(settings.method.trainer or settings.method.name).make_trainer(job)
    if not train_and_save(trainer, tokenizer, run, recorder, settings.dtype):
        return Outcome({})
    (run.out / "facts.json").write_text(
        json.dumps(training_facts(trainer, job).to_json(), indent=1, allow_nan=False), encoding="utf-8"
    )
    return Outcome(
        {"rows": len(rows), "steps": len(recorder.history), "tokens": recorder.tokens},
        recorder.recorded_files,
    )


def start_model(settings: TrainSettings, run: StageRun) -> PreTrainedModel:
    """The model to train: whole, with a new adapter, or with an adapter that is trained further."""
    model = load_model(
        run.inputs["model"], settings.dtype, settings.loading, run.inputs.get("base"), trainable=True
    )
    if settings.adapter is not None and not is_adapted(model):
        add_adapter(model, settings.adapter, settings.seed)
    if settings.adapter is not None:
        own_dropout_off(model)
    return model
