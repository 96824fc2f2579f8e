"""Settings of judges: the completions they get, how they are run, and the cost of those that are language
models.

Facts about a judge are class variables and properties; they are no settings, so no key has them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from bench.config.base import (
    LABEL,
    AsList,
    Count,
    Name,
    Positive,
    Probability,
    Settings,
    by_name,
    misfit,
    name_of,
)

EVALUATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")  # The label of a suite's evaluation.
ENDINGS = ("n", "se", "low", "high", "failed")  # Endings that names of numbers have of their own.


class Decoding(Settings):
    temperature: float = Field(ge=0)
    """Sampling temperature, 0 or more; 0 is greedy, usual 0 to 1."""
    top_p: Annotated[float, Field(gt=0, le=1)]
    """Probability mass that nucleus sampling keeps, above 0 to 1; usual 0.9 to 1."""
    max_new_tokens: Count
    """Longest completion in tokens; by default what the benchmark gives (scale.judged_tokens)."""


class PreferenceJudging(Settings):
    """Preferences in AlpacaEval 2.0's manner: in [0, 1] over a fixed opponent, one turn."""

    n_items: Count
    """Number of items to judge."""
    opponent: Literal["reference", "chosen", "previous", "start"]
    """Opponent of the policy: the world's reference writer (reference), the annotator's choice of two
    completions (chosen, with data.completions_by=writer), the policy of a loop's previous iteration
    (previous), or the start model (start)."""
    temperature: Positive
    """Temperature of the preference, which is sigmoid(gold difference / temperature)."""
    decoding: Decoding
    """Decoding of the policy's completions to the items."""


class RatingJudging(Settings):
    """Ratings in MT-Bench's manner: 1 to 10 for each turn, two turns."""

    n_items: Count
    """Number of items to judge."""
    decoding: Decoding
    """Decoding of the policy's completions to the items."""


HELDOUT = "heldout"  # judge.items: the held-out prompts of the cell's data, against their chosen answers.
Rival = Literal["previous", "start"]  # A policy that is the opponent.
RIVALS: tuple[Rival, ...] = get_args(Rival)
Manner = Literal["preference", "rating"]  # The kind of a verdict.
ItemForm = Literal["alpaca_eval", "mt_bench", "arena_hard"]  # The layout of a file of items.


class JudgeSettings(Settings):
    """Facts about a judge that are no settings, with their defaults."""

    item_files: ClassVar[tuple[str, ...]] = ()
    """Settings that name files of items. Empty: it judges the world's own prompts only."""
    turns: ClassVar[Literal[1, 2]] = 1
    """Turns of an item."""
    classifier: ClassVar[str | None] = None
    """Kind of model that it needs, where that is a classifier."""
    answer_tokens: ClassVar[int | None] = None
    """Longest answer in tokens where its benchmark generates them; None: it is no benchmark."""
    of_several: ClassVar[bool] = False
    """Whether it has judges of its own, by label (`judges`)."""
    manner_in_name: ClassVar[bool] = False
    """Whether tables name its manner of verdict with it, since it could give another."""
    cites: ClassVar[tuple[str, ...]] = ()
    """Its papers: keys of bench/papers/references.bib."""

    @property
    def gives(self) -> tuple[Manner, ...]:
        """Kinds of verdict that the judge gives."""
        return ("preference",)

    @property
    def rival(self) -> Rival | None:
        """The policy that is the opponent; None where the items bring the opponent's completions."""
        opponent = getattr(getattr(self, "preference", self), "opponent", None)
        return opponent if opponent in RIVALS else None

    @classmethod
    def form_of(cls, files: Collection[str]) -> ItemForm:
        """Layout of its items, given the roles of the files at hand."""
        return "alpaca_eval"


class GoldJudge(JudgeSettings):
    """The controlled world's own truth, as preferences and as ratings."""

    manner_in_name = True

    name: Literal["gold"]
    split: Literal["development", "evaluation"]
    """Prompts to judge: development, to choose settings on, or evaluation, to report."""
    preference: PreferenceJudging
    """Settings of the pairwise preferences, in AlpacaEval 2.0's manner."""
    rating: RatingJudging
    """Settings of the ratings, in MT-Bench's manner."""

    @property
    def gives(self) -> tuple[Manner, ...]:
        return "preference", "rating"


class NoJudge(JudgeSettings):
    """Completions are written and measured, and not judged."""

    name: Literal["none"]
    n_items: Count
    """Number of held-out prompts to complete."""
    decoding: Decoding
    """Decoding of the policy's completions to the items."""

    @property
    def gives(self) -> tuple[Manner, ...]:
        return ()


