"""What each method sets, and what is a fact about it.

Facts are class variables: no settings, so they reach no key. Whoever wants to know something about a method asks its class, not its name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from bench.config.base import AsList, Count, FlipRate, Fraction, LaterField, Misfit, Name, Positive, Probability, Settings, by_name, misfit
from bench.config.judges import ModelledJudge
from bench.config.world import SftTraining, Writer

# What a training reads of its data: nothing; whole pairs; the chosen half of pairs; rows with a label, of which a pair makes two.
Feedback = Literal["nothing", "pairs", "chosen", "rows"]


class MethodSettings(Settings):
    """What every method is, beside its settings."""

    trains: ClassVar[bool] = False  # False: its cells stand beside a sweep's grid, not in it
    feedback: ClassVar[Feedback] = "nothing"
    needs_labels: ClassVar[bool] = True  # False: some of its trainings, or all, learn from no labelled row
    demonstrates: ClassVar[bool] = False  # its new prompts come with answers, which it learns from
    chooses: ClassVar[bool] = False  # among samples of the start model, by a reward model; no policy is trained
    control: ClassVar[str | None] = None  # token that its policy is asked with, after every prompt
    whole: ClassVar[str | None] = None  # what it trains that an adapter does not hold; None: it trains an adapter where one is set
    starts_at: ClassVar[int] = 1  # a loop's first iteration that samples
    spreads: ClassVar[bool] = True  # over devices; False: its loss looks at a whole batch, which is not gathered from all of them
    couples_rows: ClassVar[bool] = False  # the rows of a batch share a number of the loss, so batch size is part of the method
    with_partners: ClassVar[bool] = False  # each completion goes forward beside another prompt's, without a gradient
    looks_first: ClassVar[bool] = False  # all rows go forward once before the first step
    has_reference: ClassVar[bool] = True  # in its loss
    curve_has_z0: ClassVar[bool] = False  # `kl` of its curve is KTO's reference point

    @classmethod
    def needs_pairs(cls) -> bool:
        """Whether it learns from pairs only; the others learn from unpaired rows too, or from nothing."""
        return cls.feedback in ("pairs", "chosen")


class Training(MethodSettings):
    """What every trained method sets; TRL's and transformers' trainers read it."""

    trains = True
    feedback: ClassVar[Feedback] = "pairs"
    trainer: ClassVar[str | None] = None  # the module of bench/methods that trains it; None: the one of its name

    learning_rate: Positive
    num_train_epochs: Positive
    batch_size: Count  # pairs, or KTO's rows, a device and step
    gradient_accumulation_steps: Count
    optimizer: Literal["adamw_torch", "rmsprop"]
    lr_scheduler_type: Literal["constant", "linear", "cosine"]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: float = Field(ge=0)
    max_grad_norm: Positive

    def start_loss(self) -> float | None:
        """The loss of a policy that is still its own reference, whatever the data; None where it hangs on them."""
        return None

    @property
    def forward_only(self) -> float:
        """How often each completion goes forward without a gradient."""
        return self.num_train_epochs * self.with_partners + self.looks_first


LOG_2 = math.log(2)  # -log σ(0)


class NoMethod(MethodSettings):
    """The start model as it is, judged like the others."""

    needs_labels = False

    name: Literal["none"]


class Written(MethodSettings):
    """A file of completions: nothing is trained, nobody writes."""

    needs_labels = False

    name: Literal["completions"]
    path: str
    label: Name  # how tables call it


class Dpo(Training):
    name: Literal["dpo"]
    beta: Positive
    sft_weight: Annotated[float, Field(ge=0), LaterField()] = 0.0  # of the mean NLL of the chosen completion, beside the loss

    def start_loss(self) -> float | None:
        return None if self.sft_weight else LOG_2


class Ipo(Training):
    name: Literal["ipo"]
    beta: Positive  # the paper's tau

    def start_loss(self) -> float | None:
        return 1 / (2 * self.beta) ** 2


class Kto(Training):
    feedback = "rows"
    couples_rows = True
    with_partners = True
    curve_has_z0 = True

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

    def start_loss(self) -> float | None:
        equal = self.weight_ratio is None and self.desirable_weight == self.undesirable_weight
        return self.desirable_weight / 2 if equal else None


class Cdpo(Training):
    name: Literal["cdpo"]
    beta: Positive
    label_smoothing: FlipRate

    def start_loss(self) -> float | None:
        return LOG_2


class Robust(Training):
    name: Literal["robust"]
    beta: Positive
    label_smoothing: FlipRate

    def start_loss(self) -> float | None:
        return LOG_2


class IpoSummed(Training):
    name: Literal["ipo_summed"]
    beta: Positive  # the paper's tau

    def start_loss(self) -> float | None:
        return 1 / (2 * self.beta) ** 2


class Hinge(Training):
    name: Literal["hinge"]
    beta: Positive  # 1 / margin

    def start_loss(self) -> float | None:
        return 1.0


class Slic(Training):
    has_reference = False

    name: Literal["slic"]
    delta: Positive  # margin, in nats of the whole completion
    lambda_nll: float = Field(ge=0)  # the paper's lambda


class Simpo(Training):
    has_reference = False

    name: Literal["simpo"]
    beta: Positive  # of log-probabilities per token: larger than DPO's
    gamma: float = Field(ge=0)  # margin, absolute; the authors' code sets gamma / beta


class Orpo(Training):
    has_reference = False

    name: Literal["orpo"]
    lambda_or: float = Field(ge=0)  # the paper's lambda


class Cpo(Training):
    has_reference = False

    name: Literal["cpo"]
    beta: Positive
    alpha: float = Field(ge=0)  # weight of the NLL term


class KtoPair(Training):
    spreads = False
    couples_rows = True

    name: Literal["kto_pair"]
    beta: Positive

    def start_loss(self) -> float | None:
        return 0.5


class SftChosen(Training):
    feedback = "chosen"
    has_reference = False

    name: Literal["sft_chosen"]


class BestOfN(Training):
    """The start model's best of n samples by a reward model, which the training settings are for."""

    chooses = True
    whole = "a reward model, which is trained whole"

    name: Literal["best_of_n"]
    n: Annotated[int, Field(ge=2)]


