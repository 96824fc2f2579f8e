"""Cells to stages: how a cell's stages hang together, and what of them is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.config import (
    AlpacaEvalJudge,
    Asking,
    Cell,
    Decoding,
    LocalData,
    LocalModel,
    MtBenchJudge,
    NoMethod,
    Settings,
    Trained,
    WorldData,
    WorldModel,
    Writer,
)
from bench.kinds import (
    BaseSettings,
    CorpusData,
    DemonstrationData,
    Dtype,
    GenerateSettings,
    GoldLabels,
    GoldPreferenceSettings,
    GoldRatingSettings,
    JudgeItemData,
    LanguageJudgeSettings,
    LocalPairData,
    LocalPromptData,
    LogpsSettings,
    PairData,
    PromptData,
    SampleSettings,
    ScoreSettings,
    SftSettings,
    Split,
    TaskFamily,
    stage,
)
from bench.store import Source, Stage, Status, Store, canonical_json, hash_key


@dataclass(frozen=True)
class JudgeSources:
    """What a judge that is a language model reads from outside the store."""

    prompts: Source  # what it is asked with, and how its replies are read
    parser: str  # version of that reading
    model: Source | None = None  # its folder, where it is served here
    files: Mapping[str, Source] = field(default_factory=dict)  # items, references, baseline
    n_items: int = 0  # that `items` holds


@dataclass(frozen=True)
class Sources:
    """What a cell reads from outside the store."""

    model: Source | None = None
    data: Source | None = None
    judge: JudgeSources | None = None


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


@dataclass(frozen=True)
class Policy:
    """What a method hands over to be judged: the model that writes."""

    model: Stage | Source
    train: Stage | None  # its last training; None where nothing was trained


Chain = Callable[[Cell, Ground], Policy]


def plan_cell(cell: Cell, sources: Sources, chain: Chain) -> CellPlan:
    """The graph of one cell. `chain` gives what a method hands over to be judged."""
    cell = start_cell(cell) if cell.method.name == "none" else cell
    ground = _ground(cell, sources)
    policy = chain(cell, ground)
    roles: dict[str, Stage] = {"preferences": ground.preferences}
    inputs: dict[str, Stage] = {"preferences": ground.preferences, "reference_logps": ground.reference}
    if policy.train is not None:
        kl = generate(cell, policy.model, ground.kl_prompts, _kl_decoding(cell), "samples for KL")
        inputs |= {
            "policy_logps": _preference_logps(cell, policy.model, ground.preferences, splits=("heldout",), mismatched=False),
            "kl_policy_logps": _completion_logps(cell, policy.model, kl, "policy's log-probs for KL"),
            "kl_reference_logps": _completion_logps(cell, ground.start, kl, "reference's log-probs for KL"),
        }
        roles["train"] = policy.train
    for manner, items, decoding in _questions(cell, sources):
        completions = generate(cell, policy.model, items, decoding, f"{manner} completions", answers=True)
        roles |= {f"{manner}_items": items, f"{manner}_completions": completions}
        inputs[f"{manner}_completions"] = completions
        if cell.judge.name != "none":
            judging, read = _judging(cell, manner, sources)
            verdicts = stage("judge", judging, {"items": items, "completions": completions, **read}, f"{manner} verdicts")
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
    demonstrations = DemonstrationData(family=_family(cell), writer=cell.data.demonstrations, n=cell.data.n_demonstrations, seed=cell.seed)
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


def generate(cell: Cell, policy: Stage | Source, items: Stage, decoding: Decoding, label: str, answers: bool = False) -> Stage:
    """`answers`: to the judge's items, whose categories may have temperatures of their own."""
    settings = GenerateSettings(
        engine=cell.engine.name,
        decoding=decoding,
        batch_size=cell.engine.batch_size,
        dtype=dtype(cell),
        seed=cell.seed,
        temperatures=cell.judge.temperatures if answers and isinstance(cell.judge, MtBenchJudge) else {},
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
    if isinstance(judge, (AlpacaEvalJudge, MtBenchJudge)):
        manner = "rating" if isinstance(judge, MtBenchJudge) and judge.mode == "single" else "preference"
        return [(manner, _judge_items(cell, judge, sources), judge.decoding)]
    if sources.data is not None:
        items = stage("data", LocalPromptData(n=judge.n_items), {"preferences": _whole(cell, sources.data)}, "held-out prompts")
    else:
        assert cell.world is not None
        items = _prompts(cell, "evaluation", judge.n_items, seed=cell.world.eval_seed)
    return [("plain", items, judge.decoding)]


def _judge_items(cell: Cell, judge: AlpacaEvalJudge | MtBenchJudge, sources: Sources) -> Stage:
    """The items of the user's file, or the world's own evaluation prompts with its reference writer as the opponent."""
    n_turns: Literal[1, 2] = 2 if isinstance(judge, MtBenchJudge) else 1
    if sources.judge is None or not sources.judge.files:
        assert cell.world is not None and judge.n_items is not None
        return _prompts(cell, "evaluation", judge.n_items, seed=cell.world.eval_seed, n_turns=n_turns, reference=cell.world.reference)
    n = min(judge.n_items or sources.judge.n_items, sources.judge.n_items)
    return stage("data", JudgeItemData(form=judge.name, n=n, n_turns=n_turns), sources.judge.files, f"{judge.name} items")


def _judging(cell: Cell, manner: str, sources: Sources) -> tuple[Settings, dict[str, Source]]:
    """(settings, what is read beside items and completions) of a stage that judges."""
    judge = cell.judge
    if isinstance(judge, (AlpacaEvalJudge, MtBenchJudge)):
        assert sources.judge is not None
        read = {"prompts": sources.judge.prompts} | ({"model": sources.judge.model} if sources.judge.model else {})
        return _language_judging(judge, sources.judge), read
    return _gold_judging(cell, manner), {}


def _language_judging(judge: AlpacaEvalJudge | MtBenchJudge, sources: JudgeSources) -> LanguageJudgeSettings:
    verdict = judge.verdict
    return LanguageJudgeSettings(
        manner=judge.name,
        mode=judge.order if isinstance(judge, AlpacaEvalJudge) else judge.mode,
        model=None if sources.model else judge.model,
        provider=judge.provider if judge.server == "endpoint" else judge.server,
        dtype=judge.dtype,
        server_args=judge.server_args,
        temperature=verdict.temperature,
        top_p=verdict.top_p,
        max_tokens=verdict.max_tokens,
        top_logprobs=verdict.top_logprobs,
        request=canonical_json(verdict.request),
        parser=sources.parser,
        annotator=judge.annotator if isinstance(judge, AlpacaEvalJudge) else "",
        asking=Asking.model_validate(judge.model_dump(include=set(Asking.model_fields))),
    )


def _gold_judging(cell: Cell, manner: str) -> Settings:
    assert cell.world is not None and cell.judge.name == "gold"
    if manner == "preference":
        return GoldPreferenceSettings(gold=cell.world.gold, temperature=cell.judge.preference.temperature)
    return GoldRatingSettings(gold=cell.world.gold)


# What is done ---------------------------------------------------------------------------------------------------------


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
        for role in [*cell.roles.values(), cell.score]:
            need(role)
    return Plan(list(cells), {needed: statuses[needed] for needed in order})
