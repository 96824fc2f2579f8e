"""The store of finished stages: folders by key, manifests, checksums and locks. Keys are made in keys.py.

A stage's key hashes its kind, the version of that kind, its settings and the keys of its inputs. A stage is
built in a folder of its own, which is moved into place once its manifest is written. Nothing reads a folder
without a manifest. A folder with a wrong checksum counts as absent. Where an input was made again with other
bytes, the stages that read it are stale.

A manifest holds a checksum of all its other fields (`checksum`) and its format version (`format`). Format 1
had neither and stays readable. In both, the key must follow from kind, version, settings and keys of inputs.
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
from bench.text_files import BadFile, printable, read_object

# Bytes. A larger file is trusted while its modification time is that of its checksum: a sweep of 7B models
# holds a terabyte, and to read it each time would take too long.
BIG_FILE = 64 * 2**20


@dataclass(frozen=True)
class FileFacts:
    """Checksum, size in bytes and modification time of a stored file."""

    sha256: str
    size: int
    mtime_ns: int  # modification time when the checksum was made


@dataclass(frozen=True)
class Manifest:
    """The description of a finished stage folder. It is written last."""

    kind: str
    key: str
    version: int
    settings: dict[str, Any]
    inputs: dict[str, dict[str, str]]  # role -> {"key", "digest"}
    files: dict[str, FileFacts]  # by name
    # They differ from run to run (speeds), so the digest leaves them out.
    recorded_files: dict[str, FileFacts]
    digest: str  # of `files`
    counts: dict[str, int]
    timings: dict[str, float]  # seconds: wall_s, cpu_s
    recorded: dict[str, Any]  # code revision, package versions, device
    evicted: list[str] = field(default_factory=list)  # Names from `files` that Store.evict has deleted.


_MANIFEST = TypeAdapter(Manifest)
MANIFEST_FORMAT = 2  # Format 1 had no checksum.


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest with its checksum, and flush it to disk."""
    fields = {**dataclasses.asdict(manifest), "format": MANIFEST_FORMAT}
    with path.open("w", encoding="utf-8") as file:
        json.dump({**fields, "checksum": hash_long(fields)}, file, indent=1, sort_keys=True, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


class Misplaced(ValueError):
    """A stage's folder lies at the path of another stage: it was copied or moved."""


def read_manifest(path: Path) -> Manifest:
    """Read a manifest and check it.

    Raises ValueError with what is wrong, Misplaced where the folder was moved.
    """
    if not path.is_symlink() and not path.exists():
        raise ValueError(f"{path.parent} has no manifest.json: the stage was not finished")
    try:
        fields = read_object(path)
    except BadFile as error:
        raise ValueError(f"{path} cannot be read ({str(error).removeprefix(f'{path}: ')})") from error
    form = fields.get("format", 1)
    if not isinstance(form, int) or form > MANIFEST_FORMAT:
        raise ValueError(
            f"{path} has format {form!r} of a later version of bench; this version reads formats up to {MANIFEST_FORMAT}: update bench"
        )
    if form > 1 and fields.pop("checksum", None) != hash_long(fields):
        raise ValueError(f"{path} was changed after it was written (its checksum is wrong)")
    try:
        manifest = _MANIFEST.validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"{path} cannot be read ({printable('.'.join(map(str, first['loc'])))} {first['msg']})"
        ) from error
    names = {**manifest.files, **manifest.recorded_files}
    if outside := [
        name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
    ]:
        raise ValueError(f"{path} lists a file outside of its folder: {printable(outside[0])}")
    if (manifest.kind, manifest.key) != (path.parent.parent.name, path.parent.name):
        raise Misplaced(
            f"{path} belongs to stage {printable(f'{manifest.kind}/{manifest.key}')}, but lies in the folder of another stage"
        )
    if manifest.digest != files_digest(manifest.files):
        raise ValueError(f"{path} was changed: the checksums of its files do not give its digest")
    if manifest.key != stage_key(
        manifest.kind,
        manifest.version,
        manifest.settings,
        {r: i.get("key") for r, i in manifest.inputs.items()},
    ):
        raise ValueError(f"{path} was changed: its version, settings and inputs do not give its key")
    return manifest


def files_digest(files: Mapping[str, FileFacts]) -> str:
    """The digest of a stage: a hash of its files' names and checksums."""
    return hash_long({name: facts.sha256 for name, facts in files.items()})


