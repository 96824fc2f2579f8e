"""What engines share: what they write, in which order, and which tokens end a completion or are never in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bench.config import Decoding, Serving
from bench.tokens import Ids, load_tokenizer, model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """One completion: text without special tokens, the tokens drawn with EOS, whether it ended by itself."""

    text: str
    ids: list[int]
    finished: bool


def silent(done: int, total: int) -> None: ...


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches of like length, the shortest first."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


class Engine(Protocol):
    """A loaded policy that writes and scores, in the rows' order."""

    tokenizer: PreTrainedTokenizerBase

    def generate(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int, progress: Progress = silent) -> list[Written]: ...

    def logps(self, rows: Sequence[Ids], progress: Progress = silent) -> list[float]: ...


class Vocabulary:
    """A policy's tokens, read from its folder: which end a completion (`ends`), which are never written (`unwritten`).

    A model that was trained with control tokens names them in its config, the one it is asked with first. Raises ValueError when that is
    not `control`: without its token such a model is another one. No engine ever writes a control token: a reference has none.
    """

    def __init__(self, path: Path, control: str | None = None):
        from transformers import AutoConfig, GenerationConfig

        folder = model_folder(path)
        self.tokenizer = load_tokenizer(path)
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        controls = getattr(config, "control_tokens", [])
        if control not in (controls[:1] or [None]):
            raise ValueError(f"{folder} is to be asked with {controls[0] if controls else 'no control token'}, got {control}")
        self.unwritten: list[int] = [self.tokenizer.convert_tokens_to_ids(token) for token in controls]  # type: ignore[misc]
        has_own = (folder / "generation_config.json").is_file()
        own = GenerationConfig.from_pretrained(folder, local_files_only=True) if has_own else GenerationConfig.from_model_config(config)
        named = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        self.ends: set[int] = {self.tokenizer.eos_token_id, *(token for token in named if token is not None)}  # type: ignore[arg-type]

    def written(self, ids: Sequence[int]) -> Written:
        """What was drawn, up to the first token that ends a completion."""
        end = next((i for i, token in enumerate(ids) if token in self.ends), None)
        kept = list(ids if end is None else ids[: end + 1])
        return Written(str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip(), kept, end is not None)


def open_engine(
    name: str, path: Path, dtype: str, batch_size: int, control: str | None = None, serving: Serving | None = None
) -> Engine:
    """The engine of that name with the policy in `path`. `serving`: how vLLM is run."""
    if name == "vllm":
        from bench.engines.vllm import Engine as Vllm

        assert serving is not None, "engine=vllm comes with how it is served"
        return Vllm(path, dtype, serving, control)
    from bench.engines.hf import Engine as Transformers

    return Transformers(path, dtype, batch_size, control)
