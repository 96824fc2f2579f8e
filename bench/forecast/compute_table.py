"""Sizes of a plan's stages as `do=plan` prints them: a table and lines under it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.config import Hardware, Keep, LocalModel, WorldModel
from bench.forecast.compute import Sized, Sizes, shape_of
from bench.forecast.row_counts import SAMPLE, model_folder
from bench.models import recorded
from bench.models.hub import read_config
from bench.models.model_config import positions
from bench.models.model_size import Shape
from bench.planning.inputs import CellPlan
from bench.records import grouped, size_words
from bench.store.keys import Stage
from bench.store.stage_settings import GenerateSettings
from bench.store.store import Store


def wanted(cells: Sequence[CellPlan], size: str) -> list[CellPlan]:
    """Cells to be sized: those of pretrained models; those of the world only with size=stages or cells."""
    return [
        cell
        for cell in cells
        if isinstance(cell.cell.model, LocalModel if size == "auto" else LocalModel | WorldModel)
    ]


@dataclass
class SizeReport:
    """Rows of the table by stage kind, lines under it, and rows by cell (empty without size=cells)."""

    stages: list[list[str]]
    lines: list[str]
    cells: list[list[str]]


STAGE_COLUMNS = ("kind", "to do", "tokens", "PFLOPs", "GPU-hours", "GB a device")
CELL_COLUMNS = ("cell", "tokens", "PFLOPs", "GPU-hours alone", "GPU-hours to do")


def report(
    cells: Sequence[CellPlan], to_do: Sequence[Stage], store: Store, hardware: Hardware, keep: Keep, size: str
) -> SizeReport | None:
    """Sizes of the cells and of the stages to do. None where no cell is to be sized."""
    chosen = wanted(cells, size)
    if not chosen:
        return None
    sizes, lines = Sizes(store, hardware), []
    of_cell: dict[str, dict[Stage, Sized]] = {}
    shapes: dict[str, Shape] = {}
    try:
        for cell in chosen:
            try:
                shapes[cell.cell.model.name] = shape = shape_of(cell)
                of_cell[cell.key] = sizes.of(cell, shape)
            except ValueError as error:
                lines.append(f"{cell.name}: not sized: {' '.join(str(error).split())}")
    finally:
        sizes.close()
    every = {stage: sized for of_stage in of_cell.values() for stage, sized in of_stage.items()}
    waiting = {stage: every[stage] for stage in to_do if stage in every}
    kinds = dict.fromkeys(stage.kind for stage in every)
    table = []
    for kind in kinds:
        some = [sized for stage, sized in waiting.items() if stage.kind == kind]
        largest = f"{max(s.memory.total for s in some) / 1e9:,.3g}" if some else ""
        table.append([kind, str(len(some)), *_total(some), largest])
    lines = [
        *_model_lines(shapes, every.values(), hardware),
        *dict.fromkeys(line for cell in chosen for line in (*_recorded_lines(cell), *_position_lines(cell))),
        *_time_lines(of_cell, every, waiting, hardware),
        *lines,
    ]
    folders = {
        folder for cell in chosen if (folder := model_folder(cell)) and not any(folder.glob("*.safetensors"))
    }
    lines += [
        f"{folder} has no weights here yet: finished stages are recognised once the weights are there"
        for folder in sorted(folders)
    ]
    lines += [f"not counted: {why}" for why in sizes.uncounted]
    lines += [f"refused when it runs: {why}" for why in sizes.refused]
    lines += _measured_lines(
        {stage: sized for stage, sized in every.items() if stage.kind == "train" and stage not in waiting},
        store,
    )
    lines += _memory_lines(waiting, hardware)
    lines += _disk_lines(waiting, keep)
    how = (
        f"are counted by the model's tokenizer on a sample of about {SAMPLE} rows"
        if sizes.counted
        else "are as many as max_length allows"
    )
    lines.append(
        f"tokens of rows and prompts {how}; completions still to be written count at their largest length"
    )
    if any(stage.kind == "tasks" for stage in to_do):
        lines.append(
            "tasks of lm-evaluation-harness are not counted: their documents are read only during a run"
        )
    of_cells = [
        [
            cell.name,
            *_total(of_stage.values()),
            _total(sized for stage, sized in of_stage.items() if stage in waiting)[2],
        ]
        for cell in chosen
        if size == "cells" and (of_stage := of_cell.get(cell.key)) is not None
    ]
    return SizeReport(table, lines, of_cells)


def _total(sized: Iterable[Sized]) -> tuple[str, str, str]:
    """(tokens, PFLOPs, GPU-hours) as texts."""
    some = list(sized)
    hours = sum(s.gpu_hours for s in some)
    return (
        f"{sum(s.work.tokens for s in some):,.0f}",
        f"{sum(s.flops for s in some) / 1e15:,.3g}",
        f"{hours:,.3g}",
    )


def _model_lines(shapes: Mapping[str, Shape], sized: Iterable[Sized], gpu: Hardware) -> Iterator[str]:
    for name, shape in shapes.items():
        yield f"{name}: {shape.parameters:,} parameters"
    for adapter in sorted({s.adapter for s in sized if s.work.trained and s.adapter}):
        yield f"adapter: {adapter:,} parameters, the only ones trained; the model without it gives the reference's log-probs"
    spread = f", {gpu.devices} a training, sharding {gpu.sharding}" if gpu.devices > 1 else ""
    reached = f"{gpu.mfu:.0%} of its {gpu.peak_tflops:g} TFLOP/s, {gpu.mbu:.0%} of its {gpu.bandwidth_gbs:g} GB/s in generation"
    yield f"on {gpu.name} ({gpu.memory_gb:g} GB{spread}), at {reached} (hardware.mfu, hardware.mbu)"


def _recorded_lines(cell: CellPlan) -> Iterator[str]:
    """Whether a model's sizes are recorded ones, and where its config.json differs from them."""
    model, folder = cell.cell.model, model_folder(cell)
    if not isinstance(model, LocalModel) or folder is None or (known := recorded.sizes(model.hub)) is None:
        return
    if not folder.is_dir():
        yield f"{model.name}: sizes as recorded in conf/model, since its config.json is not on this machine"
        if known.get("chat_template") == "none" and model.chat_template is None:
            without = f"{model.name}: its tokenizer has no chat template, as recorded in conf/model"
            yield f"{without}; prompts in messages need model.chat_template"
    elif differs := recorded.differences(known, read_config(folder)):
        words = ", ".join(
            f"{name} {here} (recorded: {there})" for name, (there, here) in sorted(differs.items())
        )
        yield f"{model.name}: its config.json has other sizes than conf/model: {words}; the config.json counts"


