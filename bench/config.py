"""What may be set: frozen pydantic models, unknown keys refused.

`Cell` is one point of the grid: everything in it may change a number and reaches a stage key (names excepted).
`Session` is how a command runs - verb, launcher, tracker, folders - and reaches no key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Category = Literal["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
CATEGORIES: tuple[Category, ...] = get_args(Category)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]  # part of a folder's name, of no key
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy's generators take
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
AsList = Field(strict=False)  # a tuple that also takes the list that YAML writes
Fraction = Annotated[float, Field(gt=0, le=1)]
FlipRate = Annotated[float, Field(ge=0, lt=0.5)]  # share of labels that are turned round


Misfit = tuple[str, str]  # (a dotted field of the record, what is wrong with it)


def misfit(*found: Misfit) -> PydanticCustomError:
    """For validators that weigh several fields; the door adds where each comes from."""
    return PydanticCustomError("misfit", "{text}", {"found": found, "text": "; ".join(text for _, text in found)})


class LaterField:
    """Marks a settings field added after results existed: left out of keys while it holds its default.

    `dropout: Annotated[float, LaterField()] = 0.0` keeps every key that was made before `dropout` was known.
    """


class Settings(BaseModel):
    """Base of every record that a user or a stage key sees: frozen, strict, closed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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


class LocalModel(Settings):
    """Any causal-LM folder in the transformers layout; it is the start model as it is."""

    kind: Literal["local"]
    name: Name
    path: str
    dtype: Literal["float32", "bfloat16"]
    max_length: Count  # tokens of prompt and completion that training and log-probs look at


class NoModel(Settings):
    """For completions that a file brings: nobody is asked."""

    kind: Literal["none"]
    name: Literal["none"]


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
    """Demonstrations for the start model, then pairs of completions that an annotator labels."""

    kind: Literal["world"]
    name: Name
    demonstrations: Writer
    n_demonstrations: Count
    n_prompts: Count
    n_heldout_prompts: Count
    n_kl_prompts: Count
    completions_by: Literal["sft", "writer"]  # who wrote the pairs: the fine-tuned model, or the demonstrations' writer (one set for all)
    sample_temperature: Positive
    sample_max_new_tokens: Count
    annotator: Annotator
    form: Form  # unpaired: one of the two completions of a prompt, thumbs up if it was the preferred one
    fraction: Fraction
    desirable_fraction: Fraction  # of the desirable train rows, after `fraction`; unpaired rows only
    undesirable_fraction: Fraction


class LocalData(Settings):
    """A preference file of the user: JSONL or Parquet in TRL's paired or unpaired form, text or messages."""

    kind: Literal["local"]
    name: Name
    path: str
    fraction: Fraction
    desirable_fraction: Fraction  # of the desirable train rows, after `fraction`; unpaired rows only
    undesirable_fraction: Fraction
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)]
    n_kl_prompts: Count


# Methods -------------------------------------------------------------------------------------------------------------


class Training(Settings):
    """What every trained method sets; TRL's and transformers' trainers read it."""

    learning_rate: Positive
    num_train_epochs: Positive
    batch_size: Count  # pairs, or KTO's rows, a device and step
    gradient_accumulation_steps: Count
    optimizer: Literal["adamw_torch", "rmsprop"]
    lr_scheduler_type: Literal["constant", "linear", "cosine"]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: float = Field(ge=0)
    max_grad_norm: Positive


class NoMethod(Settings):
    """The start model as it is, judged like the others."""

    name: Literal["none"]


class Written(Settings):
    """A file of completions: nothing is trained, nobody writes."""

    name: Literal["completions"]
    path: str
    label: Name  # how tables call it


class Dpo(Training):
    name: Literal["dpo"]
    beta: Positive
    sft_weight: Annotated[float, Field(ge=0), LaterField()] = 0.0  # of the mean NLL of the chosen completion, beside the loss


class Ipo(Training):
    name: Literal["ipo"]
    beta: Positive  # the paper's tau


class Kto(Training):
    name: Literal["kto"]
    beta: Positive
    batch_size: Annotated[int, Field(ge=2)]  # the KL term is estimated from the rows of a batch
    desirable_weight: Positive
    undesirable_weight: Positive
    weight_ratio: Annotated[Positive | None, LaterField()] = None  # λ_D n_D / (λ_U n_U); sets both weights by the rows' counts

    @model_validator(mode="after")
    def _one_way_to_weigh(self) -> Kto:
        if self.weight_ratio is not None and (self.desirable_weight, self.undesirable_weight) != (1, 1):
            got = f"desirable_weight={self.desirable_weight:g} and undesirable_weight={self.undesirable_weight:g}"
            raise misfit(("weight_ratio", f"weight_ratio sets both weights, which must then be 1, got {got}"))
        return self


