"""Shared code of the stages that train a user's model: several processes, checkpoints, and the files that a
training writes.

On several devices such a stage starts `accelerate launch`. Its processes train together, and the first of
them writes the stage's files.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from bench import secrets
from bench.config import Accelerate
from bench.engines.adapters import is_adapted, save_model
from bench.machine import free_port, python_path
from bench.store import stage_settings
from bench.store.keys import tree_stamp
from bench.store.stage_run import Outcome, Progress, StageRun, exit_with, reason
from bench.text_files import read_object
from bench.training.checkpoints import Checkpoints
from bench.training.devices import Spread, learning, share_of
from bench.training.trainers import Recorder, check_weights, fingerprint
from bench.training.training_record import digest

MORE_STEPS = "Use more rows or epochs, make steps smaller (batch_size, gradient_accumulation_steps), or set warmup_ratio=0."


# A training in this process, or in one of several processes -----------------------------------------------------------


def devices_of(run: StageRun) -> int:
    """Number of devices that a stage's training uses."""
    return run.accelerate.devices if run.accelerate else 1


def train_and_save(
    trainer: Any, tokenizer: PreTrainedTokenizerBase, run: StageRun, recorder: Recorder, dtype: str
) -> bool:
    """Train from the newest whole checkpoint, or from the start. Returns whether this process is the first
    one.

    The first process writes `model/`, in `dtype`, and the curve. Raises ValueError, FloatingPointError or
    RuntimeError if the training changed no weight or diverged.
    """
    model = trainer.model
    if (n := trainer.args.world_size) != devices_of(run):
        raise RuntimeError(
            f"{n} processes train together, but accelerate.devices={devices_of(run)}: batches are divided among that many. "
            "Set accelerate.config.num_processes to accelerate.devices."
        )
    before = fingerprint(model)
    checkpoints = _train_or_resume(trainer, run, recorder)
    if not any(row["learning_rate"] for row in recorder.history) and trainer.is_world_process_zero():
        raise ValueError(
            f"all {len(recorder.history)} training steps were warm-up, so nothing was learned. {MORE_STEPS}"
        )
    weights = _gathered(trainer) if devices_of(run) > 1 else None
    if not trainer.is_world_process_zero():
        return False
    if not is_adapted(model):
        kept = getattr(torch, dtype)
        weights = {name: value.to(kept) for name, value in weights.items()} if weights is not None else None
        model.to(kept)
    check_weights(model, before, weights)
    recorder.write(run.out)
    save_model(model, tokenizer, run.out / "model", weights)
    shutil.rmtree(run.out / "trainer", ignore_errors=True)
    if checkpoints is not None and run.work is not None:
        checkpoints.clear()
        with contextlib.suppress(OSError):  # It is empty unless something else is kept there.
            run.work.rmdir()
    return True


def _gathered(trainer: Any) -> dict[str, torch.Tensor]:
    """All weights, collected from the devices' parts for the first process.

    FSDP returns tied weights twice; one of them is left out.
    """
    # DeepSpeed returns whole models in the dtype of computation.
    if trainer.is_deepspeed_enabled and is_adapted(trainer.model):
        from deepspeed.utils import safe_get_full_fp32_param

        return {
            name: safe_get_full_fp32_param(value)
            for name, value in trainer.model.named_parameters()
            if value.requires_grad
        }
    tied = trainer.model.all_tied_weights_keys
    # DeepSpeed returns None except in the first process.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return {name: value for name, value in (weights or {}).items() if name not in tied}


def _train_or_resume(trainer: Any, run: StageRun, recorder: Recorder) -> Checkpoints | None:
    """Run the training, from its newest whole checkpoint if there is one; None if it keeps no checkpoints."""
    if run.work is None or run.accelerate is None:
        trainer.train()
        return None
    # Each way writes other files.
    how = [run.accelerate.devices, run.accelerate.config.get("distributed_type")]
    made_of = digest([run.key, how, {role: _made_of(path) for role, path in sorted(run.inputs.items())}])
    checkpoints = Checkpoints(run.work / "checkpoints", run.accelerate.checkpoint_s, made_of, recorder)
    checkpoints.attach(trainer)
    if (newest := checkpoints.newest()) is not None:
        checkpoints.restore(newest)
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    return checkpoints


def _made_of(path: Path) -> str:
    """Digest of an input's content from its manifest; without one, a stamp of its files' sizes and times."""
    manifest = path / "manifest.json"
    return read_object(manifest)["digest"] if manifest.exists() else tree_stamp(path)


