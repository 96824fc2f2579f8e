"""Where preference data come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bench.config.base import Count, Fraction, Name, Positive, Probability, Settings
from bench.config.world import Writer


class Annotator(Settings):
    """Who labels the world's pairs: prefers by sigmoid(difference / temperature), then flips a share of labels.

    The difference is the gold difference plus `length_bias` (points per word) times the difference in words.
    """

    temperature: Positive
    length_bias: float
    flip_rate: Probability


Form = Literal["paired", "unpaired"]


class Earlier(Settings):
    """Worse habits: what a start model was fine-tuned on before its demonstrations, for so many steps."""

    demonstrations: Writer
    steps: Count


class WorldData(Settings):
    """Demonstrations for the start model, then pairs of completions that an annotator labels."""

    kind: Literal["world"]
    name: Name
    demonstrations: Writer
    n_demonstrations: Count
    earlier: Earlier | None
    n_prompts: Count
    n_heldout_prompts: Count
    n_kl_prompts: Count
    completions_by: Literal["sft", "writer"]  # who wrote the pairs: the fine-tuned model, or the demonstrations' writer (one set for all)
    sample_temperature: Positive
    sample_max_new_tokens: Count
    annotator: Annotator
    form: Form  # unpaired: one of the two completions of a prompt, thumbs up if it was the preferred one
    fraction: Probability  # of the labelled train rows; 0 for methods that learn from none
    desirable_fraction: Fraction  # of the desirable train rows, after `fraction`; unpaired rows only
    undesirable_fraction: Fraction


class LocalData(Settings):
    """A preference file of the user: JSONL or Parquet in TRL's paired or unpaired form, text or messages."""

    kind: Literal["local"]
    name: Name
    path: str
    fraction: Probability  # of the labelled train rows; 0 for methods that learn from none
    desirable_fraction: Fraction  # of the desirable train rows, after `fraction`; unpaired rows only
    undesirable_fraction: Fraction
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)]
    n_kl_prompts: Count
