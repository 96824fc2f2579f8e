"""Cells to stages: how a cell's stages hang together, and what of them is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.config import (
    Adapter,
    AlpacaEvalJudge,
    ArenaHardJudge,
    Asking,
    Audit,
    BestOfN,
    Cell,
    DatasetData,
    Decoding,
    Forgetting,
    GoldJudge,
    JuryJudge,
    LanguageJudge,
    Loading,
    LocalData,
    LocalModel,
    Loop,
    Member,
    ModelJudge,
    MtBenchJudge,
    NoJudge,
    NoMethod,
    NoModel,
    PairRankerJudge,
    RefinedDpo,
    Serving,
    Settings,
    SftTraining,
    Trained,
    Training,
    Vllm,
    WorldData,
    WorldModel,
    Writer,
    Written,
    as_name,
)
from bench.kinds import (
    TOKENIZER,
    AuditSettings,
    BaseSettings,
    CanaryData,
    ChosenData,
    ConversationData,
    ConversationSft,
    CorpusData,
    DatasetRows,
    DemonstrationData,
    DrawnData,
    Dtype,
    GenerateSettings,
    GoldLabels,
    GoldPreferenceSettings,
    GoldRatingSettings,
    JudgeItemData,
    JurySettings,
    LanguageJudgeSettings,
    LocalPairData,
    LocalPromptData,
    LogpsSettings,
    OverlapData,
    PairData,
    PairRankerSettings,
    PromptData,
    RecordedData,
    RewardJudgeSettings,
    RewardScoreSettings,
    SampleSettings,
    ScoreSettings,
    SftSettings,
    Split,
    TaskFamily,
    TaskSettings,
    TrainSettings,
    WrittenCompletions,
    WrittenData,
    stage,
)
from bench.readers import version
from bench.store import Source, Stage, Status, Store, canonical_json, hash_key

Manner = Literal["preference", "rating"]  # what a verdict is


@dataclass(frozen=True)
class JudgeSources:
    """What a judge that is no function of the world reads from outside the store."""

    prompts: Source | None  # what it is asked with, and how its replies are read; None of one that is a function
    parser: str  # version of that reading
    model: Source | None = None  # its folder, where it is served here
    files: Mapping[str, Source] = field(default_factory=dict)  # items, references, baseline
    n_items: int = 0  # that `items` holds
    calibration: Source | None = None  # of length control
    members: Mapping[str, JudgeSources] = field(default_factory=dict)  # of a jury, less those that read nothing


@dataclass(frozen=True)
class Sources:
    """What a cell reads from outside the store."""

    model: Source | None = None
    data: Source | None = None
    completions: Source | None = None
    judge: JudgeSources | None = None
    base: Source | None = None  # what the model was tuned from
    labelling_judge: JudgeSources | None = None
    prompts: Source | None = None  # new ones of a loop
    conversations: Source | None = None  # that a start model learns from
    tasks: Source | None = None  # own ones of the forgetting check


@dataclass(frozen=True)
class Ground:
    """What cells of one model, data and seed share."""

    start: Stage | Source
    preferences: Stage
    reference: Stage  # log-probs of the start model, on train and held-out rows
    kl_prompts: Stage
    base: Stage | Source | None = None  # what the start model was tuned from; None where nobody says
    labelling_judge: JudgeSources | None = None
    prompts: Source | None = None  # new ones of a loop, where a file brings them


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
    """What a method hands over to be judged: the model that writes, how it is asked, and who chooses among `best_of` samples of it."""

    model: Stage | Source
    train: Stage | None  # its last training; None where nothing was trained
    control: str | None = None  # token after every prompt, whatever is asked or scored; engines refuse the model without it
    reward_model: Stage | Source | None = None
    best_of: int = 1
    labels: Sequence[Stage] = ()  # of the pairs that its last training read, where a loop made them; the loop's latest last
    self_judge: Stage | None = None  # how well it judges, where that is asked


Chain = Callable[[Cell, Ground], Policy]


def plan_cell(cell: Cell, sources: Sources, chain: Chain) -> CellPlan:
    """The graph of one cell. `chain` gives what a method hands over to be judged."""
    if isinstance(cell.method, Written):
        return _judged(cell, sources, None, {}, {})
    cell = start_cell(cell) if cell.method.name == "none" else cell
    ground = _ground(cell, sources)
    policy = chain(cell, ground)
    if policy.train is None:  # judged as it is: what it would learn from need not be made
        return _judged(cell, sources, policy, {}, {})
    roles: dict[str, Stage] = {"preferences": ground.preferences}
    inputs: dict[str, Stage] = {"preferences": ground.preferences, "reference_logps": ground.reference}
    if policy.reward_model is not None:
        inputs["rewards"] = _preference_rewards(cell, policy.reward_model, ground.preferences)
    else:
        kl = generate(cell, policy, ground.kl_prompts, _kl_decoding(cell), "samples for KL")
        inputs |= {
            "policy_logps": preference_logps(cell, policy, ground.preferences, splits=("heldout",), mismatched=False),
            "kl_policy_logps": completion_logps(cell, policy, kl, "policy's log-probs for KL"),
            "kl_reference_logps": completion_logps(cell, Policy(ground.start, None), kl, "reference's log-probs for KL"),
        }
    if policy.labels:
        inputs |= {"training": policy.train} | {f"labels_{number:02d}": labels for number, labels in enumerate(policy.labels)}
    roles["train"] = policy.train
    if isinstance(cell.data, FILES) and "items" not in ground.preferences.inputs and (items := _asked(cell, sources)) is not None:
        roles["overlap"] = stage("data", OverlapData(), {"preferences": ground.preferences, "items": items}, "overlap with judge's items")
    if policy.self_judge is not None:
        inputs["self_judge"] = policy.self_judge
    return _judged(cell, sources, policy, roles, inputs)


def _judged(cell: Cell, sources: Sources, policy: Policy | None, roles: dict[str, Stage], inputs: dict[str, Stage]) -> CellPlan:
    """The rest of a cell's graph: the completions of a policy, or of a file where there is none, their verdicts and numbers."""
    read_too: dict[str, Stage | Source] = {}  # by the score
    for manner, items, decoding in _questions(cell, sources):
        if policy is not None:
            completions = generate(cell, policy, items, decoding, f"{manner} completions", answers=True)
        else:
            assert sources.completions is not None
            inputs_of: dict[str, Stage | Source] = {"file": sources.completions, "items": items}
            completions = stage("generate", WrittenCompletions(), inputs_of, f"{manner} completions")
        roles |= {f"{manner}_items": items, f"{manner}_completions": completions}
        inputs[f"{manner}_completions"] = completions
        if isinstance(cell.judge, JuryJudge):
            members = _members(cell, cell.judge, sources, items, completions)
            verdicts = stage("judge", JurySettings(), {"items": items, "completions": completions, **members}, f"{manner} verdicts")
            roles |= members | {f"{manner}_verdicts": verdicts}
            inputs |= members | {f"{manner}_verdicts": verdicts}
        elif cell.judge.name != "none":
            judging, read = _judging(cell, manner, sources)
            verdicts = stage("judge", judging, {"items": items, "completions": completions, **read}, f"{manner} verdicts")
            roles[f"{manner}_verdicts"] = inputs[f"{manner}_verdicts"] = verdicts
        if sources.judge and sources.judge.calibration:
            read_too[f"{manner}_items"], read_too["calibration"] = items, sources.judge.calibration
    if cell.forgetting is not None and policy is not None:
        roles["tasks"] = inputs["tasks"] = _tasks(cell, cell.forgetting, policy, sources)
    learnt = policy is not None and policy.train is not None  # a loop's iteration 0 may be the start model
    beta = None if not learnt or isinstance(cell.method, NoMethod | Written | BestOfN) else reward_scale(cell.method)
    best_of = policy.best_of if policy else 1
    scoring = ScoreSettings(beta=beta, bootstrap_resamples=2000, bootstrap_seed=0, best_of=best_of)
    score = stage("score", scoring, {**inputs, **read_too}, "score")
    roles["score"] = score
    key = hash_key({"cell": score.key})
    return CellPlan(cell, key, f"{readable_name(cell)}-{key[:8]}", score, roles)


