"""A benchmark harness for LLM preference alignment. README.md explains its use.

In a notebook: `bench.load("kto_beta")` gives the numbers and texts of a sweep as pandas frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.commands.notebook import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load`, imported when it is first used: planning and training need no pandas."""
    if name == "load":
        from bench.commands.notebook import load

        return load
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
