"""SPIN, self-play fine-tuning (Chen et al. 2024, arXiv 2401.01335, eq. 4.7 and algorithm 1).

Each iteration is DPO. The demonstration is chosen, and the policy's own sample is rejected. The reference is
the policy before the iteration, its opponent.

    for t = 0 ... iteration:  y' ~ π_t(.|x), x, y of the demonstrations
    -log σ(λ [log π/π_t (y|x) - log π/π_t (y'|x)]),  λ as β of DPO, by iteration

SPIN has no preference labels, only the start model's demonstrations: first turns of the conversations that it
learned (`prompts: sft`, section 6.1: 50,000 of UltraChat200k), or a file. A policy that writes like the
demonstrations learns nothing more. Algorithm 1 has the same demonstrations in every iteration
(`prompt_sets: same`); the default is new ones, the next n_prompts. Iteration 0 is the first training, as in
the paper. Later iterations train on the pairs of the two latest, as in the paper's text and code but not in
its algorithm (`pairs: fresh`). β is 0.1, and 5.0 in the last iteration; the learning rate falls to a fifth
after two iterations. `betas` and `learning_rate_factors` are these schedules. The paper trains for 2 epochs
an iteration; its scripts train for 6 and take an early epoch.

Deviations:
- Sampling uses the chat template of training. The released sampling wraps prompts in another text and cuts at
  256 tokens.
- Samples equal to their demonstration are dropped, because their loss is constant.
- Optimiser and schedule come from the scale preset (the paper: RMSprop, 10 % warm-up).

Control: `loss: sft` is SFT on the demonstrations of the same iterations (method=sft_chosen), for as many
steps. Its rejected samples only go through the model. Label accuracy is the share of demonstrations that are
better than the sample by the world's truth.
"""

from __future__ import annotations

from functools import partial

from bench.config import Cell, Dpo, SftChosen, Spin, Training, scheduled
from bench.methods import iterations
from bench.planning.inputs import Ground, Policy


def chain(cell: Cell, ground: Ground) -> Policy:
    settings = cell.method
    assert isinstance(settings, Spin)
    return iterations.unfold(
        cell,
        ground,
        iterations.LoopMethod(
            first=0,
            start=ground.start,
            seed_pairs=None,
            draws=1,
            items=partial(iterations.demonstrations, cell, ground, settings),
            labels=lambda round_: iterations.plain_labels(cell, round_, "human"),
            training=partial(_training, settings),
        ),
    )


def _training(settings: Spin, t: int) -> Dpo | SftChosen:
    common = settings.model_dump(include=set(Training.model_fields))
    common["learning_rate"] *= scheduled(settings.learning_rate_factors, t)
    if settings.loss == "sft":
        return SftChosen(**common, name="sft_chosen")
    return Dpo(**common, name="dpo", beta=scheduled(settings.betas, t))
