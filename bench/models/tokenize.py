"""Prompts and completions to token ids: one rendering for sampling, log-probs and training.

Messages go through the tokenizer's chat template; a prompt of one `text` message (a plain-text file) stays plain and its
completion ends in EOS. The completion starts where the ids of prompt and of prompt + completion part, as in TRL. Rows begin with one BOS
where the tokenizer begins plain text with one, whether its template writes it (Llama-3) or leaves it to the tokenizer (Zephyr).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.models import model_config
from bench.models.hub import read_config, trusts_code
from bench.models.templates import PROBES, Template, TemplateFailed, read_template, without_clock
from bench.records import Item, Message, Pair, Unpaired, completion_columns, text_digest
from bench.text_files import printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Ids:
    """Token ids of one row, cut to the length that a model looks at."""

    prompt: list[int]
    completion: list[int]
    cut: bool = False  # the completion's end is missing

    @property
    def whole(self) -> list[int]:
        return self.prompt + self.completion


class PromptTooLong(ValueError):
    """A prompt that fills the length that the model looks at: nothing of its completions would be left to learn from."""


def model_folder(path: Path) -> Path:
    """Where the model lies in a stage's folder, or the user's folder itself."""
    return path / "model" if (path / "model").is_dir() else path


def positions(path: Path) -> int | None:
    """Tokens that a model was made for, where its config says so."""
    return model_config.positions(read_config(model_folder(path)))


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, padding with EOS where it names no pad token. Its chat template never asks the clock.

    Raises ValueError without an EOS token, and for a tokenizer that transformers cannot read.
    """
    from transformers import AutoTokenizer

    folder = model_folder(path)
    code = (folder / "config.json").exists() and trusts_code(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=code)
    except Exception as error:  # of transformers and its libraries, whose errors have many lines and name no folder
        why = printable(" ".join(str(error).split()))[:300]
        raise ValueError(f"the tokenizer in {folder} cannot be read: {why}; copy the whole folder again") from error
    if tokenizer.eos_token is None:
        raise ValueError(f"the tokenizer in {folder} has no EOS token: completions would never end; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if (template := read_template(folder)) is not None:
        text = without_clock(template).text
        others = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else None
        tokenizer.chat_template = {**others, "default": text} if others else text
    return tokenizer


# Probes whose answers begin as a model's do after what it is asked with: with a letter, and without thinking of their own.
AS_SAMPLED = ("a question", "a system message", "several turns")


def check_rendering(path: Path, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
    """Raises ValueError for a tokenizer or a chat template whose prompts and completions would begin or end wrongly.

    Prompts must not end by themselves, rows begin with at most one BOS, answers end in one of `ends`, and what is trained must begin with
    what sampling asks, token by token. A template is tried on PROBES; those that it refuses to write are no fault of it.
    """
    folder = model_folder(path)
    added = tokenizer("")["input_ids"]
    if added[-1:] == [tokenizer.eos_token_id] and added != [tokenizer.bos_token_id]:
        why = "its prompts would end before they are answered; set add_eos_token to false in tokenizer_config.json"
        raise ValueError(f"the tokenizer in {folder} puts {tokenizer.eos_token} after every text: {why}")
    if (template := template_of(tokenizer)) is None:
        return
    for name, messages in PROBES.items():
        if name != "a question" and template.refusal(messages) is not None:
            continue
        try:
            _check_probe(tokenizer, template, messages, ends, as_sampled=name in AS_SAMPLED)
        except TemplateFailed as error:
            raise TemplateFailed(f"the chat template in {folder} cannot write a question and its answer: {error}") from error
        except ValueError as error:
            raise ValueError(f"the chat template in {folder} {error}") from error


def _check_probe(
    tokenizer: PreTrainedTokenizerBase, template: Template, whole: Sequence[Message], ends: Collection[int], *, as_sampled: bool
) -> None:
    """Raises ValueError for what a template makes of one conversation; `as_sampled`: its answer must begin where sampling begins it."""
    asked, taught = template.render(whole[:-1], opens=True), template.render(whole)
    before, ids, bos = _text_ids(tokenizer, asked), _text_ids(tokenizer, taught), tokenizer.bos_token_id
    if template.loses(whole) == "user":
        raise ValueError("leaves out what the user says where that is text: name another as model.chat_template")
    if bos is not None and (ids[:2] == [bos, bos] or (bos not in ends and ids.count(bos) > 1)):
        raise ValueError(f"begins a conversation with more than one {tokenizer.bos_token}: leave one")
    if as_sampled and ids[: len(before)] != before:
        if not taught.startswith(asked):
            parted = _shared(asked, taught)
            asks, teaches = repr(asked[parted:]), repr(taught[parted:][:40])
        else:
            parted = _shared(before, ids)
            asks, teaches = (f"the tokens {tokenizer.convert_ids_to_tokens(some[parted:][:4])}" for some in (before, ids))
        why = f"it asks with {asks} where an answer that is trained has {teaches}"
        raise ValueError(f"samples in another form than it trains: {why}; name another as model.chat_template")
    last = next((token for token in reversed(ids) if token in ends or str(tokenizer.decode([token])).strip()), None)
    if last not in ends:
        known = ", ".join(repr(tokenizer.decode([end])) for end in sorted(ends))
        why = f"ends an answer with {taught[-20:]!r}, which none of its end tokens does ({known}): completions would never learn to end"
        raise ValueError(f"{why}; put the end token there, or name it in generation_config.json")


def template_of(tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """The chat template that messages go through, with the tokenizer's special tokens."""
    return Template(tokenizer.get_chat_template(), tokenizer.special_tokens_map) if tokenizer.chat_template else None


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], control: str | None = None) -> list[int]:
    """Ids after which the policy writes; the last one is the control token's, where there is one."""
    if prompt[0]["role"] == "text":
        before = tokenizer(prompt[0]["content"])["input_ids"]
    else:
        before = _template(tokenizer, prompt, add_generation_prompt=True)
    return [*before, *_control_ids(tokenizer, control)]


def letter_ids(tokenizer: PreTrainedTokenizerBase, letters: Sequence[str]) -> list[int]:
    """Ids of the single tokens that spell a letter, with and without a leading space."""
    spelt = [tokenizer(text, add_special_tokens=False)["input_ids"] for letter in letters for text in (letter, f" {letter}")]
    return sorted({ids[0] for ids in spelt if len(ids) == 1})


def row_ids(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], completion: str, max_length: int | None) -> Ids:
    """Ids of a prompt and its completion, EOS included; the end is cut at `max_length` tokens in all, where there is one.

    Raises PromptTooLong when the prompt alone fills `max_length`.
    """
    return aligned_ids(tokenizer, prompt, [completion], max_length)[0]


