"""Exit codes and lines tell the truth: damaged, stale, gone, failed, lost; folders that cannot be written; exports that were changed."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from outer import MARKS, outer, some_outer

sys.path.insert(0, str(Path(__file__).parent))

from tiny import smoke, smoke_cell, smoke_cells

from bench.cli.compose import BadConfig, CheckedCommand, open_command
from bench.commands import bundle, carry_out
from bench.runner import evict
from bench.store.keys import Stage, file_digest
from bench.store.store import Store, read_manifest, write_manifest

Command = Callable[..., tuple[int, str]]
CELL = ("kto", 0.1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke sweep's results without weights, evicted as keep=numbers evicts them."""
    results = tmp_path_factory.mktemp("whole") / "results"
    shutil.copytree(smoke().results, results)
    evict.evict("numbers", smoke_cells(), Store(results / "store"))
    return results


@pytest.fixture
def results(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "results")
    return tmp_path / "results"


@functools.cache
def smoke_door(*words: str) -> CheckedCommand:
    """The checked command of the smoke sweep and a verb; it is the same for every results folder."""
    return open_command(["+sweep=smoke", *words, "tracker=none", "keep=numbers"])


@pytest.fixture
def command(results: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """A command of the smoke sweep in this process: (exit code, what it printed)."""

    def ran(*words: str, sweep: str | None = "smoke") -> tuple[int, str]:
        asked = [
            *([f"+sweep={sweep}"] if sweep else []),
            *words,
            f"results={results}",
            "tracker=none",
            "keep=numbers",
        ]
        try:
            if sweep == "smoke" and all(word.startswith("do=") for word in words):
                same = smoke_door(*words)
                opened = dataclasses.replace(
                    same, session=same.session.model_copy(update={"results": str(results)})
                )
            else:
                opened = open_command(asked)
            code = carry_out(opened)
        except BadConfig as error:
            return 2, str(error)
        told = capsys.readouterr()
        return code, told.out + told.err

    return ran


def folder_of(results: Path, role: str) -> Path:
    cell = smoke_cell(*CELL)
    return Store(results / "store").folder(cell.score if role == "score" else cell.roles[role])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cell_folder(results: Path) -> Path:
    return results / "cells" / smoke_cell(*CELL).name


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


LOOKS = (("do=report",), ("do=status",), ("do=rescore",), ("do=bundle", "out={out}"))


def test_what_is_whole_is_well_and_written_again_to_the_same_bytes(
    results: Path, command: Command, tmp_path: Path
) -> None:
    before = {name: contents(results / name) for name in ("cells", "sweeps")}
    for words in [*LOOKS, ()]:
        code, said = command(*(word.format(out=tmp_path / "b.tar.gz") for word in words))
        assert code == 0, said
    assert {name: contents(results / name) for name in ("cells", "sweeps")} == before
    code, said = command("do=verify", sweep=None)
    assert (code, said.count("\n")) == (0, 1), said
    assert "stages are unchanged" in said


def stale(results: Path) -> None:
    """The score's manifest names another digest of an input: as after the input was made again."""
    path = folder_of(results, "score") / "manifest.json"
    manifest = read_manifest(path)
    role = next(role for role in manifest.inputs if role.endswith("verdicts"))
    inputs = {**manifest.inputs, role: {**manifest.inputs[role], "digest": "0" * 64}}
    write_manifest(path, dataclasses.replace(manifest, inputs=inputs))


@pytest.mark.parametrize(
    ("harm", "word", "reason"),
    [
        (
            lambda results: flip(folder_of(results, "score") / "result.json"),
            "DAMAGED",
            "result.json has a wrong checksum",
        ),
        pytest.param(
            lambda results: flip(folder_of(results, "score") / "manifest.json"),
            "DAMAGED",
            "manifest.json",
            marks=MARKS,
        ),
        (
            lambda results: shutil.rmtree(folder_of(results, "score")),
            "ABSENT",
            "was deleted from the store. Run the sweep again",
        ),
        pytest.param(
            lambda results: shutil.rmtree(folder_of(results, "preference_verdicts")),
            "ABSENT",
            "was deleted from the store",
            marks=MARKS,
        ),
        (stale, "STALE", "verdicts' was made again with other bytes"),
        (lambda results: fail(results, "score"), "FAILED", "no room on the disk"),
        pytest.param(
            lambda results: fail(results, "preference_verdicts"), "FAILED", "no room on the disk", marks=MARKS
        ),
        (
            lambda results: lose(results, "preference_verdicts"),
            "LOST",
            "it was begun, and no command works on it",
        ),
    ],
    ids=[
        "damaged",
        "manifest",
        "score gone",
        "verdicts gone",
        "stale",
        "failed",
        "verdicts failed",
        "verdicts lost",
    ],
)
def test_what_is_wrong_is_said_by_every_verb_with_its_reason_and_exit_3(
    results: Path, command: Command, tmp_path: Path, harm: Callable[[Path], None], word: str, reason: str
) -> None:
    harm(results)
    for words in [*LOOKS, ("do=report",)]:  # a second report does not forget what the first has said
        code, said = command(*(part.format(out=tmp_path / "b.tar.gz") for part in words))
        assert code == 3, (words, said)
        flat = " ".join(said.split())
        assert word in flat or (words == ("do=status",) and word.lower() in flat), (words, said)
        assert reason in flat, (words, said)
        assert "Traceback" not in said


def fail(results: Path, role: str) -> None:
    folder = folder_of(results, role)
    shutil.rmtree(folder)
    folder.with_name(f"{folder.name}.failed.json").write_text(
        json.dumps({"error": "OSError: no room on the disk"})
    )


def lose(results: Path, role: str) -> None:
    folder = folder_of(results, role)
    folder.rename(folder.with_name(f"{folder.name}.build-elsewhere-1-abcdef"))


def test_a_cell_that_was_never_run_is_no_fault(results: Path, command: Command) -> None:
    for name in ("store", "cells", "sweeps"):
        shutil.rmtree(results / name)
    code, said = command("do=status")
    assert code == 0 and "5 to do" in said


def test_a_bundle_remembers_which_cells_were_done(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder_of(foreign, "score"))
    for _ in range(2):
        assert carry_out(open_command(["do=report", f"results={foreign}", "tracker=none"])) == 3
        assert "was deleted from the store" in " ".join(capsys.readouterr().out.split())


def test_an_export_of_a_model_that_is_damaged_or_failed_ends_with_3(
    results: Path, command: Command, tmp_path: Path
) -> None:
    words = ("do=export", f"cell={smoke_cell(*CELL).key}", f"out={tmp_path / 'out'}")
    flip(folder_of(results, "train") / "manifest.json")
    code, said = command(*words, sweep=None)
    assert code == 3 and "manifest.json" in said and "DAMAGED" in said
    stages = cell_folder(results) / "stages.json"
    stages.write_text(json.dumps(json.loads(stages.read_text()) | {"failed": "train: loss was nan"}))
    code, said = command(*words, sweep=None)
    assert code == 3 and "has no numbers, and its card needs them: train: loss was nan" in said
    outside = '{"key": "a", "failed": null, "stages": {"../../x": {"kind": "..", "label": ""}}}'
    for content in ("null", "[" * 100_000, '{"key": 1}', outside):
        stages.write_text(content)
        for do in (("do=export", f"out={tmp_path / 'out'}"), ("do=why",)):
            code, said = command(*do, f"cell={cell_folder(results).name}", sweep=None)
            assert code == 3 and f"DAMAGED {stages}" in " ".join(said.split()), said
    assert not (tmp_path / "out").exists()


# Exports --------------------------------------------------------------------------------------------------------------


def annotations(results: Path) -> Path:
    (path,) = cell_folder(results).glob("*/annotations.json")
    return path


@pytest.mark.parametrize("verb", some_outer(["do=report", "do=run"], ["do=report"]))
@pytest.mark.parametrize(
    "harm",
    [
        lambda results: flip(annotations(results)),
        lambda results: (cell_folder(results) / "model_outputs.json").unlink(),
        lambda results: (cell_folder(results) / ".preference_exported").write_text(""),
        lambda results: (cell_folder(results) / "result.json").write_text("{}"),
        lambda results: (cell_folder(results) / ".preference_exported").write_text(
            '{"made_of": {"judge/x": "0"}, "files": {}}'
        ),
    ],
    ids=["flipped", "deleted", "mark of before", "numbers", "mark of others"],
)
def test_exports_that_were_changed_are_made_again_whatever_their_times(
    results: Path, command: Command, verb: str, harm: Callable[[Path], None]
) -> None:
    before = contents(cell_folder(results))
    harm(results)
    for path in cell_folder(results).rglob("*"):
        os.utime(path, (4e9, 4e9), follow_symlinks=False)  # a clock that was ahead
    assert command("do=verify", sweep=None)[0] == 3
    code, said = command(verb)
    assert code == 0, said
    assert contents(cell_folder(results)) == before
    assert command("do=verify", sweep=None)[0] == 0


def test_changed_exports_are_refused_by_rescore_and_named_by_verify(results: Path, command: Command) -> None:
    code, said = command("do=rescore", f"judgements={results / 'cells'}", sweep=None)
    assert code == 0, said
    path, name = annotations(results), smoke_cell(*CELL).name
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([row | {"preference": 2.0} for row in rows]))
    code, said = command("do=rescore", f"judgements={results / 'cells'}", sweep=None)
    assert code == 3 and f"REFUSED {name}: {path}: changed or missing since it was exported" in said
    line = next(line for line in said.splitlines() if line.strip().startswith(name))
    assert "%" not in line and line.split()[1:7] == ["-"] * 6
    code, said = command("do=verify", sweep=None)
    way_out = "run do=report +sweep=... of its sweep to write it again"
    assert code == 3 and f"CHANGED  {path}: changed or missing since it was exported: {way_out}" in said
    path.write_text(json.dumps(rows))  # other spaces are other bytes
    assert command("do=rescore", f"judgements={results / 'cells'}", sweep=None)[0] == 3
    for single in cell_folder(results).glob("*_single.jsonl"):
        flip(single)
        code, said = command("do=rescore", f"judgements={single}", sweep=None)
        assert code == 3 and "changed or missing since it was exported" in said


