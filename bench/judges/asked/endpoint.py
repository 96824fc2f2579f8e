"""Sends requests to an endpoint with /v1/chat/completions: OpenAI, a vLLM or llama.cpp server, and others.

Requests run in parallel, each with one deadline. These are retried: failed connections, timeouts, status 408,
409, 429 and 5xx, and bodies that are not a chat completion. The wait is exponential backoff with jitter, or
the endpoint's Retry-After, which holds back all requests.

Requests without a reply after `attempts` tries leave the stage unfinished, as does a Retry-After that is too
long. Replies so far are kept in the journal, and the same command sends the rest. If the endpoint refuses one
request (400, 413, 422), the refusal is that request's reply. A refused key or model, a refusal of all
requests, and a redirect to another host end the stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import itertools
import json
import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import tenacity

from bench import secrets
from bench.config import Asking
from bench.judges.asked.chat_completion import NotACompletion, read_body, reply_of
from bench.judges.asked.journal import Journal, Ledger, Misfit, decode, log, write_whole
from bench.judges.asked.prices import Price
from bench.judges.asked.replies import REQUEST_REFUSED
from bench.judges.asked.request import Progress, Reply, Request
from bench.store.stage_run import OverBudget
from bench.text_files import describe, number, printable, row_limit

RETRIED = {408, 409, 429}  # Every 5xx is retried too.
REFUSED = {400, 413, 422}
# The stage stops if the endpoint asks for a longer wait, at once or in sum since the last reply.
LONGEST_WAIT_S = 300.0
BATCH_POLL_S = 20.0
ENDED = ("completed", "failed", "expired", "cancelled")  # Final states of a batch.


class JudgeUnfinished(RuntimeError):
    """Some requests have no reply yet; the same command sends them again."""


class JudgeRefused(RuntimeError):
    """The endpoint refuses all requests as they are."""


class ServedModelsDiffer(RuntimeError):
    """Replies of one stage came from two models; their verdicts must not be mixed."""


class _Retryable(Exception):
    """The request may be retried, after `wait_s` seconds if the endpoint gave a time."""

    def __init__(self, why: str, wait_s: float | None = None, maybe_billed: bool = False):
        super().__init__(why)
        self.wait_s, self.maybe_billed = wait_s, maybe_billed


class _ForeignRedirect(httpx2.RequestError):
    """The endpoint redirects to another host. Nothing is sent there."""


@dataclass
class Endpoint:
    """Sends the requests of one stage.

    `stage`: its key. `sharing`: keys of the stages that share its budget.
    """

    asking: Asking
    base_url: str | None
    journal: Journal
    ledger: Ledger
    stage: str
    sharing: Sequence[str]
    price: Price | None
    not_before: float = 0.0  # Requests wait until then (event loop's clock).
    paused_s: float = 0.0  # Waiting time asked for since the last reply.
    # Set when no more requests may be sent.
    stopped: Exception | None = None
    under_way: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # Set together with `stopped`.

    def ask(self, requests: Sequence[Request], progress: Progress) -> list[Reply]:
        """A reply to each request, in order. Equal requests are sent once.

        Raises JudgeUnfinished, JudgeRefused or OverBudget.
        """
        wanted = {request.digest: request for request in requests}
        missing = {
            digest: request for digest, request in wanted.items() if digest not in self.journal.replies
        }
        if missing:
            self.settled, self.ended, self.stopped = asyncio.Event(), asyncio.Event(), None
            run = (
                self._run_batches(missing)
                if self.asking.batch_wait_s
                else self._run_requests(missing, len(wanted), progress)
            )
            asyncio.run(run)
        progress(len(wanted), len(wanted))
        return [self.journal.replies[request.digest] for request in requests]

    # A batch file -------------------------------------------------------------------------------------------

    async def _run_batches(self, missing: dict[str, Request]) -> None:
        """Get replies by batch files; several in sequence if the budget does not allow one.

        A later run waits for a batch that was already sent.
        """
        path = self.journal.path.with_name("batch.json")
        deadline = time.monotonic() + (self.asking.batch_wait_s or 0.0)
        times_sent: Counter[str] = Counter()
        async with self._client() as client:
            while left := {
                digest: request for digest, request in missing.items() if digest not in self.journal.replies
            }:
                try:
                    sent = await self._pending_batch(client, path)
                    if sent is None or sent.id is None:
                        sent = await self._send_batch(client, left, path, sent)
                        times_sent.update(sent.requests)
                    await self._await_batch(client, missing, sent, path, deadline)
                except openai.APIStatusError as error:
                    failure = JudgeUnfinished if _is_transient(error.status_code) else JudgeRefused
                    raise failure(f"The endpoint's batch API answered {_error_text(error)}") from None
                except openai.APIConnectionError as error:
                    self._refuse_redirect(error)
                    raise JudgeUnfinished(
                        f"The connection failed ({secrets.shown(str(error))}). The same command continues with the batch that was sent."
                    ) from None
                often = {
                    digest for digest, n in times_sent.items() if n >= self.asking.attempts
                } - self.journal.replies.keys()
                if often:
                    raise JudgeUnfinished(
                        f"{len(often)} of {len(missing)} requests had no reply in {self.asking.attempts} batches (judge.attempts). The "
                        "replies that came are kept; the same command sends the rest again."
                    )

    async def _pending_batch(self, client: openai.AsyncOpenAI, path: Path) -> _SentBatch | None:
        """The batch under way, as recorded in `path`; None if none is recorded.

        If the record has no id, or is damaged, the endpoint's list of batches is searched. The id stays None
        if the batch never arrived there.
        """
        if not path.exists():
            return None
        try:
            sent = _SentBatch.from_row(decode(path.read_bytes()).row)
            if sent.id is not None:
                return sent
        except Misfit as error:
            log(f"{path}: {error}. Searching the endpoint's batches for this stage's key.")
            sent = _SentBatch(None, 0.0)
        batch = await self._find_batch(client, sent.mark, path)
        if batch:
            log(f"Batch {batch} was sent by an earlier run. Waiting for it; it is not sent again.")
        sent = replace(sent, id=batch)
        write_whole(path, sent.to_row())
        return sent

    async def _find_batch(self, client: openai.AsyncOpenAI, mark: str | None, path: Path) -> str | None:
        """The id of this stage's batch with this `mark`; None if there is none.

        Without a mark: the id of its newest batch that is not stored yet.
        """
        after: dict[str, str] = {}
        try:
            while True:
                page = await self._batch_response(client.batches.with_raw_response.list(limit=100, **after))  # type: ignore[arg-type]
                rows = [
                    row
                    for row in page.get("data") or ()
                    if isinstance(row, dict) and isinstance(row.get("id"), str)
                ]
                for row in rows:  # Newest first.
                    metadata = row["metadata"] if isinstance(row.get("metadata"), dict) else {}
                    ours = metadata.get("bench_stage") == self.stage and mark in (
                        None,
                        metadata.get("bench_mark"),
                    )
                    if ours and row["id"] not in self.journal.taken:
                        return str(row["id"])
                if not rows or not page.get("has_more") or after.get("after") == rows[-1]["id"]:
                    return None
                after = {"after": rows[-1]["id"]}
        except openai.APIStatusError as error:
            if _is_transient(error.status_code):
                raise
            raise JudgeRefused(
                f"An earlier run may have sent a batch, but the endpoint does not list batches (status {error.status_code}). Delete "
                f"{path} to send it again; it may then be paid twice."
            ) from None

    async def _send_batch(
        self, client: openai.AsyncOpenAI, left: dict[str, Request], path: Path, announced: _SentBatch | None
    ) -> _SentBatch:
        """Record a batch in `path`, send it, and record its id."""
        if (
            announced is None
            or not announced.requests
            or not all(digest in left for digest in announced.requests)
        ):
            kept = announced.reserved if announced else 0.0  # The cost of an unreadable record stays counted.
            announced = replace(self._affordable_batch(left), mark=os.urandom(8).hex())
            announced = replace(announced, reserved=announced.reserved + kept)
            write_whole(path, announced.to_row())
        rows = [
            {
                "custom_id": digest,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": left[digest].whole_body,
            }
            for digest in announced.requests
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        marks = {"bench_stage": self.stage, "bench_mark": announced.mark or ""}
        try:
            file = await self._batch_response(
                client.files.with_raw_response.create(file=("judge.jsonl", lines.encode()), purpose="batch")
            )
            made = await self._batch_response(
                client.batches.with_raw_response.create(
                    input_file_id=_id(file),
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                    metadata=marks,
                )
            )
        except openai.APIStatusError as error:
            if not _is_transient(error.status_code):  # The endpoint accepted nothing.
                self._settle(announced.reserved, 0.0)
                path.unlink()
            raise
        sent = replace(announced, id=_id(made))
        write_whole(path, sent.to_row())
        return sent

    def _affordable_batch(self, left: dict[str, Request]) -> _SentBatch:
        """A batch of as many requests as the budget allows, with their maximum cost reserved."""
        if not self.price or self.asking.budget_dollars is None:
            return _SentBatch(None, 0.0, tuple(left))
        costs = {digest: self._max_dollars(request, batch=True) for digest, request in left.items()}
        room = self.asking.budget_dollars - self.ledger.total(self.sharing)
        sums = itertools.accumulate(costs.values())
        chosen = [digest for digest, total in zip(costs, sums, strict=True) if total <= room] or list(left)[
            :1
        ]
        reserved = sum(costs[digest] for digest in chosen)
        self.ledger.reserve(self.stage, reserved, self.asking.budget_dollars, self.sharing)
        return _SentBatch(None, reserved, tuple(chosen))

    def _max_dollars(self, request: Request, batch: bool = False) -> float:
        """Upper bound of a request's cost in dollars."""
        assert self.price is not None
        return self.price.dollars(*request.max_cost_tokens, batch=batch)

    def _settle(self, reserved: float, spent: float) -> None:
        """Replace a reservation by the dollars spent."""
        if self.price and spent != reserved:
            self.ledger.add(self.stage, spent - reserved)

    async def _await_batch(
        self,
        client: openai.AsyncOpenAI,
        missing: dict[str, Request],
        sent: _SentBatch,
        path: Path,
        deadline: float,
    ) -> None:
        """Wait for a sent batch and store its replies.

        Raises JudgeUnfinished if it still runs at the deadline; this or JudgeRefused if it has no reply.
        """
        assert sent.id is not None
        while (batch := await self._batch_object(client, sent.id, path)).get("status") not in ENDED:
            if time.monotonic() + BATCH_POLL_S > deadline:
                status = printable(str(batch.get("status")))[:100]
                raise JudgeUnfinished(
                    f"Batch {sent.id} is still {status}. Run the same command later, or raise judge.batch_wait_s."
                )
            await asyncio.sleep(BATCH_POLL_S)
        wanted = set(sent.requests) or set(missing)
        result = _BatchResult()
        for file in filter(None, (batch.get("output_file_id"), batch.get("error_file_id"))):
            # splitlines() would split at U+2028 in texts.
            for line in (await self._file_text(client, file)).split("\n"):
                if line.strip():
                    self._add_line(line, wanted, missing, result)
        everything = (
            not self.journal.replies
            and not result.replies
            and result.refused.keys() >= wanted & missing.keys()
        )
        if result.refused and not everything:
            result.replies.update(result.refused)
        for digest, reply in result.replies.items():
            self.journal.add(digest, reply)
        self.journal.add_taken(sent.id)
        self._settle(
            sent.reserved, max(result.spent, sent.reserved) if result.has_unknown_lines else result.spent
        )
        path.unlink()
        log(
            f"Batch {sent.id} {batch['status']}: {len(result.replies)} of {len(wanted)} requests have a reply{result.summary()}"
        )
        if not result.replies:
            errors = batch["errors"].get("data") if isinstance(batch.get("errors"), dict) else None
            messages = (
                [str(e["message"]) for e in errors if isinstance(e, dict) and e.get("message")]
                if isinstance(errors, list)
                else []
            )
            why = secrets.excerpt("; ".join(messages), 300) or f"no reply in it{result.summary()}"
            resend = (
                ". The same command sends its requests again."
                if batch["status"] == "expired" or result.is_transient()
                else ""
            )
            raise (JudgeUnfinished if resend else JudgeRefused)(
                f"Batch {sent.id} {batch['status']}: {why}{resend}"
            )

    def _add_line(
        self, line: str, wanted: Collection[str], missing: dict[str, Request], result: _BatchResult
    ) -> None:
        """Add a line of a batch's output, if it is the first reply to a request of this batch."""
        try:
            row = secrets.clean_data(read_body(line, "the line"))
        except NotACompletion:
            row = None
        digest = row.get("custom_id") if isinstance(row, dict) else None
        if not isinstance(digest, str) or digest not in wanted:
            strange = (
                "an id of no request"
                if isinstance(digest, str)
                else f"no batch row: {secrets.excerpt(line, 60)!r}"
            )
            result.errors["", strange] += 1
            result.has_unknown_lines = True
            return
        if (
            digest in result.replies
            or digest in result.refused
            or digest in self.journal.replies
            or digest not in missing
        ):
            return
        response = row.get("response") if isinstance(row.get("response"), dict) else {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:  # Billed, even if its body is unreadable.
            dollars = None
            try:
                reply = result.replies[digest] = self._priced(reply_of(body), None)
                dollars = reply.dollars
            except NotACompletion as error:
                result.errors[200, f"no chat completion: {error}"] += 1
            if self.price:
                result.spent += self._max_dollars(missing[digest], batch=True) if dollars is None else dollars
            return
        code, words = _error_of(row, status, body)
        result.errors[code, words] += 1
        if status in REFUSED:
            result.refused[digest] = Reply("", error=f"{REQUEST_REFUSED} with {status}: {words}")

    async def _batch_object(self, client: openai.AsyncOpenAI, batch: str, path: Path) -> dict[str, Any]:
        try:
            return await self._batch_response(client.batches.with_raw_response.retrieve(batch))
        except openai.NotFoundError:
            words = f"The endpoint has no batch {batch}, which an earlier run sent, perhaps to another endpoint or with another key"
            raise JudgeRefused(
                f"{words}. Set the endpoint and key it was sent with, or delete {path} to send it again and pay again."
            ) from None

    async def _file_text(self, client: openai.AsyncOpenAI, file: Any) -> str:
        if not isinstance(file, str):
            return ""
        return (await self._with_timeout(client.files.with_raw_response.content(file))).http_response.text

    async def _batch_response(self, call: Awaitable[Any]) -> dict[str, Any]:
        """The JSON object in a response of the batch API. Raises JudgeUnfinished for anything else."""
        body = (await self._with_timeout(call)).http_response.text
        try:
            content = read_body(body, "the response")
        except NotACompletion as error:
            content, body = None, f"{error}: {body}"
        if not isinstance(content, dict):
            raise JudgeUnfinished(
                f"The endpoint's batch API must answer with a JSON object, got {secrets.excerpt(body, 300)!r}"
            )
        return content

    async def _with_timeout(self, call: Awaitable[Any]) -> Any:
        """The call's result. Raises JudgeUnfinished if it takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(self.asking.timeout_s):
                return await call
        except TimeoutError:
            raise JudgeUnfinished(
                f"The endpoint's batch API took longer than {self.asking.timeout_s:g} s (judge.timeout_s)"
            ) from None

    # Request by request -------------------------------------------------------------------------------------

    async def _run_requests(self, missing: dict[str, Request], total: int, progress: Progress) -> None:
        gate = asyncio.Semaphore(self.asking.concurrency)
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
                    except (OverBudget, JudgeRefused, JudgeUnfinished) as error:
                        self._stop(error)
                        return
                    except _Retryable as error:
                        failed[digest] = error
                        return
                    self.paused_s = 0.0
                    if reply.error:
                        refused[digest] = reply
                    else:
                        self.journal.add(digest, reply)
                    answered += 1
                    progress(answered, total)

            await asyncio.gather(*(one(digest, request) for digest, request in missing.items()))
        self._conclude(missing, refused, failed)

    def _conclude(
        self, missing: dict[str, Request], refused: dict[str, Reply], failed: dict[str, Exception]
    ) -> None:
        """Store refusals of single requests, then raise if some requests have no reply."""
        if refused and len(refused) == len(missing) and not self.journal.replies:
            raise JudgeRefused(f"All requests were refused. The first: {next(iter(refused.values())).error}")
        for digest, reply in refused.items():
            self.journal.add(digest, reply)
        if self.stopped:
            raise self.stopped
        if failed:
            last = next(reversed(failed.values()))
            tries = f"after {self.asking.attempts} attempts (judge.attempts)"
            raise JudgeUnfinished(
                f"{len(failed)} of {len(missing)} requests got no reply {tries}. The last error: {last}. "
                f"The {len(self.journal.replies)} replies that came are kept; the same command asks for the rest."
            )

    def _client(self) -> openai.AsyncOpenAI:
        """An SDK client without its own retries.

        Endpoint retries instead, with one pause for all requests.
        """
        key = secrets.key(self.asking.api_key_env) or ("none" if self.base_url else None)
        if key is None:
            raise JudgeRefused(
                f"The environment variable {self.asking.api_key_env} (judge.api_key_env) is empty. Set it to the endpoint's API key."
            )
        hooks = openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._check_redirect]})
        return openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=key,
            timeout=self.asking.timeout_s,
            max_retries=0,
            http_client=hooks,
        )

    async def _check_redirect(self, request: httpx2.Request) -> None:
        """Raises _ForeignRedirect for a redirect to another host, or from https to http."""
        here, there = httpx2.URL(self.base_url or "https://api.openai.com/v1"), request.url
        same = here.host == there.host and (
            (here.scheme, here.port) == (there.scheme, there.port)
            or (here.scheme, there.scheme, here.port, there.port) == ("http", "https", None, None)
        )
        if not same:
            raise _ForeignRedirect(f"{there.scheme}://{there.netloc.decode(errors='replace')}")

    def _refuse_redirect(self, error: openai.APIConnectionError) -> None:
        """Raises JudgeRefused if the connection failed because of a redirect to another host."""
        if isinstance(error.__cause__, _ForeignRedirect):
            where = printable(str(error.__cause__))[:200]
            here = self.base_url or "api.openai.com"
            raise JudgeRefused(
                f"The endpoint at {here} redirects to {where}. Nothing was sent there. If that address is right, set judge.base_url to it."
            ) from None

    def _stop(self, why: Exception) -> None:
        """Stop sending requests and end all waits."""
        self.stopped = self.stopped or why
        self.ended.set()
        self.settled.set()

    async def _pause(self, seconds: float) -> None:
        """Sleep; wake up early if the stage ends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.ended.wait()

    async def _with_retries(self, client: openai.AsyncOpenAI, request: Request) -> Reply:
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.asking.attempts),
            wait=_wait_s,
            sleep=self._pause,
            retry=tenacity.retry_if_exception_type(_Retryable),
            reraise=True,
        )
        return await retrying(self._attempt, client, request)

    async def _attempt(self, client: openai.AsyncOpenAI, request: Request) -> Reply:
        loop = asyncio.get_running_loop()
        while not self.stopped and (pause := self.not_before - loop.time()) > 0:
            await self._pause(pause)
        if self.stopped:
            raise self.stopped
        reserved = await self._reserve(request)
        self.under_way += 1
        spent: float | None = 0.0
        try:
            reply = await self._send(client, request)
            spent = reply.dollars
            return reply
        except _Retryable as error:
            spent = None if error.maybe_billed else 0.0
            if error.wait_s:
                self._wait_for_all(error, error.wait_s)
            raise
        finally:
            self.under_way -= 1
            if spent is not None:
                self._settle(reserved, spent)
            self.settled.set()

    def _wait_for_all(self, error: _Retryable, wait_s: float) -> None:
        """Delay all requests for as long as the endpoint asks. Raises JudgeUnfinished if that is too long."""
        until = asyncio.get_running_loop().time() + wait_s
        self.paused_s += max(0.0, min(wait_s, until - self.not_before))
        if self.paused_s > LONGEST_WAIT_S:
            long = (
                f"{wait_s:g} s"
                if wait_s > LONGEST_WAIT_S
                else f"{self.paused_s:g} s in all since the last reply"
            )
            raise JudgeUnfinished(
                f"{error}, and asks to wait {long} (Retry-After). A run waits at most {LONGEST_WAIT_S:g} s. The "
                f"{len(self.journal.replies)} replies that came are kept; the same command asks for the rest."
            ) from None
        self.not_before = max(self.not_before, until)

    async def _reserve(self, request: Request) -> float:
        """Reserve a request's maximum cost, waiting for requests under way if needed. Raises OverBudget."""
        if self.price is None or self.asking.budget_dollars is None:
            return 0.0
        bound = self._max_dollars(request)
        while True:
            self.settled.clear()
            try:
                self.ledger.reserve(self.stage, bound, self.asking.budget_dollars, self.sharing)
                return bound
            except OverBudget as error:
                if not self.under_way:
                    raise OverBudget(
                        f"{error}. The replies so far are kept. Raise the budget and run the same command again."
                    ) from None
            await self.settled.wait()
            if self.stopped:
                raise self.stopped

    async def _send(self, client: openai.AsyncOpenAI, request: Request) -> Reply:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self.asking.timeout_s):
                body = await self._body(client, request)
        except openai.APIStatusError as error:
            return self._refusal(error)
        except (openai.APITimeoutError, TimeoutError):  # A reply may have been sent and billed.
            raise _Retryable(
                f"the request took longer than {self.asking.timeout_s:g} s (judge.timeout_s)",
                maybe_billed=True,
            ) from None
        except (openai.OpenAIError, httpx2.HTTPError, OSError, EOFError) as error:
            if isinstance(error, openai.APIConnectionError):
                self._refuse_redirect(error)
            cause = error.__cause__ or error
            billed = not isinstance(cause, httpx2.ConnectError)
            raise _Retryable(
                f"the connection failed ({secrets.shown(str(cause))})", maybe_billed=billed
            ) from None
        try:
            return self._priced(
                reply_of(secrets.clean_data(read_body(body))), round(time.perf_counter() - began, 4)
            )
        except NotACompletion as error:
            shown = secrets.excerpt(body.decode(errors="replace"), 200)
            raise _Retryable(
                f"the body is not a chat completion ({secrets.shown(str(error))}): {shown!r}",
                maybe_billed=True,
            ) from None

    async def _body(self, client: openai.AsyncOpenAI, request: Request) -> bytes:
        rest = {name: value for name, value in request.body.items() if name != "model"}
        messages: Any = [dict(message) for message in request.messages]
        call = client.chat.completions.with_streaming_response.create(
            model=request.body["model"], messages=messages, extra_body=rest
        )
        async with call as response:
            return await _bounded(response.http_response.aiter_bytes())

    def _refusal(self, error: openai.APIStatusError) -> Reply:
        """A refused request's reply. Raises _Retryable or JudgeRefused for any other error."""
        words = _error_text(error)
        if _is_transient(error.status_code):
            raise _Retryable(
                f"the endpoint answered {words}", _retry_after_s(error.response.headers.get("retry-after"))
            ) from None
        if error.status_code in REFUSED:
            return Reply("", error=f"{REQUEST_REFUSED} with {words}")
        raise JudgeRefused(f"The endpoint at {self.base_url or 'api.openai.com'} answered {words}") from None

    def _priced(self, reply: Reply, latency_s: float | None) -> Reply:
        """The reply with its cost and latency. `latency_s` is None for a reply from a batch file."""
        dollars = None
        if self.price and reply.prompt_tokens is not None and reply.completion_tokens is not None:
            dollars = self.price.dollars(
                reply.prompt_tokens, reply.completion_tokens, batch=latency_s is None
            )
        return replace(reply, latency_s=latency_s, dollars=dollars)


