"""`do=view`: serves the page of a sweep on this machine, with every prompt, and follows a sweep that runs.

The address holds a random token, since any user and any open web page of the machine can ask a port of
127.0.0.1. The page asks every few seconds whether a cell has ended, and is then made again from the store.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import json
import secrets
import threading
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench import report
from bench.cli.compose import BadConfig, CheckedCommand
from bench.commands import OK, bundle
from bench.commands.cell_states import cell_state, jobs_of
from bench.commands.planned_sweep import sweep_of
from bench.config import View
from bench.planning.inputs import all_stages
from bench.records import read_progress
from bench.report.analysis import analyse
from bench.report.page import render
from bench.store.keys import hash_long
from bench.store.store import Store
from bench.terminal import say


def main(opened: CheckedCommand) -> int:
    """Serve until Ctrl-C. Raises BadConfig where the port cannot be had."""
    opened = bundle.opened_from(opened)
    do = opened.session.do
    assert isinstance(do, View)
    try:
        server = make_server(LivePage(sweep_of(opened), opened.session.results_dir), do.port)
    except OSError as error:
        raise BadConfig(
            [f"port {do.port} of 127.0.0.1 cannot be used ({error.strerror}): set another port=, or 0"]
        ) from error
    say(f"page     {server.address}")
    say("Only this machine can open it. It follows the store; Ctrl-C ends.")
    with contextlib.suppress(KeyboardInterrupt), server:
        server.serve_forever(poll_interval=0.2)
    return OK


class LivePage:
    """The page of a sweep as the store is now, made again once a cell has ended."""

    def __init__(self, sweep: report.Sweep, results: Path):
        self.sweep, self.results = sweep, results
        self.store = Store(results / "store")
        self.stages = all_stages(sweep.cells)
        self.lock = threading.Lock()
        self.made: tuple[str, str] = ("", "")  # Version and page.

    def state_json(self) -> str:
        """{"version", "state"}. The version changes once a cell has ended or a training has twice the steps."""
        with self.lock:
            return json.dumps(self._state())

    def _state(self) -> dict[str, str]:
        for stage in self.stages:
            if not self.store.is_done(stage):
                self.store.invalidate(stage)
        jobs = jobs_of(self.store)
        states = [cell_state(cell, self.store, jobs) for cell in self.sweep.cells]
        ended = [
            state if state in ("done", "failed") else [self._steps(cell.roles.get("train")).bit_length()]
            for cell, (state, _) in zip(self.sweep.cells, states, strict=True)
        ]
        n = Counter(state for state, _ in states)
        running = next((f" ({why})" for state, why in states if state == "running"), "")
        words = [f"{n.pop('done', 0)} of {len(states)} cells are done"]
        words += [f"{count} {state}{running if state == 'running' else ''}" for state, count in n.items()]
        return {"version": hash_long(ended)[:16], "state": ", ".join(words)}

    def _steps(self, train: Any) -> int:
        """Steps that a training has logged so far."""
        return 0 if train is None else len(read_progress(self.store.sidecar(train, "progress.jsonl")))

    def html(self) -> str:
        with self.lock:
            version = self._state()["version"]
            if self.made[0] != version:
                rows = report.collect(self.sweep, self.store, {})
                page = render(analyse(self.sweep, rows, self.results, self.store), live=version)
                self.made = (version, page)
            return self.made[1]


class PageServer(ThreadingHTTPServer):
    """Serves one page on 127.0.0.1 below a random token."""

    daemon_threads = True
    token: str

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"


def make_server(page: LivePage, port: int) -> PageServer:
    """A server that is bound, and not yet serving. Raises OSError for a port that is taken."""
    server = PageServer(("127.0.0.1", port), functools.partial(_Handler, page))
    server.token = secrets.token_urlsafe(24)
    return server


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "bench", ""

    def __init__(self, page: LivePage, *args: Any):
        self.page = page
        super().__init__(*args)

    def do_GET(self) -> None:
        _, token, *rest = [*self.path.partition("?")[0].split("/"), ""]
        if not hmac.compare_digest(token.encode(), self.server.token.encode()) or rest[0] not in (
            "",
            "state",
        ):
            self._answer(
                HTTPStatus.NOT_FOUND, "text/plain", "not found: open the whole address that do=view printed\n"
            )
            return
        kind, text = ("application/json", self.page.state_json) if rest[0] else ("text/html", self.page.html)
        try:
            self._answer(HTTPStatus.OK, kind, text())
        except Exception as error:  # A store that is being changed may be read again a moment later.
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{type(error).__name__}: {error}\n")

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
        ):
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Requests are not logged: their lines would hold the token."""
