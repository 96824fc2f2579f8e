"""Golden outputs of the stages that need no models: if one moves, its kind's version in stage_settings.VERSIONS must move with it.

Otherwise a store that holds the old output would be read as if it held the new one. `UPDATE_GOLDEN=1 pytest tests/stages/test_digests.py`
writes what is found now. Texts, whole numbers, names and their order are compared by digest, floats by value: the last digits of a sum
depend on the CPU, which decides its order. TOLERANCE, relative to the number or to 1, is far above what that order can move (a sum of
n doubles is right to n * 1e-16 of its largest part; none here has more than 1,000 parts, and a fit that solves with them loses a few
more digits) and far below what another formula moves. It is absolute below 1, because the digits of a difference that is 0 in exact
arithmetic are all of this kind.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny import make_preferences

from bench.config import CATEGORIES, GoldWeights, WorldAnnotator, Writer
from bench.records import Completion, Item, Logps, read_jsonl, read_rows, write_jsonl
from bench.stages import audit, data, judge, label, score
from bench.store import stage_settings
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import (
    AuditSettings,
    CanaryData,
    ChosenData,
    CorpusData,
    DemonstratedData,
    DemonstrationData,
    GoldLabels,
    GoldPreferenceSettings,
    GoldRatingSettings,
    JudgeQuestionData,
    KeptEvaluationData,
    LocalPairData,
    LocalPromptData,
    LoopPairData,
    NewPromptData,
    PairData,
    PromptData,
    PromptRequestData,
    RankedData,
    RankLabels,
    ScoreSettings,
    SelfJudgeSettings,
    SelfLabels,
    TaskFamily,
    TrueEvaluationData,
    WrittenData,
    WrittenPromptData,
)
from bench.world.tasks import Turn
from bench.world.writers import write

GOLDEN = Path(__file__).parent.parent / "golden" / "digests.json"
FAMILY = TaskFamily(categories=CATEGORIES, constraint_counts=(0.2, 0.4, 0.4))
WEIGHTS = GoldWeights(content=0.45, constraints=0.35, conciseness=0.2)
SLOPPY = Writer(error=0.3, missed_constraint=0.6, filler=0.5)
ANNOTATOR = WorldAnnotator(temperature=0.5, length_bias=0.1, flip_rate=0.1)
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Output:
    """What a stage has written: a digest of all but the floats, and the floats in the order of files, rows and sorted names."""

    digest: str
    numbers: list[float]


def _output(folder: Path) -> Output:
    content, numbers = {}, []
    for path in sorted(folder.iterdir()):
        text = path.read_text(encoding="utf-8")
        rows = text.splitlines() if path.suffix == ".jsonl" else [text]
        content[path.name] = [_without_floats(json.loads(row), numbers) for row in rows]
    return Output(hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16], numbers)


def _without_floats(value: Any, numbers: list[float]) -> Any:
    """The value with every float moved to `numbers`; what stands in its place no JSON text holds."""
    if isinstance(value, float):
        numbers.append(value)
        return {"": "float"}
    if isinstance(value, dict):
        return {key: _without_floats(item, numbers) for key, item in sorted(value.items())}
    return [_without_floats(item, numbers) for item in value] if isinstance(value, list) else value


def _same(golden: Output, found: Output) -> bool:
    """Equal digests mean as many floats, in the same places."""
    return golden.digest == found.digest and all(
        math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        for a, b in zip(golden.numbers, found.numbers, strict=True)
    )


class Made:
    """Each stage's output, from the outputs before it; simulated writers stand in for models."""

    def __init__(self, root: Path):
        self.root = root

    def run(self, module: Any, settings: Any, **inputs: Path) -> Path:
        out = self.root / f"{len(list(self.root.iterdir()))}"
        out.mkdir()
        module.run(settings, StageRun(inputs, out, Progress(self.root.parent / "progress")))
        return out

    def prompts(self, split: str, n: int, n_turns: int = 1, reference: Writer | None = None) -> Path:
        settings = PromptData(family=FAMILY, split=split, n=n, n_turns=n_turns, reference=reference, seed=1)  # type: ignore[arg-type]
        return self.run(data, settings)

    def written(self, items: Path, draws: int = 1) -> Path:
        rng = random.Random(1)
        rows = []
        for draw in range(draws):
            for item in read_jsonl(items / "items.jsonl", Item):
                texts = [write(Turn.from_json(task), SLOPPY, rng) for task in item.task or []]
                rows.append(
                    Completion(
                        item.id, item.turns, texts, [len(t.split()) for t in texts], [True] * len(texts), draw
                    )
                )
        out = self.root / f"{len(list(self.root.iterdir()))}"
        out.mkdir()
        write_jsonl(out / "completions.jsonl", rows)
        return out

    def labels(self, split: str) -> Path:
        items = self.prompts(split, 40)
        settings = GoldLabels(gold=WEIGHTS, annotator=ANNOTATOR, seed=1)
        return self.run(label, settings, items=items, completions=self.written(items, draws=2))

    def pairs(self, form: str = "paired") -> Path:
        settings = PairData(form=form, fraction=0.5, seed=1)  # type: ignore[arg-type]
        return self.run(data, settings, train=self.labels("train"), heldout=self.labels("heldout"))

    def ranked(self, labeller: str) -> Path:
        """Of three draws; what `human` prefers are the demonstrations."""
        items = self.run(data, DemonstratedData(family=FAMILY, writer=SLOPPY, after=8, n=24, seed=1))
        settings = RankLabels(labeller=labeller, beta=None, truth=WEIGHTS, seed=1)  # type: ignore[arg-type]
        return self.run(label, settings, items=items, completions=self.written(items, draws=3))

    def by_writer(self, items: Path) -> Path:
        return self.run(data, WrittenData(writer=SLOPPY, draws=2, seed=1), items=items)

    def chosen(self) -> Path:
        items = self.prompts("evaluation", 24)
        gold = GoldLabels(gold=WEIGHTS, annotator=ANNOTATOR, seed=1)
        return self.run(
            data,
            ChosenData(),
            items=items,
            labels=self.run(label, gold, items=items, completions=self.by_writer(items)),
        )

    def canaries(self) -> Path:
        return self.run(data, CanaryData(n=4), items=self.prompts("evaluation", 24, 1, SLOPPY))

    def audit(self) -> Path:
        settings = GoldPreferenceSettings(gold=WEIGHTS, temperature=1.0)
        canaries, verdicts = self.canaries(), self.verdicts(settings, 1)
        lost = self.run(judge, settings, items=canaries, completions=canaries)
        return self.run(
            audit, AuditSettings(n_labelled=8), verdicts=verdicts, gold=verdicts, canary_verdicts=lost
        )

    def rating_audit(self) -> Path:
        settings, items = GoldRatingSettings(gold=WEIGHTS), self.prompts("evaluation", 24, 2, SLOPPY)
        canaries = self.run(
            data, CanaryData(n=4, honest=True), items=items, completions=self.by_writer(items)
        )
        verdicts, lost = (
            self.verdicts(settings, 2),
            self.run(judge, settings, items=canaries, completions=canaries),
        )
        return self.run(
            audit,
            AuditSettings(n_labelled=8, manner="rating"),
            verdicts=verdicts,
            gold=verdicts,
            canary_verdicts=lost,
        )

    def questions(self, items: Path, completions: Path, prompt: str = "criteria") -> Path:
        return self.run(data, JudgeQuestionData(prompt=prompt), items=items, completions=completions)  # type: ignore[arg-type]

    def replies(self, questions: Path, texts: tuple[str, ...]) -> Path:
        """Two of each question, by chance."""
        rng = random.Random(3)
        asked = [(draw, item) for draw in range(2) for item in read_jsonl(questions / "items.jsonl", Item)]
        return self.wrote(
            [Completion(item.id, item.turns, [rng.choice(texts)], [], [], draw) for draw, item in asked]
        )

    def wrote(self, completions: list[Completion]) -> Path:
        out = self.root / f"{len(list(self.root.iterdir()))}"
        out.mkdir()
        write_jsonl(out / "completions.jsonl", completions)
        return out

    def true_evaluations(self) -> Path:
        items = self.prompts("train", 24)
        settings = TrueEvaluationData(prompt="additive", gold=WEIGHTS, fraction=0.5, n=40, seed=1)
        return self.run(
            data,
            settings,
            items=items,
            completions=self.written(items, draws=2),
            answers=self.by_writer(items),
        )

    def kept_evaluations(self) -> Path:
        ranked = self.run(data, RankedData(split="train"), preferences=self.local_pairs())
        questions = self.questions(ranked, ranked, "additive")
        replies = self.replies(questions, ("Score: 1", "Score: 4", "Score: 5", "?"))
        settings = KeptEvaluationData(prompt="additive", n=20, seed=1)
        return self.run(
            data, settings, items=ranked, completions=ranked, questions=questions, replies=replies
        )

    def prompt_requests(self) -> Path:
        ranked = self.run(data, RankedData(split="train"), preferences=self.local_pairs())
        return self.run(data, PromptRequestData(n=4, n_known=3, n_written=1, seed=1), rankings=ranked)

    def written_prompts(self) -> Path:
        ranked = self.run(data, RankedData(split="train"), preferences=self.local_pairs())
        texts = [
            "1. name four green rivers",
            "please name four green rivers",
            "name four green rivers",
            "a dog",
            "tell of one horse",
        ]
        replies = self.wrote([Completion(str(place), [], [text], [], []) for place, text in enumerate(texts)])
        return self.run(data, WrittenPromptData(n=8, similarity=0.7), rankings=ranked, completions=replies)

    def judged(self, module: Any, settings: Any) -> Path:
        items = self.prompts("train", 24)
        completions = self.written(items, draws=3)
        replies = self.replies(self.questions(items, completions), ("1", "1", "0", "?"))
        return self.run(module, settings, items=items, completions=completions, replies=replies)

    def local_pairs(self) -> Path:
        path = make_preferences(self.root.parent / "file.jsonl", paired=True, messages=True)
        return self.run(data, LocalPairData(fraction=0.5, heldout_fraction=0.3, seed=1), file=path)

    def verdicts(self, settings: Any, n_turns: int) -> Path:
        items = self.prompts("evaluation", 24, n_turns, SLOPPY)
        return self.run(judge, settings, items=items, completions=self.written(items))

    def score(self) -> Path:
        pairs = self.pairs()
        rows = read_rows(pairs / "heldout.jsonl")
        rng = random.Random(2)
        inputs = {"preferences": pairs}
        for role in ("reference_logps", "policy_logps"):
            names = [f"heldout/{row.id}/{side}" for row in rows for side in ("chosen", "rejected")]
            inputs[role] = self.root / role
            inputs[role].mkdir()
            write_jsonl(
                inputs[role] / "logps.jsonl", [Logps(name, rng.uniform(-60, -20), 12) for name in names]
            )
        inputs |= {"kl_reference_logps": inputs["reference_logps"], "kl_policy_logps": inputs["policy_logps"]}
        items = self.prompts("evaluation", 24, 1, SLOPPY)
        inputs["preference_completions"] = self.written(items)
        judging = GoldPreferenceSettings(gold=WEIGHTS, temperature=1.0)
        inputs["preference_verdicts"] = self.run(
            judge, judging, items=items, completions=inputs["preference_completions"]
        )
        inputs["rating_verdicts"] = self.verdicts(GoldRatingSettings(gold=WEIGHTS), 2)
        return self.run(score, ScoreSettings(beta=0.1, bootstrap_resamples=500, bootstrap_seed=0), **inputs)


