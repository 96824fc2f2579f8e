"""What it takes to add a method, a judge, a reader and a column: these files and no others, in a copy of the project that then runs them.

Where one of them needs a file more, a fact has found its way out of its room.
"""

from __future__ import annotations

import csv
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import CELL, ROOT, make_model, make_reward_model, write_rows


@dataclass(frozen=True)
class Edit:
    """`old`, which a file of the project holds once, and what stands there instead; without `old`, text after the file's last line."""

    new: str
    old: str = ""


@dataclass(frozen=True)
class Addition:
    """Files by path: a text is a new file."""

    files: Mapping[str, str | tuple[Edit, ...]]
    golden: str = ""  # its golden line, which its own procedure writes


METHOD = Addition(
    {
        "bench/methods/squared_hinge.py": '''"""Squared hinge: max(0, 1 - βΔ)², Δ as for DPO."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.methods import one_shot as chain

if TYPE_CHECKING:
    from transformers import Trainer

    from bench.training.trainers import TrainingJob


def make_trainer(job: TrainingJob) -> Trainer:
    from bench.training import losses
    from bench.training.trainers import own_loss_trainer

    settings = job.settings.method
    assert settings.name == "squared_hinge"
    return own_loss_trainer(job, lambda pairs: losses.squared_hinge(pairs, beta=settings.beta))


__all__ = ["chain", "make_trainer"]
''',
        "bench/config/methods.py": (
            Edit(
                '''class SquaredHinge(Training):
    name: Literal["squared_hinge"]
    beta: Positive
    """One over the margin in nats; usual 0.1."""

    def start_loss(self) -> float | None:
        return 1.0


# In the order of tables.
''',
                old="# In the order of tables.\n",
            ),
            Edit(" | OfflinePpo | SquaredHinge\n", old=" | OfflinePpo\n"),
        ),
        "bench/training/losses.py": (
            Edit('''

def squared_hinge(pairs: PairLogps, *, beta: float) -> Tensor:
    """max(0, 1 - βΔ)²"""
    return torch.relu(1 - beta * pairs.delta) ** 2
'''),
        ),
        "bench/conformance/references.py": (
            Edit("    Slic,\n    SquaredHinge,\n    Training,\n)", old="    Slic,\n    Training,\n)"),
            Edit("""

@reference(
    SquaredHinge,
    paper="none",
    equation="max(0, 1 - βΔ)²",
    computed_by=OURS,
    elsewhere="nowhere",
    settings=[{"beta": 0.1}, {"beta": 1.0}],
    golden=0.36,  # (1 - 0.1 x 4)²
    at_first_step=lambda rows, m: 1.0,
)
def squared_hinge(rows: Sequence[Row], m: Any) -> float:
    return mean([max(0.0, 1 - m.beta * row.delta) ** 2 for row in rows])
"""),
        ),
        "conf/method/squared_hinge.yaml": """# Squared hinge.
defaults:
  - /training@_here_
  - _self_
name: squared_hinge
# One over the margin in nats; usual 0.1.
beta: 0.1
# Peak learning rate; usual 3e-7 to 1e-6 for models of 7B, 3e-4 to 1e-3 for the world's models.
learning_rate: ${scale.learning_rate.squared_hinge}
# Learning rate by scale; a scale that is not named takes the rate of the scale it builds on.
rates:
  world: 1e-3
  llm: 5e-7
""",
        "tests/methods/test_squared_hinge.py": """from bench.conformance.checks import Bench
from bench.conformance.table import METHODS, checks_of
from bench.config import SquaredHinge


def test_the_trainer_is_what_the_equation_says() -> None:
    bench = Bench()
    try:
        made = list(checks_of(bench, SquaredHinge))
    finally:
        bench.close()
    assert len(made) >= 6 and [check for check in made if not check.passed] == []
    assert SquaredHinge in METHODS
""",
    },
    golden="method/squared_hinge",
)

