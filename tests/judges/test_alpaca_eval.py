"""AlpacaEval's files and numbers: parity with the package and the published figures, both directions, and what files may lack."""

from __future__ import annotations

import csv
import functools
import gzip
import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import (
    ALPACA_EVAL,
    ANNOTATOR,
    CALIBRATION,
    MODELS,
    REFERENCE,
    annotation_rows,
    expected,
    laid_out,
    lay_out,
    needs_fixtures,
)

from bench.judges.formats import alpaca_eval
from bench.judges.formats.alpaca_eval import (
    Annotations,
    Outputs,
    find_annotations,
    find_outputs,
    item_id,
    official_lc_win_rate,
    official_win_rate,
    read_annotations,
    read_calibration,
    read_outputs,
    write_annotations,
    write_outputs,
)
from bench.records import Completion, Item, Verdict
from bench.stats.estimates import Unmeasured
from bench.stats.length_control import Calibration, LcWinRate, lc_of_verdicts
from bench.text_files import BadFile


@functools.cache
def reference() -> Outputs:
    return read_outputs(REFERENCE)


@functools.cache
def calibration() -> Calibration:
    return read_calibration(CALIBRATION, reference().items)


@functools.cache
def recorded(model: str) -> Annotations:
    path = next(path for path in find_annotations(laid_out()) if path.parent.parent.name == model)
    return read_annotations(path)


def lc(verdicts: list[Verdict], seed: int = 0) -> LcWinRate:
    found = lc_of_verdicts(verdicts, calibration(), np.random.default_rng(seed))
    assert isinstance(found, LcWinRate)
    return found


def numbers(found: dict[str, float] | Unmeasured) -> dict[str, float]:
    assert isinstance(found, dict), found
    return found


# Parity ---------------------------------------------------------------------------------------------------------------


@needs_fixtures
@pytest.mark.parametrize("model", MODELS)
def test_official_numbers_are_those_published(model: str) -> None:
    """Win rate, error and counts to 1e-6 of the leaderboard; LC to 0.001 of what the package makes of the same calibration."""
    published, annotations = expected(ALPACA_EVAL)["models"][model], recorded(model)
    plain = numbers(official_win_rate(annotations))
    for name in (
        "win_rate",
        "standard_error",
        "n_wins",
        "n_wins_base",
        "n_draws",
        "n_total",
        "discrete_win_rate",
    ):
        assert plain[name] == pytest.approx(published[name], abs=1e-6), name
    controlled = numbers(official_lc_win_rate(annotations, CALIBRATION))
    assert controlled["length_controlled_winrate"] == pytest.approx(MODELS[model], abs=0.001)
    assert controlled["length_controlled_winrate"] == pytest.approx(
        published["length_controlled_winrate"], abs=0.1
    )
    outputs = read_outputs(find_outputs(laid_out() / model / ANNOTATOR / "annotations.json"))  # type: ignore[arg-type]
    # two answers are missing: the leaderboard counted them as empty, the package leaves them out
    assert outputs.avg_length == (297 if model == "text_davinci_001" else published["avg_length"])


@needs_fixtures
@pytest.mark.parametrize("model", [model for model in MODELS if model != "text_davinci_001"])
def test_ours_is_the_official_rate_within_a_tenth_of_a_point_on_complete_files(model: str) -> None:
    ours = lc(recorded(model).verdicts)
    assert 100 * ours.value == pytest.approx(MODELS[model], abs=0.1)
    assert ours.low is not None and ours.high is not None and ours.low <= ours.value <= ours.high
    official = numbers(official_lc_win_rate(recorded(model), CALIBRATION))
    if (
        model != "gpt4_1106_preview"
    ):  # the package prints the spread of fitted values, about half of the sampling error
        assert (
            ours.standard_error is not None
            and 100 * ours.standard_error > 1.5 * official["lc_standard_error"]
        )


