"""How a training is spread over devices: which stages are, what each device does of a step, and what cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from bench.config import ClusterLauncher, Session, SftEpochs, Training
from bench.machine import visible_gpus
from bench.store.keys import Stage
from bench.store.stage_settings import ConversationSft, RewardModelSettings, TrainSettings

Spread = TrainSettings | RewardModelSettings | ConversationSft  # settings of a training that several devices may share


class Share(NamedTuple):
    """What one device does of a step: so many rows at once, so many times."""

    batch_size: int
    accumulation: int


def learning(settings: Spread) -> Training | SftEpochs:
    """What a training is set to: its batches, rate and epochs."""
    return settings.training if isinstance(settings, ConversationSft) else settings.method


def share_of(method: Training | SftEpochs, devices: int) -> Share:
    """A device's share of a step, the same rows in all: of each batch where it can be divided, else of the whole step.

    A batch whose rows share a number, such as KTO's z0, is divided or nothing: the number is gathered from all devices. Raises ValueError
    where the devices cannot share evenly.
    """
    name = getattr(method, "name", "")
    size, accumulation = method.batch_size, method.gradient_accumulation_steps
    if devices == 1:
        return Share(size, accumulation)
    if isinstance(method, Training) and not method.spreads:
        way_out = "train it with accelerate=one (a start model that several devices have made is taken as it is)"
        raise ValueError(f"method={name} looks at a whole batch and trains on one device, got accelerate.devices={devices}: {way_out}")
    coupled = isinstance(method, Training) and method.couples_rows
    least = 2 if coupled else 1
    if size % devices == 0 and size // devices >= least:
        return Share(size // devices, accumulation)
    if coupled:
        raise ValueError(f"method.batch_size={size} of {name} must be a multiple of accelerate.devices={devices}, and twice that at least")
    if size * accumulation % devices:
        where = "method" if isinstance(method, Training) else "sft.training"
        step = f"{where}.batch_size={size} x {where}.gradient_accumulation_steps={accumulation}"
        raise ValueError(f"a step of {step} rows cannot be shared by accelerate.devices={devices}")
    rows = size * accumulation // devices
    at_once = max(n for n in range(1, min(size, rows) + 1) if rows % n == 0)
    return Share(at_once, rows // at_once)


def spread_faults(session: Session, stages: Sequence[Stage]) -> list[str]:
    """Why trainings among these stages cannot be spread as the session asks, or will not find their GPUs; empty where they can."""
    how, wanted = session.accelerate, session.accelerate.devices
    spread = [(stage.kind, stage.settings) for stage in stages if isinstance(stage.settings, Spread)]
    if wanted == 1 or not spread:
        return []
    found = []
    if how.config.get("distributed_type") == "NO":
        found.append(f"accelerate.devices={wanted} needs a way to spread a training over them: take accelerate=ddp, fsdp or zero3")
    for key, expected in (("num_processes", wanted), ("num_machines", 1)):
        if (got := how.config.get(key)) != expected:
            found.append(f"accelerate.config.{key} must be {expected} where accelerate.devices={wanted}, got {got}")
    if how.config.get("distributed_type") == "DEEPSPEED" and session.launcher.name == "local" and find_spec("deepspeed") is None:
        found.append(f"accelerate={how.name} needs DeepSpeed, which is not installed here: pip install -e '.[deepspeed]'")
    if how.sharding != "none" and how.config.get("use_cpu"):
        found.append(f"accelerate={how.name} shards over GPUs; on CPUs accelerate trains whole copies: take accelerate=ddp")
    if how.sharding != "none" and any(isinstance(s, TrainSettings) and s.loading.quantized for _, s in spread):
        found.append(f"adapter=qlora keeps its base whole on each device, in four bits, got accelerate={how.name}: take accelerate=ddp")
    for _, settings in spread:
        try:
            share_of(learning(settings), wanted)
        except ValueError as error:
            found.append(str(error))
    if not found and not how.config.get("use_cpu"):
        found += _lacking_gpus(session, sorted({kind for kind, _ in spread}))
    return list(dict.fromkeys(found))


def check_rows(n: int, method: Training | SftEpochs, devices: int) -> None:
    """Raises ValueError where rows are too few for a batch on each of several devices, which drop what does not fill one."""
    at_once = share_of(method, devices).batch_size * devices
    if devices > 1 and n < at_once:
        raise ValueError(f"{n} rows do not fill one batch of {at_once} over {devices} devices: bring more rows, or take fewer devices")


def _listed(of_kind: Mapping[str, int]) -> str:
    return " and ".join(f"{n} to {kind} stages" for kind, n in of_kind.items())


def _lacking_gpus(session: Session, kinds: Sequence[str]) -> list[str]:
    launcher, wanted = session.launcher, session.accelerate.devices
    if isinstance(launcher, ClusterLauncher):
        of_kind = {kind: launcher.resources(kind, "gpu").gpus for kind in kinds}
        given = min(of_kind.values())
        each = ", ".join(f"{kind}: {{gpus: {wanted}}}" for kind in kinds)
        where, way_out = f"hydra/launcher={launcher.name} gives {_listed(of_kind)}", f"'hydra.launcher.stages={{{each}}}'"
    else:
        given, way_out = len(visible_gpus()), "fewer, or accelerate=ddp accelerate.config.use_cpu=true"
        where = f"{given} are here"
    return [f"accelerate.devices={wanted} GPUs are asked for each training and {where}: take {way_out}"] if given < wanted else []
