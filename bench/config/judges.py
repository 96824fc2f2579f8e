"""Judges: how the policy answers them, how they are asked, and how one that is a language model is paid.

Facts about a judge are class variables and properties: no settings, so they reach no key.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from bench.config.base import AsList, Count, Name, Positive, Probability, Settings, by_name, misfit, name_of

LABEL = re.compile(r"[A-Za-z][A-Za-z0-9]*")  # how a jury calls a member: part of names of numbers
ENDINGS = ("n", "se", "low", "high", "failed")  # which these names have of their own


class Decoding(Settings):
    temperature: float = Field(ge=0)  # 0 is greedy
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: Count


class PreferenceJudging(Settings):
    """AlpacaEval 2.0's manner: preference in [0, 1] over a fixed opponent, one turn."""

    n_items: Count
    opponent: Literal["reference", "chosen"]  # the world's reference writer, or what the annotator chose of two completions
    temperature: Positive  # preference = sigmoid(gold difference / temperature)
    decoding: Decoding


class RatingJudging(Settings):
    """MT-Bench's manner: a rating of 1 to 10 per turn, two turns."""

    n_items: Count
    decoding: Decoding


Manner = Literal["preference", "rating"]  # what a verdict is
ItemForm = Literal["alpaca_eval", "mt_bench", "arena_hard"]  # how a file of items is laid out


class JudgeSettings(Settings):
    """What every judge is, beside its settings."""

    item_files: ClassVar[tuple[str, ...]] = ()  # settings that name files of items; empty: it asks the world's own prompts only
    turns: ClassVar[Literal[1, 2]] = 1  # of an item
    classifier: ClassVar[str | None] = None  # what its model must be, where that is a classifier
    manner_in_name: ClassVar[bool] = False  # what it gives is said where it is named: it could give something else

    @property
    def gives(self) -> tuple[Manner, ...]:
        """The kinds of verdict that it gives."""
        return ("preference",)

    @classmethod
    def form_of(cls, files: Collection[str]) -> ItemForm:
        """How its items are laid out, given the roles of the files that are there."""
        return "alpaca_eval"


class GoldJudge(JudgeSettings):
    """The controlled world's own truth, in both manners."""

    manner_in_name = True

    name: Literal["gold"]
    split: Literal["development", "evaluation"]  # choose settings on the first, report the second
    preference: PreferenceJudging
    rating: RatingJudging

    @property
    def gives(self) -> tuple[Manner, ...]:
        return "preference", "rating"


class NoJudge(JudgeSettings):
    """Completions are written and measured, nobody judges them."""

    name: Literal["none"]
    n_items: Count
    decoding: Decoding

    @property
    def gives(self) -> tuple[Manner, ...]:
        return ()


class Asking(Settings):
    """How a judge that is a language model is reached and paid; nothing of it changes what is asked, and none of it is keyed."""

    server: Literal["endpoint", "in_process", "vllm"]  # in_process: transformers in the worker; vllm: a server started for the command
    base_url: str | None  # of an endpoint; None: OpenAI's
    api_key_env: str = Field(min_length=1)  # the environment variable that holds the key
    concurrency: Annotated[int, Field(ge=1, le=1024)]  # requests under way at once
    attempts: Count  # of a request, before the stage is left unfinished
    timeout_s: Positive  # of one request
    batch_wait_s: Positive | None  # send a batch file and wait so long for it; None: ask at once, request by request
    budget_dollars: Positive | None  # what the judging of a sweep may cost in all, earlier runs of it included
    prices: str | None  # a price file; None: the one that comes with bench
    tokenizer: str | None  # a folder whose tokenizer counts tokens for forecasts
    max_without_logprobs: Probability = 0.01  # share of the votes to be weighed that may be read from the text, for want of log-probs

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and not _is_http(url):
            raise PydanticCustomError("url", "Input should be an http:// or https:// URL with a host, such as http://127.0.0.1:8000/v1")
        return url


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # a number up to 65535
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"[\s\x00-\x1f\x7f]", url)


class VerdictDecoding(Settings):
    """How a judge answers; None: as its annotator or its manner says. `request`: further fields of the request, null drops one."""

    temperature: float | None = Field(ge=0)
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    max_tokens: Count | None
    top_logprobs: Annotated[int, Field(ge=0, le=100)] | None  # likeliest tokens to list; 0 asks for none
    request: dict[str, Any]


class LanguageJudge(JudgeSettings, Asking):
    """What every judge that is a language model sets."""

    item_files: ClassVar[tuple[str, ...]] = ("items",)

    model: str = Field(min_length=1)  # as an endpoint is asked for it; a folder for the other servers
    provider: Name  # who serves the model: part of what a verdict is
    dtype: Literal["float32", "bfloat16"]  # of the other servers
    server_args: Annotated[tuple[str, ...], AsList]  # further words of the vLLM server's command
    verdict: VerdictDecoding
    items: str | None  # a file, or `hub` where the manner has items there; None: the controlled world's evaluation prompts
    n_items: Count | None  # the first so many; None: all of the file
    decoding: Decoding  # of the policy

    def __hash__(self) -> int:  # fields that hold dicts have none
        return hash(self.model_dump_json())


