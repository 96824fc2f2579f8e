"""One archive for a referee: the same tables elsewhere, with no model, judge or file of the author's; no secrets, none of its folders."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from outer import some_outer

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny import Ran, bench, copy_results, make_model, make_preferences, smoke

from bench.commands.bundle import nameless, nameless_command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundled")


@pytest.fixture(scope="module")
def bundled(place: Path) -> Ran:
    results = place / "results"
    shutil.copytree(smoke().results, results, ignore=shutil.ignore_patterns("*.lock", "*.safetensors"))
    for path in smoke().results.rglob("*.safetensors"):
        os.link(path, results / path.relative_to(smoke().results))
    ran = bench(
        "+sweep=smoke",
        "do=bundle",
        f"out={place / 'smoke.tar.gz'}",
        results=results,
        BENCH_TEST_API_KEY="never-written-anywhere",
    )
    assert ran.code == 0, ran.err
    return ran


def extract(archive: Path, to: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(to, filter="data")
    (root,) = to.iterdir()
    return root


def test_a_referee_gets_the_same_tables_from_the_archive_alone(
    bundled: Ran, place: Path, tmp_path: Path
) -> None:
    words = " ".join(bundled.out.split())
    assert "the same bytes as" in words
    assert f"bundle {place / 'smoke.tar.gz'}" in words
    root = extract(place / "smoke.tar.gz", tmp_path)
    assert not list(root.rglob("*.safetensors"))
    for path in (root / "sweeps" / "smoke").glob("table.*"):
        path.unlink()
    moved = root.rename(tmp_path / "elsewhere")
    again = bench("do=report", results=moved)
    assert again.code == 0, again.err
    assert again.table() == smoke().table()
    rescored = bench("do=rescore", results=moved)
    assert rescored.code == 0, rescored.err
    assert "moved" not in rescored.out
    status = bench("do=status", results=moved)
    assert status.code == 0, status.err
    assert "5 done" in status.out


@pytest.mark.parametrize(
    "file",
    some_outer(
        ["store/judge/*/verdicts.jsonl", "store/logps/*/logps.jsonl", "store/score/*/result.json"],
        ["store/judge/*/verdicts.jsonl"],
    ),
)
def test_a_number_that_was_changed_is_said(file: str, bundled: Ran, place: Path, tmp_path: Path) -> None:
    root = extract(place / "smoke.tar.gz", tmp_path)
    changed = sorted(root.glob(file))[0]
    text = changed.read_text()
    digit = re.search(r"\d(?=[^\d]*$)", text)
    assert digit
    changed.write_text(text[: digit.start()] + str((int(digit[0]) + 1) % 10) + text[digit.end() :])
    for verb in ("report", "rescore"):
        ran = bench(f"do={verb}", results=root)
        assert ran.code == 3, ran.out + ran.err
        assert f"DAMAGED {changed} has a wrong checksum" in " ".join(ran.out.split())


def test_the_archive_says_what_it_is_and_names_no_folder_of_its_author(
    bundled: Ran, place: Path, tmp_path: Path
) -> None:
    assert "LOOK" not in bundled.out
    root = extract(place / "smoke.tar.gz", tmp_path)
    assert {"README.md", "bundle.json", "environment.json", "sweep.yaml", "store", "sweeps"} <= {
        path.name for path in root.iterdir()
    }
    own = (str(bundled.results), str(place), "never-written-anywhere")
    for path in root.rglob("*"):
        assert not path.is_file() or not any(word.encode() in path.read_bytes() for word in own), path
    told = json.loads((root / "environment.json").read_text())
    assert any(line.startswith("torch==") for line in told["distributions"])


def test_the_archive_is_a_research_object_that_lists_its_files(
    bundled: Ran, place: Path, tmp_path: Path
) -> None:
    root = extract(place / "smoke.tar.gz", tmp_path)
    crate = json.loads((root / "ro-crate-metadata.json").read_text(encoding="utf-8"))
    entities = {one["@id"]: one for one in crate["@graph"]}
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert {one["@id"] for one in entities["./"]["hasPart"]} == files - {"ro-crate-metadata.json"}
    assert all(part["@id"] in entities for part in entities["./"]["hasPart"])
    assert entities["ro-crate-metadata.json"]["about"] == {"@id": "./"}
    assert (
        entities["./"]["datePublished"].startswith("20") and "+sweep=smoke" in entities["#run"]["description"]
    )


def test_the_same_results_give_the_same_bytes(bundled: Ran, place: Path) -> None:
    again = bench("+sweep=smoke", "do=bundle", f"out={place / 'again.tar.gz'}", results=bundled.results)
    assert again.code == 0, again.err
    assert (place / "again.tar.gz").read_bytes() == (place / "smoke.tar.gz").read_bytes()
    with tarfile.open(place / "smoke.tar.gz") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_a_bundle_holds_no_rows_that_training_reads(bundled: Ran, place: Path) -> None:
    with tarfile.open(place / "smoke.tar.gz") as tar:
        assert not [name for name in tar.getnames() if Path(name).name == "train.jsonl"]


def test_do_report_leaves_a_table_alone_of_which_nothing_was_run_here(bundled: Ran, tmp_path: Path) -> None:
    """As in a clone that holds the tables of somebody else's runs."""
    there = tmp_path / "results" / "sweeps" / "smoke"
    shutil.copytree(bundled.results / "sweeps" / "smoke", there)
    before = {path: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    ran = bench("+sweep=smoke", "do=report", results=tmp_path / "results")
    assert ran.code == 2
    assert f"no cell of smoke was run in {tmp_path / 'results'}, so {there} was not changed" in ran.err
    assert {path: path.read_bytes() for path in there.rglob("*") if path.is_file()} == before


def test_do_report_says_that_a_table_was_another_one(bundled: Ran, place: Path, tmp_path: Path) -> None:
    root = extract(place / "smoke.tar.gz", tmp_path)
    table = root / "sweeps" / "smoke" / "table.csv"
    whole = table.read_bytes()
    table.write_bytes(whole.replace(b"done,", b"done,9", 1))
    ran = bench("do=report", results=root)
    assert (ran.code, table.read_bytes()) == (0, whole)
    assert f"CHANGED  {table} differs from the table that was there before" in ran.out


def test_a_secret_of_the_environment_is_not_given_away(bundled: Ran, place: Path) -> None:
    ran = bench(
        "+sweep=smoke",
        "do=bundle",
        f"out={place / 'no.tar.gz'}",
        results=bundled.results,
        MY_API_KEY="world_smoke",
    )
    assert ran.code == 2
    assert "holds the value of MY_API_KEY" in ran.err
    assert not (place / "no.tar.gz").exists()


def test_a_users_model_and_data_are_not_needed_again(tmp_path: Path) -> None:
    """Planned with sources that are not there: what has failed says so, in both places."""
    model, pairs = (
        make_model(tmp_path / "mine" / "policy"),
        make_preferences(tmp_path / "mine" / "pairs.jsonl", paired=True, messages=True),
    )
    words = (f"model={model}", "data=local", f"data.path={pairs}", "judge=none", "method=dpo")
    made = bench(*words, "do=report", results=tmp_path / "results")
    archive = tmp_path / "own.tar.gz"
    ran = bench(*words, "do=bundle", f"out={archive}", results=tmp_path / "results")
    assert ran.code == 0, ran.err
    shutil.rmtree(tmp_path / "mine")
    root = extract(archive, tmp_path / "referee")
    assert str(tmp_path) not in (root / "bundle.json").read_text()
    again = bench("do=report", results=root)
    assert again.code == made.code == 0, again.err
    (sweep,) = (path.name for path in (root / "sweeps").iterdir())
    assert again.table(sweep)["table.csv"] == made.table(sweep)["table.csv"]


def test_a_bundle_of_another_version_is_said(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "bundle.json").write_text('{"format": 99}')
    ran = bench("do=report", results=tmp_path / "results")
    assert ran.code == 2
    assert "cannot be read by this version of bench: it has format 99" in ran.err


def test_a_bad_out_is_refused_before_a_run(tmp_path: Path) -> None:
    ran = bench("+sweep=smoke", "do=bundle", "out=there.zip", results=tmp_path / "results")
    assert ran.code == 2
    assert "out must be an archive, FILE.tar.gz, in an existing folder, got there.zip" in ran.err


def test_a_failed_cell_is_in_the_bundle_with_its_reason(tmp_path: Path) -> None:
    results = copy_results(smoke(), tmp_path / "results", drop=("score",))
    ran = bench("+sweep=smoke", "do=bundle", f"out={tmp_path / 'part.tar.gz'}", results=results)
    assert ran.code == 0, ran.err
    assert "0 of 5 cells are done" in ran.out
    root = extract(tmp_path / "part.tar.gz", tmp_path / "referee")
    assert "5 to do" in bench("do=status", results=root).out


def test_paths_lose_their_folders_and_nothing_else() -> None:
    given = {"a": ["/home/me/model", "kept/here"], "b": {"c": "~/x.jsonl", "d": 3}}
    assert nameless(given) == {"a": ["model", "kept/here"], "b": {"c": "x.jsonl", "d": 3}}
    assert (
        nameless_command("+sweep=smoke model=/home/me/a,/home/me/b method.beta=0.1")
        == "+sweep=smoke model=a,b method.beta=0.1"
    )
