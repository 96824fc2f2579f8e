"""Finished stages by key: identity, folders built aside and moved into place, manifests, checksums, locks.

A stage's key hashes its kind, the version of that kind's meaning, its settings and the keys of its inputs. Nothing reads a
folder without a manifest; a wrong checksum means absent; an input made again with other bytes makes its dependants stale.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import filelock
import psutil
from pydantic import BaseModel, TypeAdapter, ValidationError

from bench import secrets
from bench.config import LaterField as LaterField
from bench.config import Unkeyed as Unkeyed

KEY_LENGTH = 16  # hexadecimal digits of sha256: 64 bits, no clash below millions of stages
BIG_FILE = 64 * 2**20  # bytes; from here on a file as old as its checksum is trusted: a sweep of 7B models is a terabyte


def canonical_json(value: Any) -> str:
    """JSON that one value writes in one way; refuses what it cannot write the same way twice (NaN, sets, odd keys)."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _plain(value: Any) -> Any:
    """Plain containers; a whole number is one number however it is written (1.0 is 1, -0.0 is 0)."""
    if isinstance(value, BaseModel):
        return keyed_settings(value)
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"canonical JSON takes text keys only, got {odd[0]!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"canonical JSON cannot write {type(value).__name__}: {value!r}")


def keyed_settings(settings: BaseModel) -> dict[str, Any]:
    """What a settings record adds to a key: every field, less those added later that hold their default and the unkeyed."""
    fields = type(settings).model_fields
    return {
        name: _plain(getattr(settings, name))
        for name, info in fields.items()
        if not (any(isinstance(mark, LaterField) for mark in info.metadata) and getattr(settings, name) == info.default)
        and not any(isinstance(mark, Unkeyed) for mark in info.metadata)
    }


def hash_key(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:KEY_LENGTH]


@dataclass(frozen=True)
class Source:
    """Something of the user's outside the store: a model folder or a data file, known by the digest of its content."""

    path: Path
    digest: str
    stamp: str = ""  # sizes and times of its files when the digest was made

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


