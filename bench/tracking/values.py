"""What may be written to a tracker: plain values without secrets, numbers that are finite, ids."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from bench import secrets


def _plain(value: Any) -> Any:
    """The value as JSON can hold it; numbers that JSON cannot hold become None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool):
        return value
    return finite(value) if isinstance(value, Real) else str(value)


def cleaned(value: Any) -> Any:
    return secrets.clean_value(_plain(value))


def finite(value: Any) -> int | float | None:
    """A finite number, or None."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) else None


def train_row(row: Any) -> dict[str, int | float] | None:
    """A history row under W&B's names; None when it has no step."""
    if not isinstance(row, Mapping):
        return None
    step = finite(row.get("step"))
    if step is None:
        return None
    numbers = {under("train", str(k)): n for k, v in row.items() if k != "step" and (n := finite(v)) is not None}
    return {**numbers, "train/step": step}


def under(section: str, name: str) -> str:
    return name if name.startswith(f"{section}/") else f"{section}/{name}"


def run_id(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def brief(error: Exception) -> str:
    return secrets.excerpt(f"{type(error).__name__}: {error}", 200)


def file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Row = Mapping[str, float]
