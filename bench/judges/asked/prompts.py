"""Prompt templates of judges: AlpacaEval's annotators by name, and our own or the user's for the others.

MT-Bench's prompts can come from FastChat's file, Arena-Hard's from its settings file.

A template is first split into messages, then all placeholders are filled in one pass. So nothing in a
completion, such as `{output_1}` or `<|im_end|>`, is read as part of the template. (alpaca-eval fills first
and splits afterwards, and such completions break its prompts.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.config import user_path
from bench.engines.alpaca_eval_package import annotators_folder
from bench.machine import PACKAGE
from bench.records import Message
from bench.store.keys import canonical_json, hash_key
from bench.text_files import (
    BadFile,
    describe,
    number,
    optional_text,
    printable,
    read_rows,
    read_text,
    read_yaml,
    text,
    whole_number,
)

OWN_PROMPTS = PACKAGE / "judges" / "asked" / "mt_bench_prompts.jsonl"
CHINESE_PROMPTS = OWN_PROMPTS.with_name("mt_bench_prompts_zh.jsonl")
SHIPPED_PROMPTS = {"mt_bench": {"zh": CHINESE_PROMPTS}}  # by judge, and by the name in judge.prompts
OWN_GAME = PACKAGE / "judges" / "asked" / "arena_hard_prompt.yaml"


@dataclass(frozen=True)
class PromptTemplate:
    """Messages with a placeholder `{name}` for each text."""

    name: str
    messages: tuple[tuple[str, str], ...]  # (role, text)

    @property
    def digest(self) -> str:
        return hash_key([list(message) for message in self.messages])

    def fill(self, texts: Mapping[str, str]) -> list[Message]:
        """Messages with each `{name}` of `texts` replaced.

        Inserted texts are not searched for placeholders.
        """
        places = re.compile("|".join(re.escape(f"{{{name}}}") for name in texts))
        return [
            {"role": role, "content": places.sub(lambda m: texts[m[0][1:-1]], text)}
            for role, text in self.messages
        ]


def parse_messages(template: str) -> tuple[tuple[str, str], ...]:
    """Messages of a template in ChatML, Llama 3's, Anthropic's or OpenAssistant's form.

    A text without such marks is one user message. Raises ValueError for a template without messages.
    """
    template = template.strip()
    if template.startswith("<|im_start|>"):
        parts = re.findall(r"<\|im_start\|>(\w+)[^\n]*\n(.*?)(?:<\|im_end\|>|\Z)", template, re.DOTALL)
    elif "<|start_header_id|>" in template:
        parts = re.findall(
            r"<\|start_header_id\|>(\w+)<\|end_header_id\|>(.*?)(?:<\|eot_id\|>|\Z)", template, re.DOTALL
        )
    elif template.startswith("Human:"):
        parts = [("user", template.removeprefix("Human:").removesuffix("Assistant:"))]
    else:
        # OpenAssistant's marks
        parts = [("user", re.sub(r"^<\|prompter\|>|(<\|endoftext\|>)?<\|assistant\|>$", "", template))]
    messages = [(role, content.strip()) for role, content in parts]
    if not messages:
        raise ValueError(
            "the template starts with the mark of a chat message, but no message can be read from it"
        )
    return tuple(messages if messages[-1][0] != "assistant" or messages[-1][1] else messages[:-1])


# AlpacaEval's annotators ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackageAnnotator:
    """One annotator of the alpaca-eval package: template, model, decoding, and the parser for its replies."""

    name: str
    folder: Path
    template: PromptTemplate
    model: str
    decoding: Mapping[str, Any]  # temperature, top_p, max_tokens, logprobs, top_logprobs, tools, tool_choice
    parser: str
    parser_kwargs: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Digest of the template, the decoding and the parser."""
        rule = {
            "parser": self.parser,
            "kwargs": json.loads(json.dumps(self.parser_kwargs)),
            "decoding": self.decoding,
        }
        return hash_key({"template": self.template.digest, "rule": canonical_json(rule)})


def package_version() -> str:
    return metadata.version("alpaca-eval")


def annotator_names() -> list[str]:
    return sorted(path.parent.name for path in annotators_folder().glob("*/config*.yaml"))


# Names of decoding settings in the package, and the request field to send each as.
SENT = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_tokens_to_sample": "max_tokens",
    "logprobs": "logprobs",
    "top_logprobs": "top_logprobs",
    "tools": "tools",
    "tool_choice": "tool_choice",
}
# Defaults of the package's OpenAI decoder.
PACKAGE_DECODING = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 2048}