class AlpacaEvalJudge(LanguageJudge):
    """Preferences over a fixed opponent, asked as one of the alpaca-eval package's annotators asks."""

    name: Literal["alpaca_eval"]
    annotator: str = Field(min_length=1)  # its name in the package, or a folder laid out as there
    order: Literal["official", "both"]  # official: one order an item, drawn by its instruction; both: two calls, averaged
    calibration: str | None  # of the table's length control: a file, `fitted`, or None


class MtBenchJudge(LanguageJudge):
    """Two turns in eight categories: a rating of each answer, or each pair of answers in both orders."""

    item_files = ("items", "references", "baseline")
    turns = 2
    manner_in_name = True

    name: Literal["mt_bench"]
    mode: Literal["single", "pairwise"]
    prompts: str | None  # FastChat's judge_prompts.jsonl; None: ours
    references: str | None  # FastChat's reference_answer/*.jsonl
    baseline: str | None  # the opponent's FastChat model_answer/*.jsonl, for pairs
    temperatures: dict[str, Annotated[float, Field(ge=0)]]  # of the policy, by category; decoding.temperature elsewhere

    @property
    def gives(self) -> tuple[Manner, ...]:
        return ("rating",) if self.mode == "single" else ("preference",)

    @classmethod
    def form_of(cls, files: Collection[str]) -> ItemForm:
        return "mt_bench"


class ArenaHardJudge(LanguageJudge):
    """Games over a fixed opponent, each pair in both orders, five verdicts; asked as Arena-Hard-Auto asks."""

    item_files = ("items", "baseline")

    name: Literal["arena_hard"]
    prompts: str | None  # a file of Arena-Hard's settings, with prompt_template; None: ours
    baseline: str | None  # the opponent's answers, where items are Arena-Hard's own question.jsonl
    calibration: str | None

    @classmethod
    def form_of(cls, files: Collection[str]) -> ItemForm:
        return "arena_hard" if "baseline" in files else "alpaca_eval"


class ModelJudge(JudgeSettings):
    """What a judge sets that is a classifier in a folder."""

    item_files = ("items",)
    classifier = "a sequence classifier of one output"

    model: str = Field(min_length=1)  # its folder
    dtype: Literal["float32", "bfloat16"]
    items: str | None  # a list of AlpacaEval's form; None: the controlled world's evaluation prompts
    n_items: Count | None  # the first so many; None: all of the file
    calibration: str | None
    decoding: Decoding  # of the policy


class RewardModelJudge(ModelJudge):
    """Preferences over a fixed opponent by a sequence classifier of one output."""

    name: Literal["reward_model"]


class PairRankerJudge(ModelJudge):
    """Preferences over a fixed opponent by a model that reads both answers at once, in both orders."""

    classifier = "PairRM, or a sequence classifier of one output"

    name: Literal["pair_ranker"]
    template: str  # of the text that a classifier reads; PairRM's own folder has its own

    @model_validator(mode="after")
    def _has_places(self) -> PairRankerJudge:
        if lacking := [place for place in ("{prompt}", "{first}", "{second}") if place not in self.template]:
            raise misfit(("template", f"the template has no place for {', '.join(lacking)}"))
        return self


ModelledJudge = AlpacaEvalJudge | MtBenchJudge | ArenaHardJudge | RewardModelJudge | PairRankerJudge  # these label samples too
Member = GoldJudge | ModelledJudge  # of a jury: those that prefer one of two one-turn answers


class JuryJudge(JudgeSettings):
    """Several judges of the same answers. Each member is a whole section, as if it judged alone; items and decoding are the jury's."""

    item_files = ("items",)

    name: Literal["jury"]
    judges: dict[str, Annotated[Member, Field(discriminator="name")]]
    items: str | None
    n_items: Count | None
    calibration: str | None
    decoding: Decoding

    @model_validator(mode="after")
    def _are_several(self) -> JuryJudge:
        found = [f"a jury is two judges or more, got {len(self.judges)}"] if len(self.judges) < 2 else []
        what = f"must be letters and digits, and none of {', '.join(ENDINGS)}"
        found += [f"a label {what}, got {label}" for label in self.judges if not LABEL.fullmatch(label) or label in ENDINGS]
        labels = list(self.judges)
        twins = [(one, two) for n, two in enumerate(labels) for one in labels[:n] if self.judges[one] == self.judges[two]]
        found += [
            f"{one} and {two} are one judge, whose vote would count twice: leave {two} out, or set what differs" for one, two in twins
        ]
        if found:
            raise misfit(*(("judges", text) for text in found))
        seats = ", ".join(repr(name_of(kind)) for kind in get_args(Member) if kind.turns == 1)
        two_turns = {f"judges.{label}.name": judge.name for label, judge in self.judges.items() if judge.turns != 1}
        if two_turns:
            raise misfit(*((place, f"judge.{place} must be one of {seats}, got {name!r}") for place, name in two_turns.items()))
        return self

    def __hash__(self) -> int:  # fields that hold dicts have none
        return hash(self.model_dump_json())


AnyJudge = GoldJudge | NoJudge | ModelledJudge | JuryJudge  # of a cell
JUDGES: dict[str, type[JudgeSettings]] = by_name(*get_args(AnyJudge))


def judge_facts(section: Any) -> type[JudgeSettings]:
    """The class that a judge's section is of, whose class variables are its facts; of one that is unknown, those of no judge."""
    name = section.get("name") if isinstance(section, dict) else section
    return JUDGES.get(name, JudgeSettings) if isinstance(name, str) else JudgeSettings