def aligned_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    completions: Sequence[str],
    max_length: int | None,
    control: str | None = None,
) -> list[Ids]:
    """`row_ids` of several completions of one prompt, which all start at the earliest of their starts.

    A control token ends the prompt and takes a place of its own beside `max_length`: completions are cut where they are without it, or
    a policy that is asked with it and a reference that is not would be compared on other tokens.
    """
    before = prompt_ids(tokenizer, prompt)
    whole = [_whole(tokenizer, prompt, completion) for completion in completions]
    start = min(_shared(before, ids) for ids in whole)
    if max_length is not None and start >= max_length:
        raise PromptTooLong(f"a prompt of {start} tokens leaves nothing to learn within model.max_length={max_length}")
    asked = _control_ids(tokenizer, control)
    return [Ids([*ids[:start], *asked], ids[start:max_length], max_length is not None and len(ids) > max_length) for ids in whole]


@dataclass(frozen=True)
class ConversationIds:
    """Token ids of a whole conversation, and which of them are its answers' (EOS included)."""

    ids: list[int]
    answers: list[bool]


def conversation_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int) -> ConversationIds:
    """A conversation through the chat template, its end cut at `max_length`; an answer starts where a policy would begin to write it.

    Raises ValueError for a template that writes earlier messages in another way once later ones follow: it has no such places.
    """
    ids = _template(tokenizer, messages)
    answers = [False] * len(ids)
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        until = ids if place == len(messages) - 1 else _template(tokenizer, messages[: place + 1])
        start = _shared(prompt_ids(tokenizer, messages[:place]), until)
        if until != ids[: len(until)]:
            raise ValueError("the chat template changes earlier turns of a conversation once later ones follow: take first turns only")
        answers[start : len(until)] = [True] * (len(until) - start)
    return ConversationIds(ids[:max_length], answers[:max_length])


