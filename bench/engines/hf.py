"""transformers as an engine. Generation is batched by length, in a fixed order; log-probabilities take
training's code path.

dtype=bfloat16 means: weights are stored in bfloat16 and completions are written in it. Training and
log-probabilities compute in bfloat16 by autocast, over float32 weights. The reason: AdamW on bfloat16 weights
loses its updates. At a learning rate of 5e-7, 100 steps changed 1 % of weights of size 0.02, not 56 %.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.logits_process import TopPLogitsWarper
from transformers.utils import is_flash_attn_2_available

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
from bench.engines.fused_head import add_fused_lm_head
from bench.models.hub import read_config, trusts_code
from bench.models.model_config import ADAPTER, check_no_adapter, positions, weight_files
from bench.models.tokenize import Ids, check_rendering, model_folder
from bench.store.keys import tree_stamp

# Masks and angles that older versions of transformers saved and that models now compute: of GPT-2 and
# relatives, GPT-Neo, GPT-J, and rotary embeddings.
OLD_BUFFERS = re.compile(r"\.(masked_bias|attn\.(attention\.)?bias|rotary_emb\.inv_freq)$")

COPY_AGAIN = "Copy the whole folder again, or save the model with save_pretrained."

# Names of position tables: in GPT-2 and relatives, OPT, GPT-J, BERT and relatives.
POSITION_TABLES = ("wpe", "positions_embed", "embed_positions", "position_embeddings", "pos_encoding")


def load_model(
    path: Path, dtype: str, loading: Loading = USUAL, base: Path | None = None, *, trainable: bool = False
) -> PreTrainedModel:
    """A model read from its folder, on the GPU if there is one.

    It is always a fresh one, never a copy of a model that a trainer has changed. An adapter's folder is read
    together with its `base`; `trainable`: the adapter will be trained further. Raises ValueError for an
    adapter without a base, and for ways of loading that this machine does not support.
    """
    folder = model_folder(path)
    adapted = (folder / ADAPTER).exists()
    if base is None:
        check_no_adapter(folder)
    whole = model_folder(base) if adapted and base else folder
    model = load_tensors(AutoModelForCausalLM, whole, dtype, **_loading_arguments(loading, dtype))
    if adapted:
        load_adapter_into(model, folder, trainable=trainable)
    # Keep only the token ids. A folder's repetition penalty or temperature would change completions without
    # being in the key, and transformers refuses to save some folders' settings again.
    given = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=given.bos_token_id, eos_token_id=given.eos_token_id, pad_token_id=given.pad_token_id
    )
    return model.to(device()).eval()


def load_tensors(
    of: Any,
    folder: Path,
    dtype: str,
    *,
    new_head: bool = False,
    settings: Mapping[str, Any] = {},
    **ways: Any,
) -> Any:
    """A model of the transformers class `of`, with all its tensors read from a folder; `settings` change its
    config.

    `new_head`: the model gets a new random head of this class instead of the folder's. Raises ValueError for
    tensors that are missing, or that the model has no place for.
    """
    check_finite_files(folder, tree_stamp(folder))
    config = load_config(folder, getattr(of, "config_class", None), **settings)
    with named_errors(folder, config.to_dict()):
        model, loading_info = of.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trusts_code(folder),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_loaded_tensors refuses them, with their names.
            **ways,
        )
    body = f"{model.base_model_prefix}."
    misshaped = [one for one in loading_info["mismatched_keys"] if not new_head or one[0].startswith(body)]
    missing, unexpected = (
        {name for name in loading_info[kind] if not new_head or name.startswith(body)}
        for kind in ("missing_keys", "unexpected_keys")
    )
    check_loaded_tensors(folder, missing, unexpected, misshaped)
    return model


def load_adapter_into(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> None:
    """Load a folder's adapter into its base model.

    `trainable`: it will be trained further. Raises ValueError as load_tensors does.
    """
    check_finite_files(folder, tree_stamp(folder))
    with named_errors(folder, read_config(folder, ADAPTER), ADAPTER):
        loading_info = model.load_adapter(
            str(folder), is_trainable=trainable, use_safetensors=True, ignore_mismatched_sizes=True
        )
    keys = loading_info.missing_keys, loading_info.unexpected_keys, loading_info.mismatched_keys
    check_loaded_tensors(folder, *keys, of=ADAPTER)


def check_loaded_tensors(
    folder: Path,
    missing: Collection[str],
    unexpected: Collection[str],
    misshaped: Collection[tuple[str, Sequence[int], Sequence[int]]],
    of: str = "config.json",
) -> None:
    """Raises ValueError if the tensors of a folder are not those of its model.

    transformers would fill missing tensors, and those of other sizes, with random numbers, and ignore tensors
    that the model has no place for: the loaded model would not be the saved one. transformers lists neither
    tied weights nor most buffers that it computes itself; the other buffers are OLD_BUFFERS.
    """
    unexpected = [name for name in unexpected if not OLD_BUFFERS.search(name)]
    faults = [
        f"{fault} {_some(names)}"
        for fault, names in (("missing:", missing), ("the model has no place for", unexpected))
        if names
    ]
    if misshaped:
        name, given, expected = min(misshaped)
        more = f", and {len(misshaped) - 1} more tensors" if len(misshaped) > 1 else ""
        faults = [f"{name} must have the sizes {list(expected)}, got {list(given)}{more}"]
    if faults:
        raise ValueError(f"the weights in {folder} do not fit its {of} ({'; '.join(faults)}). {COPY_AGAIN}")


@functools.cache
def check_finite_files(folder: Path, stamp: str) -> None:
    """Raises ValueError for weights that are NaN or infinite. The text of such a model is meaningless,
    although it may look normal.

    `stamp`: of the folder (tree_stamp). Each process reads a folder once per stamp, for all engines.
    """
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # It is no dict.
                value = tensors.get_tensor(name)
                if (
                    value.is_floating_point()
                    and value.numel()
                    and not all(bound.isfinite() for bound in _bounds(value))
                ):
                    n = int((~value.float().isfinite()).sum())
                    why = f"{name} holds {n} NaN or infinite values of {value.numel()}"
                    raise ValueError(
                        f"the weights in {folder} are not finite ({why}). Use an earlier checkpoint, or train the model again."
                    )


def _bounds(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value; both are NaN if any value is NaN.

    Reads the tensor once, and copies only types of one byte.
    """
    return (value.float() if value.element_size() == 1 else value).aminmax()


