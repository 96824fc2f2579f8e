"""What the stages with models left in a real run: shapes and agreement; bytes differ between machines."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import make_model, smoke, smoke_cell, smoke_cells, smoke_folder

from bench.models.tokenize import PromptTooLong, load_tokenizer
from bench.planning.inputs import CellPlan
from bench.records import (
    POSITIONS_PASSED,
    Completion,
    Item,
    Pair,
    read_jsonl,
    read_logps,
    read_rows,
    write_jsonl,
)
from bench.stages import logps as logps_stage
from bench.store.keys import Stage
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import GenerateSettings, SampleSettings


def stage_of(cell: CellPlan, kind: str, label: str) -> Stage:
    return next(stage for stage in cell.stages if stage.kind == kind and label in stage.label)


@pytest.fixture(scope="module")
def cell() -> CellPlan:
    return smoke_cell("dpo", 0.1)


def test_every_prompt_has_two_samples_of_the_start_model(cell: CellPlan) -> None:
    stage = stage_of(cell, "sample", "train")
    assert isinstance(stage.settings, SampleSettings)
    items = list(read_jsonl(smoke_folder(stage.inputs["items"]) / "items.jsonl", Item))  # type: ignore[arg-type]
    completions = list(read_jsonl(smoke_folder(stage) / "completions.jsonl", Completion))
    assert Counter(c.id for c in completions) == {item.id: 2 for item in items}
    assert Counter(c.draw for c in completions) == {0: len(items), 1: len(items)}
    limit = stage.settings.decoding.max_new_tokens
    assert all(1 <= c.n_tokens[0] <= limit and (c.finished[0] or c.n_tokens[0] == limit) for c in completions)
    by_draw = [[c.completions[0] for c in completions if c.draw == draw] for draw in (0, 1)]
    assert sum(a != b for a, b in zip(*by_draw, strict=True)) > len(items) / 2


def test_two_turns_are_answered_one_after_the_other(cell: CellPlan) -> None:
    stage = cell.roles["rating_completions"]
    assert isinstance(stage.settings, GenerateSettings)
    completions = list(read_jsonl(smoke_folder(stage) / "completions.jsonl", Completion))
    assert len(completions) == 16
    tokenizer = load_tokenizer(smoke_folder(stage.inputs["model"]))  # type: ignore[arg-type]
    for completion in completions:
        assert len(completion.turns) == len(completion.completions) == len(completion.ids) == 2
        for text, ids, n in zip(completion.completions, completion.ids, completion.n_tokens, strict=True):
            assert len(ids) == n
            assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_log_probs_cover_exactly_the_rows_that_are_read(cell: CellPlan) -> None:
    """The reference looks at train and held-out rows with partners, the policy at held-out completions alone."""
    preferences = smoke_folder(cell.roles["preferences"])
    rows = {split: read_rows(preferences / f"{split}.jsonl") for split in ("train", "heldout")}
    columns = ("chosen", "rejected", "mismatched_chosen", "mismatched_rejected")
    reference = read_logps(smoke_folder(cell.score.inputs["reference_logps"]))  # type: ignore[arg-type]
    assert set(reference) == {
        f"{split}/{row.id}/{column}" for split in rows for row in rows[split] for column in columns
    }
    policy = read_logps(smoke_folder(cell.score.inputs["policy_logps"]))  # type: ignore[arg-type]
    assert set(policy) == {f"heldout/{row.id}/{column}" for row in rows["heldout"] for column in columns[:2]}
    assert all(value.logps < 0 and value.n_tokens > 0 for value in {**reference, **policy}.values())
    assert all(reference[name].n_tokens == policy[name].n_tokens for name in policy)


def test_kl_samples_are_scored_token_by_token_as_they_were_drawn(cell: CellPlan) -> None:
    drawn = {
        c.id: c
        for c in read_jsonl(smoke_folder(stage_of(cell, "generate", "KL")) / "completions.jsonl", Completion)
    }
    for role in ("kl_policy_logps", "kl_reference_logps"):
        scored = read_logps(smoke_folder(cell.score.inputs[role]))  # type: ignore[arg-type]
        assert {name: value.n_tokens for name, value in scored.items()} == {
            name: c.n_tokens[0] for name, c in drawn.items()
        }


def test_every_training_moved_its_weights_and_left_a_model_that_loads(cell: CellPlan) -> None:
    for method in ("dpo", "ipo", "kto"):
        train = smoke_cell(method, 0.1).roles["train"]
        before, after = (
            load_file(smoke_folder(s) / "model" / "model.safetensors") for s in (train.inputs["model"], train)
        )  # type: ignore[arg-type]
        assert set(before) == set(after)
        assert all((after[name] - before[name]).abs().max() > 0 for name in after)
        assert not (smoke_folder(train) / "trainer").exists()


def test_no_result_holds_a_number_that_is_none() -> None:
    for cell in smoke_cells():
        text = (smoke_folder(cell.score) / "result.json").read_text()
        assert "NaN" not in text
        assert "Infinity" not in text
        found = json.loads(text)
        assert all(isinstance(value, (int, float)) for value in found["metrics"].values())
        assert not set(found["metrics"]) & set(found["missing"])
        assert all(found["missing"].values())


def test_stages_say_what_they_counted() -> None:
    store = smoke().store
    for stage in {stage for cell in smoke_cells() for stage in cell.stages}:
        manifest = store.manifest(stage)
        assert manifest.counts
        assert all(isinstance(count, int) and count >= 0 for count in manifest.counts.values())
        assert manifest.recorded["threads"] == 1
        if stage.kind in ("sample", "generate", "logps", "train"):
            assert manifest.counts["tokens"] > 0


def test_rows_whose_prompt_is_too_long_are_counted_and_named(cell: CellPlan, tmp_path: Path) -> None:
    stage = stage_of(cell, "logps", "held-out")
    inputs = {role: smoke_folder(source) for role, source in stage.inputs.items()}  # type: ignore[arg-type]
    shutil.copytree(inputs["preferences"], tmp_path / "rows")
    path = tmp_path / "rows" / "heldout.jsonl"
    rows = [row.to_json() for row in read_jsonl(path, Pair)]
    for i in (3, 5):
        rows[i]["prompt"] = [{"role": "user", "content": "Paris " * 400}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "out").mkdir()
    run = StageRun(
        {**inputs, "preferences": tmp_path / "rows"}, tmp_path / "out", Progress(tmp_path / "progress")
    )
    with pytest.raises(
        PromptTooLong,
        match=rf"2 rows have .* raise model\.max_length\. First: heldout row {rows[3]['id']}: a prompt of",
    ):
        logps_stage.run(stage.settings, run)  # type: ignore[arg-type]


def test_categories_have_temperatures_of_their_own() -> None:
    """MT-Bench answers writing warmly and maths greedily; what is not named takes that of the decoding."""
    from bench.config import Decoding
    from bench.stages.generate import _by_temperature
    from bench.store.stage_settings import GenerateSettings

    decoding = Decoding(temperature=0.7, top_p=1.0, max_new_tokens=8)
    settings = GenerateSettings(
        engine="transformers",
        decoding=decoding,
        batch_size=4,
        dtype="float32",
        seed=0,
        temperatures={"math": 0.0, "stem": 0.1},
    )
    items = [
        Item(str(i), category, ["one", "two"][: 1 + i % 2])
        for i, category in enumerate(["math", "writing", "math", "stem", None])
    ]
    assert _by_temperature(settings, items, 0) == {0.0: [0, 2], 0.7: [1, 4], 0.1: [3]}
    assert _by_temperature(settings, items, 1) == {0.7: [1], 0.1: [3]}


def test_turns_beyond_a_models_positions_are_counted(tmp_path: Path) -> None:
    """A Llama with 45 positions writes on beyond them, after a prompt of 40 tokens."""
    from bench.config import Decoding
    from bench.stages import generate

    write_jsonl(
        tmp_path / "items.jsonl",
        [Item("0", None, ["One, two, three, four, five, six?"]), Item("1", None, ["?"])],
    )
    counts = {}
    for places in (45, 256):
        model = make_model(tmp_path / str(places), max_positions=places)
        out = tmp_path / f"out{places}"
        out.mkdir()
        inputs = {"model": model, "items": tmp_path}
        settings = GenerateSettings(
            engine="transformers",
            decoding=Decoding(temperature=1.0, top_p=1.0, max_new_tokens=12),
            batch_size=2,
            dtype="float32",
            seed=0,
        )
        counts[places] = generate.run(settings, StageRun(inputs, out, Progress(tmp_path / "progress"))).counts
    assert counts[45][POSITIONS_PASSED] == 1 and POSITIONS_PASSED not in counts[256]
