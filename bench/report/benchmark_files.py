"""Export of a cell's completions and verdicts in the formats of AlpacaEval and FastChat.

The folder `cells/` then has AlpacaEval's layout. A cell's folder holds

    model_outputs.json, reference_outputs.json, JUDGE/annotations.json  one turn: completions, preferences
    model_answer.jsonl, JUDGE_single.jsonl, JUDGE_pair.jsonl            two turns: the same and ratings

and `.MANNER_exported`, with the stages that the export was made from and the checksum of each file.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bench.config import as_name
from bench.judges.formats import alpaca_eval, mt_bench
from bench.output_files import OutputFiles
from bench.planning.inputs import CellPlan
from bench.records import Completion, Item, Verdict, grouped, read_completions, read_items, read_verdicts
from bench.store.keys import file_digest
from bench.store.store import Store
from bench.text_files import BadFile, read_object

BASELINE = "baseline"  # Items bring one fixed opponent, without a name of its own.


def export(cell: CellPlan, store: Store, out: OutputFiles, folder: Path) -> None:
    """Export the cell's finished completions and verdicts.

    An export of the same stages whose files are unchanged is left as it is, so that a finished sweep is
    quick. Exported files of verdicts that the store no longer has stay.
    """
    for manner in ("preference", "plain", "rating"):
        roles = {what: cell.roles.get(f"{manner}_{what}") for what in ("items", "completions", "verdicts")}
        stages = {what: stage for what, stage in roles.items() if store.is_done(stage)}
        if "items" not in stages or "completions" not in stages:
            continue
        made_of = {f"{stage.kind}/{stage.key}": store.manifest(stage).digest for stage in stages.values()}
        before = read_mark(folder, manner)
        if before and before.made_of == made_of and not before.changed(folder):
            continue
        with tempfile.TemporaryDirectory() as aside:
            _write_formats(cell, {what: store.folder(stage) for what, stage in stages.items()}, Path(aside))
            written = {
                str(path.relative_to(aside)): path.read_bytes()
                for path in sorted(Path(aside).rglob("*"))
                if path.is_file()
            }
        for name in before.files if before and "verdicts" in stages else ():
            if name not in written:
                out.remove(folder / name)
        whole = [out.write(folder / name, content) for name, content in written.items()]
        if all(whole):
            digests = {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
            out.write(
                folder / f".{manner}_exported", json.dumps({"made_of": made_of, "files": digests}, indent=1)
            )


@dataclass(frozen=True)
class Mark:
    """Record of one export: digests of its stages by `kind/key`, and the checksum of each file.

    Both are empty where an earlier version of bench wrote the record, or it cannot be read.
    """

    made_of: Mapping[str, str]
    files: Mapping[str, str]

    def changed(self, folder: Path) -> list[str]:
        """Names of the files that changed since the export."""

        def is_as_written(path: Path, digest: str) -> bool:
            try:
                return not path.is_symlink() and path.is_file() and file_digest(path) == digest
            except OSError:
                return False

        return [name for name, digest in self.files.items() if not is_as_written(folder / name, digest)]


def read_mark(folder: Path, manner: str) -> Mark | None:
    """Record of an export in this folder; None where nothing was exported."""
    path = folder / f".{manner}_exported"
    if not path.exists():
        return None
    try:
        content = read_object(path)
        parts = [
            {str(name): str(digest) for name, digest in content[part].items()}
            for part in ("made_of", "files")
        ]
    except (BadFile, KeyError, AttributeError):
        return Mark({}, {})
    return Mark(*parts)


def export_faults(folder: Path, store: Store) -> list[str]:
    """Differences between the exported files of a cell's folder and the store.

    Empty for a folder that bench did not export.
    """
    faults = []
    for manner in ("preference", "plain", "rating"):
        if (mark := read_mark(folder, manner)) is None:
            continue
        if not mark.made_of or not mark.files:
            faults.append(
                f"{folder}: an earlier version of bench exported this folder and did not record from which stages"
            )
        faults += [
            f"{folder / name}: changed or missing since it was exported" for name in mark.changed(folder)
        ]
        for stage, digest in mark.made_of.items():
            if store.recorded_digest(stage) not in (None, digest):
                faults.append(f"{folder}: exported before the stage {stage} was run again")
    return faults


def _write_formats(cell: CellPlan, folders: Mapping[str, Path], folder: Path) -> None:
    items, completions = read_items(folders["items"]), read_completions(folders["completions"])
    verdicts = read_verdicts(folders["verdicts"]) if "verdicts" in folders else []
    by_judge = grouped((_judge(cell, verdict), verdict) for verdict in verdicts)
    several_turns = any(len(item.turns) > 1 for item in items)
    (_fastchat if several_turns else _alpaca_eval)(cell.name, items, completions, by_judge, folder)


def _judge(cell: CellPlan, verdict: Verdict) -> str:
    """Name of the judge for files, with its model where it has one, so that two models are two annotators."""
    model = getattr(cell.cell.judge, "model", None)
    judge = as_name(verdict.judge)
    return f"{judge}-{as_name(Path(model).name)}" if isinstance(model, str) else judge


def _alpaca_eval(
    name: str,
    items: list[Item],
    completions: list[Completion],
    verdicts: dict[str, list[Verdict]],
    folder: Path,
) -> None:
    texts = {completion.id: completion.completions[0] for completion in completions}
    baseline = {item.id: item.baseline[0] for item in items if item.baseline}
    if baseline:
        alpaca_eval.write_outputs(folder / "reference_outputs.json", BASELINE, items, baseline)
    for judge, judged in verdicts.items():
        annotations = alpaca_eval.Annotations(name, BASELINE, judge, judged)
        alpaca_eval.write_annotations(folder / judge / "annotations.json", annotations, items, texts)
    alpaca_eval.write_outputs(folder / "model_outputs.json", name, items, texts)


def _fastchat(
    name: str,
    items: list[Item],
    completions: list[Completion],
    verdicts: dict[str, list[Verdict]],
    folder: Path,
) -> None:
    for judge, judged in verdicts.items():
        named = [replace(verdict, judge=judge) for verdict in judged]
        if items[0].baseline:
            mt_bench.write_compared(
                folder / f"{judge}_pair.jsonl",
                [mt_bench.compared(name, BASELINE, verdict) for verdict in named],
            )
        else:
            mt_bench.write_rated(
                folder / f"{judge}_single.jsonl",
                [mt_bench.Rated(name, verdict, verdict.rating) for verdict in named],
            )
    mt_bench.write_answers(folder / "model_answer.jsonl", name, completions)