class Cdpo(Training):
    name: Literal["cdpo"]
    beta: Positive
    label_smoothing: FlipRate


class Robust(Training):
    name: Literal["robust"]
    beta: Positive
    label_smoothing: FlipRate


class IpoSummed(Training):
    name: Literal["ipo_summed"]
    beta: Positive  # the paper's tau


class Hinge(Training):
    name: Literal["hinge"]
    beta: Positive  # 1 / margin


class Slic(Training):
    name: Literal["slic"]
    delta: Positive  # margin, in nats of the whole completion
    lambda_nll: float = Field(ge=0)  # the paper's lambda


class Simpo(Training):
    name: Literal["simpo"]
    beta: Positive  # of log-probabilities per token: larger than DPO's
    gamma: float = Field(ge=0)  # margin, absolute; the authors' code sets gamma / beta


class Orpo(Training):
    name: Literal["orpo"]
    lambda_or: float = Field(ge=0)  # the paper's lambda


class Cpo(Training):
    name: Literal["cpo"]
    beta: Positive
    alpha: float = Field(ge=0)  # weight of the NLL term


class KtoPair(Training):
    name: Literal["kto_pair"]
    beta: Positive


class SftChosen(Training):
    name: Literal["sft_chosen"]


class BestOfN(Training):
    """The start model's best of n samples by a reward model, which the training settings are for."""

    name: Literal["best_of_n"]
    n: Annotated[int, Field(ge=2)]


class RewardModel(Training):
    """A Bradley-Terry reward model: what best_of_n trains, whatever its n."""

    name: Literal["reward_model"] = "reward_model"


class Csft(Training):
    name: Literal["csft"]


class OfflinePpo(Training):
    name: Literal["offline_ppo"]
    clip: Annotated[float, Field(gt=0, lt=1)]  # ratios are held in [clip, 1 / clip]
    gamma: Fraction  # discount a token
    gae_lambda: Probability
    value_weight: float = Field(ge=0)
    kl_weight: float = Field(ge=0)
    value_max_grad_norm: Positive  # the value head's own; max_grad_norm is the policy's


Trained = Dpo | Ipo | Kto | Cdpo | Robust | IpoSummed | Hinge | Slic | Simpo | Orpo | Cpo | KtoPair | SftChosen | Csft | OfflinePpo


# Loops: sample, label, train, again ----------------------------------------------------------------------------------


class SeedTraining(Settings):
    """DPO on the labelled pairs, before a loop's first iteration; what it does not name is as in the iterations."""

    beta: Positive
    learning_rate: Positive
    num_train_epochs: Positive
    batch_size: Count


class Loop(Training):
    """What every loop sets; the training settings are those of an iteration."""

    iteration: Annotated[int, Field(ge=0)]  # whose policy the cell is
    n_prompts: Count  # new ones, an iteration
    sample_temperature: Positive
    sample_max_new_tokens: Count
    pairs: Literal["fresh", "two_latest", "accumulated"]  # of which iterations one trains on


class IterativeDpo(Loop):
    name: Literal["iterative_dpo"]
    beta: Positive
    seed_training: SeedTraining | None  # None: the loop starts from the start model
    draws: Annotated[int, Field(ge=2)]  # of a prompt, of which the best and the worst make a pair
    labeller: Literal["gold", "reward_model", "implicit", "random", "shorter"]
    judging_reference: Literal["start", "previous"]  # of implicit rewards; previous: the policy before the one that writes
    training_reference: Literal["previous", "start"]
    reward_learning_rate: Positive  # of the reward model, on the labelled pairs

    @model_validator(mode="after")
    def _has_a_judge(self) -> IterativeDpo:
        if self.labeller == "implicit" and self.seed_training is None:
            text = "a start model is its own reference and prefers nothing: labeller=implicit needs a seed_training, got null"
            raise misfit(("labeller", text))
        if self.labeller == "reward_model" and self.seed_training is None:
            raise misfit(("labeller", "the reward model is trained as seed_training says, got null"))
        return self


