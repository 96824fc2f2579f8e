"""Start models: a Llama-architecture base from scratch (the controlled world), or SFT by TRL's SFTTrainer.

Loss of the start stage: mean over the completion tokens of a batch of -log π(y_t | x, y_<t); the prompt is
masked. In a conversation every assistant message is learnt. Deviation from Zephyr's recipe: it packs
conversations and learns the user's messages too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from bench.config import Settings, SftEpochs, SftTraining
from bench.engines.adapters import save_model
from bench.engines.hf import check_fit, in_float32, load_model
from bench.models.model_size import checkpoints
from bench.models.templates import read_template
from bench.models.tokenize import (
    PromptTooLong,
    all_aligned_ids,
    conversation_ids,
    load_tokenizer,
    model_folder,
)
from bench.readers.learnable import check_conversations
from bench.records import Conversation, Text, read_jsonl
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import BaseSettings, ConversationSft, SftSettings
from bench.training.devices import check_rows, share_of
from bench.training.distributed import devices_of, spread, train_and_save
from bench.training.trainers import ALL_STEPS, LengthBatches, Recorder, common_arguments, on_one_gpu
from bench.world.models import new_model, pretrain
from bench.world.tokenizer import new_tokenizer

# Inputs that a start stage trains on. Evaluations are there only if the model is to judge.
TEXTS = ("demonstrations", "evaluations")


def run(settings: Settings, run: StageRun) -> Outcome:
    match settings:
        case BaseSettings():
            return _base(settings, run)
        case SftSettings():
            return _start(settings, run)
        case ConversationSft():
            return spread(train, settings, run)
    raise TypeError(f"no sft stage for {type(settings).__name__}")


def _base(settings: BaseSettings, run: StageRun) -> Outcome:
    tokenizer = new_tokenizer(settings.max_length)
    # The settings are a WorldModel's fields without its names.
    model = new_model(settings, tokenizer)  # type: ignore[arg-type]
    rows = read_jsonl(run.inputs["corpus"] / "rows.jsonl", Text)
    steps = settings.pretraining.steps
    pretrain(
        model, tokenizer, rows, settings.pretraining, lambda step, loss: run.progress(step, steps, loss=loss)
    )
    save_model(model, tokenizer, run.out / "model")
    return Outcome({"steps": steps, "parameters": model.num_parameters()})


def _start(settings: SftSettings, run: StageRun) -> Outcome:
    usual = {name: getattr(settings, name) for name in ("training", "max_length", "seed")}
    done = train(ConversationSft(dtype="float32", **usual), run)
    return Outcome({name: done.counts[name] for name in ("rows", "tokens")}, done.recorded_files)


def train(settings: ConversationSft, run: StageRun) -> Outcome:
    """SFT of a pretrained model in this process, one of several on several devices."""
    tokenizer = load_tokenizer(run.inputs["model"])
    n_rows, examples = _examples(settings, run.inputs, tokenizer)
    # Weights are float32 whatever the dtype: see engines/hf.py.
    model = in_float32(load_model(run.inputs["model"], settings.dtype))
    check_fit(run.inputs["model"], model, tokenizer)
    training, devices = settings.training, devices_of(run)
    check_rows(len(examples), training, devices)
    share = share_of(training, devices)
    checkpointing = checkpoints(settings.gradient_checkpointing, model.num_parameters())
    arguments = {
        **common_arguments(run.out, seed=settings.seed, dtype=settings.dtype, checkpointing=checkpointing),
        **_duration(training),
        "learning_rate": training.learning_rate,
        "per_device_train_batch_size": share.batch_size,
        "gradient_accumulation_steps": share.accumulation,
        "dataloader_drop_last": devices > 1,  # Otherwise one device would wait for rows that others have.
        "lr_scheduler_type": "cosine",
        "max_length": settings.max_length,
    }
    recorder = Recorder(run.progress)
    trainer = _trainer(model, tokenizer, examples, arguments, _alike(training), recorder)
    if not train_and_save(trainer, tokenizer, run, recorder, settings.dtype):
        return Outcome({})
    counts = {
        "rows": len(examples),
        "without_answer": n_rows - len(examples),
        "steps": len(recorder.history),
        "tokens": recorder.tokens,
    }
    if devices > 1:
        # Each epoch leaves these rows out: they fill no batch of all devices.
        counts["left_out"] = len(examples) % (share.batch_size * devices)
    return Outcome(counts, recorder.recorded_files)


def _duration(training: SftEpochs | SftTraining) -> dict[str, float]:
    """Arguments for the length of a training and of its warm-up."""
    if isinstance(training, SftTraining):
        return {"max_steps": training.steps, "warmup_steps": training.steps // 10}
    # Warm-up is a share of all steps, in [0, 1).
    return {
        "num_train_epochs": training.num_train_epochs,
        "warmup_steps": min(training.warmup_ratio, ALL_STEPS),
    }


def _alike(training: SftEpochs | SftTraining) -> int:
    """Number of examples of like length that follow each other: a batch, or all of a step, which accumulation
    then does not change."""
    if isinstance(training, SftTraining):
        return training.batch_size * training.gradient_accumulation_steps
    return training.batch_size


def _examples(
    settings: ConversationSft, inputs: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, list[SftExample]]:
    """(number of rows, examples). Conversations whose first assistant message starts beyond max_length give none."""
    if "demonstrations" in inputs:
        texts = [
            row for role in TEXTS if role in inputs for row in read_jsonl(inputs[role] / "rows.jsonl", Text)
        ]
        return len(texts), _learnt_completions(texts, tokenizer, settings.max_length)
    rows = list(read_jsonl(inputs["conversations"] / "rows.jsonl", Conversation))
    check_conversations(read_template(model_folder(inputs["model"])), rows)
    tokenized = [conversation_ids(tokenizer, row.messages, settings.max_length) for row in rows]
    examples = [
        SftExample(
            row.ids,
            [token if learnt else -100 for token, learnt in zip(row.ids, row.assistant_mask, strict=True)],
        )
        for row in tokenized
        if any(row.assistant_mask)
    ]
    if not examples:
        raise ValueError(
            f"No assistant message of the {len(rows)} conversations starts within model.max_length={settings.max_length}. Raise it."
        )
    return len(rows), examples


def _learnt_completions(
    rows: Sequence[Text], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[SftExample]:
    examples = []
    for ids in all_aligned_ids(tokenizer, ((row.prompt, [row.completion]) for row in rows), max_length):
        if isinstance(ids, PromptTooLong):
            raise ids
        examples.append(SftExample(ids[0].whole, [-100] * len(ids[0].prompt) + ids[0].completion))
    return examples


class SftExample(NamedTuple):
    """Token ids of one row; `labels` are -100 where there is no loss."""

    input_ids: list[int]
    labels: list[int]


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[SftExample],
    arguments: dict[str, Any],
    alike: int,
    recorder: Recorder,
) -> Any:
    """TRL's SFTTrainer over prepared examples: each `alike` of them have a like length."""

    class Trainer(SFTTrainer):
        order = LengthBatches([len(example.input_ids) for example in examples], alike, arguments["seed"])

        def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthBatches:
            return self.order

    config = on_one_gpu(SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True}))
    dataset = Dataset.from_list([example._asdict() for example in examples])
    return Trainer(
        model=model, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[recorder]
    )
