"""Checkpoints of a training in `<key>.work/checkpoints`: left now and then, marked whole last, gone on from the newest whole one.

A checkpoint holds what transformers keeps (weights, optimiser, schedule, generators, place in the data) and what is ours: the curve, what
was fed, what a noise detector has seen and said. It is gone on from only by a training of the same inputs on as many devices, and only
where its files have the checksums that they were written with; else the one before it is.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from bench.records import Trust
from bench.store.keys import file_digest
from bench.text_files import read_object
from bench.training.trainers import Recorder

MARK = "whole.json"


class Checkpoints(TrainerCallback):
    """Leaves a checkpoint every so many seconds. `made_of`: what a training that goes on must be made of too."""

    def __init__(self, folder: Path, every_s: float, made_of: str, recorder: Recorder):
        self.folder, self.every_s, self.made_of, self.recorder = folder, every_s, made_of, recorder
        self.trainer: Any = None
        self.last = time.monotonic()

    def attach(self, trainer: Trainer) -> None:
        """Let a trainer leave its checkpoints here; one with a critic, whose weights are not the model's, leaves none."""
        self.trainer = trainer
        trainer.args.output_dir = str(self.folder)
        trainer.args.save_total_limit = 2  # the older one goes before the newer one is marked
        if trainer.args.device.type == "cpu":  # of several CPU processes it is cpu:0, cpu:1, ..., which torch.load does not know
            trainer.args.__dict__["_setup_devices"] = torch.device("cpu")
        if getattr(trainer, "critic", None) is None:
            trainer.add_callback(self)

    def newest(self) -> Path | None:
        """The newest whole checkpoint of this training; of several processes the first one looks."""
        found: list[Path | None] = [None]
        if self.trainer.is_world_process_zero():
            marks = [(int(path.parent.name.rpartition("-")[2]), path) for path in self.folder.glob(f"checkpoint-*/{MARK}")]
            found = [next((path.parent for _, path in sorted(marks, reverse=True) if self._is_whole(path)), None)]
            for path in self.folder.glob("checkpoint-*"):
                if path != found[0]:  # else the next one to be left makes room by the one that is gone on from
                    shutil.rmtree(path, ignore_errors=True)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(found, src=0)
        return found[0]

    def _is_whole(self, mark: Path) -> bool:
        try:
            kept = json.loads(mark.read_text(encoding="utf-8"))
        except ValueError:
            return False
        return kept["made_of"] == self.made_of and kept.get("files") == _digests(mark.parent)

    def restore(self, checkpoint: Path) -> None:
        """Our part of a checkpoint; transformers restores its own."""
        kept = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        self.recorder.history, self.recorder.speed, self.recorder.tokens = kept["history"], kept["speed"], kept["tokens"]
        trainer = self.trainer
        trainer._total_train_tokens = kept["tokens"]  # TRL begins to count again
        # of several processes nobody else tells it: transformers' call stops at the sampler that skips what was seen
        trainer.order.set_epoch(int(read_object(checkpoint / "trainer_state.json")["epoch"]))
        if kept["fed"] is not None:
            trainer.fed.restore(kept["fed"])
        if kept["threshold"] is not None:
            trainer.threshold.seen.extend(kept["threshold"])
            trainer.trust += [Trust.from_json(said) for said in kept["trust"]]

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = time.monotonic() - self.last >= self.every_s and state.global_step < state.max_steps
        if torch.distributed.is_initialized():  # all or none
            decided = [due]
            torch.distributed.broadcast_object_list(decided, src=0)
            (due,) = decided
        control.should_save = due

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its part
        if not state.is_world_process_zero:
            return
        recorder = self.recorder
        fed, threshold = (getattr(self.trainer, name, None) for name in ("fed", "threshold"))
        folder = self.folder / f"checkpoint-{state.global_step}"
        kept = {
            "made_of": self.made_of,
            "files": _digests(folder),
            "history": recorder.history,
            "speed": recorder.speed,
            "tokens": recorder.tokens,
            "fed": None if fed is None else fed.to_json(),
            "threshold": None if threshold is None else list(threshold.seen),
            "trust": [] if threshold is None else [said.to_json() for said in self.trainer.trust],
        }
        aside = folder / f"{MARK}.aside"
        with aside.open("w", encoding="utf-8") as file:
            json.dump(kept, file)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(folder / MARK)

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _digests(checkpoint: Path) -> dict[str, str]:
    """Of a checkpoint's files, less the mark: a disk that was full or lost power leaves some of them short."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and not path.name.startswith(MARK))
    return {str(path.relative_to(checkpoint)): file_digest(path) for path in files}
