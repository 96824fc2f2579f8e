"""`do=rescore`: the real command on recorded judgements and on the smoke sweep's own verdicts."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded import (
    ALPACA_EVAL,
    CALIBRATION,
    MODELS,
    MT_BENCH,
    REFERENCE,
    expected,
    laid_out,
    lay_out,
    needs_fixtures,
)
from tiny import ROOT, Ran, bench, copy_results, plans, smoke, smoke_folder

from bench.cli.compose import BadConfig
from bench.commands.rescore import rescore_files, show
from bench.config import Rescore
from bench.report.rows import Sweep, collect
from bench.store.keys import file_digest
from bench.store.store import FileFacts, Store, files_digest, read_manifest, write_manifest

Row = dict[str, str]


def asked(judgements: Path, **keys: Any) -> Rescore:
    defaults = {"reference_outputs": None, "calibration": None, "out": None, "max_unscored": 0.1}
    return Rescore(
        name="rescore",
        judgements=str(judgements),
        **{**defaults, **{name: _plain(value) for name, value in keys.items()}},
    )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def by_model(do: Rescore) -> dict[str, dict[str, Any]]:
    return {row["model"]: row for row in rescore_files(do).rows}


def rows_of(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def command(tmp_path: Path, *words: str) -> Ran:
    return bench("do=rescore", *words, results=tmp_path / "results")


def annotated(i: int, **other: Any) -> dict[str, Any]:
    names = {"generator_1": "b", "generator_2": "m", "annotator": "a"}
    return {
        "instruction": f"Say {i}",
        "output_1": "theirs",
        "output_2": f"ours {i}",
        "preference": 1.5,
        **names,
        **other,
    }


def output(i: int, text: str, model: str) -> dict[str, Any]:
    return {"instruction": f"Say {i}", "output": text, "generator": model}


def small_layout(folder: Path, rows: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> Path:
    """Annotations of one model, and a reference beside the folder."""
    (folder / "all" / "m" / "a").mkdir(parents=True)
    (folder / "all" / "m" / "a" / "annotations.json").write_text(json.dumps(rows))
    (folder / "all" / "m" / "model_outputs.json").write_text(json.dumps(outputs))
    (folder / "reference.json").write_text(json.dumps([output(i, "theirs", "other name") for i in range(6)]))
    return folder / "all"


OURS = [output(i, f"ours {i}", "m") for i in range(6)]


@pytest.mark.parametrize(
    ("rows", "outputs", "said"),
    [
        ([annotated(i) for i in range(6)], OURS, None),
        ([annotated(i) for i in range(6)], [row | {"generator": "renamed"} for row in OURS], None),
        (
            [annotated(i, output_2="rewritten since") for i in range(6)],
            OURS,
            "6 of 6 rows have another output_2 than the model_outputs.json",
        ),
        (
            [annotated(0), annotated(1, output_1="x")],
            OURS,
            "1 of 2 rows have another output_1 than the reference (first: row 1)",
        ),
        (
            [annotated(9)],
            OURS,
            "1 of 1 rows have an instruction that is not in the model_outputs.json (first: row 0)",
        ),
        (
            [annotated(8)],
            [output(8, "ours 8", "m")],
            "1 of 1 rows have an instruction that is not in the reference (first: row 0)",
        ),
        (
            [annotated(0, output_1="ours 0", output_2="theirs")],
            OURS,
            "another output_2 than the model_outputs.json",
        ),
    ],
)
def test_annotations_of_other_texts_than_the_files_beside_them_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], outputs: list[dict[str, Any]], said: str | None
) -> None:
    folder = small_layout(tmp_path, rows, outputs)
    (row,) = rescore_files(asked(folder, reference_outputs=tmp_path / "reference.json")).rows
    assert row["refused"] == (said is not None)
    assert row["win_rate"] == (50 if said is None else None)
    assert said is None or (said in row["reason"] and "annotations.json" in row["reason"]), row["reason"]


def test_texts_of_another_model_do_not_stand_in_for_those_that_rows_lack(tmp_path: Path) -> None:
    folder = small_layout(
        tmp_path,
        [annotated(i, output_2=None) for i in range(6)],
        [row | {"generator": "other"} for row in OURS],
    )
    with pytest.raises(
        BadConfig,
        match="row 0: the row has no output_2, and the file with these outputs is of another model, the text 'other'",
    ):
        rescore_files(asked(folder))


def test_repeated_rows_are_counted_under_the_table(tmp_path: Path) -> None:
    found = rescore_files(
        asked(small_layout(tmp_path, [annotated(i) for i in range(6)] + [annotated(0, preference=2)], OURS))
    )
    assert found.rows[0]["n_repeated"] == 1
    assert any(
        note.startswith("Some rows repeat an instruction: m 1. The package counts each")
        for note in found.notes
    )


# AlpacaEval's layout --------------------------------------------------------------------------------------------------


@needs_fixtures
def test_the_command_writes_the_packages_columns_beside_ours(tmp_path: Path) -> None:
    out = tmp_path / "board.csv"
    ran = command(
        tmp_path,
        f"judgements={laid_out()}",
        f"reference_outputs={REFERENCE}",
        f"calibration={CALIBRATION}",
        f"out={out}",
    )
    assert ran.code == 0, ran.err
    rows, published = {row["model"]: row for row in rows_of(out)}, expected(ALPACA_EVAL)["models"]
    assert list(rows) == sorted(MODELS)
    for model, row in rows.items():
        for name in (
            "win_rate",
            "standard_error",
            "n_wins",
            "n_wins_base",
            "n_draws",
            "n_total",
            "discrete_win_rate",
        ):
            assert float(row[name]) == pytest.approx(published[model][name], abs=1e-6), (model, name)
        assert float(row["length_controlled_winrate"]) == pytest.approx(MODELS[model], abs=0.001)
        assert float(row["lc_win_rate_low"]) <= float(row["lc_win_rate"]) <= float(row["lc_win_rate_high"])
        assert f"{float(row['lc_win_rate']):.2f} [" in ran.out
        assert len(row["calibration"]) == 16
    assert {row["n_unscored"] for model, row in rows.items() if model != "text_davinci_001"} == {"0"}
    davinci = rows["text_davinci_001"]
    assert (davinci["n_total"], davinci["n_unscored"]) == ("803", "2")
    assert float(davinci["lc_win_rate"]) == pytest.approx(
        6.36, abs=0.01
    )  # by item; by position the package says 9.03
    assert not (tmp_path / "results").exists()


@needs_fixtures
def test_without_a_calibration_the_official_rate_says_what_it_lacks_and_ours_is_there() -> None:
    row = by_model(asked(laid_out(), reference_outputs=REFERENCE))["FuseChat-Llama-3.2-3B-Instruct"]
    assert row["length_controlled_winrate"] is None and "calibration=FILE" in row["reason"]
    assert row["equal_length_win_rate"] == pytest.approx(54.0, abs=0.05)
    assert row["calibration"] is None and "lc_win_rate" not in row
    assert row["win_rate"] == pytest.approx(51.2967, abs=1e-4)


@needs_fixtures
def test_fitted_difficulties_come_from_the_other_models(tmp_path: Path) -> None:
    """Each model's own calibration, hence its own digest; a model alone has none."""
    for model in ("alpaca-7b", "claude-2.1", "FuseChat-Llama-3.2-3B-Instruct"):
        lay_out(tmp_path, model)
    rows = by_model(asked(tmp_path, calibration="fitted"))
    assert len({row["calibration"] for row in rows.values()}) == 3
    assert rows["FuseChat-Llama-3.2-3B-Instruct"]["lc_win_rate"] == pytest.approx(54, abs=1)
    alone = by_model(asked(lay_out(tmp_path / "alone", "alpaca-7b"), calibration="fitted"))["alpaca-7b"]
    assert alone["lc_win_rate"] is None and "no other model has this annotator" in alone["reason"]


