"""How a start model is loaded, and what of it is trained: all of it, or a LoRA adapter beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bench.config.base import AsList, Count, Positive, Settings

Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]  # auto: what transformers takes for the architecture
Checkpointing = Literal["auto"] | bool  # of gradients; auto: see shapes.checkpoints


class Loading(Settings):
    """How every stage of a cell loads its causal LMs, so that a reference is computed as the policy is."""

    attention: Attention = "auto"
    quantized: Literal["nf4"] | None = None  # the base model's linear layers in four bits (QLoRA)


class NoAdapter(Settings):
    """Full fine-tuning."""

    name: Literal["none"] = "none"


class Adapter(Settings):
    """LoRA (Hu et al. 2021): W + (alpha / rank) B A beside frozen weights W; QLoRA (Dettmers et al. 2023): W in four bits."""

    name: Literal["lora", "qlora"]
    rank: Count
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Annotated[tuple[str, ...], AsList]  # names of linear layers; none: all but the output embeddings
