"""A cell's completions and verdicts in the formats of AlpacaEval and FastChat, so that `cells/` is a folder in AlpacaEval's layout:

    cells/CELL/model_outputs.json, reference_outputs.json, JUDGE/annotations.json      one-turn completions and preferences
    cells/CELL/model_answer.jsonl, JUDGE_single.jsonl                                  two-turn completions and ratings
"""

from __future__ import annotations

from pathlib import Path

from bench.judges import alpaca_eval, mt_bench
from bench.plan import CellPlan
from bench.records import Completion, Item, Verdict, read_jsonl
from bench.store import Store

BASELINE = "baseline"  # what items bring is one fixed opponent without a name of its own


def export(cell: CellPlan, store: Store, folder: Path) -> None:
    """Write what the cell has; what is written already and not older than the completions is left."""
    for manner in ("preference", "plain", "rating"):
        items, completions = (cell.roles.get(f"{manner}_{what}") for what in ("items", "completions"))
        if items is None or completions is None or store.status(completions).state != "done" or store.status(items).state != "done":
            continue
        source = store.folder(completions) / "completions.jsonl"
        written = folder / ("model_answer.jsonl" if manner == "rating" else "model_outputs.json")
        if written.exists() and written.stat().st_mtime >= source.stat().st_mtime:
            continue
        asked, texts = list(read_jsonl(store.folder(items) / "items.jsonl", Item)), list(read_jsonl(source, Completion))
        verdicts = _verdicts(cell, store, manner)
        if manner == "rating":
            _fastchat(cell.name, texts, verdicts, folder)
        else:
            _alpaca_eval(cell.name, asked, texts, verdicts, folder)


def _verdicts(cell: CellPlan, store: Store, manner: str) -> dict[str, list[Verdict]]:
    """Verdicts by judge."""
    found: dict[str, list[Verdict]] = {}
    stage = cell.roles.get(f"{manner}_verdicts")
    if stage is not None and store.status(stage).state == "done":
        for verdict in read_jsonl(store.folder(stage) / "verdicts.jsonl", Verdict):
            found.setdefault(verdict.judge, []).append(verdict)
    return found


def _alpaca_eval(name: str, items: list[Item], completions: list[Completion], verdicts: dict[str, list[Verdict]], folder: Path) -> None:
    texts = {completion.id: completion.completions[0] for completion in completions}
    baseline = {item.id: item.baseline[0] for item in items if item.baseline}
    if baseline:
        alpaca_eval.write_outputs(folder / "reference_outputs.json", BASELINE, items, baseline)
    for judge, given in verdicts.items():
        annotations = alpaca_eval.Annotations(name, BASELINE, judge, given)
        alpaca_eval.write_annotations(folder / judge / "annotations.json", annotations, items, texts)
    alpaca_eval.write_outputs(folder / "model_outputs.json", name, items, texts)  # last: it is what says that all are written


def _fastchat(name: str, completions: list[Completion], verdicts: dict[str, list[Verdict]], folder: Path) -> None:
    for judge, given in verdicts.items():
        rows = (mt_bench.Rated(name, verdict, verdict.rating) for verdict in given)
        mt_bench.write_rated(folder / f"{judge}_single.jsonl", rows)
    mt_bench.write_answers(folder / "model_answer.jsonl", name, completions)