@needs_fixtures
def test_failed_votes_are_counted_and_too_many_refuse_the_model(tmp_path: Path) -> None:
    def fail(every: int) -> Any:
        return lambda rows: [
            row | {"preference": None} if i % every == 0 else row for i, row in enumerate(rows)
        ]

    lay_out(tmp_path, "claude-2.1", fail(20), name="some")
    lay_out(tmp_path, "claude-2.1", fail(4), name="many")
    lay_out(tmp_path, "claude-2.1", lambda rows: rows[:-3], name="cut")
    found = by_model(asked(tmp_path, reference_outputs=REFERENCE))
    assert (found["some"]["n_unscored"], found["some"]["n_total"]) == (41, 764)
    assert (found["cut"]["n_unscored"], found["cut"]["n_total"]) == (3, 802)
    assert (
        found["many"]["refused"]
        and found["many"]["win_rate"] is found["many"]["equal_length_win_rate"] is None
    )
    assert (
        found["many"]["reason"]
        == "win_rate: 202 of 805 verdicts (25%) have no score, more than max_unscored=0.1, so there is no mean"
    )
    allowed = rescore_files(asked(tmp_path, max_unscored=0.3))
    assert not allowed.refused and all(row["win_rate"] > 0 for row in allowed.rows)


@needs_fixtures
def test_a_repeated_item_counts_once_for_us(tmp_path: Path) -> None:
    lay_out(tmp_path, "claude-2.1", lambda rows: [rows[0] | {"preference": 2.0}, *rows])
    row = by_model(asked(tmp_path))["claude-2.1"]
    assert (row["n_repeated"], row["n_total"]) == (1, 806)
    alone = by_model(asked(laid_out()))["claude-2.1"]
    assert row["equal_length_win_rate"] == alone["equal_length_win_rate"] is not None


