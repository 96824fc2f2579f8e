"""How many tokens messages are, by a model's tokenizer and chat template: for plans, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

Messages = Sequence[Mapping[str, Any]]
Count = Callable[[Messages, bool], int]  # whether the answer is still to come


@cache
def counter(folder: Path) -> Count:
    """As the model itself reads messages, or plain text (of the role `text`). Raises what the tokenizers library raises where the folder's
    tokenizer cannot be read."""
    import jinja2.sandbox
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads(path.read_text(encoding="utf-8")) if (path := folder / "tokenizer_config.json").exists() else {}
    path = folder / "chat_template.jinja"
    template = path.read_text(encoding="utf-8") if path.exists() else config.get("chat_template")
    compiled = None
    if isinstance(template, str):
        compiled = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    special = {name: _text(config.get(name)) for name in ("bos_token", "eos_token")}

    def count(messages: Messages, opens: bool) -> int:
        if messages[0]["role"] == "text":
            return len(tokenizer.encode("".join(message["content"] for message in messages))) + (not opens)
        if compiled is None:
            return sum(len(tokenizer.encode(message["content"], add_special_tokens=False)) for message in messages)
        text = compiled.render(messages=[dict(message) for message in messages], add_generation_prompt=opens, **special)
        return len(tokenizer.encode(text, add_special_tokens=False))

    return count


def counter_or_none(folder: Path | None) -> Count | None:
    """None where the folder has no tokenizer that can be read without torch: the model's own load says it better."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    try:
        return counter(folder)
    except Exception:  # of the tokenizers library, which has no class of its own
        return None


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else token or ""
