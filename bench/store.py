"""Finished stages by key: identity, folders built aside and moved into place, manifests, checksums, locks.

A stage's key hashes its kind, the version of that kind's meaning, its settings and the keys of its inputs. Nothing reads a
folder without a manifest; a wrong checksum means absent; an input made again with other bytes makes its dependants stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import filelock
import psutil
from pydantic import BaseModel

KEY_LENGTH = 16  # hexadecimal digits of sha256: 64 bits, no clash below millions of stages
BIG_FILE = 64 * 2**20  # bytes; above it a planning check trusts size and time of an earlier checksum


class LaterField:
    """Marks a settings field added after results existed: left out of keys while it holds its default.

    `dropout: Annotated[float, LaterField()] = 0.0` keeps every key that was made before `dropout` was known.
    """


def canonical_json(value: Any) -> str:
    """JSON that one value writes in one way; refuses what it cannot write the same way twice (NaN, sets, odd keys)."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return keyed_settings(value)
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"canonical JSON takes text keys only, got {odd[0]!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"canonical JSON cannot write {type(value).__name__}: {value!r}")


def keyed_settings(settings: BaseModel) -> dict[str, Any]:
    """What a settings record adds to a key: every field, less those added later that hold their default."""
    fields = type(settings).model_fields
    return {
        name: _plain(getattr(settings, name))
        for name, info in fields.items()
        if not (any(isinstance(mark, LaterField) for mark in info.metadata) and getattr(settings, name) == info.default)
    }


def hash_key(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:KEY_LENGTH]


@dataclass(frozen=True)
class Source:
    """Something of the user's outside the store: a model folder or a data file, known by the digest of its content."""

    path: Path
    digest: str

    @property
    def key(self) -> str:
        return hash_key({"source": self.digest})


@dataclass(frozen=True)
class Stage:
    """One step with files in and files out. `inputs`: role -> the stage or source that it reads."""

    kind: str
    version: int
    settings: BaseModel
    inputs: Mapping[str, Stage | Source] = field(default_factory=dict)
    label: str = ""  # for people; not in the key

    @cached_property
    def key(self) -> str:
        return hash_key(
            {
                "kind": self.kind,
                "version": self.version,
                "settings": self.settings,
                "inputs": {role: source.key for role, source in self.inputs.items()},
            }
        )

    def __hash__(self) -> int:
        return hash((self.kind, self.key))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and (self.kind, self.key) == (other.kind, other.key)

    def walk(self) -> Iterator[Stage]:
        """This stage's ancestors, inputs before what reads them, then itself; each once."""
        seen: set[Stage] = set()

        def visit(stage: Stage) -> Iterator[Stage]:
            if stage in seen:
                return
            seen.add(stage)
            for source in stage.inputs.values():
                if isinstance(source, Stage):
                    yield from visit(source)
            yield stage

        return visit(self)


# Digests -------------------------------------------------------------------------------------------------------------


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(path: Path) -> str:
    """Digest of a file, or of a folder's files and their relative names (hidden ones aside)."""
    if path.is_file():
        return file_digest(path)
    files = sorted(p for p in path.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts))
    return hash_long({str(p.relative_to(path)): file_digest(p) for p in files})


