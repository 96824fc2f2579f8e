"""`do=plan` for models of any size: tokens, FLOPs, memory, GPU-hours and disk of stages, before anything is spent. Loads no torch.

Sizes of a model come from its config.json (`bench/models/model_size.py`), tokens from the rows and items themselves, counted by the model's
tokenizer on a sample of them; what has not been written yet counts as long as it may be, so generation is a bound. A stage takes
FLOPs / (peak x mfu), those of the second forward that gradient checkpointing makes among them; one that writes takes at least as long as
reading all weights once a step does.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.config import Adapter, Hardware, LocalModel, WorldModel
from bench.forecast.row_counts import Aside, learnt, model_folder, sample
from bench.forecast.stage_time import answers_asked, passes, token_bound
from bench.models.hub import read_config
from bench.models.model_size import BYTES, Memory, Shape, checkpoints, read_shape, scoring_memory, training_memory, writing_memory
from bench.models.token_counts import Messages, counter_or_none
from bench.planning.inputs import CellPlan
from bench.records import Conversation, completion_columns, read_items, read_jsonl, read_rows
from bench.store.keys import Source, Stage
from bench.store.stage_settings import (
    BaseSettings,
    ConversationSft,
    GenerateSettings,
    LocalPairData,
    LogpsSettings,
    RewardModelSettings,
    RewardScoreSettings,
    SampleSettings,
    SftSettings,
    TrainSettings,
)
from bench.store.store import Store
from bench.training.devices import Spread, share_of

VLLM_SEQUENCES = 256  # that vLLM writes at once, by default
SFT_OPTIMIZER = "adamw_torch"


@dataclass(frozen=True)
class Work:
    """What one stage asks of a model. Tokens: `trained` forward and backward, `scored` forward, `written` one after another in `steps`;
    `context`: tokens that one looks at, on average."""

    trained: float = 0
    scored: float = 0
    written: float = 0
    steps: int = 0
    context: float = 0

    @property
    def tokens(self) -> float:
        return self.trained + self.scored + self.written

    def flops(self, shape: Shape, adapter: int = 0) -> float:
        """`adapter`: weights of one beside the model's, which is then what is trained."""
        forward = (self.scored + self.written) * shape.forward_flops(self.context, adapter)
        return self.trained * shape.trained_flops(self.context, adapter) + forward


@dataclass(frozen=True)
class Sized:
    """One stage: its work, and what that takes. `flops` are the model's; hours are of all that is computed."""

    work: Work
    flops: float
    gpu_hours: float
    memory: Memory
    weights: int  # bytes that it leaves on disk, of an adapter where there is one
    checkpointing: bool = False
    adapter: int = 0  # weights of one, which is trained or read beside the model


