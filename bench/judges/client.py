"""Asking an OpenAI-shaped endpoint: OpenAI, vLLM's or llama.cpp's server, any other with /v1/chat/completions.

Requests run side by side. A connection that fails, a timeout, 408, 409, 429, 5xx and a body that is no JSON are tried again with
exponential backoff and jitter, or after the endpoint's own Retry-After, which holds back the others too. What gets no reply in
`attempts` leaves the stage unfinished: the replies so far are in the journal, and the same command asks for the rest. A refusal of
one request (400, 413, 422) is that request's reply; a refusal of the key, the model or of everything ends the stage.
"""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import tenacity

from bench import secrets
from bench.config import Asking
from bench.judges.asking import Progress, Reply, Request
from bench.judges.journal import Journal, Ledger
from bench.judges.prices import Price
from bench.store import OverBudget

AGAIN = {408, 409, 429}  # and every 5xx
REFUSED = {400, 413, 422}
LONGEST_WAIT_S = 300.0  # an endpoint that asks for more has no reply for this run
BATCH_POLL_S = 20.0
NO_COMPLETION = (ValueError, KeyError, TypeError, IndexError, AttributeError)  # what reading something else raises


class JudgeUnfinished(RuntimeError):
    """Some requests have no reply yet; the same command asks for them."""


class JudgeRefused(RuntimeError):
    """The endpoint takes none of the requests as they are."""


class ServedModelsDiffer(RuntimeError):
    """Replies of one stage came from two models: they are not pooled."""


class _Again(Exception):
    """Worth another try, after `wait_s` where the endpoint said so."""

    def __init__(self, why: str, wait_s: float | None = None, timed_out: bool = False):
        super().__init__(why)
        self.wait_s, self.timed_out = wait_s, timed_out


