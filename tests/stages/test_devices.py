"""Trainings on several devices, and trainings that were killed: both end where an undisturbed one on one device ends."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
import yaml
from outer import some_outer
from safetensors.torch import load_file
from tiny import ROOT, smoke_cell, smoke_folder
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.models.llama.modeling_llama import LlamaMLP

from bench.cli.compose import CheckedCommand
from bench.config import Accelerate, Adapter, Loading, RefinedDpo, SftEpochs, SftTraining, Training
from bench.records import Text, read_rows, write_jsonl
from bench.stages import sft as sft_stage
from bench.stages import train as train_stage
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import ConversationSft, TrainSettings
from bench.training.devices import Share, Spread, check_rows, learning, share_of

CPUS = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "num_machines": 1,
    "machine_rank": 0,
    "use_cpu": True,
}


def accelerate(devices: int, checkpoint_s: float = 600.0) -> Accelerate:
    config = CPUS | {"num_processes": devices, "mixed_precision": "no"}
    return Accelerate(name="test", sharding="none", devices=devices, checkpoint_s=checkpoint_s, config=config)


def settings(method: str = "dpo", **more: Any) -> TrainSettings:
    usual: TrainSettings = smoke_cell(method, 0.1).roles["train"].settings  # type: ignore[assignment]
    return usual.model_copy(update={"method": usual.method.model_copy(update={"batch_size": 16}), **more})


def tuning() -> ConversationSft:
    """SFT in steps of twice eight conversations."""
    epochs = SftEpochs(
        learning_rate=1e-3,
        num_train_epochs=1.0,
        batch_size=8,
        gradient_accumulation_steps=2,
        warmup_ratio=0.1,
    )
    return ConversationSft(training=epochs, max_length=192, dtype="float32", seed=0)


def first_training(batch_size: int = 8, accumulation: int = 2) -> ConversationSft:
    """SFT on demonstrations and evaluations, as iteration 1 of self_rewarding: six steps, with 16 rows in the usual ones."""
    training = SftTraining(
        steps=6, batch_size=batch_size, gradient_accumulation_steps=accumulation, learning_rate=1e-3
    )
    return ConversationSft(training=training, max_length=192, dtype="float32", seed=0)


def stage_run(root: Path, name: str, how: Accelerate | None, method: str = "dpo", n: int = 96) -> StageRun:
    """96 rows: six steps of 16, none of them short. Of `sft` they are conversations: the prompts and the better answers."""
    train = smoke_cell("dpo" if method in ("sft", "first") else method, 0.1).roles["train"]
    inputs = {role: smoke_folder(stage) for role, stage in train.inputs.items()}  # type: ignore[arg-type]
    if not (root / "rows").exists():
        shutil.copytree(inputs["preferences"], root / "rows")
        path = root / "rows" / "train.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:n]))
        pairs = read_rows(path)
        talks = [
            {"id": pair.id, "messages": [*pair.prompt, {"role": "assistant", "content": pair.chosen}]}
            for pair in pairs
        ]
        (root / "rows" / "rows.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
        for role, some in (("demonstrations", pairs[::2]), ("evaluations", pairs[1::2])):
            (root / role).mkdir()
            write_jsonl(root / role / "rows.jsonl", [Text(p.id, p.prompt, p.chosen) for p in some])
    (root / name).mkdir()
    progress = Progress(root / f"{name}.progress")
    if method == "sft":
        inputs = {"model": inputs["model"], "conversations": root / "rows"}
    elif method == "first":
        inputs = {"model": inputs["model"]} | {r: root / r for r in ("demonstrations", "evaluations")}
    else:
        inputs |= {"preferences": root / "rows", "reference_model": inputs["model"]}  # the latter for SPA
    return StageRun(inputs, root / name, progress, "key", root / "work", accelerate=how)


def run_stage(config: Spread, run: StageRun) -> None:
    if isinstance(config, ConversationSft):
        sft_stage.run(config, run)
    else:
        train_stage.run(config, run)


def refined(config: TrainSettings) -> TrainSettings:
    """By SPA: its noise detector remembers confidences, and what it said of each pair."""
    common = config.method.model_dump(include=set(Training.model_fields))
    detector: dict[str, Any] = {
        "alpha": 0.3,
        "distrusted": 0.3,
        "window": 24,
        "threshold": "pairs",
        "delay": 0.0,
        "decoupling": 0.5,
    }
    return config.model_copy(update={"method": RefinedDpo(name="spa", beta=0.1, **common, **detector)})


def history(run: StageRun) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.out / "history.jsonl").read_text().splitlines()]


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [("one", "NO", 1), ("ddp", "MULTI_GPU", 2), ("fsdp", "FSDP", 8), ("zero3", "DEEPSPEED", 8)],
)
def test_accelerate_reads_the_settings_that_it_is_given(
    name: str, kind: str, processes: int, opened: Callable[..., CheckedCommand], tmp_path: Path
) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump(opened(f"accelerate={name}").session.accelerate.config))
    read = load_config_from_file(str(file))
    assert (read.distributed_type, read.num_processes) == (kind, processes)
    more = opened(f"accelerate={name}", "accelerate.devices=4").session.accelerate
    assert (more.devices, more.config["num_processes"]) == (4, 4)


def test_devices_share_the_same_step() -> None:
    """Of each batch where it can be divided, else of the whole step; rows at once x times x devices stay what the method says."""

    def of(method: str, size: int, accumulation: int, devices: int) -> Share:
        usual = settings(method).method.model_copy(
            update={"batch_size": size, "gradient_accumulation_steps": accumulation}
        )
        return share_of(usual, devices)

    assert of("dpo", 16, 4, 1) == (16, 4)
    assert of("dpo", 16, 4, 2) == (8, 4)
    assert of("dpo", 4, 8, 8) == (4, 1)
    assert of("dpo", 6, 2, 4) == (3, 1)
    step = r"batch_size=6 x method.gradient_accumulation_steps=1 rows cannot be divided evenly among accelerate.devices=4"
    with pytest.raises(ValueError, match=step):
        of("dpo", 6, 1, 4)
    assert of("kto", 8, 4, 4) == (2, 4)
    with pytest.raises(
        ValueError,
        match=r"method.batch_size must be a multiple of accelerate.devices=8, .*, got 8. Set .*=16",
    ):
        of("kto", 8, 4, 8)
    assert share_of(tuning().training, 4) == (2, 2)
    with pytest.raises(
        ValueError,
        match=r"7 rows do not fill one batch of 8 rows over 2 devices. Use more rows or fewer devices",
    ):
        check_rows(7, tuning().training, 2)
    assert share_of(first_training().training, 4) == (2, 2)
    with pytest.raises(
        ValueError,
        match=r"first_training.batch_size=8 x method.first_training.gradient_accumulation_steps=2 rows cannot be",
    ):
        share_of(first_training().training, 3)
    with pytest.raises(
        ValueError,
        match=r"batch_size=8 x sft.training.gradient_accumulation_steps=2 rows cannot be divided evenly",
    ):
        share_of(tuning().training, 3)


def test_a_step_in_more_passes_holds_fewer_rows_at_once_and_has_the_same_loss(tmp_path: Path) -> None:
    """Both kinds of rows are read, three steps an epoch, the last one short; `checkpointed` goes forward twice."""
    curves, rows = {}, {}
    for name, batch, passes in (("whole", 16, 1), ("parted", 8, 2), ("checkpointed", 8, 2)):
        config = first_training(batch, passes).model_copy(
            update={"gradient_checkpointing": name == "checkpointed"}
        )
        run, seen = stage_run(tmp_path, name, None, "first", n=40), []

        def saw(module: torch.nn.Module, inputs: Any, seen: list[int] = seen) -> None:
            if isinstance(module, LlamaMLP) and torch.is_grad_enabled():
                seen.append(len(inputs[0]))

        hook = register_module_forward_pre_hook(saw)
        try:
            sft_stage.run(config, run)
        finally:
            hook.remove()
        curves[name], rows[name] = history(run), seen
    assert len(curves["whole"]) == 6 and set(rows["whole"]) == {16, 8} and set(rows["parted"]) == {8}
    assert sum(rows["checkpointed"]) == 2 * sum(rows["parted"]) == 2 * sum(rows["whole"])
    assert curves["checkpointed"] == curves["parted"]
    for a, b in zip(curves["whole"], curves["parted"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
        assert b["num_tokens"] == a["num_tokens"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU lacks")
def test_devices_that_are_not_there_are_said(tmp_path: Path) -> None:
    how = accelerate(2).model_copy(update={"config": CPUS | {"use_cpu": False}})
    with pytest.raises(ValueError, match=r"needs accelerate.devices=2 GPUs, but this machine has 0"):
        train_stage.run(settings(), stage_run(tmp_path, "out", how))


# Killed and resumed ---------------------------------------------------------------------------------------------------

KILLED = """
import pickle, sys
from pathlib import Path
from bench.stages import sft, train
from bench.runner.worker import Progress, StageRun
root = Path(sys.argv[1])
settings, inputs, how = pickle.loads((root / "job.pickle").read_bytes())
stage = sft if type(settings).__name__ == "ConversationSft" else train
stage.run(settings, StageRun(inputs, root / "killed", Progress(root / "killed.progress"), "key", root / "work", accelerate=how))
"""


def kill_in_the_middle(
    root: Path, config: Spread, run: StageRun, steps: int = 2, whole: int = 0, cold: bool = False
) -> None:
    """The same stage in a process of its own, ended by SIGKILL once it has taken some steps and `whole` of its checkpoints are; only its
    work folder is of use. It is stopped while checkpoints are counted, so that what was counted is what it leaves."""
    import pickle

    (root / "job.pickle").write_bytes(pickle.dumps((config, dict(run.inputs), run.accelerate)))
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with (root / "killed.log").open("w") as log:
        process: subprocess.Popen[bytes] | warm.Started
        if warm.POSSIBLE and not cold:
            process = warm.start(KILLED, str(root), folder=root, environ=environment, log=log.fileno())
        else:
            process = subprocess.Popen(
                [sys.executable, "-c", KILLED, str(root)],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        progress, until = root / "killed.progress", time.monotonic() + 240
        while not progress.exists() or len(progress.read_text().splitlines()) < steps:
            assert process.poll() is None, (root / "killed.log").read_text()[-2000:]
            assert time.monotonic() < until
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGSTOP)
        while len(list((root / "work" / "checkpoints").glob("checkpoint-*/whole.json"))) < whole:
            os.killpg(process.pid, signal.SIGCONT)
            time.sleep(0.01)
            assert process.poll() is None, (root / "killed.log").read_text()[-2000:]
            os.killpg(process.pid, signal.SIGSTOP)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (root / "killed" / "model").exists()
    shutil.rmtree(root / "killed")


def of_name(name: str) -> tuple[Spread, str]:
    """(settings, the method whose rows they take) of a training."""
    adapter = Adapter(name="lora", rank=4, alpha=8.0, dropout=0.1, target_modules=())
    match name:
        case "qlora":
            return settings("dpo", adapter=adapter, loading=Loading(quantized="nf4")), "dpo"
        case "lora":
            return settings("dpo", adapter=adapter), "dpo"
        case "spa":
            return refined(settings()), "dpo"
        case "sft":
            return tuning(), "sft"
        case "first":
            return first_training(), "first"
    return settings(name), name


def twice(config: Spread) -> Spread:
    """Two epochs of it."""
    if isinstance(training := learning(config), SftTraining):
        return config.model_copy(
            update={"training": training.model_copy(update={"steps": 2 * training.steps})}
        )
    section = "training" if isinstance(config, ConversationSft) else "method"
    return config.model_copy(update={section: learning(config).model_copy(update={"num_train_epochs": 2.0})})


@pytest.mark.parametrize("training", some_outer(["dpo", "kto", "lora", "spa", "sft"], ["dpo", "sft"]))
def test_a_training_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    training: str, tmp_path: Path
) -> None:
    config, name = of_name(training)
    if training == "sft":
        config = twice(config)
    undisturbed = stage_run(tmp_path, "undisturbed", None, name)
    run_stage(config, undisturbed)
    run = stage_run(tmp_path, "out", accelerate(1, checkpoint_s=1e-6), name)
    (tmp_path / "killed").mkdir()
    kill_in_the_middle(tmp_path, config, run, steps=8 if training == "sft" else 2)
    whole = list((tmp_path / "work" / "checkpoints").glob("checkpoint-*/whole.json"))
    assert whole
    run_stage(config, run)
    steps = [json.loads(line)["step"] for line in run.progress.path.read_text().splitlines()]
    assert steps[0] > 1  # it did go on
    assert not (tmp_path / "work").exists()
    for file in sorted(
        path.relative_to(undisturbed.out) for path in undisturbed.out.rglob("*") if path.is_file()
    ):
        if file.name != "speed.jsonl":
            assert (run.out / file).read_bytes() == (undisturbed.out / file).read_bytes(), file


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DPO training that was killed at its fourth step or later, and in `undisturbed` what it would have come to."""
    root = tmp_path_factory.mktemp("killed")
    train_stage.run(settings(), stage_run(root, "undisturbed", None))
    (root / "killed").mkdir()
    kill_in_the_middle(
        root, settings(), stage_run(root, "out", accelerate(1, checkpoint_s=1e-6)), steps=4, whole=2
    )
    (root / "out").rmdir()
    return root


