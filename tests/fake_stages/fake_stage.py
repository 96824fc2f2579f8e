"""A stage that does what its settings say, for tests of the pool and the scheduler: it is quick, or dies, or hangs, on demand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.config import Settings
from bench.store import stage_settings
from bench.store.keys import Stage
from bench.store.stage_run import Outcome, StageRun

HERE = Path(__file__).parent
MEETING_S = 60.0


class Fake(Settings):
    """`die`, `hang`: how many attempts end in SIGKILL, or never end. `tape`: a file whose content becomes the result's, which may change
    between attempts. `shows`: an environment variable whose value becomes the result's. `meets`: a stage that must have begun before this
    one ends."""

    name: str
    seconds: float = 0.0
    die: int = 0
    hang: int = 0
    shows: str = ""
    meets: str = ""
    fail: str = ""
    exit: bool = False
    prints: str = ""
    steps: int = 0
    orphan: bool = False
    tape: str = ""


def run(settings: Fake, run: StageRun) -> Outcome:
    attempts = run.out.parent / f"{settings.name}.attempts"
    with attempts.open("a") as file:
        file.write(f"{os.getpid()} {time.time()}\n")
    if settings.prints:
        print(settings.prints, "printed")
        print(settings.prints, "to stderr", file=sys.stderr)
        os.write(1, f"{settings.prints} natively\n".encode())
        subprocess.run(["echo", settings.prints, "by a child"], check=True)
    if settings.orphan:  # holds the worker's pipe open after its death
        if (child := os.fork()) == 0:
            time.sleep(20)
            os._exit(0)
        attempts.with_suffix(".pid").write_text(str(child))
    if len(attempts.read_text().splitlines()) <= settings.die:
        os.kill(os.getpid(), signal.SIGKILL)
    if len(attempts.read_text().splitlines()) <= settings.hang:
        time.sleep(600)
    for step in range(settings.steps):
        run.progress(step + 1, settings.steps, loss=1 / (step + 1))
    time.sleep(settings.seconds)
    until = time.monotonic() + MEETING_S
    while settings.meets and not (run.out.parent / f"{settings.meets}.attempts").exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{settings.meets} has not begun within {MEETING_S:g} s of waiting")
        time.sleep(0.1)
    if settings.exit:
        sys.exit("a library ended the process")
    if settings.fail:
        raise ValueError(settings.fail)
    read = "".join((path / "text").read_text() for path in run.inputs.values())
    text = Path(settings.tape).read_text() if settings.tape else settings.name
    text = os.environ.get(settings.shows, "unset") if settings.shows else text
    (run.out / "text").write_text(text + read)
    return Outcome({"rows": 1})


def fake(name: str, *inputs: Stage, **settings: object) -> Stage:
    return stage_settings.stage(
        "fake", Fake(name=name, **settings), {f"input{i}": stage for i, stage in enumerate(inputs)}, name
    )  # type: ignore[arg-type]


def attempts(stage: Stage, root: Path) -> list[tuple[int, float]]:
    """(process, when) of each time that a stage was begun."""
    path = root / "fake" / f"{stage.label}.attempts"
    rows = path.read_text().splitlines() if path.exists() else []
    return [(int(row.split()[0]), float(row.split()[1])) for row in rows]