@dataclass
class Endpoint:
    """Asks for a stage: `stage` and `sharing` are the keys of it and of those whose budget it shares."""

    asking: Asking
    base_url: str | None
    journal: Journal
    ledger: Ledger
    stage: str
    sharing: Sequence[str]
    price: Price | None
    not_before: float = 0.0  # on the loop's clock: the endpoint asked all of us to wait
    stopped: Exception | None = None  # over budget, or refused: nothing more is asked
    under_way: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    def ask(self, requests: Sequence[Request], progress: Progress) -> list[Reply]:
        """A reply to each request, in their order; equal requests are asked once. Raises JudgeUnfinished, JudgeRefused or OverBudget."""
        wanted = {request.digest: request for request in requests}
        missing = {digest: request for digest, request in wanted.items() if digest not in self.journal.replies}
        if missing:
            how = self._batch(missing) if self.asking.batch_wait_s else self._side_by_side(missing, len(wanted), progress)
            asyncio.run(how)
        progress(len(wanted), len(wanted))
        return [self.journal.replies[request.digest] for request in requests]

    # A batch file ----------------------------------------------------------------------------------------------------

    async def _batch(self, missing: dict[str, Request]) -> None:
        """Batch files, one after another where the budget does not hold all at once; one that was sent is waited for by later runs."""
        sent = self.journal.path.with_name("batch.json")
        deadline = time.monotonic() + (self.asking.batch_wait_s or 0.0)
        async with self._client() as client:
            while left := {digest: request for digest, request in missing.items() if digest not in self.journal.replies}:
                try:
                    if not sent.exists():
                        await self._send_batch(client, left, sent)
                    await self._await_batch(client, missing, sent, deadline)
                except openai.APIStatusError as error:
                    words = f"{error.status_code}: {secrets.excerpt(error.response.text, 300)}"
                    failure = JudgeUnfinished if error.status_code in AGAIN or error.status_code >= 500 else JudgeRefused
                    raise failure(f"the endpoint's batches said {words}") from None
                except openai.APIConnectionError as error:
                    raise JudgeUnfinished(
                        f"the connection failed ({secrets.shown(str(error))}); the same command goes on from the batch it sent"
                    ) from None

    async def _send_batch(self, client: openai.AsyncOpenAI, left: dict[str, Request], sent: Path) -> None:
        chosen, reserved = list(left), 0.0
        if self.price and self.asking.budget_dollars is not None:
            costs = {digest: self.price.dollars(*request.max_cost_tokens, batch=True) for digest, request in left.items()}
            room = self.asking.budget_dollars - self.ledger.total(self.sharing)
            sums = itertools.accumulate(costs.values())
            chosen = [digest for digest, total in zip(costs, sums, strict=True) if total <= room] or chosen[:1]
            reserved = sum(costs[digest] for digest in chosen)
            self.ledger.reserve(self.stage, reserved, self.asking.budget_dollars, self.sharing)
        rows = [
            {"custom_id": digest, "method": "POST", "url": "/v1/chat/completions", "body": left[digest].whole_body} for digest in chosen
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file = await client.files.create(file=("judge.jsonl", lines.encode()), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        sent.write_text(json.dumps({"id": batch.id, "reserved": reserved}), encoding="utf-8")

    async def _await_batch(self, client: openai.AsyncOpenAI, missing: dict[str, Request], sent: Path, deadline: float) -> None:
        """Take in a batch that was sent. Raises JudgeUnfinished while it runs on, JudgeRefused where nothing of it was answered."""
        facts = json.loads(sent.read_text(encoding="utf-8"))
        while (batch := await self._look(client, facts["id"], sent)).status not in ("completed", "failed", "expired", "cancelled"):
            if time.monotonic() + BATCH_POLL_S > deadline:
                raise JudgeUnfinished(f"batch {batch.id} is {batch.status}: the same command looks again (judge.batch_wait_s)")
            await asyncio.sleep(BATCH_POLL_S)
        came, spent = 0, 0.0
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for line in (await client.files.content(file)).text.split("\n"):  # not splitlines(): texts may hold U+2028
                if not line.strip():
                    continue
                row = secrets.clean_data(_read(line))
                reply = self._batch_reply(row)
                if reply is not None:
                    self.journal.add(row["custom_id"], reply)
                    came, spent = came + 1, spent + (reply.dollars or 0.0)
        if self.price and spent != facts["reserved"]:
            self.ledger.add(self.stage, spent - facts["reserved"])
        sent.unlink()
        if not came:
            why = "; ".join(error.message or "" for error in (batch.errors.data if batch.errors else None) or []) or "no reply in it"
            raise JudgeRefused(f"batch {batch.id} {batch.status}: {secrets.excerpt(why, 300)}")

    async def _look(self, client: openai.AsyncOpenAI, batch: str, sent: Path) -> Any:
        try:
            return await client.batches.retrieve(batch)
        except openai.NotFoundError:
            words = f"the endpoint knows no batch {batch}, which an earlier run sent (to another endpoint, or with another key?)"
            raise JudgeRefused(f"{words}: set what it was sent with, or delete {sent} to send and pay it anew") from None

    def _batch_reply(self, row: dict[str, Any]) -> Reply | None:
        """The reply of a line of a batch's output; None where the request is to be sent again."""
        answer = row.get("response") or {}
        status = answer.get("status_code")
        if status == 200:
            try:
                return self._reply(answer["body"], None)
            except NO_COMPLETION:
                return None
        if status in REFUSED:
            return Reply(
                "", error=f"the endpoint refused the request with {status}: {secrets.excerpt(json.dumps(answer.get('body')), 300)}"
            )
        return None

    # Request by request ----------------------------------------------------------------------------------------------

    async def _side_by_side(self, missing: dict[str, Request], total: int, progress: Progress) -> None:
        gate = asyncio.Semaphore(self.asking.concurrency)
        self.settled = asyncio.Event()
        refused: dict[str, Reply] = {}
        failed: dict[str, Exception] = {}
        answered = total - len(missing)

        async with self._client() as client:

            async def one(digest: str, request: Request) -> None:
                nonlocal answered
                async with gate:
                    if self.stopped:
                        return
                    try:
                        reply = await self._with_retries(client, request)
                    except (OverBudget, JudgeRefused) as error:
                        self.stopped = self.stopped or error
                        return
                    except _Again as error:
                        failed[digest] = error
                        return
                    if reply.error:
                        refused[digest] = reply
                    else:
                        self.journal.add(digest, reply)
                    answered += 1
                    progress(answered, total)

            await asyncio.gather(*(one(digest, request) for digest, request in missing.items()))
        self._conclude(missing, refused, failed)

    def _conclude(self, missing: dict[str, Request], refused: dict[str, Reply], failed: dict[str, Exception]) -> None:
        """Journal single refusals; raise where the stage cannot have all its replies now."""
        if refused and len(refused) == len(missing) and not self.journal.replies:
            raise JudgeRefused(f"the endpoint refused every request: {next(iter(refused.values())).error}")
        for digest, reply in refused.items():
            self.journal.add(digest, reply)
        if self.stopped:
            raise self.stopped
        if failed:
            last = next(reversed(failed.values()))
            tries = f"after {self.asking.attempts} attempts (judge.attempts)"
            raise JudgeUnfinished(
                f"{len(failed)} of {len(missing)} requests got no reply {tries}, the last because {last}; "
                f"the {len(self.journal.replies)} replies that came are kept, and the same command asks for the rest"
            )

    def _client(self) -> openai.AsyncOpenAI:
        """An SDK client without retries of its own: they are ours, with one pause for all."""
        key = secrets.key(self.asking.api_key_env) or ("none" if self.base_url else None)
        if key is None:
            raise JudgeRefused(f"the environment variable {self.asking.api_key_env} (judge.api_key_env) holds no key")
        return openai.AsyncOpenAI(base_url=self.base_url, api_key=key, timeout=self.asking.timeout_s, max_retries=0)

    async def _with_retries(self, client: openai.AsyncOpenAI, request: Request) -> Reply:
        retrying = tenacity.AsyncRetrying(
            stop=lambda state: state.attempt_number >= self.asking.attempts or _asked_to_wait_too_long(state),
            wait=_wait_s,
            retry=tenacity.retry_if_exception_type(_Again),
            reraise=True,
        )
        return await retrying(self._once, client, request)

    async def _once(self, client: openai.AsyncOpenAI, request: Request) -> Reply:
        loop = asyncio.get_running_loop()
        while (pause := self.not_before - loop.time()) > 0:
            await asyncio.sleep(pause)
        if self.stopped:
            raise _Again("the stage was ended")
        reserved = await self._reserve(request)
        self.under_way += 1
        spent: float | None = 0.0
        try:
            reply = await self._send(client, request)
            spent = reply.dollars
            return reply
        except _Again as error:
            spent = None if error.timed_out else 0.0  # what timed out may have been answered, and billed
            if error.wait_s:
                self.not_before = max(self.not_before, loop.time() + min(error.wait_s, LONGEST_WAIT_S))
            raise
        finally:
            self.under_way -= 1
            if self.price and spent is not None and spent != reserved:
                self.ledger.add(self.stage, spent - reserved)
            self.settled.set()

    async def _reserve(self, request: Request) -> float:
        """Count the most that a request can cost, once enough of those under way have been settled. Raises OverBudget."""
        if self.price is None or self.asking.budget_dollars is None:
            return 0.0
        bound = self.price.dollars(*request.max_cost_tokens)
        while True:
            self.settled.clear()
            try:
                self.ledger.reserve(self.stage, bound, self.asking.budget_dollars, self.sharing)
                return bound
            except OverBudget as error:
                if not self.under_way:
                    raise OverBudget(f"{error}; the replies so far are kept: raise the budget, and the same command goes on") from None
            await self.settled.wait()

    async def _send(self, client: openai.AsyncOpenAI, request: Request) -> Reply:
        began = time.perf_counter()
        rest = {name: value for name, value in request.body.items() if name != "model"}
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model=request.body["model"],
                messages=[dict(message) for message in request.messages],  # type: ignore[misc]
                extra_body=rest,
            )
            body = raw.http_response.text
        except openai.APIStatusError as error:
            return self._refusal(error)
        except openai.APITimeoutError:
            raise _Again(f"it took longer than {self.asking.timeout_s:g} s (judge.timeout_s)", timed_out=True) from None
        except openai.APIConnectionError as error:
            raise _Again(f"the connection failed ({secrets.shown(str(error.__cause__ or error))})") from None
        try:
            return self._reply(secrets.clean_data(_read(body)), round(time.perf_counter() - began, 4))
        except NO_COMPLETION as error:
            what = f"{type(error).__name__}: {secrets.shown(str(error))}"
            raise _Again(f"what came is no chat completion ({what}): {secrets.excerpt(body, 200)!r}") from None

    def _refusal(self, error: openai.APIStatusError) -> Reply:
        """The reply that a refusal is, where it is one. Raises _Again or JudgeRefused otherwise."""
        words = f"{error.status_code}: {secrets.excerpt(error.response.text, 300)}"
        if error.status_code in AGAIN or error.status_code >= 500:
            raise _Again(f"the endpoint said {words}", _retry_after_s(error.response.headers.get("retry-after"))) from None
        if error.status_code in REFUSED:
            return Reply("", error=f"the endpoint refused the request with {words}")
        raise JudgeRefused(f"the endpoint at {self.base_url or 'api.openai.com'} said {words}") from None

    def _reply(self, body: dict[str, Any], latency_s: float | None) -> Reply:
        """What a chat completion says. Raises one of NO_COMPLETION for something else."""
        choice, usage = body["choices"][0], body.get("usage") or {}
        message = choice["message"]
        calls = message.get("tool_calls") or []
        said, thought = _parts(message.get("content") or "")
        text = calls[0]["function"]["arguments"] if calls else said
        tokens = (choice.get("logprobs") or {}).get("content") or None
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        dollars = None
        if self.price and prompt is not None and completion is not None:
            dollars = self.price.dollars(prompt, completion, batch=latency_s is None)  # a batch file tells no latency
        return Reply(
            text,
            served=body.get("model"),
            thinking=message.get("reasoning_content") or message.get("reasoning") or thought,
            tokens=tokens and thin(_without_secrets([_token(token) for token in tokens])),
            finish_reason=choice.get("finish_reason"),
            prompt_tokens=prompt,
            completion_tokens=completion,
            latency_s=latency_s,
            dollars=dollars,
        )


def _read(body: str) -> Any:
    """JSON, with a question mark for half a surrogate pair: a reply that was cut in the middle of a character can hold one."""
    return json.loads(json.dumps(json.loads(body), ensure_ascii=False).encode(errors="replace"))


def _parts(content: str | list[dict[str, Any]]) -> tuple[str, str | None]:
    """(what is said, what was thought) of a message's content, which some endpoints send in parts of type text and thinking."""
    if isinstance(content, str):
        return content, None
    said = "".join(part["text"] for part in content if part.get("type") == "text")
    thought = "".join(_parts(part["thinking"])[0] for part in content if part.get("type") == "thinking")
    return said, thought or None


def _token(token: dict[str, Any]) -> dict[str, Any]:
    tops = [{"token": top["token"], "logprob": top["logprob"]} for top in token.get("top_logprobs") or ()]
    return {"token": token["token"], "logprob": token["logprob"], "top_logprobs": tops}


def _without_secrets(tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokens of a text that repeats a key say it together: those that hold a part of it say nothing, nor do the others in their place."""
    texts = [token["token"] for token in tokens]
    cleaned = secrets.clean_pieces(texts)
    return [
        token if text == token["token"] else {**token, "token": text, "top_logprobs": []}
        for token, text in zip(tokens, cleaned, strict=True)
    ]


def thin(tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokens with their likeliest others only where a verdict can stand: at either end, at digits and just behind them."""
    last = len(tokens) - 32

    def kept(i: int) -> bool:
        return i < 8 or i >= last or any(c.isdigit() for c in tokens[i]["token"] + tokens[i - 1]["token"])

    return [token if kept(i) else {**token, "top_logprobs": []} for i, token in enumerate(tokens)]


def _retry_after_s(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
        except ValueError:
            return None


_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=60)


def _wait_s(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait_s if isinstance(error, _Again) else None
    # a little later than asked for, each at another time
    return _backoff(state) if asked is None else min(asked, LONGEST_WAIT_S) + tenacity.wait_random(0, 0.25)(state)


def _asked_to_wait_too_long(state: tenacity.RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    return isinstance(error, _Again) and (error.wait_s or 0.0) > LONGEST_WAIT_S


def check_served(replies: Sequence[Reply], journal: Journal) -> None:
    """Raises ServedModelsDiffer when replies name two models: an alias has moved on, or a router mixes."""
    served = sorted({reply.served for reply in replies if reply.served})
    if len(served) > 1:
        raise ServedModelsDiffer(
            f"replies came from {' and '.join(served)}: verdicts of two models are not pooled; name one of them as judge.model, "
            f"or delete {journal.path} to ask again"
        )
