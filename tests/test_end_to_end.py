"""The real command, sweep, workers, trainers and judge: what it leaves, and that neither death nor repetition changes it."""

from __future__ import annotations

import csv
import json
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from outer import outer

sys.path.insert(0, str(Path(__file__).parent))

from tiny import (
    Ran,
    bench,
    command_line,
    copy_results,
    environment,
    make_model,
    make_preferences,
    plans,
    smoke,
    smoke_cell,
    smoke_cells,
    smoke_folder,
)

from bench.planning.inputs import CellPlan
from bench.store.store import Store

ONE_WORKER = "hydra.launcher.workers=1"
TORCH_FREE = ("judge", "score")
CHATTER = ("grad_norm", "Loading weights", "[transformers]", "Warning", "it/s", "{'loss'")


def rows_of(ran: Ran, sweep: str) -> list[dict[str, str]]:
    with (ran.results / "sweeps" / sweep / "table.csv").open() as file:
        return list(csv.DictReader(file))


def lines_of(folder: Path) -> list[str]:
    return (folder / "completions.jsonl").read_text().splitlines(keepends=True)


def only_sweep(ran: Ran) -> str:
    (folder,) = (ran.results / "sweeps").iterdir()
    return folder.name


def digests(results: Path, cells: list[CellPlan]) -> dict[str, str | None]:
    """Digest of every stage that is there; what differs from run to run (speeds) is not in it."""
    store = Store(results / "store")
    stages = {stage for cell in cells for stage in cell.stages}
    return {
        f"{stage.kind}/{stage.key}": digest for stage in stages if (digest := store.digest(stage)) is not None
    }


def started(*words: str, results: Path) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a shell would start it. It hears Ctrl-C also where the shell that runs the tests
    ignores it, as a job in the background does: an ignored signal is inherited."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    own = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    line = command_line(*words, results=results)
    return subprocess.Popen(line, encoding="utf-8", env=environment(), cwd=results.parent, **own, **pipes)  # type: ignore[call-overload]


def wait_for(reached: Callable[[], object], command: subprocess.Popen[str], patience_s: float = 120) -> None:
    until = time.monotonic() + patience_s
    while not reached():
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def workers_of(command: subprocess.Popen[str]) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(command.pid).children(recursive=True)
        if "bench.runner.worker" in " ".join(child.cmdline())
    ]