def _tasks(cell: Cell, forgetting: Forgetting, policy: Policy, sources: Sources) -> Stage:
    asked = forgetting.model_dump(include={"tasks", "limit", "chat_template", "batch_size"})
    settings = TaskSettings(dtype=dtype(cell), loading=loading(cell), **asked)
    return stage("tasks", settings, read_model(policy.model) | ({"tasks": sources.tasks} if sources.tasks else {}), "tasks")


MEMBER = "member_"  # begins the role of a jury's member, whose label follows


def member_role(label: str) -> str:
    return f"{MEMBER}{label}_verdicts"


def member_label(role: str) -> str | None:
    """The member that a role is of; None where it is of none."""
    return role.removeprefix(MEMBER).removesuffix("_verdicts") if role.startswith(MEMBER) else None


def _members(cell: Cell, jury: JuryJudge, sources: Sources, items: Stage, completions: Stage) -> dict[str, Stage]:
    """Each member's stage: the very one that it would be if it judged alone."""
    assert sources.judge is not None
    found = {}
    for label, judge in jury.judges.items():
        settings, read = judging_by(judge, cell, "preference", sources.judge.members.get(label))
        inputs: dict[str, Stage | Source] = {"items": items, "completions": completions, **read}
        found[member_role(label)] = stage("judge", settings, inputs, f"verdicts of {label}")
    return found


