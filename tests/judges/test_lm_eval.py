"""The forgetting check: how it is asked for, where it stands in a cell's graph and in the table, and that its numbers are those by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny import bench, make_model, make_preferences, plans

from bench.config import Loading
from bench.engines.lm_eval import _answers, _results, by_shots, evaluate, faults
from bench.records import Result, TaskAnswer, TaskResult, read_jsonl, write_jsonl
from bench.report.groups import Group
from bench.report.rows import CellRow
from bench.report.tables import _task_settings, _tasks_notes, tasks
from bench.scoring.numbers import Numbers, _tasks
from bench.store.keys import tree_stamp
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import TaskSettings, needs

QUESTIONS = [
    ("please name one good", ["apple", "lemon", "the river and the garden"], 1),
    ("please name one red", ["plum", "dog", "horse"], 0),
    ("name the good green", ["river", "garden of the dog", "and"], 2),
    ("one blue", ["horse", "a horse is good", "apple"], 0),
    ("please name it", ["dog", "green", "red"], 1),
]
YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 3.0}}
"""


def make_tasks(folder: Path) -> Path:
    folder.mkdir()
    rows = [{"question": question, "choices": choices, "gold": gold} for question, choices, gold in QUESTIONS]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "fruit.yaml").write_text(YAML.format(name="fruit", file="questions.jsonl"))
    (folder / "gone.yaml").write_text(YAML.format(name="gone", file="nowhere.jsonl"))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, pairs, and a folder of tasks."""
    place = tmp_path_factory.mktemp("own")
    make_model(place / "model")
    make_preferences(place / "pairs.jsonl", paired=True, messages=True, n=40)
    make_tasks(place / "tasks")
    return place


def own(place: Path, *words: str) -> tuple[str, ...]:
    data = (
        "data=local",
        f"data.path={place / 'pairs.jsonl'}",
        "data.heldout_fraction=0.25",
        "data.n_kl_prompts=4",
        "data.kl_max_new_tokens=8",
    )
    every = (f"model={place / 'model'}", *data, "method=dpo", "judge=none", *words)
    return tuple(
        {word.partition("=")[0]: word for word in every}.values()
    )  # a later word replaces an earlier one


def asked(place: Path, *words: str) -> tuple[str, ...]:
    return own(
        place,
        "forgetting=lm_eval",
        "forgetting.tasks=[fruit]",
        f"forgetting.include_path={place / 'tasks'}",
        *words,
    )


# Asked for ------------------------------------------------------------------------------------------------------------


def test_shots_stand_behind_a_tasks_name() -> None:
    assert by_shots(["arc_challenge@25", "mmlu@5", "truthfulqa_mc2", "gsm8k@5"]) == {
        25: ["arc_challenge"],
        5: ["mmlu", "gsm8k"],
        None: ["truthfulqa_mc2"],
    }


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_a_run_without_the_package_is_refused_and_a_plan_is_not(
    problems: Callable[..., list[str]], place: Path
) -> None:
    (problem,) = problems(*asked(place))
    assert (
        "forgetting=lm_eval needs lm-evaluation-harness, which is not installed here: pip install" in problem
    )
    assert len(plans(*asked(place, "do=plan"))) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("forgetting.include_path=/nowhere",),
            "forgetting.include_path must be a folder of task files (YAML), got /nowhere",
        ),
        (("forgetting.tasks=[]",), "forgetting.tasks"),
        (("forgetting.tasks=[arc@many]",), "forgetting.tasks"),
        (("forgetting.tasks=[arc@0,gsm8k,arc@25]",), "tasks must name a task once, got arc twice"),
        (("forgetting.limit=0",), "forgetting.limit must be >= 1"),
        (
            ("method=csft",),
            "method=csft needs a control token after every prompt, and lm_eval does not write one",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_run(
    problems: Callable[..., list[str]], place: Path, words: tuple[str, ...], said: str
) -> None:
    found = problems(*asked(place, "do=plan", *words))
    assert any(said in problem for problem in found), found


def test_a_chat_template_is_needed_where_it_is_asked_for(
    problems: Callable[..., list[str]], place: Path, tmp_path: Path
) -> None:
    make_model(tmp_path / "plain", chat_template=False)
    words = [*asked(place, "do=plan", "forgetting.chat_template=true")[1:], f"model={tmp_path / 'plain'}"]
    assert any("has no chat template" in problem for problem in problems(*words))


# The graph ------------------------------------------------------------------------------------------------------------


def test_tasks_are_asked_of_policy_and_start_model_beside_the_judge(place: Path) -> None:
    plain, with_tasks = plans(*own(place, "do=plan")), plans(*asked(place, "do=plan"))
    for before, cell in zip(plain, with_tasks, strict=True):
        stage = cell.roles["tasks"]
        assert (stage.kind, needs(stage)) == ("tasks", "gpu")
        assert cell.score.inputs["tasks"] == stage
        assert set(cell.stages) - set(before.stages) == {stage, cell.score}
        assert stage.inputs["tasks"].path == place / "tasks"  # type: ignore[union-attr]
    start, dpo = with_tasks
    assert start.roles["tasks"].inputs["model"] != dpo.roles["tasks"].inputs["model"] == dpo.roles["train"]


def test_an_adapters_tasks_are_asked_beside_its_base(place: Path) -> None:
    _, dpo = plans(*asked(place, "adapter=lora", "do=plan"))
    assert dpo.roles["tasks"].inputs.keys() == {"model", "base", "tasks"}


@pytest.mark.parametrize("setting", ["tasks=[fruit@2]", "limit=3", "chat_template=true", "batch_size=3"])
def test_what_is_asked_is_in_the_key(place: Path, setting: str) -> None:
    (_, one), (_, other) = (
        plans(*asked(place, "do=plan")),
        plans(*asked(place, "do=plan", f"forgetting.{setting}")),
    )
    assert one.roles["tasks"].key != other.roles["tasks"].key
    assert one.roles["train"].key == other.roles["train"].key


def test_own_tasks_count_by_content(place: Path, tmp_path: Path) -> None:
    def key(folder: Path) -> str:
        return plans(*asked(place, "do=plan", f"forgetting.include_path={folder}"))[1].roles["tasks"].key

    copy = make_tasks(tmp_path / "copy")
    assert key(copy) == key(place / "tasks")
    (copy / "questions.jsonl").write_text("{}\n")
    assert key(copy) != key(place / "tasks")


# Numbers and table ----------------------------------------------------------------------------------------------------


def result(task: str, metric: str, value: float, error: float | None = 0.05, **more: Any) -> TaskResult:
    usual: dict[str, Any] = {
        "n": 100,
        "higher_is_better": True,
        "shots": 5,
        "version": "1.0",
        "harness": "0.4.13",
    }
    usual |= {"asked": "ab", "shown": True}
    return TaskResult(task, metric, value, error, **usual | more)


def test_a_tasks_numbers_are_told_with_their_errors_and_its_parts_are_not(tmp_path: Path) -> None:
    """t at 99 degrees of freedom: 1.98422; 0.5 ± 1.98422 · 0.05. Of 0 or 1 a document, 20 of 100: Wilson's [0.1333, 0.2888]."""
    share = result("arc_easy", "acc", 0.2, (0.2 * 0.8 / 99) ** 0.5)
    rows = [
        result("arc", "acc", 0.5),
        result("arc", "acc_norm", 0.6, None),
        result("arc_part", "acc", 0.1, shown=False),
        share,
    ]
    write_jsonl(tmp_path / "results.jsonl", rows)
    numbers = Numbers()
    _tasks(tmp_path, numbers)
    assert [numbers.metrics[f"tasks/arc_easy/acc_{end}"] for end in ("low", "high")] == pytest.approx(
        [0.1333, 0.2888], abs=1e-4
    )
    assert {name: value for name, value in numbers.metrics.items() if "arc_easy" not in name} == {
        "tasks/arc/acc": 0.5,
        "tasks/arc/acc_n": 100,
        "tasks/arc/acc_se": 0.05,
        "tasks/arc/acc_low": pytest.approx(0.400789, abs=1e-6),
        "tasks/arc/acc_high": pytest.approx(0.599211, abs=1e-6),
        "tasks/arc/acc_norm": 0.6,
        "tasks/arc/acc_norm_n": 100,
    }


