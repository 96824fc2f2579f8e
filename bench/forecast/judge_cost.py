"""Forecast cost of judging: requests, tokens and dollars of the judge stages to do.

Prompts are made of the real items and the policy's completions where these exist. Otherwise stand-ins are
used, in this order: completions of another policy to the same items, completions as long as the baseline's,
completions as long as the policy may write.

Tokens are counted in this order: by the judge's own tokenizer where a folder of it is known, by tiktoken for
models that it knows, from the characters per token that earlier replies of this judge reported, at 4
characters a token.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from bench.config import user_path
from bench.engines.base import silent
from bench.forecast.row_counts import NotHere, ScratchData
from bench.forecast.stage_time import StageForecast
from bench.judges import load
from bench.judges.asked.prices import price_of
from bench.judges.asked.request import Request, refuse_to_ask
from bench.models.token_counts import counter
from bench.planning.judging import labels_samples
from bench.records import Completion, Item, read_completions, read_items, read_verdicts
from bench.store.keys import Stage
from bench.store.stage_settings import GenerateSettings, LanguageJudgeSettings, OpponentData, SampleSettings
from bench.store.store import Store

CHARACTERS_A_TOKEN = 4.0
TIKTOKEN_S = 5.0  # Time limit: tiktoken loads an encoding over the network the first time.


@dataclass(frozen=True)
class JudgeCost:
    """Requests of one judge stage and their cost. `dollars` is None without a known price.

    `how` has the source of the completions and the source of the token counts, in words.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None
    how: tuple[str, str]

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def judge_costs(stages: Sequence[Stage], store: Store) -> dict[Stage, JudgeCost]:
    """Cost of every stage that asks a language model as a judge, and whose prompts are on this machine."""
    costs = {}
    for stage in stages:
        if isinstance(stage.settings, LanguageJudgeSettings):
            with contextlib.suppress(NotHere):
                costs[stage] = _cost(stage, stage.settings, store)
    return costs


def with_costs(
    forecast: Mapping[Stage, StageForecast], costs: Mapping[Stage, JudgeCost]
) -> dict[Stage, StageForecast]:
    """Forecasts with the tokens of judge stages filled in."""
    return {
        stage: replace(estimate, tokens=cost.tokens) if (cost := costs.get(stage)) else estimate
        for stage, estimate in forecast.items()
    }


def _cost(stage: Stage, settings: LanguageJudgeSettings, store: Store) -> JudgeCost:
    assert settings.asking is not None
    with tempfile.TemporaryDirectory() as scratch:
        source_words: list[str] = []

        def stand_in(source: Stage, items: Sequence[Item]) -> list[Completion]:
            completions, words = _stand_ins(source, items, store)
            source_words.append(words)
            return completions

        made = ScratchData(store, Path(scratch), stand_in)
        items = read_items(made.folder(stage.inputs["items"]))
        if isinstance(getattr(stage.inputs["items"], "settings", None), OpponentData):
            # Stand-ins of both policies are the same text, and the same text needs no request.
            items = [replace(i, baseline=[f"{text}." for text in i.baseline or ()]) for i in items]
        completions = read_completions(made.folder(stage.inputs["completions"]))
    generated = getattr(stage.inputs["completions"], "kind", "") == "generate"
    written = "the policy's completions" if generated else "the judged texts"
    if labels_samples(stage):
        written = "the policy's samples"
    paths = {role: store.folder(source) for role, source in stage.inputs.items()}
    judge: Any = load(settings).make_judge(settings, paths, refuse_to_ask, silent)
    requests = list(
        {shown.request.digest: shown.request for shown in judge.requests(items, completions)}.values()
    )
    count, counter = _counter(stage, settings, store)
    prompt = sum(count(request) for request in requests)
    completion, replies = _reply_tokens(stage, requests, store)
    price = (
        price_of(settings.model, settings.asking.prices, settings.asking.base_url) if settings.model else None
    )
    dollars = 0.0 if settings.model is None else None
    if price is not None:
        dollars = price.dollars(prompt, completion, batch=settings.asking.batch_wait_s is not None)
        counter = f"{counter}; prices of {price.as_of}"
    return JudgeCost(
        len(requests),
        prompt,
        completion,
        dollars,
        (f"{source_words[0] if source_words else written}{replies}", counter),
    )


# Items and completions ----------------------------------------------------------------------------------------------------