def reward_scale(method: Training) -> float:
    """What turns log-ratios into rewards: beta, or 1 (nats) for a method without one."""
    return getattr(method, "beta", 1.0)


def readable_name(cell: Cell) -> str:
    """What a folder is called, before its key: the settings that sweeps usually vary."""
    if isinstance(cell.method, Written):
        return f"completions-{cell.method.label}-s{cell.seed}"
    parts: list[str] = ["start" if cell.method.name == "none" else cell.method.name]
    if isinstance(cell.method, Loop):
        parts.append(f"i{cell.method.iteration}")
    parts += [f"{name}{value:g}" for name in ("beta", "n") if (value := getattr(cell.method, name, None)) is not None]
    if cell.data.fraction != 1:
        parts.append(f"frac{cell.data.fraction:g}")
    if isinstance(cell.model, WorldModel) and cell.model.start == "base":
        parts.append("base")
    if cell.adapter.name != "none" and cell.method.name != "none":
        parts.append(cell.adapter.name)
    parts += [cell.model.name, f"s{cell.seed}"]
    return "-".join(parts)


def start_cell(cell: Cell) -> Cell:
    """The cell that judges the start model of this one; completions of a file have none and are their own."""
    if isinstance(cell.method, Written):
        return cell
    # How much is labelled, and in which form, does not touch the start model.
    whole: dict[str, Any] = {"fraction": 1.0, "desirable_fraction": 1.0, "undesirable_fraction": 1.0}
    data = cell.data.model_copy(update=whole | ({"form": "paired"} if isinstance(cell.data, WorldData) else {}))
    return cell.model_copy(update={"method": NoMethod(name="none"), "data": data})


def family(cell: Cell) -> TaskFamily:
    assert cell.world is not None  # config.Cell: data=world brings it
    return TaskFamily(categories=cell.world.categories, constraint_counts=cell.world.constraint_counts)


def dtype(cell: Cell) -> Dtype:
    return cell.model.dtype if isinstance(cell.model, LocalModel) else "float32"


def loading(cell: Cell) -> Loading:
    return Loading(attention=getattr(cell.model, "attention", "auto"), quantized="nf4" if cell.adapter.name == "qlora" else None)


def adapter(cell: Cell) -> Adapter | None:
    return cell.adapter if isinstance(cell.adapter, Adapter) else None


def train_settings(cell: Cell, method: Trained | RefinedDpo) -> TrainSettings:
    return TrainSettings(method=method, adapter=adapter(cell), loading=loading(cell), **trained_as(cell))


def trained_as(cell: Cell) -> dict[str, Any]:
    """What every training of a cell's model shares."""
    checkpointing = cell.model.gradient_checkpointing if isinstance(cell.model, LocalModel) else "auto"
    return {"max_length": max_length(cell), "dtype": dtype(cell), "seed": cell.seed, "gradient_checkpointing": checkpointing}


def read_model(model: Stage | Source) -> dict[str, Stage | Source]:
    """Inputs of a stage that reads a model: itself, and of one that is an adapter the `base` that it was trained beside."""
    base = model
    while isinstance(base, Stage) and getattr(base.settings, "adapter", None) is not None:
        base = base.inputs["model"]
    return {"model": model} | ({} if base is model else {"base": base})


def max_length(cell: Cell) -> int:
    """Tokens of prompt and completion that log-probs look at; the reference looks at what training looks at."""
    assert not isinstance(cell.model, NoModel)
    return cell.model.max_length


