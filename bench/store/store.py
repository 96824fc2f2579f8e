"""Finished stages by key: folders built aside and moved into place, manifests, checksums, locks (identity: keys.py).

A stage's key hashes its kind, the version of that kind's meaning, its settings and the keys of its inputs. Nothing reads a
folder without a manifest; a wrong checksum means absent; an input made again with other bytes makes its dependants stale.

A manifest has a checksum of its own (`checksum`, of all its other fields) and the version of its form (`format`). Those of before have
neither and stay readable: kind, version, settings and the keys of inputs are what their key was made of, and that is checked of all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import socket
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeGuard

import filelock
import psutil
from pydantic import TypeAdapter, ValidationError

from bench import output_files, secrets
from bench.config import LaterField as LaterField
from bench.config import Unkeyed as Unkeyed
from bench.records import grouped
from bench.store.keys import Input, Source, Stage, file_digest, hash_long, keyed_settings, stage_key
from bench.text_files import BadFile, read_object

BIG_FILE = 64 * 2**20  # bytes; from here on a file as old as its checksum is trusted: a sweep of 7B models is a terabyte


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
MANIFEST_FORMAT = 2  # 1 had no checksum


def write_manifest(path: Path, manifest: Manifest) -> None:
    told = {**dataclasses.asdict(manifest), "format": MANIFEST_FORMAT}
    with path.open("w", encoding="utf-8") as file:
        json.dump({**told, "checksum": hash_long(told)}, file, indent=1, sort_keys=True, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


class Misplaced(ValueError):
    """A stage's folder was copied or moved to a place that is not its own."""


def read_manifest(path: Path) -> Manifest:
    """A manifest that is as it was written. Raises ValueError, which says what is wrong with it."""
    if not path.is_symlink() and not path.exists():
        raise ValueError(f"{path.parent} has no manifest, so it was not finished")
    try:
        told = read_object(path)
    except BadFile as error:
        raise ValueError(f"{path} cannot be read ({str(error).removeprefix(f'{path}: ')})") from error
    form = told.get("format", 1)
    if not isinstance(form, int) or form > MANIFEST_FORMAT:
        raise ValueError(f"{path} has format {form!r}: a later version of bench wrote it, this one reads up to format {MANIFEST_FORMAT}")
    if form > 1 and told.pop("checksum", None) != hash_long(told):
        raise ValueError(f"{path} is not as it was written (its checksum is wrong)")
    try:
        manifest = _MANIFEST.validate_python(told)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path} cannot be read ({'.'.join(map(str, first['loc']))} {first['msg']})") from error
    names = {**manifest.files, **manifest.recorded_files}
    if outside := [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]:
        raise ValueError(f"{path} names a file outside of its folder: {outside[0]}")
    if (manifest.kind, manifest.key) != (path.parent.parent.name, path.parent.name):
        raise Misplaced(f"{path} is of stage {manifest.kind}/{manifest.key}, and lies in another folder")
    if manifest.digest != files_digest(manifest.files):
        raise ValueError(f"{path} contradicts itself: its files do not make its digest")
    if manifest.key != stage_key(manifest.kind, manifest.version, manifest.settings, {r: i.get("key") for r, i in manifest.inputs.items()}):
        raise ValueError(f"{path} contradicts itself: its version, settings and inputs do not make its key")
    return manifest


def files_digest(files: Mapping[str, FileFacts]) -> str:
    return hash_long({name: facts.sha256 for name, facts in files.items()})


class Unsound(RuntimeError):
    """What a command was asked for is damaged, stale, gone or has failed (exit code 3); the message says which, and the way out."""


def read_failure(path: Path) -> str | None:
    """Why the last attempt at a stage failed, from its `failed.json`."""
    try:
        error = read_object(path).get("error")
    except BadFile:
        return None
    return secrets.shown(error) if isinstance(error, str) else None


State = Literal["done", "absent", "damaged", "stale"]


@dataclass(frozen=True)
class Status:
    state: State
    why: str = ""
    manifest: Manifest | None = None


@dataclass(frozen=True)
class Leftover:
    """Files of a stage that are there while it runs: its lock, its progress, the folders that it is built in."""

    kind: Path
    key: str
    paths: list[Path]

    @property
    def lock(self) -> Path:
        return self.kind / f"{self.key}.lock"

    def try_lock(self) -> filelock.BaseFileLock | None:
        """A held lock; None where somebody is at the stage. Raises OSError."""
        try:
            return filelock.FileLock(_own(self.lock)).acquire(timeout=0).lock
        except filelock.Timeout:
            return None

    def in_use(self) -> bool:
        try:
            if not self.lock.exists() or (lock := self.try_lock()) is None:
                return self.lock.exists()
        except OSError:  # a store that one may only read, or a folder by that name
            return False
        lock.release()
        return False


