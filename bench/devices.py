"""How a training is spread over devices: which stages are, and what each device does of a step."""

from __future__ import annotations

from typing import NamedTuple

from bench.config import SftEpochs, Training
from bench.kinds import ConversationSft, RewardModelSettings, TrainSettings
from bench.store import Stage

Spread = TrainSettings | RewardModelSettings | ConversationSft  # settings of a training that several devices may share

# Losses of a whole batch that are not gathered from all devices: a baseline of its rows, statistics of its tokens, a running window.
ONE_DEVICE = {"kto_pair", "offline_ppo", "spa"}


class Share(NamedTuple):
    """What one device does of a step: so many rows at once, so many times."""

    batch_size: int
    accumulation: int


def is_spread(stage: Stage) -> bool:
    return isinstance(stage.settings, Spread)


def learning(settings: Spread) -> Training | SftEpochs:
    """What a training is set to: its batches, rate and epochs."""
    return settings.training if isinstance(settings, ConversationSft) else settings.method


def share_of(method: Training | SftEpochs, devices: int) -> Share:
    """A device's share of a step, the same rows in all: of each batch where it can be divided, else of the whole step.

    KTO's z0 is a mean over a batch, gathered from all devices, so its batch is divided or nothing. Raises ValueError where the devices
    cannot share evenly.
    """
    name, size, accumulation = getattr(method, "name", ""), method.batch_size, method.gradient_accumulation_steps
    if devices == 1:
        return Share(size, accumulation)
    if name in ONE_DEVICE:
        way_out = "train it with accelerate=one (a start model that several devices have made is taken as it is)"
        raise ValueError(f"method={name} looks at a whole batch and trains on one device, got accelerate.devices={devices}: {way_out}")
    least = 2 if name == "kto" else 1
    if size % devices == 0 and size // devices >= least:
        return Share(size // devices, accumulation)
    if name == "kto":
        raise ValueError(f"method.batch_size={size} of kto must be a multiple of accelerate.devices={devices}, and twice that at least")
    if size * accumulation % devices:
        where = "method" if isinstance(method, Training) else "sft.training"
        step = f"{where}.batch_size={size} x {where}.gradient_accumulation_steps={accumulation}"
        raise ValueError(f"a step of {step} rows cannot be shared by accelerate.devices={devices}")
    rows = size * accumulation // devices
    at_once = max(n for n in range(1, min(size, rows) + 1) if rows % n == 0)
    return Share(at_once, rows // at_once)