def test_a_number_that_is_none_is_missing_and_the_others_stay(tmp_path: Path) -> None:
    """A policy that has come apart: infinite perplexity, log-probs that are no numbers."""
    numbers = {
        "alias": "wiki",
        "sample_len": 9,
        "word_perplexity,none": float("inf"),
        "acc,none": 0.5,
        "acc_stderr,none": float("nan"),
    }
    about = {"results": {"wiki": numbers}, "higher_is_better": {}, "n-shot": {}, "versions": {}}
    rows = list(_results("wiki", about | {"samples": {}, "lm_eval_version": "0.4.13"}, True))
    write_jsonl(tmp_path / "results.jsonl", rows)
    found = Numbers()
    _tasks(tmp_path, found)
    assert found.missing == {"tasks/wiki/word_perplexity": "lm_eval gives no finite number"}
    assert found.metrics == {"tasks/wiki/acc": 0.5, "tasks/wiki/acc_n": 9}
    (told,) = _answers(
        "wiki", [{"doc_id": 0, "filter": "none", "metrics": ["acc", "nll"], "acc": 1.0, "nll": float("nan")}]
    )
    assert told.values == {"acc": 1.0}


def group(place: Path, *rows: TaskResult) -> Group:
    cell = plans(*asked(place, "do=plan"))[1]
    row = CellRow(cell, None, True, {}, {}, tasks=rows)
    return Group("k", 1, "dpo", cell.cell, [row], None, None, False)


