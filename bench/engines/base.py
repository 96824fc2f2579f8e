"""What engines share: what they write, in which order, and which tokens end a completion or are never in one."""

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
    """One completion: text without special tokens, the tokens drawn with EOS, whether it ended by itself."""

    text: str
    ids: list[int]
    finished: bool


def silent(done: int, total: int) -> None: ...


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches of like length, the shortest first."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def in_batches(
    lengths: Sequence[int], batch_size: int, compute: Callable[[list[int]], Sequence[float]], progress: Progress = silent
) -> list[float]:
    """A number of each row, in the rows' order; `compute` takes the row numbers of a batch of like length."""
    found: dict[int, float] = {}
    for batch in by_length(lengths, batch_size):
        found |= zip(batch, compute(batch), strict=True)
        progress(len(found), len(lengths))
    return [found[i] for i in range(len(lengths))]


class Engine(Protocol):
    """A loaded policy that writes and scores, in the rows' order."""

    tokenizer: PreTrainedTokenizerBase

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, seed: int, progress: Progress = silent
    ) -> list[DrawnCompletion]: ...

    def logps(self, rows: Sequence[Ids], progress: Progress = silent) -> list[float]: ...


# Quantised weights that transformers reads without code of the hub. Others, such as mxfp4, make it fetch kernels.
QUANTIZED = (None, "bitsandbytes")


@contextlib.contextmanager
def named_errors(folder: Path, config: Mapping[str, Any], file: str = "config.json") -> Iterator[None]:
    """Errors of transformers and PEFT on a config become a ValueError that names the folder, and the setting where there is one: they look
    names up in dicts of their own, and the error for a name that is not there is that name alone."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError):  # of this machine
        raise
    except Exception as error:
        unknown = error.args[0] if isinstance(error, KeyError) and error.args else None
        setting = next((key for key, value in _settings(config) if isinstance(value, str) and value == unknown), None)
        words = printable(" ".join(str(error).split()))[:300]
        why = f"{type(error).__name__}: {words}" if setting is None else f"{setting} is {words}, which this version of transformers has not"
        raise ValueError(f"the model in {folder} cannot be made as its {file} says: {why}") from error


def _settings(config: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Settings of a config by name, those of its parts among them."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def load_config(folder: Path, of: Any = None, **settings: Any) -> Any:
    """The config of a model's folder, changed by `settings`. What computes attention is left to us: a config.json may name a repository of
    the hub there, whose native code transformers would fetch and run. Raises ValueError for quantised weights that need such code."""
    from transformers import AutoConfig

    trusted = trusts_code(folder)
    with named_errors(folder, read_config(folder)):
        config: Any = (of or AutoConfig).from_pretrained(folder, local_files_only=True, trust_remote_code=trusted, **settings)
    config._attn_implementation = None  # of all parts
    config._experts_implementation = None
    quantized = getattr(config, "quantization_config", None)
    method = (quantized if isinstance(quantized, dict) else vars(quantized)).get("quant_method") if quantized else None
    if method not in QUANTIZED:
        raise ValueError(f"{folder} holds weights quantised by {method}, whose kernels come from elsewhere: take a folder of float weights")
    return config


class Vocabulary:
    """A policy's tokens, read from its folder: which end a completion (`ends`), which are never written (`unwritten`).

    `base`: beside which an adapter was trained. A model that was trained with control tokens names them in its config, the one it is asked
    with first. Raises ValueError when that is not `control`: without its token such a model is another one. No engine ever writes a control
    token: a reference has none.
    """

    def __init__(self, path: Path, control: str | None = None, base: Path | None = None):
        from transformers import GenerationConfig

        folder = model_folder(path)
        self.tokenizer = load_tokenizer(path)
        whole = model_folder(base) if base is not None and (folder / ADAPTER).exists() else folder
        config = load_config(whole)
        controls = getattr(config, "control_tokens", [])
        if control not in (controls[:1] or [None]):
            raise ValueError(f"{folder} is to be asked with {controls[0] if controls else 'no control token'}, got {control}")
        self.unwritten: list[int] = [self.tokenizer.convert_tokens_to_ids(token) for token in controls]  # type: ignore[misc]
        has_own = (whole / "generation_config.json").is_file()
        own = GenerationConfig.from_pretrained(whole, local_files_only=True) if has_own else GenerationConfig.from_model_config(config)
        named = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        self.ends: set[int] = {self.tokenizer.eos_token_id, *(token for token in named if token is not None)}  # type: ignore[arg-type]
        self.size: int = config.get_text_config().vocab_size

    def written(self, ids: Sequence[int]) -> DrawnCompletion:
        """What was drawn, up to the first token that ends a completion."""
        end = next((i for i, token in enumerate(ids) if token in self.ends), None)
        kept = list(ids if end is None else ids[: end + 1])
        return DrawnCompletion(str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip(), kept, end is not None)