class Unsound(RuntimeError):
    """A result that the command needs is damaged, stale, gone or has failed (exit code 3).

    The message says which, and what to do.
    """


def read_failure(path: Path) -> str | None:
    """The error in a stage's `failed.json`, without secrets. None where there is none to read."""
    try:
        error = read_object(path).get("error")
    except BadFile:
        return None
    return secrets.shown(error) if isinstance(error, str) else None


State = Literal["done", "absent", "damaged", "stale"]


@dataclass(frozen=True)
class Status:
    """The state of a stage in the store, and the reason where it is not done."""

    state: State
    why: str = ""
    manifest: Manifest | None = None


@dataclass(frozen=True)
class Leftover:
    """Files that a stage has while it runs: its lock, its progress and its build folders."""

    kind: Path
    key: str
    paths: list[Path]

    @property
    def lock(self) -> Path:
        return self.kind / f"{self.key}.lock"

    def try_lock(self) -> filelock.BaseFileLock | None:
        """The stage's lock, held by us; None where another process holds it. Raises OSError."""
        try:
            return filelock.FileLock(_own(self.lock)).acquire(timeout=0).lock
        except filelock.Timeout:
            return None

    def in_use(self) -> bool:
        """Whether another process holds the stage's lock."""
        try:
            if not self.lock.exists() or (lock := self.try_lock()) is None:
                return self.lock.exists()
        except OSError:  # The store is read-only, or the lock is a folder.
            return False
        lock.release()
        return False


