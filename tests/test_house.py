"""The house rules that a machine can check: linters, types, which room may import which, what stays light, README and CI agree."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bench import __version__
from bench.config import JUDGES, METHODS, RewardModel, name_of

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "bench"

HEAVY = {
    "torch",
    "transformers",
    "trl",
    "vllm",
    "peft",
    "accelerate",
    "wandb",
    "datasets",
    "submitit",
    "ray",
    "lm_eval",
}
LIGHT = ["config", "text_files", "output_files", "terminal", "secrets", "records", "machine"]
LIGHT_ROOMS = [
    "stats",
    "store",
    "models",
    "tracking",
    "planning",
    "cli",
    "scoring",
    "papers",
    "report",
    "forecast",
    "commands",
    "runner",
]
LIGHT_ROOMS += ["readers", "judges", "methods"]
WITH_TORCH = (
    "__init__",
    "in_process",
    "conformance",
)  # a model of this process, and a command that trains one
LIGHT += [
    "stages.score",
    "stages.audit",
    "stages.tasks",
    "training.devices",
    "training.training_record",
    "engines.lm_eval",
]


def test_the_package_and_its_citation_agree() -> None:
    """Both commands start the same program, and CITATION.cff names the version and licence that are installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == dict.fromkeys(("bench", "bench-align"), "bench.__main__:main")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (__version__, project["license"])
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest[0] == "Unreleased" and __version__ in newest


def test_the_image_installs_as_the_readme_does() -> None:
    """The image's only RUN is the README's install, which CI runs in an empty environment."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    (install,) = [line.removeprefix("RUN ") for line in lines if line.startswith("RUN ")]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"    {install} && .venv/bin/python -m bench +sweep=kto_beta" in readme.splitlines()
    assert 'ENTRYPOINT [".venv/bin/python", "-m", "bench"]' in lines
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "results"} <= set(ignored)


def test_rooms_import_downwards_only() -> None:
    """The contracts in pyproject.toml: layers, independence of methods, judges and stages, no torch in light rooms."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


NAMED = {*METHODS, *JUDGES, name_of(RewardModel)}
# Words for other things too: roles of a stage's inputs, ways to label, the lack of something. Refused where a name is tested.
WORDS = {"none", "completions", "gold", "reward_model"}
ROOMS_OF_NAMES = ("methods", "judges", "config")
OTHER_NAMES = re.compile(r"\b(adapter|model|axis|launcher|engine|tracker)\.name\b")


def names_in(source: str) -> list[str]:
    """Names of methods and judges that stand as text in a module, with their lines. A field's annotation in a record may hold one: it is
    what a stage is keyed by."""
    tree = ast.parse(source)
    keyed = {id(part) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for part in _fields(node)}
    tested = {id(part) for node in ast.walk(tree) if _tests_a_name(node) for part in ast.walk(node)}
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in NAMED
    ]
    refused = [
        node for node in found if id(node) not in keyed and (node.value not in WORDS or id(node) in tested)
    ]
    return [f"{node.value} in line {node.lineno}" for node in refused]


def _fields(record: ast.ClassDef) -> Iterator[ast.AST]:
    for field in record.body:
        if isinstance(field, ast.AnnAssign):
            yield from ast.walk(field)


def _tests_a_name(node: ast.AST) -> bool:
    """Whether it compares something called `name`, of anything but an adapter, a model ..., or matches on it."""
    asked = (
        ast.unparse(node)
        if isinstance(node, ast.Compare)
        else ast.unparse(node.subject)
        if isinstance(node, ast.Match)
        else ""
    )
    return bool(re.search(r"\.name\b|'name'", OTHER_NAMES.sub("", asked)))


@pytest.mark.parametrize("path", sorted(BENCH.rglob("*.py")), ids=lambda path: str(path.relative_to(BENCH)))
def test_no_room_but_their_own_tests_for_a_method_or_judge_by_name(path: Path) -> None:
    """What is true of a method or judge is a fact of its settings class (bench/config/methods.py, judges.py). A test or a table by name
    elsewhere is one more file to find for whoever adds the next, and nothing fails where it is forgotten: the new one is taken for what the
    others are."""
    if path.relative_to(BENCH).parts[0] not in ROOMS_OF_NAMES:
        assert names_in(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "n"),
    [
        ("passes = 2 if method.name == 'kto' else 1", 1),
        ("ONE_DEVICE = {'kto_pair', 'spa'}", 2),
        ("match name:\n    case 'dpo': pass", 1),
        ("untrained = cell.method.name in ('none', 'completions')", 2),
        ("if section.get('name') == 'gold': pass", 1),
        ("match judge.name:\n    case 'gold' | 'none': pass", 2),
        ("trainer = load('best_of_n')", 1),
        ("scorer = Scorer(run.inputs['reward_model'])", 0),  # a role
        ("if 'gold' in inputs: pass", 0),
        ("whole = cell.adapter.name == 'none'", 0),
        ("class S:\n    judge: Literal['pair_ranker'] = 'pair_ranker'", 0),  # what a stage is keyed by
        ("loss_type = 'kto_loss'", 0),
    ],
)
def test_a_name_is_seen_where_it_is_tested_and_no_word_is_taken_for_one(source: str, n: int) -> None:
    assert len(names_in(source)) == n


NO_TEXT = {
    "os.open",
    "gzip.open",
    "tarfile.open",
    "read_text",
    "text_files.read_text",
}


@pytest.mark.parametrize("path", sorted(BENCH.rglob("*.py")), ids=lambda path: str(path.relative_to(BENCH)))
def test_text_files_name_their_encoding(path: Path) -> None:
    """Otherwise the locale decides: a file written on one machine cannot be read on another. Ruff's PLW1514 misses a path whose type
    it cannot infer, which most of ours are."""
    unnamed = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call) and _locale_decides(node)
    ]
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
    rooms = [
        path
        for room in LIGHT_ROOMS
        for path in sorted((BENCH / room).rglob("*.py"))
        if path.stem not in WITH_TORCH
    ]
    names = LIGHT + [".".join(path.relative_to(BENCH).with_suffix("").parts) for path in rooms]
    code = f"import sys; {'; '.join(f'import bench.{name}' for name in names)}; print(sorted({HEAVY!r} & set(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert out.strip() == "[]"


RUFF = pytest.param(["ruff", "check", "bench", "tests"], id="ruff")
DEPTRY = pytest.param(["deptry", "."], id="deptry")
MYPY = pytest.param(["mypy"], id="mypy", marks=[pytest.mark.slow, pytest.mark.essential])


@pytest.mark.parametrize("command", [RUFF, DEPTRY, MYPY])
def test_linter_and_type_checker_are_clean(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = [
        line.strip()
        for line in (ROOT / "README.md").read_text().splitlines()
        if ".venv/bin/python -m pytest" in line
    ]
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_no_class_name_stands_twice() -> None:
    names = [
        node.name
        for path in BENCH.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted({name for name in names if names.count(name) > 1}) == []
