"""What people read is written whole or not at all, below the results folder, and through no link."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import output_files
from bench.output_files import OutputFiles, write


def test_a_file_is_written_with_its_folders_and_nothing_beside_it(tmp_path: Path) -> None:
    write(tmp_path, tmp_path / "sweeps" / "one" / "table.md", "| é |\n")
    assert (tmp_path / "sweeps" / "one" / "table.md").read_bytes() == "| é |\n".encode()
    assert [path.name for path in tmp_path.rglob("*")] == ["sweeps", "one", "table.md"]


def test_a_file_that_holds_the_same_bytes_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, tmp_path / "a", "same")
    os.utime(tmp_path / "a", ns=(1, 1))
    write(tmp_path, tmp_path / "a", b"same")
    assert (tmp_path / "a").stat().st_mtime_ns == 1
    write(tmp_path, tmp_path / "a", "some")
    assert (tmp_path / "a").read_text() == "some"


@pytest.mark.parametrize("link", ["table.md", "one", "sweeps"])
def test_nothing_is_written_through_a_link(tmp_path: Path, link: str) -> None:
    """A link in the place of the file is replaced by it; one in the place of a folder is refused."""
    results, mine = tmp_path / "results", tmp_path / "mine"
    mine.mkdir()
    (mine / "table.md").write_text("of the reader's")
    place = {"table.md": "sweeps/one/table.md", "one": "sweeps/one", "sweeps": "sweeps"}[link]
    (results / place).parent.mkdir(parents=True)
    (results / place).symlink_to(mine / "table.md" if link == "table.md" else mine)
    out = OutputFiles(results)
    written = out.write(results / "sweeps" / "one" / "table.md", "ours")
    assert {path.relative_to(mine): path.read_text() for path in mine.rglob("*")} == {
        Path("table.md"): "of the reader's"
    }
    if link == "table.md":
        assert written and not (results / place).is_symlink() and (results / place).read_text() == "ours"
    else:
        assert not written
        assert out.lines() == [
            f"not written: {results}/sweeps/one/table.md: {results / place} is a link, and nothing is written through one: move it away"
        ]
        assert not out.remove(results / "sweeps" / "one" / "table.md") and (mine / "table.md").exists()


@pytest.mark.parametrize("path", ["../outside", "sweeps/../../outside", "/outside", "."])
def test_nothing_is_written_outside_of_the_folder(tmp_path: Path, path: str) -> None:
    results = tmp_path / "results"
    results.mkdir()
    with pytest.raises(OSError, match="lies outside of"):
        write(results, results / path, "x")
    assert [found.name for found in tmp_path.rglob("*")] == ["results"]


def test_the_results_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    write(tmp_path / "results", tmp_path / "results" / "a" / "b", "x")
    assert (tmp_path / "disk" / "a" / "b").read_text() == "x"


def test_what_stands_in_the_way_is_said_and_the_rest_is_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file where a folder should be")
    (tmp_path / "b").mkdir()
    out = OutputFiles(tmp_path)
    assert [out.write(tmp_path / name, "x") for name in ("a/one", "a/two", "b", "c")] == [
        False,
        False,
        False,
        True,
    ]
    assert out.lines() == [
        f"not written: {tmp_path}/a/one and 1 more file: {tmp_path}/a is a file, and should be a folder: move it away",
        f"not written: {tmp_path}/b: is a folder, and should be a file: move it away",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    assert (tmp_path / "a").read_text() == "a file where a folder should be"


def test_a_file_where_the_folder_to_write_to_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    for root in (tmp_path / "a", tmp_path / "a" / "deeper"):
        out = OutputFiles(root)
        assert not out.write(root / "x" / "y", "z")
        assert out.lines() == [
            f"not written: {root}/x/y: {tmp_path}/a is a file, and should be a folder: move it away"
        ]
    assert (tmp_path / "a").read_text() == "mine"


def test_a_disk_without_room_keeps_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files is an EFBIG where a full disk is an ENOSPC: the write fails half-way."""
    (tmp_path / "table.md").write_text("old")
    code = f"""
import resource, signal
from pathlib import Path
from bench.output_files import OutputFiles
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
out = OutputFiles(Path({str(tmp_path)!r}))
print(out.write(Path({str(tmp_path / "table.md")!r}), "new" * 1000), out.write(Path({str(tmp_path / "small")!r}), "new"))
print(out.lines())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False True", f"['not written: {tmp_path}/table.md: File too large']"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"table.md": "old", "small": "new"}


def test_a_path_that_was_typed_may_be_a_link_or_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    output_files.write_user_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "new"
    code = "from pathlib import Path; from bench.output_files import write_user_file as w; w(Path('/dev/stdout'), 'rows')"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "rows"
    )
    with pytest.raises(IsADirectoryError):
        output_files.write_user_file(tmp_path, "x")
