"""The settings record of each kind of stage.

A record holds every setting that can change its stage's numbers, because the key hashes it. It holds no
paths, names or devices; the few fields that cannot change a number are marked `UNKEYED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from bench.config import (
    Adapter,
    Asking,
    AsList,
    Checkpointing,
    Count,
    Decoding,
    Form,
    Fraction,
    GoldWeights,
    JudgePrompt,
    Loading,
    Overlap,
    Patterns,
    Positive,
    Pretraining,
    Probability,
    Reading,
    RefinedDpo,
    RewardModel,
    Serving,
    Settings,
    SftEpochs,
    SftTraining,
    Trained,
    Unwritable,
    WorldAnnotator,
    Writer,
)
from bench.store.keys import Input, Stage
from bench.store.store import LaterField, Unkeyed

# Raise a kind's version when the same settings give other numbers: a golden digest in tests/golden/ changes.
VERSIONS = {
    "data": 1, "sft": 3, "logps": 2, "sample": 2, "label": 1, "train": 4, "generate": 2, "judge": 2, "score": 4, "audit": 3, "tasks": 1,
}  # fmt: skip

SELF_JUDGE_READING = 2  # Raise it when bench/judges/self_judge.py reads a reply in another way.
# Input role of a model folder: its tokenizer and chat template decide which rows a data stage keeps.
TOKENIZER = "tokenizer"

LATER, UNKEYED = LaterField(), Unkeyed()
Offset = Annotated[int, Field(ge=0)]  # number of rows that are skipped first

Dtype = Literal["float32", "bfloat16"]
Need = Literal["cpu", "gpu", "network"]
Split = Literal["train", "heldout", "kl", "development", "evaluation"]


class TaskFamily(Settings):
    """The controlled world's tasks that prompts are drawn from: categories and numbers of constraints."""

    categories: Annotated[tuple[str, ...], AsList]
    constraint_counts: Annotated[tuple[Probability, ...], AsList]


class CorpusData(Settings):
    """Plain text of the controlled world, to pretrain a base model on."""

    source: Literal["corpus"] = "corpus"
    family: TaskFamily
    n: Count
    seed: int


class DemonstrationData(Settings):
    """Supervised rows of the controlled world: prompts with completions by a simulated writer."""

    source: Literal["demonstrations"] = "demonstrations"
    family: TaskFamily
    writer: Writer
    n: Count
    seed: int


class PromptData(Settings):
    """Prompts of the controlled world as items.

    With a `reference` writer, its completions are the items' baselines.
    """

    source: Literal["prompts"] = "prompts"
    family: TaskFamily
    split: Split
    n: Count
    n_turns: Literal[1, 2]
    reference: Writer | None
    seed: int


class WrittenData(Settings):
    """Completions by a simulated writer, `draws` of each prompt. No trained model wrote them."""

    source: Literal["written"] = "written"
    writer: Writer
    draws: Count
    seed: int


class ChosenData(Settings):
    """Items with the annotator's choice of two completions as the baseline (the first one of a tie)."""

    source: Literal["chosen"] = "chosen"


class OpponentData(Settings):
    """Items with the completions of another policy as the baseline."""

    source: Literal["opponent"] = "opponent"


class PairData(Settings):
    """Preference rows from labelled samples.

    Ties are dropped. A smaller `fraction` is a subset of a larger one with the same seed. Each row's
    mismatched completion is fixed by the seed.
    """

    source: Literal["pairs"] = "pairs"
    form: Form
    fraction: Probability  # At 0 there are held-out rows only.
    seed: int
    desirable_fraction: Annotated[Fraction, LATER] = 1.0
    undesirable_fraction: Annotated[Fraction, LATER] = 1.0


class NewPromptData(Settings):
    """New training prompts of the controlled world: `n`, after the first `after` of the same seed."""

    source: Literal["new_prompts"] = "new_prompts"
    family: TaskFamily
    after: Offset
    n: Count
    seed: int


