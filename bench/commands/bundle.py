"""`do=bundle +sweep=... out=FILE.tar.gz`: writes a sweep into an archive for a referee.

The referee recomputes its tables without a judge, a GPU or training. The archive is a results folder with:

- the manifest of every stage;
- the files that tables and numbers read (completions, verdicts, log-probs, curves, scores), without weights;
- passports and the sweep file;
- `bundle.json`, from which `do=report results=EXTRACTED` and `do=rescore` plan the same cells without their
  models and data.

The tables in the archive are computed from the archive itself. The same results give the same bytes.

The user's files appear with their digest and bare name. Folders of this machine are removed from all that
this command writes; where a stage's own file names one, the command prints a warning. A file with the value
of a key from the environment is refused.
"""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from pydantic import TypeAdapter

from bench import methods, papers, report, secrets
from bench.cli.compose import BadConfig, CheckedCommand
from bench.cli.sweep_files import sweep_path
from bench.commands import OK, SOME_FAILED
from bench.commands.cell_states import BUNDLE_FILE
from bench.commands.faults import print_faults
from bench.commands.planned_sweep import sweep_of
from bench.config import NAME_WORDS, Bundle, Cell, Expectation, is_name, user_path
from bench.output_files import os_reason
from bench.planning.cells import plan_cell
from bench.planning.inputs import CellPlan, Sources, all_stages, evaluated_sources, single
from bench.records import size_words
from bench.report import PASSPORTS
from bench.runner.evict import WEIGHTS
from bench.runner.worker import environment
from bench.store.keys import Source
from bench.store.store import Store, Unsound, write_manifest
from bench.terminal import say
from bench.text_files import describe, open_regular, printable, read_object, text

FORMAT = 1

_SOURCES = TypeAdapter(Sources)

README = """# {title}

Made by `python -m bench {command}`. With bench at revision {revision} (package versions: environment.json), from this folder:

    python -m bench do=report results=.       # the tables and figures again, from what the stages left
    python -m bench do=rescore results=.      # every number again, from completions, verdicts and log-probs

These commands ask no judge, train nothing and use no GPU. `sweeps/{name}/` holds the tables as these commands write
them. `store/` holds the stages: completions, verdicts with the judge's replies, log-probs, curves and scores with their
checksums, and held-out rows and prompts as text. Weights and training rows are left out; the manifests list them with
their checksums.
"""


def main(opened: CheckedCommand) -> int:
    do, results = opened.session.do, opened.session.results_dir
    assert isinstance(do, Bundle)
    store, sweep = Store(results / "store"), sweep_of(opened)
    say("\n".join(write(do, opened, sweep, store, sweep_of)))
    return SOME_FAILED if print_faults(sweep, store, results) else OK


# Reading --------------------------------------------------------------------------------------------------------------


def opened_from(opened: CheckedCommand) -> CheckedCommand:
    """The command with the cells of a bundle, if its results folder is one and it names no cells; else
    unchanged.
    """
    results = opened.session.results_dir
    if opened.sweep or opened.replaced or not (results / BUNDLE_FILE).is_file():
        return opened
    return read(results, opened)