class Asking(Settings):
    """How a judge that is a language model is reached and paid. Nothing here changes a prompt, so no key has
    it."""

    server: Literal["endpoint", "in_process", "vllm"]
    """Program that runs the judge: endpoint (an HTTP API), in_process (transformers in the worker), vllm (a
    server for the length of the command). With in_process and vllm, `model` is a folder; see judge=local."""
    base_url: str | None
    """URL of the endpoint; null: OpenAI's."""
    api_key_env: str = Field(min_length=1)
    """Environment variable that holds the key of the endpoint. It may be unset where base_url is set."""
    concurrency: Annotated[int, Field(ge=1, le=1024)]
    """Largest number of requests at the same time, 1 to 1024."""
    attempts: Count
    """Attempts at one request before the stage is left unfinished."""
    timeout_s: Positive
    """Longest wait for one reply, in seconds."""
    batch_wait_s: Positive | None
    """Longest wait for a batch file, in seconds; null: requests are sent one by one. OpenAI takes half the
    price for a batch and returns it within a day."""
    budget_dollars: Positive | None
    """Most dollars that judging the sweep may cost, earlier runs included; null: no limit. At the limit the
    command ends with exit code 4; the same command goes on after the limit is raised."""
    prices: str | None
    """Price file in the form of bench/judges/asked/prices.yaml; null: that one, then the package genai-prices."""
    tokenizer: str | None
    """Folder with the tokenizer.json that counts tokens for do=plan; null: tiktoken, earlier replies, or 4
    characters a token. The plan says which one it used."""
    max_without_logprobs: Probability = 0.01
    """Largest share of votes that may come without log-probs, and are then read from their text as 0 or 1. A
    larger share leaves the stage unfinished; set 1 for an endpoint that gives no log-probs."""

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and not _is_http(url):
            raise PydanticCustomError(
                "url",
                "Input should be an http:// or https:// URL with a host, such as http://127.0.0.1:8000/v1",
            )
        return url


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for a port above 65535
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and not re.search(r"[\s\x00-\x1f\x7f]", url)
    )


class VerdictDecoding(Settings):
    """Decoding of a judge's replies; null: as its annotator or its manner says."""

    temperature: float | None = Field(ge=0)
    """Sampling temperature of the judge; null: the annotator's or manner's own."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    """Probability mass that the judge's sampling keeps; null: its own."""
    max_tokens: Count | None
    """Longest reply of the judge in tokens; null: its own."""
    top_logprobs: Annotated[int, Field(ge=0, le=100)] | None
    """Number of likeliest tokens to list, 0 to 100; null: its own."""
    request: dict[str, Any]
    """Further fields of the request; a null value drops a field."""


class LanguageJudge(JudgeSettings, Asking):
    """Settings of every judge that is a language model."""

    item_files: ClassVar[tuple[str, ...]] = ("items",)
    answer_tokens = 2048

    model: str = Field(min_length=1)
    """Name of the judge's model as the endpoint knows it, or its folder where server is in_process or vllm.
    """
    provider: Name
    """Name of the company or program that serves the model; it is part of a verdict's identity."""
    dtype: Literal["float32", "bfloat16"]
    """Number format of the weights where server is in_process or vllm: float32 or bfloat16."""
    server_args: Annotated[tuple[str, ...], AsList]
    """Further words of the vLLM server's command."""
    verdict: VerdictDecoding
    """Decoding of the judge's replies, and further fields of the request; null: as the annotator or the
    benchmark says."""
    items: str | None
    """File of items in the form of the judge's benchmark, hub for AlpacaEval's official 805, or heldout for the
    held-out prompts of the data against their chosen answers; null: the controlled world's evaluation
    prompts. AlpacaEval has a list of instruction and output (the baseline's);
    MT-Bench FastChat's question.jsonl; Arena-Hard its question.jsonl with `baseline`, or AlpacaEval's list
    without it."""
    n_items: Count | None
    """Number of items to judge, the first of the file; null: all of them."""
    opponent: Literal["items", "previous", "start"] = "items"
    """Opponent of the policy: the completions that come with the items (items), the policy of a loop's
    previous iteration (previous), or the start model (start)."""
    decoding: Decoding
    """Decoding of the policy's completions to the items."""

    def __hash__(self) -> int:  # dict fields have no hash
        return hash(self.model_dump_json())


class AlpacaEvalJudge(LanguageJudge):
    """Preferences over a fixed opponent, with the prompts and parsers of an annotator of the alpaca-eval
    package."""

    cites = ("dubois2024alpaca",)
    name: Literal["alpaca_eval"]
    annotator: str = Field(min_length=1)
    """Annotator of the alpaca-eval package by name (evaluators_configs), or a folder of that layout."""
    order: Literal["official", "both"]
    """Order of the two completions: official (one order, drawn from the instruction), or both (two requests,
    averaged; twice the price)."""
    calibration: str | None
    """Length control's prior knowledge: AlpacaEval's df_gamed.csv or a file with its columns; fitted: item
    difficulties from the other rows of the table; null: neither."""


