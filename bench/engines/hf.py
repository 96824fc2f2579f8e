"""transformers as an engine: generation batched by length in a fixed order, log-probs by the code path that training uses.

bfloat16 means: weights stored and completions written in bfloat16; training and log-probs compute in bfloat16 by autocast over
float32 weights. AdamW on bfloat16 weights loses its updates: at 5e-7, 100 steps moved 1 % of weights of size 0.02, not 56 %.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available
from trl.trainer.utils import add_fused_lm_head

from bench.config import Decoding, Loading
from bench.engines.base import (
    USUAL,
    DrawnCompletion,
    Progress,
    Vocabulary,
    by_length,
    in_batches,
    load_config,
    named_errors,
    silent,
)
from bench.models.hub import read_config, trusts_code
from bench.models.model_config import ADAPTER, check_no_adapter, positions, weight_files
from bench.models.tokenize import Ids, check_rendering, model_folder
from bench.store.keys import tree_stamp

# Masks and angles that older transformers saved and that a model computes: GPT-2's kin, GPT-Neo and GPT-J, rotary embeddings.
OLD_BUFFERS = re.compile(r"\.(masked_bias|attn\.(attention\.)?bias|rotary_emb\.inv_freq)$")

COPY_AGAIN = "copy the whole folder again, or save the model with save_pretrained"

# Names of tables of positions: of GPT-2 and its kin, OPT and GPT-J, BERT and its kin.
POSITION_TABLES = ("wpe", "positions_embed", "embed_positions", "position_embeddings", "pos_encoding")


def load_model(path: Path, dtype: str, loading: Loading = USUAL, base: Path | None = None, *, trainable: bool = False) -> PreTrainedModel:
    """A fresh model from a folder (never a copy of one that a trainer has touched), on the GPU where there is one.

    A folder that holds an adapter is read beside its `base`; `trainable`: to go on training it. Raises ValueError for an adapter without a
    base, and for ways of loading that this machine has not.
    """
    folder = model_folder(path)
    adapted = (folder / ADAPTER).exists()
    if base is None:
        check_no_adapter(folder)
    whole = model_folder(base) if adapted and base else folder
    model = load_tensors(AutoModelForCausalLM, whole, dtype, **_ways(loading, dtype))
    if adapted:
        put_in(model, folder, trainable=trainable)
    # Only the token ids: a repetition penalty or a temperature that a folder brings would change what we decode, unkeyed, and some
    # folders' settings are refused when the model is saved again.
    given = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=given.bos_token_id, eos_token_id=given.eos_token_id, pad_token_id=given.pad_token_id
    )
    return model.to(device()).eval()


def load_tensors(of: Any, folder: Path, dtype: str, *, new_head: bool = False, settings: Mapping[str, Any] = {}, **ways: Any) -> Any:
    """A model of one of transformers' classes whose tensors all come from a folder; `settings` change its config.

    `new_head`: with a head of this class, newly drawn, in place of the folder's own. Raises ValueError for tensors that are missing or
    left over.
    """
    check_finite_files(folder, tree_stamp(folder))
    config = load_config(folder, getattr(of, "config_class", None), **settings)
    with named_errors(folder, config.to_dict()):
        model, found = of.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trusts_code(folder),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_arrived refuses them by name
            **ways,
        )
    body = f"{model.base_model_prefix}."
    misshaped = [one for one in found["mismatched_keys"] if not new_head or one[0].startswith(body)]
    missing, unexpected = (
        {name for name in found[kind] if not new_head or name.startswith(body)} for kind in ("missing_keys", "unexpected_keys")
    )
    check_arrived(folder, missing, unexpected, misshaped)
    return model


def put_in(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> None:
    """Put a folder's adapter into its base model; `trainable`: to go on training it. Raises ValueError as load_tensors does."""
    check_finite_files(folder, tree_stamp(folder))
    with named_errors(folder, read_config(folder, ADAPTER), ADAPTER):
        found = model.load_adapter(str(folder), is_trainable=trainable, use_safetensors=True, ignore_mismatched_sizes=True)
    check_arrived(folder, found.missing_keys, found.unexpected_keys, found.mismatched_keys, of=ADAPTER)


