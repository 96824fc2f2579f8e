"""The page of a sweep: one HTML file with the answer, the table, charts and completions, for any browser.

It needs no network: third-party scripts stand in it, compressed. The template (page.html.j2) escapes every
text. Data for the scripts stand in JSON without `<`, or compressed, and reach the screen as text, never as
HTML, because completions and replies are written by models.
"""

from __future__ import annotations

import json
from typing import Any

from bench.report import published
from bench.report.analysis import Analysis
from bench.report.page import content, scripts, templates
from bench.report.page.charts import charts
from bench.report.page.samples import sample_sets
from bench.report.tables import EXPECTATIONS, FAIRNESS, FINDINGS, JUDGES

SHOWN = 64  # Prompts of each set in a written page.
FEWEST = 8
# Most characters of the packed completions, so that a page of 50 cells stays below 3 MB.
MOST = 1_700_000


def render(analysis: Analysis, *, live: str = "") -> str:
    """The page as HTML. `live`: its version for a server that it asks for changes; it then holds all prompts."""
    table = analysis.full_table(link=True)
    parts = analysis.pooled.parts
    letters = {label: content.letters(part) for label, part in parts.items()}
    columns, cells = content.shown_table(table, letters)
    samples, packed_samples = _samples(analysis, everything=bool(live))
    done = sum(row.done for row in analysis.rows)
    data = {
        "parts": [
            {
                "label": label,
                "rates": not any(group.only_rates for group in part.groups),
                "pairs": content.pair_lines(part),
            }
            for label, part in parts.items()
        ],
        "rows": [
            {"number": group.number, "name": group.name, "start": group.is_start}
            for group in analysis.pooled.groups
        ],
        "cells": [{"row": line["row"], "name": line["name"], "seed": line["seed"]} for line in analysis.flat],
        "live": live,
    }
    return templates.render(
        "page.html.j2",
        title=analysis.sweep.title,
        name=analysis.sweep.name,
        command=f"python -m bench {analysis.sweep.command}".strip(),
        state=f"{done} of {len(analysis.rows)} cells are done",
        complete=done == len(analysis.rows),
        answer=content.answer(analysis),
        above=table.above,
        expectations=table.notes.get(EXPECTATIONS, ()),
        columns=columns,
        rows=list(zip(analysis.pooled.groups, cells, strict=True)),
        reading=content.how_to_read(table),
        judges=[content.LINK.split(line) for line in table.notes.get(JUDGES, ())],
        fairness=table.notes.get(FAIRNESS, ()),
        findings=table.notes.get(FINDINGS, ()),
        published=[
            {
                "title": one.table.title,
                "source": one.table.source,
                "count": published.count_words([one]),
                "notes": one.table.notes,
                "parts": published.sides(one),
            }
            for one in analysis.published
        ],
        in_world=published.IN_THE_WORLD if analysis.published else "",
        details=content.row_details(analysis),
        parts=list(parts),
        categories=content.categories(analysis),
        cost_columns=content.COST_COLUMNS,
        costs=content.costs(analysis),
        provenance=content.provenance(analysis.rows),
        samples=samples,
        licences=scripts.LICENCES,
        live=live,
        js=templates.text("page.js"),
        data=_json(data),
        packed={
            "charts": scripts.packed(_json(charts(analysis))),
            "samples": packed_samples,
            "datatables": scripts.datatables(),
            "vega": scripts.vega(),
        },
    )


def _samples(analysis: Analysis, *, everything: bool) -> tuple[list[dict[str, Any]], str]:
    """Each set's name and numbers of prompts, and the packed sets. There are fewer prompts where they would not fit."""
    n = None if everything else SHOWN
    sets = sample_sets(analysis.rows, analysis.store, n)
    packed = scripts.packed(_json(sets))
    while n and n > FEWEST and len(packed) > MOST:
        n = max(FEWEST, int(0.95 * n * MOST / len(packed)))
        for one in sets:
            one["items"] = one["items"][:n]
            one["texts"] = [texts and texts[:n] for texts in one["texts"]]
        packed = scripts.packed(_json(sets))
    return [{"name": s["name"], "total": s["total"], "n": len(s["items"])} for s in sets], packed


def _json(value: Any) -> str:
    """JSON that can stand in a script element: it holds no `<`, so none of its texts can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
