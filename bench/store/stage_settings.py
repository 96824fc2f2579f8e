"""What a stage of each kind is set by: one record a kind of work.

A settings record holds whatever can change its stage's numbers and nothing else: no paths, names or devices.
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

# Raise a kind's version when the same settings come to mean other numbers; its golden digest in tests/golden/ says when.
VERSIONS = {
    "data": 1, "sft": 1, "logps": 1, "sample": 1, "label": 1, "train": 3, "generate": 1, "judge": 2, "score": 3, "audit": 2, "tasks": 1,
}  # fmt: skip

SELF_JUDGE_READING = 2  # raise it when bench/judges/self_judge.py comes to read a reply in another way
TOKENIZER = "tokenizer"  # the role of a model's folder whose tokenizer and chat template say which rows a data stage keeps

LATER, UNKEYED = LaterField(), Unkeyed()
Offset = Annotated[int, Field(ge=0)]  # so many are left out first

Dtype = Literal["float32", "bfloat16"]
Need = Literal["cpu", "gpu", "network"]
Split = Literal["train", "heldout", "kl", "development", "evaluation"]


class TaskFamily(Settings):
    """Which of the world's tasks are asked."""

    categories: Annotated[tuple[str, ...], AsList]
    constraint_counts: Annotated[tuple[Probability, ...], AsList]


class CorpusData(Settings):
    source: Literal["corpus"] = "corpus"
    family: TaskFamily
    n: Count
    seed: int


class DemonstrationData(Settings):
    source: Literal["demonstrations"] = "demonstrations"
    family: TaskFamily
    writer: Writer
    n: Count
    seed: int


class PromptData(Settings):
    """Items to answer; with a `reference` writer each brings that opponent's completions as its baseline."""

    source: Literal["prompts"] = "prompts"
    family: TaskFamily
    split: Split
    n: Count
    n_turns: Literal[1, 2]
    reference: Writer | None
    seed: int


class WrittenData(Settings):
    """Completions of the prompts by a simulated writer, `draws` of each: pairs that no model of ours wrote."""

    source: Literal["written"] = "written"
    writer: Writer
    draws: Count
    seed: int


class ChosenData(Settings):
    """Items whose baseline is what the annotator chose of two completions (of a tie, the first)."""

    source: Literal["chosen"] = "chosen"


class PairData(Settings):
    """Preference rows from labelled samples: a nested seeded subset, ties dropped, mismatched partners fixed."""

    source: Literal["pairs"] = "pairs"
    form: Form
    fraction: Probability  # 0: held-out rows alone
    seed: int
    desirable_fraction: Annotated[Fraction, LATER] = 1.0
    undesirable_fraction: Annotated[Fraction, LATER] = 1.0


class NewPromptData(Settings):
    """Training prompts that nobody has seen: `n` of them, after the first `after` of the same seed."""

    source: Literal["new_prompts"] = "new_prompts"
    family: TaskFamily
    after: Offset
    n: Count
    seed: int


class DemonstratedData(Settings):
    """First turns of the start model's demonstrations, `n` of them after the first `after`; each brings its answer as the baseline."""

    source: Literal["demonstrated"] = "demonstrated"
    family: TaskFamily
    writer: Writer
    after: Offset
    n: Count
    seed: int


class FilePromptData(Settings):
    """Prompts of the user's file, `n` of the different ones after the first `after`; `answers`: each brings its answer as the baseline."""

    source: Literal["file_prompts"] = "file_prompts"
    after: Offset
    n: Count
    answers: bool
    max_length: Annotated[Count | None, LATER] = None  # with an input `tokenizer`: as LocalPairData's


class DrawnData(Settings):
    """Samples as items that a judge takes: each by itself (`each`), or every two of a prompt, the second as the baseline (`pairs`)."""

    source: Literal["drawn"] = "drawn"
    form: Literal["each", "pairs"]


class LoopPairData(Settings):
    """Train pairs of one iteration of a loop: of every input that holds labels, and of an earlier data stage's train rows. Ties dropped."""

    source: Literal["loop_pairs"] = "loop_pairs"
    seed: int
    max_length: Annotated[Count | None, LATER] = None  # with an input `tokenizer`: as LocalPairData's


class DatasetRows(Settings):
    """Which rows of a public dataset are read, and how."""

    reading: Reading = Field(discriminator="reader")
    version: int  # of the reader's meaning
    train_files: Patterns
    heldout_files: Patterns
    n_heldout: Count | None
    form: Form | None