def check_arrived(
    folder: Path,
    missing: Collection[str],
    unexpected: Collection[str],
    misshaped: Collection[tuple[str, Sequence[int], Sequence[int]]],
    of: str = "config.json",
) -> None:
    """Raises ValueError for tensors of a model that its folder lacks or has in other sizes, which transformers would draw at random, and
    for tensors of the folder that the model has no place for: it would be another model than the one that was saved. transformers names
    neither tied weights nor most buffers that it computes itself; OLD_BUFFERS are the others."""
    unexpected = [name for name in unexpected if not OLD_BUFFERS.search(name)]
    found = [f"{what} {_some(names)}" for what, names in (("it lacks", missing), ("the model has no place for", unexpected)) if names]
    if misshaped:
        name, came, expected = min(misshaped)
        more = f", and {len(misshaped) - 1} more tensors" if len(misshaped) > 1 else ""
        found = [f"{name} must have the sizes {list(expected)}, got {list(came)}{more}"]
    if found:
        raise ValueError(f"the weights in {folder} are not those of its {of}: {' and '.join(found)}; {COPY_AGAIN}")


@functools.cache
def check_finite_files(folder: Path, stamp: str) -> None:
    """Raises ValueError for weights that are NaN or infinite: what such a model writes looks like text, and is none. Read once a process
    and `stamp` of the folder, whichever engine loads it."""
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no dict
                value = tensors.get_tensor(name)
                if value.is_floating_point() and value.numel() and not all(bound.isfinite() for bound in _bounds(value)):
                    n = int((~value.float().isfinite()).sum())
                    why = f"{name} holds {n} NaN or infinite values of {value.numel()}"
                    raise ValueError(f"the weights in {folder} are not finite ({why}): take an earlier checkpoint, or train it again")


def _bounds(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value, each NaN where one value is; one pass without a copy, but for types of one byte."""
    return (value.float() if value.element_size() == 1 else value).aminmax()


def check_weights(folder: Path, adapter: Path | None = None) -> None:
    """What load_model checks of a causal LM, and of an adapter beside it, that another program loads; takes no memory for the weights."""
    model = load_tensors(AutoModelForCausalLM, folder, "bfloat16", device_map="meta")
    if adapter is not None:
        put_in(model, adapter)


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - len(first)} more tensors" if len(names) > len(first) else "")


def device() -> str:
    """Where a process puts a model: on its GPU, where it has one; what FSDP or DeepSpeed shard they take from the CPU, in parts."""
    sharded = "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED"))
    return "cuda" if torch.cuda.is_available() and not sharded else "cpu"


def _ways(loading: Loading, dtype: str) -> dict[str, Any]:
    """How transformers is to load a model. Raises ValueError for what needs a GPU or a package that is not here."""
    ways: dict[str, Any] = {} if loading.attention == "auto" else {"attn_implementation": loading.attention}
    if loading.attention == "flash_attention_2":
        if not torch.cuda.is_available() or not is_flash_attn_2_available():
            raise ValueError("model.attention=flash_attention_2 needs a GPU and the flash-attn package: take model.attention=sdpa")
        if dtype != "bfloat16":
            raise ValueError(f"model.attention=flash_attention_2 computes in bfloat16, got model.dtype={dtype}: set model.dtype=bfloat16")
    if loading.quantized:
        if find_spec("bitsandbytes") is None:
            raise ValueError("adapter=qlora needs bitsandbytes: pip install -e '.[qlora]', or take adapter=lora")
        from transformers import BitsAndBytesConfig

        ways["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=loading.quantized,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    return ways


def in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """The model with float32 weights, those kept in four bits apart."""
    if not getattr(model, "is_quantized", False):
        return model.float()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return model


def check_fit(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that end a completion: the tokenizer's EOS, and those that the model's generation settings name.

    Raises ValueError where the tokenizer writes ids that the model has no embedding for, or renders what cannot be learned from (see
    check_rendering).
    """
    embeddings: Any = model.get_input_embeddings()
    rows, most = embeddings.weight.shape[0], len(tokenizer)
    if most > rows:
        raise ValueError(f"{model_folder(path)} has embeddings of {rows} tokens and a tokenizer of {most}: they are not of one model")
    named: Any = model.generation_config.eos_token_id  # type: ignore[union-attr]
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named] if named is not None else [])}
    check_rendering(path, tokenizer, ends)
    return ends