def preference_ids(tokenizer: PreTrainedTokenizerBase, row: Pair | Unpaired, max_length: int, control: str | None = None) -> dict[str, Ids]:
    """Ids of every completion of a preference row by column; what training and log-probs both use."""
    names = completion_columns(row)
    ids = aligned_ids(tokenizer, row.prompt, [getattr(row, name) for name in names], max_length, control)
    return dict(zip(names, ids, strict=True))


def _control_ids(tokenizer: PreTrainedTokenizerBase, control: str | None) -> list[int]:
    if control is None:
        return []
    if control not in tokenizer.get_added_vocab():
        raise ValueError(f"{control} is no token of this model's tokenizer: only a model that was trained with it can be asked with it")
    return [tokenizer.convert_tokens_to_ids(control)]  # type: ignore[list-item]  # one token, one id


def _shared(before: Sequence[object], whole: Sequence[object]) -> int:
    return next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), min(len(before), len(whole)))


def _whole(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], completion: str) -> list[int]:
    if prompt[0]["role"] == "text":
        end = "" if completion.endswith(str(tokenizer.eos_token)) else str(tokenizer.eos_token)
        return tokenizer(prompt[0]["content"] + completion + end)["input_ids"]
    return _template(tokenizer, [*prompt, {"role": "assistant", "content": completion}])


def _template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool = False) -> list[int]:
    return _text_ids(tokenizer, _text(tokenizer, messages, add_generation_prompt))


def _text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], opens: bool) -> str:
    if (template := template_of(tokenizer)) is None:
        raise ValueError("the prompts are messages and the tokenizer has no chat template: add chat_template.jinja, or use plain text")
    try:
        return template.render(messages, opens=opens)
    except TemplateFailed as error:
        raise TemplateFailed(f"the chat template in {tokenizer.name_or_path} cannot write this conversation: {error}") from error


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of what a template has written, with the BOS that plain texts begin with, where the template leaves it out."""
    return _begun(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])


def _begun(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    begin = [tokenizer.bos_token_id]
    return ids if ids[:1] == begin or tokenizer("")["input_ids"][:1] != begin else begin + ids


def guarded_ids(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[int]:
    """`prompt_ids` of messages, in whose contents marks like `<|im_end|>` are text: they end nobody's turn."""
    marks = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not any(mark in message["content"] for message in prompt for mark in marks):
        return prompt_ids(tokenizer, prompt)
    places = [f"CONTENT-{number}-{text_digest(message['content'])}" for number, message in enumerate(prompt)]
    emptied = [{**message, "content": place} for message, place in zip(prompt, places, strict=True)]
    ids: list[int] = []
    for piece in re.split(f"({'|'.join(places)})", _text(tokenizer, emptied, opens=True)):
        own = piece in places
        said = prompt[places.index(piece)]["content"] if own else piece
        ids += tokenizer(said, add_special_tokens=False, split_special_tokens=own)["input_ids"]
    return _begun(tokenizer, ids)


def conversation(item: Item, answers: Sequence[str]) -> list[Message]:
    """The messages before the policy's next answer: an item's turns with what the policy has answered so far."""
    if item.plain:
        return [{"role": "text", "content": item.turns[0]}]
    messages: list[Message] = list(item.context)
    for turn, text in enumerate(item.turns[: len(answers) + 1]):
        messages.append({"role": "user", "content": text})
        if turn < len(answers):
            messages.append({"role": "assistant", "content": answers[turn]})
    return messages
