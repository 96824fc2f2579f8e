"""`do=scoreboard`: every published table of the source articles, the sweep that runs it, and its verdicts.

Reads the tables in results/sweeps/ and runs nothing.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from omegaconf import OmegaConf

from bench import papers, report
from bench.cli import sweep_files
from bench.cli.compose import CheckedCommand
from bench.cli.words import SWEEPS
from bench.commands import OK, SOME_FAILED
from bench.config import Kind
from bench.output_files import OutputFiles
from bench.papers import PublishedTable, Word
from bench.records import grouped
from bench.report import published
from bench.report.published import ComparedTable
from bench.runner.preflight import make_results
from bench.terminal import Terminal
from bench.text_files import BadFile, read_object

NO_SWEEP = "no sweep"
ARTICLES = ("SPIN", "DPO", "Self-Rewarding", "SPA", "KTO")  # Source articles, in their order.
NOTHING_RUN = published.SweepNumbers((), {})


@dataclass(frozen=True)
class ScoreboardLine:
    """A published table, and the sweep that runs it."""

    table: PublishedTable
    compared: ComparedTable
    sweep: str = NO_SWEEP
    scale: str = "-"
    command: str = "-"
    folder: Path | None = None
    others: tuple[str, ...] = ()  # Other sweeps with rows of the table.

    @property
    def sweeps(self) -> str:
        return self.sweep + (f" (also {', '.join(self.others)})" if self.others else "")

    @property
    def is_run(self) -> bool:
        return self.folder is not None

    @property
    def rows(self) -> str:
        """Rows of the table that a sweep has run."""
        return f"{self.compared.rows_run} of {len(self.compared.roles) or len(self.table.rows)}"

    @property
    def noise(self) -> str:
        """Orders of the table within their own noise, of those with a standard error."""
        counts = noise_counts([self.table])
        known = counts["within"] + counts["beyond"]
        return f"{counts['within']} of {known}" if known else "-"

    @property
    def verdicts(self) -> str:
        """Contrasts by word; those on one training are named, since they never count."""
        if self.table.is_picture:
            return "published as pictures only"
        if not self.table.contrasts and not self.table.argmax:
            return "no order of the paper listed"
        if not self.is_run:
            n = len(self.compared.contrasts) + len(self.compared.best)
            return f"{n} not run: {NO_SWEEP if self.sweep == NO_SWEEP else f'+sweep={self.sweep}'}"
        single = sum("one training" in one.verdict.suffixes for one in self.compared.contrasts)
        return published.count_words([self.compared]) + (f" ({single} on one training)" if single else "")


def main(opened: CheckedCommand) -> int:
    results = opened.session.results_dir
    make_results(results, store=False)
    lines, problems = scoreboard(results / "sweeps")
    out = OutputFiles(results)
    out.write(results / "scoreboard.md", markdown(lines))
    out.write(results / "scoreboard.csv", report.csv_text([csv_line(line) for line in lines]))
    _show(lines, results)
    console = Terminal(soft_wrap=True)
    for problem in [*problems, *out.lines()]:
        console.plain(problem, "red")
    return SOME_FAILED if problems or out.lines() else OK


def scoreboard(folder: Path) -> tuple[list[ScoreboardLine], list[str]]:
    """A line for each table of a source article, and folders that cannot be read."""
    runs, problems = _runs(folder)
    lines: dict[str, list[ScoreboardLine]] = {}
    for path in sorted(SWEEPS.glob("*.yaml")):
        parts = {kind: published_part(path, kind) for kind in get_args(Kind)}
        of_sweep = [run for run in runs if run.sweep == path.stem]
        for name in dict.fromkeys(name for part in parts.values() for name in part):
            lines.setdefault(name, []).append(_line(path.stem, name, parts, of_sweep))
    shown = [table for table in papers.tables().values() if table.article and not table.is_settings]
    of_articles = sorted(shown, key=lambda table: ARTICLES.index(str(table.article)))
    return [
        _chosen(lines[table.id]) if table.id in lines else _unswept(table) for table in of_articles
    ], problems


def _chosen(lines: Sequence[ScoreboardLine]) -> ScoreboardLine:
    """The line of the sweep that ran most of a table's rows; it names the other sweeps."""
    best = max(lines, key=lambda line: line.compared.rows_run)
    return replace(best, others=tuple(line.sweep for line in lines if line is not best))


