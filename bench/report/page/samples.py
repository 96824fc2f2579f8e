"""Completions and verdicts for the sample browser of the page."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from bench.planning.inputs import CellPlan
from bench.records import Completion, Item, Verdict, by_id, read_completions, read_items, read_verdicts
from bench.report.completions import verdict_words
from bench.report.rows import CellRow
from bench.store.keys import Stage
from bench.store.stage_settings import member_label
from bench.store.store import Store

MANNERS = ("preference", "rating", "plain")


def sample_sets(rows: Sequence[CellRow], store: Store, n: int | None) -> list[dict[str, Any]]:
    """Sets of prompts, one for each evaluation and manner, with every cell's completions of them.

    A set holds `n` prompts (all for None), chosen by a hash of their ids: the same for all cells, whatever
    they wrote. Fields: `name`, `total`, `items`, and `texts` by number of the cell in `rows`; a cell without
    completions has None.
    """
    sets: list[dict[str, Any]] = []
    read: dict[Stage, dict[str, Item]] = {}
    plans = [row.cell.evaluations or {"": row.cell} for row in rows]
    for label in dict.fromkeys(label for plan in plans for label in plan):
        for manner in MANNERS:
            cells = [_written(plan[label], manner, store) if label in plan else None for plan in plans]
            if not any(cells):
                continue
            for items, _, _ in filter(None, cells):
                if items not in read:
                    read[items] = by_id(read_items(store.folder(items)))
            everything = {name: item for cell in cells if cell for name, item in read[cell[0]].items()}
            names = sorted(everything, key=lambda name: hashlib.sha256(name.encode()).digest())[:n]
            texts = [cell and _texts(names, everything, read[cell[0]], *cell[1:]) for cell in cells]
            sets.append(
                {
                    "name": ", ".join(filter(None, (label, manner))),
                    "total": len(everything),
                    "items": [_item(everything[name]) for name in names],
                    "texts": texts,
                }
            )
    return sets


Judged = tuple[str, list[Verdict]]  # A judge's name and its verdicts.


def _written(
    plan: CellPlan, manner: str, store: Store
) -> tuple[Stage, list[Completion], list[Judged]] | None:
    """Items, completions and verdicts of one cell; None where it has no completions."""
    items, completions = plan.roles.get(f"{manner}_items"), plan.roles.get(f"{manner}_completions")
    if not store.is_done(items) or not store.is_done(completions):
        return None
    judged = [
        (member_label(role) or "", read_verdicts(store.folder(stage)))
        for role, stage in plan.roles.items()
        if role.endswith("_verdicts")
        and (role == f"{manner}_verdicts" or (manner == "preference" and member_label(role)))
        and store.is_done(stage)
    ]
    return items, read_completions(store.folder(completions)), judged


def _item(item: Item) -> dict[str, Any]:
    context = "\n\n".join(f"{message['role']}: {message['content']}" for message in item.context)
    return {
        "id": item.id,
        "category": item.category,
        "context": context,
        "turns": item.turns,
        "baseline": item.baseline,
    }


def _texts(
    names: Sequence[str],
    shown: dict[str, Item],
    own: dict[str, Item],
    completions: Sequence[Completion],
    judged: Sequence[Judged],
) -> list[Any]:
    """For each prompt and turn: text, whether it was cut, verdicts, and the opponent's text where it is another
    one than that of the set's prompt."""
    written = by_id(completions)
    verdicts = [(name, {(v.item_id, v.turn): v for v in some}) for name, some in judged]

    def turn(name: str, k: int, text: str) -> list[Any]:
        finished = written[name].finished
        said = [_verdict(judge, of[name, k]) for judge, of in verdicts if (name, k) in of]
        entry = [text, bool(finished and not finished[k]), said]
        baseline = own[name].baseline
        return entry if baseline == shown[name].baseline or not baseline else [*entry, baseline[k]]

    return [
        [turn(name, k, text) for k, text in enumerate(written[name].completions)] if name in written else None
        for name in names
    ]


def _verdict(judge: str, verdict: Verdict) -> dict[str, Any]:
    """Judge, its preference for the policy or rating, and its words: in short, and its replies."""
    number = verdict.preference if verdict.preference is not None else verdict.rating
    replies = [
        raw
        for raw in dict.fromkeys((verdict.raw, *(call.raw for call in verdict.calls)))
        if raw and raw.strip()
    ]
    told = {"judge": judge, "value": number, "says": verdict_words(verdict), "replies": replies}
    return {name: value for name, value in told.items() if value not in ("", [], None)}
