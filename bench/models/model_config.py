"""Checks of a model's folder without loading its weights: sizes within bounds, positions, whole files, tokens
and embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.config import Bounds
from bench.models.hub import read_config
from bench.models.templates import special_tokens
from bench.text_files import BadFile, describe, printable, read_object

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
ADAPTER = "adapter_config.json"  # A folder with this file and no weights of a whole model is an adapter.
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MOST_HEADER = 100_000_000  # Bytes, as in the safetensors library.
TEXT_CONFIGS = ("text_config", "llm_config", "language_config")  # In models that also read images.

# Names of sizes in the configs of different architectures, by the name of their bound.
SIZES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"),
    "width": (
        "hidden_size",
        "n_embd",
        "d_model",
        "dim",
        "intermediate_size",
        "ffn_dim",
        "n_inner",
        "head_dim",
    ),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_key_value_heads"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "vocabulary": ("vocab_size",),
    "positions": (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
        "n_ctx",
        "max_sequence_length",
    ),
}

# Architectures with a learned or stored row for each position. A longer text is an error, or gives wrong
# results. Others compute their positions (rotary, ALiBi).
POSITION_TABLES = {
    "gpt2",
    "openai-gpt",
    "gpt_bigcode",
    "gpt_neo",
    "gptj",
    "codegen",
    "opt",
    "biogpt",
    "ctrl",
    "bert",
    "roberta",
}


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    return next((part for name in TEXT_CONFIGS if isinstance(part := config.get(name), Mapping)), config)


def positions(config: Mapping[str, Any]) -> int | None:
    """Number of positions (tokens) of a model; None if its config has it under none of the known names."""
    for part in (config, text_config(config)):
        for name in SIZES["positions"]:
            value = part.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def has_position_table(config: Mapping[str, Any]) -> bool:
    """Whether a model cannot read texts longer than its positions."""
    return text_config(config).get("model_type", config.get("model_type")) in POSITION_TABLES


def check_sizes(folder: Path, bounds: Bounds) -> dict[str, Any]:
    """The config of a model's folder.

    Raises BadFile if a size in it is no whole number or exceeds its bound.
    """
    config, path = read_config(folder), folder / CONFIG
    for place, name, value, most, key in _sizes(config, bounds):
        if value is None or (value == -1 and key == "positions"):  # Not set, or unlimited.
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise BadFile(f"{path}: {place}{name} must be a whole number, got {describe(value)}")
        if value > most:
            raise BadFile(
                f"{path}: {place}{name} must be <= {most:,}, got {value:,}: the file may be damaged; if it is right, raise bounds.{key}"
            )
    return config


def _sizes(config: Mapping[str, Any], bounds: Bounds) -> Iterator[tuple[str, str, Any, int, str]]:
    """(place, name, value, bound, name of the bound) of every size in a config, with its parts and lists of
    single layers.
    """
    for place, part in [
        ("", config),
        *((f"{name}.", part) for name, part in config.items() if isinstance(part, Mapping)),
    ]:
        for key, names in SIZES.items():
            for name in names:
                values = part[name] if isinstance(part.get(name), list) else [part.get(name)]
                yield from ((place, name, value, getattr(bounds, key), key) for value in values)


def check_shards(folder: Path) -> None:
    """Raises BadFile if the index of weights names missing files."""
    if not (path := folder / INDEX).is_file():
        return
    names = read_object(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise BadFile(f"{path}: weight_map must be an object of file names, got {describe(names)}")
    if lacking := sorted(name for name in set(names.values()) if not (folder / name).is_file()):
        some = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise BadFile(f"{path} names missing files ({printable(some)}): copy the whole folder again")


def check_whole(folder: Path) -> None:
    """Raises BadFile if a weight file is not as long as its header says: a cut file, or a Git LFS pointer."""
    for path in weight_files(folder):
        if why := _damage(path):
            raise BadFile(f"{path}: {why}")


def weight_files(folder: Path) -> list[Path]:
    """The files of safetensors that transformers and PEFT read in a folder, those of an index where there is
    one.
    """
    indexed = read_object(path).get("weight_map") if (path := folder / INDEX).is_file() else None
    names = sorted(set(indexed.values())) if isinstance(indexed, dict) else [WEIGHTS]
    return [path for name in [*names, ADAPTER_WEIGHTS] if (path := folder / name).is_file()]


def _damage(path: Path) -> str | None:
    """The damage of a safetensors file, from its header and length; None if it is whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            return "it is a Git LFS pointer, not the weights: run `git lfs pull` in its folder"
        length = int.from_bytes(start, "little")
        content = file.read(length) if len(start) == 8 and length <= min(size - 8, MOST_HEADER) else b""
    try:
        entries = json.loads(content)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
        return f"it is no safetensors file, or it was cut short ({size:,} bytes): copy it again"
    return (
        None
        if size == whole
        else f"it was cut short: it has {size:,} bytes, and {whole:,} by its header. Copy it again"
    )