@needs_fixtures
def test_recorded_models_are_compared_item_by_item(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Officially 25.3, 19.3 and 5.8. At equal length without a calibration two change places, and are not told apart."""
    for model in ("alpaca-7b", "claude-2.1", "gpt-3.5-turbo-1106"):
        lay_out(tmp_path / "models", model)
    do = asked(tmp_path / "models", out=tmp_path / "rows.csv")
    found = rescore_files(do)
    rows = {row["model"]: row for row in found.rows}
    for pair in found.pairs:
        first, second = (rows[pair[side]][pair["number"]] for side in ("first", "second"))
        assert first - second == pytest.approx(pair["value"], abs=1e-6) and first > second
        assert pair["low"] < pair["value"] < pair["high"] and pair["n_items"] == 805
    numbers = [pair["number"] for pair in found.pairs]
    assert numbers == ["win_rate"] * 3 + ["equal_length_win_rate"] * 3
    assert max(pair["p_holm"] for pair in found.pairs[:3]) < 1e-6
    first = found.pairs[3]
    assert (first["first"], first["second"]) == ("gpt-3.5-turbo-1106", "claude-2.1") and first["p_holm"] > 0.1
    assert show(found, do) and "Differences between models" in capsys.readouterr().out
    written = rows_of(tmp_path / "rows_pairs.csv")
    assert [float(row["value"]) for row in written] == [pair["value"] for pair in found.pairs]


@needs_fixtures
def test_recorded_ratings_and_pairs_are_compared_by_question() -> None:
    """SE of a paired difference of questions' means over 80 questions; a question with an unread verdict is left out."""
    found = rescore_files(asked(MT_BENCH / "model_judgment" / "orpo_gpt-4_single.jsonl.gz"))
    rows = {row["model"]: row["rating"] for row in found.rows}
    assert len(found.pairs) == 6 and {pair["n_items"] for pair in found.pairs} == {80}
    for pair in found.pairs:
        assert pair["value"] == pytest.approx(rows[pair["first"]] - rows[pair["second"]])
        assert pair["p_holm"] >= pair["p"] and 0.15 < pair["standard_error"] < 0.35
    (pair,) = rescore_files(asked(MT_BENCH / "model_judgment" / "phi3_gpt-4_pair.jsonl.gz")).pairs
    assert (pair["first"], pair["n_items"], pair["n_dropped"]) == ("phi-3-dpo", 73, 2)
    assert pair["value"] == pytest.approx(2 * 0.513699 - 1, abs=2e-6)


# FastChat's files -----------------------------------------------------------------------------------------------------


@needs_fixtures
@pytest.mark.parametrize("file", ["orpo_gpt-4_single", "phi3_gpt-4_single", "errors_gpt-4_single"])
def test_single_judgements_give_fastchats_averages_and_ours_beside(
    tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rescore_files(asked(MT_BENCH / "model_judgment" / f"{file}.jsonl.gz", out=tmp_path / "rows.csv"))
    show(found, asked(tmp_path, out=tmp_path / "rows.csv"))
    printed, wanted = capsys.readouterr().out, expected(MT_BENCH)[file]["models"]
    for row in rows_of(tmp_path / "rows.csv"):
        theirs = wanted[row["model"]]
        for name in ("turn1", "turn2", "average"):
            assert float(row[name]) == pytest.approx(theirs[name], abs=1e-4)
        assert f" {theirs['average']:.4f} " in printed
        assert float(row["rating"]) == pytest.approx(theirs["average_keeping_last_row_per_key"], abs=1e-4)
        assert 0.2 < float(row["rating_se"]) < 0.4  # clustered by question
        assert [int(row[name]) for name in ("rows", "failed", "duplicate_keys")] == [
            theirs[name] for name in ("rows", "failed", "duplicate_keys")
        ]
        assert (f"{row['model']} {theirs['duplicate_keys']}" in printed) == (theirs["duplicate_keys"] > 0)


@needs_fixtures
def test_a_file_with_three_quarters_failures_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "granite.csv"
    ran = command(
        tmp_path, f"judgements={MT_BENCH / 'model_judgment' / 'granite_gpt-4_single.jsonl.gz'}", f"out={out}"
    )
    assert ran.code == 3
    assert (
        "REFUSED granite-7b-lab: 122 of 160 verdicts (76%) have no score" in ran.out and "7.4" not in ran.out
    )
    (row,) = rows_of(out)
    assert row["rating"] == "" and row["failed"] == "120" and "average" not in row


@needs_fixtures
def test_pairwise_judgements_give_fastchats_rates() -> None:
    rows = by_model(asked(MT_BENCH / "model_judgment" / "phi3_gpt-4_pair.jsonl.gz"))
    dpo = rows["phi-3-dpo"]
    assert dpo["win_rate_adjusted"] == pytest.approx(0.513699, abs=1e-6) == dpo["pairwise_win_rate"]
    assert [dpo[name] for name in ("win", "loss", "tie", "rows", "failed", "order_flips")] == [
        20,
        18,
        35,
        75,
        2,
        18,
    ]
    assert dpo["pairwise_win_rate_low"] == pytest.approx(1 - rows["phi-3"]["pairwise_win_rate_high"])


# The sweep's own verdicts ---------------------------------------------------------------------------------------------


def test_a_sweep_is_rescored_from_the_store_without_a_judge_and_nothing_moves(tmp_path: Path) -> None:
    results = copy_results(smoke(), tmp_path / "results")
    before = {path: path.stat().st_mtime_ns for path in (results / "store").rglob("*") if path.is_file()}
    ran = bench("+sweep=smoke", "do=rescore", f"out={tmp_path / 'out.csv'}", results=results)
    assert ran.code == 0, ran.err
    assert "5 of 5 cells were scored again" in ran.out and "changed: " not in ran.out
    assert {
        path: path.stat().st_mtime_ns for path in (results / "store").rglob("*") if path.is_file()
    } == before
    stored, now = rows_of(smoke().results / "sweeps" / "smoke" / "table.csv"), rows_of(tmp_path / "out.csv")
    assert [
        {k: v for k, v in row.items() if k not in ("row", "differs")} | {"calibration": ""} for row in stored
    ] == now  # of the table


def test_numbers_that_moved_are_named_and_cells_without_inputs_stay_as_they_were(tmp_path: Path) -> None:
    """A stored score from other code (here: edited, with its manifest), one that is gone, and verdicts that are gone."""
    results = copy_results(smoke(), tmp_path / "results")
    store, cells = Store(results / "store"), plans("+sweep=smoke")
    edited, gone, unjudged = cells[1:4]
    folder = store.folder(edited.score)
    result = json.loads((folder / "result.json").read_text())
    right = result["metrics"]["win_rate"]
    result["metrics"] |= {"win_rate": 0.75}
    (folder / "result.json").write_text(json.dumps(result))
    manifest = read_manifest(folder / "manifest.json")
    of_result = FileFacts(file_digest(folder / "result.json"), (folder / "result.json").stat().st_size, 0)
    files = {"result.json": of_result}
    write_manifest(folder / "manifest.json", replace(manifest, files=files, digest=files_digest(files)))
    for stage in (gone.score, unjudged.roles["preference_verdicts"]):
        for path in store.folder(stage).iterdir():
            path.unlink()
        store.folder(stage).rmdir()
    ran = bench("+sweep=smoke", "do=rescore", f"out={tmp_path / 'out.csv'}", results=results)
    assert ran.code == 3 and "was deleted from the store. Run the sweep again to compute it" in ran.out, (
        ran.err
    )
    assert f"{edited.name} changed: win_rate 0.75 -> {right:.6g}" in ran.out
    assert f"{gone.name} has no stored numbers to compare with" in ran.out
    assert (
        f"{unjudged.name} shows its stored numbers, because the store has no preference verdicts" in ran.out
    )
    rows = {row["name"]: row for row in rows_of(tmp_path / "out.csv")}
    assert float(rows[edited.name]["win_rate"]) == right
    assert all(rows[cell.name]["status"] == "done" for cell in cells)


def test_a_calibration_by_item_id_reaches_the_sweeps_length_control(tmp_path: Path) -> None:
    cell = plans("+sweep=smoke")[0]
    lines = (smoke_folder(cell.roles["preference_items"]) / "items.jsonl").read_text().splitlines()
    items = [json.loads(line)["id"] for line in lines]
    path = tmp_path / "difficulty.csv"
    path.write_text(
        "item_id,instruction_difficulty\n" + "".join(f"{item},{i % 5 - 2}\n" for i, item in enumerate(items))
    )
    ran = bench(
        "+sweep=smoke",
        "do=rescore",
        f"calibration={path}",
        f"out={tmp_path / 'o.csv'}",
        results=smoke().results,
    )
    assert ran.code == 0, ran.err
    stored = {row["name"]: row for row in rows_of(smoke().results / "sweeps" / "smoke" / "table.csv")}
    for row in rows_of(tmp_path / "o.csv"):
        assert (
            row["win_rate"] == stored[row["name"]]["win_rate"]
            and row["lc_win_rate"] != stored[row["name"]]["equal_length_win_rate"]
        )
        assert "equal_length_win_rate" not in row
        assert len(row["calibration"]) == 16
    path.write_text(f"item_id,instruction_difficulty\n{items[0]},1\n")
    ran = bench(
        "+sweep=smoke",
        "do=rescore",
        f"calibration={path}",
        f"out={tmp_path / 'o.csv'}",
        results=smoke().results,
    )
    assert f"has no difficulty for {len(items) - 1} of {len(items)} items" in ran.out
    assert {row["lc_win_rate"] for row in rows_of(tmp_path / "o.csv") if "lc_win_rate" in row} <= {""}


def test_a_cells_numbers_are_the_means_of_their_items() -> None:
    sweep = Sweep("smoke", "", "+sweep=smoke", plans("+sweep=smoke"))
    rows = collect(sweep, Store(smoke().results / "store"), {})
    means = {
        (row.cell.name, name): statistics.fmean(v for v in items.values() if v is not None)
        for row in rows
        for name, items in row.by_item.items()
    }
    assert {name for _, name in means} >= {"equal_length_win_rate", "rating", "reward_accuracy", "kl"}
    for row in rows:
        for name in row.by_item:
            assert row.metrics[name] == pytest.approx(means[row.cell.name, name])
    families = {
        (row["number"], row["family"])
        for row in rows_of(smoke().results / "sweeps" / "smoke" / "other_numbers.csv")
    }
    assert ("rating", "start") in families and ("kl", "pairs") in families and ("kl", "start") not in families


def test_a_worlds_table_says_that_its_truth_already_prices_length() -> None:
    table = (smoke().results / "sweeps" / "smoke" / "table.md").read_text()
    assert "equal-length %" in table and "LC win rate %" not in table
    assert "equal-length % removes that part too, so it may disagree with the win rate" in table
    assert "do not compare it with published LC win rates" in table


def test_cells_lie_in_alpacaevals_layout_and_are_rescored_to_the_same_rates(tmp_path: Path) -> None:
    """What a run exports of its cells goes in again: win rates of result.json in percent, ratings as they were."""
    for row in by_model(asked(smoke().results / "cells")).values():
        metrics = json.loads((smoke().results / "cells" / row["model"] / "result.json").read_text())[
            "metrics"
        ]
        assert row["win_rate"] == pytest.approx(100 * metrics["win_rate"], abs=1e-9)
        name = "equal_length_win_rate"
        assert row[name] == pytest.approx(100 * metrics[name], abs=1e-9)
        assert row["avg_length"] == int(metrics["mean_length"])
        single = smoke().results / "cells" / row["model"] / "gold_rating_single.jsonl"
        rated = by_model(asked(single))[row["model"]]
        assert (rated["rating"], rated["rating_se"]) == pytest.approx(
            (metrics["rating"], metrics["rating_se"])
        )


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["judgements=/no/where"],
            "judgements must be a folder in AlpacaEval's layout or a file of FastChat's judgements (.jsonl), got",
        ),
        (
            ["reference_outputs=/no/where"],
            "reference_outputs must be a file, got /no/where: no such file (reference_outputs=/no/where",
        ),
        (["calibration=/no/where"], "calibration must be a file, got /no/where: no such file"),
        (["out=/no/where/x.csv"], "out must be a CSV file in an existing folder, got /no/where/x.csv"),
        (["judgements=.", "method=dpo"], "judgements=. are rescored without cells: leave out method=dpo"),
        (["do.max_unscored=2"], "do.max_unscored must be <= 1, got 2"),
        (["do.judgement=x"], "did you mean do.judgements?"),
    ],
)
def test_what_cannot_be_rescored_is_refused_before_a_run(problems: Any, words: list[str], says: str) -> None:
    assert any(text.startswith(says) or says in text for text in problems("do=rescore", *words)), problems(
        "do=rescore", *words
    )