def read(results: Path, opened: CheckedCommand) -> CheckedCommand:
    """The command with the cells of the bundle in `results`.

    Raises BadConfig for a bundle of another version of bench, or one that bench did not write. Raises Unsound
    for a changed calibration file.
    """
    try:
        facts = read_object(results / BUNDLE_FILE)
        if facts["format"] != FORMAT:
            raise ValueError(
                f"it has format {printable(str(facts['format']))}, and this version reads format {FORMAT}; use the version that wrote it"
            )
        sweep, replaced = facts["sweep"], facts["replaced"]
        axes, written, expected = (_items(facts[name], name) for name in ("axes", "cells", "expectations"))
        if not (sweep is None or is_name(sweep)):
            raise ValueError(f"sweep must be {NAME_WORDS}, got {describe(sweep)}")
        if not isinstance(replaced, bool):
            raise ValueError(f"replaced must be true or false, got {describe(replaced)}")
        title, command = (
            secrets.shown(text(facts[name], name).replace("\n", " ")) for name in ("title", "command")
        )
        varied = tuple(text(axis, "each of axes") for axis in axes)
        if not written:
            raise ValueError("cells must hold one cell or more, got an empty list")
        cells = [Cell.model_validate_json(json.dumps(cell["config"])) for cell in written]
        if unknown := {role for cell in written for role in cell["sources"]} - {
            field.name for field in fields(Sources)
        }:
            raise ValueError(
                f"sources must be of {', '.join(field.name for field in fields(Sources))}, got {min(unknown)}"
            )
        sources = [_SOURCES.validate_python(_placed(cell["sources"], results)) for cell in written]
        for cell, source in zip(cells, sources, strict=True):
            plan_cell(cell, source, methods.chain)  # raises for a cell whose files are not named
        expectations = tuple(Expectation.model_validate(item) for item in expected)
        published = facts.get("published", {})
        if faults := papers.beside(published)[1]:
            raise ValueError(faults[0])
    except (ValueError, KeyError, TypeError) as error:
        reason = (
            f"{type(error).__name__} {error}"
            if isinstance(error, KeyError)
            else str(error).removeprefix(f"{results / BUNDLE_FILE}: ")
        )
        raise BadConfig(
            [
                f"{results / BUNDLE_FILE} cannot be read by this version of bench: {printable(' '.join(reason.split()))[:300]}"
            ]
        ) from error
    for cell, of_cell in zip(cells, sources, strict=True):
        for _, of_one in evaluated_sources(cell, of_cell).values():
            if of_one.judge and of_one.judge.calibration:
                _check_source(of_one.judge.calibration)
    own = replace(opened, sweep=sweep, replaced=replaced, title=title, command=command, axes=varied)
    return replace(own, cells=cells, sources=sources, expectations=expectations, published=published)


