"""Preference data: the controlled world's, a file of the user's, or a public dataset."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bench.config.base import (
    LABEL,
    AsList,
    Count,
    Fraction,
    LaterField,
    Name,
    Positive,
    Probability,
    Settings,
    misfit,
)
from bench.config.world import Writer


class WorldAnnotator(Settings):
    """Labels the world's pairs: prefers by sigmoid(difference / temperature), then flips a share of the
    labels.

    The difference is the gold difference plus `length_bias` (points per word) times the difference in words.
    """

    temperature: Positive
    """Temperature of the preference sigmoid, in gold points; a larger one makes noisier labels."""
    length_bias: float
    """Gold points that the annotator adds for each word by which a completion is longer."""
    flip_rate: Probability
    """Share of the labels to flip, 0 to 1."""


Form = Literal["paired", "unpaired"]
Overlap = Literal["report", "drop", "refuse"]
Unwritable = Literal["refuse", "drop"]


class Earlier(Settings):
    """Sloppy habits: demonstrations that a start model is fine-tuned on before its own, for a number of
    steps."""

    demonstrations: Writer
    """Error rates of the sloppy writer's demonstrations."""
    steps: Count
    """Optimizer steps on them."""


class WorldData(Settings):
    """The controlled world's data: demonstrations for the start model, then pairs of completions that an
    annotator labels."""

    kind: Literal["world"]
    name: Name
    demonstrations: Writer
    """Error rates of the demonstrations' writer, each a probability."""
    n_demonstrations: Count
    """Number of demonstrations for the start model."""
    earlier: Earlier | None
    """Sloppy demonstrations that the start model is fine-tuned on first, {demonstrations, steps}; null: none.
    """
    n_prompts: Count
    """Number of train prompts, each with a pair of completions."""
    n_heldout_prompts: Count
    """Number of held-out prompts, on which reward accuracy is measured."""
    n_kl_prompts: Count
    """Number of prompts on which the KL divergence from the reference is measured."""
    kl_max_new_tokens: Annotated[Count, LaterField()] = 48
    """Longest sample for KL, in tokens: a longer completion's KL is that of its beginning."""
    completions_by: Literal["sft", "writer"]
    """Writer of the pairs: the fine-tuned model (sft), or the demonstrations' writer (writer), with one set
    for every model."""
    sample_temperature: Positive
    """Sampling temperature of the pairs that the model writes; usual 0.7 to 1."""
    sample_max_new_tokens: Count
    """Longest completion that the model writes for a pair, in tokens."""
    annotator: WorldAnnotator
    """Annotator of the pairs: prefers by sigmoid((gold difference + length_bias * difference in words) /
    temperature), then flips a share of labels."""
    form: Form
    """Form of the train rows: paired, or unpaired (one of a pair's two completions, labelled True if it was
    preferred)."""
    fraction: Probability
    """Share of the labelled train rows to use, 0 to 1; a smaller share lies inside a larger one. Use 0 for a
    method that learns from no labelled row."""
    desirable_fraction: Fraction
    """Share of the desirable train rows to use, above 0 to 1, after `fraction`; unpaired rows only."""
    undesirable_fraction: Fraction
    """Share of the undesirable train rows to use, above 0 to 1, after `fraction`; unpaired rows only."""


class LocalData(Settings):
    """A preference file of the user's: JSONL or Parquet, TRL's paired or unpaired form, text or messages."""

    kind: Literal["local"]
    name: Name
    path: str
    """Path of the preference file, .jsonl or .parquet."""
    fraction: Probability
    """Share of the labelled train rows to use, 0 to 1; a smaller share lies inside a larger one. Use 0 for a
    method that learns from no labelled row."""
    desirable_fraction: Fraction
    """Share of the desirable train rows to use, above 0 to 1, after `fraction`; unpaired rows only."""
    undesirable_fraction: Fraction
    """Share of the undesirable train rows to use, above 0 to 1, after `fraction`; unpaired rows only."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the prompts to hold out, for reward accuracy and completions."""
    n_kl_prompts: Count
    """Number of prompts on which the KL divergence from the reference is measured."""
    kl_max_new_tokens: Annotated[Count, LaterField()] = 256
    """Longest sample for KL, in tokens: a longer completion's KL is that of its beginning."""
    unwritable: Annotated[Unwritable, LaterField()] = "refuse"
    """Rows that the model's chat template cannot write (a system message, turns out of order): refuse the
    file, or drop and count them."""


# Public datasets ------------------------------------------------------------------------------------------------------