@pytest.fixture
def to_resume(killed: Path, tmp_path: Path) -> StageRun:
    """The killed training, in a folder of the test's own, about to go on."""
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    return stage_run(tmp_path, "out", accelerate(1, checkpoint_s=1e-6))


@pytest.mark.parametrize("damage", ["short", "other bytes", "mark", "without checksums"])
def test_of_a_damaged_checkpoint_the_one_before_is_gone_on_from(
    damage: str, to_resume: StageRun, tmp_path: Path
) -> None:
    run = to_resume
    marks = (tmp_path / "work" / "checkpoints").glob("checkpoint-*/whole.json")
    older, newest = sorted(marks, key=lambda mark: mark.stat().st_mtime_ns)[-2:]
    weights = newest.parent / "model.safetensors"
    match damage:
        case "short":
            weights.write_bytes(weights.read_bytes()[:100])
        case "other bytes":
            weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\x80\x3f")
        case "mark":
            newest.write_text(newest.read_text()[:50])
        case "without checksums":  # as bench once left them
            newest.write_text(
                json.dumps(
                    {name: value for name, value in json.loads(newest.read_text()).items() if name != "files"}
                )
            )
    before = int(older.parent.name.rpartition("-")[2])
    train_stage.run(settings(), run)
    assert json.loads(run.progress.path.read_text().splitlines()[0])["step"] == before + 1
    assert (run.out / "model" / "model.safetensors").read_bytes() == (
        tmp_path / "undisturbed" / "model" / "model.safetensors"
    ).read_bytes()


