"""The world that the tests ask about: all categories, up to three constraints."""

from __future__ import annotations

import pytest

from bench.config import CATEGORIES, GoldWeights, World, Writer


@pytest.fixture(scope="session")
def world() -> World:
    return World(
        categories=CATEGORIES,
        constraint_counts=(0.15, 0.4, 0.3, 0.15),
        gold=GoldWeights(content=0.45, constraints=0.35, conciseness=0.2),
        reference=Writer(error=0.1, missed_constraint=0.15, filler=0.2),
        eval_seed=0,
    )
