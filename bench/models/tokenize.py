"""Token ids of prompts and completions, the same for sampling, log-probabilities and training.

Messages go through the tokenizer's chat template. A prompt of one `text` message (from a plain-text file)
stays plain, and its completion ends in EOS. The completion starts at the first id where prompt and prompt +
completion differ, as in TRL. If the tokenizer begins plain text with BOS, every row begins with one BOS,
whether the template writes it (Llama-3) or leaves it to the tokenizer (Zephyr).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.models import model_config
from bench.models.hub import read_config, trusts_code
from bench.models.templates import PROBES, Template, TemplateFailed, read_template, without_clock
from bench.records import Item, Message, Pair, Unpaired, completion_columns, text_digest
from bench.text_files import printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Ids:
    """Token ids of one row, cut at max_length."""

    prompt: list[int]
    completion: list[int]
    cut: bool = False  # Whether the end of the completion is missing.

    @property
    def whole(self) -> list[int]:
        return self.prompt + self.completion


class PromptTooLong(ValueError):
    """A prompt is as long as max_length, so that nothing of its completions is left to learn from."""


def model_folder(path: Path) -> Path:
    """The model's folder inside a stage's folder, or the folder itself if it is the user's."""
    return path / "model" if (path / "model").is_dir() else path


def positions(path: Path) -> int | None:
    """Number of positions (tokens) of the model in a folder; None if its config does not name it."""
    return model_config.positions(read_config(model_folder(path)))


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Without a pad token it pads with EOS. Its chat template never reads
    the clock.

    Raises ValueError if it has no EOS token or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    folder = model_folder(path)
    code = (folder / "config.json").exists() and trusts_code(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=code)
    except Exception as error:
        # Errors of transformers and its libraries have many lines and do not name the folder.
        why = printable(" ".join(str(error).split()))[:300]
        raise ValueError(
            f"the tokenizer in {folder} cannot be read: {why}; copy the whole folder again"
        ) from error
    if tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer in {folder} has no EOS token: completions would never end. Set eos_token in tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if (template := read_template(folder)) is not None:
        text = without_clock(template).text
        others = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else None
        tokenizer.chat_template = {**others, "default": text} if others else text
    return tokenizer


# Probes whose answers begin as sampled ones do: with a letter, and without thinking.
AS_SAMPLED = ("a question", "a system message", "several turns")


