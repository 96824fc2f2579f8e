"""What an engine that outlives a stage tells its worker. A module of its own: a worker's own module is `__main__`, and not this one."""

from __future__ import annotations

from collections.abc import Callable

AT_REST: list[Callable[[], None]] = []  # called when a stage has ended
VERSIONS: dict[str, str] = {}  # of packages that run in processes of their own; recorded beside results
