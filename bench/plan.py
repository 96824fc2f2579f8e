"""Cells to stages: what each stage's settings are, how stages hang together, what is done, what the rest costs.

A settings record holds whatever can change its stage's numbers and nothing else: no paths, names or devices.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from bench.config import (
    Annotator,
    AsList,
    Cell,
    Count,
    Decoding,
    Form,
    Fraction,
    GoldWeights,
    LocalData,
    LocalModel,
    NoMethod,
    Positive,
    Pretraining,
    Probability,
    Settings,
    SftTraining,
    Trained,
    WorldData,
    WorldModel,
    Writer,
)
from bench.store import Manifest, Source, Stage, Status, Store, hash_key, keyed_settings

# Raise a kind's version when the same settings come to mean other numbers; its golden digest in tests/golden/ says when.
VERSIONS = {"data": 1, "sft": 1, "logps": 1, "sample": 1, "label": 1, "train": 1, "generate": 1, "judge": 1, "score": 1}

Dtype = Literal["float32", "bfloat16"]
Split = Literal["train", "heldout", "kl", "development", "evaluation"]


# Settings of each kind of stage ---------------------------------------------------------------------------------------


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


class PairData(Settings):
    """Preference rows from labelled samples: a nested seeded subset, ties dropped, mismatched partners fixed."""

    source: Literal["pairs"] = "pairs"
    form: Form
    fraction: Fraction
    seed: int


class LocalPairData(Settings):
    """Preference rows from the user's file, split into train and held-out by prompt."""

    source: Literal["local"] = "local"
    fraction: Fraction
    heldout_fraction: Probability
    seed: int


class LocalPromptData(Settings):
    """Held-out prompts of the user's file, as items to answer."""

    source: Literal["local_prompts"] = "local_prompts"
    n: Count


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


class SampleSettings(Settings):
    engine: Literal["transformers"]
    decoding: Decoding
    draws: Count  # completions of each prompt
    batch_size: Count
    dtype: Dtype
    seed: int


class GoldLabels(Settings):
    """Labels by the world's annotator: the gold judge, biased and noisy as set."""

    labeller: Literal["gold"] = "gold"
    gold: GoldWeights
    annotator: Annotator
    seed: int


class LogpsSettings(Settings):
    """`rows`: preference rows of the named splits (mismatched partners too), or completions that a policy wrote."""

    rows: Literal["preferences", "completions"]
    splits: Annotated[tuple[str, ...], AsList]
    mismatched: bool
    max_length: Count | None  # None: drawn tokens are scored as they are
    batch_size: Count
    dtype: Dtype


class TrainSettings(Settings):
    method: Trained = Field(discriminator="name")
    max_length: Count
    dtype: Dtype
    seed: int


class GenerateSettings(Settings):
    engine: Literal["transformers"]
    decoding: Decoding
    batch_size: Count
    dtype: Dtype
    seed: int


class GoldPreferenceSettings(Settings):
    judge: Literal["gold_preference"] = "gold_preference"
    gold: GoldWeights
    temperature: Positive


class GoldRatingSettings(Settings):
    judge: Literal["gold_rating"] = "gold_rating"
    gold: GoldWeights


class ScoreSettings(Settings):
    beta: Positive | None  # turns held-out log-ratios into rewards (see reward_scale); None for the start model
    bootstrap_resamples: Count
    bootstrap_seed: int


SETTINGS: dict[str, tuple[type[Settings], ...]] = {
    "data": (CorpusData, DemonstrationData, PromptData, PairData, LocalPairData, LocalPromptData),
    "sft": (BaseSettings, SftSettings),
    "sample": (SampleSettings,),
    "label": (GoldLabels,),
    "logps": (LogpsSettings,),
    "train": (TrainSettings,),
    "generate": (GenerateSettings,),
    "judge": (GoldPreferenceSettings, GoldRatingSettings),
    "score": (ScoreSettings,),
}


def stage(kind: str, settings: Settings, inputs: Mapping[str, Stage | Source] | None = None, label: str = "") -> Stage:
    if not isinstance(settings, SETTINGS[kind]):
        raise TypeError(f"a {kind} stage takes {' or '.join(c.__name__ for c in SETTINGS[kind])}, got {type(settings).__name__}")
    return Stage(kind, VERSIONS[kind], settings, dict(inputs or {}), label)


