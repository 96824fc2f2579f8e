"""READMEs: the first one is short, links resolve, commands compose, and tables are those of the code and of the results."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from published import shp

from bench.cli.compose import BadConfig, open_command
from bench.config import name_of
from bench.conformance.table import METHODS, facts_of

ROOT = Path(__file__).parent.parent
ROOMS = ("conf", "sweeps", "results", "bench/judges", "bench/methods", "bench/runner", "tests")
READMES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / room / "README.md" for room in ROOMS)]
FILES = "FILE|COPY|PROMPTS|ITEMS|QUESTIONS|REFERENCES|ARENA|BASELINE|JUDGEMENTS|OUTPUTS|CALIBRATION|MT_BENCH"
PLACEHOLDER = re.compile(rf"\b(DIR|NAME|KEY|NEW|BUNDLE|OUT|{FILES})\b")


def command_lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("    ") and "python -m bench" in line:
            yield line.strip()


def words_of(line: str) -> list[str]:
    """The words of a command for bench: without a comment, and without what another command does before it."""
    words = shlex.split(line, comments=True)
    if inner := [word for word in words if word.startswith("python -m bench ")]:  # sbatch --wrap
        words = shlex.split(inner[0])
    return words[words.index("bench") + 1 :]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


COMMANDS = sorted({line for path in READMES for line in command_lines(path)})


@pytest.fixture
def own(tmp_path: Path, model_folder: Path, pairs_file: Path) -> dict[str, str]:
    """What stands for each placeholder: a word, or a small file of the right kind."""
    completions = [{"prompt": f"Question {k}?", "completion": f"Answer {k}."} for k in range(20)]
    question = {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]}
    answer = {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["A.", "B."]}]}
    text = [{"role": "user", "content": "Write."}, {"role": "assistant", "content": {"answer": "A."}}]
    arena = {
        "uid": "a",
        "category": "hard_prompt",
        "prompt": "Write.",
        "question_id": "a",
        "turns": [{"content": "Write."}],
    }
    baseline = {"uid": "a", "model": "b", "messages": text}
    files = {
        "data.path=FILE": pairs_file,
        "COPY": write_rows(tmp_path / "shp.jsonl", [shp(f"Why {k}?", "So.", "No.") for k in range(20)]),
        "completions=FILE": write_rows(tmp_path / "completions.jsonl", completions),
        "method.ift=FILE": tmp_path / "completions.jsonl",
        "method.eft=FILE": tmp_path / "completions.jsonl",
        "PROMPTS": write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"New {k}?"} for k in range(5000)]),
        "QUESTIONS": write_rows(tmp_path / "question.jsonl", [question]),
        "REFERENCES": write_rows(tmp_path / "reference.jsonl", [answer]),
        "ARENA": write_rows(tmp_path / "arena.jsonl", [arena]),
        "BASELINE": write_rows(tmp_path / "baseline.jsonl", [baseline]),
        "MT_BENCH": write_rows(
            tmp_path / "judgements.jsonl", [{"question_id": 81, "model": "m", "score": 7.0, "turn": 1}]
        ),
    }
    item = {"dataset": "x", "instruction": "Write.", "output": "A.", "generator": "g"}
    for name in ("ITEMS", "OUTPUTS"):
        files[name] = tmp_path / f"{name.lower()}.json"
        files[name].write_text(json.dumps([item]))
    files["CALIBRATION"] = tmp_path / "calibration.csv"
    files["CALIBRATION"].write_text("index,instruction_difficulty\n0,0.5\n")
    (tmp_path / "judged").mkdir()
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    (tmp_path / "mine" / "sweep" / "x.yaml").write_text(
        "# @package _global_\n# Question: one cell?\naxes:\n  method: dpo\n"
    )
    words = {
        "DIR": model_folder,
        "NAME": "name",
        "KEY": "key",
        "JUDGEMENTS": tmp_path / "judged",
        "NEW": tmp_path / "new",
    }
    words |= {"BUNDLE": tmp_path / "b.tar.gz", "OUT": tmp_path / "out"}
    return {key: str(value) for key, value in (files | words).items()}


def filled(word: str, own: dict[str, str]) -> str:
    """A word of a command with its placeholders replaced; `key=PLACEHOLDER` goes before the placeholder alone."""
    if word in own and "=" in word:
        return word.partition("=")[0] + "=" + own[word]
    return PLACEHOLDER.sub(lambda match: own.get(match[0], match[0]), word)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_opens(
    line: str, own: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(tmp_path / "mine") if word == "mine" else filled(word, own) for word in words_of(line)]
    if {"--cfg", "--help"} & set(words):
        return  # Hydra's; tests of the command line print them
    if not any(word.startswith("do=") for word in words):
        words.append(
            "do=status"
        )  # the same checks, but nothing is fetched and no package of an extra is asked for
    monkeypatch.chdir(tmp_path)
    words = [word for word in words if not word.startswith("results=")] + [f"results={tmp_path / 'results'}"]
    try:
        open_command(words)
    except BadConfig as error:
        assert all("could not be fetched from the hub" in problem for problem in error.problems), error


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_of_the_project(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8"))
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT
    )
    known = set(listed.stdout.splitlines())
    for link in links:
        if "://" in link:
            continue
        target = (path.parent / link).resolve()
        assert target.exists(), link
        assert not known or str(target.relative_to(ROOT)) in known or target.is_dir(), f"{link} is not in Git"


def test_the_first_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) < 10_000


def test_the_rows_of_the_first_readme_are_those_of_the_committed_table() -> None:
    def table(text: str) -> list[dict[str, str]]:
        lines = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines()
            if line.startswith("| ")
        ]
        return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (link,) = re.findall(r"\[the whole table\]\(([^)]+)\)", text)
    whole = table((ROOT / link).read_text(encoding="utf-8"))
    shown = table(text)
    assert len(shown) == len(whole) > 1
    for row, full in zip(shown, whole, strict=True):
        assert row.items() <= full.items()


def test_the_tree_of_the_first_readme_names_every_room() -> None:
    named = re.findall(r"^ {6}(\w+)/ ", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M)
    assert sorted(named) == sorted(path.parent.name for path in (ROOT / "bench").glob("*/__init__.py"))


def test_the_table_of_methods_is_that_of_do_conformance() -> None:
    facts = {name_of(kind): facts_of(kind) for kind in METHODS}
    cells = [
        (f"`{name}`", fact.paper, fact.equation, fact.computed_by, fact.elsewhere)
        for name, fact in facts.items()
    ]
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    lines = (ROOT / "bench" / "methods" / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("| `")] == rows


def test_every_sweep_is_in_the_list_of_questions() -> None:
    text = (ROOT / "sweeps" / "README.md").read_text(encoding="utf-8")
    first = re.findall(r"^\| `(\w+)` \|", text, flags=re.M)
    assert sorted(first) == sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))
