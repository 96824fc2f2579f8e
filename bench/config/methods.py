"""Settings of each method, and facts about it.

Facts are class variables; they are no settings, so no key has them. Code that needs a fact reads it from the
method's class, never from its name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from bench.config.base import (
    AsList,
    Count,
    FlipRate,
    Fraction,
    LaterField,
    Misfit,
    Name,
    Positive,
    Probability,
    Settings,
    by_name,
    misfit,
)
from bench.config.data import SftEpochs
from bench.config.judges import ModelledJudge
from bench.config.world import SftTraining, Writer

# The part of the data that a training reads: nothing, whole pairs, the chosen half of pairs, or labelled rows
# (a pair makes two).
Feedback = Literal["nothing", "pairs", "chosen", "rows"]


class MethodSettings(Settings):
    """Facts about a method that are no settings, with their defaults."""

    trains: ClassVar[bool] = False
    """Whether it trains a policy. False: its cells are listed next to a sweep's grid, not in it."""
    feedback: ClassVar[Feedback] = "nothing"
    """Part of the data that its training reads."""
    needs_labels: ClassVar[bool] = True
    """Whether every training of it learns from labelled rows."""
    without_labels: ClassVar[str | None] = None
    """Settings with which it needs no labelled row, in words; None where there are none."""
    demonstrates: ClassVar[bool] = False
    """Whether its new prompts come with completions to learn from."""
    texts: ClassVar[tuple[str, ...]] = ()
    """Settings that may name a file of prompts with completions."""
    models: ClassVar[Mapping[str, str]] = {}
    """Settings that may name a model's folder, with the kind of model."""
    chooses: ClassVar[bool] = False
    """Whether it picks among samples of the start model by a reward model, and trains no policy."""
    control: ClassVar[str | None] = None
    """Token added to every prompt of its policy."""
    whole: ClassVar[str | None] = None
    """Weights it trains that an adapter does not hold. None: it trains an adapter where one is set."""
    starts_at: ClassVar[int] = 1
    """A loop's first iteration that samples."""
    spreads: ClassVar[bool] = True
    """Whether it can train on several devices. False: its loss needs a whole batch, which the devices do not
    gather."""
    couples_rows: ClassVar[bool] = False
    """Whether the rows of a batch share a number of the loss, which makes batch size part of the method."""
    with_partners: ClassVar[bool] = False
    """Whether each completion is also scored, without a gradient, after another row's prompt."""
    looks_first: ClassVar[bool] = False
    """Whether all rows are scored once before the first step."""
    has_reference: ClassVar[bool] = True
    """Whether its loss has a reference model."""
    curve_has_z0: ClassVar[bool] = False
    """Whether `kl` of its curve is KTO's reference point."""
    cites: ClassVar[tuple[str, ...]] = ()
    """Its papers: keys of bench/papers/references.bib."""

    @classmethod
    def needs_pairs(cls) -> bool:
        """Whether the method learns from pairs only; the others also learn from unpaired rows, or from
        nothing."""
        return cls.feedback in ("pairs", "chosen")

    @classmethod
    def reads_labels(cls, method: Mapping[str, Any]) -> bool:
        """Whether a method's section, valid or not, makes every training learn from labelled rows."""
        return cls.needs_labels and method.get("seed_training", ...) is not None

    @classmethod
    def asks_in_messages(cls, method: Mapping[str, Any]) -> bool:
        """Whether a method's section, valid or not, asks a model in messages, whatever the rows are."""
        return False


class Training(MethodSettings):
    """Settings of every trained method, for TRL's and transformers' trainers."""

    trains = True
    feedback: ClassVar[Feedback] = "pairs"
    trainer: ClassVar[str | None] = None
    """The module of bench/methods that trains it. None: the module of its name."""

    learning_rate: Positive
    """Peak learning rate; usual 3e-7 to 1e-6 for models of 7B, 3e-4 to 1e-3 for the world's models. The scale
    preset gives it; 1e-5 ruins most models of 7B."""
    num_train_epochs: Positive
    """Passes over the training data; usual 1 to 3."""
    batch_size: Count
    """Rows of one forward and backward pass; times gradient_accumulation_steps, a step has usually 32 to 128.
    A row is a pair, or one completion for KTO, CSFT and offline PPO; several devices share the rows of a
    step."""
    gradient_accumulation_steps: Count
    """Forward and backward passes of one optimizer step; usual 1 to 16."""
    optimizer: Literal["adamw_torch", "rmsprop"]
    """Optimizer: adamw_torch, as most recipes since 2024, or rmsprop, as DPO and Archangel."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"]
    """Course of the learning rate after the warm-up: constant, linear or cosine."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps in which the learning rate rises to its peak, below 1; usual 0.1."""
    weight_decay: float = Field(ge=0)
    """Weight decay of the optimizer; usual 0 to 0.1."""
    max_grad_norm: Positive
    """Largest norm of a gradient, longer ones are clipped to it; usual 1 to 10."""

    def start_loss(self) -> float | None:
        """The loss while the policy equals its reference; None where it depends on the data."""
        return None

    @property
    def forward_only(self) -> float:
        """Forward passes without a gradient for each completion."""
        return self.num_train_epochs * self.with_partners + self.looks_first


