"""What trainings share: the order of rows, the checks, bfloat16, what is left behind."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from outer import some_outer
from safetensors.torch import load_file
from tiny import smoke_cell, smoke_folder
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import TrainingArguments
from transformers.models.llama.modeling_llama import LlamaMLP

from bench.config import Adapter, RewardModel, SftEpochs, by_name
from bench.conformance.checks import KINDS, TRAINING
from bench.conformance.checks import method as conformance_method
from bench.conformance.references import REFERENCES
from bench.engines.adapters import check_finite
from bench.engines.hf import TransformersEngine, load_model
from bench.models.model_size import checkpoints
from bench.models.tokenize import Ids
from bench.records import read_rows
from bench.runner import worker
from bench.stages import logps as logps_stage
from bench.stages import sft as sft_stage
from bench.stages import train as train_stage
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import ConversationSft, LogpsSettings, RewardModelSettings, TrainSettings
from bench.training.trainers import (
    LengthBatches,
    Recorder,
    check_weights,
    common_arguments,
    fingerprint,
    on_one_gpu,
)

# Order ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size"), [(1, 4), (4, 4), (100, 8), (1000, 32), (37, 100)])
def test_an_epoch_visits_every_row_once(n: int, size: int) -> None:
    order = LengthBatches([(7 * i) % 50 for i in range(n)], size, seed=0)
    assert len(order) == n
    for epoch in range(3):
        order.set_epoch(epoch)
        assert sorted(order) == list(range(n))


def test_epochs_and_seeds_have_orders_of_their_own_that_repeat() -> None:
    lengths = [i % 40 for i in range(400)]

    def order(seed: int, epoch: int) -> list[int]:
        batches = LengthBatches(lengths, 16, seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_batches_hold_rows_of_like_length_and_come_in_random_order() -> None:
    """Padding of random batches of 16 with lengths 0-99 would be about 47 a row."""
    lengths = [(37 * i) % 100 for i in range(1600)]
    rows = list(LengthBatches(lengths, 16, seed=0))
    batches = [[lengths[row] for row in rows[i : i + 16]] for i in range(0, 1600, 16)]
    assert sum(max(batch) * len(batch) - sum(batch) for batch in batches) / 1600 < 5
    longest = [max(batch) for batch in batches]
    assert longest != sorted(longest)
    assert sum(a < b for a, b in itertools.pairwise(longest)) > 30


def test_only_the_last_batch_is_short() -> None:
    rows = list(LengthBatches([5] * 90 + [50] * 10, 32, seed=3))
    assert Counter(len(rows[i : i + 32]) for i in range(0, 100, 32)) == {32: 3, 4: 1}


# Checks ---------------------------------------------------------------------------------------------------------------


def test_a_number_that_is_not_finite_stops_a_training_at_once(tmp_path: Path) -> None:
    recorder = Recorder(Progress(tmp_path / "progress"))
    state = SimpleNamespace(global_step=3, max_steps=40)
    recorder.on_log(None, state, None, {"loss": 0.7, "num_tokens": 10.0})
    with pytest.raises(
        FloatingPointError,
        match=r"the training diverged: grad_norm was nan at step 3 of 40. Lower the learning rate",
    ):
        recorder.on_log(None, state, None, {"loss": 0.7, "grad_norm": float("nan")})
    recorder.on_log(None, state, None, {"train_runtime": 1.0})  # the summary of a training is no step
    assert len(recorder.history) == 1


def test_a_trainer_that_counts_no_tokens_has_no_tokens_a_second(tmp_path: Path) -> None:
    recorder = Recorder(Progress(tmp_path / "progress"))
    for step, counted in enumerate(({"num_tokens": 10.0}, {}, {"num_tokens": 30.0}), 1):
        recorder.on_log(None, SimpleNamespace(global_step=step, max_steps=3), None, {"loss": 0.7, **counted})
    assert ["tokens_per_second" in row for row in recorder.speed] == [True, False, True]
    assert recorder.speed[2]["tokens_per_second"] * recorder.speed[2]["seconds"] == pytest.approx(20)
    assert all(row["seconds"] > 0 for row in recorder.speed)


def test_weights_that_did_not_move_or_are_not_finite_are_failures() -> None:
    model: Any = torch.nn.Linear(3, 2)
    before = fingerprint(model)
    with pytest.raises(RuntimeError, match="the training changed no weight"):
        check_weights(model, before)
    with torch.no_grad():
        model.bias[0] += 1e-6
    check_weights(model, before)
    with torch.no_grad():
        model.weight[0, 0] = float("inf")
        model.weight[0, 1] = float("-inf")
    with pytest.raises(
        FloatingPointError,
        match=r"not finite \(weight holds 0 NaN and 2 infinite values of 6\). Lower the learning rate",
    ):
        check_weights(model, before)
    with torch.no_grad():
        model.bias[1] = float("nan")
    with pytest.raises(
        FloatingPointError, match=r"weight holds .* of 6, and 1 more of 2 tensors have such values"
    ):
        check_finite(model.state_dict())
    check_finite({"ids": torch.tensor([1, 2])})


# The stage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stage_run(tmp_path: Path) -> StageRun:
    train = smoke_cell("dpo", 0.1).roles["train"]
    (tmp_path / "out").mkdir()
    inputs = {role: smoke_folder(stage) for role, stage in train.inputs.items()}  # type: ignore[arg-type]
    return StageRun(inputs, tmp_path / "out", Progress(tmp_path / "progress"))


def settings(dtype: str = "float32", **method: Any) -> TrainSettings:
    usual: TrainSettings = smoke_cell("dpo", 0.1).roles["train"].settings  # type: ignore[assignment]
    return usual.model_copy(update={"dtype": dtype, "method": usual.method.model_copy(update=method)})


@pytest.mark.parametrize(("rate", "error"), [(1e30, FloatingPointError), (1e-30, RuntimeError)])
def test_a_training_that_diverges_or_goes_nowhere_has_no_result(
    stage_run: StageRun, rate: float, error: type[Exception]
) -> None:
    with pytest.raises(error):
        train_stage.run(settings(learning_rate=rate), stage_run)
    assert not (stage_run.out / "model").exists()


def test_a_training_that_is_all_warm_up_is_refused_with_a_way_out(stage_run: StageRun) -> None:
    """117 rows in one step: the first step's learning rate is 0."""
    with pytest.raises(
        ValueError,
        match=r"all 1 training steps were warm-up, .*\. Use more rows or epochs, make steps smaller",
    ):
        train_stage.run(settings(batch_size=200), stage_run)
    train_stage.run(settings(batch_size=200, warmup_ratio=0.0), stage_run)


