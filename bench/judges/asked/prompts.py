"""What a judge is shown: AlpacaEval's annotators by name, MT-Bench's prompts of our own or from FastChat's file, Arena-Hard's likewise.

A template is cut into messages first and filled afterwards, all places in one pass, so that nothing in an answer - `{output_1}`,
`<|im_end|>` - is read as part of the template. (alpaca-eval fills first and cuts afterwards, and such answers break its prompts.)
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.config import user_path
from bench.machine import PACKAGE
from bench.records import Message
from bench.store.keys import canonical_json, hash_key
from bench.text_files import BadFile, describe, number, optional_text, printable, read_rows, read_text, read_yaml, text, whole_number

OWN_PROMPTS = PACKAGE / "judges" / "asked" / "mt_bench_prompts.jsonl"
OWN_GAME = PACKAGE / "judges" / "asked" / "arena_hard_prompt.yaml"


@dataclass(frozen=True)
class PromptTemplate:
    """Messages with `{name}` where a text goes."""

    name: str
    messages: tuple[tuple[str, str], ...]  # (role, text)

    @property
    def digest(self) -> str:
        return hash_key([list(message) for message in self.messages])

    def fill(self, texts: Mapping[str, str]) -> list[Message]:
        """Messages with each `{name}` of `texts` replaced; what is put in is not looked at again."""
        places = re.compile("|".join(re.escape(f"{{{name}}}") for name in texts))
        return [{"role": role, "content": places.sub(lambda m: texts[m[0][1:-1]], text)} for role, text in self.messages]


def parse_messages(template: str) -> tuple[tuple[str, str], ...]:
    """A template's messages: ChatML, Llama 3's headers, Anthropic's or OpenAssistant's turns; a text without such marks is the user's."""
    template = template.strip()
    if template.startswith("<|im_start|>"):
        found = re.findall(r"<\|im_start\|>(\w+)[^\n]*\n(.*?)(?:<\|im_end\|>|\Z)", template, re.DOTALL)
    elif "<|start_header_id|>" in template:
        found = re.findall(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>(.*?)(?:<\|eot_id\|>|\Z)", template, re.DOTALL)
    elif template.startswith("Human:"):
        found = [("user", template.removeprefix("Human:").removesuffix("Assistant:"))]
    else:
        found = [("user", re.sub(r"^<\|prompter\|>|(<\|endoftext\|>)?<\|assistant\|>$", "", template))]  # OpenAssistant's marks
    messages = [(role, content.strip()) for role, content in found]
    if not messages:
        raise ValueError("a template that begins with the mark of a message and has none")
    return tuple(messages if messages[-1][0] != "assistant" or messages[-1][1] else messages[:-1])


# AlpacaEval's annotators ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackageAnnotator:
    """One annotator of the alpaca-eval package: what it asks, whom, how, and by which of the package's rules it is read."""

    name: str
    folder: Path
    template: PromptTemplate
    model: str
    decoding: Mapping[str, Any]  # temperature, top_p, max_tokens, logprobs, top_logprobs, tools, tool_choice
    parser: str
    parser_kwargs: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Of everything that decides what is asked and how it is read."""
        rule = {"parser": self.parser, "kwargs": json.loads(json.dumps(self.parser_kwargs)), "decoding": self.decoding}
        return hash_key({"template": self.template.digest, "rule": canonical_json(rule)})


def package_version() -> str:
    return metadata.version("alpaca-eval")


@cache
def annotators_folder() -> Path:
    """Where the installed package keeps its annotators; found without importing it (that takes seconds)."""
    spec = importlib.util.find_spec("alpaca_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the alpaca-eval package is not installed here: pip install alpaca-eval==0.6.6")
    return Path(spec.submodule_search_locations[0]) / "evaluators_configs"


def annotator_names() -> list[str]:
    return sorted(path.parent.name for path in annotators_folder().glob("*/config*.yaml"))


# What decoders of the package call the same thing, and what we send of it.
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
PACKAGE_DECODING = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 2048}  # of its OpenAI decoder, where a config says nothing


def annotator(name: str) -> PackageAnnotator:
    """An annotator by its name in the package, or a folder of one's own laid out as there. Raises ValueError for one that is unknown,
    or that asks about several items at once."""
    folder = user_path(name) if "/" in name else annotators_folder() / name
    files = sorted(folder.glob("config*.yaml"))
    if not files:
        raise ValueError(f"unknown annotator {name!r}; the alpaca-eval package knows: {', '.join(annotator_names())}")
    configs = read_yaml(files[0])
    if not isinstance(configs, dict) or not configs:
        raise BadFile(f"{files[0]}: expected an annotator's settings by its name, got {describe(configs)}")
    if len(configs) != 1:
        raise ValueError(f"annotator {name!r} is a pool of {len(configs)}; bench asks one judge at a time: name one of the others")
    (config,) = configs.values()
    if not isinstance(config, dict):
        raise BadFile(f"{files[0]}: expected an annotator's settings, got {describe(config)}")
    if (batch := config.get("batch_size") or 1) != 1:
        raise ValueError(f"annotator {name!r} asks about {batch} items in one prompt; bench asks about one: name another")
    kwargs, parser_kwargs = (_settings(config, key, files[0]) for key in ("completions_kwargs", "completion_parser_kwargs"))
    prompt = text(config.get("prompt_template"), f"{files[0]}: prompt_template")
    return PackageAnnotator(
        name=name,
        folder=folder,
        template=PromptTemplate(prompt, _pair_messages(folder.parent / prompt)),
        model=optional_text(kwargs.get("model_name"), f"{files[0]}: model_name") or "",
        decoding=PACKAGE_DECODING | {SENT[key]: _sent(SENT[key], value, files[0]) for key, value in kwargs.items() if key in SENT},
        parser=optional_text(config.get("fn_completion_parser"), f"{files[0]}: fn_completion_parser") or "regex_parser",
        parser_kwargs=parser_kwargs,
    )


def _settings(config: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise BadFile(f"{path}: {key} must be settings by name, got {describe(found)}")
    return found


def _sent(key: str, value: Any, path: Path) -> Any:
    """A setting of a request, of the type that it is sent as."""
    what, wrong = f"{path}: {key}", None
    if key in ("temperature", "top_p") and (number(value) is None or number(value) < 0):  # type: ignore[operator]
        wrong = "a number from 0"
    elif key in ("max_tokens", "top_logprobs"):
        whole_number(value, what, 0, 10**9)
    elif key == "logprobs" and not isinstance(value, bool):
        wrong = "true or false"
    elif key == "tools" and not (isinstance(value, list) and all(isinstance(tool, dict) for tool in value)):
        wrong = "a list of objects"
    if wrong:
        raise BadFile(f"{what} must be {wrong}, got {describe(value)}")
    return value


def _pair_messages(path: Path) -> tuple[tuple[str, str], ...]:
    """The messages of a template that shows a pair."""
    try:
        messages = parse_messages(read_text(path))
    except ValueError as error:
        raise error if isinstance(error, BadFile) else BadFile(f"{path}: {error}") from error
    whole = "".join(content for _, content in messages)
    if lacking := [place for place in ("{instruction}", "{output_1}", "{output_2}") if place not in whole]:
        raise BadFile(f"{path}: no place for {', '.join(lacking)}")
    return messages


# MT-Bench's prompts ---------------------------------------------------------------------------------------------------

# Names as in FastChat's judge_prompts.jsonl, and the texts that each must take.
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
    """Templates by name from a file of FastChat's form (ours has it too). Raises BadFile for one that lacks a prompt or a place."""
    found: dict[str, PromptTemplate] = {}
    for place, row in read_rows(path):
        needed = ("name", "system_prompt", "prompt_template")
        if any(key not in row for key in needed):
            raise BadFile(f"{place}: expected an object with name, system_prompt and prompt_template, got {describe(row)}")
        name, system, prompt = (text(row[key], f"{place}: {key}") for key in needed)
        if name in found:
            raise BadFile(f"{place}: a second prompt called {printable(name)}")
        found[name] = PromptTemplate(name, (("system", system), ("user", prompt)))
    for name, places in (SINGLE | PAIRWISE).items():
        if name not in found:
            raise BadFile(f"{path} has no prompt called {name}; it has {printable(', '.join(sorted(found))) or 'none'}")
        whole = "".join(content for _, content in found[name].messages)
        if lacking := [place for place in places if f"{{{place}}}" not in whole]:
            raise BadFile(f"{path}: prompt {name} has no place for {', '.join(f'{{{place}}}' for place in lacking)}")
    return found


def mt_bench_digest(templates: Mapping[str, PromptTemplate]) -> str:
    return hash_key({name: templates[name].digest for name in sorted(SINGLE | PAIRWISE)})


# Arena-Hard's prompt ---------------------------------------------------------------------------------------------------

# Names of the three places in Arena-Hard-Auto 2.0 and, the opponent's answer being its answer_1, in 0.1.
GAME_PLACES = {"QUESTION": "question_1", "ANSWER_A": "answer_1", "ANSWER_B": "answer_2"}


def arena_hard_template(path: Path) -> PromptTemplate:
    """The template of a YAML file with `prompt_template` (a text, or a list of one) and `system_prompt`, as Arena-Hard's settings are
    written. Raises BadFile for a file without them, or a template that lacks a place."""
    settings = read_yaml(path)
    if not isinstance(settings, dict) or not {"prompt_template", "system_prompt"} <= settings.keys():
        raise BadFile(f"{path}: expected a YAML file with system_prompt and prompt_template, got {describe(settings)}")
    prompt = settings["prompt_template"]
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    prompt, system = text(prompt, f"{path}: prompt_template"), text(settings["system_prompt"], f"{path}: system_prompt")
    for new, old in GAME_PLACES.items():
        prompt = prompt.replace(f"{{{old}}}", f"{{{new}}}")
    if lacking := [f"{{{place}}}" for place in GAME_PLACES if f"{{{place}}}" not in prompt]:
        raise BadFile(f"{path}: prompt_template has no place for {', '.join(lacking)}")
    return PromptTemplate("arena_hard", (("system", system.strip()), ("user", prompt.strip())))


def prompts_of(judge: str, file: Path | None, annotator_name: str) -> tuple[Path, str]:
    """(file or folder, digest) of what a judge that is a language model is asked with. `file`: the user's own prompts."""
    if judge == "alpaca_eval":
        found = annotator(annotator_name)
        return found.folder, found.digest
    if judge == "arena_hard":
        return file or OWN_GAME, arena_hard_template(file or OWN_GAME).digest
    return file or OWN_PROMPTS, mt_bench_digest(mt_bench_templates(file or OWN_PROMPTS))