def test_all_that_is_wrong_is_said_at_once_and_a_key_of_another_verb_is_unknown(
    problems: Any, tmp_path: Path
) -> None:
    assert (
        len(problems("do=rescore", "judgements=/no/where", "calibration=/no/file", "out=/no/where/x.csv"))
        == 3
    )
    assert problems("judgements=x") == [
        "unknown key 'do.judgements' (judgements=x on the command line); known in do: name"
    ]
    (tmp_path / "j.jsonl").write_text("")
    words = ("do=rescore", f"judgements={tmp_path / 'j.jsonl'}", "calibration=fitted")
    assert ["calibration is only read for AlpacaEval's" in text for text in problems(*words)] == [True]


@needs_fixtures
def test_a_calibration_of_another_set_is_bad_config(tmp_path: Path) -> None:
    (tmp_path / "of_another_set.csv").write_text("index,instruction_difficulty\n0,0.5\n1,0.1\n")
    with pytest.raises(BadConfig, match="numbers 2 items by `index`, but there are 805 items here"):
        rescore_files(
            asked(
                ALPACA_EVAL,
                reference_outputs=str(REFERENCE),
                calibration=str(tmp_path / "of_another_set.csv"),
            )
        )


def test_files_that_cannot_be_read_are_bad_config_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text("{}\n")
    for path, says in (
        ("empty", "expected MODEL/ANNOTATOR/annotations.json"),
        ("bad.jsonl", "expected an object with question_id"),
    ):
        with pytest.raises(BadConfig, match=says):
            rescore_files(asked(tmp_path / path))
    ran = command(tmp_path, f"judgements={tmp_path / 'bad.jsonl'}")
    assert ran.code == 2 and "Traceback" not in ran.err and "bad.jsonl:1" in ran.err