def test_a_checkpoint_of_another_way_of_sharding_is_not_gone_on_from(to_resume: StageRun) -> None:
    run = to_resume
    assert run.accelerate is not None
    other = run.accelerate.model_copy(
        update={"config": {**run.accelerate.config, "distributed_type": "FSDP"}}
    )
    train_stage.run(settings(), dataclasses.replace(run, accelerate=other))
    assert json.loads(run.progress.path.read_text().splitlines()[0])["step"] == 1


def test_what_was_trained_is_not_lost_where_it_cannot_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    run = stage_run(tmp_path, "out", accelerate(1, checkpoint_s=1e-6))
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr("bench.training.distributed.save_model", full)
        train_stage.run(settings(), run)
    train_stage.run(settings(), run)
    assert [json.loads(line)["step"] for line in run.progress.path.read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        5,
        6,
        6,
    ]
    assert not (tmp_path / "work").exists()


def test_a_checkpoint_of_other_inputs_is_not_gone_on_from(to_resume: StageRun, tmp_path: Path) -> None:
    run = to_resume
    rows = tmp_path / "rows" / "train.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:64]))
    shutil.rmtree(tmp_path / "rows2", ignore_errors=True)
    (tmp_path / "rows" / "manifest.json").write_text(json.dumps({"digest": "another"}))
    train_stage.run(settings(), run)
    assert [row["step"] for row in history(run)] == [1, 2, 3, 4]


