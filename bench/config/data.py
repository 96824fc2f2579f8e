"""Where preference data come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bench.config.base import AsList, Count, Fraction, LaterField, Name, Positive, Probability, Settings
from bench.config.world import Writer


class WorldAnnotator(Settings):
    """Who labels the world's pairs: prefers by sigmoid(difference / temperature), then flips a share of labels.

    The difference is the gold difference plus `length_bias` (points per word) times the difference in words.
    """

    temperature: Positive
    length_bias: float
    flip_rate: Probability


Form = Literal["paired", "unpaired"]
Overlap = Literal["report", "drop", "refuse"]
Unwritable = Literal["refuse", "drop"]


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
    annotator: WorldAnnotator
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
    unwritable: Annotated[Unwritable, LaterField()] = "refuse"  # rows that the model's chat template cannot write


# Public datasets ------------------------------------------------------------------------------------------------------


class UltraFeedbackBinarized(Settings):
    reader: Literal["ultrafeedback_binarized"]
    ties: Literal["keep", "drop"]  # pairs whose two scores are equal: the released recipes keep them


class UltraFeedbackCleaned(Settings):
    reader: Literal["ultrafeedback_cleaned"]


class OrcaDpoPairs(Settings):
    reader: Literal["orca_dpo_pairs"]


class HhRlhf(Settings):
    reader: Literal["hh_rlhf"]


class Shp(Settings):
    """Both filters are the training rows' alone, as in HALOs."""

    reader: Literal["shp"]
    min_score_ratio: Annotated[float, Field(ge=1)]
    max_pairs: Count  # of a post


class Oasst1(Settings):
    reader: Literal["oasst1"]
    languages: Annotated[tuple[str, ...], AsList] = Field(min_length=1)


class HalosFeedback(Settings):
    reader: Literal["halos"]


class TrlRows(Settings):
    """TRL's forms, as data=local reads them."""

    reader: Literal["trl"]


class Conversations(Settings):
    """Rows of `messages` for supervised fine-tuning (ultrachat_200k, and TRL's conversational form)."""

    reader: Literal["conversations"]


Reading = UltraFeedbackBinarized | UltraFeedbackCleaned | OrcaDpoPairs | HhRlhf | Shp | Oasst1 | HalosFeedback | TrlRows
Patterns = Annotated[tuple[str, ...], AsList]  # of files, as in the hub's folder


class Published(Settings):
    """Where a public dataset comes from: the hub, at a revision that is locked at its first use there, or a copy of it."""

    hub: str | None  # owner/name
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None  # None: the one that is locked, or the newest at the first use
    path: str | None  # a copy of its folder, or one file of it
    train_files: Patterns = Field(min_length=1)


class SftEpochs(Settings):
    """Supervised fine-tuning of a pretrained model: AdamW, cosine, loss pooled over the answers' tokens of a batch, as in Zephyr."""

    learning_rate: Positive
    num_train_epochs: Positive
    batch_size: Count
    gradient_accumulation_steps: Count
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]


class DatasetData(Published):
    """Preference rows of a public dataset, read by the reader that knows its columns."""

    kind: Literal["dataset"]
    name: Name
    reading: Reading = Field(discriminator="reader")
    heldout_files: Patterns  # none, or `path` is one file: heldout_fraction of the prompts
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)]
    n_heldout: Count | None  # held-out prompts at most
    n_kl_prompts: Count
    form: Form | None  # unpaired: one of the two completions of a pair, thumbs up if it was the preferred one; None: as it is
    fraction: Probability  # of the train prompts; 0 for methods that learn from none
    desirable_fraction: Fraction
    undesirable_fraction: Fraction
    overlap: Overlap  # what becomes of train rows whose prompt is one of the judge's items
    unwritable: Annotated[Unwritable, LaterField()] = "refuse"  # rows that the model's chat template cannot write


class Sft(Published):
    """How a start model is made of a base model's folder: supervised fine-tuning on conversations, on every answer of each."""

    name: Name
    fraction: Fraction  # of the conversations
    training: SftEpochs