LOG_2 = math.log(2)  # -log σ(0)


class NoMethod(MethodSettings):
    """The start model as it is, judged like the others."""

    needs_labels = False

    name: Literal["none"]


class Written(MethodSettings):
    """A file of completions: nothing is trained or generated."""

    needs_labels = False

    name: Literal["completions"]
    path: str
    """File of completions."""
    label: Name
    """Name of the row in tables."""


class Dpo(Training):
    cites = ("rafailov2023dpo",)
    name: Literal["dpo"]
    beta: Positive
    """Strength of the KL penalty, dimensionless; usual 0.01 to 0.5. A small beta lets the policy move further
    from the reference, and needs a lower learning rate or fewer epochs."""
    sft_weight: Annotated[float, Field(ge=0), LaterField()] = 0.0
    """Weight of the mean NLL of the chosen completion, added to the loss (RPO, IRPO); usual 0 (DPO) to 1."""

    def start_loss(self) -> float | None:
        return None if self.sft_weight else LOG_2


class Ipo(Training):
    cites = ("azar2023ipo",)
    name: Literal["ipo"]
    beta: Positive
    """The paper's tau, strength of the KL penalty; usual 0.01 to 1. With per-token means 0.1 asks for a
    margin of 5 nats a token, so the loss stays near 25."""

    def start_loss(self) -> float | None:
        return 1 / (2 * self.beta) ** 2


class Kto(Training):
    feedback = "rows"
    couples_rows = True
    with_partners = True
    curve_has_z0 = True

    cites = ("ethayarajh2024kto",)
    name: Literal["kto"]
    learning_rate: Positive
    """Peak learning rate; usual 5e-7 to 5e-6 for models of 7B, 1e-3 for the world's models. The authors
    advise 5e-6, 2 to 10 times DPO's; Archangel has 5e-7."""
    beta: Positive
    """Strength of the KL penalty, dimensionless; usual 0.01 to 0.5. The authors advise 0.01 to 0.1 after SFT
    on the same data, and 0.1 to 0.5 from an aligned model."""
    batch_size: Annotated[int, Field(ge=2)]
    """Rows of one forward and backward pass, 2 or more; times gradient_accumulation_steps, a step has usually
    8 to 128. The KL term is estimated from the rows of a batch."""
    desirable_weight: Positive
    """The paper's lambda_D, weight of the desirable rows; usual 1. Leave both weights at 1 for as many
    desirable as undesirable rows."""
    undesirable_weight: Positive
    """The paper's lambda_U, weight of the undesirable rows; usual 1."""
    weight_ratio: Annotated[Positive | None, LaterField()] = None
    """Ratio lambda_D n_D / (lambda_U n_U), which sets both weights by the counts of the rows; usual 1 to 1.5,
    null: the weights above. Both weights must then be 1."""

    @model_validator(mode="after")
    def _one_way_to_weigh(self) -> Kto:
        if self.weight_ratio is not None and (self.desirable_weight, self.undesirable_weight) != (1, 1):
            got = f"desirable_weight={self.desirable_weight:g} and undesirable_weight={self.undesirable_weight:g}"
            raise misfit(("weight_ratio", f"weight_ratio sets both weights, so leave them at 1, got {got}"))
        return self

    def start_loss(self) -> float | None:
        equal = self.weight_ratio is None and self.desirable_weight == self.undesirable_weight
        return self.desirable_weight / 2 if equal else None