MAKE: dict[str, dict[str, Callable[[Made], Path]]] = {
    "data": {
        "corpus": lambda made: made.run(data, CorpusData(family=FAMILY, n=64, seed=1)),
        "demonstrations": lambda made: made.run(
            data, DemonstrationData(family=FAMILY, writer=SLOPPY, n=64, seed=1)
        ),
        "prompts": lambda made: made.prompts("evaluation", 32, 2, SLOPPY),
        "pairs": lambda made: made.pairs(),
        "unpaired": lambda made: made.pairs("unpaired"),
        "new_prompts": lambda made: made.run(data, NewPromptData(family=FAMILY, after=8, n=16, seed=1)),
        "demonstrated": lambda made: made.run(
            data, DemonstratedData(family=FAMILY, writer=SLOPPY, after=8, n=16, seed=1)
        ),
        "loop_pairs": lambda made: made.run(
            data, LoopPairData(seed=1), **{"00": made.pairs(), "01": made.ranked("shorter")}
        ),
        "ranked": lambda made: made.run(data, RankedData(split="heldout"), preferences=made.local_pairs()),
        "judge_questions": lambda made: made.questions(
            items := made.prompts("train", 8), made.written(items, 2), "pairwise"
        ),
        "true_evaluations": lambda made: made.true_evaluations(),
        "kept_evaluations": lambda made: made.kept_evaluations(),
        "prompt_requests": lambda made: made.prompt_requests(),
        "written_prompts": lambda made: made.written_prompts(),
        "written": lambda made: made.by_writer(made.prompts("evaluation", 32)),
        "chosen": lambda made: made.chosen(),
        "canaries": lambda made: made.canaries(),
        "local": lambda made: made.local_pairs(),
        "local_prompts": lambda made: made.run(data, LocalPromptData(n=8), preferences=made.local_pairs()),
    },
    "label": {
        "gold": lambda made: made.labels("train"),
        "shorter": lambda made: made.ranked("shorter"),
        "random": lambda made: made.ranked("random"),
        "human": lambda made: made.ranked("human"),
        "self": lambda made: made.judged(label, SelfLabels(prompt="criteria", truth=WEIGHTS)),
    },
    "judge": {
        "gold_preference": lambda made: made.verdicts(
            GoldPreferenceSettings(gold=WEIGHTS, temperature=1.0), 1
        ),
        "gold_rating": lambda made: made.verdicts(GoldRatingSettings(gold=WEIGHTS), 2),
    },
    "score": {"cell": lambda made: made.score()},
    "audit": {
        "gold": lambda made: made.audit(),
        "rating": lambda made: made.rating_audit(),
        "self_judge": lambda made: made.judged(audit, SelfJudgeSettings(prompt="criteria", truth=WEIGHTS)),
    },
}


