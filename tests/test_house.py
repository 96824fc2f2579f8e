"""The house rules that a machine can check: linters, types, which room may import which, what stays light, README and CI agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "bench"

# Lowest first; a room may import itself and what stands before it (design.md, "The house").
ORDER = [
    ["config", "kept"],
    ["text_files", "secrets"],
    ["output_files", "terminal"],
    ["templates"],
    ["hub"],
    ["model_config"],
    ["records"],
    ["stats", "preferences", "tokens", "token_counts", "written", "self_instruct"],
    ["learnable"],
    ["length_control", "audit", "audit_ratings", "canaries"],
    ["style_control", "shapes"],
    ["store"],
    ["sweep"],
    ["kinds"],
    ["readers"],
    ["plan", "forecast", "keep"],
    ["worker", "launch"],
    ["world", "losses", "facts", "devices"],
    ["judges", "engines", "methods"],
    ["self_judge"],
    ["stages"],
    ["audit_files", "door", "report", "tracking"],
    ["clusters", "costs", "counts", "size", "size_table", "screen", "conformance", "rescore", "why", "passport_page", "passport", "verify"],
    ["bundle"],
    ["export"],
    ["run"],
    ["__main__", "_plugins"],
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
HEAVY = {"torch", "transformers", "trl", "vllm", "peft", "accelerate", "wandb", "datasets", "submitit", "ray", "lm_eval"}
LIGHT = [
    "config",
    "text_files",
    "output_files",
    "terminal",
    "secrets",


    "templates",
    "model_config",
    "records",
    "stats",
    "length_control",
    "audit",
    "preferences",
    "written",
    "store",
    "sweep",
    "kinds",
    "hub",
    "readers",
    "plan",
    "forecast",
    "door",
    "report",
    "screen",
    "run",
    "tracking",
    "costs",
    "counts",
]
LIGHT += ["judges.gold", "judges.alpaca_eval", "judges.mt_bench", "methods", "facts", "rescore", "passport", "worker"]
LIGHT += ["judges.arena_hard", "judges.jury", "judges.pair_ranker", "style_control"]
LIGHT += ["clusters", "judges.reward_model", "stages.score", "stages.audit", "methods.loop", "why"]
LIGHT += ["keep", "devices", "size", "size_table", "token_counts", "shapes", "bundle", "export", "judges.lm_eval", "stages.tasks"]


def _room(path: Path) -> str:
    return path.relative_to(BENCH).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bench"):
            names = [node.module] if node.module != "bench" else [f"bench.{alias.name}" for alias in node.names]
            found |= {name.split(".")[1] for name in names if "." in name}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("bench.")}
    return found


@pytest.mark.parametrize("path", sorted(BENCH.rglob("*.py")), ids=lambda path: str(path.relative_to(BENCH)))
def test_imports_go_one_way(path: Path) -> None:
    room = _room(path)
    if room == "__init__":
        return
    above = {name for name in _imports(path) if name != room and RANK[name] > RANK[room]}
    assert not above, f"{path.relative_to(ROOT)} stands below {', '.join(sorted(above))} and must not import it"


def test_no_method_judge_or_stage_imports_another() -> None:
    """Shared parts have files of their own (methods/training.py, unpaired.py); `none` aside, a method's file is whole."""
    shared = {"training", "unpaired", "loop", "checkpoints", "evaluations", "processes", "__init__"}
    shared |= {"asking", "client", "in_process", "items", "journal", "pairs", "prices", "prompts", "replies", "server"}  # of asked judges
    shared |= {"chat_completion", "thinking"}
    for room in ("methods", "judges", "stages"):
        names = {path.stem for path in (BENCH / room).glob("*.py")} - shared
        for path in (BENCH / room).glob("*.py"):
            text = path.read_text()
            words = {name: rf"from bench\.{room}\.{name} import|from bench\.{room} import .*\b{name}\b" for name in names - {path.stem}}
            sideways = {name for name, pattern in words.items() if re.search(pattern, text)}
            assert not sideways, f"{path.relative_to(ROOT)} imports {sideways}"


# Functions of these names that open no text, or take UTF-8 alone.
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
    code = f"import sys; {'; '.join(f'import bench.{name}' for name in LIGHT)}; print(sorted({HEAVY!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("command", [["ruff", "check", "bench", "tests"], ["mypy"]], ids=lambda command: command[0])
def test_linter_and_type_checker_are_clean(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = [line.strip() for line in (ROOT / "README.md").read_text().splitlines() if ".venv/bin/python -m pytest" in line]
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text().splitlines()
