"""Counts of a plan's data: rows read, dropped and kept, overlap with the judge's prompts, tokens.

No model runs.

Counts of a finished data stage come from its manifest. Any other data stage is made in a temporary folder,
which takes as long as reading its rows.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.models import recorded
from bench.models.templates import read_template
from bench.models.token_counts import Messages, counter_or_none
from bench.planning.inputs import CellPlan
from bench.readers.learnable import check_conversations
from bench.readers.splits import FILE, OPPOSITE_OF_ANOTHER, OVER_WEIGHT
from bench.records import (
    Completion,
    Conversation,
    Item,
    Pair,
    Unpaired,
    completion_columns,
    read_items,
    read_jsonl,
    read_rows,
    write_jsonl,
)
from bench.stages import data, generate
from bench.store.keys import Source, Stage
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import (
    TOKENIZER,
    ConversationData,
    ConversationSft,
    FilePromptData,
    GenerateSettings,
    JudgeItemData,
    LocalPairData,
    NextPromptData,
    SampleSettings,
    WrittenCompletions,
)
from bench.store.store import Store

SAMPLE = 200  # Rows whose tokens are counted.

Counts = Mapping[str, int]


class NotHere(ValueError):
    """Rows of datasets of the hub that are not on this machine.

    `repos`: all datasets, by label in a mixture, else by ""; `away`: labels of those that are not here.
    """

    def __init__(self, repos: Mapping[str, str], away: Sequence[str]) -> None:
        self.repos = repos
        are = "are" if len(away) > 1 else "is"
        super().__init__(f"{' and '.join(repos[label] for label in away)} {are} not on this machine")

    def recorded(self) -> dict[str, Mapping[str, int]] | None:
        """Recorded rows by split, of each dataset by label; None where one has none."""
        known = {label: rows for label, repo in self.repos.items() if (rows := recorded.rows(repo))}
        return known if len(known) == len(self.repos) else None


@dataclass
class ScratchData:
    """Data stages made in a temporary folder, outside the store.

    `stand_in` gives completions in place of those that a model would have to write.
    """

    store: Store
    root: Path
    stand_in: Callable[[Stage, Sequence[Item]], list[Completion]] | None = None
    made: dict[str, tuple[Path, Counts] | ValueError] = field(default_factory=dict)

    def folder(self, source: Stage | Source) -> Path:
        return source.path if isinstance(source, Source) else self.load(source)[0]

    def load(self, stage: Stage) -> tuple[Path, Counts]:
        """(folder, counts) of a data stage, made here if it is not finished.

        Raises ValueError for bad data, and for a stage that a model has to run.
        """
        if self.store.is_done(stage):
            return self.store.folder(stage), self.store.manifest(stage).counts
        if stage.key not in self.made:
            try:
                self.made[stage.key] = self._make(stage)
            except (ValueError, OSError) as error:
                self.made[stage.key] = error if isinstance(error, ValueError) else ValueError(str(error))
        if isinstance(result := self.made[stage.key], ValueError):
            raise result
        return result

    def _make(self, stage: Stage) -> tuple[Path, Counts]:
        writes = self.stand_in is not None and isinstance(stage.settings, GenerateSettings | SampleSettings)
        if stage.kind != "data" and not writes and not isinstance(stage.settings, WrittenCompletions):
            raise ValueError(f"{stage.label or stage.kind}: a model has to run first")
        settings, inputs = stage.settings, {}
        for role, source in stage.inputs.items():
            if writes and role != "items":
                continue
            try:
                inputs[role] = self.folder(source)
            except NotHere:
                if not (isinstance(settings, LocalPairData) and _items_away(source)):
                    raise
                settings = settings.model_copy(update={"overlap": "report"})  # No items to compare with.
        if TOKENIZER in inputs and not inputs[TOKENIZER].is_dir():  # A hub model that is not downloaded yet.
            del inputs[TOKENIZER]
        sources = {role: source for role, source in stage.inputs.items() if isinstance(source, Source)}
        if any(is_away(source) for role, source in sources.items() if role in inputs):
            # A mixture is counted by its recorded rows as soon as one of its sources is away.
            rows = {role.partition("/")[2]: source for role, source in sources.items() if role != TOKENIZER}
            away = [label for label, source in rows.items() if is_away(source)]
            raise NotHere({label: str(source.path) for label, source in rows.items()}, away)
        out = self.root / stage.key
        out.mkdir()
        if self.stand_in is not None and writes:
            write_jsonl(out / "completions.jsonl", self.stand_in(stage, read_items(inputs["items"])))
            return out, {}
        if stage.kind != "data" and not isinstance(stage.settings, WrittenCompletions):
            raise ValueError(f"{stage.label or stage.kind}: a model has to write it first")
        progress = Progress(self.root / "progress")
        try:
            run = (generate if isinstance(stage.settings, WrittenCompletions) else data).run
            return out, run(settings, StageRun(inputs, out, progress)).counts  # type: ignore[arg-type]
        finally:
            progress.close()


def is_away(source: Source) -> bool:
    """Whether a source is a dataset or model of the hub that is not on this machine."""
    return source.digest.startswith("hub:") and not source.path.exists()


def _items_away(source: Stage | Source) -> bool:
    """Whether a stage is a judge's items of the hub that are not on this machine."""
    return (
        isinstance(source, Stage)
        and isinstance(source.settings, JudgeItemData)
        and any(isinstance(file, Source) and is_away(file) for file in source.inputs.values())
    )