class Cdpo(Training):
    cites = ("mitchell2023cdpo",)
    name: Literal["cdpo"]
    beta: Positive
    """Strength of the KL penalty, dimensionless; usual 0.01 to 0.5."""
    label_smoothing: FlipRate
    """Share of the labels assumed to be wrong, below 0.5; usual 0.1 to 0.2. The margin stops growing at
    sigmoid(beta delta) = 1 - label_smoothing."""

    def start_loss(self) -> float | None:
        return LOG_2


class Robust(Training):
    cites = ("chowdhury2024robust",)
    name: Literal["robust"]
    beta: Positive
    """Strength of the KL penalty, dimensionless; usual 0.01 to 0.5."""
    label_smoothing: FlipRate
    """Share of the labels assumed to be flipped, below 0.5; usual 0.1."""

    def start_loss(self) -> float | None:
        return LOG_2


class IpoSummed(Training):
    cites = ("azar2023ipo",)
    name: Literal["ipo_summed"]
    beta: Positive
    """The paper's tau, strength of the KL penalty; usual 0.01 to 1."""

    def start_loss(self) -> float | None:
        return 1 / (2 * self.beta) ** 2


class Hinge(Training):
    cites = ("liu2023rso",)
    name: Literal["hinge"]
    beta: Positive
    """One over the margin in nats; usual 0.1, a margin of 10."""

    def start_loss(self) -> float | None:
        return 1.0


class Slic(Training):
    has_reference = False

    cites = ("zhao2023slic",)
    name: Literal["slic"]
    delta: Positive
    """Margin between the two summed log-probabilities, in nats; usual 1."""
    lambda_nll: float = Field(ge=0)
    """The paper's lambda, weight of the summed NLL of the chosen completion; usual 0.1 (Archangel)."""


class Simpo(Training):
    has_reference = False

    cites = ("meng2024simpo",)
    name: Literal["simpo"]
    beta: Positive
    """Scale of the difference of log-probabilities per token; usual 2 to 10. It is larger than DPO's beta
    because means per token are small."""
    gamma: float = Field(ge=0)
    """Target margin, absolute; usual 0.1 to 0.8 times beta. The authors' code sets gamma / beta, and they
    advise to start at 0.5."""


class Orpo(Training):
    has_reference = False

    cites = ("hong2024orpo",)
    name: Literal["orpo"]
    learning_rate: Positive
    """Peak learning rate; usual 5e-6 to 8e-6 for models of 7B, 1e-3 for the world's models."""
    lambda_or: float = Field(ge=0)
    """The paper's lambda, weight of the odds-ratio term; usual 0.1 (Mistral) to 0.25 (Phi-2)."""


class Cpo(Training):
    has_reference = False

    cites = ("xu2024cpo",)
    name: Literal["cpo"]
    beta: Positive
    """Scale of the difference of summed log-probabilities; usual 0.1."""
    alpha: float = Field(ge=0)
    """Weight of the mean NLL of the chosen completion; usual 1."""


class KtoPair(Training):
    spreads = False
    couples_rows = True

    cites = ("ethayarajh2024kto",)
    name: Literal["kto_pair"]
    beta: Positive
    """Strength of the KL penalty, dimensionless; usual 0.01 to 0.5."""

    def start_loss(self) -> float | None:
        return 0.5


class SftChosen(Training):
    feedback = "chosen"
    has_reference = False

    cites = ("rafailov2023dpo",)
    name: Literal["sft_chosen"]
    learning_rate: Positive
    """Peak learning rate; usual 2e-5 for models of 7B, 1e-3 for the world's models. Archangel has 5e-7."""


class BestOfN(Training):
    """The start model's best of n samples by a reward model; the training settings are the reward model's."""

    chooses = True
    whole = "a reward model, which is trained whole"

    cites = ("ouyang2022instruct", "rafailov2023dpo")
    name: Literal["best_of_n"]
    learning_rate: Positive
    """Peak learning rate of the reward model; 9e-6 for InstructGPT's 6B, 1e-3 to 3e-3 for the world's models.
    One reward model serves every n."""
    n: Annotated[int, Field(ge=2)]
    """Samples of each turn, 2 or more; usual 4 to 128. Little is gained from 64 on, and generation takes n
    times as long."""


class RewardModel(Training):
    """A Bradley-Terry reward model, as best_of_n trains it for every n."""

    trainer = "best_of_n"

    name: Literal["reward_model"] = "reward_model"