@dataclass(frozen=True)
class _SentBatch:
    """The record of a batch: its id (None before it is sent), reserved dollars, requests, and mark.

    The mark is sent as metadata, to find the batch again.
    """

    id: str | None
    reserved: float
    requests: tuple[str, ...] = ()
    mark: str | None = None

    def to_row(self) -> dict[str, Any]:
        return {"id": self.id, "reserved": self.reserved, "requests": list(self.requests), "mark": self.mark}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> _SentBatch:
        """The batch in a row. Raises Misfit."""
        batch, mark, requests, reserved = (
            row.get("id"),
            row.get("mark"),
            row.get("requests") or [],
            number(row.get("reserved")),
        )
        if (
            not all(value is None or isinstance(value, str) for value in (batch, mark))
            or reserved is None
            or reserved < 0
        ):
            raise Misfit(f"expected a batch id and its reserved dollars, got {describe(row)}")
        if not isinstance(requests, list) or not all(isinstance(request, str) for request in requests):
            raise Misfit(f"expected a list of requests, got {describe(requests)}")
        return cls(batch, reserved, tuple(requests), mark)


@dataclass
class _BatchResult:
    """The result of a batch: replies and refusals by request, dollars spent, and counts of errors."""

    replies: dict[str, Reply] = field(default_factory=dict)
    refused: dict[str, Reply] = field(default_factory=dict)
    spent: float = 0.0
    # A line belongs to no known request. It may have been billed, so the reservation stays counted.
    has_unknown_lines: bool = False
    errors: Counter[tuple[int | str, str]] = field(default_factory=Counter)

    def summary(self) -> str:
        """Text with the commonest error, its code and its count; empty without errors."""
        if not self.errors:
            return ""
        ((code, words), n), total = self.errors.most_common(1)[0], sum(self.errors.values())
        error = f"{code}: {words}" if code else words
        return f"; {n} of {total} failed with {error}" if n < total else f"; {n} failed with {error}"

    def is_transient(self) -> bool:
        """Whether the commonest error may not happen again."""
        code = self.errors.most_common(1)[0][0][0] if self.errors else ""
        return code == "batch_expired" or (isinstance(code, int) and _is_transient(code))