def check_weights(folder: Path, adapter: Path | None = None) -> None:
    """Check the folder of a causal LM, and of its adapter, as load_model does. For models that another
    program loads.

    Takes no memory for the base model's weights. Raises ValueError as load_model does.
    """
    model = load_tensors(AutoModelForCausalLM, folder, "bfloat16", device_map="meta")
    if adapter is not None:
        load_adapter_into(model, adapter)


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (
        f" and {len(names) - len(first)} more tensors" if len(names) > len(first) else ""
    )


def device() -> str:
    """The device for this process's models: its GPU if it has one, else the CPU.

    Under FSDP and DeepSpeed it is the CPU: they move their parts of the model to the GPUs themselves.
    """
    sharded = "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED"))
    return "cuda" if torch.cuda.is_available() and not sharded else "cpu"


def _loading_arguments(loading: Loading, dtype: str) -> dict[str, Any]:
    """Keyword arguments of transformers' from_pretrained.

    Raises ValueError if they need a missing GPU or package.
    """
    arguments: dict[str, Any] = (
        {} if loading.attention == "auto" else {"attn_implementation": loading.attention}
    )
    if loading.attention == "flash_attention_2":
        if not torch.cuda.is_available() or not is_flash_attn_2_available():
            raise ValueError(
                "model.attention=flash_attention_2 needs a GPU and the flash-attn package. Use model.attention=sdpa."
            )
        if dtype != "bfloat16":
            raise ValueError(
                f"model.attention=flash_attention_2 needs model.dtype=bfloat16, got model.dtype={dtype}"
            )
    if loading.quantized:
        if find_spec("bitsandbytes") is None:
            raise ValueError(
                "adapter=qlora needs the package bitsandbytes. Run: pip install -e '.[qlora]', or use adapter=lora."
            )
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=loading.quantized,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    return arguments


def in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """The model with float32 weights; weights quantised to four bits stay as they are."""
    if not getattr(model, "is_quantized", False):
        return model.float()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return model