def check_no_adapter(folder: Path) -> None:
    """Raises BadFile if a folder holds an adapter, alone or together with a whole model.

    With both, it is unclear which one to use.
    """
    if not (folder / ADAPTER).exists():
        return
    if not list(folder.glob("model*.safetensors")):
        raise BadFile(f"{folder} holds only an adapter: give its base model too")
    way_out = "move the adapter's files out, or merge them into the weights (PEFT's merge_and_unload) and save the model"
    raise BadFile(f"{folder} holds an adapter ({ADAPTER}) and a whole model: {way_out}")


def named_ends(folder: Path) -> list[Any]:
    """The ids that a model's generation settings name as ends of a completion, as they are written."""
    ids = read_object(_generation_file(folder)).get("eos_token_id")
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _generation_file(folder: Path) -> Path:
    return next(path for name in ("generation_config.json", CONFIG) if (path := folder / name).is_file())


def check_ends(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises BadFile if an EOS token is no token of the model: completions would never end.

    Folders without tokenizer.json, or with a tokenizer class that has its own EOS token, are checked when
    they are loaded.
    """
    path, rows = folder / "tokenizer_config.json", text_config(config).get("vocab_size")
    if path.is_file() and (folder / "tokenizer.json").is_file():
        named, given = special_tokens(folder).get("eos_token"), read_object(path)
        if not named and given.get("eos_token", "") != "":
            raise BadFile(
                f"{path}: eos_token must be text, got {describe(given['eos_token'])}: completions would never end"
            )
        added = given.get("added_tokens_decoder")
        more = [
            one.get("content")
            for one in (added.values() if isinstance(added, dict) else ())
            if isinstance(one, dict)
        ]
        if named and named not in {*_tokens(folder), *more}:
            raise BadFile(
                f"{path}: eos_token must be one of the tokenizer's tokens, got {describe(named)}: completions would never end"
            )
    path = _generation_file(folder)
    for token in named_ends(folder):
        if (
            isinstance(token, bool)
            or not isinstance(token, int)
            or not 0 <= token < (rows if isinstance(rows, int) else token + 1)
        ):
            allowed = f"numbers from 0 to {rows - 1:,}" if isinstance(rows, int) else "ids of tokens"
            raise BadFile(
                f"{path}: eos_token_id must be {allowed}, got {describe(token)}: name the tokens that end a completion"
            )


def check_rows(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises BadFile if the tokenizer has tokens without an embedding in the model; the pad token has a
    message of its own.
    """
    rows = text_config(config).get("vocab_size")
    if not isinstance(rows, int) or not (folder / "tokenizer.json").is_file():
        return
    tokens = _tokens(folder)
    if not (lacking := sorted((number, token) for token, number in tokens.items() if number >= rows)):
        return
    settings = read_object(path) if (path := folder / "tokenizer_config.json").is_file() else {}
    pad = settings.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    some = ", ".join(f"{printable(repr(token))} ({number})" for number, token in lacking[:3])
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    if len(lacking) == 1 and lacking[0][1] == pad:
        why = f"the pad token {some} has no embedding: the model has {rows} embeddings"
        way_out = "remove that token from tokenizer.json and tokenizer_config.json and set another pad_token (the EOS token is fine)"
    else:
        why = f"the tokens {some}{more} have no embedding: the model has {rows} embeddings"
        way_out = "use the tokenizer that belongs to the model"
    raise BadFile(
        f"{folder}: {why}. Either {way_out}, or resize the embeddings (resize_token_embeddings) and save the model again"
    )


def _tokens(folder: Path) -> dict[str, int]:
    """Ids of the tokens in a folder's tokenizer.json. Raises BadFile if it cannot be read."""
    from tokenizers import Tokenizer

    try:
        return dict(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True))
    except Exception as error:  # The tokenizers library has no error class of its own.
        raise BadFile(
            f"{folder / 'tokenizer.json'}: it holds no valid tokenizer ({printable(' '.join(str(error).split()))[:200]})"
        ) from error
