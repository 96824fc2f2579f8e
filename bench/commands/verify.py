"""`do=verify`: checks a whole results folder, with all its sweeps, and prints a repair for each fault.

- Stages: the manifest's own checksum; that version, settings and inputs give its key; the checksums of all
  files; and that no input was made again later with other bytes.
- Journals of replies, and the ledger of dollars.
- Cells' folders: that they name their stages; and that numbers and exported files are unchanged and match the
  store.

Files left by killed commands are listed, but are no fault: the next command that ends well deletes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.cli.compose import BadConfig, CheckedCommand
from bench.commands import OK, SOME_FAILED
from bench.commands.why import read_cell
from bench.judges.asked import journal
from bench.output_files import ASIDE, os_reason
from bench.store.keys import KEY_LENGTH
from bench.store.stage_settings import VERSIONS
from bench.store.store import Manifest, Misplaced, Store, Unsound
from bench.terminal import say
from bench.text_files import open_regular, printable

RUN_AGAIN = "run its sweep again to compute it"
NOT_HERE = "this folder does not belong here: delete it or move it away. A command that needs a stage with this name computes it again"
NAME = re.compile(r".+-[0-9a-f]{8}", re.DOTALL)  # name of a cell's or a sweep's folder
KEY = re.compile(f"[0-9a-f]{{{KEY_LENGTH}}}")  # name of a stage's folder
REPORT_AGAIN = "run do=report +sweep=... of its sweep to write it again"


def main(opened: CheckedCommand) -> int:
    results = opened.session.results_dir
    return OK if show(results, Store(results / "store")) else SOME_FAILED


@dataclass(frozen=True)
class Fault:
    """A fault of a results folder, with its repair."""

    kind: str  # DAMAGED, STALE or CHANGED
    what: str  # the place and the fault
    repair: str

    def line(self) -> str:
        return f"{self.kind:<8} {printable(self.what)}: {self.repair}"


def show(results: Path, store: Store) -> bool:
    """Print every fault and its repair; returns whether there is none.

    Raises BadConfig for a folder without a store.
    """
    if not store.root.is_dir():
        raise BadConfig(
            [
                f"no store in {results}: set results=DIR or BENCH_RESULTS to a folder that a command has written to"
            ]
        )
    stages = CheckedStages(store)
    faults = [*stages.faults(), *_of_journals(store), *_of_places(results), *_of_cells(results, store)]
    for fault in faults:
        say(fault.line())
    left = [*_left(results, store), *stages.earlier()]
    for line in left:
        say(line)
    n = len(stages.sound)
    say(f"{n} stages are unchanged{f', {len(faults)} faults' if faults else ''}")
    return not faults


class CheckedStages:
    """Check of every stage's folder in a store. `sound`: manifests of the unchanged stages, by key."""

    def __init__(self, store: Store):
        self.store = store
        self.sound: dict[str, Manifest] = {}

    def faults(self) -> Iterator[Fault]:
        for kind in sorted(self.store.root.iterdir()):
            if kind.is_symlink() or not kind.is_dir():
                yield Fault(
                    "DAMAGED",
                    f"{kind} is {'a link' if kind.is_symlink() else 'a file'}, and should be a folder",
                    "move it away",
                )
                continue
            for folder in sorted(path for path in kind.iterdir() if path.is_dir() and "." not in path.name):
                try:
                    self.sound[folder.name] = self.store.verified_manifest(folder)
                except ValueError as error:
                    foreign = (
                        isinstance(error, Misplaced)
                        or kind.name not in VERSIONS
                        or not KEY.fullmatch(folder.name)
                    )
                    yield Fault("DAMAGED", str(error), NOT_HERE if foreign else RUN_AGAIN)
        for manifest in self.sound.values():
            for role, read in manifest.inputs.items():
                source = self.sound.get(read.get("key", ""))
                if source is not None and source.digest != read.get("digest"):
                    what = f"{self.store.root / manifest.kind / manifest.key}: its input {role!r} was made again with other bytes"
                    yield Fault("STALE", what, RUN_AGAIN)

    def earlier(self) -> Iterator[str]:
        """Lines about stages of another version that this version of bench does not read and makes again."""
        for manifest in self.sound.values():
            if (known := VERSIONS.get(manifest.kind)) != manifest.version:  # type: ignore[call-overload]
                now = (
                    f"this version of bench makes version {known}"
                    if known
                    else "this version of bench has no such kind"
                )
                yield f"EARLIER  {self.store.root / manifest.kind / manifest.key}: version {manifest.version}, and {now}. It can be deleted"


def _of_journals(store: Store) -> Iterator[Fault]:
    repair = "run its sweep again: it sends the request of this line again, or counts its cost again"
    for path in sorted([*store.root.glob("*/*.work/journal.jsonl"), *store.root.glob("*/spending.jsonl")]):
        try:
            faults = journal.check(path)
        except OSError as error:
            faults = [f"{path} cannot be read ({os_reason(error)})"]
        for fault in faults:
            yield Fault("DAMAGED", fault, repair)


def _of_places(results: Path) -> Iterator[Fault]:
    """Faults of places where a folder should be and is none."""
    ours = [
        path
        for path in sorted([*results.glob("cells/*"), *results.glob("sweeps/*")])
        if NAME.fullmatch(path.name)
    ]
    for place in (results / "cells", results / "sweeps", *ours):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            what = (
                "a link, and nothing is written through one"
                if place.is_symlink()
                else "a file, and should be a folder"
            )
            yield Fault("DAMAGED", f"{place} is {what}", "move it away")


def _of_cells(results: Path, store: Store) -> Iterator[Fault]:
    for folder in sorted(path.parent for path in results.glob("cells/*/stages.json")):
        try:
            written = read_cell(folder)
        except Unsound as error:
            yield Fault(
                "DAMAGED", str(error).removeprefix("DAMAGED  ").partition(". Run its sweep")[0], REPORT_AGAIN
            )
            continue
        scores = [
            store.root / "score" / key / "result.json"
            for key, facts in written.stages.items()
            if facts["kind"] == "score"
        ]
        if (
            not written.failed
            and scores
            and scores[-1].is_file()
            and not _same(folder / "result.json", scores[-1])
        ):
            yield Fault(
                "CHANGED",
                f"{folder / 'result.json'} differs from the result of its score stage",
                REPORT_AGAIN,
            )
        for fault in report.export_faults(folder, store):
            yield Fault("CHANGED", fault, REPORT_AGAIN)


def _same(one: Path, other: Path) -> bool:
    try:
        with open_regular(one) as first, open_regular(other) as second:
            return first.read() == second.read()
    except OSError:
        return False


def _left(results: Path, store: Store) -> Iterator[str]:
    for left in store.leftovers():
        if left.in_use():
            yield f"IN USE   {left.kind / left.key}: a command is using it"
            continue
        for path in left.paths:
            yield f"LEFT     {path}: left by a command that was killed; the next command that ends well deletes it"
    for name in ("cells", "sweeps", report.PASSPORTS):
        for path in sorted(
            path for path in (results / name).rglob(".writing-*") if ASIDE.fullmatch(path.name)
        ):
            yield f"LEFT     {path}: half written by a command that was killed; it can be deleted"