# Cells to stages ------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Sources:
    """What a cell reads from outside the store."""

    model: Source | None = None
    data: Source | None = None


@dataclass(frozen=True)
class Ground:
    """What cells of one model, data and seed share."""

    start: Stage | Source
    preferences: Stage
    reference: Stage  # log-probs of the start model, on train and held-out rows
    kl_prompts: Stage


@dataclass(frozen=True)
class CellPlan:
    cell: Cell
    key: str
    name: str
    score: Stage
    roles: dict[str, Stage]  # the stages whose files the tables, the tracker and the reader want, by role

    @property
    def stages(self) -> list[Stage]:
        return list(self.score.walk())


Chain = Callable[[Cell, Ground], Stage | None]


def plan_cell(cell: Cell, sources: Sources, chain: Chain) -> CellPlan:
    """The graph of one cell. `chain` gives a method's last train stage, or None where the start model is what is judged."""
    cell = start_cell(cell) if cell.method.name == "none" else cell
    ground = _ground(cell, sources)
    trained = chain(cell, ground)
    policy = trained or ground.start
    roles: dict[str, Stage] = {"preferences": ground.preferences}
    inputs: dict[str, Stage] = {"preferences": ground.preferences, "reference_logps": ground.reference}
    if trained is not None:
        kl = generate(cell, policy, ground.kl_prompts, _kl_decoding(cell), "samples for KL")
        inputs |= {
            "policy_logps": _preference_logps(cell, policy, ground.preferences, splits=("heldout",), mismatched=False),
            "kl_policy_logps": _completion_logps(cell, policy, kl, "policy's log-probs for KL"),
            "kl_reference_logps": _completion_logps(cell, ground.start, kl, "reference's log-probs for KL"),
        }
        roles["train"] = trained
    for manner, items, decoding in _questions(cell, sources):
        completions = generate(cell, policy, items, decoding, f"{manner} completions")
        roles |= {f"{manner}_items": items, f"{manner}_completions": completions}
        inputs[f"{manner}_completions"] = completions
        if cell.judge.name == "gold":
            verdicts = stage("judge", _judging(cell, manner), {"items": items, "completions": completions}, f"{manner} verdicts")
            roles[f"{manner}_verdicts"] = inputs[f"{manner}_verdicts"] = verdicts
    beta = None if isinstance(cell.method, NoMethod) else reward_scale(cell.method)
    score = stage("score", ScoreSettings(beta=beta, bootstrap_resamples=2000, bootstrap_seed=0), inputs, "score")
    roles["score"] = score
    key = hash_key({"cell": score.key})
    return CellPlan(cell, key, f"{readable_name(cell)}-{key[:8]}", score, roles)


def reward_scale(method: Trained) -> float:
    """What turns log-ratios into rewards: beta, or 1 (nats) for a method without one."""
    return getattr(method, "beta", 1.0)


def readable_name(cell: Cell) -> str:
    """What a folder is called, before its key: the settings that sweeps usually vary."""
    parts: list[str] = ["start" if cell.method.name == "none" else cell.method.name]
    if (beta := getattr(cell.method, "beta", None)) is not None:
        parts.append(f"beta{beta:g}")
    if cell.data.fraction != 1:
        parts.append(f"frac{cell.data.fraction:g}")
    parts += [cell.model.name, f"s{cell.seed}"]
    return "-".join(parts)


def start_cell(cell: Cell) -> Cell:
    """The cell that judges the start model of this one."""
    whole = cell.data.model_copy(update={"fraction": 1.0})  # how much is labelled does not touch the start model
    return cell.model_copy(update={"method": NoMethod(name="none"), "data": whole})


def _family(cell: Cell) -> TaskFamily:
    assert cell.world is not None  # config.Cell: data=world brings it
    return TaskFamily(categories=cell.world.categories, constraint_counts=cell.world.constraint_counts)


def dtype(cell: Cell) -> Dtype:
    return cell.model.dtype if isinstance(cell.model, LocalModel) else "float32"


def max_length(cell: Cell) -> int:
    """Tokens of prompt and completion that log-probs look at; the reference looks at what training looks at."""
    return cell.model.max_length


