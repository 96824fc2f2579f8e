"""`bench.load`: frames that agree with the tables of the same sweep, and errors that speak; the notebook runs."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tiny import ROOT, copy_results, smoke

import bench
from bench.cli.compose import BadConfig
from bench.commands.notebook import COMPLETIONS, CURVES, FINDINGS, PAIRS, VERDICTS, LoadedSweep
from bench.store.store import files_digest, read_manifest, write_manifest


@pytest.fixture(scope="module")
def loaded() -> LoadedSweep:
    return bench.load("smoke", results=smoke().results)


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(smoke().results / "sweeps/smoke" / name)


def test_importing_bench_loads_nothing_and_load_no_torch() -> None:
    code = f"""
import sys, bench
print(sorted({{"pandas", "hydra", "pydantic", "torch"}} & set(sys.modules)))
bench.load("smoke", results={str(smoke().results)!r})
print(sorted({{"torch", "transformers", "trl", "wandb", "datasets", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_cells_and_pairs_are_those_of_the_files(loaded: LoadedSweep) -> None:
    cells, pairs = read("table.csv"), read("pairs.csv")
    assert list(loaded.cells.columns) == list(cells.columns)
    assert (
        list(loaded.pairs.columns) == list(pairs.columns) and list(PAIRS) == list(pairs.columns)[: len(PAIRS)]
    )
    for name in ("win_rate", "kl", "mean_length", "reward_accuracy_n"):
        pd.testing.assert_series_equal(loaded.cells[name], cells[name], check_dtype=False)
    pd.testing.assert_series_equal(loaded.pairs.p_holm, pairs.p_holm, check_dtype=False)


def test_the_table_has_the_numbers_of_table_md(loaded: LoadedSweep) -> None:
    lines = (smoke().results / "sweeps/smoke/table.md").read_text(encoding="utf-8").splitlines()
    head, _, *rows = [
        [text.strip() for text in line.strip("|").split("|")] for line in lines if line.startswith("|")
    ]
    assert len(rows) == len(loaded.table)
    for row, texts in zip(loaded.table.itertuples(), rows, strict=True):
        shown = dict(zip(head, texts, strict=True))
        assert shown["method"].split()[0] == row.method and shown["row"] == str(row.row)
        assert shown["win rate %"] == (
            f"{100 * row.win_rate:.1f} [{100 * row.win_rate_low:.1f}, {100 * row.win_rate_high:.1f}]"
            + " *" * row.among_best
        )
        assert shown["length"] == f"{row.mean_length:.1f}"
        assert ("†" in shown["method"]) == (row.differs != "")
        if row.method == "start":
            assert shown["vs start"] == "-" and pd.isna(row.vs_start) and pd.isna(row.kl)
        else:
            p = shown["p (of these trainings)"]
            assert p == f"{row.vs_start_p_holm:.4f}" and shown["KL nats"] == f"{row.kl:.2f}"
            assert shown["vs start"].startswith(f"{100 * row.vs_start:+.1f} [{100 * row.vs_start_low:+.1f}, ")


def test_curves_stand_over_preference_rows_seen_whatever_a_step_holds(loaded: LoadedSweep) -> None:
    """117 pairs in one epoch: steps of 32 pairs for DPO, of 16 for KTO, and a shorter last one for both."""
    assert list(loaded.curves.columns)[: len(CURVES)] == list(CURVES)
    seen = {key: list(curve.examples) for key, curve in loaded.curves.groupby(["method", "beta"])}
    assert seen["dpo", 0.1] == [32, 64, 96, 117]
    assert seen["kto", 0.1] == [16, 32, 48, 64, 80, 96, 112, 117]
    assert loaded.curves.loss.notna().all() and (loaded.curves.loss > 0).all()


def test_each_completion_has_its_verdict(loaded: LoadedSweep) -> None:
    assert tuple(loaded.completions.columns) == COMPLETIONS and tuple(loaded.verdicts.columns) == VERDICTS
    keys = ["key", "evaluation", "manner", "item_id", "turn"]
    both = loaded.completions.merge(
        loaded.verdicts, on=keys, how="outer", indicator=True, suffixes=("", "_v")
    )
    assert (both["_merge"] == "both").all() and len(both) == len(loaded.completions) == 5 * (64 + 2 * 16)
    assert (both.completion.str.len() == both.policy_length).all()
    scored = both[both.manner == "preference"].groupby("key").preference.mean()
    cells = loaded.cells.set_index("key")
    pd.testing.assert_series_equal(scored.sort_index(), cells.win_rate.sort_index(), check_names=False)
    assert both[both.manner == "rating"].rating.between(1, 10).all()


def test_findings_are_those_of_the_cells(loaded: LoadedSweep) -> None:
    assert tuple(loaded.findings.columns) == FINDINGS
    written = {
        path.parent.name: [one["says"] for one in json.loads(path.read_text(encoding="utf-8"))]
        for path in smoke().results.glob("cells/*/findings.json")
    }
    assert {name: list(some.says) for name, some in loaded.findings.groupby("name")} == {
        name: says for name, says in written.items() if says
    }


def test_a_store_without_facts_has_curves_without_examples(tmp_path: Path) -> None:
    results = copy_results(smoke(), tmp_path / "results")
    for path in results.glob("store/train/*/manifest.json"):
        manifest = read_manifest(path)
        files = {name: file for name, file in manifest.files.items() if name != "facts.json"}
        write_manifest(path, dataclasses.replace(manifest, files=files, digest=files_digest(files)))
        path.with_name("facts.json").unlink()
    curves = bench.load("smoke", results=results).curves
    assert len(curves) == 24 and curves.examples.isna().all() and curves.step.notna().all()


def test_the_rich_view_shows_the_table_and_escapes_texts(
    loaded: LoadedSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = loaded._repr_html_()
    assert shown.count("<tr>") == 6 and "5 of 5 cells are done" in shown and "5 of 5 cells" in repr(loaded)
    monkeypatch.setattr(LoadedSweep, "question", "<script>alert(1)</script> & more")
    shown = loaded._repr_html_()
    assert "<script" not in shown and html.escape("<script>alert(1)</script> & more") in shown
    assert set(re.findall(r"<(\w+)", shown)) == {
        *("h3", "p", "code", "table", "thead", "tbody", "tr", "th", "td"),
        *("details", "summary", "ul", "li", "strong"),
    }


@pytest.mark.parametrize(
    ("sweep", "results", "says"),
    [
        ("nope", "", "no sweep 'nope' in {}/sweeps; there: smoke"),
        ("../x", "", "no sweep '../x' in {}/sweeps; there: smoke"),
        ("smoke", "/gone", "no folder {}/gone: set results= to the results of a run"),
        ("smoke", "/sweeps", "no store in {}/sweeps: set results= to the folder where smoke ran"),
        ("kto_beta", "", "no cell of kto_beta is in {}/store; there: smoke."),
    ],
)
def test_what_cannot_be_loaded_says_what_is_there(sweep: str, results: str, says: str) -> None:
    place = smoke().results
    with pytest.raises(BadConfig) as error:
        bench.load(sweep, results=f"{place}{results}")
    assert str(error.value).startswith(says.format(place))


def test_the_results_folder_is_that_of_the_environment(
    loaded: LoadedSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_RESULTS", str(smoke().results))
    assert bench.load("smoke").table.equals(loaded.table)


def test_the_notebook_runs_the_smoke_sweep_and_draws_two_charts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "sweeps/first_sweep.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # nothing of a machine is committed
    for name, value in {
        "BENCH_RESULTS": str(smoke().results),  # the stages are there: the command takes them from the store
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "IPYTHONDIR": str(tmp_path),
        "JUPYTER_RUNTIME_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    charts = [output.data["image/svg+xml"] for output in outputs if "image/svg+xml" in output.get("data", {})]
    assert len(charts) == 2
    assert (
        charts[0].count('aria-roledescription="point"')
        == charts[0].count('aria-roledescription="rule mark"')
        == 5
    )
    assert charts[1].count('aria-roledescription="line mark"') == 4
    assert any("completion_3" in output.get("data", {}).get("text/html", "") for output in outputs)
