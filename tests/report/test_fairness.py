"""Certificates from hand-made facts, and from what a real sweep left."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import copy_results, plans, smoke

from bench.report import CellRow, Sweep, collect, pool, write_files
from bench.report.fairness import FACTS, MARK, CellFacts, Certificate, certify, excused, known
from bench.store.store import Store
from bench.training.training_record import TrainFacts

DPO = TrainFacts(
    rows=2278,
    completions={"chosen": 2278, "rejected": 2278},
    examples="e" * 16,
    order=["a" * 16],
    prompt_tokens=9000,
    completion_tokens=40000,
    truncated=0,
    template="t" * 16,
    steps=72,
    batch_completions=64,
    batch_rows=32.0,
    epochs=1.0,
    optimizer="adamw_torch",
    weight_decay=0.0,
    max_grad_norm=1.0,
    schedule="linear",
    warmup=0.1,
    learning_rate=1e-3,
    max_length=192,
    dtype="float32",
)
KTO = replace(DPO, order=["b" * 16], steps=143, batch_completions=32, batch_rows=16.0)
JUDGING = {
    "decoding": "preference: greedy, 48 tokens",
    "items": "preference: 1234",
    "judge": "preference: gold",
}
WEIGHED = {"votes without log-probs": 0}  # of judges that weigh by log-probs, and of no other
TRAINING = [fact.name for fact in FACTS if fact.of]


def cell(
    method: str,
    facts: TrainFacts | None = DPO,
    seed: int = 0,
    judging: Mapping[str, Any] = JUDGING,
    **where: Any,
) -> CellFacts:
    """`where`: values of axes, dots as double underscores; a whole number among them is the row, too."""
    at = {key.replace("__", "."): value for key, value in where.items()} | {
        "seed": seed,
        "method.name": method,
        "method": method,
    }
    measured = {fact.name: fact.of(facts) if facts else None for fact in FACTS if fact.of}
    name = "-".join([method, *(f"{value}" for value in where.values())])
    row = next((value for value in where.values() if isinstance(value, int)), 1)
    return CellFacts(f"{name}-s{seed}", row, name, method, at, measured | dict(judging))


def start(seed: int = 0) -> CellFacts:
    return CellFacts(f"start-s{seed}", 1, "start", "start", {"seed": seed, "method.name": "none"}, JUDGING)


def found(certificate: Certificate) -> dict[str, tuple[tuple[str, ...], str, str]]:
    return {d.fact: (d.who, d.value, d.others) for d in certificate.differences}


def test_cells_with_the_same_facts_certify() -> None:
    certificate = certify(
        [start(), cell("dpo", beta=1), cell("ipo", beta=1), cell("dpo", beta=2)], ["method", "method.beta"]
    )
    assert certificate.same == [fact.name for fact in FACTS if fact.name not in WEIGHED]
    assert not certificate.differs and not certificate.unknown
    said = f"These facts are equal in all cells, apart from the axes (method, beta): {', '.join(certificate.same)}."
    assert certificate.lines() == certificate.short() == [said]


def test_cells_whose_votes_came_without_log_probs_are_marked() -> None:
    cells = [
        cell("dpo", beta=n, judging={**JUDGING, "votes without log-probs": 3 * (n == 2)}) for n in (1, 2, 3)
    ]
    assert found(certify(cells, ["method.beta"])) == {"votes without log-probs": (("row 2",), "3", "0")}
    same = [cell("dpo", beta=n, judging=JUDGING | WEIGHED) for n in (1, 2)]
    assert certify(same, ["method.beta"]).same == [fact.name for fact in FACTS]


def test_a_cell_with_another_batch_is_named_with_both_values() -> None:
    """Nobody named the batch as an axis: half the batch is named, and so are the steps that it doubles."""
    odd = replace(DPO, steps=143, batch_completions=32, batch_rows=16.0)
    certificate = certify(
        [cell("dpo", beta=1), cell("dpo", odd, beta=2), cell("dpo", beta=3)], ["method.beta"]
    )
    assert found(certificate) == {
        "steps": (("row 2",), "143", "72"),
        "completions a step": (("row 2",), "32", "64"),
        "preference rows a step": (("row 2",), "16", "32"),
    }
    assert certificate.differs == {"dpo-2-s0": ["steps", "completions a step", "preference rows a step"]}
    assert f"{MARK} Cells differ in steps: 143 in row 2; 72 in the other cells." in certificate.lines()
    short = f"{MARK} These differ from the other cells: row 2 (steps 143 instead of 72; completions a step 32 instead of 64;"
    assert certificate.short()[-1].startswith(short)
    assert certificate.words("dpo-2-s0") == "steps; completions a step; preference rows a step"
    assert certificate.words("dpo-1-s0") == ""


def test_a_seed_that_differs_does_not_stand_for_its_row() -> None:
    odd = replace(DPO, weight_decay=0.1)
    cells = [
        cell("dpo", odd if (seed, beta) == (2, 2) else DPO, seed, beta=beta)
        for seed in range(3)
        for beta in (1, 2)
    ]
    certificate = certify([*cells, cell("dpo", None, 3, beta=1)], ["method.beta"])
    assert found(certificate)["weight decay"][0] == ("row 2 (1 of 3 seeds)",)
    assert certificate.unknown["steps"] == ["row 1 (1 of 4 seeds)"]


def test_the_axis_that_moves_a_fact_excuses_it_and_what_it_moves_with_it() -> None:
    small = replace(DPO, order=["c" * 16], steps=143, batch_completions=32, batch_rows=16.0)
    cells = [cell("dpo", method__batch_size=32), cell("dpo", small, method__batch_size=16)]
    certificate = certify(cells, ["method.batch_size"])
    assert certificate.differences == []
    assert certificate.apart == {
        "batch_size": ["order", "steps", "completions a step", "preference rows a step"]
    }
    assert "examples" in certificate.same
    assert certify(cells, ["method.beta"]).differences


def test_kto_takes_twice_dpo_s_steps_at_the_same_batch_size_and_the_choice_of_method_is_no_excuse() -> None:
    """32 rows a step are 32 pairs for DPO and 32 completions, 16 pairs' worth, for KTO."""
    certificate = certify(
        [cell("dpo", beta=1), cell("dpo", beta=2), cell("kto", KTO, beta=1)], ["method", "method.beta"]
    )
    assert found(certificate) == {
        "order": (("kto",), "bbbbbbbb", "aaaaaaaa"),
        "steps": (("kto",), "143", "72"),
        "completions a step": (("kto",), "32", "64"),
        "preference rows a step": (("kto",), "16", "32"),
    }
    assert {"examples", "prompt tokens", "completion tokens", "epochs"} <= set(certificate.same)