class DemonstratedData(Settings):
    """First turns of the start model's demonstrations as items: `n`, after the first `after`.

    The demonstrated completion is the item's baseline.
    """

    source: Literal["demonstrated"] = "demonstrated"
    family: TaskFamily
    writer: Writer
    after: Offset
    n: Count
    seed: int


class FilePromptData(Settings):
    """Different prompts of the user's file as items: `n`, after the first `after`.

    With an input `conversations`, first turns of these, in the order that `seed` draws. With `answers`, the
    completion that comes with a prompt is the item's baseline.
    """

    source: Literal["file_prompts"] = "file_prompts"
    after: Offset
    n: Count
    answers: bool
    max_length: Annotated[Count | None, LATER] = None  # Used with an input `tokenizer`, as in LocalPairData.
    seed: Annotated[int | None, LATER] = None  # Of the order; None for a file, which has an order.


class SupervisedData(Settings):
    """Supervised rows of the user's file: prompts with completions, or first turns of conversations.

    Their prompts are items too.
    """

    source: Literal["supervised"] = "supervised"
    max_length: Annotated[Count | None, LATER] = None  # Used with an input `tokenizer`, as in LocalPairData.


class DrawnData(Settings):
    """Samples as items for a judge.

    `each`: one item per sample. `pairs`: one item per two samples of a prompt; the second is the baseline.
    """

    source: Literal["drawn"] = "drawn"
    form: Literal["each", "pairs"]


class LoopPairData(Settings):
    """Training pairs of one iteration of a loop.

    They come from all label inputs and from an earlier data stage's train rows. Ties are dropped.
    """

    source: Literal["loop_pairs"] = "loop_pairs"
    seed: int
    max_length: Annotated[Count | None, LATER] = None  # Used with an input `tokenizer`, as in LocalPairData.


class DatasetRows(Settings):
    """Rows of a public dataset: its files, its reader, and the sizes of the splits."""

    reading: Reading = Field(discriminator="reader")
    version: int  # of the reader: raised when it reads the same files in another way
    train_files: Patterns
    heldout_files: Patterns
    n_heldout: Count | None
    form: Form | None


class MixedRows(Settings):
    """Rows of one source of a mixture, with its weight and cap."""

    rows: DatasetRows
    weight: Positive | None
    cap: Count | None


class RankedData(Settings):
    """Pairs of a split as rankings, and their chosen completions as supervised rows.

    The prompt is the item. Its two draws are the chosen completion (true reward 1) and the rejected one (0).
    `whole`: pairs of a prompt that make one order of its completions are one ranking, with rewards from 1 to 0.
    """

    source: Literal["ranked"] = "ranked"
    split: Literal["train", "heldout"]
    whole: Annotated[bool, LATER] = False


class JudgeQuestionData(Settings):
    """Questions about the input's completions, as items for a model that judges by writing."""

    source: Literal["judge_questions"] = "judge_questions"
    prompt: JudgePrompt


class ChoiceData(Settings):
    """Pairwise questions about the input's completions, each with its two possible replies as draws 0 and 1.

    `answered`: the completions have rewards, and supervised conversations with the right reply are made too.
    """

    source: Literal["choices"] = "choices"
    answered: bool
    max_length: Count  # Questions that are longer than it for the input `tokenizer` are left out.


class TrueEvaluationData(Settings):
    """Supervised rows: questions about completions, with judgements made from the world's true rewards.

    The rows are at most `n`, in random order, from a nested `fraction` of the items.
    """

    source: Literal["true_evaluations"] = "true_evaluations"
    prompt: JudgePrompt
    gold: GoldWeights
    fraction: Fraction
    n: Count
    seed: int


class KeptEvaluationData(Settings):
    """Supervised rows: a model's own judgements that agree with the ranking.

    Rows with the most frequent judgement are thinned out.
    """

    source: Literal["kept_evaluations"] = "kept_evaluations"
    prompt: JudgePrompt
    n: Count
    seed: int
    reading: Annotated[int, LATER] = 1  # version of how a judgement is read (SELF_JUDGE_READING)