class RewardModel(Training):
    """A Bradley-Terry reward model: what best_of_n trains, whatever its n."""

    trainer = "best_of_n"

    name: Literal["reward_model"] = "reward_model"


class Csft(Training):
    feedback = "rows"
    control = "<|good|>"
    whole = "embeddings of its control tokens, which an adapter does not hold"
    has_reference = False

    name: Literal["csft"]


class OfflinePpo(Training):
    feedback = "rows"
    spreads = False  # a baseline of its rows, statistics of its tokens
    couples_rows = True
    looks_first = True

    name: Literal["offline_ppo"]
    clip: Annotated[float, Field(gt=0, lt=1)]  # ratios are held in [clip, 1 / clip]
    gamma: Fraction  # discount a token
    gae_lambda: Probability
    value_weight: float = Field(ge=0)
    kl_weight: float = Field(ge=0)
    value_max_grad_norm: Positive  # the value head's own; max_grad_norm is the policy's


# In the order of tables.
Trained = SftChosen | Dpo | Cdpo | Robust | Ipo | IpoSummed | Hinge | Slic | Simpo | Orpo | Cpo | Kto | KtoPair | Csft | OfflinePpo


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
    prompts: str | None = None  # a file of new prompts, for SPIN with their answers; None: the controlled world's


# start: the start model; previous: the policy before the one that writes; base: the model that the start model was tuned from
JudgingReference = Literal["start", "previous", "base"]


class IterativeDpo(Loop):
    name: Literal["iterative_dpo"]
    beta: Positive
    seed_training: SeedTraining | None  # None: the loop starts from the start model
    draws: Annotated[int, Field(ge=2)]  # of a prompt, of which the best and the worst make a pair
    labeller: Literal["gold", "reward_model", "implicit", "judge", "random", "shorter"]
    # Of labeller=judge: a judge's section as it is, whose items and decoding say nothing here, where samples are judged.
    labelling_judge: ModelledJudge | None = Field(discriminator="name")
    judging_reference: JudgingReference  # of implicit rewards
    length_penalty: Annotated[float, Field(ge=0)]  # of implicit rewards, a token
    training_reference: Literal["previous", "start"]
    reward_learning_rate: Positive  # of the reward model, on the labelled pairs
    reward_fraction: Fraction | None  # of the labelled pairs, for the reward model; None: data.fraction

    @model_validator(mode="after")
    def _has_a_judge(self) -> IterativeDpo:
        if self.labeller == "implicit":
            _prefers_something(self)
        if self.labeller == "judge" and self.labelling_judge is None:
            raise misfit(("labeller", "labeller=judge asks a judge: add judge@method.labelling_judge=alpaca_eval, or another judge"))
        if self.labeller == "reward_model" and self.seed_training is None:
            raise misfit(("labeller", "the reward model is trained as seed_training says, got null"))
        return self


