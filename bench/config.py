"""What may be set: frozen pydantic models, unknown keys refused.

`Cell` is one point of the grid: everything in it may change a number and reaches a stage key (names excepted).
`Session` is how a command runs - verb, launcher, tracker, folders - and reaches no key.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")

Category = Literal["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class Settings(BaseModel):
    """Base of every record that a user or a stage key sees: frozen, strict, closed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _tuple(item: Any) -> Any:
    """A tuple field that also takes the list that YAML writes."""
    return Annotated[tuple[item, ...], Field(strict=False)]


# The controlled world ------------------------------------------------------------------------------------------------


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
            raise ValueError(f"gold weights must sum to 1, got {total:g}")
        return self


class World(Settings):
    """The task family and its truth: what is asked, what is good, and whom one is compared with."""

    categories: _tuple(Category) = Field(min_length=1)  # type: ignore[valid-type]
    constraint_counts: _tuple(Probability) = Field(min_length=1)  # type: ignore[valid-type]  # P(0), P(1), ... constraints
    gold: GoldWeights
    reference: Writer
    eval_seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _probabilities(self) -> World:
        if abs(sum(self.constraint_counts) - 1) > 1e-9:
            raise ValueError(f"constraint_counts are probabilities and must sum to 1, got {sum(self.constraint_counts):g}")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError("categories must not repeat")
        return self


# Models --------------------------------------------------------------------------------------------------------------


class Pretraining(Settings):
    """The base stage, from scratch on clean text of the world; fixed, whatever the cell's seed."""

    steps: Count
    batch_size: Count
    learning_rate: Positive
    init_std: Positive
    seed: int = Field(ge=0)


class SftTraining(Settings):
    """The start stage: supervised fine-tuning of the base on demonstrations."""

    steps: Count
    batch_size: Count
    learning_rate: Positive


class WorldModel(Settings):
    """A Llama-architecture model trained at run time."""

    kind: Literal["world"]
    name: str
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
            raise ValueError(f"hidden_size {self.hidden_size} must be an even multiple of num_heads {self.num_heads} (rotary embedding)")
        return self


class LocalModel(Settings):
    """Any causal-LM folder in the transformers layout; it is the start model as it is."""

    kind: Literal["local"]
    name: str
    path: str
    dtype: Literal["float32", "bfloat16"]
    max_length: Count  # tokens of prompt and completion that training and log-probs look at


# Data ----------------------------------------------------------------------------------------------------------------


class Annotator(Settings):
    """Who labels the world's pairs: prefers by sigmoid(difference / temperature), then flips a share of labels.

    The difference is the gold difference plus `length_bias` (points per word) times the difference in words.
    """

    temperature: Positive
    length_bias: float
    flip_rate: Probability


Form = Literal["paired", "unpaired"]


class WorldData(Settings):
    """Demonstrations for the start model, then preference pairs sampled from it and labelled."""

    kind: Literal["world"]
    name: str
    demonstrations: Writer
    n_demonstrations: Count
    n_prompts: Count
    n_heldout_prompts: Count
    n_kl_prompts: Count
    sample_temperature: Positive
    sample_max_new_tokens: Count
    annotator: Annotator
    form: Form  # unpaired: one of the two completions of a prompt, thumbs up if it was the preferred one
    fraction: Fraction


class LocalData(Settings):
    """A preference file of the user: JSONL or Parquet in TRL's paired or unpaired form, text or messages."""

    kind: Literal["local"]
    name: str
    path: str
    fraction: Fraction
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)]
    n_kl_prompts: Count


# Methods -------------------------------------------------------------------------------------------------------------


class Training(Settings):
    """What every trained method sets; TRL's and transformers' trainers read it."""

    learning_rate: Positive
    num_train_epochs: Positive
    batch_size: Count  # completions' pairs (or KTO rows) per device and step
    gradient_accumulation_steps: Count
    optimizer: Literal["adamw_torch", "rmsprop"]
    lr_scheduler_type: Literal["constant", "linear", "cosine"]
    warmup_ratio: Probability
    weight_decay: float = Field(ge=0)
    max_grad_norm: Positive