class UltraFeedbackBinarized(Settings):
    reader: Literal["ultrafeedback_binarized"]
    ties: Literal["keep", "drop"]
    """Pairs of equal scores: keep them, as the released recipes do, or drop them."""


class UltraFeedbackCleaned(Settings):
    reader: Literal["ultrafeedback_cleaned"]


class OrcaDpoPairs(Settings):
    reader: Literal["orca_dpo_pairs"]


class HhRlhf(Settings):
    reader: Literal["hh_rlhf"]


class Shp(Settings):
    """Stanford Human Preferences; both filters apply to the training rows only, as in HALOs."""

    reader: Literal["shp"]
    min_score_ratio: Annotated[float, Field(ge=1)]
    """Smallest ratio of the two scores in a train pair; HALOs: 2."""
    max_pairs: Count
    """Largest number of train pairs of one post; HALOs: 5."""


class Oasst1(Settings):
    reader: Literal["oasst1"]
    languages: Annotated[tuple[str, ...], AsList] = Field(min_length=1)
    """Languages of the messages to keep, by their code (en)."""


class HalosFeedback(Settings):
    reader: Literal["halos"]


class HelpSteer3(Settings):
    reader: Literal["helpsteer3"]
    domains: Annotated[tuple[Literal["general", "stem", "code", "multilingual"], ...], AsList] = Field(
        min_length=1
    )
    """Domains of the rows to keep."""
    min_preference: Annotated[int, Field(ge=1, le=3)]
    """Smallest strength of a preference to keep, 1 (slightly better) to 3 (much better); ties are never kept."""


class PkuSafeRlhf(Settings):
    reader: Literal["pku_saferlhf"]
    chosen: Literal["better", "safer"]
    """Chosen answer of a pair: the more helpful one (better), or the safer one."""


class Nectar(Settings):
    reader: Literal["nectar"]
    pairs: Literal["best_worst", "neighbours", "all"]
    """Pairs of a ranking: the best against the worst answer (best_worst), neighbours in rank, or all."""


class ChineseDpoPairs(Settings):
    reader: Literal["chinese_dpo_pairs"]


class TrlRows(Settings):
    """TRL's forms, as data=local reads them."""

    reader: Literal["trl"]


class Conversations(Settings):
    """Rows of `messages` for supervised fine-tuning (ultrachat_200k, and TRL's conversational form)."""

    reader: Literal["conversations"]


Reading = (
    UltraFeedbackBinarized
    | UltraFeedbackCleaned
    | OrcaDpoPairs
    | HhRlhf
    | Shp
    | Oasst1
    | HalosFeedback
    | HelpSteer3
    | PkuSafeRlhf
    | Nectar
    | ChineseDpoPairs
    | TrlRows
)
Patterns = Annotated[tuple[str, ...], AsList]  # Patterns of file names in the hub's folder.


class Published(Settings):
    """Source of a public dataset: the hub, at a revision locked at its first use, or a copy on disk."""

    hub: str | None
    """Repository on the Hugging Face hub, OWNER/NAME; null: `path` is read."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    """Commit of the hub's repository, 40 hexadecimal digits; null: the locked one (results/revisions.json),
    else the newest, which is then locked."""
    path: str | None
    """Path of a copy of the dataset's folder, or of one of its files; null: it comes from the hub."""
    train_files: Patterns = Field(min_length=1)
    """Patterns of the training files in the dataset's folder."""


class SftEpochs(Settings):
    """Supervised fine-tuning of a pretrained model: AdamW, cosine; the loss is a mean over the assistant
    tokens of a batch, as in Zephyr."""

    learning_rate: Positive
    """Peak learning rate; usual 2e-5 for models of 7B."""
    num_train_epochs: Positive
    """Passes over the conversations; usual 1 to 3."""
    batch_size: Count
    """Conversations of one forward and backward pass."""
    gradient_accumulation_steps: Count
    """Forward and backward passes of one optimizer step; Zephyr has 128 conversations a step."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps in which the learning rate rises to its peak; usual 0.1."""


