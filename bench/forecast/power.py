"""Differences of win rates that a planned table can tell apart, before anything is spent."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.config import NoMethod
from bench.forecast.stage_time import n_completions
from bench.planning.inputs import CellPlan
from bench.report.rows import Sweep, seedless
from bench.stats.contrasts import POWER, Spreads, detectable
from bench.store.stage_settings import LocalPromptData
from bench.text_files import read_text

# Spreads of a row's difference to its start model, as root mean squares of the 91 rows of the committed tables
# of the controlled world. Tables keep the spread over prompts of the mean over seeds, which holds the residual.
USUAL = Spreads(seed=0.025**2, prompt=0.175**2, residual=0.0)
MORE_SEEDS = (3, 5)


class Family(NamedTuple):
    """Comparisons that share one Holm correction."""

    words: str
    n: int


def power_lines(sweep: Sweep, tables: Path) -> list[str]:
    """Lines on the smallest differences that the planned seeds and prompts tell apart with 80 % power.

    `tables`: the folder of the sweep's earlier tables, whose spreads are used if it has any. Empty without a
    preference judge, and for a single row.
    """
    spreads, source = _spreads(tables / "differences.csv")
    by_label: dict[str, list[CellPlan]] = {}
    for cell in sweep.cells:
        for label, one in (cell.evaluations or {"": cell}).items():
            if "preference_items" in one.roles:
                by_label.setdefault(label, []).append(one)
    lines = [line for label, cells in by_label.items() for line in _lines(label, cells, sweep, spreads)]
    return [*lines, f"these figures assume {source}"] if lines else []


def _lines(label: str, cells: Sequence[CellPlan], sweep: Sweep, spreads: Spreads) -> Iterator[str]:
    seeds = Counter(seedless(cell.cell) for cell in cells)
    trained = len({seedless(cell.cell) for cell in cells if not isinstance(cell.cell.method, NoMethod)})
    families = [
        Family("from the start model", trained),
        Family("between any two rows", len(seeds) * (len(seeds) - 1) // 2),
        Family("in an expected order", len(sweep.expectations)),
    ]
    families = [family for family in families if family.n]
    n_prompts = min(n_completions(cell.roles["preference_items"]) for cell in cells)
    if n_prompts < 2 or not families:
        return
    n_seeds = min(seeds.values())
    bound = any(isinstance(cell.roles["preference_items"].settings, LocalPromptData) for cell in cells)
    at_most = "at most " if bound else ""  # a dataset's held-out prompts are not counted here
    of_one = f"{label}: " if label else ""
    sizes = ", ".join(
        f"{_points(spreads, n_seeds, n_prompts, family, trained)} points {family.words} ({family.n})"
        for family in families
    )
    planned = f"{n_seeds} seed{'s' * (n_seeds > 1)} and {at_most}{n_prompts:,} prompts"
    yield f"{of_one}{planned} tell apart, with {100 * POWER:.0f} % power: {sizes}"
    if n_seeds == 1:
        moves = f"another training moves a difference by about {100 * math.sqrt(spreads.seed):.1f} points"
        yield f"one seed compares these trainings alone: {moves}"
    more = []
    for extra in MORE_SEEDS:
        points = ", ".join(
            _points(spreads, n_seeds + extra, n_prompts, family, trained) for family in families
        )
        more.append(f"with {n_seeds + extra} seeds {points}")
    yield "; ".join(more)


def _points(spreads: Spreads, n_seeds: int, n_prompts: int, family: Family, n_rows: int) -> str:
    pooled_df = n_rows * (n_seeds - 1) / (1 + (n_rows - 1) / 4) if n_seeds > 1 and n_rows > 1 else None
    return f"{100 * detectable(spreads, n_seeds, n_prompts, family.n, pooled_df):.1f}"


def _spreads(differences: Path) -> tuple[Spreads, str]:
    """Spreads of an earlier table of the sweep, or the usual ones, and words on where they come from."""
    seeds, prompts = [], []
    if differences.is_file():
        for row in csv.DictReader(read_text(differences).splitlines()):
            if row["seeds_standard_error"] and row["prompts_standard_error"]:
                seeds.append(float(row["seeds_standard_error"]) ** 2 * int(row["n_seeds"]))
                prompts.append(float(row["prompts_standard_error"]) ** 2 * int(row["n_items"]))
    if seeds:
        spreads = Spreads(math.fsum(seeds) / len(seeds), math.fsum(prompts) / len(prompts), 0.0)
        source = f"of {differences}"
    else:
        spreads, source = USUAL, "as in the committed tables of the controlled world"
    between = f"{100 * math.sqrt(spreads.seed):.1f} points between seeds and {100 * math.sqrt(spreads.prompt):.0f} between prompts"
    return spreads, f"{between}, {source}"
