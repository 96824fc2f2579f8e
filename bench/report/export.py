"""A cell's completions and verdicts in the formats of AlpacaEval and FastChat, so that `cells/` is a folder in AlpacaEval's layout:

    cells/CELL/model_outputs.json, reference_outputs.json, JUDGE/annotations.json      one-turn completions and preferences
    cells/CELL/model_answer.jsonl, JUDGE_single.jsonl, JUDGE_pair.jsonl                 two-turn completions, ratings and preferences
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.judges import alpaca_eval, mt_bench
from bench.plan import CellPlan
from bench.records import Completion, Item, Verdict, read_jsonl
from bench.store import Store
from bench.sweep import as_name

BASELINE = "baseline"  # what items bring is one fixed opponent without a name of its own


def export(cell: CellPlan, store: Store, folder: Path) -> None:
    """Write what the cell has. What was written since its completions and verdicts came is left, for a cached sweep to be quick."""
    for manner in ("preference", "plain", "rating"):
        files = {what: _file(cell, store, f"{manner}_{what}", f"{what}.jsonl") for what in ("items", "completions", "verdicts")}
        items, completions, verdicts = files.values()
        if items is None or completions is None:
            continue
        mark = folder / f".{manner}_exported"
        if mark.exists() and all(mark.stat().st_mtime > path.stat().st_mtime for path in files.values() if path):
            continue
        asked, texts = list(read_jsonl(items, Item)), list(read_jsonl(completions, Completion))
        by_judge: dict[str, list[Verdict]] = {}
        for verdict in read_jsonl(verdicts, Verdict) if verdicts else ():
            by_judge.setdefault(_judge(cell, verdict), []).append(verdict)
        several_turns = any(len(item.turns) > 1 for item in asked)
        (_fastchat if several_turns else _alpaca_eval)(cell.name, asked, texts, by_judge, folder)
        mark.touch()


def _judge(cell: CellPlan, verdict: Verdict) -> str:
    """What judged, and which model where it is one: two models are two judges, also to whoever reads several cells' files at once."""
    model = getattr(cell.cell.judge, "model", None)
    return f"{verdict.judge}-{as_name(Path(model).name)}" if isinstance(model, str) else verdict.judge


def _file(cell: CellPlan, store: Store, role: str, name: str) -> Path | None:
    stage = cell.roles.get(role)
    return store.folder(stage) / name if stage is not None and store.status(stage).state == "done" else None


def _alpaca_eval(name: str, items: list[Item], completions: list[Completion], verdicts: dict[str, list[Verdict]], folder: Path) -> None:
    texts = {completion.id: completion.completions[0] for completion in completions}
    baseline = {item.id: item.baseline[0] for item in items if item.baseline}
    if baseline:
        alpaca_eval.write_outputs(folder / "reference_outputs.json", BASELINE, items, baseline)
    for judge, given in verdicts.items():
        annotations = alpaca_eval.Annotations(name, BASELINE, judge, given)
        alpaca_eval.write_annotations(folder / judge / "annotations.json", annotations, items, texts)
    alpaca_eval.write_outputs(folder / "model_outputs.json", name, items, texts)


def _fastchat(name: str, items: list[Item], completions: list[Completion], verdicts: dict[str, list[Verdict]], folder: Path) -> None:
    for judge, given in verdicts.items():
        named = [replace(verdict, judge=judge) for verdict in given]
        if items[0].baseline:
            mt_bench.write_compared(folder / f"{judge}_pair.jsonl", [mt_bench.compared(name, BASELINE, verdict) for verdict in named])
        else:
            mt_bench.write_rated(folder / f"{judge}_single.jsonl", [mt_bench.Rated(name, verdict, verdict.rating) for verdict in named])
    mt_bench.write_answers(folder / "model_answer.jsonl", name, completions)