def _error_of(row: dict[str, Any], status: Any, body: Any) -> tuple[int | str, str]:
    """(status or code, message) of a failed line."""
    inner = body.get("error", body) if isinstance(body, dict) else body
    error = inner if inner else row.get("error")
    code: int | str = status if isinstance(status, int) else ""
    if isinstance(error, dict):
        code = code or printable(str(error.get("code") or error.get("type") or ""))[:60]
        error = error.get("message") or error
    words = error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)
    return code, secrets.excerpt(words, 300)


def _id(response: dict[str, Any]) -> str:
    """The id in a response of the batch API. Raises JudgeUnfinished without one."""
    if not isinstance(value := response.get("id"), str) or not value:
        raise JudgeUnfinished(
            f"The endpoint's batch API answered without an id: {secrets.excerpt(json.dumps(response), 300)}"
        )
    return value


def _error_text(error: openai.APIStatusError) -> str:
    """Status and text of an error response."""
    return f"{error.status_code}: {secrets.excerpt(error.response.text, 300)}"


def _is_transient(status: int) -> bool:
    """Whether a later attempt may succeed after this status."""
    return status in RETRIED or status >= 500


async def _bounded(chunks: AsyncIterator[bytes]) -> bytes:
    """The whole body. Raises _Retryable if it is too large for a reply."""
    body, limit = b"", row_limit()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            raise _Retryable(f"the body is longer than {limit >> 20} MiB", maybe_billed=True)
    return body