@needs_fixtures
def test_positions_move_the_official_rate_and_not_ours() -> None:
    """The package goes from 19.3 to 27.9 when the first row is gone, to 28 and more in another order; ours stays."""
    whole = recorded("gpt-3.5-turbo-1106")
    less, shuffled = (
        replace(whole, verdicts=whole.verdicts[1:]),
        replace(whole, verdicts=random.Random(0).sample(whole.verdicts, 805)),
    )
    official = [
        numbers(official_lc_win_rate(a, CALIBRATION))["length_controlled_winrate"]
        for a in (whole, less, shuffled)
    ]
    assert official[0] == pytest.approx(19.276, abs=0.001)
    assert official[1] == pytest.approx(
        27.905, abs=0.001
    )  # what the package itself says of the file without its first row
    assert official[2] > 28
    ours, without, turned = (lc(a.verdicts) for a in (whole, less, shuffled))
    assert (turned.value, turned.low, turned.high, turned.standard_error) == (
        ours.value,
        ours.low,
        ours.high,
        ours.standard_error,
    )
    assert 100 * abs(without.value - ours.value) < 0.1


@needs_fixtures
def test_dropping_an_item_moves_our_rate_by_its_own_weight() -> None:
    """An item's contribution less the rate, over n - 1, is what a dropped item takes with it, to first order."""
    from bench.stats.length_control import contributions_of_verdicts

    verdicts = recorded("FuseChat-Llama-3.2-3B-Instruct").verdicts
    whole, each = lc(verdicts).value, contributions_of_verdicts(verdicts, calibration())
    assert isinstance(each, dict)
    for place in (0, 17, 400, 804):
        own = each[verdicts[place].item_id]
        assert own is not None
        moved = lc(verdicts[:place] + verdicts[place + 1 :]).value - whole
        assert moved == pytest.approx((whole - own) / 804, abs=1e-4)


@needs_fixtures
def test_a_row_without_its_vote_keeps_the_others_in_place() -> None:
    """The notes' 19.261: kept with an empty vote, the first row costs nothing."""
    whole = recorded("gpt-3.5-turbo-1106")
    first = replace(whole.verdicts[0], preference=None, unscored="no vote")
    found = replace(whole, verdicts=[first, *whole.verdicts[1:]])
    assert numbers(official_lc_win_rate(found, CALIBRATION))["length_controlled_winrate"] == pytest.approx(
        19.261, abs=0.02
    )
    assert numbers(official_win_rate(found))["n_total"] == 804


@needs_fixtures
def test_every_model_against_itself_is_a_half() -> None:
    itself = recorded("gpt4_1106_preview")
    assert numbers(official_lc_win_rate(itself, CALIBRATION))["length_controlled_winrate"] == 50
    assert lc(itself.verdicts).value == pytest.approx(0.5, abs=1e-12)


# The package reads ours and we read the package's -----------------------------------------------------------------------


