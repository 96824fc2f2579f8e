"""Completions to verdicts. Verdicts are stored as facts; every rate is computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.config import Settings
from bench.engines.vllm_server import wait_until_ready
from bench.judges import baseline, load
from bench.judges.asked.journal import JOURNAL_DROPPED, Journal, Ledger, n_dropped
from bench.judges.asked.prices import price_of
from bench.judges.asked.prompts import annotator
from bench.judges.asked.replies import (
    asks_for_weights,
    count_reasons,
    earlier_parsers,
    read_preference,
    votes_from_text,
)
from bench.judges.asked.request import Asker, Reply, Request
from bench.models.tokenize import letter_ids, load_tokenizer
from bench.records import Verdict, read_completions, read_items, write_jsonl
from bench.store.keys import Stage
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import LanguageJudgeSettings


def run(settings: Settings, run: StageRun) -> Outcome:
    items = read_items(run.inputs["items"])
    completions = read_completions(run.inputs["completions"])
    exchanges: dict[str, tuple[Request, Reply]] = {}

    def ask(requests: Sequence[Request]) -> Sequence[Reply]:
        assert isinstance(settings, LanguageJudgeSettings)
        replies = _ask(settings, run, requests)
        exchanges.update(
            {request.digest: (request, reply) for request, reply in zip(requests, replies, strict=True)}
        )
        return replies

    judge = load(settings).make_judge(settings, run.inputs, ask, run.progress)
    against = baseline(items) if judge.against_baseline else None
    # A file need not have a completion for every item. A missing one is unscored, not lost.
    present, why = {completion.id for completion in completions}, "the policy has no completion of it"
    missing = [
        Verdict(item.id, judge.name, turn, item.category, unscored=why)
        for item in items
        if item.id not in present
        for turn in range(len(item.turns))
    ]
    verdicts = [*judge.judge(items, completions, against), *missing]
    if isinstance(settings, LanguageJudgeSettings):
        _check_log_probs(settings, verdicts)
    write_jsonl(run.out / "verdicts.jsonl", verdicts)
    unscored = sum(verdict.unscored is not None for verdict in verdicts)
    reasons = {f"unscored_{kind}": n for kind, n in count_reasons(verdicts).items()}
    dropped = n_dropped(run.work / "journal.jsonl") if exchanges and run.work is not None else 0
    lost = {JOURNAL_DROPPED: dropped} if dropped else {}
    return Outcome(
        {"rows": len(verdicts), "unscored": unscored, **reasons, **_counts(list(exchanges.values())), **lost}
    )


def _check_log_probs(settings: LanguageJudgeSettings, verdicts: Sequence[Verdict]) -> None:
    """Raises if more votes than allowed lack the log-probabilities that should weigh them.

    JudgeRefused if no vote has them; JudgeUnfinished if others have them.
    """
    from bench.judges.asked.endpoint import JudgeRefused, JudgeUnfinished

    votes, asking = votes_from_text(verdicts), settings.asking
    if votes is None or asking is None or votes.n_from_text <= asking.max_without_logprobs * votes.n:
        return
    count = f"{votes.n_from_text} of {votes.n} votes came without the log-probs that weigh them"
    if votes.n_from_text == votes.n:
        raise JudgeRefused(
            f"{count}: the endpoint gives none. The replies are kept. Set judge.max_without_logprobs=1 to count each vote as its text "
            "says, 0 or 1; or use an endpoint that gives log-probs."
        )
    raise JudgeUnfinished(
        f"{count}, more than judge.max_without_logprobs={asking.max_without_logprobs:g} allows. Run the same command to ask for these "
        "votes again; or raise judge.max_without_logprobs to count them as their text says, 0 or 1."
    )


def earlier(stage: Stage) -> list[Stage]:
    """The stage under its keys of earlier reply parsers; the requests were the same."""
    settings = stage.settings
    parsers = earlier_parsers(settings.parser) if isinstance(settings, LanguageJudgeSettings) else []
    return [replace(stage, settings=settings.model_copy(update={"parser": parser})) for parser in parsers]


def _counts(exchanges: Sequence[tuple[Request, Reply]]) -> dict[str, int]:
    """Token counts for forecasts.

    Empty if no request was made. Only the number of requests if the endpoint does not count tokens.
    """
    if not exchanges:
        return {}
    answered = [reply for _, reply in exchanges if not reply.error]
    prompts = [reply.prompt_tokens for reply in answered if reply.prompt_tokens is not None]
    completions = [reply.completion_tokens for reply in answered if reply.completion_tokens is not None]
    if not len(prompts) == len(completions) == len(answered):
        return {"requests": len(exchanges)}
    return {
        "requests": len(exchanges),
        "prompt_characters": sum(
            len(message["content"])
            for request, reply in exchanges
            if not reply.error
            for message in request.messages
        ),
        "prompt_tokens": sum(prompts),
        "completion_tokens": sum(completions),
    }


def _ask(settings: LanguageJudgeSettings, run: StageRun, requests: Sequence[Request]) -> Sequence[Reply]:
    """Replies from the server of the model; replies in the journal are used first.

    Raises ServedModelsDiffer if the replies name two models.
    """
    from bench.judges.asked.endpoint import Endpoint, check_served, drop_other_models

    assert settings.asking is not None and run.work is not None
    journal = Journal(run.work, [work / "journal.jsonl" for work in run.earlier])
    asker: Asker
    if settings.asking.server == "in_process":
        from bench.judges.asked.in_process import InProcess

        asker = InProcess(
            run.inputs["model"],
            run.inputs["model"].name,
            settings.dtype,
            journal,
            letters(settings),
            settings.repeat,
        )
    else:
        base_url = settings.asking.base_url
        if settings.asking.server == "vllm":
            from bench.engines.hf import check_weights

            assert run.server is not None
            check_weights(run.inputs["model"])
            wait_until_ready(run.server)
            base_url = run.server.base_url
            requests = with_letters(requests, run.inputs["model"], letters(settings))
        price = price_of(settings.model, settings.asking.prices, base_url) if settings.model else None
        ledger = Ledger(run.work.parent / "spending.jsonl")
        sharing = (*(run.sharing or (run.key,)), *(work.stem for work in run.earlier))
        asker = Endpoint(settings.asking, base_url, journal, ledger, run.key, sharing, price)
    drop_other_models(requests, journal)
    _drop_without_log_probs(settings, requests, journal)
    replies = asker.ask(requests, run.progress)
    check_served(replies, requests, journal)
    return replies


def _drop_without_log_probs(
    settings: LanguageJudgeSettings, requests: Sequence[Request], journal: Journal
) -> None:
    """Drops votes of an earlier run that lack log-probabilities, so that they are asked for again.

    This happens only if there are too many and other votes have them.
    """
    assert settings.asking is not None
    if (
        not settings.annotator
        or not requests
        or not asks_for_weights(annotator(settings.annotator).parser, requests[0].body)
    ):
        return
    kwargs = annotator(settings.annotator).parser_kwargs
    known = {
        request.digest: journal.replies[request.digest]
        for request in requests
        if request.digest in journal.replies
    }
    readings = {digest: read_preference(reply, "logprob_parser", kwargs) for digest, reply in known.items()}
    votes = {digest: reading for digest, reading in readings.items() if reading.value is not None}
    lacking = [digest for digest, reading in votes.items() if reading.from_text]
    if len(votes) > len(lacking) > settings.asking.max_without_logprobs * len(votes):
        journal.drop(
            lacking,
            f"{len(lacking)} of {len(votes)} votes came without log-probs: they are dropped and asked for again",
        )


def letters(settings: LanguageJudgeSettings) -> list[str]:
    """The tokens that decide the vote; empty if the annotator does not read log-probabilities."""
    if not settings.annotator or (chosen := annotator(settings.annotator)).parser != "logprob_parser":
        return []
    return list(
        dict.fromkeys((chosen.parser_kwargs["numerator_token"], *chosen.parser_kwargs["denominator_tokens"]))
    )


def with_letters(requests: Sequence[Request], model: Path, wanted: Sequence[str]) -> Sequence[Request]:
    """Requests that make vLLM list the deciding tokens however unlikely they are (a vLLM field)."""
    if not wanted:
        return requests
    ids = letter_ids(load_tokenizer(model), wanted)
    return (
        [Request(request.messages, {**request.body, "logprob_token_ids": ids}) for request in requests]
        if ids
        else requests
    )