def _ground(cell: Cell, sources: Sources) -> Ground:
    tuned = _world_start(cell, cell.model) if isinstance(cell.model, WorldModel) else _tuned(cell, sources)
    base = sources.base or (tuned.inputs["model"] if isinstance(tuned, Stage) else None)
    start = base if isinstance(cell.model, WorldModel) and cell.model.start == "base" else tuned
    if start is None or tuned is None:
        raise ValueError("model=local: no source given")
    splits: tuple[Split, ...] = ("train", "heldout") if cell.data.fraction else ("heldout",)
    if isinstance(cell.data, WorldData):
        labels: dict[str, Stage | Source] = {split: _labels(cell, cell.data, split, tuned) for split in splits}
        preferences = stage("data", PairData(form=cell.data.form, seed=cell.seed, **_kept(cell.data)), labels, "preferences")
        kl_prompts = _prompts(cell, "kl", cell.data.n_kl_prompts, seed=cell.seed)
    else:
        preferences = stage("data", pair_settings(cell), rows_read(cell, sources), "preferences")
        kl_prompts = stage("data", LocalPromptData(n=cell.data.n_kl_prompts), {"preferences": _whole(cell, sources)}, "KL prompts")
    reference = preference_logps(cell, Policy(start, None), preferences, splits=splits, mismatched=True)
    return Ground(start, preferences, reference, kl_prompts, base, sources.labelling_judge, sources.prompts)


FILES = (LocalData, DatasetData)


def _kept(data: WorldData | LocalData | DatasetData) -> dict[str, Any]:
    """Which shares of the labelled train rows are used."""
    return data.model_dump(include={"fraction", "desirable_fraction", "undesirable_fraction"})


def pair_settings(cell: Cell) -> LocalPairData:
    """How the rows of a file or a public dataset are divided."""
    data = cell.data
    assert isinstance(data, FILES)
    if isinstance(data, LocalData):
        return LocalPairData(heldout_fraction=data.heldout_fraction, seed=cell.seed, **_looked_at(cell, data), **_kept(data))
    own = {name: getattr(data, name) for name in DatasetRows.model_fields.keys() - {"version"}}
    rows = DatasetRows(version=version(data.reading.reader), **own)
    overlap = data.overlap if cell.judge.name not in ("none", "gold") else "report"  # with held-out prompts there is none
    of_rows: dict[str, Any] = {"dataset": rows, "overlap": overlap, **_looked_at(cell, data)}
    return LocalPairData(heldout_fraction=data.heldout_fraction, seed=cell.seed, **of_rows, **_kept(data))


def _looked_at(cell: Cell, data: LocalData | DatasetData) -> dict[str, Any]:
    """How rows are looked at through the model's tokenizer."""
    length = cell.model.max_length if isinstance(cell.model, LocalModel) else None
    return {"max_length": length, "unwritable": data.unwritable, "version": 2}


def rows_read(cell: Cell, sources: Sources) -> dict[str, Stage | Source]:
    """What rows are read from, and the judge's items where train rows that ask the same are left out."""
    items = _asked(cell, sources) if pair_settings(cell).overlap != "report" else None
    return _file(cell, sources) | ({} if items is None else {"items": items})


def _file(cell: Cell, sources: Sources) -> dict[str, Stage | Source]:
    """The file or dataset, and the model whose tokenizer and chat template say which rows something is learnt from."""
    if sources.data is None:
        raise ValueError(f"data={cell.data.name}: no source given")
    found: dict[str, Stage | Source] = {"file": sources.data}
    return found if sources.model is None else found | {TOKENIZER: sources.model}


def _asked(cell: Cell, sources: Sources) -> Stage | None:
    """Items that a judge brings; the others' are held-out prompts."""
    if isinstance(cell.judge, (LanguageJudge, ModelJudge, JuryJudge)) and sources.judge and sources.judge.files:
        return _judge_items(cell, cell.judge, sources)
    return None


def _whole(cell: Cell, sources: Sources) -> Stage:
    """All rows of the file: which prompts are answered depends neither on how much is labelled nor on the replicate."""
    whole = {"fraction": 1.0, "desirable_fraction": 1.0, "undesirable_fraction": 1.0, "seed": 0, "overlap": "report", "max_length": None}
    return stage("data", pair_settings(cell).model_copy(update=whole), _file(cell, sources), "all rows")


def _tuned(cell: Cell, sources: Sources) -> Stage | Source | None:
    """The user's model, or what supervised fine-tuning makes of it."""
    if cell.sft is None or sources.model is None:
        return sources.model
    if sources.conversations is None:
        raise ValueError(f"sft={cell.sft.name}: no source given")
    of_rows = ConversationData(version=version("conversations"), files=cell.sft.train_files, fraction=cell.sft.fraction, seed=cell.seed)
    conversations = stage("data", of_rows, {"file": sources.conversations}, "conversations")
    settings = ConversationSft(training=cell.sft.training, **trained_as(cell))
    return stage("sft", settings, {"model": sources.model, "conversations": conversations}, "start model")