class DataSummary(NamedTuple):
    """Lines on the data, and reasons to refuse them in a run."""

    lines: list[str]
    refusals: list[str]


def data_lines(cells: Sequence[CellPlan], store: Store) -> DataSummary:
    """Summary of the files and public datasets of these cells, each once."""
    lines: dict[str, None] = {}
    refusals: dict[str, None] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = ScratchData(store, Path(folder))
        for cell in cells:
            try:
                lines |= dict.fromkeys(_lines_of_cell(cell, scratch))
            except ValueError as error:
                refusals |= dict.fromkeys(f"{cell.cell.data.name}: {error}".splitlines())
    return DataSummary(list(lines), list(refusals))


def data_refusals(cells: Sequence[CellPlan], to_do: Sequence[Stage], store: Store) -> list[str]:
    """Reasons for these stages to refuse files and public datasets, as in `data_lines`.

    They are looked for before a run, so that nothing is spent.
    """
    waiting, refusals = set(to_do), dict[str, None]()
    with tempfile.TemporaryDirectory() as folder:
        scratch = ScratchData(store, Path(folder))
        for cell in cells:
            try:
                _check_stages([stage for stage in cell.stages if stage in waiting], scratch)
            except ValueError as error:
                refusals |= dict.fromkeys(f"{cell.cell.data.name}: {error}".splitlines())
    return list(refusals)


def _away(error: NotHere) -> str:
    """What is known of rows that are not on this machine, in words."""
    known: Counter[str] = Counter()
    for rows in (error.recorded() or {}).values():
        known.update(rows)
    what = " and ".join(f"{n:,} {split} rows" for split, n in known.items())
    counted = f"at most {what} as recorded in conf/" if known else "the rows are not counted"
    return f"{error}: {counted}; what is dropped, and overlap with the judge's items, is not known"


def _too_few(settings: Any, rows: Mapping[str, Mapping[str, int]] | None) -> str | None:
    """Why recorded rows are too few for the prompts that a stage needs; None where they suffice or are not known."""
    if rows is None or not isinstance(settings, NextPromptData | FilePromptData):
        return None
    labelled = settings.pairs.fraction if isinstance(settings, NextPromptData) else 0.0
    left = math.floor(sum(known["train"] for known in rows.values()) * (1 - labelled))
    needed = settings.after + settings.n
    if needed <= left:
        return None
    text = f"The iterations up to this one need {needed:,} prompts without labels, and its recorded rows leave at most {left:,}"
    return f"{text}. Lower method.n_prompts{' or data.fraction' if labelled else ''}."


def _check_stages(stages: Sequence[Stage], scratch: ScratchData) -> None:
    for stage in stages:
        if _reads_files(stage):
            try:
                scratch.load(stage)
            except NotHere as error:
                if why := _too_few(stage.settings, error.recorded()):
                    raise ValueError(f"{error}. {why}") from error
        if isinstance(stage.settings, ConversationSft):
            model, conversations = stage.inputs["model"], stage.inputs.get("conversations")
            if conversations is not None and isinstance(model, Source) and model.path.is_dir():
                with contextlib.suppress(NotHere):
                    path = scratch.folder(conversations) / "rows.jsonl"
                    check_conversations(read_template(model.path), list(read_jsonl(path, Conversation)))