@needs_fixtures
def test_the_packages_evaluate_runs_offline_on_what_we_write_and_we_read_what_it_wrote(
    tmp_path: Path,
) -> None:
    """Our outputs, reference and annotations (as its cache: no judge is asked) go through `evaluate`; its annotations come back."""
    ours = recorded("gpt-3.5-turbo-1106")
    outputs = read_outputs(laid_out() / "gpt-3.5-turbo-1106" / "model_outputs.json.gz")
    write_outputs(tmp_path / "model_outputs.json", ours.model, reference().items, outputs.texts)
    write_outputs(tmp_path / "reference.json", ours.baseline, reference().items, reference().texts)
    write_annotations(tmp_path / "cache.json", ours, reference().items, outputs.texts)
    (tmp_path / "df_gamed.csv").write_bytes(gzip.decompress(CALIBRATION.read_bytes()))
    script = """
import socket, sys
def refuse(*_, **__): raise OSError("no network in this test")
socket.socket.connect = refuse
import alpaca_eval
from alpaca_eval.metrics import glm_winrate
glm_winrate.hf_hub_download = lambda **_: "df_gamed.csv"
board, _ = alpaca_eval.evaluate(
    model_outputs="model_outputs.json", reference_outputs="reference.json", precomputed_leaderboard=None, output_path="out",
    caching_path="cache.json", metric_kwargs={"save_weights_dir": None}, is_return_instead_of_print=True,
)
print(board.iloc[0].to_json())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    official = numbers(official_win_rate(ours)) | numbers(official_lc_win_rate(ours, CALIBRATION))
    assert {name: theirs[name] for name in official} == pytest.approx(
        official, abs=1e-6
    )  # JSON in the package: ten decimals
    assert theirs["avg_length"] == outputs.avg_length == 796
    found = next((tmp_path / "out").rglob("annotations.json"))
    back = read_annotations(found)
    assert (back.model, back.baseline, back.annotator) == (ours.model, ours.baseline, ours.annotator)
    assert [v.item_id for v in back.verdicts] == [v.item_id for v in ours.verdicts]
    assert [v.preference for v in back.verdicts] == pytest.approx(
        [v.preference for v in ours.verdicts], abs=1e-9
    )
    assert [(v.policy_digest, v.baseline_length) for v in back.verdicts] == [
        (v.policy_digest, v.baseline_length) for v in ours.verdicts
    ]


@needs_fixtures
def test_annotations_come_back_as_they_were_written(tmp_path: Path) -> None:
    ours = recorded("claude-2.1")
    verdicts = [
        replace(ours.verdicts[0], preference=None, unscored="no vote was read from the judge's reply"),
        *ours.verdicts[1:],
    ]
    ours = replace(ours, verdicts=verdicts)
    texts = read_outputs(next(laid_out().glob("claude-2.1/model_outputs.json*"))).texts
    write_annotations(tmp_path / "annotations.json", ours, reference().items, texts)
    assert read_annotations(tmp_path / "annotations.json") == ours


@needs_fixtures
def test_trimmed_rows_take_their_texts_from_the_files_beside_them() -> None:
    """The fixtures' own form: no texts, items by number."""
    outputs = read_outputs(ALPACA_EVAL / "model_outputs" / "text_davinci_001.json.gz")
    found = read_annotations(ALPACA_EVAL / "annotations" / "text_davinci_001.json.gz", outputs, reference())
    assert [v.policy_length for v in found.verdicts] == [
        v.policy_length for v in recorded("text_davinci_001").verdicts
    ]


# By hand ----------------------------------------------------------------------------------------------------------------

BASE: dict[str, Any] = {
    "output_1": "long baseline",
    "generator_1": "base",
    "output_2": "short",
    "generator_2": "me",
    "annotator": "judge",
}


def _annotations(path: Path, *preferences: Any, **more: Any) -> Annotations:
    path.write_text(
        json.dumps(
            [BASE | {"instruction": f"ask {i}", "preference": p} | more for i, p in enumerate(preferences)]
        )
    )
    return read_annotations(path)


def test_votes_are_read_as_preferences_and_what_is_no_vote_says_why(tmp_path: Path) -> None:
    """1 baseline, 2 model, 1.5 and the old 0 draws; null, -1 and NaN are failures, 3 is no preference."""
    found = _annotations(tmp_path / "a.json", 1, 2, 1.5, 0, 1.25, None, -1, float("nan"), 3)
    assert [v.preference for v in found.verdicts] == [0.0, 1.0, 0.5, 0.5, 0.25, None, None, None, None]
    assert [v.unscored for v in found.verdicts[5:]] == ["no vote was read from the judge's reply"] * 3 + [
        "preference 3 is not in 1 to 2"
    ]
    assert (found.verdicts[0].policy_length, found.verdicts[0].baseline_length) == (5, 13)
    assert found.verdicts[0].item_id == item_id("ask 0")


