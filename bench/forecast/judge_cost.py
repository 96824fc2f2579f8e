"""What judging costs, before it is paid: tokens and dollars of the judge stages to do, from the requests that they would send.

Prompts are made of the real items and, where they are written already or no model has to write them, the real answers; else the answers
of a like policy to the same items stand in, else each answer is taken to be as long as the baseline's, else as long as the policy may
write. Tokens are counted by the judge's own tokenizer where there is a folder of it, else by tiktoken for models that it knows, else by
the tokens that earlier replies of the same judge reported, else at 4 characters a token.
"""

from __future__ import annotations

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
from bench.forecast.row_counts import Aside
from bench.forecast.stage_time import StageForecast
from bench.judges import load
from bench.judges.asked.prices import price_of
from bench.judges.asked.request import Request, refuse_to_ask
from bench.models.token_counts import counter
from bench.planning.judging import labels_samples
from bench.records import Completion, Item, read_completions, read_items, read_verdicts
from bench.store.keys import Stage
from bench.store.stage_settings import GenerateSettings, LanguageJudgeSettings, SampleSettings
from bench.store.store import Store

CHARACTERS_A_TOKEN = 4.0
TIKTOKEN_S = 5.0  # it loads an encoding over the network the first time


@dataclass(frozen=True)
class JudgeCost:
    """One judge stage's requests. `dollars` is None where no price is known; `how` says how answers and tokens were had."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None
    how: tuple[str, str]

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def judge_costs(stages: Sequence[Stage], store: Store) -> dict[Stage, JudgeCost]:
    """The cost of every judge stage among `stages` that asks a language model."""
    return {stage: _cost(stage, stage.settings, store) for stage in stages if isinstance(stage.settings, LanguageJudgeSettings)}


def with_costs(forecast: Mapping[Stage, StageForecast], costs: Mapping[Stage, JudgeCost]) -> dict[Stage, StageForecast]:
    return {
        stage: replace(estimate, tokens=cost.tokens) if (cost := costs.get(stage)) else estimate for stage, estimate in forecast.items()
    }


def _cost(stage: Stage, settings: LanguageJudgeSettings, store: Store) -> JudgeCost:
    assert settings.asking is not None
    with tempfile.TemporaryDirectory() as aside:
        whose: list[str] = []

        def stand_in(source: Stage, items: Sequence[Item]) -> list[Completion]:
            answers, words = _stand_ins(source, items, store)
            whose.append(words)
            return answers

        made = Aside(store, Path(aside), stand_in)
        items, answers = read_items(made.folder(stage.inputs["items"])), read_completions(made.folder(stage.inputs["completions"]))
    written = "the policy's answers" if getattr(stage.inputs["completions"], "kind", "") == "generate" else "the texts that are judged"
    if labels_samples(stage):
        written = "the policy's samples"
    paths = {role: store.folder(source) for role, source in stage.inputs.items()}
    judge: Any = load(settings).make_judge(settings, paths, refuse_to_ask, silent)
    asked = [shown.request for shown in judge.requests(items, answers)]
    requests = list({request.digest: request for request in asked}.values())
    count, counter = _counter(stage, settings, store)
    prompt = sum(count(request) for request in requests)
    completion, replies = _reply_tokens(stage, requests, store)
    price = price_of(settings.model, settings.asking.prices) if settings.model else None
    dollars = 0.0 if settings.model is None else None
    if price is not None:
        dollars = price.dollars(prompt, completion, batch=settings.asking.batch_wait_s is not None)
        counter = f"{counter}; prices of {price.date}"
    return JudgeCost(len(requests), prompt, completion, dollars, (f"{whose[0] if whose else written}{replies}", counter))


# Items and answers ----------------------------------------------------------------------------------------------------


def _stand_ins(source: Stage, items: Sequence[Item], store: Store) -> tuple[list[Completion], str]:
    """(what stands in for answers that are not written, in words whose it is). Samples are different ones, as long as they may be."""
    settings = source.settings
    assert isinstance(settings, GenerateSettings | SampleSettings)
    whose = "samples" if isinstance(settings, SampleSettings) else "answers"
    if (like := _like_answers(source, store)) is not None:
        return like, f"a like policy's {whose}"
    longest = settings.decoding.max_new_tokens
    stand_in = " word" * longest
    if isinstance(settings, SampleSettings):
        draws = range(settings.draws)
        samples = [Completion(item.id, item.turns[:1], [f"{draw}{stand_in}"], [], [], draw) for item in items for draw in draws]
        return samples, f"samples of {longest} tokens, the most allowed"
    how = "answers as long as the baseline's" if items[0].baseline else f"answers of {longest} tokens, the most allowed"
    texts = [[f"{text}." for text in item.baseline] if item.baseline else [stand_in] * len(item.turns) for item in items]
    return [Completion(item.id, item.turns, text, [], []) for item, text in zip(items, texts, strict=True)], how


def _like_answers(source: Stage, store: Store) -> list[Completion] | None:
    """Another policy's answers to the same items, under the same decoding before any other."""
    items = source.inputs["items"].key
    assert isinstance(source.settings, GenerateSettings | SampleSettings)
    draws = getattr(source.settings, "draws", None)
    likes = [m for m in store.history() if m.kind == source.kind and m.inputs.get("items", {}).get("key") == items]
    likes = [m for m in likes if m.settings.get("draws") == draws]
    if not likes:
        return None
    decoding = source.settings.decoding.model_dump(mode="json")
    best = max(likes, key=lambda m: (m.settings.get("decoding") == decoding, m.key))
    return read_completions(store.root / best.kind / best.key)


