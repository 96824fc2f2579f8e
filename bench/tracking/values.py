"""Values for a tracker: plain values without secrets, finite numbers, ids and digests."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from bench import secrets


def _plain(value: Any) -> Any:
    """The value in JSON types. NaN and infinities become None; other objects become text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool):
        return value
    return finite(value) if isinstance(value, Real) else str(value)


def cleaned(value: Any) -> Any:
    """The value in JSON types, without secrets."""
    return secrets.clean_value(_plain(value))


def finite(value: Any) -> int | float | None:
    """The value as an int or float; None where it is no finite number."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return (
        float(value)
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        else None
    )


def train_row(row: Any) -> dict[str, int | float] | None:
    """A history row with W&B's names (`train/loss`, `train/step`); None where it has no step."""
    if not isinstance(row, Mapping):
        return None
    step = finite(row.get("step"))
    if step is None:
        return None
    numbers = {
        under("train", str(k)): n for k, v in row.items() if k != "step" and (n := finite(v)) is not None
    }
    return {**numbers, "train/step": step}


def under(section: str, name: str) -> str:
    """The name with the prefix `section/`, added once."""
    return name if name.startswith(f"{section}/") else f"{section}/{name}"


def run_id(*parts: str) -> str:
    """The id of a W&B run, the same for the same parts: 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def brief(error: Exception) -> str:
    """An error as one line of at most 200 characters, without secrets."""
    return secrets.excerpt(f"{type(error).__name__}: {error}", 200)


def file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Row = Mapping[str, float]