def check_rendering(path: Path, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
    """Raises ValueError if a tokenizer or chat template begins or ends prompts or completions wrongly.

    Prompts must not end in EOS, rows must have at most one BOS at their beginning, and completions must end
    in one of `ends`. A trained row must begin with the prompt that sampling uses, token by token. A template
    is tried on PROBES. It may refuse all but the first.
    """
    folder = model_folder(path)
    added = tokenizer("")["input_ids"]
    if added[-1:] == [tokenizer.eos_token_id] and added != [tokenizer.bos_token_id]:
        why = "prompts would end before the completion. Set add_eos_token to false in tokenizer_config.json"
        raise ValueError(f"the tokenizer in {folder} puts {tokenizer.eos_token} after every text: {why}")
    if (template := template_of(tokenizer)) is None:
        return
    for name, messages in PROBES.items():
        if name != "a question" and template.refusal(messages) is not None:
            continue
        try:
            _check_probe(tokenizer, template, messages, ends, as_sampled=name in AS_SAMPLED)
        except TemplateFailed as error:
            raise TemplateFailed(
                f"the chat template in {folder} cannot write a question and its answer: {error}"
            ) from error
        except ValueError as error:
            raise ValueError(f"the chat template in {folder} {error}") from error


def _check_probe(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    whole: Sequence[Message],
    ends: Collection[int],
    *,
    as_sampled: bool,
) -> None:
    """Raises ValueError if a template writes one conversation wrongly; `as_sampled`: training must begin the
    answer as sampling does.
    """
    sampled_text, trained_text = template.render(whole[:-1], opens=True), template.render(whole)
    before, ids, bos = (
        _text_ids(tokenizer, sampled_text),
        _text_ids(tokenizer, trained_text),
        tokenizer.bos_token_id,
    )
    if template.loses(whole) == "user":
        raise ValueError("leaves out user messages that are plain text: set another model.chat_template")
    if bos is not None and (ids[:2] == [bos, bos] or (bos not in ends and ids.count(bos) > 1)):
        raise ValueError(
            f"begins a conversation with more than one {tokenizer.bos_token}: remove all but one"
        )
    if as_sampled and ids[: len(before)] != before:
        if not trained_text.startswith(sampled_text):
            same = _shared(sampled_text, trained_text)
            sampling, training = repr(sampled_text[same:]), repr(trained_text[same:][:40])
        else:
            same = _shared(before, ids)
            sampling, training = (
                f"the tokens {tokenizer.convert_ids_to_tokens(some[same:][:4])}" for some in (before, ids)
            )
        why = f"sampling begins an answer with {sampling}, training with {training}"
        raise ValueError(
            f"writes prompts differently for sampling and for training: {why}. Set another model.chat_template"
        )
    last = next(
        (token for token in reversed(ids) if token in ends or str(tokenizer.decode([token])).strip()), None
    )
    if last not in ends:
        known = ", ".join(repr(tokenizer.decode([end])) for end in sorted(ends))
        why = f"ends an answer with {trained_text[-20:]!r}, not with one of the end tokens ({known}): completions would never learn to end"
        raise ValueError(
            f"{why}. Put an end token there, or name the template's in generation_config.json (eos_token_id)"
        )


def template_of(tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """The tokenizer's chat template with its special tokens; None if it has none."""
    return (
        Template(tokenizer.get_chat_template(), tokenizer.special_tokens_map)
        if tokenizer.chat_template
        else None
    )


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], control: str | None = None
) -> list[int]:
    """Token ids of a prompt. They end in the control token, if there is one."""
    return all_prompt_ids(tokenizer, [prompt], control)[0]


def all_prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]], control: str | None = None
) -> list[list[int]]:
    """Token ids of many prompts, as in `prompt_ids`."""
    ids = _encoded(tokenizer, [_prompt_text(tokenizer, prompt) for prompt in prompts])
    return [[*before, *_control_ids(tokenizer, control)] for before in ids]


def letter_ids(tokenizer: PreTrainedTokenizerBase, letters: Sequence[str]) -> list[int]:
    """Ids of the single tokens for each letter, with and without a leading space; a letter of several tokens
    has none.
    """
    spelt = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for letter in letters
        for text in (letter, f" {letter}")
    ]
    return sorted({ids[0] for ids in spelt if len(ids) == 1})


def row_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], completion: str, max_length: int | None
) -> Ids:
    """Ids of a prompt and its completion, EOS included, cut at `max_length` tokens in total (None: not cut).

    Raises PromptTooLong if the prompt alone fills `max_length`.
    """
    return aligned_ids(tokenizer, prompt, [completion], max_length)[0]


def aligned_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    completions: Sequence[str],
    max_length: int | None,
    control: str | None = None,
) -> list[Ids]:
    """Ids of several completions of one prompt, as in `row_ids`. All start at the same index, the earliest of
    their starts.

    A control token ends the prompt and does not count towards `max_length`, so completions are cut at the
    same token with and without it. Otherwise a policy with the control token and its reference without it
    would be compared on different tokens.
    """
    (ids,) = all_aligned_ids(tokenizer, [(prompt, completions)], max_length, control)
    if isinstance(ids, PromptTooLong):
        raise ids
    return ids


