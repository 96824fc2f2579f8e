"""Iterative methods: rounds of sampling, labelling and training, each from the model of the round before.

A method decides where prompts come from, how many samples are drawn, how they are labelled, and how one round
trains.

Everything is planned from settings alone. Iteration t of one cell is a prefix of iteration t + 1 of another:
its stages have the same keys and run once. The iterations have disjoint prompts, but for SPIN's `prompt_sets:
same`. Models are loaded from their folders, never copied in memory: a model that a TRL trainer has touched
keeps calling the forward pass of the weights that it was copied from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.config import (
    Cell,
    Decoding,
    Dpo,
    IterativeDpo,
    Loop,
    MtBenchJudge,
    PromptRange,
    PublicRows,
    RefinedDpo,
    RewardModel,
    RewardModelJudge,
    SeedTraining,
    SelfRewarding,
    Spa,
    Spin,
    Trained,
    Training,
    WorldData,
)
from bench.planning import judging, pieces
from bench.planning.inputs import Ground, Policy
from bench.store.keys import Input, Inputs, Stage
from bench.store.stage_settings import (
    TOKENIZER,
    ChoiceData,
    ConversationSft,
    DemonstratedData,
    DrawnData,
    Dtype,
    FilePromptData,
    GoldLabels,
    LocalPairData,
    LoopPairData,
    NewPromptData,
    NextPromptData,
    PairData,
    RankedData,
    RankLabels,
    RewardModelSettings,
    RewardScoreSettings,
    stage,
)


@dataclass(frozen=True)
class Round:
    """One iteration, up to its labels.

    `policy` writes the samples and is then trained. `before` is the policy before it, or the start model if
    there is none.
    """

    t: int
    policy: Input
    before: Input
    items: Stage
    samples: Stage

    def label(self, text: str) -> str:
        return f"iteration {self.t} {text}"


@dataclass(frozen=True)
class LoopMethod:
    """The parts of an iterative method.

    `start`: the policy before iteration `first`. `seed_pairs`: the pairs that `start` was trained on, as the
    data of iteration 0; None if it was not trained. `draws`: samples per prompt. `items`, `training`: prompts
    and training settings of iteration t. `labels`: the label stage of a round. `with_reference_model`:
    whether the training of iteration t needs the reference's logits.
    """

    first: int
    start: Input
    seed_pairs: Stage | None
    draws: int
    items: Callable[[int], Stage]
    labels: Callable[[Round], Stage]
    training: Callable[[int], Trained | RefinedDpo]
    training_reference: Literal["previous", "start"] = "previous"
    with_reference_model: Callable[[int], bool] = lambda t: False


def unfold(cell: Cell, ground: Ground, method: LoopMethod) -> Policy:
    """Returns the policy of the cell's iteration, with all stages that it comes from."""
    settings = cell.method
    assert isinstance(settings, Loop)
    policy = before = method.start
    if method.seed_pairs is not None:
        before = ground.start
    data: list[Stage] = [] if method.seed_pairs is None else [method.seed_pairs]
    training_sources: list[Stage] = []
    trained = policy if method.seed_pairs is not None else None
    for t in range(method.first, settings.iteration + 1):
        items = method.items(t)
        round_ = Round(t, policy, before, items, _samples(cell, settings, policy, items, method.draws, t))
        data.append(method.labels(round_))
        pairs = _pairs(cell, ground, settings, data, round_)
        training_sources = [source for role, source in sorted(pairs.inputs.items()) if role != TOKENIZER]  # type: ignore[misc]
        reference = ground.start if method.training_reference == "start" else policy
        label = round_.label("reference log-probs")
        logps = pieces.preference_logps(
            cell, Policy(reference, None), pairs, splits=("train",), mismatched=False, label=label
        )
        inputs: Inputs = {"model": policy, "preferences": pairs, "reference_logps": logps}
        if method.with_reference_model(t):
            inputs["reference_model"] = reference
        before, policy = (
            policy,
            _trained(cell, method.training(t), inputs, round_.label(f"policy ({settings.name})")),
        )  # type: ignore[attr-defined]
        trained = policy
    assert trained is None or isinstance(trained, Stage)
    return Policy(
        policy,
        trained,
        previous=before,
        labels=[labels for source in training_sources if (labels := _labels_of(source)) is not None],
    )


