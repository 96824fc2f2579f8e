"""Tokens, FLOPs, memory, GPU-hours and disk of a plan's stages (`do=plan`), for models of any size.

Loads no torch.

A model's sizes come from its config.json (`bench/models/model_size.py`). Tokens come from the rows and items,
counted on a sample by the model's tokenizer. Completions that are not written yet count at their largest
length, so generation is an upper bound.

A stage takes FLOPs / (peak x mfu) seconds. These FLOPs include the second forward pass of gradient
checkpointing. A generating stage takes at least the time to read all weights once per step.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.config import Adapter, Hardware, LocalModel, SftEpochs, SftTraining, WorldModel
from bench.forecast.row_counts import NotHere, ScratchData, learnt, model_folder, sample
from bench.forecast.stage_time import n_completions, of_choices, passes, token_bound
from bench.models import recorded
from bench.models.hub import read_config
from bench.models.model_size import (
    BYTES,
    Memory,
    Shape,
    checkpoints,
    read_shape,
    scoring_memory,
    training_memory,
    writing_memory,
)
from bench.models.token_counts import Messages, counter_or_none
from bench.planning.inputs import CellPlan
from bench.readers.splits import drawn_sizes
from bench.records import Conversation, completion_columns, read_items, read_jsonl, read_rows
from bench.store.keys import Source, Stage
from bench.store.stage_settings import (
    BaseSettings,
    ChoiceData,
    ConversationSft,
    DatasetRows,
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

VLLM_SEQUENCES = 256  # Sequences that vLLM generates at once by default.
SFT_OPTIMIZER = "adamw_torch"


@dataclass(frozen=True)
class Work:
    """Tokens of one stage that pass through its model.

    `trained` tokens go forward and backward, `scored` tokens forward. `written` tokens are generated one
    after another in `steps`. `context` is the mean number of tokens that a token attends to.
    """

    trained: float = 0
    scored: float = 0
    written: float = 0
    steps: int = 0
    context: float = 0

    @property
    def tokens(self) -> float:
        return self.trained + self.scored + self.written

    def flops(self, shape: Shape, adapter: int = 0) -> float:
        """FLOPs of this work.

        `adapter` is the number of an adapter's weights; with one, only the adapter is trained.
        """
        forward = (self.scored + self.written) * shape.forward_flops(self.context, adapter)
        return self.trained * shape.trained_flops(self.context, adapter) + forward


@dataclass(frozen=True)
class Sized:
    """Work of one stage, and its time and memory.

    `flops` leaves out the second forward of gradient checkpointing; `gpu_hours` has it.
    """

    work: Work
    flops: float
    gpu_hours: float
    memory: Memory
    weights: int  # Bytes that the stage leaves on disk; those of its adapter where it has one.
    checkpointing: bool = False
    adapter: int = 0  # Number of weights of the adapter that is trained or read with the model.


@dataclass
class Sizes:
    """Sizes of the stages of a command on one kind of GPU. Call `close` at the end."""

    store: Store
    hardware: Hardware
    counted: bool = False  # Whether the model's tokenizer counted some rows.
    uncounted: dict[str, None] = field(default_factory=dict)  # Why some stages could not be sized.
    refused: dict[str, None] = field(default_factory=dict)  # Why devices cannot share some trainings.
    _known: dict[Stage, Sized | None] = field(default_factory=dict)
    _means: dict[tuple[str, Path | None], float] = field(default_factory=dict)
    _folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    def close(self) -> None:
        self._folder.cleanup()

    @cached_property
    def scratch(self) -> ScratchData:
        return ScratchData(self.store, Path(self._folder.name))

    def of(self, cell: CellPlan, shape: Shape) -> dict[Stage, Sized]:
        """Sizes of the cell's stages that run its model."""
        for stage in cell.stages:
            if stage not in self._known:
                try:
                    work = self._work(cell, stage)
                except NotHere as error:
                    self.uncounted[f"{error}, and conf/ records no number of its rows"] = None
                    work = Work()
                own = self._shape(cell, stage, shape)
                self._known[stage] = self._sized(stage, work, own) if work.tokens and own else None
        return {stage: sized for stage in cell.stages if (sized := self._known[stage])}

    def _shape(self, cell: CellPlan, stage: Stage, shape: Shape) -> Shape | None:
        """Sizes of the model that a stage runs: the cell's, or of another folder (a prompt writer, a reward
        model); None for one that cannot be sized."""
        model = stage.inputs.get("model")
        if not isinstance(model, Source) or model.path == model_folder(cell) or not model.path.is_dir():
            return shape
        with contextlib.suppress(ValueError):
            return read_shape(read_config(model.path))
        return None

    def _work(self, cell: CellPlan, stage: Stage) -> Work:
        settings, inputs = stage.settings, stage.inputs
        match settings:
            case BaseSettings() | SftSettings() | ConversationSft(training=SftTraining()):
                return Work(trained=token_bound(stage), context=settings.max_length)
            case ConversationSft(training=SftEpochs() as sft):
                if "demonstrations" in inputs:  # Half of the completions are chosen ones.
                    demonstrations = _stage(inputs["demonstrations"])
                    n, mean = self._rows(cell, demonstrations, ("train",), settings.max_length)
                    n /= 2
                else:
                    n, mean = self._conversations(cell, _stage(inputs["conversations"]), settings.max_length)
                return Work(trained=n * mean * sft.num_train_epochs, context=mean)
            case TrainSettings() | RewardModelSettings():
                n, mean = self._rows(cell, stage, ("train",), settings.max_length)
                tokens = n * mean * settings.method.num_train_epochs
                reference = tokens if "reference_model" in inputs else 0
                return Work(
                    trained=tokens, scored=n * mean * settings.method.forward_only + reference, context=mean
                )
            case (
                LogpsSettings(rows="preferences", max_length=int(most))
                | RewardScoreSettings(rows="preferences", max_length=int(most))
            ):
                n, mean = self._rows(cell, stage, settings.splits, most)
                return Work(scored=n * mean * passes(settings), context=mean)
            case LogpsSettings(max_length=int(most)) if of_choices(stage):
                return Work(scored=token_bound(stage), context=most)
            case LogpsSettings() | RewardScoreSettings():
                written = self._work(cell, _stage(inputs["completions"]))
                return Work(scored=written.scored + written.written, context=2 * written.context)
            case GenerateSettings() | SampleSettings():
                return self._writing(cell, stage, settings)
        return Work()

    def _writing(self, cell: CellPlan, stage: Stage, settings: GenerateSettings | SampleSettings) -> Work:
        draws = settings.draws if isinstance(settings, SampleSettings) else settings.best_of
        asked = n_completions(stage.inputs["items"]) or self._made(stage.inputs["items"])
        n, new = asked * draws, settings.decoding.max_new_tokens
        prompt = self._prompt(cell, stage.inputs["items"])
        at_once = VLLM_SEQUENCES if settings.engine == "vllm" else settings.batch_size
        return Work(
            scored=n * prompt, written=n * new, steps=math.ceil(n / at_once) * new, context=prompt + new / 2
        )

    # Rows and their tokens

    def _conversations(self, cell: CellPlan, data: Stage, most: int) -> tuple[float, float]:
        """(number of conversations, mean tokens of one)."""
        try:
            path = self.scratch.folder(data) / "rows.jsonl"
        except NotHere as error:
            if (of_all := error.recorded()) is None:
                raise
            (known,) = of_all.values()
            if isinstance(data.settings, ChoiceData):  # Each labelled pair is asked about in two orders.
                pairs: Any = _stage(_stage(data.inputs["items"]).inputs["preferences"]).settings
                return 2 * known["train"] * pairs.fraction, most
            return known["train"] * data.settings.fraction, most  # type: ignore[attr-defined]
        rows = [row.messages for row in read_jsonl(path, Conversation)]
        return len(rows), self._mean(cell, data.key, sample(rows), most)

    def _rows(self, cell: CellPlan, stage: Stage, splits: Iterable[str], most: int) -> tuple[float, float]:
        """(number of completions, mean tokens of one with its prompt) of the preference rows of a stage."""
        preferences = _stage(stage.inputs["preferences"])
        if not isinstance(preferences.settings, LocalPairData):
            return token_bound(stage) / most / passes(stage.settings), most
        try:
            folder, _ = self.scratch.load(preferences)
        except NotHere as error:
            if (known := error.recorded()) is None:
                raise
            sizes = split_sizes(known, preferences.settings)
            return sum(sizes[split] for split in splits), most
        n, total = 0, 0.0
        for split in splits:
            rows = read_rows(folder / f"{split}.jsonl")
            columns = (
                len([c for c in completion_columns(rows[0]) if not c.startswith("mismatched")]) if rows else 0
            )
            n += columns * len(rows)
            total += (
                columns
                * len(rows)
                * self._mean(cell, f"{preferences.key}/{split}", learnt(sample(rows)), most)
            )
        return n, total / n if n else 0.0

    def _made(self, items: Stage | Source) -> int:
        """Number of items that are made of files alone; 0 where a model has to write their inputs first."""
        with contextlib.suppress(OSError, ValueError):
            return len(read_items(self.scratch.folder(items)))
        return 0

    def _prompt(self, cell: CellPlan, items: Stage | Source) -> float:
        """Mean tokens of a prompt. 0 where the prompts are not known yet, and in the controlled world."""
        if not isinstance(items, Stage) or not isinstance(cell.cell.model, LocalModel):
            return 0.0
        try:
            folder, _ = self.scratch.load(items)
        except NotHere:
            return float(cell.cell.model.max_length)
        except (AttributeError, OSError, ValueError):  # A model has to write the inputs first.
            return 0.0
        prompts = [
            [
                *item.context,
                *({"role": "text" if item.plain else "user", "content": turn} for turn in item.turns),
            ]
            for item in sample(read_items(folder))
        ]
        return self._mean(cell, items.key, prompts, cell.cell.model.max_length, opens=True)

    def _mean(
        self, cell: CellPlan, what: str, rows: Iterable[Messages], most: int, opens: bool = False
    ) -> float:
        """Mean tokens of rows, each cut at `most`. Without a tokenizer that works without torch, `most`."""
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
        lora = _adapter(stage)
        adapter = shape.adapter(lora.rank, lora.target_modules) if lora else 0
        held: dict[str, Any] = {
            "adapter": adapter,
            "quantized": bool(getattr(getattr(settings, "loading", None), "quantized", None)),
        }
        flops, checkpointing = (
            work.flops(shape, adapter),
            checkpoints(getattr(settings, "gradient_checkpointing", False), shape.parameters),
        )
        again = work.trained * shape.forward_flops(work.context, adapter) if checkpointing else 0
        seconds = (flops + again) / (gpu.peak_tflops * 1e12 * gpu.mfu)
        longest = getattr(settings, "max_length", None) or math.ceil(2 * work.context)
        if work.trained:
            training = (
                getattr(settings, "method", None)
                or getattr(settings, "training", None)
                or settings.pretraining
            )
            devices, sharding = (gpu.devices, gpu.sharding) if isinstance(settings, Spread) else (1, "none")
            twice = _paired(stage) or getattr(training, "with_partners", False)
            sequences = self._at_once(training, devices) * (2 if twice else 1)
            optimizer = getattr(training, "optimizer", SFT_OPTIMIZER)
            of_batch: dict[str, Any] = {
                "optimizer": optimizer,
                "sequences": sequences,
                "length": longest,
                "checkpointing": checkpointing,
            }
            memory = training_memory(
                shape, dtype=dtype, sharding=sharding, devices=devices, **of_batch, **held
            )
            weights = 4 * adapter or shape.parameters * BYTES[dtype]
            if "reference_model" in stage.inputs:
                memory = replace(
                    memory,
                    weights=memory.weights + shape.weight_bytes("float32", held["quantized"]) + 4 * adapter,
                )
        elif work.written:
            reading = shape.weight_bytes(dtype, held["quantized"]) + 4 * adapter
            seconds = max(seconds, work.steps * reading / (gpu.bandwidth_gbs * 1e9 * gpu.mbu))
            sequences = VLLM_SEQUENCES if settings.engine == "vllm" else settings.batch_size
            whole = math.ceil(work.context + settings.decoding.max_new_tokens / 2)
            memory = writing_memory(shape, dtype=dtype, sequences=sequences, length=whole, **held)
        else:
            memory = scoring_memory(shape, sequences=settings.batch_size, length=longest, **held)
        return Sized(work, flops, seconds / 3600, memory, weights, checkpointing, adapter)

    def _at_once(self, training: Any, devices: int) -> int:
        """Rows of a batch on one device.

        All rows for a training on one device, or a batch that devices cannot share.
        """
        if devices > 1:
            try:
                return share_of(training, devices).batch_size
            except ValueError as error:
                self.refused[str(error)] = None
        return training.batch_size


