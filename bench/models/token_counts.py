"""How many tokens messages are, by a model's tokenizer and chat template: for plans, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bench.models.templates import TemplateFailed, read_template, special_tokens, without_clock

Messages = Sequence[Mapping[str, Any]]
Count = Callable[[Messages, bool], int]  # whether the answer is still to come


@cache
def counter(folder: Path) -> Count:
    """As the model itself reads messages, or plain text (of the role `text`). Raises what the tokenizers library raises where the folder's
    tokenizer cannot be read, and BadFile or TemplateFailed for its template; a count raises TemplateFailed where the template does."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()  # which a training may have left in the file, and which transformers sets anew with each call
    tokenizer.no_padding()
    template = without_clock(found) if (found := read_template(folder)) else None
    begin = tokenizer.encode("").ids[:1]
    if begin != [tokenizer.token_to_id(special_tokens(folder).get("bos_token", ""))]:
        begin = []  # plain texts begin with no BOS

    def count(messages: Messages, opens: bool) -> int:
        if messages[0]["role"] == "text":
            return len(tokenizer.encode("".join(message["content"] for message in messages))) + (not opens)
        if template is None:
            return sum(len(tokenizer.encode(message["content"], add_special_tokens=False)) for message in messages)
        try:
            text = template.render(messages, opens=opens)
        except TemplateFailed as error:
            raise TemplateFailed(f"the chat template in {folder} cannot write a conversation: {error}") from error
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return len(ids) if ids[:1] == begin else len(begin + ids)  # as tokenize.py begins it

    return count


def counter_or_none(folder: Path | None) -> Count | None:
    """None where the folder has no tokenizer that can be read without torch: the model's own load says it better."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    try:
        return counter(folder)
    except Exception:  # of the tokenizers library, which has no class of its own
        return None