def test_a_task_has_one_column_of_its_usual_metric(place: Path) -> None:
    rows = [
        result("arc", "acc", 0.5),
        result("arc", "acc_norm", 0.6),
        result("gsm8k", "exact_match_strict-match", 0.2),
    ]
    rows += [result("mmlu", "acc", 0.4), result("wiki", "word_perplexity", 11.5)]
    assert tasks([group(place, *rows)]) == {
        "arc acc_norm %": "tasks/arc/acc_norm",
        "gsm8k exact_match_strict-match %": "tasks/gsm8k/exact_match_strict-match",
        "mmlu acc %": "tasks/mmlu/acc",
        "wiki word_perplexity": "tasks/wiki/word_perplexity",
    }


def test_cells_that_were_asked_other_documents_are_named(place: Path) -> None:
    same, other = group(place, result("arc", "acc", 0.5)), group(place, result("arc", "acc", 0.4, asked="cd"))
    assert _tasks_notes([*same.done, *same.done]) == [
        "Tasks of lm-evaluation-harness were run too; they do not enter the win rate: arc (5 shots, 100 documents, version 1.0). "
        "Their square brackets are 95 % intervals over seeds (t), or over documents where a row has one seed."
    ]
    unlike = "The task arc was not run alike in all cells: documents, prompts or versions differ."
    assert _tasks_notes([*same.done, *other.done])[1:] == [unlike]


# The package itself ---------------------------------------------------------------------------------------------------

SETTINGS = TaskSettings(
    tasks=("fruit",), limit=None, chat_template=False, batch_size=2, dtype="float32", loading=Loading()
)


def by_hand(model: Any, tokenizer: Any) -> dict[str, float]:
    """Right where the right choice has the largest log-probability after the question and a space; acc_norm: divided by its characters."""
    import torch

    right = {"acc": 0, "acc_norm": 0}
    for question, choices, gold in QUESTIONS:
        found = []
        for choice in choices:
            before, whole = (
                tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (question, f"{question} {choice}")
            )
            with torch.no_grad():
                logps = torch.log_softmax(model(torch.tensor([whole])).logits[0].float(), dim=-1)
            found.append(sum(logps[i - 1, whole[i]].item() for i in range(len(before), len(whole))))
        right["acc"] += found.index(max(found)) == gold
        each = [value / len(choice) for value, choice in zip(found, choices, strict=True)]
        right["acc_norm"] += each.index(max(each)) == gold
    return {name: n / len(QUESTIONS) for name, n in right.items()}


@pytest.mark.slow
def test_the_packages_numbers_are_those_by_hand_with_an_adapter_too(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    import torch

    from bench.config import Adapter
    from bench.engines.adapters import add_adapter, save_model
    from bench.engines.hf import load_model
    from bench.models.tokenize import load_tokenizer
    from bench.stages import tasks as stage

    tokenizer = load_tokenizer(place / "model")
    adapted: Any = load_model(place / "model", "float32")
    add_adapter(adapted, Adapter(name="lora", rank=4, alpha=64.0, dropout=0.0, target_modules=()), 0)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.5)
    save_model(adapted, tokenizer, tmp_path / "adapter" / "model")
    told = {}
    for name, model, inputs in (
        ("whole", load_model(place / "model", "float32"), {"model": place / "model"}),
        ("adapter", adapted, {"model": tmp_path / "adapter", "base": place / "model"}),
    ):
        (out := tmp_path / f"out-{name}").mkdir()
        outcome = stage.run(
            SETTINGS, StageRun({**inputs, "tasks": place / "tasks"}, out, Progress(out / "progress"))
        )
        assert outcome.counts == {"tasks": 1, "documents": 5}
        results = {row.metric: row for row in read_jsonl(out / "results.jsonl", TaskResult)}
        expected = by_hand(model, tokenizer)
        assert {metric: row.value for metric, row in results.items()} == pytest.approx(expected)
        p = expected["acc"]
        assert results["acc"].standard_error == pytest.approx(
            (p * (1 - p) / 4) ** 0.5
        )  # sample variance, n - 1
        assert (results["acc"].n, results["acc"].version, results["acc"].shots, results["acc"].shown) == (
            5,
            "3.0",
            0,
            True,
        )
        answers = list(read_jsonl(out / "answers.jsonl", TaskAnswer))
        assert sum(row.values["acc"] for row in answers) / 5 == pytest.approx(p)
        told[name] = [row.values for row in sorted(answers, key=lambda row: row.document)]
    assert told["whole"] != told["adapter"]


