"""`do=status`: prints the state of each cell (done, running, failed, lost ...) and its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

from bench.cli.compose import CheckedCommand
from bench.commands import OK, SOME_FAILED, bundle
from bench.commands.cell_states import WRONG, cell_state, jobs_of, made_cells
from bench.commands.faults import damaged_lines, print_lines
from bench.commands.planned_sweep import sweep_of
from bench.report import Sweep
from bench.runner.evict import evicted
from bench.store.store import Store
from bench.terminal import Terminal, plain_table


def main(opened: CheckedCommand) -> int:
    opened = bundle.opened_from(opened)
    results = opened.session.results_dir
    store, sweep = Store(results / "store"), sweep_of(opened)
    made = made_cells(sweep, results)
    return SOME_FAILED if print_status(sweep, store, made) or print_lines(damaged_lines(sweep, store)) else OK


def print_status(sweep: Sweep, store: Store, made: Container[str] = ()) -> bool:
    """Print the state of each cell; returns whether one has failed or is lost, damaged, stale or absent.

    The states: done, running, queued, failed, lost (begun, and no command works on it), damaged, stale,
    absent (deleted since it was done), interrupted, to do. `made`: keys of cells that had their numbers
    before.
    """
    console = Terminal(soft_wrap=True)
    table = plain_table(f"{sweep.name}: {len(sweep.cells)} cells", ("cell", "state", "stages"), n_texts=3)
    table.add_column("why")
    states = []
    jobs = jobs_of(store)
    for cell in sweep.cells:
        state, why = cell_state(cell, store, jobs, made)
        states.append(state)
        done = sum(store.is_done(stage) for stage in cell.stages)
        table.add_row(cell.name, state, f"{done}/{len(cell.stages)}", why)
    console.whole(table)
    console.print(", ".join(f"{n} {state}" for state, n in Counter(states).items()), highlight=False)
    if gone := evicted(sweep.cells, store).words():
        console.print(gone, highlight=False)
    return any(state in WRONG for state in states)
