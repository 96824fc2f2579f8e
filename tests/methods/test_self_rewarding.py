"""Self-rewarding as plans - who judges, who learns from what, what iterations share - and one tiny real loop, resumed and explained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outer import outer
from tiny import copy_results, smoke, smoke_cell

from bench import methods
from bench.commands import why
from bench.config import Cell, SelfRewarding, SftTraining, Training, Writer
from bench.judges.self_judge import add_up, questions
from bench.planning.cells import plan_cell
from bench.planning.inputs import CellPlan, Sources
from bench.planning.to_do import make_plan
from bench.records import Completion, Item, Labelled, Result, Text, draw_name, read_jsonl, read_rows
from bench.report.csv_rows import flat_rows
from bench.report.rows import Sweep, collect
from bench.runner.cell_folders import write_cell
from bench.runner.worker import describe, run_stage
from bench.store.keys import Source, Stage
from bench.store.stage_settings import SftSettings, TrainSettings
from bench.store.store import Store

GIVEN: dict[str, Any] = {
    "name": "self_rewarding",
    "beta": 0.1,
    "learning_rate": 2e-3,
    "batch_size": 4,
    "warmup_ratio": 0.0,
    "first_training": SftTraining(steps=80, batch_size=32, learning_rate=5e-3),
    "eft": True,
    "n_evaluations": 2000,
    "evaluated": Writer(error=0.4, missed_constraint=0.5, filler=0.4),
    "judge_prompt": "criteria",
    "judgements": 2,
    "judge_temperature": 0.3,
    "judge_max_new_tokens": 4,
    "draws": 4,
    "labeller": "self",
    "learns_from": "pairs",
    "new_prompts": "family",
    "similarity": 0.7,
    "reward_learning_rate": 1e-3,
    "n_prompts": 24,
    "sample_temperature": 1.0,
    "sample_top_p": 1.0,
    "sample_max_new_tokens": 12,
    "pairs": "fresh",
}


def planned(iteration: int, **settings: Any) -> CellPlan:
    usual = smoke_cell("dpo", 0.1).cell
    method = SelfRewarding(
        **usual.method.model_dump(include=set(Training.model_fields))
        | GIVEN
        | {"iteration": iteration}
        | settings
    )
    return plan_cell(
        Cell.model_validate(usual.model_dump() | {"method": method.model_dump()}), Sources(), methods.chain
    )


def labelled(cell: CellPlan) -> dict[str, Stage]:
    return {stage.label: stage for stage in cell.stages}


def source(stage: Stage, role: str) -> Stage:
    found = stage.inputs[role]
    assert isinstance(found, Stage)
    return found


POLICY = "iteration {} policy (self_rewarding)"


# Plans ----------------------------------------------------------------------------------------------------------------


def test_iteration_0_is_the_start_model_and_each_other_a_prefix_of_the_next() -> None:
    cells = [planned(t) for t in range(4)]
    assert cells[0].key == smoke_cell("start").key
    for t in (1, 2):
        assert set(cells[t].roles["train"].walk()) < set(cells[t + 1].roles["train"].walk())


def test_who_judges_and_who_is_whose_reference() -> None:
    """methods.md, section 6.2: M_t judges itself, M_{t+1} starts from it and is held against it."""
    stages = labelled(planned(3))
    start, first = source(stages[POLICY.format(1)], "model"), stages[POLICY.format(1)]
    assert isinstance(first.settings, SftSettings) and set(first.inputs) == {
        "model",
        "demonstrations",
        "evaluations",
    }
    assert start == smoke_cell("start").roles["preference_completions"].inputs["model"]
    for t in (2, 3):
        before, trained = stages[POLICY.format(t - 1)], stages[POLICY.format(t)]
        assert trained.inputs["model"] == source(trained, "reference_logps").inputs["model"] == before
        assert (
            stages[f"iteration {t} samples"].inputs["model"]
            == stages[f"iteration {t}: judgements"].inputs["model"]
            == before
        )
        assert source(trained, "preferences").inputs == {
            "00" if t == 2 else "01": stages[f"iteration {t} labels (self)"]
        }
        assert stages[f"iteration {t} samples"].settings.draws == 4  # type: ignore[attr-defined]
        assert stages[f"iteration {t}: judgements"].settings.draws == 2  # type: ignore[attr-defined]
    assert stages["held-out rankings: judgements"].inputs["model"] == stages[POLICY.format(3)]
    assert stages["held-out samples to rank"].inputs["model"] == start


def test_every_iteration_is_judged_as_a_judge_on_the_same_rankings() -> None:
    asked = [labelled(planned(t))["held-out rankings: questions to the judge"] for t in (1, 2, 3)]
    assert len(set(asked)) == 1


def test_ablations_part_where_they_should() -> None:
    usual, without = labelled(planned(2)), labelled(planned(2, eft=False))
    assert "evaluations" not in without[POLICY.format(1)].inputs
    for labeller, label in (
        ("gold", "gold"),
        ("reward_model", "reward model"),
        ("shorter", "shorter"),
        ("random", "random"),
    ):
        other = labelled(planned(2, labeller=labeller))
        assert other["iteration 2 samples"] == usual["iteration 2 samples"]
        assert f"iteration 2 labels ({label})" in other and "iteration 2: judgements" not in other
    best = labelled(planned(2, learns_from="best"))
    assert best["iteration 2 pairs"] == usual["iteration 2 pairs"]
    training = best[POLICY.format(2)].settings
    assert isinstance(training, TrainSettings) and training.method.name == "sft_chosen"
    assert labelled(planned(2, judge_prompt="multiple_choice"))[POLICY.format(1)] != usual[POLICY.format(1)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("method=self_rewarding", "method.new_prompts=self_instruct"), "use method.new_prompts=family"),
        (("method=self_rewarding", "data.form=unpaired"), "learns from pairs"),
        (("method=self_rewarding", "method.judge_prompt=poem"), "method.judge_prompt must be"),
    ],
)
def test_impossible_settings_are_refused(
    words: tuple[str, ...], said: str, problems: Callable[..., list[str]]
) -> None:
    assert said in "\n".join(problems(*words))


def test_with_a_file_of_pairs_prompts_are_written_and_the_model_judges(
    model_folder: Path, pairs_file: Path, problems: Callable[..., list[str]]
) -> None:
    words = (
        "model=local",
        f"model.path={model_folder}",
        "data=local",
        f"data.path={pairs_file}",
        "method=self_rewarding",
    )
    text = "\n".join(problems(*words, "method.labeller=gold", "method.new_prompts=family"))
    assert "use method.new_prompts=self_instruct" in text and "use another method.labeller" in text
    assert problems(*words) == [], "a pretrained model's scale has prompts written"


# A real one, tiny -----------------------------------------------------------------------------------------------------


def run_missing(stages: list[Stage], store: Store) -> list[Stage]:
    """Run what is not done of the stages, inputs first; which that were."""
    to_do = [stage for stage in stages if store.status(stage).state != "done"]
    for stage in to_do:
        run_stage(describe(stage, store))
        store.invalidate(stage)
    return to_do


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What the smoke sweep left, and M1 and M2 on top."""
    found = Store(copy_results(smoke(), tmp_path_factory.mktemp("self") / "results") / "store")
    run_missing(make_plan([planned(2)], found).to_do, found)
    return found


