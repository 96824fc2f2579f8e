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
        return stage_key(self.kind, self.version, self.settings, {role: source.key for role, source in self.inputs.items()})

    @property
    def input_stages(self) -> list[Stage]:
        """The stages among its inputs."""
        return [source for source in self.inputs.values() if isinstance(source, Stage)]

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
            for source in stage.input_stages:
                yield from visit(source)
            yield stage

        return visit(self)


Input = Stage | Source  # what a stage reads
Inputs = dict[str, Input]  # by role


def stage_key(kind: str, version: int, settings: Any, inputs: Mapping[str, str | None]) -> str:
    return hash_key({"kind": kind, "version": version, "settings": settings, "inputs": inputs})


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
