"""What data hold, before they are used: rows by what becomes of them, overlap with what is judged, tokens. For do=plan; no model runs.

Counts of a data stage that is done are those of its manifest; any other is made aside, which takes as long as reading its rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.kinds import ConversationData, LocalPairData
from bench.plan import CellPlan
from bench.records import Pair, Unpaired, completion_columns, read_rows
from bench.stages import data
from bench.store import Source, Stage, Store
from bench.token_counts import Count, Messages, counter_or_none
from bench.worker import Progress, StageRun

SAMPLE = 200  # rows whose tokens are counted

TOKENIZER = "tokenizer"  # the role of a model's folder that tells which prompts are too long
TEMPLATE = 100  # bytes at most that are around a prompt; a token is a byte at least

Counts = Mapping[str, int]


@dataclass
class Aside:
    """Data stages made in a folder that goes away; no store knows them. Prompts that are too long for a model are still in them."""

    store: Store
    root: Path
    made: dict[str, tuple[Path, Counts]] = field(default_factory=dict)

    def look(self, stage: Stage) -> tuple[Path, Counts]:
        """(folder, counts) of a data stage, made here where it is not done."""
        if self.store.status(stage).state == "done":
            return self.store.folder(stage), self.store.manifest(stage).counts
        if stage.key not in self.made:
            read = {role: source for role, source in stage.inputs.items() if role != TOKENIZER}  # which needs torch
            inputs = {role: source.path if isinstance(source, Source) else self.look(source)[0] for role, source in read.items()}
            out = self.root / stage.key
            out.mkdir()
            progress = Progress(self.root / "progress")
            outcome = data.run(stage.settings, StageRun(inputs, out, progress))  # type: ignore[arg-type]
            progress.close()
            self.made[stage.key] = out, outcome.counts
        return self.made[stage.key]


def data_lines(cells: Sequence[CellPlan], store: Store) -> list[str]:
    """In words, what the files and public datasets of these cells hold, each once; what cannot be used is said in its place."""
    lines: dict[str, None] = {}
    with tempfile.TemporaryDirectory() as folder:
        aside = Aside(store, Path(folder))
        for cell in cells:
            try:
                lines |= dict.fromkeys(_of_cell(cell, aside))
            except ValueError as error:
                lines[f"{cell.cell.data.name}: {' '.join(str(error).split())}"] = None
    return list(lines)


def _of_cell(cell: CellPlan, aside: Aside) -> Iterator[str]:
    for stage in cell.stages:
        if isinstance(stage.settings, ConversationData):
            _, counts = aside.look(stage)
            yield f"{cell.cell.sft and cell.cell.sft.name}: {counts['rows']:,} conversations{_less('train', counts)}"
    preferences = cell.roles.get("preferences")
    if preferences is None or not isinstance(settings := preferences.settings, LocalPairData):
        return
    folder, counts = aside.look(preferences)
    rows = read_rows(folder / "train.jsonl")
    words = f"{cell.cell.data.name}: {len(rows):,} train rows of {counts['train_prompts']:,} prompts"
    if "all_train_prompts" in counts and settings.fraction != 1:
        words += f" (fraction {settings.fraction:g} of {counts['all_train_prompts']:,})"
    yield f"{words}, {counts['heldout']:,} held out{_tokens(cell, rows)}"
    for split in ("train", "heldout"):
        if less := _less(split, counts):
            yield f"  {split}{less}"
    if too_long := _too_long(cell, rows):
        yield f"  at least {too_long:,} more train rows will be dropped: their prompts alone fill model.max_length={settings.max_length}"
    if same := _same("heldout", counts):
        yield f"  {same} are asked of held-out rows too: dropped from the train rows"
    if same := _same("items", counts):
        yield f"  {same} are asked by the judge too: dropped (data.overlap={settings.overlap})"
    if (asked := cell.roles.get("overlap")) is not None and (same := _same("items", aside.look(asked)[1])):
        yield f"  {same} are asked by the judge too, and trained on"


def _less(split: str, counts: Counts) -> str:
    """What was read of a split, dropped and noted."""
    if f"{split}/read" not in counts:
        return ""
    found = []
    for kind in ("dropped", "noted"):
        start = f"{split}/{kind}/"
        if reasons := [f"{n:,} {name.removeprefix(start)}" for name, n in sorted(counts.items()) if name.startswith(start)]:
            found.append(f"{'kept all the same' if kind == 'noted' else kind}: {', '.join(reasons)}")
    return "; ".join([f" of {counts[f'{split}/read']:,} read", *found])


def _same(of: str, counts: Counts) -> str:
    exact, nearly = (counts.get(f"overlap/{of}/{how}", 0) for how in ("exact", "normalised"))
    return f"{exact + nearly:,} train rows ({exact:,} word for word, {nearly:,} but for case and spaces)" if exact + nearly else ""


def _count(cell: CellPlan) -> Count | None:
    """By the model's tokenizer, where it can be had without torch."""
    models = (stage.inputs.get("model") for stage in cell.stages if stage.kind in ("sft", "train", "generate"))
    return counter_or_none(next((model.path for model in models if isinstance(model, Source)), None))


def _too_long(cell: CellPlan, rows: Sequence[Pair] | Sequence[Unpaired]) -> int:
    """Rows whose prompts fill what the model looks at; none where nobody drops them, or has dropped them."""
    settings = cell.roles["preferences"].settings
    assert isinstance(settings, LocalPairData)
    most = settings.max_length
    if most is None or TOKENIZER not in cell.roles["preferences"].inputs:
        return 0
    long = [row for row in rows if TEMPLATE + sum(len(message["content"].encode()) for message in row.prompt) >= most]
    count = _count(cell) if long else None
    return sum(count(row.prompt, True) >= most for row in long) if count else 0


def _tokens(cell: CellPlan, rows: Sequence[Pair] | Sequence[Unpaired]) -> str:
    """About how many tokens a pass over the rows has, where the model's tokenizer can be had without torch."""
    if (count := _count(cell)) is None:
        return ""
    some = rows[:: max(1, len(rows) // SAMPLE)]
    tokens = sum(count(messages, False) for messages in learnt(some))
    return f", about {round(tokens / len(some) * len(rows)):,} tokens a pass"


def learnt(rows: Sequence[Pair] | Sequence[Unpaired]) -> Iterator[Messages]:
    """Each completion with its prompt."""
    for row in rows:
        role = "text" if row.prompt[0]["role"] == "text" else "assistant"
        for column in completion_columns(row):
            if not column.startswith("mismatched"):
                yield [*row.prompt, {"role": role, "content": getattr(row, column)}]