def _adapter(stage: Stage) -> Adapter | None:
    """Adapter that a stage trains, or that of the model that it reads."""
    model = stage.inputs.get("model")
    settings = (
        stage.settings if stage.kind == "train" else model.settings if isinstance(model, Stage) else None
    )
    return getattr(settings, "adapter", None)


def _stage(source: Stage | Source) -> Stage:
    assert isinstance(source, Stage)
    return source


def _paired(stage: Stage) -> bool:
    """Whether a training row is two sequences: a pair, for a method that does not split it into two rows."""
    preferences = stage.inputs.get("preferences")
    feedback = getattr(getattr(stage.settings, "method", None), "feedback", "pairs")
    return (
        isinstance(preferences, Stage)
        and feedback == "pairs"
        and getattr(preferences.settings, "form", "paired") == "paired"
    )


def split_sizes(rows: Mapping[str, Mapping[str, int]], settings: LocalPairData) -> dict[str, float]:
    """Number of completions by split that datasets with this many recorded pairs, by label, give at most."""
    train: dict[str, float] = {}
    heldout = 0.0
    sources: dict[str, DatasetRows | None] = {"": settings.dataset}
    if settings.sources:
        sources = {label: source.rows for label, source in settings.sources.items()}
    for label, dataset in sources.items():
        known = rows[label]
        held = float(known.get("heldout", 0)) if dataset and dataset.heldout_files else 0.0
        train[label] = float(known["train"])
        if not held:
            held = train[label] * settings.heldout_fraction
            train[label] -= held
        heldout += min(held, dataset.n_heldout if dataset and dataset.n_heldout else math.inf)
    n_train = sum(train.values())
    if settings.sources:
        n_train = sum(drawn_sizes({label: int(n) for label, n in train.items()}, settings.sources).values())
    form = settings.mixed_form or (settings.dataset.form if settings.dataset else None)
    a_row = 1 if form == "unpaired" else 2
    kept = (settings.desirable_fraction + settings.undesirable_fraction) / 2
    return {"train": n_train * settings.fraction * kept * a_row, "heldout": heldout * a_row}


def shape_of(cell: CellPlan) -> Shape:
    """Sizes of a cell's model, from its config.json or as recorded. Raises ValueError where there are neither."""
    model = cell.cell.model
    if isinstance(model, LocalModel):
        folder = model_folder(cell)
        if folder is None or folder.is_dir():
            return read_shape(read_config(folder) if folder else {})
        if (known := recorded.sizes(model.hub)) is None:
            raise ValueError(f"{folder} is not on this machine, and conf/model records no sizes of it")
        return read_shape(known)
    if not isinstance(model, WorldModel):
        raise ValueError("cannot size completions from a file: they have no model")
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
