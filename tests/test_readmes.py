"""READMEs: the first one is short, links resolve, commands compose, and tables are those of the code and of the results."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
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
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
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


def table_rows(text: str) -> list[dict[str, str]]:
    """Rows of the first Markdown table of a text, by column."""
    first = itertools.takewhile(
        lambda line: line.startswith("| "),
        itertools.dropwhile(lambda line: not line.startswith("| "), text.splitlines()),
    )
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in first]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_rows_of_the_first_readme_are_those_of_the_committed_table() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (link,) = re.findall(r"\[the whole table\]\(([^)]+)\)", text)
    whole = table_rows((ROOT / link).read_text(encoding="utf-8"))
    shown = table_rows(text)
    assert len(shown) == len(whole) > 1
    for row, full in zip(shown, whole, strict=True):
        assert row.items() <= full.items()


class Committed:
    """The committed results of one sweep. Rows have the numbers of its table, from 1."""

    def __init__(self, name: str):
        (self.folder,) = [
            path
            for path in (ROOT / "results" / "sweeps").iterdir()
            if re.sub("-[0-9a-f]{8}$", "", path.name) == name
        ]
        self.rows = table_rows((self.folder / "table.md").read_text(encoding="utf-8"))
        with (self.folder / "pairs.csv").open(encoding="utf-8", newline="") as file:
            numbers = itertools.combinations(range(1, len(self.rows) + 1), 2)
            self.pairs = dict(zip(numbers, csv.DictReader(file), strict=True))

    def text(self, row: int, column: str) -> str:
        """A cell of the table without its marks."""
        return self.rows[row - 1][column].rstrip(" *≈")

    def value(self, row: int, column: str = "win rate %") -> float:
        return float(self.text(row, column).split()[0])

    def gains(self, row: int) -> bool:
        """Whether the row's difference from its start model is above 0 and significant."""
        return "≈" not in self.rows[row - 1]["vs start"] and self.value(row, "vs start") > 0

    def lead(self, row: int, other: int) -> str:
        """A row's win rate minus another's, in points, with its interval."""
        sign, pair = (1, (row, other)) if row < other else (-1, (other, row))
        value, *ends = (
            100 * sign * float(self.pairs[pair][f"combined_{name}"]) for name in ("value", "low", "high")
        )
        return "{:+.1f} [{:+.1f}, {:+.1f}]".format(value, *sorted(ends))

    def told_apart(self, row: int, other: int) -> bool:
        return float(self.pairs[min(row, other), max(row, other)]["p_holm"]) < 0.05


def first_readme_claims() -> list[str]:
    kto_beta = Committed("kto_beta")
    assert kto_beta.told_apart(8, 9) and not kto_beta.told_apart(4, 6)
    marked = sum("*" in row["win rate %"] for row in kto_beta.rows)
    assert (marked, len(kto_beta.rows)) == (7, 9)
    return [
        f"DPO with beta 0.3 is better than with beta 5: yes, {kto_beta.lead(8, 9)} points",
        f"KTO with beta 0.3 is better than with beta 5: undecided, {kto_beta.lead(4, 6)} points",
        "Seven of the eight trained rows carry it",
    ]