def annotator(name: str) -> PackageAnnotator:
    """The annotator of a name in the package, or of a folder with the same layout.

    Raises ValueError for an unknown annotator, a pool of annotators, or several items per prompt; BadFile for
    a damaged file.
    """
    folder = user_path(name) if "/" in name else annotators_folder() / name
    files = sorted(folder.glob("config*.yaml"))
    if not files:
        raise ValueError(
            f"unknown annotator {name!r}; the alpaca-eval package knows: {', '.join(annotator_names())}"
        )
    configs = read_yaml(files[0])
    if not isinstance(configs, dict) or not configs:
        raise BadFile(f"{files[0]}: expected an annotator's settings by its name, got {describe(configs)}")
    if len(configs) != 1:
        raise ValueError(
            f"annotator {name!r} is a pool of {len(configs)} annotators, and bench asks one at a time: choose another judge.annotator"
        )
    (config,) = configs.values()
    if not isinstance(config, dict):
        raise BadFile(f"{files[0]}: expected an annotator's settings, got {describe(config)}")
    if (batch := config.get("batch_size") or 1) != 1:
        raise ValueError(
            f"annotator {name!r} shows {batch} items in one prompt, and bench shows one: choose another judge.annotator"
        )
    kwargs, parser_kwargs = (
        _settings(config, key, files[0]) for key in ("completions_kwargs", "completion_parser_kwargs")
    )
    prompt = text(config.get("prompt_template"), f"{files[0]}: prompt_template")
    return PackageAnnotator(
        name=name,
        folder=folder,
        template=PromptTemplate(prompt, _pair_messages(folder.parent / prompt)),
        model=optional_text(kwargs.get("model_name"), f"{files[0]}: model_name") or "",
        decoding=PACKAGE_DECODING
        | {SENT[key]: _typed(SENT[key], value, files[0]) for key, value in kwargs.items() if key in SENT},
        parser=optional_text(config.get("fn_completion_parser"), f"{files[0]}: fn_completion_parser")
        or "regex_parser",
        parser_kwargs=parser_kwargs,
    )