@dataclass
class Sizes:
    """Sizes of the stages of a command, on one kind of GPU; close it."""

    store: Store
    hardware: Hardware
    counted: bool = False  # some rows were counted by the model's tokenizer
    _known: dict[Stage, Sized | None] = field(default_factory=dict)
    _means: dict[tuple[str, Path | None], float] = field(default_factory=dict)
    _folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    def close(self) -> None:
        self._folder.cleanup()

    @cached_property
    def aside(self) -> Aside:
        return Aside(self.store, Path(self._folder.name))

    def of(self, cell: CellPlan, shape: Shape) -> dict[Stage, Sized]:
        """The stages of a cell in which its model runs."""
        for stage in cell.stages:
            if stage not in self._known:
                work = self._work(cell, stage)
                self._known[stage] = self._sized(stage, work, shape) if work.tokens else None
        return {stage: sized for stage in cell.stages if (sized := self._known[stage])}

    def _work(self, cell: CellPlan, stage: Stage) -> Work:
        settings, inputs = stage.settings, stage.inputs
        match settings:
            case BaseSettings() | SftSettings():
                return Work(trained=token_bound(stage), context=settings.max_length)
            case ConversationSft():
                path = next(iter(sorted(self.aside.folder(inputs["conversations"]).glob("*.jsonl"))))
                rows = [row.messages for row in read_jsonl(path, Conversation)]
                mean = self._mean(cell, inputs["conversations"].key, sample(rows), settings.max_length)
                return Work(trained=len(rows) * mean * settings.training.num_train_epochs, context=mean)
            case TrainSettings() | RewardModelSettings():
                n, mean = self._rows(cell, stage, ("train",), settings.max_length)
                tokens = n * mean * settings.method.num_train_epochs
                reference = tokens if "reference_model" in inputs else 0
                return Work(trained=tokens, scored=n * mean * settings.method.forward_only + reference, context=mean)
            case LogpsSettings(rows="preferences", max_length=int(most)) | RewardScoreSettings(rows="preferences", max_length=int(most)):
                n, mean = self._rows(cell, stage, settings.splits, most)
                return Work(scored=n * mean * passes(settings), context=mean)
            case LogpsSettings() | RewardScoreSettings():
                written = self._work(cell, _stage(inputs["completions"]))
                return Work(scored=written.scored + written.written, context=2 * written.context)
            case GenerateSettings() | SampleSettings():
                return self._writing(cell, stage, settings)
        return Work()

    def _writing(self, cell: CellPlan, stage: Stage, settings: GenerateSettings | SampleSettings) -> Work:
        draws = settings.draws if isinstance(settings, SampleSettings) else settings.best_of
        n, new = answers_asked(stage.inputs["items"]) * draws, settings.decoding.max_new_tokens
        prompt = self._prompt(cell, stage.inputs["items"])
        at_once = VLLM_SEQUENCES if settings.engine == "vllm" else settings.batch_size
        return Work(scored=n * prompt, written=n * new, steps=math.ceil(n / at_once) * new, context=prompt + new / 2)

    # Rows and their tokens

    def _rows(self, cell: CellPlan, stage: Stage, splits: Iterable[str], most: int) -> tuple[float, float]:
        """(judged completions, mean tokens of one with its prompt) of the preference rows that a stage reads."""
        preferences = _stage(stage.inputs["preferences"])
        if not isinstance(preferences.settings, LocalPairData):
            return token_bound(stage) / most / passes(stage.settings), most
        folder, _ = self.aside.look(preferences)
        n, total = 0, 0.0
        for split in splits:
            rows = read_rows(folder / f"{split}.jsonl")
            columns = len([c for c in completion_columns(rows[0]) if not c.startswith("mismatched")]) if rows else 0
            n += columns * len(rows)
            total += columns * len(rows) * self._mean(cell, f"{preferences.key}/{split}", learnt(sample(rows)), most)
        return n, total / n if n else 0.0

    def _prompt(self, cell: CellPlan, items: Stage | Source) -> float:
        """Mean tokens of a prompt; 0 where only a model could say, as in the controlled world."""
        if not isinstance(items, Stage) or not isinstance(cell.cell.model, LocalModel):
            return 0.0
        try:
            folder, _ = self.aside.look(items)
        except (AttributeError, OSError, ValueError):  # its own inputs are written by a model
            return 0.0
        asked = [
            [*item.context, *({"role": "text" if item.plain else "user", "content": turn} for turn in item.turns)]
            for item in sample(read_items(folder))
        ]
        return self._mean(cell, items.key, asked, cell.cell.model.max_length, opens=True)

    def _mean(self, cell: CellPlan, what: str, rows: Iterable[Messages], most: int, opens: bool = False) -> float:
        """Mean tokens of rows, each cut at `most`; `most` where the model's tokenizer cannot be had without torch."""
        folder = model_folder(cell)
        if (what, folder) not in self._means:
            count = counter_or_none(folder)
            lengths = [min(most, count(row, opens)) for row in rows] if count else []
            self.counted |= bool(lengths)
            self._means[what, folder] = sum(lengths) / len(lengths) if lengths else most
        return self._means[what, folder]

    # Work to time and memory

    def _sized(self, stage: Stage, work: Work, shape: Shape) -> Sized:
        settings: Any = stage.settings
        dtype, gpu, weights = getattr(settings, "dtype", "float32"), self.hardware, 0
        set_to = _adapter(stage)
        adapter = shape.adapter(set_to.rank, set_to.target_modules) if set_to else 0
        held: dict[str, Any] = {"adapter": adapter, "quantized": bool(getattr(getattr(settings, "loading", None), "quantized", None))}
        flops, checkpointing = work.flops(shape, adapter), checkpoints(getattr(settings, "gradient_checkpointing", False), shape.parameters)
        again = work.trained * shape.forward_flops(work.context, adapter) if checkpointing else 0
        seconds = (flops + again) / (gpu.peak_tflops * 1e12 * gpu.mfu)
        longest = getattr(settings, "max_length", None) or math.ceil(2 * work.context)
        if work.trained:
            training = getattr(settings, "method", None) or getattr(settings, "training", None) or settings.pretraining
            twice = _paired(stage) or getattr(training, "with_partners", False)
            sequences = _at_once(settings, training, gpu.devices) * (2 if twice else 1)
            optimizer = getattr(training, "optimizer", SFT_OPTIMIZER)
            of_batch: dict[str, Any] = {"optimizer": optimizer, "sequences": sequences, "length": longest, "checkpointing": checkpointing}
            memory = training_memory(shape, dtype=dtype, sharding=gpu.sharding, devices=gpu.devices, **of_batch, **held)
            weights = 4 * adapter or shape.parameters * BYTES[dtype]
            if "reference_model" in stage.inputs:
                memory = replace(memory, weights=memory.weights + shape.weight_bytes("float32", held["quantized"]) + 4 * adapter)
        elif work.written:
            reading = shape.weight_bytes(dtype, held["quantized"]) + 4 * adapter
            seconds = max(seconds, work.steps * reading / (gpu.bandwidth_gbs * 1e9 * gpu.mbu))
            sequences = VLLM_SEQUENCES if settings.engine == "vllm" else settings.batch_size
            whole = math.ceil(work.context + settings.decoding.max_new_tokens / 2)
            memory = writing_memory(shape, dtype=dtype, sequences=sequences, length=whole, **held)
        else:
            memory = scoring_memory(shape, sequences=settings.batch_size, length=longest, **held)
        return Sized(work, flops, seconds / 3600, memory, weights, checkpointing, adapter)


