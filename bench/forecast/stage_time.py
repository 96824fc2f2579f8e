"""Forecasts of stage times from similar stages in the store, and upper bounds of stage tokens."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from bench.config import Settings, SftTraining
from bench.store.keys import Source, Stage, keyed_settings
from bench.store.stage_settings import (
    SETTINGS,
    BaseSettings,
    ChoiceData,
    ChosenData,
    ConversationSft,
    DemonstratedData,
    FilePromptData,
    GenerateSettings,
    JudgeItemData,
    JudgeQuestionData,
    LocalPromptData,
    LogpsSettings,
    LoopPairData,
    NewPromptData,
    NextPromptData,
    OpponentData,
    PairData,
    PromptData,
    PromptRequestData,
    RankedData,
    RewardModelSettings,
    RewardScoreSettings,
    SampleSettings,
    SftSettings,
    TrainSettings,
    WrittenPromptData,
    stage,
)
from bench.store.store import Manifest, Store


@dataclass(frozen=True)
class StageForecast:
    """Forecast of one stage.

    `seconds` is None where no similar stage has run here; `tokens` is an upper bound.
    """

    seconds: float | None
    tokens: int


Traits = frozenset[tuple[str, Any]]  # (dotted setting, value) pairs of a stage and of its model.


def estimates(stages: Sequence[Stage], store: Store) -> dict[Stage, StageForecast]:
    """Forecasts from the time per token of the most similar finished stages of the same kind.

    The most similar stages differ in the fewest settings. Seconds are None where these were far smaller
    (FAR): most of a tiny stage's time is start-up, which says nothing about a large stage.
    """
    paces: dict[str, dict[Traits, list[Pace]]] = {}
    for done, seconds in _finished(store):
        tokens = token_bound(done) or 1
        paces.setdefault(done.kind, {}).setdefault(_traits(done), []).append(Pace(seconds / tokens, tokens))
    nearest: dict[tuple[str, Traits], list[Pace]] = {}
    forecast = {}
    for planned in stages:
        traits, tokens = (planned.kind, _traits(planned)), token_bound(planned)
        if traits not in nearest:
            known = paces.get(planned.kind, {})
            least = min((len(traits[1] ^ other) for other in known), default=0)
            nearest[traits] = [
                pace for other, some in known.items() if len(traits[1] ^ other) == least for pace in some
            ]
        near = [pace.seconds_a_token for pace in nearest[traits] if tokens <= FAR * pace.tokens]
        forecast[planned] = StageForecast(statistics.median(near) * (tokens or 1) if near else None, tokens)
    return forecast


# Usual seconds a token of the world's models on one core. Only their proportions matter.
SECONDS_A_TOKEN = {"sft": 2e-5, "train": 1.5e-5, "generate": 1e-4, "sample": 1.3e-4, "logps": 1e-5}
# Usual seconds of stages whose tokens are not known before they run; others take OTHER_S.
SECONDS, OTHER_S = (
    {"sft": 30.0, "train": 30.0, "sample": 5.0, "generate": 5.0, "logps": 3.0, "tasks": 30.0},
    0.2,
)


def usual_s(stage: Stage) -> float:
    """Seconds of a stage by its kind and its upper bound of tokens, where no similar stage has run.

    They are good for proportions between stages, not for times.
    """
    if (tokens := token_bound(stage)) and stage.kind in SECONDS_A_TOKEN:
        return SECONDS_A_TOKEN[stage.kind] * tokens
    return SECONDS.get(stage.kind, OTHER_S)


FAR = 10  # Times the tokens of a similar stage.
MOST_CRITERIA = 7  # The world's six kinds of constraint, and the answer.


class Pace(NamedTuple):
    seconds_a_token: float
    tokens: int


def _traits(stage: Stage) -> Traits:
    own = frozenset(_flat(keyed_settings(stage.settings)))
    model = stage.inputs.get("model")
    return (
        own | {(f"model.{name}", value) for name, value in _traits(model)}
        if isinstance(model, Stage)
        else own
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, tuple(value) if isinstance(value, list) else value


def _finished(store: Store) -> list[tuple[Stage, float]]:
    """(stage, wall seconds) of finished stages in the store.

    Stages of other versions of bench are left out.
    """
    manifests = {manifest.key: manifest for manifest in store.history()}
    stages: dict[str, Stage] = {}

    def remake(key: str) -> Stage | Source:
        if key not in stages and key in manifests:
            manifest = manifests[key]
            inputs = {role: remake(facts["key"]) for role, facts in manifest.inputs.items()}
            stages[key] = stage(manifest.kind, _read_settings(manifest), inputs)
        return stages.get(key) or Source(Path(), key)

    for key in manifests:
        with contextlib.suppress(ValueError):
            remake(key)
    return [(made, manifests[key].timings["wall_s"]) for key, made in stages.items()]


def _read_settings(manifest: Manifest) -> Settings:
    """Settings record of a stored stage. Raises ValueError for one of another version of bench."""
    for record in SETTINGS.get(manifest.kind, ()):
        with contextlib.suppress(ValidationError):
            return record.model_validate(manifest.settings)
    raise ValueError(f"{manifest.kind}/{manifest.key} has settings of another version of bench")


def token_bound(stage: Stage) -> int:
    """Largest number of tokens that a stage generates, scores or trains on (over all epochs).

    0 where no model runs, and for rows of a file, which are not counted.
    """
    settings, inputs = stage.settings, stage.inputs
    match settings:
        case BaseSettings():
            return settings.pretraining.steps * settings.pretraining.batch_size * settings.max_length
        case SftSettings(training=sft) | ConversationSft(training=SftTraining() as sft):
            return sft.steps * sft.batch_size * sft.gradient_accumulation_steps * settings.max_length
        case SampleSettings():
            return n_completions(inputs["items"]) * settings.draws * settings.decoding.max_new_tokens
        case GenerateSettings():
            return n_completions(inputs["items"]) * settings.best_of * settings.decoding.max_new_tokens
        case LogpsSettings(rows="completions", max_length=int(most)) if of_choices(stage):
            return 2 * n_completions(inputs["completions"]) * most
        case LogpsSettings(rows="completions") | RewardScoreSettings(rows="completions"):
            return token_bound(inputs["completions"]) if isinstance(inputs["completions"], Stage) else 0
        case LogpsSettings(max_length=int(most)) | RewardScoreSettings(max_length=int(most)):
            return (
                sum(_completions(inputs["preferences"], split) for split in settings.splits)
                * int(passes(settings))
                * most
            )
        case TrainSettings() | RewardModelSettings():
            return math.ceil(
                _completions(inputs["preferences"], "train") * settings.max_length * passes(settings)
            )
    return 0


def passes(settings: Any) -> float:
    """Number of times that each completion of its preference rows passes through a stage's model."""
    if isinstance(settings, TrainSettings | RewardModelSettings):
        return settings.method.num_train_epochs + settings.method.forward_only
    return 2 if getattr(settings, "mismatched", False) else 1