class Csft(Training):
    feedback = "rows"
    control = "<|good|>"
    whole = "embeddings of its control tokens, which an adapter does not hold"
    has_reference = False

    cites = ("korbak2023pretraining",)
    name: Literal["csft"]
    learning_rate: Positive
    """Peak learning rate; usual 2e-5 for models of 7B, 1e-3 for the world's models. Archangel has 5e-7."""


class OfflinePpo(Training):
    feedback = "rows"
    spreads = False  # its baseline is over rows, its statistics over tokens
    couples_rows = True
    looks_first = True

    cites = ("ethayarajh2024kto",)
    name: Literal["offline_ppo"]
    clip: Annotated[float, Field(gt=0, lt=1)]
    """Bound of the ratios to the reference, clipped to [clip, 1 / clip]; usual 0.5 (the released code) or
    0.25 (the paper)."""
    gamma: Fraction
    """Discount for each token, above 0 to 1; usual 0.99."""
    gae_lambda: Probability
    """Lambda of generalised advantage estimation, 0 to 1; usual 0.95."""
    value_weight: float = Field(ge=0)
    """Weight of the value loss; usual 0.01."""
    kl_weight: float = Field(ge=0)
    """Weight of the KL term; usual 0.1."""
    value_max_grad_norm: Positive
    """Largest norm of the value head's gradient; usual 0.1. The policy's is max_grad_norm."""


# In the order of tables.
Trained = (
    SftChosen
    | Dpo
    | Cdpo
    | Robust
    | Ipo
    | IpoSummed
    | Hinge
    | Slic
    | Simpo
    | Orpo
    | Cpo
    | Kto
    | KtoPair
    | Csft
    | OfflinePpo
)


# Loops: sample, label, train, again ----------------------------------------------------------------------------------


class SeedTraining(Settings):
    """DPO on the labelled pairs before a loop's first iteration; other settings are the iterations'."""

    beta: Positive
    """Strength of the KL penalty, dimensionless; usual 0.01 to 0.5."""
    learning_rate: Positive
    """Peak learning rate; usual that of method=dpo."""
    num_train_epochs: Positive
    """Passes over the labelled pairs; usual 3 for fewer than 2000 pairs, else 1."""
    batch_size: Count
    """Pairs of one forward and backward pass."""


class PromptRange(NamedTuple):
    """New prompts of one iteration: `n`, after the first `after` of their order."""

    after: int
    n: int


def prompt_ranges(n_prompts: int | Sequence[int], rounds: int, *, same: bool = False) -> list[PromptRange]:
    """Prompts of each of the rounds that sample. They are disjoint, or with `same` the first ones each time.

    `n_prompts`: one number for all rounds, or one for each; fewer numbers than rounds give fewer ranges.
    """
    counts = [n_prompts] * rounds if isinstance(n_prompts, int) else list(n_prompts[: max(0, rounds)])
    starts = itertools.repeat(0) if same else itertools.accumulate(counts, initial=0)
    return [PromptRange(after, n) for after, n in zip(starts, counts, strict=False)]


Counts = Annotated[
    Annotated[Count, Tag("one")]
    | Annotated[tuple[Count, ...], Field(strict=False, min_length=1), Tag("for each")],
    Discriminator(lambda value: "for each" if isinstance(value, list | tuple) else "one"),
]  # one number, or one for each iteration


class Loop(Training):
    """Settings of every loop; the training settings are those of one iteration."""

    iteration: Annotated[int, Field(ge=0)]
    """Iteration of the policy to judge. An axis method.iteration=0,1,2 shares all stages that can be shared.
    """
    n_prompts: Counts
    """Number of new prompts in an iteration, or a list with one number for each iteration that samples (SPA:
    [8000, 20000, 30000])."""
    sample_temperature: Positive
    """Sampling temperature of the completions that become pairs; usual 0.7 to 1."""
    sample_top_p: Annotated[float, Field(gt=0, le=1)]
    """Probability mass that nucleus sampling of these completions keeps, above 0 to 1; Self-Rewarding: 0.9."""
    sample_max_new_tokens: Count
    """Longest sampled completion in tokens; SPA: 300."""
    pairs: Literal["fresh", "two_latest", "accumulated"]
    """Pairs that an iteration trains on: its own (fresh), its own and the iteration's before (two_latest), or
    the labelled pairs and every iteration's (accumulated). SPA and self-rewarding take fresh."""
    prompts: str | None = None
    """New prompts: a file of yours, .jsonl or .parquet with prompt (text or messages) or with conversations
    (messages), whose first turns are taken; sft: first turns of the conversations of sft=; null: the
    dataset's or the controlled world's."""

    @property
    def ranges(self) -> list[PromptRange]:
        """Prompts of the iterations that sample, from `starts_at` to `iteration`."""
        return prompt_ranges(self.n_prompts, self.iteration + 1 - self.starts_at)

    @model_validator(mode="after")
    def _a_number_for_each_iteration(self) -> Self:
        needed = self.iteration + 1 - self.starts_at
        if isinstance(self.n_prompts, tuple) and len(self.n_prompts) < needed:
            text = (
                f"iterations {self.starts_at} to {self.iteration} need {needed} numbers of prompts, got "
                f"{len(self.n_prompts)}: give one for each, or one number for all"
            )
            raise misfit(("n_prompts", text))
        return self