def gone(processes: list[psutil.Process], within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(
            process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes
        ):
            return True
        time.sleep(0.1)
    return False


# A whole sweep --------------------------------------------------------------------------------------------------------


def test_every_stored_model_generates_with_its_cache() -> None:
    """Trainers turn the cache off; whoever loads such a model elsewhere would generate several times slower."""
    paths = list((smoke().results / "store").glob("*/*/model/config.json"))
    assert {path.parts[-4] for path in paths} == {"sft", "train"}
    without = [path for path in paths if not json.loads(path.read_text())["use_cache"]]
    assert not without


def test_the_smoke_sweep_runs_from_nothing_to_a_table() -> None:
    ran = smoke()
    rows = rows_of(ran, "smoke")
    assert [(row["method"], row["beta"], row["status"]) for row in rows] == [
        ("start", "", "done"), ("kto", "0.1", "done"), ("kto", "1.0", "done"), ("dpo", "0.1", "done"), ("ipo", "0.1", "done"),
    ]  # fmt: skip
    for row in rows:
        assert 0 <= float(row["win_rate_low"]) <= float(row["win_rate"]) <= float(row["win_rate_high"]) <= 1
        assert (row["n_scored"], row["n_unscored"], row["n_ratings"]) == ("64", "0", "32")
        assert 1 <= float(row["rating"]) <= 10
        if row["method"] != "start":
            assert float(row["kl"]) > 0
            assert 0 <= float(row["reward_accuracy"]) <= 1
    assert (
        f"{len({s for cell in smoke_cells() for s in cell.stages})} stages run, 0 taken from the store"
        in ran.out
    )


def test_the_terminal_gets_sensible_lines_and_no_chatter() -> None:
    ran = smoke()
    for chatter in CHATTER:
        assert chatter not in ran.err + ran.out
    lines = ran.err.splitlines()
    assert re.fullmatch(r"  0:0\d  smoke: 5 cells, 0 stages done, \d+ to do, \d+ at a time", lines[0])
    assert all(
        re.match(r" +\d+:\d\d  (data|sft|sample|label|logps|train|generate|judge|score|cell) ", line)
        for line in lines[1:]
    )
    assert sum(re.search(r"  cell \d/5 ", line) is not None for line in lines) == 5
    assert "0 stages left" in [line for line in lines if " left" in line][-1]


def test_each_cell_has_its_folder() -> None:
    for cell in smoke_cells():
        folder = smoke().results / "cells" / cell.name
        stages = json.loads((folder / "stages.json").read_text())
        assert (stages["key"], stages["failed"]) == (cell.key, None)
        assert set(stages["stages"]) == {stage.key for stage in cell.stages}
        result = json.loads((folder / "result.json").read_text())
        assert "NaN" not in (folder / "result.json").read_text()
        assert result["metrics"]["n_completions"] == 64
        assert all(why for why in result["missing"].values())
        log = (folder / "log.txt").read_text()
        assert "=== sft" in log
        assert "'loss'" in log  # trainers' chatter is here
        assert (folder / "config.yaml").read_text().startswith("model:")


def test_again_runs_no_stage_loads_no_torch_and_prints_the_same_table(tmp_path: Path) -> None:
    results = copy_results(smoke(), tmp_path / "results")
    code = (
        "import sys, atexit, runpy\n"
        "atexit.register(lambda: print('LOADED', sorted({'torch', 'transformers', 'trl', 'wandb', 'datasets'} & set(sys.modules))))\n"
        "runpy.run_module('bench', run_name='__main__')"
    )
    line = [sys.executable, "-c", code, "+sweep=smoke", f"results={results}", "tracker=none"]
    began = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 30
    assert "0 stages run" in done.stdout
    assert "LOADED []" in done.stdout
    assert Ran(results, 0, "", "", 0).table() == smoke().table()
    table = smoke().out[smoke().out.index("method") : smoke().out.index("stages run")].rsplit("\n", 1)[0]
    assert table in done.stdout


@outer
def test_a_folder_that_cannot_be_written_costs_no_cell(tmp_path: Path) -> None:
    results = copy_results(smoke(), tmp_path / "results")
    (results / "cells").write_text("in the way")
    ran = bench("+sweep=smoke", results=results)
    assert ran.code == 3, ran.err
    assert f"not written: {results / 'cells'}/start-" in ran.err
    assert f"{results / 'cells'} is a file, and should be a folder: move it away" in ran.err
    assert ran.table() == smoke().table()


# Death ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.essential
def test_ctrl_c_and_sigkill_change_nothing(tmp_path: Path) -> None:
    """From the preference rows on: Ctrl-C while a stage runs, SIGKILL while policies are trained, then the same command to its end."""
    later = ("logps", "train", "generate", "judge", "score")
    results = copy_results(smoke(), tmp_path / "results", drop=later)

    command = started("+sweep=smoke", ONE_WORKER, results=results)
    wait_for(lambda: list(results.glob("store/*/*.build-*")), command)
    workers = workers_of(command)
    assert workers
    os.killpg(command.pid, signal.SIGINT)
    out, err = command.communicate(timeout=20)
    assert command.returncode == 130
    assert "Interrupted. Run the same command again to continue from here." in err
    assert "Traceback" not in err + out
    assert gone(workers, within_s=1)

    command = started("+sweep=smoke", ONE_WORKER, results=results)
    wait_for(lambda: list(results.glob("store/train/*/manifest.json")), command)
    workers = workers_of(command)
    command.kill()
    command.communicate()
    assert gone(workers)
    assert not (results / "sweeps" / "smoke" / "table.csv").exists()

    last = bench("+sweep=smoke", ONE_WORKER, results=results)
    assert last.code == 0, last.err
    assert "0 taken from the store" not in last.out
    assert last.table() == smoke().table()
    found, undisturbed = digests(results, smoke_cells()), digests(smoke().results, smoke_cells())
    assert found == {name: undisturbed[name] for name in found}
    assert {name.split("/")[0] for name in found} == {*later, "data", "sft", "sample", "label"}
    assert not list(results.glob("store/*/*.build-*"))


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    """From nothing; six kills at moments that a seeded generator chooses, workers included now and then."""
    rng = random.Random(0)
    results = tmp_path / "results"
    for attempt in range(6):
        command = started("+sweep=smoke", results=results)
        until = time.monotonic() + rng.uniform(2, 14)
        while time.monotonic() < until and command.poll() is None:
            time.sleep(0.1)
            if attempt % 2 and rng.random() < 0.02 and (workers := workers_of(command)):
                rng.choice(workers).kill()
        workers = workers_of(command) if command.poll() is None else []
        command.kill()
        command.communicate()
        assert gone(workers)
    last = bench("+sweep=smoke", results=results)
    assert last.code == 0, last.err
    assert last.table() == smoke().table()
    assert digests(results, smoke_cells()) == digests(smoke().results, smoke_cells())


@pytest.mark.slow
@pytest.mark.essential
def test_the_same_sweep_in_two_stores_has_the_same_digests_everywhere(tmp_path: Path) -> None:
    other = bench("+sweep=smoke", ONE_WORKER, results=tmp_path / "results")
    assert digests(other.results, smoke_cells()) == digests(smoke().results, smoke_cells())
    assert other.table() == smoke().table()


# Failure --------------------------------------------------------------------------------------------------------------


def test_one_bad_cell_is_one_failed_row(tmp_path: Path) -> None:
    """A learning rate at which the loss is not finite; the other cell's stages are in the store."""
    results = copy_results(smoke(), tmp_path / "results")
    words = ("+sweep=smoke", "method=dpo", "method.beta=0.1", "method.learning_rate=1e-3,1e30", ONE_WORKER)
    ran = bench(*words, results=results)
    assert ran.code == 3
    sweep = only_sweep(ran)
    start, good, bad = rows_of(ran, sweep)
    assert (start["status"], good["status"], bad["status"]) == ("done", "done", "failed")
    why = r"the training diverged: (loss|grad_norm) was (nan|inf) at step \d of \d. Lower the learning rate\."
    assert re.fullmatch(f"dpo: FloatingPointError: {why}", bad["reason"])
    assert bad["win_rate"] == ""
    assert bad["reason"] in (results / "sweeps" / sweep / "table.md").read_text()
    assert bad["reason"] in ran.out
    assert len([line for line in ran.out.splitlines() if "FloatingPointError" in line]) == 1
    log = (results / "cells" / bad["name"] / "log.txt").read_text()
    assert "Traceback" in log
    assert not (results / "cells" / bad["name"] / "result.json").exists()
    assert (
        json.loads((results / "cells" / bad["name"] / "stages.json").read_text())["failed"] == bad["reason"]
    )
    assert f"FAILED train dpo beta 0.1 ({bad_stage(words)[:6]})" in ran.err
    assert not any(chatter in ran.err for chatter in ("Traceback", "{'loss'"))

    status = bench(*words, "do=status", results=results)
    assert status.code == 3
    assert bad["reason"].removeprefix("dpo: ") in " ".join(status.out.split())
    report = bench(*words, "do=report", results=results)
    assert (report.code, report.table(sweep)) == (3, ran.table(sweep))


@pytest.mark.slow
def test_the_next_command_tries_a_failed_cell_again_and_nothing_else(tmp_path: Path) -> None:
    results = copy_results(smoke(), tmp_path / "results")
    words = ("+sweep=smoke", "method=dpo", "method.beta=0.1", "method.learning_rate=1e-3,1e30", ONE_WORKER)
    first, again = bench(*words, results=results), bench(*words, results=results)
    assert (first.code, again.code) == (3, 3)
    assert "0 stages run" in again.out
    assert "1 failed" in again.out
    assert "3 cells" in again.err.splitlines()[0]


def bad_stage(words: tuple[str, ...]) -> str:
    return plans(*words)[-1].roles["train"].key


def test_the_plan_of_a_finished_sweep_is_one_line() -> None:
    planned = bench("+sweep=smoke", "do=plan", results=smoke().results)
    assert planned.out == "smoke: nothing to do, all 5 cells are finished; do=report prints the table\n"


def test_a_shared_cause_is_said_once(tmp_path: Path) -> None:
    """Of 117 labelled pairs a thousandth is one row, which has no partner: a stage that all trained cells share fails."""
    results = copy_results(smoke(), tmp_path / "results")
    ran = bench("+sweep=smoke", "data.fraction=0.001", ONE_WORKER, results=results)
    sweep = only_sweep(ran)
    assert ran.code == 3
    assert [row["status"] for row in rows_of(ran, sweep)] == ["done"] + ["failed"] * 4
    reason = "ValueError: Too few train rows (1): KTO pairs each completion with another prompt, so the rows must have two prompts or more"
    for text in (ran.out, (results / "sweeps" / sweep / "table.md").read_text()):
        assert text.count(reason) == 1
    assert ran.err.count(reason) == 2  # the stage's line, the first cell's
    assert ran.err.count("as above") == 3


# Two at once ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "drop", [TORCH_FREE, pytest.param(("logps", "train", "generate", *TORCH_FREE), marks=pytest.mark.slow)]
)
def test_two_commands_at_once_end_with_the_same_table(tmp_path: Path, drop: tuple[str, ...]) -> None:
    results = copy_results(smoke(), tmp_path / "results", drop=drop)
    commands = [started("+sweep=smoke", ONE_WORKER, results=results) for _ in range(2)]
    outs = [command.communicate(timeout=200) for command in commands]
    assert [command.returncode for command in commands] == [0, 0], outs
    assert Ran(results, 0, "", "", 0).table() == smoke().table()
    ran = sum(int(re.search(r"(\d+) stages run", out).group(1)) for out, _ in outs)  # type: ignore[union-attr]
    assert ran == len([path for kind in drop for path in results.glob(f"store/{kind}/*/manifest.json")])
    assert not list(results.glob("store/*/*.build-*"))