class MtBenchJudge(LanguageJudge):
    """Two turns in eight categories: a rating of each completion, or each pair in both orders."""

    item_files = ("items", "references", "baseline")
    turns = 2
    answer_tokens = 1024
    manner_in_name = True

    cites = ("zheng2023judging",)
    name: Literal["mt_bench"]
    mode: Literal["single", "pairwise"]
    """Kind of verdict: single (a rating of 1 to 10 for each turn), or pairwise (both orders, a win needs
    both)."""
    prompts: str | None
    """FastChat's judge_prompts.jsonl, or zh for prompts in Chinese; null: the prompts of bench."""
    references: str | None
    """FastChat's reference_answer/*.jsonl, to go with `items`; null: none."""
    baseline: str | None
    """The opponent's FastChat model_answer/*.jsonl, for mode=pairwise; null: none."""
    temperatures: dict[str, Annotated[float, Field(ge=0)]]
    """Sampling temperature of the policy by category, as in FastChat; decoding.temperature for any other."""

    @property
    def gives(self) -> tuple[Manner, ...]:
        return ("rating",) if self.mode == "single" else ("preference",)

    @classmethod
    def form_of(cls, files: Collection[str]) -> ItemForm:
        return "mt_bench"


class ArenaHardJudge(LanguageJudge):
    """Games against a fixed opponent as in Arena-Hard-Auto: each pair in both orders, five verdicts."""

    item_files = ("items", "baseline")
    answer_tokens = 4096

    cites = ("li2024arena",)
    name: Literal["arena_hard"]
    prompts: str | None
    """YAML file with system_prompt and prompt_template ({QUESTION}, {ANSWER_A}, {ANSWER_B}) as Arena-Hard has
    them; null: the prompts of bench."""
    baseline: str | None
    """The opponent's model_answer file, where `items` is Arena-Hard's own question.jsonl; null: `items` holds
    its outputs."""
    calibration: str | None
    """Length control's prior knowledge: AlpacaEval's df_gamed.csv or a file with its columns; fitted: item
    difficulties from the other rows of the table; null: neither."""

    @classmethod
    def form_of(cls, files: Collection[str]) -> ItemForm:
        return "arena_hard" if "baseline" in files else "alpaca_eval"


class ModelJudge(JudgeSettings):
    """Settings of a judge that is a classifier in a folder."""

    item_files = ("items",)
    answer_tokens = 2048
    classifier = "a sequence classifier of one output"

    model: str = Field(min_length=1)
    """Folder of the classifier."""
    dtype: Literal["float32", "bfloat16"]
    """Number format of the weights: float32 or bfloat16."""
    items: str | None
    """File of items, a list of instruction and output (the baseline's), or heldout for the held-out prompts of
    the data against their chosen answers; null: the controlled world's evaluation prompts."""
    n_items: Count | None
    """Number of items to judge, the first of the file; null: all of them."""
    opponent: Literal["items", "previous", "start"] = "items"
    """Opponent of the policy: the completions that come with the items (items), the policy of a loop's
    previous iteration (previous), or the start model (start)."""
    calibration: str | None
    """Length control's prior knowledge: AlpacaEval's df_gamed.csv or a file with its columns; fitted: item
    difficulties from the other rows of the table; null: neither."""
    decoding: Decoding
    """Decoding of the policy's completions to the items."""


class RewardModelJudge(ModelJudge):
    """Preferences over a fixed opponent by a sequence classifier of one output."""

    name: Literal["reward_model"]


class PairRankerJudge(ModelJudge):
    """Preferences over a fixed opponent by a model that reads both completions at once, in both orders."""

    classifier = "PairRM, or a sequence classifier of one output"

    cites = ("jiang2023blender",)
    name: Literal["pair_ranker"]
    template: str
    """Text that the classifier reads, with {prompt}, {first} and {second}, as it was trained. PairRM ignores
    it and uses its own marks; a model with a chat template reads the text through it."""

    @model_validator(mode="after")
    def _has_places(self) -> PairRankerJudge:
        if lacking := [place for place in ("{prompt}", "{first}", "{second}") if place not in self.template]:
            raise misfit(("template", f"the template must contain {', '.join(lacking)}"))
        return self


ModelledJudge = (
    AlpacaEvalJudge | MtBenchJudge | ArenaHardJudge | RewardModelJudge | PairRankerJudge
)  # These can label samples too.
Member = GoldJudge | ModelledJudge  # A jury's member gives preferences between two completions of one turn.