@pytest.mark.parametrize("value", ["2", "m", True, False, [1], {"a": 1}])
def test_a_preference_that_is_no_number_is_no_vote(tmp_path: Path, value: Any) -> None:
    found = _annotations(tmp_path / "a.json", 1, value)
    assert found.verdicts[0].preference == 0 and found.verdicts[1].preference is None
    assert "must be a number in 1 to 2, got" in str(found.verdicts[1].unscored)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"output_1": {"content": "x"}}, "row 0: output_1 must be text, got an object with content"),
        ({"output_2": ["x"]}, "row 0: output_2 must be text, got a list of 1"),
        ({"dataset": 3}, "row 0: dataset must be text, got the number 3"),
        ({"generator_1": ["a"]}, "row 0: generator_1 must be a text or a whole number, got a list of 1"),
        ({"annotator": {}}, "row 0: annotator must be a text or a whole number, got an empty object"),
        ({"instruction": 7}, "row 0: instruction must be text, got the number 7"),
        ({"output_2": "cut \ud83d"}, "row 0, output_2: half a surrogate pair"),
    ],
)
def test_annotations_whose_texts_are_none_are_refused_by_their_row(
    tmp_path: Path, more: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadFile, match=rf"a\.json: {says}"):
        _annotations(tmp_path / "a.json", 1, **more)


def test_models_without_a_name_are_not_one_model(tmp_path: Path) -> None:
    """The package gives the baseline against itself 50 without a fit; two models without a name are no such pair."""
    found = _annotations(tmp_path / "a.json", 2, 2, 1, generator_1=None, generator_2=None)
    assert found.model != found.baseline and numbers(official_win_rate(found))["win_rate"] == pytest.approx(
        200 / 3
    )


def test_a_mark_before_annotations_and_outputs_changes_nothing(tmp_path: Path) -> None:
    plain = _annotations(tmp_path / "a.json", 1, 2)
    marked = tmp_path / "marked.json.gz"
    marked.write_bytes(gzip.compress(b"\xef\xbb\xbf" + (tmp_path / "a.json").read_bytes()))
    assert read_annotations(marked) == plain
    (tmp_path / "o.json").write_text(
        json.dumps([{"instruction": "a", "output": "x", "generator": "m"}]), encoding="utf-8-sig"
    )
    assert read_outputs(tmp_path / "o.json").model == "m"


def test_official_win_rate_by_hand(tmp_path: Path) -> None:
    """y = 0, 1, 0.5: mean 50; sd 0.5 over sqrt 3; one win, one loss, one draw."""
    found = numbers(official_win_rate(_annotations(tmp_path / "a.json", 1, 2, 0, None)))
    assert found == pytest.approx(
        {
            "win_rate": 50, "standard_error": 100 * 0.5 / 3**0.5, "n_wins": 1, "n_wins_base": 1, "n_draws": 1, "n_total": 3,
            "discrete_win_rate": 50,
        }
    )  # fmt: skip


def test_a_file_without_any_vote_has_no_rate_and_one_vote_no_error(tmp_path: Path) -> None:
    assert isinstance(official_win_rate(_annotations(tmp_path / "a.json", None, None)), Unmeasured)
    assert "standard_error" not in numbers(official_win_rate(_annotations(tmp_path / "b.json", 2)))


def test_official_length_control_says_what_it_lacks(tmp_path: Path) -> None:
    found, small = _annotations(tmp_path / "a.json", 1, 2, 2), tmp_path / "small.csv"
    without = official_lc_win_rate(found, None)
    assert isinstance(without, Unmeasured) and "calibration=FILE" in without.reason
    small.write_text("instruction,instruction_difficulty\nask 0,0.5\n")
    own = official_lc_win_rate(found, small)
    assert isinstance(own, Unmeasured) and "small.csv has no model, preference" in own.reason
    small.write_text(
        "model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline\ng,0.5,0,1.0,0.1,False\n"
    )
    few = official_lc_win_rate(found, small)
    assert isinstance(few, Unmeasured) and "3 rows are more than the calibration's 1" in few.reason
    scored = next(i for i, v in enumerate(found.verdicts) if v.preference is not None)
    unmeasured = [replace(v, policy_length=None) if i == scored else v for i, v in enumerate(found.verdicts)]
    without_length = official_lc_win_rate(replace(found, verdicts=unmeasured), small)
    assert (
        isinstance(without_length, Unmeasured) and "needs the length of both answers" in without_length.reason
    )


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"instruction": "a", "preference": 1, "output_2": "x"}], "row 0 has a vote but lacks"),
        ([{"output_2": "x"}], "row 0: expected an `instruction`, got an object with output_2"),
        (
            [BASE | {"instruction": "a", "preference": 1}, BASE | {"instruction": "b", "annotator": "other"}],
            "expected one model",
        ),
        ({"instruction": "a"}, "expected a JSON list of annotations .*, got an object with instruction"),
        ([], "expected a JSON list of annotations .*, got a list of 0"),
    ],
)
def test_annotations_that_cannot_be_used_say_where(tmp_path: Path, rows: Any, says: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=says):
        read_annotations(tmp_path / "a.json")