# A user's own model and data ------------------------------------------------------------------------------------------


def local_words(model: Path, data: Path, *more: str) -> tuple[str, ...]:
    small = (
        "judge.decoding.max_new_tokens=8",
        "judge.n_items=6",
        "data.n_kl_prompts=6",
        "data.kl_max_new_tokens=8",
        "data.heldout_fraction=0.2",
    )
    steps = ("method.batch_size=8", "method.gradient_accumulation_steps=2")
    return (
        "model=local",
        f"model.path={model}",
        "data=local",
        f"data.path={data}",
        "model.max_length=128",
        *small,
        *steps,
        *more,
    )


def test_a_users_model_and_pairs_of_messages_give_a_table(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    data = make_preferences(tmp_path / "rows.jsonl", paired=True, messages=True)
    ran = bench(*local_words(model, data, "method=dpo,kto"), ONE_WORKER, results=tmp_path / "results")
    assert ran.code == 0, ran.err
    rows = rows_of(ran, only_sweep(ran))
    assert [row["method"] for row in rows] == ["start", "dpo", "kto"]
    for row in rows:
        assert float(row["mean_length"]) >= 0
        assert "win_rate" not in row or row["win_rate"] == ""
        if row["method"] == "start":  # judged as it is: held-out rows are for what was trained
            assert row["logps_chosen"] == ""
        else:
            assert float(row["logps_chosen"]) < 0
            assert 0 <= float(row["reward_accuracy"]) <= 1
            assert float(row["kl"]) == pytest.approx(float(row["kl"]))
    assert "no judge is set" in ran.out
    samples = list((tmp_path / "results" / "sweeps" / only_sweep(ran) / "completions").glob("*.md"))
    assert len(samples) == 3
    again = bench(*local_words(model, data, "method=dpo,kto"), results=tmp_path / "results")
    assert "0 stages run" in again.out


@outer
def test_a_users_model_without_a_template_in_bfloat16_learns_from_unpaired_text(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", chat_template=False, dtype="bfloat16")
    data = make_preferences(tmp_path / "rows.parquet", paired=False, messages=False)
    words = local_words(
        model,
        data,
        "method=kto,csft,offline_ppo",
        "model.dtype=bfloat16",
        "method.learning_rate=1e-3",
        ONE_WORKER,
    )
    ran = bench(*words, results=tmp_path / "results")
    assert ran.code == 0, ran.err
    start, *trained = rows_of(ran, only_sweep(ran))
    assert [row["method"] for row in trained] == ["kto", "csft", "offline_ppo"]
    for row in trained:
        assert 0 <= float(row["reward_auc"]) <= 1
        assert "reward_accuracy" not in row or row["reward_accuracy"] == ""
        assert row["logps_chosen"] != start["logps_chosen"]
        assert float(row["kl"]) == pytest.approx(float(row["kl"]))


@pytest.mark.slow
@pytest.mark.parametrize("messages", [True, False])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("paired", [True, False])
def test_every_form_of_file_goes_through_the_command(
    tmp_path: Path, messages: bool, suffix: str, paired: bool
) -> None:
    model = make_model(tmp_path / "model", chat_template=messages)
    data = make_preferences(tmp_path / f"rows{suffix}", paired=paired, messages=messages)
    ran = bench(
        *local_words(model, data, "method=dpo,ipo,kto" if paired else "method=kto"),
        results=tmp_path / "results",
    )
    assert ran.code == 0, ran.err
    assert {row["status"] for row in rows_of(ran, only_sweep(ran))} == {"done"}


@pytest.mark.slow
def test_a_users_model_in_the_controlled_world_is_judged(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    data = ("data=world", "data.n_prompts=48", "data.n_heldout_prompts=24", "data.n_kl_prompts=8")
    judge = ("judge=gold", "judge.preference.n_items=16", "judge.rating.n_items=8")
    words = ("model=local", f"model.path={model}", "method=dpo", "model.max_length=192", *data, *judge)
    ran = bench(*words, results=tmp_path / "results")
    assert ran.code == 0, ran.err
    for row in rows_of(ran, only_sweep(ran)):
        assert 0 <= float(row["win_rate"]) <= 1
        assert 1 <= float(row["rating"]) <= 10


def test_a_file_of_completions_is_a_row_with_the_numbers_of_whoever_wrote_it(tmp_path: Path) -> None:
    """What the KTO cell wrote, as a file beside its own sweep: same win rate and rating; half of it: the rest is unscored."""
    kto = smoke_cell("kto", 0.1)
    rows = [
        line
        for role in ("preference_completions", "rating_completions")
        for line in lines_of(smoke_folder(kto.roles[role]))
    ]
    (tmp_path / "whole.jsonl").write_text("".join(rows))
    (tmp_path / "half.jsonl").write_text("".join(rows[:32]))
    results = copy_results(smoke(), tmp_path / "results")
    ran = bench("+sweep=smoke", f"completions={tmp_path}/whole.jsonl,{tmp_path}/half.jsonl", results=results)
    assert ran.code == 0, ran.err
    table = {row["name"].rpartition("-")[0]: row for row in rows_of(ran, only_sweep(ran))}
    assert len(table) == 7
    theirs, whole, half = (
        table["kto-beta0.1-world_smoke-s0"],
        table["completions-whole-s0"],
        table["completions-half-s0"],
    )
    for metric in ("win_rate", "equal_length_win_rate", "rating", "mean_length"):
        assert whole[metric] == theirs[metric]
    assert (half["n_scored"], half["n_unscored"], half["rating"]) == ("32", "32", "")
    assert half["win_rate"] != "" and whole["kl"] == whole["mean_tokens"] == ""
    assert "32 verdicts and 32 ratings are unscored" in ran.out


def test_a_checkpoint_is_a_row_without_training(tmp_path: Path) -> None:
    """The KTO cell's policy as a folder: the same items, decoding and seed give the same win rate."""
    kto = smoke_cell("kto", 0.1)
    model = smoke_folder(kto.roles["train"]) / "model"
    data = ("data=world", "data.n_prompts=8", "data.n_heldout_prompts=8", "data.n_kl_prompts=8", "judge=gold")
    judge = (
        "judge.preference.n_items=64",
        "judge.rating.n_items=16",
        "engine.batch_size=128",
        "model.max_length=192",
    )
    ran = bench(f"model={model}", "method=none", *data, *judge, results=tmp_path / "results")
    assert ran.code == 0, ran.err
    (row,) = rows_of(ran, only_sweep(ran))
    theirs = next(row for row in rows_of(smoke(), "smoke") if row["name"] == kto.name)
    assert (row["model"], row["win_rate"], row["rating"]) == ("model", theirs["win_rate"], theirs["rating"])
    assert not (tmp_path / "results" / "store" / "train").exists()


def test_a_model_folder_without_safetensors_is_refused_before_a_run(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    data = make_preferences(tmp_path / "rows.jsonl", paired=True, messages=True)
    ran = bench(*local_words(model, data, "method=dpo"), results=tmp_path / "results")
    assert ran.code == 2
    assert "safetensors" in ran.err
    assert not (tmp_path / "results").exists()


# What is seen ---------------------------------------------------------------------------------------------------------


@outer
def test_a_terminal_gets_a_live_view(tmp_path: Path) -> None:
    """In a pseudo-terminal: what runs while it runs, the table at the end, no traceback and no chatter."""
    results = copy_results(smoke(), tmp_path / "results", drop=TORCH_FREE)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(results.parent)
        os.execve(
            sys.executable,
            command_line("+sweep=smoke", ONE_WORKER, results=results),
            environment(TERM="xterm", COLUMNS="140"),
        )
    seen = b""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        if select.select([terminal], [], [], 1)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            seen += data
    _, status = os.waitpid(pid, 0)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode(errors="replace"))
    assert os.waitstatus_to_exitcode(status) == 0, text
    assert "Traceback" not in text
    for chatter in CHATTER:
        assert chatter not in text
    assert re.search(r"smoke  \d/5 cells, \d+/\d+ stages +\d+:\d\d elapsed, \d+ stages? left", text)
    assert "cell 5/5" in text
    assert "stages run" in text
    assert Ran(results, 0, "", "", 0).table() == smoke().table()