def _read_golden() -> dict[str, dict[str, Output]]:
    if not GOLDEN.exists():
        return {}
    entries = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return {
        entry: {name: Output(digest, numbers) for name, (digest, *numbers) in outputs.items()}
        for entry, outputs in entries.items()
    }


def _write_golden(golden: dict[str, dict[str, Output]]) -> None:
    """One output a line: its digest, then its floats."""
    entries = []
    for entry, outputs in sorted(golden.items()):
        rows = {
            name: json.dumps([one.digest, *(float(f"{number:.12g}") for number in one.numbers)])
            for name, one in outputs.items()
        }
        entries.append(
            f' "{entry}": {{\n' + ",\n".join(f'  "{name}": {row}' for name, row in rows.items()) + "\n }"
        )
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")


@pytest.mark.parametrize("kind", MAKE)
def test_outputs_move_only_with_their_version(kind: str, tmp_path: Path) -> None:
    found = {}
    for name, make in MAKE[kind].items():
        (tmp_path / name / "stages").mkdir(parents=True)
        found[name] = _output(make(Made(tmp_path / name / "stages")))
    golden = _read_golden()
    entry = f"{kind} v{stage_settings.VERSIONS[kind]}"
    if os.environ.get("UPDATE_GOLDEN"):
        _write_golden(
            {name: outputs for name, outputs in golden.items() if name.split()[0] != kind} | {entry: found}
        )
        return
    known = golden.get(entry, {})
    same = {name for name in known.keys() & found.keys() if _same(known[name], found[name])}
    moved = sorted((known.keys() | found.keys()) - same)
    assert not moved, (
        f"the output of {kind} stages has changed ({', '.join(moved)}). If their numbers mean something else now, raise "
        f"VERSIONS[{kind!r}] in store/stage_settings.py, so that nothing old is taken for new; then "
        f"UPDATE_GOLDEN=1 pytest {Path(__file__).name}, and "
        "say in the commit what moved"
    )


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('{"n": 2, "bias": -1.6e-15, "mean": 0.25000000000000006}', True),  # another CPU
        ('{"mean": 0.2500001, "bias": 3.8e-16, "n": 2}', False),
        ('{"mean": 0.25, "bias": 1e-7, "n": 2}', False),
        ('{"mean": 0.25, "bias": null, "n": 2}', False),
        ('{"mean": 0.25, "bias": 0, "n": 2}', False),  # a count where a measurement was
        ('{"mean": 0.25, "bias": 3.8e-16, "n": 3}', False),
        ('{"mean": 0.25, "bias": 3.8e-16}', False),
        ('{"mean": 3.8e-16, "bias": 0.25, "n": 2}', False),
    ],
)
def test_a_golden_output_holds_all_but_the_last_digits(text: str, same: bool, tmp_path: Path) -> None:
    outputs = []
    for name, written in (("golden", '{"mean": 0.25, "bias": 3.8e-16, "n": 2}'), ("found", text)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(written, encoding="utf-8")
        outputs.append(_output(tmp_path / name))
    assert _same(*outputs) == same


def test_outputs_are_the_same_on_another_cpu(tmp_path: Path) -> None:
    """OpenBLAS adds in the order of the CPU that it is told of. Audits and scores hold all sums of ours that it makes."""
    tests = [f"{__file__}::test_outputs_move_only_with_their_version[{kind}]" for kind in ("audit", "score")]
    environment = {name: value for name, value in os.environ.items() if name != "UPDATE_GOLDEN"} | {
        "OPENBLAS_CORETYPE": "Prescott"
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        f"--basetemp={tmp_path / 'there'}",
        *tests,
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=False)
    assert done.returncode == 0, done.stdout