def check_fit(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that end a completion: the tokenizer's EOS, and those of the model's generation settings.

    Raises ValueError if the tokenizer has tokens without an embedding in the model, or if its prompts or
    completions begin or end wrongly (see check_rendering).
    """
    embeddings: Any = model.get_input_embeddings()
    rows, tokens = embeddings.weight.shape[0], len(tokenizer)
    if tokens > rows:
        raise ValueError(
            f"the tokenizer in {model_folder(path)} has {tokens} tokens, but the model has embeddings for {rows}. "
            "Use the tokenizer that belongs to the model."
        )
    named: Any = model.generation_config.eos_token_id  # type: ignore[union-attr]
    ends = {
        tokenizer.eos_token_id,
        *(named if isinstance(named, list) else [named] if named is not None else []),
    }
    check_rendering(path, tokenizer, ends)
    return ends


def has_position_table(model: Any) -> bool:
    """Whether a model has a table of positions, so that it cannot read beyond the last one.

    Other models compute positions.
    """
    return any(
        name.rsplit(".", 1)[-1] in POSITION_TABLES
        for name, _ in [*model.named_modules(), *model.named_buffers()]
    )


class TransformersEngine:
    """A policy loaded by transformers; see Vocabulary for `control` and `base`."""

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
        self.takes = inspect.signature(self.model.forward).parameters
        self._scores = False  # Whether the model is already prepared for `logps`.

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, seed: int, progress: Progress = silent
    ) -> list[DrawnCompletion]:
        """One completion per prompt, in the prompts' order. The same prompts, decoding and seed give the same
        completions.

        Prompts are batched by length. Each batch samples from a generator of its own, seeded by `seed` and
        the batch's position. Raises ValueError for prompts longer than the model's positions.
        """
        places, longest, new = (
            positions(self.model.config.to_dict()),
            max(map(len, prompts), default=0),
            decoding.max_new_tokens,
        )
        if places is not None and longest >= places:
            raise ValueError(
                f"a prompt of {longest} tokens leaves no room for a completion: the model has {places} positions. Remove such prompts."
            )
        if places is not None and longest + new > places and has_position_table(self.model):
            n = sum(len(prompt) + new > places for prompt in prompts)
            raise ValueError(
                f"{n} of {len(prompts)} prompts (the longest has {longest} tokens) with max_new_tokens={new} exceed the model's {places} "
                "positions. Set a smaller max_new_tokens, or remove such prompts."
            )
        completions: dict[int, DrawnCompletion] = {}
        for rows in by_length([len(prompt) for prompt in prompts], self.batch_size):
            torch.manual_seed(seed * 1_000_003 + len(completions))
            for row, completion in zip(rows, self._batch([prompts[i] for i in rows], decoding), strict=True):
                completions[row] = completion
            progress(len(completions), len(prompts))
        return [completions[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def _batch(self, prompts: Sequence[list[int]], decoding: Decoding) -> list[DrawnCompletion]:
        """Completions of one batch. A row that has ended leaves the batch."""
        width, pad, where = max(map(len, prompts)), self.tokenizer.pad_token_id, self.model.device
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=where)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=where)
        ends = torch.tensor(sorted(self.ends), device=where)
        cache = DynamicCache(config=self.model.config)
        places = mask.cumsum(-1).sub(1).clamp(min=0)  # padding has any place
        rows, written = list(range(len(prompts))), [list[int]() for _ in prompts]
        for _ in range(decoding.max_new_tokens):
            others = {
                name: value
                for name, value in (("position_ids", places), ("logits_to_keep", 1))
                if name in self.takes
            }
            out = self.model(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **others
            )
            tokens = self._choose(out.logits[:, -1].float(), decoding)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                written[row].append(token)
            going = (~torch.isin(tokens, ends)).nonzero()[:, 0]
            if len(going) == 0:
                break
            if len(going) < len(rows):
                rows = [rows[place] for place in going.tolist()]
                tokens, mask, places = tokens[going], mask[going], places[going]
                cache.batch_select_indices(going)
            ids, places = tokens[:, None], places[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        return [self.vocabulary.to_completion(row) for row in written]

    def _choose(self, logits: torch.Tensor, decoding: Decoding) -> torch.Tensor:
        """The next token of each row (B,), from logits (B, V)."""
        logits[:, self.vocabulary.suppressed] = -torch.inf
        if not decoding.temperature:
            return logits.argmax(-1)
        logits /= decoding.temperature
        if decoding.top_p < 1:
            logits = TopPLogitsWarper(decoding.top_p)(None, logits)
        return torch.multinomial(logits.softmax(-1), 1)[:, 0]

    def logps(self, rows: Sequence[Ids], progress: Progress = silent) -> list[float]:
        """Summed log-probability (nats) of each row's completion given its prompt, in the rows' order.

        Uses TRL's fused head, as training does, so that a reference and a policy with the same weights give
        equal numbers.
        """
        if not self._scores:
            add_fused_lm_head(in_float32(self.model))
            self._scores = True

        def sums(batch: list[int]) -> list[float]:
            return (
                per_token_logps(self.model, [rows[i] for i in batch], self.tokenizer.pad_token_id, self.dtype)
                .sum(dim=1)
                .tolist()
            )

        return in_batches([len(row.whole) for row in rows], self.batch_size, sums, progress)


@torch.no_grad()
def per_token_logps(model: Any, rows: Sequence[Ids], pad: int, dtype: str) -> torch.Tensor:
    """Log-probabilities (nats) of the rows' completion tokens (B, T-1), 0 elsewhere; index t holds token t+1.

    `model` must have TRL's fused head. Rows are padded on the right.
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
