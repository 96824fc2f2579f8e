"""The table of `do=conformance`.

For every method: its paper and equation, the checks made just now, and other forms under its name elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from bench.config import BestOfN, name_of
from bench.conformance import checks, reward
from bench.conformance.checks import Bench, Check, Kind
from bench.conformance.references import REFERENCES, Facts
from bench.terminal import Terminal

METHODS: tuple[Kind, ...] = (*checks.KINDS, BestOfN)
NUMBERS = ("checks", "loss", "gradient", "real batch")
COLUMNS = ("method", "paper", "equation", "computed by", *NUMBERS, "elsewhere")
WIDTH = 200  # least width in characters


# The methods' needs were first written down for TRL v1.9.0. tests/conformance checks the pinned version.
TRL_VERSION = "1.16.0"
TRL_MOVED = (
    "Removed: trl.experimental.ppo and trl.experimental.bco. No online PPO is left; GRPO, RLOO and online DPO are.",
    "Unchanged losses: `sigmoid` ignores label_smoothing without an error, so cDPO would be plain DPO; `robust` uses it. `ipo` takes means "
    "per token and calls tau beta. `hinge` is RSO's. orpo and cpo are experimental. There is no SLiC-HF, kto_pair, CSFT or offline PPO. "
    "DPOTrainer has fifteen losses.",
    "Unchanged defaults: truncation keeps the start, and there is no max_prompt_length. beta 0.1, learning rate 1e-6, max_length 1024; "
    "bf16 and checkpointing are on.",
    "KTOTrainer: kto needs batches of 2 and sequential sampling, and logs no accuracies. apo_zero_unpaired needs neither of them, nor "
    "KTO's second forward pass. Our losses on judged completions run inside it.",
)


def checks_of(bench: Bench, kind: Kind) -> Iterator[Check]:
    """Yields every check of a method. For best_of_n these are the checks of its reward model."""
    return reward.reward_checks(bench) if kind is BestOfN else checks.checks(bench, kind)


def facts_of(kind: Kind) -> Facts:
    return reward.FACTS if kind is BestOfN else REFERENCES[kind].facts


def print_table() -> bool:
    """Runs every check and prints the table; True if all passed. Takes about half a minute."""
    began = time.monotonic()
    bench = Bench()
    try:
        checks_by_method = {kind: list(checks_of(bench, kind)) for kind in METHODS}
    finally:
        bench.close()
    failed = [
        f"method {name_of(kind)}, check '{check.name}': deviation {check.deviation:.2g}, allowed {check.tolerance:g}"
        for kind in METHODS
        for check in checks_by_method[kind]
        if not check.passed
    ]
    console = Terminal(soft_wrap=True)
    Terminal(width=max(WIDTH, console.width)).print(_table(checks_by_method), highlight=False)
    total = sum(map(len, checks_by_method.values()))
    text = f"{total - len(failed)} of {total} checks passed in {time.monotonic() - began:.0f} s. The numbers are the largest relative "
    text += "deviations from the equation: loss and gradient in float64 at prescribed log-probabilities, real batch in float32."
    console.print(text, highlight=False)
    console.print(
        f"\nTRL {TRL_VERSION} compared with v1.9.0, for which the methods were first written down:",
        highlight=False,
    )
    for line in TRL_MOVED:
        console.print(f"- {line}", highlight=False, markup=False)
    for line in failed:
        console.print(f"Failed: {line}.", style="red", highlight=False, markup=False)
    return not failed


def _table(checks_by_method: dict[Kind, list[Check]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for column in COLUMNS:
        number = column in NUMBERS
        table.add_column(column, justify="right" if number else "left", no_wrap=column != "elsewhere")
    for kind, method_checks in checks_by_method.items():
        paper, equation, computed_by, elsewhere = facts_of(kind)
        numbers = [
            f"{sum(check.passed for check in method_checks)} of {len(method_checks)}",
            *(_largest(method_checks, kind) for kind in ("loss", "gradient", "batch")),
        ]
        table.add_row(*map(escape, (name_of(kind), paper, equation, computed_by, *numbers, elsewhere)))
    return table


def _largest(method_checks: list[Check], kind: str) -> str:
    return f"{max(check.deviation for check in method_checks if check.kind == kind):.0e}"
