"""Findings from hand-made curves and numbers, each with the arithmetic and with a case that stays below its threshold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import smoke, smoke_cells

from bench.judges.asked.journal import encode, n_dropped
from bench.records import POSITIONS_PASSED
from bench.report import CellRow, collect, pool
from bench.report.findings import CHECKS, NONE, Evidence, Finding, find, lines, markdown, of_rows
from bench.report.rows import Sweep
from bench.store.store import Store

START = {"mean_length": 40.0, "mean_length_se": 1.0, "repetition": 0.02, "distinct": 0.6, "unfinished": 0.0}
NOTED = {
    "with <s> in the text, which the model reads as a control token": 2,
    "with </s> in the text, which the model reads as a control token": 3,
    "with the opposite of another row of the same prompt": 4,
    "with a prompt that its messages do not hold: the messages count": 1,
    "with margin, which is not read": 9,  # no finding
    "journal_dropped": 6,
}
HEALTHY = {
    "shift_chosen": 0.05,
    "shift_chosen_low": 0.02,
    "shift_chosen_high": 0.08,
    "shift_rejected": -0.4,
    "reward_margin": 0.9,
    "reward_margin_low": 0.7,
    "reward_margin_high": 1.1,
    "reward_accuracy": 0.7,
    "reward_accuracy_low": 0.65,
    "reward_accuracy_high": 0.75,
    "kl": 2.0,
    "mean_length": 38.0,
    "mean_length_se": 1.0,
    "repetition": 0.03,
    "distinct": 0.5,
    "unfinished": 0.01,
}
CURVE = [{"step": i, "loss": 0.7 - 0.01 * i, "entropy": 1.0 - 0.01 * i} for i in range(20)]


def found(curve: Any = CURVE, start: Any = START, **metrics: float) -> dict[str, Finding]:
    return {f.name: f for f in find(Evidence(curve, HEALTHY | metrics, start, "kto"))}


def test_a_healthy_cell_has_none() -> None:
    assert found() == {}


def test_nothing_measured_nothing_said() -> None:
    assert find(Evidence([], {}, {})) == []


def test_every_finding_has_numbers_and_a_threshold_with_its_unit() -> None:
    """All at once: what each check says of its worst case."""
    bad = {
        "shift_chosen": -0.5,
        "shift_chosen_low": -0.6,
        "shift_chosen_high": -0.4,
        "shift_rejected": -0.9,
        "reward_accuracy_low": 0.45,
    }
    bad |= {"kl": 20.0, "mean_length": 90.0, "repetition": 0.5, "unfinished": 0.5}
    curve = [{"step": i, "loss": 0.7, "entropy": 1.0 if i < 10 else 0.1, "kl": 0.0} for i in range(20)]
    all_of_them = found(curve, **bad)
    all_of_them |= found(curve, kl=0.001)  # no policy blows up and stays
    all_of_them |= {f.name: f for f in find(Evidence(curve, HEALTHY, START, "kto", start_loss=0.5))}
    all_of_them |= {
        f.name: f
        for f in find(Evidence([], {}, {}, noted=NOTED | {POSITIONS_PASSED: 3}, answer_tokens=(64, 2048)))
    }
    assert len(all_of_them) == len(CHECKS)
    for finding in all_of_them.values():
        assert finding.numbers
        assert any(letter.isdigit() for letter in finding.says), finding
        assert any(letter.isdigit() for letter in finding.threshold), finding
    json.dumps([finding.numbers for finding in all_of_them.values()], allow_nan=False)


@pytest.mark.parametrize(
    ("shift", "low", "high", "fell"),
    [
        (-0.3, -0.4, -0.2, True),
        (-0.09, -0.1, -0.08, False),
        (-0.3, -0.7, 0.1, False),
        (-0.1, -0.15, -0.05, True),
    ],
    ids=["far and sure", "sure, below 0.1 nats", "far, within its interval", "at 0.1 nats"],
)
def test_displacement_needs_a_tenth_of_a_nat_a_token_and_certainty(
    shift: float, low: float, high: float, fell: bool
) -> None:
    findings = found(shift_chosen=shift, shift_chosen_low=low, shift_chosen_high=high)
    assert ("displacement" in findings) is fell
    if fell:
        assert (
            f"{shift:+.2f} nats a token on held-out rows [{low:+.2f}, {high:+.2f}]; rejected ones -0.40"
            in findings["displacement"].says
        )
        assert findings["displacement"].numbers["shift_chosen"] == shift


@pytest.mark.parametrize(
    ("changes", "only_rejected"),
    [
        ({}, True),
        ({"shift_rejected": -0.01}, False),  # rejected fell more slowly
        ({"shift_chosen_high": 0.01}, False),  # chosen may not have fallen
        ({"reward_margin_low": -0.1}, False),  # no margin to speak of
    ],
)
def test_a_margin_is_only_from_rejected_when_both_fell_and_rejected_faster(
    changes: dict[str, float], only_rejected: bool
) -> None:
    fell = {"shift_chosen": -0.05, "shift_chosen_low": -0.06, "shift_chosen_high": -0.04}
    assert ("margin from rejected" in found(**fell | changes)) is only_rejected


@pytest.mark.parametrize(
    ("length", "error", "drifts"),
    [(52.0, 1.0, True), (48.0, 1.0, False), (30.0, 1.0, True), (33.0, 1.0, False), (52.0, 8.0, False)],
)
def test_lengths_drift_from_a_quarter_on_and_beyond_noise(length: float, error: float, drifts: bool) -> None:
    """40 · 1.25 = 50 and 40 / 1.25 = 32; at an error of 8 the difference of 12 is below 1.96 · √(8² + 1²) = 15.8."""
    findings = found(mean_length=length, mean_length_se=error)
    assert ("length drift" in findings) is drifts
    if drifts:
        assert f"{length / 40:.2f} times" in findings["length drift"].says


@pytest.mark.parametrize("error", [(None, 1.0), (1.0, None), (None, None)])
def test_a_length_without_a_standard_error_drifts_nowhere(error: tuple[float | None, float | None]) -> None:
    """One completion has a mean length and no standard error: not 0, which would put any ratio beyond noise."""
    ours, theirs = (
        {"mean_length": length, "mean_length_se": se} for length, se in zip((90.0, 40.0), error, strict=True)
    )
    known = [{name: value for name, value in side.items() if value is not None} for side in (ours, theirs)]
    assert "length drift" not in {f.name for f in find(Evidence(CURVE, *known))}
    assert "length drift" in {
        f.name
        for f in find(Evidence(CURVE, known[0] | {"mean_length_se": 1.0}, known[1] | {"mean_length_se": 1.0}))
    }


@pytest.mark.parametrize("unknown", ["ours", "theirs"])
def test_fewer_different_grams_say_nothing_where_a_length_is_unknown(unknown: str) -> None:
    ours, theirs = {"distinct": 0.2, "mean_length": 40.0}, {"distinct": 0.6, "mean_length": 40.0}
    assert "repetition collapse" in {f.name for f in find(Evidence(CURVE, ours, theirs))}
    del (ours if unknown == "ours" else theirs)["mean_length"]
    assert "repetition collapse" not in {f.name for f in find(Evidence(CURVE, ours, theirs))}


def test_a_rate_whose_rows_were_not_counted_says_no_number_of_rows() -> None:
    rate = {"reward_accuracy": 0.5, "reward_accuracy_low": 0.4, "reward_accuracy_high": 0.6}
    (finding,) = find(Evidence([], rate, {}))
    assert finding.says.startswith("Held-out reward accuracy is 50.0 % [40.0, 60.0], not shown")
    (finding,) = find(Evidence([], rate | {"reward_accuracy_n": 97.0}, {}))
    assert finding.says.startswith("Held-out reward accuracy is 50.0 % [40.0, 60.0] on 97 rows, not shown")


@pytest.mark.parametrize(
    ("repeated", "distinct", "collapsed"),
    [(0.13, 0.5, True), (0.11, 0.5, False), (0.03, 0.3, True), (0.03, 0.31, False)],
)
def test_repetition_is_a_rise_of_ten_points_or_half_as_many_different_grams(
    repeated: float, distinct: float, collapsed: bool
) -> None:
    """0.13 - 0.02 = 0.11, 0.11 - 0.02 = 0.09; 0.3 / 0.6 = 0.5."""
    assert ("repetition collapse" in found(repetition=repeated, distinct=distinct)) is collapsed


@pytest.mark.parametrize(
    ("last", "names"), [(0.5, ["entropy collapse"]), (0.51, []), (1.99, []), (2.0, ["entropy blow-up"])]
)
def test_entropy_collapses_at_half_of_the_first_tenth_and_blows_up_at_twice(
    last: float, names: list[str]
) -> None:
    curve = [{"loss": 0.7 - 0.01 * i, "entropy": 1.0 if i < 2 else last} for i in range(20)]
    assert list(found(curve)) == names


def test_a_curve_of_nine_steps_has_no_ends() -> None:
    assert found([{"loss": 0.7, "entropy": 1.0 if i < 4 else 0.1} for i in range(9)]) == {}


@pytest.mark.parametrize(("kl", "far"), [(10.1, True), (10.0, False)])
def test_kl_blows_up_above_ten_nats(kl: float, far: bool) -> None:
    assert ("KL blow-up" in found(kl=kl)) is far


@pytest.mark.parametrize(("zeros", "stuck"), [(11, True), (10, False)])
def test_z0_is_at_0_when_it_is_on_more_than_half_of_the_steps(zeros: int, stuck: bool) -> None:
    """11 of 20 are 55 %; 10 are half and no more."""
    curve = [{**row, "kl": 0.0 if i < zeros else 0.3} for i, row in enumerate(CURVE)]
    findings = found(curve)
    assert ("z0 at 0" in findings) is stuck
    if stuck:
        assert "55 % of 20 steps" in findings["z0 at 0"].says
    assert find(Evidence(curve, HEALTHY, START, "offline_ppo")) == []  # another's kl is no z0


UNMOVED = {"shift_chosen": 0.0, "shift_chosen_low": -0.02, "shift_chosen_high": 0.02}
FELL = {"shift_chosen": -0.05, "shift_chosen_low": -0.08, "shift_chosen_high": -0.02}
ROSE = {"shift_chosen": 0.8, "shift_chosen_low": 0.7, "shift_chosen_high": 0.9}


@pytest.mark.parametrize(("low", "learnt"), [(0.49, False), (0.5, False), (0.51, True)])
def test_nothing_is_learnt_when_the_accuracy_s_interval_reaches_a_half(low: float, learnt: bool) -> None:
    findings = found(
        reward_accuracy=0.55,
        reward_accuracy_low=low,
        reward_accuracy_high=0.61,
        reward_accuracy_n=180,
        **UNMOVED,
    )
    assert ("nothing learnt" not in findings) is learnt
    if not learnt:
        assert (
            "55.0 % [" in findings["nothing learnt"].says and "on 180 rows" in findings["nothing learnt"].says
        )


def test_log_probs_that_moved_say_that_something_was_learnt() -> None:
    """An undecided ranking beside a fall is a ranking not learnt; beside chosen completions that rose it is no finding: SFT ranks nothing.
    An accuracy certainly below a half is learnt the wrong way round."""
    undecided = {"reward_accuracy": 0.5, "reward_accuracy_low": 0.44, "reward_accuracy_high": 0.56}
    assert "log-probs of chosen completions moved" in found(**undecided, **FELL)["ranking not learnt"].says
    assert "ranking not learnt" not in found(**undecided, **ROSE) and "nothing learnt" not in found(
        **undecided, **ROSE
    )
    assert "ranks wrongly" in found(
        reward_accuracy=0.3, reward_accuracy_low=0.25, reward_accuracy_high=0.35, **UNMOVED
    )


def test_longer_texts_have_fewer_different_grams_without_repeating_themselves() -> None:
    assert "repetition collapse" in found(distinct=0.2)
    assert "repetition collapse" not in found(distinct=0.2, mean_length=90.0)


def test_entropy_that_swings_with_the_length_of_batches_is_no_finding() -> None:
    """First tenth 0.5 and 3.5, last 6 and 3: twice as much on average, but within what batches differ by."""
    entropy = [0.5, 3.5, *[1.0, 6.0] * 8, 6.0, 3.0]
    assert "entropy blow-up" not in found(curve=[{"loss": 0.7, "entropy": value} for value in entropy])


def test_without_rewards_the_loss_says_whether_anything_was_learnt() -> None:
    """20 steps between 0.6 and 0.8 that end where they began, and the same with a fall of 1 for the last tenth."""
    flat = [{"loss": 0.6 if i % 2 else 0.8} for i in range(20)]
    metrics = {"kl": 1.0}
    assert [f.name for f in find(Evidence(flat, metrics, START))] == ["nothing learnt"]
    moved = [*flat[:-2], {"loss": -0.4}, {"loss": -0.2}]
    assert find(Evidence(moved, metrics, START)) == []


@pytest.mark.parametrize(("share", "cut"), [(0.06, True), (0.05, False)])
def test_completions_are_cut_above_five_percent(share: float, cut: bool) -> None:
    findings = found(unfinished=share)
    assert ("completions cut" in findings) is cut
    if cut:
        assert (
            "6.0 % of the completions are cut at max_new_tokens (start model 0.0 %)"
            in findings["completions cut"].says
        )


def test_answers_shorter_than_the_benchmarks_are_a_finding() -> None:
    (finding,) = find(Evidence([], {}, {}, answer_tokens=(512, 2048)))
    assert (finding.name, finding.value) == ("short answers", 512)
    assert "may have 512 tokens, and its benchmark gives 2048" in finding.says
    assert find(Evidence([], {"unfinished": 0.2}, {}, max_cut=0.2)) == []


def test_turns_beyond_the_models_positions_are_a_finding() -> None:
    (finding,) = find(Evidence([], {}, {}, noted={POSITIONS_PASSED: 3}))
    assert (finding.name, finding.value, finding.severity) == ("positions passed", 3, "warning")
    assert (
        "3 turns, prompt and completion, have more tokens than the model's config has positions"
        in finding.says
    )


def test_unpaired_data_are_read_by_their_auc() -> None:
    metrics = {"reward_auc": 0.52, "reward_auc_low": 0.46, "reward_auc_high": 0.58}
    assert [f.name for f in find(Evidence(CURVE, metrics, {}))] == ["nothing learnt"]
    assert find(Evidence(CURVE, metrics | {"reward_auc_low": 0.51}, {})) == []


# Under a table ------------------------------------------------------------------------------------------------------------


def rows() -> list[CellRow]:
    sweep = Sweep("smoke", "", "+sweep=smoke", smoke_cells())
    return collect(sweep, Store(smoke().results / "store"), {})


def test_findings_stand_with_the_rows_and_seeds_that_have_them() -> None:
    real = rows()
    groups = pool(real).groups
    kl, cut = (f for f in found(kl=20.0, unfinished=0.5).values())
    by_name = {row.cell.cell.method.name: row.cell.key for row in real}
    named = {
        row.cell.key: [kl, cut] if row.cell.key == by_name["dpo"] else []
        for row in real
        if row.cell.key != by_name["ipo"]
    }
    assert lines(groups, named) == [
        "Row 4 has the finding 'KL blow-up' (20 nats).",
        "Row 4 has the finding 'completions cut' (50 %).",
        f"Rows 2, 3 have {NONE}.",  # a start model is no training, IPO has no numbers
    ]
    dpo = next(group for group in groups if group.cell.method.name == "dpo")
    twice = [
        type(dpo)(
            **{
                **vars(dpo),
                "rows": [dpo.rows[0], next(row for row in real if row.cell.cell.method.name == "kto")],
            }
        )
    ]
    one = "Row 4 (1 of 2 seeds) has the finding"
    assert lines(twice, named) == [f"{one} 'KL blow-up' (20 nats).", f"{one} 'completions cut' (50 %)."]
    named[twice[0].rows[1].cell.key] = [*found(kl=30.0).values()]
    assert lines(twice, named)[0] == "Row 4 has the finding 'KL blow-up' (20 to 30 nats)."


def test_findings_md_has_every_cell_with_numbers_and_thresholds() -> None:
    real = rows()
    kl = found(kl=20.0)["KL blow-up"]
    text = markdown("Title", real, {real[1].cell.key: [kl], real[2].cell.key: []})
    assert (
        f"## {real[1].cell.name}\n\n- **KL blow-up** (warning): {kl.says} Threshold: more than 10 nats."
        in text
    )
    assert f"## {real[2].cell.name}\n\n- no finding" in text
    assert f"## {real[3].cell.name}\n\n- No numbers: not run yet" in text


def test_a_real_sweep_s_findings_come_from_its_curves() -> None:
    """Eight steps teach a model of 60 pretraining steps nothing, and KTO's z0 stays where it began."""
    ran, real = smoke(), rows()
    findings = of_rows(real, Store(ran.results / "store"))
    kto = next(row for row in real if row.cell.cell.method.name == "kto")
    assert "z0 at 0" in {finding.name for finding in findings[kto.cell.key]}
    written = json.loads((ran.results / "cells" / kto.cell.name / "findings.json").read_text())
    assert [f["name"] for f in written] == [f.name for f in findings[kto.cell.key]]
    assert all(
        f.says in (ran.results / "sweeps" / "smoke" / "findings.md").read_text()
        for f in findings[kto.cell.key]
    )
    assert "z0 at 0" in ran.out


