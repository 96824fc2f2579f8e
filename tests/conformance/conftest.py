"""One bench of trainers for all tests of conformance."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.conformance.checks import Bench


@pytest.fixture(scope="session")
def trainers() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()
