"""The controlled world's models: tiny Llamas, trained from scratch on clean text of the world.

The base stage trains on completions in a loop of its own. Rows stay in order (copy drills first), in batches
of similar length. For the same losses transformers' Trainer takes 1.17 times the CPU seconds (the default base
model, one thread): it scores prompts and padding too.

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
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.config import Pretraining, WorldModel
from bench.records import Text

_WARMUP = 0.05  # Share of steps. Then the learning rate is constant, and from _DECAY_START on it falls to 0.
_DECAY_START = 0.5  # Share of steps.
_REPORTED = 20  # Steps between two reports.
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
) -> None:
    """Train `model` in place for `steps` batches of `rows`, in order, with the loss on completions (the base
    stage).

    `progress` gets (step, loss) from time to time. Raises ValueError if there are fewer rows than steps x
    batch_size, and FloatingPointError if the loss is not finite.
    """
    batches = ordered_batches(encode(tokenizer, rows), settings.batch_size, settings.seed)
    in_order = list(itertools.islice(batches, settings.steps))
    if len(in_order) < settings.steps:
        needed, given = (n * settings.batch_size for n in (settings.steps, len(in_order)))
        raise ValueError(
            f"{settings.steps} steps of {settings.batch_size} rows need {needed} rows, got {given}"
        )
    optimizer = MuonAdamW(model)
    every = min(_REPORTED, settings.steps)
    losses: list[torch.Tensor] = []
    model.train()
    for step, batch in enumerate(in_order):
        loss = completion_loss(model, collate(batch, tokenizer.pad_token_id))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(settings.learning_rate * _share(settings.steps, step))
        losses.append(loss.detach())
        if len(losses) == every:
            mean = torch.stack(losses).mean().item()
            losses.clear()
            if not math.isfinite(mean):
                place = f"step {step + 1} of {settings.steps}"
                raise FloatingPointError(
                    f"the training diverged: the loss was {mean} at {place}. Lower the learning rate."
                )
            if progress:
                progress(step + 1, mean)
    model.eval()


def completion_loss(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean of -log π(y_t | x, y_<t) over the completion tokens of a batch, a scalar.

    Only their places are scored. Padding is on the right, so that causal attention needs no mask for it.
    """
    hidden = model.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state[:, :-1]
    targets = batch["labels"][:, 1:]
    scored = targets != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[scored]), targets[scored])


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


class MuonAdamW:
    """Muon (Jordan et al. 2024) for the layers' matrices, and AdamW for embeddings and norms.

    Muon's updates are scaled to the size of AdamW's (`match_rms_adamw`), as Moonshot does, so that both use
    one learning rate.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        hidden = [parameter for name, parameter in named if parameter.ndim == 2 and "embed" not in name]
        others = [parameter for name, parameter in named if parameter.ndim != 2 or "embed" in name]
        self._parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(hidden, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.95)),
        )

    def step(self, learning_rate: float) -> None:
        """Change the weights by their gradients, and set these to None."""
        for part in self._parts:
            part.param_groups[0]["lr"] = learning_rate
            part.step()
            part.zero_grad()


def _share(steps: int, step: int) -> float:
    """Factor of the learning rate at a step."""
    return min(1.0, (step + 1) / (_WARMUP * steps), (steps - step) / ((1 - _DECAY_START) * steps))
