"""Everything that is wrong with a command."""

from __future__ import annotations

from collections.abc import Sequence


class BadConfig(ValueError):
    """Everything that is wrong with a command, one line a problem."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))