def _position_lines(cell: CellPlan) -> Iterator[str]:
    """Completions that leave no place for a prompt in the positions of a model that computes them. The door
    refuses them for a model with a table of positions."""
    model, folder = cell.cell.model, model_folder(cell)
    if not isinstance(model, LocalModel):
        return
    config = read_config(folder) if folder and folder.is_dir() else recorded.sizes(model.hub) or {}
    places = positions(config)
    for stage in cell.stages:
        if isinstance(stage.settings, GenerateSettings) and places is not None:
            new = stage.settings.decoding.max_new_tokens
            if new >= places:
                yield (
                    f"{model.name}: {stage.label} may write {new:,} tokens, and the model's config has {places:,} positions for prompt "
                    "and completion: transformers writes on beyond them, vLLM cuts there (max_new_tokens of its decoding)"
                )


def _time_lines(
    of_cell: Mapping[str, Mapping[Stage, Sized]],
    every: Mapping[Stage, Sized],
    waiting: Mapping[Stage, Sized],
    gpu: Hardware,
) -> Iterator[str]:
    hours = sum(s.gpu_hours for s in waiting.values())
    dollars = (
        f", ${hours * gpu.price_per_hour:,.2f} at ${gpu.price_per_hour:g} an hour"
        if gpu.price_per_hour is not None
        else ""
    )
    yield f"to do: {hours:,.3g} GPU-hours{dollars}"
    alone = sum(s.gpu_hours for of_stage in of_cell.values() for s in of_stage.values())
    shared = sum(s.gpu_hours for s in every.values())
    if len(of_cell) > 1 and shared:
        times = f"{alone / shared:.2f} times as many"
        yield f"shared stages: the whole sweep takes {shared:,.3g} GPU-hours; without sharing it would take {alone:,.3g}, {times}"