class Spa(Loop):
    name: Literal["spa"]
    beta: Positive
    seed_training: SeedTraining
    judging_reference: Literal["start", "previous"]
    alpha: FlipRate  # label smoothing of the pairs whose label is not trusted
    distrusted: Annotated[float, Field(gt=0, lt=1)]  # the paper's K, as a share
    window: Count  # confidences that the threshold is found in
    threshold: Literal["pairs", "batch_means"]  # whose confidences these are: the paper's, the release's
    delay: Probability  # share of the steps before labels are distrusted
    decoupling: Annotated[tuple[Annotated[float, Field(ge=0)], ...], AsList] = Field(min_length=1)  # lambda of iterations 1, 2, ...


class Spin(Loop):
    name: Literal["spin"]
    loss: Literal["spin", "sft"]  # sft: continued SFT on the same demonstrations, a control
    betas: Annotated[tuple[Positive, ...], AsList] = Field(min_length=1)  # the paper's lambda, of iterations 0, 1, ...
    learning_rate_factors: Annotated[tuple[Positive, ...], AsList] = Field(min_length=1)

    @property
    def beta(self) -> float:
        return scheduled(self.betas, self.iteration)


def scheduled(values: tuple[float, ...], place: int) -> float:
    """A schedule's value; the last one holds on."""
    return values[min(place, len(values) - 1)]


class RefinedDpo(Training):
    """SPA's training of one iteration."""

    name: Literal["spa"]
    beta: Positive
    alpha: FlipRate
    distrusted: Annotated[float, Field(gt=0, lt=1)]
    window: Count
    threshold: Literal["pairs", "batch_means"]
    delay: Probability
    decoupling: Annotated[float, Field(ge=0)]


LOOPS = frozenset({"iterative_dpo", "spa", "spin"})

# Methods that learn from pairs only; the others learn from unpaired rows too.
NEEDS_PAIRS = frozenset(
    {"dpo", "ipo", "cdpo", "robust", "ipo_summed", "hinge", "slic", "simpo", "orpo", "cpo", "kto_pair", "sft_chosen", "best_of_n"} | LOOPS
)


# Judges and engines --------------------------------------------------------------------------------------------------


class Decoding(Settings):
    temperature: float = Field(ge=0)  # 0 is greedy
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: Count


class PreferenceJudging(Settings):
    """AlpacaEval 2.0's manner: preference in [0, 1] over a fixed opponent, one turn."""

    n_items: Count
    opponent: Literal["reference", "chosen"]  # the world's reference writer, or what the annotator chose of two completions
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


class Asking(Settings):
    """How a judge that is a language model is reached and paid; nothing of it changes what is asked, and none of it is keyed."""

    server: Literal["endpoint", "in_process", "vllm"]  # in_process: transformers in the worker; vllm: a server started for the command
    base_url: str | None  # of an endpoint; None: OpenAI's
    api_key_env: str = Field(min_length=1)  # the environment variable that holds the key
    concurrency: Count  # requests under way at once
    attempts: Count  # of a request, before the stage is left unfinished
    timeout_s: Positive  # of one request
    batch_wait_s: Positive | None  # send a batch file and wait so long for it; None: ask at once, request by request
    budget_dollars: Positive | None  # what the judging of a sweep may cost in all, earlier runs of it included
    prices: str | None  # a price file; None: the one that comes with bench
    tokenizer: str | None  # a folder whose tokenizer counts tokens for forecasts


class VerdictDecoding(Settings):
    """How a judge answers; None: as its annotator or its manner says. `request`: further fields of the request, null drops one."""

    temperature: float | None = Field(ge=0)
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    max_tokens: Count | None
    top_logprobs: Annotated[int, Field(ge=0, le=100)] | None  # likeliest tokens to list; 0 asks for none
    request: dict[str, Any]


class LanguageJudge(Asking):
    """What every judge that is a language model sets."""

    model: str = Field(min_length=1)  # as an endpoint is asked for it; a folder for the other servers
    provider: Name  # who serves the model: part of what a verdict is
    dtype: Literal["float32", "bfloat16"]  # of the other servers
    server_args: Annotated[tuple[str, ...], AsList]  # further words of the vLLM server's command
    verdict: VerdictDecoding
    items: str | None  # a file, or `hub` where the manner has items there; None: the controlled world's evaluation prompts
    n_items: Count | None  # the first so many; None: all of the file
    decoding: Decoding  # of the policy

    def __hash__(self) -> int:  # fields that hold dicts have none
        return hash(self.model_dump_json())