BAD_OUTPUTS = [
    ([{"instruction": "a", "output": None}], "row 0: output must be text, got null"),
    (
        [{"instruction": "a", "output": "x", "generator": ["m"]}],
        "row 0: generator must be a text or a whole number, got a list of 1",
    ),
    (
        [{"instruction": "a", "output": "x", "generator": "m"}, {"instruction": "b", "output": "x"}],
        "one model .*got m, .no generator.",
    ),
    ([{"instruction": "a", "output": "x"}, 3], "row 1: expected an object, got the number 3"),
]


def test_outputs_of_two_models_or_of_one_instruction_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "outputs.json"
    row = {"instruction": "a", "output": "x", "generator": "me"}
    two = [row, row | {"instruction": "b", "generator": "you"}]
    for rows, says in (
        (two, "one model"),
        ([row, row], "appears twice"),
        ([{}], "row 0: expected an"),
        *BAD_OUTPUTS,
    ):
        path.write_text(json.dumps(rows))
        with pytest.raises(ValueError, match=says):
            read_outputs(path)


def test_outputs_are_written_in_the_order_of_items_and_come_back(tmp_path: Path) -> None:
    lines = "two\u2028lines"
    items = [Item("1", "koala", ["say é"]), Item("2", None, [lines]), Item("3", None, ["unanswered"])]
    write_outputs(tmp_path / "o.json", "me", items, {"2": "second", "1": "first"})
    found = read_outputs(tmp_path / "o.json")
    assert found.model == "me"
    assert found.completions == [
        Completion(item_id("say é"), ["say é"], ["first"], [], []), Completion(item_id(lines), [lines], ["second"], [], []),
    ]  # fmt: skip


