"""Recorded votes and judgements that lie beside a checkout, laid out as their programs lay them out; tests on them are skipped where
they are not. They are not part of the repository or the wheel: the variable BENCH_TEST_DATA names their folder, else it is `shared` in
the checkout or beside it."""

from __future__ import annotations

import atexit
import functools
import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PLACES = (
    [Path(named)]
    if (named := os.environ.get("BENCH_TEST_DATA"))
    else [ROOT / "shared", ROOT.parent / "shared"]
)
OUTSIDE = next((place for place in PLACES if place.is_dir()), PLACES[-1])
FIXTURES, PUBLISHED_NUMBERS = OUTSIDE / "fixtures", OUTSIDE / "published"
ALPACA_EVAL, MT_BENCH = FIXTURES / "alpaca_eval", FIXTURES / "mt_bench"
REFERENCE, CALIBRATION = ALPACA_EVAL / "reference_outputs.json.gz", ALPACA_EVAL / "calibration.csv.gz"
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"

needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"no recorded judgements at {FIXTURES} (BENCH_TEST_DATA)"
)

# "LC reached here" of the fixtures' README: the package's length control with the fixtures' calibration.
MODELS = {
    "alpaca-7b": 5.800,
    "gpt-3.5-turbo-1106": 19.276,
    "claude-2.1": 25.259,
    "FuseChat-Llama-3.2-1B-Instruct": 25.268,
    "FuseChat-Llama-3.2-3B-Instruct": 54.051,
    "FuseChat-Gemma-2-9B-Instruct": 70.179,
    "text_davinci_001": 9.027,
    "gpt4_1106_preview": 50.000,
}

Rows = list[dict[str, Any]]


def read(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())


def expected(what: Path) -> dict[str, Any]:
    return read(what / "expected.json")


@functools.cache
def reference() -> Rows:
    return read(REFERENCE)


@functools.cache
def annotation_rows(model: str) -> Rows:
    """A model's annotations with both texts, as AlpacaEval writes them."""
    recorded = read(ALPACA_EVAL / "annotations" / f"{model}.json.gz")
    outputs = {row["instruction"]: row["output"] for row in model_outputs(model)}
    rows = []
    for row in recorded["rows"]:
        item = reference()[row["index"]]
        common = {name: item[name] for name in ("instruction", "dataset")}
        common |= {name: recorded[name] for name in ("annotator", "generator_1", "generator_2")}
        texts = {"output_1": item["output"], "output_2": outputs[item["instruction"]]}
        rows.append(common | texts | {name: value for name, value in row.items() if name != "index"})
    return rows


@functools.cache
def model_outputs(model: str) -> Rows:
    return read(ALPACA_EVAL / "model_outputs" / f"{model}.json.gz")


def lay_out(
    folder: Path,
    model: str,
    change: Callable[[Rows], Rows] = lambda rows: rows,
    name: str = "",
    zipped: bool = False,
) -> Path:
    """`MODEL/ANNOTATOR/annotations.json` and `MODEL/model_outputs.json`; `change` is made to the annotations' rows."""
    home, suffix = folder / (name or model), ".json.gz" if zipped else ".json"
    (home / ANNOTATOR).mkdir(parents=True)
    for path, rows in (
        (home / ANNOTATOR / "annotations", change(annotation_rows(model))),
        (home / "model_outputs", model_outputs(model)),
    ):
        content = json.dumps(rows).encode()
        Path(f"{path}{suffix}").write_bytes(gzip.compress(content) if zipped else content)
    return folder


@functools.cache
def laid_out() -> Path:
    """All recorded models in AlpacaEval's layout, half of them zipped; once for all tests of a process."""
    folder = Path(tempfile.mkdtemp(prefix="bench-alpaca-eval-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for number, model in enumerate(MODELS):
        lay_out(folder, model, zipped=number % 2 == 1)
    return folder