def has_position_table(model: Any) -> bool:
    """Whether a model looks its positions up in a table, which ends; others compute them."""
    return any(name.rsplit(".", 1)[-1] in POSITION_TABLES for name, _ in [*model.named_modules(), *model.named_buffers()])


class TransformersEngine:
    """A loaded policy that writes and scores; see Vocabulary for `control`."""

    def __init__(
        self,
        path: Path,
        dtype: str,
        batch_size: int,
        control: str | None = None,
        loading: Loading = USUAL,
        base: Path | None = None,
    ):
        self.vocabulary = Vocabulary(path, control, base)
        self.tokenizer = self.vocabulary.tokenizer
        self.model: Any = load_model(path, dtype, loading, base)
        self.dtype, self.batch_size = dtype, batch_size
        self.ends = check_fit(path, self.model, self.tokenizer)
        self._scores = False  # whether the model has been made ready for `logps`

    def generate(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int, progress: Progress = silent) -> list[DrawnCompletion]:
        """A completion of each prompt, in the prompts' order. The same prompts, decoding and seed give the same completions.

        Prompts are batched by length; each batch draws from a generator of its own, seeded by `seed` and its place.
        """
        places, longest, new = positions(self.model.config.to_dict()), max(map(len, prompts), default=0), decoding.max_new_tokens
        if places is not None and longest >= places:
            raise ValueError(f"a prompt of {longest} tokens leaves no place for an answer in the model's {places}: drop such prompts")
        if places is not None and longest + new > places and has_position_table(self.model):
            n = sum(len(prompt) + new > places for prompt in prompts)
            why = f"{n} of {len(prompts)} prompts, the longest of {longest} tokens, and max_new_tokens={new} go beyond its {places}"
            raise ValueError(f"the model has a table of positions: {why}: take fewer new tokens, or drop such prompts")
        written: dict[int, DrawnCompletion] = {}
        for rows in by_length([len(prompt) for prompt in prompts], self.batch_size):
            torch.manual_seed(seed * 1_000_003 + len(written))
            for row, completion in zip(rows, self._batch([prompts[i] for i in rows], decoding), strict=True):
                written[row] = completion
            progress(len(written), len(prompts))
        return [written[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def _batch(self, prompts: Sequence[list[int]], decoding: Decoding) -> list[DrawnCompletion]:
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if decoding.temperature:
            sampling = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        limits: dict[str, Any] = {"max_new_tokens": decoding.max_new_tokens, "eos_token_id": sorted(self.ends), "pad_token_id": pad}
        if self.vocabulary.unwritten:
            limits["suppress_tokens"] = self.vocabulary.unwritten
        out = self.model.generate(input_ids=ids, attention_mask=mask, use_cache=True, **limits, **sampling)
        return [self.vocabulary.written(row) for row in out[:, width:].tolist()]

    def logps(self, rows: Sequence[Ids], progress: Progress = silent) -> list[float]:
        """Summed log-probability (nats) of each row's completion given its prompt, in the rows' order.

        Goes through TRL's fused head, as training does, so that a reference equals a policy with the same weights.
        """
        if not self._scores:
            add_fused_lm_head(in_float32(self.model))
            self._scores = True

        def sums(batch: list[int]) -> list[float]:
            return per_token_logps(self.model, [rows[i] for i in batch], self.tokenizer.pad_token_id, self.dtype).sum(dim=1).tolist()

        return in_batches([len(row.whole) for row in rows], self.batch_size, sums, progress)


@torch.no_grad()
def per_token_logps(model: Any, rows: Sequence[Ids], pad: int, dtype: str) -> torch.Tensor:
    """Log-probability (nats) of each token of the rows' completions, (B, T-1), 0 elsewhere; token t+1 stands at t.

    `model` has TRL's fused head; rows are padded on the right.
    """
    width = max(len(row.whole) for row in rows)
    ids, mask, labels = [], [], []
    for row in rows:
        padding = width - len(row.whole)
        ids.append(row.whole + [pad] * padding)
        mask.append([1] * (width - padding) + [0] * padding)
        labels.append([-100] * len(row.prompt) + row.completion + [-100] * padding)
    device = model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        out = model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            labels=torch.tensor(labels, device=device),
            use_cache=False,
            fused_lm_head=True,
        )
    return out.log_probs.float()