@pytest.mark.slow
def test_examples_and_a_limit_reach_the_package(place: Path) -> None:
    pytest.importorskip("lm_eval")
    from bench.engines.hf import load_model
    from bench.models.tokenize import load_tokenizer

    settings = SETTINGS.model_copy(update={"limit": 3, "chat_template": True})
    model, tokenizer = load_model(place / "model", "float32"), load_tokenizer(place / "model")
    found = evaluate(model, tokenizer, settings, place / "tasks")
    plain = evaluate(model, tokenizer, SETTINGS.model_copy(update={"limit": 3}), place / "tasks")
    assert {row.n for row in found.results} == {3}
    assert found.results[0].asked != plain.results[0].asked  # the template is in the prompt


@pytest.mark.slow
def test_unknown_tasks_and_data_that_are_not_there_are_found_before_anything_runs(place: Path) -> None:
    pytest.importorskip("lm_eval")
    assert faults(["fruit"], place / "tasks") == []
    (gone,) = faults(["fruit", "gone"], place / "tasks")
    assert gone.startswith("task gone (forgetting.tasks) cannot be loaded, FileNotFoundError")
    (unknown,) = faults(["arc_chalenge@25"], None)
    assert "unknown task 'arc_chalenge' (forgetting.tasks); did you mean arc_challenge" in unknown


@pytest.mark.slow
def test_functions_of_tasks_leave_nothing_in_their_folder(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    from bench.engines.hf import load_model
    from bench.models.tokenize import load_tokenizer

    folder = make_tasks(tmp_path / "tasks")
    (folder / "choices.py").write_text("def all_of(doc):\n    return doc['choices']\n")
    (folder / "fruit.yaml").write_text(
        YAML.format(name="fruit", file="questions.jsonl").replace("choices", "!function choices.all_of")
    )
    before = tree_stamp(folder)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    assert faults(["fruit"], folder) == []
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert evaluate(
        load_model(place / "model", "float32"), load_tokenizer(place / "model"), SETTINGS, folder
    ).results
    assert tree_stamp(folder) == before and not sys.dont_write_bytecode


@pytest.mark.slow
def test_a_sweep_asks_the_tasks_beside_its_judge(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    training = ("method.warmup_ratio=0", "adapter=lora", "method.learning_rate=1e-3")
    words = (*training, "judge.n_items=4", "judge.decoding.max_new_tokens=8")
    refused = bench(*asked(place, *words, "forgetting.tasks=[gone]"), results=tmp_path / "results")
    assert (refused.code, "task gone (forgetting.tasks) cannot be loaded" in refused.err) == (2, True)
    ran = bench(*asked(place, *words), results=tmp_path / "results", timeout_s=600)
    assert ran.code == 0, ran.err + ran.out
    table = next((tmp_path / "results" / "sweeps").glob("*/table.md")).read_text()
    assert "fruit acc_norm %" in table
    assert "fruit (0 shots, 5 documents, version 3.0)" in table
    for path in (tmp_path / "results" / "store" / "score").glob("*/result.json"):
        assert 0 <= Result.from_json(json.loads(path.read_text())).metrics["tasks/fruit/acc"] <= 1


def test_a_group_without_a_version_or_shots_says_neither() -> None:
    found = {"results": {"g": {"acc,none": 0.5, "sample_len": 4}}, "lm_eval_version": "0"}
    (result,) = _results(
        "g", found | {name: {} for name in ("higher_is_better", "n-shot", "versions", "samples")}, True
    )
    assert (result.version, result.shots) == (None, None)
    assert _task_settings(result.version, result.shots, result.n) == "4 documents"
    assert _task_settings("1.0", 5, 4) == "5 shots, 4 documents, version 1.0"
