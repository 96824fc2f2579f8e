"""Asking an OpenAI-shaped endpoint: OpenAI, vLLM's or llama.cpp's server, any other with /v1/chat/completions.

Requests run side by side, each with one deadline for all of it. A connection that fails, a timeout, 408, 409, 429, 5xx and a body that is
no chat completion are tried again with exponential backoff and jitter, or after the endpoint's own Retry-After, which holds back the
others too. What gets no reply in `attempts` leaves the stage unfinished: the replies so far are in the journal, and the same command asks
for the rest; so does an endpoint that asks for a long wait, at once. A refusal of one request (400, 413, 422) is that request's reply; a
refusal of the key, the model or of everything, and a redirect to another host, end the stage.
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
from bench.judges.asked.journal import Journal, Ledger, Misfit, decode, say, write_whole
from bench.judges.asked.prices import Price
from bench.judges.asked.replies import REQUEST_REFUSED
from bench.judges.asked.request import Progress, Reply, Request
from bench.store.stage_run import OverBudget
from bench.text_files import describe, number, printable, row_limit

AGAIN = {408, 409, 429}  # and every 5xx
REFUSED = {400, 413, 422}
LONGEST_WAIT_S = 300.0  # an endpoint that asks for more, at once or while no reply comes, has none for this run
BATCH_POLL_S = 20.0
ENDED = ("completed", "failed", "expired", "cancelled")  # what becomes of a batch


class JudgeUnfinished(RuntimeError):
    """Some requests have no reply yet; the same command asks for them."""


class JudgeRefused(RuntimeError):
    """The endpoint takes none of the requests as they are."""


class ServedModelsDiffer(RuntimeError):
    """Replies of one stage came from two models: they are not pooled."""


class _Again(Exception):
    """Worth another try, after `wait_s` where the endpoint said so."""

    def __init__(self, why: str, wait_s: float | None = None, maybe_billed: bool = False):
        super().__init__(why)
        self.wait_s, self.maybe_billed = wait_s, maybe_billed


class _Elsewhere(httpx2.RequestError):
    """A redirect to another host: what is asked stays with whom it was meant for."""


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
    paused_s: float = 0.0  # asked to wait so long since the last reply
    stopped: Exception | None = None  # over budget, refused, or told to come again much later: nothing more is asked
    under_way: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # set with `stopped`

    def ask(self, requests: Sequence[Request], progress: Progress) -> list[Reply]:
        """A reply to each request, in their order; equal requests are asked once. Raises JudgeUnfinished, JudgeRefused or OverBudget."""
        wanted = {request.digest: request for request in requests}
        missing = {digest: request for digest, request in wanted.items() if digest not in self.journal.replies}
        if missing:
            self.settled, self.ended, self.stopped = asyncio.Event(), asyncio.Event(), None
            how = self._batch(missing) if self.asking.batch_wait_s else self._side_by_side(missing, len(wanted), progress)
            asyncio.run(how)
        progress(len(wanted), len(wanted))
        return [self.journal.replies[request.digest] for request in requests]

    # A batch file ----------------------------------------------------------------------------------------------------

    async def _batch(self, missing: dict[str, Request]) -> None:
        """Batch files, one after another where the budget does not hold all at once; one that was sent is waited for by later runs."""
        path = self.journal.path.with_name("batch.json")
        deadline = time.monotonic() + (self.asking.batch_wait_s or 0.0)
        times_sent: Counter[str] = Counter()
        async with self._client() as client:
            while left := {digest: request for digest, request in missing.items() if digest not in self.journal.replies}:
                try:
                    sent = await self._sent_before(client, path)
                    if sent is None or sent.id is None:
                        sent = await self._send_batch(client, left, path, sent)
                        times_sent.update(sent.requests)
                    await self._await_batch(client, missing, sent, path, deadline)
                except openai.APIStatusError as error:
                    failure = JudgeUnfinished if _may_pass(error.status_code) else JudgeRefused
                    raise failure(f"the endpoint's batches said {_words(error)}") from None
                except openai.APIConnectionError as error:
                    self._refuse_redirect(error)
                    raise JudgeUnfinished(
                        f"the connection failed ({secrets.shown(str(error))}); the same command goes on from the batch it sent"
                    ) from None
                often = {digest for digest, n in times_sent.items() if n >= self.asking.attempts} - self.journal.replies.keys()
                if often:
                    raise JudgeUnfinished(
                        f"{len(often)} of {len(missing)} requests had no reply in {self.asking.attempts} batches (judge.attempts); the "
                        "replies that came are kept, and the same command sends the rest anew"
                    )

    async def _sent_before(self, client: openai.AsyncOpenAI, path: Path) -> _Sent | None:
        """The batch under way: None where none was announced, without an id where it was announced and never arrived. One whose id was
        not written down, or that stands in a damaged file, is found by its mark."""
        if not path.exists():
            return None
        try:
            sent = _Sent.from_row(decode(path.read_bytes()).row)
            if sent.id is not None:
                return sent
        except Misfit as error:
            say(f"{path}: {error}; the batch is looked for by the stage's key")
            sent = _Sent(None, 0.0)
        found = await self._find_batch(client, sent.mark, path)
        if found:
            say(f"batch {found} was sent by an earlier run: it is waited for, and not sent again")
        sent = replace(sent, id=found)
        write_whole(path, sent.to_row())
        return sent

    async def _find_batch(self, client: openai.AsyncOpenAI, mark: str | None, path: Path) -> str | None:
        """The id of a batch of this stage; without a `mark` the newest whose rows were not taken in."""
        after: dict[str, str] = {}
        try:
            while True:
                page = await self._asked(client.batches.with_raw_response.list(limit=100, **after))  # type: ignore[arg-type]
                rows = [row for row in page.get("data") or () if isinstance(row, dict) and isinstance(row.get("id"), str)]
                for row in rows:  # the newest first
                    told = row["metadata"] if isinstance(row.get("metadata"), dict) else {}
                    ours = told.get("bench_stage") == self.stage and mark in (None, told.get("bench_mark"))
                    if ours and row["id"] not in self.journal.taken:
                        return str(row["id"])
                if not rows or not page.get("has_more") or after.get("after") == rows[-1]["id"]:
                    return None
                after = {"after": rows[-1]["id"]}
        except openai.APIStatusError as error:
            if _may_pass(error.status_code):
                raise
            raise JudgeRefused(
                f"a batch may have been sent before, and the endpoint lists none ({error.status_code}): delete {path} to send it anew, "
                "and perhaps pay it twice"
            ) from None

    async def _send_batch(self, client: openai.AsyncOpenAI, left: dict[str, Request], path: Path, announced: _Sent | None) -> _Sent:
        """Announce a batch, send it, and write down its id."""
        if announced is None or not announced.requests or not all(digest in left for digest in announced.requests):
            kept = announced.reserved if announced else 0.0  # of a file that could not be read: stays counted
            announced = replace(self._chosen(left), mark=os.urandom(8).hex())
            announced = replace(announced, reserved=announced.reserved + kept)
            write_whole(path, announced.to_row())
        rows = [
            {"custom_id": digest, "method": "POST", "url": "/v1/chat/completions", "body": left[digest].whole_body}
            for digest in announced.requests
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        marks = {"bench_stage": self.stage, "bench_mark": announced.mark or ""}
        try:
            file = await self._asked(client.files.with_raw_response.create(file=("judge.jsonl", lines.encode()), purpose="batch"))
            made = await self._asked(
                client.batches.with_raw_response.create(
                    input_file_id=_id(file), endpoint="/v1/chat/completions", completion_window="24h", metadata=marks
                )
            )
        except openai.APIStatusError as error:
            if not _may_pass(error.status_code):  # nothing was taken
                self._settle(announced.reserved, 0.0)
                path.unlink()
            raise
        sent = replace(announced, id=_id(made))
        write_whole(path, sent.to_row())
        return sent

    def _chosen(self, left: dict[str, Request]) -> _Sent:
        """As many requests as the budget holds, their most counted."""
        if not self.price or self.asking.budget_dollars is None:
            return _Sent(None, 0.0, tuple(left))
        costs = {digest: self._most(request, batch=True) for digest, request in left.items()}
        room = self.asking.budget_dollars - self.ledger.total(self.sharing)
        sums = itertools.accumulate(costs.values())
        chosen = [digest for digest, total in zip(costs, sums, strict=True) if total <= room] or list(left)[:1]
        reserved = sum(costs[digest] for digest in chosen)
        self.ledger.reserve(self.stage, reserved, self.asking.budget_dollars, self.sharing)
        return _Sent(None, reserved, tuple(chosen))

    def _most(self, request: Request, batch: bool = False) -> float:
        assert self.price is not None
        return self.price.dollars(*request.max_cost_tokens, batch=batch)

    def _settle(self, reserved: float, spent: float) -> None:
        if self.price and spent != reserved:
            self.ledger.add(self.stage, spent - reserved)

    async def _await_batch(self, client: openai.AsyncOpenAI, missing: dict[str, Request], sent: _Sent, path: Path, deadline: float) -> None:
        """Take in a batch that was sent. Raises JudgeUnfinished while it runs on; this or JudgeRefused where nothing was answered."""
        assert sent.id is not None
        while (batch := await self._look(client, sent.id, path)).get("status") not in ENDED:
            if time.monotonic() + BATCH_POLL_S > deadline:
                status = printable(str(batch.get("status")))[:100]
                raise JudgeUnfinished(f"batch {sent.id} is {status}: the same command looks again (judge.batch_wait_s)")
            await asyncio.sleep(BATCH_POLL_S)
        wanted = set(sent.requests) or set(missing)
        taken = _Taken()
        for file in filter(None, (batch.get("output_file_id"), batch.get("error_file_id"))):
            for line in (await self._content(client, file)).split("\n"):  # not splitlines(): texts may hold U+2028
                if line.strip():
                    self._take_line(line, wanted, missing, taken)
        everything = not self.journal.replies and not taken.replies and taken.refused.keys() >= wanted & missing.keys()
        if taken.refused and not everything:
            taken.replies.update(taken.refused)
        for digest, reply in taken.replies.items():
            self.journal.add(digest, reply)
        self.journal.add_taken(sent.id)
        self._settle(sent.reserved, max(taken.spent, sent.reserved) if taken.strange else taken.spent)
        path.unlink()
        say(f"batch {sent.id} {batch['status']}: {len(taken.replies)} of {len(wanted)} requests have a reply{taken.words()}")
        if not taken.replies:
            errors = batch["errors"].get("data") if isinstance(batch.get("errors"), dict) else None
            told = [str(e["message"]) for e in errors if isinstance(e, dict) and e.get("message")] if isinstance(errors, list) else []
            why = secrets.excerpt("; ".join(told), 300) or f"no reply in it{taken.words()}"
            anew = ": the same command sends them anew" if batch["status"] == "expired" or taken.may_pass() else ""
            raise (JudgeUnfinished if anew else JudgeRefused)(f"batch {sent.id} {batch['status']}: {why}{anew}")

    def _take_line(self, line: str, wanted: Collection[str], missing: dict[str, Request], taken: _Taken) -> None:
        """A line of a batch's output: only what was asked for, and each once."""
        try:
            row = secrets.clean_data(read_body(line, "the line"))
        except NotACompletion:
            row = None
        digest = row.get("custom_id") if isinstance(row, dict) else None
        if not isinstance(digest, str) or digest not in wanted:
            strange = "an id that was not asked for" if isinstance(digest, str) else f"no row of a batch: {secrets.excerpt(line, 60)!r}"
            taken.errors["", strange] += 1
            taken.strange = True
            return
        if digest in taken.replies or digest in taken.refused or digest in self.journal.replies or digest not in missing:
            return
        answer = row.get("response") if isinstance(row.get("response"), dict) else {}
        status, body = answer.get("status_code"), answer.get("body")
        if status == 200:  # it was billed, whatever it is
            dollars = None
            try:
                reply = taken.replies[digest] = self._priced(reply_of(body), None)
                dollars = reply.dollars
            except NotACompletion as error:
                taken.errors[200, f"no chat completion: {error}"] += 1
            if self.price:
                taken.spent += self._most(missing[digest], batch=True) if dollars is None else dollars
            return
        code, words = _error_of(row, status, body)
        taken.errors[code, words] += 1
        if status in REFUSED:
            taken.refused[digest] = Reply("", error=f"{REQUEST_REFUSED} with {status}: {words}")

    async def _look(self, client: openai.AsyncOpenAI, batch: str, path: Path) -> dict[str, Any]:
        try:
            return await self._asked(client.batches.with_raw_response.retrieve(batch))
        except openai.NotFoundError:
            words = f"the endpoint knows no batch {batch}, which an earlier run sent (to another endpoint, or with another key?)"
            raise JudgeRefused(f"{words}: set what it was sent with, or delete {path} to send and pay it anew") from None

    async def _content(self, client: openai.AsyncOpenAI, file: Any) -> str:
        if not isinstance(file, str):
            return ""
        return (await self._within(client.files.with_raw_response.content(file))).http_response.text

    async def _asked(self, call: Awaitable[Any]) -> dict[str, Any]:
        """The object that the endpoint's batches answer with."""
        body = (await self._within(call)).http_response.text
        try:
            found = read_body(body, "the answer")
        except NotACompletion as error:
            found, body = None, f"{error}: {body}"
        if not isinstance(found, dict):
            raise JudgeUnfinished(f"the endpoint's batches said {secrets.excerpt(body, 300)!r}, which is no object")
        return found

    async def _within(self, call: Awaitable[Any]) -> Any:
        """Raises JudgeUnfinished where a call takes longer than a request may."""
        try:
            async with asyncio.timeout(self.asking.timeout_s):
                return await call
        except TimeoutError:
            raise JudgeUnfinished(f"the endpoint's batches took longer than {self.asking.timeout_s:g} s (judge.timeout_s)") from None

    # Request by request ----------------------------------------------------------------------------------------------

    async def _side_by_side(self, missing: dict[str, Request], total: int, progress: Progress) -> None:
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
                    except _Again as error:
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
        hooks = openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._only_here]})
        return openai.AsyncOpenAI(base_url=self.base_url, api_key=key, timeout=self.asking.timeout_s, max_retries=0, http_client=hooks)

    async def _only_here(self, request: httpx2.Request) -> None:
        """Follow redirects on the same host alone, and never from https to http."""
        here, there = httpx2.URL(self.base_url or "https://api.openai.com/v1"), request.url
        same = here.host == there.host and (
            (here.scheme, here.port) == (there.scheme, there.port)
            or (here.scheme, there.scheme, here.port, there.port) == ("http", "https", None, None)
        )
        if not same:
            raise _Elsewhere(f"{there.scheme}://{there.netloc.decode(errors='replace')}")

    def _refuse_redirect(self, error: openai.APIConnectionError) -> None:
        if isinstance(error.__cause__, _Elsewhere):
            where = printable(str(error.__cause__))[:200]
            asked = self.base_url or "api.openai.com"
            raise JudgeRefused(
                f"the endpoint at {asked} sends on to {where}, where nothing was sent: if that is right, set judge.base_url to it"
            ) from None

    def _stop(self, why: Exception) -> None:
        """Nothing more is asked, and nobody waits any longer."""
        self.stopped = self.stopped or why
        self.ended.set()
        self.settled.set()

    async def _pause(self, seconds: float) -> None:
        """Sleep, until the stage is ended at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.ended.wait()

    async def _with_retries(self, client: openai.AsyncOpenAI, request: Request) -> Reply:
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.asking.attempts),
            wait=_wait_s,
            sleep=self._pause,
            retry=tenacity.retry_if_exception_type(_Again),
            reraise=True,
        )
        return await retrying(self._once, client, request)

    async def _once(self, client: openai.AsyncOpenAI, request: Request) -> Reply:
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
        except _Again as error:
            spent = None if error.maybe_billed else 0.0
            if error.wait_s:
                self._wait_for_all(error, error.wait_s)
            raise
        finally:
            self.under_way -= 1
            if spent is not None:
                self._settle(reserved, spent)
            self.settled.set()

    def _wait_for_all(self, error: _Again, wait_s: float) -> None:
        """Hold everybody back as long as the endpoint asks. Raises JudgeUnfinished where that is too long."""
        until = asyncio.get_running_loop().time() + wait_s
        self.paused_s += max(0.0, min(wait_s, until - self.not_before))
        if self.paused_s > LONGEST_WAIT_S:
            long = f"{wait_s:g} s" if wait_s > LONGEST_WAIT_S else f"{self.paused_s:g} s in all since the last reply"
            raise JudgeUnfinished(
                f"{error}, and asks to wait {long} (Retry-After), more than the {LONGEST_WAIT_S:g} s that a run waits; the "
                f"{len(self.journal.replies)} replies that came are kept, and the same command asks for the rest"
            ) from None
        self.not_before = max(self.not_before, until)

    async def _reserve(self, request: Request) -> float:
        """Count the most that a request can cost, once enough of those under way have been settled. Raises OverBudget."""
        if self.price is None or self.asking.budget_dollars is None:
            return 0.0
        bound = self._most(request)
        while True:
            self.settled.clear()
            try:
                self.ledger.reserve(self.stage, bound, self.asking.budget_dollars, self.sharing)
                return bound
            except OverBudget as error:
                if not self.under_way:
                    raise OverBudget(f"{error}; the replies so far are kept: raise the budget, and the same command goes on") from None
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
        except (openai.APITimeoutError, TimeoutError):  # what timed out may have been answered, and billed
            raise _Again(f"it took longer than {self.asking.timeout_s:g} s (judge.timeout_s)", maybe_billed=True) from None
        except (openai.OpenAIError, httpx2.HTTPError, OSError, EOFError) as error:
            if isinstance(error, openai.APIConnectionError):
                self._refuse_redirect(error)
            cause = error.__cause__ or error
            billed = not isinstance(cause, httpx2.ConnectError)
            raise _Again(f"the connection failed ({secrets.shown(str(cause))})", maybe_billed=billed) from None
        try:
            return self._priced(reply_of(secrets.clean_data(read_body(body))), round(time.perf_counter() - began, 4))
        except NotACompletion as error:
            shown = secrets.excerpt(body.decode(errors="replace"), 200)
            raise _Again(f"what came is no chat completion ({secrets.shown(str(error))}): {shown!r}", maybe_billed=True) from None

    async def _body(self, client: openai.AsyncOpenAI, request: Request) -> bytes:
        rest = {name: value for name, value in request.body.items() if name != "model"}
        messages: Any = [dict(message) for message in request.messages]
        asked = client.chat.completions.with_streaming_response.create(model=request.body["model"], messages=messages, extra_body=rest)
        async with asked as response:
            return await _bounded(response.http_response.aiter_bytes())

    def _refusal(self, error: openai.APIStatusError) -> Reply:
        """The reply that a refusal is, where it is one. Raises _Again or JudgeRefused otherwise."""
        words = _words(error)
        if _may_pass(error.status_code):
            raise _Again(f"the endpoint said {words}", _retry_after_s(error.response.headers.get("retry-after"))) from None
        if error.status_code in REFUSED:
            return Reply("", error=f"{REQUEST_REFUSED} with {words}")
        raise JudgeRefused(f"the endpoint at {self.base_url or 'api.openai.com'} said {words}") from None

    def _priced(self, reply: Reply, latency_s: float | None) -> Reply:
        """With what it took; a batch file tells no latency."""
        dollars = None
        if self.price and reply.prompt_tokens is not None and reply.completion_tokens is not None:
            dollars = self.price.dollars(reply.prompt_tokens, reply.completion_tokens, batch=latency_s is None)
        return replace(reply, latency_s=latency_s, dollars=dollars)


@dataclass(frozen=True)
class _Sent:
    """A batch as it is announced, and then with its id: what the endpoint is told to call it, and the most that was counted for it."""

    id: str | None
    reserved: float
    requests: tuple[str, ...] = ()
    mark: str | None = None

    def to_row(self) -> dict[str, Any]:
        return {"id": self.id, "reserved": self.reserved, "requests": list(self.requests), "mark": self.mark}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> _Sent:
        """Raises Misfit."""
        batch, mark, requests, reserved = row.get("id"), row.get("mark"), row.get("requests") or [], number(row.get("reserved"))
        if not all(value is None or isinstance(value, str) for value in (batch, mark)) or reserved is None or reserved < 0:
            raise Misfit(f"expected a batch's id and what it can cost, got {describe(row)}")
        if not isinstance(requests, list) or not all(isinstance(request, str) for request in requests):
            raise Misfit(f"expected a list of requests, got {describe(requests)}")
        return cls(batch, reserved, tuple(requests), mark)


@dataclass
class _Taken:
    """What came of a batch: replies and refusals by request, dollars, and how often which error."""

    replies: dict[str, Reply] = field(default_factory=dict)
    refused: dict[str, Reply] = field(default_factory=dict)
    spent: float = 0.0
    strange: bool = False  # a line may be of a request that was answered and billed: what was counted for it stays counted
    errors: Counter[tuple[int | str, str]] = field(default_factory=Counter)

    def words(self) -> str:
        """The commonest error, its code and its count."""
        if not self.errors:
            return ""
        ((code, words), n), total = self.errors.most_common(1)[0], sum(self.errors.values())
        told = f"{code}: {words}" if code else words
        return f"; {n} of {total} failed with {told}" if n < total else f"; {n} failed with {told}"

    def may_pass(self) -> bool:
        """Whether the commonest error is one that another time may not come."""
        code = self.errors.most_common(1)[0][0][0] if self.errors else ""
        return code == "batch_expired" or (isinstance(code, int) and _may_pass(code))


def _error_of(row: dict[str, Any], status: Any, body: Any) -> tuple[int | str, str]:
    """(status or code, words) of a line that failed."""
    inner = body.get("error", body) if isinstance(body, dict) else body
    told = inner if inner else row.get("error")
    code: int | str = status if isinstance(status, int) else ""
    if isinstance(told, dict):
        code = code or printable(str(told.get("code") or told.get("type") or ""))[:60]
        told = told.get("message") or told
    words = told if isinstance(told, str) else json.dumps(told, ensure_ascii=False)
    return code, secrets.excerpt(words, 300)


def _id(answer: dict[str, Any]) -> str:
    if not isinstance(found := answer.get("id"), str) or not found:
        raise JudgeUnfinished(f"the endpoint's batches answered without an id: {secrets.excerpt(json.dumps(answer), 300)}")
    return found


def _words(error: openai.APIStatusError) -> str:
    return f"{error.status_code}: {secrets.excerpt(error.response.text, 300)}"


def _may_pass(status: int) -> bool:
    return status in AGAIN or status >= 500


async def _bounded(chunks: AsyncIterator[bytes]) -> bytes:
    """A body of a size that a reply can have."""
    body, limit = b"", row_limit()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            raise _Again(f"what came is longer than {limit >> 20} MiB", maybe_billed=True)
    return body


def _retry_after_s(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date."""
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
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait_s if isinstance(error, _Again) else None
    # a little later than asked for, each at another time
    return _backoff(state) if asked is None else min(asked, LONGEST_WAIT_S) + tenacity.wait_random(0, 0.25)(state)


