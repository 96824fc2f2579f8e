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

import yaml

from bench.records import Message
from bench.store import canonical_json, hash_key

OWN_PROMPTS = Path(__file__).parent / "mt_bench_prompts.jsonl"
OWN_GAME = Path(__file__).parent / "arena_hard_prompt.yaml"


@dataclass(frozen=True)
class Template:
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


def parse_messages(text: str) -> tuple[tuple[str, str], ...]:
    """A template's messages: ChatML, Llama 3's headers, Anthropic's or OpenAssistant's turns; a text without such marks is the user's."""
    text = text.strip()
    if text.startswith("<|im_start|>"):
        found = re.findall(r"<\|im_start\|>(\w+)[^\n]*\n(.*?)(?:<\|im_end\|>|\Z)", text, re.DOTALL)
    elif "<|start_header_id|>" in text:
        found = re.findall(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>(.*?)(?:<\|eot_id\|>|\Z)", text, re.DOTALL)
    elif text.startswith("Human:"):
        found = [("user", text.removeprefix("Human:").removesuffix("Assistant:"))]
    else:
        found = [("user", re.sub(r"^<\|prompter\|>|(<\|endoftext\|>)?<\|assistant\|>$", "", text))]  # OpenAssistant's marks
    messages = [(role, content.strip()) for role, content in found]
    return tuple(messages if messages[-1][0] != "assistant" or messages[-1][1] else messages[:-1])


# AlpacaEval's annotators ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Annotator:
    """One annotator of the alpaca-eval package: what it asks, whom, how, and by which of the package's rules it is read."""

    name: str
    folder: Path
    template: Template
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


def annotator(name: str) -> Annotator:
    """An annotator by its name in the package, or a folder of one's own laid out as there. Raises ValueError for one that is unknown,
    or that asks about several items at once."""
    folder = Path(name).expanduser().absolute() if "/" in name else annotators_folder() / name
    files = sorted(folder.glob("config*.yaml"))
    if not files:
        raise ValueError(f"unknown annotator {name!r}; the alpaca-eval package knows: {', '.join(annotator_names())}")
    configs = yaml.safe_load(files[0].read_text(encoding="utf-8"))
    if len(configs) != 1:
        raise ValueError(f"annotator {name!r} is a pool of {len(configs)}; bench asks one judge at a time: name one of the others")
    (config,) = configs.values()
    if (batch := config.get("batch_size") or 1) != 1:
        raise ValueError(f"annotator {name!r} asks about {batch} items in one prompt; bench asks about one: name another")
    kwargs = config.get("completions_kwargs") or {}
    template = (folder.parent / config["prompt_template"]).read_text(encoding="utf-8")
    return Annotator(
        name=name,
        folder=folder,
        template=Template(config["prompt_template"], parse_messages(template)),
        model=str(kwargs.get("model_name", "")),
        decoding=PACKAGE_DECODING | {SENT[key]: value for key, value in kwargs.items() if key in SENT},
        parser=config.get("fn_completion_parser") or "regex_parser",
        parser_kwargs=config.get("completion_parser_kwargs") or {},
    )


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


def mt_bench_templates(path: Path) -> dict[str, Template]:
    """Templates by name from a file of FastChat's form (ours has it too). Raises ValueError for one that lacks a prompt or a place."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found[row["name"]] = Template(row["name"], (("system", row["system_prompt"]), ("user", row["prompt_template"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: expected an object with name, system_prompt and prompt_template: {error}") from error
    for name, places in (SINGLE | PAIRWISE).items():
        if name not in found:
            raise ValueError(f"{path} has no prompt called {name}; it has {', '.join(sorted(found)) or 'none'}")
        text = "".join(content for _, content in found[name].messages)
        if lacking := [place for place in places if f"{{{place}}}" not in text]:
            raise ValueError(f"{path}: prompt {name} has no place for {', '.join(f'{{{place}}}' for place in lacking)}")
    return found


def mt_bench_digest(templates: Mapping[str, Template]) -> str:
    return hash_key({name: templates[name].digest for name in sorted(SINGLE | PAIRWISE)})


# Arena-Hard's prompt ---------------------------------------------------------------------------------------------------

# Names of the three places in Arena-Hard-Auto 2.0 and, the opponent's answer being its answer_1, in 0.1.
GAME_PLACES = {"QUESTION": "question_1", "ANSWER_A": "answer_1", "ANSWER_B": "answer_2"}


def arena_hard_template(path: Path) -> Template:
    """The template of a YAML file with `prompt_template` (a text, or a list of one) and `system_prompt`, as Arena-Hard's settings are
    written. Raises ValueError for a file without them, or a template that lacks a place."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        text, system = settings["prompt_template"], settings["system_prompt"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected a YAML file with system_prompt and prompt_template: {error!r}") from error
    if isinstance(text, list) and len(text) == 1:
        (text,) = text
    if not isinstance(text, str) or not isinstance(system, str):
        raise ValueError(f"{path}: system_prompt and prompt_template must be texts")
    for new, old in GAME_PLACES.items():
        text = text.replace(f"{{{old}}}", f"{{{new}}}")
    if lacking := [f"{{{place}}}" for place in GAME_PLACES if f"{{{place}}}" not in text]:
        raise ValueError(f"{path}: prompt_template has no place for {', '.join(lacking)}")
    return Template("arena_hard", (("system", system.strip()), ("user", text.strip())))
