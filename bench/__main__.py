"""`python -m bench`: checks every cell of a command and then runs the command. Hydra handles its own flags.

Exit codes: 0 success, 2 bad config, 3 some cells failed, 4 over budget, 130 interrupted; 1
only for a bug in bench.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import NoReturn

from bench import secrets

BAD_CONFIG, SOME_FAILED, INTERRUPTED = 2, 3, 130
DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
)
ALL = ""  # The topic of a help that names none.
# Flags that Hydra handles itself: shell completion, the composed config.
HYDRA_FLAGS = ("--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")


def main() -> NoReturn:
    """Run the command of sys.argv and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal may lack a character; print it escaped.
            stream.reconfigure(errors="backslashreplace")
    secrets.guard_streams()
    signal.signal(signal.SIGTERM, _interrupt)
    # Some parents ignore SIGCHLD: every child would then seem to succeed.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        words = sys.argv[1:]
        if not words:
            _help([])
        elif words[0] == "help":
            _help(words[1:] or [ALL])
        elif {"--help", "-h"} & set(words):  # among the words of another command: everything
            _help([ALL])
        elif "--version" in words:
            _print_versions()
        elif any(word.split("=")[0] in HYDRA_FLAGS for word in words):
            _run_hydra()
        else:
            _run(words)
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to continue from here.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # The reader of our output has ended, as in `... | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        from bench.terminal import say

        fault = f"{error.filename or 'a file'}: {error.strerror}."
        say(f"{fault} Finished stages are kept: remove the cause and run the same command again.", error=True)
        sys.exit(SOME_FAILED)
    sys.exit(0)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _run(words: list[str]) -> None:
    from bench.cli.compose import BadConfig, open_command
    from bench.terminal import say

    try:
        opened = open_command(words)
        from bench.commands import carry_out

        sys.exit(carry_out(opened))
    except BadConfig as error:
        for problem in error.problems:
            say(problem, error=True)
        sys.exit(BAD_CONFIG)


def _help(topics: list[str]) -> None:
    """Print help on each topic, or on everything (ALL); one screen where there is no topic."""
    from bench.cli import help as helping
    from bench.terminal import say

    try:
        texts = [helping.overview() if topic == ALL else helping.topic(topic) for topic in topics]
    except helping.UnknownTopic as error:
        say(str(error), error=True)
        sys.exit(BAD_CONFIG)
    print("".join(texts) or helping.SCREEN, end="")


def _print_versions() -> None:
    """Print the versions of bench, Hydra, torch, transformers and TRL, one a line."""
    from importlib.metadata import PackageNotFoundError, version

    from bench import __version__
    from bench.machine import revision

    print(f"bench {__version__} (revision {revision() or 'unknown'})")
    for package in ("hydra-core", "torch", "transformers", "trl"):
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package} is not installed")


def _run_hydra() -> None:
    """Run Hydra's own main for its flags. It never calls the task."""
    import hydra

    from bench.cli import sweep_files
    from bench.cli.words import CONF, with_commands
    from bench.terminal import say

    # Bench always sweeps.
    words, problems = with_commands(word for word in sys.argv[1:] if word not in ("-m", "--multirun"))
    if problems:
        for problem in problems:
            say(problem, error=True)
        sys.exit(BAD_CONFIG)
    sys.argv = [sys.argv[0], *words]
    sweep_files.register_sweeps()
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(lambda _: None)()
    except SystemExit as leaving:
        sys.exit(BAD_CONFIG if leaving.code == 1 else leaving.code)


if __name__ == "__main__":
    main()
