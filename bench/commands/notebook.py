"""`bench.load`: the numbers and texts of a finished sweep as pandas frames, for notebooks and scripts.

It reads the store with the code of `do=report`, so a frame holds what the tables hold. It asks no judge, loads
no torch and writes nothing.
"""

from __future__ import annotations

import html
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from bench import report
from bench.cli.compose import BadConfig, CheckedCommand, open_command
from bench.cli.sweep_files import sweep_path
from bench.commands import bundle
from bench.commands.planned_sweep import sweep_of
from bench.config import is_name, user_path
from bench.report import frames
from bench.report.analysis import Analysis, analyse
from bench.store.store import Store
from bench.text_files import BadFile, read_object, text

KEYS = ("key", "name", "row", "method", "beta", "seed")
ITEM = (*KEYS, "evaluation", "manner", "item_id", "category", "turn")
# The columns of each frame that may have no rows, so that it has them without rows too.
CURVES = (*KEYS, "step", "examples")
COMPLETIONS = (*ITEM, "prompt", "completion", "baseline", "n_tokens", "finished")
VERDICTS = (
    *ITEM,
    "judge",
    "preference",
    "rating",
    "unscored",
    "policy_length",
    "baseline_length",
    "reply",
    "served",
    "dollars",
)
FINDINGS = (*KEYS, "finding", "severity", "says", "value", "unit", "threshold")
PAIRS = ("first_row", "second_row", "first", "second", "n_seeds", "n_items", "p_holm")


def load(sweep: str, results: str | os.PathLike[str] | None = None) -> LoadedSweep:
    """The numbers and texts of a sweep.

    `sweep`: its folder in `results/sweeps/`, such as "kto_beta". `results`: the folder of the run; None:
    BENCH_RESULTS, else `results` of the current folder. Raises BadConfig where the sweep or the store is not
    there, or its cells cannot be planned again.
    """
    place = user_path(os.fspath(results or os.environ.get("BENCH_RESULTS") or "results"))
    _refuse(sweep, place)
    opened = _opened(sweep, place)
    planned = sweep_of(opened)
    if planned.name != sweep:
        raise BadConfig([f"{place / 'sweeps' / sweep} holds the sweep {planned.name}: load that name"])
    rows = report.collect(planned, Store(place / "store"), {})
    if not any(row.done or row.failed for row in rows):
        why = "It did not run there, or its settings or files have changed since; do=plan names what is new"
        raise BadConfig([f"no cell of {sweep} is in {place / 'store'}{_there(place)}. {why}"])
    return LoadedSweep(analyse(planned, rows, place))


def _refuse(sweep: str, place: Path) -> None:
    """Raises BadConfig where there is nothing to read."""
    if not place.is_dir():
        raise BadConfig([f"no folder {place}: set results= to the results of a run"])
    written = is_name(sweep) and (place / "sweeps" / sweep / "plan.json").exists()
    if not written and not (is_name(sweep) and sweep_path(sweep, ()).exists()):
        raise BadConfig([f"no sweep {sweep!r} in {place / 'sweeps'}{_there(place)}"])
    if not (place / "store").is_dir():
        table = place / "sweeps" / sweep / "table.csv"
        alone = f"; its table alone is in {table}" if table.exists() else ""
        raise BadConfig([f"no store in {place}: set results= to the folder where {sweep} ran{alone}"])


def _there(place: Path) -> str:
    """The sweeps in a results folder, as the end of a message."""
    names = sorted(path.parent.name for path in place.glob("sweeps/*/plan.json"))
    return f"; there: {', '.join(names) or 'none'}"


def _opened(sweep: str, place: Path) -> CheckedCommand:
    """The checked command of the sweep, as its last report wrote it, or of its file before its first report."""
    folder = str(place).replace('"', '\\"')
    words = ["do=report", "tracker=none", f'results="{folder}"']
    if (place / bundle.BUNDLE_FILE).is_file():
        return bundle.opened_from(open_command(words))
    plan = place / "sweeps" / sweep / "plan.json"
    try:
        command = text(read_object(plan)["command"], "command") if plan.exists() else f"+sweep={sweep}"
    except (BadFile, ValueError, KeyError) as error:
        raise BadConfig(
            [f"{plan} is damaged ({error}): run do=report of {sweep} to write it again"]
        ) from error
    return open_command([*shlex.split(command), *words])


