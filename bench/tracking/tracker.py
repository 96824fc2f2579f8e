"""The interface of a tracker, and the choice of one. The store is the truth; a tracker copies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.config import NoTracker, WandbTracker
from bench.tracking.values import Row
from bench.tracking.wandb_mirror import WandbMirror, configured_account


class Tracker(Protocol):
    """Takes the results of a command. No call raises, and only `close` waits."""

    def follow(
        self,
        *,
        sweep: str,
        key: str,
        name: str,
        config: Mapping[str, Any],
        tags: Sequence[str],
        rows: Sequence[Row],
    ) -> None:
        """Send rows of a running cell. The first call opens the cell's run. Each row has its own `step`."""

    def cell(
        self,
        *,
        sweep: str,
        key: str,
        name: str,
        config: Mapping[str, Any],
        history: Sequence[Row],
        summary: Mapping[str, float | None],
        tags: Sequence[str],
        status: str,
        reason: str | None = None,
    ) -> None:
        """Send an ended cell with its whole stored history. Rows that `follow` sent are not repeated.

        status: "failed" marks the run as failed; any other status is only recorded. reason:
        the error of a failed cell.
        """

    def sweep(self, *, sweep: str, rows: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> None:
        """Send the comparison table of a sweep, with its files as an artifact."""

    def close(self) -> None:
        """Wait until everything is written, at most `timeout_s`. It may be called twice."""

    @property
    def notes(self) -> list[str]:
        """Lines for the user. The list is complete after `close`."""


def open_tracker(settings: WandbTracker | NoTracker, directory: Path) -> Tracker:
    """The tracker of a command. `directory` (results/wandb) takes W&B's files, also its offline runs."""
    if isinstance(settings, NoTracker):
        return NullTracker()
    account = configured_account()
    if settings.mode == "auto" and account.mode == "disabled":
        return NullTracker(["W&B: disabled by WANDB_MODE or `wandb disabled`"])
    return WandbMirror(settings, Path(directory).absolute(), account)


class NullTracker:
    """A tracker that sends nothing."""

    def __init__(self, notes: Sequence[str] = ()) -> None:
        self._notes = list(notes)

    def follow(self, **_: Any) -> None: ...

    def cell(self, **_: Any) -> None: ...

    def sweep(self, **_: Any) -> None: ...

    def close(self) -> None: ...

    @property
    def notes(self) -> list[str]:
        return list(self._notes)