def _labels_of(source: Stage) -> Stage | None:
    """The label stage behind pairs: the source itself, or the one of its train rows.

    None for pairs from a user's file.
    """
    labels = source if source.kind == "label" else source.inputs.get("train")
    return labels if isinstance(labels, Stage) else None


def seeded(cell: Cell, ground: Ground, seed: SeedTraining) -> Stage:
    """DPO on the labelled pairs: the same stage as in a cell of method=dpo with these settings."""
    inputs: Inputs = {
        "model": ground.start,
        "preferences": ground.preferences,
        "reference_logps": ground.reference,
    }
    return _trained(cell, Dpo(**_training(cell) | seed.model_dump(), name="dpo"), inputs, "seed policy (dpo)")


def round_training(cell: Cell, beta: float) -> Dpo:
    """Plain DPO with the training settings of the loop."""
    return Dpo(**_training(cell), name="dpo", beta=beta)


def _training(cell: Cell) -> dict[str, Any]:
    return cell.method.model_dump(include=set(Training.model_fields))


def _trained(cell: Cell, training: Trained | RefinedDpo, inputs: Inputs, label: str) -> Stage:
    return stage(
        "train", pieces.train_settings(cell, training), pieces.read_model(inputs["model"]) | inputs, label
    )


def _samples(cell: Cell, loop: Loop, policy: Input, items: Stage, draws: int, t: int) -> Stage:
    decoding = Decoding(
        temperature=loop.sample_temperature,
        top_p=loop.sample_top_p,
        max_new_tokens=loop.sample_max_new_tokens,
    )
    settings = pieces.sample_settings(cell, decoding, draws, cell.seed)
    return stage("sample", settings, pieces.read_model(policy) | {"items": items}, f"iteration {t} samples")


def _pairs(cell: Cell, ground: Ground, loop: Loop, data: list[Stage], round_: Round) -> Stage:
    limits = row_limits(ground)
    sources = {"fresh": data[-1:], "two_latest": data[-2:], "accumulated": data}[loop.pairs]
    inputs: Inputs = {
        f"{number:02d}": source for number, source in enumerate(sources, len(data) - len(sources))
    }
    return stage(
        "data",
        LoopPairData(seed=cell.seed, max_length=limits.max_length),
        inputs | limits.inputs,
        round_.label("pairs"),
    )


# Prompts ----------------------------------------------------------------------------------------------------


def prompts(cell: Cell, ground: Ground, loop: Loop, t: int) -> Stage:
    """Unlabelled prompts of iteration t.

    They come from the user's file, conversations, the dataset or the world.
    """
    if ground.prompts is None:
        return new_prompts(cell, ground, loop, t)
    return _given(cell, ground, loop, t, answers=False)


def demonstrations(cell: Cell, ground: Ground, loop: Loop, t: int) -> Stage:
    """Prompts with demonstrated completions for iteration t.

    They come from the user's file, from conversations or from the world.
    """
    if ground.prompts is None:
        return demonstrated(cell, loop, t)
    return _given(cell, ground, loop, t, answers=True)


def _given(cell: Cell, ground: Ground, loop: Loop, t: int, *, answers: bool) -> Stage:
    """Prompts from the user's file or from conversations."""
    assert ground.prompts is not None
    limits, of_conversations = row_limits(ground), isinstance(ground.prompts, Stage)
    settings = FilePromptData(
        **_range(loop, t)._asdict(),
        answers=answers,
        max_length=limits.max_length,
        seed=cell.seed if of_conversations else None,
    )
    source: Inputs = {"conversations" if of_conversations else "file": ground.prompts}
    label = _demonstrations(loop, t) if answers else f"iteration {t} prompts"
    return stage("data", settings, source | limits.inputs, label)


def _demonstrations(loop: Loop, t: int) -> str:
    """Name of an iteration's demonstrations, for people."""
    same = isinstance(loop, Spin) and loop.prompt_sets == "same"
    return "demonstrations of all iterations" if same else f"iteration {t} demonstrations"


def _range(loop: Loop, t: int) -> PromptRange:
    return loop.ranges[t - loop.starts_at]


class RowLimits(NamedTuple):
    """The model's tokenizer and maximal length in tokens. Rows that do not suit them are dropped.

    They are those of the labelled rows. In the controlled world there are none.
    """

    inputs: Inputs
    max_length: int | None