# Several processes ----------------------------------------------------------------------------------------------------


def spread(train: Callable[[Any, StageRun], Outcome], settings: Spread, run: StageRun) -> Outcome:
    """Run `train` in this process, or in one process per device.

    `train` must be a function named `train` of its module: the other processes import it. Raises ValueError
    for missing devices, and RuntimeError if a process failed.
    """
    if run.accelerate is None or run.accelerate.devices == 1:
        return train(settings, run)
    return _launch(train.__module__, settings, run, run.accelerate)


def _launch(module: str, settings: Spread, run: StageRun, accelerate: Accelerate) -> Outcome:
    share_of(learning(settings), accelerate.devices)
    there = accelerate.devices if accelerate.config.get("use_cpu") else torch.cuda.device_count()
    if there < accelerate.devices:
        way_out = "Use fewer devices, or CPUs: accelerate=ddp accelerate.config.use_cpu=true."
        raise ValueError(
            f"the training needs accelerate.devices={accelerate.devices} GPUs, but this machine has {there}. {way_out}"
        )
    assert run.work is not None, "processes that train together agree by files"
    run.work.mkdir(parents=True, exist_ok=True)
    config, job, answer = (run.work / name for name in ("accelerate.yaml", "job.json", "answer.json"))
    for path in (answer, *run.work.glob("error-*.json")):
        path.unlink(missing_ok=True)
    config.write_text(yaml.safe_dump(accelerate.config), encoding="utf-8")
    request = {
        "module": module,
        "settings_type": type(settings).__name__,
        "settings": settings.model_dump(mode="json"),
        "inputs": {role: str(path) for role, path in run.inputs.items()},
        "out": str(run.out),
        "work": str(run.work),
        "progress": str(run.progress.path),
        "key": run.key,
        "worker": os.getpid(),
        "accelerate": accelerate.model_dump(),
    }
    job.write_text(json.dumps(request), encoding="utf-8")
    launch = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--config_file", str(config)]
    launch += ["--main_process_port", str(free_port())]
    environment = os.environ | {"PYTHONPATH": python_path()}
    if accelerate.config.get("use_cpu"):
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run([*launch, "-m", __name__, str(job)], env=environment, check=False)
    if done.returncode != 0 or not answer.exists():
        raise RuntimeError(
            f"a training on {accelerate.devices} devices failed: {_why(run.work, done.returncode)}"
        )
    counts = read_object(answer)["counts"]
    for path in (config, job, answer):
        path.unlink()
    with contextlib.suppress(OSError):
        run.work.rmdir()
    return Outcome(counts, Recorder.recorded_files)


def _why(work: Path, code: int) -> str:
    """The earliest error of any process; later errors only report that the process is gone."""
    errors = [read_object(path) for path in work.glob("error-*.json")]
    if not errors:
        return f"accelerate launch ended with exit code {code} and no process reported an error; see the end of the stage's log"
    first = min(errors, key=lambda error: error["time"])
    return f"{first['error']} (process {first['rank']})"


def main(path: Path) -> None:
    """Train as one of several processes; `path`: the job file that the stage wrote."""
    secrets.guard_streams()
    job = read_object(path)
    exit_with(job["worker"])
    if torch.cuda.is_available():
        # Before loading: otherwise all processes load on GPU 0.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    rank = int(os.environ.get("RANK", "0"))
    first = rank == 0
    work = Path(job["work"])
    settings = getattr(stage_settings, job["settings_type"]).model_validate(job["settings"])
    inputs = {role: Path(place) for role, place in job["inputs"].items()}
    progress = Progress(Path(job["progress"]) if first else work / f"progress-{rank}")
    out = Path(job["out"]) if first else work / f"out-{rank}"
    stage_run = StageRun(
        inputs, out, progress, job["key"], work, accelerate=Accelerate.model_validate(job["accelerate"])
    )
    try:
        outcome = importlib.import_module(job["module"]).train(settings, stage_run)
    except Exception as error:
        report = {"rank": rank, "time": time.time(), "error": reason(error)}
        (work / f"error-{rank}.json").write_text(json.dumps(report), encoding="utf-8")
        raise
    finally:
        if not first:
            progress.path.unlink(missing_ok=True)
            shutil.rmtree(out, ignore_errors=True)
    if first:
        (work / "answer.json").write_text(json.dumps({"counts": dict(outcome.counts)}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
