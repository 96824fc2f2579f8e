"""bundle.json and manifests that others sent, on generated files: a refusal that names the file in one line, or the very values that stand
in it; never a traceback of another kind.

`BENCH_FUZZ_EXAMPLES=20000 pytest -n 0 tests/commands/test_bundle_fuzzed.py` looks longer; the plain run looks at a few of each.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_foreign_files import ODD, parts, spoilt
from tiny import make_model, make_preferences

from bench.cli.compose import BadConfig, CheckedCommand, open_command
from bench.commands.bundle import bundle_facts, nameless, read
from bench.commands.planned_sweep import sweep_of
from bench.store.keys import hash_long
from bench.store.store import Manifest, Store, files_digest, read_manifest, write_manifest
from bench.text_files import printable

EXAMPLES = int(os.environ.get("BENCH_FUZZ_EXAMPLES", "60"))
QUICK = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)
PATHS = st.sampled_from(
    [
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "",
        ".",
        "~",
        "store",
        "inputs/a b",
        "x\ny",
        "C:\\x",
        "\u202e",
        "\0",
    ]
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> list[CheckedCommand]:
    """Commands over cells of the world, of a user's files, and judged by several."""
    place = tmp_path_factory.mktemp("sent")
    model, rows = (
        make_model(place / "model"),
        make_preferences(place / "rows.jsonl", paired=True, messages=False),
    )
    local = [
        "model=local",
        f"model.path={model}",
        "data=local",
        f"data.path={rows}",
        "judge=none",
        "method=dpo,kto",
        "adapter=lora",
    ]
    return [open_command(["+sweep=smoke", "tracker=none"]), open_command([*local, "tracker=none"])]


def change(data: st.DataObject, content: Any) -> Any:
    """Content with one to three of its parts spoilt."""
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([(), *parts(content)]))
        how = data.draw(
            st.sampled_from(["put", "put", "list", "object", *(["out", "another"] if path else [])])
        )
        content = spoilt(content, path, how, data.draw(ODD | PATHS))
    return content


def holds(read: Any, written: Any) -> bool:
    """Whether what was read is what was written; settings that nobody wrote have their defaults."""
    if isinstance(written, dict):
        return isinstance(read, dict) and all(
            name in read and holds(read[name], part) for name, part in written.items()
        )
    return read == written and isinstance(read, bool) == isinstance(written, bool)


@QUICK
@given(data=st.data())
def test_a_bundle_is_refused_by_its_file_or_read_as_it_stands(
    opened: list[CheckedCommand], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    asked = opened[data.draw(st.integers(0, 1))]
    folder = tmp_path_factory.getbasetemp() / "bundle"
    folder.mkdir(exist_ok=True)
    content = json.loads(json.dumps(bundle_facts(asked, {}, [], Store(folder / "store"))))
    content["cells"] = content["cells"][:2]
    content = change(data, content)
    (folder / "bundle.json").write_text(json.dumps(content))
    try:
        found = read(folder, asked)
        planned = sweep_of(found)
    except BadConfig as error:
        for line in error.problems:
            assert str(folder / "bundle.json") in line and line == printable(line), line
        return
    for cell, written in zip(found.cells, content["cells"], strict=True):
        assert holds(nameless(cell.model_dump(mode="json")), written["config"])
    assert len(found.expectations) == len(content["expectations"])
    assert found.title == " ".join(content["title"].splitlines()) and list(found.axes) == content["axes"]
    for cell, sources in zip(content["cells"], found.sources, strict=True):
        for role, source in cell["sources"].items():
            if source and "path" in source:
                assert (
                    getattr(sources, role).path == folder / source["path"]
                    and getattr(sources, role).digest == source["digest"]
                )
    assert planned.cells


@pytest.mark.parametrize("name", ["cells", "expectations", "axes"])
@pytest.mark.parametrize("value", ["", {}, None, 0])
def test_lists_of_a_bundle_are_lists(
    name: str, value: Any, opened: list[CheckedCommand], tmp_path: Path
) -> None:
    told = json.loads(json.dumps(bundle_facts(opened[0], {}, [], Store(tmp_path / "store"))))
    (tmp_path / "bundle.json").write_text(json.dumps(told | {name: value}))
    with pytest.raises(
        BadConfig, match=rf"bundle.json cannot be read by this version of bench: {name} must be a list, got"
    ):
        read(tmp_path, opened[0])


@QUICK
@given(data=st.data(), forged=st.booleans(), old=st.booleans())
def test_a_manifest_is_refused_by_its_file_or_read_as_it_stands(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, forged: bool, old: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "data" / ("0" * 16) / "manifest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {"a.jsonl": {"sha256": "0" * 64, "size": 3, "mtime_ns": 1}}
    parts_of_it: dict[str, Any] = {
        "kind": "data",
        "key": path.parent.name,
        "version": 1,
        "settings": {"a": 1, "b": [0.5, None]},
    }
    parts_of_it |= {
        "inputs": {"model": {"key": "1" * 16, "digest": "2"}},
        "files": {},
        "recorded_files": {},
        "digest": files_digest({}),
    }
    parts_of_it |= {"counts": {"rows": 3}, "timings": {"wall_s": 0.1}, "recorded": {"revision": "x"}}
    write_manifest(path, Manifest(**parts_of_it))
    content = change(data, {**json.loads(path.read_text()), "files": files})
    if isinstance(content, dict):
        content.pop("checksum", None)
        if old:
            content.pop("format", None)
        if forged:
            try:
                content["checksum"] = hash_long(content)
            except (TypeError, ValueError):
                content["checksum"] = "0"
    path.write_text(json.dumps(content))
    try:
        read_manifest(path)
    except ValueError as error:
        assert str(path) in str(error) and str(error) == printable(str(error)), error
    else:
        raise AssertionError("these settings do not make this key")