def of_choices(stage: Stage) -> bool:
    """Whether a stage scores the two given replies to each question."""
    scored = stage.inputs.get("completions")
    return isinstance(scored, Stage) and isinstance(scored.settings, ChoiceData)


def n_completions(items: Stage | Source) -> int:
    """Number of completions that a set of items needs."""
    assert isinstance(items, Stage)
    if isinstance(items.settings, ChosenData | OpponentData):
        return n_completions(items.inputs["items"])
    if isinstance(items.settings, RankedData):
        return 0  # As many as the user's file has, which is not read here.
    if isinstance(items.settings, JudgeQuestionData | ChoiceData):
        judged = items.inputs["completions"]
        assert isinstance(judged, Stage)
        n, prompt = getattr(judged.settings, "draws", 2), getattr(items.settings, "prompt", "pairwise")
        questions = {"pairwise": n * (n - 1), "criteria": n * MOST_CRITERIA}.get(prompt, n)
        return n_completions(items.inputs["items"]) * questions
    of_world = (PromptData, NewPromptData, DemonstratedData, PromptRequestData, WrittenPromptData)
    assert isinstance(
        items.settings, (*of_world, NextPromptData, FilePromptData, LocalPromptData, JudgeItemData)
    )
    return items.settings.n * getattr(items.settings, "n_turns", 1)


def _completions(preferences: Stage | Source, split: str) -> int:
    """Largest number of completions in a split of preference rows. 0 for a user's file, not read here."""
    if isinstance(preferences, Stage) and isinstance(preferences.settings, LoopPairData):
        seen = [source for source in preferences.inputs.values() if isinstance(source, Stage)]
        return sum(
            2 * n_completions(s.inputs["items"]) if s.kind == "label" else _completions(s, split)
            for s in seen
        )
    if not (isinstance(preferences, Stage) and isinstance(preferences.settings, PairData)):
        return 0
    labels = preferences.inputs[split]
    assert isinstance(labels, Stage)
    rows = n_completions(labels.inputs["items"]) * (preferences.settings.fraction if split == "train" else 1)
    return math.ceil(rows) * (2 if preferences.settings.form == "paired" else 1)
