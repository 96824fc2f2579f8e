"""The controlled world, and models: its own and folders."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from bench.config.adapters import Attention, Checkpointing
from bench.config.base import AsList, Category, Count, Misfit, Name, Positive, Probability, Seed, Settings, misfit


class Writer(Settings):
    """How often a simulated writer goes wrong, each a probability per answer (filler: per answer too)."""

    error: Probability
    missed_constraint: Probability
    filler: Probability


class GoldWeights(Settings):
    """Weights of the gold reward's parts; content also gates how much the others count (see world/gold.py)."""

    content: Probability
    constraints: Probability
    conciseness: Probability

    @model_validator(mode="after")
    def _sum_to_one(self) -> GoldWeights:
        total = self.content + self.constraints + self.conciseness
        if abs(total - 1) > 1e-9:
            raise misfit(("content", f"the weights of content, constraints and conciseness must sum to 1, got {total:g}"))
        return self


class World(Settings):
    """The task family and its truth: what is asked, what is good, and whom one is compared with."""

    categories: Annotated[tuple[Category, ...], AsList] = Field(min_length=1)
    constraint_counts: Annotated[tuple[Probability, ...], AsList] = Field(min_length=1)  # P(0), P(1), ... constraints
    gold: GoldWeights
    reference: Writer
    eval_seed: Seed

    @model_validator(mode="after")
    def _probabilities(self) -> World:
        found: list[Misfit] = []
        if abs((total := sum(self.constraint_counts)) - 1) > 1e-9:
            found.append(("constraint_counts", f"constraint_counts are probabilities and must sum to 1, got {total:g}"))
        if len(set(self.categories)) != len(self.categories):
            found.append(("categories", f"categories must not repeat, got {', '.join(self.categories)}"))
        if found:
            raise misfit(*found)
        return self


# Models --------------------------------------------------------------------------------------------------------------


class Pretraining(Settings):
    """The base stage, from scratch on clean text of the world; fixed, whatever the cell's seed."""

    steps: Count
    batch_size: Count
    learning_rate: Positive
    init_std: Positive
    seed: Seed


class SftTraining(Settings):
    """The start stage: supervised fine-tuning of the base on demonstrations."""

    steps: Count
    batch_size: Count
    learning_rate: Positive


class WorldModel(Settings):
    """A Llama-architecture model trained at run time."""

    kind: Literal["world"]
    name: Name
    start: Literal["sft", "base"]  # where alignment starts: the fine-tuned model, or the base model that it was made from
    hidden_size: Count
    num_layers: Count
    num_heads: Count
    intermediate_size: Count
    max_length: Count  # tokens of prompt and completion that training and log-probs look at
    pretraining: Pretraining
    sft: SftTraining

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
    path: str | None  # a folder; None: the hub's
    hub: str | None = None  # owner/name; a `path` beside it is a copy
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None  # None: the one that is locked, or the newest at the first use
    dtype: Literal["float32", "bfloat16"]
    max_length: Count  # tokens of prompt and completion that training and log-probs look at
    chat_template: str | None = None  # in place of its tokenizer's: a name in bench/chat_templates or a Jinja file
    # The day that its chat template writes; None: 2024-07-26 where the template asks the clock, else its own. Keyed where it is read.
    template_date: Annotated[str, AfterValidator(_a_day)] | None = None
    base: str | None = None  # folder of the model that it was tuned from, where a method holds it against that
    attention: Attention = "auto"
    gradient_checkpointing: Checkpointing = "auto"


class NoModel(Settings):
    """For completions that a file brings: nobody is asked."""

    kind: Literal["none"]
    name: Literal["none"]
