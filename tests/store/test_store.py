"""The store: keys that one meaning writes in one way, folders that are whole or absent, locks, and what happens when someone dies."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from tiny import Plain, state

from bench.store.keys import Source, Stage, canonical_json, hash_key, hash_long, tree_digest, tree_stamp
from bench.store.store import BIG_FILE, Store

ROOT = Path(__file__).parent.parent.parent


class Dirty(BaseModel):
    values: Any


def stage(value: float = 0, kind: str = "data", **inputs: Stage | Source) -> Stage:
    return Stage(kind, 1, Plain(value=value), inputs, label=f"{kind} {value:g}")


def finish(stage: Stage, store: Store, text: str = "content", **more: Any) -> None:
    built = store.build_folder(stage)
    (built / "sub").mkdir()
    (built / "out.txt").write_text(text)
    (built / "sub" / "more.bin").write_bytes(b"\0" * 10)
    (built / "speed.jsonl").write_text("differs from run to run")
    digests = {role: store.digest(source) or "" for role, source in stage.inputs.items()}
    store.commit(
        stage, built, counts={"rows": 1}, timings={"wall_s": 1.5}, recorded={"revision": "abc"},
        recorded_files=frozenset({"speed.jsonl"}), input_digests=digests, **more,
    )  # fmt: skip


# Keys ----------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, min_size=2), st.randoms())
def test_the_order_of_keys_never_changes_a_key(value: dict[str, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert hash_key(dict(items)) == hash_key(value)


@given(JSON)
def test_canonical_json_can_be_read_back_and_written_the_same(value: Any) -> None:
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text and text.isascii()


@given(JSON, JSON)
def test_two_values_have_one_key_only_when_they_are_equal(one: Any, other: Any) -> None:
    """1 and 1.0 are equal and one; True is not 1."""
    assert (canonical_json(one) == canonical_json(other)) == (_exact(one) == _exact(other))


def _exact(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_exact(item) for item in value]
    return (type(value).__name__ if isinstance(value, bool) else "", value)


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (0.0, -0.0), ((1, 2), [1, 2]), (1e3, 1000), (0.1, 0.10)]
)
def test_one_number_is_one_key_however_it_is_written(one: Any, other: Any) -> None:
    assert hash_key({"a": one}) == hash_key({"a": other})
    assert stage(1).key == stage(1.0).key


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (0, False), (0, None), ("1", 1), ([], {}), (0.1, 0.1 + 1e-16)]
)
def test_values_that_differ_have_keys_that_differ(one: Any, other: Any) -> None:
    assert hash_key({"a": one}) != hash_key({"a": other})


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, {1, 2}, {1: "a"}, {None: 1}, b"x", object(), Path("x"), 1j]
)
def test_what_has_no_single_writing_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        hash_key({"a": value})
    with pytest.raises((TypeError, ValueError)):
        _ = Stage("data", 1, Dirty(values=value)).key


def test_a_field_added_later_keeps_keys_at_its_default() -> None:
    class Before(BaseModel):
        value: float = 0

    class Outer(BaseModel):
        inner: BaseModel

    assert Stage("data", 1, Before(value=2)).key == stage(2).key
    assert Stage("data", 1, Plain(value=2, dropout=0.1)).key != stage(2).key
    assert (
        Stage("data", 1, Outer(inner=Before(value=2))).key
        == Stage("data", 1, Outer(inner=Plain(value=2))).key
    )
    assert (
        Stage("data", 1, Outer(inner=Before(value=2))).key
        != Stage("data", 1, Outer(inner=Plain(value=2, dropout=0.1))).key
    )


def test_kind_version_settings_inputs_and_roles_make_the_key_and_labels_do_not() -> None:
    base = Stage("data", 1, Plain(), {"a": stage(1)}, "label")
    assert base.key == Stage("data", 1, Plain(), {"a": stage(1)}, "another").key
    others = [
        Stage("sft", 1, Plain(), {"a": stage(1)}),
        Stage("data", 2, Plain(), {"a": stage(1)}),
        Stage("data", 1, Plain(value=1), {"a": stage(1)}),
        Stage("data", 1, Plain(), {"a": stage(2)}),
        Stage("data", 1, Plain(), {"b": stage(1)}),
        Stage("data", 1, Plain(), {"a": stage(1), "b": stage(1)}),
        Stage("data", 1, Plain(), {"a": Source(Path("x"), "digest")}),
    ]
    assert len({base.key, *(other.key for other in others)}) == len(others) + 1


def test_a_stage_walks_its_ancestors_once_and_inputs_first() -> None:
    """A diamond: d reads b and c, which read a."""
    a = stage(1)
    b, c = stage(2, a=a), stage(3, a=a)
    d = stage(4, b=b, c=c)
    assert list(d.walk()) == [a, b, c, d]


def test_a_source_is_its_content_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "w.bin").write_bytes(b"weights")
        (tmp_path / name / ".cache").write_text(name)  # hidden files are nobody's content
    one, two = (tree_digest(tmp_path / name) for name in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "sub" / "w.bin").rename(tmp_path / "two" / "w.bin")
    assert tree_digest(tmp_path / "two") != one
    assert Source(tmp_path / "one", one).key == Source(tmp_path / "elsewhere", one).key


@pytest.mark.parametrize("lies_in", ["", "sub"])
def test_a_stamp_tells_that_something_was_written_since(tmp_path: Path, lies_in: str) -> None:
    file = tmp_path / lies_in / "w.bin"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"weights")
    for path in (tmp_path, file):
        before = tree_stamp(path)
        assert tree_stamp(path) == before
        os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
        assert tree_stamp(path) != before


# Whole or absent -----------------------------------------------------------------------------------------------------


def test_a_finished_stage_is_done_and_says_how_it_came_to_be(tmp_path: Path) -> None:
    store, source = Store(tmp_path), Source(tmp_path / "x", "d" * 64)
    first, second = stage(1, file=source), stage(2, a=stage(1, file=source))
    assert (state(first, tmp_path), Store(tmp_path).status(first).why) == ("absent", "")
    finish(first, store)
    finish(second, store)
    manifest = Store(tmp_path).manifest(second)
    assert (manifest.kind, manifest.key, manifest.settings) == ("data", second.key, {"value": 2})
    assert manifest.inputs == {"a": {"key": first.key, "digest": store.digest(first)}}
    assert (set(manifest.files), set(manifest.recorded_files)) == (
        {"out.txt", "sub/more.bin"},
        {"speed.jsonl"},
    )
    assert (manifest.counts, manifest.timings, manifest.recorded) == (
        {"rows": 1},
        {"wall_s": 1.5},
        {"revision": "abc"},
    )
    assert Store(tmp_path).manifest(first).inputs == {"file": {"key": source.key, "digest": "d" * 64}}
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted([first.key, second.key])


def test_only_what_does_not_differ_from_run_to_run_is_in_the_digest(tmp_path: Path) -> None:
    def digest(name: str, text: str, speed: str) -> str:
        store = Store(tmp_path / name)
        built = store.build_folder(stage())
        (built / "out.txt").write_text(text)
        (built / "speed.jsonl").write_text(speed)
        recorded = frozenset({"speed.jsonl"})
        return store.commit(
            stage(), built, counts={}, timings={}, recorded={}, recorded_files=recorded, input_digests={}
        ).digest

    assert digest("a", "x", "fast") == digest("b", "x", "slow") != digest("c", "y", "fast")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda folder: flip(folder / "out.txt"), "out.txt has a wrong checksum"),
        (lambda folder: flip(folder / "speed.jsonl"), "speed.jsonl has a wrong checksum"),
        (lambda folder: (folder / "out.txt").write_text("con"), "out.txt has 3 bytes instead of 7"),
        (lambda folder: (folder / "sub" / "more.bin").unlink(), "more.bin is missing"),
        (
            lambda folder: (folder / "manifest.json").unlink(),
            "has no manifest.json: the stage was not finished",
        ),
        (lambda folder: (folder / "manifest.json").write_text(""), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"kind": "data"}'),
            "manifest.json cannot be read",
        ),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json cannot be read"),
        (
            lambda folder: (folder / "manifest.json").write_text("null"),
            "manifest.json cannot be read (expected an object, got null",
        ),
        (
            lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
            "manifest.json cannot be read (nested deeper than 100",
        ),
        (
            lambda folder: pipe(folder / "manifest.json"),
            "manifest.json cannot be read (expected a file, got a pipe or a device)",
        ),
        (
            lambda folder: replaced_by_folder(folder / "manifest.json"),
            "manifest.json cannot be read (expected a file, got a folder)",
        ),
        (
            lambda folder: dangling(folder / "manifest.json"),
            "manifest.json cannot be read (cannot be read (No such file",
        ),
        (lambda folder: pipe(folder / "out.txt"), "out.txt is not a regular file"),
        (lambda folder: replaced_by_folder(folder / "out.txt"), "out.txt is not a regular file"),
        (lambda folder: dangling(folder / "out.txt"), "out.txt is missing"),
        (lambda folder: sealed(folder, files=[]), "manifest.json cannot be read"),
        (lambda folder: sealed(folder, files={"out.txt": {"size": 7}}), "manifest.json cannot be read"),
        (lambda folder: sealed(folder, counts=None), "manifest.json cannot be read (counts"),
        (
            lambda folder: sealed(folder, files={}),
            "was changed: the checksums of its files do not give its digest",
        ),
        (
            lambda folder: sealed(folder, files={"../../out.txt": {"sha256": "", "size": 7, "mtime_ns": 0}}),
            "lists a file outside",
        ),
        (
            lambda folder: sealed(folder, key="0" * 16),
            "belongs to stage data/0000000000000000, but lies in the folder of another stage",
        ),
        (lambda folder: sealed(folder, kind="sft"), "belongs to stage sft/"),
        (lambda folder: sealed(folder, version=99), "its version, settings and inputs do not give its key"),
        (
            lambda folder: sealed(folder, settings={"value": 1}),
            "its version, settings and inputs do not give its key",
        ),
        (
            lambda folder: sealed(folder, inputs={"data": {"key": "0" * 16, "digest": "x"}}),
            "do not give its key",
        ),
        (
            lambda folder: sealed(folder, format=3),
            "has format 3 of a later version of bench; this version reads formats up to 2",
        ),
        (lambda folder: sealed(folder, format="two"), "has format 'two' of a later version of bench"),
        *[
            (
                lambda folder, told=told: edit(folder, **told),
                "was changed after it was written (its checksum is wrong)",
            )
            for told in (
                {"counts": {"rows": 2}},
                {"timings": {}},
                {"recorded": {}},
                {"unknown": 1},
                {"checksum": None},
                {"evicted": ["a"]},
            )
        ],
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_a_folder_that_is_not_whole_is_absent_and_says_so(
    tmp_path: Path, harm: Callable[[Path], object], why: str
) -> None:
    store, made = Store(tmp_path), stage()
    finish(made, store)
    assert state(made, tmp_path) == "done"
    harm(store.folder(made))
    found = Store(tmp_path).status(made)
    assert found.state == "damaged" and found.manifest is None
    assert (
        why in found.why
        and str(store.folder(made)) in found.why
        and "the stage counts as absent" in found.why
    )
    assert Store(tmp_path).digest(made) is None
    with pytest.raises(FileNotFoundError, match="is damaged in"):
        Store(tmp_path).manifest(made)
    finish(made, Store(tmp_path))  # made again over what was left
    assert state(made, tmp_path) == "done"


def edit(folder: Path, **changes: Any) -> None:
    """Change fields as a flipped bit or a person would."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def sealed(folder: Path, **changes: Any) -> None:
    """Change fields as another version of bench would: under a right checksum."""
    told = json.loads((folder / "manifest.json").read_text()) | changes
    del told["checksum"]
    edit(folder, **changes, checksum=hash_long(told))


