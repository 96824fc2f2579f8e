"""Trackers: what a run reports, and where it goes. The store is the truth; a tracker mirrors it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.config import NoTracker, WandbTracker
from bench.tracking.mirror import WandbMirror, configured_account
from bench.tracking.values import Row


class Tracker(Protocol):
    """What a run reports. No call raises, and none but `close` waits."""

    def follow(self, *, sweep: str, key: str, name: str, config: Mapping[str, Any], tags: Sequence[str], rows: Sequence[Row]) -> None:
        """Rows of a running cell, as they come; the first opens the cell's run. Rows carry their own `step`."""

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
        """A cell that ended: its whole stored history, cached or not; rows that were followed are not repeated.

        status: "failed" marks the run as failed; any other is only recorded. reason: why it failed.
        """

    def sweep(self, *, sweep: str, rows: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> None:
        """The comparison table, and the files that go with it as an artifact."""

    def close(self) -> None:
        """Waits until all is written, at most `timeout_s`. May be called twice."""

    @property
    def notes(self) -> list[str]:
        """What the user should be told; complete after `close`."""


def open_tracker(settings: WandbTracker | NoTracker, directory: Path) -> Tracker:
    """directory: where W&B's files go, offline runs included, e.g. results/wandb."""
    if isinstance(settings, NoTracker):
        return Silent()
    account = configured_account()
    if settings.mode == "auto" and account.mode == "disabled":
        return Silent(["W&B: disabled by WANDB_MODE or `wandb disabled`"])
    return WandbMirror(settings, Path(directory).absolute(), account)


class Silent:
    def __init__(self, notes: Sequence[str] = ()) -> None:
        self._notes = list(notes)

    def follow(self, **_: Any) -> None: ...

    def cell(self, **_: Any) -> None: ...

    def sweep(self, **_: Any) -> None: ...

    def close(self) -> None: ...

    @property
    def notes(self) -> list[str]:
        return list(self._notes)
