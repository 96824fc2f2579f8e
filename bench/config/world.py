"""Settings of the controlled world and its models, and of model folders."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from bench.config.adapters import Attention, Checkpointing
from bench.config.base import (
    AsList,
    Category,
    Count,
    LaterField,
    Misfit,
    Name,
    Positive,
    Probability,
    Seed,
    Settings,
    misfit,
)


class Writer(Settings):
    """Error rates of a simulated writer, probabilities per answer (missed_constraint: per constraint)."""

    error: Probability
    """Probability of a wrong answer."""
    missed_constraint: Probability
    """Probability of a missed constraint, for each constraint."""
    filler: Probability
    """Probability of a filler, for each answer."""


class GoldWeights(Settings):
    """Weights of the gold reward's parts; content also scales the other two (see world/gold.py)."""

    content: Probability
    """Weight of the content, 0 to 1."""
    constraints: Probability
    """Weight of the kept constraints, 0 to 1."""
    conciseness: Probability
    """Weight of conciseness, 0 to 1."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> GoldWeights:
        total = self.content + self.constraints + self.conciseness
        if abs(total - 1) > 1e-9:
            raise misfit(
                (
                    "content",
                    f"the weights of content, constraints and conciseness must sum to 1, got {total:g}",
                )
            )
        return self


class World(Settings):
    """The controlled world's tasks, their true reward, and the reference writer to compare with."""

    categories: Annotated[tuple[Category, ...], AsList] = Field(min_length=1)
    """Categories of the prompts."""
    constraint_counts: Annotated[tuple[Probability, ...], AsList] = Field(min_length=1)
    """Probabilities of 0, 1, 2, ... constraints in a prompt; they sum to 1."""
    gold: GoldWeights
    """Weights of the gold reward's parts; they sum to 1."""
    reference: Writer
    """Error rates of the reference writer, the fixed opponent of the preference judge."""
    eval_seed: Seed
    """Seed of the development and evaluation prompts. The settings here were chosen on development prompts
    only."""

    @model_validator(mode="after")
    def _probabilities(self) -> World:
        problems: list[Misfit] = []
        if abs((total := sum(self.constraint_counts)) - 1) > 1e-9:
            problems.append(
                ("constraint_counts", f"constraint_counts are probabilities and must sum to 1, got {total:g}")
            )
        if len(set(self.categories)) != len(self.categories):
            problems.append(("categories", f"categories must not repeat, got {', '.join(self.categories)}"))
        if problems:
            raise misfit(*problems)
        return self


# Models --------------------------------------------------------------------------------------------------------------


class Pretraining(Settings):
    """The base stage: training from scratch on clean text of the world; it does not depend on the cell's
    seed."""

    steps: Count
    """Optimizer steps."""
    batch_size: Count
    """Texts of one step."""
    learning_rate: Positive
    """Peak learning rate; 5e-3 for the world's models."""
    init_std: Positive
    """Standard deviation of the initial weights."""
    seed: Seed
    """Seed of the initial weights and of the text; it is fixed, whatever the cell's seed."""


class SftTraining(Settings):
    """Supervised fine-tuning in a number of steps: the world's start stage, and iteration 1 of
    self_rewarding."""

    steps: Count
    """Optimizer steps."""
    batch_size: Count
    """Demonstrations of one forward and backward pass."""
    gradient_accumulation_steps: Annotated[Count, LaterField()] = 1
    """Forward and backward passes of one optimizer step. More of smaller batches take less memory and learn
    the same: a step's demonstrations depend on their number alone."""
    learning_rate: Positive
    """Peak learning rate; 1e-3 for the world's models."""


class WorldModel(Settings):
    """A Llama-architecture model trained at run time."""

    kind: Literal["world"]
    name: Name
    start: Literal["sft", "base"]
    """Start model of the alignment: the fine-tuned model (sft), or the base model it was made from (base)."""
    hidden_size: Count
    """Width of the hidden states; an even multiple of num_heads."""
    num_layers: Count
    """Number of layers."""
    num_heads: Count
    """Number of attention heads."""
    intermediate_size: Count
    """Width of the feed-forward layers."""
    max_length: Count
    """Longest prompt plus completion in tokens that training and log-probs read. Two turns of a long-winded
    policy stay below 192."""
    pretraining: Pretraining
    """Settings of the pretraining on the world's clean text."""
    sft: SftTraining
    """Settings of the supervised fine-tuning on demonstrations."""

    @model_validator(mode="after")
    def _heads(self) -> WorldModel:
        if self.hidden_size % (2 * self.num_heads):
            text = f"hidden_size must be an even multiple of num_heads={self.num_heads} (rotary embedding), got {self.hidden_size}"
            raise misfit(("hidden_size", text))
        return self


def _a_day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"must be a day such as 2024-07-26, got {text}") from None


class LocalModel(Settings):
    """Any causal LM in the transformers layout, in a folder or on the hub; it is the start model as it is."""

    kind: Literal["local"]
    name: Name
    path: str | None
    """Path of the model's folder; null: it comes from the hub. A folder is known by its content, and the hub
    is not asked."""
    hub: str | None = None
    """Repository on the Hugging Face hub, OWNER/NAME; null: `path` is read. Where both are set, the path is a
    copy."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """Commit of the hub's repository, 40 hexadecimal digits; null: the locked one (results/revisions.json),
    else the newest, which is then locked."""
    dtype: Literal["float32", "bfloat16"]
    """Number format of the weights: float32 or bfloat16."""
    max_length: Count
    """Longest prompt plus completion in tokens that training and log-probs read; usual 512 to 2048 for
    pretrained models."""
    chat_template: str | None = None
    """Chat template in place of the tokenizer's: qwen3, tulu, zephyr or a Jinja file; null: the tokenizer's
    own."""
    template_date: Annotated[str, AfterValidator(_a_day)] | None = None
    """Day (2025-01-31) that the chat template writes, so that prompts are the same every day; null:
    2024-07-26 if the template reads the clock, else its own. It is part of the key where the template reads
    it."""
    base: str | None = None
    """Folder of the model that the start model was tuned from, for method.judging_reference=base; null: none.
    """
    attention: Attention = "auto"
    """Attention kernel: auto (transformers' choice), eager, sdpa, or flash_attention_2 (a GPU, bfloat16 and
    the flash-attn package)."""
    gradient_checkpointing: Checkpointing = "auto"
    """Whether training recomputes activations in the backward pass: less memory, a third more time; auto:
    from 1B parameters on. The losses are the same and no key has it, so a sweep that ran out of memory goes
    on with true."""


class NoModel(Settings):
    """For completions from a file: there is no model."""

    kind: Literal["none"]
    name: Literal["none"]