class PromptRequestData(Settings):
    """Requests to write a new prompt.

    Each request shows examples: prompts of the rankings, and prompts that the model wrote earlier.
    """

    source: Literal["prompt_requests"] = "prompt_requests"
    n: Count
    n_known: Count
    n_written: Count
    seed: int


class WrittenPromptData(Settings):
    """Prompts that a model wrote, at most `n`. A prompt that is too similar to a known one is dropped."""

    source: Literal["written_prompts"] = "written_prompts"
    n: Count
    similarity: Fraction


class LocalPairData(Settings):
    """Preference rows from the user's file or of a public dataset, split into train and held-out by prompt.

    With an input `items`, train rows with the same prompt as an item are reported, dropped or refused
    (`overlap`). With an input `tokenizer` (a model folder), rows are dropped that teach nothing within
    `max_length` tokens (bench/readers/learnable.py). Where `max_length` is None, the limit is the
    model's number of positions.
    """

    source: Literal["local"] = "local"
    fraction: Probability  # At 0 there are held-out rows only.
    heldout_fraction: Probability
    seed: int
    desirable_fraction: Annotated[Fraction, LATER] = 1.0
    undesirable_fraction: Annotated[Fraction, LATER] = 1.0
    dataset: Annotated[DatasetRows | None, LATER] = None
    # Sources of a mixture by label, in place of `dataset`, and the form of all rows.
    sources: Annotated[dict[str, MixedRows], LATER] = {}
    mixed_form: Annotated[Form | None, LATER] = None
    overlap: Annotated[Overlap, LATER] = "report"
    max_length: Annotated[Count | None, LATER] = None
    # With a `tokenizer`: rows that its chat template cannot write.
    unwritable: Annotated[Unwritable, LATER] = "refuse"
    version: Annotated[int, LATER] = 1  # of the rule for dropping rows; 2 also drops pairs with equal tokens


class NextPromptData(Settings):
    """Train prompts of a public dataset without labels: `n`, after the labelled ones and the first `after`."""

    source: Literal["next_prompts"] = "next_prompts"
    pairs: LocalPairData  # the labelled rows
    after: Offset
    n: Count


class ConversationData(Settings):
    """Conversations of a dataset for supervised fine-tuning: a nested subset, drawn by the seed."""

    source: Literal["conversations"] = "conversations"
    version: int
    files: Patterns
    fraction: Fraction
    seed: int


class ChosenRows(Settings):
    """Chosen and desirable completions of preference rows for supervised fine-tuning, each text once."""

    source: Literal["chosen_rows"] = "chosen_rows"


class OverlapData(Settings):
    """A report on train rows with the same prompt as an item of the judge. No row is left out."""

    source: Literal["overlap"] = "overlap"


class LocalPromptData(Settings):
    """Held-out prompts of the user's file, as items; with `answers`, their chosen or desirable completion is the
    baseline."""

    source: Literal["local_prompts"] = "local_prompts"
    n: Count
    answers: Annotated[bool, LATER] = False


class JudgeItemData(Settings):
    """Items of a benchmark's file.

    AlpacaEval: the list with its baseline. FastChat: questions, references and a model's completions.
    Arena-Hard: questions and a model's completions.
    """

    source: Literal["judge_items"] = "judge_items"
    form: Literal["alpaca_eval", "mt_bench", "arena_hard"]
    n: Count
    n_turns: Literal[1, 2]


class CanaryData(Settings):
    """Canaries as items: completions that must lose against the baselines of the first n items."""

    source: Literal["canaries"] = "canaries"
    n: Count
    # Adds honest completions, named `honest`, that must be rated higher.
    honest: Annotated[bool, LATER] = False


class RecordedData(Settings):
    """Items, completions and verdicts of a judge, from files of AlpacaEval or FastChat: a seeded sample."""

    source: Literal["recorded"] = "recorded"
    n: Count
    seed: int