# Two devices ----------------------------------------------------------------------------------------------------------

SHARDED = {
    "ddp": "model.safetensors",
    "fsdp": "pytorch_model_fsdp.bin",
    "zero3": "latest",
}  # what a checkpoint holds of each
TWO = [("ddp", "dpo"), ("ddp", "kto"), ("ddp", "qlora"), ("ddp", "sft")]
TWO += [(sharding, training) for sharding in ("fsdp", "zero3") for training in ("dpo", "kto", "lora", "sft")]
TWO += [("ddp", "first"), ("fsdp", "first")]


@pytest.mark.slow
@pytest.mark.parametrize(("sharding", "training"), TWO)
def test_two_processes_train_to_the_curve_of_one_and_go_on_when_killed(
    sharding: str,
    training: str,
    tmp_path: Path,
    opened: Callable[..., CheckedCommand],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tolerance: a completion's log-probability is a sum of some 50 float32 terms of up to 10 nats, so its rounding error is below
    50 x 10 x 2^-24 x 50, 1.5e-3 nats at worst and 1e-4 typically; times beta 0.1, and averaged over 16 rows, the loss of one step may
    differ by 1e-4 in a worst case. Weights differ where AdamW turns a gradient that is all rounding into a step, by two rates a step."""
    if sharding == "zero3":
        pytest.importorskip("deepspeed", reason="pip install -e '.[deepspeed]'")
    if training == "qlora":
        pytest.importorskip("bitsandbytes", reason="pip install -e '.[qlora]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "sharding_on_cpus"))
    how = opened(
        f"accelerate={sharding}", "accelerate.devices=2", "accelerate.config.use_cpu=true"
    ).session.accelerate
    config, method = of_name(training)
    config = twice(config)
    if training in ("lora", "qlora"):
        config = config.model_copy(
            update={"adapter": config.adapter.model_copy(update={"dropout": 0.0})}
        )  # drawn by each process
    one = stage_run(tmp_path, "one", None, method)
    run_stage(config, one)
    two = stage_run(tmp_path, "two", how, method)
    run_stage(config, two)
    assert len(history(one)) == len(history(two))
    for a, b in zip(history(one), history(two), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
        assert b["num_tokens"] == a["num_tokens"]
    (before,), (after,) = (
        [load_file(path) for path in (run.out / "model").glob("*.safetensors")] for run in (one, two)
    )
    assert before.keys() == after.keys()
    most = 2 * learning(config).learning_rate * len(history(one))
    assert max((before[name] - after[name]).abs().max().item() for name in before) <= most
    if training not in ("sft", "first"):
        facts_one, facts_two = (json.loads((run.out / "facts.json").read_text()) for run in (one, two))
        assert facts_one == facts_two
    assert not (tmp_path / "work").exists()
    again = stage_run(tmp_path, "again", how.model_copy(update={"checkpoint_s": 1e-6}), method)
    (tmp_path / "killed").mkdir()
    kill_in_the_middle(tmp_path, config, again, steps=8, cold=True)
    (newest, *_) = (tmp_path / "work" / "checkpoints").glob("checkpoint-*/whole.json")
    assert (
        newest.parent / ("adapter_model.safetensors" if training == "qlora" else SHARDED[sharding])
    ).exists()
    run_stage(config, again)
    assert (
        json.loads(again.progress.path.read_text().splitlines()[0])["step"] > 7
    )  # in the second epoch, which has an order of its own
    for a, b in zip(history(two), history(again), strict=True):  # the same sums in the same order
        assert b == pytest.approx(a, abs=1e-6)