def test_a_calibration_knows_items_by_number_by_instruction_or_by_id(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text(
        "model,preference,index,std_delta_len,instruction_difficulty\n"
        "verbose,0.9,0,-1.5,0.25\nconcise,0.1,0,2.0,0.25\nconcise,,1,,-1.0\nconcise,0.5,7,0,9\n"
    )
    items = [Item("x", None, ["a"]), Item("y", None, ["b"])]
    found = read_calibration(path, items)
    assert found.difficulty == {"x": 0.25, "y": -1.0}  # item 7 was not asked
    with pytest.raises(ValueError, match="numbers 3 items by `index`, but there are 2 items here"):
        read_calibration(path, items, 2)
    assert [tuple(gamed) for gamed in found.gamed["x"]] == [
        (0.9, -1.5, 0.1),
        (0.1, 2.0, 0.1),
    ]  # 0.2 shared by two versions
    with pytest.raises(ValueError, match="Set reference_outputs=FILE"):
        read_calibration(path)
    path.write_text("instruction,instruction_difficulty\na,0.5\n")
    assert read_calibration(path).difficulty == {item_id("a"): 0.5}
    path.write_text("item_id,instruction_difficulty\nx,much\n")
    with pytest.raises(
        BadFile,
        match=r"c\.csv:2: instruction_difficulty must be a number with a decimal point, got the text 'much'",
    ):
        read_calibration(path)
    path.write_text("item_id,difficulty\nx,1\n")
    with pytest.raises(
        ValueError,
        match="header with column instruction_difficulty, comma-separated; got columns item_id, difficulty",
    ):
        read_calibration(path)


GAMED = (
    "model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
    "v,0.9,0,-1.5,0.25,False\nv,0.8,1,-1.0,-1.0,False\nv,0.7,2,-0.5,0.5,False\n"
    "c,0.1,0,2.0,0.25,False\nc,0.2,1,1.5,-1.0,False\nc,0.3,2,1.0,0.5,False\n"
)
NO_COLUMN = ": expected a header with column instruction_difficulty, comma-separated; got one column"
BY_ITEM = "\n".join(sorted(GAMED.splitlines(), key=lambda line: (line[0] != "m", line.split(",")[2])))


def turned(source: str) -> str:
    """The columns in another order."""
    return "".join(
        ",".join([*line.split(",")[4:], *line.split(",")[:4]]) + "\n" for line in source.splitlines()
    )


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GAMED.encode(),
        GAMED.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + turned(GAMED).replace("\n", "\r").encode(),
        GAMED.replace("model,preference", " model , preference").replace("False", "FALSE").encode(),
        ('"' + GAMED.replace(",", '","').replace("\n", '"\n"')[:-1]).encode(),
    ],
    ids=["mark", "crlf", "turned", "spaces", "quoted"],
)
def test_a_calibration_as_a_spreadsheet_saves_it_gives_the_same_numbers(
    tmp_path: Path, content: bytes
) -> None:
    items = [Item(str(n), None, [f"ask {n}"]) for n in range(3)]
    plain, saved = tmp_path / "plain.csv", tmp_path / "saved.csv"
    plain.write_text(GAMED)
    saved.write_bytes(content)
    expected, found = read_calibration(plain, items, 3), read_calibration(saved, items, 3)
    assert (found.difficulty, found.gamed) == (expected.difficulty, expected.gamed)
    annotations = _annotations(tmp_path / "a.json", 1.9, 1.2, 1.6)
    assert official_lc_win_rate(annotations, saved) == official_lc_win_rate(annotations, plain)
    assert isinstance(official_lc_win_rate(annotations, plain), dict)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            GAMED.replace(".", "#").replace(",", ";").replace("#", ","),
            f"{NO_COLUMN} 'model;preference;index;",
        ),
        (GAMED.replace(",", "\t"), f"{NO_COLUMN} 'model"),
        (GAMED.replace("0.9", "0,9"), ":2: expected 6 comma-separated fields, as in the header; got 7"),
        (
            GAMED.replace("0.9", '"0,9"'),
            ":2: preference must be a number with a decimal point, got the text '0,9'",
        ),
        (
            GAMED.replace("0.9", "nan"),
            ":2: preference must be a number with a decimal point, got the text 'nan'",
        ),
        (GAMED.replace("0.9", "1.9"), r":2: preference must be in \[0, 1\], got the text '1.9'"),
        (GAMED.replace("0.9", "-1"), r":2: preference must be in \[0, 1\], got the text '-1'"),
        (
            GAMED.replace("-1.5", "inf"),
            ":2: std_delta_len must be a number with a decimal point, got the text 'inf'",
        ),
        (GAMED.replace("-1.5", ""), ":2: std_delta_len must be a number, got an empty text"),
        (GAMED.replace("0.25", "", 1), ":2: instruction_difficulty must be a number, got an empty text"),
        (
            GAMED.replace("0.25", "nan"),
            ":2: instruction_difficulty must be a number with a decimal point, got the text 'nan'",
        ),
        (
            GAMED.replace("0.25", "3.5", 1),
            ":5: instruction_difficulty is 0.25, but 3.5 in an earlier row of the same item",
        ),
        (GAMED.replace("0.9,0", "0.9,0.5"), ":2: index must be a whole number from 0, got the text '0.5'"),
        (GAMED.replace("0.9,0", "0.9,-1"), ":2: index must be a whole number from 0, got the text '-1'"),
        (GAMED.replace("0.9,0", "0.9,²"), ":2: index must be a whole number from 0, got the text '²'"),
        (GAMED.splitlines()[0] + "\n", ": expected rows below the header, got none"),
        ("", ": expected columns instruction_difficulty; got an empty file"),
    ],
)
def test_a_calibration_that_cannot_be_used_is_one_line(tmp_path: Path, source: str, says: str) -> None:
    path = tmp_path / "c.csv"
    path.write_text(source)
    with pytest.raises(BadFile, match=rf"c\.csv{says}") as caught:
        read_calibration(path, [Item(str(n), None, [f"ask {n}"]) for n in range(3)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (GAMED.replace("0.9", ""), "has rows without preference"),
        (GAMED.replace("False", "no"), "has a not_gamed_baseline that is neither True nor False: 'no'"),
        (BY_ITEM, "does not begin with one row of each item from 0 to 2"),
    ],
)
def test_the_package_is_given_no_calibration_that_it_would_misread(
    tmp_path: Path, source: str, says: str
) -> None:
    """Its rows are items by their place: sorted by item they would lend item 1 the difficulty of item 0."""
    (tmp_path / "c.csv").write_text(source)
    found = official_lc_win_rate(_annotations(tmp_path / "a.json", 1.9, 1.2, 1.6), tmp_path / "c.csv")
    assert isinstance(found, Unmeasured) and says in found.reason