class AlpacaEvalJudge(LanguageJudge):
    """Preferences over a fixed opponent, asked as one of the alpaca-eval package's annotators asks."""

    name: Literal["alpaca_eval"]
    annotator: str = Field(min_length=1)  # its name in the package, or a folder laid out as there
    order: Literal["official", "both"]  # official: one order an item, drawn by its instruction; both: two calls, averaged


class MtBenchJudge(LanguageJudge):
    """Two turns in eight categories: a rating of each answer, or each pair of answers in both orders."""

    name: Literal["mt_bench"]
    mode: Literal["single", "pairwise"]
    prompts: str | None  # FastChat's judge_prompts.jsonl; None: ours
    references: str | None  # FastChat's reference_answer/*.jsonl
    baseline: str | None  # the opponent's FastChat model_answer/*.jsonl, for pairs
    temperatures: dict[str, Annotated[float, Field(ge=0)]]  # of the policy, by category; decoding.temperature elsewhere


class RewardModelJudge(Settings):
    """Preferences over a fixed opponent by a sequence classifier of one output."""

    name: Literal["reward_model"]
    model: str = Field(min_length=1)  # its folder
    dtype: Literal["float32", "bfloat16"]
    items: str | None  # a list of AlpacaEval's form; None: the controlled world's evaluation prompts
    n_items: Count | None  # the first so many; None: all of the file
    decoding: Decoding  # of the policy


class Engine(Settings):
    name: Literal["transformers"]
    batch_size: Count  # may change a number (padding), so it is keyed


# One point of the grid -----------------------------------------------------------------------------------------------


class Cell(Settings):
    model: WorldModel | LocalModel | NoModel = Field(discriminator="kind")
    method: NoMethod | Written | Trained | BestOfN | IterativeDpo | Spa | Spin = Field(discriminator="name")
    data: WorldData | LocalData = Field(discriminator="kind")
    world: World | None
    judge: GoldJudge | NoJudge | AlpacaEvalJudge | MtBenchJudge | RewardModelJudge = Field(discriminator="name")
    engine: Engine
    seed: Seed

    @model_validator(mode="after")
    def _fits_together(self) -> Cell:
        if found := misfits(self.model_dump()):
            raise misfit(*found)
        return self


def misfits(cell: Mapping[str, Any]) -> list[Misfit]:
    """Combinations of a cell's sections that are impossible; the sections may have faults of their own."""
    model, method, data, judge = ({} if not isinstance(cell[key], Mapping) else cell[key] for key in ("model", "method", "data", "judge"))
    in_world = data.get("kind") == "world"
    found: list[Misfit] = []
    if in_world and cell["world"] is None:
        found.append(("world", "data of the controlled world need the world section that data=world brings, got null"))
    if model.get("kind") == "world" and not in_world:
        text = f"model={model.get('name')} knows only the controlled world's words and needs its data, got data={data.get('name')}"
        found.append(("model", f"{text}; take model=local model.path=DIR"))
    if judge.get("name") == "gold" and not in_world:
        text = f"judge=gold knows the truth of the controlled world only and needs its data, got data={data.get('name')}"
        found.append(("judge", f"{text}; take judge=none"))
    if model.get("kind") == "none" and method.get("name") != "completions":
        found.append(("model", f"method={method.get('name')} needs a model, got none; a file of completions is judged by completions=FILE"))
    if model.get("kind") != "none" and method.get("name") == "completions":
        found.append(("model", f"completions of a file have no model, got model={model.get('name')}; take model=none"))
    if in_world and data.get("completions_by") == "sft" and _opponent(judge) == "chosen":
        text = "chosen completions are one opponent for all models only where data.completions_by=writer, got sft"
        found.append(("judge.preference.opponent", text))
    thinned = [key for key in ("desirable_fraction", "undesirable_fraction") if data.get(key, 1) != 1]
    if thinned and data.get("form") == "paired":
        text = f"data.{thinned[0]} drops rows of one label, and a pair has both: take unpaired data (data.form=unpaired)"
        found.append((f"data.{thinned[0]}", text))
    if judge.get("items", "") is None and not in_world:
        text = f"judge={judge.get('name')} asks the controlled world's prompts unless it is given some, got data={data.get('name')}"
        found.append(("judge.items", f"{text}; set judge.items=FILE"))
    if judge.get("items", "") is None and judge.get("n_items", 1) is None:
        found.append(("judge.n_items", "judge.n_items must be set where judge.items is not: the controlled world has no end of prompts"))
    if data.get("form") == "unpaired" and method.get("name") in NEEDS_PAIRS:
        text = f"method={method['name']} learns from pairs, got unpaired rows; take method=kto, csft or offline_ppo, or paired data"
        found.append(("data.form", text))
    if method.get("name") in LOOPS and not in_world:
        text = f"method={method['name']} asks the controlled world for new prompts and needs its data, got data={data.get('name')}"
        found.append(("data", f"{text}; take method=dpo"))
    if method.get("name") == "spin" and in_world:
        iteration, n, there = method.get("iteration"), method.get("n_prompts"), data.get("n_demonstrations")
        if isinstance(iteration, int) and isinstance(n, int) and isinstance(there, int) and (needed := (iteration + 1) * n) > there:
            text = f"iterations 0 to {iteration} of {n} prompts each need {needed} demonstrations, got data.n_demonstrations={there}"
            found.append(("method.n_prompts", text))
    if method.get("name") == "best_of_n":
        text = "method=best_of_n chooses among samples, which are all the same at temperature 0; set it above 0"
        asked = {"": judge, "preference.": judge.get("preference"), "rating.": judge.get("rating")}
        decodings = {place: manner.get("decoding") for place, manner in asked.items() if isinstance(manner, Mapping)}
        found += [
            (f"judge.{place}decoding.temperature", text)
            for place, decoding in decodings.items()
            if isinstance(decoding, Mapping) and decoding.get("temperature") == 0
        ]
    return found


