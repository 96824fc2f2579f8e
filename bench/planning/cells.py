"""Builds the graph of stages for each cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.config import (
    SFT_PROMPTS,
    Adapter,
    Cell,
    Decoding,
    Forgetting,
    GoldJudge,
    JuryJudge,
    LanguageJudge,
    Loop,
    ModelJudge,
    NoJudge,
    NoMethod,
    Training,
    WorldData,
    WorldModel,
    Written,
)
from bench.planning.inputs import CellPlan, Chain, Ground, Policy, Sources, evaluated_sources
from bench.planning.judging import _judging, _members, reward_scale
from bench.planning.pieces import (
    FILES,
    _all_rows,
    _benchmark_items,
    _fine_tuned,
    _fractions,
    _judge_items,
    _kl_decoding,
    _labels,
    _preference_rewards,
    _prompts,
    _world_start,
    chosen_items,
    completion_logps,
    conversations,
    dtype,
    generate,
    loading,
    pair_settings,
    preference_logps,
    read_model,
    rows_read,
)
from bench.store.keys import Input, Inputs, Stage, hash_key
from bench.store.stage_settings import (
    JurySettings,
    LocalPromptData,
    OpponentData,
    OverlapData,
    PairData,
    ScoreSettings,
    Split,
    SuiteScoreSettings,
    TaskSettings,
    WrittenCompletions,
    stage,
)


def plan_cell(cell: Cell, sources: Sources, chain: Chain) -> CellPlan:
    """The graph of one cell. `chain` builds the method's stages and returns the policy to judge."""
    if isinstance(cell.method, Written):
        ground = policy = None
    else:
        cell = start_cell(cell) if isinstance(cell.method, NoMethod) else cell
        ground = _ground(cell, sources)
        policy = chain(cell, ground)
    evaluations = {
        label: _evaluation(one, of_one, ground, policy, f"{label}: " if label else "")
        for label, (one, of_one) in evaluated_sources(cell, sources).items()
    }
    return evaluations.get("") or _suite(cell, evaluations)


def _suite(cell: Cell, evaluations: Mapping[str, CellPlan]) -> CellPlan:
    """The graph of a cell with several evaluations: theirs, and one stage that joins their numbers.

    A role that is not the same stage in all of them is named after its evaluation: `LABEL/ROLE`.
    """
    scores: Inputs = {label: plan.score for label, plan in evaluations.items()}
    score = stage("score", SuiteScoreSettings(), scores, "score")
    roles: dict[str, Stage] = {}
    for label, plan in evaluations.items():
        for role, source in plan.roles.items():
            shared = all(other.roles.get(role) == source for other in evaluations.values())
            roles[role if shared else f"{label}/{role}"] = source
    roles["score"] = score
    key = hash_key({"cell": score.key})
    return CellPlan(cell, key, f"{readable_name(cell)}-{key[:8]}", score, roles, evaluations)


def _evaluation(
    cell: Cell, sources: Sources, ground: Ground | None, policy: Policy | None, named: str
) -> CellPlan:
    """The graph of a cell with one judge. `named` begins the labels of its own stages."""
    if ground is None or policy is None:
        return _with_judging(cell, sources, None, None, {}, {}, named)
    rival = {
        None: None,
        "start": Policy(ground.start, None),
        "previous": Policy(policy.previous or ground.start, None),
    }[cell.judge.rival]
    if policy.train is None:  # An untrained policy needs no training data.
        return _with_judging(cell, sources, policy, rival, {}, {}, named)
    roles: dict[str, Stage] = {"preferences": ground.preferences}
    inputs: dict[str, Stage] = {"preferences": ground.preferences, "reference_logps": ground.reference}
    if policy.reward_model is not None:
        inputs["rewards"] = _preference_rewards(cell, policy.reward_model, ground.preferences)
    else:
        kl = generate(cell, policy, ground.kl_prompts, _kl_decoding(cell), "samples for KL")
        inputs |= {
            "policy_logps": preference_logps(
                cell, policy, ground.preferences, splits=("heldout",), mismatched=False
            ),
            "kl_policy_logps": completion_logps(cell, policy, kl, "policy's log-probs for KL"),
            "kl_reference_logps": completion_logps(
                cell, Policy(ground.start, None), kl, "reference's log-probs for KL"
            ),
        }
    if policy.labels:
        inputs |= {"training": policy.train} | {
            f"labels_{number:02d}": labels for number, labels in enumerate(policy.labels)
        }
    roles["train"] = policy.train
    if (
        isinstance(cell.data, FILES)
        and cell.data.fraction  # without labelled rows there is no train row
        and not any(role.startswith("items") for role in ground.preferences.inputs)
        and (items := _benchmark_items(cell, sources)) is not None
    ):
        roles["overlap"] = stage(
            "data",
            OverlapData(),
            {"preferences": ground.preferences, "items": items},
            "overlap with judge's items",
        )
    if policy.self_judge is not None:
        inputs["self_judge"] = policy.self_judge
    return _with_judging(cell, sources, policy, rival, roles, inputs, named)


