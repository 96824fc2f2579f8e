"""`do=view`: the page of the store as it is now, for those alone who have the address."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import open_command
from tiny import smoke, smoke_cell

from bench.cli.compose import BadConfig
from bench.commands import view
from bench.commands.planned_sweep import sweep_of


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The smoke sweep without the numbers of its IPO cell."""
    shutil.copytree(smoke().results / "store", tmp_path / "results/store")
    score = smoke_cell("ipo").score
    shutil.move(tmp_path / "results/store/score" / score.key, tmp_path / "aside")
    return tmp_path / "results"


@pytest.fixture
def server(results: Path) -> Iterator[view.PageServer]:
    opened = open_command(["+sweep=smoke", "do=view", f"results={results}", "tracker=none"])
    with view.make_server(view.LivePage(sweep_of(opened), results), 0) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def get(server: view.PageServer, path: str) -> tuple[int, str]:
    line = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    line.request("GET", path)
    reply = line.getresponse()
    text = reply.read().decode()
    line.close()
    return reply.status, text


def test_the_page_follows_the_store_and_holds_every_prompt(server: view.PageServer, results: Path) -> None:
    place = f"/{server.token}/"
    before = json.loads(get(server, f"{place}state")[1])
    assert before["state"] == "4 of 5 cells are done, 1 to do"
    code, html = get(server, place)
    assert code == 200 and "4 of 5 cells are done" in html and "64 of 64 prompts" in html
    assert json.loads(get(server, f"{place}state")[1]) == before
    score = smoke_cell("ipo").score
    shutil.move(results.parent / "aside", results / "store/score" / score.key)
    after = json.loads(get(server, f"{place}state")[1])
    assert after["state"] == "5 of 5 cells are done" and after["version"] != before["version"]
    assert "5 of 5 cells are done" in get(server, place)[1]


def test_a_training_that_runs_has_a_curve_and_its_steps_are_said(
    server: view.PageServer, results: Path
) -> None:
    train = smoke_cell("ipo").roles["train"]
    shutil.rmtree(results / "store/train" / train.key)
    progress = results / "store/train" / f"{train.key}.progress.jsonl"
    steps = [{"step": k, "epoch": k / 4, "loss": 1.0 / k, "total": 4} for k in (1, 2)]
    progress.write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"step": 3, "ep')
    page = view.LivePage(server.RequestHandlerClass.args[0].sweep, results)  # type: ignore[attr-defined]
    first = json.loads(page.state_json())["version"]
    progress.write_text("".join(json.dumps(step) + "\n" for step in steps * 2))
    assert json.loads(page.state_json())["version"] != first
    assert "4 of 5 cells are done" in page.html()


@pytest.mark.parametrize("path", ["/", "/state", "/{token}x/", "/{token}/other", "//", "/x/../{token}/"])
def test_an_address_without_the_token_shows_nothing(server: view.PageServer, path: str) -> None:
    code, text = get(server, path.format(token=server.token))
    assert code == 404 and text == "not found: open the whole address that do=view printed\n"


def test_a_port_that_is_taken_is_refused_in_a_line(server: view.PageServer, results: Path) -> None:
    words = ["+sweep=smoke", "do=view", f"port={server.server_port}", f"results={results}", "tracker=none"]
    with pytest.raises(
        BadConfig, match=r"cannot be used \(Address already in use\): set another port=, or 0"
    ):
        view.main(open_command(words))