def check_served(replies: Sequence[Reply], requests: Sequence[Request], journal: Journal) -> None:
    """Raises ServedModelsDiffer when replies name two models: an alias has moved on, or a router mixes."""
    served = sorted({reply.served for reply in replies if reply.served})
    if len(served) > 1:
        others = _others(journal, {request.digest for request in requests})
        raise ServedModelsDiffer(
            f"replies came from {' and '.join(served)}: verdicts of two models are not pooled; the same command drops {others.words()} "
            "and asks for them again, or name one of the models as judge.model"
        )


def drop_other_models(requests: Sequence[Request], journal: Journal) -> None:
    """Of replies of several models keep those of one; the others are asked for again."""
    others = _others(journal, {request.digest for request in requests})
    if others.requests:
        journal.drop(others.requests, f"replies came from several models: {others.words()} are dropped and asked for again")


@dataclass(frozen=True)
class _Others:
    """Replies of other models than the one that is kept."""

    kept: str
    requests: dict[str, str]  # the model of each

    def words(self) -> str:
        counts = Counter(self.requests.values())
        return f"the {' and '.join(f'{n} of {name}' for name, n in sorted(counts.items()))} (kept: those of {self.kept})"


def _others(journal: Journal, wanted: Collection[str]) -> _Others:
    """The model that most requests were answered by is kept: of those that were asked again, where some were, since a model that is served
    no more would else be waited for without end."""
    served = {digest: reply.served for digest, reply in journal.replies.items() if digest in wanted and reply.served}
    recent = Counter(served[digest] for digest in journal.recent if digest in served)
    if len(set(served.values())) < 2 or not recent:
        return _Others("", {})
    kept = max(recent, key=lambda name: (recent[name], name))
    return _Others(kept, {digest: name for digest, name in served.items() if name != kept})