def earlier(folder: Path, **changes: Any) -> None:
    """Change fields of a manifest as bench wrote them before they had a checksum."""
    path = folder / "manifest.json"
    told = json.loads(path.read_text()) | changes
    path.write_text(
        json.dumps({name: value for name, value in told.items() if name not in ("format", "checksum")})
    )


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def test_fields_that_a_later_version_adds_to_a_manifest_do_no_harm(tmp_path: Path) -> None:
    finish(stage(), Store(tmp_path))
    sealed(Store(tmp_path).folder(stage()), new_field={"a": [1]})
    assert state(stage(), tmp_path) == "done"


def test_a_manifest_of_before_checksums_is_read_and_what_its_key_is_made_of_is_checked(
    tmp_path: Path,
) -> None:
    made = stage(3, data=stage())
    finish(stage(), Store(tmp_path))
    finish(made, Store(tmp_path))
    folder = Store(tmp_path).folder(made)
    earlier(folder)
    assert state(made, tmp_path) == "done"
    for changes in ({"version": 2}, {"settings": {"value": 4}}, {"inputs": {}}):
        kept = (folder / "manifest.json").read_text()
        earlier(folder, **changes)
        assert "do not give its key" in Store(tmp_path).status(made).why
        (folder / "manifest.json").write_text(kept)