def _settings(config: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    settings = config.get(key) or {}
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise BadFile(f"{path}: {key} must be settings by name, got {describe(settings)}")
    return settings


def _typed(key: str, value: Any, path: Path) -> Any:
    """The value, if its type fits the request field. Raises BadFile otherwise."""
    place, wanted = f"{path}: {key}", None
    if key in ("temperature", "top_p") and (number(value) is None or number(value) < 0):  # type: ignore[operator]
        wanted = "a number from 0"
    elif key in ("max_tokens", "top_logprobs"):
        whole_number(value, place, 0, 10**9)
    elif key == "logprobs" and not isinstance(value, bool):
        wanted = "true or false"
    elif key == "tools" and not (isinstance(value, list) and all(isinstance(tool, dict) for tool in value)):
        wanted = "a list of objects"
    if wanted:
        raise BadFile(f"{place} must be {wanted}, got {describe(value)}")
    return value


def _pair_messages(path: Path) -> tuple[tuple[str, str], ...]:
    """The messages of a template file that shows a pair. Raises BadFile if a placeholder is missing."""
    try:
        messages = parse_messages(read_text(path))
    except ValueError as error:
        raise error if isinstance(error, BadFile) else BadFile(f"{path}: {error}") from error
    whole = "".join(content for _, content in messages)
    if missing := [place for place in ("{instruction}", "{output_1}", "{output_2}") if place not in whole]:
        raise BadFile(f"{path}: the template has no placeholder {', '.join(missing)}")
    return messages


# MT-Bench's prompts -----------------------------------------------------------------------------------------

# Names as in FastChat's judge_prompts.jsonl, with the placeholders that each prompt must have.
_ONE, _TWO = ("question", "answer"), ("question_1", "answer_1", "question_2", "answer_2")
_PAIR_ONE = ("question", "answer_a", "answer_b")
_PAIR_TWO = ("question_1", "answer_a_1", "answer_b_1", "question_2", "answer_a_2", "answer_b_2")
SINGLE: dict[str, Sequence[str]] = {
    "single-v1": _ONE,
    "single-math-v1": (*_ONE, "ref_answer_1"),
    "single-v1-multi-turn": _TWO,
    "single-math-v1-multi-turn": (*_TWO, "ref_answer_1", "ref_answer_2"),
}
PAIRWISE: dict[str, Sequence[str]] = {
    "pair-v2": _PAIR_ONE,
    "pair-math-v1": (*_PAIR_ONE, "ref_answer_1"),
    "pair-v2-multi-turn": _PAIR_TWO,
    "pair-math-v1-multi-turn": (*_PAIR_TWO, "ref_answer_1", "ref_answer_2"),
}


def mt_bench_templates(path: Path) -> dict[str, PromptTemplate]:
    """Templates by name, from a file in FastChat's form (ours included).

    Raises BadFile if a prompt or a placeholder is missing.
    """
    templates: dict[str, PromptTemplate] = {}
    for place, row in read_rows(path):
        needed = ("name", "system_prompt", "prompt_template")
        if any(key not in row for key in needed):
            raise BadFile(
                f"{place}: expected an object with name, system_prompt and prompt_template, got {describe(row)}"
            )
        name, system, prompt = (text(row[key], f"{place}: {key}") for key in needed)
        if name in templates:
            raise BadFile(
                f"{place}: a second prompt with the name {printable(name)}; each needs its own name"
            )
        templates[name] = PromptTemplate(name, (("system", system), ("user", prompt)))
    for name, places in (SINGLE | PAIRWISE).items():
        if name not in templates:
            raise BadFile(
                f"{path} has no prompt called {name}; it has {printable(', '.join(sorted(templates))) or 'none'}"
            )
        whole = "".join(content for _, content in templates[name].messages)
        if missing := [place for place in places if f"{{{place}}}" not in whole]:
            raise BadFile(
                f"{path}: prompt {name} has no placeholder {', '.join(f'{{{place}}}' for place in missing)}"
            )
    return templates


def mt_bench_digest(templates: Mapping[str, PromptTemplate]) -> str:
    return hash_key({name: templates[name].digest for name in sorted(SINGLE | PAIRWISE)})


# Arena-Hard's prompt ----------------------------------------------------------------------------------------

# Placeholders in Arena-Hard-Auto 2.0, and the same in 0.1 (where answer_1 is the opponent's).
GAME_PLACES = {"QUESTION": "question_1", "ANSWER_A": "answer_1", "ANSWER_B": "answer_2"}


def arena_hard_template(path: Path) -> PromptTemplate:
    """The template of a YAML file in the form of Arena-Hard's settings.

    It has `prompt_template` (a text, or a list of one text) and `system_prompt`. Raises BadFile if one of
    them, or a placeholder, is missing.
    """
    settings = read_yaml(path)
    if not isinstance(settings, dict) or not {"prompt_template", "system_prompt"} <= settings.keys():
        raise BadFile(
            f"{path}: expected a YAML file with system_prompt and prompt_template, got {describe(settings)}"
        )
    prompt = settings["prompt_template"]
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    prompt, system = (
        text(prompt, f"{path}: prompt_template"),
        text(settings["system_prompt"], f"{path}: system_prompt"),
    )
    for new, old in GAME_PLACES.items():
        prompt = prompt.replace(f"{{{old}}}", f"{{{new}}}")
    if missing := [f"{{{place}}}" for place in GAME_PLACES if f"{{{place}}}" not in prompt]:
        raise BadFile(f"{path}: prompt_template has no placeholder {', '.join(missing)}")
    known = [f"{{{place}}}" for place in GAME_PLACES]
    if strange := set(re.findall(r"\{[A-Z][A-Z_0-9]*\}|\{(?:question|answer)_\d+\}", prompt)) - set(known):
        raise BadFile(
            f"{path}: prompt_template has the unknown placeholder {min(strange)}; known: {', '.join(known)}"
        )
    return PromptTemplate("arena_hard", (("system", system.strip()), ("user", prompt.strip())))


def prompts_of(judge: str, file: Path | None, annotator_name: str) -> tuple[Path, str]:
    """(file or folder, digest) of the prompts of a language model that judges.

    `file`: the user's own prompts.
    """
    if judge == "alpaca_eval":
        config = annotator(annotator_name)
        return config.folder, config.digest
    if judge == "arena_hard":
        return file or OWN_GAME, arena_hard_template(file or OWN_GAME).digest
    return file or OWN_PROMPTS, mt_bench_digest(mt_bench_templates(file or OWN_PROMPTS))