class LoadedSweep:
    """A sweep's frames. Rates are in [0, 1]; a value that was not measured is missing (NaN or None).

    Frames of cells begin with `key` and `name` of the cell, `row` (its row in the table, from 1), `method`,
    `beta` and `seed`. `evaluation` is the label of a judge where the sweep has several, else empty.
    """

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis

    @property
    def name(self) -> str:
        return self._analysis.sweep.name

    @property
    def question(self) -> str:
        """The question of the sweep's file, or its command."""
        return self._analysis.sweep.title

    @property
    def command(self) -> str:
        return f"python -m bench {self._analysis.sweep.command}".strip()

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """The lines under table.md by heading: how to read it, judges, fairness, findings."""
        return self._analysis.full_table().notes

    @cached_property
    def table(self) -> pd.DataFrame:
        """The comparison table, one row per setting with its seeds pooled.

        row, name, model, data, method, beta, fraction, iteration and other varied settings; n_seeds (finished),
        n_cells; numbers such as win_rate, lc_win_rate, rating (1 to 10), reward_accuracy, kl (nats a
        completion), mean_length (characters), each with _low and _high of its 95 % interval (over seeds, or
        over prompts where there is one seed); vs_start (difference of the win rate or rating to the start
        model) with _low, _high and _p_holm; among_best (the highest, or not told apart from it); like_start (not
        told apart from the start model); findings; differs (why the row is not comparable, † in the table).
        """
        return pd.DataFrame(frames.pooled_rows(self._analysis)).set_index("row", drop=False)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell, as in table.csv: settings, status (done, failed, absent), every metric with _low,
        _high, _se, _n, and `reason` for what is missing. results/README.md explains the metrics."""
        return pd.DataFrame(list(self._analysis.flat))

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every two rows of the table compared, as in pairs.csv: first minus second in win rate (or rating).

        first_row, second_row, first, second; n_seeds, n_items; p_holm (corrected over all pairs); value,
        standard_error, low, high, t, df, p of the difference over `combined`, `seeds` and `prompts`.
        """
        return _frame(self._analysis.pairs, PAIRS)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per logged training step of each cell.

        step: optimizer step; examples: preference rows seen, missing for a training from before that was
        stored. Then the trainer's numbers, such as loss, rewards/margins,
        rewards/accuracies, kl (KTO's reference point), entropy (nats a token), grad_norm, learning_rate.
        """
        return _frame(frames.curves(self._analysis), CURVES)

    @cached_property
    def completions(self) -> pd.DataFrame:
        """One row per turn of each evaluation completion.

        manner: how it is judged (preference, rating, plain: not at all); item_id, category, turn (from 0);
        prompt, completion, baseline (the opponent's text, where the item has one); n_tokens (with the end
        token); finished: False where it was cut at the longest length.
        """
        return _frame(frames.completions(self._analysis), COMPLETIONS)

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """One row per verdict; evaluation, manner, item_id and turn find its completion.

        judge; preference (for the policy, in [0, 1]; 0.5 is a tie) or rating (1 to 10) or unscored (why there
        is neither); lengths in characters; reply: the judge's words; served: the model that answered;
        dollars: cost of its requests.
        """
        return _frame(frames.verdicts(self._analysis), VERDICTS)

    @cached_property
    def findings(self) -> pd.DataFrame:
        """One row per finding of a cell: finding, severity (warning, note), says (a sentence), value in unit,
        threshold."""
        return _frame(frames.findings(self._analysis), FINDINGS)

    @property
    def _state(self) -> str:
        rows = self._analysis.rows
        return f"{sum(row.done for row in rows)} of {len(rows)} cells are done"

    def __repr__(self) -> str:
        return f"<sweep {self.name}: {self._state}; .table .cells .pairs .curves .completions .verdicts .findings>"

    def _repr_html_(self) -> str:
        """The question, the table as in table.md, and the lines under it."""
        table = self._analysis.full_table()
        lines = [
            f"<h3>{_html(self.question)}</h3>",
            f"<p><code>{_html(self.command)}</code>: {self._state}</p>",
            *(f"<p><strong>{_html(line)}</strong></p>" for line in table.above),
            f"<table><thead><tr>{_html_cells('th', table.columns)}</tr></thead><tbody>",
            *(f"<tr>{_html_cells('td', row)}</tr>" for row in table.rows),
            "</tbody></table>",
        ]
        for heading, notes in table.notes.items():
            items = "".join(f"<li>{_html(note)}</li>" for note in notes)
            lines.append(f"<details><summary>{_html(heading)}</summary><ul>{items}</ul></details>")
        return "\n".join(lines)


def _frame(records: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    frame = pd.DataFrame(list(records))
    return frame if len(frame.columns) else pd.DataFrame(columns=list(columns))


def _html(words: str) -> str:
    return html.escape(words)


def _html_cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{_html(one)}</{tag}>" for one in texts)
