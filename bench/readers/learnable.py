"""Which preference rows a model can learn from, as its chat template writes them and `max_length` cuts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from bench.models.templates import Template, TemplateFailed, refusals
from bench.models.tokenize import PromptTooLong, aligned_ids, load_tokenizer, prompt_ids
from bench.readers.subsets import prompt_key
from bench.records import Conversation, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Unlearnable:
    """The `reason` that a row is counted by. `why`: the template's words, of a row that it cannot write."""

    reason: str
    why: str = ""


TOO_LONG = Unlearnable("prompt too long")
SAME_TOKENS = Unlearnable("chosen and rejected the same after template and truncation")
NO_TOKENS = Unlearnable("completion empty after template and truncation")
UNWRITABLE = "not writable with the chat template"
Look = Callable[[Sequence[Message], Sequence[str]], Unlearnable | None]  # at a prompt and its completions; a pair's are two


def looker(tokenizer: PreTrainedTokenizerBase, most: int | None) -> Look:
    """What tells whether a model learns from a row within `most` tokens (None: any number). It remembers what it has looked at."""
    lengths: dict[str, Unlearnable | int] = {}
    seen: dict[tuple[str, ...], Unlearnable | None] = {}

    def length(prompt: Sequence[Message]) -> Unlearnable | int:
        try:
            found = len(prompt_ids(tokenizer, prompt))
        except TemplateFailed as error:
            return Unlearnable(UNWRITABLE, str(error.__cause__ or error))
        return TOO_LONG if most is not None and found >= most else found

    def look_anew(prompt: Sequence[Message], completions: Sequence[str]) -> Unlearnable | None:
        try:
            parts = [ids.completion for ids in aligned_ids(tokenizer, prompt, completions, most)]
        except TemplateFailed as error:
            return Unlearnable(UNWRITABLE, str(error.__cause__ or error))
        except PromptTooLong:
            return TOO_LONG
        if len(parts) == 2 and parts[0] == parts[1]:
            return SAME_TOKENS
        return None if all(parts) else NO_TOKENS

    def look(prompt: Sequence[Message], completions: Sequence[str]) -> Unlearnable | None:
        key = prompt_key(prompt)
        if key not in lengths:
            lengths[key] = length(prompt)
        if isinstance(found := lengths[key], Unlearnable) or not completions:
            return found if isinstance(found, Unlearnable) else None
        if (row := (key, *completions)) not in seen:
            seen[row] = look_anew(prompt, completions)
        return seen[row]

    return look


def check_conversations(template: Template | None, rows: Sequence[Conversation]) -> None:
    """Raises ValueError where a template cannot write all of the conversations that an answer is learnt from."""
    if template is not None and (refused := refusals(template, [row.messages for row in rows])):
        first = f"row {rows[refused[0].place].id}: {refused[0].why}"
        what = f"{len(refused)} of {len(rows)} conversations cannot be written with the model's chat template, first {first}"
        raise ValueError(f"{what}; name another model.chat_template, or leave them out")


@lru_cache(maxsize=2)  # cells that differ in seed and fraction look at the same rows
def look_of_model(folder: Path, stamp: str, most: int | None) -> Look:
    """`looker` with the tokenizer of a model's folder; `stamp` tells its states apart."""
    return looker(load_tokenizer(folder), most)
