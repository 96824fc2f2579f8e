"""scipy.special, loaded by its first use: 0.1 s that most commands do not need.

scipy.stats gives the same numbers and takes a third of a second to import.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from scipy import special

    return getattr(special, name)
