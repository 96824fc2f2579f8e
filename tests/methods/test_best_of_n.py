"""Best of n end to end with tiny real models: one reward model for every n, choices drawn and scored again by hand, the cell's numbers."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from outer import outer, some_outer
from safetensors.torch import load_file
from tiny import copy_results, make_model, make_preferences, plans, smoke, smoke_cell
from transformers import AutoModelForSequenceClassification

from bench import methods
from bench.config import BestOfN, Training
from bench.engines.hf import TransformersEngine
from bench.engines.reward import Scorer
from bench.forecast.stage_time import token_bound
from bench.models.tokenize import conversation, load_tokenizer, prompt_ids, row_ids
from bench.planning.cells import plan_cell
from bench.planning.inputs import CellPlan, Sources
from bench.planning.to_do import make_plan
from bench.records import Completion, Item, read_jsonl, read_logps, read_rewards, read_rows
from bench.runner.worker import describe, run_stage
from bench.stages import generate as generate_stage
from bench.stages import train as train_stage
from bench.stages.generate import best_of, draw_seed
from bench.store.keys import Source, Stage
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import GenerateSettings
from bench.store.store import Store


def smoke_plan(n: int) -> CellPlan:
    """The smoke sweep's cell by another method."""
    usual = smoke_cell("dpo", 0.1).cell
    training = usual.method.model_dump(include=set(Training.model_fields))
    return plan_cell(
        usual.model_copy(update={"method": BestOfN(name="best_of_n", n=n, **training)}),
        Sources(),
        methods.chain,
    )