def _stand_ins(source: Stage, items: Sequence[Item], store: Store) -> tuple[list[Completion], str]:
    """(stand-ins for completions that are not written yet, their source in words).

    Stand-ins for samples differ from each other and have the largest allowed length.
    """
    settings = source.settings
    assert isinstance(settings, GenerateSettings | SampleSettings)
    noun = "samples" if isinstance(settings, SampleSettings) else "completions"
    if (similar := _similar_completions(source, store)) is not None:
        return similar, f"a similar policy's {noun}"
    longest = settings.decoding.max_new_tokens
    stand_in = " word" * longest
    if isinstance(settings, SampleSettings):
        draws = range(settings.draws)
        samples = [
            Completion(item.id, item.turns[:1], [f"{draw}{stand_in}"], [], [], draw)
            for item in items
            for draw in draws
        ]
        return samples, f"samples of {longest} tokens, the most allowed"
    how = (
        "completions as long as the baseline's"
        if items[0].baseline
        else f"completions of {longest} tokens, the most allowed"
    )
    texts = [
        [f"{text}." for text in item.baseline] if item.baseline else [stand_in] * len(item.turns)
        for item in items
    ]
    return [
        Completion(item.id, item.turns, text, [], []) for item, text in zip(items, texts, strict=True)
    ], how


def _similar_completions(source: Stage, store: Store) -> list[Completion] | None:
    """Another policy's completions of the same items, preferably with the same decoding.

    None where there are none.
    """
    items = source.inputs["items"].key
    assert isinstance(source.settings, GenerateSettings | SampleSettings)
    draws = getattr(source.settings, "draws", None)
    similar = [
        m for m in store.history() if m.kind == source.kind and m.inputs.get("items", {}).get("key") == items
    ]
    similar = [m for m in similar if m.settings.get("draws") == draws]
    if not similar:
        return None
    decoding = source.settings.decoding.model_dump(mode="json")
    best = max(similar, key=lambda m: (m.settings.get("decoding") == decoding, m.key))
    return read_completions(store.root / best.kind / best.key)


# Tokens ---------------------------------------------------------------------------------------------------------------

Count = Callable[[Request], int]


def _counter(stage: Stage, settings: LanguageJudgeSettings, store: Store) -> tuple[Count, str]:
    """(function that counts the tokens of a request, its source in words)."""
    assert settings.asking is not None
    folder = stage.inputs["model"].path if settings.model is None else settings.asking.tokenizer  # type: ignore[union-attr]
    if folder:
        count = counter(user_path(folder))
        return lambda r: count(r.messages, True), f"tokens by the tokenizer in {folder}"
    model = str(settings.model)
    if (encoding := _tiktoken(model)) is not None:
        # OpenAI's own count of its chat format: 3 tokens per message, and 3 that open the reply.
        return (
            lambda r: (
                3
                + sum(
                    3 + len(encoding.encode(f"{m['role']}\n{m['content']}", disallowed_special=()))
                    for m in r.messages
                )
            ),
            (f"tokens by tiktoken ({encoding.name})"),
        )
    if (measured := _measured(settings, store)) is not None:
        return lambda r: round(
            _characters(r) / measured
        ), f"tokens at {measured:.2f} characters each, measured on this judge's earlier replies"
    return lambda r: round(
        _characters(r) / CHARACTERS_A_TOKEN
    ), f"tokens at {CHARACTERS_A_TOKEN:g} characters each, a rule of thumb"


def _characters(request: Request) -> int:
    return sum(len(message["content"]) for message in request.messages)


@cache
def _tiktoken(model: str) -> Any:
    """Encoding of a model that tiktoken has, or can load within TIKTOKEN_S seconds; else None."""
    encodings: list[Any] = []

    def load() -> None:
        try:
            import tiktoken

            encodings.append(tiktoken.encoding_for_model(model))
        except Exception:  # An unknown model, or no network for an encoding that was never loaded.
            return

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(TIKTOKEN_S)
    return encodings[0] if encodings else None


def _measured(settings: LanguageJudgeSettings, store: Store) -> float | None:
    """Characters per prompt token in this model's earlier judge stages; None where there are none."""
    characters = tokens = 0
    for manifest in store.history():
        counts = manifest.counts
        known = "prompt_tokens" in counts and "prompt_characters" in counts
        if known and manifest.kind == "judge" and manifest.settings.get("model") == settings.model:
            characters += counts["prompt_characters"]
            tokens += counts["prompt_tokens"]
    return characters / tokens if tokens and characters else None


def _reply_tokens(stage: Stage, requests: Sequence[Request], store: Store) -> tuple[int, str]:
    """(tokens of all replies, their source in words).

    A reply has one token where that is the limit, else as many as earlier replies of this judge, else the
    limit.
    """
    limits = [request.max_cost_tokens[1] for request in requests]
    if not limits or max(limits) == 1:
        return sum(limits), ""
    assert isinstance(stage.settings, LanguageJudgeSettings)
    known = [
        call.completion_tokens
        for manifest in store.history()
        if manifest.kind == "judge" and manifest.settings.get("manner") == stage.settings.manner
        if manifest.settings.get("model") == stage.settings.model
        for verdict in read_verdicts(store.root / manifest.kind / manifest.key)
        for call in verdict.calls
        if call.completion_tokens is not None
    ]
    if known:
        return round(
            statistics.fmean(known) * len(requests)
        ), ", replies as long as this judge's earlier ones"
    return sum(limits), ", replies as long as max_tokens lets them be"
