"""The house rules that a machine can check: linters, types, which room may import which, what stays light, README and CI agree."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "bench"

HEAVY = {"torch", "transformers", "trl", "vllm", "peft", "accelerate", "wandb", "datasets", "submitit", "ray", "lm_eval"}
LIGHT = ["config", "text_files", "output_files", "terminal", "secrets", "records", "machine"]
LIGHT_ROOMS = ["stats", "store", "models", "tracking", "planning", "cli", "scoring", "report", "forecast", "commands", "runner"]
LIGHT_ROOMS += ["readers", "judges", "methods"]
WITH_TORCH = ("__init__", "in_process", "conformance")  # a model of this process, and a command that trains one
LIGHT += ["stages.score", "stages.audit", "stages.tasks", "training.devices", "training.training_record", "engines.lm_eval"]


def test_rooms_import_downwards_only() -> None:
    """The contracts in pyproject.toml: layers, independence of methods, judges and stages, no torch in light rooms."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr


NO_TEXT = {"os.open", "gzip.open", "tarfile.open", "read_text", "text_files.read_text", "_Door(command, list(command.problems)).open"}


@pytest.mark.parametrize("path", sorted(BENCH.rglob("*.py")), ids=lambda path: str(path.relative_to(BENCH)))
def test_text_files_name_their_encoding(path: Path) -> None:
    """Otherwise the locale decides: a file written on one machine cannot be read on another. Ruff's PLW1514 misses a path whose type
    it cannot infer, which most of ours are."""
    unnamed = [node.lineno for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call) and _locale_decides(node)]
    assert not unnamed, f"{path.relative_to(ROOT)}: name encoding=, in line {', '.join(map(str, unnamed))}"


def _locale_decides(call: ast.Call) -> bool:
    """Whether a call opens text, of a file or of a process, in an encoding that it does not name."""
    function = ast.unparse(call.func)
    name = function.split(".")[-1]
    given = {keyword.arg for keyword in call.keywords}
    constants = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    if "encoding" in given or "utf-8" in constants or function in NO_TEXT:
        return False
    if name in ("run", "Popen", "check_output"):
        return bool(given & {"text", "universal_newlines"})
    binary = any(isinstance(mode, str) and re.fullmatch("[rwax+]*b[rwax+]*", mode) for mode in constants)
    return name in ("read_text", "write_text", "open", "fdopen") and not binary


def test_planning_and_reading_load_nothing_heavy() -> None:
    rooms = [path for room in LIGHT_ROOMS for path in sorted((BENCH / room).rglob("*.py")) if path.stem not in WITH_TORCH]
    names = LIGHT + [".".join(path.relative_to(BENCH).with_suffix("").parts) for path in rooms]
    code = f"import sys; {'; '.join(f'import bench.{name}' for name in names)}; print(sorted({HEAVY!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.strip() == "[]"


RUFF = pytest.param(["ruff", "check", "bench", "tests"], id="ruff")
MYPY = pytest.param(["mypy"], id="mypy", marks=[pytest.mark.slow, pytest.mark.essential])


@pytest.mark.parametrize("command", [RUFF, MYPY])
def test_linter_and_type_checker_are_clean(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = [line.strip() for line in (ROOT / "README.md").read_text().splitlines() if ".venv/bin/python -m pytest" in line]
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text().splitlines()