def _items(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, got {describe(value)}")
    return value


def _check_source(source: Source) -> None:
    """Raises Unsound for a calibration file of a bundle with another digest than the bundle names."""
    try:
        with open_regular(source.path) as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == source.digest
        fault = None if same else "is not the file that the bundle was made with"
    except OSError as error:
        fault = f"cannot be read ({os_reason(error)})"
    if fault:
        raise Unsound(f"DAMAGED  {printable(str(source.path))} {fault}: unpack the bundle again")


def _placed(value: Any, results: Path) -> Any:
    """Sources of a bundle, with their paths inside `results`.

    Raises ValueError for a path that leads out of it.
    """
    if not isinstance(value, dict):
        return value
    placed = {}
    for key, item in value.items():
        if key == "path":
            if PurePosixPath(text(item, "path")).is_absolute() or ".." in PurePosixPath(item).parts:
                raise ValueError(f"the path of a source must lie in the bundle, got {describe(item)}")
            item = str(results / item)
        placed[key] = _placed(item, results)
    return placed


# Removing folders of this machine -------------------------------------------------------------------------------------


def nameless(value: Any) -> Any:
    """Settings with every absolute path replaced by its last part."""
    if isinstance(value, Mapping):
        return {key: nameless(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [nameless(item) for item in value]
    return PurePosixPath(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def nameless_command(command: str) -> str:
    """The command line with every absolute path replaced by its last part."""
    words = []
    for word in shlex.split(command):
        key, sign, value = word.partition("=")
        words.append(f"{key}{sign}{','.join(map(str, nameless(value.split(','))))}")
    return shlex.join(words)


# Writing --------------------------------------------------------------------------------------------------------------


def write(
    do: Bundle,
    opened: CheckedCommand,
    sweep: report.Sweep,
    store: Store,
    make_sweep: Callable[[CheckedCommand], report.Sweep],
) -> list[str]:
    """Write the archive; returns lines about its contents, for the screen.

    `make_sweep` makes the report's sweep from an opened command. Raises BadConfig if a file holds a secret
    from the environment.
    """
    out, results = user_path(str(do.out)), opened.session.results_dir
    with tempfile.TemporaryDirectory() as aside:
        root = Path(aside) / f"bundle-{sweep.name}"
        left_out = _stages(sweep.cells, store, root)
        copied = _copy_sources(sweep.cells, root)
        _write_json(root / BUNDLE_FILE, bundle_facts(opened, copied, sweep.cells, store))
        installed = {
            f"{package.name}=={package.version}"
            for package in importlib.metadata.distributions()
            if package.name
        }
        _write_json(
            root / "environment.json", environment() | {"distributions": sorted(installed, key=str.lower)}
        )
        if opened.sweep and (path := sweep_path(opened.sweep, ())).is_file():
            shutil.copyfile(path, root / "sweep.yaml")
            (root / "sweep.yaml").chmod(0o644)
        if (results / PASSPORTS).is_dir():
            shutil.copytree(results / PASSPORTS, root / PASSPORTS)
        words = {"title": sweep.title, "command": nameless_command(opened.command), "name": sweep.name}
        (root / "README.md").write_text(
            README.format(**words, revision=environment()["revision"]), encoding="utf-8"
        )
        again = make_sweep(read(root, opened))
        rows = report.collect(again, Store(root / "store"), {})
        report.write_files(again, rows, root)
        # A report writes files for cells' folders, and a bundle has none.
        shutil.rmtree(root / "cells", ignore_errors=True)
        _write_json(root / "ro-crate-metadata.json", _crate(root, sweep.title, words["command"]))
        warnings = _search_for_secrets(root, results)
        size = _archive(root, out)
    done = sum(row.done for row in rows)
    mine = results / "sweeps" / sweep.name / "table.csv"
    left = f"left out: {size_words(left_out)} of weights and of files that only training reads"
    lines = [f"{done} of {len(rows)} cells are done", f"bundle   {out}: {size_words(size)}; {left}"]
    if mine.is_file():
        same = mine.read_bytes() == _member(out, f"{root.name}/sweeps/{sweep.name}/table.csv")
        lines.append(
            f"table    computed from the bundle: {'the same bytes as' if same else 'NOT the same as'} {mine}"
        )
    return [
        *lines,
        *warnings,
        f"again    tar xzf {out.name} && python -m bench do=report results={root.name}",
    ]


def _crate(root: Path, title: str, command: str) -> dict[str, Any]:
    """The archive as a research object (RO-Crate 1.1): its files, and the program that made them.

    It is dated by the newest file of its stages, so that the same results give the same bytes; without a stage
    it has no date. It names no licence, because none is known.
    """
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    made = [
        file["mtime_ns"]
        for path in root.glob("store/*/*/manifest.json")
        for file in read_object(path)["files"].values()
    ]
    day = datetime.datetime.fromtimestamp(max(made) / 1e9, datetime.UTC).date().isoformat() if made else None
    program = {"@id": "#bench", "@type": "SoftwareApplication", "name": "bench"}
    program["softwareVersion"] = str(environment()["revision"])
    run = {"@id": "#run", "@type": "CreateAction", "instrument": {"@id": "#bench"}, "result": {"@id": "./"}}
    graph: list[dict[str, Any]] = [
        {
            "@id": "ro-crate-metadata.json",
            "@type": "CreativeWork",
            "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
            "about": {"@id": "./"},
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": title,
            "description": "Tables of a bench sweep, and the files from which they are computed.",
            **({"datePublished": day} if day else {}),
            "hasPart": [{"@id": quote(path)} for path in paths],
        },
        program,
        {**run, "description": f"python -m bench {command}"},
        *({"@id": quote(path), "@type": "File", "name": path} for path in paths),
    ]
    return {"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": graph}


def _stages(cells: Sequence[CellPlan], store: Store, root: Path) -> int:
    """Copy every finished stage's manifest and the files that tables and numbers read; returns the bytes left
    out.
    """
    read_by_tables = {
        stage
        for cell in [*cells, *single(cells)]
        for stage in [cell.score, *cell.roles.values(), *cell.score.inputs.values()]
    }
    left_out = 0
    roles = [stage for cell in cells for stage in cell.roles.values()]
    for stage in dict.fromkeys([*all_stages(cells), *roles]):
        if reason := store.failure(stage):
            failed = {"kind": stage.kind, "key": stage.key, "error": _here(reason)}
            _write_json(root / "store" / stage.kind / f"{stage.key}.failed.json", failed)
        if not store.is_done(stage):
            continue
        manifest, folder, target = (
            store.manifest(stage),
            store.folder(stage),
            root / "store" / stage.kind / stage.key,
        )
        target.mkdir(parents=True)
        files = {**manifest.files, **manifest.recorded_files}
        of_training = [
            name
            for name in files
            if name.endswith(WEIGHTS) or name.startswith("model/") or name == "train.jsonl"
        ]
        gone = [
            name for name in files if name in (*manifest.evicted, *of_training) or stage not in read_by_tables
        ]
        for name in files.keys() - set(gone):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target / name)
        write_manifest(target / "manifest.json", replace(manifest, evicted=sorted(gone)))
        left_out += sum(files[name].size for name in gone)
    return left_out


def _here(text: str) -> str:
    """The text of a reason without folders of this machine: only the last part of a path stays."""
    return re.sub(r"(?<![\w.])(?:/[^\s/:'\",]+)+/([^\s/:'\",]+)", r"\1", text)


def _copy_sources(cells: Sequence[CellPlan], root: Path) -> dict[str, str]:
    """Copy the user's calibration files; returns their paths in the bundle by digest."""
    copied = {}
    for source in (
        source
        for cell in single(cells)
        for source in cell.score.inputs.values()
        if isinstance(source, Source)
    ):
        copied[source.digest] = place = f"sources/{source.key}/{source.path.name}"
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path, root / place)
    return copied


def bundle_facts(
    opened: CheckedCommand, copied: Mapping[str, str], planned: Sequence[CellPlan], store: Store
) -> dict[str, Any]:
    """Content of `bundle.json`. `copied`: paths in the bundle of the user's files, by digest."""

    def placed(value: Any) -> Any:
        if isinstance(value, dict) and value.keys() >= {"path", "digest"}:
            return {"path": copied.get(value["digest"], Path(value["path"]).name), "digest": value["digest"]}
        return {key: placed(item) for key, item in value.items()} if isinstance(value, dict) else value

    cells = [
        {"config": nameless(cell.model_dump(mode="json")), "sources": placed(dataclasses.asdict(sources))}
        for cell, sources in zip(opened.cells, opened.sources, strict=True)
    ]
    return {
        "format": FORMAT,
        "sweep": opened.sweep,
        "replaced": opened.replaced,
        "title": opened.title,
        "command": nameless_command(opened.command),
        "axes": list(opened.axes),
        "expectations": [item.model_dump(mode="json") for item in opened.expectations],
        "published": opened.published,
        "cells": cells,
        "done": sorted(cell.key for cell in planned if store.is_done(cell.score)),
    }


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _search_for_secrets(root: Path, results: Path) -> list[str]:
    """Warnings about files that name folders of this machine.

    Raises BadConfig if a file holds a secret, before the archive is written.
    """
    folders = {f"{path}/".encode() for path in (results, Path.cwd(), Path.home()) if len(path.parts) > 1}
    named = []
    for path in _files(root):
        content = path.read_bytes()
        if names := secrets.holders(content):
            held = f"{path.relative_to(root)} holds the value of {', '.join(names)}"
            raise BadConfig([f"{held}, so the bundle was not written. Unset the variable if it is no secret"])
        if any(folder in content for folder in folders):
            named.append(str(path.relative_to(root)))
    return (
        [
            f"LOOK     {len(named)} files name folders of this machine, for example {named[0]}: read them before you share the bundle"
        ]
        if named
        else []
    )


def _files(root: Path) -> Iterator[Path]:
    return iter(sorted(path for path in root.rglob("*") if path.is_file()))


def _archive(root: Path, out: Path) -> int:
    """Write the archive, with sorted files and without owners and times; returns its size in bytes."""
    part = out.with_name(f"{out.name}.part-{os.getpid()}")
    try:
        with (
            part.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path in _files(root):
                info = tarfile.TarInfo(str(PurePosixPath(root.name, *path.relative_to(root).parts)))
                info.size, info.mode = path.stat().st_size, 0o644
                with path.open("rb") as file:
                    tar.addfile(info, file)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return out.stat().st_size


def _member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        return file.read() if file else b""
