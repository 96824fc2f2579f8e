"""Opening the engine that a stage's settings name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.engines.base import Engine
from bench.store.stage_settings import GenerateSettings, LogpsSettings, SampleSettings


def open_engine(
    settings: SampleSettings | LogpsSettings | GenerateSettings, inputs: Mapping[str, Path]
) -> Engine:
    """The engine that the settings name, with its policy loaded.

    `inputs`: the policy's folder `model`, and for an adapter its base model's folder `base`.
    """
    model, base, control = inputs["model"], inputs.get("base"), getattr(settings, "control", None)
    if settings.engine == "vllm":
        from bench.engines.vllm import VllmEngine

        assert settings.serving is not None, "engine=vllm needs the settings of its server"
        return VllmEngine(model, settings.dtype, settings.serving, control, base)
    from bench.engines.hf import TransformersEngine

    return TransformersEngine(model, settings.dtype, settings.batch_size, control, settings.loading, base)
