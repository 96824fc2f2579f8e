"""What the plain run leaves to CI: outer paths whose code a cheaper test goes through too, and further cases of one that stays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

MARKS = (pytest.mark.slow, pytest.mark.essential)


def outer(test: Any) -> Any:
    """The test with CI's marks."""
    for mark in MARKS:
        test = mark(test)
    return test


def some_outer(cases: Iterable[Any], plain: Iterable[Any]) -> list[Any]:
    """Cases of one parameter, of which the plain run takes some."""
    plain = list(plain)
    return [case if case in plain else pytest.param(case, marks=MARKS) for case in cases]
