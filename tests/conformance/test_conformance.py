"""Every method's real trainer against its paper's equation (bench/conformance), and every mutant of losses.py killed by that."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import get_args

import mutants
import pytest
from outer import outer

from bench.config import METHODS as ALL
from bench.config import (
    Dpo,
    IterativeDpo,
    Kto,
    OfflinePpo,
    RefinedDpo,
    SelfRewarding,
    Spa,
    Spin,
    Trained,
    name_of,
)
from bench.conformance.checks import KINDS, Bench, Check, Kind, method
from bench.conformance.references import GOLDEN_ROW, HALOS, PPO_ROW, REFERENCES, Row
from bench.conformance.table import METHODS, checks_of, facts_of, print_table
from bench.training import losses


@pytest.mark.parametrize("kind", METHODS, ids=name_of)
def test_a_method_is_what_its_paper_says(trainers: Bench, kind: Kind) -> None:
    made = list(checks_of(trainers, kind))
    assert [check for check in made if not check.passed] == []
    assert {"golden value", "equation", "gradient", "real batch"} <= {check.name for check in made}
    assert "logged" in {check.kind for check in made}


def test_every_method_has_a_reference_settings_and_facts() -> None:
    loops = {
        IterativeDpo,
        Spin,
        SelfRewarding,
    }  # whose trainings are dpo's and sft_chosen's; spa's is RefinedDpo
    trained = {kind for kind in ALL.values() if kind.trains} - loops - {Spa} | {RefinedDpo}
    assert trained == set(METHODS) and all(facts_of(kind).equation for kind in METHODS)
    assert set(KINDS) == set(REFERENCES) == {*get_args(Trained), RefinedDpo}  # best_of_n's are in reward.py
    assert all(
        (reference.at_first_step is not None) == kind.has_reference for kind, reference in REFERENCES.items()
    )


@pytest.mark.parametrize(
    ("kind", "settings", "golden"),
    [
        (Dpo, {"beta": 0.1, "sft_weight": 0.5}, 1.5130152524),  # 0.5130152524 + 0.5 x 20 / 10
        (
            Kto,
            {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "weight_ratio": 4 / 3},
            0.5387564594,
        ),
        (
            Kto,
            {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "weight_ratio": 0.5},
            0.6400302625,
        ),
        (OfflinePpo, {"clip": 0.25, **HALOS}, -0.6975033523),
    ],
)
def test_golden_values_of_further_settings(
    trainers: Bench, kind: Kind, settings: dict[str, float], golden: float
) -> None:
    """KTO: half of 4/3 x 0.5249791875 + 0.3775406688, of 0.5249791875 + 2 x 0.3775406688. Offline PPO with the paper's clip: no ratio is
    cut, so the policy's part is the mean of -1.5 x .7309897465, -2.25 x .6829518251 and .4 x 1.4139415716, -.6891831992."""
    row = PPO_ROW if kind is OfflinePpo else GOLDEN_ROW
    assert trainers.prescribed(method(kind, settings), [row])[0].item() == pytest.approx(golden, abs=1e-10)


def test_a_number_that_is_none_does_not_pass() -> None:
    assert not Check("loss", "equation", math.nan, 1.0).passed
    assert Check("loss", "equation", 0.5, 1.0).passed


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.couples_rows], ids=name_of)
def test_rows_of_kto_are_coupled_through_their_batch(trainers: Bench, kind: Kind) -> None:
    """Which is why batch size and accumulation are part of them: the mean over two halves is another number."""
    rows = [
        Row(-20, -30, -26, -28, 10, 12, -40, -40, -43, -43),
        Row(-20, -30, -18, -39, 9, 4, -40, -40, -42, -31),
    ]
    m = method(kind, REFERENCES[kind].settings[0])
    whole = trainers.prescribed(m, rows)[0].item()
    halves = sum(trainers.prescribed(m, [row])[0].item() for row in rows) / 2
    assert abs(whole - halves) > 1e-4


@outer
def test_every_mutant_of_the_losses_is_killed(trainers: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(mutants.make_mutants(Path(losses.__file__).read_text()))
    survivors = [mutant.name for mutant in found if not mutants.killed(mutant, trainers)]
    with capsys.disabled():
        print(f"\n{len(found) - len(survivors)} of {len(found)} mutants of losses.py killed")
    assert survivors == []
    changes = Counter(mutant.change for mutant in found)
    wanted = {
        "sign",
        "mean for sum",
        "sum for mean",
        "clamp dropped",
        "detached",
        "chosen for rejected",
        "number",
    }
    wanted |= {
        "detach dropped",
        "whitening dropped",
        "desirable for undesirable",
        "policy for reference",
        "minimum for maximum",
    }
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
        "dpo_sft",
        "csft",
        "refined_dpo",
        "extrapolated_logps",
        "offline_ppo",
        *mutants.PPO[:-1],  # PpoLoss holds no expression
    }


def test_the_losses_are_as_they_were_after_a_mutant(trainers: Bench) -> None:
    mutant = next(mutants.make_mutants(Path(losses.__file__).read_text()))
    before = dict(vars(losses))
    mutants.killed(mutant, trainers)
    assert dict(vars(losses)) == before


@outer
def test_the_verb_prints_a_table_of_all_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_table()
    out = capsys.readouterr().out
    for kind in METHODS:
        assert any(line.split()[:1] == [name_of(kind)] for line in out.splitlines())
        assert facts_of(kind).equation in out