def hash_long(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


# The store -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """What a finished stage folder says of itself; written last."""

    kind: str
    key: str
    version: int
    settings: dict[str, Any]
    inputs: dict[str, dict[str, str]]  # role -> {"key", "digest"}
    files: dict[str, dict[str, Any]]  # name -> {"sha256", "size"}
    recorded_files: dict[str, dict[str, Any]]  # same, for files that differ from run to run (speeds): not in the digest
    digest: str
    counts: dict[str, int]
    timings: dict[str, float]  # seconds: wall_s, cpu_s
    recorded: dict[str, Any]  # code revision, package versions, device


State = Literal["done", "absent", "damaged", "stale"]


@dataclass(frozen=True)
class Status:
    state: State
    why: str = ""
    manifest: Manifest | None = None


class Store:
    """Folders `root/<kind>/<key>/` and, beside a folder while it is not finished, its lock, log, progress and failure."""

    def __init__(self, root: Path):
        self.root = root
        self._statuses: dict[str, Status] = {}
        self._digests: dict[tuple[str, int, int], str] = {}

    def folder(self, stage: Stage | Source) -> Path:
        return stage.path if isinstance(stage, Source) else self.root / stage.kind / stage.key

    def beside(self, stage: Stage, suffix: str) -> Path:
        """A file about a stage that is not part of its result: `log`, `progress.jsonl`, `failed.json`, `lock`."""
        return self.root / stage.kind / f"{stage.key}.{suffix}"

    def digest(self, source: Stage | Source) -> str | None:
        """Digest of what a stage left (None: not done), or of a source's content."""
        if isinstance(source, Source):
            return source.digest
        manifest = self.status(source).manifest
        return manifest.digest if manifest else None

    def failure(self, stage: Stage) -> str | None:
        """Why the last attempt at a stage failed; None when there was none or it has succeeded since."""
        try:
            return json.loads(self.beside(stage, "failed.json").read_text())["error"]
        except (OSError, ValueError, KeyError):
            return None

    def record_failure(self, stage: Stage, error: str) -> None:
        self.beside(stage, "failed.json").write_text(json.dumps({"kind": stage.kind, "key": stage.key, "error": error}, indent=1))

    def clear_failure(self, stage: Stage) -> None:
        self.beside(stage, "failed.json").unlink(missing_ok=True)

    def status(self, stage: Stage) -> Status:
        """Whether a stage is done, verified; remembered until `forget`."""
        if stage.key not in self._statuses:
            self._statuses[stage.key] = self._check(stage)
        return self._statuses[stage.key]

    def forget(self, stage: Stage) -> None:
        self._statuses.pop(stage.key, None)

    def manifest(self, stage: Stage) -> Manifest:
        status = self.status(stage)
        if status.manifest is None or status.state != "done":
            raise FileNotFoundError(f"stage {stage.kind}/{stage.key} is {status.state} in {self.root}: {status.why or 'never run'}")
        return status.manifest

    def _check(self, stage: Stage) -> Status:
        folder = self.folder(stage)
        if not folder.exists():
            return Status("absent")
        try:
            manifest = Manifest(**json.loads((folder / "manifest.json").read_text()))
        except FileNotFoundError:
            return Status("damaged", f"{folder} has no manifest: not finished, taken as absent")
        except (ValueError, TypeError) as error:
            return Status("damaged", f"{folder}/manifest.json cannot be read ({error}): taken as absent")
        for name, facts in {**manifest.files, **manifest.recorded_files}.items():
            if why := self._wrong_file(folder / name, facts):
                return Status("damaged", f"{folder / name} {why}: taken as absent")
        for role, facts in manifest.inputs.items():
            source = stage.inputs.get(role)
            current = self.digest(source) if source is not None else None
            if current is not None and current != facts["digest"]:
                return Status("stale", f"{stage.kind}/{stage.key}: its input {role!r} was made again with other bytes", manifest)
        return Status("done", manifest=manifest)

    def _wrong_file(self, path: Path, facts: Mapping[str, Any]) -> str | None:
        try:
            stat = path.stat()
        except OSError:
            return "is missing"
        if stat.st_size != facts["size"]:
            return f"has {stat.st_size} bytes instead of {facts['size']}"
        known = (str(path), stat.st_size, stat.st_mtime_ns)
        if stat.st_size < BIG_FILE or known not in self._digests:
            self._digests[known] = file_digest(path)
        return None if self._digests[known] == facts["sha256"] else "has a wrong checksum"

    def history(self, kind: str) -> list[tuple[dict[str, Any], float]]:
        """(settings, wall seconds) of every finished stage of a kind, for forecasts."""
        rows = []
        for path in (self.root / kind).glob("*/manifest.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                facts = json.loads(path.read_text())
                rows.append((facts["settings"], facts["timings"]["wall_s"]))
        return rows

    def try_lock(self, stage: Stage) -> filelock.BaseFileLock | None:
        """A held lock, to be released; None when somebody else computes this stage. Saves work, guards nothing."""
        path = self.beside(stage, "lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            return lock.acquire(timeout=0).lock
        except filelock.Timeout:
            return None

    def is_locked(self, stage: Stage) -> bool:
        """Whether somebody computes this stage now."""
        lock = self.try_lock(stage) if self.beside(stage, "lock").exists() else None
        if lock is not None:
            lock.release()
            return False
        return self.beside(stage, "lock").exists()

    def was_begun(self, stage: Stage) -> bool:
        """Whether somebody began this stage and left something half built."""
        return any(self.folder(stage).parent.glob(f"{stage.key}.build-*"))

    def build_folder(self, stage: Stage) -> Path:
        """A fresh folder to build a stage in; leftovers of processes that died here are swept away."""
        parent = self.root / stage.kind
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in parent.glob(f"{stage.key}.build-*"):
            _, host, pid, _ = leftover.name.rsplit("-", 3)
            if host == _hostname() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(leftover, ignore_errors=True)
        folder = parent / f"{stage.key}.build-{_hostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        folder.mkdir()
        return folder

    def commit(
        self,
        stage: Stage,
        built: Path,
        *,
        counts: Mapping[str, int],
        timings: Mapping[str, float],
        recorded: Mapping[str, Any],
        recorded_files: frozenset[str] = frozenset(),
        input_digests: Mapping[str, str],
    ) -> Manifest:
        """Write the manifest of a built folder, last, and move the folder into place.

        `input_digests` are those that were verified before the stage read its inputs.
        """
        facts = {
            str(path.relative_to(built)): {"sha256": file_digest(path), "size": path.stat().st_size}
            for path in sorted(built.rglob("*"))
            if path.is_file()
        }
        files = {name: fact for name, fact in facts.items() if name not in recorded_files}
        manifest = Manifest(
            kind=stage.kind,
            key=stage.key,
            version=stage.version,
            settings=keyed_settings(stage.settings),
            inputs={role: {"key": source.key, "digest": input_digests[role]} for role, source in stage.inputs.items()},
            files=files,
            recorded_files={name: fact for name, fact in facts.items() if name in recorded_files},
            digest=hash_long({name: fact["sha256"] for name, fact in files.items()}),
            counts=dict(counts),
            timings=dict(timings),
            recorded=dict(recorded),
        )
        with (built / "manifest.json").open("w") as file:
            json.dump(manifest.__dict__, file, indent=1, sort_keys=True, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        self._move_into_place(built, self.folder(stage))
        self.forget(stage)
        return manifest

    def _move_into_place(self, built: Path, folder: Path) -> None:
        """Rename; what stood there (damaged, stale, or as good and earlier by a moment) is moved aside and removed."""
        for _ in range(3):
            with contextlib.suppress(OSError):
                built.rename(folder)
                return
            aside = folder.with_name(f"{folder.name}.build-{_hostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}")
            with contextlib.suppress(FileNotFoundError):
                folder.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
            time.sleep(0.01)
        raise OSError(f"could not move {built} into place at {folder}")


def _hostname() -> str:
    return socket.gethostname().replace("-", "_") or "host"
