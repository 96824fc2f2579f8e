"""ORPO (Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7), reference-free, with a loss of ours.

-log π(y_w)/|y_w| - λ log σ(log odds(y_w) - log odds(y_l)),  λ set as `lambda_or`
odds(y) = p/(1-p),  p = exp(log π(y)/|y|)

Deviations: the NLL is a mean over the completion's tokens and then over pairs. TRL (trl.experimental.orpo)
pools the tokens of a batch and counts the prompt's tokens too. The paper starts ORPO from a base model; here
it starts from the cell's start model, like every method.

The loss does not use the reference. rewards/* are log π/π_ref in nats (ORPO has no β), so that methods can be
compared. The other curves are as for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, own_loss

chain = one_shot
make_trainer = own_loss("orpo", "lambda_or")