class RankedData(Settings):
    """Pairs of a split as rankings: prompts as items, chosen and rejected completion as its two draws, rewards 1 and 0 as the truth; the
    chosen ones also as supervised rows."""

    source: Literal["ranked"] = "ranked"
    split: Literal["train", "heldout"]


class JudgeQuestionData(Settings):
    """What a model that judges by writing is asked about the input's completions, as items."""

    source: Literal["judge_questions"] = "judge_questions"
    prompt: JudgePrompt


class TrueEvaluationData(Settings):
    """Supervised rows: questions about completions, answered by who knows the world's truth, in random order, `n` at most. Of a nested
    share of the items."""

    source: Literal["true_evaluations"] = "true_evaluations"
    prompt: JudgePrompt
    gold: GoldWeights
    fraction: Fraction
    n: Count
    seed: int


class KeptEvaluationData(Settings):
    """Supervised rows: a model's own judgements of rankings, where they agree with the ranking; the most frequent one is thinned."""

    source: Literal["kept_evaluations"] = "kept_evaluations"
    prompt: JudgePrompt
    n: Count
    seed: int
    reading: Annotated[int, LATER] = 1  # version of how a judgement is read (SELF_JUDGE_READING)


class PromptRequestData(Settings):
    """Requests for a new prompt, after examples of the rankings' prompts and of those that were written before."""

    source: Literal["prompt_requests"] = "prompt_requests"
    n: Count
    n_known: Count
    n_written: Count
    seed: int


class WrittenPromptData(Settings):
    """Prompts that a model has written, `n` at most, less those that are like a known one."""

    source: Literal["written_prompts"] = "written_prompts"
    n: Count
    similarity: Fraction


class LocalPairData(Settings):
    """Preference rows from the user's file or of a public dataset, split into train and held-out by prompt.

    With an input `items`, train rows that ask what these ask are dropped or refused. With an input `tokenizer` (a model's folder), rows are
    dropped that nothing is learnt from (bench/readers/learnable.py) within `max_length` tokens, or where it is None within the model's
    positions.
    """

    source: Literal["local"] = "local"
    fraction: Probability  # 0: held-out rows alone
    heldout_fraction: Probability
    seed: int
    desirable_fraction: Annotated[Fraction, LATER] = 1.0
    undesirable_fraction: Annotated[Fraction, LATER] = 1.0
    dataset: Annotated[DatasetRows | None, LATER] = None
    overlap: Annotated[Overlap, LATER] = "report"
    max_length: Annotated[Count | None, LATER] = None
    unwritable: Annotated[Unwritable, LATER] = "refuse"  # with a `tokenizer`, rows that its chat template cannot write
    version: Annotated[int, LATER] = 1  # of what is dropped; 2: pairs that are the same tokens too


class NextPromptData(Settings):
    """Train prompts of a public dataset whose labels are not used: `n` of them, after those that are labelled and the first `after`."""

    source: Literal["next_prompts"] = "next_prompts"
    pairs: LocalPairData  # which say what is labelled
    after: Offset
    n: Count


class ConversationData(Settings):
    """Conversations for supervised fine-tuning: a nested seeded subset of a dataset's."""

    source: Literal["conversations"] = "conversations"
    version: int
    files: Patterns
    fraction: Fraction
    seed: int


class OverlapData(Settings):
    """Which train rows ask what the judge's items ask: nothing is left out, only said."""

    source: Literal["overlap"] = "overlap"


class LocalPromptData(Settings):
    """Held-out prompts of the user's file, as items to answer."""

    source: Literal["local_prompts"] = "local_prompts"
    n: Count


class JudgeItemData(Settings):
    """Items of a benchmark's file: AlpacaEval's list with its baseline, FastChat's questions, references and a model's answers, or
    Arena-Hard's questions and a model's answers."""

    source: Literal["judge_items"] = "judge_items"
    form: Literal["alpaca_eval", "mt_bench", "arena_hard"]
    n: Count
    n_turns: Literal[1, 2]


class CanaryData(Settings):
    """Completions that must lose against the first n items' baselines, as items of their own."""

    source: Literal["canaries"] = "canaries"
    n: Count
    honest: Annotated[bool, LATER] = False  # and the honest answers that they must be rated below, as `honest`


class RecordedData(Settings):
    """What a judge has judged, from files in AlpacaEval's layout or FastChat's judgements: items, completions and the verdicts; a seeded
    sample of all."""

    source: Literal["recorded"] = "recorded"
    n: Count
    seed: int