def test_learning_rates_by_method_have_a_line_of_their_own_and_within_a_method_they_are_a_difference() -> (
    None
):
    hinge = replace(DPO, learning_rate=3e-4)
    certificate = certify([cell("dpo"), cell("hinge", hinge)], ["method"])
    assert certificate.by_method == {"learning rate": "dpo 0.001; hinge 0.0003"}
    assert certificate.differences == []
    assert "learning rate" not in certificate.same
    assert "Methods differ in learning rate on purpose: dpo 0.001; hinge 0.0003." in certificate.lines()
    certificate = certify(
        [cell("dpo", beta=1), cell("dpo", beta=2), cell("dpo", hinge, beta=3)], ["method.beta"]
    )
    assert found(certificate) == {"learning rate": (("row 3",), "0.0003", "0.001")}


def test_seeds_are_compared_within_a_seed() -> None:
    """Seed 1 has other rows in another order for every cell; one cell of seed 1 has yet others."""
    second = replace(DPO, examples="f" * 16, order=["d" * 16], rows=2280, prompt_tokens=9100)
    cells = [
        cell(method, DPO if seed == 0 else second, seed)
        for method in ("dpo", "ipo", "cpo")
        for seed in (0, 1)
    ]
    certificate = certify(cells, ["method", "seed"])
    assert certificate.differences == []
    assert certificate.within == {"seed": ["examples", "order", "prompt tokens"]}
    certificate = certify([*cells, cell("slic", DPO, 1)], ["method", "seed"])
    assert found(certificate)["examples"] == (("slic",), "2278 rows (eeeeeeee)", "2280 rows (ffffffff)")
    assert certificate.differs == {"slic-s1": ["examples", "order", "prompt tokens"]}


def test_fractions_are_compared_at_equal_fractions_and_the_batch_over_all() -> None:
    tenth = replace(DPO, rows=228, examples="f" * 16, steps=8)
    cells = [
        cell(m, f, data__fraction=size) for m in ("dpo", "ipo") for f, size in ((DPO, 1.0), (tenth, 0.1))
    ]
    certificate = certify(cells, ["method", "data.fraction"])
    assert certificate.within == {"data.fraction": ["examples", "steps"]}
    assert certificate.differences == []
    odd = replace(tenth, batch_rows=16.0)
    assert found(certify([*cells, cell("cpo", odd, data__fraction=0.1)], ["method", "data.fraction"])) == {
        "preference rows a step": (("cpo",), "16", "32")
    }


@pytest.mark.parametrize("fact", JUDGING)
def test_what_is_judged_and_by_whom_counts_for_start_models_too(fact: str) -> None:
    certificate = certify(
        [start(), cell("dpo", beta=1), cell("dpo", judging=JUDGING | {fact: "other"}, beta=2)],
        ["method.beta"],
    )
    assert found(certificate) == {fact: (("row 2",), "other", JUDGING[fact])}


def test_what_is_not_known_is_never_the_same() -> None:
    """A training that failed, and completions from elsewhere whose decoding nobody knows."""
    failed, foreign = cell("dpo", None, beta=1), cell("ipo", judging=JUDGING | {"decoding": None}, beta=1)
    certificate = certify([failed, foreign], ["method"])
    assert certificate.unknown == {name: ["dpo"] for name in TRAINING} | {"decoding": ["ipo"]}
    assert certificate.same == ["items", "judge"]
    assert certificate.words("dpo-1-s0").startswith("examples not known; completions in the loss not known")
    assert any(
        line.startswith("These facts are not known for ipo: decoding.") for line in certificate.lines()
    )
    assert not any("equal" in line and "examples" in line for line in certificate.lines())