def _opponent(judge: Mapping[str, Any]) -> Any:
    preference = judge.get("preference")
    return preference.get("opponent") if isinstance(preference, Mapping) else None


class Scale(Settings):
    """What a scale preset hands to the other sections, which read it by interpolation: `${scale.batch_size}`."""

    learning_rate: dict[str, Positive]  # by method
    num_train_epochs: Positive
    batch_size: Count
    gradient_accumulation_steps: Count
    optimizer: str
    lr_scheduler_type: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: Positive
    generation_batch_size: Count
    n_prompts: Count  # of the world's training data
    n_new_prompts: Count  # of a loop's iteration
    n_items: Count  # that are judged
    models: Annotated[tuple[Name, ...], AsList]  # axis of the sweeps over sizes
    seeds: Annotated[tuple[Seed, ...], AsList]  # axis of the sweeps that compare methods


# How a command runs --------------------------------------------------------------------------------------------------


class Verb(Settings):
    """What to do with the cells."""

    name: Literal["run", "plan", "report", "status", "conformance"]


class Why(Settings):
    """How a cell came to be. Its key needs no `do.` on the command line: `do=why cell=KEY`."""

    name: Literal["why"]
    cell: str | None


class Rescore(Settings):
    """Tables again from stored verdicts, with no judge. Its keys need no `do.` on the command line: `do=rescore judgements=DIR`."""

    name: Literal["rescore"]
    judgements: str | None
    reference_outputs: str | None
    calibration: str | None
    out: str | None
    max_unscored: Probability


class Audit(Settings):
    """A judge's passport. Its keys need no `do.` either: `do=audit judge=... n_items=50`."""

    name: Literal["audit"]
    n_items: Annotated[int, Field(ge=4)]
    n_canaries: Annotated[int, Field(ge=2)]
    n_labelled: Annotated[int, Field(ge=2)]
    human: str | None
    recorded: str | None
    out: str | None


FITTED = "fitted"  # a calibration: item difficulties from the other rows of the table

# Keys of a verb that are typed without its section.
VERB_KEYS = frozenset(Rescore.model_fields | Why.model_fields | Audit.model_fields) - {"name"}


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
    workers: Count | None  # None: one a GPU, or one a core where there is none
    threads: Count  # a worker's; recorded, not keyed
    stage_timeout_s: Positive
    retries: int = Field(ge=0)  # of a stage whose worker died


class Session(Settings):
    do: Verb | Rescore | Why | Audit = Field(discriminator="name")
    tracker: WandbTracker | NoTracker = Field(discriminator="name")
    launcher: LocalLauncher
    results: str | None

    @property
    def results_dir(self) -> Path:
        return Path(self.results or os.environ.get("BENCH_RESULTS") or "results").expanduser().absolute()


class Expectation(Settings):
    """An order by win rate of two groups of a sweep's cells, named before it ran; each side is written as axes are."""

    better: dict[str, Any]
    worse: dict[str, Any]
