"""The stages of an audit of a judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from bench.config import (
    Audit,
    Cell,
    GoldJudge,
    LanguageJudge,
    Manner,
    ModelJudge,
    Settings,
    WorldData,
)
from bench.planning.cells import start_cell
from bench.planning.inputs import CellPlan, Policy, Sources
from bench.planning.judging import _judging, judge_key, judge_name
from bench.planning.pieces import (
    _prompts,
    generate,
)
from bench.store.keys import Inputs, Source, Stage, hash_key
from bench.store.stage_settings import (
    AuditSettings,
    CanaryData,
    GoldPreferenceSettings,
    GoldRatingSettings,
    JudgeItemData,
    LanguageJudgeSettings,
    RecordedData,
    WrittenCompletions,
    WrittenData,
    stage,
)

# Temperature of the gold preferences to which a judge in the controlled world is compared.
TRUTH_TEMPERATURE = 1.0


def plan_audit(
    cell: Cell, sources: Sources, do: Audit, files: Mapping[str, Source], manner: Manner
) -> CellPlan:
    """The graph of one judge's audit: its verdicts, a repetition of them, canaries, recorded verdicts.

    `files` may hold `human` labels and `recorded` verdicts. Pairs are judged in both orders. A judge that
    rates gets items with two turns.
    """
    items = _audited_items(cell, sources, do.n_items, 2 if manner == "rating" else 1)
    completions = _audited_completions(cell, sources, items)
    canary_inputs = {"items": items} | ({"completions": completions} if manner == "rating" else {})
    canaries = stage(
        "data", CanaryData(n=do.n_canaries, honest=manner == "rating"), canary_inputs, "canaries"
    )
    settings, read = _judging(cell, manner, sources)
    if isinstance(settings, LanguageJudgeSettings) and settings.mode == "official":
        settings = settings.model_copy(update={"mode": "both"})

    def judged(settings: Settings, items: Stage, completions: Stage, label: str) -> Stage:
        of_judge = {} if isinstance(settings, GoldPreferenceSettings | GoldRatingSettings) else read
        return stage("judge", settings, {"items": items, "completions": completions, **of_judge}, label)

    inputs: Inputs = {
        "verdicts": judged(settings, items, completions, "verdicts"),
        "canary_verdicts": judged(settings, canaries, canaries, "verdicts on canaries"),
    }
    if isinstance(settings, LanguageJudgeSettings):
        inputs["again"] = judged(
            settings.model_copy(update={"repeat": 1}), items, completions, "verdicts, asked again"
        )
    if _brings_tasks(cell, sources):
        assert cell.world is not None
        preference = GoldPreferenceSettings(gold=cell.world.gold, temperature=TRUTH_TEMPERATURE)
        truth = GoldRatingSettings(gold=cell.world.gold) if manner == "rating" else preference
        inputs["gold"] = judged(truth, items, completions, "gold truth")
    if "human" in files:
        inputs["human"] = files["human"]
    if "recorded" in files:
        recorded = stage(
            "data", RecordedData(n=do.n_items, seed=0), {"recorded": files["recorded"]}, "recorded verdicts"
        )
        own = judged(settings, recorded, recorded, "verdicts on what recorded ones are about")
        inputs |= {"recorded": recorded, "recorded_verdicts": own}
    audit = stage("audit", AuditSettings(n_labelled=do.n_labelled, manner=manner), inputs, "audit")
    key = hash_key({"audit": audit.key})
    roles = {role: source for role, source in inputs.items() if isinstance(source, Stage)}
    return CellPlan(
        cell, key, f"{judge_name(cell.judge, manner)}-{judge_key(roles['verdicts'])[:8]}", audit, roles
    )


def _brings_tasks(cell: Cell, sources: Sources) -> bool:
    """Whether the items come from the controlled world, with its known truth and its writer."""
    return isinstance(cell.data, WorldData) and not (sources.judge and sources.judge.files)


def _audited_items(cell: Cell, sources: Sources, n: int, n_turns: Literal[1, 2]) -> Stage:
    """Items of the audit: with a baseline for a judge of pairs, with two turns for a judge that rates."""
    if not _brings_tasks(cell, sources):
        assert sources.judge is not None and isinstance(cell.judge, (LanguageJudge, ModelJudge))
        settings = JudgeItemData(
            form=cell.judge.form_of(sources.judge.files), n=min(n, sources.judge.n_items), n_turns=n_turns
        )
        return stage("data", settings, sources.judge.files, f"{cell.judge.name} items")
    assert cell.world is not None
    split = cell.judge.split if isinstance(cell.judge, GoldJudge) else "evaluation"
    return _prompts(
        cell, split, n, seed=cell.world.eval_seed, n_turns=n_turns, reference=cell.world.reference
    )


def _audited_completions(cell: Cell, sources: Sources, items: Stage) -> Stage:
    """Completions to judge: from the user's file if given, else from a writer or the start model.

    In the controlled world the demonstrations' writer writes them. Its quality differs from the reference
    writer's, so there is a difference to judge. Elsewhere the start model writes them.
    """
    if sources.completions is not None:
        return stage(
            "generate",
            WrittenCompletions(alone=True),
            {"file": sources.completions, "items": items},
            "completions",
        )
    if _brings_tasks(cell, sources):
        assert isinstance(cell.data, WorldData) and cell.world is not None
        writing = WrittenData(writer=cell.data.demonstrations, draws=1, seed=cell.world.eval_seed)
        return stage("data", writing, {"items": items}, "completions by the writer")
    assert sources.model is not None and isinstance(cell.judge, (LanguageJudge, ModelJudge))
    return generate(start_cell(cell), Policy(sources.model, None), items, cell.judge.decoding, "completions")