def _measured_lines(trainings: Mapping[Stage, Sized], store: Store) -> Iterator[str]:
    """Measured tokens and speed of finished trainings against their forecast, one line per device."""
    done = (
        (sized, store.manifest(stage))
        for stage, sized in trainings.items()
        if store.is_done(stage) and sized.work.trained
    )
    by_device = grouped(
        (str(m.recorded.get("device", "?")), (sized, m)) for sized, m in done if "tokens" in m.counts
    )
    for device, some in by_device.items():
        times = sum(m.counts["tokens"] for _, m in some) / sum(s.work.trained for s, _ in some)
        rate = sum(s.flops for s, _ in some) / sum(m.timings["wall_s"] for _, m in some) / 1e12
        what = f"{len(some)} trainings" if len(some) > 1 else "one training"
        tokens = f"{times:.2f} times the forecast number of tokens"
        yield f"measured: {what} on {device} read {tokens}, at {rate:.3g} TFLOP/s (start-up and logging included)"


def _memory_lines(waiting: Mapping[Stage, Sized], gpu: Hardware) -> Iterator[str]:
    training = [sized for sized in waiting.values() if sized.work.trained]
    if training:
        most = max(training, key=lambda sized: sized.memory.total)
        memory, kept = most.memory, most.checkpointing
        parts = (
            (memory.weights, "weights"),
            (memory.gradients, "gradients"),
            (memory.optimizer, "optimizer"),
        )
        counted = ", ".join(f"{size_words(size)} {name}" for size, name in parts)
        choice = f"{'with' if kept else 'without'} gradient checkpointing"
        other = f"{size_words(memory.otherwise)} {'without' if kept else 'with'}: model.gradient_checkpointing={str(not kept).lower()}"
        yield f"memory of a training: {counted}, about {size_words(memory.activations)} activations a device {choice} ({other})"
    if not waiting:
        return
    worst = max(waiting.values(), key=lambda sized: sized.memory.total)
    if worst.memory.total > gpu.memory_gb * 1e9:
        helps = worst.work.trained and not worst.checkpointing
        ways = [
            *(["model.gradient_checkpointing=true"] if helps else []),
            "more devices (accelerate=fsdp accelerate.devices=N)",
        ]
        way_out = ", ".join([*ways, "a smaller batch, or a larger GPU"])
        yield f"too large: {size_words(worst.memory.total)} a device is more than the {gpu.memory_gb:g} GB of {gpu.name}: use {way_out}"


def _disk_lines(waiting: Mapping[Stage, Sized], keep: Keep) -> Iterator[str]:
    models, adapters = (
        [s.weights for s in waiting.values() if s.weights and bool(s.adapter) == adapted]
        for adapted in (False, True)
    )
    if not models and not adapters:
        return
    parts = [(models, "models"), (adapters, "adapters")]
    what = ", ".join(
        f"{len(some)} {name} to train, {size_words(max(some))} each" for some, name in parts if some
    )
    stays = {"weights": [*models, *adapters], "adapters": adapters, "numbers": []}[keep]
    left = f"keep={keep} leaves {size_words(sum(stays)) if stays else 'no weights'}"
    at_most = f", {size_words(sum(models) + sum(adapters))} at most during the run"
    other = "; keep=numbers deletes them as cells get their numbers" if keep == "weights" else at_most
    yield f"disk: {what}; {left}{other}"
