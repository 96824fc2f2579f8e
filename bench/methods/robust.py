"""Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409), trained by TRL's DPOTrainer (`robust`).

[-(1-ε) log σ(β Δ) + ε log σ(-β Δ)] / (1 - 2ε),  Δ = [log π/π_ref](y_w) - [log π/π_ref](y_l)
ε set as `label_smoothing`

If a share ε of the labels is flipped, the expected loss equals DPO's loss on clean labels. The loss of one
pair can be negative and has no lower bound. Deviations: none in the loss.

rewards/*, logps/* and the other curves: as for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, trl_loss

chain = one_shot
make_trainer = trl_loss("robust", "label_smoothing")
