"""Identity: canonical JSON, digests of files and folders, the key of a stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.config import LaterField as LaterField
from bench.config import Unkeyed as Unkeyed

KEY_LENGTH = 16  # hexadecimal digits of sha256: 64 bits, no clash below millions of stages


def canonical_json(value: Any) -> str:
    """The canonical JSON of a value: equal values give equal text.

    Raises ValueError for NaN and infinities, TypeError for sets and for keys that are not text.
    """
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def _plain(value: Any) -> Any:
    """The value in plain containers. A float with a whole value becomes an int: 1.0 is 1, -0.0 is 0."""
    if isinstance(value, BaseModel):
        return keyed_settings(value)
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"canonical JSON takes text keys only, got the key {odd[0]!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"canonical JSON cannot write {type(value).__name__}: {value!r}")


def keyed_settings(settings: BaseModel) -> dict[str, Any]:
    """The fields of a settings record that go into a key.

    Two sorts of field stay out: `Unkeyed` ones, and `LaterField` ones that hold their default.
    """
    fields = type(settings).model_fields
    return {
        name: _plain(getattr(settings, name))
        for name, info in fields.items()
        if not (
            any(isinstance(mark, LaterField) for mark in info.metadata)
            and getattr(settings, name) == info.default
        )
        and not any(isinstance(mark, Unkeyed) for mark in info.metadata)
    }


def hash_key(value: Any) -> str:
    """The first KEY_LENGTH hexadecimal digits of the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:KEY_LENGTH]


@dataclass(frozen=True)
class Source:
    """A model folder or data file outside the store, identified by the digest of its content."""

    path: Path
    digest: str
    stamp: str = ""  # tree_stamp of the path when the digest was made

    @property
    def key(self) -> str:
        return hash_key({"source": self.digest})


@dataclass(frozen=True)
class Stage:
    """One step that reads files and writes files.

    `inputs` maps a role to the stage or source that is read.
    """

    kind: str
    version: int
    settings: BaseModel
    inputs: Mapping[str, Stage | Source] = field(default_factory=dict)
    label: str = ""  # Shown to people; it is not in the key.

    @cached_property
    def key(self) -> str:
        return stage_key(
            self.kind, self.version, self.settings, {role: source.key for role, source in self.inputs.items()}
        )

    @property
    def input_stages(self) -> list[Stage]:
        """The stages among its inputs."""
        return [source for source in self.inputs.values() if isinstance(source, Stage)]

    def __hash__(self) -> int:
        return hash((self.kind, self.key))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and (self.kind, self.key) == (other.kind, other.key)

    def walk(self) -> Iterator[Stage]:
        """Yield the stage's ancestors and then the stage itself, each once, inputs before their readers."""
        seen: set[Stage] = set()

        def visit(stage: Stage) -> Iterator[Stage]:
            if stage in seen:
                return
            seen.add(stage)
            for source in stage.input_stages:
                yield from visit(source)
            yield stage

        return visit(self)


Input = Stage | Source  # an input of a stage
Inputs = dict[str, Input]  # by role


def stage_key(kind: str, version: int, settings: Any, inputs: Mapping[str, str | None]) -> str:
    """The key of a stage. `inputs` maps a role to the key of that input."""
    return hash_key({"kind": kind, "version": version, "settings": settings, "inputs": inputs})


def file_digest(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_stamp(path: Path) -> str:
    """Digest of the sizes and modification times of a file, or of all files in a folder.

    A write changes it.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return hash_long({str(p): [(stat := p.stat()).st_size, stat.st_mtime_ns] for p in files})


def tree_digest(path: Path) -> str:
    """Digest of a file's content, or of a folder's files and their relative names.

    Hidden files and folders (names that begin with a dot) are left out.
    """
    if path.is_file():
        return file_digest(path)
    files = sorted(
        p
        for p in path.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)
    )
    return hash_long({str(p.relative_to(path)): file_digest(p) for p in files})


def hash_long(value: Any) -> str:
    """The whole sha256 of a value's canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