def _adapter(stage: Stage) -> Adapter | None:
    """The adapter that a stage trains, or of the model that it reads."""
    model = stage.inputs.get("model")
    settings = stage.settings if stage.kind == "train" else model.settings if isinstance(model, Stage) else None
    return getattr(settings, "adapter", None)


def _at_once(settings: Any, training: Any, devices: int) -> int:
    """Rows of a batch that a device takes; all of them of a training that is not spread, or that devices cannot share."""
    if isinstance(settings, Spread):
        with contextlib.suppress(ValueError):
            return share_of(training, devices).batch_size
    return training.batch_size


def _stage(source: Stage | Source) -> Stage:
    assert isinstance(source, Stage)
    return source


def _paired(stage: Stage) -> bool:
    """Whether a row of a training is two sequences: a pair, whose method does not make two rows of it."""
    preferences = stage.inputs.get("preferences")
    feedback = getattr(getattr(stage.settings, "method", None), "feedback", "pairs")
    return isinstance(preferences, Stage) and feedback == "pairs" and getattr(preferences.settings, "form", "paired") == "paired"


def shape_of(cell: CellPlan) -> Shape:
    """Raises ValueError for a model whose sizes cannot be read."""
    model = cell.cell.model
    if isinstance(model, LocalModel):
        return read_shape(read_config(folder) if (folder := model_folder(cell)) else {})
    if not isinstance(model, WorldModel):
        raise ValueError("completions of a file have no model")
    from bench.world.tokenizer import new_tokenizer

    return read_shape(
        {
            "model_type": "llama",
            "vocab_size": len(new_tokenizer(model.max_length)),
            "hidden_size": model.hidden_size,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": model.num_heads,
            "intermediate_size": model.intermediate_size,
            "tie_word_embeddings": True,
        }
    )
