"""Checks of a whole command: its workers, the files that `do` names, and the packages and devices that its
cells need."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.cli.audit_files import human_manner, recorded_manner
from bench.cli.messages import Where
from bench.cli.sweep_files import CommandLine
from bench.config import (
    FITTED,
    HELDOUT,
    AnyLauncher,
    Audit,
    Bundle,
    Cell,
    Export,
    JuryJudge,
    LocalLauncher,
    LocalModel,
    NoJudge,
    Rescore,
    Session,
    Vllm,
    Why,
    Written,
    evaluated,
    user_path,
)
from bench.engines.lm_eval import INSTALL
from bench.machine import cores, visible_gpus


def problems_of(session: Session, cells: Sequence[Cell], command: CommandLine, where: Where) -> Iterator[str]:
    """Problems across the settings of a command, when its session and cells are each valid on their own."""
    do = session.do
    if isinstance(do, Rescore):
        yield from _check_rescore(do, command, where)
    if isinstance(do, Audit):
        yield from _check_audit(do, cells, where)
    if isinstance(do, Why | Export):
        yield from _check_why(do, command)
    if do.name == "verify" and (command.sweep or command.sets_cells):
        yield f"do=verify checks the whole results folder: leave out {command.cell_words}"
    if isinstance(do, Export | Bundle):
        yield from _check_out(do, where)
    if do.name == "run" and any(cell.forgetting for cell in cells):
        yield from _check_harness(where)
    if do.name == "run" and session.launcher.name == "local":
        yield from _check_vllm(cells, where)
        yield from _check_loading(cells, where)
    yield from _check_workers(session.launcher, where)


def _check_workers(launcher: AnyLauncher, where: Where) -> Iterator[str]:
    """Refuse more workers than this machine can carry, unless the limit was raised."""
    key = "workers" if isinstance(launcher, LocalLauncher) else "here_workers"
    n, most = getattr(launcher, key), launcher.workers_per_core * cores()
    if n is not None and n > most and n > len(visible_gpus()):
        bound = f"at most {launcher.workers_per_core} for each of {cores()} cores (hydra.launcher.workers_per_core), {most} in all"
        yield f"hydra.launcher.{key} must be {bound}, got {n} ({where.of(f'hydra.launcher.{key}')})"


def _check_rescore(do: Rescore, command: CommandLine, where: Where) -> Iterator[str]:
    """Check that the files exist and fit together; their content is checked when they are read."""
    judgements, foreign = user_path(do.judgements or "."), do.judgements is not None
    files = {
        "reference_outputs": do.reference_outputs,
        "calibration": None if do.calibration == FITTED else do.calibration,
    }
    if foreign and not judgements.exists():
        what = "a folder in AlpacaEval's layout or a file of FastChat's judgements (.jsonl)"
        yield f"judgements must be {what}, got {do.judgements}: no such file or folder ({where.of('do.judgements')})"
    for name, path in files.items():
        if path is not None and not user_path(path).is_file():
            problem = "a folder" if user_path(path).is_dir() else "no such file"
            yield f"{name} must be a file, got {path}: {problem} ({where.of(f'do.{name}')})"
    for name in ("reference_outputs", "calibration"):
        if foreign and judgements.is_file() and getattr(do, name) is not None:
            yield f"judgements={do.judgements} are FastChat's, and {name} is only read for AlpacaEval's: leave {name} out"
    if foreign and (command.sweep or command.sets_cells):
        yield f"judgements={do.judgements} are rescored without cells: leave out {command.cell_words}"
    if do.out is not None and (not (out := user_path(do.out)).parent.is_dir() or out.is_dir()):
        yield f"out must be a CSV file in an existing folder, got {do.out} ({where.of('do.out')})"


def _check_audit(do: Audit, cells: Sequence[Cell], where: Where) -> Iterator[str]:
    """Check the judges, the completions to judge, and that the files can be read and fit the judge."""
    judged: list[Cell] = []  # One for each judge that has a passport of its own.
    for cell in cells:
        every = list(evaluated(cell).values())
        judged += [one for one in every if not isinstance(one.judge, JuryJudge | NoJudge)] or every[:1]
    cells = judged
    for cell in cells:
        judge, brings_items = cell.judge, getattr(cell.judge, "items", None) is not None
        if isinstance(judge, JuryJudge):
            yield f"do=audit measures one judge, got judge=jury; audit its members one by one ({where.of('judge')})"
        elif isinstance(judge, NoJudge):
            yield f"do=audit needs a judge, got judge=none ({where.of('judge')})"
        elif getattr(judge, "items", None) == HELDOUT or judge.rival:
            what = "do=audit takes its items and their opponent from a file or from the controlled world"
            yield f"{what}: leave out judge.items=heldout and judge.opponent ({where.of('judge')})"
        elif brings_items and not isinstance(cell.method, Written) and not isinstance(cell.model, LocalModel):
            text = f"do=audit of judge.items={getattr(judge, 'items', None)} needs completions to judge, got model={cell.model.name}"
            yield f"{text}; add completions=FILE or model=DIR"
    for name, path, manner_of in (
        ("human", do.human, human_manner),
        ("recorded", do.recorded, recorded_manner),
    ):
        if path is None:
            continue
        try:
            manner = manner_of(user_path(path))
        except (OSError, ValueError) as error:
            yield f"{error} ({where.of(f'do.{name}')})"
            continue
        judges = [cell.judge for cell in cells if not isinstance(cell.judge, NoJudge)]
        if strangers := sorted({judge.name for judge in judges if manner not in judge.gives}):
            other = "preferences" if manner == "rating" else "ratings"
            text = f"{name}={path} holds {manner}s, but judge={', '.join(strangers)} gives {other} here: use a file of {other}"
            yield f"{text} ({where.of(f'do.{name}')})"


def _check_harness(where: Where) -> Iterator[str]:
    if importlib.util.find_spec("lm_eval") is None:
        text = f"forgetting=lm_eval needs lm-evaluation-harness, which is not installed here: {INSTALL}"
        yield f"{text} ({where.of('forgetting')})"


def _check_vllm(cells: Sequence[Cell], where: Where) -> Iterator[str]:
    """Check that vLLM is installed where it will run; a machine that only plans does not need it."""
    for python in {cell.engine.python for cell in cells if isinstance(cell.engine, Vllm)}:
        if python is None and importlib.util.find_spec("vllm") is None:
            how = "pip install -c constraints.txt -e '.[vllm]', or set engine.python to the python of an environment that has it"
            yield f"engine=vllm needs vLLM, which is not installed here: {how} ({where.of('engine')})"
        elif python is not None and not os.access(python, os.X_OK):
            yield f"engine.python must be an executable python, got {python} ({where.of('engine.python')})"


def _check_loading(cells: Sequence[Cell], where: Where) -> Iterator[str]:
    """Check packages and GPUs that loading needs; a machine that only plans does not need them."""
    if (
        any(cell.adapter.name == "qlora" for cell in cells)
        and importlib.util.find_spec("bitsandbytes") is None
    ):
        text = "adapter=qlora needs bitsandbytes, which is not installed here: pip install -e '.[qlora]', or use adapter=lora"
        yield f"{text} ({where.of('adapter')})"
    flash = any(getattr(cell.model, "attention", "") == "flash_attention_2" for cell in cells)
    if flash and not (Path("/dev/nvidia0").exists() and importlib.util.find_spec("flash_attn")):
        text = "model.attention=flash_attention_2 needs a GPU and the package flash_attn, and one of them is missing here"
        yield f"{text}: use model.attention=sdpa ({where.of('model.attention')})"


def _check_out(do: Export | Bundle, where: Where) -> Iterator[str]:
    """Check that `out` is a new or empty folder, or an archive in an existing folder."""
    out = user_path(do.out or "")
    taken = out.is_file() or (out.is_dir() and any(out.iterdir()))
    if isinstance(do, Export) and (not do.out or taken or not out.absolute().parent.is_dir()):
        got = do.out or "none: add out=DIR"
        yield f"out must be a new or empty folder inside an existing one, got {got} ({where.of('do.out')})"
    named = out.name.endswith(".tar.gz") and not out.is_dir()
    if isinstance(do, Bundle) and not (named and out.absolute().parent.is_dir()):
        yield f"out must be an archive, FILE.tar.gz, in an existing folder, got {do.out} ({where.of('do.out')})"


def _check_why(do: Why | Export, command: CommandLine) -> Iterator[str]:
    if not do.cell:
        what = "exports" if isinstance(do, Export) else "explains"
        yield f"do={do.name} {what} one cell: add cell=KEY, the key or name of a cell in table.csv"
    if command.sweep or command.sets_cells:
        yield f"cell={do.cell} is looked up in the results folder: leave out {command.cell_words}"
