"""Iterative DPO: sample, label, train DPO on the pairs, and repeat from the new policy.

This is the general loop with every setting explicit. Papers: with an external reward model, Xu et al. 2023
(arXiv 2312.16682) and the baselines of SPA (Kim et al. 2024, arXiv 2406.04412, section 5).

    π_0 = DPO(π_start; labelled pairs), or π_start        for t = 1 ... iteration:
    y_1 ... y_n ~ π_{t-1}(.|x), x new, n ≥ 2;  best and worst by the labeller, ties dropped
    π_t = DPO(π_{t-1}; pairs)

labeller:
- `gold`: the world's annotator.
- `reward_model`: trained once on the labelled pairs (as in best_of_n), or on more of them than the seed has
  (`reward_fraction`; the role of PairRM in SPA's tables).
- `judge`: any judge of an evaluation, with its client, cache and budget: a language model that prefers or
  rates, or a reward model from a folder.
- `tuned_judge`: the start model after SFT on the labelled pairs as questions (SPA's LLM-as-judge, section 5.1
  and table 11: `judge_init: previous`). The more probable of its two replies counts, mean over both orders.
  The question is worded here, not copied.
- `implicit`: β log π_{t-1}/π_judge of whole completions minus length_penalty per token (SPA's eq. 13).
  π_judge is π_start, its base, or the policy before π_{t-1}.
- `random` and `shorter`: controls.

pairs: `fresh`, D_t alone; `two_latest`, D_{t-1} + D_t; `accumulated`, D_0 (the labelled pairs) to D_t. The
training reference is π_{t-1}, or always π_start.

Deviation: texts are scored as training tokenises them. A sample that was cut at sample_max_new_tokens
therefore counts as ended.

Iteration 0 is the policy before the first sampling. Trainings are those of method=dpo. A seed training with
the same settings is the same stage as that method's.
"""

from __future__ import annotations

from functools import partial

from bench.config import Cell, IterativeDpo
from bench.methods import iterations
from bench.planning.inputs import Ground, Policy
from bench.store.keys import Stage


def chain(cell: Cell, ground: Ground) -> Policy:
    settings = cell.method
    assert isinstance(settings, IterativeDpo)
    seed = settings.seed_training
    return iterations.unfold(
        cell,
        ground,
        iterations.LoopMethod(
            first=1,
            start=iterations.seeded(cell, ground, seed) if seed else ground.start,
            seed_pairs=ground.preferences if seed else None,
            draws=settings.draws,
            items=partial(iterations.prompts, cell, ground, settings),
            labels=partial(_labels, cell, ground, settings),
            training=lambda _: iterations.round_training(cell, settings.beta),
            training_reference=settings.training_reference,
        ),
    )


def _labels(cell: Cell, ground: Ground, settings: IterativeDpo, round_: iterations.Round) -> Stage:
    seed = settings.seed_training
    match settings.labeller:
        case "gold":
            return iterations.gold_labels(cell, round_)
        case "implicit":
            return iterations.implicit_labels(cell, ground, round_)
        case "reward_model":
            assert seed is not None
            return iterations.reward_model_labels(cell, ground, round_, seed=seed)
        case "judge":
            return iterations.judge_labels(cell, ground, round_)
        case "tuned_judge":
            return iterations.tuned_judge_labels(cell, ground, round_)
        case labeller:
            return iterations.plain_labels(cell, round_, labeller)