def _ground(cell: Cell, sources: Sources) -> Ground:
    start = _world_start(cell, cell.model) if isinstance(cell.model, WorldModel) else sources.model
    if start is None:
        raise ValueError("model=local: no source given")
    if isinstance(cell.data, WorldData):
        preferences = _world_preferences(cell, cell.data, start)
        kl_prompts = _prompts(cell, "kl", cell.data.n_kl_prompts, seed=cell.seed)
    else:
        if sources.data is None:
            raise ValueError("data=local: no source given")
        settings = LocalPairData(fraction=cell.data.fraction, heldout_fraction=cell.data.heldout_fraction, seed=cell.seed)
        preferences = stage("data", settings, {"file": sources.data}, "preferences")
        kl_prompts = stage("data", LocalPromptData(n=cell.data.n_kl_prompts), {"preferences": _whole(cell, sources.data)}, "KL prompts")
    reference = _preference_logps(cell, start, preferences, splits=("train", "heldout"), mismatched=True)
    return Ground(start, preferences, reference, kl_prompts)


def _whole(cell: Cell, data: Source) -> Stage:
    """All rows of the local file: which prompts are answered depends neither on how much is labelled nor on the replicate."""
    assert isinstance(cell.data, LocalData)
    settings = LocalPairData(fraction=1.0, heldout_fraction=cell.data.heldout_fraction, seed=0)
    return stage("data", settings, {"file": data}, "all rows")


def _world_start(cell: Cell, model: WorldModel) -> Stage:
    assert isinstance(cell.data, WorldData)
    training = model.pretraining
    corpus = CorpusData(family=_family(cell), n=training.steps * training.batch_size, seed=training.seed)
    architecture = model.model_dump(include={"hidden_size", "num_layers", "num_heads", "intermediate_size", "max_length"})
    base = stage("sft", BaseSettings(**architecture, pretraining=training), {"corpus": stage("data", corpus, label="corpus")}, "base model")
    demonstrations = DemonstrationData(
        family=_family(cell), writer=cell.data.demonstrations, n=cell.data.n_demonstrations, seed=cell.seed
    )
    return stage(
        "sft",
        SftSettings(training=model.sft, max_length=model.max_length, seed=cell.seed),
        {"model": base, "demonstrations": stage("data", demonstrations, label="demonstrations")},
        "start model",
    )


def _prompts(cell: Cell, split: Split, n: int, *, seed: int, n_turns: Literal[1, 2] = 1, reference: Writer | None = None) -> Stage:
    settings = PromptData(family=_family(cell), split=split, n=n, n_turns=n_turns, reference=reference, seed=seed)
    return stage("data", settings, label=f"{split} prompts{', two turns' if n_turns == 2 else ''}")


def _world_preferences(cell: Cell, data: WorldData, start: Stage | Source) -> Stage:
    """Sample two completions of each prompt from the start model, have them labelled, keep a fraction of the train pairs."""
    assert cell.world is not None
    labels: dict[str, Stage] = {}
    decoding = Decoding(temperature=data.sample_temperature, top_p=1.0, max_new_tokens=data.sample_max_new_tokens)
    sampling = SampleSettings(
        engine=cell.engine.name, decoding=decoding, draws=2, batch_size=cell.engine.batch_size, dtype=dtype(cell), seed=cell.seed
    )
    sizes: dict[Split, int] = {"train": data.n_prompts, "heldout": data.n_heldout_prompts}
    for split, n in sizes.items():
        prompts = _prompts(cell, split, n, seed=cell.seed)
        samples = stage("sample", sampling, {"model": start, "items": prompts}, f"{split} samples")
        gold = GoldLabels(gold=cell.world.gold, annotator=data.annotator, seed=cell.seed)
        labels[split] = stage("label", gold, {"items": prompts, "completions": samples}, f"{split} labels")
    return stage("data", PairData(form=data.form, fraction=data.fraction, seed=cell.seed), labels, "preferences")


def _preference_logps(cell: Cell, model: Stage | Source, preferences: Stage, *, splits: Sequence[str], mismatched: bool) -> Stage:
    settings = LogpsSettings(
        rows="preferences",
        splits=tuple(splits),
        mismatched=mismatched,
        max_length=max_length(cell),
        batch_size=cell.engine.batch_size,
        dtype=dtype(cell),
    )
    label = "reference log-probs" if mismatched else "held-out log-probs"
    return stage("logps", settings, {"model": model, "preferences": preferences}, label)


