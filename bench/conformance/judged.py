"""Helpers for checks of methods on judged completions (csft, offline_ppo).

They give a critic with prescribed values, and the real batch computed by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from bench.config import Csft
from bench.conformance.references import Judged, Row, spread
from bench.methods.csft import BAD, GOOD
from bench.methods.offline_ppo import make_value_head

if TYPE_CHECKING:
    from bench.conformance.checks import Bench

OUTSIDE = 7.0  # Value at places outside completions. No loss may read it.
SIDES = ("chosen", "rejected")


def token_features(rows: Sequence[Row], first_prompt: int, sides: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "prompt_ids": [first_prompt + i],
            "completion_ids": [1 + side] * (row.rejected_length if side else row.chosen_length),
            "label": not side,
        }
        for i, row in enumerate(rows)
        for side in sides
    ]


def token_references(rows: Sequence[Row], sides: Sequence[int], width: int) -> dict[str, Any]:
    """Reference log-probs: sums, and token by token (B, width).

    They are kept as floats for float64, because a collator would make them float32.
    """
    chosen = [
        (getattr(row, f"ref_{SIDES[side]}"), getattr(row, f"{SIDES[side]}_length"))
        for row in rows
        for side in sides
    ]
    tokens = [spread(total, n) + [0.0] * (width - n) for total, n in chosen]
    return {"ref_logps": [total for total, _ in chosen], "ref_token_logps": tokens}


def passes_through(head: Any) -> None:
    """Sets a three-layer value head, in place, to return the first number of each hidden state.

    It computes relu(x) - relu(-x) in float64.
    """
    first, second, last = (layer for layer in head if isinstance(layer, torch.nn.Linear))
    head.double()
    with torch.no_grad():
        for layer in (first, second, last):
            layer.weight.zero_()
            layer.bias.zero_()
        first.weight[0, 0], first.weight[1, 0] = 1.0, -1.0
        second.weight[0, 0] = second.weight[1, 1] = 1.0
        last.weight[0, 0], last.weight[0, 1] = 1.0, -1.0


def csft_rows(bench: Bench) -> list[Row]:
    """The real pairs' log-probabilities with the control token of each side.

    The policy is the model as its trainer has prepared it.
    """
    trainer = bench.trainer(bench.first_settings(Csft))
    model, tokenizer = copy.deepcopy(trainer.model).double().eval(), trainer.processing_class
    del model.forward  # It is TRL's.
    rows = []
    for pair, row in zip(bench.pairs, bench.rows, strict=True):
        sums = {}
        for side, control in zip(SIDES, (GOOD, BAD), strict=True):
            prompt, completion = bench.ids(pair.prompt, getattr(pair, side))
            sums[side] = sum(
                bench.token_logps(model, [*prompt, tokenizer.convert_tokens_to_ids(control)], completion)
            )
        rows.append(
            Row(
                sums["chosen"],
                sums["rejected"],
                row.ref_chosen,
                row.ref_rejected,
                row.chosen_length,
                row.rejected_length,
            )
        )
    return rows


def ppo_rows(bench: Bench) -> list[Judged]:
    """The real completions token by token.

    Log-probabilities of the policy (seed 0) and the reference (seed 1), and values of the policy's value
    head.
    """
    policy, reference = (bench.model(seed).double().eval() for seed in (0, 1))
    head = make_value_head(policy.config.hidden_size, 0).double()
    rows = []
    for pair in bench.pairs:
        for side in SIDES:
            prompt, completion = bench.ids(pair.prompt, getattr(pair, side))
            with torch.no_grad():
                states = policy.base_model(input_ids=torch.tensor([[*prompt, *completion]])).last_hidden_state
                values = head(states)[0, len(prompt) - 1 : -1, 0].tolist()
            old, new = (bench.token_logps(model, prompt, completion) for model in (reference, policy))
            rows.append(Judged(new, old, values, desirable=side == "chosen"))
    return rows


def with_references(trainer: Any, rows: Sequence[Judged]) -> Any:
    """Returns the trainer with its per-token reference log-probabilities replaced.

    Its own are the start model's; policy and reference are to differ at the first step.
    """
    dataset = trainer.train_dataset
    tokens = [
        [0.0] * (len(ids) - 1) + list(row.reference)
        for ids, row in zip(dataset["prompt_ids"], rows, strict=True)
    ]
    trainer.train_dataset = dataset.remove_columns("ref_token_logps").add_column("ref_token_logps", tokens)
    return trainer
