"""`python -m bench`: the door. Checks every cell, then lets Hydra start the sweep. Exit codes: 0 well, 2 bad config, 3 some cells
failed, 130 interrupted; 1 only for a bug of ours."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

BAD_CONFIG, INTERRUPTED = 2, 130
PLUGINS = str(Path(__file__).parent / "_plugins")
HYDRA_FLAGS = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")


def carry_out() -> int:
    """Open the door for the words of this command (checked before, and kept) and run it."""
    from bench import door, run

    return run.main(door.open_door(tuple(sys.argv[1:])))


def main() -> NoReturn:
    sys.path.append(PLUGINS)  # Hydra finds our sweeper there
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        if not any(word.split("=")[0] in HYDRA_FLAGS for word in sys.argv[1:]):
            from bench import door

            door.open_door(tuple(sys.argv[1:]))
        _hydra()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except ValueError as error:
        from bench.door import BadConfig

        if not isinstance(error, BadConfig):
            raise
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(BAD_CONFIG)
    sys.exit(0)


def _hydra() -> None:
    import hydra

    from bench import sweep

    sweep.register_sweeps()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")

    @hydra.main(config_path=str(sweep.CONF), config_name="config", version_base="1.3")
    def task(_: object) -> None:
        sys.exit(carry_out())

    task()


if __name__ == "__main__":
    main()