class Store:
    """Stage folders `root/<kind>/<key>/` and their sidecar files `root/<kind>/<key>.<suffix>`.

    Sidecar files hold a stage's lock, log, progress and failure.
    """

    def __init__(self, root: Path):
        self.root = root
        self._statuses: dict[str, Status] = {}
        self._readers: dict[str, set[str]] = {}  # key -> keys of the stages whose status depends on it
        self._digests: dict[tuple[Path, int, int], str] = {}  # of big files, by path, size and time

    def folder(self, stage: Input) -> Path:
        """The folder of a stage, or the path of a source."""
        return stage.path if isinstance(stage, Source) else self.root / stage.kind / stage.key

    def sidecar(self, stage: Stage, suffix: str) -> Path:
        """The path of a stage's sidecar file: a file about the stage that is not part of its result.

        Suffixes: `log`, `progress.jsonl`, `failed.json`, `job.json`, `lock`, `work`, ...
        """
        return self.root / stage.kind / f"{stage.key}.{suffix}"

    def digest(self, source: Input) -> str | None:
        """Digest of a stage's files (None where it is not done), or of a source's content."""
        if isinstance(source, Source):
            return source.digest
        manifest = self.status(source).manifest
        return manifest.digest if manifest else None

    def failure(self, stage: Stage) -> str | None:
        """The error of the last attempt at a stage; None where it did not fail."""
        return read_failure(self.sidecar(stage, "failed.json"))

    def recorded(self, stage: Stage) -> dict[str, Any]:
        """Revision, versions and device recorded when a stage ran; empty where there is no manifest."""
        try:
            recorded = read_object(self.folder(stage) / "manifest.json").get("recorded")
        except BadFile:
            return {}
        return recorded if isinstance(recorded, dict) else {}

    def recorded_digest(self, stage: str) -> str | None:
        """The digest in the manifest of a stage named `kind/key`; None where that cannot be read."""
        kind, _, key = stage.partition("/")
        try:
            return read_manifest(self.root / kind / key / "manifest.json").digest
        except ValueError:
            return None

    def record_failure(self, stage: Stage, error: str) -> None:
        """Write a stage's error to its `failed.json`."""
        error = secrets.shown(error)
        with contextlib.suppress(OSError):  # The disk may be full. The table shows the reason in any case.
            fields = {"kind": stage.kind, "key": stage.key, "error": error}
            output_files.write(self.root, self.sidecar(stage, "failed.json"), json.dumps(fields, indent=1))

    def record_interruption(self, stage: Stage) -> None:
        """Mark a stage as stopped by Ctrl-C or SIGTERM."""
        with contextlib.suppress(OSError):
            output_files.write(self.root, self.sidecar(stage, "interrupted"), "")

    def was_interrupted(self, stage: Stage) -> bool:
        """Whether Ctrl-C or SIGTERM stopped the last command that ran this stage."""
        return self.sidecar(stage, "interrupted").exists()

    def clear_marks(self, stage: Stage) -> None:
        """Delete the marks of a stage's last attempt (failed, interrupted), because another begins."""
        for suffix in ("failed.json", "interrupted"):
            self.sidecar(stage, suffix).unlink(missing_ok=True)

    def status(self, stage: Stage) -> Status:
        """The verified status of a stage. It is cached until `invalidate`."""
        if stage.key not in self._statuses:
            self._statuses[stage.key] = self._check(stage)
        return self._statuses[stage.key]

    def is_done(self, stage: Stage | None) -> TypeGuard[Stage]:
        """Whether a stage is done. Its weights may have been evicted."""
        return stage is not None and self.status(stage).state == "done"

    def status_with_weights(self, stage: Stage) -> Status:
        """The status for a reader of the stage's files: absent where its weights were evicted."""
        status = self.status(stage)
        if status.state == "done" and status.manifest and status.manifest.evicted:
            why = "its weights were deleted once their numbers were stored (keep=); they are needed and are made again"
            return Status("absent", f"{stage.kind}/{stage.key} ({stage.label}): {why}")
        return status

    def invalidate(self, stage: Stage) -> None:
        """Drop the cached status of a stage and of every stage that depends on it."""
        keys = [stage.key]
        while keys:
            key = keys.pop()
            self._statuses.pop(key, None)
            keys += self._readers.pop(key, ())

    def manifest(self, stage: Stage) -> Manifest:
        """The manifest of a finished stage. Raises FileNotFoundError where it is not done."""
        status = self.status(stage)
        if status.manifest is None or status.state != "done":
            raise FileNotFoundError(
                f"stage {stage.kind}/{stage.key} is {status.state} in {self.root}{status.why and f': {status.why}'}"
            )
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
            return Status("damaged", f"{error}: the stage counts as absent and is made again")
        for role, facts in manifest.inputs.items():
            if isinstance(source := stage.inputs.get(role), Stage):
                self._readers.setdefault(source.key, set()).add(stage.key)
                if self.status(source).state == "stale":
                    return Status("stale", manifest=manifest)  # The status of `source` has the reason.
            if source is not None and self.digest(source) not in (None, facts["digest"]):
                return Status(
                    "stale",
                    f"{stage.kind}/{stage.key}: its input {role!r} was made again with other bytes, so this stage runs again",
                    manifest,
                )
        return Status("done", manifest=manifest)

    def verified_manifest(self, folder: Path) -> Manifest:
        """The manifest of a folder, with every file checked.

        Raises ValueError for a wrong or missing file.
        """
        manifest = read_manifest(folder / "manifest.json")
        for name, facts in {**manifest.files, **manifest.recorded_files}.items():
            if name in manifest.evicted:
                continue
            if why := self._wrong_file(folder / name, facts):
                raise ValueError(f"{folder / name} {why}")
        return manifest

    def _wrong_file(self, path: Path, facts: FileFacts) -> str | None:
        """The fault of a stored file, to be read after its path; None where it is as recorded."""
        try:
            info = path.stat()
            if not stat.S_ISREG(info.st_mode):
                return "is not a regular file"
            if info.st_size != facts.size:
                return f"has {info.st_size} bytes instead of {facts.size}"
            if info.st_size < BIG_FILE:
                return None if file_digest(path) == facts.sha256 else "has a wrong checksum"
            if info.st_mtime_ns == facts.mtime_ns:
                return None
            known = (path, info.st_size, info.st_mtime_ns)
            if known not in self._digests:
                self._digests[known] = file_digest(path)
            return None if self._digests[known] == facts.sha256 else "has a wrong checksum"
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    def evict(self, stage: Stage, names: Iterable[str]) -> int:
        """Delete large files of a finished stage. Returns the bytes freed.

        The stage still counts as done for stages that need only its results. The manifest is written first:
        after an interruption, nothing reads the files that are left, and the next call deletes them. Does
        nothing while another process computes the stage.
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
            doomed = [path for name in evicted if (path := folder / name).exists()]
            freed = sum(path.stat().st_size for path in doomed)
            for path in doomed:
                path.unlink()
        finally:
            lock.release()
            self.sidecar(stage, "lock").unlink(missing_ok=True)
        self.invalidate(stage)
        return freed

    def history(self) -> list[Manifest]:
        """Manifests of all finished stages, for forecasts. Their files are not checked."""
        manifests = []
        for path in self.root.glob("*/*/manifest.json"):
            with contextlib.suppress(ValueError):
                manifests.append(read_manifest(path))
        return manifests

    def try_lock(self, stage: Stage) -> filelock.BaseFileLock | None:
        """The stage's lock, held by us; None while another process computes the stage. Raises OSError.

        The lock only saves work. The store is right without it, because folders are moved into place whole.
        """
        return Leftover(self._kind_folder(stage.kind), stage.key, []).try_lock()

    def is_locked(self, stage: Stage) -> bool:
        """Whether another process computes this stage now."""
        return Leftover(self.root / stage.kind, stage.key, []).in_use()

    def has_build_folder(self, stage: Stage) -> bool:
        """Whether an attempt at this stage has left a build folder."""
        return any(self.folder(stage).parent.glob(f"{stage.key}.build-*"))

    def _kind_folder(self, kind: str) -> Path:
        """The folder of a kind, made where it is missing.

        Raises OSError where it is a link or cannot be made.
        """
        folder = _own(_own(self.root) / kind)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def build_folder(self, stage: Stage) -> Path:
        """A fresh folder to build a stage in. Build folders of dead processes of this machine are removed."""
        parent = self._kind_folder(stage.kind)
        self.remove_build_folders(stage.kind, stage.key)
        folder = parent / _build_name(stage.key)
        folder.mkdir()
        return folder

    def remove_build_folders(self, kind: str, key: str, *, other_hosts: bool = False) -> None:
        """Remove build folders of a stage that dead processes of this machine left.

        `other_hosts`: also those of other machines, where the caller must know that no process works on it.
        """
        for leftover in (self.root / kind).glob(f"{key}.build-*"):
            if (name := BUILD.search(leftover.name)) is None:
                continue
            here = name["host"] == _hostname()
            if here and not psutil.pid_exists(int(name["pid"])):
                _discard(leftover)
            elif not here and other_hosts:
                # It is renamed first: a process that still writes there then fails.
                with contextlib.suppress(OSError):
                    _discard(leftover.rename(leftover.with_name(_build_name(key))))

    def leftovers(self) -> Iterator[Leftover]:
        """Yield the files that running stages have, or that killed commands left, one Leftover per stage."""
        for kind in sorted(path for path in self.root.glob("*") if path.is_dir() and not path.is_symlink()):
            named = [(path.name.partition("."), path) for path in sorted(kind.iterdir())]
            left = (
                (key, path)
                for (key, _, end), path in named
                if end in ("lock", "progress.jsonl") or end.startswith("build-")
            )
            yield from (Leftover(kind, key, paths) for key, paths in grouped(left).items())

    def remove_leftovers(self) -> None:
        """Delete the leftovers of stages that no process computes. A file that cannot be deleted stays."""
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
        """Write the manifest into a built folder and move the folder into place.

        `input_digests` were verified before the stage read its inputs. Returns the manifest of the folder
        that is then in place: another process's, where that one finished the same stage from the same inputs
        a moment earlier.
        """
        facts = {
            str(path.relative_to(built)): FileFacts(
                file_digest(path), path.stat().st_size, path.stat().st_mtime_ns
            )
            for path in sorted(built.rglob("*"))
            if path.is_file()
        }
        files = {name: fact for name, fact in facts.items() if name not in recorded_files}
        manifest = Manifest(
            kind=stage.kind,
            key=stage.key,
            version=stage.version,
            settings=keyed_settings(stage.settings),
            inputs={
                role: {"key": source.key, "digest": input_digests[role]}
                for role, source in stage.inputs.items()
            },
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
        """Rename a built folder to its place. Returns the manifest of the folder that is then there.

        A folder that is already there is kept, because others may be reading it. It is replaced where it is
        damaged, evicted or made from other inputs.
        """
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
        raise OSError(
            f"could not move {built} to {folder}: another file or folder is there and cannot be replaced. Move it away"
        )


BUILD = re.compile(r"\.build-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{6}$")


def _discard(path: Path) -> None:
    """Delete a folder, a file or a link. Errors are ignored."""
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _own(path: Path) -> Path:
    """The path itself. Raises OSError for a link, because nothing is written through links."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a link, and nothing is written through one: move it away", str(path))
    return path


def _build_name(key: str) -> str:
    """A new name for a build folder, with host and process id."""
    return f"{key}.build-{_hostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def _hostname() -> str:
    return socket.gethostname() or "host"