def test_the_same_training_twice_gives_the_same_bytes(stage_run: StageRun) -> None:
    stored = smoke_folder(smoke_cell("dpo", 0.1).roles["train"])
    train_stage.run(settings(), stage_run)
    names = sorted(
        str(path.relative_to(stage_run.out)) for path in stage_run.out.rglob("*") if path.is_file()
    )
    assert names == sorted(
        str(path.relative_to(stored))
        for path in stored.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    )
    for name in names:
        if name != "speed.jsonl":
            assert (stage_run.out / name).read_bytes() == (stored / name).read_bytes()


def test_bfloat16_trains_float32_weights_and_stores_bfloat16(stage_run: StageRun, tmp_path: Path) -> None:
    """Reference log-probs of the same dtype make the first loss ln 2; updates far below a bfloat16 step still add up."""
    own = tmp_path / "own"
    own.mkdir()
    reference = LogpsSettings(
        rows="preferences",
        splits=("train",),
        mismatched=True,
        max_length=192,
        batch_size=32,
        dtype="bfloat16",
    )
    logps_stage.run(reference, StageRun(stage_run.inputs, own, Progress(tmp_path / "progress2")))
    run = StageRun({**stage_run.inputs, "reference_logps": own}, stage_run.out, stage_run.progress)
    rate = 2e-5  # a weight of 0.2 in bfloat16 moves by steps of 1e-3
    train_stage.run(settings("bfloat16", learning_rate=rate, batch_size=8, warmup_ratio=0.0), run)
    history = [json.loads(line) for line in (run.out / "history.jsonl").read_text().splitlines()]
    assert history[0]["loss"] == pytest.approx(0.693147, abs=2e-3)
    assert abs(history[0]["rewards/margins"]) < 5e-3
    after = load_file(run.out / "model" / "model.safetensors")
    before = load_file(run.inputs["model"] / "model" / "model.safetensors")
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    moved = [
        (after[name] != before[name].bfloat16()).float().mean().item() for name in after if "proj" in name
    ]
    assert min(moved) > 0.05


def test_a_policy_can_be_trained_again_and_written_from(stage_run: StageRun, tmp_path: Path) -> None:
    """What a training saves is a start model like any other."""
    stored = smoke_folder(smoke_cell("dpo", 0.1).roles["train"])
    run = StageRun({**stage_run.inputs, "model": stored}, stage_run.out, stage_run.progress)
    train_stage.run(settings(), run)
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (stored, run.out))
    assert all(not torch.equal(a[name], b[name]) for name in a if "proj" in name)


def test_unpaired_rows_fail_the_stage_with_a_way_out(stage_run: StageRun, tmp_path: Path) -> None:
    shutil.copytree(stage_run.inputs["preferences"], tmp_path / "unpaired")
    rows = read_rows(tmp_path / "unpaired" / "train.jsonl")
    unpaired = [
        {"id": row.id, "prompt": row.prompt, "completion": row.chosen, "label": True, "mismatched": "x"}
        for row in rows
    ]  # type: ignore[union-attr]
    (tmp_path / "unpaired" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unpaired))
    with pytest.raises(ValueError, match="or method=kto"):
        train_stage.run(
            settings(),
            StageRun(
                {**stage_run.inputs, "preferences": tmp_path / "unpaired"}, stage_run.out, stage_run.progress
            ),
        )