def test_a_calibrations_digest_is_of_its_content_zipped_or_not(tmp_path: Path) -> None:
    content = b"item_id,instruction_difficulty\nx,1\n"
    (tmp_path / "c.csv").write_bytes(content)
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(content))
    digests = {read_calibration(tmp_path / name).digest for name in ("c.csv", "c.csv.gz")}
    assert len(digests) == 1
    (tmp_path / "c.csv").write_bytes(content + b"y,2\n")
    assert read_calibration(tmp_path / "c.csv").digest not in digests


def test_the_packages_settings_of_the_process_are_left_alone(tmp_path: Path) -> None:
    import logging

    import sklearn

    before = logging.getLogger().level, sklearn.get_config()
    official_win_rate(_annotations(tmp_path / "a.json", 1, 2))
    assert (logging.getLogger().level, sklearn.get_config()) == before


@needs_fixtures
def test_the_calibration_has_a_difficulty_and_two_gamed_rows_for_every_item() -> None:
    assert len(calibration().difficulty) == 805
    assert {len(gamed) for gamed in calibration().gamed.values()} == {2}
    assert calibration().gamed[reference().items[0].id][0].weight == alpaca_eval.GAMED_WEIGHT / 2


@needs_fixtures
def test_a_model_beside_another_name_is_laid_out_and_found(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, "alpaca-7b", lambda rows: rows[:3], name="mine")
    assert [path.relative_to(folder).parts for path in find_annotations(folder)] == [
        ("mine", ANNOTATOR, "annotations.json")
    ]
    assert len(read_annotations(find_annotations(folder)[0]).verdicts) == 3
    assert len(annotation_rows("alpaca-7b")) == 805
    with gzip.open(CALIBRATION, "rt") as file:
        assert next(csv.reader(file)) == list(alpaca_eval.COLUMNS)


@needs_fixtures
def test_recorded_pairs_have_both_texts_and_the_recorded_preference() -> None:
    """Of eight models' files; 2 of 805 verdicts of text_davinci_001 have no vote and are left out."""
    pairs = alpaca_eval.read_pairs(laid_out())
    by_model = Counter(item.id.partition("/")[0] for item, _, _ in pairs)
    assert len(by_model) == len(MODELS) and by_model["text_davinci_001"] == 803
    for item, completion, (verdict,) in pairs[::500]:
        assert item.id == completion.id == verdict.item_id and item.baseline is not None
        assert (verdict.policy_length, verdict.baseline_length) == (
            len(completion.completions[0]),
            len(item.baseline[0]),
        )