def row_limits(ground: Ground) -> RowLimits:
    inputs = {role: source for role, source in ground.preferences.inputs.items() if role == TOKENIZER}
    return RowLimits(inputs, getattr(ground.preferences.settings, "max_length", None) if inputs else None)


def new_prompts(cell: Cell, ground: Ground, loop: Loop, t: int) -> Stage:
    """Training prompts of iteration t, after the labelled ones and those of earlier iterations."""
    after, n = _range(loop, t)
    if isinstance(cell.data, PublicRows):
        pairs = ground.preferences.settings
        assert isinstance(pairs, LocalPairData)
        of_dataset = NextPromptData(pairs=pairs, after=after, n=n)
        return stage("data", of_dataset, ground.preferences.inputs, f"iteration {t} prompts")
    assert isinstance(cell.data, WorldData)
    after += cell.data.n_prompts
    settings = NewPromptData(family=pieces.family(cell), after=after, n=n, seed=cell.seed)
    return stage("data", settings, label=f"iteration {t} prompts")


def demonstrated(cell: Cell, loop: Loop, t: int) -> Stage:
    """Prompts of the start model's demonstrations with their completions."""
    assert isinstance(cell.data, WorldData)
    settings = DemonstratedData(
        family=pieces.family(cell),
        writer=cell.data.demonstrations,
        **_range(loop, t)._asdict(),
        seed=cell.seed,
    )
    return stage("data", settings, label=_demonstrations(loop, t))


# Labels -----------------------------------------------------------------------------------------------------


def gold_labels(cell: Cell, round_: Round) -> Stage:
    assert cell.world is not None and isinstance(cell.data, WorldData)
    settings = GoldLabels(gold=cell.world.gold, annotator=cell.data.annotator, seed=cell.seed)
    return stage("label", settings, _sampled(round_), round_.label("labels (gold)"))


def implicit_labels(cell: Cell, ground: Ground, round_: Round) -> Stage:
    """Labels by the implicit reward: beta times the log-ratio of the writing policy to the judging reference.

    Texts are tokenised as in training. A length penalty per token is subtracted.
    """
    settings = cell.method
    assert isinstance(settings, IterativeDpo | Spa)
    reference = {"start": ground.start, "previous": round_.before, "base": ground.base}[
        settings.judging_reference
    ]
    assert reference is not None  # config.Cell has checked it.
    logps = {
        f"{role}_logps": pieces.completion_logps(
            cell,
            Policy(model, None),
            round_.samples,
            round_.label(f"log-probs of the {words}"),
            max_length=pieces.max_length(cell),
        )
        for role, model, words in (
            ("policy", round_.policy, "policy"),
            ("reference", reference, "judging reference"),
        )
    }
    return _ranked(cell, round_, "implicit", logps, settings.beta, settings.length_penalty)


def reward_model_labels(cell: Cell, ground: Ground, round_: Round, *, seed: SeedTraining) -> Stage:
    """Labels by a reward model: the user's (`reward_model`), or one trained on labelled pairs for all
    iterations.

    The latter reads as many pairs as the seed training, or a share of its own (`reward_fraction`).
    """
    assert isinstance(cell.method, IterativeDpo | SelfRewarding)
    if (own := ground.of_method.get("reward_model")) is not None:
        rewards = _rewards(cell, round_, own, pieces.dtype(cell))
        return _ranked(cell, round_, "reward_model", {"rewards": rewards})
    learning_rate, fraction = cell.method.reward_learning_rate, getattr(cell.method, "reward_fraction", None)
    method = RewardModel(
        **_training(cell) | seed.model_dump(exclude={"beta"}) | {"learning_rate": learning_rate}
    )
    settings = RewardModelSettings(method=method, **pieces.training_settings(cell))
    pairs = ground.preferences
    if fraction is not None and isinstance(pairs.settings, PairData | LocalPairData):
        pairs = stage(
            "data",
            pairs.settings.model_copy(update={"fraction": fraction}),
            pairs.inputs,
            "the reward model's pairs",
        )
    model = stage("train", settings, {"model": ground.start, "preferences": pairs}, "reward model")
    return _ranked(
        cell, round_, "reward_model", {"rewards": _rewards(cell, round_, model, pieces.dtype(cell))}
    )


