"""Writes the folder of a cell under results/cells: its config, result, log and its files in other formats."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bench import report, secrets
from bench.output_files import OutputFiles, os_reason
from bench.planning.inputs import CellPlan
from bench.store.store import Store
from bench.text_files import open_regular


def write_cell(cell: CellPlan, store: Store, results: Path, reason: str | None) -> list[str]:
    """Write the cell's folder `cells/<name>-<key>/`. Returns a line for each file that could not be written.

    The folder holds the config, the metrics or the reason why there are none (`reason`), the completions and
    verdicts in the formats of AlpacaEval and FastChat, and the logs of the stages. Each evaluation of a suite
    has its own folder too, the one of the cell with that judge alone.
    """
    lines = [
        line
        for plan in cell.evaluations.values()
        for line in write_cell(plan, store, results, None if store.is_done(plan.score) else reason)
    ]
    folder, out = results / "cells" / cell.name, OutputFiles(results)
    out.write(folder / "config.yaml", yaml.safe_dump(cell.cell.model_dump(mode="json"), sort_keys=False))
    stages = {
        s.key: {"kind": s.kind, "label": s.label, "folder": str(store.folder(s).relative_to(results))}
        for s in cell.stages
    }
    facts: dict[str, Any] = {"key": cell.key, "failed": reason, "stages": stages}
    if cell.evaluations:
        facts["evaluations"] = {label: plan.name for label, plan in cell.evaluations.items()}
    out.write(folder / "stages.json", json.dumps(facts, indent=1))
    try:
        if reason is None:
            out.write(folder / "result.json", (store.folder(cell.score) / "result.json").read_bytes())
        else:
            out.remove(folder / "result.json")
        if not cell.evaluations:
            report.export(cell, store, out, folder)
    except OSError as error:  # A file of the store could not be read.
        out.refused[folder] = os_reason(error)
    logs = []
    for stage in cell.stages:
        with contextlib.suppress(OSError):  # The stage has no log here, or it is being written.
            with open_regular(store.sidecar(stage, "log")) as log:
                text = secrets.clean(log.read().decode("utf-8", "replace"))
            logs.append(f"=== {stage.kind} {stage.key} {stage.label}\n{text}\n")
    out.write(folder / "log.txt", "".join(logs))
    return [*lines, *out.lines()]


def history(cell: CellPlan, store: Store) -> Iterator[dict[str, float]]:
    """Yield the stored metrics of a cell's training.

    There is one row per logged step, with the measured tokens per second.
    """
    if "train" not in cell.roles or not store.is_done(cell.roles["train"]):
        return
    folder = store.folder(cell.roles["train"])
    files = {name: (folder / name).read_text(encoding="utf-8") for name in ("history.jsonl", "speed.jsonl")}
    rows = {name: [json.loads(line) for line in text.splitlines()] for name, text in files.items()}
    speeds = {row["step"]: row for row in rows["speed.jsonl"]}
    for row in rows["history.jsonl"]:
        yield row | {
            name: speed for name, speed in speeds[row["step"]].items() if name == "tokens_per_second"
        }
