"""The error that holds all problems of a command."""

from __future__ import annotations

from collections.abc import Sequence


class BadConfig(ValueError):
    """All problems of a command, one line each."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))