def _unswept(table: PublishedTable) -> ScoreboardLine:
    return ScoreboardLine(table, _compared({table.id: {}}, NOTHING_RUN))


@dataclass(frozen=True)
class _Run:
    sweep: str
    command: str
    folder: Path
    numbers: published.SweepNumbers

    @property
    def kind(self) -> str:
        return "world" if any(row.in_world for row in self.numbers.rows) else "real"


def _runs(folder: Path) -> tuple[list[_Run], list[str]]:
    runs, problems = [], []
    for plan in sorted(folder.glob("*/plan.json")):
        try:
            command = str(read_object(plan)["command"])
            if sweep := re.search(r"\+sweep=(\w+)", command):
                runs.append(_Run(sweep[1], command, plan.parent, published.read_numbers(plan.parent)))
        except (BadFile, OSError, KeyError, ValueError) as error:
            problems.append(f"{plan.parent} cannot be read: {error}")
    return runs, problems


def published_part(path: Path, kind: str) -> dict[str, Any]:
    """The part on published tables that a sweep file has at scales of a kind."""
    written: Any = OmegaConf.to_container(sweep_files.load_sweep(path))
    parts = sweep_files.parts_of(written, path.name)
    return sweep_files.merged(parts.common, parts.of_kind.get(kind, {})).get("published", {})


def _line(sweep: str, name: str, parts: Mapping[str, dict[str, Any]], runs: Sequence[_Run]) -> ScoreboardLine:
    """The line of a sweep and a table, from the folder that ran most of the table's rows, at most seeds."""
    compared = [
        (_compared({name: part[name]}, run.numbers), run) for run in runs if name in (part := parts[run.kind])
    ]
    ran = [(table, run) for table, run in compared if table.rows_run]
    if not ran:
        kind, part = next((kind, part) for kind, part in parts.items() if name in part)
        table = _compared({name: part[name]}, NOTHING_RUN)
        models = [f" model={model}" for model in _models(part[name])] if kind == "real" else []
        commands = [f"python -m bench +sweep={sweep}{model}" for model in models or [""]]
        return ScoreboardLine(table.table, table, sweep, command="; ".join(commands))
    table, run = max(
        ran, key=lambda pair: (pair[0].rows_run, sum(len(row.cells) for row in pair[1].numbers.rows))
    )
    words = dict(word.split("=", 1) for word in shlex.split(run.command) if "=" in word)
    command = f"python -m bench {run.command}"
    return ScoreboardLine(table.table, table, sweep, words.get("scale", "world"), command, run.folder)


def _models(part: Any) -> list[str]:
    """Models that the rows of a table's part have."""
    if not isinstance(part, dict):
        return []
    own = [part["model"]] if isinstance(part.get("model"), str) else []
    return list(dict.fromkeys([*own, *(model for value in part.values() for model in _models(value))]))


def _compared(part: dict[str, Any], numbers: published.SweepNumbers) -> ComparedTable:
    (table,) = published.compare(part, numbers)
    return table


# ---- what it says -------------------------------------------------------------------------------------------------------


def noise_counts(tables: Sequence[PublishedTable]) -> Counter[str]:
    """The papers' own orders by what their tables show: within noise, beyond it, or not known."""
    counts: Counter[str] = Counter()
    for table in tables:
        for one in table.compared():
            theirs = one.theirs
            unknown = "slip or picture" if theirs.slip or theirs.value is None else "no standard error"
            within = theirs.within_noise
            counts[unknown if within is None else "within" if within else "beyond"] += 1
    return counts