def run_missing(cell: CellPlan, store: Store) -> None:
    for stage in make_plan([cell], store).to_do:
        run_stage(describe(stage, store))
        store.invalidate(stage)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What the smoke sweep left, and the cells of n = 2 and 4 on top."""
    found = Store(copy_results(smoke(), tmp_path_factory.mktemp("best_of_n") / "results") / "store")
    for n in (2, 4):
        run_missing(smoke_plan(n), found)
    return found


def completions_of(cell: CellPlan, store: Store, manner: str) -> list[Completion]:
    return list(
        read_jsonl(store.folder(cell.roles[f"{manner}_completions"]) / "completions.jsonl", Completion)
    )


def folders(stage: Stage, store: Store) -> dict[str, Path]:
    return {
        role: store.folder(source) if isinstance(source, Stage) else source.path
        for role, source in stage.inputs.items()
    }


def rerun(module: Any, stage: Stage, store: Store, out: Path) -> Path:
    (out / "out").mkdir(parents=True)
    module.run(stage.settings, StageRun(folders(stage, store), out / "out", Progress(out / "progress")))
    return out / "out"


# The plan -------------------------------------------------------------------------------------------------------------


def test_one_reward_model_of_the_start_model_serves_every_n() -> None:
    two, four, dpo = smoke_plan(2), smoke_plan(4), smoke_cell("dpo", 0.1)
    assert two.roles["train"] == four.roles["train"]
    assert two.roles["train"].inputs == {
        role: dpo.roles["train"].inputs[role] for role in ("model", "preferences")
    }
    for manner in ("preference", "rating"):
        stage = two.roles[f"{manner}_completions"]
        assert stage.inputs["model"] == dpo.roles["train"].inputs["model"]
        assert stage.inputs["reward_model"] == two.roles["train"]
    moved = {s.label for s in two.stages} - {s.label for s in set(two.stages) & set(four.stages)}
    written = {
        f"{manner} {what}" for manner in ("preference", "rating") for what in ("completions", "verdicts")
    }
    assert moved == {*written, "score"}


def test_a_cells_name_tells_n_and_its_tokens_count_every_sample() -> None:
    assert smoke_plan(4).name.startswith("best_of_n-n4-world_smoke-s0-")
    once, four = smoke_cell("start"), smoke_plan(4)
    for role in ("preference_completions", "rating_completions"):
        assert token_bound(four.roles[role]) == 4 * token_bound(once.roles[role])
    assert token_bound(four.roles["train"]) == token_bound(smoke_cell("dpo", 0.1).roles["train"])
    assert token_bound(four.score.inputs["rewards"]) == token_bound(
        smoke_cell("dpo", 0.1).score.inputs["policy_logps"]
    )  # type: ignore[arg-type]


@outer
def test_the_varied_n_is_named_once_in_a_table(store: Store) -> None:
    from bench.report.groups import pool
    from bench.report.rows import Sweep, collect

    pooled = pool(collect(Sweep("s", "", "", [smoke_plan(2), smoke_plan(4)]), store, {}))
    assert pooled.varied == ["method.n"]
    assert [group.name for group in pooled.groups] == ["best_of_n n 2", "best_of_n n 4"]


# Choosing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "chosen"),
    [([0.1, 0.5, 0.3], 1), ([-2.0, -3.0], 0), ([1.0, 2.0, 2.0], 1), ([7.0], 0), ([-9.0, -9.5, -8.5], 2)],
)
def test_the_largest_reward_is_chosen_and_the_first_of_equals(rewards: list[float], chosen: int) -> None:
    assert best_of(rewards) == chosen


def test_draws_have_seeds_of_their_own_of_which_the_first_is_the_usual_one() -> None:
    seeds = {
        draw_seed(seed, turn, draw) for seed in (0, 1, 2**32 - 1) for turn in (0, 1) for draw in range(128)
    }
    assert len(seeds) == 3 * 2 * 128
    assert draw_seed(3, 1, 0) == 301
    assert max(seeds) * 1_000_003 < 2**63  # what torch takes


@pytest.mark.parametrize("manner", some_outer(["preference", "rating"], ["preference"]))
def test_the_answer_is_the_best_of_n_samples_of_the_start_model_turn_by_turn(
    store: Store, manner: str
) -> None:
    """Each turn drawn again after the chosen earlier answer, each sample scored alone."""
    cell = smoke_plan(4)
    stage = cell.roles[f"{manner}_completions"]
    settings, inputs = stage.settings, folders(stage, store)
    assert isinstance(settings, GenerateSettings) and settings.best_of == 4
    engine, scorer = (
        TransformersEngine(inputs["model"], "float32", settings.batch_size),
        Scorer(inputs["reward_model"], "float32", 1),
    )
    items = list(read_jsonl(inputs["items"] / "items.jsonl", Item))
    found, kept = completions_of(cell, store, manner), read_rewards(store.folder(stage))
    assert len(kept) == sum(len(item.turns) for item in items)
    later = 0
    for turn in range(len(items[0].turns)):
        before = [conversation(item, c.completions[:turn]) for item, c in zip(items, found, strict=True)]
        prompts = [prompt_ids(engine.tokenizer, messages) for messages in before]
        draws = [
            engine.generate(prompts, settings.decoding, draw_seed(settings.seed, turn, draw))
            for draw in range(4)
        ]
        for i, (item, completion) in enumerate(zip(items, found, strict=True)):
            rewards = scorer.rewards(
                [row_ids(scorer.tokenizer, before[i], draw[i].text, 192) for draw in draws]
            )
            best = next(draw for draw in range(4) if rewards[draw] > max(rewards) - 1e-6)
            assert completion.completions[turn] == draws[best][i].text
            assert completion.ids[turn] == draws[best][i].ids
            assert kept[f"{item.id}/{turn}"] == pytest.approx(rewards[best], rel=1e-5, abs=1e-5)
            later += best > 0
    assert later > len(items) / 2  # three in four, by chance


def test_a_smaller_n_chooses_among_the_first_samples_of_a_larger_one(store: Store) -> None:
    two, four = (read_rewards(store.folder(smoke_plan(n).roles["preference_completions"])) for n in (2, 4))
    assert all(four[name] > two[name] - 1e-5 for name in two)  # float32 in other batches
    assert sum(four[name] > two[name] + 1e-3 for name in two) > len(two) / 4


def test_what_was_sampled_is_counted_and_only_the_chosen_is_kept(store: Store) -> None:
    cell = smoke_plan(4)
    stage, found = cell.roles["rating_completions"], completions_of(cell, store, "rating")
    counts = store.manifest(stage).counts
    assert counts["rows"] == len(found) == 16
    assert counts["sampled"] == 4 * 2 * 16
    assert counts["tokens"] == sum(sum(c.n_tokens) for c in found) < counts["sampled_tokens"]


# The reward model -----------------------------------------------------------------------------------------------------


def test_the_saved_reward_model_is_whole_and_knows_its_pad_token(store: Store) -> None:
    folder = store.folder(smoke_plan(2).roles["train"]) / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["pad_token_id"] == load_tokenizer(folder).pad_token_id is not None
    weights = load_file(folder / "model.safetensors")
    _, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and weights["score.weight"].shape[0] == 1


def test_training_moves_body_and_head_and_logs_its_accuracy(store: Store) -> None:
    stage = smoke_plan(2).roles["train"]
    before, after = (
        load_file(folder / "model" / "model.safetensors")
        for folder in (folders(stage, store)["model"], store.folder(stage))
    )
    assert all((after[name] - before[name]).abs().max() > 0 for name in before if name in after)
    history = [json.loads(line) for line in (store.folder(stage) / "history.jsonl").read_text().splitlines()]
    assert all(
        {"loss", "rewards/accuracies", "rewards/margins", "mean_reward", "num_tokens"} <= set(row)
        for row in history
    )
    assert all(0 <= row["rewards/accuracies"] <= 1 for row in history)


def test_the_same_seed_gives_the_same_reward_model_and_choices_to_the_byte(
    store: Store, tmp_path: Path
) -> None:
    cell = smoke_plan(2)
    for module, role in ((train_stage, "train"), (generate_stage, "rating_completions")):
        again, stored = (
            rerun(module, cell.roles[role], store, tmp_path / role),
            store.folder(cell.roles[role]),
        )
        names, kept = (
            {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
            for folder in (again, stored)
        )
        assert names == kept - {Path("manifest.json")}
        for name in names - {Path("speed.jsonl")}:
            assert (again / name).read_bytes() == (stored / name).read_bytes(), name


def test_unpaired_rows_fail_the_training_with_a_way_out(store: Store, tmp_path: Path) -> None:
    stage = smoke_plan(2).roles["train"]
    shutil.copytree(folders(stage, store)["preferences"], tmp_path / "unpaired")
    path = tmp_path / "unpaired" / "train.jsonl"
    rows = [
        {"id": r.id, "prompt": r.prompt, "completion": r.chosen, "label": True, "mismatched": "x"}
        for r in read_rows(path)
    ]  # type: ignore[union-attr]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "out").mkdir()
    run = StageRun(
        {**folders(stage, store), "preferences": tmp_path / "unpaired"},
        tmp_path / "out",
        Progress(tmp_path / "progress"),
    )
    with pytest.raises(
        ValueError, match="The data are unpaired, and the reward model of method=best_of_n needs pairs"
    ):
        train_stage.run(stage.settings, run)  # type: ignore[arg-type]


# The numbers ----------------------------------------------------------------------------------------------------------


def test_the_cells_rewards_are_the_reward_models_and_its_log_probs_the_start_models(store: Store) -> None:
    cell = smoke_plan(4)
    result = json.loads((store.folder(cell.score) / "result.json").read_text())
    metrics, missing = result["metrics"], result["missing"]
    rewards = read_rewards(store.folder(cell.score.inputs["rewards"]))  # type: ignore[arg-type]
    rows = read_rows(store.folder(cell.roles["preferences"]) / "heldout.jsonl")
    assert set(rewards) == {f"heldout/{row.id}/{side}" for row in rows for side in ("chosen", "rejected")}
    margins = [rewards[f"heldout/{row.id}/chosen"] - rewards[f"heldout/{row.id}/rejected"] for row in rows]
    assert metrics["reward_margin"] == pytest.approx(statistics.fmean(margins))
    assert metrics["reward_accuracy"] == pytest.approx(statistics.fmean(margin > 0 for margin in margins))
    assert metrics["reward_accuracy_n"] == len(rows)
    best = read_rewards(store.folder(cell.roles["preference_completions"]))
    assert metrics["reward_best"] == pytest.approx(statistics.fmean(best.values()))
    start = read_logps(store.folder(cell.score.inputs["reference_logps"]))  # type: ignore[arg-type]
    assert metrics["logps_chosen"] == pytest.approx(
        statistics.fmean(start[f"heldout/{row.id}/chosen"].logps for row in rows)
    )
    assert not [name for name in metrics if name.startswith("kl")]
    assert f"at most log n - (n-1)/n = {math.log(4) - 3 / 4:.2f} nats" in missing["kl"]


@pytest.mark.parametrize(("messages", "dtype"), [(True, "float32"), (False, "bfloat16")])
def test_a_users_own_model_and_pairs_are_enough(tmp_path: Path, messages: bool, dtype: str) -> None:
    """A tokenizer that pads with its EOS; plain text and messages; nobody judges."""
    folder = make_model(tmp_path / "model", chat_template=messages, dtype=dtype)
    path = make_preferences(tmp_path / "pairs.jsonl", paired=True, messages=messages)
    words = [
        "model=local",
        f"model.path={folder}",
        "data=local",
        f"data.path={path}",
        f"model.dtype={dtype}",
        "model.max_length=64",
    ]
    small = [
        "method.batch_size=4",
        "method.gradient_accumulation_steps=2",
        "judge.n_items=6",
        "judge.decoding.max_new_tokens=8",
    ]
    cell = plans(
        *words,
        *small,
        "method=best_of_n",
        "method.n=3",
        "method.learning_rate=1e-3",
        "data.heldout_fraction=0.3",
    )[-1]
    store = Store(tmp_path / "store")
    run_missing(cell, store)
    metrics = json.loads((store.folder(cell.score) / "result.json").read_text())["metrics"]
    assert 0 <= metrics["reward_accuracy"] <= 1 and math.isfinite(metrics["reward_best"])
    assert store.manifest(cell.roles["plain_completions"]).counts["sampled"] == 18
    assert isinstance(cell.roles["train"].inputs["model"], Source)