def test_exports_of_verdicts_that_were_made_again_are_refused(results: Path, command: Command) -> None:
    mark = cell_folder(results) / ".preference_exported"
    told = json.loads(mark.read_text())
    mark.write_text(json.dumps(told | {"made_of": dict.fromkeys(told["made_of"], "0" * 64)}))
    code, said = command("do=rescore", f"judgements={results / 'cells'}", sweep=None)
    assert code == 3 and "was run again" in said


def test_exports_stay_where_their_verdicts_are_gone(results: Path, command: Command) -> None:
    shutil.rmtree(folder_of(results, "preference_verdicts"))
    command("do=report")
    assert annotations(results).is_file()


# Folders that cannot be written ---------------------------------------------------------------------------------------


@pytest.fixture
def read_only(results: Path, tmp_path: Path) -> Iterator[Path]:
    """The results folder mounted again, to be read only: root may write anywhere else."""
    place = tmp_path / "read_only"
    place.mkdir()
    bound = ["mount", "--bind", results, place], ["mount", "-o", "remount,ro,bind", place]
    if os.geteuid() != 0 or any(subprocess.run(words, capture_output=True).returncode for words in bound):
        subprocess.run(["umount", place], capture_output=True)
        pytest.skip("this process may not mount a folder read-only")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@outer