def headline(lines: Sequence[ScoreboardLine]) -> list[str]:
    """How many of the papers' orders lie within their own noise, and what came out here."""
    counts = noise_counts([line.table for line in lines])
    known, total = counts["within"] + counts["beyond"], sum(counts.values())
    share = f"{100 * counts['within'] / known:.0f} %" if known else "none"
    counted = Counter(
        one.verdict.word for line in lines for one in line.compared.contrasts if one.verdict.counts
    )
    words = "; ".join(f"{counted[word]} {word}" for word in Word if counted[word]) or "none yet"
    return [
        f"Of {total} orders listed from the papers (bench/papers/tables), {known} have a standard error: "
        f"{counts['within']} of these ({share}) lie within their own noise (two standard errors). "
        f"{counts['no standard error']} have none (ratings, or no number of prompts), "
        f"{counts['slip or picture']} are published as pictures or rest on a slip of the source.",
        f"Run here on several seeds and comparable: {words}.",
    ]


def by_paper(lines: Sequence[ScoreboardLine]) -> list[list[str]]:
    """For each file of papers: orders, within noise, beyond it, without a standard error, picture or slip."""
    rows = []
    for some in grouped((line.table.file, line.table) for line in lines).values():
        counts = noise_counts(some)
        numbers = [
            sum(counts.values()),
            *(counts[key] for key in ("within", "beyond", "no standard error", "slip or picture")),
        ]
        if numbers[0]:
            rows.append([str(some[0].paper), *map(str, numbers)])
    return rows


COLUMNS = ("table", "source", "within noise", "sweep", "scale", "rows run", "orders by verdict", "command")


def markdown(lines: Sequence[ScoreboardLine]) -> str:
    """scoreboard.md: the headline, the papers' own noise, a line for each table, and lists of settings."""
    settings = [f"`{table.id}`" for table in papers.tables().values() if table.article and table.is_settings]
    columns = ["paper", "orders", "within noise", "beyond", "no standard error", "picture or slip"]
    rows = [
        [
            f"`{line.table.id}`: {line.table.title}",
            line.table.source,
            line.noise,
            line.sweeps,
            line.scale,
            line.rows,
            line.verdicts,
            "; ".join(command if command == "-" else f"`{command}`" for command in line.command.split("; ")),
        ]
        for line in lines
    ]
    return "\n".join(
        [
            "# Scoreboard\n",
            "`python -m bench scoreboard`\n",
            *(f"{text}\n" for text in headline(lines)),
            "## What the papers' own numbers decide\n",
            published.table_text(columns, by_paper(lines)),
            "## Every published table\n",
            f"{published.IN_THE_WORLD} `results/sweeps/SWEEP/table.md` has each row and contrast beside its published one. "
            "Verdicts on one training never count.\n",
            published.table_text(COLUMNS, rows),
            f"Lists of settings, with nothing to run: {', '.join(settings)}.",
            "",
        ]
    )


def csv_line(line: ScoreboardLine) -> dict[str, Any]:
    """Row of scoreboard.csv: a column for each word."""
    words = line.compared.count()
    return {
        "table": line.table.id,
        "title": line.table.title,
        "article": line.table.article,
        "source": line.table.source,
        "sweep": line.sweep,
        "other_sweeps": " ".join(line.others),
        "scale": line.scale,
        "rows_run": line.compared.rows_run,
        "rows": len(line.compared.roles) or len(line.table.rows),
        **{str(word): words[word] for word in Word},
        "best_settings": "; ".join(f"{one.role}: {one.word}" for one in line.compared.best),
        "command": line.command,
    }


def _show(lines: Sequence[ScoreboardLine], results: Path) -> None:
    """Print the headline and two lines for each table."""
    console = Terminal(soft_wrap=True)
    fit = not console.is_terminal
    for text in headline(lines):
        console.plain(text, "bold", soft_wrap=fit)
    console.print()
    for some in grouped((line.table.file, line) for line in lines).values():
        console.plain(str(some[0].table.paper), "bold", soft_wrap=fit)
        for line in some:
            run = f" ({line.sweep} at scale={line.scale}, {line.rows} rows)" if line.is_run else ""
            console.plain(f"  {line.table.id}{run}", soft_wrap=fit)
            width = 10_000 if fit else console.width
            for part in textwrap.wrap(line.verdicts, width - 4):
                console.plain(f"    {part}", soft_wrap=fit)
    console.print()
    console.plain(f"table    {results}/scoreboard.md .csv")