def tree_stamp(path: Path) -> str:
    """Sizes and times of a file, or of a folder's files: another one when something was written since."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return hash_long({str(p): [(stat := p.stat()).st_size, stat.st_mtime_ns] for p in files})


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
class FileFacts:
    sha256: str
    size: int
    mtime_ns: int  # when the checksum was made


@dataclass(frozen=True)
class Manifest:
    """What a finished stage folder says of itself; written last."""

    kind: str
    key: str
    version: int
    settings: dict[str, Any]
    inputs: dict[str, dict[str, str]]  # role -> {"key", "digest"}
    files: dict[str, FileFacts]  # by name
    recorded_files: dict[str, FileFacts]  # those that differ from run to run (speeds): not in the digest
    digest: str  # of the files
    counts: dict[str, int]
    timings: dict[str, float]  # seconds: wall_s, cpu_s
    recorded: dict[str, Any]  # code revision, package versions, device
    evicted: list[str] = field(default_factory=list)  # of `files`, those that were deleted since: see Store.evict


_MANIFEST = TypeAdapter(Manifest)


def write_manifest(path: Path, manifest: Manifest) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(manifest), file, indent=1, sort_keys=True, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def files_digest(files: Mapping[str, FileFacts]) -> str:
    return hash_long({name: facts.sha256 for name, facts in files.items()})


class OverBudget(RuntimeError):
    """A stage stopped because the next thing it pays for could cost more than is left; what it has paid for is kept.

    Not in worker.py, which runs as `__main__` and would have a class of its own.
    """


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
        self._readers: dict[str, set[str]] = {}  # key -> keys of stages whose status was found by looking at it
        self._digests: dict[tuple[Path, int, int], str] = {}  # of big files

    def folder(self, stage: Stage | Source) -> Path:
        return stage.path if isinstance(stage, Source) else self.root / stage.kind / stage.key

    def beside(self, stage: Stage, suffix: str) -> Path:
        """A file about a stage that is not part of its result: `log`, `progress.jsonl`, `failed.json`, `job.json`, `lock` ..."""
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
            return secrets.shown(json.loads(self.beside(stage, "failed.json").read_text(encoding="utf-8"))["error"])
        except (OSError, ValueError, KeyError):
            return None

    def recorded(self, stage: Stage) -> dict[str, Any]:
        """What was recorded beside a stage when it ran; empty when it has no manifest to read."""
        try:
            return json.loads((self.folder(stage) / "manifest.json").read_text(encoding="utf-8"))["recorded"]
        except (OSError, ValueError, KeyError):
            return {}

    def record_failure(self, stage: Stage, error: str) -> None:
        error = secrets.shown(error)
        with contextlib.suppress(OSError):  # a full disk: the reason is in the table all the same
            failure = json.dumps({"kind": stage.kind, "key": stage.key, "error": error}, indent=1)
            self.beside(stage, "failed.json").write_text(failure, encoding="utf-8")

    def record_interruption(self, stage: Stage) -> None:
        with contextlib.suppress(OSError):
            self.beside(stage, "interrupted").touch()

    def was_interrupted(self, stage: Stage) -> bool:
        """Whether the last command that was at this stage was told to stop, and did."""
        return self.beside(stage, "interrupted").exists()

    def clear_marks(self, stage: Stage) -> None:
        """Forget how the last attempt at a stage ended: another begins."""
        for suffix in ("failed.json", "interrupted"):
            self.beside(stage, suffix).unlink(missing_ok=True)

    def status(self, stage: Stage) -> Status:
        """Whether a stage is done, verified; remembered until `forget`."""
        if stage.key not in self._statuses:
            self._statuses[stage.key] = self._check(stage)
        return self._statuses[stage.key]

    def held(self, stage: Stage) -> Status:
        """The same for whoever reads its files: absent where weights were evicted."""
        status = self.status(stage)
        if status.state == "done" and status.manifest and status.manifest.evicted:
            why = "weights absent, evicted once their numbers were in: made again"
            return Status("absent", f"{stage.kind}/{stage.key} ({stage.label}): {why}")
        return status

    def forget(self, stage: Stage) -> None:
        """Look again at a stage, and at those whose status hung on it."""
        keys = [stage.key]
        while keys:
            key = keys.pop()
            self._statuses.pop(key, None)
            keys += self._readers.pop(key, ())

    def manifest(self, stage: Stage) -> Manifest:
        status = self.status(stage)
        if status.manifest is None or status.state != "done":
            raise FileNotFoundError(f"stage {stage.kind}/{stage.key} is {status.state} in {self.root}{status.why and f': {status.why}'}")
        return status.manifest

    def _check(self, stage: Stage) -> Status:
        folder = self.folder(stage)
        if not folder.exists():
            return Status("absent")
        try:
            manifest = self.intact(folder)
        except ValueError as error:
            return Status("damaged", f"{error}: taken as absent")
        for role, facts in manifest.inputs.items():
            if isinstance(source := stage.inputs.get(role), Stage):
                self._readers.setdefault(source.key, set()).add(stage.key)
                if self.status(source).state == "stale":
                    return Status("stale", manifest=manifest)  # that one says why
            if source is not None and self.digest(source) not in (None, facts["digest"]):
                return Status("stale", f"{stage.kind}/{stage.key}: its input {role!r} was made again with other bytes", manifest)
        return Status("done", manifest=manifest)

    def intact(self, folder: Path) -> Manifest:
        """The manifest of a folder whose files are as it says; ValueError otherwise."""
        path = folder / "manifest.json"
        try:
            manifest = _MANIFEST.validate_json(path.read_bytes())
        except OSError:
            raise ValueError(f"{folder} has no manifest, so it was not finished") from None
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{path} cannot be read ({'.'.join(map(str, first['loc']))} {first['msg']})") from None
        if (manifest.kind, manifest.key) != (folder.parent.name, folder.name) or manifest.digest != files_digest(manifest.files):
            raise ValueError(f"{path} contradicts itself or its folder's name")
        for name, facts in {**manifest.files, **manifest.recorded_files}.items():
            if name in manifest.evicted:
                continue
            if why := self._wrong_file(folder / name, facts):
                raise ValueError(f"{folder / name} {why}")
        return manifest

    def _wrong_file(self, path: Path, facts: FileFacts) -> str | None:
        try:
            stat = path.stat()
        except OSError:
            return "is missing"
        if stat.st_size != facts.size:
            return f"has {stat.st_size} bytes instead of {facts.size}"
        if stat.st_size < BIG_FILE:
            return None if file_digest(path) == facts.sha256 else "has a wrong checksum"
        if stat.st_mtime_ns == facts.mtime_ns:
            return None
        known = (path, stat.st_size, stat.st_mtime_ns)
        if known not in self._digests:
            self._digests[known] = file_digest(path)
        return None if self._digests[known] == facts.sha256 else "has a wrong checksum"

    def evict(self, stage: Stage, names: Iterable[str]) -> int:
        """Delete files of a finished stage, which stays done for whoever needs no more than what it led to; returns the bytes freed.

        The manifest says so first: who is interrupted leaves files that nobody reads, and evicting again deletes them. Does nothing
        where somebody computes the stage.
        """
        manifest, folder = self.manifest(stage), self.folder(stage)
        if (lock := self.try_lock(stage)) is None:
            return 0
        try:
            evicted = sorted({*manifest.evicted, *(name for name in names if name in manifest.files)})
            if evicted != manifest.evicted:
                aside = folder.with_name(f"{stage.key}.manifest-{os.getpid()}")
                write_manifest(aside, dataclasses.replace(manifest, evicted=evicted))
                aside.replace(folder / "manifest.json")
            there = [path for name in evicted if (path := folder / name).exists()]
            freed = sum(path.stat().st_size for path in there)
            for path in there:
                path.unlink()
        finally:
            lock.release()
            self.beside(stage, "lock").unlink(missing_ok=True)
        self.forget(stage)
        return freed

    def history(self) -> list[Manifest]:
        """Manifests of all finished stages, for forecasts; their files are not looked at."""
        found = []
        for path in self.root.glob("*/*/manifest.json"):
            with contextlib.suppress(OSError, ValidationError):
                found.append(_MANIFEST.validate_json(path.read_bytes()))
        return found

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
        try:
            lock = self.try_lock(stage) if self.beside(stage, "lock").exists() else None
        except OSError:  # a store that one may only read
            return False
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
        self.sweep(stage.kind, stage.key)
        folder = parent / _build_name(stage.key)
        folder.mkdir()
        return folder

    def sweep(self, kind: str, key: str, *, elsewhere: bool = False) -> None:
        """Remove what processes that died on this machine left of a stage; with `elsewhere` also what was begun on other machines,
        for a caller who knows that nobody is at it there."""
        for leftover in (self.root / kind).glob(f"{key}.build-*"):
            if (found := BUILD.search(leftover.name)) is None:
                continue
            here = found["host"] == _hostname()
            if here and not psutil.pid_exists(int(found["pid"])):
                shutil.rmtree(leftover, ignore_errors=True)
            elif not here and elsewhere:
                with contextlib.suppress(OSError):  # moved first: should somebody be at it after all, he fails and leaves no half of it
                    shutil.rmtree(leftover.rename(leftover.with_name(_build_name(key))), ignore_errors=True)

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

        `input_digests` are those that were verified before the stage read its inputs. Returns the manifest of what then stands
        there: another's, where somebody made the same of the same inputs a moment earlier.
        """
        facts = {
            str(path.relative_to(built)): FileFacts(file_digest(path), path.stat().st_size, path.stat().st_mtime_ns)
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
            digest=files_digest(files),
            counts=dict(counts),
            timings=dict(timings),
            recorded=dict(recorded),
        )
        write_manifest(built / "manifest.json", manifest)
        standing = self._move_into_place(built, self.folder(stage), manifest)
        self.forget(stage)
        return standing

    def _move_into_place(self, built: Path, folder: Path, manifest: Manifest) -> Manifest:
        """Rename. What stands there already is left, for others may be reading it, unless it is damaged, evicted or of other inputs."""
        for _ in range(3):
            with contextlib.suppress(OSError):
                built.rename(folder)
                return manifest
            with contextlib.suppress(ValueError):
                standing = self.intact(folder)
                if standing.inputs == manifest.inputs and not standing.evicted:
                    shutil.rmtree(built, ignore_errors=True)
                    return standing
            aside = folder.with_name(_build_name(folder.name))
            with contextlib.suppress(FileNotFoundError):
                folder.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
        raise OSError(f"could not move {built} into place at {folder}")


BUILD = re.compile(r"\.build-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{6}$")


def _build_name(key: str) -> str:
    """A folder that is being built, by whom."""
    return f"{key}.build-{_hostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def _hostname() -> str:
    return socket.gethostname() or "host"