class BaseSettings(Settings):
    """Pretraining of a Llama-architecture model from random weights."""

    stage: Literal["base"] = "base"
    hidden_size: Count
    num_layers: Count
    num_heads: Count
    intermediate_size: Count
    max_length: Count
    pretraining: Pretraining


class SftSettings(Settings):
    """Supervised fine-tuning of a model of the controlled world, in float32 and on one device."""

    stage: Literal["start"] = "start"
    training: SftTraining
    max_length: Count
    seed: int


class ConversationSft(Settings):
    """Supervised fine-tuning of a pretrained model: on conversations, with loss on every assistant turn, or on
    demonstrations and evaluations, with loss on their completions."""

    stage: Literal["conversations"] = "conversations"
    training: SftEpochs | SftTraining
    max_length: Count
    dtype: Dtype
    seed: int
    gradient_checkpointing: Annotated[Checkpointing, UNKEYED] = "auto"


class SampleSettings(Settings):
    """Samples that a policy draws: `draws` completions of each prompt."""

    engine: Literal["transformers", "vllm"]
    decoding: Decoding
    draws: Count  # completions of each prompt
    batch_size: Count
    dtype: Dtype
    seed: int
    serving: Annotated[Serving | None, LATER] = None  # settings of vLLM
    loading: Annotated[Loading, LATER] = Loading()


class GoldLabels(Settings):
    """Labels by the world's annotator: the gold judge with the given bias and noise."""

    labeller: Literal["gold"] = "gold"
    gold: GoldWeights
    annotator: WorldAnnotator
    seed: int


class RankLabels(Settings):
    """Labels that set the best against the worst of a prompt's samples.

    They are ranked by a score, or by a judge's verdicts on them (the input `verdicts`). With `human`, the
    item's baseline is set against the sample.
    """

    labeller: Literal["reward_model", "implicit", "judge", "tuned_judge", "random", "shorter", "human"]
    beta: Positive | None  # An implicit reward is beta times the log-ratio.
    truth: GoldWeights | None  # The counts compare labels with it. None where it is unknown.
    seed: int
    length_penalty: Annotated[float, Field(ge=0), LATER] = 0.0  # taken off an implicit reward for each token


class SelfLabels(Settings):
    """Labels by the policy's own judgements: the best against the worst of a prompt's samples.

    A judgement is the policy's reply to a judge question.
    """

    labeller: Literal["self"] = "self"
    prompt: JudgePrompt
    truth: GoldWeights | None  # The counts compare labels with it.
    reading: Annotated[int, LATER] = 1  # version of how a judgement is read (SELF_JUDGE_READING)


class LogpsSettings(Settings):
    """Log-probabilities of preference rows or of completions.

    `rows`: preference rows of the named splits (with `mismatched`, their mismatched completions too), or all
    draws of a policy's completions.
    """

    rows: Literal["preferences", "completions"]
    splits: Annotated[tuple[str, ...], AsList]
    mismatched: bool
    max_length: Count | None  # None: the drawn tokens are scored. Otherwise the text, as in training.
    batch_size: Count
    dtype: Dtype
    control: Annotated[str | None, LATER] = None  # Control token between prompt and completion (CSFT).
    engine: Annotated[Literal["transformers", "vllm"], LATER] = "transformers"
    serving: Annotated[Serving | None, LATER] = None
    loading: Annotated[Loading, LATER] = Loading()


class RewardScoreSettings(Settings):
    """Rewards by a reward model: of preference rows of the named splits, or of completions (all draws)."""

    splits: Annotated[tuple[str, ...], AsList]
    max_length: Count
    batch_size: Count
    dtype: Dtype
    rows: Annotated[Literal["preferences", "completions"], LATER] = "preferences"