# What one labeller of iterative_dpo reads and the others do not, and its value where nobody has set it.
OF_ONE_LABELLER: dict[str, tuple[str, Any]] = {
    "labelling_judge": ("judge", None),
    "reward_fraction": ("reward_model", None),
    "judging_reference": ("implicit", "start"),
    "length_penalty": ("implicit", 0.0),
}


def unread(loops: Sequence[IterativeDpo]) -> list[Misfit]:
    """What is set for a labeller that none of these has: whoever names a judge does not mean the labels of another."""
    found = []
    for name, (labeller, unset) in OF_ONE_LABELLER.items():
        there = sorted({loop.labeller for loop in loops})
        if labeller not in there and any(getattr(loop, name) != unset for loop in loops):
            text = f"method.{name} is read by labeller={labeller} alone, got labeller={', '.join(there)}"
            found.append((f"method.{name}", f"{text}: leave it out, or set method.labeller={labeller}"))
    return found


class Spa(Loop):
    name: Literal["spa"]
    beta: Positive
    seed_training: SeedTraining | None  # None: no labelled pair is learned from
    judging_reference: JudgingReference
    length_penalty: Annotated[float, Field(ge=0)]  # of implicit rewards, a token
    alpha: FlipRate  # label smoothing of the pairs whose label is not trusted
    distrusted: Annotated[float, Field(gt=0, lt=1)]  # the paper's K, as a share
    window: Count  # confidences that the threshold is found in
    threshold: Literal["pairs", "batch_means"]  # whose confidences these are: the paper's, the release's
    delay: Probability  # share of the steps before labels are distrusted
    decoupling: Annotated[tuple[Annotated[float, Field(ge=0)], ...], AsList] = Field(min_length=1)  # lambda of iterations 1, 2, ...

    @model_validator(mode="after")
    def _has_a_judge(self) -> Spa:
        _prefers_something(self)
        return self


def _prefers_something(loop: IterativeDpo | Spa) -> None:
    if loop.seed_training is None and loop.judging_reference != "base":
        text = "a start model is its own reference and prefers nothing: without a seed_training implicit labels need judging_reference=base"
        raise misfit(("judging_reference", f"{text}, got {loop.judging_reference}"))


class Spin(Loop):
    needs_labels = False
    demonstrates = True
    starts_at = 0

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


JudgePrompt = Literal["additive", "criteria", "multiple_choice", "pairwise"]  # see bench/judges/self_judge.py


class SelfRewarding(Loop):
    name: Literal["self_rewarding"]
    beta: Positive
    first_training: SftTraining  # of M1, on instructions and evaluations
    eft: bool  # False: on instructions alone
    n_evaluations: Count  # that M1 learns from, at most
    evaluated: Writer  # of the world's completions that are evaluated, beside samples of the start model: answers of every quality
    judge_prompt: JudgePrompt
    judgements: Count  # of one question, averaged
    judge_temperature: Positive
    judge_max_new_tokens: Count
    draws: Annotated[int, Field(ge=2)]  # of a prompt, of which the best and the worst make a pair
    labeller: Literal["self", "gold", "reward_model", "random", "shorter"]
    learns_from: Literal["pairs", "best"]  # best: positives only, SFT on the chosen completions
    new_prompts: Literal["family", "self_instruct"]  # the world's, or written by the start model after examples
    similarity: Fraction  # ROUGE-L to a known prompt from which on a written one is dropped
    reward_learning_rate: Positive  # of the reward model, on the labelled pairs


class RefinedDpo(Training):
    """SPA's training of one iteration."""

    spreads = False  # a running window of confidences

    name: Literal["spa"]
    beta: Positive
    alpha: FlipRate
    distrusted: Annotated[float, Field(gt=0, lt=1)]
    window: Count
    threshold: Literal["pairs", "batch_means"]
    delay: Probability
    decoupling: Annotated[float, Field(ge=0)]

    def start_loss(self) -> float | None:
        return LOG_2


AnyMethod = NoMethod | Written | Trained | BestOfN | IterativeDpo | Spa | Spin | SelfRewarding  # of a cell
METHODS: dict[str, type[MethodSettings]] = by_name(*get_args(AnyMethod))


def method_facts(section: Any) -> type[MethodSettings]:
    """The class that a method's section is of, whose class variables are its facts; of one that is unknown, those of no method."""
    name = section.get("name") if isinstance(section, dict) else section
    return METHODS.get(name, MethodSettings) if isinstance(name, str) else MethodSettings


def is_loop(section: Any) -> bool:
    return issubclass(method_facts(section), Loop)