JUDGE = Addition(
    {
        "bench/judges/terse_reward.py": '''"""A reward model less a penalty a character, after a logistic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.judges.asked.request import Ask, Progress
from bench.models.tokenize import conversation, row_ids
from bench.records import Completion, Item, Verdict
from bench.store.stage_settings import TerseRewardSettings


@dataclass(frozen=True)
class TerseReward:
    scorer: Any
    penalty: float
    name: str = "terse_reward"
    against_baseline: ClassVar = True

    def judge(self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None) -> Iterator[Verdict]:
        opponents = {completion.id: completion.completions[0] for completion in against or ()}
        by_id = {item.id: item for item in items}
        for completion in completions:
            item, ours, theirs = by_id[completion.id], completion.completions[0], opponents[completion.id]
            margin = self._reward(item, ours) - self._reward(item, theirs)
            preference = 1 / (1 + math.exp(-margin))
            lengths = {"policy_length": len(ours), "baseline_length": len(theirs)}
            yield Verdict(item.id, self.name, category=item.category, preference=preference, **lengths)

    def _reward(self, item: Item, text: str) -> float:
        (reward,) = self.scorer.rewards([row_ids(self.scorer.tokenizer, conversation(item, []), text, None)])
        return float(reward) - self.penalty * len(text)


def make_judge(settings: TerseRewardSettings, inputs: Mapping[str, Path], ask: Ask, progress: Progress) -> TerseReward:
    from bench.engines.reward import Scorer

    return TerseReward(Scorer(inputs["model"], settings.dtype, settings.batch_size), settings.penalty)
''',
        "bench/config/judges.py": (
            Edit(
                '''class TerseRewardJudge(ModelJudge):
    """A reward model less a penalty a character."""

    name: Literal["terse_reward"]
    penalty: float = Field(ge=0)
    """Reward that a character costs."""


ModelledJudge =''',
                old="ModelledJudge =",
            ),
            Edit(" | PairRankerJudge | TerseRewardJudge\n)", old=" | PairRankerJudge\n)"),
        ),
        "bench/store/stage_settings.py": (
            Edit(
                """class TerseRewardSettings(Settings):
    judge: Literal["terse_reward"] = "terse_reward"
    batch_size: Count
    dtype: Dtype
    penalty: float


MEMBER =""",
                old="MEMBER =",
            ),
            Edit(
                "        PairRankerSettings,\n        TerseRewardSettings,\n",
                old="        PairRankerSettings,\n",
            ),
        ),
        "conf/judge/terse_reward.yaml": """# A reward model less a penalty a character.
defaults:
  - reward_model
  - _self_
name: terse_reward
# Reward that a character costs.
penalty: 0.01
""",
        "tests/judges/test_terse_reward.py": """import math

from bench.judges.terse_reward import TerseReward
from bench.records import Completion, Item


class Silent:
    def rewards(self, rows):
        return [0.0 for _ in rows]


def test_of_equal_rewards_the_shorter_text_is_preferred(monkeypatch) -> None:
    monkeypatch.setattr("bench.judges.terse_reward.row_ids", lambda *_: None)
    Silent.tokenizer = None
    item, answer = Item("i", "writing", ["name it"], baseline=["four"]), Completion("i", ["name it"], ["two"], [], [])
    against = [Completion("i", ["name it"], ["four"], [], [])]
    (verdict,) = TerseReward(Silent(), 0.5).judge([item], [answer], against)
    assert math.isclose(verdict.preference, 1 / (1 + math.exp(-0.5)))
""",
    },
    golden="judge/terse_reward",
)

READER = Addition(
    {
        "bench/readers/two_answers.py": '''"""Rows of a question and two answers, the first of which is the better one."""

from __future__ import annotations

from bench.readers.common import Raw, by_row, text, user
from bench.readers.rows import make_pair
from bench.records import Pair

VERSION = 1
COLUMNS = ("question", "first", "second")


def _pair(raw: Raw) -> Pair:
    question, first, second = (text(raw.columns, name) for name in COLUMNS)
    return make_pair(raw.id, [user(question)], first, second)


read = by_row(_pair)
''',
        "bench/config/data.py": (
            Edit(
                """class TwoAnswers(Settings):
    reader: Literal["two_answers"]


Reading = (
""",
                old="Reading = (\n",
            ),
            Edit("    | HalosFeedback\n    | TwoAnswers\n", old="    | HalosFeedback\n"),
        ),
        "conf/data/two_answers.yaml": """# @package _global_
# A question and two answers.
defaults:
  - dataset
  - _self_
data:
  name: two_answers
  reading: {reader: two_answers}
""",
        "tests/readers/test_two_answers.py": """from bench.config import TwoAnswers
from bench.readers import read_dataset
from tiny import write_rows


def test_the_first_answer_is_chosen(tmp_path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"question": "which?", "first": "good", "second": "bad"}])
    (pair,) = read_dataset(path, TwoAnswers(reader="two_answers"), (), ()).train
    assert (pair.chosen, pair.rejected) == ("good", "bad")
""",
    },
)

COLUMN = Addition(
    {
        "bench/report/tables.py": (
            Edit(
                """("length", partial(_number, "mean_length", 1, 1)),
        ("cut off %", partial(_number, "unfinished", 1, 100)),
""",
                old="""("length", partial(_number, "mean_length", 1, 1)),\n""",
            ),
        ),
    }
)

ADDITIONS = {"method": METHOD, "judge": JUDGE, "reader": READER, "column": COLUMN}
FILES = {"method": 7, "judge": 6, "reader": 4, "column": 1}


def paths(addition: Addition) -> set[str]:
    return {*addition.files, *(["tests/golden/choices.json"] if addition.golden else [])}


@pytest.mark.parametrize("what", FILES)
def test_an_addition_is_so_many_files(what: str) -> None:
    assert len(paths(ADDITIONS[what])) == FILES[what]


def test_contributing_says_how_many_files_an_addition_takes() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^- \*\*A (\w+)\*\* \((\d) files?\)", text, flags=re.M))
    assert {what: int(n) for what, n in said.items()} == FILES