def _world_start(cell: Cell, model: WorldModel) -> Stage:
    assert isinstance(cell.data, WorldData)
    data, training = cell.data, model.pretraining
    corpus = CorpusData(family=family(cell), n=training.steps * training.batch_size, seed=training.seed)
    architecture = model.model_dump(include={"hidden_size", "num_layers", "num_heads", "intermediate_size", "max_length"})
    base = stage("sft", BaseSettings(**architecture, pretraining=training), {"corpus": stage("data", corpus, label="corpus")}, "base model")

    def tuned(model_before: Stage, writer: Writer, sft: SftTraining, name: str) -> Stage:
        demonstrations = DemonstrationData(family=family(cell), writer=writer, n=data.n_demonstrations, seed=cell.seed)
        inputs = {"model": model_before, "demonstrations": stage("data", demonstrations, label=f"{name}demonstrations")}
        return stage("sft", SftSettings(training=sft, max_length=model.max_length, seed=cell.seed), inputs, f"{name}start model")

    if data.earlier:
        sft = model.sft.model_copy(update={"steps": data.earlier.steps})
        base = tuned(base, data.earlier.demonstrations, sft, "earlier ")
    return tuned(base, data.demonstrations, model.sft, "")


def _prompts(cell: Cell, split: Split, n: int, *, seed: int, n_turns: Literal[1, 2] = 1, reference: Writer | None = None) -> Stage:
    settings = PromptData(family=family(cell), split=split, n=n, n_turns=n_turns, reference=reference, seed=seed)
    return stage("data", settings, label=f"{split} prompts{', two turns' if n_turns == 2 else ''}")


def _labels(cell: Cell, data: WorldData, split: Split, tuned: Stage | Source | None, *, n: int = 0, seed: int | None = None) -> Stage:
    """Two completions of each prompt of a split, by the fine-tuned model or the demonstrations' writer, and which the annotator chose."""
    assert cell.world is not None
    seed = cell.seed if seed is None else seed
    sizes = {"train": data.n_prompts, "heldout": data.n_heldout_prompts}
    prompts = _prompts(cell, split, sizes.get(split, n), seed=seed)
    if data.completions_by == "writer":
        written = WrittenData(writer=data.demonstrations, draws=2, seed=seed)
        samples = stage("data", written, {"items": prompts}, f"{split} completions by the writer")
    else:
        assert tuned is not None
        decoding = Decoding(temperature=data.sample_temperature, top_p=1.0, max_new_tokens=data.sample_max_new_tokens)
        sampling = sample_settings(cell, decoding, draws=2, seed=seed)
        samples = stage("sample", sampling, {"model": tuned, "items": prompts}, f"{split} samples")
    gold = GoldLabels(gold=cell.world.gold, annotator=data.annotator, seed=seed)
    return stage("label", gold, {"items": prompts, "completions": samples}, f"{split} labels")


def sample_settings(cell: Cell, decoding: Decoding, draws: int, seed: int) -> SampleSettings:
    engine = cell.engine
    return SampleSettings(
        engine=engine.name,
        decoding=decoding,
        draws=draws,
        batch_size=engine.batch_size,
        dtype=dtype(cell),
        seed=seed,
        loading=loading(cell),
        serving=_serving(cell),
    )


def _serving(cell: Cell) -> Serving | None:
    engine = cell.engine
    return Serving.model_validate(engine.model_dump(include=set(Serving.model_fields))) if isinstance(engine, Vllm) else None


def preference_logps(
    cell: Cell, policy: Policy, preferences: Stage, *, splits: Sequence[str], mismatched: bool, label: str = ""
) -> Stage:
    settings = LogpsSettings(
        rows="preferences",
        splits=tuple(splits),
        mismatched=mismatched,
        max_length=max_length(cell),
        batch_size=cell.engine.batch_size,
        dtype=dtype(cell),
        control=policy.control,
        loading=loading(cell),
    )
    label = label or ("reference log-probs" if mismatched else "held-out log-probs")
    return stage("logps", settings, read_model(policy.model) | {"preferences": preferences}, label)