def _rewards(cell: Cell, round_: Round, model: Input, dtype: Dtype) -> Stage:
    length = pieces.max_length(cell)
    scoring = RewardScoreSettings(
        splits=(), max_length=length, batch_size=cell.engine.batch_size, dtype=dtype, rows="completions"
    )
    return stage("logps", scoring, {"model": model, **_sampled(round_)}, round_.label("rewards"))


def judge_labels(cell: Cell, ground: Ground, round_: Round) -> Stage:
    """Labels by a judge of evaluations: a judge stage on the samples, then labels from its verdicts.

    The judge sees each two samples of a prompt, or rates each sample alone. A reward model as the judge needs
    no verdicts; its rewards are the scores.
    """
    assert isinstance(cell.method, IterativeDpo) and ground.labelling_judge is not None
    judge, sources = cell.method.labelling_judge, ground.labelling_judge
    if isinstance(judge, RewardModelJudge):
        assert sources.model is not None
        return _ranked(
            cell, round_, "reward_model", {"rewards": _rewards(cell, round_, sources.model, judge.dtype)}
        )
    assert judge is not None
    rated = isinstance(judge, MtBenchJudge) and judge.mode == "single"
    drawn = stage(
        "data",
        DrawnData(form="each" if rated else "pairs"),
        _sampled(round_),
        round_.label("samples to judge"),
    )
    settings, judge_inputs = judging.judging_by(judge, cell, "rating" if rated else "preference", sources)
    inputs: Inputs = {"items": drawn, "completions": drawn, **judge_inputs}
    verdicts = stage(
        "judge", settings, inputs, round_.label(f"verdicts of {Path(judge.model).name} ({judge.name})")
    )
    return _ranked(cell, round_, "judge", {"verdicts": verdicts})


def tuned_judge_labels(cell: Cell, ground: Ground, round_: Round) -> Stage:
    """Labels by a model that was fine-tuned to choose between the completions of the labelled pairs.

    It is asked about each two samples of a prompt, in both orders. The more probable reply counts.
    """
    settings = cell.method
    assert isinstance(settings, IterativeDpo) and settings.judge_training is not None
    limits, max_length = row_limits(ground), pieces.max_length(cell)

    def choices(inputs: Inputs, answered: bool, label: str) -> Stage:
        of = ChoiceData(answered=answered, max_length=max_length)
        return stage("data", of, inputs | limits.inputs, label)

    pairs = rankings(ground, "train")
    questions = choices({"items": pairs, "completions": pairs}, True, "labelled pairs as questions")
    anew = settings.judge_init == "previous"
    judge = stage(
        "sft",
        ConversationSft(training=settings.judge_training, **pieces.training_settings(cell)),
        {"model": round_.policy if anew else ground.start, "conversations": questions},
        round_.label("judge") if anew else "tuned judge",
    )
    asked = choices(dict(_sampled(round_)), False, round_.label("questions to the judge"))
    logps = pieces.text_logps(cell, judge, asked, round_.label("log-probs of the judge's replies"))
    return _ranked(cell, round_, "tuned_judge", {"choice_logps": logps})


def rankings(ground: Ground, split: Literal["train", "heldout"]) -> Stage:
    """The labelled pairs of a split as rankings; held-out ones with all answers of an order, to measure a judge."""
    settings = RankedData(split=split, whole=split == "heldout")
    return stage("data", settings, {"preferences": ground.preferences}, f"{split} pairs as rankings")


def plain_labels(cell: Cell, round_: Round, labeller: Literal["random", "shorter", "human"]) -> Stage:
    """Labels without a judge: by a coin, by length (shorter wins), or for the demonstration."""
    return _ranked(cell, round_, labeller, {})


def _ranked(
    cell: Cell,
    round_: Round,
    labeller: Literal["reward_model", "implicit", "judge", "tuned_judge", "random", "shorter", "human"],
    scores: dict[str, Stage],
    beta: float | None = None,
    length_penalty: float = 0.0,
) -> Stage:
    truth = cell.world.gold if cell.world else None
    settings = RankLabels(
        labeller=labeller, beta=beta, truth=truth, seed=cell.seed, length_penalty=length_penalty
    )
    return stage(
        "label", settings, _sampled(round_) | scores, round_.label(f"labels ({labeller.replace('_', ' ')})")
    )


def _sampled(round_: Round) -> dict[str, Stage]:
    return {"items": round_.items, "completions": round_.samples}
