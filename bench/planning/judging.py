"""How a cell is judged: the judge stages of each judge and each member of a jury."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from bench.config import (
    AlpacaEvalJudge,
    ArenaHardJudge,
    Asking,
    Cell,
    GoldJudge,
    JudgeSettings,
    JuryJudge,
    LanguageJudge,
    Manner,
    Member,
    MtBenchJudge,
    NoJudge,
    Settings,
    SuiteJudge,
    Training,
    as_name,
    name_of,
)
from bench.planning.inputs import JudgeSources, Sources
from bench.store.keys import Inputs, Source, Stage, canonical_json, hash_key
from bench.store.stage_settings import (
    JUDGED_BY,
    DrawnData,
    GoldPreferenceSettings,
    GoldRatingSettings,
    LanguageJudgeSettings,
    member_role,
    stage,
)


def _members(
    cell: Cell, jury: JuryJudge, sources: Sources, items: Stage, completions: Stage, named: str
) -> dict[str, Stage]:
    """Each jury member's stage, the same stage as when that judge is used alone."""
    assert sources.judge is not None
    members = {}
    for label, judge in jury.judges.items():
        settings, read = judging_by(judge, cell, "preference", sources.judge.members.get(label))
        inputs: Inputs = {"items": items, "completions": completions, **read}
        members[member_role(label)] = stage("judge", settings, inputs, f"{named}verdicts of {label}")
    return members


def reward_scale(method: Training) -> float:
    """Factor from log-ratios to rewards: beta, or 1 (nats) for a method without beta."""
    return getattr(method, "beta", 1.0)


def _judging(cell: Cell, manner: str, sources: Sources) -> tuple[Settings, dict[str, Source]]:
    """Settings of a judge stage, and its inputs other than items and completions."""
    assert not isinstance(cell.judge, (NoJudge, JuryJudge, SuiteJudge))
    return judging_by(cell.judge, cell, manner, sources.judge)


def judging_by(
    judge: Member, cell: Cell, manner: str, sources: JudgeSources | None
) -> tuple[Settings, dict[str, Source]]:
    """Like _judging, for any judge: one of a jury's members, or the judge that labels samples."""
    if isinstance(judge, GoldJudge):
        assert cell.world is not None
        if manner == "preference":
            return GoldPreferenceSettings(gold=cell.world.gold, temperature=judge.preference.temperature), {}
        return GoldRatingSettings(gold=cell.world.gold), {}
    assert sources is not None
    if isinstance(judge, LanguageJudge):
        assert sources.prompts is not None
        return _language_judging(judge, sources), {"prompts": sources.prompts} | (
            {"model": sources.model} if sources.model else {}
        )
    assert sources.model is not None
    record: Any = JUDGED_BY[judge.name]
    own = judge.model_dump(include=set(record.model_fields))
    return record(batch_size=cell.engine.batch_size, **own), {"model": sources.model}


def _language_judging(
    judge: AlpacaEvalJudge | MtBenchJudge | ArenaHardJudge, sources: JudgeSources
) -> LanguageJudgeSettings:
    """Stage settings of a language model that judges."""
    verdict = judge.verdict
    return LanguageJudgeSettings(
        manner=judge.name,
        mode=_mode(judge),
        model=None if sources.model else judge.model,
        provider=judge.provider if judge.server == "endpoint" else judge.server,
        dtype=judge.dtype,
        server_args=judge.server_args,
        **verdict.model_dump(include={"temperature", "top_p", "max_tokens", "top_logprobs"}),
        request=canonical_json(verdict.request),
        parser=sources.parser,
        annotator=judge.annotator if isinstance(judge, AlpacaEvalJudge) else "",
        asking=Asking.model_validate(judge.model_dump(include=set(Asking.model_fields))),
    )


def labels_samples(stage: Stage) -> bool:
    """Whether a judge stage labels training samples instead of evaluating a policy."""
    items = stage.inputs.get("items")
    return isinstance(items, Stage) and isinstance(items.settings, DrawnData)


def _mode(
    judge: AlpacaEvalJudge | MtBenchJudge | ArenaHardJudge,
) -> Literal["official", "both", "single", "pairwise"]:
    """The order of showing pairs, or MT-Bench's mode: single or pairwise."""
    if isinstance(judge, ArenaHardJudge):
        return "both"
    return judge.order if isinstance(judge, AlpacaEvalJudge) else judge.mode


def judge_key(verdicts: Stage) -> str:
    """A key for the judge alone, the same whatever it judged.

    It leaves out items and completions, and counts the judge as showing both orders and asked once.
    """
    settings: Any = verdicts.settings
    if isinstance(settings, LanguageJudgeSettings):
        mode: Any = "both" if settings.mode == "official" else settings.mode
        settings = settings.model_copy(update={"mode": mode, "repeat": 0})
    own = {role: source for role, source in verdicts.inputs.items() if role not in ("items", "completions")}
    members = {
        role: judge_key(s) if isinstance(s, Stage) and s.kind == "judge" else s.key for role, s in own.items()
    }
    return hash_key({"judge": stage("judge", settings).key, "inputs": members})


def judge_name(judge: JudgeSettings, manner: Manner) -> str:
    """The judge's name in folders and tables: its kind, its model, and its manner if it has several."""
    model = getattr(judge, "model", None)
    parts = [name_of(type(judge)), *([as_name(Path(model).name)] if isinstance(model, str) else [])]
    return "-".join([*parts, *([manner] if judge.manner_in_name else [])])