def _lines_of_cell(cell: CellPlan, scratch: ScratchData) -> Iterator[str]:
    _check_stages(cell.stages, scratch)
    for stage in cell.stages:
        if _items_away(stage):
            yield f"{stage.label}: {stage.settings.n:,} as recorded; overlap with the train rows is not known"  # type: ignore[attr-defined]
        if isinstance(stage.settings, ConversationData):
            try:
                counts = scratch.load(stage)[1]
            except NotHere as error:
                yield _away(error)
                continue
            yield f"{cell.cell.sft and cell.cell.sft.name}: {counts['rows']:,} conversations{_dropped_and_noted('train', counts)}"
    preferences = cell.roles.get("preferences")
    if preferences is None or not isinstance(settings := preferences.settings, LocalPairData):
        return
    try:
        folder, counts = scratch.load(preferences)
    except NotHere as error:
        yield _away(error)
        return
    rows = read_rows(folder / "train.jsonl") if settings.fraction else []
    words = f"{cell.cell.data.name}: {len(rows):,} train rows of {counts['train_prompts']:,} prompts"
    if "all_train_prompts" in counts and settings.fraction != 1:
        words += f" (fraction {settings.fraction:g} of {counts['all_train_prompts']:,})"
    yield f"{words}, {counts['heldout']:,} held out{_tokens(cell, rows)}"
    for label, source in settings.sources.items():
        n, all_of_it = counts[f"{label}/train"], f"{label}/train/dropped/{OVER_WEIGHT}" not in counts
        weight = f", weight {source.weight:g}" if source.weight is not None else ""
        size = ", all that it has for its weight: it sets the size" if weight and all_of_it else ""
        share = f"{n:,} train rows ({n / max(1, counts['train']):.1%}{weight}{size})"
        yield f"  {label}: {share}, {counts[f'{label}/heldout']:,} held out"
    sources = [f"{label}/" for label in settings.sources]
    for split in (FILE, *(f"{start}{split}" for start in sources or [""] for split in ("train", "heldout"))):
        if words := _dropped_and_noted(split, counts):
            yield f"  {split}{words}"
    if opposite := counts.get(f"train/noted/{OPPOSITE_OF_ANOTHER}"):
        yield f"  train: kept with a note: {opposite:,} {OPPOSITE_OF_ANOTHER}"
    for start in sources or [""]:
        if same := _same(f"{start}overlap/heldout", counts):
            yield f"  {start.replace('/', ': ')}{same} share their prompt with a held-out row: dropped from the train rows"
    if same := _same("overlap/items", counts):
        yield f"  {same} have a prompt that the judge uses too: dropped (data.overlap={settings.overlap})"
    for role, overlap in cell.roles.items():
        label = role.rpartition("/")[0]
        if not role.endswith("overlap") or any(map(_items_away, overlap.inputs.values())):
            continue
        if same := _same("overlap/items", scratch.load(overlap)[1]):
            judge = f"the judge of {label}" if label else "the judge"
            yield f"  {same} have a prompt that {judge} uses too: they are trained on"


def _reads_files(stage: Stage) -> bool:
    """Whether a data stage is made of files alone and can be made before anything has run."""
    sources = [source for role, source in stage.inputs.items() if role != TOKENIZER]
    return (
        stage.kind == "data"
        and bool(sources)
        and all(isinstance(source, Source) or _reads_files(source) for source in sources)
    )


def _dropped_and_noted(split: str, counts: Counts) -> str:
    """Numbers of rows of a split that were read, dropped and noted, in words; empty without counts."""
    if f"{split}/read" not in counts:
        return ""
    parts = []
    for kind in ("dropped", "noted"):
        start = f"{split}/{kind}/"
        if reasons := [
            f"{n:,} {name.removeprefix(start)}"
            for name, n in sorted(counts.items())
            if name.startswith(start)
        ]:
            parts.append(f"{'kept with a note' if kind == 'noted' else kind}: {', '.join(reasons)}")
    return "; ".join([f" of {counts[f'{split}/read']:,} read", *parts])


def _same(of: str, counts: Counts) -> str:
    """Number of train rows that share a prompt, by the counts named `of`, in words; empty for 0."""
    exact, nearly = (counts.get(f"{of}/{how}", 0) for how in ("exact", "normalised"))
    return (
        f"{exact + nearly:,} train rows ({exact:,} word for word, {nearly:,} apart from case and spaces)"
        if exact + nearly
        else ""
    )


def _tokens(cell: CellPlan, rows: Sequence[Pair] | Sequence[Unpaired]) -> str:
    """Approximate tokens of a pass over the rows, in words; empty without a tokenizer that needs no torch."""
    if not rows or (count := counter_or_none(model_folder(cell))) is None:
        return ""
    some = sample(rows)
    tokens = sum(count(messages, False) for messages in learnt(some))
    return f", about {round(tokens / len(some) * len(rows)):,} tokens a pass"


def learnt(rows: Sequence[Pair] | Sequence[Unpaired]) -> Iterator[Messages]:
    """Messages of each completion with its prompt."""
    for row in rows:
        role = "text" if row.prompt[0]["role"] == "text" else "assistant"
        for column in completion_columns(row):
            if not column.startswith("mismatched"):
                yield [*row.prompt, {"role": role, "content": getattr(row, column)}]


def sample(rows: Sequence[Any]) -> Sequence[Any]:
    """Evenly spaced rows, fewer than 2 · SAMPLE."""
    return rows[:: max(1, len(rows) // SAMPLE)]


def model_folder(cell: CellPlan) -> Path | None:
    """Folder of the user's model; None in the controlled world."""
    models = (
        stage.inputs.get("model") for stage in cell.stages if stage.kind in ("sft", "train", "generate")
    )
    return next((source.path for source in models if isinstance(source, Source)), None)