class BaseSettings(Settings):
    """A Llama-architecture model from scratch."""

    stage: Literal["base"] = "base"
    hidden_size: Count
    num_layers: Count
    num_heads: Count
    intermediate_size: Count
    max_length: Count
    pretraining: Pretraining


class SftSettings(Settings):
    stage: Literal["start"] = "start"
    training: SftTraining
    max_length: Count
    seed: int


class ConversationSft(Settings):
    """The start model of a base model's folder; loss on every answer of a conversation."""

    stage: Literal["conversations"] = "conversations"
    training: SftEpochs
    max_length: Count
    dtype: Dtype
    seed: int
    gradient_checkpointing: Annotated[Checkpointing, UNKEYED] = "auto"


class SampleSettings(Settings):
    engine: Literal["transformers", "vllm"]
    decoding: Decoding
    draws: Count  # completions of each prompt
    batch_size: Count
    dtype: Dtype
    seed: int
    serving: Annotated[Serving | None, LATER] = None  # of vLLM
    loading: Annotated[Loading, LATER] = Loading()


class GoldLabels(Settings):
    """Labels by the world's annotator: the gold judge, biased and noisy as set."""

    labeller: Literal["gold"] = "gold"
    gold: GoldWeights
    annotator: WorldAnnotator
    seed: int


class RankLabels(Settings):
    """The best against the worst of a prompt's samples, by a score or by a judge's verdicts on them (the input `verdicts`); or, by
    `human`, the item's baseline against the sample."""

    labeller: Literal["reward_model", "implicit", "judge", "random", "shorter", "human"]
    beta: Positive | None  # implicit rewards are beta times log-ratios
    truth: GoldWeights | None  # that labels are held against, for the counts; None where nobody knows it
    seed: int
    length_penalty: Annotated[float, Field(ge=0), LATER] = 0.0  # off an implicit reward, a token


class SelfLabels(Settings):
    """The best against the worst of a prompt's samples by the policy's own judgements, which are replies to the judge's questions."""

    labeller: Literal["self"] = "self"
    prompt: JudgePrompt
    truth: GoldWeights | None  # that labels are held against, for the counts
    reading: Annotated[int, LATER] = 1  # version of how a judgement is read (SELF_JUDGE_READING)


class LogpsSettings(Settings):
    """`rows`: preference rows of the named splits (mismatched partners too), or completions that a policy wrote, of every draw."""

    rows: Literal["preferences", "completions"]
    splits: Annotated[tuple[str, ...], AsList]
    mismatched: bool
    max_length: Count | None  # None: drawn tokens are scored as they are; else their text as training sees it
    batch_size: Count
    dtype: Dtype
    control: Annotated[str | None, LATER] = None  # token between prompt and completion, where the model is asked so
    engine: Annotated[Literal["transformers", "vllm"], LATER] = "transformers"
    serving: Annotated[Serving | None, LATER] = None
    loading: Annotated[Loading, LATER] = Loading()


class RewardScoreSettings(Settings):
    """A reward model's rewards of the preference rows of the named splits, or of completions of every draw."""

    splits: Annotated[tuple[str, ...], AsList]
    max_length: Count
    batch_size: Count
    dtype: Dtype
    rows: Annotated[Literal["preferences", "completions"], LATER] = "preferences"


class TrainSettings(Settings):
    method: Trained | RefinedDpo = Field(discriminator="name")
    max_length: Count
    dtype: Dtype
    seed: int
    adapter: Annotated[Adapter | None, LATER] = None  # what is trained and kept, beside the frozen input `base` or `model`
    loading: Annotated[Loading, LATER] = Loading()
    gradient_checkpointing: Annotated[Checkpointing, UNKEYED] = "auto"


class RewardModelSettings(Settings):
    """A start model with a new head of one output, trained on pairs."""

    method: RewardModel
    max_length: Count
    dtype: Dtype
    seed: int
    gradient_checkpointing: Annotated[Checkpointing, UNKEYED] = "auto"


class GenerateSettings(Settings):
    engine: Literal["transformers", "vllm"]
    decoding: Decoding
    batch_size: Count
    dtype: Dtype
    seed: int
    best_of: Annotated[Count, LATER] = 1  # samples of each turn, of which the input `reward_model` chooses one
    control: Annotated[str | None, LATER] = None  # token after every prompt, where the policy is asked so
    temperatures: Annotated[Mapping[str, float], LATER] = {}  # by category, before that of decoding
    serving: Annotated[Serving | None, LATER] = None
    loading: Annotated[Loading, LATER] = Loading()