def _preference_rewards(cell: Cell, reward_model: Stage | Source, preferences: Stage) -> Stage:
    settings = RewardScoreSettings(splits=("heldout",), max_length=max_length(cell), batch_size=cell.engine.batch_size, dtype=dtype(cell))
    return stage("logps", settings, {"model": reward_model, "preferences": preferences}, "held-out rewards")


def completion_logps(cell: Cell, policy: Policy, completions: Stage, label: str, max_length: int | None = None) -> Stage:
    by_vllm = isinstance(cell.engine, Vllm) and cell.engine.logps == "vllm"
    settings = LogpsSettings(
        rows="completions",
        splits=(),
        mismatched=False,
        max_length=max_length,
        batch_size=cell.engine.batch_size,
        dtype=dtype(cell),
        control=policy.control,
        engine="vllm" if by_vllm else "transformers",
        serving=_serving(cell) if by_vllm else None,
        loading=loading(cell),
    )
    inputs = read_model(policy.model) | {"completions": completions, "items": completions.inputs["items"]}
    return stage("logps", settings, inputs, label)


def generate(cell: Cell, policy: Policy, items: Stage, decoding: Decoding, label: str, answers: bool = False) -> Stage:
    """`answers`: to the judge's items, whose categories may have temperatures of their own."""
    settings = GenerateSettings(
        engine=cell.engine.name,
        decoding=decoding,
        batch_size=cell.engine.batch_size,
        dtype=dtype(cell),
        seed=cell.seed,
        best_of=policy.best_of,
        control=policy.control,
        loading=loading(cell),
        temperatures=cell.judge.temperatures if answers and isinstance(cell.judge, MtBenchJudge) else {},
        serving=_serving(cell),
    )
    inputs = read_model(policy.model) | {"items": items} | ({} if policy.reward_model is None else {"reward_model": policy.reward_model})
    return stage("generate", settings, inputs, label)


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
        n = judge.preference.n_items
        single = _prompts(cell, split, n, seed=world.eval_seed, reference=world.reference)
        if judge.preference.opponent == "chosen":
            assert isinstance(cell.data, WorldData)
            labels = _labels(cell, cell.data, split, None, n=n, seed=world.eval_seed)
            single = stage("data", ChosenData(), {"items": labels.inputs["items"], "labels": labels}, f"{split} prompts and chosen answers")
        double = _prompts(cell, split, judge.rating.n_items, seed=world.eval_seed, n_turns=2)
        return [("preference", single, judge.preference.decoding), ("rating", double, judge.rating.decoding)]
    if isinstance(judge, (LanguageJudge, ModelJudge, JuryJudge)):
        manner = "rating" if isinstance(judge, MtBenchJudge) and judge.mode == "single" else "preference"
        return [(manner, _judge_items(cell, judge, sources), judge.decoding)]
    if sources.data is not None:
        items = stage("data", LocalPromptData(n=judge.n_items), {"preferences": _whole(cell, sources)}, "held-out prompts")
    else:
        assert cell.world is not None
        items = _prompts(cell, "evaluation", judge.n_items, seed=cell.world.eval_seed)
    return [("plain", items, judge.decoding)]


def _judge_items(cell: Cell, judge: LanguageJudge | ModelJudge | JuryJudge, sources: Sources) -> Stage:
    """The items of the user's file, or the world's own evaluation prompts with its reference writer as the opponent."""
    n_turns: Literal[1, 2] = 2 if isinstance(judge, MtBenchJudge) else 1
    if sources.judge is None or not sources.judge.files:
        assert cell.world is not None and judge.n_items is not None
        return _prompts(cell, "evaluation", judge.n_items, seed=cell.world.eval_seed, n_turns=n_turns, reference=cell.world.reference)
    n = min(judge.n_items or sources.judge.n_items, sources.judge.n_items)
    return stage("data", JudgeItemData(form=_form(judge), n=n, n_turns=n_turns), sources.judge.files, f"{cell.judge.name} items")


def _form(judge: LanguageJudge | ModelJudge | JuryJudge) -> Literal["alpaca_eval", "mt_bench", "arena_hard"]:
    if isinstance(judge, ArenaHardJudge) and judge.baseline is not None:
        return "arena_hard"
    return "mt_bench" if isinstance(judge, MtBenchJudge) else "alpaca_eval"


def _judging(cell: Cell, manner: str, sources: Sources) -> tuple[Settings, dict[str, Source]]:
    """(settings, what is read beside items and completions) of a stage that judges."""
    assert not isinstance(cell.judge, (NoJudge, JuryJudge))
    return judging_by(cell.judge, cell, manner, sources.judge)


