"""cDPO (E. Mitchell, "A note on DPO with noisy preferences & relationship to IPO", 2023), conservative DPO; a loss of ours.

-(1-ε) log σ(β Δ) - ε log σ(-β Δ),  Δ = [log π/π_ref](y_w) - [log π/π_ref](y_l),  ε set as `label_smoothing`

Least at σ(β Δ) = 1 - ε: a margin that is reached, where DPO's runs away. Deviations: none in the loss.
TRL's DPOTrainer took `label_smoothing` for this loss before v0.29; since then its `sigmoid` ignores the setting without a word, and a
"cDPO" of it is plain DPO.

rewards/*, logps/* and the other curves: as for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, own_loss

chain = one_shot
make_trainer = own_loss("cdpo", "beta", "label_smoothing")