SFT_PROMPTS = "sft"  # value of method.prompts: the conversations of the cell's `sft`


# The model that implicit rewards are measured against: the start model, the policy before the one that
# writes, or the model that the start model was tuned from.
JudgingReference = Literal["start", "previous", "base"]


class IterativeDpo(Loop):
    without_labels = "method.seed_training=null"

    cites = ("xu2023cringe", "kim2024spa")
    name: Literal["iterative_dpo"]
    iteration: Annotated[int, Field(ge=0)]
    """Iteration of the policy to judge; 0: before the first sampling. An axis method.iteration=0,1,2 shares
    all stages that can be shared."""
    learning_rate: Positive
    """Peak learning rate of an iteration; usual 5e-7 to 1e-5 for pretrained models, 2e-4 for the world's
    models."""
    beta: Positive
    """Strength of the KL penalty, dimensionless; usual 0.01 to 0.5."""
    seed_training: SeedTraining | None
    """DPO on the labelled pairs before the first iteration; null: the loop starts from the start model."""
    draws: Annotated[int, Field(ge=2)]
    """Number of samples of each prompt; the best and the worst make a pair. The papers take 2 to 4."""
    labeller: Literal["gold", "reward_model", "implicit", "judge", "tuned_judge", "random", "shorter"]
    """Labeller of the samples: gold (the world's annotator), reward_model (trained on the labelled pairs),
    implicit (the policy's log-ratio), judge (labelling_judge), tuned_judge (fine-tuned to choose on the
    labelled pairs); controls: random, shorter."""
    labelling_judge: ModelledJudge | None = Field(discriminator="name")
    """Judge for labeller=judge, a judge's section; its items, n_items and decoding are not used. Choose it by
    judge@method.labelling_judge=alpaca_eval."""
    judging_reference: JudgingReference
    """Model that implicit rewards are measured against: the start model (start), the policy before the one
    that writes (previous), or the model the start model was tuned from (base)."""
    length_penalty: Annotated[float, Field(ge=0)]
    """Reward subtracted for each token of a completion, against growing length; usual 0.001 to 0.01, 0 is
    off."""
    training_reference: Literal["previous", "start"]
    """Reference model of an iteration's DPO: the policy before it (previous), or the start model (start)."""
    reward_learning_rate: Positive
    """Peak learning rate of the reward model, which learns from the labelled pairs; 9e-6 for InstructGPT's
    6B, 1e-3 to 3e-3 for the world's models."""
    reward_fraction: Fraction | None
    """Share of the labelled pairs that the reward model learns from; null: data.fraction, the pairs of the
    seed."""
    judge_init: Literal["start", "previous"] = "start"
    """Model that the tuned judge is trained from: the start model, once (start), or the policy that writes
    the samples, anew in each iteration (previous, SPA's table 11)."""
    judge_training: SftEpochs | None = None
    """Fine-tuning of the tuned judge (null: none); SPA has 2e-5, 3 epochs, 32 questions a step and gives no
    warm-up."""

    @classmethod
    def reads_labels(cls, method: Mapping[str, Any]) -> bool:
        return super().reads_labels(method) or method.get("labeller") == "tuned_judge"

    @classmethod
    def asks_in_messages(cls, method: Mapping[str, Any]) -> bool:
        return method.get("labeller") == "tuned_judge"

    @model_validator(mode="after")
    def _has_a_judge(self) -> IterativeDpo:
        if self.labeller == "implicit":
            _prefers_something(self)
        if self.labeller == "judge" and self.labelling_judge is None:
            raise misfit(
                (
                    "labeller",
                    "labeller=judge needs a judge: add judge@method.labelling_judge=alpaca_eval, or another judge",
                )
            )
        if self.labeller == "reward_model" and self.seed_training is None:
            raise misfit(
                (
                    "labeller",
                    "labeller=reward_model needs seed_training, the settings of its training, got null",
                )
            )
        if self.labeller == "tuned_judge" and self.judge_training is None:
            text = "labeller=tuned_judge needs judge_training, the settings of its fine-tuning, got null"
            raise misfit(("judge_training", text))
        return self


