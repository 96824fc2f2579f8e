"""Checks that a model can learn from preference rows, after its chat template and the cut at `max_length`."""

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
    """Result for a row that a model learns nothing from.

    The row is counted by `reason`. `why` is the chat template's error, for a row that it cannot write.
    """

    reason: str
    why: str = ""


TOO_LONG = Unlearnable("prompt too long")
SAME_TOKENS = Unlearnable("chosen and rejected the same after template and truncation")
NO_TOKENS = Unlearnable("completion empty after template and truncation")
UNWRITABLE = "not writable with the chat template"
# End of a reason for which rows are noted. The tokenizer reads such text as the token itself, in training and
# in generation. The tokenizers of other trainers do the same.
AS_CONTROL = "in the text, which the model reads as a control token"


@dataclass(frozen=True)
class LearnCheck:
    """Check of a row for one model.

    Call it with a prompt and its completions (two of a pair). It returns the reason why nothing is learnt, or
    None.
    """

    check: Callable[[Sequence[Message], Sequence[str]], Unlearnable | None]
    # Special tokens typed in the text of a row.
    special_tokens: Callable[[Sequence[Message], Sequence[str]], set[str]]

    def __call__(self, prompt: Sequence[Message], completions: Sequence[str]) -> Unlearnable | None:
        return self.check(prompt, completions)


def special_token_finder(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[Sequence[Message], Sequence[str]], set[str]]:
    """Function that finds special tokens typed in a row's text.

    An EOS at the end of a completion to a plain-text prompt does not count: such rows end with it.
    """
    known = sorted(
        (token.content for token in tokenizer.added_tokens_decoder.values() if token.special),
        key=len,
        reverse=True,
    )
    pattern = re.compile("|".join(map(re.escape, known)) or r"(?!)")

    def find(prompt: Sequence[Message], completions: Sequence[str]) -> set[str]:
        end = str(tokenizer.eos_token) if prompt[0]["role"] == "text" else ""
        texts = [
            *(message["content"] for message in prompt),
            *(text.removesuffix(end) for text in completions),
        ]
        return {token for text in texts for token in pattern.findall(text)}

    return find


def learn_check(tokenizer: PreTrainedTokenizerBase, most: int | None) -> LearnCheck:
    """Check whether a model learns from a row within `most` tokens (None: any number).

    It caches its results.
    """
    lengths: dict[str, Unlearnable | int] = {}
    seen: dict[tuple[str, ...], Unlearnable | None] = {}

    def length(prompt: Sequence[Message]) -> Unlearnable | int:
        try:
            n_tokens = len(prompt_ids(tokenizer, prompt))
        except TemplateFailed as error:
            return Unlearnable(UNWRITABLE, str(error.__cause__ or error))
        return TOO_LONG if most is not None and n_tokens >= most else n_tokens

    def check_tokens(prompt: Sequence[Message], completions: Sequence[str]) -> Unlearnable | None:
        try:
            parts = [ids.completion for ids in aligned_ids(tokenizer, prompt, completions, most)]
        except TemplateFailed as error:
            return Unlearnable(UNWRITABLE, str(error.__cause__ or error))
        except PromptTooLong:
            return TOO_LONG
        if len(parts) == 2 and parts[0] == parts[1]:
            return SAME_TOKENS
        return None if all(parts) else NO_TOKENS

    def check_row(prompt: Sequence[Message], completions: Sequence[str]) -> Unlearnable | None:
        key = prompt_key(prompt)
        if key not in lengths:
            lengths[key] = length(prompt)
        if isinstance(prompt_length := lengths[key], Unlearnable) or not completions:
            return prompt_length if isinstance(prompt_length, Unlearnable) else None
        if (row := (key, *completions)) not in seen:
            seen[row] = check_tokens(prompt, completions)
        return seen[row]

    return LearnCheck(check_row, special_token_finder(tokenizer))


def check_conversations(template: Template | None, rows: Sequence[Conversation]) -> None:
    """Raises ValueError for conversations of the training data that the template cannot write."""
    if template is not None and (refused := refusals(template, [row.messages for row in rows])):
        first = f"row {rows[refused[0].place].id}: {refused[0].why}"
        what = f"the model's chat template cannot write {len(refused)} of {len(rows)} conversations. The first is {first}"
        raise ValueError(f"{what}. Set another model.chat_template, or remove these conversations")


@lru_cache(maxsize=2)  # cells that differ only in seed and fraction check the same rows
def learn_check_of_model(folder: Path, stamp: str, most: int | None) -> LearnCheck:
    """Check of rows with the tokenizer of a model's folder; `stamp` changes when the folder changes."""
    return learn_check(load_tokenizer(folder), most)