def test_evaluations_are_about_both_kinds_of_answers_and_true(store: Store) -> None:
    stage = labelled(planned(2))["evaluations by the truth"]
    rows = list(read_jsonl(store.folder(stage) / "rows.jsonl", Text))
    assert 900 < len(rows) < 2000 and {row.id[0] for row in rows} == {"0", "1"}
    assert {row.completion for row in rows} == {"0", "1"}
    assert {tuple(m["role"] for m in row.prompt) for row in rows} == {
        ("assistant", "user"),
        ("user", "assistant", "user"),
    }


def test_labels_are_the_highest_against_the_lowest_sum_of_marks(store: Store) -> None:
    stages = labelled(planned(2))
    label = stages["iteration 2 labels (self)"]
    replies = list(read_jsonl(store.folder(source(label, "replies")) / "completions.jsonl", Completion))
    scores = add_up("criteria", [(r.id, r.draw, r.completions[0]) for r in replies]).scores
    draws: dict[str, dict[str, float]] = {}
    texts: dict[str, str] = {}
    for sample in read_jsonl(store.folder(source(label, "completions")) / "completions.jsonl", Completion):
        draws.setdefault(sample.id, {})[draw_name(sample)] = scores.get(draw_name(sample), -1)
        texts[draw_name(sample)] = sample.completions[0]
    counts = store.manifest(label).counts
    assert (
        counts["rows"] == 24
        and counts["judgements"] == len(replies)
        and 0 <= counts["unparsed"] < len(replies)
    )
    kept = [
        row
        for row in read_jsonl(store.folder(label) / "labels.jsonl", Labelled)
        if row.first_preferred is not None
    ]
    assert kept, "nothing was told apart"
    for row in kept:
        scored = {name: score for name, score in draws[row.id].items() if score >= 0}
        chosen, rejected = (row.first, row.second) if row.first_preferred else (row.second, row.first)
        assert max(scored.values()) in {score for name, score in scored.items() if texts[name] == chosen}
        assert min(scored.values()) in {score for name, score in scored.items() if texts[name] == rejected}
    assert {row.id for row in read_rows(store.folder(stages["iteration 2 pairs"]) / "train.jsonl")} == {
        row.id for row in kept
    }


