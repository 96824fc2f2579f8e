"""`do=conformance`: every method, its paper and equation, what was checked just now, and what goes by its name elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from bench.conformance import checks, reward
from bench.conformance.checks import Bench, Check
from bench.terminal import Terminal

NAMES = (*checks.NAMES, "best_of_n")
NUMBERS = ("checks", "loss", "gradient", "real batch")
COLUMNS = ("method", "paper", "equation", "computed by", *NUMBERS, "elsewhere")
WIDTH = 200  # characters, where the terminal has fewer or is none


class Facts(NamedTuple):
    paper: str
    equation: str
    computed_by: str
    elsewhere: str  # names and versions as read in their code or their threads


OURS, TRL = "ours", "TRL"
# Δ, r: differences and sums of log π/π_ref; the mean of a completion is over its tokens, EOS included.
FACTS = {
    "sft_chosen": Facts("Preferred-FT in 2305.18290", "-log π(y_w)/|y_w|", OURS, "TRL's `sft` and SFTTrainer pool the tokens of a batch"),
    "dpo": Facts(
        "2305.18290 eq. 7; 2404.19733",
        "-log σ(βΔ) - w log π(y_w)/|y_w|",
        f"{TRL} sigmoid; with w {OURS}",
        "TRL's `sft` beside `sigmoid` pools the tokens of a batch; IRPO weighs the DPO term; "
        "HALOs' reward accuracy compares chosen of one prompt with rejected of another",
    ),
    "cdpo": Facts(
        "Mitchell 2023",
        "-(1-ε) log σ(βΔ) - ε log σ(-βΔ)",
        OURS,
        "TRL since v0.29: `sigmoid` ignores label_smoothing without an error, which leaves plain DPO",
    ),
    "robust": Facts("2403.00409", "[-(1-ε) log σ(βΔ) + ε log σ(-βΔ)] / (1-2ε)", f"{TRL} robust", "none known"),
    "ipo": Facts(
        "2310.12036 eq. 17, means",
        "(r_w/|y_w| - r_l/|y_l| - 1/(2τ))²",
        f"{TRL} ipo",
        "sums in OpenRLHF, oxRL, rlhf-book, turbo-alignment; HALOs divides by tokens of non-zero log-ratio, 0/0 at step 0",
    ),
    "ipo_summed": Facts("2310.12036 eq. 17", "(Δ - 1/(2τ))²", OURS, "TRL v0.7.5 to v0.7.10 and SPA's fork call it IPO"),
    "hinge": Facts("2309.06657", "max(0, 1 - βΔ)", f"{TRL} hinge", "not SLiC-HF: it has a reference and no NLL term"),
    "slic": Facts(
        "2305.10425 eq. 4",
        "max(0, δ - log π(y_w) + log π(y_l)) - λ log π(y_w)",
        OURS,
        "TRL's DPOTrainer: none; HALOs main mixes a per-sequence and a per-token term",
    ),
    "simpo": Facts(
        "2405.14734 eq. 6",
        "-log σ(β [log π(y_w)/|y_w| - log π(y_l)/|y_l|] - γ)",
        OURS,
        "TRL (experimental CPO) adds an NLL term unless cpo_alpha=0; SimPO's and HALOs' code set γ/β",
    ),
    "orpo": Facts(
        "2403.07691 eq. 6, 7",
        "-log π(y_w)/|y_w| - λ log σ(log odds(y_w) - log odds(y_l))",
        OURS,
        "TRL (experimental): the NLL pools the tokens of a batch and counts the prompt's; λ is called beta",
    ),
    "cpo": Facts(
        "2401.08417",
        "-log σ(β [log π(y_w) - log π(y_l)]) - α log π(y_w)/|y_w|",
        OURS,
        "TRL (experimental): the NLL pools the tokens of a batch",
    ),
    "kto": Facts(
        "2402.01306 v5 eq. 8",
        "λ_D (1 - σ(β(r - z0))), λ_U (1 - σ(β(z0 - r)))",
        f"{TRL} kto",
        "TRL: y' is the neighbour in the device's batch, here a fixed partner, and both λ are set by hand; oxRL: z0 is a running "
        "mean of chosen log-ratios, log-sigmoid; align-anything: token-mean KL",
    ),
    "kto_pair": Facts(
        "HALOs, TRL, December 2023",
        "1 - σ(β(r_w - KL_l)), 1 - σ(β(KL_w - r_l))",
        OURS,
        "TRL's DPOTrainer until June 2024; SPA's fork and turbo-alignment call it KTO; not KTOTrainer's loss",
    ),
    "best_of_n": Facts(
        "2203.02155 eq. 1",
        "-log σ(R_w - R_l), then argmax R of n",
        f"{TRL} RewardTrainer",
        "InstructGPT: all pairs of a prompt are one element of a batch; TRL drops rows over max_length, here they are cut",
    ),
    "csft": Facts(
        "2302.08582; HALOs",
        "-log π(y|x,c)/|y|, c = <|good|>, <|bad|>",
        OURS,
        "HALOs (legacy) sums over tokens; where nobody appends <|good|> it is judged as plain SFT on good and bad rows; TRL: none",
    ),
    "offline_ppo": Facts(
        "2402.01306; HALOs legacy",
        "mean max(-Aρ, -A clip(ρ, c, 1/c)) + .01 L_V + .1 KL",
        OURS,
        "the KTO paper prints a clip of [1/4, 4], its code has [1/2, 2] and leaves the last reward out of G; TRL: none",
    ),
    "spa": Facts(
        "2406.04412 eq. 9 to 12",
        "-(1-αz) log σ(βΔ) - αz log σ(-βΔ)",
        OURS,
        "its release: de-coupled detection is off in every config, the threshold is one of batch means, two iterations; "
        "TRL: none. Labels and rounds: see method=spa",
    ),
}
# The methods' needs against TRL v1.9.0 were written down first; what the pinned version keeps is held by tests/conformance.
TRL_VERSION = "1.16.0"
TRL_MOVED = (
    "moved: trl.experimental.ppo and .bco are gone; no online PPO is left (GRPO, RLOO and online DPO are)",
    "as it was: `sigmoid` ignores label_smoothing without an error, so cDPO would be plain DPO; `robust` heeds it; `ipo` takes means per "
    "token and calls tau beta; `hinge` is RSO's; orpo and cpo are experimental; no SLiC-HF, kto_pair, CSFT or offline PPO; fifteen losses "
    "of DPOTrainer; truncation keeps the start, no max_prompt_length; beta 0.1, learning rate 1e-6, max_length 1024, bf16 and "
    "checkpointing on",
    "KTOTrainer: kto needs batches of 2 and sequential sampling and logs no accuracies; apo_zero_unpaired needs neither, nor KTO's second "
    "forward: our losses on judged completions run inside it",
)


def checks_of(bench: Bench, name: str) -> Iterator[Check]:
    """Every check of a method. best_of_n has no policy to train: what is checked is its reward model."""
    return reward.reward_checks(bench) if name == "best_of_n" else checks.checks(bench, name)


def print_table() -> bool:
    """Runs every check and prints the table; True when all passed. About half a minute."""
    began = time.monotonic()
    bench = Bench()
    try:
        found = {name: list(checks_of(bench, name)) for name in NAMES}
    finally:
        bench.close()
    failed = [
        f"{name}: {check.name}: {check.deviation:.2g} > {check.tolerance:g}" for name in NAMES for check in found[name] if not check.passed
    ]
    console = Terminal(soft_wrap=True)
    Terminal(width=max(WIDTH, console.width)).print(_table(found), highlight=False)
    total = sum(map(len, found.values()))
    text = f"{total - len(failed)} of {total} checks passed in {time.monotonic() - began:.0f} s. Largest relative deviations from "
    text += "the equation: loss and gradient in float64 at prescribed log-probabilities, real batch in float32."
    console.plain(text)
    console.plain(f"\nTRL {TRL_VERSION} against v1.9.0, for which the methods were first looked up:")
    for line in TRL_MOVED:
        console.plain(f"- {line}")
    for line in failed:
        console.plain(f"failed: {line}", "red")
    return not failed


def _table(found: dict[str, list[Check]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for column in COLUMNS:
        number = column in NUMBERS
        table.add_column(column, justify="right" if number else "left", no_wrap=column != "elsewhere")
    for name, made in found.items():
        paper, equation, computed_by, elsewhere = FACTS[name]
        numbers = [
            f"{sum(check.passed for check in made)} of {len(made)}",
            *(f"{max(c.deviation for c in made if c.kind == kind):.0e}" for kind in ("loss", "gradient", "batch")),
        ]
        table.add_row(*map(escape, (name, paper, equation, computed_by, *numbers, elsewhere)))
    return table