class TrainSettings(Settings):
    """Training of a policy with a preference method."""

    method: Trained | RefinedDpo = Field(discriminator="name")
    max_length: Count
    dtype: Dtype
    seed: int
    adapter: Annotated[Adapter | None, LATER] = None  # Only it is trained and stored; the model stays frozen.
    loading: Annotated[Loading, LATER] = Loading()
    gradient_checkpointing: Annotated[Checkpointing, UNKEYED] = "auto"


class RewardModelSettings(Settings):
    """Training of a reward model on pairs: the start model with a new head of one output."""

    method: RewardModel
    max_length: Count
    dtype: Dtype
    seed: int
    gradient_checkpointing: Annotated[Checkpointing, UNKEYED] = "auto"


class GenerateSettings(Settings):
    """Completions of the evaluation's items by a policy."""

    engine: Literal["transformers", "vllm"]
    decoding: Decoding
    batch_size: Count
    dtype: Dtype
    seed: int
    best_of: Annotated[Count, LATER] = 1  # Samples of each turn; the input `reward_model` chooses one.
    control: Annotated[str | None, LATER] = None  # Control token after every prompt (CSFT).
    # By category; they override decoding's temperature.
    temperatures: Annotated[Mapping[str, float], LATER] = {}
    serving: Annotated[Serving | None, LATER] = None
    loading: Annotated[Loading, LATER] = Loading()


class WrittenCompletions(Settings):
    """Completions from the user's file. `alone`: the cell needs no other items from that file."""

    source: Literal["file"] = "file"
    alone: Annotated[bool, Unkeyed()] = False


class GoldPreferenceSettings(Settings):
    """Preferences by the controlled world's gold judge."""

    judge: Literal["gold_preference"] = "gold_preference"
    gold: GoldWeights
    temperature: Positive


class GoldRatingSettings(Settings):
    """Ratings by the controlled world's gold judge."""

    judge: Literal["gold_rating"] = "gold_rating"
    gold: GoldWeights


class LanguageJudgeSettings(Settings):
    """Verdicts by a language model.

    Its prompts, its rules for reading replies and a local model's folder are inputs, keyed by their content.
    """

    manner: Literal["alpaca_eval", "mt_bench", "arena_hard"]
    # alpaca_eval: official (one order an item) or both. arena_hard: both. mt_bench: single or pairwise.
    mode: Literal["official", "both", "single", "pairwise"]
    model: str | None  # The name in the request. None where a model folder is an input.
    provider: str
    dtype: Dtype
    server_args: Annotated[tuple[str, ...], AsList]
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    top_logprobs: int | None
    request: str  # further request fields, as canonical JSON
    parser: str  # version of the reply parser
    repeat: Annotated[int, LATER] = 0  # Number of the repetition: 1 judges the same items a second time.
    annotator: Annotated[str, UNKEYED] = ""  # Its name. Its prompt and reading rules are an input.
    asking: Annotated[Asking | None, UNKEYED] = None


class RewardJudgeSettings(Settings):
    """Preferences by a reward model, the input `model`."""

    judge: Literal["reward_model"] = "reward_model"
    batch_size: Count
    dtype: Dtype


class PairRankerSettings(Settings):
    """Preferences by a pair ranker, the input `model`. It reads both completions at once, in both orders."""

    judge: Literal["pair_ranker"] = "pair_ranker"
    batch_size: Count
    dtype: Dtype
    template: str


MEMBER = "member_"  # begins the role of a jury's member, whose label follows


def member_role(label: str) -> str:
    return f"{MEMBER}{label}_verdicts"


def member_label(role: str) -> str | None:
    """The member that a role is of; None where it is of none."""
    return role.removeprefix(MEMBER).removesuffix("_verdicts") if role.startswith(MEMBER) else None


class JurySettings(Settings):
    """The median of other judges' verdicts on the same completions. Those verdicts are the inputs."""

    judge: Literal["jury"] = "jury"


class TaskSettings(Settings):
    """Tasks of lm-evaluation-harness for the input `model`. The input `tasks` holds the user's own tasks."""

    tasks: Annotated[tuple[str, ...], AsList]
    limit: Count | None
    chat_template: bool
    batch_size: Count
    dtype: Dtype
    loading: Loading


