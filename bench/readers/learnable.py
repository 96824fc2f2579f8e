"""Which preference rows a model can learn from, as its chat template writes them and `max_length` cuts them."""

from __future__ import annotations

import re
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
# Ends a reason for which rows are noted: the tokenizer reads such text as the token itself, in training and in generation, as other
# trainers' tokenizers do.
AS_CONTROL = "in the text, which the model reads as a control token"


@dataclass(frozen=True)
class Look:
    """What a model makes of a row. Called with a prompt and its completions (two of a pair), it tells why nothing is learnt."""

    at: Callable[[Sequence[Message], Sequence[str]], Unlearnable | None]
    marks: Callable[[Sequence[Message], Sequence[str]], set[str]]  # special tokens in the text of a row

    def __call__(self, prompt: Sequence[Message], completions: Sequence[str]) -> Unlearnable | None:
        return self.at(prompt, completions)


def special_marks(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Message], Sequence[str]], set[str]]:
    """What finds special tokens that somebody has typed. An EOS at the end of a plain text is no such one: rows end so."""
    known = sorted((token.content for token in tokenizer.added_tokens_decoder.values() if token.special), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, known)) or r"(?!)")

    def marks(prompt: Sequence[Message], completions: Sequence[str]) -> set[str]:
        end = str(tokenizer.eos_token) if prompt[0]["role"] == "text" else ""
        texts = [*(message["content"] for message in prompt), *(text.removesuffix(end) for text in completions)]
        return {mark for text in texts for mark in pattern.findall(text)}

    return marks


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

    return Look(look, special_marks(tokenizer))


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