def sweeps_readme_claims() -> list[str]:
    """Every text with a number of a table in "What came out", written from the table."""
    names = ("length_bias", "simpo_table", "halos", "displacement", "imbalance", "spa", "spa_ablation")
    length, simpo, halos, displaced, imbalance, spa, ablation = map(Committed, names)
    fraction, spin, judged = map(Committed, ("spa_seed_fraction", "spin", "self_rewarding"))
    widths = [
        float(high) - float(low)
        for row in imbalance.rows[4:]
        for low, high in re.findall(r"\[(\S+), (\S+)\]", row["vs start"])
    ]
    best = [simpo.value(row, "vs start") for row in (6, 7, 10, 11)]
    labels = [fraction.text(row, "labels").split(" %")[0] for row in (3, 5, 7, 9)]
    ends = [f"{fraction.value(row):.1f}" for row in (3, 5, 7, 9, 2, 4, 6, 8)]
    rates = [f"{judged.value(row):.1f}" for row in (2, 3, 4)]
    right = [f"{judged.value(row, 'judge acc. %'):.0f}" for row in (2, 3, 4)]
    return [
        f"answers of {length.value(2, 'length'):.0f} characters (the start model: {length.value(1, 'length'):.0f})",
        f"({length.text(2, 'vs start')}, p {length.value(2, 'p (Holm)'):.2f} after correction)",
        f"gives {length.text(5, 'vs start')} with the same beta",
        f"KTO, hinge, IPO and SimPO gain {min(best):.1f} to {max(best):.1f} points on the start model",
        f"SFT on the chosen completions {simpo.text(2, 'vs start').removeprefix('+')}",
        f"({halos.text(19, 'vs start')}, not told apart from zero after correction)",
        f"loses {-displaced.value(2, 'vs start'):.1f} points on this one training",
        f"with an SFT term of weight 1 it gains {displaced.value(3, 'vs start'):.1f}",
        f"the intervals are {max(widths):.0f} points wide",
        f"with {spa.text(2, 'labels').split(' (')[0]} of the labels from {spa.value(2):.1f} to {spa.value(4):.1f} % ({spa.lead(4, 2)})",
        f"Random labels end at {spa.value(9):.1f} %, true ones at {spa.value(10):.1f} %",
        f"those of a reward model with fifteen times the labels at {spa.value(12):.1f} %",
        f"reaches {spa.value(15):.1f} %, which cannot be told apart from SPA",
        f"A policy that writes its own judgements ends at {spa.value(14):.1f} %",
        f"Labels by length end at {ablation.value(9):.1f} %",
        f"SPA falls below its start model ({ablation.text(12, 'vs start')})",
        f"with {', '.join(labels[:3])} and {labels[3]} % of the labels SPA's second round ends at "
        f"{', '.join(ends[:3])} and {ends[3]} %, and the policies it starts from at {', '.join(ends[4:7])} and {ends[7]} %",
        f"With {labels[0]} % one seed of three fails, and at {labels[0]} and {labels[3]} % the gain is not told from zero",
        f"from {spin.value(1):.1f} % at the start to {spin.value(2):.1f} % after one iteration",
        f"Further SFT on the same demonstrations ends at {spin.value(9):.1f} %",
        f"M1, M2 and M3 reach {rates[0]}, {rates[1]} and {rates[2]} % (start {judged.value(1):.1f} %)",
        f"With a coin as the judge M3 comes to {judged.value(8):.1f} %",
        f"With the truth as the judge it comes to {judged.value(7):.1f} %",
        f"Its judgements are right on {right[0]}, {right[1]} and {right[2]} % of the held-out pairs",
        f'"the shorter one" is right on {judged.value(2, "shorter acc. %"):.1f} %',
    ]


@pytest.mark.parametrize(
    ("path", "claims", "section"),
    [
        ("README.md", first_readme_claims, r"The sweep file states two expectations.*?\n\n"),
        ("sweeps/README.md", sweeps_readme_claims, r"## What came out.*"),
    ],
)
def test_numbers_in_sentences_are_those_of_the_committed_tables(
    path: str, claims: Callable[[], list[str]], section: str
) -> None:
    """Each claim stands in the README, and no number with decimals stands there outside the claims."""
    text = " ".join((ROOT / path).read_text(encoding="utf-8").split())
    written = claims()
    assert [claim for claim in written if claim not in text] == []
    (rest,) = re.findall(section, (ROOT / path).read_text(encoding="utf-8"), flags=re.S)
    rest = " ".join(rest.split())
    for claim in written:
        rest = rest.replace(claim, "")
    assert re.findall(r"(?<!beta )(?<![\d.])\d+\.\d+", rest) == []


def test_what_came_out_says_what_the_committed_tables_decide() -> None:
    """Gains, and rows that are told apart or not, of the sentences in sweeps/README.md."""
    kto_beta, simpo, halos = map(Committed, ("kto_beta", "simpo_table", "halos"))
    spa, ablation, fraction = map(Committed, ("spa", "spa_ablation", "spa_seed_fraction"))
    spin, judged, imbalance = map(Committed, ("spin", "self_rewarding", "imbalance"))
    length = Committed("length_bias")
    gains = [row for row in range(2, 10) if kto_beta.gains(row)]
    assert gains == [2, 3, 4, 5, 7, 8, 9] and kto_beta.told_apart(8, 9)
    assert not any(kto_beta.told_apart(*pair) for pair in itertools.combinations(range(2, 7), 2))
    assert not length.gains(2) and length.gains(5) and not simpo.gains(3)
    assert all(halos.gains(row) for row in (31, 33, 35, 37, 39, 41)) and not halos.gains(19)
    assert not any(imbalance.told_apart(*pair) for pair in itertools.combinations(range(4, 11), 2))
    assert spa.told_apart(4, 2) and not spa.told_apart(15, 4)
    assert not any(ablation.told_apart(2, row) for row in range(3, 9))
    assert not fraction.told_apart(3, 2) and not fraction.told_apart(9, 8)
    assert not any(spin.told_apart(2, row) for row in (4, 6, 8))
    assert not any(spin.told_apart(9, row) for row in (2, 4, 6, 8)) and not judged.told_apart(7, 4)


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