class JuryJudge(JudgeSettings):
    """Several judges of the same completions. Each member is a whole section, as if it judged alone; items
    and decoding are the jury's."""

    item_files = ("items",)
    answer_tokens = 2048
    of_several = True

    cites = ("verga2024juries",)
    name: Literal["jury"]
    judges: dict[str, Annotated[Member, Field(discriminator="name")]]
    """Members by label (letters and digits): `judge`, a file of this folder, and the settings to change. Each
    judges as if alone, but items, n_items and decoding are the jury's."""
    items: str | None
    """File of items, a list of instruction and output (the baseline's), or heldout for the held-out prompts of
    the data against their chosen answers; null: the controlled world's evaluation prompts."""
    n_items: Count | None
    """Number of items to judge, the first of the file; null: all of them."""
    opponent: Literal["items", "previous", "start"] = "items"
    """Opponent of the policy: the completions that come with the items (items), the policy of a loop's
    previous iteration (previous), or the start model (start)."""
    calibration: str | None
    """Length control's prior knowledge: AlpacaEval's df_gamed.csv or a file with its columns; fitted: item
    difficulties from the other rows of the table; null: neither."""
    decoding: Decoding
    """Decoding of the policy's completions to the items."""

    @model_validator(mode="after")
    def _are_several(self) -> JuryJudge:
        problems = (
            [f"a jury needs two judges or more, got {len(self.judges)}"] if len(self.judges) < 2 else []
        )
        what = f"must be letters and digits, and none of {', '.join(ENDINGS)}"
        problems += [
            f"a member's label {what}, got {label}"
            for label in self.judges
            if not LABEL.fullmatch(label) or label in ENDINGS
        ]
        labels = list(self.judges)
        twins = [
            (one, two)
            for n, two in enumerate(labels)
            for one in labels[:n]
            if self.judges[one] == self.judges[two]
        ]
        problems += [
            f"{one} and {two} are the same judge, and its vote would count twice: leave {two} out, or give it other settings"
            for one, two in twins
        ]
        if problems:
            raise misfit(*(("judges", text) for text in problems))
        seats = ", ".join(repr(name_of(kind)) for kind in get_args(Member) if kind.turns == 1)
        two_turns = {
            f"judges.{label}.name": judge.name for label, judge in self.judges.items() if judge.turns != 1
        }
        if two_turns:
            raise misfit(
                *(
                    (place, f"judge.{place} must be one of {seats}, got {name!r}")
                    for place, name in two_turns.items()
                )
            )
        return self

    def __hash__(self) -> int:  # dict fields have no hash
        return hash(self.model_dump_json())


OneJudge = GoldJudge | NoJudge | ModelledJudge | JuryJudge  # The judge of one evaluation.


class SuiteJudge(JudgeSettings):
    """Several evaluations of one policy, each with its own items, decoding, judge and budget."""

    of_several = True

    name: Literal["suite"]
    judges: dict[str, Annotated[OneJudge, Field(discriminator="name")]]
    """Evaluations by label: `judge`, a file of this folder, and the settings to change. A setting of the
    suite's own level goes to every evaluation that has it."""

    @model_validator(mode="after")
    def _are_several(self) -> SuiteJudge:
        labels = list(self.judges)
        problems = [f"a suite needs two evaluations or more, got {len(labels)}"] if len(labels) < 2 else []
        problems += [
            f"an evaluation's label must be letters, digits, _, + and -, got {label}"
            for label in labels
            if not EVALUATION.fullmatch(label)
        ]
        problems += [
            f"judge=none cannot be one of several evaluations: remove the evaluation '{label}'"
            for label, judge in self.judges.items()
            if isinstance(judge, NoJudge)
        ]
        problems += [
            f"{one} and {two} are the same evaluation: leave {two} out, or give it other settings"
            for n, two in enumerate(labels)
            for one in labels[:n]
            if self.judges[one] == self.judges[two]
        ]
        if problems:
            raise misfit(*(("judges", text) for text in problems))
        return self

    def __hash__(self) -> int:  # dict fields have no hash
        return hash(self.model_dump_json())


AnyJudge = OneJudge | SuiteJudge  # The judges of a cell.
JUDGES: dict[str, type[JudgeSettings]] = by_name(*get_args(AnyJudge))


def judge_facts(section: Any) -> type[JudgeSettings]:
    """The settings class of a judge's section, with its facts as class variables; JudgeSettings for an
    unknown judge."""
    name = section.get("name") if isinstance(section, dict) else section
    return JUDGES.get(name, JudgeSettings) if isinstance(name, str) else JudgeSettings