def judging_by(judge: Member | MtBenchJudge, cell: Cell, manner: str, sources: JudgeSources | None) -> tuple[Settings, dict[str, Source]]:
    """The same by a judge that may be one of several, or label samples."""
    if isinstance(judge, GoldJudge):
        return _gold_judging(cell, judge, manner), {}
    assert sources is not None
    if isinstance(judge, LanguageJudge):
        assert sources.prompts is not None
        return _language_judging(judge, sources), {"prompts": sources.prompts} | ({"model": sources.model} if sources.model else {})
    assert sources.model is not None
    if isinstance(judge, PairRankerJudge):
        settings = PairRankerSettings(batch_size=cell.engine.batch_size, dtype=judge.dtype, template=judge.template)
        return settings, {"model": sources.model}
    return RewardJudgeSettings(batch_size=cell.engine.batch_size, dtype=judge.dtype), {"model": sources.model}


def _language_judging(judge: AlpacaEvalJudge | MtBenchJudge | ArenaHardJudge, sources: JudgeSources) -> LanguageJudgeSettings:
    verdict = judge.verdict
    return LanguageJudgeSettings(
        manner=judge.name,
        mode=_mode(judge),
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


def labels_samples(stage: Stage) -> bool:
    """Whether a judge's stage is asked for labels, and not for an evaluation."""
    items = stage.inputs.get("items")
    return isinstance(items, Stage) and isinstance(items.settings, DrawnData)


def _mode(judge: AlpacaEvalJudge | MtBenchJudge | ArenaHardJudge) -> Literal["official", "both", "single", "pairwise"]:
    if isinstance(judge, ArenaHardJudge):
        return "both"
    return judge.order if isinstance(judge, AlpacaEvalJudge) else judge.mode


def _gold_judging(cell: Cell, judge: GoldJudge, manner: str) -> Settings:
    assert cell.world is not None
    if manner == "preference":
        return GoldPreferenceSettings(gold=cell.world.gold, temperature=judge.preference.temperature)
    return GoldRatingSettings(gold=cell.world.gold)


# Audits ---------------------------------------------------------------------------------------------------------------

TRUTH_TEMPERATURE = 1.0  # of the gold preferences that a judge of the world is held against


def judge_manners(judge: Settings) -> tuple[Manner, ...]:
    """What kinds of verdict a judge gives."""
    if isinstance(judge, GoldJudge):
        return "preference", "rating"
    return ("rating",) if isinstance(judge, MtBenchJudge) and judge.mode == "single" else ("preference",)


def judge_key(verdicts: Stage) -> str:
    """Who gave a stage's verdicts, whatever was judged: its key without items and completions, in both orders, asked once."""
    settings: Any = verdicts.settings
    if isinstance(settings, LanguageJudgeSettings):
        mode: Any = "both" if settings.mode == "official" else settings.mode
        settings = settings.model_copy(update={"mode": mode, "repeat": 0})
    own = {role: source for role, source in verdicts.inputs.items() if role not in ("items", "completions")}
    members = {role: judge_key(s) if isinstance(s, Stage) and s.kind == "judge" else s.key for role, s in own.items()}
    return hash_key({"judge": stage("judge", settings).key, "inputs": members})


def plan_audit(cell: Cell, sources: Sources, do: Audit, files: Mapping[str, Source], manner: Manner) -> CellPlan:
    """The graph of one judge's audit: its verdicts, the same again, canaries, recorded verdicts. `files`: human and recorded.

    Pairs are judged in both orders; answers that are rated have two turns.
    """
    items = _audited_items(cell, sources, do.n_items, 2 if manner == "rating" else 1)
    completions = _audited_completions(cell, sources, items)
    canary_inputs = {"items": items} | ({"completions": completions} if manner == "rating" else {})
    canaries = stage("data", CanaryData(n=do.n_canaries, honest=manner == "rating"), canary_inputs, "canaries")
    settings, read = _judging(cell, manner, sources)
    if isinstance(settings, LanguageJudgeSettings) and settings.mode == "official":
        settings = settings.model_copy(update={"mode": "both"})

    def judged(settings: Settings, items: Stage, completions: Stage, label: str) -> Stage:
        of_judge = {} if isinstance(settings, GoldPreferenceSettings | GoldRatingSettings) else read
        return stage("judge", settings, {"items": items, "completions": completions, **of_judge}, label)

    inputs: dict[str, Stage | Source] = {
        "verdicts": judged(settings, items, completions, "verdicts"),
        "canary_verdicts": judged(settings, canaries, canaries, "verdicts on canaries"),
    }
    if isinstance(settings, LanguageJudgeSettings):
        inputs["again"] = judged(settings.model_copy(update={"repeat": 1}), items, completions, "verdicts, asked again")
    if _brings_tasks(cell, sources):
        assert cell.world is not None
        preference = GoldPreferenceSettings(gold=cell.world.gold, temperature=TRUTH_TEMPERATURE)
        truth = GoldRatingSettings(gold=cell.world.gold) if manner == "rating" else preference
        inputs["gold"] = judged(truth, items, completions, "gold truth")
    if "human" in files:
        inputs["human"] = files["human"]
    if "recorded" in files:
        recorded = stage("data", RecordedData(n=do.n_items, seed=0), {"recorded": files["recorded"]}, "recorded verdicts")
        own = judged(settings, recorded, recorded, "verdicts on what recorded ones are about")
        inputs |= {"recorded": recorded, "recorded_verdicts": own}
    found = stage("audit", AuditSettings(n_labelled=do.n_labelled, manner=manner), inputs, "audit")
    key = hash_key({"audit": found.key})
    roles = {role: source for role, source in inputs.items() if isinstance(source, Stage)}
    return CellPlan(cell, key, f"{judge_name(cell.judge, manner)}-{judge_key(roles['verdicts'])[:8]}", found, roles)


def judge_name(judge: Settings, manner: Manner) -> str:
    """How folders and tables call a judge: what it is, which model, and what it gives where it could give several things."""
    model = getattr(judge, "model", None)
    parts = [str(getattr(judge, "name", "judge")), *([as_name(Path(model).name)] if isinstance(model, str) else [])]
    return "-".join([*parts, *([manner] if isinstance(judge, GoldJudge | MtBenchJudge) else [])])


def _brings_tasks(cell: Cell, sources: Sources) -> bool:
    """Whether the items are the controlled world's, with a truth and a writer."""
    return isinstance(cell.data, WorldData) and not (sources.judge and sources.judge.files)


def _audited_items(cell: Cell, sources: Sources, n: int, n_turns: Literal[1, 2]) -> Stage:
    """Items with a baseline where pairs are judged; one turn, or two where answers are rated."""
    if not _brings_tasks(cell, sources):
        assert sources.judge is not None and isinstance(cell.judge, (LanguageJudge, ModelJudge))
        settings = JudgeItemData(form=_form(cell.judge), n=min(n, sources.judge.n_items), n_turns=n_turns)
        return stage("data", settings, sources.judge.files, f"{cell.judge.name} items")
    assert cell.world is not None
    split = cell.judge.split if isinstance(cell.judge, GoldJudge) else "evaluation"
    return _prompts(cell, split, n, seed=cell.world.eval_seed, n_turns=n_turns, reference=cell.world.reference)


def _audited_completions(cell: Cell, sources: Sources, items: Stage) -> Stage:
    """Of the user's file where there is one; in the world the demonstrations' writer's, who differs from the reference writer in
    quality; else the start model's."""
    if sources.completions is not None:
        return stage("generate", WrittenCompletions(), {"file": sources.completions, "items": items}, "completions")
    if _brings_tasks(cell, sources):
        assert isinstance(cell.data, WorldData) and cell.world is not None
        writing = WrittenData(writer=cell.data.demonstrations, draws=1, seed=cell.world.eval_seed)
        return stage("data", writing, {"items": items}, "completions by the writer")
    assert sources.model is not None and isinstance(cell.judge, (LanguageJudge, ModelJudge))
    return generate(start_cell(cell), Policy(sources.model, None), items, cell.judge.decoding, "completions")


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

    def need(stage: Stage, held: bool) -> None:
        """`held`: its files are going to be read, so evicted weights have to be made again."""
        if stage in statuses and (not held or statuses[stage].state != "done"):
            return
        statuses[stage] = store.held(stage) if held else store.status(stage)
        if statuses[stage].state != "done":
            for source in stage.inputs.values():
                if isinstance(source, Stage):
                    need(source, held=True)
        order.pop(stage, None)
        order[stage] = None

    for cell in cells:
        for role in [*cell.roles.values(), cell.score]:
            need(role, held=False)
    return Plan(list(cells), {needed: statuses[needed] for needed in order})
