"""The controlled world's models: tiny Llamas, trained from scratch on clean text of the world.

The base stage trains on completions with transformers' Trainer. Rows stay in order (copy drills first), in
batches of similar length. With TRL's fused head, which scores the completions only, it takes 0.83 of the CPU
seconds of transformers' own loss (150 steps, one thread).

So small a model learns to copy only with all of the recipe. Greedy gold reward of the default model after the
base stage (one run each, development prompts): whole recipe 8.5; AdamW alone 6.4; no copy drills 7.6;
transformers' initial standard deviation of .02 instead of .05 7.7.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from bench.config import Pretraining, WorldModel
from bench.records import Text

_WARMUP = 0.05  # Share of steps. Then the learning rate is constant, and from _DECAY_START on it falls to 0.
_DECAY_START = 0.5  # Share of steps.
_LIKE_LENGTH = 16  # Batches whose rows are sorted by length together. Drills fade out over far more batches.


class EncodedRow(NamedTuple):
    input_ids: list[int]
    n_prompt: int  # Number of tokens without loss.


def new_model(settings: WorldModel, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model.

    Its weights are the same for the same `pretraining.seed`; torch's global generator is not changed.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.max_length,
        initializer_range=settings.pretraining.init_std,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.pretraining.seed)
        return LlamaForCausalLM(config)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Iterable[Text],
    settings: Pretraining,
    progress: Callable[[int, float], None] | None = None,
    *,
    fused: bool = False,
) -> None:
    """Train `model` in place for `steps` batches of `rows`, in order, with the loss on completions (the base
    stage).

    `progress` gets (step, loss) from time to time. `fused`: the model has TRL's fused head. Raises ValueError
    if there are fewer rows than steps x batch_size, and FloatingPointError if the loss is not finite.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    batches = ordered_batches(encode(tokenizer, rows), settings.batch_size, settings.seed)
    in_order = [row for batch in itertools.islice(batches, settings.steps) for row in batch]
    if len(in_order) < settings.steps * settings.batch_size:
        needed = settings.steps * settings.batch_size
        raise ValueError(
            f"{settings.steps} steps of {settings.batch_size} rows need {needed} rows, got {len(in_order)}"
        )
    optimizer = MuonAdamW(model, settings.learning_rate)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            train_sampling_strategy="sequential",  # Keep the rows' order.
            remove_unused_columns=False,
            max_grad_norm=1.0,
            seed=settings.seed,
            logging_steps=min(20, settings.steps),
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=in_order,  # type: ignore[arg-type]  # Any sequence works.
            data_collator=lambda rows: (
                collate(rows, tokenizer.pad_token_id) | ({"fused_lm_head": True} if fused else {})
            ),
            optimizers=(
                optimizer,
                torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_share, settings.steps)),
            ),
            callbacks=[_Report(progress)],
        )
        trainer.remove_callback(PrinterCallback)  # `progress` reports instead.
        trainer.train()


def encode(tokenizer: PreTrainedTokenizerFast, rows: Iterable[Text]) -> list[EncodedRow]:
    """Token ids of conversations, EOS included, with the length of their prompts."""
    rows = list(rows)
    write = partial(tokenizer.apply_chat_template, add_generation_prompt=True, tokenize=False)
    prompts = [write([dict(message) for message in row.prompt]) for row in rows]
    wholes = [
        f"{prompt} {row.completion}{tokenizer.eos_token}" for prompt, row in zip(prompts, rows, strict=True)
    ]
    before, ids = (tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (prompts, wholes))
    return [EncodedRow(whole, len(prompt)) for prompt, whole in zip(before, ids, strict=True)]


def collate(rows: Sequence[EncodedRow], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A batch of tensors (B, T), padded on the right; labels are -100 where there is no loss."""
    length = max(len(row.input_ids) for row in rows)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        padding = length - len(row.input_ids)
        batch["input_ids"].append(row.input_ids + [pad_token_id] * padding)
        batch["attention_mask"].append([1] * len(row.input_ids) + [0] * padding)
        batch["labels"].append([-100] * row.n_prompt + row.input_ids[row.n_prompt :] + [-100] * padding)
    return {name: torch.tensor(values) for name, values in batch.items()}


def ordered_batches(rows: Sequence[EncodedRow], batch_size: int, seed: int) -> Iterator[list[EncodedRow]]:
    """Full batches of rows with similar length, in the rows' order except within groups of _LIKE_LENGTH
    batches.

    Inside a group, rows are sorted by length and the batches are shuffled.
    """
    rng = random.Random(f"batches/{seed}")
    window = batch_size * _LIKE_LENGTH
    for start in range(0, len(rows), window):
        near = sorted(rows[start : start + window], key=lambda row: len(row.input_ids))
        batches = [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
        rng.shuffle(batches)
        yield from (batch for batch in batches if len(batch) == batch_size)


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the layers' matrices, and AdamW for embeddings and norms.

    Muon's updates are scaled to the size of AdamW's (`match_rms_adamw`), as Moonshot does, so that both use
    one learning rate.
    """

    def __init__(self, model: torch.nn.Module, learning_rate: float) -> None:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        hidden = [parameter for name, parameter in named if parameter.ndim == 2 and "embed" not in name]
        others = [parameter for name, parameter in named if parameter.ndim != 2 or "embed" in name]
        super().__init__([{"params": hidden}, {"params": others}], {"lr": learning_rate})
        self._parts = (
            torch.optim.Muon(hidden, lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.95)),
        )

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups[0]["lr"] = group["lr"]  # Copied, because Accelerate replaces our groups.
            part.step()


def _share(steps: int, step: int) -> float:
    """Factor of the learning rate at a step."""
    return min(1.0, (step + 1) / (_WARMUP * steps), (steps - step) / ((1 - _DECAY_START) * steps))


class _Report(TrainerCallback):
    def __init__(self, progress: Callable[[int, float], None] | None) -> None:
        self._progress = progress

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            if not math.isfinite(loss := float(logs["loss"])):
                step = f"step {state.global_step} of {state.max_steps}"
                raise FloatingPointError(
                    f"the training diverged: the loss was {loss} at {step}. Lower the learning rate."
                )
            if self._progress:
                self._progress(state.global_step, loss)