def _completion_logps(cell: Cell, model: Stage | Source, completions: Stage, label: str) -> Stage:
    settings = LogpsSettings(
        rows="completions", splits=(), mismatched=False, max_length=None, batch_size=cell.engine.batch_size, dtype=dtype(cell)
    )
    return stage("logps", settings, {"model": model, "completions": completions, "items": completions.inputs["items"]}, label)


def generate(cell: Cell, policy: Stage | Source, items: Stage, decoding: Decoding, label: str) -> Stage:
    settings = GenerateSettings(
        engine=cell.engine.name, decoding=decoding, batch_size=cell.engine.batch_size, dtype=dtype(cell), seed=cell.seed
    )
    return stage("generate", settings, {"model": policy, "items": items}, label)


def _kl_decoding(cell: Cell) -> Decoding:
    """The policy's own distribution, as long as the judge lets it write."""
    judged = cell.judge.preference.decoding if cell.judge.name == "gold" else cell.judge.decoding
    return Decoding(temperature=1.0, top_p=1.0, max_new_tokens=judged.max_new_tokens)


def _questions(cell: Cell, sources: Sources) -> list[tuple[str, Stage, Decoding]]:
    """(manner, items, decoding) of everything the policy is asked for the table."""
    judge = cell.judge
    if judge.name == "gold":
        assert cell.world is not None
        world, split = cell.world, judge.split
        single = _prompts(cell, split, judge.preference.n_items, seed=world.eval_seed, reference=world.reference)
        double = _prompts(cell, split, judge.rating.n_items, seed=world.eval_seed, n_turns=2)
        return [("preference", single, judge.preference.decoding), ("rating", double, judge.rating.decoding)]
    if sources.data is not None:
        items = stage("data", LocalPromptData(n=judge.n_items), {"preferences": _whole(cell, sources.data)}, "held-out prompts")
    else:
        assert cell.world is not None
        items = _prompts(cell, "evaluation", judge.n_items, seed=cell.world.eval_seed)
    return [("plain", items, judge.decoding)]


def _judging(cell: Cell, manner: str) -> Settings:
    assert cell.world is not None and cell.judge.name == "gold"
    if manner == "preference":
        return GoldPreferenceSettings(gold=cell.world.gold, temperature=cell.judge.preference.temperature)
    return GoldRatingSettings(gold=cell.world.gold)


# What a sweep takes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """Forecast of one stage. `seconds` is None where no like stage has run in this store; `tokens` is an upper bound."""

    seconds: float | None
    tokens: int
    dollars: float


@dataclass(frozen=True)
class Plan:
    cells: list[CellPlan]
    statuses: dict[Stage, Status]  # of the stages that the cells need, in an order in which they could run

    @property
    def to_do(self) -> list[Stage]:
        return [stage for stage, status in self.statuses.items() if status.state != "done"]

    @property
    def done(self) -> list[Stage]:
        return [stage for stage, status in self.statuses.items() if status.state == "done"]


def make_plan(cells: Sequence[CellPlan], store: Store) -> Plan:
    """What is needed and what of it is done. Inputs of a done stage are not needed, even when they are gone."""
    statuses: dict[Stage, Status] = {}
    order: dict[Stage, None] = {}

    def need(stage: Stage) -> None:
        if stage in statuses:
            return
        statuses[stage] = store.status(stage)
        if statuses[stage].state != "done":
            for source in stage.inputs.values():
                if isinstance(source, Stage):
                    need(source)
        order[stage] = None

    for cell in cells:
        for stage in [*cell.roles.values(), cell.score]:
            need(stage)
    return Plan(list(cells), {stage: statuses[stage] for stage in order})


Traits = frozenset[tuple[str, Any]]  # (dotted setting, value) of a stage and of the model that it works with