class ScoreSettings(Settings):
    """A cell's metrics from its verdicts, log-probabilities and completions."""

    # It turns held-out log-ratios into rewards (see reward_scale). None where the policy is the start model.
    beta: Positive | None
    bootstrap_resamples: Count
    bootstrap_seed: int
    best_of: Annotated[Count, LATER] = 1


class SuiteScoreSettings(Settings):
    """A cell's metrics of several evaluations, from their score stages. Those are the inputs, by label."""

    score: Literal["suite"] = "suite"


class AuditSettings(Settings):
    """An audit of a judge, computed from its verdicts."""

    n_labelled: Count
    manner: Annotated[Literal["preference", "rating"], LATER] = "preference"


class SelfJudgeSettings(Settings):
    """Accuracy on held-out rankings of a model that judges by writing.

    Where `truth` is None, the rewards of the rankings are the truth.
    """

    prompt: JudgePrompt
    truth: GoldWeights | None
    reading: Annotated[int, LATER] = 1  # version of how a judgement is read (SELF_JUDGE_READING)


SETTINGS: dict[str, tuple[type[Settings], ...]] = {
    "data": (
        CorpusData,
        DemonstrationData,
        PromptData,
        WrittenData,
        ChosenData,
        OpponentData,
        PairData,
        NewPromptData,
        DemonstratedData,
        FilePromptData,
        SupervisedData,
        DrawnData,
        LoopPairData,
        RankedData,
        JudgeQuestionData,
        ChoiceData,
        TrueEvaluationData,
        KeptEvaluationData,
        PromptRequestData,
        WrittenPromptData,
        LocalPairData,
        NextPromptData,
        LocalPromptData,
        ConversationData,
        ChosenRows,
        OverlapData,
        JudgeItemData,
        CanaryData,
        RecordedData,
    ),
    "sft": (BaseSettings, SftSettings, ConversationSft),
    "sample": (SampleSettings,),
    "label": (GoldLabels, RankLabels, SelfLabels),
    "logps": (LogpsSettings, RewardScoreSettings),
    "train": (TrainSettings, RewardModelSettings),
    "generate": (GenerateSettings, WrittenCompletions),
    "judge": (
        GoldPreferenceSettings,
        GoldRatingSettings,
        LanguageJudgeSettings,
        RewardJudgeSettings,
        PairRankerSettings,
        JurySettings,
    ),
    "score": (ScoreSettings, SuiteScoreSettings),
    "audit": (AuditSettings, SelfJudgeSettings),
    "tasks": (TaskSettings,),
}

JUDGED_BY: dict[str, type[Settings]] = {
    record.model_fields["judge"].default: record
    for record in SETTINGS["judge"]
    if "judge" in record.model_fields
}


def needs(stage: Stage) -> Need:
    """The resource that a stage needs.

    `gpu`: it loads a model, and uses a GPU where there is one. `network`: it sends requests to an endpoint,
    or to a server that the command runs. `cpu`: neither.
    """
    match stage.settings:
        case LanguageJudgeSettings(asking=asking):
            return "gpu" if asking is not None and asking.server == "in_process" else "network"
        case WrittenCompletions():
            return "cpu"
        case RewardJudgeSettings():
            return "gpu"
    return "gpu" if stage.kind in ("sft", "sample", "logps", "train", "generate", "tasks") else "cpu"


def stage(kind: str, settings: Settings, inputs: Mapping[str, Input] | None = None, label: str = "") -> Stage:
    """A stage of this kind at the kind's current version. Raises TypeError for settings of another kind."""
    if not isinstance(settings, SETTINGS[kind]):
        raise TypeError(
            f"expected settings of a {kind} stage ({' or '.join(c.__name__ for c in SETTINGS[kind])}), got {type(settings).__name__}"
        )
    return Stage(kind, VERSIONS[kind], settings, dict(inputs or {}), label)