def all_aligned_ids(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[tuple[Sequence[Message], Sequence[str]]],
    max_length: int | None,
    control: str | None = None,
) -> Iterator[list[Ids] | PromptTooLong]:
    """Ids as in `aligned_ids` of many rows of prompt and completions, or the reason why a row has none.

    Texts are tokenised together, TOGETHER rows at a time: one by one takes twice as long.
    """
    control_ids, rows = _control_ids(tokenizer, control), iter(rows)
    while some := list(itertools.islice(rows, TOGETHER)):
        texts = [
            text
            for prompt, completions in some
            for text in (
                _prompt_text(tokenizer, prompt),
                *(_whole_text(tokenizer, prompt, completion) for completion in completions),
            )
        ]
        ids = iter(_encoded(tokenizer, texts))
        for _, completions in some:
            before, *whole = itertools.islice(ids, 1 + len(completions))
            yield _aligned(before, whole, max_length, control_ids)


TOGETHER = 256


def _aligned(
    before: list[int], whole: Sequence[list[int]], max_length: int | None, control_ids: list[int]
) -> list[Ids] | PromptTooLong:
    start = min(_shared(before, ids) for ids in whole)
    if max_length is not None and start >= max_length:
        return PromptTooLong(
            f"a prompt of {start} tokens leaves no room for a completion within model.max_length={max_length}"
        )
    return [
        Ids(
            [*ids[:start], *control_ids],
            ids[start:max_length],
            max_length is not None and len(ids) > max_length,
        )
        for ids in whole
    ]


@dataclass(frozen=True)
class ConversationIds:
    """Token ids of a whole conversation, with a mask of its assistant messages."""

    ids: list[int]
    assistant_mask: list[bool]  # True at the tokens of assistant messages, EOS included.


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int
) -> ConversationIds:
    """Ids of a conversation in the chat template, cut at `max_length`. An assistant message starts where a
    policy would begin to write it.

    Raises ValueError for a template that changes earlier messages when later ones follow: the places of
    assistant messages are then undefined.
    """
    ids = _template(tokenizer, messages)
    mask = [False] * len(ids)
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        until = ids if place == len(messages) - 1 else _template(tokenizer, messages[: place + 1])
        start = _shared(prompt_ids(tokenizer, messages[:place]), until)
        if until != ids[: len(until)]:
            raise ValueError(
                "the chat template changes earlier turns of a conversation when later ones follow. Use only first turns."
            )
        mask[start : len(until)] = [True] * (len(until) - start)
    return ConversationIds(ids[:max_length], mask[:max_length])


def preference_ids(
    tokenizer: PreTrainedTokenizerBase, row: Pair | Unpaired, max_length: int, control: str | None = None
) -> dict[str, Ids]:
    """Ids of every completion of a preference row, by column."""
    return all_preference_ids(tokenizer, [row], max_length, control)[0]


def all_preference_ids(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Pair | Unpaired],
    max_length: int,
    control: str | None = None,
    named: str = "row",
) -> list[dict[str, Ids]]:
    """Ids of every completion of each preference row, by column.

    Training and log-probabilities both use them. Raises PromptTooLong with the number of such rows and the
    first one, `named` so.
    """
    columns = [completion_columns(row) for row in rows]
    texts = (
        (row.prompt, [getattr(row, name) for name in names]) for row, names in zip(rows, columns, strict=True)
    )
    ids = list(all_aligned_ids(tokenizer, texts, max_length, control))
    faults = [
        f"{named} {row.id}: {one}"
        for row, one in zip(rows, ids, strict=True)
        if isinstance(one, PromptTooLong)
    ]
    if faults:
        raise PromptTooLong(
            f"{len(faults)} rows have prompts that are too long. Drop them, or raise model.max_length. First: {faults[0]}"
        )
    return [
        dict(zip(names, one, strict=True))
        for names, one in zip(columns, ids, strict=True)
        if not isinstance(one, PromptTooLong)
    ]


def _control_ids(tokenizer: PreTrainedTokenizerBase, control: str | None) -> list[int]:
    if control is None:
        return []
    if control not in tokenizer.get_added_vocab():
        raise ValueError(
            f"{control} is no token of this model's tokenizer: only a model trained with it (CSFT) can use it as control token"
        )
    return [tokenizer.convert_tokens_to_ids(control)]  # type: ignore[list-item]  # One token has one id.