def _retry_after_s(header: str | None) -> float | None:
    """Seconds in a Retry-After header, given there as a number or a date; None if it is neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if math.isnan(seconds) else max(0.0, seconds)


_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=60)


def _wait_s(state: tenacity.RetryCallState) -> float:
    """Seconds until the next attempt."""
    error = state.outcome.exception() if state.outcome else None
    retry_after = error.wait_s if isinstance(error, _Retryable) else None
    # Random extra time, so that requests do not all resume at once.
    return (
        _backoff(state)
        if retry_after is None
        else min(retry_after, LONGEST_WAIT_S) + tenacity.wait_random(0, 0.25)(state)
    )


def check_served(replies: Sequence[Reply], requests: Sequence[Request], journal: Journal) -> None:
    """Raises ServedModelsDiffer if replies name two models: an alias was moved, or a router mixes models."""
    served = sorted({reply.served for reply in replies if reply.served})
    if len(served) > 1:
        others = _replies_to_drop(journal, {request.digest for request in requests})
        raise ServedModelsDiffer(
            f"Replies came from {' and '.join(served)}. Verdicts of two models must not be mixed. The same command drops "
            f"{others.summary()} and asks for them again. Or set judge.model to one of these models."
        )


def drop_other_models(requests: Sequence[Request], journal: Journal) -> None:
    """Keep the replies of one model and drop the others, so that their requests are sent again."""
    others = _replies_to_drop(journal, {request.digest for request in requests})
    if others.requests:
        journal.drop(
            others.requests,
            f"replies came from several models: {others.summary()} are dropped and asked for again",
        )


@dataclass(frozen=True)
class _OtherModels:
    """Replies to drop, because another model's replies are kept."""

    kept: str
    requests: dict[str, str]  # Model by request digest.

    def summary(self) -> str:
        counts = Counter(self.requests.values())
        return f"the {' and '.join(f'{n} of {name}' for name, n in sorted(counts.items()))} (kept: those of {self.kept})"


def _replies_to_drop(journal: Journal, wanted: Collection[str]) -> _OtherModels:
    """The replies to drop. The model with the most replies is kept.

    Only replies since the last drop are counted. Otherwise a model that is no longer served could be kept,
    and its missing replies would never come.
    """
    served = {
        digest: reply.served for digest, reply in journal.replies.items() if digest in wanted and reply.served
    }
    recent = Counter(served[digest] for digest in journal.recent if digest in served)
    if len(set(served.values())) < 2 or not recent:
        return _OtherModels("", {})
    kept = max(recent, key=lambda name: (recent[name], name))
    return _OtherModels(kept, {digest: name for digest, name in served.items() if name != kept})
