"""cDPO, conservative DPO, with a loss of ours.

Source: E. Mitchell, "A note on DPO with noisy preferences & relationship to IPO", 2023.

-(1-ε) log σ(β Δ) - ε log σ(-β Δ),  Δ = [log π/π_ref](y_w) - [log π/π_ref](y_l),  ε set as `label_smoothing`

The minimum is at σ(β Δ) = 1 - ε. This margin is finite; DPO's margin grows without bound. Deviations: none in
the loss.

TRL's DPOTrainer took `label_smoothing` for this loss before v0.29. Since then its `sigmoid` ignores the
setting without an error, so that "cDPO" there is plain DPO.

rewards/*, logps/* and the other curves: as for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, own_loss

chain = one_shot
make_trainer = own_loss("cdpo", "beta", "label_smoothing")
