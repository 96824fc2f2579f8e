"""Every method's real trainer against its paper's equation (bench/conformance), and every mutant of losses.py killed by that."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import mutants
import pytest

from bench import losses, methods
from bench.conformance.checks import COUPLED, KINDS, SETTINGS, Bench, Check, method
from bench.conformance.references import REFERENCES, Row
from bench.conformance.table import FACTS, NAMES, checks_of, print_table


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_what_its_paper_says(trainers: Bench, name: str) -> None:
    made = list(checks_of(trainers, name))
    assert [check for check in made if not check.passed] == []
    assert {"golden value", "equation", "gradient", "real batch"} <= {check.name for check in made}
    assert "logged" in {check.kind for check in made}


def test_every_method_has_a_reference_settings_and_facts() -> None:
    trained = set(methods.NAMES) - {"none"}
    assert trained == set(FACTS) == set(NAMES)
    assert trained - {"best_of_n"} == set(REFERENCES) == set(SETTINGS) == set(KINDS)  # that one's are in reward.py


def test_a_number_that_is_none_does_not_pass() -> None:
    assert not Check("loss", "equation", math.nan, 1.0).passed
    assert Check("loss", "equation", 0.5, 1.0).passed


@pytest.mark.parametrize("name", sorted(COUPLED))
def test_rows_of_kto_are_coupled_through_their_batch(trainers: Bench, name: str) -> None:
    """Which is why batch size and accumulation are part of them: the mean over two halves is another number."""
    rows = [Row(-20, -30, -26, -28, 10, 12, -40, -40, -43, -43), Row(-20, -30, -18, -39, 9, 4, -40, -40, -42, -31)]
    m = method(name, SETTINGS[name][0])
    whole = trainers.prescribed(m, rows)[0].item()
    halves = sum(trainers.prescribed(m, [row])[0].item() for row in rows) / 2
    assert abs(whole - halves) > 1e-4


def test_every_mutant_of_the_losses_is_killed(trainers: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(mutants.make_mutants(Path(losses.__file__).read_text()))
    survivors = [mutant.name for mutant in found if not mutants.killed(mutant, trainers)]
    with capsys.disabled():
        print(f"\n{len(found) - len(survivors)} of {len(found)} mutants of losses.py killed")
    assert survivors == []
    changes = Counter(mutant.change for mutant in found)
    wanted = {"sign", "mean for sum", "sum for mean", "clamp dropped", "detached", "chosen for rejected", "number"}
    assert wanted <= set(changes)
    assert {mutant.function for mutant in found} >= {
        "cdpo",
        "ipo_summed",
        "slic",
        "simpo",
        "orpo",
        "cpo",
        "kto_pair",
        "sft_chosen",
        "pair_logps",
    }


def test_the_losses_are_as_they_were_after_a_mutant(trainers: Bench) -> None:
    mutant = next(mutants.make_mutants(Path(losses.__file__).read_text()))
    before = dict(vars(losses))
    mutants.killed(mutant, trainers)
    assert dict(vars(losses)) == before


def test_the_verb_prints_a_table_of_all_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_table()
    out = capsys.readouterr().out
    for name in NAMES:
        assert any(line.split()[:1] == [name] for line in out.splitlines())
        assert FACTS[name].equation in out