def test_rescoring_loads_nothing_heavy(tmp_path: Path) -> None:
    """`datasets` comes with the alpaca-eval package, and only where its numbers are asked for."""
    rows = [
        {
            "question_id": 81,
            "model": "m",
            "judge": ["j", "p"],
            "user_prompt": "",
            "judgment": "[[8]]",
            "score": 8,
            "turn": 1,
        }
    ]
    (tmp_path / "j.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    annotation = {
        "instruction": "a",
        "output_1": "x",
        "generator_1": "b",
        "output_2": "yy",
        "generator_2": "m",
        "annotator": "j",
    }
    folder = tmp_path / "ae" / "m" / "j"
    folder.mkdir(parents=True)
    (folder / "annotations.json").write_text(
        json.dumps([annotation | {"instruction": f"{i}", "preference": 1 + i % 2} for i in range(5)])
    )
    for path, allowed in (("j.jsonl", set()), ("ae", {"datasets"})):
        code = f"""
import sys
from bench.config import Rescore
from bench.commands.rescore import rescore_files, show
do = Rescore(name="rescore", judgements={str(tmp_path / path)!r}, reference_outputs=None, calibration=None, out=None, max_unscored=0.1)
show(rescore_files(do), do)
print(sorted({{"torch", "transformers", "trl", "vllm", "peft", "accelerate", "wandb", "datasets"}} & set(sys.modules)))
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert set(json.loads(done.stdout.splitlines()[-1].replace("'", '"'))) == allowed
