"""Tiny random models of the architectures that are compared, each a real folder with a tokenizer that was trained here and begins, ends
and renders as the model's own does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tiny import WORDS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Architecture(NamedTuple):
    config: type[Any]
    model: type[Any]
    template: str | None  # None: a base model, which reads plain text
    bos: str | None
    eos: str
    special: tuple[str, ...] = ()
    adds_bos: bool = False  # to plain text, as SentencePiece's Llama does
    ends: tuple[str, ...] = ()  # that generation_config.json names beside EOS
    spare_rows: int = 0  # of the embeddings, beyond the tokenizer
    sizes: dict[str, Any] = {}


ARCHITECTURES = {
    "llama": Architecture(LlamaConfig, LlamaForCausalLM, LLAMA2, "<s>", "</s>", adds_bos=True),
    "mistral": Architecture(
        MistralConfig, MistralForCausalLM, ZEPHYR, "<s>", "</s>", adds_bos=True, sizes={"sliding_window": 64}
    ),
    "phi": Architecture(PhiConfig, PhiForCausalLM, None, "<|endoftext|>", "<|endoftext|>", spare_rows=64),
    "phi3": Architecture(
        Phi3Config,
        Phi3ForCausalLM,
        PHI3,
        "<s>",
        "<|endoftext|>",
        ("<|end|>", "<|user|>", "<|assistant|>"),
        ends=("<|end|>",),
    ),
    "gpt_neox": Architecture(
        GPTNeoXConfig, GPTNeoXForCausalLM, None, "<|endoftext|>", "<|endoftext|>", spare_rows=64
    ),
    "qwen": Architecture(
        Qwen2Config, Qwen2ForCausalLM, CHATML, None, "<|im_end|>", ("<|endoftext|>", "<|im_start|>")
    ),
}
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
OF_GEMMA: dict[str, Any] = {"head_dim": 16, "sliding_window": 64}
# Architectures of newer models, which are planned here and not trained.
PLANNED = {
    "qwen3": Architecture(
        Qwen3Config, Qwen3ForCausalLM, CHATML, None, "<|im_end|>", ("<|endoftext|>", "<|im_start|>", "<think>", "</think>")
    ),
    "gemma2": Architecture(
        Gemma2Config, Gemma2ForCausalLM, GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"),
        ends=("<end_of_turn>",), sizes=OF_GEMMA,
    ),
    "gemma3_text": Architecture(
        Gemma3TextConfig, Gemma3ForCausalLM, GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"),
        ends=("<end_of_turn>",), sizes=OF_GEMMA,
    ),
    "olmo2": Architecture(
        Olmo2Config, Olmo2ForCausalLM, ZEPHYR, "<|endoftext|>", "<|endoftext|>", spare_rows=64
    ),
}  # fmt: skip


def make_tokenizer(kind: Architecture) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys([kind.eos, *([kind.bos] if kind.bos else []), *kind.special]))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([" ".join(WORDS), "user assistant INST"], trainer)
    if kind.adds_bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{kind.bos} $A", special_tokens=[(str(kind.bos), bpe.token_to_id(str(kind.bos)))]
        )
    more = {"bos_token": kind.bos} if kind.bos else {}
    pad = (
        {"pad_token": "<|endoftext|>"} if "<|endoftext|>" in special else {}
    )  # Llama-2 and Mistral name none
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=kind.eos, chat_template=kind.template, **more, **pad
    )


def make(
    name: str, folder: Path, change: Callable[[PreTrainedTokenizerFast], None] = lambda tokenizer: None
) -> Path:
    """The folder of an architecture's tiny model; `change`: what is done to its tokenizer first."""
    kind = (ARCHITECTURES | PLANNED)[name]
    tokenizer = make_tokenizer(kind)
    change(tokenizer)
    torch.manual_seed(0)
    heads = {} if name in ("phi", "gpt_neox") else {"num_key_value_heads": 1}
    config = kind.config(
        vocab_size=len(tokenizer) + kind.spare_rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **heads,
        **kind.sizes,
    )
    model = kind.model(config)
    ends = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(list(kind.ends))]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends if kind.ends else ends[0]
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
