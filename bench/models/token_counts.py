"""Counting the tokens of messages with a model's tokenizer and chat template, for plans. Loads no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bench.models.model_config import named_ends
from bench.models.templates import PROBES, TemplateFailed, read_template, special_tokens, without_clock

Messages = Sequence[Mapping[str, Any]]
Count = Callable[[Messages, bool], int]  # The flag: with the start of the next answer.


@cache
def counter(folder: Path) -> Count:
    """A function that counts tokens of messages, or of plain text (role `text`), as the model reads them.

    Raises errors of the tokenizers library for an unreadable tokenizer, and BadFile or TemplateFailed for an
    unusable template. The returned function raises TemplateFailed for messages that the template cannot
    write.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # A training may have saved it in the file; transformers sets it with each call.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    own = read_template(folder)
    template = without_clock(own) if own else None
    begin = tokenizer.encode("").ids[:1]
    if begin != [tokenizer.token_to_id(special_tokens(folder).get("bos_token", ""))]:
        begin = []  # The tokenizer begins plain text without BOS.

    def count(messages: Messages, opens: bool) -> int:
        if messages[0]["role"] == "text":
            return len(tokenizer.encode("".join(message["content"] for message in messages))) + (not opens)
        if template is None:
            return sum(
                len(tokenizer.encode(message["content"], add_special_tokens=False)) for message in messages
            )
        try:
            text = template.render(messages, opens=opens)
        except TemplateFailed as error:
            raise TemplateFailed(
                f"the chat template in {folder} cannot write a conversation: {error}"
            ) from error
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return len(ids) if ids[:1] == begin else len(begin + ids)  # As in tokenize.py.

    return count


def counter_or_none(folder: Path | None) -> Count | None:
    """The counter of a folder; None if its tokenizer or template cannot be read.

    Loading the model gives a better error.
    """
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    try:
        return counter(folder)
    except Exception:  # The tokenizers library has no error class of its own.
        return None


def reads_alike(one: Path, other: Path) -> bool:
    """Whether two models read answers as the same tokens: one vocabulary, and answers of PROBES of one length.

    True too where a tokenizer or template cannot be read without torch.
    """
    from tokenizers import Tokenizer

    counters = [counter_or_none(folder) for folder in (one, other)]
    if None in counters:
        return True
    vocabularies = [
        Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=False)
        for folder in (one, other)
    ]
    return vocabularies[0] == vocabularies[1] and _answers(counters[0]) == _answers(counters[1])


def wrong_end(folder: Path) -> str | None:
    """The token with which a model's chat template ends an answer, where it is none of the model's end tokens.

    None too where the tokenizer or template cannot be read without torch.
    """
    from tokenizers import Tokenizer

    template = read_template(folder)
    if template is None or counter_or_none(folder) is None:
        return None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = {*named_ends(folder), tokenizer.token_to_id(special_tokens(folder).get("eos_token", ""))}
    for messages in PROBES.values():
        with contextlib.suppress(TemplateFailed):  # it refuses such a conversation
            ids = tokenizer.encode(without_clock(template).render(messages), add_special_tokens=False).ids
            texts = ((token, tokenizer.decode([token], skip_special_tokens=False)) for token in reversed(ids))
            last, text = next(((one, text) for one, text in texts if one in ends or text.strip()), (None, ""))
            if last not in ends:
                return text
    return None


def _answers(count: Count | None) -> dict[str, int]:
    """Tokens of the answer of each of PROBES that the template can write."""
    lengths = {}
    for name, messages in PROBES.items():
        with contextlib.suppress(TemplateFailed):
            lengths[name] = count(messages, False) - count(messages[:-1], True) if count else 0
    return lengths
