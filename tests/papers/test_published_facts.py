"""The published facts: schema and lint over every file, the lint on broken tables, published differences by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from recorded import PUBLISHED_NUMBERS

from bench.papers import metrics, tables
from bench.papers.published import FACTS, PublishedTable, faults, lc_factor, tables_of
from bench.text_files import BadFile

ARTICLES = {"SPIN", "DPO", "Self-Rewarding", "SPA", "KTO"}


@pytest.mark.parametrize("table", tables().values(), ids=tables())
def test_every_published_table_is_sound(table: PublishedTable) -> None:
    assert not faults(table)
    assert table.article in ARTICLES | {None}
    list(table.compared())


def test_every_metric_is_used_and_every_source_article_has_tables() -> None:
    assert {name for table in tables().values() for name in table.metrics} == set(metrics())
    assert {table.article for table in tables().values()} >= ARTICLES


@pytest.mark.skipif(not PUBLISHED_NUMBERS.is_dir(), reason="needs the facts as they were first written down")
def test_every_number_is_the_one_first_written_down() -> None:
    """Each value of each row; where the first notes give a row no approx or note, neither has ours."""
    paths = sorted(PUBLISHED_NUMBERS.glob("*.yaml"))
    by_id = {path.stem.removeprefix("hf_"): yaml.safe_load(path.read_text()) for path in paths}
    assert by_id.keys() == tables().keys()
    for name, first in by_id.items():
        ours = tables()[name]
        columns = [*first["factors"], *first["metrics"]]
        assert [*ours.factors, *ours.metrics] == columns
        assert ours.records == [dict.fromkeys(columns) | row for row in first["rows"]]
        assert ours.locator == first["source"]["locator"] and ours.arxiv == first["source"].get("arxiv")


def made(**changes: Any) -> PublishedTable:
    """A table of three rows with a role each."""
    plain = {
        "title": "t",
        "locator": "Table 1",
        "arxiv": "1",
        "factors": ["method"],
        "metrics": ["win_rate", "wins", "n"],
        "rows": [["a", 0.5, 50, 100], ["b", 0.4, 40, 100], ["c", 0.2, 20, 100]],
        "compare": ["win_rate"],
        "roles": {name: {"method": name} for name in "abc"},
        "contrasts": [["a", "b"]],
    }
    return PublishedTable.model_validate(plain | changes)


ROWS = made().rows
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "two rows of one setting": ({"rows": [*ROWS, ["c", 0.3, 30, 100]]}, "two rows of ['c']"),
    "a rate above 1": ({"rows": [["a", 50, 50, 100], *ROWS[1:]]}, "win_rate must be in [0, 1], got 50"),
    "a number as text": ({"rows": [["a", "0.5", 50, 100], *ROWS[1:]]}, "got '0.5'"),
    "a rate that its counts do not give": ({"rows": [["a", 0.6, 50, 100], *ROWS[1:]]}, "win_rate is 0.6, other columns give 0.500"),
    "a short row": ({"rows": [["a", 0.5, 50], *ROWS[1:]]}, "3 values for 4 columns"),
    "an unknown end of a row": ({"rows": [["a", 0.5, 50, 100, {"aprox": True}], *ROWS[1:]]}, "approx or note"),
    "identical results": ({"rows": [["a", 0.5, 50, 100], ["b", 0.5, 50, 100], ROWS[2]]}, "identical results of ['a'] and ['b']"),
    "an unknown metric": ({"metrics": ["win_rate", "wines", "n"]}, "unknown metric wines"),
    "an unknown role": ({"contrasts": [["a", "d"]]}, "unknown role d"),
    "a contrast twice": ({"contrasts": [["a", "b"], ["a", "b"]]}, "a contrast stands twice"),
    "a role of no row": ({"roles": {"a": {"method": "A"}, "b": {"method": "b"}}}, "role a  matches 0 rows"),
    "no source": ({"arxiv": None}, "has no source"),
    "nothing to compare": ({"compare": []}, "without a metric to compare"),
    "a slip that names no row": ({"slips": [{"rows": [{"method": "z"}], "what": "w"}]}, "a slip must name one row each"),
    "a wrong mean": (
        {
            "metrics": ["average", "gsm8k", "mmlu"],
            "rows": [["a", 50, 40, 62], ["b", 40, 40, 40], ["c", 20, 10, 30]],
            "mean_of": {"average": ["gsm8k", "mmlu"]},
            "compare": ["average"],
        },
        "average is 50, other columns give 51.000",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "fault"), BROKEN.values(), ids=BROKEN)
def test_the_lint_names_a_fault(changes: dict[str, Any], fault: str) -> None:
    assert fault in "\n".join(faults(made(**changes)))


def test_a_sound_table_has_no_fault_and_a_named_slip_is_none() -> None:
    assert not faults(made())
    twins = made(
        rows=[["a", 0.5, 50, 100], ["b", 0.5, 50, 100], ROWS[2]],
        slips=[{"rows": [{"method": "a"}, {"method": "b"}], "what": "a copy"}],
    )
    assert not faults(twins)
    assert twins.theirs("a", "c", "win_rate").slip == "a copy"
    assert made().theirs("a", "c", "win_rate").slip is None


def test_a_file_that_breaks_the_schema_is_named_with_its_table_and_key() -> None:
    content = {
        "paper": "p",
        "tables": {"t": {"title": "t", "locator": "l", "factors": [], "metrics": [], "rows": [], "wines": 1}},
    }
    with pytest.raises(BadFile, match=r"x\.yaml: t\.wines: Extra inputs"):
        tables_of(content, Path("x.yaml"))


def test_differences_and_their_standard_errors_by_hand() -> None:
    """SPA table 1: 7.68 - 4.72 = 2.96 points, sqrt((.0768 * .9232 + .0472 * .9528) / 805) = 1.20, so 2.5 of them."""
    theirs = tables()["spa_table1_main"].theirs("dpo", "sft", "alpaca_eval2_win_rate")
    assert theirs.value == pytest.approx(0.0296)
    assert theirs.standard_error == pytest.approx(math.sqrt((0.0768 * 0.9232 + 0.0472 * 0.9528) / 805))
    assert theirs.errors == pytest.approx(2.46, abs=0.01)


def test_a_length_controlled_rate_has_a_larger_standard_error_where_it_is_low() -> None:
    assert [lc_factor(rate) for rate in (0.05, 0.2, 0.3, 0.5)] == pytest.approx([1.6, 1.6, 1.0, 1.0])
    table = tables()["spa_table1_main"]
    raw, lc = (table.theirs("dpo", "sft", f"alpaca_eval2_{kind}") for kind in ("win_rate", "lc_win_rate"))
    p, q = 0.0903, 0.0758
    assert lc.standard_error == pytest.approx(1.6 * math.sqrt((p * (1 - p) + q * (1 - q)) / 805))
    assert raw.n_seeds == lc.n_seeds == 1


def test_wins_less_losses_of_a_head_to_head() -> None:
    """M2 against M1: 55.5 - 11.7 = 43.8 points, sqrt((.672 - .438 ** 2) / 256) = 4.3."""
    theirs = tables()["self_rewarding_head_to_head"].theirs("m2", "m1", "win_percent")
    assert theirs.value == pytest.approx(0.438)
    assert theirs.standard_error == pytest.approx(math.sqrt((0.672 - 0.438**2) / 256))


def test_three_seeds_of_a_paper_give_its_standard_error() -> None:
    """SPA table 4: 19.94, 20.06, 19.74 less 7.68, 7.17, 7.59; variances 0.0261 and 0.0741, each over 3."""
    theirs = tables()["spa_table4_seed_variance"].theirs("spa", "dpo", "alpaca_eval2_win_rate")
    assert theirs.n_seeds == 3 and theirs.value == pytest.approx(0.12433, abs=1e-4)
    assert theirs.standard_error == pytest.approx(math.sqrt((0.0261 + 0.0741) / 3) / 100, rel=0.01)


def test_a_printed_interval_a_figure_and_a_mean_of_tasks() -> None:
    human = tables()["kto_human_eval"].theirs("kto", "dpo", "human_win_percent")
    assert human.standard_error == pytest.approx(math.hypot(0.053, 0.057) / 1.645)
    figure = tables()["dpo_hh_temperature"].theirs("dpo_1", "best_of_128", "win_rate")
    assert figure.standard_error == pytest.approx(0.01 + math.sqrt((0.629 * 0.371 + 0.608 * 0.392) / 250))
    spin = tables()["spin_leaderboard"].theirs("spin_0", "sft", "average")
    n = {
        "arc_challenge": 1172,
        "truthfulqa": 817,
        "winogrande": 1267,
        "gsm8k": 1319,
        "hellaswag": 10042,
        "mmlu": 14042,
    }
    rows = [row for role in ("spin_0", "sft") for row in tables()["spin_leaderboard"].matching(role)]
    squares = sum(row[task] * (100 - row[task]) / 1e4 / n[task] for row in rows for task in n)
    assert spin.standard_error == pytest.approx(math.sqrt(squares) / 6)


def test_a_rating_has_no_standard_error_and_a_picture_no_value() -> None:
    rating = tables()["spin_mt_bench_and_bb"].theirs("spin_0", "sft", "mt_bench")
    assert rating.value == pytest.approx(0.52) and rating.standard_error is None
    assert tables()["dpo_hh_temperature"].theirs("dpo_1", "preferred_ft", "win_rate").value is None
    assert tables()["pref_tuning_mt_bench"].is_picture


def test_raw_and_length_controlled_rates_that_disagree_have_a_word_each() -> None:
    """SPA's iteration 3 less 2: +1.2 points raw, -0.8 length-controlled."""
    pairs = [
        (c.metric, c.theirs.value) for c in tables()["spa_fig3_iterations"].compared() if c.better == "spa_3"
    ]
    assert [name for name, _ in pairs] == ["alpaca_eval2_win_rate", "alpaca_eval2_lc_win_rate"]
    assert [value for _, value in pairs] == pytest.approx([0.0119, -0.0084])


def test_wins_with_unread_verdicts_as_halves() -> None:
    """llama_7b, KTO over DPO without SFT: (210 + 17) / 512 - (158 + 11) / 512."""
    found = tables()["kto_archangel_win_rates"].without_verdict("kto", "dpo", "llama_7b")
    assert found == pytest.approx((227 - 169) / 512)
    assert tables()["spa_table1_main"].without_verdict("dpo", "sft") is None


def test_the_facts_are_in_the_package() -> None:
    assert (
        FACTS.name == "papers"
        and (FACTS / "metrics.yaml").is_file()
        and list((FACTS / "tables").glob("*.yaml"))
    )
