"""`do=conformance`: compares every method with its paper's equation. Loads torch."""

from __future__ import annotations

from bench.cli.compose import CheckedCommand
from bench.commands import OK, SOME_FAILED
from bench.conformance.table import print_table


def main(opened: CheckedCommand) -> int:
    return OK if print_table() else SOME_FAILED