def test_the_judges_numbers_reach_the_row_and_why_tells_the_rest(store: Store) -> None:
    cell = planned(2)
    result = Result.from_json(json.loads((store.folder(cell.score) / "result.json").read_text()))
    assert 0 < result.metrics["judge_parse_rate"] <= 1
    assert sum(
        value for name, value in result.metrics.items() if name.startswith("judge_share_")
    ) == pytest.approx(1)
    (row,) = [
        row for row in flat_rows(collect(Sweep("s", "", "", [cell]), store, {})) if row["key"] == cell.key
    ]
    for name in (
        "judge_pair_accuracy",
        "judge_spearman",
        "judge_kendall",
        "judge_exact_match",
        "judge_shorter_accuracy",
    ):
        assert row[name] == result.metrics[name]
    write_cell(cell, store, store.root.parent, None)
    lines = list(why.lines(why.lineage(store.root.parent / "cells" / cell.name, store)))
    by = "labelled by the judgements of iteration 1 policy (self_rewarding) (prompt criteria): 24 pairs"
    for words in ("evaluations by the truth (data/", by):
        assert any(words in line for line in lines), "\n".join(lines)
    judged = store.manifest(labelled(cell)["the policy as a judge"]).counts
    told = f"{judged['rankings']} held-out rankings; {judged['judgements']} judgements, {judged['unparsed']} could not be read; "
    assert any(told in line for line in lines), "\n".join(lines)


def test_weights_moved_in_every_round(store: Store) -> None:
    stages = labelled(planned(2))
    names = [store.folder(stages[POLICY.format(t)]) / "model" / "model.safetensors" for t in (1, 2)]
    names.append(store.folder(source(stages[POLICY.format(1)], "model")) / "model" / "model.safetensors")
    assert len({name.read_bytes() for name in names}) == 3


def test_an_iteration_that_was_interrupted_goes_on_to_the_same_bytes(store: Store, tmp_path: Path) -> None:
    cell = planned(2)
    again = Store(Path(shutil.copytree(store.root, tmp_path / "store")))
    lost = [
        stage
        for label, stage in labelled(cell).items()
        if label.startswith("iteration 2") and "prompts" not in label
    ]
    for stage in lost[2:]:  # sampled, and the questions written
        shutil.rmtree(again.folder(stage))
    assert run_missing(list(cell.roles["train"].walk()), again) == lost[2:]
    for stage in lost:
        assert again.manifest(stage).digest == store.manifest(stage).digest