def test_what_some_cells_do_not_tell_is_the_same_only_over_the_others() -> None:
    certificate = certify([cell("dpo", beta=1), cell("ipo", beta=1), cell("kto", None, beta=1)], ["method"])
    same = [line for line in certificate.lines() if "examples" in line and "equal" in line]
    assert len(same) == 1 and same[0].startswith(
        "These facts are equal in all cells where they are known, apart from the axes (method): "
    )


def test_one_trained_cell_has_nothing_to_be_compared_with() -> None:
    certificate = certify([start(), cell("dpo")], [])
    assert certificate.same == ["decoding", "items", "judge"]
    assert (
        "Facts of only one training are known, so there is nothing to compare it with." in certificate.lines()
    )


def test_an_axis_that_no_cell_holds_leaves_what_it_may_move_uncompared() -> None:
    certificate = certify([cell("dpo"), cell("dpo", replace(DPO, steps=9), other=1)], ["scale"])
    assert certificate.apart == {"scale": ["steps"]}
    assert certificate.differences == []


@pytest.mark.parametrize(
    ("axis", "moved_by", "excuse"),
    [
        ("data.fraction", ("data",), True),
        ("data", ("data.fraction",), True),
        ("data", ("data",), True),
        ("method", ("method.batch_size",), False),
        ("method.batch_size", ("method.batch_size",), True),
        ("method.beta", ("method.batch_size",), False),
        ("database", ("data",), False),
    ],
)
def test_an_axis_excuses_what_it_sets(axis: str, moved_by: Sequence[str], excuse: bool) -> None:
    assert excused(axis, moved_by) is excuse


def test_completions_of_a_file_have_no_known_training_and_decoding(tmp_path: Path) -> None:
    (tmp_path / "theirs.jsonl").write_text('{"id": "1", "completion": "yes"}\n')
    (cell,) = plans(f"completions={tmp_path / 'theirs.jsonl'}")
    row = CellRow(cell, None, True, {}, {})
    facts = known(row, pool([row]).groups[0], [], Store(tmp_path / "store")).facts
    assert {name for name, value in facts.items() if value is None} >= {*TRAINING, "decoding"}


# A real sweep -------------------------------------------------------------------------------------------------------------


def test_the_smoke_sweep_s_certificate_names_what_kto_does_otherwise(tmp_path: Path) -> None:
    """KTO's two cells come first, so DPO and IPO are held against them."""
    folder = smoke().results / "sweeps" / "smoke"
    written = json.loads((folder / "fairness.json").read_text())
    assert [d["fact"] for d in written["differences"]] == [
        "order",
        "steps",
        "completions a step",
        "preference rows a step",
    ]
    assert {
        (tuple(d["who"]), d["value"], d["others"]) for d in written["differences"] if d["fact"] != "order"
    } == {
        (("dpo", "ipo"), "4", "8"),
        (("dpo", "ipo"), "64", "32"),
        (("dpo", "ipo"), "32", "16"),
    }
    assert {"examples", "prompt tokens", "completion tokens", "items", "judge"} <= set(written["same"])
    assert written["axes"] == ["method", "method.beta"]
    assert f"| 4 | dpo {MARK} |" in (folder / "table.md").read_text()
    assert "$^{\\dagger}$" in (folder / "table.tex").read_text()
    with (folder / "table.csv").open() as file:
        differs = {row["method"]: row["differs"] for row in csv.DictReader(file)}
    assert differs == {
        "start": "",
        "kto": "",
        "dpo": "order; steps; completions a step; preference rows a step",
        "ipo": differs["dpo"],
    }
    assert f"{MARK} These differ from the other cells: dpo, ipo (order" in smoke().out


def test_a_cell_whose_training_is_gone_is_not_known(tmp_path: Path) -> None:
    results = copy_results(smoke(), tmp_path / "results")
    cells = plans("+sweep=smoke")
    dpo = next(plan for plan in cells if plan.cell.method.name == "dpo")
    for role in ("train", "score"):
        shutil.rmtree(results / "store" / dpo.roles[role].kind / dpo.roles[role].key)
    sweep, store = (
        Sweep("smoke", "", "+sweep=smoke", cells, axes=("method", "method.beta")),
        Store(results / "store"),
    )
    written = write_files(sweep, collect(sweep, store, {}), results)
    assert any(
        line.startswith("These facts are not known for dpo: examples, ")
        for line in written.table.notes["Fairness"]
    )
    certificate = json.loads((written.folder / "fairness.json").read_text())
    assert certificate["cells"][dpo.key]["steps"] is None
    assert {d["fact"]: d["who"] for d in certificate["differences"]}["steps"] == ["ipo"]