def test_rows_that_were_kept_all_the_same_are_said() -> None:
    found = find(Evidence([], {}, {}, noted=NOTED))
    assert [(one.name, one.value, one.unit) for one in found] == [
        ("special tokens in the text", 5, "rows"),
        ("opposite rows", 4, "rows"),
        ("prompt differs from messages", 1, "rows"),
        ("dropped replies", 6, "replies"),
    ]
    assert (
        "5 rows hold a special token as text" in found[0].says and "3 with </s> in the text" in found[0].says
    )


def test_what_a_journal_dropped_is_counted_and_said(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert n_dropped(path) == 0
    rows: list[dict[str, Any]] = [
        {"request": "a", "reply": {}},
        {"dropped": ["a", "b"], "why": "another model"},
        {"request": "a", "reply": {}},
    ]
    damaged = encode({"request": "c", "reply": {}}).replace(b'"c"', b'"d"')
    path.write_bytes(b"".join(map(encode, rows)) + damaged + b'{"v": 9}\n')
    assert n_dropped(path) == 4
    (found,) = find(Evidence([], {}, {}, noted={"journal_dropped": 4}))
    assert (found.name, found.value, found.severity) == (
        "dropped replies",
        4,
        "note",
    ) and found.says.startswith("4 lines or replies")
