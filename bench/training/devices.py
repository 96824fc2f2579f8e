"""Spreading a training over several devices: the stages that can be spread, each device's share of a step,
and the limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from bench.config import ClusterLauncher, Session, SftEpochs, SftTraining, Training
from bench.machine import visible_gpus
from bench.store.keys import Stage
from bench.store.stage_settings import ConversationSft, RewardModelSettings, TrainSettings

# Settings of a training that several devices may share.
Spread = TrainSettings | RewardModelSettings | ConversationSft
Learning = Training | SftEpochs | SftTraining


class Share(NamedTuple):
    """One device's share of a training step."""

    batch_size: int  # Rows in one forward and backward pass.
    accumulation: int  # Number of passes.


def learning(settings: Spread) -> Learning:
    """Settings of a training: batch size, learning rate, epochs or steps."""
    return settings.training if isinstance(settings, ConversationSft) else settings.method


def share_of(method: Learning, devices: int) -> Share:
    """A device's share of a step; the step as a whole has the same rows as on one device.

    Each batch is divided among the devices if that is possible; otherwise the whole step is divided. If the
    rows of a batch share a number, such as KTO's z0, only the batch may be divided, because that number is
    gathered from all devices. Raises ValueError if the devices cannot share evenly.
    """
    name = getattr(method, "name", "")
    size, accumulation = method.batch_size, method.gradient_accumulation_steps
    if devices == 1:
        return Share(size, accumulation)
    if isinstance(method, Training) and not method.spreads:
        way_out = (
            "Train it with accelerate=one (its start model may come from a training on several devices)."
        )
        raise ValueError(
            f"method={name} trains on one device, because its loss needs the whole batch, got accelerate.devices={devices}. {way_out}"
        )
    coupled = isinstance(method, Training) and method.couples_rows
    least = 2 if coupled else 1
    if size % devices == 0 and size // devices >= least:
        return Share(size // devices, accumulation)
    if coupled:
        raise ValueError(
            f"method.batch_size must be a multiple of accelerate.devices={devices}, with at least 2 rows per device, for method={name}, "
            f"got {size}. Set method.batch_size={max(2, -(-size // devices)) * devices} or use fewer devices."
        )
    if size * accumulation % devices:
        in_steps = "method.first_training" if isinstance(method, SftTraining) else "sft.training"
        where = "method" if isinstance(method, Training) else in_steps
        step = f"{where}.batch_size={size} x {where}.gradient_accumulation_steps={accumulation}"
        raise ValueError(
            f"a training step of {step} rows cannot be divided evenly among accelerate.devices={devices}. "
            f"Choose a batch size that is a multiple of {devices}."
        )
    rows = size * accumulation // devices
    at_once = max(n for n in range(1, min(size, rows) + 1) if rows % n == 0)
    return Share(at_once, rows // at_once)


def spread_faults(session: Session, stages: Sequence[Stage]) -> list[str]:
    """Problems with spreading these stages' trainings as the session asks, missing GPUs included; empty if
    there are none.
    """
    how, wanted = session.accelerate, session.accelerate.devices
    spread = [(stage.kind, stage.settings) for stage in stages if isinstance(stage.settings, Spread)]
    if wanted == 1 or not spread:
        return []
    faults = []
    if how.config.get("distributed_type") == "NO":
        faults.append(
            f"accelerate.devices={wanted} needs a way to spread a training over devices. Use accelerate=ddp, fsdp or zero3."
        )
    for key, expected in (("num_processes", wanted), ("num_machines", 1)):
        if (got := how.config.get(key)) != expected:
            faults.append(
                f"accelerate.config.{key} must be {expected} with accelerate.devices={wanted}, got {got}"
            )
    if (
        how.config.get("distributed_type") == "DEEPSPEED"
        and session.launcher.name == "local"
        and find_spec("deepspeed") is None
    ):
        faults.append(
            f"accelerate={how.name} needs DeepSpeed, which is not installed. Run: pip install -e '.[deepspeed]'"
        )
    if how.sharding != "none" and how.config.get("use_cpu"):
        faults.append(
            f"accelerate={how.name} divides a model among GPUs; on CPUs each process trains a whole copy. Use accelerate=ddp on CPUs."
        )
    if how.sharding != "none" and any(
        isinstance(s, TrainSettings) and s.loading.quantized for _, s in spread
    ):
        faults.append(
            f"adapter=qlora keeps a whole base model in four bits on each device, got accelerate={how.name}, which divides it. "
            "Use accelerate=ddp."
        )
    for _, settings in spread:
        try:
            share_of(learning(settings), wanted)
        except ValueError as error:
            faults.append(str(error))
    if not faults and not how.config.get("use_cpu"):
        faults += _lacking_gpus(session, sorted({kind for kind, _ in spread}))
    return list(dict.fromkeys(faults))


def check_rows(n: int, method: Learning, devices: int) -> None:
    """Raises ValueError if there are too few rows for one batch on each of several devices.

    Several devices drop a batch that is not full.
    """
    at_once = share_of(method, devices).batch_size * devices
    if devices > 1 and n < at_once:
        raise ValueError(
            f"{n} rows do not fill one batch of {at_once} rows over {devices} devices. Use more rows or fewer devices."
        )


def _listed(of_kind: Mapping[str, int]) -> str:
    return " and ".join(f"{n} to {kind} stages" for kind, n in of_kind.items())


def _lacking_gpus(session: Session, kinds: Sequence[str]) -> list[str]:
    launcher, wanted = session.launcher, session.accelerate.devices
    if isinstance(launcher, ClusterLauncher):
        of_kind = {kind: launcher.resources(kind, "gpu").gpus for kind in kinds}
        given = min(of_kind.values())
        each = ", ".join(f"{kind}: {{gpus: {wanted}}}" for kind in kinds)
        where, way_out = (
            f"hydra/launcher={launcher.name} gives {_listed(of_kind)}",
            f"Set 'hydra.launcher.stages={{{each}}}'.",
        )
    else:
        given, way_out = (
            len(visible_gpus()),
            "Use fewer devices, or CPUs: accelerate=ddp accelerate.config.use_cpu=true.",
        )
        where = f"this machine has {given}"
    return (
        [f"each training needs accelerate.devices={wanted} GPUs, but {where}. {way_out}"]
        if given < wanted
        else []
    )
