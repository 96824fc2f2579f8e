"""What the files of a model's folder say of it without its weights: sizes within bounds, positions, tokens that have no embedding."""

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
ADAPTER = "adapter_config.json"  # what a folder holds that is an adapter, and no model by itself
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MOST_HEADER = 100_000_000  # bytes, as in the safetensors library
TEXT_CONFIGS = ("text_config", "llm_config", "language_config")  # of models that read images too

# Names of a size in the configs of different architectures, by what bounds it.
SIZES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"),
    "width": ("hidden_size", "n_embd", "d_model", "dim", "intermediate_size", "ffn_dim", "n_inner", "head_dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_key_value_heads"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "vocabulary": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_sequence_length"),
}

# Architectures with a learned or stored row for each position: one more is an error, or wrong. Others compute theirs (rotary, ALiBi).
POSITION_TABLES = {"gpt2", "openai-gpt", "gpt_bigcode", "gpt_neo", "gptj", "codegen", "opt", "biogpt", "ctrl", "bert", "roberta"}


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model."""
    return next((part for name in TEXT_CONFIGS if isinstance(part := config.get(name), Mapping)), config)


def positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model was made for, where its config says so under one of the names in use."""
    for part in (config, text_config(config)):
        for name in SIZES["positions"]:
            value = part.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def has_position_table(config: Mapping[str, Any]) -> bool:
    """Whether a model cannot look further than its positions."""
    return text_config(config).get("model_type", config.get("model_type")) in POSITION_TABLES


def check_sizes(folder: Path, bounds: Bounds) -> dict[str, Any]:
    """The config of a model's folder. Raises BadFile for one whose sizes are no counts, or beyond the bounds."""
    config, path = read_config(folder), folder / CONFIG
    for place, name, value, most, key in _sizes(config, bounds):
        if value is None or (value == -1 and key == "positions"):  # none of its own, or any number
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise BadFile(f"{path}: {place}{name} must be a whole number, got {describe(value)}")
        if value > most:
            raise BadFile(f"{path}: {place}{name} must be <= {most:,}, got {value:,}: a damaged file, or raise bounds.{key}")
    return config


def _sizes(config: Mapping[str, Any], bounds: Bounds) -> Iterator[tuple[str, str, Any, int, str]]:
    """(place, name, value, bound, name of the bound) of every size that a config states, in its parts and of single layers too."""
    for place, part in [("", config), *((f"{name}.", part) for name, part in config.items() if isinstance(part, Mapping))]:
        for key, names in SIZES.items():
            for name in names:
                values = part[name] if isinstance(part.get(name), list) else [part.get(name)]
                yield from ((place, name, value, getattr(bounds, key), key) for value in values)


def check_shards(folder: Path) -> None:
    """Raises BadFile where an index of weights names files that are not there."""
    if not (path := folder / INDEX).is_file():
        return
    names = read_object(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise BadFile(f"{path}: weight_map must be an object of file names, got {describe(names)}")
    if lacking := sorted(name for name in set(names.values()) if not (folder / name).is_file()):
        some = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise BadFile(f"{path}: it names {printable(some)}, which is not there: copy the whole folder again")


def check_whole(folder: Path) -> None:
    """Raises BadFile where a file of weights is not as long as its own header says: cut short, or the pointer that Git LFS leaves."""
    for path in weight_files(folder):
        if why := _damage(path):
            raise BadFile(f"{path}: {why}")


def weight_files(folder: Path) -> list[Path]:
    """The files of safetensors that transformers and PEFT read in a folder, those of an index where there is one."""
    indexed = read_object(path).get("weight_map") if (path := folder / INDEX).is_file() else None
    names = sorted(set(indexed.values())) if isinstance(indexed, dict) else [WEIGHTS]
    return [path for name in [*names, ADAPTER_WEIGHTS] if (path := folder / name).is_file()]


def _damage(path: Path) -> str | None:
    """What is wrong with a file of safetensors, told from its header; None where nothing is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            return "a pointer of Git LFS, and not the weights: run `git lfs pull` in its folder"
        length = int.from_bytes(start, "little")
        content = file.read(length) if len(start) == 8 and length <= min(size - 8, MOST_HEADER) else b""
    try:
        entries = json.loads(content)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
        return f"no safetensors file, or one that was cut short ({size:,} bytes): copy it again"
    return None if size == whole else f"cut short: its header speaks of {whole:,} bytes, and it has {size:,}: copy it again"


def check_no_adapter(folder: Path) -> None:
    """Raises BadFile for an adapter where a whole model is needed, or beside one: nobody knows which of them is meant."""
    if not (folder / ADAPTER).exists():
        return
    if not list(folder.glob("model*.safetensors")):
        raise BadFile(f"{folder} holds an adapter alone and needs the model that it was trained beside")
    way_out = "move the adapter's files out, or merge it into the weights (PEFT's merge_and_unload) and save the whole"
    raise BadFile(f"{folder} holds an adapter ({ADAPTER}) beside a whole model: {way_out}")


def check_ends(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises BadFile where what should end completions is no token: they would never end.

    A folder without tokenizer.json, or with a tokenizer class that has an EOS token of its own, is left to whoever loads it.
    """
    path, rows = folder / "tokenizer_config.json", text_config(config).get("vocab_size")
    if path.is_file() and (folder / "tokenizer.json").is_file():
        named, given = special_tokens(folder).get("eos_token"), read_object(path)
        if not named and given.get("eos_token", "") != "":
            raise BadFile(f"{path}: eos_token must be text, got {describe(given['eos_token'])}: completions would never end")
        added = given.get("added_tokens_decoder")
        more = [one.get("content") for one in (added.values() if isinstance(added, dict) else ()) if isinstance(one, dict)]
        if named and named not in {*_tokens(folder), *more}:
            raise BadFile(f"{path}: eos_token must be one of the tokenizer's tokens, got {describe(named)}: completions would never end")
    path = next(path for name in ("generation_config.json", CONFIG) if (path := folder / name).is_file())
    ids = read_object(path).get("eos_token_id")
    for token in ids if isinstance(ids, list) else [] if ids is None else [ids]:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < (rows if isinstance(rows, int) else token + 1):
            most = f"numbers from 0 to {rows - 1:,}" if isinstance(rows, int) else "numbers of tokens"
            raise BadFile(f"{path}: eos_token_id must be {most}, got {describe(token)}: name the tokens that end an answer")


def check_rows(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises BadFile for a tokenizer with tokens that the model has no embedding for, the pad token first."""
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
        why = f"its pad token {some} has no row among the model's {rows} embeddings"
        way_out = "take that token out of tokenizer.json and tokenizer_config.json and name another as pad_token (the EOS token will do)"
    else:
        why = f"its tokens {some}{more} have no rows among the model's {rows} embeddings"
        way_out = "take the tokenizer that belongs to the model"
    raise BadFile(f"{folder}: {why}: {way_out}, or resize the embeddings (resize_token_embeddings) and save the model again")


def _tokens(folder: Path) -> dict[str, int]:
    """Tokens of a tokenizer.json and their numbers. Raises BadFile."""
    from tokenizers import Tokenizer

    try:
        return dict(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True))
    except Exception as error:  # of the tokenizers library, which has no class of its own
        raise BadFile(f"{folder / 'tokenizer.json'}: no tokenizer ({printable(' '.join(str(error).split()))[:200]})") from error
