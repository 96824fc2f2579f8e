"""Start models: a Llama-architecture base from scratch (the controlled world), then supervised fine-tuning by TRL's SFTTrainer.

Loss of the start stage: mean over the completion tokens of a batch of -log π(y_t | x, y_<t); the prompt is masked.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.config import Settings
from bench.kinds import BaseSettings, SftSettings
from bench.records import Text, read_jsonl
from bench.worker import Outcome, StageRun

TEXTS = ("demonstrations", "evaluations")  # what a start stage learns from, the latter where it is to judge


def run(settings: Settings, run: StageRun) -> Outcome:
    match settings:
        case BaseSettings():
            return _base(settings, run)
        case SftSettings():
            return _start(settings, run)
    raise TypeError(f"no sft stage for {type(settings).__name__}")


def _base(settings: BaseSettings, run: StageRun) -> Outcome:
    from bench.world.models import new_model, pretrain
    from bench.world.tokenizer import new_tokenizer

    tokenizer = new_tokenizer(settings.max_length)
    model = new_model(settings, tokenizer)  # type: ignore[arg-type]  # a WorldModel's fields, less its names
    rows = read_jsonl(run.inputs["corpus"] / "rows.jsonl", Text)
    steps = settings.pretraining.steps
    pretrain(model, tokenizer, rows, settings.pretraining, lambda step, loss: run.progress(step, steps, loss=loss))
    _save(model, tokenizer, run.out)
    return Outcome({"steps": steps, "parameters": model.num_parameters()})


def _start(settings: SftSettings, run: StageRun) -> Outcome:
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from bench.engines.hf import load_model
    from bench.methods.training import LengthBatches, Recorder, check_weights, common_arguments, fingerprint
    from bench.tokens import load_tokenizer, row_ids

    tokenizer = load_tokenizer(run.inputs["model"])
    model = load_model(run.inputs["model"], "float32")
    before = fingerprint(model)
    rows = [row for role in TEXTS if role in run.inputs for row in read_jsonl(run.inputs[role] / "rows.jsonl", Text)]
    ids = [row_ids(tokenizer, row.prompt, row.completion, settings.max_length) for row in rows]
    dataset = Dataset.from_list([{"input_ids": i.prompt + i.completion, "labels": [-100] * len(i.prompt) + i.completion} for i in ids])

    class Trainer(SFTTrainer):
        def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler:
            return LengthBatches([len(i.prompt) + len(i.completion) for i in ids], settings.training.batch_size, settings.seed)

    recorder = Recorder(run.progress)
    arguments = SFTConfig(
        **common_arguments(run.out, seed=settings.seed, dtype="float32"),
        max_steps=settings.training.steps,
        learning_rate=settings.training.learning_rate,
        per_device_train_batch_size=settings.training.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=settings.training.steps // 10,
        max_length=settings.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    Trainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer, callbacks=[recorder]).train()
    check_weights(model, before)
    recorder.write(run.out)
    _save(model, tokenizer, run.out)
    shutil.rmtree(run.out / "trainer", ignore_errors=True)
    return Outcome({"rows": len(rows), "tokens": recorder.tokens}, recorder.recorded_files)


def _save(model: object, tokenizer: object, out: Path) -> None:
    model.save_pretrained(out / "model")  # type: ignore[attr-defined]
    tokenizer.save_pretrained(out / "model")  # type: ignore[attr-defined]