# Settings of iterative_dpo that only one labeller reads: (the labeller, the value that counts as not set).
OF_ONE_LABELLER: dict[str, tuple[str, Any]] = {
    "labelling_judge": ("judge", None),
    "reward_fraction": ("reward_model", None),
    "judging_reference": ("implicit", "start"),
    "length_penalty": ("implicit", 0.0),
    "judge_init": ("tuned_judge", "start"),
}


def unread(loops: Sequence[IterativeDpo]) -> list[Misfit]:
    """Settings for a labeller that none of these loops has. They are refused: naming a judge does not mean
    that it labels."""
    problems = []
    for name, (labeller, unset) in OF_ONE_LABELLER.items():
        there = sorted({loop.labeller for loop in loops})
        if labeller not in there and any(getattr(loop, name) != unset for loop in loops):
            text = f"method.{name} is only used with labeller={labeller}, got labeller={', '.join(there)}"
            problems.append((f"method.{name}", f"{text}: leave it out, or set method.labeller={labeller}"))
    return problems


class Spa(Loop):
    without_labels = "method.seed_training=null"

    cites = ("kim2024spa",)
    name: Literal["spa"]
    iteration: Annotated[int, Field(ge=0)]
    """Iteration of the policy to judge; 0: DPO on the labels alone. An axis method.iteration=0,1,2 shares all
    stages that can be shared."""
    learning_rate: Positive
    """Peak learning rate of an iteration; usual 5e-7 to 1e-5 for pretrained models, 2e-4 for the world's
    models."""
    beta: Positive
    """Strength of the KL penalty, dimensionless; usual 0.01 to 0.1."""
    seed_training: SeedTraining | None
    """DPO on the labelled pairs before the first iteration; null: no labelled pair is learned from."""
    judging_reference: JudgingReference
    """Model that implicit rewards are measured against: the start model (start), the policy before the one
    that writes (previous), or the model the start model was tuned from (base). The paper takes start;
    previous is its ablation, and base its variant without labelled pairs (seed_training=null,
    data.fraction=0)."""
    length_penalty: Annotated[float, Field(ge=0)]
    """Reward subtracted for each token of a completion, against growing length; usual 0.001 to 0.01, 0 is
    off."""
    alpha: FlipRate
    """Label smoothing of the pairs whose label is not trusted, below 0.5; usual 0.1, 0 is off."""
    distrusted: Annotated[float, Field(gt=0, lt=1)]
    """Share of the lowest confidences whose labels are not trusted, the paper's K; usual 0.1."""
    window: Count
    """Number of latest confidences that the threshold is computed from; usual 50."""
    threshold: Literal["pairs", "batch_means"]
    """Confidences that the threshold is computed from: of pairs, as in the paper, or means of batches, as in
    the release."""
    delay: Probability
    """Share of an iteration's steps before the first label is distrusted; usual 0.2."""
    decoupling: Annotated[tuple[Annotated[float, Field(ge=0)], ...], AsList] = Field(min_length=1)
    """Lambda of de-coupled noise detection for iterations 1, 2, ...; the paper: 1/2, 1/4, 1/8, the release:
    [0.0] (off). The last value serves later iterations."""

    @model_validator(mode="after")
    def _has_a_judge(self) -> Spa:
        _prefers_something(self)
        return self


def _prefers_something(loop: IterativeDpo | Spa) -> None:
    if loop.seed_training is None and loop.judging_reference != "base":
        text = "without seed_training a start model is its own reference and its implicit rewards are all 0: set judging_reference=base"
        raise misfit(("judging_reference", f"{text}, got {loop.judging_reference}"))


