"""Start models: a Llama-architecture base from scratch (the controlled world), then supervised fine-tuning by TRL's SFTTrainer.

Loss of the start stage: mean over the completion tokens of a batch of -log π(y_t | x, y_<t); the prompt is masked. Of a conversation
every answer is learnt from. Deviation from Zephyr's recipe: that packs conversations and learns from the user's messages too.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.config import Settings
from bench.kinds import BaseSettings, ConversationSft, SftSettings
from bench.records import Conversation, Text, read_jsonl
from bench.worker import Outcome, StageRun

if TYPE_CHECKING:
    from bench.methods.training import Recorder

TEXTS = ("demonstrations", "evaluations")  # what a start stage learns from, the latter where it is to judge


def run(settings: Settings, run: StageRun) -> Outcome:
    match settings:
        case BaseSettings():
            return _base(settings, run)
        case SftSettings():
            return _start(settings, run)
        case ConversationSft():
            return _conversations(settings, run)
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
    from bench.engines.hf import check_fit, load_model
    from bench.methods.training import common_arguments
    from bench.tokens import load_tokenizer, row_ids

    tokenizer = load_tokenizer(run.inputs["model"])
    model = load_model(run.inputs["model"], "float32")
    check_fit(run.inputs["model"], model, tokenizer)
    rows = [row for role in TEXTS if role in run.inputs for row in read_jsonl(run.inputs[role] / "rows.jsonl", Text)]
    ids = [row_ids(tokenizer, row.prompt, row.completion, settings.max_length) for row in rows]
    examples = [Example(i.prompt + i.completion, [-100] * len(i.prompt) + i.completion) for i in ids]
    arguments = {
        **common_arguments(run.out, seed=settings.seed, dtype="float32"),
        "max_steps": settings.training.steps,
        "learning_rate": settings.training.learning_rate,
        "per_device_train_batch_size": settings.training.batch_size,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.training.steps // 10,
        "max_length": settings.max_length,
    }
    recorder = _train(model, tokenizer, examples, arguments, settings.seed, run)
    _save(model, tokenizer, run.out)
    return Outcome({"rows": len(rows), "tokens": recorder.tokens}, recorder.recorded_files)


def _conversations(settings: ConversationSft, run: StageRun) -> Outcome:
    import torch

    from bench.engines.hf import check_fit, load_model
    from bench.methods.training import ALL_STEPS, common_arguments
    from bench.shapes import checkpoints
    from bench.tokens import conversation_ids, load_tokenizer

    tokenizer = load_tokenizer(run.inputs["model"])
    rows = list(read_jsonl(run.inputs["conversations"] / "rows.jsonl", Conversation))
    found = [conversation_ids(tokenizer, row.messages, settings.max_length) for row in rows]
    examples = [
        Example(f.ids, [token if answer else -100 for token, answer in zip(f.ids, f.answers, strict=True)]) for f in found if any(f.answers)
    ]
    if not examples:
        raise ValueError(f"no answer of {len(rows)} conversations begins within model.max_length={settings.max_length}: raise it")
    model = load_model(run.inputs["model"], settings.dtype).float()  # float32 weights whatever the dtype: see engines/hf.py
    check_fit(run.inputs["model"], model, tokenizer)
    training = settings.training
    checkpointing = checkpoints(settings.gradient_checkpointing, model.num_parameters())
    arguments = {
        **common_arguments(run.out, seed=settings.seed, dtype=settings.dtype, checkpointing=checkpointing),
        "learning_rate": training.learning_rate,
        "num_train_epochs": training.num_train_epochs,
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(training.warmup_ratio, ALL_STEPS),  # a share of all steps
        "max_length": settings.max_length,
    }
    recorder = _train(model, tokenizer, examples, arguments, settings.seed, run)
    model.to(getattr(torch, settings.dtype))
    _save(model, tokenizer, run.out)
    counts = {"rows": len(examples), "without_answer": len(rows) - len(examples), "steps": len(recorder.history), "tokens": recorder.tokens}
    return Outcome(counts, recorder.recorded_files)


class Example(NamedTuple):
    """`labels` are -100 where there is no loss."""

    input_ids: list[int]
    labels: list[int]


def _train(model: Any, tokenizer: Any, examples: Sequence[Example], arguments: dict[str, Any], seed: int, run: StageRun) -> Recorder:
    """TRL's SFTTrainer over prepared examples, in batches of like length; the model is trained in place and its curve written."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from bench.methods.training import LengthBatches, Recorder, check_weights, fingerprint

    before = fingerprint(model)

    class Trainer(SFTTrainer):
        def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler:
            return LengthBatches([len(example.input_ids) for example in examples], arguments["per_device_train_batch_size"], seed)

    recorder = Recorder(run.progress)
    config = SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True})
    dataset = Dataset.from_list([example._asdict() for example in examples])
    Trainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[recorder]).train()
    check_weights(model, before)
    recorder.write(run.out)
    shutil.rmtree(run.out / "trainer", ignore_errors=True)
    return recorder


def _save(model: object, tokenizer: object, out: Path) -> None:
    model.save_pretrained(out / "model")  # type: ignore[attr-defined]
    tokenizer.save_pretrained(out / "model")  # type: ignore[attr-defined]