def _with_judging(
    cell: Cell,
    sources: Sources,
    policy: Policy | None,
    rival: Policy | None,
    roles: dict[str, Stage],
    inputs: dict[str, Stage],
    named: str,
) -> CellPlan:
    """The rest of a cell's graph: completions, verdicts and score.

    Completions come from the policy; without a policy, from the user's file. Where the opponent is a policy,
    `rival`, its completions of the same items become the items' baselines. `named` begins the labels.
    """
    calibration: Inputs = {}  # Further inputs of the score stage.
    evaluations = _evaluations(cell, sources)
    for manner, items, decoding in evaluations:
        if policy is not None:
            completions = generate(cell, policy, items, decoding, f"{named}{manner} completions", judged=True)
        else:
            assert sources.completions is not None
            inputs_of: Inputs = {"file": sources.completions, "items": items}
            completions = stage(
                "generate",
                WrittenCompletions(alone=len(evaluations) == 1),
                inputs_of,
                f"{named}{manner} completions",
            )
        if rival is not None and manner == "preference":
            theirs = generate(cell, rival, items, decoding, "opponent's completions", judged=True)
            both: Inputs = {"items": items, "completions": theirs}
            items = stage(
                "data", OpponentData(), both, f"{manner} items against the {cell.judge.rival} policy"
            )
        roles |= {f"{manner}_items": items, f"{manner}_completions": completions}
        inputs[f"{manner}_completions"] = completions
        if isinstance(cell.judge, JuryJudge):
            members = _members(cell, cell.judge, sources, items, completions, named)
            verdicts = stage(
                "judge",
                JurySettings(),
                {"items": items, "completions": completions, **members},
                f"{named}{manner} verdicts",
            )
            roles |= members | {f"{manner}_verdicts": verdicts}
            inputs |= members | {f"{manner}_verdicts": verdicts}
        elif not isinstance(cell.judge, NoJudge):
            judging, read = _judging(cell, manner, sources)
            verdicts = stage(
                "judge",
                judging,
                {"items": items, "completions": completions, **read},
                f"{named}{manner} verdicts",
            )
            roles[f"{manner}_verdicts"] = inputs[f"{manner}_verdicts"] = verdicts
        if sources.judge and sources.judge.calibration:
            calibration[f"{manner}_items"], calibration["calibration"] = items, sources.judge.calibration
    if cell.forgetting is not None and policy is not None:
        roles["tasks"] = inputs["tasks"] = _tasks(cell, cell.forgetting, policy, sources)
    trained = policy is not None and policy.train is not None  # Iteration 0 of a loop may be the start model.
    beta = (
        None
        if not trained or not isinstance(cell.method, Training) or cell.method.chooses
        else reward_scale(cell.method)
    )
    best_of = policy.best_of if policy else 1
    scoring = ScoreSettings(beta=beta, bootstrap_resamples=2000, bootstrap_seed=0, best_of=best_of)
    score = stage("score", scoring, {**inputs, **calibration}, f"{named}score")
    roles["score"] = score
    key = hash_key({"cell": score.key})
    return CellPlan(cell, key, f"{readable_name(cell)}-{key[:8]}", score, roles)


def _tasks(cell: Cell, forgetting: Forgetting, policy: Policy, sources: Sources) -> Stage:
    """The stage that runs the forgetting check's tasks on a policy."""
    selection = forgetting.model_dump(include={"tasks", "limit", "chat_template", "batch_size"})
    settings = TaskSettings(dtype=dtype(cell), loading=loading(cell), **selection)
    return stage(
        "tasks",
        settings,
        read_model(policy.model) | ({"tasks": sources.tasks} if sources.tasks else {}),
        "tasks",
    )