# What is left behind --------------------------------------------------------------------------------------------------


def test_models_do_not_outlive_their_stage() -> None:
    """A fused head makes a model part of a reference cycle: on a GPU the next stage would find no room."""
    start = smoke_folder(smoke_cell("dpo", 0.1).roles["train"].inputs["model"])  # type: ignore[arg-type]
    gc.disable()
    try:
        engine = TransformersEngine(start, "float32", 2)
        engine.logps([Ids([1, 5], [6, 2])])
        gone = weakref.ref(engine.model)
        del engine
        assert gone() is not None
        worker.release_memory()
        assert gone() is None
    finally:
        gc.enable()
        gc.unfreeze()


def test_a_model_is_loaded_ready_to_be_measured() -> None:
    start = smoke_folder(smoke_cell("dpo", 0.1).roles["train"].inputs["model"])  # type: ignore[arg-type]
    model = load_model(start, "float32")
    assert not model.training
    assert {parameter.device.type for parameter in model.parameters()} == {
        "cuda" if torch.cuda.is_available() else "cpu"
    }


# Gradient checkpointing -----------------------------------------------------------------------------------------------

LORA = Adapter(name="lora", rank=4, alpha=8.0, dropout=0.1, target_modules=())


def training(name: str, folder: Path) -> tuple[Any, Any, dict[str, Path]]:
    """(stage's function, its settings, its inputs) of a training of some kind, over what the smoke run has."""
    inputs = {
        role: smoke_folder(stage) for role, stage in smoke_cell("kto", 0.1).roles["train"].inputs.items()
    }  # type: ignore[arg-type]
    usual: dict[str, Any] = {"max_length": 192, "dtype": "float32", "seed": 0}
    if name == "conversations":
        pairs = read_rows(inputs["preferences"] / "train.jsonl")
        rows = [
            {"id": pair.id, "messages": [*pair.prompt, {"role": "assistant", "content": pair.chosen}]}
            for pair in pairs
        ]
        path = folder / "conversations" / "rows.jsonl"
        path.parent.mkdir()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[:32]))
        epochs = SftEpochs(
            learning_rate=1e-3,
            num_train_epochs=1.0,
            batch_size=8,
            gradient_accumulation_steps=1,
            warmup_ratio=0.0,
        )
        return (
            sft_stage.run,
            ConversationSft(training=epochs, **usual),
            {"model": inputs["model"], "conversations": path.parent},
        )
    learning: dict[str, Any] = {"batch_size": 32, "learning_rate": 1e-3}
    if name == "best_of_n":
        return (
            train_stage.run,
            RewardModelSettings(method=RewardModel.model_validate(TRAINING | learning), **usual),
            inputs,
        )
    plain, _, adapted = name.partition(" ")
    kind = by_name(*KINDS)[plain]
    method, adapter = (
        conformance_method(kind, REFERENCES[kind].settings[0], **learning),
        LORA if adapted else None,
    )
    return train_stage.run, TrainSettings(method=method, adapter=adapter, **usual), inputs


@pytest.mark.parametrize(
    "name",
    some_outer(
        ["dpo", "dpo lora", "simpo", "kto", "offline_ppo", "best_of_n", "conversations"],
        ["dpo lora", "conversations"],
    ),
)
def test_gradient_checkpointing_computes_again_and_changes_no_number(name: str, tmp_path: Path) -> None:
    """Each layer goes forward twice a pass that learns, not once: in the backward pass a second time."""
    curves, passes = {}, {}
    run, usual, inputs = training(name, tmp_path)
    for choice in (False, True):
        (out := tmp_path / str(choice)).mkdir()
        learning: list[bool] = []

        def saw(module: torch.nn.Module, *_: Any, learning: list[bool] = learning) -> None:
            if isinstance(module, LlamaMLP):
                learning.append(torch.is_grad_enabled())

        hook = register_module_forward_pre_hook(saw)
        try:
            run(
                usual.model_copy(update={"gradient_checkpointing": choice}),
                StageRun(inputs, out, Progress(out / "progress")),
            )
        finally:
            hook.remove()
        curves[choice] = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
        passes[choice] = sum(learning)
    assert len(curves[True]) > 1
    assert curves[True] == curves[False]
    assert passes[True] == 2 * passes[False]


def test_a_process_that_sees_several_gpus_trains_on_one(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        **common_arguments(tmp_path, seed=0, dtype="float32"), per_device_train_batch_size=4
    )
    arguments._n_gpu = 8  # as transformers counts them outside of `accelerate launch`
    assert arguments.train_batch_size == 32
    assert on_one_gpu(arguments).train_batch_size == 4


def test_gradient_checkpointing_is_chosen_by_size_where_nobody_chooses() -> None:
    assert not checkpoints("auto", 5e8) and checkpoints("auto", 7e9)
    assert checkpoints(True, 5e8) and not checkpoints(False, 7e9)