class PublicRows(Settings):
    """Settings that a public dataset and a mixture of datasets share."""

    name: Name
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the prompts to hold out where there are no held-out files."""
    n_heldout: Count | None
    """Largest number of held-out prompts, of each source in a mixture; null: all."""
    n_kl_prompts: Count
    """Number of prompts on which the KL divergence from the reference is measured."""
    kl_max_new_tokens: Annotated[Count, LaterField()] = 256
    """Longest sample for KL, in tokens: a longer completion's KL is that of its beginning."""
    form: Form | None
    """Form of the train rows: paired, or unpaired (one of a pair's two completions, labelled True if it was
    preferred); null: the dataset's own."""
    fraction: Probability
    """Share of the train prompts that are labelled, 0 to 1; a smaller share lies inside a larger one. Loops
    take their prompts from the others. Use 0 for a method that learns from no labelled row."""
    desirable_fraction: Fraction
    """Share of the desirable train rows to use, above 0 to 1, after `fraction`; unpaired rows only."""
    undesirable_fraction: Fraction
    """Share of the undesirable train rows to use, above 0 to 1, after `fraction`; unpaired rows only."""
    overlap: Overlap
    """Train rows whose prompt is also one of the judge's items: report their number, drop them, or refuse.
    With drop and refuse, training depends on the items."""
    unwritable: Annotated[Unwritable, LaterField()] = "refuse"
    """Rows that the model's chat template cannot write (a system message, turns out of order): refuse the
    file, or drop and count them."""


class ReadFrom(Published):
    """Reader of a public dataset, and its files."""

    reading: Reading = Field(discriminator="reader")
    """Reader of the dataset's columns, with its filters."""
    heldout_files: Patterns
    """Patterns of the held-out files; []: heldout_fraction of the prompts is held out. So it is where
    data.path is one file."""


class DatasetData(PublicRows, ReadFrom):
    """Preference rows of a public dataset, read by a reader that knows its columns."""

    kind: Literal["dataset"]


class MixtureSource(ReadFrom):
    """One source of a mixture: a dataset's reader and files, with its weight and cap."""

    name: Name
    weight: Positive | None
    """Share of the mixture's train rows, relative to the other weights; null in every source: each gives all its rows.
    With 1 and 3, a quarter and three quarters of the rows. The source with the fewest rows for its weight gives all of them
    and so sets the size; no row is repeated."""
    cap: Count | None
    """Largest number of train rows that the source gives, drawn by the seed before the weights apply; null: all."""


class MixtureData(PublicRows):
    """Preference rows of several datasets in one training set."""

    kind: Literal["mixture"]
    sources: Annotated[dict[str, MixtureSource], Field(min_length=1)]
    """Sources by label (letters and digits): `data`, a file of this folder, with a `weight` or a `cap`, and the settings to
    change. Shares, forms and held-out sizes are the mixture's."""

    @model_validator(mode="after")
    def _are_weighted_alike(self) -> MixtureData:
        problems = [
            ("sources", f"a source's label must be letters and digits, got {label}")
            for label in self.sources
            if not LABEL.fullmatch(label)
        ]
        read: dict[str, str] = {}
        for label, source in self.sources.items():
            first = read.setdefault(source.model_dump_json(exclude={"weight", "cap"}), label)
            if first != label:
                text = f"{first} and {label} read the same rows, which would be copies of each other: leave {label} out"
                problems.append((f"sources.{label}", text))
        without = [label for label, source in self.sources.items() if source.weight is None]
        if 0 < len(without) < len(self.sources):
            text = f"data.sources.{without[0]}.weight must be set where another source has a weight: weigh all sources, or none"
            problems.append((f"sources.{without[0]}.weight", text))
        if problems:
            raise misfit(*problems)
        return self

    def __hash__(self) -> int:  # dict fields have no hash
        return hash(self.model_dump_json())


class Sft(Published):
    """Supervised fine-tuning that makes a start model from a base model's folder: on conversations, on every
    assistant turn."""

    name: Name
    source: Literal["conversations"]
    """Source of the rows: conversations of a public dataset, or the chosen completions of the cell's data."""
    fraction: Fraction
    """Share of the conversations to use, above 0 to 1; a smaller share lies inside a larger one."""
    training: SftEpochs | None
    """Settings of the fine-tuning; the defaults are Zephyr's. null: the model has already learned these
    conversations, and they are only there for method.prompts=sft."""


class ChosenSft(Settings):
    """Supervised fine-tuning on the chosen (or desirable) completions of all train rows of the cell's data,
    whatever data.fraction, as the start models of HALOs and of DPO's paper."""

    name: Name
    source: Literal["chosen"]
    """Source of the rows: conversations of a public dataset, or the chosen completions of the cell's data."""
    training: SftEpochs
    """Settings of the fine-tuning; the defaults are Archangel's, but for its optimizer (RMSprop), its constant
    rate and its clipping at 10."""