class WrittenCompletions(Settings):
    """Completions of the items that a user's file brings. `alone`: these items are all that it is asked for."""

    source: Literal["file"] = "file"
    alone: Annotated[bool, Unkeyed()] = False


class GoldPreferenceSettings(Settings):
    judge: Literal["gold_preference"] = "gold_preference"
    gold: GoldWeights
    temperature: Positive


class GoldRatingSettings(Settings):
    judge: Literal["gold_rating"] = "gold_rating"
    gold: GoldWeights


class LanguageJudgeSettings(Settings):
    """A judge that is a language model. Its prompts, rules of reading, and a local model's folder are inputs, keyed by content."""

    manner: Literal["alpaca_eval", "mt_bench", "arena_hard"]
    mode: Literal["official", "both", "single", "pairwise"]  # alpaca_eval: which orders (arena_hard: both); mt_bench: ratings or pairs
    model: str | None  # as asked for; None where a folder is an input
    provider: str
    dtype: Dtype
    server_args: Annotated[tuple[str, ...], AsList]
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    top_logprobs: int | None
    request: str  # further fields of a request, as canonical JSON
    parser: str  # version of what reads the replies
    repeat: Annotated[int, LATER] = 0  # asked so often before: the same once more, to see whether it says the same
    annotator: Annotated[str, UNKEYED] = ""  # its name; what it asks and how it is read is an input
    asking: Annotated[Asking | None, UNKEYED] = None


class RewardJudgeSettings(Settings):
    """Preferences by the input `model`, a reward model."""

    judge: Literal["reward_model"] = "reward_model"
    batch_size: Count
    dtype: Dtype


class PairRankerSettings(Settings):
    """Preferences by the input `model`, which reads both answers at once, in both orders."""

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
    """The median of other judges' verdicts on the same answers, which are the inputs."""

    judge: Literal["jury"] = "jury"


class TaskSettings(Settings):
    """Tasks of lm-evaluation-harness that the input `model` is asked; own ones are in the input `tasks`."""

    tasks: Annotated[tuple[str, ...], AsList]
    limit: Count | None
    chat_template: bool
    batch_size: Count
    dtype: Dtype
    loading: Loading


class ScoreSettings(Settings):
    beta: Positive | None  # turns held-out log-ratios into rewards (see reward_scale); None where the policy is the start model
    bootstrap_resamples: Count
    bootstrap_seed: int
    best_of: Annotated[Count, LATER] = 1


class AuditSettings(Settings):
    """What a judge's verdicts say about the judge."""

    n_labelled: Count
    manner: Annotated[Literal["preference", "rating"], LATER] = "preference"


class SelfJudgeSettings(Settings):
    """How right a model that judges by writing is on held-out rankings; `truth` None: their rewards are the truth."""

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
        PairData,
        NewPromptData,
        DemonstratedData,
        FilePromptData,
        DrawnData,
        LoopPairData,
        RankedData,
        JudgeQuestionData,
        TrueEvaluationData,
        KeptEvaluationData,
        PromptRequestData,
        WrittenPromptData,
        LocalPairData,
        NextPromptData,
        LocalPromptData,
        ConversationData,
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
    "judge": (GoldPreferenceSettings, GoldRatingSettings, LanguageJudgeSettings, RewardJudgeSettings, PairRankerSettings, JurySettings),
    "score": (ScoreSettings,),
    "audit": (AuditSettings, SelfJudgeSettings),
    "tasks": (TaskSettings,),
}

JUDGED_BY: dict[str, type[Settings]] = {
    record.model_fields["judge"].default: record for record in SETTINGS["judge"] if "judge" in record.model_fields
}


def needs(stage: Stage) -> Need:
    """`gpu`: it loads a model, and wants a GPU where there is one. `network`: it asks an endpoint, or a server of the command's."""
    match stage.settings:
        case LanguageJudgeSettings(asking=asking):
            return "gpu" if asking is not None and asking.server == "in_process" else "network"
        case WrittenCompletions():
            return "cpu"
        case RewardJudgeSettings():
            return "gpu"
    return "gpu" if stage.kind in ("sft", "sample", "logps", "train", "generate", "tasks") else "cpu"


def stage(kind: str, settings: Settings, inputs: Mapping[str, Input] | None = None, label: str = "") -> Stage:
    if not isinstance(settings, SETTINGS[kind]):
        raise TypeError(f"a {kind} stage takes {' or '.join(c.__name__ for c in SETTINGS[kind])}, got {type(settings).__name__}")
    return Stage(kind, VERSIONS[kind], settings, dict(inputs or {}), label)