def test_results_that_may_only_be_read_are_shown(
    read_only: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["+sweep=smoke", f"results={read_only}", "tracker=none", "keep=numbers"]
    for do in ("do=run", "do=report", "do=status", "do=rescore"):
        assert carry_out(open_command([*words, do])) == 0, do  # all of it lies there already
    (results / "sweeps" / "smoke" / "table.md").unlink()
    shutil.rmtree(results / "cells")
    for do in ("do=run", "do=report"):
        assert carry_out(open_command([*words, do])) == 3
        told = capsys.readouterr()
        out = " ".join((told.out + told.err).split())
        assert "not written: " in out and "Read-only file system" in out and "win rate" in out
    shutil.rmtree(folder_of(results, "score"))
    assert carry_out(open_command([*words, "do=run"])) == 3
    told = capsys.readouterr()
    assert "could not start: " in told.err and "Read-only file system" in told.err


@pytest.fixture
def full(tmp_path: Path, results: Path) -> Iterator[Path]:
    """The results on a file system of their own that has hardly any room left."""
    place = tmp_path / "full"
    place.mkdir()
    size = sum(path.stat().st_size + 8192 for path in results.rglob("*"))
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True
        ).returncode
    ):
        pytest.skip("this process may not mount a small file system")
    shutil.copytree(results, place, dirs_exist_ok=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@outer
def test_a_full_disk_ends_in_lines_and_loses_nothing(
    full: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["+sweep=smoke", f"results={full}", "tracker=none", "keep=numbers"]
    table = (results / "sweeps" / "smoke" / "table.csv").read_bytes()
    shutil.rmtree(folder_of(full, "score"))
    (full / "sweeps" / "smoke" / "findings.md").unlink()
    with (full / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(b"\0" * 4096)
    assert carry_out(open_command([*words, "do=run"])) == 3
    told = capsys.readouterr()
    assert "No space left on device" in told.out + told.err
    assert carry_out(open_command([*words, "do=report"])) == 3
    (full / "filler").unlink()
    assert carry_out(open_command([*words, "do=run"])) == 0
    assert (full / "sweeps" / "smoke" / "table.csv").read_bytes() == table


BESIDE = ("lock", "progress.jsonl", "failed.json", "log", "interrupted", "work")


@pytest.mark.parametrize("suffix", some_outer(BESIDE, ["lock", "work"]))
def test_a_folder_where_a_file_of_a_stage_should_be_fails_that_stage_alone(
    results: Path, command: Command, suffix: str
) -> None:
    """Or does no harm: a reason that cannot be kept is in the table all the same."""
    folder = folder_of(results, "score")
    shutil.rmtree(folder)
    place = folder.with_name(f"{folder.name}.{suffix}")
    place.unlink(missing_ok=True)
    (place / "inside").mkdir(parents=True)
    code, said = command("do=run")
    assert "Traceback" not in said and "exit code 1" not in said
    assert (place / "inside").is_dir()  # what is not ours is not deleted
    if suffix == "work":
        assert code == 0, said
    else:
        assert code == 3 and str(place) in said, said
    assert "1 failed" in said or code == 0
    assert command("do=status")[0] in (0, 3)
    shutil.rmtree(place)
    assert command("do=run")[0] == 0


@pytest.mark.parametrize(
    "place",
    some_outer(
        ["store/score", "sweeps", "cells", "sweeps/smoke", "sweeps/smoke/figures"], ["store/score", "sweeps"]
    ),
)
def test_a_file_where_a_folder_should_be_is_said(results: Path, command: Command, place: str) -> None:
    shutil.rmtree(results / place)
    (results / place).write_text("a file")
    for do in ("do=run", "do=report", "do=status", "do=rescore"):
        code, said = command(do)
        assert code in ((3,) if do in ("do=run", "do=report") else (0, 3)), (do, said)
        assert "Traceback" not in said
        if do == "do=run" or (do == "do=report" and place != "store/score"):
            assert str(results / place) in said, (do, said)
    assert (results / place).read_text() == "a file"


@pytest.mark.parametrize("kind", ["file", "link"])
@pytest.mark.parametrize("name", ["store", "wandb", "jobs"])
def test_results_that_nothing_can_be_run_in_are_refused_before_a_run(
    results: Path, command: Command, name: str, kind: str
) -> None:
    shutil.rmtree(results / name, ignore_errors=True)
    if kind == "file":
        (results / name).write_text("")
    else:
        (results / name).symlink_to(results.parent)
    code, said = command("do=run")
    assert code == 2 and str(results / name) in said


# What comes from others -----------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(results: Path, command: Command, tmp_path: Path) -> Path:
    assert command("do=bundle", f"out={tmp_path / 'b.tar.gz'}")[0] == 0
    subprocess.run(["tar", "xzf", tmp_path / "b.tar.gz", "-C", tmp_path], check=True)
    (root,) = tmp_path.glob("bundle-*")
    return root


PLACES = [
    "sweeps",
    "sweeps/smoke",
    "sweeps/smoke/completions",
    "sweeps/smoke/figures",
    "cells",
    "cells/{cell}",
]
FILES = [
    "table.md",
    "table.csv",
    "table.tex",
    "findings.md",
    "report.html",
    "fairness.json",
    "plan.json",
    "cells.parquet",
    "figures/win_rate_by_kl.png",
]


@outer
def test_a_bundle_writes_through_none_of_its_links(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each folder that a report writes to a link to the reader's, then each file."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("of the reader's")
    cell = smoke_cell(*CELL).name
    for place in PLACES:
        path = foreign / place.format(cell=cell)
        kept = path.with_name(f"{path.name}-kept")
        if path.exists():
            path.rename(kept)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(mine)
        assert carry_out(open_command(["do=report", f"results={foreign}", "tracker=none"])) == 3
        assert "is a link, and nothing is written through one" in " ".join(capsys.readouterr().out.split())
        assert {found.name: found.read_text() for found in mine.iterdir()} == {"file": "of the reader's"}
        path.unlink()
        if kept.exists():
            kept.rename(path)
    for name in FILES:
        path = foreign / "sweeps" / "smoke" / name
        path.unlink(missing_ok=True)
        path.symlink_to(mine / "file")
    assert carry_out(open_command(["do=report", f"results={foreign}", "tracker=none"])) == 0
    assert (mine / "file").read_text() == "of the reader's" and len(list(mine.iterdir())) == 1
    assert not any((foreign / "sweeps" / "smoke" / name).is_symlink() for name in FILES)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sweep": "../../pwned"}, "sweep must be a name"),
        ({"sweep": "/tmp/pwned"}, "sweep must be a name"),
        ({"sweep": 5}, "sweep must be a name"),
        ({"title": ["a"]}, "title must be text"),
        ({"title": None}, "title must be text"),
        ({"command": {"a": 1}}, "command must be text"),
        ({"axes": "seed"}, "axes must be a list, got"),
        ({"axes": [1]}, "each of axes must be text"),
        ({"replaced": "yes"}, "replaced must be true or false"),
        ({"cells": None}, "cannot be read by this version"),
        ({"cells": []}, "cells must hold one cell or more, got an empty list"),
        ({"expectations": 3}, "cannot be read by this version"),
        ({"format": 2}, "it has format 2, and this version reads format 1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_a_bundle_says_of_itself_is_looked_at(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    whole = {
        "format": 1,
        "sweep": None,
        "replaced": False,
        "title": "t",
        "command": "c",
        "axes": [],
        "expectations": [],
        "cells": [],
    }
    (tmp_path / "bundle.json").write_text(json.dumps(whole | changes))
    with pytest.raises(BadConfig) as refused:
        bundle.read(tmp_path, open_command(["do=report", f"results={tmp_path}", "tracker=none"]))
    assert said in str(refused.value) and str(tmp_path / "bundle.json") in str(refused.value)


@pytest.mark.parametrize("content", ["null", "[]", "[" * 100_000, "{", '{"a": 1, "a": 2}', "\x00"])
def test_a_bundle_that_is_none_is_refused_in_a_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "bundle.json").write_text(content)
    with pytest.raises(BadConfig, match="cannot be read by this version of bench") as refused:
        bundle.read(tmp_path, open_command(["do=report", f"results={tmp_path}", "tracker=none"]))
    assert "\n" not in str(refused.value)


def test_a_bundles_sources_lie_in_it() -> None:
    for path in ("/etc/passwd", "../../x", "a/../../x"):
        with pytest.raises(ValueError, match="must lie in the bundle"):
            bundle._placed({"calibration": {"path": path, "digest": "0"}}, Path("results"))
    placed = bundle._placed({"a": {"path": "sources/x", "digest": "0"}, "b": None}, Path("/r"))
    assert placed == {"a": {"path": "/r/sources/x", "digest": "0"}, "b": None}


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_bundles_calibration_is_the_one_that_it_was_made_with(
    foreign: Path, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = foreign / "sources" / "key" / "calibration.csv"
    path.parent.mkdir(parents=True)
    path.write_text("item_id,instruction_difficulty\na,0.5\n")
    told = json.loads((foreign / "bundle.json").read_text())
    source = {"path": "sources/key/calibration.csv", "digest": file_digest(path), "stamp": ""}
    for cell in told["cells"]:
        cell["sources"]["judge"] = {"prompts": None, "parser": "1", "calibration": source}
    (foreign / "bundle.json").write_text(json.dumps(told))
    opened = open_command(["do=rescore", f"results={foreign}", "tracker=none"])
    assert bundle.opened_from(opened).cells
    if damage == "gone":
        path.unlink()
    else:
        path.write_text("item_id,instruction_difficulty\na,0.9\n")
    assert carry_out(opened) == 3
    said = (
        "is not the file that the bundle was made with"
        if damage == "changed"
        else "cannot be read (No such file or directory)"
    )
    assert f"DAMAGED {path} {said}: unpack the bundle again" in " ".join(told_of(capsys).split())


def told_of(capsys: pytest.CaptureFixture[str]) -> str:
    out = capsys.readouterr()
    return out.out + out.err


def test_a_bundles_title_cannot_move_the_cursor(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = foreign / "bundle.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text()) | {"title": "\x1b[2J\x1b]0;x\x07is it so", "command": "a\rb\x1b[1A"}
        )
    )
    assert carry_out(open_command(["do=report", f"results={foreign}", "tracker=none"])) == 0
    out = capsys.readouterr().out
    assert r"\x1b[2J\x1b]0;x\x07is it so" in out and "\x1b" not in out and "\r" not in out
    assert "\x1b" not in (foreign / "sweeps" / "smoke" / "table.md").read_text()


# A whole store --------------------------------------------------------------------------------------------------------


@outer
def test_verify_names_each_fault_of_a_store_and_what_would_mend_it(results: Path, command: Command) -> None:
    assert command("do=verify", "+sweep=smoke", sweep=None)[0] == 2
    store = results / "store"
    flip(folder_of(results, "preference_completions") / "completions.jsonl")
    stale(results)
    (store / "judge" / "abc.work").mkdir()
    (store / "judge" / "abc.work" / "journal.jsonl").write_text('{"request": "a"}\nnull\nhalf a line')
    (store / "odd").write_text("")
    leftover = store / "train" / "0123456789abcdef.progress.jsonl"
    leftover.write_text("")
    code, said = command("do=verify", sweep=None)
    assert code == 3
    for line in (
        f"DAMAGED  {folder_of(results, 'preference_completions')}/completions.jsonl has a wrong checksum: run its sweep again to compute",
        f"DAMAGED  {store}/judge/abc.work/journal.jsonl:2: ",
        f"DAMAGED  {store}/odd is a file, and should be a folder: move it away",
        f"STALE    {folder_of(results, 'score')}: its input ",
        f"LEFT     {leftover}: left by a command that was killed",
    ):
        assert line in said, (line, said)
    (store / "odd").unlink()
    shutil.rmtree(store / "judge" / "abc.work")
    assert command("do=run")[0] == 0  # mends it, and what was left goes at its end
    code, said = command("do=verify", sweep=None)
    assert (code, "LEFT" in said, leftover.exists()) == (0, False, False), said
    assert not list(store.rglob("*.lock")) or {path.name for path in store.rglob("*.lock")} == {
        "spending.jsonl.lock"
    }


def test_verify_tells_copies_of_stages_from_damaged_ones(results: Path, command: Command) -> None:
    """A copy is deleted; no command makes it again."""
    store, score = results / "store", folder_of(results, "score")
    copies = [
        store / "score" / ("0" * 16),
        store / "score" / "mine",
        store / "data" / score.name,
        store / "backup" / score.name,
    ]
    for copy in copies:
        shutil.copytree(score, copy)
    (store / "score" / "notes").mkdir()
    code, said = command("do=verify", sweep=None)
    assert code == 3
    for copy in copies:
        moved = f"belongs to stage score/{score.name}, but lies in the folder of another stage"
        assert f"DAMAGED  {copy}/manifest.json {moved}: this folder does not belong here: " in said
    unfinished = "has no manifest.json: the stage was not finished"
    assert (
        f"DAMAGED  {store}/score/notes {unfinished}: this folder does not belong here: delete it or move it away"
        in said
    )
    for folder in (*copies, store / "score" / "notes"):
        shutil.rmtree(folder)
    assert command("do=verify", sweep=None)[0] == 0


@pytest.mark.parametrize("name", ["differences.csv", "table.md", "figures/win_rate_by_kl.png"])
def test_a_folder_where_a_table_should_be_is_said_with_the_way_out(
    results: Path, command: Command, name: str
) -> None:
    place = results / "sweeps" / "smoke" / name
    place.unlink()
    (place / "inside").mkdir(parents=True)
    code, said = command("do=report")
    assert code == 3 and f"not written: {place}: is a folder, and should be a file: move it away" in said
    shutil.rmtree(place)
    assert command("do=report")[0] == 0 and place.is_file()


def test_pipes_and_links_where_files_and_folders_should_be_are_named_and_not_waited_for(
    results: Path, command: Command
) -> None:
    """A report needs no log, and says where it cannot write."""
    for pipe in (
        Path(f"{folder_of(results, 'score')}.log"),
        results / "store" / "judge" / "abc.work" / "journal.jsonl",
    ):
        pipe.parent.mkdir(exist_ok=True)
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
    (cell_folder(results) / "result.json").unlink()
    os.mkfifo(cell_folder(results) / "result.json")
    (results / "store" / "judge" / "odd\x1b[2J\nname").mkdir()
    assert command("do=report")[0] == 0
    cell_folder(results).rename(results / "elsewhere")
    cell_folder(results).symlink_to(results / "elsewhere")
    shutil.copytree(results / "sweeps", results / "sweeps of before")
    shutil.rmtree(results / "sweeps")
    (results / "sweeps").write_text("")
    code, said = command("do=verify", sweep=None)
    assert code == 3
    for line in (
        f"DAMAGED  {pipe} cannot be read (expected a file, got a pipe or a device",
        f"DAMAGED  {cell_folder(results)} is a link, and nothing is written through one: move it away",
        f"DAMAGED  {results}/sweeps is a file, and should be a folder: move it away",
        f"DAMAGED  {results}/store/judge/odd\\x1b[2J\\nname has no manifest",
    ):
        assert line in said, (line, said)


def test_a_report_of_cells_that_are_all_damaged_or_gone_says_so_and_keeps_the_table(
    results: Path, command: Command
) -> None:
    before = contents(results / "sweeps")
    gone, *damaged = smoke_cells()
    shutil.rmtree(Store(results / "store").folder(gone.score))
    for cell in damaged:
        flip(Store(results / "store").folder(cell.score) / "result.json")
    code, said = command("do=report")
    assert code == 3 and "have lost their numbers" in said and contents(results / "sweeps") == before
    for cell in damaged:
        assert f"DAMAGED  {Store(results / 'store').folder(cell.score)}/result.json" in said, said
    assert gone.score.key in said
    shutil.rmtree(results / "cells")
    shutil.rmtree(results / "store")
    code, said = command("do=report")
    assert (code, contents(results / "sweeps")) == (2, before) and "was run in" in said


def test_a_store_of_before_checksums_runs_nothing_again(results: Path, command: Command) -> None:
    for path in results.glob("store/*/*/manifest.json"):
        told = json.loads(path.read_text())
        path.write_text(
            json.dumps({name: value for name, value in told.items() if name not in ("format", "checksum")})
        )
    for mark in results.glob("cells/*/.*_exported"):
        mark.write_text("")
    before = contents(results / "sweeps")
    code, said = command("do=run")
    assert code == 0 and "0 stages run" in said, said
    assert contents(results / "sweeps") == before
    assert command("do=verify", sweep=None)[0] == 0


def test_stages_are_stages(results: Path) -> None:
    """The helpers of this file speak of stages that the smoke sweep has."""
    assert isinstance(smoke_cell(*CELL).score, Stage) and folder_of(results, "preference_verdicts").is_dir()