class Spin(Loop):
    needs_labels = False
    demonstrates = True
    starts_at = 0

    cites = ("chen2024spin",)
    name: Literal["spin"]
    iteration: Annotated[int, Field(ge=0)]
    """Iteration of the policy to judge; 0: the first training."""
    learning_rate: Positive
    """Peak learning rate of an iteration, times its factor; usual 5e-7 for models of 7B, 3e-4 for the world's
    models."""
    n_prompts: Counts
    """Number of demonstrations in an iteration, or a list with one number for each; the paper: 50000."""
    prompt_sets: Literal["same", "new"] = "new"
    """Demonstrations of an iteration: the same in every one (the paper's algorithm 1), or new ones, which no
    earlier one had. The policy's samples are always new."""
    pairs: Literal["fresh", "two_latest", "accumulated"]
    """Pairs that an iteration trains on: its own (fresh, the paper's algorithm), its own and the iteration's
    before (two_latest, the paper's text and code), or every iteration's (accumulated)."""
    prompts: str | None = None
    """Demonstrations: a file of yours, .jsonl or .parquet with prompt and completion (text or messages) or
    with conversations (messages), whose first turns are taken; sft: first turns of the conversations of sft=,
    drawn by the seed; null: the controlled world's."""
    loss: Literal["spin", "sft"]
    """Loss: spin, or sft (continued SFT on the same demonstrations, a control)."""
    betas: Annotated[tuple[Positive, ...], AsList] = Field(min_length=1)
    """The paper's lambda for iterations 0, 1, ..., DPO's beta; usual 0.1, and 5 from iteration 3 on. The last
    value serves later iterations."""
    learning_rate_factors: Annotated[tuple[Positive, ...], AsList] = Field(min_length=1)
    """Factors of the learning rate for iterations 0, 1, ...; usual 1, 1, 0.2, 0.2. The last value serves
    later iterations."""

    @property
    def beta(self) -> float:
        return scheduled(self.betas, self.iteration)

    @property
    def ranges(self) -> list[PromptRange]:
        same = self.prompt_sets == "same"
        return prompt_ranges(self.n_prompts, self.iteration + 1 - self.starts_at, same=same)


def scheduled(values: tuple[float, ...], place: int) -> float:
    """The value at a place of a schedule; the last value serves all later places."""
    return values[min(place, len(values) - 1)]


JudgePrompt = Literal["additive", "criteria", "multiple_choice", "pairwise"]  # see bench/judges/self_judge.py


