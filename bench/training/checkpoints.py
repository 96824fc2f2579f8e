"""Checkpoints of a training, in `<key>.work/checkpoints`.

A training saves one from time to time and writes its mark (MARK) last. A stopped training resumes from the
newest marked one.

A checkpoint holds transformers' files (weights, optimizer, schedule, random generators, position in the data)
and ours in the mark: the curve, the rows stepped on, and the confidences and verdicts of a noise detector. A
training resumes from it only with the same inputs and the same number of devices, and only if its files still
have their checksums. Otherwise the checkpoint before it is used.
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
    """Saves a checkpoint every `every_s` seconds.

    `made_of`: digest of the training's inputs and devices. Only a training with the same digest resumes from
    the checkpoint.
    """

    def __init__(self, folder: Path, every_s: float, made_of: str, recorder: Recorder):
        self.folder, self.every_s, self.made_of, self.recorder = folder, every_s, made_of, recorder
        self.trainer: Any = None
        self.last = time.monotonic()

    def attach(self, trainer: Trainer) -> None:
        """Make a trainer save its checkpoints here.

        A trainer with a critic saves none: the critic's weights are not part of the model.
        """
        self.trainer = trainer
        trainer.args.output_dir = str(self.folder)
        # transformers deletes the older one before the newer one is marked.
        trainer.args.save_total_limit = 2
        # Several CPU processes have cpu:0, cpu:1, ...: torch.load does not know them.
        if trainer.args.device.type == "cpu":
            trainer.args.__dict__["_setup_devices"] = torch.device("cpu")
        if getattr(trainer, "critic", None) is None:
            trainer.add_callback(self)

    def newest(self) -> Path | None:
        """The newest whole checkpoint of this training; None if there is none.

        The first process looks and tells the others. It deletes all other checkpoints.
        """
        newest: list[Path | None] = [None]
        if self.trainer.is_world_process_zero():
            marks = [
                (int(path.parent.name.rpartition("-")[2]), path)
                for path in self.folder.glob(f"checkpoint-*/{MARK}")
            ]
            newest = [
                next((path.parent for _, path in sorted(marks, reverse=True) if self._is_whole(path)), None)
            ]
            for path in self.folder.glob("checkpoint-*"):
                # If it stayed, the next save would delete the newest one to keep within the limit.
                if path != newest[0]:
                    shutil.rmtree(path, ignore_errors=True)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(newest, src=0)
        return newest[0]

    def _is_whole(self, mark: Path) -> bool:
        try:
            kept = json.loads(mark.read_text(encoding="utf-8"))
        except ValueError:
            return False
        return kept["made_of"] == self.made_of and kept.get("files") == _digests(mark.parent)

    def restore(self, checkpoint: Path) -> None:
        """Restore our part of a checkpoint; transformers restores its own."""
        kept = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        self.recorder.history, self.recorder.speed, self.recorder.tokens = (
            kept["history"],
            kept["speed"],
            kept["tokens"],
        )
        trainer = self.trainer
        trainer._total_train_tokens = kept["tokens"]  # TRL would count from 0 again.
        # With several processes, transformers sets the epoch only on the sampler that skips seen rows, not on
        # this one.
        trainer.order.set_epoch(int(read_object(checkpoint / "trainer_state.json")["epoch"]))
        if kept["fed"] is not None:
            trainer.visited.restore(kept["fed"])
        if kept["threshold"] is not None:
            trainer.threshold.seen.extend(kept["threshold"])
            trainer.trust += [Trust.from_json(row) for row in kept["trust"]]

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = time.monotonic() - self.last >= self.every_s and state.global_step < state.max_steps
        if torch.distributed.is_initialized():  # All processes save, or none.
            decided = [due]
            torch.distributed.broadcast_object_list(decided, src=0)
            (due,) = decided
        control.should_save = due

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # Wait until every process has written its part.
        if not state.is_world_process_zero:
            return
        recorder = self.recorder
        visited, threshold = (getattr(self.trainer, name, None) for name in ("visited", "threshold"))
        folder = self.folder / f"checkpoint-{state.global_step}"
        kept = {
            "made_of": self.made_of,
            "files": _digests(folder),
            "history": recorder.history,
            "speed": recorder.speed,
            "tokens": recorder.tokens,
            "fed": None if visited is None else visited.to_json(),
            "threshold": None if threshold is None else list(threshold.seen),
            "trust": [] if threshold is None else [trust.to_json() for trust in self.trainer.trust],
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
    """Checksums of a checkpoint's files by path, without the mark's.

    They reveal files that a full disk or a power cut left too short.
    """
    files = sorted(
        path for path in checkpoint.rglob("*") if path.is_file() and not path.name.startswith(MARK)
    )
    return {str(path.relative_to(checkpoint)): file_digest(path) for path in files}