def _shared(before: Sequence[object], whole: Sequence[object]) -> int:
    """Length of the common beginning of two sequences."""
    return next(
        (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
        min(len(before), len(whole)),
    )


class _Rendered(NamedTuple):
    text: str
    plain: bool  # Whether it comes from a file of plain text, and not from a chat template.


def _prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> _Rendered:
    if prompt[0]["role"] == "text":
        return _Rendered(prompt[0]["content"], plain=True)
    return _Rendered(_text(tokenizer, prompt, opens=True), plain=False)


def _whole_text(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], completion: str) -> _Rendered:
    if prompt[0]["role"] == "text":
        end = "" if completion.endswith(str(tokenizer.eos_token)) else str(tokenizer.eos_token)
        return _Rendered(prompt[0]["content"] + completion + end, plain=True)
    answer: Message = {"role": "assistant", "content": completion}
    return _Rendered(_text(tokenizer, [*prompt, answer], opens=False), plain=False)


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[_Rendered]) -> list[list[int]]:
    """Ids of texts, in their order.

    A BOS is added to a rendered text if plain texts begin with one and the template did not write it.
    """
    ids: dict[int, list[int]] = {}
    for plain in {text.plain for text in texts}:
        places = [place for place, text in enumerate(texts) if text.plain == plain]
        some = tokenizer([texts[place].text for place in places], add_special_tokens=plain)["input_ids"]
        ids |= zip(places, some if plain else _begun(tokenizer, some), strict=True)
    return [ids[place] for place in range(len(texts))]


def _template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    return _text_ids(tokenizer, _text(tokenizer, messages, opens=False))


def _text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], opens: bool) -> str:
    if (template := template_of(tokenizer)) is None:
        raise ValueError(
            "the prompts are messages, but the tokenizer has no chat template: set model.chat_template, or use plain text"
        )
    try:
        return template.render(messages, opens=opens)
    except TemplateFailed as error:
        raise TemplateFailed(
            f"the chat template in {tokenizer.name_or_path} cannot write this conversation: {error}"
        ) from error


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return _encoded(tokenizer, [_Rendered(text, plain=False)])[0]


def _begun(tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[int]]) -> list[list[int]]:
    begin = [tokenizer.bos_token_id]
    if tokenizer("")["input_ids"][:1] != begin:
        return list(texts)
    return [ids if ids[:1] == begin else begin + ids for ids in texts]


def guarded_ids(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[int]:
    """Ids as in `prompt_ids`, but special tokens in the messages' contents (`<|im_end|>`) are plain text and
    end no turn.
    """
    marks = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not any(mark in message["content"] for message in prompt for mark in marks):
        return prompt_ids(tokenizer, prompt)
    places = [f"CONTENT-{number}-{text_digest(message['content'])}" for number, message in enumerate(prompt)]
    emptied = [{**message, "content": place} for message, place in zip(prompt, places, strict=True)]
    ids: list[int] = []
    for piece in re.split(f"({'|'.join(places)})", _text(tokenizer, emptied, opens=True)):
        is_content = piece in places
        text = prompt[places.index(piece)]["content"] if is_content else piece
        ids += tokenizer(text, add_special_tokens=False, split_special_tokens=is_content)["input_ids"]
    return _begun(tokenizer, [ids])[0]


def conversation(item: Item, completions: Sequence[str]) -> list[Message]:
    """The messages before the policy's next completion: the item's turns, with its completions so far in
    between.
    """
    if item.plain:
        return [{"role": "text", "content": item.turns[0]}]
    messages: list[Message] = list(item.context)
    for turn, text in enumerate(item.turns[: len(completions) + 1]):
        messages.append({"role": "user", "content": text})
        if turn < len(completions):
            messages.append({"role": "assistant", "content": completions[turn]})
    return messages