class SelfRewarding(Loop):
    starts_at = 2
    without_labels = "method.ift=FILE and method.eft=FILE or false"
    texts = ("ift", "eft")
    models = {"prompt_writer": "a causal LM", "reward_model": "a reward model"}

    cites = ("yuan2024self",)
    name: Literal["self_rewarding"]
    iteration: Annotated[int, Field(ge=0)]
    """Iteration of the policy to judge: 0 is the start model, 1 is SFT on instructions and evaluations, from
    2 on DPO on pairs that the policy before it judged."""
    learning_rate: Positive
    """Peak learning rate of an iteration; usual 1e-7 to 1e-6 (the paper, 70B), 2e-4 for the world's models.
    """
    beta: Positive
    """Strength of the KL penalty, dimensionless; usual 0.1."""
    first_training: SftTraining
    """Settings of iteration 1, SFT on instructions and evaluations."""
    ift: str | None = None
    """File of instructions for iteration 1, .jsonl or .parquet with prompt and completion, or with
    conversations (messages), whose first turns are taken; null: the chosen completions of the labelled pairs,
    or the controlled world's demonstrations."""
    eft: Annotated[
        Annotated[bool, Tag("switch")] | Annotated[str, Tag("file")],
        Discriminator(lambda value: "file" if isinstance(value, str) else "switch"),
    ]
    """Whether iteration 1 also learns from evaluations, or a file of them: .jsonl or .parquet with prompt (a
    question to the judge) and completion (its judgement), all learned; false: from instructions alone."""
    n_evaluations: Count
    """Largest number of evaluations that bench makes for iteration 1."""
    evaluated: Writer
    """Error rates of the writer of the evaluated completions. In the world half of the evaluations are about
    its completions and half about samples of the start model."""
    judge_prompt: JudgePrompt
    """Form of a judgement: additive (the paper's five points), multiple_choice (its ablation), pairwise, or
    criteria (a mark for each criterion, which a tiny model can learn)."""
    judgements: Count
    """Number of judgements of one completion, which are averaged; usual 3."""
    judge_temperature: Positive
    """Sampling temperature of the judgements; usual 0.7."""
    judge_max_new_tokens: Count
    """Longest judgement in tokens."""
    draws: Annotated[int, Field(ge=2)]
    """Number of samples of each prompt; the best and the worst make a pair. The papers take 2 to 4."""
    labeller: Literal["self", "gold", "reward_model", "random", "shorter"]
    """Labeller of the samples: self (the policy), gold (the world's annotator), reward_model (a folder, or
    trained on the labelled pairs); controls: random, shorter."""
    reward_model: str | None = None
    """Folder of a reward model for labeller=reward_model; null: one is trained on the labelled pairs."""
    learns_from: Literal["pairs", "best"]
    """Training of an iteration: pairs (DPO), or best (SFT on the best sample, positives only)."""
    new_prompts: Literal["family", "self_instruct"]
    """Source of the new prompts where method.prompts is null: family (the world's tasks), or self_instruct
    (a model writes them after eight examples, outside the world)."""
    prompts: str | None = None
    """New prompts: a file of yours, .jsonl or .parquet with prompt (text or messages) or with conversations
    (messages), whose first turns are taken; sft: first turns of the conversations of sft=; null: those of
    new_prompts."""
    prompt_writer: str | None = None
    """Folder of the model that writes the prompts of every iteration (the paper: Llama 2-Chat 70B); null: the
    start model."""
    similarity: Fraction
    """Largest ROUGE-L of a written prompt to a known one, above 0 to 1; usual 0.7. More similar prompts are
    dropped."""
    reward_learning_rate: Positive
    """Peak learning rate of the reward model, which learns from the labelled pairs; 9e-6 for InstructGPT's
    6B, 1e-3 to 3e-3 for the world's models."""

    @classmethod
    def reads_labels(cls, method: Mapping[str, Any]) -> bool:
        trains_rewards = method.get("labeller") == "reward_model" and method.get("reward_model") is None
        return trains_rewards or method.get("ift") is None or method.get("eft") is True

    @classmethod
    def asks_in_messages(cls, method: Mapping[str, Any]) -> bool:
        return True

    @model_validator(mode="after")
    def _settings_are_read(self) -> SelfRewarding:
        if self.reward_model is not None and self.labeller != "reward_model":
            text = "reward_model is only used with labeller=reward_model"
            raise misfit(("reward_model", f"{text}, got {self.labeller}: leave it out"))
        if self.prompt_writer is not None and self.prompts is not None:
            text = "prompt_writer writes new prompts, and method.prompts brings them: leave one out"
            raise misfit(("prompt_writer", text))
        return self


class RefinedDpo(Training):
    """Settings of SPA's training in one iteration."""

    spreads = False  # it keeps a running window of confidences

    name: Literal["spa"]
    beta: Positive
    """Strength of the KL penalty, dimensionless; usual 0.01 to 0.1."""
    alpha: FlipRate
    """Label smoothing of the pairs whose label is not trusted, below 0.5; usual 0.1, 0 is off."""
    distrusted: Annotated[float, Field(gt=0, lt=1)]
    """Share of the lowest confidences whose labels are not trusted, the paper's K; usual 0.1."""
    window: Count
    """Number of latest confidences that the threshold is computed from; usual 50."""
    threshold: Literal["pairs", "batch_means"]
    """Confidences that the threshold is computed from: of pairs, as in the paper, or means of batches, as in
    the release."""
    delay: Probability
    """Share of an iteration's steps before the first label is distrusted; usual 0.2."""
    decoupling: Annotated[float, Field(ge=0)]
    """Lambda of de-coupled noise detection in this iteration; 0 is off."""

    def start_loss(self) -> float | None:
        return LOG_2


AnyMethod = (
    NoMethod | Written | Trained | BestOfN | IterativeDpo | Spa | Spin | SelfRewarding
)  # The methods of a cell.
METHODS: dict[str, type[MethodSettings]] = by_name(*get_args(AnyMethod))


def method_facts(section: Any) -> type[MethodSettings]:
    """The settings class of a method's section, with its facts as class variables; MethodSettings for an
    unknown method."""
    name = section.get("name") if isinstance(section, dict) else section
    return METHODS.get(name, MethodSettings) if isinstance(name, str) else MethodSettings


def is_loop(section: Any) -> bool:
    return issubclass(method_facts(section), Loop)
