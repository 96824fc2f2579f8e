"""Commands, one file each, with the names of conf/do/.

A command's file is imported only when the command runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bench.store.store import Unsound
from bench.terminal import say

if TYPE_CHECKING:
    from bench.cli.compose import CheckedCommand

OK, SOME_FAILED, OVER_BUDGET = 0, 3, 4  # exit codes

COMMANDS = {
    "run": "bench.commands.run",
    "plan": "bench.commands.plan",
    "report": "bench.commands.report",
    "status": "bench.commands.status",
    "view": "bench.commands.view",
    "rescore": "bench.commands.rescore",
    "audit": "bench.commands.audit",
    "why": "bench.commands.why",
    "export": "bench.commands.export",
    "bundle": "bench.commands.bundle",
    "verify": "bench.commands.verify",
    "conformance": "bench.commands.conformance",
    "scoreboard": "bench.commands.scoreboard",
}


def carry_out(opened: CheckedCommand) -> int:
    """Carry out a command that passed the checks; returns the exit code."""
    if opened.session.do.name in ("run", "plan"):
        for line in opened.partly:
            say(line)
    try:
        return import_module(COMMANDS[opened.session.do.name]).main(opened)
    except Unsound as error:
        say(str(error))
        return SOME_FAILED
