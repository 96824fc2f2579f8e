"""Shared code of the engines: their interface, batches by length, and the tokens that end a completion or are
never in one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bench.config import Decoding, Loading
from bench.models.hub import read_config, trusts_code
from bench.models.model_config import ADAPTER
from bench.models.tokenize import Ids, load_tokenizer, model_folder
from bench.text_files import printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]
USUAL = Loading()


@dataclass(frozen=True)
class DrawnCompletion:
    """One completion of a policy."""

    text: str  # Without special tokens.
    ids: list[int]  # EOS included.
    finished: bool  # False where it was cut at max_new_tokens.


def silent(done: int, total: int) -> None:
    """Report no progress."""


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Batches of row numbers, sorted by the rows' length, the shortest first."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def in_batches(
    lengths: Sequence[int],
    batch_size: int,
    compute: Callable[[list[int]], Sequence[float]],
    progress: Progress = silent,
) -> list[float]:
    """One number per row, in the rows' order.

    `compute` gets the row numbers of one batch and returns their numbers.
    """
    values: dict[int, float] = {}
    for batch in by_length(lengths, batch_size):
        values |= zip(batch, compute(batch), strict=True)
        progress(len(values), len(lengths))
    return [values[i] for i in range(len(lengths))]


class Engine(Protocol):
    """A loaded policy: `generate` writes completions, `logps` scores them. Results are in the rows' order."""

    tokenizer: PreTrainedTokenizerBase

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, seed: int, progress: Progress = silent
    ) -> list[DrawnCompletion]: ...

    def logps(self, rows: Sequence[Ids], progress: Progress = silent) -> list[float]: ...


# Quantisation methods that transformers can read by itself. For others, such as mxfp4, it fetches kernels
# from the hub.
QUANTIZED = (None, "bitsandbytes")


@contextlib.contextmanager
def named_errors(folder: Path, config: Mapping[str, Any], file: str = "config.json") -> Iterator[None]:
    """Turn an error of transformers or PEFT on a config into a ValueError that names the folder and, if
    known, the setting.

    The libraries look names up in dicts, and their error for an unknown name is only that name.
    """
    try:
        yield
    except (OSError, MemoryError, RuntimeError):  # A fault of this machine, not of the config.
        raise
    except Exception as error:
        unknown = error.args[0] if isinstance(error, KeyError) and error.args else None
        setting = next(
            (key for key, value in _settings(config) if isinstance(value, str) and value == unknown), None
        )
        message = printable(" ".join(str(error).split()))[:300]
        unsupported = f"this version of transformers does not support {setting}={message}"
        why = f"{type(error).__name__}: {message}" if setting is None else unsupported
        raise ValueError(f"cannot build the model in {folder} from its {file}: {why}") from error


def _settings(config: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of every setting of a config; nested ones have dotted names."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def load_config(folder: Path, of: Any = None, **settings: Any) -> Any:
    """The config of a model's folder, changed by `settings`.

    The config's own choice of attention code is dropped: it may name a repository of the hub, and
    transformers would fetch and run native code from there. Raises ValueError for quantised weights that need
    such code.
    """
    from transformers import AutoConfig

    trusted = trusts_code(folder)
    with named_errors(folder, read_config(folder)):
        config: Any = (of or AutoConfig).from_pretrained(
            folder, local_files_only=True, trust_remote_code=trusted, **settings
        )
    config._attn_implementation = None  # This sets it for all parts of the config.
    config._experts_implementation = None
    quantized = getattr(config, "quantization_config", None)
    method = (
        (quantized if isinstance(quantized, dict) else vars(quantized)).get("quant_method")
        if quantized
        else None
    )
    if method not in QUANTIZED:
        raise ValueError(
            f"the weights in {folder} are quantised by {method}, which needs code from the hub. Use a model with float weights."
        )
    return config


class Vocabulary:
    """A policy's tokenizer and special tokens, read from its folder.

    `ends`: ids that end a completion. `suppressed`: ids that no engine may write, namely control tokens,
    because a reference has none. `base`: the base model's folder of an adapter.

    A model trained with control tokens (CSFT) names them in its config; the first one must end its prompts.
    Raises ValueError if that is not `control`: without its token such a model is another policy.
    """

    def __init__(self, path: Path, control: str | None = None, base: Path | None = None):
        from transformers import GenerationConfig

        folder = model_folder(path)
        self.tokenizer = load_tokenizer(path)
        whole = model_folder(base) if base is not None and (folder / ADAPTER).exists() else folder
        config = load_config(whole)
        controls = getattr(config, "control_tokens", [])
        if control not in (controls[:1] or [None]):
            expected = f"the control token {controls[0]}" if controls else "no control token"
            raise ValueError(f"prompts of the model in {folder} must end in {expected}, got {control}")
        self.suppressed: list[int] = [self.tokenizer.convert_tokens_to_ids(token) for token in controls]  # type: ignore[misc]
        has_own = (whole / "generation_config.json").is_file()
        own = (
            GenerationConfig.from_pretrained(whole, local_files_only=True)
            if has_own
            else GenerationConfig.from_model_config(config)
        )
        named = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        self.ends: set[int] = {self.tokenizer.eos_token_id, *(token for token in named if token is not None)}  # type: ignore[arg-type]
        self.size: int = config.get_text_config().vocab_size

    def to_completion(self, ids: Sequence[int]) -> DrawnCompletion:
        """The completion in the sampled ids: all of them up to the first one that ends a completion."""
        end = next((i for i, token in enumerate(ids) if token in self.ends), None)
        kept = list(ids if end is None else ids[: end + 1])
        return DrawnCompletion(
            str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip(), kept, end is not None
        )