@pytest.mark.skipif(os.geteuid() != 0, reason="a process that is not root cannot become another user")
def test_a_file_that_cannot_be_opened_is_damage_with_its_reason(tmp_path: Path) -> None:
    """As another user, for root may read everything."""
    made = stage()
    finish(made, Store(tmp_path))
    (Store(tmp_path).folder(made) / "out.txt").chmod(0)
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.owner() == "root" and folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.setuid(65534)
        os.write(write, Store(tmp_path).status(made).why.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert (
        os.read(read, 1000)
        .decode()
        .endswith("out.txt cannot be read (Permission denied): the stage counts as absent and is made again")
    )


def test_a_file_where_the_folder_of_a_kind_should_be_is_damage(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert (
        Store(tmp_path).status(stage()).why
        == f"{tmp_path}/data is a file, and should be a folder: move it away"
    )
    assert state(stage(), tmp_path) == "damaged"


def test_what_is_recorded_and_why_it_failed_are_none_where_their_files_are_odd(tmp_path: Path) -> None:
    store, made = Store(tmp_path), stage()
    finish(made, store)
    for content in (
        "null",
        "[]",
        "[" * 100_000,
        '{"recorded": null, "error": null}',
        '{"recorded": [1], "error": {"a": 1}}',
        "\x00",
    ):
        (store.folder(made) / "manifest.json").write_text(content)
        store.sidecar(made, "failed.json").write_text(content)
        assert (store.recorded(made), store.failure(made)) == ({}, None)
    assert Store(tmp_path).status(made).state == "damaged"


@pytest.mark.parametrize("place", ["data", ""])
def test_nothing_is_built_through_a_link(tmp_path: Path, place: str) -> None:
    (tmp_path / "mine").mkdir()
    root = tmp_path / "store"
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).symlink_to(tmp_path / "mine")
    for attempt in (Store(root).build_folder, Store(root).try_lock):
        with pytest.raises(OSError, match="is a link, and nothing is written through one"):
            attempt(stage())
    assert list((tmp_path / "mine").iterdir()) == []


def test_marks_beside_a_stage_are_written_through_no_link(tmp_path: Path) -> None:
    store, made = Store(tmp_path / "store"), stage()
    store.build_folder(made)
    (tmp_path / "mine").write_text("of the reader's")
    for suffix in ("failed.json", "lock", "interrupted"):
        store.sidecar(made, suffix).symlink_to(tmp_path / "mine")
    store.record_failure(made, "why")
    store.record_interruption(made)
    with pytest.raises(OSError, match="is a link"):
        store.try_lock(made)
    assert (tmp_path / "mine").read_text() == "of the reader's"
    assert (store.failure(made), store.was_interrupted(made)) == ("why", True)


def test_tidying_takes_what_killed_commands_left_and_leaves_what_is_in_use(tmp_path: Path) -> None:
    store, used, ours = Store(tmp_path), stage(1), stage(2)
    dead = subprocess.Popen(["true"])
    dead.wait()
    for made in (stage(0), used):
        finish(made, store)
        store.sidecar(made, "lock").touch()
        store.sidecar(made, "progress.jsonl").touch()
    folder, host = tmp_path / "data", socket.gethostname()
    gone = [folder / f"{stage(0).key}.build-{host}-{dead.pid}-{n:06x}" for n in range(3)]
    gone[0].mkdir()
    gone[1].write_text("a file")
    gone[2].symlink_to(tmp_path)
    elsewhere = folder / f"{stage(0).key}.build-elsewhere-{dead.pid}-000000"
    elsewhere.mkdir()
    building = store.build_folder(ours)
    lock = store.try_lock(used)
    assert lock is not None
    left = {
        found.key: (sorted(path.name for path in found.paths), found.in_use()) for found in store.leftovers()
    }
    assert left[used.key] == ([f"{used.key}.lock", f"{used.key}.progress.jsonl"], True)
    assert len(left[stage(0).key][0]) == 6 and not left[stage(0).key][1]
    store.remove_leftovers()
    kept = {
        used.key,
        f"{used.key}.lock",
        f"{used.key}.progress.jsonl",
        stage(0).key,
        elsewhere.name,
        building.name,
    }
    assert {path.name for path in folder.iterdir()} == kept
    lock.release()
    store.remove_leftovers()
    assert not store.sidecar(used, "lock").exists() and not store.sidecar(used, "progress.jsonl").exists()
    assert [state(made, tmp_path) for made in (stage(0), used)] == ["done", "done"]


def test_a_big_file_as_old_as_its_checksum_is_trusted_and_any_other_is_read(tmp_path: Path) -> None:
    store, made = Store(tmp_path), stage()
    built = store.build_folder(made)
    with (built / "weights").open("wb") as file:
        file.truncate(BIG_FILE)
    store.commit(made, built, counts={}, timings={}, recorded={}, input_digests={})
    weights = store.folder(made) / "weights"
    checked = weights.stat().st_mtime_ns
    with weights.open("r+b") as file:
        file.write(b"x")
    assert state(made, tmp_path) == "damaged"  # newer than its checksum: read
    os.utime(weights, ns=(checked, checked))
    assert (
        state(made, tmp_path) == "done"
    )  # the price: damage that leaves the time alone is found when the file is read
    with weights.open("r+b") as file:
        file.write(b"\0")
    assert state(made, tmp_path) == "done"  # a copy has another time and the same bytes
    with weights.open("ab") as file:
        file.write(b"x")
    assert state(made, tmp_path) == "damaged"  # a size is never trusted


# Stale ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Stage, Stage, Stage]:
    """a <- b <- c, all finished."""
    a = stage(1)
    b = stage(2, kind="sft", a=a)
    c = stage(3, kind="train", b=b)
    store = Store(tmp_path)
    for made in (a, b, c):
        finish(made, store)
    return a, b, c


def remake(made: Stage, root: Path, text: str) -> None:
    store = Store(root)
    store.folder(made).rename(root / f"old-{made.key}-{text}")
    finish(made, store, text)


def test_an_input_made_again_with_other_bytes_makes_all_that_read_it_stale(
    chain: tuple[Stage, Stage, Stage], tmp_path: Path
) -> None:
    a, b, c = chain
    remake(a, tmp_path, "other")
    store = Store(tmp_path)
    assert [store.status(s).state for s in (c, b, a)] == ["stale", "stale", "done"]
    assert (
        store.status(b).why
        == f"sft/{b.key}: its input 'a' was made again with other bytes, so this stage runs again"
    )
    finish(b, store, "content")  # the same bytes again: what reads it was right all along
    assert [store.status(s).state for s in (c, b, a)] == ["done", "done", "done"]
    remake(a, tmp_path, "third")
    store = Store(tmp_path)
    assert store.status(c).state == "stale"
    finish(b, store, "other too")
    assert [store.status(s).state for s in (c, b)] == ["stale", "done"]
    finish(c, store)
    assert store.status(c).state == "done"


def test_an_input_made_again_with_the_same_bytes_changes_nothing(
    chain: tuple[Stage, Stage, Stage], tmp_path: Path
) -> None:
    remake(chain[0], tmp_path, "content")
    assert [state(s, tmp_path) for s in chain] == ["done"] * 3


def test_what_is_done_stays_done_when_its_inputs_are_gone_or_damaged(
    chain: tuple[Stage, Stage, Stage], tmp_path: Path
) -> None:
    a, b, c = chain
    store = Store(tmp_path)
    store.folder(a).rename(tmp_path / "gone")
    flip(store.folder(b) / "out.txt")
    assert [state(s, tmp_path) for s in (a, b, c)] == ["absent", "damaged", "done"]


def test_a_status_is_remembered_until_the_stage_or_its_input_is_made_again(
    chain: tuple[Stage, Stage, Stage], tmp_path: Path
) -> None:
    a, b, c = chain
    store = Store(tmp_path)
    assert [store.status(s).state for s in (c, b, a)] == ["done"] * 3
    flip(store.folder(a) / "out.txt")
    assert store.status(a).state == "done"
    store.invalidate(a)
    assert store.status(a).state == "damaged"
    assert store.status(c).state == "done"
    finish(a, store, "other")  # by this very store: it looks again at all that hung on it
    assert [store.status(s).state for s in (c, b, a)] == ["stale", "stale", "done"]


# Building and moving into place --------------------------------------------------------------------------------------


def test_a_folder_is_absent_until_it_is_committed(tmp_path: Path) -> None:
    store, made = Store(tmp_path), stage()
    built = store.build_folder(made)
    (built / "out.txt").write_text("half")
    assert state(made, tmp_path) == "absent" and store.has_build_folder(made)
    store.commit(made, built, counts={}, timings={}, recorded={}, input_digests={})
    assert state(made, tmp_path) == "done" and not store.has_build_folder(made)


def test_a_finished_folder_is_never_replaced_under_its_readers(tmp_path: Path) -> None:
    """Who comes second with the same inputs takes what stands there, whatever he made himself."""
    store, made = Store(tmp_path), stage()
    slow = store.build_folder(made)
    (slow / "out.txt").write_text("slow")
    finish(made, Store(tmp_path), "quick")
    before = (store.folder(made) / "out.txt").stat().st_ino
    manifest = store.commit(made, slow, counts={}, timings={}, recorded={}, input_digests={})
    assert (store.folder(made) / "out.txt").read_text() == "quick" and (
        store.folder(made) / "out.txt"
    ).stat().st_ino == before
    assert manifest == Store(tmp_path).manifest(made)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [made.key]


def test_a_result_of_other_inputs_replaces_a_stale_one(
    chain: tuple[Stage, Stage, Stage], tmp_path: Path
) -> None:
    a, b, _ = chain
    remake(a, tmp_path, "other")
    finish(b, Store(tmp_path), "new")
    assert (Store(tmp_path).folder(b) / "out.txt").read_text() == "new" and state(b, tmp_path) == "done"
    assert [path.name for path in (tmp_path / "sft").iterdir()] == [b.key]


def test_what_cannot_be_written_as_json_leaves_no_finished_folder(tmp_path: Path) -> None:
    store, made = Store(tmp_path), stage()
    built = store.build_folder(made)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.commit(made, built, counts={}, timings={"wall_s": math.nan}, recorded={}, input_digests={})
    assert state(made, tmp_path) == "absent"


def python(code: str, root: Path, **kwargs: Any) -> subprocess.Popen[str]:
    """A process with a store, a stage and what the tests above define."""
    places = [str(place) for place in (ROOT, ROOT / "tests", ROOT / "tests" / "store")]
    start = f"import sys; sys.path[:0] = {places!r}\nfrom test_store import *\n"
    start += f"store, made = Store(Path({str(root)!r})), stage()\n"
    return subprocess.Popen(
        [sys.executable, "-c", start + textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, **kwargs
    )


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


def test_processes_that_make_the_same_stage_at_once_all_end_with_a_right_folder(tmp_path: Path) -> None:
    code = """
    print("ready", flush=True)
    sys.stdin.readline()
    for turn in range(20):
        finish(stage(turn), store, f"made by {os.getpid()}")
    print("well", flush=True)
    """
    makers = [python(code, tmp_path, stdin=subprocess.PIPE) for _ in range(3)]
    for maker in makers:
        wait_for(maker, "ready")
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("\n")
        maker.stdin.flush()
    for maker in makers:
        wait_for(maker, "well")
        assert maker.wait() == 0
    assert {state(stage(turn), tmp_path) for turn in range(20)} == {"done"}
    assert len(list((tmp_path / "data").iterdir())) == 20


def test_sigkill_before_the_commit_leaves_the_stage_absent_and_the_next_run_sweeps_up(tmp_path: Path) -> None:
    maker = python("built = store.build_folder(made); (built / 'out.txt').write_text('half'); print('built', flush=True); sys.stdin.read()",
                   tmp_path, stdin=subprocess.PIPE)  # fmt: skip
    wait_for(maker, "built")
    store, made = Store(tmp_path), stage()
    living = list((tmp_path / "data").glob("*.build-*"))
    mine = store.build_folder(made)
    assert living[0].exists(), "its builder lives"
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    assert state(made, tmp_path) == "absent" and store.has_build_folder(made)
    (tmp_path / "data" / f"{made.key}.build-by-hand").mkdir()  # not ours to sweep
    (tmp_path / "data" / f"{made.key}.build-another-host-1-abcdef").mkdir()
    again = store.build_folder(made)
    left = {path.name for path in (tmp_path / "data").iterdir()}
    assert left == {
        mine.name,
        again.name,
        f"{made.key}.build-by-hand",
        f"{made.key}.build-another-host-1-abcdef",
    }


# Locks and failures --------------------------------------------------------------------------------------------------


def test_one_holds_a_lock_and_the_others_see_it(tmp_path: Path) -> None:
    store, made = Store(tmp_path), stage()
    assert not store.is_locked(made)
    lock = store.try_lock(made)
    assert lock is not None
    assert store.is_locked(made) and Store(tmp_path).try_lock(made) is None
    assert Store(tmp_path).try_lock(stage(2)) is not None  # another stage's
    lock.release()
    assert not store.is_locked(made) and Store(tmp_path).try_lock(made) is not None


def test_a_lock_goes_with_its_holder(tmp_path: Path) -> None:
    holder = python(
        "lock = store.try_lock(made); print('held', flush=True); sys.stdin.read()",
        tmp_path,
        stdin=subprocess.PIPE,
    )
    wait_for(holder, "held")
    store, made = Store(tmp_path), stage()
    assert store.is_locked(made) and store.try_lock(made) is None
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not store.is_locked(made) and store.try_lock(made) is not None


def test_a_failure_is_kept_beside_the_stage_until_it_is_tried_again(tmp_path: Path) -> None:
    store, made = Store(tmp_path), stage()
    store.build_folder(made)
    assert store.failure(made) is None
    store.record_failure(made, "ValueError: no")
    assert Store(tmp_path).failure(made) == "ValueError: no" and state(made, tmp_path) == "absent"
    store.clear_marks(made)
    store.clear_marks(made)
    assert Store(tmp_path).failure(made) is None
    store.sidecar(made, "failed.json").write_text("half a li")
    assert Store(tmp_path).failure(made) is None


def test_an_interruption_is_kept_beside_the_stage_until_it_is_begun_again(tmp_path: Path) -> None:
    store, made = Store(tmp_path), stage()
    store.build_folder(made)
    assert not store.was_interrupted(made)
    store.record_interruption(made)
    assert Store(tmp_path).was_interrupted(made) and Store(tmp_path).failure(made) is None
    store.clear_marks(made)
    assert not Store(tmp_path).was_interrupted(made)


def test_what_has_build_folder_on_another_machine_is_swept_only_by_who_knows_that_it_is_over(
    tmp_path: Path,
) -> None:
    store, made = Store(tmp_path), stage()
    mine = store.build_folder(made)
    theirs = mine.with_name(f"{made.key}.build-node9-77-abcdef")
    theirs.mkdir()
    (theirs / "half").touch()
    store.remove_build_folders(made.kind, made.key)
    assert mine.exists() and theirs.exists()
    store.remove_build_folders(made.kind, made.key, other_hosts=True)
    assert mine.exists()  # by a process that lives
    assert not theirs.exists()


def test_history_holds_what_is_finished_and_readable(tmp_path: Path) -> None:
    finish(stage(1), Store(tmp_path))
    finish(stage(2, kind="sft"), Store(tmp_path))
    finish(stage(3), Store(tmp_path))
    (Store(tmp_path).folder(stage(3)) / "manifest.json").write_text("{")
    Store(tmp_path).build_folder(stage(4))
    assert sorted((m.kind, m.timings["wall_s"]) for m in Store(tmp_path).history()) == [
        ("data", 1.5),
        ("sft", 1.5),
    ]
    assert Store(tmp_path / "nothing").history() == []