@pytest.mark.parametrize("what", FILES)
def test_what_an_addition_edits_is_there_once(what: str) -> None:
    for path, edits in ADDITIONS[what].files.items():
        assert (ROOT / path).exists() != isinstance(edits, str), path
        if not isinstance(edits, str):
            text = (ROOT / path).read_text(encoding="utf-8")
            assert [edit.old for edit in edits if edit.old and text.count(edit.old) != 1] == [], path


# In a copy -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    root: Path

    def run(self, *words: str) -> str:
        """What a command of the copy printed."""
        environ = {**os.environ, "PYTHONPATH": str(self.root), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=self.root, env=environ, timeout=580
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def bench(self, *words: str) -> list[dict[str, str]]:
        """The rows of the table that a command wrote."""
        results = self.root / "results"
        shutil.rmtree(results / "sweeps", ignore_errors=True)
        self.run("-m", "bench", *words, f"results={results}", "tracker=none")
        (table,) = results.glob("sweeps/*/table.csv")
        with table.open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def changed(self) -> set[str]:
        """Files that are not as in the project, or not there."""
        files = [
            path.relative_to(self.root)
            for part in PARTS
            for path in sorted((self.root / part).rglob("*"))
            if path.is_file()
        ]
        kept = [path for path in files if "__pycache__" not in path.parts]
        return {
            str(path)
            for path in kept
            if not (ROOT / path).exists() or not filecmp.cmp(ROOT / path, self.root / path, shallow=False)
        }


PARTS = ("bench", "conf", "sweeps", "tests")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The project with all additions."""
    root = tmp_path_factory.mktemp("copy")
    for part in PARTS:
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for addition in ADDITIONS.values():
        for path, edits in addition.files.items():
            if isinstance(edits, str):
                (root / path).write_text(edits, encoding="utf-8")
                continue
            text = (root / path).read_text(encoding="utf-8")
            for edit in edits:
                text = text.replace(edit.old, edit.new) if edit.old else text + edit.new
            (root / path).write_text(text, encoding="utf-8")
    copy = Copy(root)
    copy.run("tests/planning/test_choices.py")
    return copy


def runs(test):  # type: ignore[no-untyped-def]
    """Marks a test that runs the copy's commands: minutes, which CI takes."""
    return pytest.mark.slow(pytest.mark.essential(test))


@runs
def test_no_other_file_is_touched_and_no_golden_line_moves(copied: Copy) -> None:
    assert copied.changed() == set().union(*map(paths, ADDITIONS.values()))
    ours, theirs = (
        json.loads((root / "tests/golden/choices.json").read_text(encoding="utf-8"))
        for root in (ROOT, copied.root)
    )
    assert {line: theirs[line] for line in ours} == ours
    assert theirs.keys() - ours.keys() == {METHOD.golden, JUDGE.golden}


@runs
def test_the_tests_that_look_at_all_methods_judges_and_readers_pass_with_the_new_ones(copied: Copy) -> None:
    new = [path for addition in ADDITIONS.values() for path in addition.files if path.startswith("tests/")]
    every = [
        "methods/test_methods",
        "config/test_config",
        "planning/test_choices",
        "conformance/test_conformance",
        "test_house",
    ]
    chosen = "squared_hinge or terse_reward or two_answers or test_methods or golden_line or has_a_reference or field_is_read or downwards"
    copied.run("-m", "pytest", "-n", "0", "-q", *new, *(f"tests/{path}.py" for path in every), "-k", chosen)


@runs
def test_a_cell_runs_with_each_and_the_table_has_the_column(copied: Copy, tmp_path: Path) -> None:
    cell = [word for word in CELL if not word.startswith("method")]
    own = ["method=squared_hinge", *cell]
    rows = copied.bench(*own, "judge.preference.n_items=32", "judge.rating.n_items=8")
    assert {row["method"] for row in rows} == {"start", "squared_hinge"}
    assert all(0 <= float(row["win_rate"]) <= 1 for row in rows)
    (table,) = copied.root.glob("results/sweeps/*/table.md")
    assert "cut off %" in table.read_text(encoding="utf-8")
    judged = copied.bench(
        *own,
        "judge=terse_reward",
        f"judge.model={make_reward_model(tmp_path / 'reward')}",
        "judge.n_items=16",
    )
    assert all(0 <= float(row["win_rate"]) <= 1 for row in judged) and len(judged) == 2


@runs
def test_a_cell_is_planned_on_the_new_readers_rows(copied: Copy, tmp_path: Path) -> None:
    rows = [{"question": f"which {i}?", "first": f"good {i}", "second": f"bad {i}"} for i in range(40)]
    data, model = write_rows(tmp_path / "rows.jsonl", rows), make_model(tmp_path / "model")
    words = [
        "data=two_answers",
        f"data.path={data}",
        "data.heldout_fraction=0.25",
        "model=local",
        f"model.path={model}",
    ]
    words += ["method=squared_hinge", "scale=llm", f"results={tmp_path / 'results'}", "tracker=none"]
    out = copied.run("-m", "bench", "do=plan", *words)
    assert "squared_hinge-beta0.1-local-s0" in out