@outer
def test_every_form_of_judging_and_every_labeller_runs(store: Store) -> None:
    for prompt in ("additive", "multiple_choice", "pairwise"):
        stages = labelled(
            planned(
                2,
                judge_prompt=prompt,
                first_training=SftTraining(steps=10, batch_size=32, learning_rate=5e-3),
            )
        )
        run_missing(list(stages["iteration 2 labels (self)"].walk()), store)
        counts = store.manifest(stages["iteration 2 labels (self)"]).counts
        assert counts["rows"] == 24 and counts["judgements"] > 0
    for labeller in ("gold", "reward_model", "shorter"):
        stages = labelled(planned(2, labeller=labeller))
        run_missing(list(stages[f"iteration 2 labels ({labeller.replace('_', ' ')})"].walk()), store)


# A model and a file of the user's own ---------------------------------------------------------------------------------


def taught(folder: Path, start: Path) -> Path:
    """The tiny model, taught to end all that it says in `Score: n`: a stand-in for one that follows the additive prompt."""
    import torch

    from bench.engines.hf import load_model
    from bench.models.tokenize import load_tokenizer, row_ids

    tokenizer, model = load_tokenizer(start), load_model(start, "float32").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    item = Item("i", None, ["please name one dog"])
    asked = [
        questions("additive", item, [Completion("i", [], [text], [], [])])[0].messages
        for text in ("the dog", "a horse")
    ]
    prompts = [*asked, [{"role": "user", "content": "please name"}]]
    said = [
        row_ids(tokenizer, prompt, f"the dog is good. Score: {n}", None)
        for prompt in prompts
        for n in (1, 2, 3, 4)
    ]
    torch.manual_seed(0)
    for _ in range(30):
        loss = sum(
            model(
                input_ids=torch.tensor([r.prompt + r.completion]),
                labels=torch.tensor([[-100] * len(r.prompt) + r.completion]),
            ).loss
            for r in said
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@outer
def test_a_users_model_judges_its_pairs_and_writes_prompts(tmp_path: Path) -> None:
    from tiny import make_model, make_preferences

    from bench.cli.compose import open_command

    model = taught(tmp_path / "model", make_model(tmp_path / "start", max_positions=1024))
    pairs = make_preferences(tmp_path / "pairs.jsonl", paired=True, messages=True, n=24)
    opened = open_command(
        (
            "method=self_rewarding",
            "method.iteration=2",
            "method.new_prompts=self_instruct",
            "method.n_prompts=6",
            "method.similarity=1.0",
            "method.first_training={steps: 2, batch_size: 4, learning_rate: 1e-5}",
            "method.sample_max_new_tokens=8",
            "method.judge_max_new_tokens=24",
            "model=local",
            f"model.path={model}",
            "data=local",
            f"data.path={pairs}",
            "data.heldout_fraction=0.25",
            "tracker=none",
        )
    )
    cell = plan_cell(opened.cells[0], opened.sources[0], methods.chain)
    stages = labelled(cell)
    store = Store(tmp_path / "store")
    wanted = [*stages["iteration 2 labels (self)"].walk(), *stages["iteration 2 prompts"].walk()]
    run_missing([stage for stage in cell.stages if stage in wanted], store)
    kept = list(
        read_jsonl(store.folder(stages["evaluations that agree with the pairs"]) / "rows.jsonl", Text)
    )
    assert kept and all("Score: " in row.completion for row in kept)
    assert all("Judge the answer by adding up points" in row.prompt[-1]["content"] for row in kept)
    written = list(read_jsonl(store.folder(stages["iteration 2 prompts"]) / "items.jsonl", Item))
    assert written and all(item.task is None for item in written)
    counts = store.manifest(stages["iteration 2 labels (self)"]).counts
    assert (
        counts["rows"] == len(written)
        and counts["with_truth"] == 0
        and counts["unparsed"] < counts["judgements"]
    )
    assert isinstance(stages["SFT baseline"].inputs["model"], Source)
