"""Readable samples of each cell's completions, with the baseline's completion and the judge's verdict."""

from __future__ import annotations

from collections.abc import Iterator

from bench.planning.inputs import CellPlan
from bench.records import Completion, Item, Verdict, by_id, read_completions, read_items, read_verdicts
from bench.report.rows import CellRow
from bench.store.store import Store

SHOWN = 16


def samples(row: CellRow, store: Store) -> str | None:
    """Completions of the first SHOWN prompts of each manner of evaluation, as Markdown.

    None for a cell without completions.
    """
    parts = [
        part
        for label, plan in (row.cell.evaluations or {"": row.cell}).items()
        for manner in ("preference", "rating", "plain")
        if (part := _samples(plan, store, manner, label))
    ]
    return f"# {row.cell.name}\n\n" + "\n".join(parts) if parts else None


def _samples(plan: CellPlan, store: Store, manner: str, label: str) -> str:
    roles = {what: plan.roles.get(f"{manner}_{what}") for what in ("items", "completions", "verdicts")}
    folders = {what: store.folder(stage) for what, stage in roles.items() if store.is_done(stage)}
    if "completions" not in folders:
        return ""
    items = by_id(read_items(folders["items"]))
    verdicts = {
        (v.item_id, v.turn): v for v in (read_verdicts(folders["verdicts"]) if "verdicts" in folders else ())
    }
    first = read_completions(folders["completions"])[:SHOWN]
    return (
        f"## {label}{', ' if label else ''}{manner}\n\n"
        + "\n\n".join("\n".join(_turns(items[c.id], c, verdicts)) for c in first)
        + "\n"
    )


def _turns(item: Item, completion: Completion, verdicts: dict[tuple[str, int], Verdict]) -> Iterator[str]:
    yield f"### {item.id}" + (f" ({item.category})" if item.category else "")
    for turn, (prompt, text) in enumerate(zip(item.turns, completion.completions, strict=True)):
        yield f"- **prompt** {_inline(prompt)}"
        yield f"- **policy** {_inline(text)}" + (
            " *(cut)*" if completion.finished and not completion.finished[turn] else ""
        )
        if item.baseline and turn < len(item.baseline):
            yield f"- **baseline** {_inline(item.baseline[turn])}"
        if (verdict := verdicts.get((item.id, turn))) is not None:
            yield f"- **verdict** {verdict_words(verdict)}"


def verdict_words(verdict: Verdict) -> str:
    if verdict.unscored:
        return f"unscored: {verdict.unscored}"
    value = (
        f"preference {verdict.preference:.2f}"
        if verdict.preference is not None
        else f"rating {verdict.rating:.1f}"
    )
    details = ", ".join(f"{name} {number:.2f}" for name, number in (verdict.details or {}).items())
    return f"{value}" + (f" ({details})" if details else "")


def _inline(text: str) -> str:
    return text.replace("\n", " ⏎ ").replace("<", "&lt;") or "*(empty)*"