def estimates(stages: Sequence[Stage], store: Store) -> dict[Stage, Estimate]:
    """Forecasts from the stored timings of the most similar finished stages of the same kind, a token where stages have any.

    None where the likes were far smaller (FAR): most of a tiny stage's time is start-up, and says nothing of a large one.
    """
    paces: dict[str, dict[Traits, list[Pace]]] = {}
    for stage, seconds in _finished(store):
        tokens = token_bound(stage) or 1
        paces.setdefault(stage.kind, {}).setdefault(_traits(stage), []).append(Pace(seconds / tokens, tokens))
    nearest: dict[tuple[str, Traits], list[Pace]] = {}
    forecast = {}
    for stage in stages:
        like, tokens = (stage.kind, _traits(stage)), token_bound(stage)
        if like not in nearest:
            nearest[like] = _nearest(like[1], paces.get(stage.kind, {}))
        near = [pace.seconds_a_token for pace in nearest[like] if tokens <= FAR * pace.tokens]
        forecast[stage] = Estimate(statistics.median(near) * (tokens or 1) if near else None, tokens, 0.0)
    return forecast


FAR = 10  # times the tokens


class Pace(NamedTuple):
    seconds_a_token: float
    tokens: int


def _nearest(traits: Traits, known: Mapping[Traits, Sequence[Pace]]) -> list[Pace]:
    """Paces of the stages that differ in the fewest settings."""
    least = min((len(traits ^ other) for other in known), default=0)
    return [pace for other, paces in known.items() if len(traits ^ other) == least for pace in paces]


def _traits(stage: Stage) -> Traits:
    own = frozenset(_flat(keyed_settings(stage.settings)))
    model = stage.inputs.get("model")
    return own | {(f"model.{name}", value) for name, value in _traits(model)} if isinstance(model, Stage) else own


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, tuple(value) if isinstance(value, list) else value


def _finished(store: Store) -> list[tuple[Stage, float]]:
    """(stage, wall seconds) of what the store holds; stages of other versions of bench are left out."""
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
    return [(stage, manifests[key].timings["wall_s"]) for key, stage in stages.items()]


def _read_settings(manifest: Manifest) -> Settings:
    """The settings record of a stored stage. Raises ValueError for one that this version of bench does not know."""
    for record in SETTINGS.get(manifest.kind, ()):
        with contextlib.suppress(ValidationError):
            return record.model_validate(manifest.settings)
    raise ValueError(f"{manifest.kind}/{manifest.key} has settings of another version of bench")


def token_bound(stage: Stage) -> int:
    """Most tokens that a stage writes, scores or trains on (once an epoch); 0 where no model runs or a file's rows are not counted."""
    settings, inputs = stage.settings, stage.inputs
    match settings:
        case BaseSettings():
            return settings.pretraining.steps * settings.pretraining.batch_size * settings.max_length
        case SftSettings():
            return settings.training.steps * settings.training.batch_size * settings.max_length
        case SampleSettings():
            return _answers(inputs["items"]) * settings.draws * settings.decoding.max_new_tokens
        case GenerateSettings():
            return _answers(inputs["items"]) * settings.decoding.max_new_tokens
        case LogpsSettings(rows="completions"):
            return token_bound(inputs["completions"]) if isinstance(inputs["completions"], Stage) else 0
        case LogpsSettings(max_length=int(max_length)):
            rows = sum(_completions(inputs["preferences"], split) for split in settings.splits)
            return rows * (2 if settings.mismatched else 1) * max_length
        case TrainSettings():
            rows = _completions(inputs["preferences"], "train") * (2 if settings.method.name == "kto" else 1)
            return math.ceil(rows * settings.max_length * settings.method.num_train_epochs)
    return 0


def _answers(items: Stage | Source) -> int:
    """How many completions a set of items asks for."""
    assert isinstance(items, Stage) and isinstance(items.settings, (PromptData, LocalPromptData))
    return items.settings.n * (items.settings.n_turns if isinstance(items.settings, PromptData) else 1)


def _completions(preferences: Stage | Source, split: str) -> int:
    """Most judged completions that a split of preference rows can hold; 0 for a user's file, which is counted when it is read."""
    if not (isinstance(preferences, Stage) and isinstance(preferences.settings, PairData)):
        return 0
    labels = preferences.inputs[split]
    assert isinstance(labels, Stage)
    rows = _answers(labels.inputs["items"]) * (preferences.settings.fraction if split == "train" else 1)
    return math.ceil(rows) * (2 if preferences.settings.form == "paired" else 1)