def readable_name(cell: Cell) -> str:
    """The folder's name before its key: the settings that sweeps usually vary."""
    if isinstance(cell.method, Written):
        return f"completions-{cell.method.label}-s{cell.seed}"
    parts: list[str] = ["start" if isinstance(cell.method, NoMethod) else cell.method.name]
    if isinstance(cell.method, Loop):
        parts.append(f"i{cell.method.iteration}")
    parts += [
        f"{name}{value:g}"
        for name in ("beta", "n")
        if (value := getattr(cell.method, name, None)) is not None
    ]
    if cell.data.fraction != 1:
        parts.append(f"frac{cell.data.fraction:g}")
    if isinstance(cell.model, WorldModel) and cell.model.start == "base":
        parts.append("base")
    if isinstance(cell.adapter, Adapter) and not isinstance(cell.method, NoMethod):
        parts.append(cell.adapter.name)
    parts += [cell.model.name, f"s{cell.seed}"]
    return "-".join(parts)


def start_cell(cell: Cell) -> Cell:
    """The cell that judges this cell's start model.

    A cell of a completions file has no start model and is returned as is.
    """
    if isinstance(cell.method, Written):
        return cell
    # The start model does not depend on the amount or the form of labelled data.
    whole: dict[str, Any] = {"fraction": 1.0, "desirable_fraction": 1.0, "undesirable_fraction": 1.0}
    data = cell.data.model_copy(
        update=whole | ({"form": "paired"} if isinstance(cell.data, WorldData) else {})
    )
    return cell.model_copy(update={"method": NoMethod(name="none"), "data": data})


def _ground(cell: Cell, sources: Sources) -> Ground:
    """The stages that cells of one model, data and seed share. Raises ValueError without a model."""
    tuned = (
        _world_start(cell, cell.model) if isinstance(cell.model, WorldModel) else _fine_tuned(cell, sources)
    )
    base = sources.base or (tuned.inputs["model"] if isinstance(tuned, Stage) else None)
    start = base if isinstance(cell.model, WorldModel) and cell.model.start == "base" else tuned
    if start is None or tuned is None:
        raise ValueError("Cannot plan a cell of model=local: no model folder was given (Sources.model).")
    splits: tuple[Split, ...] = ("train", "heldout") if cell.data.fraction else ("heldout",)
    if isinstance(cell.data, WorldData):
        labels: Inputs = {split: _labels(cell, cell.data, split, tuned) for split in splits}
        preferences = stage(
            "data",
            PairData(form=cell.data.form, seed=cell.seed, **_fractions(cell.data)),
            labels,
            "preferences",
        )
        kl_prompts = _prompts(cell, "kl", cell.data.n_kl_prompts, seed=cell.seed)
    else:
        preferences = stage("data", pair_settings(cell), rows_read(cell, sources), "preferences")
        kl_prompts = stage(
            "data",
            LocalPromptData(n=cell.data.n_kl_prompts),
            {"preferences": _all_rows(cell, sources)},
            "KL prompts",
        )
    reference = preference_logps(cell, Policy(start, None), preferences, splits=splits, mismatched=True)
    prompts: Input | None = sources.of_method.get("prompts")
    if getattr(cell.method, "prompts", None) == SFT_PROMPTS:
        prompts = conversations(cell, sources)
    of_method = sources.of_method
    return Ground(
        start, preferences, reference, kl_prompts, base, sources.labelling_judge, prompts, of_method
    )


def _evaluations(cell: Cell, sources: Sources) -> list[tuple[str, Stage, Decoding]]:
    """(manner, items, decoding) of each evaluation of the policy."""
    judge = cell.judge
    if isinstance(judge, GoldJudge):
        assert cell.world is not None
        world, split = cell.world, judge.split
        n = judge.preference.n_items
        single = _prompts(cell, split, n, seed=world.eval_seed, reference=world.reference)
        if judge.preference.opponent == "chosen":
            assert isinstance(cell.data, WorldData)
            single = chosen_items(cell, cell.data, split, n, world.eval_seed)
        double = _prompts(cell, split, judge.rating.n_items, seed=world.eval_seed, n_turns=2)
        return [("preference", single, judge.preference.decoding), ("rating", double, judge.rating.decoding)]
    if isinstance(judge, (LanguageJudge, ModelJudge, JuryJudge)):
        return [(judge.gives[0], _judge_items(cell, judge, sources), judge.decoding)]
    assert isinstance(judge, NoJudge)
    if isinstance(cell.data, FILES):
        items = stage(
            "data",
            LocalPromptData(n=judge.n_items),
            {"preferences": _all_rows(cell, sources)},
            "held-out prompts",
        )
    else:
        assert cell.world is not None
        items = _prompts(cell, "evaluation", judge.n_items, seed=cell.world.eval_seed)
    return [("plain", items, judge.decoding)]