# Tokens ---------------------------------------------------------------------------------------------------------------

Count = Callable[[Request], int]


def _counter(stage: Stage, settings: LanguageJudgeSettings, store: Store) -> tuple[Count, str]:
    assert settings.asking is not None
    folder = stage.inputs["model"].path if settings.model is None else settings.asking.tokenizer  # type: ignore[union-attr]
    if folder:
        count = counter(user_path(folder))
        return lambda r: count(r.messages, True), f"tokens by the tokenizer in {folder}"
    model = str(settings.model)
    if (encoding := _tiktoken(model)) is not None:
        # 3 tokens a message and 3 that open the reply: OpenAI's own count of its chat format
        return lambda r: 3 + sum(3 + len(encoding.encode(f"{m['role']}\n{m['content']}", disallowed_special=())) for m in r.messages), (
            f"tokens by tiktoken ({encoding.name})"
        )
    if (measured := _measured(settings, store)) is not None:
        return lambda r: round(_characters(r) / measured), f"tokens at {measured:.2f} characters each, as this judge's earlier replies tell"
    return lambda r: round(_characters(r) / CHARACTERS_A_TOKEN), f"tokens at {CHARACTERS_A_TOKEN:g} characters each, a rule of thumb"


def _characters(request: Request) -> int:
    return sum(len(message["content"]) for message in request.messages)


@cache
def _tiktoken(model: str) -> Any:
    """The encoding of a model that tiktoken knows and has, or can load within a few seconds; None otherwise."""
    found: list[Any] = []

    def load() -> None:
        try:
            import tiktoken

            found.append(tiktoken.encoding_for_model(model))
        except Exception:  # unknown model, no network, an encoding that was not loaded before
            return

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(TIKTOKEN_S)
    return found[0] if found else None


def _measured(settings: LanguageJudgeSettings, store: Store) -> float | None:
    """Characters a prompt token over this model's earlier judge stages; None where there is none."""
    characters = tokens = 0
    for manifest in store.history():
        counts = manifest.counts
        known = "prompt_tokens" in counts and "prompt_characters" in counts
        if known and manifest.kind == "judge" and manifest.settings.get("model") == settings.model:
            characters += counts["prompt_characters"]
            tokens += counts["prompt_tokens"]
    return characters / tokens if tokens and characters else None


def _reply_tokens(stage: Stage, requests: Sequence[Request], store: Store) -> tuple[int, str]:
    """(completion tokens of all replies, in words how): one each where that is the limit, as earlier ones of a like judge, or the limit."""
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
        return round(statistics.fmean(known) * len(requests)), ", replies as long as this judge's earlier ones"
    return sum(limits), ", replies as long as max_tokens lets them be"