class Store:
    """Folders `root/<kind>/<key>/` and, beside a folder while it is not finished, its lock, log, progress and failure."""

    def __init__(self, root: Path):
        self.root = root
        self._statuses: dict[str, Status] = {}
        self._readers: dict[str, set[str]] = {}  # key -> keys of stages whose status was found by looking at it
        self._digests: dict[tuple[Path, int, int], str] = {}  # of big files

    def folder(self, stage: Input) -> Path:
        return stage.path if isinstance(stage, Source) else self.root / stage.kind / stage.key

    def sidecar(self, stage: Stage, suffix: str) -> Path:
        """A file about a stage that is not part of its result: `log`, `progress.jsonl`, `failed.json`, `job.json`, `lock` ..."""
        return self.root / stage.kind / f"{stage.key}.{suffix}"

    def digest(self, source: Input) -> str | None:
        """Digest of what a stage left (None: not done), or of a source's content."""
        if isinstance(source, Source):
            return source.digest
        manifest = self.status(source).manifest
        return manifest.digest if manifest else None

    def failure(self, stage: Stage) -> str | None:
        """Why the last attempt at a stage failed; None when there was none or it has succeeded since."""
        return read_failure(self.sidecar(stage, "failed.json"))

    def recorded(self, stage: Stage) -> dict[str, Any]:
        """What was recorded beside a stage when it ran; empty when it has no manifest to read."""
        try:
            recorded = read_object(self.folder(stage) / "manifest.json").get("recorded")
        except BadFile:
            return {}
        return recorded if isinstance(recorded, dict) else {}

    def recorded_digest(self, stage: str) -> str | None:
        """The digest of a finished stage, `kind/key`, as its manifest has it; None where there is none to read."""
        kind, _, key = stage.partition("/")
        try:
            return read_manifest(self.root / kind / key / "manifest.json").digest
        except ValueError:
            return None

    def record_failure(self, stage: Stage, error: str) -> None:
        error = secrets.shown(error)
        with contextlib.suppress(OSError):  # a full disk: the reason is in the table all the same
            told = {"kind": stage.kind, "key": stage.key, "error": error}
            output_files.write(self.root, self.sidecar(stage, "failed.json"), json.dumps(told, indent=1))

    def record_interruption(self, stage: Stage) -> None:
        with contextlib.suppress(OSError):
            output_files.write(self.root, self.sidecar(stage, "interrupted"), "")

    def was_interrupted(self, stage: Stage) -> bool:
        """Whether the last command that was at this stage was told to stop, and did."""
        return self.sidecar(stage, "interrupted").exists()

    def clear_marks(self, stage: Stage) -> None:
        """Forget how the last attempt at a stage ended: another begins."""
        for suffix in ("failed.json", "interrupted"):
            self.sidecar(stage, suffix).unlink(missing_ok=True)

    def status(self, stage: Stage) -> Status:
        """Whether a stage is done, verified; remembered until `forget`."""
        if stage.key not in self._statuses:
            self._statuses[stage.key] = self._check(stage)
        return self._statuses[stage.key]

    def is_done(self, stage: Stage | None) -> TypeGuard[Stage]:
        return stage is not None and self.status(stage).state == "done"

    def held(self, stage: Stage) -> Status:
        """The same for whoever reads its files: absent where weights were evicted."""
        status = self.status(stage)
        if status.state == "done" and status.manifest and status.manifest.evicted:
            why = "weights absent, evicted once their numbers were in: made again"
            return Status("absent", f"{stage.kind}/{stage.key} ({stage.label}): {why}")
        return status

    def invalidate(self, stage: Stage) -> None:
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
            if folder.parent.exists() and not folder.parent.is_dir():
                return Status("damaged", f"{folder.parent} is a file, and should be a folder: move it away")
            return Status("absent")
        try:
            manifest = self.verified_manifest(folder)
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

    def verified_manifest(self, folder: Path) -> Manifest:
        """The manifest of a folder whose files are as it says; ValueError otherwise."""
        manifest = read_manifest(folder / "manifest.json")
        for name, facts in {**manifest.files, **manifest.recorded_files}.items():
            if name in manifest.evicted:
                continue
            if why := self._wrong_file(folder / name, facts):
                raise ValueError(f"{folder / name} {why}")
        return manifest

    def _wrong_file(self, path: Path, facts: FileFacts) -> str | None:
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                return "is no file"
            if found.st_size != facts.size:
                return f"has {found.st_size} bytes instead of {facts.size}"
            if found.st_size < BIG_FILE:
                return None if file_digest(path) == facts.sha256 else "has a wrong checksum"
            if found.st_mtime_ns == facts.mtime_ns:
                return None
            known = (path, found.st_size, found.st_mtime_ns)
            if known not in self._digests:
                self._digests[known] = file_digest(path)
            return None if self._digests[known] == facts.sha256 else "has a wrong checksum"
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"

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
                aside = folder.with_name(_build_name(stage.key))
                try:
                    write_manifest(aside, dataclasses.replace(manifest, evicted=evicted))
                    aside.replace(folder / "manifest.json")
                except OSError:
                    aside.unlink(missing_ok=True)
                    raise
            there = [path for name in evicted if (path := folder / name).exists()]
            freed = sum(path.stat().st_size for path in there)
            for path in there:
                path.unlink()
        finally:
            lock.release()
            self.sidecar(stage, "lock").unlink(missing_ok=True)
        self.invalidate(stage)
        return freed

    def history(self) -> list[Manifest]:
        """Manifests of all finished stages, for forecasts; their files are not looked at."""
        found = []
        for path in self.root.glob("*/*/manifest.json"):
            with contextlib.suppress(ValueError):
                found.append(read_manifest(path))
        return found

    def try_lock(self, stage: Stage) -> filelock.BaseFileLock | None:
        """A held lock, to be released; None when somebody else computes this stage. Saves work, guards nothing. Raises OSError."""
        return Leftover(self._kind_folder(stage.kind), stage.key, []).try_lock()

    def is_locked(self, stage: Stage) -> bool:
        """Whether somebody computes this stage now."""
        return Leftover(self.root / stage.kind, stage.key, []).in_use()

    def has_build_folder(self, stage: Stage) -> bool:
        """Whether somebody began this stage and left something half built."""
        return any(self.folder(stage).parent.glob(f"{stage.key}.build-*"))

    def _kind_folder(self, kind: str) -> Path:
        """The folder of a kind, made where there is none. Raises OSError where it cannot be one that is written to."""
        folder = _own(_own(self.root) / kind)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def build_folder(self, stage: Stage) -> Path:
        """A fresh folder to build a stage in; leftovers of processes that died here are swept away."""
        parent = self._kind_folder(stage.kind)
        self.remove_build_folders(stage.kind, stage.key)
        folder = parent / _build_name(stage.key)
        folder.mkdir()
        return folder

    def remove_build_folders(self, kind: str, key: str, *, other_hosts: bool = False) -> None:
        """Remove what processes that died on this machine left of a stage; with `elsewhere` also what was begun on other machines,
        for a caller who knows that nobody is at it there."""
        for leftover in (self.root / kind).glob(f"{key}.build-*"):
            if (found := BUILD.search(leftover.name)) is None:
                continue
            here = found["host"] == _hostname()
            if here and not psutil.pid_exists(int(found["pid"])):
                _discard(leftover)
            elif not here and other_hosts:
                with contextlib.suppress(OSError):  # moved first: should somebody be at it after all, he fails and leaves no half of it
                    _discard(leftover.rename(leftover.with_name(_build_name(key))))

    def leftovers(self) -> Iterator[Leftover]:
        """What commands that were killed left beside stages, and what running ones have there."""
        for kind in sorted(path for path in self.root.glob("*") if path.is_dir() and not path.is_symlink()):
            named = [(path.name.partition("."), path) for path in sorted(kind.iterdir())]
            left = ((key, path) for (key, _, end), path in named if end in ("lock", "progress.jsonl") or end.startswith("build-"))
            yield from (Leftover(kind, key, paths) for key, paths in grouped(left).items())

    def remove_leftovers(self) -> None:
        """Delete leftovers of stages that nobody is at; where that cannot be done they stay."""
        for left in self.leftovers():
            with contextlib.suppress(OSError):
                if (lock := left.try_lock()) is None:
                    continue
                try:
                    self.remove_build_folders(left.kind.name, left.key)
                    (left.kind / f"{left.key}.progress.jsonl").unlink(missing_ok=True)
                finally:
                    lock.release()
                    left.lock.unlink(missing_ok=True)

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
        self.invalidate(stage)
        return standing

    def _move_into_place(self, built: Path, folder: Path, manifest: Manifest) -> Manifest:
        """Rename. What stands there already is left, for others may be reading it, unless it is damaged, evicted or of other inputs."""
        for _ in range(3):
            with contextlib.suppress(OSError):
                built.rename(folder)
                return manifest
            with contextlib.suppress(ValueError):
                standing = self.verified_manifest(folder)
                if standing.inputs == manifest.inputs and not standing.evicted:
                    shutil.rmtree(built, ignore_errors=True)
                    return standing
            aside = folder.with_name(_build_name(folder.name))
            with contextlib.suppress(FileNotFoundError):
                folder.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
        raise OSError(f"could not move {built} into place at {folder}")


BUILD = re.compile(r"\.build-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{6}$")


def _discard(path: Path) -> None:
    """Delete a folder, a file or a link, as far as that can be done."""
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _own(path: Path) -> Path:
    """The path where it is no link. Raises OSError: nothing is written through one."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a link, and nothing is written through one: move it away", str(path))
    return path


def _build_name(key: str) -> str:
    """A folder that is being built, by whom."""
    return f"{key}.build-{_hostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def _hostname() -> str:
    return socket.gethostname() or "host"