class NoMethod(Settings):
    """The start model as it is, judged like the others."""

    name: Literal["none"]


class Dpo(Training):
    name: Literal["dpo"]
    beta: Positive


class Ipo(Training):
    name: Literal["ipo"]
    beta: Positive  # the paper's tau


class Kto(Training):
    name: Literal["kto"]
    beta: Positive
    desirable_weight: Positive
    undesirable_weight: Positive

    @model_validator(mode="after")
    def _kl_needs_neighbours(self) -> Kto:
        if self.batch_size < 2:
            raise ValueError("KTO estimates its KL term from the rows of a batch: batch_size must be at least 2")
        return self


# Judges and engines --------------------------------------------------------------------------------------------------


class Decoding(Settings):
    temperature: float = Field(ge=0)  # 0 is greedy
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: Count


class PreferenceJudging(Settings):
    """AlpacaEval 2.0's manner: preference in [0, 1] over a fixed reference policy, one turn."""

    n_items: Count
    temperature: Positive  # preference = sigmoid(gold difference / temperature)
    decoding: Decoding


class RatingJudging(Settings):
    """MT-Bench's manner: a rating of 1 to 10 per turn, two turns."""

    n_items: Count
    decoding: Decoding


class GoldJudge(Settings):
    """The controlled world's own truth, in both manners."""

    name: Literal["gold"]
    split: Literal["development", "evaluation"]  # choose settings on the first, report the second
    preference: PreferenceJudging
    rating: RatingJudging


class NoJudge(Settings):
    """Completions are written and measured, nobody judges them."""

    name: Literal["none"]
    n_items: Count
    decoding: Decoding


class Engine(Settings):
    name: Literal["transformers"]
    batch_size: Count  # may change a number (padding), so it is keyed


# One point of the grid -----------------------------------------------------------------------------------------------


class Cell(Settings):
    model: WorldModel | LocalModel = Field(discriminator="kind")
    method: NoMethod | Dpo | Ipo | Kto = Field(discriminator="name")
    data: WorldData | LocalData = Field(discriminator="kind")
    world: World | None
    judge: GoldJudge | NoJudge = Field(discriminator="name")
    engine: Engine
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> Cell:
        if self.data.kind == "world" and self.world is None:
            raise ValueError("data=world needs the world section that its file brings")
        if self.model.kind == "world" and self.data.kind != "world":
            raise ValueError(f"model={self.model.name} knows only the controlled world's words: it needs data=world, got data={self.data.name}; take model=local model.path=DIR")
        if self.judge.name == "gold" and self.data.kind != "world":
            raise ValueError(f"judge=gold knows the truth of the controlled world only: it needs data=world, got data={self.data.name}; take judge=none")
        return self


# How a command runs --------------------------------------------------------------------------------------------------


class Do(Settings):
    name: Literal["run", "plan", "report", "status"]


class WandbTracker(Settings):
    name: Literal["wandb"]
    project: str = Field(min_length=1)
    entity: str | None
    mode: Literal["auto", "online", "offline"]  # auto: online when a key is configured
    timeout_s: Positive  # the longest that the tracker may hold up a sweep


class NoTracker(Settings):
    name: Literal["none"]


class LocalLauncher(Settings):
    """Long-lived worker processes on this machine."""

    name: Literal["local"]
    workers: Annotated[int, Field(ge=1)] | None  # None: one a core
    threads: Count  # a worker's; recorded, not keyed
    stage_timeout_s: Positive
    retries: int = Field(ge=0)  # of a stage whose worker died


class Session(Settings):
    do: Do
    tracker: WandbTracker | NoTracker = Field(discriminator="name")
    launcher: LocalLauncher
    results: str | None

    @property
    def results_dir(self) -> Path:
        return Path(self.results or os.environ.get("BENCH_RESULTS") or "results").absolute()
